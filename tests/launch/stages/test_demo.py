"""`deg demo`: every step in the life of a project, complete and with the real networks."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from deg.launch import cli
from deg.launch.on.local.place import LOCAL
from deg.launch.stages import demo
from deg.launch.stages.chain import ChainReport
from deg.projects.project import create_project
from deg.projects.shapes import BEHAVIORS
from deg.types import Issue

COMMAND = ("demo", "small_demo")
"""The command, as the pages show it."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_trains_infers_and_reports(tmp_path):
    command = [sys.executable, "-m", "deg.launch.cli", *COMMAND, "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    for stage in ("feature_extractor", "sequence"):
        assert list(told["f1"][stage]) == ["background", *BEHAVIORS, "mean"]
        assert min(told["f1"][stage].values()) > 0.8, told["f1"]
    assert (tmp_path / told["report"]).is_file() and len(told["results"]) == 4
    last = ended.stderr[ended.stderr.index("Three networks have learned") :]
    assert told["report"] in last and told["results"][0] in last
    assert len(list((tmp_path / "small_demo").glob("models/*_train"))) == 3


def test_a_demo_that_was_made_resumes_where_it_was_and_ends_with_the_step_that_fails(tmp_path, monkeypatch, capsys):
    create_project(tmp_path / "demo", BEHAVIORS)
    (tmp_path / "demo" / "demo.json").write_text("{}")
    monkeypatch.setattr(demo, "run_chain", lambda request, workers: ChainReport((), 4))
    assert demo.run_demo(tmp_path / "demo", LOCAL)["exit_status"] == 4
    said = [line.split()[2] for line in capsys.readouterr().err.splitlines() if line.startswith("$ deg")]
    assert said == ["check", "run"]


def test_a_demo_whose_check_finds_a_fault_ends_there(tmp_path, monkeypatch, capsys):
    create_project(tmp_path / "demo", BEHAVIORS)
    (tmp_path / "demo" / "demo.json").write_text("{}")
    found = SimpleNamespace(ok=False, issues=[Issue("shapes_0", "error", "it cannot be read")])
    monkeypatch.setattr("deg.projects.check.check_project", lambda *_: found)
    monkeypatch.setattr(demo, "run_chain", lambda request, workers: pytest.fail("the chain was begun"))
    assert demo.run_demo(tmp_path / "demo", LOCAL)["exit_status"] == 1
    assert "error: shapes_0: it cannot be read" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert cli.run(["demo", str(tmp_path)]) == 2
    assert "expected no folder or an empty one" in capsys.readouterr().err
