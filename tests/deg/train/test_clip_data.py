"""Clips and labels in the order of training are the same for any number of ranks, stops and loader processes."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate
from videos import number_in, write_video

from deg.data.frames.cache import FrameCache
from deg.data.labels import write_labels
from deg.data.video.files import open_video, probe
from deg.errors import ConfigError, LabelError, RunError
from deg.options.load import as_dict, load_config
from deg.runs.planned import PlannedFile
from deg.runs.plans import TrainingPlan
from deg.train.clip_data import ClipData, Draw, PartBatches, TrainBatches, frame_transform, make_loader
from deg.work import available_cores

CLASSES = ("background", "groom", "rear")
LENGTHS = {"a": 5, "b": 30, "c": 12}


def make_plan(folder: Path, *options: str, flow: bool = False, sizes: dict[str, tuple[int, int]] | None = None):
    """Three recordings; `b` and `a`, in this order, are for training; frame t is labelled groom if t % 3 == 1."""
    stage = "flow_generator" if flow else "feature_extractor"
    config = load_config(None, ["augs.resize=[32,40]", "augs.normalization.mean=[0.1,0.2,0.3]", *options], stage=stage)
    videos, labels = {}, {}
    for key, length in LENGTHS.items():
        size = {"size": sizes[key]} if sizes else {}
        videos[key] = probe(write_video(folder / f"{key}.mp4", length, **size))
        labels_TK = np.zeros((length, 3), np.int8)
        labels_TK[1::3, 1] = 1
        labels_TK[4::6, 2] = 1
        path = folder / f"{key}_labels.csv"
        write_labels(path, labels_TK, CLASSES)
        labels[key] = PlannedFile.of(path)
    plan = TrainingPlan(
        stage=stage,
        phases=("both",),
        class_names=CLASSES,
        parts={"train": ("b", "a"), "val": ("c",), "test": ()},
        videos=videos,
        labels={} if flow else labels,
        inputs={},
        weights={},
        config=as_dict(config),
        cache=str(folder / "cache"),
        devices=1,
    )
    return plan, config


def open_data(plan, config, part="train", format="raw") -> ClipData:
    cache = FrameCache(Path(plan.cache), format, 10**9)
    cache.ensure(plan.videos, frame_transform(config.augs))
    return ClipData(plan, part, config, cache)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return make_plan(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def data(planned) -> ClipData:
    return open_data(*planned)


# ------------------------------------------------------------------------------------------------ samples


def test_every_frame_of_the_part_is_a_sample_in_the_order_of_the_plan(data):
    assert len(data) == 35
    for sample, frame in [(0, 0), (29, 29), (30, 0), (34, 4)]:
        item = data[sample]
        assert item["clips"].shape == (11, 32, 40, 3) and item["clips"].dtype == torch.uint8
        assert number_in(item["clips"][5].numpy()) == frame
        assert item["sample"] == sample
    assert data.describe(29) == "recording b, frame 29"
    assert data.describe(30) == "recording a, frame 0"


@pytest.mark.parametrize("sample", [-1, 35])
def test_there_is_no_other_sample(data, sample):
    with pytest.raises(IndexError):
        data[sample]


def test_labels_are_those_of_the_frame_with_background_filled_in(data):
    assert data[3]["labels"].tolist() == [1, 0, 0] and data[3]["labels"].dtype == torch.int64
    assert data[1]["labels"].tolist() == [0, 1, 0]
    assert data[4]["labels"].tolist() == [0, 1, 1]
    assert data[31]["labels"].tolist() == [0, 1, 0], "frame 1 of `a`"
    assert data.labels_NK.shape == (35, 3) and data.labels_NK.dtype == np.int8
    np.testing.assert_array_equal(data.labels_NK[34], [0, 1, 1])


def test_outside_the_video_is_the_mean_colour(data):
    clip_THWC = data[33]["clips"]
    assert (clip_THWC[:2] == torch.tensor([25, 51, 76])).all() and number_in(clip_THWC[2].numpy()) == 0
    assert (clip_THWC[7:] == torch.tensor([25, 51, 76])).all() and number_in(clip_THWC[6].numpy()) == 4


def test_a_flow_generator_learns_without_labels(tmp_path):
    data = open_data(*make_plan(tmp_path, flow=True))
    assert data.labels_NK is None and sorted(data[0]) == ["clips", "sample"]


def test_behaviours_that_exclude_each_other_are_one_at_a_time(tmp_path):
    plan, config = make_plan(tmp_path, "feature_extractor.final_activation=softmax")
    first, again = (open_data(plan, config).labels_NK for _ in range(2))
    assert (first.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(first, again)


def test_without_a_cache_samples_are_the_same(planned, data):
    plan, config = planned
    from_video = ClipData(plan, "train", config, None)
    for sample in (0, 12, 34):
        assert torch.equal(from_video[sample]["clips"], data[sample]["clips"])


def test_labels_that_changed_since_the_plan_are_refused(tmp_path):
    plan, config = make_plan(tmp_path)
    write_labels(tmp_path / "a_labels.csv", np.zeros((5, 3), np.int8), CLASSES)
    with pytest.raises(RunError, match=r"a_labels\.csv.*changed"):
        ClipData(plan, "train", config, None)


def test_labels_that_do_not_fit_the_video_are_refused(tmp_path):
    plan, config = make_plan(tmp_path)
    path = tmp_path / "a_labels.csv"
    write_labels(path, np.zeros((6, 3), np.int8), CLASSES)
    plan = replace(plan, labels={**plan.labels, "a": PlannedFile.of(path)})
    with pytest.raises(LabelError, match="5 frames"):
        ClipData(plan, "train", config, None)


def test_recordings_of_different_sizes_are_refused(tmp_path):
    plan, config = make_plan(tmp_path, "augs.resize=null", sizes={"a": (64, 80), "b": (64, 96), "c": (64, 80)})
    with pytest.raises(ConfigError, match=r"`b`.*`a`.*augs\.resize"):
        ClipData(plan, "train", config, None)


def test_a_batch_is_what_torch_would_make_of_the_items(data):
    indices = [33, 2, 2, 14]
    (batch,) = make_loader(data, [indices], num_workers=0, pin=False)
    by_torch = default_collate([data[index] for index in indices])
    assert batch.keys() == by_torch.keys()
    for name, value in by_torch.items():
        assert torch.equal(batch[name], value) and batch[name].dtype == value.dtype, name


# ------------------------------------------------------------------------------------------------ random crops


@pytest.fixture(scope="module")
def cropping(tmp_path_factory) -> ClipData:
    return open_data(*make_plan(tmp_path_factory.mktemp("crop"), "augs.crop_size=[40,50]", "augs.resize=null"))


def picture_of(data: ClipData, key: str, frame: int) -> torch.Tensor:
    """Return the whole frame, from the video."""
    with open_video(data._clips.videos[key].path) as video:
        return torch.from_numpy(video[frame])


def test_where_a_crop_lies_depends_on_the_position_in_the_stream_alone(cropping):
    def clip(position):
        return cropping[Draw(9, position)]["clips"]

    assert torch.equal(clip(4), clip(4))
    different = sum(not torch.equal(clip(i), clip(j)) for i, j in itertools.combinations(range(8), 2))
    assert different > 20, "of 28 pairs, in 25 x 31 places"


def test_validation_crops_the_centre(cropping):
    whole_HWC = picture_of(cropping, "b", 9)
    assert torch.equal(cropping[9]["clips"][5], whole_HWC[12:52, 15:65])
    assert not torch.equal(cropping[Draw(9, 4)]["clips"], cropping[9]["clips"])


def test_a_draw_is_the_index_of_its_sample(data):
    draw = Draw(7, 1000)
    assert draw == 7 and data.labels_NK[draw].tolist() == data.labels_NK[7].tolist()
    copy = pickle.loads(pickle.dumps(draw))
    assert (copy, copy.position) == (7, 1000)


# ------------------------------------------------------------------------------------------------ order


def epoch(first: int, *, size=35, batch_size=8, **options) -> list[list[tuple[int, int]]]:
    batches = TrainBatches(size, batch_size, seed=3, first=lambda: first, **options)
    return [[(int(draw), draw.position) for draw in batch] for batch in batches]


def test_an_epoch_sees_every_sample_and_its_batches_are_full():
    batches = epoch(0)
    assert [len(batch) for batch in batches] == [8] * 5
    samples = [sample for batch in batches for sample, _ in batch]
    assert sorted(samples[:35]) == list(range(35)), "each once, then the next permutation begins"
    assert [position for batch in batches for _, position in batch] == list(range(40))


def test_epochs_follow_each_other_in_one_stream():
    samples = [sample for first in (0, 5, 10) for batch in epoch(first) for sample, _ in batch]
    assert len(samples) == 120
    for start in (0, 35, 70):
        assert sorted(samples[start : start + 35]) == list(range(35))
    assert samples[:35] != samples[35:70]


def test_an_epoch_may_be_shorter_or_longer():
    assert len(epoch(0, steps=2)) == 2
    assert len(epoch(7, steps=9)) == 2
    assert len(TrainBatches(35, 8, seed=0, first=lambda: 3)) == 5, "a whole epoch, wherever training stands"


@pytest.mark.parametrize("first", [1, 4, 7, 13])
def test_resuming_in_the_middle_of_an_epoch_draws_what_would_have_been_drawn(first):
    undisturbed = [batch for begin in (0, 5, 10) for batch in epoch(begin)]
    end = (first // 5 + 1) * 5
    assert epoch(first) == undisturbed[first:end]


def test_the_number_of_batches_done_is_asked_at_each_epoch():
    done = 0
    batches = TrainBatches(35, 8, seed=3, first=lambda: done)
    first = list(batches)
    done = 5
    assert list(batches) != first


@given(batch_size=st.integers(1, 20), ranks=st.integers(1, 6), first=st.integers(0, 12), weighted=st.booleans())
def test_all_ranks_together_draw_what_one_would(batch_size, ranks, first, weighted):
    ranks = min(ranks, batch_size)
    weights = {"weights_N": np.arange(35.0)} if weighted else {}
    alone = epoch(first, batch_size=batch_size, **weights)
    shares = [epoch(first, batch_size=batch_size, rank=rank, ranks=ranks, **weights) for rank in range(ranks)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_rare_samples_are_drawn_more_often():
    samples = [
        sample for batch in epoch(0, weights_N=np.array([0.0, 1.0, 9.0]), size=3, steps=50) for sample, _ in batch
    ]
    assert 0 not in samples and samples.count(2) > 5 * samples.count(1) > 0


def test_a_batch_must_have_a_sample_for_each_rank():
    with pytest.raises(ValueError, match="each rank"):
        TrainBatches(35, 2, seed=0, first=lambda: 0, ranks=3)


@given(size=st.integers(0, 50), batch_size=st.integers(1, 12), ranks=st.integers(1, 5))
def test_validation_is_every_sample_once_on_any_number_of_ranks(size, batch_size, ranks):
    shares = [PartBatches(size, batch_size, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [sample for rank in shares for batch in rank for sample in batch] == list(range(size))
    for rank in shares:
        assert len(list(rank)) == len(rank)
        assert all(len(batch) <= -(-batch_size // ranks) for batch in rank)


def test_a_part_of_validation_is_evenly_spaced_and_always_the_same():
    samples = [sample for batch in PartBatches(100, 4, most=5) for sample in batch]
    assert samples == list(range(2, 100, 5))
    assert [sample for batch in PartBatches(10, 4, most=5) for sample in batch] == list(range(10))


# ------------------------------------------------------------------------------------------------ loader processes


def load(data: ClipData, workers: int, epochs: int = 1) -> list[dict[str, torch.Tensor]]:
    done = 0
    batches = TrainBatches(len(data), 4, seed=1, first=lambda: done, steps=3)
    loader = make_loader(data, batches, num_workers=workers, pin=False)
    loaded = []
    for _ in range(epochs):
        loaded += list(loader)
        done += 3
    return loaded


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_loader_processes_give_the_same_batches(cropping, tmp_path, format):
    plan, config = make_plan(tmp_path, "augs.crop_size=[40,50]", "augs.resize=null")
    data = open_data(plan, config, format=format)
    for alone, loaded in zip(load(data, 0, epochs=2), load(data, 2, epochs=2), strict=True):
        for name, value in alone.items():
            assert torch.equal(loaded[name], value), name


def test_there_are_not_more_loader_processes_than_cores(data, monkeypatch):
    monkeypatch.setattr("deg.train.clip_data.available_cores", lambda: 2)
    batches = PartBatches(len(data), 4)
    assert make_loader(data, batches, num_workers=8, pin=False).num_workers == 2
    assert make_loader(data, batches, num_workers=1, pin=False).num_workers == 1


def test_an_error_in_a_loader_process_keeps_its_sentence(tmp_path):
    plan, config = make_plan(tmp_path)
    data = open_data(plan, config)
    for file in (tmp_path / "cache").glob("*/frames.bin"):
        os.truncate(file, 100)
    with pytest.raises(Exception, match="Run the same command again"):
        list(make_loader(data, [[0, 1]], num_workers=1, pin=False))


TRAINING = """
import pickle, sys, time
from pathlib import Path
from deg.train.clip_data import PartBatches, make_loader

data = pickle.loads(Path(sys.argv[1]).read_bytes())
loader = iter(make_loader(data, PartBatches(len(data), 1), num_workers=2, pin=False))
next(loader)
print(*(worker.pid for worker in loader._workers), flush=True)
sys.stdin.readline()
if sys.argv[2] == "fail":
    raise RuntimeError
print(1 + sum(1 for _ in loader), flush=True)
"""


@pytest.fixture
def training(data, tmp_path):
    """Starts a process that uses two loader processes, and returns it and their process ids."""
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(data))

    def start(how: str = "go") -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(tmp_path / "data.pickle"), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, [int(pid) for pid in process.stdout.readline().split()]

    return start


def all_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_loader_processes_leave_signals_to_the_rank(training):
    process, workers = training()
    assert len(workers) == min(2, available_cores())
    for pid, number in itertools.product(workers, (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGUSR1)):
        os.kill(pid, number)
    assert process.communicate("go\n", timeout=60)[0] == "35\n"
    assert process.returncode == 0 and all_gone(workers, 10)


@pytest.mark.slow
def test_loader_processes_end_when_their_rank_is_killed(training):
    process, workers = training()
    process.kill()
    process.communicate()
    assert all_gone(workers, 30)


@pytest.mark.slow
def test_loader_processes_do_not_hold_up_a_rank_that_fails(training):
    process, workers = training("fail")
    _, told = process.communicate("go\n", timeout=60)
    assert process.returncode == 1 and "RuntimeError" in told
    assert all_gone(workers, 10)
