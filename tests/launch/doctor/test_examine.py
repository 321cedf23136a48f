"""`deg doctor` as users type it, and what follows from its findings."""

from __future__ import annotations

import json

import pytest
from scenes.project import make_project

from deg.launch import cli
from deg.launch.doctor import collective, examine, gpu, job
from deg.launch.findings import Finding, counts, exit_status, implied_profile, profile_text, together

PYTORCH = {
    "torch": "2.15.0",
    "cuda": None,
    "libraries": "torchvision 0.30",
    "seconds": 8.0,
    "arches": [],
    "problem": "",
    "libcuda": "",
    "gpus": [],
    "cpu": {"errors": {"fp32": 1e-7, "bf16": 3e-3}},
}


@pytest.fixture
def quick(monkeypatch):
    """The doctor without PyTorch in other processes, which has tests of its own."""
    monkeypatch.setattr(gpu, "ask_pytorch", lambda: PYTORCH)
    ranks = Finding(collective.CHECK, "ok", "2 ranks on 1 host(s) by gloo")
    monkeypatch.setattr(collective, "check_local_ranks", lambda gpus: ranks)


def test_a_machine_is_examined_line_by_line(quick, tmp_path, capsys):
    assert cli.run(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) > 15 and all(line.startswith(("ok ", "warning ", "not tried ")) for line in lines)
    assert any("rename over a file" in line for line in lines) and " ok, " in said.err


def test_the_document_can_be_pasted_into_an_issue(quick, tmp_path, capsys):
    assert cli.run(["doctor", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["exit_status"] == 0 and document["profile"] == {}
    assert {"check", "state", "found", "expected", "remedy"} <= document["findings"][0].keys()


def test_a_fault_ends_with_status_3(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ask_pytorch", lambda: {"failure": "No module named 'torch'"})
    assert cli.run(["doctor", str(tmp_path)]) == 3
    assert "fault     PyTorch" in capsys.readouterr().out


def test_options_of_the_project_hold(quick, tmp_path, capsys):
    project = make_project(tmp_path / "mice", {"m": 20})
    config = project / "project_config.yaml"
    config.write_text(config.read_text() + f"cluster: {{scratch: {tmp_path}/nowhere}}\n")
    assert cli.run(["doctor", str(config)]) == 3
    assert f"{tmp_path}/nowhere cannot be written to" in capsys.readouterr().out
    assert cli.run(["doctor", str(project), f"cluster.scratch={tmp_path}"]) == 0


def test_what_is_no_folder_is_refused(tmp_path, capsys):
    assert cli.run(["doctor", str(tmp_path / "none")]) == 2
    assert "expected a PROJECT or a folder" in capsys.readouterr().err


def test_no_job_is_submitted_while_the_login_node_has_a_fault(recorder, tmp_path, capsys):
    recorder.refuse("partition=nowhere", "Invalid partition name specified")
    assert cli.run(["doctor", str(tmp_path), "--on", "slurm", "cluster.partition=nowhere"]) == 3
    assert "fix the faults above first" in capsys.readouterr().out
    assert recorder.jobs() == {}


def test_a_job_can_be_left_alone_and_looked_at_later(fake_slurm, tmp_path, monkeypatch, capsys):
    words = ["doctor", str(tmp_path), "--on", "slurm", "--json", "cluster.gpus_per_node=0", "cluster.memory_gb=1"]
    assert cli.run([*words, "cluster.setup=[echo out of order >&2; exit 3]", "--wait", "0"]) == 0
    folder = json.loads(capsys.readouterr().out)["folder"]
    fake_slurm.wait()
    assert cli.run(["doctor", "--job", folder]) == 3
    assert "out of order" in capsys.readouterr().out


def test_a_refused_job_is_a_finding(recorder, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise examine.LaunchError("sbatch refused the job")

    monkeypatch.setattr(job, "submit", refuse)
    assert cli.run(["doctor", str(tmp_path), "--on", "slurm", "--json", "cluster.memory_gb=1"]) == 3
    assert json.loads(capsys.readouterr().out)["findings"][-1]["found"] == "sbatch refused the job"


# ---------------------------------------------------------------------------------------------------------- findings

OK, WARNING = Finding("memory", "ok", "64 GiB"), Finding("cores", "warning", "1", "2 or more", "Ask for more.")
FAULT = Finding("GPUs", "fault", "0 visible", "1", "Ask.", {"gpu_flag": "gres", "requeue": False})


def test_only_a_fault_ends_with_3():
    assert exit_status([OK, WARNING, Finding("quota", "not tried", "none")]) == 0
    assert exit_status([OK, WARNING, FAULT]) == 3


def test_a_finding_is_one_sentence_and_what_to_do():
    assert WARNING.sentence() == "1; expected 2 or more. Ask for more."
    assert OK.sentence() == "64 GiB."


def test_a_finding_comes_back_from_its_document():
    assert Finding.from_dict(json.loads(json.dumps(FAULT.as_dict()))) == FAULT


def test_findings_that_hosts_share_are_told_once():
    def at(host, finding):
        return Finding(**{**finding.as_dict(), "where": host})

    found = together([at("n1", OK), at("n1", FAULT), at("n2", OK), at("n1", OK)])
    assert [(one.check, one.where) for one in found] == [("memory", "n1, n2"), ("GPUs", "n1")]


def test_findings_are_counted():
    assert counts([OK, FAULT, OK]) == "2 ok, 1 fault"


def test_the_profile_is_what_all_findings_imply():
    options = implied_profile([OK, FAULT, Finding("request", "fault", "no", profile={"memory_gb": None})])
    assert profile_text(options) == "cluster:\n  gpu_flag: gres\n  memory_gb: null\n  requeue: false\n"
    assert profile_text({}) == ""
