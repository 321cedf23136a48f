"""Draw the pictures of a report: from arrays to matplotlib figures, and from figures to PNG files.

Pictures hold no names of behaviours. The names are in the page, where a browser can write them in any script. A
behaviour has the same colour everywhere, and the colours differ for colour-blind readers too (Okabe and Ito, 2008);
behaviours that share a colour have different strokes. Sizes are in CSS pixels of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deg.arithmetic.ethogram import LOWEST_THRESHOLD, bouts

PICTURES = "pictures"
"""Name of the folder beside the page."""
BACKGROUND_COLOUR = "#8c8c8c"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c00")
STROKES = ("-", "--", ":", "-.")
TRAIN_COLOUR, VAL_COLOUR, INK, PALE = "#9aa5b1", "#1f2933", "#1f2933", "#d7dce1"

DOTS_PER_PIXEL = 2
"""Pixels of a PNG for each CSS pixel, so that it is sharp on high-resolution screens too."""
STRIP_WIDTH, STRIP_MARGIN = 1000, 26
LANE_HEIGHT, AXIS_HEIGHT, TOP = 48, 38, 4
MOST_COLUMNS = STRIP_WIDTH - 2 * STRIP_MARGIN
"""Largest number of columns in an ethogram strip: more than one per pixel could not be seen."""


def colour(k: int) -> str:
    """Return the colour of class k; 0 is the background."""
    return BACKGROUND_COLOUR if k == 0 else COLOURS[(k - 1) % len(COLOURS)]


def stroke(k: int) -> str:
    """Return the line style of class k; behaviours that share a colour differ in it."""
    return "-" if k == 0 else STROKES[(k - 1) // len(COLOURS) % len(STROKES)]


@dataclass(frozen=True)
class Picture:
    """A PNG, its path from the page, and its size there in pixels."""

    source: str
    width: int
    height: int


@dataclass
class Sketchbook:
    """Writes pictures to PAGE/pictures. Their names are numbers, because a recording may have any name."""

    page_folder: Path
    count: int = 0

    def add(self, kind: str, figure: Figure) -> Picture:
        """Write a figure to a PNG file. Raises OSError if the disk refuses."""
        self.count += 1
        source = f"{PICTURES}/{self.count:05d}_{kind}.png"
        FigureCanvasAgg(figure)
        figure.savefig(self.page_folder / source, format="png", dpi=100 * DOTS_PER_PIXEL, metadata={"Software": None})
        width, height = (round(side * 100) for side in figure.get_size_inches())
        return Picture(source, width, height)


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Panel:
    """One diagram of learning curves: what is on its y axis, and a curve for each series over the epochs."""

    title: str
    train_E: np.ndarray | None = None
    val_E: np.ndarray | None = None
    by_class_EK: np.ndarray | None = None
    log: bool = False


def learning_curves(panels: Sequence[Panel], best_epoch: int | None) -> Figure:
    """Draw panels side by side, with `best_epoch` marked in each."""
    figure = _figure(1180, 250)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        curves = [(panel.train_E, TRAIN_COLOUR, "-"), (panel.val_E, VAL_COLOUR, "-")]
        if panel.by_class_EK is not None:
            curves += [(values, colour(k), stroke(k)) for k, values in enumerate(panel.by_class_EK.T)]
        for values, ink, dashes in curves:
            if values is not None:
                # without markers, a training of one epoch would be a line without length
                axes.plot(values, dashes, color=ink, linewidth=1.8, marker="o" if len(values) < 3 else None)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        if panel.log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, high / 10), max(high, low * 10))  # a decade at least, or the axis has no numbers
        elif panel.by_class_EK is not None:
            axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _dress(axes, title=panel.title, x="epoch")
    figure.tight_layout(pad=0.6, w_pad=1.6)
    return figure


def spans_decades(*series: np.ndarray | None) -> bool:
    """Whether a logarithmic axis suits these values: all are positive, and some are over 30 times others."""
    known = [values[np.isfinite(values)] for values in series if values is not None]
    values = np.concatenate([*known, np.empty(0)])
    return bool(values.size and values.min() > 0 and values.max() > 30 * values.min())


def precision_recall(recall_S: np.ndarray, precision_S: np.ndarray, chosen: int | None, k: int) -> Figure:
    """Draw the precision-recall curve of class k, with the threshold of index `chosen` marked."""
    figure = _figure(210, 200)
    axes = figure.add_subplot()
    # at thresholds where nothing is predicted, precision is 0 by definition; that is not part of the curve
    shown_S = (recall_S > 0) | (precision_S > 0)
    axes.plot(recall_S[shown_S], precision_S[shown_S], color=colour(k), linewidth=1.8)
    if chosen is not None:
        axes.plot(
            recall_S[chosen],
            precision_S[chosen],
            "o",
            color=colour(k),
            markeredgecolor=INK,
            markersize=8,
            clip_on=False,
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    _dress(axes, x="recall", y="precision")
    figure.tight_layout(pad=0.6)
    return figure


# ---------------------------------------------------------------------------------------------------- ethograms


def frames_per_column(num_frames: int) -> int:
    """Return how many frames a column of the strip stands for."""
    return max(1, math.ceil(num_frames / MOST_COLUMNS))


def strip_height(num_classes: int) -> int:
    """Return the height of a strip in CSS pixels."""
    return TOP + LANE_HEIGHT * num_classes + AXIS_HEIGHT


def ethogram_strip(
    probabilities_TK: np.ndarray,
    predictions_TK: np.ndarray,
    labels_TK: np.ndarray | None,
    thresholds: Mapping[int, float],
) -> Figure:
    """Draw a lane for each class, background last: the probability, and below it what was predicted and labelled.

    A column of several frames shows the maximum of each. `thresholds` holds the threshold of each class that has one.
    """
    num_frames, num_classes = probabilities_TK.shape
    starts = np.arange(0, num_frames, frames_per_column(num_frames))
    edges = np.append(starts, num_frames)
    tables = (probabilities_TK, predictions_TK, labels_TK)
    shown = [None if table is None else np.maximum.reduceat(table, starts, axis=0) for table in tables]

    height = strip_height(num_classes)
    figure = _figure(STRIP_WIDTH, height)
    margin = STRIP_MARGIN / STRIP_WIDTH
    axes = figure.add_axes((margin, AXIS_HEIGHT / height, 1 - 2 * margin, LANE_HEIGHT * num_classes / height))
    for lane, k in enumerate(lane_order(num_classes)):
        _draw_lane(axes, lane * LANE_HEIGHT, edges, [None if a is None else a[:, k] for a in shown], k, thresholds)
    axes.set_xlim(0, num_frames)
    axes.set_ylim(LANE_HEIGHT * num_classes, 0)  # the first lane is on top
    axes.set_yticks(
        [lane * LANE_HEIGHT + y for lane in range(num_classes) for y in (HIGH, LOW)], ["1", "0"] * num_classes
    )
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _dress(axes, x="frame")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=3, labelsize=7)
    return figure


def lane_order(num_classes: int) -> list[int]:
    """Return the classes from top to bottom."""
    return [*range(1, num_classes), 0]


HIGH, LOW = 4, 28
"""Heights of the probabilities 1 and 0 in a lane, in pixels from its top."""
PREDICTED, LABELLED, BAR = 31, 38, 5


def _draw_lane(
    axes: Axes,
    top: float,
    edges: np.ndarray,
    shown: Sequence[np.ndarray | None],
    k: int,
    thresholds: Mapping[int, float],
) -> None:
    probabilities, predictions, labels = shown
    assert probabilities is not None and predictions is not None
    base = top + LOW

    def y(probability: np.ndarray) -> np.ndarray:
        return base - (LOW - HIGH) * np.clip(probability, 0, 1)

    axes.axhspan(top + HIGH, base, color="#f4f6f8", linewidth=0)
    axes.stairs(y(probabilities), edges, baseline=base, fill=True, color=colour(k), alpha=0.45, linewidth=0)
    axes.stairs(y(probabilities), edges, baseline=None, color=colour(k), linewidth=0.9)
    if k in thresholds:
        line = y(np.asarray(max(thresholds[k], LOWEST_THRESHOLD)))
        axes.axhline(float(line), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    _draw_bar(axes, top + PREDICTED, edges, predictions == 1, color=colour(k))
    if labels is not None:
        _draw_bar(axes, top + LABELLED, edges, labels == 1, color=INK)
        _draw_bar(axes, top + LABELLED, edges, labels == -1, facecolor="none", edgecolor=INK, hatch="////////")


def _draw_bar(axes: Axes, top: float, edges: np.ndarray, holds: np.ndarray, **look: Any) -> None:
    [found] = bouts(holds[:, None])
    ranges = [(edges[start], edges[end] - edges[start]) for start, end in zip(found.starts, found.ends, strict=True)]
    axes.broken_barh(ranges, (top, BAR), linewidth=0, **look)


# ---------------------------------------------------------------------------------------------------- looks


def _figure(width: int, height: int) -> Figure:
    return Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")


def _dress(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=INK, labelpad=2)
    axes.set_ylabel(y, fontsize=8, color=INK, labelpad=2)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
