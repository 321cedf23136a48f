"""The fake Slurm of the other tests says and does what the real one does: the same scripts run on both."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, Site

NOT_IMITATED = {
    "SLURM_CONF", "SLURM_JOB_CPUS_PER_NODE_PACK_GROUP_0", "SLURM_NODE_ALIASES", "SLURM_PRIO_PROCESS",
    "SLURM_SRUN_COMM_HOST",
    "SLURM_SRUN_COMM_PORT", "SLURM_STEP_GPUS", "SLURM_STEP_LAUNCHER_PORT", "SLURM_TOPOLOGY_ADDR_PATTERN", "SLURM_UMASK",
    "SLURM_WORKING_CLUSTER", "SLURM_TASK_PID",
}  # fmt: skip
"""Variables of the real Slurm that deg does not read, and one that the fake's srun gives to tasks only."""


@dataclass
class Slurm:
    """The real Slurm or the fake one."""

    folder: Path
    command: Callable[..., subprocess.CompletedProcess[str]]
    wait: Callable[..., dict[str, str]]

    def __call__(self, *words: str) -> str:
        done = self.command(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        file = self.folder / f"{len(list(self.folder.iterdir()))}.sh"
        file.write_text(f"#!/bin/bash\n{script}")
        file.chmod(0o755)
        return self("sbatch", "--parsable", "--open-mode=append", "--job-name=j", *options, str(file)).strip()

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def fake(tmp_path):
    """A fake Slurm. The fixture `fake_slurm` would put its commands before the real ones."""
    slurm = FakeSlurm(
        tmp_path / "slurm",
        Site(partitions={"gpu": 120, "urgent": 120, "short": 1}, accounting=False, first_job_id=7001),
    )
    slurm.start()
    yield slurm
    slurm.stop()


@pytest.fixture
def both(cluster, user, folder, fake, tmp_path):
    """The real Slurm, then the fake one. Job numbers differ, so tests refer to jobs by what `submit` returned."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()

    def of_fake(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **fake.environment}
        return subprocess.run(words, cwd=jobs, capture_output=True, text=True, timeout=60, env=environment)

    real = Slurm(folder, lambda *words: user.run(*words, folder=folder, check=False), cluster.wait)
    return real, Slurm(jobs, of_fake, fake.wait)


def same(both, scene: Callable[[Slurm], object]) -> None:
    real, fake = (scene(one) for one in both)
    assert fake == real


def test_environment_of_batch_script_and_tasks(both):
    def scene(slurm: Slurm) -> tuple[dict[str, str], dict[str, str]]:
        script = "env > batch.$SLURM_ARRAY_TASK_ID\nsrun --output=task.%a.%t env"
        shape = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", "--gpus-per-node=1")
        slurm.wait(slurm.submit(script, "--array=1-5:2%2", *shape))
        return slurm.text("batch.3"), slurm.text("task.3.3")

    for place, texts in zip(("batch", "task"), zip(*(scene(one) for one in both), strict=True), strict=True):
        real, fake = (
            dict(line.split("=", 1) for line in text.splitlines() if re.match(r"(SLURM|CUDA|GPU)\w*=", line))
            for text in texts
        )
        own = {
            "SLURM_CLUSTER_NAME",
            "SLURM_SUBMIT_DIR",
            "SLURM_JOB_UID",
            "SLURM_JOB_GID",
            "SLURM_JOB_USER",
            "SLURM_TASK_PID",
        }
        own |= {"SLURM_LAUNCH_NODE_IPADDR", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_NAME"}
        own |= {"SLURM_GPUS_PER_NODE", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "SLURM_JOB_GPUS"}
        assert set(real) - NOT_IMITATED == set(fake) - NOT_IMITATED, place
        differ = {name: (fake[name], real[name]) for name in set(fake) - own - NOT_IMITATED if fake[name] != real[name]}
        assert not differ, place


def test_how_jobs_that_depend_on_others_end(both):
    def scene(slurm: Slurm) -> object:
        bad = slurm.submit("exit 3")
        good = slurm.submit("true", "--array=0-1")
        after = {
            name: slurm.submit("true", f"--dependency={kind}", f"--kill-on-invalid-dep={kill}")
            for name, kind, kill in [
                ("ok of bad, killed", f"afterok:{bad}", "yes"),
                ("any of bad", f"afterany:{bad}", "yes"),
                ("ok of good array", f"afterok:{good}", "yes"),
                ("ok of an element", f"afterok:{good}_1", "yes"),
                ("not ok of bad", f"afternotok:{bad}", "yes"),
                ("unknown", "afterok:54321", "yes"),
            ]
        }
        waits = slurm.submit("true", f"--dependency=afterok:{bad}", "--kill-on-invalid-dep=no")
        states = slurm.wait(bad, good, *after.values())
        end = time.monotonic() + 20
        while "Never" not in (reason := slurm("squeue", "-h", "-j", waits, "-o", "%T %r")) and time.monotonic() < end:
            time.sleep(0.2)
        return states[bad], states[f"{good}_1"], {name: states[job] for name, job in after.items()}, reason

    same(both, scene)


def test_a_job_that_puts_itself_back(both):
    def scene(slurm: Slurm) -> object:
        script = """
        echo "restart ${SLURM_RESTART_COUNT:-none}"
        srun bash -c 'exit 75' 2>/dev/null; echo "srun $?"
        if [ ! "$SLURM_RESTART_COUNT" ]; then
          scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
          sleep 20; echo "not reached"
        fi
        exit 4
        """
        job = slurm.submit(script, "--array=0", "--output=out.%a", "--error=err")
        states = slurm.wait(f"{job}_0")
        return states[f"{job}_0"], slurm.text("out.0")

    same(both, scene)


def test_signals_and_cancelling(both):
    def scene(slurm: Slurm) -> object:
        script = """
        srun bash -c 'trap "echo told; exit 75" USR2; echo up; while true; do sleep 0.1; done' 2>/dev/null
        echo "after $?"
        """
        told, ended = (slurm.submit(script, f"--output=out.{name}", "--error=err") for name in ("told", "ended"))
        end = time.monotonic() + 30
        while not all(
            "up" in slurm.text(f"out.{name}") for name in ("told", "ended") if (slurm.folder / f"out.{name}").exists()
        ):
            assert time.monotonic() < end
            time.sleep(0.2)
        slurm.wait(told, ended, state="RUNNING")
        time.sleep(1)
        slurm("scancel", "--signal=USR2", told)
        slurm("scancel", ended)
        states = slurm.wait(told, ended)
        # the cancelled script may or may not reach its next line
        return states[told], states[ended], slurm.text("out.told"), slurm.text("out.ended").splitlines()[0]

    same(both, scene)


def test_a_step_with_one_failing_task(both):
    def scene(slurm: Slurm) -> object:
        script = """
        srun --ntasks=3 --output=t.%t bash -c 'echo $SLURM_PROCID/$SLURM_NTASKS; exit $((SLURM_PROCID * 5))'
        echo "all $?"
        srun --ntasks=2 --kill-on-bad-exit=1 bash -c '[ $SLURM_PROCID = 1 ] && exit 7; sleep 60'; echo "killed"
        srun --ntasks=1 bash -c 'kill -KILL $$'; echo "signal $?"
        srun --ntasks=1 ./missing; echo "missing $?"
        """
        job = slurm.submit(script, "--ntasks=3", "--output=out", "--error=err")
        state = slurm.wait(job)[job]
        return state, slurm.text("out"), [slurm.text(f"t.{rank}") for rank in range(3)]

    same(both, scene)


def test_how_the_queue_is_shown(both):
    def scene(slurm: Slurm) -> object:
        array = slurm.submit("true", "--array=0-3,7%2", "--hold", "--time=1:30:00")
        single = slurm.submit("true", f"--dependency=afterok:{array}", "--partition=short")
        form = "%i|%F|%K|%T|%t|%r|%P|%j|%l|%D|%N|%M|%E|%S"
        tables = [slurm("squeue", "-h", "-j", f"{array},{single}", "-o", form, *more) for more in ([], ["-r"])]
        headed = slurm("squeue", "-j", single, "--format=%i %.5t %.10M %R")
        slurm("scontrol", "update", f"JobId={single}", "Dependency=", "ExcNodeList=n1,n2")
        shown = slurm("scontrol", "show", "job", single)
        excluded = re.search(r"ExcNodeList=(\S+)", shown)
        slurm("scancel", array, single)
        numbers = {array: "ARRAY", single: "SINGLE"}
        return [
            re.sub(r"\d+", lambda found: numbers.get(found[0], found[0]), text) for text in (*tables, headed)
        ], excluded[1]

    same(both, scene)


@pytest.mark.parametrize(
    "words",
    [
        ("sbatch", "--no-such-option", "true.sh"),
        ("sbatch", "--array=0-1001", "true.sh"),
        ("sbatch", "--partition=nowhere", "true.sh"),
        ("sbatch", "--nodes=9", "--test-only", "true.sh"),
        ("sbatch", "--gpus-per-node=9", "true.sh"),
        ("sbatch", "absent.sh"),
        ("sbatch", "plain.txt"),
        ("squeue", "-h", "-j", "54321"),
        ("scontrol", "show", "job", "54321"),
        ("scontrol", "requeue", "54321"),
        ("scancel", "54321"),
        ("sacct", "-X", "-n", "-j", "1"),
        ("sacctmgr", "-n", "show", "assoc"),
    ],
    ids=" ".join,
)
def test_what_is_refused_and_how(both, words):
    def scene(slurm: Slurm) -> object:
        (slurm.folder / "true.sh").write_text("#!/bin/bash\ntrue\n")
        (slurm.folder / "plain.txt").write_text("true\n")
        done = slurm.command(*words)
        return done.returncode, done.stdout, done.stderr

    same(both, scene)


def test_what_a_script_that_could_run_is_told(both):
    def scene(slurm: Slurm) -> object:
        (slurm.folder / "true.sh").write_text("#!/bin/bash\n#SBATCH --time=0:05:00 --job-name='a name'\ntrue\n")
        done = slurm.command("sbatch", "--test-only", "true.sh")
        return done.returncode, done.stdout, re.sub(r"\d[\d:T-]*", "N", done.stderr)

    same(both, scene)
