"""Labels are read correctly, or refused with the place of the fault and the remedy."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deg.data.labels import inspect_labels, is_complete, read_labels, repair, single_positive, write_labels
from deg.errors import LabelError

CLASSES = ("background", "groom", "rear")
LABELS = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [-1, -1, -1]], dtype=np.int8)
PLAIN = ",background,groom,rear\n0,1,0,0\n1,0,1,0\n2,0,1,1\n3,-1,-1,-1\n"


@pytest.fixture
def csv(tmp_path):
    """Writes a label file and returns its path."""

    def write(content: str | bytes, name: str = "m_labels.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def hdf5(tmp_path):
    def write(**datasets):
        path = tmp_path / "m_labels.h5"
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file[name] = values
        return path

    return write


def notes(path, class_names=CLASSES, num_frames=None) -> list[str]:
    return [issue.message for issue in inspect_labels(path, class_names, num_frames)[1]]


# ---- as DeepEthogram writes them


def test_the_ordinary_file(csv):
    labels_TK, issues = inspect_labels(csv(PLAIN), CLASSES, 4)
    assert labels_TK.dtype == np.int8
    assert (labels_TK == LABELS).all()
    assert issues == []


def test_every_label_file_of_the_real_data_reads_as_pandas_reads_it(shared_data):
    paths = sorted(shared_data("data/behaviour").rglob("*.csv"))
    assert len(paths) == 30
    for path in paths:
        table = pd.read_csv(path, index_col=0)
        labels_TK, issues = inspect_labels(path, tuple(table.columns), len(table))
        assert (labels_TK == table.to_numpy()).all()
        assert issues == []


@given(arrays(np.int8, st.tuples(st.integers(1, 20), st.just(3)), elements=st.sampled_from([-1, 0, 1])))
def test_what_is_written_is_read(tmp_path_factory, labels_TK):
    path = tmp_path_factory.mktemp("labels") / "m_labels.csv"
    write_labels(path, labels_TK, CLASSES)
    assert (read_labels(path, CLASSES, len(labels_TK)) == labels_TK).all()
    assert notes(path) == []


def test_the_layout_written_is_that_of_deepethogram(tmp_path, shared_data):
    original = shared_data("data/deg_project_original") / "DATA/field_1/field_1_labels.csv"
    classes = ("background", "move_right", "spin", "jump")
    write_labels(tmp_path / "copy.csv", read_labels(original, classes), classes)
    assert (tmp_path / "copy.csv").read_bytes() == original.read_bytes()


def test_a_clip_shorter_than_the_list_of_behaviours_is_not_turned(csv):
    labels_TK = read_labels(csv(",background,groom,rear\n0,0,1,0\n1,0,0,1\n"), CLASSES, 2)
    assert labels_TK.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_names_in_any_script(csv):
    classes = ("background", "毛づくろい", "größe, links")
    path = csv(',background,毛づくろい,"größe, links"\n0,0,1,0\n')
    assert read_labels(path, classes).tolist() == [[0, 1, 0]]


# ---- read correctly, with a warning


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN + ",,,\n,,,\n\n",
        PLAIN.replace(",1", ",1.0").replace(",0", ",0.0").replace(",-1", ",-1.0"),
        PLAIN.replace(",background", "frame,background"),
        PLAIN.replace(",background", "Unnamed: 0,background"),
        PLAIN.replace("\n0,", "\n0.0,"),
    ],
    ids=["byte order mark", "CRLF", "empty rows at the end", "floats", "frame", "unnamed", "float index"],
)
def test_harmless_variants_need_no_warning(csv, content):
    labels_TK, issues = inspect_labels(csv(content), CLASSES, 4)
    assert (labels_TK == LABELS).all()
    assert issues == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (",rear,background,groom\n0,0,1,0\n1,0,0,1\n2,1,0,1\n3,-1,-1,-1\n", "another order"),
        ("background,groom,rear\n1,0,0\n0,1,0\n0,1,1\n-1,-1,-1\n", "no column of frame numbers"),
        (PLAIN.replace(",", ";"), "commas"),
        (PLAIN.replace(",", ";").replace(";1", ";1,0"), "commas"),
        (PLAIN.replace(",", "\t"), "commas"),
        (PLAIN.replace("background", "none"), "`none` is read as background"),
        (",0,1,2,3\nbackground,1,0,0,-1\ngroom,0,1,1,-1\nrear,0,0,1,-1\n", "behaviours in rows"),
        (",groom,rear\n0,0,0\n1,1,0\n2,1,1\n3,-1,-1\n", "no column `background`"),
        (",background,groom,rear\n1,1,0,0\n2,0,1,0\n3,0,1,1\n4,-1,-1,-1\n", "begin with 1"),
        ("time,background,groom,rear\n0.0,1,0,0\n0.04,0,1,0\n0.08,0,1,1\n0.12,-1,-1,-1\n", "does not hold frame"),
        (",Unnamed: 0,background,groom,rear\n0,0,1,0,0\n1,1,0,1,0\n2,2,0,1,1\n3,3,-1,-1,-1\n", "left out"),
        (PLAIN.replace("\n", ",\n"), "left out"),
    ],
    ids=[
        "reordered", "no index", "semicolons", "decimal commas", "tabs", "none", "turned", "no background",
        "from one", "seconds", "second index", "trailing comma",
    ],
)  # fmt: skip
def test_odd_files_are_read_right_with_a_warning(csv, content, word):
    path = csv(content)
    labels_TK, issues = inspect_labels(path, CLASSES, 4)
    assert (labels_TK == LABELS).all()
    assert [issue.severity for issue in issues] == ["warning"]
    assert word in issues[0].message and "m_labels.csv" in issues[0].message


def test_row_names_without_a_name_over_them(csv):
    """R's write.table leaves that name out."""
    path = csv("background,groom,rear\n0,1,0,0\n1,0,1,0\n2,0,1,1\n3,-1,-1,-1\n")
    assert (read_labels(path, CLASSES) == LABELS).all()


def test_true_and_false(csv):
    assert read_labels(csv(",background,groom\n0,True,False\n1,FALSE,TRUE\n"), CLASSES[:2]).tolist() == [[1, 0], [0, 1]]


def test_a_single_behaviour_gets_its_negation_as_background(csv):
    path = csv(",groom\n0,0\n1,1\n2,-1\n")
    assert read_labels(path, CLASSES[:2]).tolist() == [[1, 0], [0, 1], [-1, -1]]


def test_background_is_unknown_where_something_was_not_looked_at(csv):
    path = csv(",groom,rear\n0,0,-1\n1,1,-1\n")
    assert read_labels(path, CLASSES)[:, 0].tolist() == [-1, 0]


def test_capital_extension_is_read_and_told(csv):
    path = csv(PLAIN, "m_labels.CSV")
    assert (read_labels(path, CLASSES) == LABELS).all()
    assert ".CSV" in notes(path)[0]


# ---- refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("\n\n,,\n", ["empty"]),
        (",background,groom,rear\n", ["no row"]),
        ("0,1,0,0\n1,0,1,0\n", ["line 1", "names"]),
        (",background,groom\n0,1,0\n", ["`rear` missing"]),
        (",background,groom,rear,sniff\n0,1,0,0,0\n", ["`sniff` unknown"]),
        (",background,grooming,rear\n0,1,0,0\n", ["`groom` missing", "`grooming` unknown"]),
        (",a,b,c\n0,1,0,0\n", ["`a`, `b`, `c` unknown"]),
        (",background,groom,groom,rear\n0,1,0,0,0\n", ["2 columns `groom`"]),
        (PLAIN.replace("1,0,1,0", "1,0,0.5,0"), ["line 3", "column `groom`", "0.5", "threshold"]),
        (PLAIN.replace("1,0,1,0", "1,0,2,0"), ["line 3", "column `groom`", "found 2"]),
        (PLAIN.replace("1,0,1,0", "1,0,nan,0"), ["line 3", "column `groom`", "no value", "-1"]),
        (PLAIN.replace("1,0,1,0", "1,0,,0"), ["line 3", "column `groom`", "no value"]),
        (PLAIN.replace("1,0,1,0", "1,0,x,0"), ["line 3", "found x"]),
        (PLAIN.replace("1,0,1,0", "1,0,1"), ["line 3", "column `rear`", "no value"]),
        (PLAIN.replace("1,0,1,0", "1,0,1,0,0,0"), ["unequal length", "line 3"]),
        (PLAIN.replace("\n1,0,1,0", "\n\n1,0,1,0"), ["line 3"]),
        (PLAIN.replace("\n2,", "\n5,"), ["line 4", "frame number 5 follows 1"]),
        (PLAIN.replace("\n2,", "\n1,"), ["line 4", "frame number 1 follows 1"]),
        (",0,1\nbackground,1,0\ngroom,0,1\nrear,0,3\n", ["frame 1, column `rear`", "found 3"]),
        (",0,1\nbackground,1,0\ngroom,0\nrear,0,0\n", ["line 3 has 2"]),
        (b",background,groom,gr\xf6\xdfe\n0,1,0,0\n", ["not UTF-8"]),
        (PLAIN.encode() + b"\0\0\0\0", ["NUL bytes"]),
    ],
)
def test_files_that_cannot_be_read_for_certain_are_refused(csv, content, words):
    path = csv(content)
    with pytest.raises(LabelError) as error:
        read_labels(path, CLASSES)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)
    labels_TK, (issue,) = inspect_labels(path, CLASSES, key="mouse")
    assert labels_TK is None
    assert (issue.key, issue.severity, issue.message) == ("mouse", "error", str(error.value))


BOUTS = np.eye(3, dtype=int)[np.arange(12) // 2 % 3]
"""Return labels in bouts of two frames: background, groom, rear, and again."""


def table(labels_TK=BOUTS, names=CLASSES, **options) -> bytes:
    """Return a CSV as pandas writes it."""
    return pd.DataFrame(labels_TK, columns=list(names)).to_csv(**options).encode()


MESSAGES = {
    "one short": (table(BOUTS[:-1]), "has 12 frames, its labels have 11 rows", "add some (-1 where nobody has looked)"),
    "one long": (table(np.vstack([BOUTS, BOUTS[:1]])), "has 12 frames, its labels have 13 rows", "delete rows there"),
    "half": (table(BOUTS[::2]), "has 12 frames, its labels have 6 rows", "if one frame in 2 was labelled"),
    "missing column": (table(BOUTS[:, :2], CLASSES[:2]), "`rear` missing", "a column of -1"),
    "extra column": (
        table(BOUTS[:, [0, 1, 2, 2]], [*CLASSES, "sleep"]),
        "`sleep` unknown",
        "Rename or remove columns",
    ),
    "no names": (table(header=False), "line 1 holds numbers where the names", "Put a line with the names in front"),
    "probabilities": (
        table(BOUTS * 0.7),
        "line 2, column `background`: expected 1, 0 or -1, found 0.7",
        "a threshold",
    ),
    "NaN": (
        table(np.where(BOUTS == 1, BOUTS, np.nan), na_rep="NaN"),
        "line 4, column `background`: no value",
        "Write 1, 0, or -1",
    ),
    "gap": (table().replace(b"\n7,", b"\n8,"), "frame number 8 follows 6", "Sort the rows"),
    "cut short": (table()[:-4], "line 13, column `groom`: no value", "Write 1, 0, or -1"),
    "UTF-16": (table().decode().encode("utf-16"), "not UTF-8 text", "Save it as CSV UTF-8"),
    "zeros": (table()[:60] + bytes(60), "it was not written to the end", "Restore it from a copy"),
    "empty": (b"", "the file is empty", "Label the video"),
}
"""Label file, problem and remedy."""


def test_every_refusal_names_file_problem_and_remedy_in_one_line(csv):
    wrong = []
    for name, (content, problem, remedy) in MESSAGES.items():
        path = csv(content)
        labels_TK, issues = inspect_labels(path, CLASSES, 12)
        said = "\n".join(f"{issue.severity}: {issue.message}" for issue in issues)
        right = said.startswith(f"error: {path}: ") and problem in said and remedy in said and "\n" not in said
        if not right or labels_TK is not None:
            wrong.append(f"{name}: {said}")
    assert not wrong, "\n".join(wrong)


NOTES = {
    "reordered": (table(BOUTS[:, [2, 0, 1]], ["rear", "background", "groom"]), "put them in the project's order"),
    "transposed": (pd.DataFrame(BOUTS, columns=list(CLASSES)).T.to_csv().encode(), "wants one row per frame"),
    "semicolons": (table(sep=";"), "DeepEthogram wants commas"),
}
"""Label file, and what its owner is told."""


def test_every_warning_tells_what_deepethogram_wants_or_deg_does(csv):
    said = {name: notes(csv(content), num_frames=12) for name, (content, _) in NOTES.items()}
    wrong = [f"{name}: {told}" for name, told in said.items() if len(told) != 1 or NOTES[name][1] not in told[0]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("num_frames", "word"),
    [(5, "at the end"), (3, "at the end"), (8, "one frame in 2 "), (900, "one frame in 225 "), (7, "belong")],
)
def test_labels_must_have_a_row_for_each_frame(csv, num_frames, word):
    with pytest.raises(LabelError, match=f"the video has {num_frames} frames, its labels have 4 rows") as error:
        read_labels(csv(PLAIN), CLASSES, num_frames)
    assert word in str(error.value)


def test_other_formats_and_missing_files_are_refused(tmp_path, csv):
    with pytest.raises(LabelError, match=r"found `\.xlsx`"):
        read_labels(csv(PLAIN, "m_labels.xlsx"), CLASSES)
    with pytest.raises(LabelError, match="No such file"):
        read_labels(tmp_path / "gone_labels.csv", CLASSES)


# ---- HDF5


def test_hdf5_scores_take_precedence_over_labels(hdf5):
    assert (read_labels(hdf5(scores=LABELS.astype(float), labels=LABELS * 0), CLASSES, 4) == LABELS).all()


def test_hdf5_labels(hdf5):
    assert (read_labels(hdf5(labels=LABELS), CLASSES) == LABELS).all()


def test_hdf5_is_turned_if_only_that_fits(hdf5):
    path = hdf5(labels=LABELS.T)
    assert (read_labels(path, CLASSES, 4) == LABELS).all()
    assert "frames lie in columns" in notes(path)[0]


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_hdf5_with_a_single_behaviour(hdf5, shape):
    path = hdf5(labels=np.array([0, 1, -1]).reshape(shape))
    assert read_labels(path, CLASSES[:2], 3).tolist() == [[1, 0], [0, 1], [-1, -1]]


@pytest.mark.parametrize(
    ("datasets", "word"),
    [
        ({"P": LABELS}, "`P`"),
        ({}, "nothing"),
        ({"labels": np.zeros((4, 5))}, "4 x 5"),
        ({"labels": np.zeros((0, 3))}, "0 x 3"),
        ({"labels": np.full((4, 3), 0.5)}, "frame 0, column `background`"),
        ({"labels": np.full((4, 3), np.nan)}, "no value"),
        ({"labels": "text"}, "expected a table of numbers"),
    ],
)
def test_hdf5_that_does_not_fit_is_refused(hdf5, datasets, word):
    with pytest.raises(LabelError, match=word):
        read_labels(hdf5(**datasets), CLASSES)


def test_a_truncated_hdf5_file_is_refused(hdf5):
    path = hdf5(labels=np.zeros((1000, 3)))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(path, CLASSES)


# ---- before training


def test_complete_means_that_every_frame_was_looked_at():
    assert not is_complete(LABELS)
    assert is_complete(LABELS[:3])


def test_frames_where_nothing_is_marked_become_background():
    repaired = repair(np.array([[0, 0, 0], [0, 1, 1], [-1, -1, -1], [1, 0, 0]], dtype=np.int8))
    assert repaired.tolist() == [[1, 0, 0], [0, 1, 1], [-1, -1, -1], [1, 0, 0]]


@given(
    arrays(np.int8, st.tuples(st.integers(1, 30), st.integers(2, 5)), elements=st.sampled_from([-1, 0, 1])),
    st.integers(0, 9),
)
def test_one_positive_stays_of_several(labels_TK, seed):
    single_TK = single_positive(labels_TK, np.random.default_rng(seed))
    several = (labels_TK == 1).sum(axis=1) > 1
    assert (single_TK[~several] == labels_TK[~several]).all()
    assert ((single_TK[several] == 1).sum(axis=1) == 1).all()
    assert (labels_TK[single_TK == 1] == 1).all()
    assert (single_positive(labels_TK, np.random.default_rng(seed)) == single_TK).all()


def test_exactly_one_frame_with_several_positives():
    single_TK = single_positive(LABELS, np.random.default_rng(0))
    assert single_TK[2].sum() == 1


def test_each_of_several_positives_may_stay():
    labels_TK = np.ones((1000, 2), dtype=np.int8)
    share = single_positive(labels_TK, np.random.default_rng(0))[:, 0].mean()
    assert 0.4 < share < 0.6
