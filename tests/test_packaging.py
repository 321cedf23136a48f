"""Packaging: what sdist and wheel contain and require, and that they work where they are installed."""

from __future__ import annotations

import configparser
import email
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from checkout import ROOT, files
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

PACKAGES = {"deg": "deg", "deg.launch": "launch", "deg.configs": "configs", "deg.containers": "containers"}
"""Folders of the top-level packages in the checkout."""


class Built(NamedTuple):
    sdist: Path
    wheel: Path

    def names(self) -> set[str]:
        """Return the names of the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def source_names(self) -> set[str]:
        """Return the names of the files in the sdist, without its leading folder."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, in an otherwise empty environment, and return its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Built from a copy, to leave the checkout alone. The wheel is built from the sdist, which proves it complete."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy / path)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    (sdist,), (wheel,) = (copy / "dist").glob("*.tar.gz"), (copy / "dist").glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder with deg as the wheel installs it, without its requirements."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", "--target", target, built.wheel, cwd=target)
    return target


def shipped_sources() -> set[str]:
    """Return the name in the wheel of every module and data file of the packages."""
    names = set()
    for package, folder in PACKAGES.items():
        for path in files():
            if path.parts[0] == folder and path.suffix != ".md":
                names.add(str(Path(*package.split(".")) / path.relative_to(folder)))
    return names


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(wheel: Path, extra: str | None = None) -> dict[str, Requirement]:
    """Return {name: requirement} of the base installation, or of what an extra adds."""
    found = {}
    for text in metadata(wheel).get_all("Requires-Dist", []):
        requirement = Requirement(text)
        belongs = requirement.marker.evaluate({"extra": extra or ""}) if requirement.marker else extra is None
        if belongs:
            found[requirement.name.lower()] = requirement
    return found


def test_wheel_holds_every_file_of_the_packages(built):
    """Modules, YAML, container definitions, py.typed: anything that setup.cfg forgets is missing here."""
    inside = built.names()
    assert shipped_sources() - inside == set()
    assert {"deg/py.typed", "deg/launch/__init__.py", "deg/configs/__init__.py", "deg/containers/__init__.py"} <= inside


def test_wheel_holds_nothing_else(built):
    inside = {name for name in built.names() if ".dist-info/" not in name}
    assert inside - shipped_sources() == set()


def test_licence_is_shipped(built):
    assert "LICENSE" in built.source_names()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in built.names())


def test_sdist_builds_without_the_tests(built):
    """setuptools would take tests/test*.py and leave out the rest of tests/: such a suite cannot run."""
    inside = built.source_names()
    assert not [name for name in inside if name.startswith("tests")]
    assert {"setup.cfg", "pyproject.toml", "README.md", "launch/__init__.py"} <= inside


def test_every_package_folder_is_listed_in_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    found = set()
    for package, folder in PACKAGES.items():
        for path in files():
            if path.parts[0] == folder and path.name == "__init__.py":
                found.add(".".join([package, *path.parent.relative_to(folder).parts]))
    assert found == set(settings["options"]["packages"].split())


def test_base_installation_is_light(built):
    """A login node plans, submits, watches and merges without the GPU stack."""
    heavy = {"torch", "torchvision", "pytorch-lightning", "lightning", "kornia", "ray", "opencv-python"}
    base = requirements(built.wheel).keys()
    assert {"numpy", "click", "h5py"} <= base
    assert heavy & base == set()


def test_extras_bring_what_they_say(built):
    assert set(metadata(built.wheel).get_all("Provides-Extra")) == {"train", "ray", "test", "all"}
    assert {"torch", "torchvision", "pytorch-lightning", "kornia"} <= requirements(built.wheel, "train").keys()
    assert requirements(built.wheel, "ray")["ray"].extras == {"tune"}
    assert requirements(built.wheel, "all")["deg-hpc"].extras == {"train", "ray"}
    assert {"pytest", "hypothesis", "ruff", "mypy", "build"} <= requirements(built.wheel, "test").keys()


def test_the_malicious_lightning_releases_are_excluded(built):
    allowed = requirements(built.wheel, "train")["pytorch-lightning"].specifier
    assert "2.6.1" in allowed and "2.6.4" in allowed
    assert "2.6.2" not in allowed and "2.6.3" not in allowed


def test_metadata_names_the_distribution_and_its_python(built):
    about = metadata(built.wheel)
    assert about["Name"] == "deg-hpc"
    assert about["Requires-Python"] == ">=3.11"
    assert about["License"] == "BSD-3-Clause"


def test_installed_packages_are_found_under_deg_from_anywhere(installed, tmp_path):
    code = (
        "import importlib.util, json, deg, deg.configs, deg.containers, deg.data, deg.launch\n"
        "packages = [deg, deg.configs, deg.containers, deg.data, deg.launch]\n"
        "stray = [name for name in ('launch', 'configs', 'containers') if importlib.util.find_spec(name)]\n"
        "print(json.dumps([[package.__file__ for package in packages], stray]))\n"
    )
    found, stray = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert [str(Path(file).parent.relative_to(installed)) for file in found] == [
        *("deg", "deg/configs", "deg/containers", "deg/data", "deg/launch")
    ]
    assert stray == [], "the wheel would install top-level names that other packages use"


def test_installed_yaml_is_read_as_package_data(installed, tmp_path):
    """Presets and profiles are found through importlib.resources, wherever the package is installed."""
    code = (
        "import importlib.resources, json\n"
        "def walk(folder):\n"
        "    for entry in folder.iterdir():\n"
        "        yield from walk(entry) if entry.is_dir() else [entry]\n"
        "entries = walk(importlib.resources.files('deg.configs'))\n"
        "print(json.dumps([file.read_text(encoding='utf-8') for file in entries if file.name.endswith('.yaml')]))\n"
    )
    texts = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)))
    sources = [path for path in files() if path.parts[0] == "configs" and path.suffix == ".yaml"]
    assert sorted(texts) == sorted((ROOT / path).read_text(encoding="utf-8") for path in sources)


def test_installed_command_answers(installed, tmp_path):
    """The console script runs in another folder, without access to the checkout."""
    told = run(sys.executable, installed / "bin" / "deg", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert told.startswith("Usage: deg")


def test_installed_errors_are_one_class(installed, tmp_path):
    """`except DegError` catches what deg.launch raises, whichever module it was imported through."""
    code = (
        "import importlib, inspect, pkgutil, deg.launch\n"
        "names = [found.name for found in pkgutil.walk_packages(deg.launch.__path__, 'deg.launch.')]\n"
        "for module in map(importlib.import_module, names):\n"
        "    for name, value in vars(module).items():\n"
        "        if inspect.isclass(value) and value.__module__.partition('.')[0] in {'deg', 'launch'}:\n"
        "            home = importlib.import_module(value.__module__)\n"
        "            assert getattr(home, value.__qualname__.partition('.')[0]).__module__ == value.__module__, value\n"
        "            assert getattr(home, value.__name__, value) is value, value\n"
        "            assert not value.__module__.startswith('launch'), value\n"
    )
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))


def test_editable_installation_finds_the_folders_of_this_checkout(tmp_path):
    """This is what `make test` installs; a top-level folder X is deg.X only because of setup.cfg."""
    origin = json.loads(distribution("deg-hpc").read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable") or origin["url"] != ROOT.as_uri():
        pytest.skip("deg is not installed editable from this checkout")
    for package, folder in PACKAGES.items():
        found = run(sys.executable, "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path)
        assert Path(found.strip()) == ROOT / folder / "__init__.py"


@pytest.mark.parametrize("name", ["launch", "configs", "containers"])
def test_importing_a_folder_by_its_bare_name_is_banned(name):
    """From the repository root `import launch` works and makes a second copy of every class: ruff refuses it."""
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "concise",
        "--stdin-filename",
        "deg/example.py",
        "-",
    ]
    for line in (f"import {name}.cli\n", f"from {name} import cli\n"):
        done = subprocess.run(ruff, cwd=ROOT, input=line, capture_output=True, text=True, check=False, timeout=60)
        assert "TID251" in done.stdout and f"import deg.{name}" in done.stdout, done.stdout + done.stderr
