"""A real Slurm cluster of three hosts on this one machine, for tests.

    python tests/cluster/small_cluster.py start [--accounting] [--no-requeue] [--max-array-size 10] ...
    python tests/cluster/small_cluster.py kill-node|cut-node|start-node n2
    python tests/cluster/small_cluster.py stop

Needs root and tests/cluster/install. The hosts are n1, n2, n3 (cluster_hosts.py), with two stand-in GPUs each: device
files with nothing behind them, which Slurm counts and lists in CUDA_VISIBLE_DEVICES. This machine is the login node.
Partitions: gpu (default; its jobs can be preempted), urgent (preempts jobs of gpu), short (time limit of a minute).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from cluster_daemons import ClusterError, Daemon, run, until
from cluster_hosts import LOGIN_ADDRESS, Host, build_network, remove_network

ROOT = Path(__file__).resolve().parents[2]
USER = "degstudent"
"""Name of the ordinary user's account on the machine (cluster_user.py)."""
NODES = ("n1", "n2", "n3")
GPUS, CPUS = 2, 8
"""Resources of each node, as Slurm believes."""
PORTS = {"slurmctld": 36917, "slurmdbd": 36918, "slurmd": 36919}
LOST_SECONDS = 10
"""Slurm takes a node to be lost after this many seconds without an answer."""
ACCOUNT = "lab"
"""Slurm account that jobs of all users are charged to, where there is accounting."""


@dataclass(frozen=True)
class Site:
    """What one site allows and another does not."""

    accounting: bool = False
    """Whether sacct and sacctmgr answer."""
    requeue: bool = True
    """Whether jobs may be requeued. If not, they never are, even if they ask for it."""
    max_array_size: int = 1001
    memory_flag: bool = True
    """Whether --mem and similar options may be used."""
    gpus_by: Literal["any", "gres"] = "any"
    """How GPUs may be requested. With `gres`, only --gres=gpu:N is accepted, not --gpus and similar options."""
    python_on_nodes: bool = False
    """Whether compute nodes have the Python of this machine; if not, they have none at all."""


def cluster_home() -> Path:
    """Return the folder of all files of the cluster: open to all users, and outside /tmp, which each node has itself.

    It is DEG_CLUSTER_HOME, else .cluster in the checkout if other users may enter that, else /var/lib/deg-cluster.
    """
    if named := os.environ.get("DEG_CLUSTER_HOME"):
        return Path(named).resolve()
    enterable = all(folder.stat().st_mode & stat.S_IXOTH for folder in (ROOT, *ROOT.parents))
    if enterable and not ROOT.is_relative_to("/tmp"):
        return ROOT / ".cluster"
    return Path("/var/lib/deg-cluster")


def what_is_missing() -> str | None:
    """Return why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "the cluster tests need root: they make hosts out of namespaces"
    programs = (
        "slurmctld",
        "slurmd",
        "munged",
        "slurmdbd",
        "mariadbd",
        "tini",
        "ip",
        "nsenter",
        "apptainer",
        "debootstrap",
    )
    if missing := [name for name in programs if shutil.which(name) is None]:
        return f"the cluster tests need {', '.join(missing)}: run tests/cluster/install"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"the cluster tests need /dev/fuse, which cannot be opened ({error}): see tests/cluster/install"
    return None


class SmallCluster:
    """The cluster in `home`/slurm. Another process may have started it, and may use it further."""

    def __init__(self, home: Path):
        self.folder = home / "slurm"
        self.conf = self.folder / "etc" / "slurm.conf"
        self.logs = self.folder / "run"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.hosts = {name: Host(name, number, self.logs) for number, name in enumerate(NODES, 1)}
        self._hosts_file = self.folder / "etc" / "hosts"
        self._controller, self._accounts, self._database, self._munge = (
            Daemon(self.logs, name) for name in ("slurmctld", "slurmdbd", "mariadbd", "munged")
        )
        self.site: Site | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a user of the cluster needs."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def is_running(self) -> bool:
        return self._controller.pid is not None

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run one of Slurm's commands as root, and return its standard output."""
        return run(*words, check=check, environment=self.environment)

    # ---------------------------------------------------------------------------------------------- start and end

    def start(self, site: Site = Site()) -> None:
        """Start the cluster from nothing, or `configure` it if it runs."""
        if not self.is_running:
            self.stop()
            for name in ("etc", "state", "spool"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / name).mkdir()
            for gpu in range(GPUS):
                if not Path(f"/dev/deg-gpu{gpu}").exists():
                    os.mknod(f"/dev/deg-gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            build_network(list(self.hosts.values()), self._hosts_file, socket.gethostname())
            self._start_munge()
        self.configure(site)

    def stop(self) -> None:
        if self.is_running:
            with_jobs = self.run("squeue", "-h", "-o", "%A", check=False).split()
            self.run("scancel", "--full", *with_jobs, check=False)
        for host in self.hosts.values():
            host.lose_power()
        for daemon in (self._controller, self._accounts, self._database, self._munge):
            daemon.stop()
        remove_network()

    def configure(self, site: Site) -> None:
        """Make it that kind of site, in two seconds. Jobs stay, and lost nodes come back."""
        self._controller.stop()
        self._write_configuration(site)
        if site.accounting:
            self._start_accounts()
        self._controller.start(["slurmctld", "-D", "-f", self.conf], self.environment)
        known = self.site is not None and self.site.python_on_nodes == site.python_on_nodes
        self.site = site
        for name, host in self.hosts.items():
            if host.is_on and not known:
                host.lose_power()
            self.start_node(name)
        self.await_nodes()

    def reset(self) -> None:
        """Restore the state after `start`: no jobs, all nodes, the usual site."""
        jobs = self.run("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.run("scancel", *jobs)
        for name in self.hosts:
            self.start_node(name)
        if self.site != Site():
            self.configure(Site())
        until("the end of all jobs", lambda: not self.run("squeue", "-h").strip(), 60)
        self.await_nodes()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cluster for one process at a time."""
        import fcntl

        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # ------------------------------------------------------------------------------------------------------- nodes

    def kill_node(self, name: str) -> None:
        """Cut the power of a node: all its processes are gone at once."""
        self.hosts[name].lose_power()

    def cut_node(self, name: str) -> None:
        """Pull the network cable of a node; processes there continue."""
        self.hosts[name].cut_network()

    def start_node(self, name: str) -> None:
        """Give a node power and network."""
        host = self.hosts[name]
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        host.restore_network()
        assert self.site is not None
        hidden = () if self.site.python_on_nodes else pythons_of_this_machine(self.folder.parent)
        host.turn_on(f"slurmd -D -N {name} -f {self.conf}", self._hosts_file, hidden, self.environment)

    def await_nodes(self, seconds: float = 60) -> None:
        """Wait until all nodes accept jobs."""

        def usable() -> bool:
            states = self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T", check=False).split()
            return len(states) == len(NODES) and all(state in ("idle", "mixed", "allocated") for state in states)

        try:
            until("all nodes taking jobs", usable, seconds)
        except ClusterError as error:
            raise ClusterError(f"{error}; see {self.logs}: {self.run('sinfo', '-N', '-l', check=False)}") from None

    # -------------------------------------------------------------------------------------------------------- jobs

    def states(self) -> dict[str, str]:
        """Return the state of every job and array element that Slurm still knows, by its name."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, *names: str, state: str | None = None, seconds: float = 120) -> dict[str, str]:
        """Wait until these jobs, or all elements of these arrays, have ended or are in `state`; return all states."""
        deadline = time.monotonic() + seconds
        while True:
            states = self.states()
            found = [now for job, now in states.items() if job in names or job.partition("_")[0] in names]
            alive = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
            if found and all(now == state if state else now not in alive for now in found):
                return states
            if time.monotonic() > deadline:
                raise ClusterError(f"{' '.join(names)} not {state or 'at an end'} after {seconds:g} s: {states}")
            time.sleep(0.2)

    # ----------------------------------------------------------------------------------------------------- daemons

    def _start_munge(self) -> None:
        """Start munged, unless one is running."""
        try:
            run("munge", "-n")
        except ClusterError:
            for folder in (Path("/run/munge"), Path("/var/lib/munge"), Path("/var/log/munge")):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                shutil.chown(folder, "munge", "munge")
            self._munge.start(["runuser", "-u", "munge", "--", "munged", "--foreground"])
            until("munged answering", lambda: "MUNGE:" in run("munge", "-n", check=False))

    def _start_accounts(self) -> None:
        if self._accounts.pid is not None:
            return
        data, sockets = self.folder / "mysql", Path("/run/mysqld")
        sockets.mkdir(exist_ok=True)
        shutil.chown(sockets, "mysql", "mysql")
        if not (data / "mysql").exists():
            data.mkdir(exist_ok=True)
            shutil.chown(data, "mysql", "mysql")
            run("mariadb-install-db", "--no-defaults", "--user=mysql", "--skip-test-db", f"--datadir={data}")
        socket_file = sockets / "deg-cluster.sock"
        options = [
            f"--datadir={data}",
            f"--socket={socket_file}",
            "--skip-networking",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        self._database.start(["mariadbd", "--no-defaults", "--user=mysql", *options])
        client = ("mariadb", "--no-defaults", "-S", str(socket_file), "-e")
        until("MariaDB answering", lambda: "1" in run(*client, "select 1", check=False))
        # job numbers start at 1 in each new cluster
        run(*client, "drop database if exists slurm_acct_db; create database slurm_acct_db")
        conf = self.folder / "etc" / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(
            "AuthType=auth/munge\nSlurmUser=root\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"DbdPort={PORTS['slurmdbd']}\nPidFile={self.logs}/slurmdbd.own.pid\nStorageType=accounting_storage/mysql\n"
            f"StorageUser=root\nStorageLoc=slurm_acct_db\nStorageHost=localhost\n"
        )
        # slurmdbd looks for its configuration beside slurm.conf, and for the database at the client's usual socket
        usual = sockets / "mysqld.sock"
        usual.unlink(missing_ok=True)
        usual.symlink_to(socket_file)
        self._accounts.start(["slurmdbd", "-D"], self.environment)
        until("slurmdbd answering", lambda: "Cluster" in self.run("sacctmgr", "list", "cluster", check=False))
        # its tables must exist before slurmctld reports jobs
        self.run("sacctmgr", "-i", "add", "cluster", "small")
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, "cluster=small")
        for user in ("root", USER):
            self.run("sacctmgr", "-i", "add", "user", user, f"account={ACCOUNT}", "cluster=small")

    # ----------------------------------------------------------------------------------------------- configuration

    def _write_configuration(self, site: Site) -> None:
        etc = self.conf.parent
        (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (etc / "gres.conf").write_text(f"NodeName=n[1-{len(NODES)}] Name=gpu File=/dev/deg-gpu[0-{GPUS - 1}]\n")
        (etc / "job_submit.lua").write_text(_job_submit(site))
        (etc / "cli_filter.lua").write_text(_cli_filter(site))
        _replace(self.conf, self._slurm_conf(site))

    def _slurm_conf(self, site: Site) -> str:
        nodes = f"n[1-{len(NODES)}]"
        addresses = ",".join(host.address for host in self.hosts.values())
        storage = "slurmdbd" if site.accounting else "none"
        return f"""ClusterName=small
SlurmctldHost={socket.gethostname()}({LOGIN_ADDRESS})
SlurmctldPort={PORTS["slurmctld"]}
SlurmdPort={PORTS["slurmd"]}
SlurmUser=root
# no job has a number that is a small number of something else too
FirstJobId=1001
AuthType=auth/munge
# a job that was put back starts again after so long at the earliest
AuthInfo=cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.logs}/slurmctld.own.pid
SlurmdPidFile={self.folder}/spool/%n/slurmd.own.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
SlurmdTimeout={LOST_SECONDS}
KillWait=5
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue={int(site.requeue)}
MaxArraySize={site.max_array_size}
JobSubmitPlugins=lua
CliFilterPlugins=lua
AccountingStorageType=accounting_storage/{storage}
{f"AccountingStorageHost=127.0.0.1{chr(10)}AccountingStoragePort={PORTS['slurmdbd']}" if site.accounting else ""}
NodeName={nodes} NodeAddr={addresses} CPUs={CPUS} RealMemory=64000 Gres=gpu:{GPUS} State=UNKNOWN
PartitionName=gpu Nodes={nodes} Default=YES MaxTime=2:00:00 PriorityTier=1
PartitionName=urgent Nodes={nodes} MaxTime=2:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes={nodes} MaxTime=0:01:00 PriorityTier=1
"""


def pythons_of_this_machine(home: Path) -> tuple[Path, ...]:
    """Return every Python that a job might run without the image: those on PATH, where they lie, and the user's."""
    found = {path.resolve() for folder in ("/usr/bin", "/usr/local/bin") for path in Path(folder).glob("python3*")}
    found |= {Path(sys.executable).resolve(), home / "login", ROOT / ".venv"}
    return tuple(sorted(path for path in found if path.exists()))


def _job_submit(site: Site) -> str:
    """Return the Lua script by which slurmctld checks submitted jobs."""
    lines = ["function slurm_job_submit(job, partitions, uid)"]
    if not site.memory_flag:
        for name in ("min_mem_per_node", "min_mem_per_cpu"):
            lines.append(
                f'  if job.{name} ~= nil then slurm.log_user("memory must not be asked for"); return slurm.ERROR end'
            )
    if not site.requeue:
        lines.append("  job.requeue = 0")
    lines += ["  return slurm.SUCCESS", "end", "function slurm_job_modify() return slurm.SUCCESS end"]
    return "\n".join([*lines, "return slurm.SUCCESS", ""])


def _cli_filter(site: Site) -> str:
    """Return the Lua script by which sbatch and srun check jobs: slurmctld cannot tell --gres from --gpus-per-node."""
    lines = ["function slurm_cli_pre_submit(options, offset)"]
    if site.gpus_by == "gres":
        for name in ("gpus", "gpus-per-node", "gpus-per-task"):
            lines.append(
                f'  if options["{name}"] ~= nil then slurm.log_error("--{name}: ask by --gres"); return slurm.ERROR end'
            )
    lines += ["  return slurm.SUCCESS", "end", "function slurm_cli_setup_defaults() return slurm.SUCCESS end"]
    return "\n".join([*lines, "function slurm_cli_post_submit() return slurm.SUCCESS end", ""])


def _replace(path: Path, text: str) -> None:
    """Replace a file at once, because users' commands may read it at any moment."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["start", "stop", "kill-node", "cut-node", "start-node", "states"])
    parser.add_argument("node", nargs="?", choices=NODES)
    for field in fields(Site):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    asked = parser.parse_args()
    if missing := what_is_missing():
        sys.exit(missing)
    cluster = SmallCluster(cluster_home())
    site = replace(Site(), **{field.name: getattr(asked, field.name) for field in fields(Site)})
    if asked.verb == "start":
        cluster.start(site)
        print(f"export SLURM_CONF={cluster.conf}")
    elif asked.verb == "stop":
        cluster.stop()
    elif asked.verb == "states":
        print(cluster.states())
    else:
        cluster.site = site
        {"kill-node": cluster.kill_node, "cut-node": cluster.cut_node, "start-node": cluster.start_node}[asked.verb](
            asked.node
        )


if __name__ == "__main__":
    main()
