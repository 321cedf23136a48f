"""The recorder answers as the fake Slurm does, which tests/cluster/test_fake_slurm.py compares with the real one."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from deg.launch.scheduler.queue import SQUEUE, parse_squeue

pytestmark = pytest.mark.tools


@pytest.fixture
def both(recorder, fake_slurm, tmp_path):
    """`both("sbatch", script)` returns the answers of the recorder and of the fake, each with its exit status."""
    for node in fake_slurm.site.nodes:
        fake_slurm.kill_node(node)
    recorder.configure(MaxArraySize=3)
    recorder.forbid("mem")
    fake_slurm.configure(max_array_size=3, forbidden=["mem"])

    def both(*words: object) -> list[tuple[int, str]]:
        found = []
        for folder in (tmp_path / "slurm", fake_slurm.bin):
            path = f"{folder}{os.pathsep}{os.environ['PATH']}"
            said = subprocess.run(
                list(map(str, words)), capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            found.append((said.returncode, re.sub(r"20\d\d-[\d:T-]+", "DATE", said.stdout + said.stderr)))
        return found

    return both


@pytest.mark.parametrize("flag", ["--job-name=a", "--array=0-2%2", "--array=0-3", "--mem=1G"])
@pytest.mark.parametrize("words", [("sbatch",), ("sbatch", "--test-only")])
def test_sbatch_takes_and_refuses_in_the_same_words(both, tmp_path, flag, words):
    (tmp_path / "job.sh").write_text(f"#!/bin/sh\n#SBATCH {flag}\n")
    one, other = both(*words, tmp_path / "job.sh")
    assert one == other


def test_squeue_shows_the_same(both, tmp_path):
    for flags in ("--array=0-2%2", "--dependency=afterany:1", ""):
        (tmp_path / "job.sh").write_text(f"#!/bin/sh\n#SBATCH {flags}\n")
        both("sbatch", tmp_path / "job.sh")
    for step in (("scancel", "2", "1_1"), ("scancel", "1"), ("true",)):
        seen = [parse_squeue(said) for _, said in both(*SQUEUE, "--jobs=1,2,3,99")]
        states = [{job: state.state for job, state in found.items()} for found in seen]
        assert states[0] == states[1] and len(states[0]) == 5
        both(*step)
    one, other = both(*SQUEUE, "--jobs=99")
    assert one == other
