"""What `deg doctor` finds about Apptainer and images."""

from __future__ import annotations

from pathlib import Path

import pytest

from deg.launch.doctor import image as doctor_image
from deg.options.schema import Cluster
from deg.version import __version__

LABELS = {"deg.version": __version__, "deg.min_driver": "580", "deg.torch": "2.15.0", "deg.cuda": "13.2"}


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A folder that stands in for an image, on a machine without a driver."""
    monkeypatch.setattr(doctor_image, "driver_version", lambda: None)
    monkeypatch.setattr(doctor_image, "read_labels", lambda path: LABELS)
    path = tmp_path / "deg.sif"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("apptainer version 1.4.5\n", "ok"),
        ("apptainer version 1.5.0-rc.1\n", "ok"),
        ("apptainer version 0.9\n", "fault"),
        ("singularity-ce version 4.1.0\n", "warning"),
        ("", "warning"),
    ],
)
def test_apptainer_must_be_new_enough(text, state):
    assert doctor_image.judge_version(text).state == state


def test_one_of_the_modes_must_work():
    judge = doctor_image.judge_mode
    assert judge(setuid=False, root=False, namespaces=False).state == "fault"
    assert judge(setuid=False, root=False, namespaces=True).found == "user namespaces"
    assert judge(setuid=True, root=False, namespaces=True).found.startswith("setuid")


def test_images_are_unpacked_where_fuse_cannot_be_used():
    assert doctor_image.judge_fuse(False).state == "warning"


def test_setuid_is_seen_from_the_helper(tmp_path):
    helper = tmp_path / "apptainer" / "bin" / "starter-suid"
    helper.parent.mkdir(parents=True)
    helper.touch()
    build = f"APPTAINER_SUID_INSTALL=1\nLIBEXECDIR={tmp_path}\n"
    assert not doctor_image.is_setuid(build)
    helper.chmod(0o4755)
    assert doctor_image.is_setuid(build)
    assert not doctor_image.is_setuid(build.replace("INSTALL=1", "INSTALL=0"))


def test_a_machine_without_apptainer_is_no_fault(tmp_path):
    (found,) = doctor_image.check_apptainer(Cluster(apptainer=str(tmp_path / "none")))
    assert found.state == "not tried"


def test_no_image_is_no_fault():
    (found,) = doctor_image.check_image(Cluster(), [])
    assert found.state == "not tried"


def test_a_file_that_is_no_image_is_a_fault(tmp_path):
    (found,) = doctor_image.check_image(Cluster(image=str(tmp_path / "none.sif")), [tmp_path])
    assert found.state == "fault" and "deg image build" in found.found


def test_an_image_is_started_as_jobs_start_it(image, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    said = tmp_path / "said"
    apptainer = program(tmp_path, "apptainer", f'echo "$@" > {said}')
    *_, found = doctor_image.check_image(Cluster(image=str(image), apptainer=str(apptainer)), [project])
    assert found.state == "ok" and found.check == "start of the image"
    words = said.read_text()
    assert words.startswith("exec --cleanenv") and str(project) in words and words.endswith("python -c import deg\n")


def test_an_image_that_does_not_start_is_told_in_its_own_words(image, tmp_path):
    apptainer = program(tmp_path, "apptainer", 'echo "FATAL: could not mount" >&2; exit 255')
    *_, found = doctor_image.check_image(Cluster(image=str(image), apptainer=str(apptainer)), [tmp_path])
    assert found.state == "fault" and "could not mount" in found.found


def test_an_image_for_a_newer_driver_is_a_fault(image, monkeypatch):
    monkeypatch.setattr(doctor_image, "driver_version", lambda: "535.129.03")
    found = {one.check: one for one in doctor_image.check_image(Cluster(image=str(image), apptainer="none"), [])}
    assert found["GPU driver for it"].state == "fault" and found["start of the image"].state == "not tried"


def test_an_image_that_starts_slowly_is_told():
    assert doctor_image.judge_start(0.4, 0, "").state == "ok"
    assert doctor_image.judge_start(90.0, 0, "").state == "warning"


def test_the_check_leaves_nothing_on_the_disk(image, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    apptainer = program(tmp_path, "apptainer", "exit 0")
    list(doctor_image.check_image(Cluster(image=str(image), apptainer=str(apptainer)), [tmp_path]))
    assert list((tmp_path / "tmp").iterdir()) == []
