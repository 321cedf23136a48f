"""The documentation is correct: its links lead somewhere, its commands exist, and it names no private machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from checkout import ROOT, files
from pages import FENCE, commands, pages, read

from deg.errors import DegError
from deg.launch import cli
from deg.launch.commands.arguments import split_words
from deg.options.load import load_config

LINK = re.compile(r"\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)[^)]*\)|^\[[^\]]+\]:\s*(?P<reference>\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+\s+(?P<text>.+?)\s*#*$", re.MULTILINE)

PRIVATE = re.compile(
    r"(?<![\w.])/wor[k]\b"  # where deg is developed
    r"|\.\./shared\b"  # test data beside the checkout: only tests/conftest.py knows its place
    # each machine sets its own package index
    r"|\bpypi(?:\.org|/)|\bpythonhosted\.org|\bdeb\.debian\.org|\bnpmjs\.org|--(?:extra-)?index-ur[l]|--find-link[s]"
)


def links(text: str) -> list[str]:
    """Return the targets of the links of a page, except those in code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return [found["target"] or found["reference"] for found in LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Return what `#...` can name in a page: its headings, as code hosts spell them."""
    titles = [found["text"].lower() for found in HEADING.finditer(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


PAGE = """
# Title of `this` page!

See [one](one.md#part), [two]( <two.md> "title") and [three].
Not `[code](code.md)`.

[three]: three.md

```console
$ deg check PROJECT --json | less   # look
deg this is output
$ cd there && .venv/bin/deg run PROJECT \\
      --on slurm > log.txt
```

```bash
deg status
degree 5
```

```
deg no language, no command
[no](link.md)
```
"""


def test_links_are_found():
    assert links(PAGE) == ["one.md#part", "two.md", "three.md"]


def test_anchors_are_those_of_the_headings():
    assert anchors(PAGE) == {"title-of-this-page"}


def test_commands_are_found():
    assert list(commands(PAGE)) == [["check", "PROJECT", "--json"], ["run", "PROJECT", "--on", "slurm"], ["status"]]


def dead_links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page that lead nowhere, each with what is missing."""
    for link in links(read(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            yield f"{page}: there is no {target}"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
            yield f"{page}: no heading for {link}"


def shown() -> list[tuple[str, list[str]]]:
    """Return every command that the pages show: its place and text, and its words."""
    return [(f"{page}: deg {shlex.join(words)}", words) for page in pages() for words in commands(read(page))]


def test_pages_and_commands_are_there():
    """Guards the tests below: they would pass if they found nothing."""
    assert {Path("README.md"), Path("docs/training.md")} <= set(pages())
    assert len(shown()) > 20


def test_relative_links_lead_somewhere():
    dead = [fault for page in pages() for fault in dead_links(page)]
    assert not dead, "\n".join(dead)


def test_shown_commands_are_understood(capsys):
    """The real command line parses them with --help added: it then does nothing, but still refuses unknown words."""
    refused = []
    for where, words in shown():
        status = cli.run([*words, "--help"])
        said = capsys.readouterr().err
        if status != 0:
            refused.append(f"{where}\n{said}")
    assert not refused, "\n".join(refused)


def test_shown_options_of_the_configuration_exist(mysite):
    refused = []
    for where, words in shown():
        try:
            load_config(None, split_words(words)[1])
        except DegError as error:
            refused.append(f"{where}\n{error}")
    assert not refused, "\n".join(refused)


def test_every_command_is_documented():
    missing = set(cli.COMMANDS) - {words[0] for _, words in shown() if words}
    assert not missing, "show in README.md or docs/: " + ", ".join(f"`deg {command}`" for command in sorted(missing))


def test_private_places_are_recognised():
    """The names are assembled here, because this file is searched too."""
    for text in ("/".join(["", "work", "main"]), "/".join(["..", "shared", "golden"]), "https://pypi" + ".org/simple"):
        assert PRIVATE.search(text), text
    for text in ("network/main", "/workspace", "a/work/b", "PyPI", "shared/"):
        assert not PRIVATE.search(text), text


def test_no_file_names_a_private_place():
    offences = []
    for path in files():
        try:
            lines = read(path).splitlines()
        except UnicodeDecodeError:
            continue  # pictures, videos, arrays
        offences += [f"{path}:{number}: {line}" for number, line in enumerate(lines, start=1) if PRIVATE.search(line)]
    assert not offences, "a matter of one machine, not of the project:\n" + "\n".join(offences)
