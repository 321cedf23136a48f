"""`deg bench` does what a worker does, with the network or with a stand-in."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest
import torch
from command import deg
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import write_video

from deg.errors import RunError
from deg.infer.spans import FeatureSpans
from deg.infer.stand_in import StandIn
from deg.launch.stages import bench
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

SMALL = ("--size", "32", "32", "--runs", "1", "--json")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 300), st.integers(0, 20))
@settings(max_examples=30)
def test_a_stand_in_gives_every_row_once_and_in_order(lengths, start, more):
    frames = sum(lengths)
    stop = start + max(frames - more, 1)
    blocks = (np.zeros((length, 2, 2, 3), np.uint8) for length in lengths)
    found = list(StandIn(1e9, torch.device("cpu"), 3).run(blocks, start, stop, 10_000))
    assert [row for block in found for row in range(block.start, block.stop)] == list(range(start, stop))
    assert all(len(block.logits_TK) == len(block.flow_features_TD) == block.stop - block.start for block in found)


def test_a_stand_in_shows_how_far_decoding_carries(tmp_path):
    video = write_video(tmp_path / "mouse.mp4", 150)
    answer = deg("bench", "--engine-fps", "1e5", "--frames", "700", "--decoders", "2", "--video", video, *SMALL)
    assert answer.status == 0
    found = answer.json
    assert (found["device"], found["decoders"], found["frames"], found["span_frames"]) == ("stand-in", 2, 700, 150)
    assert min(*found["decode"], *found["network"], *found["whole"]) > 0
    assert found["share"] == pytest.approx(found["whole"][0] / min(found["decode"][0], found["network"][0]), abs=1e-3)


def test_the_network_is_measured_over_as_many_videos_as_it_takes(tmp_path):
    videos = [write_video(tmp_path / f"{number}.mp4", 20) for number in range(2)]
    answer = deg("bench", "--frames", "50", "--span", "12", "--video", videos[0], "--video", videos[1], *SMALL)
    assert answer.status == 0 and answer.json["frames"] == 50 and answer.json["span_frames"] == 12
    assert answer.json["decoders"] == 1 and answer.json["whole"][0] > 0


def test_a_recording_that_failed_is_no_speed(tmp_path, monkeypatch):
    settings = bench.Settings("deg_f", (32, 32), "fp32", "auto", (write_video(tmp_path / "a.mp4", 40),), 40, 40, 1)
    plan = bench._plan(settings, 1, bench._recordings(settings, 40, tmp_path))
    with closing(FeatureSpans(plan, torch.device("cpu"), StandIn(1e9, torch.device("cpu"), 4))) as spans:
        bench._do_all(RunDir(tmp_path / "right"), plan, spans)
        os.utime(tmp_path / "a.mp4", (1, 1))
        with pytest.raises(RunError, match="it changed while it was read"):
            bench._do_all(RunDir(tmp_path / "wrong"), plan, spans)


def test_a_video_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    answer = deg("bench", "--video", tmp_path / "text.mp4", *SMALL)
    assert answer.status != 0 and "text file" in answer.json["error"]
