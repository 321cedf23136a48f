"""Hosts that are namespaces of this machine: each with a network address, host name, process table, /tmp and /dev/shm.

They share all other files, as hosts of a cluster share its parallel file system, and reach nothing but each other and
this machine. The power of one can fail, and so can its network.
"""

from __future__ import annotations

import signal
from pathlib import Path

from cluster_daemons import Daemon, run

BRIDGE = "degtest"
NETWORK = "10.79.0"
LOGIN_ADDRESS = f"{NETWORK}.1"
"""Address of this machine, where users log in and the scheduler runs."""


class Host:
    def __init__(self, name: str, number: int, folder: Path):
        self.name = name
        self.address = f"{NETWORK}.{10 + number}"
        self._link = f"{BRIDGE}-{name}"
        self._netns = f"{BRIDGE}-{name}"
        self._power = Daemon(folder, name)

    @property
    def is_on(self) -> bool:
        return self._power.pid is not None

    @property
    def log(self) -> Path:
        return self._power.log

    def wire(self) -> None:
        run("ip", "netns", "add", self._netns)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._netns)
        run("ip", "link", "set", self._link, "master", BRIDGE, "up")
        inside = ("ip", "-n", self._netns)
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run(*inside, "link", "set", device, "up")
        run(*inside, "route", "add", "default", "via", LOGIN_ADDRESS)

    def turn_on(self, program: str, hosts_file: Path, hidden: tuple[Path, ...], environment: dict[str, str]) -> None:
        """Turn the host on until `program` ends there. `hidden` paths can neither be run nor entered there."""
        prepare = [
            "mount -t tmpfs -o mode=1777 shm /dev/shm",
            "mount -t tmpfs -o mode=1777 tmp /tmp",
            f"mount --bind {hosts_file} /etc/hosts",
            f"hostname {self.name}",
            *(f"mount -t tmpfs -o mode=0 none '{path}'" for path in hidden if path.is_dir()),
            *(f"mount --bind /dev/null '{path}'" for path in hidden if path.is_file()),
            # the first process of a host reaps orphans
            f"exec tini -- {program}",
        ]
        # not `ip netns exec`: it mounts a /sys without cgroups, and slurmd does not start without them
        words = [
            "nsenter",
            f"--net=/run/netns/{self._netns}",
            "unshare",
            "--mount",
            "--propagation=slave",
            "--uts",
            "--ipc",
        ]
        words += ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", " && ".join(prepare)]
        self._power.start(words, environment)

    def lose_power(self) -> None:
        """Kill all processes of the host at once."""
        self._power.stop(signal.SIGKILL)

    def cut_network(self) -> None:
        run("ip", "link", "set", self._link, "down")

    def restore_network(self) -> None:
        run("ip", "link", "set", self._link, "up")


def build_network(hosts: list[Host], hosts_file: Path, login_name: str) -> None:
    remove_network()
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{LOGIN_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for host in hosts:
        host.wire()
    names = [("127.0.0.1", "localhost"), (LOGIN_ADDRESS, login_name), *((host.address, host.name) for host in hosts)]
    hosts_file.write_text("".join(f"{address}\t{name}\n" for address, name in names))


def remove_network() -> None:
    for line in run("ip", "netns", "list").splitlines():
        if line.startswith(f"{BRIDGE}-"):
            run("ip", "netns", "del", line.split()[0])
    if (Path("/sys/class/net") / BRIDGE).exists():
        run("ip", "link", "del", BRIDGE)
