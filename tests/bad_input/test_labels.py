"""Label files that cannot be read for certain are refused by name; those that can only look odd are read right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import check, deg
from scenes.project import CLASSES, add_good, make_project, place, write_results

FRAMES = 12
LABELS = np.eye(3, dtype=int)[np.arange(FRAMES) // 2 % 3]
"""Bouts of two frames: background, groom, rear and over again."""


def csv(labels_TK=LABELS, names=CLASSES, **options) -> bytes:
    return pd.DataFrame(labels_TK, columns=list(names)).to_csv(**options).encode()


REFUSED = {
    "one_short": (csv(LABELS[:-1]), "has 12 frames, its labels have 11 rows", "add some (-1 where nobody has looked)"),
    "one_long": (csv(np.vstack([LABELS, LABELS[:1]])), "has 12 frames, its labels have 13 rows", "delete rows there"),
    "half": (csv(LABELS[::2]), "has 12 frames, its labels have 6 rows", "if one frame in 2 was labelled"),
    "missing_column": (csv(LABELS[:, :2], CLASSES[:2]), "`rear` missing", "a column of -1"),
    "extra_column": (csv(LABELS[:, [0, 1, 2, 2]], [*CLASSES, "sleep"]), "`sleep` unknown", "Rename or remove columns"),
    "no_names": (csv(header=False), "line 1 holds numbers where the names", "Put a line with the names in front"),
    "probabilities": (csv(LABELS * 0.7), "line 2, column `background`: expected 1, 0 or -1, found 0.7", "a threshold"),
    "nan": (
        csv(np.where(LABELS == 1, LABELS, np.nan), na_rep="NaN"),
        "line 4, column `background`: no value",
        "Write 1, 0, or -1",
    ),
    "gap": (csv().replace(b"\n7,", b"\n8,"), "frame number 8 follows 6", "Sort the rows"),
    "cut_short": (csv()[:-4], "line 13, column `groom`: no value", "Write 1, 0, or -1"),
    "utf16": (csv().decode().encode("utf-16"), "not UTF-8 text", "Save it as CSV UTF-8"),
    "zeros": (csv()[:60] + bytes(60), "it was not written to the end", "Restore it from a copy"),
    "empty": (b"", "the file is empty", "Label the video"),
}
"""File, problem and remedy."""

READ = {
    "plain": (csv(), None),
    "reordered": (csv(LABELS[:, [2, 0, 1]], ["rear", "background", "groom"]), "put them in the project's order"),
    "byte_order_mark": (b"\xef\xbb\xbf" + csv(), None),
    "crlf": (csv(lineterminator="\r\n"), None),
    "floats": (csv(LABELS.astype(float)), None),
    "transposed": (pd.DataFrame(LABELS, columns=list(CLASSES)).T.to_csv().encode(), "wants one row per frame"),
    "semicolons": (csv(sep=";"), "DeepEthogram wants commas"),
}
"""File, and what its owner is told."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A project with a recording for each file, labelled as it came."""
    lab = make_project(tmp_path_factory.mktemp("labels") / "lab")
    video = add_good(lab, "unlabelled", FRAMES)
    for key, (content, *_) in {**REFUSED, **READ}.items():
        shutil.copy(video, place(lab, key))
        (lab / "DATA" / key / f"{key}_labels.csv").write_bytes(content)
    return lab


@pytest.fixture(scope="module")
def checked(lab):
    return check(lab)


@pytest.fixture(scope="module")
def added(tmp_path_factory, lab):
    """A project to which all were added by one command, and its answer."""
    project = make_project(tmp_path_factory.mktemp("added") / "lab")
    words: list[object] = []
    for key in {**REFUSED, **READ}:
        words += [place(lab, key), "--labels", lab / "DATA" / key / f"{key}_labels.csv"]
    return project, deg("add", project, *words, "--json")


@pytest.mark.parametrize("key", REFUSED)
def test_check_names_file_problem_and_remedy(lab, checked, key):
    _, problem, remedy = REFUSED[key]
    assert checked[key].startswith(f"error: {lab}/DATA/{key}/{key}_labels.csv: ")
    assert problem in checked[key] and remedy in checked[key]
    assert checked[key].count("\n") == 1


@pytest.mark.parametrize("key", READ)
def test_check_tells_what_is_odd_about_labels_that_can_be_read(checked, key):
    _, note = READ[key]
    assert (key not in checked) if note is None else checked[key].startswith("warning: ") and note in checked[key]


def test_add_takes_the_readable_ones_and_ends_with_status_1(added):
    project, answer = added
    assert set(answer.json["added"]) == set(READ) == {path.name for path in (project / "DATA").iterdir()}
    assert {Path(video).stem for video in answer.json["failed"]} == set(REFUSED)
    assert answer.status == 1


@pytest.mark.parametrize("key", REFUSED)
def test_add_names_file_problem_and_remedy(lab, added, key):
    _, problem, remedy = REFUSED[key]
    reason = added[1].json["failed"][str(place(lab, key))]
    assert f"{key}_labels.csv: " in reason and problem in reason and remedy in reason and "\n" not in reason


@pytest.mark.parametrize("key", READ)
def test_add_writes_labels_as_deepethogram_reads_them(added, key):
    assert (added[0] / "DATA" / key / f"{key}_labels.csv").read_bytes() == csv()


def test_export_learns_bout_lengths_from_readable_labels_alone(lab):
    for key in ("plain", "half"):
        write_results(lab / "DATA" / key / f"{key}_outputs.h5", FRAMES)
    answer = deg("export", lab, "postprocessor.type=min_bout_per_behavior", "--json", "--videos", "plain")
    assert answer.status == 0 and set(answer.json["written"]) == {"plain"}
    assert f"labels left out: {lab}/DATA/nan/nan_labels.csv" in answer.told
    assert "plain_labels.csv" not in answer.told and "transposed_labels.csv" not in answer.told
