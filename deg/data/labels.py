"""Label files: one row per frame, one column per behaviour. 1: it happens, 0: it does not, -1: nobody has looked yet.

DeepEthogram reads them by position and trusts them. Here the header decides: columns are found by their names, a matrix
whose names show that it is transposed is turned, and what cannot be read for certain is refused.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from deg.data.atomic import write_atomically
from deg.errors import LabelError, show_path
from deg.types import Issue

if TYPE_CHECKING:
    import pandas as pd  # imported where a file is read or written: it takes half the time in which `deg` starts

BACKGROUND = "background"
UNLABELLED = -1

_NO_LABEL = 9
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NO_NAME = re.compile(r"|unnamed: \d+(\.\d+)?", re.IGNORECASE)
_FRAME_NUMBERS = re.compile(_NO_NAME.pattern + r"|index|frames?|frame[ _]?(number|index|no\.?)|time", re.IGNORECASE)
"""Names that people and programs give the column of frame numbers, if they give it any."""


def read_labels(path: Path, class_names: Sequence[str], num_frames: int | None = None) -> np.ndarray:
    """Read labels as int8 (T, K) of 1, 0 and -1, with columns in the order of `class_names`.

    Raises LabelError, naming file, line, column and remedy, if the file cannot be read for certain or does not have
    `num_frames` rows.
    """
    return _read(path, class_names, num_frames)[0]


def inspect_labels(
    path: Path, class_names: Sequence[str], num_frames: int | None = None, *, key: str = ""
) -> tuple[np.ndarray | None, list[Issue]]:
    """Read labels, None where `read_labels` would raise. Also return all that the owner of the file should know."""
    try:
        labels_TK, notes = _read(path, class_names, num_frames)
    except LabelError as error:
        return None, [Issue(key, "error", str(error))]
    return labels_TK, [Issue(key, "warning", f"{show_path(path)}: {note}.") for note in notes]


def write_labels(path: Path, labels_TK: np.ndarray, class_names: Sequence[str]) -> None:
    """Write labels, or predictions of 0 and 1, like DeepEthogram: integers after an unnamed column of frame numbers."""
    if labels_TK.ndim != 2 or labels_TK.shape[1] != len(class_names):
        raise ValueError(f"expected one column for each of {len(class_names)} classes, got shape {labels_TK.shape}")
    import pandas as pd

    table = pd.DataFrame(np.asarray(labels_TK, dtype=np.int8), columns=list(class_names))
    write_atomically(path, table.to_csv(lineterminator="\n"))


def is_complete(labels_TK: np.ndarray) -> bool:
    """Whether every frame was looked at; supervised training takes only such recordings."""
    return bool((labels_TK != UNLABELLED).all())


def repair(labels_TK: np.ndarray) -> np.ndarray:
    """Mark background in frames where nothing else is marked; frames that nobody has looked at stay as they are."""
    repaired_TK = labels_TK.copy()
    repaired_TK[(labels_TK == 0).all(axis=1), 0] = 1
    return repaired_TK


def single_positive(labels_TK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep one class, drawn at random, where several are marked: for classes that exclude each other."""
    single_TK = labels_TK.copy()
    rows = np.flatnonzero((labels_TK == 1).sum(axis=1) > 1)
    lots = np.where(labels_TK[rows] == 1, rng.random((len(rows), labels_TK.shape[1])), -1.0)
    single_TK[rows] = 0
    single_TK[rows, lots.argmax(axis=1)] = 1
    return single_TK


def _read(path: Path, class_names: Sequence[str], num_frames: int | None) -> tuple[np.ndarray, list[str]]:
    """Read the labels, and note what is odd about the file but does not make it unreadable."""
    try:
        if path.suffix.lower() == ".csv":
            labels_TK, notes = _read_csv(path, list(class_names))
        elif path.suffix.lower() in (".h5", ".hdf5"):
            labels_TK, notes = _read_hdf5(path, list(class_names))
        else:
            raise _error(
                path, f"expected labels in a .csv or .h5 file, found `{path.suffix}`", "Save them as CSV UTF-8."
            )
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror or error})", "Restore the file.") from error
    if num_frames is not None and len(labels_TK) != num_frames:
        problem = f"the video has {num_frames} frames, its labels have {len(labels_TK)} rows"
        raise _error(path, problem, _length_remedy(len(labels_TK), num_frames) + ".")
    if path.suffix not in (".csv", ".h5"):
        right = ".csv" if path.suffix.lower() == ".csv" else ".h5"
        notes.append(f"DeepEthogram does not read `{path.suffix}` files. Rename it to `{right}`")
    return labels_TK, notes


def _length_remedy(rows: int, frames: int) -> str:
    remedy = "Check that these labels belong to this video, and that it was not cut, converted or damaged since"
    if abs(rows - frames) <= 2:
        return f"{remedy}; if they differ only at the end, delete rows there, or add some (-1 where nobody has looked)"
    if frames % rows == 0:
        return f"{remedy}; if one frame in {frames // rows} was labelled, write a row for each frame"
    return remedy


def _background(others_TK: np.ndarray) -> np.ndarray:
    """Return background where nothing else happens, -1 where nothing is marked but something was not looked at."""
    background_T = (~(others_TK == 1).any(axis=1)).astype(np.int8)
    background_T[(background_T == 1) & (others_TK == UNLABELLED).any(axis=1)] = UNLABELLED
    return background_T


# Tables with names over the columns


@dataclass(frozen=True)
class _Table:
    """A CSV file, one row per frame, its cells still text."""

    names: list[str]
    columns: list[pd.Categorical]
    turned: bool = False

    def place(self, row: int) -> str:
        return f"frame {row}" if self.turned else f"line {row + 2}"


def _read_csv(path: Path, class_names: list[str]) -> tuple[np.ndarray, list[str]]:
    table, notes = _parse(path)
    column_of = _find_columns(path, table.names, class_names, notes)
    first = min(column_of.values())
    if first == 0:
        notes.append(
            "there is no column of frame numbers in front; DeepEthogram takes the first behaviour for it. "
            "Add such a column, without a name"
        )
    else:
        notes += _judge_frame_numbers(path, table)
    labels_TK = np.empty((len(table.columns[0]), len(class_names)), dtype=np.int8)
    for k, name in enumerate(class_names):
        if name in column_of:
            labels_TK[:, k] = _values(path, table, column_of[name])
    if class_names[0] not in column_of:
        labels_TK[:, 0] = _background(labels_TK[:, 1:])
    return labels_TK, notes


def _parse(path: Path) -> tuple[_Table, list[str]]:
    import pandas as pd

    text = _text(path)
    header = text.splitlines()[0]
    delimiter = max(",;\t", key=header.count)
    notes = (
        [] if delimiter == "," else ["values are not separated by commas; DeepEthogram wants commas. Save it as CSV"]
    )
    names = next(_cells([header], delimiter))
    if all(_is_number(name) for name in names):
        raise _error(
            path,
            "line 1 holds numbers where the names of the behaviours were expected",
            "Put a line with the names in front (DeepEthogram takes the first line for the names and loses a frame).",
        )
    if len(names) > 1 and all(_is_number(name) for name in names[1:]):
        notes.append("frames lie in columns and behaviours in rows; DeepEthogram wants one row per frame")
        return _parse_turned(path, text, delimiter), notes
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=None,
            skiprows=1,
            dtype="category",
            keep_default_na=False,
            skip_blank_lines=False,
        )
    except pd.errors.EmptyDataError as error:
        raise _error(path, "there are names, but no row of labels", "Label the video, or remove the file.") from error
    except pd.errors.ParserError as error:
        problem = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise _error(path, f"rows of unequal length ({problem})", "Give each row one value per column.") from error
    if frame.shape[1] == len(names) + 1:
        names = ["", *names]  # R leaves out the name over the row numbers
    if frame.shape[1] != len(names):
        raise _error(
            path,
            f"line 1 names {len(names)} columns, line 2 has {frame.shape[1]}",
            "Give each row one value per column.",
        )
    return _Table(names, [column.cat.rename_categories(str).array for _, column in frame.items()]), notes


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(path, f"not UTF-8 text (byte {error.start})", "Save it as CSV UTF-8.") from error
    if "\0" in text:
        raise _error(path, "holds NUL bytes: it was not written to the end", "Restore it from a copy.")
    lines = text.splitlines()
    while lines and not lines[-1].strip(" ,;\t"):
        lines.pop()  # spreadsheets leave rows of separators behind
    if not lines:
        raise _error(path, "the file is empty", "Label the video, or remove the file.")
    return "\n".join(lines)


def _parse_turned(path: Path, text: str, delimiter: str) -> _Table:
    import pandas as pd

    rows = list(_cells(text.splitlines(), delimiter))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise _error(
                path,
                f"line 1 has {len(rows[0])} values, line {number} has {len(row)}",
                "Give each row one value per column.",
            )
    return _Table([row[0] for row in rows], [pd.Categorical(row[1:]) for row in rows], turned=True)


def _find_columns(path: Path, names: list[str], class_names: list[str], notes: list[str]) -> dict[str, int]:
    """Return the column of each class. Only the background's column may be missing."""
    if class_names[0] == BACKGROUND and BACKGROUND not in names and "none" in names and "none" not in class_names:
        names = [BACKGROUND if name == "none" else name for name in names]
        notes.append("column `none` is read as background")
    found = [name for name in names if name in class_names]
    missing = [name for name in class_names if name not in found]
    unknown = [name for i, name in enumerate(names) if name not in class_names and not _counts_frames(name, i)]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise _error(path, f"there are {found.count(twice)} columns `{twice}`", "Keep one.")
    if unknown or len(missing) == len(class_names) or missing not in ([], [BACKGROUND]):
        raise _error(
            path,
            f"expected the columns {_quoted(class_names)}, "
            + " and ".join(
                [f"{_quoted(missing)} missing"] * bool(missing) + [f"{_quoted(unknown)} unknown"] * bool(unknown)
            ),
            "Rename or remove columns until they are the project's classes; a behaviour that nobody has looked for is "
            "a column of -1.",
        )
    if missing:
        notes.append(
            "there is no column `background`; frames where nothing else happens are taken for it. DeepEthogram wants "
            "the column"
        )
    if found != [name for name in class_names if name in found]:
        notes.append(
            f"columns are in another order than the project's {_quoted(class_names)}; they are read by name. "
            "DeepEthogram goes by position and mixes them up: put them in the project's order"
        )
    if extra := [name for i, name in enumerate(names[1:], start=1) if name not in class_names]:
        notes.append(f"columns {_quoted(extra)} are left out; DeepEthogram takes them for behaviours. Remove them")
    return {name: names.index(name) for name in found}


def _counts_frames(name: str, position: int) -> bool:
    return bool(_FRAME_NUMBERS.fullmatch(name)) if position == 0 else bool(_NO_NAME.fullmatch(name))


def _judge_frame_numbers(path: Path, table: _Table) -> list[str]:
    """Refuse frame numbers that contradict the order of the rows, which decides. Return notes about them."""
    import pandas as pd

    texts = table.columns[0]
    numbers = np.append(pd.to_numeric(pd.Series(texts.categories, dtype=object), errors="coerce"), np.nan)[texts.codes]
    if not np.isfinite(numbers).all() or (numbers % 1).any():
        return ["the first column does not hold frame numbers; rows are taken in the order in which they stand"]
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    if len(breaks):
        row = int(breaks[0]) + 1
        raise _error(
            path,
            f"{table.place(row)}: frame number {numbers[row]:.0f} follows {numbers[row - 1]:.0f}",
            "Sort the rows and write one for each frame (-1 where nobody has looked), numbered from 0.",
        )
    if numbers[0] != 0:
        return [f"frame numbers begin with {numbers[0]:.0f}, not 0; the first row is taken for the first frame"]
    return []


def _values(path: Path, table: _Table, column: int) -> np.ndarray:
    texts = table.columns[column]
    meaning = np.array(
        [*map(_value, texts.categories), _NO_LABEL], dtype=np.int8
    )  # the last for missing cells, code -1
    values_T = meaning[texts.codes]
    wrong = np.flatnonzero(values_T == _NO_LABEL)
    if len(wrong):
        row = int(wrong[0])
        raise _wrong_value(path, f"{table.place(row)}, column `{table.names[column]}`", texts[row])
    return values_T


def _value(text: str) -> int:
    """Parse one cell: also 1.0 as other programs write it, 1,0 as spreadsheets do in half of Europe, and True."""
    text = text.strip().lower()
    if text in ("true", "false"):
        return int(text == "true")
    number = float(text.replace(",", ".")) if _is_number(text) else _NO_LABEL
    return int(number) if number in (1, 0, UNLABELLED) else _NO_LABEL


def _wrong_value(path: Path, place: str, value: object) -> LabelError:
    text = "" if isinstance(value, float) and np.isnan(value) else str(value).strip()
    if text.lower() in ("", "nan", "na", "null", "none"):
        return _error(path, f"{place}: no value", "Write 1, 0, or -1 where nobody has looked.")
    remedy = "Write 1, 0, or -1 where nobody has looked"
    if _is_number(text) and 0 < float(text.replace(",", ".")) < 1:
        remedy += "; probabilities must be compared with a threshold first"
    return _error(path, f"{place}: expected 1, 0 or -1, found {text}", remedy + ".")


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip()))


def _cells(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return ([cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter))


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(f"`{name}`" for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _error(path: Path, problem: str, remedy: str) -> LabelError:
    return LabelError(f"{show_path(path)}: {problem}. {remedy}")


# HDF5, which has no names


def _read_hdf5(path: Path, class_names: list[str]) -> tuple[np.ndarray, list[str]]:
    with h5py.File(path, "r") as file:
        dataset = next((file[name] for name in ("scores", "labels") if name in file), None)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in (1, 2) or dataset.dtype.kind not in "biuf":
            raise _error(
                path,
                f"expected a table of numbers, dataset `scores` or `labels`, found {_quoted(file) or 'nothing'}",
                "Save the labels as CSV.",
            )
        values = np.atleast_2d(dataset[()].T).T
    notes = []
    columns = len(class_names)
    alone = columns == 2 and class_names[0] == BACKGROUND and 1 in values.shape
    if (values.shape[1] != columns and values.shape[0] == columns) or (alone and values.shape[1] > columns):
        values = values.T
        notes.append("frames lie in columns and behaviours in rows; DeepEthogram turns that only for longer videos")
    if alone and values.shape[1] == 1:
        behaviour_T1 = _checked(path, values, class_names[1:])
        return np.column_stack([_background(behaviour_T1), behaviour_T1]), notes
    if values.shape[1] != columns or not len(values):
        raise _error(
            path,
            f"expected a row for each frame and {columns} columns ({_quoted(class_names)}), found {len(values)} x "
            f"{values.shape[1]}",
            "Save the labels as CSV.",
        )
    return _checked(path, values, class_names), notes


def _checked(path: Path, values_TK: np.ndarray, names: list[str]) -> np.ndarray:
    wrong = np.argwhere(~np.isin(values_TK, (1, 0, UNLABELLED)))
    if len(wrong):
        row, column = wrong[0]
        raise _wrong_value(path, f"frame {row}, column `{names[column]}`", values_TK[row, column])
    return values_TK.astype(np.int8)
