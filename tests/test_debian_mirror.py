"""Which mirror tests/cluster/debian_mirror finds in apt's lists, in both of their forms, among lists of other vendors.

The real apt is used, with folders and archives that the test makes on this disk: without a network, and not as root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

DEBIAN_MIRROR = Path(__file__).resolve().parent / "cluster" / "debian_mirror"

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="there is no apt-get here")

APT_CONF = """\
Dir "{0}/apt/";
Dir::Etc "etc";
Dir::Etc::Parts "apt.conf.d";
Dir::State "state";
Dir::State::status "{0}/apt/status";
Dir::Cache "cache";
Dir::Log "log";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "";
APT::Update::Pre-Invoke "";
Acquire::Languages "none";
"""
ONE_PACKAGE = """\
Package: nothing
Version: 1
Architecture: all
Maintainer: Nobody <nobody@localhost>
Filename: nothing.deb
Size: 1
SHA256: 00
Description: only so that the list is not empty

"""
RELEASE = """\
Origin: {origin}
Label: {label}
Suite: stable
Codename: stable
Components: main
Architectures: amd64
Date: Sat, 01 Jan 2022 00:00:00 UTC
SHA256:
 {digest} {size} main/binary-amd64/Packages
"""


@dataclass
class Machine:
    """A machine with its own apt, just installed: nothing was fetched yet."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("etc/apt.conf.d", "etc/sources.list.d", "state/lists/partial", "cache/archives/partial", "log"):
            (self.folder / "apt" / name).mkdir(parents=True)
        (self.folder / "apt" / "status").touch()
        self.fetched = self.folder / "apt" / "state" / "lists"
        self.conf = self.folder / "apt.conf"
        self.conf.write_text(APT_CONF.format(self.folder))

    def archive(self, name: str, origin: str, label: str) -> str:
        """Make a new archive and return its address."""
        release = self.folder / name / "dists" / "stable"
        packages = release / "main" / "binary-amd64" / "Packages"
        packages.parent.mkdir(parents=True)
        packages.write_text(ONE_PACKAGE)
        digest = hashlib.sha256(ONE_PACKAGE.encode()).hexdigest()
        text = RELEASE.format(origin=origin, label=label, digest=digest, size=len(ONE_PACKAGE))
        (release / "Release").write_text(text)
        return f"file:{self.folder / name}"

    def list_in_lines(self, name: str, address: str) -> None:
        self.list(f"{name}.list", f"deb [trusted=yes] {address} stable main\n")

    def list_in_stanzas(self, name: str, address: str) -> None:
        text = f"Types: deb\nURIs: {address}\nSuites: stable\nComponents: main\nTrusted: yes\n"
        self.list(f"{name}.sources", f"# Whose it is, is not said here: {name}\n{text}")

    def list(self, name: str, text: str) -> None:
        (self.folder / "apt" / "etc" / "sources.list.d" / name).write_text(text)

    def list_main(self, address: str) -> None:
        """Name Debian in sources.list itself, as older installations do."""
        text = f"# deb {address}/commented stable main\ndeb [trusted=yes] {address} stable main\n"
        (self.folder / "apt" / "etc" / "sources.list").write_text(text)

    def update(self) -> None:
        self._run("apt-get", "update").check_returncode()

    def ask(self) -> subprocess.CompletedProcess[str]:
        return self._run(DEBIAN_MIRROR)

    def mirror(self) -> str:
        done = self.ask()
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self.conf)}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def machine(tmp_path):
    """A machine with the lists of two other vendors, the first and the last by name, in both forms."""
    machine = Machine(tmp_path)
    machine.list_in_lines("a-vendor", machine.archive("a-vendor", "A Vendor", "Debian"))
    machine.list_in_stanzas("z-vendor", machine.archive("z-vendor", "Z Vendor", "Z Vendor"))
    return machine


@pytest.fixture
def debian(machine):
    return machine.archive("debian", "Debian", "Debian")


def test_lists_in_lines(machine, debian):
    machine.list_in_lines("debian", debian)
    assert machine.mirror() == debian


def test_lists_in_stanzas(machine, debian):
    machine.list_in_stanzas("debian", debian)
    assert machine.mirror() == debian


def test_the_list_that_is_no_folder(machine, debian):
    machine.list_main(debian)
    assert machine.mirror() == debian


def test_both_forms_on_one_machine(machine, debian):
    security = machine.archive("a-debian-security", "Debian", "Debian-Security")
    machine.list_main(security)
    machine.list_in_lines("a-security", security)
    machine.list_in_stanzas("debian", debian)
    assert machine.mirror() == debian


def test_files_that_were_fetched_before_are_enough(machine, debian):
    copied = debian.replace("file:", "copy:")  # otherwise apt would keep only links
    machine.list_in_stanzas("debian", copied)
    machine.update()
    shutil.rmtree(machine.folder / "debian")
    done = machine.ask()
    assert (done.stdout, done.stderr) == (f"{copied}\n", "")


def test_slashes_at_the_end_are_left_out(machine, debian):
    machine.list_in_stanzas("debian", f"{debian}//")
    assert machine.mirror() == debian


@pytest.mark.parametrize("form", ["lines", "stanzas"])
def test_a_file_that_names_mirrors(machine, debian, form):
    mirrors = machine.folder / "mirrors.list"
    second = shutil.copytree(machine.folder / "debian", machine.folder / "second")
    mirrors.write_text(f"# as on Debian's cloud images\n\n{debian}/\tpriority:1\nfile:{second}\tpriority:2\n")
    getattr(machine, f"list_in_{form}")("debian", f"mirror+file:{mirrors}")
    assert machine.mirror() == debian


def test_a_file_of_mirrors_that_is_gone_is_told(machine, debian):
    mirrors = machine.folder / "mirrors.list"
    mirrors.write_text(f"{debian}\n")
    machine.list_in_lines("debian", f"mirror+file:{mirrors}")
    machine.update()
    mirrors.unlink()
    done = machine.ask()
    assert done.returncode == 1 and done.stdout == ""
    assert f"expected in {mirrors}" in done.stderr and "Found: none" in done.stderr


def test_a_disc_is_no_mirror(machine, debian):
    copied = debian.replace("file:", "copy:")
    machine.list_in_lines("debian", copied)
    machine.update()
    machine.list_in_lines("a-disc", "cdrom:[Debian]/")
    for file in machine.fetched.glob("*_debian_dists_*"):  # as apt-cdrom would have copied them from the disc
        shutil.copy(file, machine.fetched / f"Debian_dists_{file.name.partition('_dists_')[2]}")
    assert machine.mirror() == copied


def test_a_vendor_that_cannot_be_reached_keeps_nobody_from_debian(machine, debian):
    machine.list_in_lines("b-vendor", f"file:{machine.folder}/gone")
    machine.list_in_stanzas("debian", debian)
    done = machine.ask()
    assert (done.returncode, done.stdout) == (0, f"{debian}\n")
    assert "apt-get update failed" in done.stderr


def test_without_debian_it_says_what_it_found_and_what_to_do(machine):
    done = machine.ask()
    assert done.returncode == 1 and done.stdout == ""
    assert "expected in apt's lists: an archive of Debian" in done.stderr
    assert f'file:{machine.folder}/a-vendor/, origin "A Vendor", component "main"' in done.stderr
    assert f'file:{machine.folder}/z-vendor/, origin "Z Vendor", component "main"' in done.stderr
    assert "Name a mirror of Debian under /etc/apt/sources.list.d" in done.stderr


def test_without_any_list_it_says_so(tmp_path):
    done = Machine(tmp_path).ask()
    assert done.returncode == 1
    assert "no archive of which apt has the files" in done.stderr


def test_lists_that_apt_cannot_read_are_told(machine):
    machine.list("debian.sources", "URIs: of no type\n")
    done = machine.ask()
    assert done.returncode != 0
    assert "debian.sources" in done.stderr
