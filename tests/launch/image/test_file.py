"""A scripted Apptainer builds, pulls and checks images; labels are read from files in the layout of SIF."""

from __future__ import annotations

import hashlib
import json
import shlex
import struct
import sys
from pathlib import Path

import pytest

from deg.containers import FLAVOURS, flavour
from deg.errors import ConfigError, LaunchError
from deg.launch import cli
from deg.launch.image import build as image_build
from deg.launch.image import file as image
from deg.launch.image.apptainer import client, follow
from deg.launch.image.build import Build, build, source_sha256
from deg.launch.image.check import judge_driver, judge_signature, judge_test, judge_version
from deg.launch.image.file import file_name, image_digest, pull, read_labels, require_same_version, verify_digest
from deg.version import __version__

APPTAINER = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
asked = sys.argv[1:]
with (folder / "asked.jsonl").open("a") as log:
    log.write(json.dumps({{"argv": asked, "epoch": os.environ.get("SOURCE_DATE_EPOCH")}}) + "\\n")
print("INFO: on it", file=sys.stderr)
if asked[0] == "build":
    context = dict(word.partition("=")[::2] for word in asked if "=" in word)["context"]
    (folder / "context.json").write_text(json.dumps({{
        str(path.relative_to(context)): path.read_text(errors="replace")[:100]
        for path in pathlib.Path(context).rglob("*") if path.is_file()
    }}))
if asked[0] in ("build", "pull"):
    pathlib.Path(asked[-2]).write_text("an image")
exec((folder / "then.py").read_text())
"""


class Apptainer:
    """A stand-in for Apptainer: the calls that it got, and what else it does."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.program = folder, str(folder / "apptainer")
        Path(self.program).write_text(APPTAINER.format(python=sys.executable, folder=str(folder)))
        Path(self.program).chmod(0o755)
        self.then("")

    def then(self, code: str) -> None:
        (self.folder / "then.py").write_text(code)

    @property
    def asked(self) -> list[dict]:
        log = self.folder / "asked.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def context(self) -> dict[str, str]:
        return json.loads((self.folder / "context.json").read_text())


@pytest.fixture
def apptainer(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "IMAGE_GB", 0)
    monkeypatch.setattr(image_build, "IMAGE_GB", 0)
    monkeypatch.setattr(image_build, "BUILD_GB", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Apptainer(tmp_path / "apptainer")


@pytest.fixture
def order(tmp_path):
    (tmp_path / "base").mkdir()
    return Build(flavour("cu13"), tmp_path / "images" / "deg.sif", base=str(tmp_path / "base"))


def quiet(line: str) -> None:
    pass


def write_sif(path: Path, labels: dict[str, str] | None, *, objects: int = 3) -> Path:
    """Write a file in the layout of SIF: header, descriptor table, and the document that `apptainer inspect` reads."""
    document = json.dumps({"data": {"attributes": {"labels": labels}}, "type": "container"}).encode()
    table, data = 4096, 4096 + 585 * 48
    header = struct.pack("<32s10s3s3s16sqqqqq", b"#!/usr/bin/env run-singularity\n", b"SIF_MAGIC", b"01", b"02",
                         b"", 0, 0, 48 - objects, 48, table)  # fmt: skip
    descriptors = b""
    for number, (kind, name) in enumerate([(0x4001, b""), (0x4006, b"inspect-metadata.json"), (0x4004, b"")], start=1):
        length = len(document) if kind == 0x4006 else 0
        descriptors += struct.pack(
            "<i?IIIqqqqqqq128s384s", kind, True, number, 1, 0, data, length, length, 0, 0, 0, 0, name, b""
        )
    path.write_bytes((header.ljust(table, b"\0") + descriptors).ljust(data, b"\0") + document)
    return path


# build


def test_build_hands_apptainer_the_definition_and_its_arguments(apptainer, order):
    build(order, quiet, apptainer.program)
    ((argv, epoch),) = [call.values() for call in apptainer.asked]
    given = dict(word.partition("=")[::2] for word in argv if "=" in word)
    assert argv[0] == "build" and Path(argv[-1]).name == "deg.def"
    assert given["bootstrap"] == "localimage" and given["base"] == order.base
    assert given["version"] == __version__ and given["torch"] == FLAVOURS["cu13"].torch
    assert given["source"] == source_sha256()
    assert int(epoch) > 1e9


def test_the_context_holds_deg_as_it_is_installed_and_its_lock(apptainer, order):
    build(order, quiet, apptainer.program)
    assert {"deg.def", "requirements.txt", "command", "package/deg/__init__.py"} <= apptainer.context.keys()
    assert {
        "package/deg/launch/cli.py",
        "package/deg/configs/project.yaml",
        "package/deg/containers/cu13.txt",
    } <= apptainer.context.keys()
    assert apptainer.context["requirements.txt"] == flavour("cu13").lock[:100]
    assert not [name for name in apptainer.context if "__pycache__" in name]


def test_files_for_the_building_stage_are_put_where_they_belong(apptainer, order, tmp_path):
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / "lab.crt").write_text("lab")
    (tmp_path / "pip.conf").write_text("pip")
    files = ((tmp_path / "certificates", "/usr/local/share/ca-certificates"), (tmp_path / "pip.conf", "/etc/pip.conf"))
    build(Build(**{**vars(order), "files": files}), quiet, apptainer.program)
    assert apptainer.context["root/usr/local/share/ca-certificates/lab.crt"] == "lab"
    assert apptainer.context["root/etc/pip.conf"] == "pip"


def test_a_built_image_is_read_only_and_its_digest_is_beside_it(apptainer, order):
    digest = build(order, quiet, apptainer.program)
    assert digest == hashlib.sha256(b"an image").hexdigest()
    assert order.target.stat().st_mode & 0o777 == 0o555
    assert (order.target.parent / "deg.sif.sha256").read_text() == f"{digest}  deg.sif\n"


def test_an_image_that_fails_its_test_does_not_appear(apptainer, order):
    apptainer.then("print('the test says no'); sys.exit(7)")
    with pytest.raises(LaunchError, match=r"(?s)exit status 7.*the test says no"):
        build(order, quiet, apptainer.program)
    assert list(order.target.parent.iterdir()) == []


def test_what_apptainer_says_is_passed_on_and_none_of_it_printed(apptainer, order, capfd):
    heard: list[str] = []
    build(order, heard.append, apptainer.program)
    assert "INFO: on it" in heard
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("said", "advice"),
    [("Requesting capability set 1", "user namespace"), ("No space left on device", "APPTAINER_TMPDIR")],
)
def test_advice_comes_with_what_is_known_to_go_wrong(apptainer, order, said, advice):
    apptainer.then(f"print({said!r}); sys.exit(255)")
    with pytest.raises(LaunchError, match=advice):
        build(order, quiet, apptainer.program)


def test_a_full_disk_is_told_before(apptainer, order, monkeypatch):
    monkeypatch.setattr(image_build, "BUILD_GB", 10**9)
    with pytest.raises(LaunchError, match="free space"):
        build(order, quiet, apptainer.program)
    assert apptainer.asked == []


def test_a_command_that_never_ends_is_ended(apptainer, tmp_path, monkeypatch):
    apptainer.then("import time; time.sleep(60)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LaunchError, match="took too long"):
        follow(client(apptainer.program, 1).pull(URI, name="x", stream=True, quiet=True)[1], quiet, "Pulling")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("docker://debian@sha256:12", ("docker", "debian@sha256:12")),
        ("oras://host/base:1", ("oras", "host/base:1")),
    ],
)
def test_a_base_is_an_address(order, base, expected):
    assert Build(**{**vars(order), "base": base}).bootstrap() == expected


@pytest.mark.parametrize("base", ["debian:bookworm-slim", "ftp://x", "nowhere/base"])
def test_another_base_is_refused(order, base):
    with pytest.raises(ConfigError, match="docker://"):
        Build(**{**vars(order), "base": base}).bootstrap()


def test_the_digest_of_the_base_is_recorded(order):
    named = Build(**{**vars(order), "base": "docker://debian@sha256:12"})
    assert named.arguments()["digest"] == "sha256:12"
    assert not [line for line in named.describe() if "Note" in line]


def test_a_changed_file_of_deg_is_another_source(monkeypatch, tmp_path):
    (tmp_path / "module.py").write_text("one")
    monkeypatch.setattr(image_build, "_sources", lambda: {"module.py": tmp_path / "module.py"})
    before = source_sha256()
    (tmp_path / "module.py").write_text("two")
    assert source_sha256() != before


def test_dry_run_says_what_would_be_done_without_apptainer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["image", "build", "--flavour", "cu12", "--dry-run", "--json", "--apptainer", "none-here"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["arguments"]["cuda"] == "12.8"
    assert "driver 525" in said.err and "docker://debian" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_apptainer_is_told(order):
    with pytest.raises(LaunchError, match="module load apptainer"):
        build(order, quiet, "none-here")


# pull


URI = "oras://registry.example.org/lab/deg:0.1"
DIGEST = hashlib.sha256(b"an image").hexdigest()


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (URI, "deg_0.1.sif"),
        ("docker://lab/deg@sha256:ab", "deg_sha256_ab.sif"),
        ("https://example.org/images/deg.sif?download=1", "deg.sif"),
    ],
)
def test_an_address_gives_a_file_name(uri, name):
    assert file_name(uri) == name


@pytest.mark.parametrize("uri", ["deg.sif", "ftp://example.org/deg.sif", "oras://"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(ConfigError, match="oras://"):
        file_name(uri)


def test_pull_gives_a_read_only_image_and_records_its_digest(apptainer, tmp_path):
    found = pull(URI, tmp_path / "shared", quiet, program=apptainer.program)
    assert found == tmp_path / "shared" / "deg_0.1.sif"
    assert found.stat().st_mode & 0o222 == 0
    assert (tmp_path / "shared" / "deg_0.1.sif.sha256").read_text().startswith(DIGEST)
    assert apptainer.asked[0]["argv"][-1] == URI


def test_pull_again_verifies_what_is_there(apptainer, tmp_path):
    found = pull(URI, tmp_path, quiet, program=apptainer.program)
    assert pull(URI, tmp_path, quiet, program=apptainer.program) == found
    assert len(apptainer.asked) == 1
    found.chmod(0o755)
    found.write_text("damaged")
    with pytest.raises(LaunchError, match="damaged"):
        pull(URI, tmp_path, quiet, program=apptainer.program)


def test_pull_takes_no_other_image_than_the_one_that_was_asked_for(apptainer, tmp_path):
    with pytest.raises(LaunchError, match="expected sha256"):
        pull(URI, tmp_path / "shared", quiet, sha256="0" * 64, program=apptainer.program)
    assert list((tmp_path / "shared").iterdir()) == []
    assert pull(URI, tmp_path / "shared", quiet, sha256=f"sha256:{DIGEST}", program=apptainer.program).exists()


def test_a_pull_that_was_interrupted_begins_anew(apptainer, tmp_path):
    apptainer.then("os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)")
    with pytest.raises(LaunchError, match="Pulling"):
        pull(URI, tmp_path / "shared", quiet, program=apptainer.program)
    apptainer.then("")
    pull(URI, tmp_path / "shared", quiet, program=apptainer.program)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"deg_0.1.sif", "deg_0.1.sif.sha256"}


def test_pull_as_a_command(apptainer, tmp_path, capsys):
    words = ["image", "pull", URI, "--to", str(tmp_path), "--apptainer", apptainer.program, "--json"]
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out) == {"image": str(tmp_path / "deg_0.1.sif"), "sha256": DIGEST}


# digests


def test_a_digest_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.sif").write_text("an image")
    assert image_digest(tmp_path / "a.sif") == f"sha256:{DIGEST}"
    monkeypatch.setattr(image, "file_sha256", lambda path: pytest.fail("read again"))
    assert image_digest(tmp_path / "a.sif") == f"sha256:{DIGEST}"


def test_another_image_under_the_same_name_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.sif").write_text("an image")
    before = image_digest(tmp_path / "a.sif")
    (tmp_path / "b.sif").write_text("AN IMAGE")
    (tmp_path / "b.sif").replace(tmp_path / "a.sif")
    assert image_digest(tmp_path / "a.sif") != before


def test_a_home_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    (tmp_path / "a.sif").write_text("an image")
    assert image_digest(tmp_path / "a.sif") == f"sha256:{DIGEST}"


def test_a_digest_that_was_not_recorded_is_only_told(tmp_path):
    (tmp_path / "a.sif").write_text("an image")
    assert verify_digest(tmp_path / "a.sif") == DIGEST


# labels


def test_labels_are_read_without_apptainer(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_labels(write_sif(tmp_path / "a.sif", {"deg.version": "1"})) == {"deg.version": "1"}


def test_labels_of_an_unpacked_image(tmp_path):
    (tmp_path / ".singularity.d").mkdir()
    (tmp_path / ".singularity.d" / "labels.json").write_text('{"deg.version": "1"}')
    assert read_labels(tmp_path) == {"deg.version": "1"}


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"x" * 40000, b"#!/bin/sh\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"\xff" * 80]
)
def test_what_is_no_image_is_told(tmp_path, content):
    (tmp_path / "a.sif").write_bytes(content)
    with pytest.raises(LaunchError, match="expected an Apptainer image"):
        read_labels(tmp_path / "a.sif")


def test_an_image_cut_short_is_told(tmp_path):
    whole = write_sif(tmp_path / "a.sif", {"deg.version": "1"}).read_bytes()
    (tmp_path / "a.sif").write_bytes(whole[:-10])
    with pytest.raises(LaunchError, match="expected an Apptainer image"):
        read_labels(tmp_path / "a.sif")


def test_an_image_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LaunchError, match="No such file"):
        read_labels(tmp_path / "none.sif")


def test_an_image_of_this_version_is_taken(tmp_path):
    require_same_version(write_sif(tmp_path / "a.sif", {"deg.version": __version__}))


@pytest.mark.parametrize(
    ("labels", "found"), [({"deg.version": "0.0.1"}, r"0\.0\.1"), ({}, "not of deg"), (None, "not of deg")]
)
def test_an_image_of_another_version_is_refused(tmp_path, labels, found):
    with pytest.raises(LaunchError, match=found):
        require_same_version(write_sif(tmp_path / "a.sif", labels))


# check


LABELS = {
    "deg.version": __version__,
    "deg.torch": "2.15.0",
    "deg.cuda": "13.2",
    "deg.flavour": "cu13",
    "deg.min_driver": "580",
    "deg.source_sha256": "s",
}


@pytest.mark.parametrize(
    ("changes", "state"),
    [({}, "ok"), ({"deg.version": "0.0.1"}, "fault"), ({"deg.source_sha256": "other"}, "warning")],
)
def test_the_version_is_judged(changes, state):
    assert judge_version({**LABELS, **changes}, "s").state == state


@pytest.mark.parametrize(
    ("driver", "state", "says"),
    [
        ("580.65.06", "ok", "580.65"),
        ("570.10", "fault", "cu12"),
        ("470.1", "fault", "updated"),
        (None, "not tried", "580"),
    ],
)
def test_the_driver_is_judged(driver, state, says):
    finding = judge_driver(LABELS, driver)
    assert finding.state == state and says in finding.sentence()


@pytest.mark.parametrize(
    ("status", "said", "state"),
    [
        (0, "Container verified", "ok"),
        (255, "FATAL: signature not found for object group 1", "ok"),
        (255, "FATAL: signature is not valid", "fault"),
    ],
)
def test_the_signature_is_judged(status, said, state):
    assert judge_signature(status, said).state == state


def test_the_images_own_test_is_judged():
    assert judge_test(0, "fine").state == "ok"
    assert "no libcuda" in judge_test(3, "one\nno libcuda").found


def test_check_asks_apptainer_to_verify_and_to_test(apptainer, tmp_path, capsys):
    file = write_sif(tmp_path / "a.sif", LABELS)
    apptainer.then("if asked[0] == 'verify': print('signature not found', file=sys.stderr); sys.exit(255)")
    words = ["image", "check", str(file), "--apptainer", apptainer.program, "--json"]
    assert cli.run(words) == 0
    findings = {finding["check"]: finding["state"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["signature"] == "ok" and findings["its own test"] == "ok"
    assert [call["argv"][0] for call in apptainer.asked] == ["verify", "test"]
    assert "--cleanenv" in apptainer.asked[1]["argv"]


def test_check_ends_with_status_3_where_something_is_at_fault(apptainer, tmp_path, capsys):
    file = write_sif(tmp_path / "a.sif", {**LABELS, "deg.version": "0.0.1"})
    assert (
        cli.run(["image", "check", str(file), "--quick", "--apptainer", apptainer.program]) == LaunchError.exit_status
    )
    assert [call["argv"][0] for call in apptainer.asked] == ["verify"]
    assert "0.0.1" in capsys.readouterr().err


def test_check_says_what_it_can_where_there_is_no_apptainer(tmp_path, capsys):
    file = write_sif(tmp_path / "a.sif", LABELS)
    assert cli.run(["image", "check", str(file), "--apptainer", "none-here"]) == 0
    assert shlex.quote("none-here") in capsys.readouterr().err
