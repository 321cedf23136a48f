"""The definition and the locks are complete, consistent, and independent of any one machine."""

from __future__ import annotations

import configparser
import re

import pytest
from checkout import ROOT
from packaging.requirements import Requirement

from deg.containers import FLAVOURS, definition, flavour
from deg.errors import ConfigError
from deg.launch.doctor.gpu import LEAST_DRIVERS
from deg.launch.image.build import Build
from deg.launch.image.container import CACHES, PYTHON

KINDS = [pytest.param(kind, id=name) for name, kind in FLAVOURS.items()]


def locked(kind) -> dict[str, str]:
    """{distribution: version} of a lock."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", kind.lock, re.MULTILINE))


def asked_for() -> list[Requirement]:
    """Return what setup.cfg asks for, with the extras that the image holds."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [
        settings["options"]["install_requires"],
        *(settings["options.extras_require"][extra] for extra in ("train", "ray")),
    ]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_holds_what_setup_cfg_asks_for(kind):
    versions = locked(kind)
    for requirement in asked_for():
        assert versions[requirement.name.lower()] in requirement.specifier


@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_a_lock_has_its_hashes(kind):
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in kind.lock.splitlines() if not line.startswith("#")))
    for entry in filter(str.strip, entries):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", entry), entry


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_says_nothing_about_where_packages_come_from(kind):
    assert "://" not in kind.lock and "--find" not in kind.lock and "index" not in kind.lock


@pytest.mark.parametrize("kind", KINDS)
def test_the_malicious_lightning_releases_are_in_no_lock(kind):
    for name in ("pytorch-lightning", "lightning"):
        assert locked(kind).get(name) not in ("2.6.2", "2.6.3")


@pytest.mark.parametrize(("name", "torch", "runtime"), [("cu13", "2.15.", "13.2"), ("cu12", "2.10.", "12.8")])
def test_a_flavour_is_what_its_lock_holds(name, torch, runtime):
    kind, versions = flavour(name), locked(flavour(name))
    assert kind.torch.startswith(torch) and kind.cuda == runtime
    toolkit = next(versions[package] for package in ("cuda-toolkit", "nvidia-cuda-runtime-cu12") if package in versions)
    assert toolkit.startswith(f"{runtime}.")


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_and_the_image_agree_on_the_least_driver(kind):
    assert kind.min_driver == LEAST_DRIVERS[int(kind.cuda.split(".")[0])]


def test_an_unknown_flavour_is_told():
    with pytest.raises(ConfigError, match="cu13, cu12"):
        flavour("cu11")


def section(text: str, name: str) -> str:
    """Return the last section of that name."""
    return text.rpartition(f"\n%{name}\n")[2].partition("\n%")[0]


def test_every_argument_has_a_value_when_an_image_is_built(tmp_path):
    """Apptainer refuses an argument that the definition does not know, and one that has no value."""
    asked = set(re.findall(r"{{ (\w+) }}", definition()))
    given = Build(flavour("cu13"), tmp_path / "x.sif", base=str(tmp_path)).arguments().keys() | {"context"}
    assert asked == given
    declared = set(
        re.findall(r"^    (\w+)=", "\n".join(re.findall(r"%arguments\n((?:    .+\n)+)", definition())), re.M)
    )
    assert declared == given


def test_the_environment_of_the_image_only_exports():
    """Apptainer gives it a minute and no more; a library path would come before the driver's."""
    lines = [line.strip() for line in section(definition(), "environment").splitlines() if line.strip()]
    assert all(line.startswith("export ") for line in lines)
    assert not [line for line in lines if "LD_LIBRARY_PATH" in line]


def test_the_image_keeps_caches_where_jobs_have_them():
    """An image that is started by hand, without container.sh, writes to the same places below its scratch folder."""
    exported = dict(re.findall(r'export (\w+)="\$\{\w+:-\$DEG_SCRATCH(\S*)\}"', section(definition(), "environment")))
    caches = {name: folder for name, folder in CACHES.items() if name != "TMPDIR"}
    assert exported == {**caches, "TORCH_HOME": "/torch"}


def test_python_in_the_image_is_kept_to_its_own_packages():
    text = section(definition(), "environment")
    assert all(f"{name}={value}" in text for name, value in PYTHON.items())


def test_labels_are_in_the_keys_of_oci_and_of_deg():
    keys = {line.split()[0] for line in section(definition(), "labels").splitlines() if line.strip()}
    assert {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses")} <= keys
    assert {f"deg.{name}" for name in ("version", "torch", "cuda", "min_driver", "flavour", "lock_sha256")} <= keys
