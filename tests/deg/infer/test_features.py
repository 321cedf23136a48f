"""The engine for features: each window holds exactly the frames that its label needs, however the video is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from fill import fill
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deg.arithmetic.units import GRAIN
from deg.arithmetic.windows import WINDOW, reach
from deg.errors import RunError
from deg.infer import features
from deg.infer.features import FeatureEngine, choose_batch_size
from deg.models.two_stream import TwoStreamOutput, build_two_stream
from deg.options.schema import FeatureExtractor, FlowGenerator
from deg.runs.plans import FeatureTask

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.2, 0.999), (0.25, 0.5, 0.125)
PAD = (127, 51, 254)
"""The truncated mean colour, which replaces frames outside the video."""


pytestmark = pytest.mark.usefixtures("one_thread")


def task(**options) -> FeatureTask:
    sections = {
        "feature_extractor": FeatureExtractor(final_activation=options.pop("activation", "sigmoid")),
        "flow_generator": FlowGenerator(),
    }
    rest = {"weights": "", "flow_weights": None, "crop_size": None, "resize": None, "pad": None, "num_classes": 2}
    return FeatureTask(**sections, **rest, mean=MEAN, std=STD, **{"precision": "fp32", "batch_size": 4, **options})


class Seen(nn.Module):
    """A network whose features are what it sees: the colours of two pixels in each frame of the window, in bytes."""

    def __init__(self, stacks_frames: bool = True, most: int = 10**6):
        super().__init__()
        self.stacks_frames, self.most, self.batches = stacks_frames, most, []

    def forward(self, clip: torch.Tensor) -> TwoStreamOutput:
        self.batches.append(len(clip))
        if len(clip) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if self.stacks_frames:
            clip = clip.unflatten(1, (WINDOW, 3)).transpose(1, 2)
        assert clip.shape[1:3] == (3, WINDOW)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in (MEAN, STD))
        colours = (clip.float() * std + mean) * 255
        first, last = colours[:, :, :, 0, 0].flatten(1), colours[:, :, :, -1, -1].flatten(1)
        return TwoStreamOutput(first[:, :2] / 100, first, last, None, None)


def video(num_frames: int) -> np.ndarray:
    """Return uint8 (T, 2, 3, 3): one colour for each frame, and another in its last pixel."""
    frame = np.arange(num_frames)
    colour = np.stack([frame % 251, (frame * 7) % 253, (frame // 251) % 256], axis=1).astype(np.uint8)
    frames = np.broadcast_to(colour[:, None, None], (num_frames, 2, 3, 3)).copy()
    frames[:, -1, -1] = 255 - frames[:, -1, -1]
    return frames


def blocks_of(frames: np.ndarray, sizes) -> list[np.ndarray]:
    edges = np.minimum(np.cumsum([0, *sizes, len(frames)]), len(frames))
    return [frames[a:b] for a, b in pairwise(edges) if b > a]


def run(engine: FeatureEngine, frames: np.ndarray, start: int, stop: int, sizes=(5, 1, 30)) -> list:
    needed = reach(start, stop, len(frames))
    return list(engine.run(blocks_of(frames[needed.first : needed.last], sizes), start, stop, len(frames)))


def joined(blocks: list, name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


def expected(frames: np.ndarray, start: int, stop: int, pixel: int) -> np.ndarray:
    """Return the colours of the windows of labels [start, stop): (labels, 3 * 11), colour by colour."""
    padding = np.tile(np.array(PAD, np.uint8), (5, 1))
    colours = np.concatenate([padding, frames[:, pixel, pixel], padding])
    return np.stack([colours[label : label + WINDOW].T.ravel() for label in range(start, stop)])


@st.composite
def scenes(draw):
    num_frames = draw(st.integers(1, 60))
    start = draw(st.integers(0, num_frames - 1))
    return num_frames, start, draw(st.integers(start + 1, num_frames)), draw(st.lists(st.integers(1, 20), max_size=5))


@pytest.mark.slow
@settings(deadline=None)
@given(scenes(), st.booleans(), st.sampled_from([1, 2, 8, 32]))
def test_every_window_holds_its_eleven_frames_in_order(scene, stacks_frames, batch_size):
    num_frames, start, stop, sizes = scene
    frames = video(num_frames)
    engine = FeatureEngine(Seen(stacks_frames), task(batch_size=batch_size), CPU)
    found = run(engine, frames, start, stop, sizes)
    np.testing.assert_array_equal(np.rint(joined(found, "spatial_features_TD")), expected(frames, start, stop, 0))
    np.testing.assert_array_equal(np.rint(joined(found, "flow_features_TD")), expected(frames, start, stop, -1))
    assert [label for block in found for label in range(block.start, block.stop)] == list(range(start, stop))


def test_frames_outside_the_video_have_the_mean_colour_truncated():
    engine = FeatureEngine(Seen(), task(), CPU)
    window = np.rint(run(engine, video(1), 0, 1)[0].spatial_features_TD).reshape(3, WINDOW)
    assert window[:, :5].T.tolist() == [list(PAD)] * 5
    assert window[:, 6:].T.tolist() == [list(PAD)] * 5


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.sets(st.integers(1, 18)), st.sampled_from([2, 4, 16]))
def test_a_video_cut_where_batches_begin_gives_the_same_bits(num_frames, cuts, batch_size):
    frames = video(num_frames)
    engine = FeatureEngine(Seen(), task(batch_size=batch_size), CPU)
    whole = run(engine, frames, 0, num_frames)
    edges = [0, *sorted(16 * cut for cut in cuts if 16 * cut < num_frames), num_frames]
    parts = [block for a, b in pairwise(edges) for block in run(engine, frames, a, b, (3, 8))]
    for name in ("logits_TK", "probabilities_TK", "spatial_features_TD", "flow_features_TD"):
        assert joined(parts, name).tobytes() == joined(whole, name).tobytes()


@pytest.mark.slow
def test_the_real_network_gives_the_same_bits_for_a_cut_video():
    wanted = task(batch_size=16)
    network = fill(build_two_stream(wanted.feature_extractor, wanted.flow_generator, 2))
    engine = FeatureEngine(network, wanted, CPU)
    frames = np.random.default_rng(0).integers(0, 256, (53, 32, 32, 3), dtype=np.uint8)
    whole = run(engine, frames, 0, 53, (64,))
    parts = [*run(engine, frames, 0, 16), *run(engine, frames, 16, 48), *run(engine, frames, 48, 53)]
    assert np.ptp(joined(whole, "logits_TK"), axis=0).min() > 0
    for name in ("logits_TK", "probabilities_TK", "spatial_features_TD", "flow_features_TD"):
        assert joined(parts, name).tobytes() == joined(whole, name).tobytes()


def test_the_network_that_is_given_is_not_changed():
    wanted = task()
    network = fill(build_two_stream(wanted.feature_extractor, wanted.flow_generator, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FeatureEngine(network, wanted, CPU)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_memory_for_frames_does_not_grow_with_the_video():
    """Blocks are requested only when a window needs them."""
    ahead = []
    frames = video(2000)

    def blocks():
        for first in range(0, 2000, 32):
            ahead.append(first)
            yield frames[first : first + 32]

    engine = FeatureEngine(Seen(), task(batch_size=16), CPU)
    for block in engine.run(blocks(), 0, 2000, 2000):
        assert ahead[-1] <= block.stop + 3 * 32


# ---------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("given_frames", [0, 9, 14])
def test_a_decoder_that_gives_too_few_frames_is_a_defect(given_frames):
    engine = FeatureEngine(Seen(), task(), CPU)
    with pytest.raises(RuntimeError, match=f"expected 15 frames from the decoder, got {given_frames}"):
        list(engine.run([video(given_frames)] if given_frames else [], 0, 10, 100))


def test_a_decoder_that_gives_too_many_frames_is_a_defect():
    engine = FeatureEngine(Seen(), task(), CPU)
    with pytest.raises(RuntimeError, match="more than it was asked for"):
        list(engine.run([video(15), video(1)], 0, 10, 100))


def test_an_error_of_the_decoder_at_the_end_is_raised():
    """It may say, for example, that a file changed while it was read."""

    def blocks():
        yield video(15)
        raise OSError("the file changed")

    engine = FeatureEngine(Seen(), task(), CPU)
    with pytest.raises(OSError, match="changed"):
        list(engine.run(blocks(), 0, 10, 100))


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_out_of_memory_halves_the_batch_and_gives_the_same_results(most):
    frames = video(61)
    plain = FeatureEngine(Seen(), task(batch_size=16), CPU)
    engine = FeatureEngine(Seen(most=most), task(batch_size=16), CPU)
    found = run(engine, frames, 0, 61)
    assert (
        joined(found, "spatial_features_TD").tobytes()
        == joined(run(plain, frames, 0, 61), "spatial_features_TD").tobytes()
    )
    assert engine.batch_size == {1: 1, 2: 2, 3: 2, 8: 8}[most]
    failures = [size for size in engine.network.batches if size > most]
    assert len(failures) == {1: 4, 2: 3, 3: 3, 8: 1}[most]


def test_a_window_that_does_not_fit_at_all_is_an_error_with_a_remedy():
    engine = FeatureEngine(Seen(most=0), task(batch_size=8), CPU)
    with pytest.raises(RunError, match=r"single window does not fit.*augs\.resize"):
        run(engine, video(20), 0, 20)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_all_words_for_out_of_memory_are_known(error):
    class Once(Seen):
        def forward(self, clip):
            if not self.batches:
                self.batches.append(len(clip))
                raise error
            return super().forward(clip)

    engine = FeatureEngine(Once(), task(batch_size=8), CPU)
    run(engine, video(20), 0, 20)
    assert engine.batch_size == 4


def test_other_errors_are_not_taken_for_it():
    class Broken(Seen):
        def forward(self, clip):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(FeatureEngine(Broken(), task(), CPU), video(20), 0, 20)


def test_the_batch_on_a_cpu_is_chosen_without_trial():
    engine = FeatureEngine(Seen(), task(batch_size="auto"), CPU)
    run(engine, video(40), 0, 40)
    assert engine.batch_size == choose_batch_size(engine, (2, 3)) == features.CPU_BATCH
    assert GRAIN % features.CPU_BATCH == 0


# ---------------------------------------------------------------------------------------------------- numbers


def test_probabilities_are_sigmoid_or_softmax_of_the_logits():
    sigmoid = run(FeatureEngine(Seen(), task(), CPU), video(20), 0, 20)
    softmax = run(FeatureEngine(Seen(), task(activation="softmax"), CPU), video(20), 0, 20)
    logits = torch.from_numpy(joined(sigmoid, "logits_TK"))
    np.testing.assert_array_equal(joined(sigmoid, "probabilities_TK"), torch.sigmoid(logits).numpy())
    np.testing.assert_allclose(joined(softmax, "probabilities_TK"), torch.softmax(logits, 1).numpy(), rtol=1e-6)


def test_results_are_float32_whatever_the_precision():
    found = run(FeatureEngine(Seen(), task(precision="bf16"), CPU), video(20), 0, 20)
    assert {joined(found, name).dtype for name in ("logits_TK", "probabilities_TK", "flow_features_TD")} == {
        np.dtype(np.float32)
    }


def test_bf16_reaches_the_network():
    class Typed(Seen):
        def forward(self, clip):
            self.dtype = clip.dtype
            return super().forward(clip)

    engine = FeatureEngine(Typed(), task(precision="bf16"), CPU)
    run(engine, video(20), 0, 20)
    assert engine.network.dtype == torch.bfloat16


def test_a_task_comes_back_from_plain_values():
    import json

    wanted = task()
    assert FeatureTask.from_dict(json.loads(json.dumps(wanted.as_dict()))) == wanted
