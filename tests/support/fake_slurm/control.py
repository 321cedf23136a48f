"""The fake cluster, as tests control it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fake_slurm.client import ask
from fake_slurm.scheduler import UNFINISHED
from fake_slurm.site import Site

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo", "sacctmgr", "srun")
HERE = Path(__file__).resolve().parent


class FakeSlurm:
    """A cluster in `folder`, from `start` to `stop`. `environment` holds the variables for its users."""

    def __init__(self, folder: Path, site: Site | None = None):
        self.folder = folder
        self.site = site or Site()
        self.bin = folder / "bin"
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"FAKE_SLURM": str(self.folder), "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def start(self) -> None:
        self.bin.mkdir(parents=True)
        (self.folder / "site.json").write_text(json.dumps(asdict(self.site)))
        for program in PROGRAMS:
            script = self.bin / program
            # -S, -E: 20 ms instead of 100, and a PYTHONPATH of the test does not matter
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{HERE / "client.py"}" {program} "$@"\n')
            script.chmod(0o755)
        with (self.folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-S", "-m", "fake_slurm.server", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(HERE.parent)},
                cwd=self.folder,
            )
        self._await("the server's start", lambda: (self.folder / "socket").exists())

    def stop(self) -> None:
        """Stop the server, and end every process of every job."""
        assert self._server is not None and self._server.stdin is not None
        self._server.stdin.close()
        status = self._server.wait(timeout=30)
        if status:
            raise RuntimeError(f"the fake Slurm broke:\n{(self.folder / 'server.log').read_text()}")

    def configure(self, **changes: Any) -> None:
        """Change fields of the site, also for running jobs."""
        self.site = replace(self.site, **changes)
        self._ask(ask="configure", changes=changes)

    # ---------------------------------------------------------------------------------------------- faults of jobs

    def preempt(self, job: str) -> None:
        self._ask(ask="on_jobs", what="preempt", job=job)

    def end_of_memory(self, job: str) -> None:
        """Kill a process of the job as the kernel would; the job ends as OUT_OF_MEMORY."""
        self._ask(ask="on_jobs", what="end_of_memory", job=job)

    def kill_node(self, node: str) -> None:
        self._ask(ask="kill_node", node=node)

    def start_node(self, node: str) -> None:
        self._ask(ask="start_node", node=node)

    # ----------------------------------------------------------------------------------------------------------- state

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs and elements as they are now; earlier lives of requeued ones come first, as REQUEUED."""
        found: list[dict[str, Any]] = self._ask(ask="jobs")["jobs"]
        return found

    def states(self) -> dict[str, str]:
        """Return the present state of each job and element, by its name."""
        return {job["name"]: job["state"] for job in self.jobs()}

    def wait(self, *names: str, state: str | None = None, seconds: float = 60) -> dict[str, str]:
        """Wait until these jobs (else all) have ended, or are in `state`; an array's name means all its elements.

        Raise RuntimeError if that takes too long.
        """

        def there() -> bool:
            states = self.states()
            wanted = [now for job, now in states.items() if not names or job in names or job.partition("_")[0] in names]
            if state:
                return bool(wanted) and all(now == state for now in wanted)
            return bool(wanted) and all(now not in UNFINISHED for now in wanted)

        self._await(f"jobs {' '.join(names) or '(all)'} being {state or 'at an end'}", there, seconds)
        return self.states()

    def run(self, *words: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run a command, such as `run("sbatch", "script.sh")`, and return its standard output."""
        done = subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd or self.folder,
            env={**os.environ, **self.environment},
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def _ask(self, **question: Any) -> dict[str, Any]:
        answer: dict[str, Any] = ask(str(self.folder), **question)
        return answer

    def _await(self, what: str, test: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not test():
            if self._server is not None and self._server.poll() is not None:
                raise RuntimeError(f"the fake Slurm broke:\n{(self.folder / 'server.log').read_text()}")
            if time.monotonic() > end:
                shown = self.states() if (self.folder / "socket").exists() else {}
                raise RuntimeError(f"{what} did not happen within {seconds:g} s; jobs: {shown}")
            time.sleep(0.02)
