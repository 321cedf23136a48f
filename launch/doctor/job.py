"""The doctor's job: submitted like real work, waited for, and read.

    FOLDER/request.json   what the ranks need to know          FOLDER/job.json     its number, and earlier findings
    FOLDER/ranks/         the ranks' findings, and the files by which they meet
    FOLDER/jobs/          scripts, and what the scheduler wrote
    FOLDER/began, status, signal.*, requeue.*, restarted       left by the scripts on the host (see doctor.sh)

FOLDER is PROJECT/models/<yymmdd_HHMMSS>_doctor; if the examined folder is not a project, it lies directly in it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from deg.data.atomic import write_atomically
from deg.errors import LaunchError, RunError, show_path
from deg.launch.doctor import ranks as doctor_ranks
from deg.launch.findings import Finding
from deg.launch.image import container
from deg.launch.scheduler import queue
from deg.launch.scheduler.script import Need, Script, Submitter, gpus
from deg.options.forms import time_limit_minutes
from deg.options.schema import Cluster
from deg.runs.rundir import tail
from deg.work import STOPPED

MINUTES = 5
MOST_CORES, MOST_GIB = 4, 8.0
"""Most cores, and most memory in GiB, that a rank asks for: a small job starts soon."""
LOOK_SECONDS = 1.0
ASK_SECONDS = 15.0
"""Interval between two calls of squeue."""
LATE_FILES_SECONDS = 30.0
"""How long after a job's end to look for its files."""


@dataclass(frozen=True)
class JobDir:
    """The folder of a doctor's job."""

    path: Path

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    def text(self, name: str) -> str | None:
        """Return what a script on the host wrote to a file; None if the file does not exist."""
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None

    def is_there(self, name: str) -> bool:
        return (self.path / name).exists()

    def is_examined(self, count: int) -> bool:
        """Whether all ranks have left their findings."""
        return len(list(self.ranks.glob("*.json"))) == count

    def requeueing_is_known(self) -> bool:
        """Whether it is certain that the job has begun again, or will not."""
        refused = self.text("requeue.status") not in (None, "0")
        return self.is_there("restarted") or refused or not self.is_there("requeue.asked")


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted, as stored in job.json."""

    job: str
    count: int
    """Number of its ranks."""
    requeue: bool
    """The option cluster.requeue."""
    before: tuple[Finding, ...]
    """Findings made before it was submitted."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Submitted:
        document = json.loads(text)
        return cls(**{**document, "before": tuple(map(Finding.from_dict, document["before"]))})


def before_lines(folder: Path, host_script: Path) -> tuple[str, ...]:
    """Return what the batch script does before srun.

    If the job was requeued, it only notes its second start: nothing else has to be known about it.
    """
    place = shlex.quote(str(folder))
    return (
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" != 0 ]; then : > {place}/restarted; exit 0; fi',
        f"date +%s.%N > {place}/began",
        f"bash {shlex.quote(str(host_script))} before {place} &",
    )


def doctor_need(cluster: Cluster) -> Need:
    """Ask for two ranks, on two nodes if trainings use several, each with a GPU if trainings have one."""
    nodes = min(cluster.nodes or 1, 2)
    tasks = 2 // nodes
    limit = MINUTES if cluster.time is None else min(MINUTES, time_limit_minutes(cluster.time))
    return Need("deg-doctor", nodes, tasks, min(gpus(cluster), tasks), str(max(int(limit), 1)), cluster.partition)


def small(cluster: Cluster) -> Cluster:
    """Return the options of the doctor's job: no more than it needs, and no signal but its own."""
    cores, memory = cluster.cpus_per_task, cluster.memory_gb
    return replace(
        cluster,
        nodes=None if cluster.nodes is None else min(cluster.nodes, 2),
        cpus_per_task=None if cores is None else min(cores, MOST_CORES),
        memory_gb=None if memory is None else min(memory, MOST_GIB),
        requeue=True,  # to find out whether that is granted
        stop_ahead=None,
    )


def new_folder(folder: Path) -> JobDir:
    """Make the folder of a job that examines `folder`. OSError if `folder` cannot be written to."""
    models = folder / "models"
    made = (models if models.is_dir() else folder) / f"{datetime.now():%y%m%d_%H%M%S}_doctor"
    job = JobDir(made)
    job.jobs.mkdir(parents=True)
    job.ranks.mkdir()
    return job


def submit(job: JobDir, cluster: Cluster, before: Sequence[Finding]) -> Submitted:
    """Submit the job. LaunchError if the scheduler refuses it, or the image cannot be run."""
    options, need = small(cluster), doctor_need(cluster)
    in_container = container.Container.of(cluster, [job.path])
    scripts = {"container.sh": container.script(in_container), "doctor.sh": _host_script()}
    for name, text in scripts.items():
        (job.jobs / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    request = doctor_ranks.Request(
        image=cluster.image is not None,
        gpus_per_node=need.gpus_per_node,
        cpus_per_task=options.cpus_per_task,
        memory_gb=options.memory_gb,
    )
    write_atomically(job.path / "request.json", request.to_json())
    host_script = job.jobs / "doctor.sh"
    submitter = Submitter(job.jobs, options, job.jobs / "container.sh", host_script)
    folder = str(job.path)
    examining = Script(need, doctor_ranks.examine, (folder,), (folder,), before=before_lines(job.path, host_script))
    number = submitter.submit_script(examining)
    submitted = Submitted(number, need.nodes * need.tasks_per_node, cluster.requeue, tuple(before))
    write_atomically(job.path / "job.json", submitted.to_json())
    return submitted


def load(folder: Path) -> tuple[JobDir, Submitted]:
    """Load a job that was submitted earlier. RunError if `folder` is not that of a doctor's job."""
    job = JobDir(folder.resolve())
    try:
        return job, Submitted.from_json((job.path / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{show_path(folder)}: expected the folder of a job of `deg doctor --on slurm`, found no readable "
            "job.json in it. Name the folder that the command printed when it submitted the job."
        ) from None


def wait(job: JobDir, submitted: Submitted, seconds: float, tell: Callable[[str], None]) -> str:
    """Wait at most `seconds` until everything is known or the job has ended; return its state in the scheduler's words.

    `tell` is called when the state changes. However the wait ends, the job is cancelled then if it is still alive.
    """
    deadline = time.monotonic() + seconds
    said, asked, ended = "", -ASK_SECONDS, None
    try:
        while time.monotonic() < deadline:
            if job.is_examined(submitted.count) and job.is_there("status") and job.requeueing_is_known():
                return "done"
            if time.monotonic() - asked >= ASK_SECONDS:
                state = queue.states([submitted.job])[submitted.job]
                asked, reason = time.monotonic(), f" ({state.reason})" if state.reason not in ("", "None") else ""
                if said != (said := f"{state.state}{reason}"):
                    tell(said)
                ended = None if state.is_alive else ended or time.monotonic()
            if ended is not None and time.monotonic() - ended > LATE_FILES_SECONDS:
                return said
            time.sleep(LOOK_SECONDS)
        return said
    finally:
        cancel(submitted.job)


def cancel(number: str) -> None:
    """Cancel a job if it is still alive."""
    with suppress(LaunchError):  # the scheduler has forgotten it
        queue.run_scheduler(["scancel", number])


def read_findings(job: JobDir, submitted: Submitted, state: str) -> list[Finding]:
    """Return what the job has found so far. `state` is the scheduler's word for its state."""
    found: list[Finding] = []
    files = sorted(job.ranks.glob("*.json"))
    for file in files:
        found += map(Finding.from_dict, json.loads(file.read_text(encoding="utf-8")))
    if len(files) < submitted.count:
        found.append(judge_absence(job, submitted, len(files), state))
    else:
        found.insert(0, Finding("job", "ok", f"{submitted.job}, {submitted.count} ranks"))
        if (status := job.text("status")) not in (None, str(STOPPED)):
            found.append(doctor_ranks.lost_image(f"a rank died of the signal: srun ended with {status}"))
    found.append(
        judge_requeue(
            asked=job.is_there("requeue.asked"),
            status=job.text("requeue.status"),
            said=job.text("requeue.log") or "",
            restarted=job.is_there("restarted"),
            wanted=submitted.requeue,
        )
    )
    return found


def judge_absence(job: JobDir, submitted: Submitted, came: int, state: str) -> Finding:
    """Judge a job of which only `came` ranks left findings."""
    expected = f"the findings of {submitted.count} ranks"
    if not job.is_there("began"):
        remedy = "Try again with a longer --wait, or with a partition that is less busy (cluster.partition)."
        return Finding(
            "job", "fault", f"{submitted.job} did not begin: {state or 'no reason is known'}", expected, remedy
        )
    status = job.text("status")
    how = f"srun ended with {status}" if status else f"the scheduler says {state or 'nothing'}"
    words = [line for file in sorted(job.jobs.glob("*.err")) for line in tail(file.read_text(errors="replace"), 3)]
    said = f"; last lines: {' / '.join(words)}" if words else ""
    remedy = f"See the scheduler's output in {show_path(job.jobs)}."
    return Finding("job", "fault", f"{came} of {submitted.count} ranks finished, {how}{said}", expected, remedy)


def judge_requeue(*, asked: bool, status: str | None, said: str, restarted: bool, wanted: bool) -> Finding:
    """Judge whether the job's own script could requeue it.

    `status` and `said` are the exit status and the words of scontrol; `wanted` is cluster.requeue.
    """
    check = "requeueing"
    if restarted:
        unused = "" if wanted else "; cluster.requeue could be true"
        return Finding(check, "ok", f"the job was put back into the queue and began again{unused}")
    if not asked:
        return Finding(check, "not tried", "the ranks did not get that far")
    if status not in (None, "0"):
        remedy = "Add the line below to the profile: then a follow-up job is submitted instead."
        why = said or f"exit status {status}"
        if not wanted:
            return Finding(check, "ok", f"refused, and cluster.requeue is false: {why}")
        return Finding(
            check, "warning", f"refused: {why}", "a job to be allowed to requeue itself", remedy, {"requeue": False}
        )
    remedy = "The job may begin again later than this command waited: try a longer --wait."
    return Finding(check, "warning", "granted, but no second start was seen", "a second start", remedy)


def _host_script() -> str:
    return Path(__file__).with_name("doctor.sh").read_text(encoding="utf-8")
