"""Units of a plan: every frame is in exactly one span, cuts lie where batches begin, sizes are about equal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.units import GRAIN, SMALLEST_UNIT, missing_units, plan_units, spans_by_key

LENGTHS = st.lists(st.one_of(st.integers(0, 600), st.integers(0, 40_000)), max_size=30).map(
    lambda lengths: {f"video{i}": frames for i, frames in enumerate(lengths)}
)
WORKERS = {"devices": st.integers(1, 16), "units_per_device": st.integers(1, 8)}


@given(lengths=LENGTHS, **WORKERS, whole=st.booleans())
def test_units_hold_every_frame_exactly_once_and_in_order(lengths, devices, units_per_device, whole):
    units = plan_units(lengths, devices=devices, units_per_device=units_per_device, whole=whole)
    spans = [span for unit in units for span in unit.spans]
    at = {key: 0 for key in lengths}
    for span in spans:
        assert span.start == at[span.key] < span.stop
        at[span.key] = span.stop
    assert at == lengths
    keys = [span.key for span in spans]
    assert list(dict.fromkeys(keys)) == [key for key, frames in lengths.items() if frames]
    assert [unit.index for unit in units] == list(range(len(units)))


@given(lengths=LENGTHS, **WORKERS)
def test_cuts_fall_where_the_largest_batch_begins(lengths, devices, units_per_device):
    units = plan_units(lengths, devices=devices, units_per_device=units_per_device)
    assert all(span.start % GRAIN == 0 for unit in units for span in unit.spans)


@given(lengths=LENGTHS, **WORKERS)
def test_no_span_is_shorter_than_the_grain_but_whole_short_videos(lengths, devices, units_per_device):
    units = plan_units(lengths, devices=devices, units_per_device=units_per_device)
    for span in (span for unit in units for span in unit.spans):
        assert len(span) >= GRAIN or len(span) == lengths[span.key]


@given(lengths=LENGTHS, **WORKERS)
def test_units_are_of_equal_size_to_within_a_grain(lengths, devices, units_per_device):
    units = plan_units(lengths, devices=devices, units_per_device=units_per_device)
    share = max(sum(lengths.values()) / (devices * units_per_device), SMALLEST_UNIT)
    size = math.ceil(share / GRAIN) * GRAIN
    for unit in units[:-1]:
        assert size - GRAIN < unit.num_frames <= size + GRAIN
    assert all(unit.num_frames <= size + GRAIN for unit in units[-1:])


@given(frames=st.integers(1, 200_000), **WORKERS)
def test_one_recording_never_gives_more_units_than_were_asked_for(frames, devices, units_per_device):
    units = plan_units({"a": frames}, devices=devices, units_per_device=units_per_device)
    assert len(units) <= devices * units_per_device


@given(lengths=LENGTHS)
def test_one_unit_is_one_unit(lengths):
    assert len(plan_units(lengths, devices=1, units_per_device=1)) <= 1


def test_long_recordings_give_about_as_many_units_as_were_asked_for():
    units = plan_units({f"{i}": 100_000 for i in range(50)}, devices=16, units_per_device=6)
    assert 94 <= len(units) <= 96


@given(lengths=LENGTHS, **WORKERS)
def test_whole_recordings_are_never_cut(lengths, devices, units_per_device):
    units = plan_units(lengths, devices=devices, units_per_device=units_per_device, whole=True)
    for span in (span for unit in units for span in unit.spans):
        assert (span.start, span.stop) == (0, lengths[span.key])


def test_a_recording_without_frames_is_in_no_unit():
    assert plan_units({"empty": 0}, devices=1, units_per_device=1) == []


def test_a_few_frames_are_not_worth_more_than_one_unit():
    assert len(plan_units({"a": 200, "b": 200}, devices=8, units_per_device=8)) == 1


@pytest.mark.parametrize("wrong", [{"devices": 0, "units_per_device": 1}, {"devices": 1, "units_per_device": 0}])
def test_no_devices_and_no_units_are_refused(wrong):
    with pytest.raises(ValueError, match="at least one device and unit"):
        plan_units({"a": 10}, **wrong)


def test_work_grows_no_faster_than_the_number_of_recordings():
    """Each recording is looked at once. Accesses are counted, not timed."""
    looked = []

    class Watched(dict):
        def items(self):
            for item in super().items():
                looked.append(item)
                yield item

    units = plan_units(Watched({str(i): 1000 for i in range(100_000)}), devices=16, units_per_device=6)
    assert len(looked) == 100_000
    assert len(units) <= 16 * 6 + 1
    assert sum(len(unit.spans) for unit in units) <= 100_000 + len(units)


def test_missing_units_are_those_not_done():
    units = plan_units({"a": 5000}, devices=2, units_per_device=2)
    assert [unit.index for unit in missing_units(units, {0, 2, 99})] == [1, 3]


def test_spans_of_a_recording_come_in_order_of_frames_whatever_the_order_of_units():
    units = plan_units({"a": 100, "b": 3000}, devices=1, units_per_device=3)
    found = spans_by_key(reversed(units))["b"]
    assert [unit.spans[position].start for unit, position in found] == sorted(
        unit.spans[position].start for unit, position in found
    )
    assert all(unit.spans[position].key == "b" for unit, position in found)
