"""Cluster profiles that are no good, met by the real commands: a message with the file and what to do, status 2."""

from __future__ import annotations

import json

import pytest
from scenes.project import make_project

from deg.launch import cli


@pytest.fixture
def answer(tmp_path, monkeypatch, capsys):
    """`answer(name)`: what `deg check` of a project says when it is given that profile."""
    monkeypatch.setenv("DEG_CLUSTERS", str(tmp_path / "clusters"))
    (tmp_path / "clusters").mkdir()
    project = make_project(tmp_path / "mice", {"m": 20})

    def check(name):
        assert cli.run(["check", str(project), f"cluster={name}", "--json"]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return json.loads(said.out)["error"]

    return check


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cluster:\n  partition: gpu\n time: 1\n", "line 3"),
        (b"cluster: [partition\n", "not valid YAML"),
        (b"- partition\n", "expected `key: value` lines"),
        (b"\x7fELF\x02\x01\x01\x00\xff", "not UTF-8 text"),
        (b"cluster: {partition: gpu\x00}\n", "not valid YAML"),
        (b"cluster: {profile: site}\n", "cannot name another one"),
        (b"cluster: {partiton: gpu}\n", "Did you mean cluster.partition"),
        (b"partition: gpu\n", "Did you mean cluster.partition?"),
        (b"cluster: {time: 4 hours}\n", "expected a time limit"),
        (b"cluster: {memory_gb: 32G}\n", "cluster.memory_gb = 32G"),
        (b"cluster: {gpus_per_node: a100:2}\n", "expected a whole number or null"),
        (b"cluster: {gpu_flag: null}\n", "expected gpus_per_node, gres or gpus"),
        (b"cluster: {modules: apptainer}\n", "expected a list of texts"),
        (b"cluster: {requeue: 1}\n", "expected true or false"),
        (b"cluster: {sbatch: [--mem=0]}\n", "without their dashes"),
        (b"cluster: {sbatch: [mail-type: END]}\n", "expected a list of texts"),
        (b"cluster: {setup: ['export X=${HOME}']}\n", "a reference ${...} that cannot be resolved"),
        (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_profile_of_nonsense(answer, tmp_path, content, said):
    (tmp_path / "clusters" / "site.yaml").write_bytes(content)
    assert said in answer("site")


@pytest.mark.parametrize("name", ["", "sites", "../clusters/no.yaml", "clusters", "no.yaml", "~nobody/x.yaml"])
def test_a_profile_that_is_not_there(answer, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clusters" / "site.yaml").write_text("cluster: {}\n")
    said = answer(name or "''")
    assert f"cluster = {name!r}: " in said and "deg cluster init" in said


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone.yaml")])
def test_a_profile_that_is_no_file(answer, tmp_path, make):
    make(tmp_path / "clusters" / "site.yaml")
    assert "site.yaml: cannot be read" in answer("site")
