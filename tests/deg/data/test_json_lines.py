"""Lines of JSON that are added one at a time."""

from __future__ import annotations

from deg.data.json_lines import append_line, read_lines


def test_what_is_not_there_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "events.jsonl") == []


def test_a_torn_line_harms_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 0}, alone=True)
    path.write_text(path.read_text() + '{"epoch": 1, "tr')
    append_line(path, {"epoch": 1}, alone=True)
    assert read_lines(path) == [{"epoch": 0}, {"epoch": 1}]
