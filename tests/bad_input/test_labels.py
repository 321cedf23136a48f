"""Label files that cannot be read with certainty are refused by name; files that only look odd are read correctly.

The messages about all other label files are tested in tests/deg/data/test_labels.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import check
from scenes.project import CLASSES, add_good, make_project, place, write_results

pytestmark = pytest.mark.slow

FRAMES = 12
LABELS = np.eye(3, dtype=int)[np.arange(FRAMES) // 2 % 3]
"""Return labels in bouts of two frames: background, groom, rear, and again."""


def csv(labels_TK=LABELS, names=CLASSES, **options) -> bytes:
    return pd.DataFrame(labels_TK, columns=list(names)).to_csv(**options).encode()


REFUSED = {
    "half": (csv(LABELS[::2]), "has 12 frames, its labels have 6 rows", "if one frame in 2 was labelled"),
    "missing_column": (csv(LABELS[:, :2], CLASSES[:2]), "`rear` missing", "a column of -1"),
    "nan": (
        csv(np.where(LABELS == 1, LABELS, np.nan), na_rep="NaN"),
        "line 4, column `background`: no value",
        "Write 1, 0, or -1",
    ),
}
"""Label file, problem and remedy."""

READ = {
    "plain": (csv(), None),
    "byte_order_mark": (b"\xef\xbb\xbf" + csv(), None),
    "transposed": (pd.DataFrame(LABELS, columns=list(CLASSES)).T.to_csv().encode(), "wants one row per frame"),
}
"""Label file, and what its owner is told."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A project with a recording for each label file, kept as it came."""
    lab = make_project(tmp_path_factory.mktemp("labels") / "lab")
    video = add_good(lab, "unlabelled", FRAMES)
    for key, (content, *_) in {**REFUSED, **READ}.items():
        shutil.copy(video, place(lab, key))
        label_file(lab, key).write_bytes(content)
    return lab


def label_file(lab: Path, key: str) -> Path:
    return lab / "DATA" / key / f"{key}_labels.csv"


def test_check_names_file_problem_and_remedy_and_what_is_odd(lab, in_process):
    said = check(lab)
    for key, (_, problem, remedy) in REFUSED.items():
        assert said[key].startswith(f"error: {label_file(lab, key)}: "), key
        assert problem in said[key] and remedy in said[key] and said[key].count("\n") == 1, key
    for key, (_, note) in READ.items():
        assert (key not in said) if note is None else said[key].startswith("warning: ") and note in said[key]


def test_add_names_the_bad_ones_and_takes_the_others_as_deepethogram_reads_them(lab, in_process, tmp_path):
    project = make_project(tmp_path / "lab")
    words: list[object] = []
    for key in {**REFUSED, **READ}:
        words += [place(lab, key), "--labels", label_file(lab, key)]
    answer = in_process("add", project, *words, "--json")
    assert answer.status == 1
    assert set(answer.json["added"]) == set(READ) == {path.name for path in (project / "DATA").iterdir()}
    assert all(label_file(project, key).read_bytes() == csv() for key in READ)
    assert set(answer.json["failed"]) == {str(place(lab, key)) for key in REFUSED}
    for key, (_, problem, remedy) in REFUSED.items():
        reason = answer.json["failed"][str(place(lab, key))]
        assert f"{key}_labels.csv: " in reason and problem in reason and remedy in reason and "\n" not in reason


def test_export_learns_bout_lengths_from_readable_labels_alone(lab, in_process):
    for key in ("plain", "half"):
        write_results(lab / "DATA" / key / f"{key}_outputs.h5", FRAMES)
    answer = in_process("export", lab, "postprocessor.type=min_bout_per_behavior", "--json", "--videos", "plain")
    assert answer.status == 0 and set(answer.json["written"]) == {"plain"}
    assert f"labels left out: {label_file(lab, 'nan')}" in answer.told
    assert "plain_labels.csv" not in answer.told and "transposed_labels.csv" not in answer.told
