"""What Slurm says about itself: sinfo, scontrol and sacctmgr.

Texts are parsed by pure functions; only `ask_site` starts programs. Slurm 20.11 to 25.05 differ in which keys they
print, in the case of values, and in the brackets after a gres: what is not understood is skipped.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from deg.errors import LaunchError
from deg.options.forms import time_limit_minutes

SECONDS = 30.0
"""Time limit for an answer of a program of Slurm."""
SINFO = ("sinfo", "--noheader", "--Node", "--format=%R|%N|%c|%m|%G")
CONFIG = ("scontrol", "show", "config")
PARTITIONS = ("scontrol", "show", "partition")
ASSOCIATIONS = ("sacctmgr", "--noheader", "--parsable2", "show", "associations")
ASSOCIATION_FIELDS = ("Cluster", "Account", "Partition", "QOS", "MaxSubmitJobs")


# ---------------------------------------------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Node:
    """A node as a member of one partition."""

    partition: str
    name: str
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int]
    """{type: number of GPUs}; the type is empty where the site names none."""

    @property
    def gpu_count(self) -> int:
        return sum(self.gpus.values())


@dataclass(frozen=True)
class Partition:
    """A partition. `groups` and `accounts` are None where Slurm allows all."""

    name: str
    default: bool = False
    up: bool = True
    max_minutes: float | None = None
    """Time limit in minutes; None: no limit."""
    groups: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    denied_accounts: tuple[str, ...] = ()
    root_only: bool = False
    preempt_mode: str = ""
    grace_seconds: int = 0
    select: str = ""
    """Its own SelectTypeParameters; empty: the cluster's apply."""
    memory_per_node_mb: int | None = None
    """Most memory of a job on a node; None: no limit."""
    memory_per_cpu_mb: int | None = None


@dataclass(frozen=True)
class Association:
    """A right to compute: an account with its qualities of service."""

    account: str
    partition: str
    """The partition that it holds for; empty: any."""
    qos: tuple[str, ...]
    most_jobs: int | None


@dataclass(frozen=True)
class Site:
    """All that Slurm said, and who asked."""

    settings: Mapping[str, str]
    """`scontrol show config`, with keys in lower case."""
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    associations: tuple[Association, ...] = ()
    without_accounting: str = ""
    """Why sacctmgr gave no answer; empty if it did."""
    user: str = "root"
    groups: Collection[str] = ()
    programs: tuple[str, ...] = ("apptainer",)
    """Which of apptainer and singularity are on PATH here."""


# ---------------------------------------------------------------------------------------------------- parsing


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Parse lines of SINFO: partition, node, cores, MB, gres."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[0] and cells[1]:
            partition, name, cpus, memory, gres = cells
            found.append(Node(partition, name, number(cpus) or 0, number(memory) or 0, parse_gpus(gres)))
    return tuple(found)


def parse_gpus(gres: str) -> dict[str, int]:
    """Parse `gpu:a100:4(S:0-1),nvme:1`, `gpu:2` or `gpu:tesla:no_consume:1` into {type: number}, of GPUs only."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *more = item.strip().split(":")
        words = [word for word in more if word and word != "no_consume"]
        if name == "gpu":
            count = int(words.pop()) if words and re.fullmatch("[0-9]+", words[-1]) else 1
            kind = ":".join(words)
            if count:
                found[kind] = found.get(kind, 0) + count
    return found


def parse_settings(text: str) -> dict[str, str]:
    """Parse `Key = value` lines of `scontrol show config`. If a key comes twice, the first holds: slurm.conf's."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip():
            found.setdefault(key.strip().lower(), value.strip())
    return found


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Parse `scontrol show partition`, with one line or several for each partition."""
    found = []
    for block in re.split(r"(?:^|\s)PartitionName=", text)[1:]:
        name, *words = block.split() or [""]
        values = {key.lower(): value for key, _, value in (word.partition("=") for word in words)}
        select = values.get("selecttypeparameters", "NONE")
        found.append(
            Partition(
                name=name,
                default=values.get("default", "").upper() == "YES",
                up=values.get("state", "UP").upper() == "UP",
                max_minutes=_minutes(values.get("maxtime", "")),
                groups=_names(values.get("allowgroups", "ALL")),
                accounts=_names(values.get("allowaccounts", "ALL")),
                denied_accounts=_names(values.get("denyaccounts", "")) or (),
                root_only=values.get("rootonly", "").upper() == "YES",
                preempt_mode=values.get("preemptmode", "").upper(),
                grace_seconds=number(values.get("gracetime", "")) or 0,
                select="" if select.upper() in ("NONE", "N/A") else select,
                memory_per_node_mb=number(values.get("maxmempernode", "")),
                memory_per_cpu_mb=number(values.get("maxmempercpu", "")),
            )
        )
    return tuple(partition for partition in found if partition.name)


def parse_associations(text: str, cluster: str) -> tuple[Association, ...]:
    """Parse lines of ASSOCIATIONS with ASSOCIATION_FIELDS, leaving out those of other clusters."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == len(ASSOCIATION_FIELDS) and cells[1] and (cells[0] == cluster or not cluster):
            _, account, partition, qos, most = cells
            found.append(Association(account, partition, _names(qos) or (), number(most)))
    return tuple(found)


def _names(text: str) -> tuple[str, ...] | None:
    """Split a list into its words; None for ALL."""
    return None if text.upper() == "ALL" else tuple(word for word in text.split(",") if word and word != "(null)")


def number(text: str) -> int | None:
    """Return the number that a text begins with: 30 for `30 sec`, 128000 for `128000+`; None without one."""
    found = re.match("[0-9]+", text)
    return int(found[0]) if found else None


def _minutes(text: str) -> float | None:
    try:
        return time_limit_minutes(text)
    except ValueError:
        return None  # UNLIMITED


# ---------------------------------------------------------------------------------------------------- asking


def ask_site() -> Site:
    """Ask Slurm on this machine about the site. LaunchError if there is no Slurm, or if it does not answer."""
    settings = parse_settings(_ask(CONFIG))
    user, groups = _who()
    associations: tuple[Association, ...] = ()
    accounting = settings.get("accountingstoragetype", "")
    without_accounting = f"this site keeps no accounts (AccountingStorageType = {accounting})."
    if not accounting.endswith("/none"):
        try:
            said = _ask((*ASSOCIATIONS, f"user={user}", f"format={','.join(ASSOCIATION_FIELDS)}"))
            associations = parse_associations(said, settings.get("clustername", ""))
            without_accounting = ""
        except LaunchError as error:
            without_accounting = str(error)
    return Site(
        settings=settings,
        partitions=parse_partitions(_ask(PARTITIONS)),
        nodes=parse_nodes(_ask(SINFO)),
        associations=associations,
        without_accounting=without_accounting,
        user=user,
        groups=groups,
        programs=tuple(program for program in ("apptainer", "singularity") if shutil.which(program)),
    )


def _who() -> tuple[str, frozenset[str]]:
    """Return name and groups of this user; numbers where the system knows no names."""

    def named(number: int) -> str:
        try:
            return grp.getgrgid(number).gr_name
        except KeyError:
            return str(number)

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return user, frozenset(map(named, {os.getgid(), *os.getgroups()}))


def _ask(command: Sequence[str]) -> str:
    """Return the standard output of a program of Slurm, in English and unaffected by the user's own variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SINFO_")}
    try:
        ended = subprocess.run(
            command,
            env={**environment, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise LaunchError(
            f"There is no {command[0]} on PATH. Try a login node of the cluster, or `module load slurm`."
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"`{' '.join(command)}` did not answer within {SECONDS:.0f} s. Try it by hand; the cluster may be down."
        ) from None
    except OSError as error:
        raise LaunchError(f"{command[0]} cannot be started: {error.strerror}.") from error
    if ended.returncode:
        reason = " ".join(ended.stderr.split())[-500:] or f"exit status {ended.returncode}, and it said nothing"
        raise LaunchError(f"`{' '.join(command)}` failed: {reason}")
    return ended.stdout
