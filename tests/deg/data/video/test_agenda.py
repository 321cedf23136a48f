"""Pieces cover every stretch once and in order, suit all decoders, and keep a fast engine busy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import Machine, Worker, recordings

from deg.data.video.agenda import AHEAD_BYTES, ALL_AHEAD_BYTES, LONGEST, SHORTEST, Agenda
from deg.data.video.stretch import BLOCK_BYTES, Stretch
from deg.data.video.transform import FrameTransform
from deg.types import VideoInfo

FRAME_BYTES = 3 * 224 * 224


def stretch(start: int = 0, stop: int = 5000, name: str = "a", size: int = 224) -> Stretch:
    return Stretch(VideoInfo(Path(f"{name}.mp4"), 10**6, size, size, 25.0, 1, 1), start, stop)


def cut(agenda: Agenda) -> list[tuple[int, int]]:
    found = []
    while (piece := agenda.begin()) is not None:
        found.append((piece.part.start, piece.part.stop))
    return found


def lengths(pieces: list[tuple[int, int]]) -> list[int]:
    return [stop - start for start, stop in pieces]


# Stretches


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4)])
def test_a_stretch_that_runs_backwards_is_a_defect(start, stop):
    with pytest.raises(ValueError, match="expected 0 <= start <= stop"):
        stretch(start, stop)


def test_a_part_lies_within_its_stretch():
    assert len(stretch(10, 50).part(20, 50)) == 30
    with pytest.raises(ValueError, match=r"expected a part of \[10, 50\)"):
        stretch(10, 50).part(20, 51)


@pytest.mark.parametrize(("size", "frames"), [(224, 64), (512, 21), (1080, 4), (4000, 1)])
def test_a_block_is_bounded_in_bytes(size, frames):
    assert stretch(size=size).block_frames(64) == frames
    assert frames == 1 or frames * stretch(size=size).frame_bytes <= BLOCK_BYTES


def test_the_size_of_a_frame_is_that_after_the_transform():
    assert replace(stretch(), transform=FrameTransform(resize=(10, 20))).frame_bytes == 600
    assert replace(stretch(), transform=FrameTransform(crop_size=500)).frame_bytes == FRAME_BYTES, "it cannot be done"


# Pieces


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=6),
    st.integers(1, 16),
    st.integers(1, 64),
    st.integers(1, 4000),
    st.lists(st.integers(0, 3000), max_size=30).map(sorted),
)
def test_pieces_cover_every_frame_once_and_in_order(ends, decoders, block, ahead_frames, entries):
    stretches = [stretch(min(pair), max(pair), name=str(number)) for number, pair in enumerate(ends)]
    agenda = Agenda(decoders, block, ahead_frames * FRAME_BYTES)
    agenda.expect(stretches)
    for wanted in agenda._line:
        wanted.entries = entries
    frames = [(one.video.path, frame) for one in stretches for frame in range(one.start, one.stop)]
    found = []
    while (piece := agenda.begin()) is not None:
        assert 0 < len(piece.part) < max(LONGEST, block) + block
        found += [(piece.part.video.path, frame) for frame in range(piece.part.start, piece.part.stop)]
    assert found == frames


def test_first_pieces_are_short_and_give_work_to_all_decoders():
    agenda = Agenda(4, 64)
    agenda.expect([stretch(0, 4 * (256 + 512) + 3 * 1024)])
    assert lengths(cut(agenda)) == [256] * 4 + [512] * 4 + [1024] * 3
    assert SHORTEST == 256 and LONGEST * FRAME_BYTES < AHEAD_BYTES


def test_a_short_video_in_the_middle_of_work_is_one_piece():
    agenda = Agenda(2, 64)
    agenda.expect([stretch(0, 2000), *(stretch(0, 900, name=str(number)) for number in range(3))])
    assert lengths(cut(agenda))[-3:] == [900, 900, 900]


def test_pieces_of_large_frames_are_as_long_as_a_decoder_may_hold():
    agenda = Agenda(2, 64)
    agenda.expect([stretch(0, 200, size=1080)])
    assert set(lengths(cut(agenda))[:-1]) == {AHEAD_BYTES // (3 * 1080 * 1080) // 4 * 4}


def test_later_pieces_begin_where_decoding_begins_at_little_cost():
    agenda = Agenda(1, 64)
    agenda.expect([stretch(0, 4000)])
    agenda.begin()
    agenda._line[0].entries = list(range(266, 4000, 250))
    pieces = cut(agenda)
    assert all((start - 16) % 250 == 0 for start, _ in pieces[1:])
    assert all(length >= 512 for length in lengths(pieces)[2:-1])


def test_an_entry_that_is_too_early_is_not_taken():
    agenda = Agenda(1, 64)
    agenda.expect([stretch(0, 4000)])
    agenda._line[0].entries = [100]
    assert cut(agenda)[0] == (0, 256)


# What is expected


def test_what_is_expected_later_comes_after_what_was_expected_before():
    agenda = Agenda(2, 64)
    agenda.expect([stretch(0, 400, name="a")])
    agenda.expect([stretch(0, 200, name="b"), stretch(0, 200, name="c")])
    assert [agenda.begin().part.video.path.stem for _ in range(4)] == ["a", "a", "b", "c"]
    assert agenda.begin() is None


def test_what_is_cleared_is_dropped():
    agenda = Agenda(2, 64)
    agenda.expect([stretch(name="a"), stretch(name="b")])
    piece = agenda.begin()
    agenda.clear()
    assert piece.wanted.is_dropped and agenda.begin() is None


def test_all_decoders_together_hold_a_bounded_number_of_bytes():
    assert Agenda(14, 64).has_room(AHEAD_BYTES - 1, 1) and not Agenda(14, 64).has_room(AHEAD_BYTES, 1)
    share = ALL_AHEAD_BYTES // 64
    assert Agenda(64, 64).has_room(share - 1, 1) and not Agenda(64, 64).has_room(share, 1)


def test_claiming_drops_what_was_expected_before():
    agenda = Agenda(2, 64)
    agenda.expect([stretch(name=name) for name in "abc"])
    assert agenda.claim(stretch(name="b")).is_claimed
    assert [wanted.stretch.video.path.stem for wanted in agenda._line] == ["b", "c"]
    agenda.claim(stretch(name="x"))
    assert [wanted.stretch.video.path.stem for wanted in agenda._line] == ["x"]


def test_the_same_stretch_can_be_taken_again():
    agenda = Agenda(1, 64)
    agenda.expect([stretch(), stretch()])
    first = agenda.claim(stretch())
    assert agenda.claim(stretch()) is not first and first.is_dropped


# The speed of a worker, by a model


ENGINES = (1300.0, 7000.0, 13000.0)
SPANS = (900, 1800, 9000, 108000)
FRAMES = 540_000


def speed(machine: Machine, span_frames: int) -> float:
    whole = recordings(span_frames, FRAMES // span_frames)
    size = max(27_000 // span_frames, 1)
    units = [whole[first : first + size] for first in range(0, len(whole), size)]
    return Worker(machine, units).frames_per_second()


@pytest.mark.slow
@pytest.mark.parametrize("decoders", [3, 14])
@pytest.mark.parametrize("span_frames", SPANS)
def test_a_worker_is_as_fast_as_its_engine_or_its_decoders(span_frames, decoders):
    for engine_fps in ENGINES:
        machine = Machine(engine_fps, decoders)
        assert speed(machine, span_frames) >= 0.95 * min(engine_fps, decoders * machine.decoder_fps)


@pytest.mark.slow
def test_a_worker_holds_no_more_than_its_decoders_may():
    worker = Worker(Machine(1300.0), [recordings(9000, 6)])
    worker.frames_per_second()
    assert AHEAD_BYTES < worker.most_bytes <= 14 * AHEAD_BYTES
