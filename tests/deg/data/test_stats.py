"""Colour statistics are exact in any order, and equal the numbers that DeepEthogram keeps."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deg.data.stats import (
    NOTHING,
    Moments,
    as_dict,
    parse_normalization,
    pooled,
    read_stats,
    updated,
    video_statistics,
    write_stats,
)
from deg.errors import ProjectError
from deg.options.schema import Normalization

frames = arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))


def close(a, b) -> bool:
    return np.allclose(a, b, rtol=1e-12, atol=1e-12)


@given(st.lists(frames, min_size=1, max_size=6), st.randoms())
def test_moments_of_parts_in_any_order_are_those_of_all_pixels(parts, random):
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts]) / 255
    moments = [Moments.of(part) for part in parts]
    random.shuffle(moments)
    for total in (reduce(Moments.__add__, moments), sum(moments, NOTHING)):
        assert total.n == len(pixels)
        assert close(total.mean, pixels.mean(axis=0))
        assert close(total.std, pixels.std(axis=0))


@given(frames, frames, frames)
def test_grouping_does_not_matter(a, b, c):
    a, b, c = map(Moments.of, (a, b, c))
    left, right = (a + b) + c, a + (b + c)
    assert close(left.mean, right.mean) and close(left.m2, right.m2) and left.n == right.n


@pytest.mark.parametrize(("num_frames", "sampled"), [(1, 1), (10, 1), (11, 2), (21, 3), (30, 3)])
def test_every_tenth_frame_counts(num_frames, sampled):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (num_frames, 4, 6, 3), dtype=np.uint8)
    statistics = video_statistics(iter(video))
    assert sampled == statistics.N
    assert close(statistics.mean, (video[::10] / 255).mean(axis=(0, 1, 2)))
    assert close(statistics.std, (video[::10] / 255).std(axis=(0, 1, 2)))


def test_channels_are_red_green_blue():
    video = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    video[..., 0] = 255
    assert video_statistics(video).mean == (1.0, 0.0, 0.0)


def test_no_frames_no_statistics():
    with pytest.raises(ValueError, match="without frames"):
        video_statistics(iter(()))


def test_the_project_averages_standard_deviations():
    first = updated(Normalization(), Normalization(30, (0.2, 0.4, 0.6), (0.1, 0.1, 0.1)))
    assert first == Normalization(30, (0.2, 0.4, 0.6), (0.1, 0.1, 0.1))
    both = updated(first, Normalization(10, (0.6, 0.4, 0.2), (0.3, 0.3, 0.1)))
    assert both.N == 40
    assert close(both.mean, (0.3, 0.4, 0.5))
    assert close(both.std, (0.15, 0.15, 0.1))


def test_the_sums_of_the_original_project_come_out(shared_data):
    project = shared_data("data/deg_project_original")
    total = Normalization()
    for key in ("field_1", "field_2", "field_3", "field_4"):
        total = updated(total, read_stats(project / "DATA" / key / "stats.yaml"))
    stored = yaml.safe_load((project / "project_config.yaml").read_text())["augs"]["normalization"]
    assert total.N == stored["N"] == 117
    assert close(total.mean, stored["mean"]) and close(total.std, stored["std"])


@given(st.lists(st.lists(arrays(np.uint8, (2, 3, 3)), min_size=1, max_size=3), min_size=1, max_size=4))
def test_pooled_statistics_are_those_of_all_frames(videos):
    found = pooled([video_statistics(video, stride=1) for video in videos])
    pixels = np.concatenate([frame for video in videos for frame in video]).reshape(-1, 3) / 255
    assert sum(map(len, videos)) == found.N
    assert close(found.mean, pixels.mean(axis=0))
    assert np.allclose(found.std, pixels.std(axis=0), atol=1e-7)


def test_pooled_of_nothing_is_the_state_of_a_new_project():
    assert pooled([]) == Normalization()


def test_statistics_are_kept_in_deepethograms_layout(tmp_path):
    statistics = Normalization(3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    write_stats(tmp_path / "stats.yaml", statistics)
    assert yaml.safe_load((tmp_path / "stats.yaml").read_text()) == {
        "normalization": {"N": 3, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    }
    assert read_stats(tmp_path / "stats.yaml") == statistics


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"N": 1}, {"N": 1, "mean": [0, 0], "std": [1, 1]}, {"N": 1, "mean": 0.5, "std": 0.5},
     {"N": -1, "mean": [0] * 3, "std": [1] * 3}, {"N": 1, "mean": ["a"] * 3, "std": [1] * 3},
     {"N": 1, "mean": [float("nan")] * 3, "std": [1] * 3}],
)  # fmt: skip
def test_statistics_that_make_no_sense_are_refused(content):
    with pytest.raises(ProjectError, match=r"^stats\.yaml: expected `normalization` with N"):
        parse_normalization(content, where="stats.yaml")


def test_pixel_counts_of_old_versions_are_read():
    old = {"N": 2.4e9, "mean": [0.1] * 3, "std": [0.2] * 3}
    assert as_dict(parse_normalization(old, where="")) == old


def test_statistics_of_the_original_are_reproduced(shared_data):
    video_module = pytest.importorskip("deg.data.video.files")
    for key in ("field_1", "field_4"):
        folder = shared_data("data/deg_project_original") / "DATA" / key
        with video_module.open_video(folder / f"{key}.mp4") as reader:
            found = video_statistics(reader.read(0, reader.info.num_frames))
        stored = read_stats(folder / "stats.yaml")
        assert found.N == stored.N
        assert np.allclose(found.mean, stored.mean, atol=2e-3) and np.allclose(found.std, stored.std, atol=2e-3)
