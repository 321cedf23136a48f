"""The ordinary user of the cluster: an account without rights, and the light `deg` that she types on the login node."""

from __future__ import annotations

import fcntl
import hashlib
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster_daemons import run
from small_cluster import ROOT
from small_cluster import USER as NAME

SOURCES = (
    "deg",
    "launch",
    "configs",
    "containers",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
"""All files of the checkout that a package of deg is made from."""
LOCKED = ROOT / "containers" / "cu13.txt"
"""Lock with the versions of the libraries in the image."""


@dataclass
class User:
    name: str
    home: Path
    login: Path
    """Virtual environment of the login node, with deg and without torch."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that are set for every command of the user."""

    def run(
        self,
        *words: str | Path,
        folder: Path | None = None,
        environment: Mapping[str, str] = {},
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this user's rights and environment. Raise AssertionError with its output if it fails."""
        clean = {
            "HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "SHELL": "/bin/bash", "LANG": "C.UTF-8",
            "PATH": f"{self.login}/bin:/usr/local/bin:/usr/bin:/bin", **self.environment, **environment,
        }  # fmt: skip
        entry = pwd.getpwnam(self.name)
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder or self.home,
            env=clean,
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            umask=0o022,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def deg(self, *words: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
        """Run `deg` as the user types it on the login node; further arguments are passed to `run`."""
        return self.run(self.login / "bin" / "deg", *words, **more)  # type: ignore[arg-type]

    def submit(self, script: str, *options: str, folder: Path | None = None) -> str:
        """Submit a job with the text `script` and return its number. Its output goes to `folder`, else to the home."""
        folder = folder or self.home
        file = folder / f"job-{hashlib.sha256(script.encode()).hexdigest()[:8]}.sh"
        self.give(file, script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        return self.run("sbatch", "--parsable", *options, file, folder=folder).stdout.strip()

    def give(self, path: Path, text: str | None = None) -> Path:
        """Make a file with `text`, or give a folder with all its contents to the user."""
        if text is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text(text)
        for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
            shutil.chown(one, self.name, self.name)
        return path


def make_user(home: Path) -> User:
    """Make the account, and install deg for her as the checkout is now."""
    folder = home / "home" / NAME
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        run("useradd", "--user-group", "--no-create-home", "--shell", "/bin/bash", NAME)
    user = User(NAME, folder, home / "login")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.chown(folder, NAME, NAME)
    _install_login_deg(home)
    return user


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a fingerprint of the names and contents of files, and of all files in folders."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def copy_sources(to: Path) -> None:
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(source, to / name)


def _install_login_deg(home: Path) -> None:
    """Install deg as on a login node: Debian's Python, the image's versions, no torch, and readable for all users."""
    login = home / "login"
    with (home / "login.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        libraries = fingerprint([ROOT / "setup.cfg", LOCKED])
        package = fingerprint([ROOT / name for name in SOURCES])
        pip = (login / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check", "install")
        if _read(login / "libraries") != libraries:
            shutil.rmtree(login, ignore_errors=True)
            run("/usr/bin/python3", "-m", "venv", login)
            versions = login / "versions.txt"
            locked = re.findall(r"^([\w.-]+==[^ \\;\n]+)", LOCKED.read_text(), re.MULTILINE)
            versions.write_text("\n".join([*locked, ""]))
            wanted = _required(ROOT / "setup.cfg")
            run(*pip, "-c", versions, *wanted, timeout=900)
            run(*pip, "--upgrade", "setuptools>=70", "wheel", timeout=300)
            (login / "libraries").write_text(libraries)
        if _read(login / "package") != package:
            build = home / "package"
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir()
            copy_sources(build)
            run(*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", build, timeout=300)
            shutil.rmtree(build)
            run("chmod", "-R", "a+rX", login)
            (login / "package").write_text(package)


def _required(setup: Path) -> list[str]:
    import configparser

    settings = configparser.ConfigParser()
    settings.read(setup)
    return [line for line in settings["options"]["install_requires"].splitlines() if line.strip()]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
