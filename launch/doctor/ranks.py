"""What each rank of the doctor's job does, in the image: the checks of a machine, and those that need other ranks.

Ranks meet through files in the job's folder, as real work does. Each leaves its findings in ranks/<number>.json. The
signal comes last: what it does to the ranks is one of the findings.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deg.data.atomic import write_atomically
from deg.launch.devices import free_port
from deg.launch.doctor import collective, files, gpu, machine
from deg.launch.doctor import image as doctor_image
from deg.launch.findings import Finding
from deg.work import STOPPED

MEET_SECONDS = 60.0
SLOW_FILES = 10.0
"""Seconds after which files of another node count as late: workers that wait for them waste that much."""
SIGNAL_SECONDS = 40.0
MORE_SIGNALS_SECONDS = 3.0
"""How long to go on counting after the first signal."""
LEAVE_SECONDS = 15.0
"""How long to wait for the other ranks at the end; one may have died of the signal."""
LOOK_SECONDS = 0.1

COUNTER = """
import signal, sys
count = 0
def add(*_):
    global count
    count += 1
signal.signal(signal.SIGUSR2, add)
print("ready", flush=True)
sys.stdin.read()
print(count, flush=True)
"""
"""Program of a child process, such as a decoder is: counts the signals it gets until its standard input ends."""


@dataclass(frozen=True)
class Seat:
    """A rank's place in the job."""

    rank: int
    count: int
    local: int
    host: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Seat:
        """Read it from the variables that srun sets."""
        return cls(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_NTASKS"]),
            int(environment["SLURM_LOCALID"]),
            environment.get("SLURMD_NODENAME") or socket.gethostname(),
        )


@dataclass(frozen=True)
class Request:
    """What the ranks need to know, as stored in request.json."""

    image: bool
    gpus_per_node: int
    cpus_per_task: int | None
    memory_gb: float | None
    """Memory of a task, in GiB."""

    def to_json(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str) -> Request:
        return cls(**json.loads(text))


def examine(folder: str) -> None:
    """Make one rank's findings, then end the process."""
    began = time.time()
    counter = SignalCount()
    counter.install()  # before all else, or submitit would requeue the job by itself
    job, seat = Path(folder), Seat.of(os.environ)
    request = Request.from_json((job / "request.json").read_text(encoding="utf-8"))
    findings = list(_examine(job, seat, request, began))
    _write(job, seat, findings)  # now, because the signal may end this process: see `judge_image_life`
    findings += count_signals(job, seat, counter)
    _write(job, seat, findings)
    _say(job, f"done-{seat.rank}")
    names = [job / "ranks" / f"done-{rank}" for rank in range(seat.count)]
    _wait(lambda: all(name.exists() for name in names), LEAVE_SECONDS)
    if (scratch := os.environ.get("DEG_SCRATCH")) and seat.local == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(STOPPED)  # without what Python does at exit


def _write(job: Path, seat: Seat, findings: Sequence[Finding]) -> None:
    documents = [replace(finding, where=seat.host).as_dict() for finding in findings]
    write_atomically(job / "ranks" / f"{seat.rank}.json", json.dumps(documents))


def _examine(job: Path, seat: Seat, request: Request, began: float) -> Iterator[Finding]:
    if seat.rank == 0:
        yield doctor_image.judge_start(began - float((job / "began").read_text()), 0, "")
    gpus = 0
    yield machine.check_environment(in_image=request.image)
    yield machine.check_cores(request.cpus_per_task)
    if seat.local == 0:
        yield machine.check_home()
        yield machine.check_memory(request.memory_gb)
        yield machine.check_shared_memory()
        scratch = machine.scratch_folder(os.environ.get("DEG_SCRATCH"))
        yield machine.check_scratch(scratch)
        yield from files.check_project_files(job)
        yield machine.check_video(scratch)
        if request.image:
            yield judge_mode(Path("/proc/self/uid_map").read_text(encoding="ascii"), os.geteuid())
        pytorch = gpu.ask_pytorch()
        yield from gpu.judge_pytorch(pytorch, request.gpus_per_node, in_image=request.image)
        gpus = len(pytorch.get("gpus", ()))
    others = meet(job, seat, gpus)
    if others is None:
        yield judge_meeting(seat.count, None)
        return
    yield from _in_company(job, seat, others)


def _in_company(job: Path, seat: Seat, others: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield the findings that need all ranks; `others` is what each rank says of itself."""
    together = [other for other in others if other["host"] == seat.host]
    seconds = ping(job, seat)
    if seat.rank == 0:
        yield judge_meeting(seat.count, seconds)
    if (lines := append_together(job, seat)) is not None and seat.rank == 0:
        yield lines
    if len(together) > 1:
        shared = share_memory(job, seat)
        if seat.local == 1:
            yield judge_shared_folder(shared)
    first = others[0]
    # every rank must choose the same backend: NCCL if each node has a GPU for each of its ranks
    gpus = min(other["gpus"] for other in others if other["local"] == 0)
    most_here = max(other["local"] for other in others) + 1
    answer = collective.start_rank(
        seat.rank,
        seat.count,
        seat.local,
        os.environ.get("MASTER_ADDR") or first["host"],  # as Lightning does
        first["port"],
        backend=collective.backend_for(most_here, gpus),
    ).answer(collective.SECONDS)
    if seat.rank == 0 or "failure" in answer:
        yield collective.judge_ranks([answer], hosts=len({other["host"] for other in others}))


def meet(job: Path, seat: Seat, gpus: int) -> list[dict[str, Any]] | None:
    """Tell the other ranks about this one, and return what each says of itself, by rank; None if one does not come."""
    about = {"host": seat.host, "local": seat.local, "gpus": gpus, "port": free_port()}
    _say(job, f"here-{seat.rank}", json.dumps(about))
    names = [job / "ranks" / f"here-{rank}" for rank in range(seat.count)]
    if not _wait(lambda: all(name.exists() for name in names), MEET_SECONDS + gpu.SECONDS):
        return None
    return [json.loads(name.read_text(encoding="utf-8")) for name in names]


def ping(job: Path, seat: Seat) -> float | None:
    """Return the seconds until all ranks have answered rank 0; None on other ranks, or if an answer is missing."""
    began = time.monotonic()
    if seat.rank:
        _wait(lambda: (job / "ranks" / "ping").exists(), MEET_SECONDS)
        _say(job, f"pong-{seat.rank}")
        return None
    _say(job, "ping")
    answers = [job / "ranks" / f"pong-{rank}" for rank in range(1, seat.count)]
    came = _wait(lambda: all(answer.exists() for answer in answers), MEET_SECONDS)
    return time.monotonic() - began if came else None


def judge_meeting(count: int, seconds: float | None) -> Finding:
    """Judge the seconds that a file took there and one back; None if not all were seen."""
    check = "files of other ranks"
    if seconds is None:
        return Finding(
            check,
            "fault",
            f"not all of {count} ranks saw each other's files in {MEET_SECONDS:.0f} s",
            "all nodes to see the project's files",
            "Put the project on a file system that all nodes share, or ask why it shows new files so late.",
        )
    found = f"seen in {seconds:.1f} s, there and back"
    if seconds > SLOW_FILES:
        return Finding(
            check, "warning", found, f"{SLOW_FILES:.0f} s or less", "Nothing breaks, but work waits for files."
        )
    return Finding(check, "ok", found)


def append_together(job: Path, seat: Seat) -> Finding | None:
    """Append to a file, as all ranks do at once; rank 0 then checks that every line is there."""
    path = job / "ranks" / "appended"
    files.append_lines(path, str(seat.rank))
    _say(job, f"appended-{seat.rank}")
    if seat.rank:
        return None
    names = tuple(str(rank) for rank in range(seat.count))
    _wait(lambda: all((job / "ranks" / f"appended-{name}").exists() for name in names), MEET_SECONDS)
    try:
        files.require_lines(path, names)
    except (OSError, files.Unfit) as problem:
        return Finding(
            "lines from all ranks",
            "warning",
            f"no: {problem}",
            "several nodes to append to one file without loss",
            "Lines may be missing from the logs of runs; results are not affected.",
        )
    return Finding("lines from all ranks", "ok", "yes")


def share_memory(job: Path, seat: Seat) -> bool:
    """Whether the second rank of a node sees what the first puts into /dev/shm."""
    mine = Path(f"/dev/shm/deg-doctor-{os.environ.get('SLURM_JOB_ID', '')}")
    said, looked = f"shm-{seat.host}", f"shm-seen-{seat.host}"
    if seat.local == 0:
        try:
            mine.touch()
            _say(job, said)
            _wait(lambda: (job / "ranks" / looked).exists(), MEET_SECONDS)
        finally:
            mine.unlink(missing_ok=True)
        return True
    _wait(lambda: (job / "ranks" / said).exists(), MEET_SECONDS)
    seen = mine.exists()
    if seat.local == 1:
        _say(job, looked)
    return seen


def judge_shared_folder(seen: bool) -> Finding:
    check = "shared memory of ranks"
    if seen:
        return Finding(check, "ok", "ranks of a node see each other's")
    remedy = "Remove --contain from cluster.apptainer_options: it makes NCCL go through the network."
    return Finding(check, "warning", "each rank has its own", "ranks of a node to share /dev/shm", remedy)


def judge_mode(uid_map: str, user: int) -> Finding:
    """Tell from /proc/self/uid_map how Apptainer runs on the node."""
    ids = uid_map.split()
    if len(ids) > 2 and int(ids[2]) > 2**31:  # the initial user namespace, which maps every user ID
        return Finding("Apptainer's mode", "ok", "root" if user == 0 else "setuid")
    return Finding("Apptainer's mode", "ok", "user namespaces")


class SignalCount:
    """A counter of the SIGUSR2 signals that this process gets."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        signal.signal(signal.SIGUSR2, self._add)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that cancelling the job takes no time

    def _add(self, *_: Any) -> None:
        self.count += 1


def count_signals(job: Path, seat: Seat, counter: SignalCount) -> list[Finding]:
    """Have the script on the host signal the job, count which processes it reaches, and see what it did."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", COUNTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        counter.count = 0
        _say(job, f"ready-{seat.rank}")
        ready = [job / "ranks" / f"ready-{rank}" for rank in range(seat.count)]
        if _wait(lambda: all(name.exists() for name in ready), collective.SECONDS) and seat.rank == 0:
            write_atomically(job / "signal.please", "")
        _wait(lambda: counter.count > 0, SIGNAL_SECONDS)
        time.sleep(MORE_SIGNALS_SECONDS)
        child.stdin.close()
        of_child = int(child.stdout.readline() or 0)
    sent = job / "signal.status"
    said = (job / "signal.log").read_text(errors="replace").strip() if sent.exists() else ""
    status = sent.read_text().strip() if sent.exists() else None
    received = judge_signal(counter.count, of_child, status, said)
    return [received, judge_image_life(_lists(Path(sys.prefix)))] if counter.count else [received]


def judge_signal(received: int, of_child: int, status: str | None, said: str) -> Finding:
    """Judge how often a rank and its child got the signal.

    `status` and `said` are the exit status of scancel, None if it was not called, and its words.
    """
    check = "signal"
    if received:
        times = "once" if received == 1 else f"{received} times"
        child = "not its children" if not of_child else f"its children {of_child} time(s); deg acts on it once"
        return Finding(check, "ok", f"a rank gets SIGUSR2 {times}, {child}")
    expected = "a job to be warned before its end"
    if status != "0":
        why = said or (f"exit status {status}" if status else "no answer from the job's script")
        remedy = "No harm is done if Slurm's own signal arrives; ask whether nodes have Slurm's commands."
        return Finding(check, "warning", f"it could not be sent from the node: {why}", expected, remedy)
    remedy = "Work resumes from its last checkpoint: ask for long time limits, and add the line below to the profile."
    return Finding(check, "fault", "SIGUSR2 was sent and did not arrive", expected, remedy, {"stop_ahead": None})


def judge_image_life(lives: bool) -> Finding:
    """Judge whether the image can still be read after the signal.

    Without setuid, the image is mounted by a program that runs beside Python, squashfuse_ll. Where the site signals all
    processes of a job, as with SignalChildrenProcesses, the signal ends that program too; Python then dies of SIGBUS at
    the next page it needs.
    """
    if lives:
        return Finding("image after the signal", "ok", "still there")
    return lost_image("gone: the signal ended the program that mounts it (squashfuse_ll)")


def lost_image(found: str) -> Finding:
    """Return the finding that the signal took the image away from the ranks in it."""
    return Finding(
        "image after the signal",
        "warning",
        found,
        "the signal to end nothing but the work",
        "Jobs that are told to stop may die before they have saved. Use the image as a folder (apptainer build "
        "--sandbox FOLDER IMAGE, cluster.image=FOLDER), or ask for an Apptainer with setuid.",
    )


def _lists(folder: Path) -> bool:
    try:
        next(folder.iterdir())
    except OSError:
        return False
    return True


def _say(job: Path, name: str, text: str = "") -> None:
    write_atomically(job / "ranks" / name, text)


def _wait(there: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is there; return whether it came in time."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True
