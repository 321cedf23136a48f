"""The data of sequence networks: the frames in an item, their labels, and what is refused.

The scene has recordings `a` of 23 frames and `b` of 4, whose features say which frame of which recording they show.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate
from tracks import write_keypoints

from deg.data.labels import write_labels
from deg.data.results import Mark, write_group
from deg.data.sequence_input import describe_mark
from deg.errors import LabelError, ResultError, RunError
from deg.models.sequence import SEQUENCE_NETWORKS, build_sequence
from deg.options.schema import Config, FeatureExtractor, Sequence
from deg.runs.planned import PlannedFile, PlannedInput
from deg.runs.plans import TrainingPlan
from deg.train import sequence_data
from deg.train.losses import CrossEntropy, FocalBCE
from deg.train.sequence_data import SequenceData
from deg.types import NUM_FEATURES, VideoInfo

CLASSES = ("background", "groom", "rear")
LENGTHS = {"a": 23, "b": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


def features_of(key: str, num_frames: int) -> np.ndarray:
    """Return three features: the frame, from 1; 1 for `a`, 2 for `b`; and of the flow stream, minus the frame."""
    features_TD = np.zeros((num_frames, NUM_FEATURES), np.float32)
    features_TD[:, 0] = np.arange(1, num_frames + 1)
    features_TD[:, 1] = ord(key) - ord("a") + 1
    features_TD[:, 512] = -features_TD[:, 0]
    return features_TD


def labels_of(num_frames: int) -> np.ndarray:
    """Return labels of one class after the other, one frame each."""
    return np.eye(3, dtype=np.int8)[np.arange(num_frames) % 3]


def write_features(path: Path, features_TD: np.ndarray, settings: str = "") -> None:
    num_frames, half = len(features_TD), features_TD.shape[1] // 2
    write_group(
        path,
        "resnet18",
        num_frames=num_frames,
        columns={"spatial_features": half, "flow_features": half},
        blocks=[{"spatial_features": features_TD[:, :half], "flow_features": features_TD[:, half:]}],
        class_names=CLASSES,
        thresholds_K=np.zeros(3),
        mark=Mark(num_frames, {}, settings, 0, 0),
        provenance={},
    )


def planned_input(path: Path, group: str) -> PlannedInput:
    return PlannedInput(path, group, describe_mark(path, group))


def make_plan(folder: Path, lengths=LENGTHS, features=features_of, labels=labels_of) -> TrainingPlan:
    """Make a plan whose parts `train` and `val` both have all recordings."""
    for key, num_frames in lengths.items():
        write_features(folder / f"{key}_outputs.h5", features(key, num_frames))
        write_labels(folder / f"{key}_labels.csv", labels(num_frames), CLASSES)
    return TrainingPlan(
        stage="sequence",
        phases=("both",),
        class_names=CLASSES,
        parts={"train": tuple(lengths), "val": tuple(lengths), "test": ()},
        videos={
            key: VideoInfo(folder / f"{key}.mp4", num_frames, 0, 0, 0.0, 0, 0) for key, num_frames in lengths.items()
        },
        labels={key: PlannedFile.of(folder / f"{key}_labels.csv") for key in lengths},
        inputs={key: planned_input(folder / f"{key}_outputs.h5", "resnet18") for key in lengths},
        weights={},
        config=Config(),
        cache=None,
        devices=1,
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The scene, which tests must not change."""
    return make_plan(tmp_path_factory.mktemp("lab"))


def config_of(arch: str = "linear", length: int = 10, activation: str = "sigmoid", **options) -> Config:
    return Config(
        sequence=Sequence(arch=arch, sequence_length=length, **options),  # type: ignore[arg-type]
        feature_extractor=FeatureExtractor(final_activation=activation),  # type: ignore[arg-type]
    )


def frames(item) -> list[int]:
    """Return the frames that an item shows, from 1; 0 is padding."""
    return item["features"][0].int().tolist()


def labelled(item) -> list[int]:
    """Return those of them that have labels."""
    known_L = (item["labels"] != -1).all(dim=0)
    return item["features"][0][known_L].int().tolist()


# ----------------------------------------------------------------- stretches


def test_recordings_are_cut_one_after_the_other_and_the_last_stretch_is_filled_up(plan):
    data = SequenceData(plan, "train", config_of(length=10))
    assert [frames(item) for item in data.__getitems__(range(len(data)))] == [
        [*range(1, 11)],
        [*range(11, 21)],
        [21, 22, 23, *[0] * 7],
        [1, 2, 3, 4, *[0] * 6],
    ]
    assert [data.describe(sample) for sample in (2, 3)] == [
        "recording a, frames [20, 23)",
        "recording b, frames [0, 4)",
    ]


def test_an_item_is_features_by_frames_spatial_before_flow_and_labels_by_frames(plan):
    item = SequenceData(plan, "train", config_of(length=10))[2]
    assert item["features"].shape == (NUM_FEATURES, 10) and item["features"].dtype == torch.float32
    assert item["features"][[0, 1, 512], :4].tolist() == [[21, 22, 23, 0], [1, 1, 1, 0], [-21, -22, -23, 0]]
    assert item["labels"].dtype == torch.int64 and item["sample"] == 2
    assert item["labels"][:, :3].T.tolist() == labels_of(23)[20:].tolist()
    assert (item["labels"][:, 3:] == -1).all()


def test_items_make_batches(plan):
    data = SequenceData(plan, "train", config_of("tcn", tcn_layers=2))
    batch = default_collate(data.__getitems__([0, 3]))
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "features": (2, NUM_FEATURES, 16),
        "labels": (2, 3, 16),
        "sample": (2,),
        "valid": (2, 16),
    }


@pytest.mark.parametrize(
    ("length", "first", "last"), [(4, [0, 0, 1, 2], [2, 3, 4, 0]), (5, [0, 0, 1, 2, 3], [2, 3, 4, 0, 0])]
)
def test_overlapping_stretches_are_one_around_each_frame(plan, length, first, last):
    """This includes frames of a recording that is not longer than a stretch."""
    data = SequenceData(plan, "train", config_of(length=length, nonoverlapping=False))
    assert len(data) == 23 + 4
    assert (frames(data[23]), frames(data[26])) == (first, last)
    assert labelled(data[23]) == [frame for frame in first if frame]


def test_validation_never_overlaps(plan):
    data = SequenceData(plan, "val", config_of(length=10, nonoverlapping=False))
    assert len(data) == 4


def test_a_part_without_recordings_is_empty(plan):
    data = SequenceData(plan, "test", config_of())
    assert len(data) == 0 and data.labels_NK.shape == (0, 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    length=st.integers(1, 30),
    layers=st.integers(1, 5),
    arch=st.sampled_from(["linear", "tcn"]),
    overlapping=st.booleans(),
)
def test_validation_has_every_frame_just_once_with_its_own_label(plan, length, layers, arch, overlapping):
    data = SequenceData(plan, "val", config_of(arch, length, tcn_layers=layers, nonoverlapping=not overlapping))
    items = data.__getitems__(range(len(data)))
    assert [frame for item in items for frame in labelled(item)] == [*range(1, 24), *range(1, 5)]
    rows = [item["labels"].T[(item["labels"] != -1).all(dim=0)] for item in items]
    np.testing.assert_array_equal(torch.cat(rows).numpy(), data.labels_NK)


# ----------------------------------------------------------------- the mlp


@pytest.mark.parametrize("part", ["train", "val"])
def test_the_mlp_has_a_window_for_each_frame_labelled_as_the_frame_in_its_middle(plan, part):
    data = SequenceData(plan, part, config_of("mlp", length=4))
    assert len(data) == 23 + 4 and data.num_features == 4 * NUM_FEATURES
    first, last = data[0], data[22]
    assert first["features"][:4].tolist() == [0, 0, 1, 2] and last["features"][:4].tolist() == [21, 22, 23, 0]
    assert first["labels"].tolist() == [1, 0, 0] and last["labels"].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(torch.stack([item["labels"] for item in data]).numpy(), data.labels_NK)


# ----------------------------------------------------------------- the tcn


def test_the_tcn_is_shown_what_lies_around_and_learns_each_frame_once(plan):
    """Two layers reach 3 frames. Padding is not valid; context is valid, but has no labels."""
    data = SequenceData(plan, "train", config_of("tcn", length=10, tcn_layers=2))
    assert frames(data[1]) == [*range(8, 24)]
    assert labelled(data[1]) == [*range(11, 21)]
    assert frames(data[2]) == [18, 19, 20, 21, 22, 23, *[0] * 10]
    assert data[2]["valid"].tolist() == [True] * 6 + [False] * 10
    assert labelled(data[2]) == [21, 22, 23]
    assert data.describe(2) == "recording a, frames [20, 23)"


def test_the_context_of_a_deep_tcn_has_an_end(plan, monkeypatch):
    monkeypatch.setattr(sequence_data, "MOST_CONTEXT", 5)
    data = SequenceData(plan, "train", config_of("tcn", length=10, tcn_layers=14))
    assert frames(data[1]) == [*range(6, 24), 0, 0]


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_tcn_says_of_stretches_what_it_says_of_the_whole_recording(plan, length):
    torch.manual_seed(0)
    config = config_of("tcn", length, tcn_layers=3, hidden_size=8)
    network = build_sequence(config.sequence, NUM_FEATURES, 3).eval()
    whole_KT = network(torch.from_numpy(features_of("a", 23).T)[None])[0]
    data = SequenceData(plan, "val", config)
    for index in range(-(-23 // length)):
        item = data[index]
        logits_KL = network(item["features"][None], item["valid"][None])[0]
        own_KL = logits_KL[:, (item["labels"] != -1).all(dim=0)]
        span = data.span(index)
        torch.testing.assert_close(own_KL, whole_KT[:, span.start : span.stop], rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------- every network learns from it


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("arch", SEQUENCE_NETWORKS)
def test_every_network_gets_finite_gradients(plan, arch, activation):
    config = config_of(arch, 9, activation, filter_length=5, num_layers=2)
    data = SequenceData(plan, "train", config)
    batch = default_collate(data.__getitems__([0, 2, len(data) - 1]))
    torch.manual_seed(0)
    network = build_sequence(config.sequence, data.num_features, 3).train()
    logits = network(batch["features"], batch["valid"]) if "valid" in batch else network(batch["features"])
    labels = batch["labels"]
    if activation == "softmax":
        labels = torch.where((labels == -1).any(dim=1), -1, labels.argmax(dim=1))
        loss = CrossEntropy()(logits, labels)
    else:
        loss = FocalBCE()(logits, labels)
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


# ----------------------------------------------------------------- labels


def test_frames_without_a_behaviour_are_background(tmp_path):
    plan = make_plan(tmp_path, {"a": 3}, labels=lambda num_frames: np.zeros((num_frames, 3), np.int8))
    assert SequenceData(plan, "train", config_of()).labels_NK.tolist() == [[1, 0, 0]] * 3


def test_softmax_keeps_one_of_several_behaviours_the_same_each_time(tmp_path):
    def both(num_frames):
        return np.repeat(np.int8([[0, 1, 1]]), num_frames, axis=0)

    plan = make_plan(tmp_path, {"a": 60, "b": 60}, labels=both)
    assert (SequenceData(plan, "train", config_of()).labels_NK == [0, 1, 1]).all()
    one, two = (SequenceData(plan, "train", config_of(activation="softmax")).labels_NK for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one.sum(axis=1) == 1).all() and set(one.argmax(axis=1)) == {1, 2}
    assert (one[:60] != one[60:]).any()  # each recording has its own random draws


def test_softmax_labels_keep_their_order_in_time(plan):
    """DeepEthogram sorts these labels by class."""
    data = SequenceData(plan, "val", config_of(length=10, activation="softmax"))
    assert data[0]["labels"].argmax(dim=0).tolist() == [t % 3 for t in range(10)]


# ----------------------------------------------------------------- what changed since the plan was made


def test_labels_that_changed_are_refused(tmp_path):
    plan = make_plan(tmp_path, {"a": 5})
    write_labels(tmp_path / "a_labels.csv", labels_of(6)[1:], CLASSES)
    with pytest.raises(RunError, match=r"a_labels.csv: the labels have changed since the run was planned"):
        SequenceData(plan, "train", config_of())
    (tmp_path / "a_labels.csv").unlink()
    with pytest.raises(RunError, match=r"a_labels.csv: the labels cannot be read"):
        SequenceData(plan, "train", config_of())


@pytest.mark.parametrize("rows", [4, 6])
def test_labels_of_another_length_are_refused(tmp_path, rows):
    plan = make_plan(tmp_path, {"a": 5}, labels=lambda num_frames: labels_of(rows))
    with pytest.raises(LabelError, match=f"a_labels.csv: the video has 5 frames, its labels have {rows} rows"):
        SequenceData(plan, "train", config_of())


def test_features_that_were_made_anew_are_refused(tmp_path):
    plan = make_plan(tmp_path, {"a": 5})
    write_features(tmp_path / "a_outputs.h5", features_of("a", 5), settings="other")
    with pytest.raises(RunError, match=r"a_outputs.h5, recording `a`: the features have changed since"):
        SequenceData(plan, "train", config_of())


def test_features_of_another_width_or_length_are_refused(tmp_path):
    plan = make_plan(tmp_path, {"a": 5}, features=lambda key, num_frames: np.zeros((num_frames, 6), np.float32))
    with pytest.raises(ResultError, match="`a`: expected 1024 features for each of 5 frames, found 6 for each of 5"):
        SequenceData(plan, "train", config_of())
    plan = make_plan(tmp_path, {"a": 5}, features=lambda key, num_frames: features_of(key, 4))
    with pytest.raises(ResultError, match="1024 features for each of 5 frames, found 1024 for each of 4"):
        SequenceData(plan, "train", config_of())


def poisoned(key, num_frames):
    features_TD = features_of(key, num_frames)
    features_TD[12, 600] = np.nan
    return features_TD


def test_features_that_are_no_numbers_are_named_with_recording_and_frame(tmp_path):
    plan = make_plan(tmp_path, {"a": 23}, features=poisoned)
    with pytest.raises(ResultError, match="recording `a`: feature 600 of frame 12 is nan"):
        SequenceData(plan, "train", config_of())


# ----------------------------------------------------------------- more than fits into memory


def test_features_on_the_disk_give_the_same_items(plan, monkeypatch):
    in_memory = SequenceData(plan, "train", config_of("tcn", tcn_layers=2))
    monkeypatch.setattr(sequence_data, "IN_MEMORY_BYTES", 0)
    on_disk = SequenceData(plan, "train", config_of("tcn", tcn_layers=2))
    for one, other in zip(in_memory, on_disk, strict=True):
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


def test_features_on_the_disk_are_judged_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence_data, "IN_MEMORY_BYTES", 0)
    data = SequenceData(make_plan(tmp_path, {"a": 23}, features=poisoned), "train", config_of(length=10))
    data[0]
    with pytest.raises(ResultError, match="recording `a`: feature 600 of frame 12 is nan"):
        data[1]


# ----------------------------------------------------------------- keypoints


def test_keypoints_take_the_place_of_features(tmp_path):
    plan = make_plan(tmp_path, {"a": 5})
    csv = write_keypoints(tmp_path / "aDLC.csv", 5)
    plan = replace(plan, inputs={"a": planned_input(csv, "")})
    data = SequenceData(plan, "train", config_of(input_type="keypoints"))
    assert data.num_features == 44 and data[0]["features"].shape == (44, 10)
    np.testing.assert_allclose(data[0]["features"][:16, :5].mean(dim=1), 0, atol=1e-5)
