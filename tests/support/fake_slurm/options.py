"""Read the options of sbatch and srun. Options that Slurm does not have are errors, as in Slurm."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

SHORT = {
    "A": "account", "a": "array", "c": "cpus-per-task", "C": "constraint", "D": "chdir", "d": "dependency",
    "e": "error", "G": "gpus", "H": "hold", "i": "input", "J": "job-name", "K": "kill-on-bad-exit", "k": "no-kill",
    "L": "licenses", "l": "label", "N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos",
    "s": "oversubscribe", "t": "time", "u": "unbuffered", "v": "verbose", "w": "nodelist", "W": "wait", "x": "exclude",
    "Q": "quiet",
}  # fmt: skip
FLAGS = {
    "hold",
    "parsable",
    "requeue",
    "no-requeue",
    "test-only",
    "unbuffered",
    "label",
    "overlap",
    "exact",
    "verbose",
    "quiet",
}
"""Options without a value."""
MAYBE = {"exclusive", "kill-on-bad-exit", "no-kill", "oversubscribe", "get-user-env"}
"""Options whose value, if any, follows an =."""
COMMON = {
    "account", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error", "exclude",
    "exclusive",
    "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "input", "job-name", "licenses", "mem",
    "mem-per-cpu", "mem-per-gpu", "network", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output",
    "oversubscribe", "partition", "priority", "qos", "quiet", "reservation", "signal", "threads-per-core", "time",
    "time-min",
    "tmp", "verbose", "wckey",
}  # fmt: skip
SBATCH = COMMON | {
    "array", "begin", "get-user-env", "hold", "kill-on-invalid-dep", "mail-type", "mail-user", "nice", "no-kill",
    "no-requeue", "parsable", "requeue", "test-only", "wrap",
}  # fmt: skip
SRUN = COMMON | {
    "cpu-bind", "exact", "gpu-bind", "jobid", "kill-on-bad-exit", "label", "mpi", "overlap", "unbuffered", "wait",
}  # fmt: skip


class Refused(Exception):
    """Raised with the text that the command prints on standard error before it exits with 1."""


@dataclass
class Options:
    """Values by long option; the value of a flag is the empty string."""

    values: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: str | None = None) -> str | None:
        return self.values.get(name, default)

    def number(self, name: str, default: int) -> int:
        text = self.values.get(name)
        if text is None:
            return default
        if not text.isdecimal():
            raise Refused(f'sbatch: error: Invalid numeric value "{text}" for --{name}.')
        return int(text)


def parse_words(words: list[str], known: Iterable[str], program: str) -> tuple[Options, list[str]]:
    """Return the options, and all words from the first one that is not an option."""
    options = Options()
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-") or word == "-":
            break
        position += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, equals, value = SHORT.get(word[1], word[1]), word[2:], word[2:].removeprefix("=")
        if name not in known:
            shown = f"unrecognized option '--{name}'" if word.startswith("--") else f"invalid option -- '{word[1]}'"
            raise Refused(f'{program}: {shown}\nTry "{program} --help" for more information')
        if name not in FLAGS | MAYBE and not equals:
            if position == len(words):
                raise Refused(f"{program}: option '--{name}' requires an argument")
            value = words[position]
            position += 1
        options.values[name] = value
    return options, words[position:]


def script_options(script: str) -> Options:
    """Return the options of the #SBATCH lines, which end at the first command."""
    options = Options()
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH"):
            found, rest = parse_words(shlex.split(line[len("#SBATCH") :], comments=True), SBATCH, "sbatch")
            if rest:
                raise Refused(f"sbatch: error: Unable to parse line: {line}")
            options.values.update(found.values)
        elif line.strip() and not line.startswith("#"):
            break
    return options


def parse_minutes(text: str) -> float:
    """Return the minutes of a time limit: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    form = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not form:
        raise Refused("sbatch: error: Invalid --time specification")
    days, *parts = (None if part is None else int(part) for part in form.groups())
    first, second, third = parts
    if days is not None:
        return days * 1440 + (first or 0) * 60 + (second or 0) + (third or 0) / 60
    if third is not None:
        return (first or 0) * 60 + (second or 0) + third / 60
    return (first or 0) + (second or 0) / 60


def parse_array(text: str, max_array_size: int) -> tuple[list[int], int | None]:
    """Return the elements of `0-5%2`, `1,3,7` or `0-8:4`, and the number that may run at a time."""
    indices, _, throttle = text.partition("%")
    elements: set[int] = set()
    for part in indices.split(","):
        form = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not form:
            raise Refused("sbatch: error: Batch job submission failed: Invalid job array specification")
        first, last, step = form.groups()
        elements |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    if not elements or max(elements) >= max_array_size:
        raise Refused("sbatch: error: Batch job submission failed: Invalid job array specification")
    return sorted(elements), int(throttle) if throttle else None


def array_text(elements: list[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5"""
    runs: list[list[int]] = []
    for element in elements:
        if runs and element == runs[-1][1] + 1:
            runs[-1][1] = element
        else:
            runs.append([element, element])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def node_names(text: str) -> list[str]:
    """n[1-2,5],m3 -> n1 n2 n5 m3"""
    names = []
    for prefix, inner in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?", text):
        for part in inner.split(",") if inner else [""]:
            first, _, last = part.partition("-")
            if last:
                names += [f"{prefix}{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
            else:
                names.append(prefix + first)
    return names


def node_text(names: Iterable[str]) -> str:
    """n1 n2 n5 -> n[1-2,5]; names without a number stay as they are."""
    groups: dict[str, list[int]] = {}
    alone = []
    for name in names:
        form = re.fullmatch(r"(.*?)([1-9]\d*)", name)
        if form:
            groups.setdefault(form[1], []).append(int(form[2]))
        else:
            alone.append(name)
    texts = [
        f"{prefix}{numbers[0]}" if len(numbers) == 1 else f"{prefix}[{array_text(sorted(numbers))}]"
        for prefix, numbers in groups.items()
    ]
    return ",".join(texts + alone)


def fill_pattern(pattern: str, values: dict[str, str]) -> str:
    """Return a file name with %j, %A, %a, %t, %5j ... filled in."""

    def put(form: re.Match[str]) -> str:
        width, letter = form.groups()
        if letter == "%":
            return "%"
        return values.get(letter, form[0]).zfill(int(width or 0)) if letter in values else form[0]

    return re.sub(r"%(\d*)([a-zA-Z%])", put, pattern)


def parse_gpus(options: Options) -> int:
    """Return the number of GPUs on each node."""
    for name in ("gpus-per-node", "gpus", "gpus-per-task"):
        if text := options.get(name):
            return int(text.rpartition(":")[2])
    total = 0
    for part in (options.get("gres") or "").split(","):
        words = part.removeprefix("gres:").split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if words[-1].isdecimal() else 1
    return total
