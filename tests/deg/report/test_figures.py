"""Pictures show what the arrays say; their pixels are examined."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from deg.report import figures
from deg.report.figures import colour, ethogram_strip, frames_per_column, lane_order, stroke


def pixels(figure) -> np.ndarray:
    """Return a picture as uint8 (height, width, 3), with one entry per pixel of the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def shows(image: np.ndarray, hex_colour: str) -> np.ndarray:
    """Return where the image has that colour."""
    return (np.abs(image.astype(int) - np.round(255 * np.array(to_rgb(hex_colour)))) <= 8).all(axis=-1)


def columns_of_bar(image: np.ndarray, lane: int, y: int, hex_colour: str) -> np.ndarray:
    """Return the x of the bar's pixels, as fractions of the axis, at a height within a lane."""
    row = image[figures.TOP + lane * figures.LANE_HEIGHT + y]
    width = figures.STRIP_WIDTH - 2 * figures.STRIP_MARGIN
    return (np.flatnonzero(shows(row, hex_colour)) + 0.5 - figures.STRIP_MARGIN) / width


PREDICTED, LABELLED = figures.PREDICTED + 2, figures.LABELLED + 2


@pytest.fixture(scope="module")
def strip():
    """A strip of 100 frames and three classes; class 1 is predicted in [20, 40) and labelled in [30, 50)."""
    predictions_TK, labels_TK = np.zeros((100, 3), np.uint8), np.zeros((100, 3), np.int8)
    predictions_TK[20:40, 1] = labels_TK[30:50, 1] = 1
    labels_TK[80:] = -1
    probabilities_TK = np.where(predictions_TK, 0.9, 0.1).astype(np.float32)
    return pixels(ethogram_strip(probabilities_TK, predictions_TK, labels_TK, {1: 0.5, 2: 0.5}))


def test_predictions_and_labels_are_drawn_at_their_frames(strip):
    predicted = columns_of_bar(strip, 0, PREDICTED, colour(1))
    labelled = columns_of_bar(strip, 0, LABELLED, figures.INK)
    assert (predicted.min(), predicted.max()) == pytest.approx((0.2, 0.4), abs=0.003)
    labelled = labelled[labelled < 0.75]
    assert (labelled.min(), labelled.max()) == pytest.approx((0.3, 0.5), abs=0.003)


def test_frames_that_nobody_has_looked_at_are_hatched(strip):
    top = figures.TOP + figures.LANE_HEIGHT + figures.LABELLED
    block = strip[top : top + figures.BAR, :, 0]
    x = (np.flatnonzero((block < 160).any(axis=0)) - figures.STRIP_MARGIN) / figures.MOST_COLUMNS
    assert x.min() == pytest.approx(0.8, abs=0.01) and x.max() == pytest.approx(1.0, abs=0.01)


def test_probability_is_as_high_as_it_is(strip):
    """Class 1 has 0.9 in frame 25 and 0.1 in frame 70: that is the height of the filled part above the line of 0."""
    high, low = figures.HIGH, figures.LOW
    for frame, probability in ((25, 0.9), (70, 0.1)):
        x = round(figures.STRIP_MARGIN + (frame + 0.5) / 100 * figures.MOST_COLUMNS)
        column = strip[figures.TOP + high : figures.TOP + low, x].astype(int)
        filled = (column[:, 2] - column[:, 0] > 40).sum()  # bluish, unlike the pale ground and the black line
        assert filled / (low - high) == pytest.approx(probability, abs=0.1)


def test_a_single_frame_in_a_long_recording_is_seen():
    probabilities_TK = np.zeros((200_000, 2), np.float32)
    probabilities_TK[123_456, 1] = 1
    image = pixels(ethogram_strip(probabilities_TK, probabilities_TK > 0.5, None, {1: 0.5}))
    [x, *_] = columns_of_bar(image, 0, PREDICTED, colour(1))
    assert x == pytest.approx(123_456 / 200_000, abs=0.002)


@pytest.mark.parametrize("frames", [1, 2, 7, figures.MOST_COLUMNS, figures.MOST_COLUMNS + 1])
def test_any_number_of_frames_can_be_drawn(frames):
    ones_TK = np.ones((frames, 2), np.float32)
    image = pixels(ethogram_strip(ones_TK, ones_TK, ones_TK, {1: 0.5}))
    x = columns_of_bar(image, 0, PREDICTED, colour(1))
    assert (x.min(), x.max()) == pytest.approx((0, 1), abs=0.003)


def test_columns_stand_for_as_few_frames_as_possible():
    assert [frames_per_column(n * figures.MOST_COLUMNS) for n in (1, 2)] == [1, 2]
    assert frames_per_column(figures.MOST_COLUMNS + 1) == 2


def test_the_background_is_grey_and_the_last_lane():
    assert lane_order(4) == [1, 2, 3, 0] and colour(0) not in figures.COLOURS


def test_up_to_28_behaviours_are_told_apart():
    looks = {(colour(k), stroke(k)) for k in range(1, 29)}
    assert len(looks) == 28


def test_the_chosen_threshold_is_marked_on_the_curve():
    recall, precision = np.linspace(1, 0, 200), np.linspace(0, 1, 200)
    marked = pixels(figures.precision_recall(recall, precision, 100, 1))
    plain = pixels(figures.precision_recall(recall, precision, None, 1))
    assert (marked != plain).any()
    y, x = (int(positions.mean()) for positions in np.nonzero((marked != plain).any(axis=-1)))
    ink = np.argwhere(shows(plain, colour(1)))
    assert np.abs(ink - (y, x)).sum(axis=1).min() <= 3
    assert np.abs(ink.mean(axis=0) - (y, x)).max() < 6, "the middle of the curve"
