"""A Slurm that takes jobs and starts none: commands on PATH that record what they get, and answer as Slurm does.

It has the texts of fake_slurm, which are compared with the real ones. Tests in which jobs run use fake_slurm.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_slurm import Site
from fake_slurm.options import script_options
from fake_slurm.scheduler import Scheduler
from shims import Shims

CONFIG = {
    "ClusterName": "recorded",
    "MaxArraySize": "1001",
    "SelectTypeParameters": "CR_CORE",
    "SLURM_VERSION": "22.05.8",
}
"""Output of `scontrol show config`."""

SBATCH = r"""
for script; do :; done
[ "$1" = --test-only ] && try=yes || try=
number=$(($(ls | wc -l) + 1))
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
refuse() {
    [ "$try" ] && echo "allocation failure: $2" >&2 && exit 1
    [ "$1" ] && echo "sbatch: error: $1" >&2
    echo "sbatch: error: Batch job submission failed: $2" >&2
    exit 1
}
"""
"""Beginning of the sbatch script; the rules by which it refuses jobs follow."""
TAKEN = r"""
if [ "$try" ]; then
    cp "$script" ../tried/$(ls ../tried | wc -l)
    when=2026-11-22T12:00:00
    echo "sbatch: Job $number to start at $when using 1 processors on nodes n1 in partition gpu" >&2
    exit
fi
grep -q '^#SBATCH --dependency=' "$script" && reason=Dependency || reason=Resources
mkdir $number
cp "$script" $number/script
names=$([ "$last" ] && seq -f "${number}_%.0f" 0 "$last" || echo $number)
printf "%s|PENDING||N/A|0:00|1:00:00|$reason\n" $names >$number/squeue
echo "Submitted batch job $number"
"""
SQUEUE = r"""
for word; do asked=$(echo "${word#--jobs=}" | tr , ' '); done
for job in $asked; do [ -e $job/squeue ] && cat $job/squeue && known=yes; done
case $known$asked in yes*|*' '*) exit 0;; esac
echo 'slurm_load_jobs error: Invalid job id specified' >&2
exit 1
"""
SCANCEL = r"""
for job; do
    file=${job%_*}/squeue
    [ -e $file ] && sed -i "s/^\($job\(_[0-9]*\)\?\)|\(PENDING\|RUNNING\)|/\1|CANCELLED|/" $file
done
"""


@dataclass(frozen=True)
class Recorded:
    """A job or array as it was submitted, and its present states."""

    options: dict[str, str]
    """Options of its script by name, such as `nodes`."""
    states: dict[str, str]
    """State of each element."""

    @property
    def dependency(self) -> str:
        return self.options.get("dependency", "")


class RecordedSlurm(Shims):
    """A recorder of jobs, which get the numbers from 1 on. The test decides their states."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(folder, monkeypatch)
        self._jobs, self._tried = folder / "jobs", folder / "tried"
        for place in (self._jobs, self._tried):
            place.mkdir()
        self._rules: list[str] = []
        for name in ("srun", "sacct", "sacctmgr", "sinfo"):
            self(name)
        self.configure()
        self._add("squeue", SQUEUE)
        self._add("scancel", SCANCEL)

    # ---------------------------------------------------------------------------------------------- what kind of site

    def configure(self, **changes: object) -> None:
        """Change the output of `scontrol show config`; longer arrays are refused."""
        config = CONFIG | {name: str(value) for name, value in changes.items()}
        self("scontrol", "".join(f"{name:<23} = {value}\n" for name, value in config.items()))
        self._longest = config["MaxArraySize"]
        self._write_sbatch()

    def forbid(self, *flags: str) -> None:
        """Refuse scripts with these flags."""
        for flag in flags:
            self.refuse(rf"{flag}\(=\|$\)", "Unspecified error", f"--{flag} is not allowed on this cluster")

    def refuse(self, flag: str, why: str, detail: str = "", *, from_job: int = 1) -> None:
        """Refuse scripts with a flag of this pattern, from the job of this number on."""
        asked = f'grep -q -e {shlex.quote(f"^#SBATCH --{flag}")} "$script"'
        self._rules.append(f"[ $number -ge {from_job} ] && {asked} && refuse {shlex.join([detail, why])}")
        self._write_sbatch()

    def refuse_nothing(self) -> None:
        self._rules = []
        self._write_sbatch()

    # ----------------------------------------------------------------------------------------------------------- state

    def jobs(self) -> dict[str, Recorded]:
        """Return all that was submitted, by number."""
        folders = sorted(self._jobs.iterdir(), key=lambda folder: int(folder.name))
        return {folder.name: self._read(folder) for folder in folders}

    def states(self) -> dict[str, str]:
        """Return the states of all jobs and elements of arrays, by number."""
        return {name: state for job in self.jobs().values() for name, state in job.states.items()}

    def waiting(self) -> dict[str, Recorded]:
        """Return the jobs that are still waiting, or have waiting elements, by number."""
        return {number: job for number, job in self.jobs().items() if "PENDING" in job.states.values()}

    def tell(self, state: str, *jobs: str, reason: str = "None") -> None:
        """Set what squeue says from now on about jobs or elements of arrays; about all, if none is named."""
        for file in self._jobs.glob("*/squeue"):
            lines = [line.split("|") for line in file.read_text().splitlines()]
            for cells in lines:
                if not jobs or cells[0] in jobs or file.parent.name in jobs:
                    cells[1], cells[6] = state, reason
            file.write_text("".join("|".join(cells) + "\n" for cells in lines))

    def check(self) -> None:
        """Raise `Refused` if fake_slurm would not take a script that was accepted here, or would have been."""
        scheduler = Scheduler(self._jobs, Site())
        for file in [*self._jobs.glob("*/script"), *self._tried.iterdir()]:
            text = file.read_text()
            scheduler.submit(script_options(text), text, "/", {}, try_only=True)

    # --------------------------------------------------------------------------------------------------------- within

    def _read(self, folder: Path) -> Recorded:
        lines = [line.split("|") for line in (folder / "squeue").read_text().splitlines()]
        options = script_options((folder / "script").read_text()).values
        return Recorded(options, {name: state for name, state, *_ in lines})

    def _write_sbatch(self) -> None:
        too_long = f'[ "${{last:-0}}" -ge {self._longest} ] && refuse "" "Invalid job array specification"'
        self._add("sbatch", "\n".join([SBATCH, too_long, *self._rules, TAKEN]))

    def _add(self, name: str, text: str) -> None:
        self(name, then=f"cd {shlex.quote(str(self._jobs))}\n{text}")
