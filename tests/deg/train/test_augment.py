"""Augmentation equals kornia's pipeline with the same draws, and draws the same for any number of ranks."""

from __future__ import annotations

from dataclasses import fields, replace

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.enhance import adjust_hue

from deg.arithmetic.sampling import share
from deg.options.schema import Augs
from deg.train.augment import UNCHANGED, Draws, _changed, augment, draw, normalise, stack_frames

OFF = Augs(brightness=0, contrast=0, hue=0, saturation=0, grayscale=0, LR=0, UD=0, degrees=0)
EVERYTHING = Augs(brightness=0.5, contrast=0.4, hue=0.3, saturation=0.6, color_p=0.6, UD=0.5, degrees=40)
FRAMES, HEIGHT, WIDTH = 3, 20, 31


pytestmark = pytest.mark.usefixtures("one_thread")


def clips(count: int, seed: int = 0) -> torch.Tensor:
    """Return frames of noise, all different, with black, white, grey and pure colours among their pixels."""
    clips_BCTHW = torch.rand(count, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    clips_BCTHW[:, :, :, 8:16, 8:16] = clips_BCTHW[:, :, :, 8:16, 8:16].round()
    clips_BCTHW[:, 1:, :, 5] = clips_BCTHW[:, :1, :, 5]
    return clips_BCTHW


def same(first: Draws, second: Draws) -> bool:
    return all(np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(Draws))


def nothing(count: int) -> Draws:
    return draw(OFF, count, seed=0, batch=0)


def kornia_pipeline(clip_CTHW: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Apply DeepEthogram's pipeline, kornia's VideoSequential, to one clip, with the drawn steps and values."""
    degrees, jitter_4 = draws.degrees_B[0], draws.jitter_B4[0]
    factors = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    steps = [
        (draws.mirrored_B[0], K.RandomHorizontalFlip(p=1), {}),
        (draws.upended_B[0], K.RandomVerticalFlip(p=1), {}),
        (degrees != 0, K.RandomRotation(40.0, p=1), {"degrees": degrees}),
        (
            (jitter_4 != UNCHANGED).any(),
            K.ColorJitter(0.5, 0.5, 0.5, 0.5, p=1),
            dict(zip(factors, jitter_4, strict=True)),
        ),
        (draws.grey_B[0], K.RandomGrayscale(p=1), {}),
    ]
    applied = [(step, values) for applies, step, values in steps if applies]
    if not applied:
        return clip_CTHW
    pipeline = K.VideoSequential(*(step for step, _ in applied), data_format="BCTHW", same_on_frame=True)
    parameters = pipeline.forward_parameters(clip_CTHW[None].shape)
    for parameter, (_, values) in zip(parameters, applied, strict=True):
        parameter.data.update({name: torch.full((FRAMES,), float(value)) for name, value in values.items()})
        if "order" in parameter.data:
            parameter.data["order"] = torch.tensor(draws.order)
    return pipeline(clip_CTHW[None], params=parameters)[0]


# ---- what is done


@pytest.mark.parametrize("batch", range(6))
def test_numbers_are_those_of_kornias_own_pipeline(batch):
    before = clips(8, seed=batch)
    draws = draw(EVERYTHING, 8, seed=1, batch=batch)
    expected = [kornia_pipeline(before[i], draws.part(range(i, i + 1))) for i in range(8)]
    assert torch.allclose(augment(before, draws), torch.stack(expected), atol=1e-5)


def test_hue_is_turned_as_kornia_turns_it():
    before = clips(9)
    turns_B = np.linspace(-0.5, 0.5, 9, dtype=np.float32)
    draws = replace(nothing(9), jitter_B4=np.stack([*np.ones((3, 9), np.float32), turns_B], axis=1))
    expected = adjust_hue(before.transpose(1, 2), torch.from_numpy(turns_B) * 2 * torch.pi).transpose(1, 2)
    assert torch.allclose(augment(before, draws), expected, atol=1e-5)


def test_a_clip_turned_by_a_right_angle_is_the_clip_turned_by_a_right_angle():
    square = clips(1)[..., :HEIGHT, :HEIGHT]
    draws = replace(nothing(1), degrees_B=np.array([90], np.float32))
    assert torch.allclose(augment(square, draws), square.rot90(1, (-2, -1)), atol=1e-4)


def test_what_turns_in_from_outside_is_black():
    draws = replace(nothing(1), degrees_B=np.array([45], np.float32))
    after = augment(torch.ones(1, 3, FRAMES, HEIGHT, HEIGHT), draws)
    assert after[..., 0, 0].eq(0).all()
    assert after[..., HEIGHT // 2, HEIGHT // 2].allclose(torch.tensor(1.0))


def test_all_frames_of_a_clip_change_alike():
    """The clip holds one frame eleven times."""
    before = clips(6)[:, :, :1].expand(-1, -1, 11, -1, -1)
    after = augment(before, draw(EVERYTHING, 6, seed=0, batch=0))
    assert after.eq(after[:, :, :1]).all()


def test_what_happens_to_a_clip_does_not_depend_on_the_others():
    """Nor does it depend on the method: a CPU takes clips one by one, a GPU applies each step to all chosen clips."""
    before = clips(8)
    for batch in range(4):
        draws = draw(EVERYTHING, 8, seed=0, batch=batch)
        at_once = _changed(before.transpose(1, 2).contiguous(), draws).transpose(1, 2)
        assert torch.allclose(at_once, augment(before, draws), atol=1e-6)


def test_the_number_of_threads_changes_nothing_and_stays():
    before = clips(5)
    draws = draw(EVERYTHING, 5, seed=0, batch=0)
    alone = augment(before, draws)
    torch.set_num_threads(3)
    assert torch.equal(augment(before, draws), alone)
    assert torch.get_num_threads() == 3


def test_with_everything_off_clips_stay_as_they_are():
    before = clips(4)
    assert torch.equal(augment(before, draw(OFF, 4, seed=0, batch=0)), before)


def test_the_clips_given_are_left_alone():
    before = clips(4)
    kept = before.clone()
    augment(before, draw(EVERYTHING, 4, seed=0, batch=0))
    assert torch.equal(before, kept)


def test_layout_in_memory_does_not_matter():
    before = clips(4)
    draws = draw(EVERYTHING, 4, seed=0, batch=0)
    frame_by_frame = before.transpose(1, 2).contiguous().transpose(1, 2)
    interleaved = before.contiguous(memory_format=torch.channels_last_3d)
    for other in (frame_by_frame, interleaved):
        assert torch.equal(augment(other, draws), augment(before, draws))


def test_under_autocast_numbers_are_those_of_float32():
    before = clips(4)
    draws = draw(EVERYTHING, 4, seed=0, batch=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = augment(before, draws)
    assert after.dtype == torch.float32
    assert torch.equal(after, augment(before, draws))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 10**6))
def test_results_stay_colours(seed, batch):
    after = augment(clips(2, seed=batch), draw(EVERYTHING, 2, seed=seed, batch=batch))
    assert after.isfinite().all()
    assert after.min() >= -1e-6
    assert after.max() <= 1 + 1e-6


# ---- what is drawn


def test_draws_are_a_function_of_seed_and_batch():
    def drawn(seed, batch):
        return draw(EVERYTHING, 16, seed=seed, batch=batch)

    assert same(drawn(5, 7), drawn(5, 7))
    assert not same(drawn(5, 7), drawn(5, 8))
    assert not same(drawn(5, 7), drawn(6, 7))


@given(st.integers(0, 20), st.integers(1, 5))
def test_ranks_together_have_the_draws_of_one(count, ranks):
    whole = draw(EVERYTHING, count, seed=0, batch=3)
    parts = [whole.part(share(count, rank, ranks)) for rank in range(ranks)]
    for name in ("mirrored_B", "upended_B", "degrees_B", "jitter_B4", "grey_B"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.order for part in parts} == {whole.order}


def test_probabilities_and_ranges_are_those_of_the_options():
    augs = Augs(
        LR=0.3, UD=0.1, degrees=20, color_p=0.7, brightness=0.25, contrast=1.5, hue=0.1, saturation=0, grayscale=0.4
    )
    draws = draw(augs, 20_000, seed=0, batch=0)
    jittered_B = draws.jitter_B4[:, 0] != 1
    shares = [
        part.mean() for part in (draws.mirrored_B, draws.upended_B, draws.degrees_B != 0, jittered_B, draws.grey_B)
    ]
    assert shares == pytest.approx([0.3, 0.1, 0.5, 0.7, 0.4], abs=0.015)

    angles = draws.degrees_B[draws.degrees_B != 0]
    assert (angles.min(), angles.max(), angles.mean()) == pytest.approx((-20, 20, 0), abs=0.5)
    low, high = draws.jitter_B4.min(axis=0), draws.jitter_B4.max(axis=0)
    assert low == pytest.approx([0.75, 0, 1, -0.1], abs=0.01)
    assert high == pytest.approx([1.25, 2.5, 1, 0.1], abs=0.01)
    assert (draws.jitter_B4[~jittered_B] == UNCHANGED).all()


def test_what_happens_to_a_clip_is_independent():
    """Each step is independent of every other step, and of the next clip."""
    draws = draw(Augs(UD=0.5), 20_000, seed=0, batch=0)
    steps = np.stack(
        [draws.mirrored_B, draws.upended_B, draws.degrees_B != 0, draws.jitter_B4[:, 0] != 1, draws.grey_B]
    )
    correlation = np.corrcoef(np.concatenate([steps[:, :-1], steps[:, 1:]]))
    assert np.abs(correlation - np.eye(10)).max() < 0.03


def test_every_order_of_the_jitter_comes_up():
    orders = {draw(EVERYTHING, 1, seed=0, batch=batch).order for batch in range(300)}
    assert len(orders) == 24


def test_an_option_changed_changes_no_other_draw():
    with_flips = draw(EVERYTHING, 16, seed=0, batch=0)
    without = draw(replace(EVERYTHING, LR=0), 16, seed=0, batch=0)
    assert not without.mirrored_B.any()
    assert same(replace(without, mirrored_B=with_flips.mirrored_B), with_flips)


# ---- what the network takes


def test_a_clip_in_the_mean_colour_is_normalised_to_0():
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.5)
    colour = torch.tensor(mean).view(1, 3, 1, 1, 1).expand(2, 3, 11, 4, 4)
    assert normalise(colour, mean, std).abs().max() < 1e-6
    brighter = normalise(colour + 0.1, mean, std)[0, :, 0, 0, 0]
    assert brighter.tolist() == pytest.approx([1, 0.5, 0.2], abs=1e-6)


def test_frames_are_stacked_one_after_the_other_red_first():
    """Channel c of frame t holds 10 t + c."""
    clips_BCTHW = (
        (torch.arange(11.0)[None] * 10 + torch.arange(3.0)[:, None]).view(1, 3, 11, 1, 1).expand(2, 3, 11, 4, 4)
    )
    stacked = stack_frames(clips_BCTHW)
    assert stacked.shape == (2, 33, 4, 4)
    assert stacked[1, :, 0, 0].tolist() == [10 * t + c for t in range(11) for c in range(3)]


def test_stacking_the_frames_of_augmented_clips_copies_nothing():
    after = normalise(augment(clips(2), draw(EVERYTHING, 2, seed=0, batch=0)), (0, 0, 0), (1, 1, 1))
    assert stack_frames(after).data_ptr() == after.data_ptr()
