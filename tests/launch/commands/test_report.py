"""`deg report` as people call it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import deg
from lab_report import Page, make_reported_lab

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path):
    return make_reported_lab(tmp_path / "lab")


def test_a_report_is_written_into_the_project(lab):
    answer = deg("report", lab, "--json")
    page = Path(answer.json["page"])
    assert answer.status == 0 and page.parent.parent == lab / "reports"
    assert answer.json["recordings"] == ["bad", "accurate", "another"] and not answer.json["failed"]
    assert all(Path(path).exists() for path in answer.json["pictures"])
    assert "bad" in Page(page).text


def test_or_where_one_says(lab, tmp_path):
    answer = deg("report", lab / "models/261122_100000_sequence_train", "--to", "here", cwd=tmp_path)
    assert answer.status == 0 and (tmp_path / "here/index.html").is_file()
    assert not (lab / "reports").exists()


def test_recordings_that_cannot_be_drawn_are_told(lab):
    (lab / "DATA/accurate/accurate_outputs.h5").unlink()
    answer = deg("report", lab, "--json")
    assert answer.status == 1 and list(answer.json["failed"]) == ["accurate"]
    assert "accurate: NOT DRAWN" in answer.told and Path(answer.json["page"]).exists()


def test_what_is_no_project_is_refused(tmp_path):
    answer = deg("report", tmp_path, "--json")
    assert answer.status == 2 and "project_config.yaml" in answer.json["error"]
    assert deg("report").status == 2
