"""Merging keeps every frame exactly once and as it was computed, or gives a reason; no finished work is lost."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from scenes.run import do_units, frame_numbers, make_plan, make_run
from scripted_engine import rows_of

from deg.arithmetic.units import spans_by_key
from deg.data import results
from deg.errors import RunError
from deg.runs import merge as merging
from deg.runs.merge import Merged, finish, is_done, merge, merge_recording, wanted_mark
from deg.runs.planned import FeatureSource
from deg.types import Span, Unit

LENGTHS = {"a": 600, "b": 40, "c": 1500}


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, LENGTHS, units=3)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


def units_of(plan, key: str) -> list[int]:
    return [unit.index for unit, _ in spans_by_key(plan.units)[key]]


def change(run, index: int, what) -> None:
    with h5py.File(run.result_file(index), "a") as file:
        what(file)


def test_the_scene_has_recordings_in_several_units_and_units_of_several_recordings(plan):
    assert len(units_of(plan, "c")) > 1
    assert any(len(unit.spans) > 1 for unit in plan.units)


def test_every_recording_gets_its_frames_in_order(run, plan):
    do_units(run, plan)
    assert merge(run, plan).done == ("a", "b", "c")
    for key, frames in LENGTHS.items():
        assert frame_numbers(plan.outputs[key]).tolist() == list(range(frames))
        with h5py.File(plan.outputs[key]) as file:
            for name, rows in rows_of(0, frames, 3).items():
                assert file["resnet18"][name][()].tobytes() == rows.tobytes()


def test_the_cut_does_not_show_in_the_result(tmp_path, run, plan):
    whole = replace(plan, units=tuple(make_plan(tmp_path, LENGTHS, units=1).units))
    other = make_run(tmp_path, whole)
    do_units(run, plan)
    merge(run, plan)
    sharded = {key: plan.outputs[key].read_bytes() for key in LENGTHS}
    do_units(other, whole)
    merge(other, whole)
    for key in LENGTHS:
        with h5py.File(plan.outputs[key]) as file:
            values = {name: file["resnet18"][name][()] for name in file["resnet18"]}
        plan.outputs[key].write_bytes(sharded[key])
        with h5py.File(plan.outputs[key]) as file:
            for name, rows in values.items():
                np.testing.assert_array_equal(file["resnet18"][name][()], rows)


def test_a_result_carries_the_mark_and_where_it_came_from(run, plan):
    do_units(run, plan)
    merge(run, plan)
    assert results.read_mark(plan.outputs["a"], "resnet18") == wanted_mark(plan, "a")
    assert is_done(plan, "a")
    with h5py.File(plan.outputs["a"]) as file:
        told = json.loads(file["resnet18"].attrs["deg_provenance"])
    assert told["run"] == run.name and told["engines"] == [{"device": "script", "precision": "fp32"}]


@pytest.mark.parametrize("change", [{"settings": ""}, {"weights": {}}, {"sources": {"a": FeatureSource("x", "", {})}}])
def test_a_result_of_other_weights_or_settings_is_not_the_wanted_one(run, plan, change):
    do_units(run, plan)
    merge(run, plan)
    assert not is_done(replace(plan, **change), "a")


def test_a_recording_waits_for_its_units_and_the_others_are_merged(run, plan):
    do_units(run, plan, set(range(len(plan.units))) - {units_of(plan, "c")[-1]})
    merged = merge(run, plan)
    assert merged.waiting == ("c",) and not plan.outputs["c"].exists()
    assert merged.done == ("a", "b")
    assert not merged.is_complete


def test_merging_again_changes_nothing(run, plan):
    do_units(run, plan)
    merge(run, plan)
    before = {key: (path.stat().st_ino, path.read_bytes()) for key, path in plan.outputs.items()}
    assert merge(run, plan).done == ("a", "b", "c")
    assert {key: (path.stat().st_ino, path.read_bytes()) for key, path in plan.outputs.items()} == before


def test_a_result_that_went_away_is_merged_again(run, plan):
    do_units(run, plan)
    merge(run, plan)
    plan.outputs["a"].unlink()
    assert merge(run, plan).done == ("a", "b", "c")
    assert plan.outputs["a"].exists()


def test_recordings_known_to_be_settled_are_not_looked_at(run, plan):
    do_units(run, plan)
    assert merge(run, plan, skip={"a"}).done == ("b", "c")
    assert not plan.outputs["a"].exists()


# ---------------------------------------------------------------------------------------------------- faults


def test_a_recording_that_could_not_be_decoded_is_named_with_its_reason(run, plan):
    do_units(run, plan, faults={"b": "the file is damaged"})
    merged = merge(run, plan)
    assert merged.done == ("a", "c")
    assert "b.mp4: the file is damaged" in merged.failed["b"]
    assert merged.is_complete


def test_spans_that_decoded_different_frames_are_not_put_together(run, plan):
    do_units(run, plan)
    second = units_of(plan, "c")[1]
    change(run, second, lambda file: file["0"].attrs.modify("head_crc32", file["0"].attrs["head_crc32"] + 1))
    reason = merge(run, plan).failed["c"]
    assert "decodes differently if decoding starts in the middle of the video" in reason
    assert "Re-encode" in reason


@pytest.mark.parametrize("units", [[(0, 100), (101, 600)], [(0, 300), (200, 600)], [(0, 599)]])
def test_frames_that_are_missing_or_double_are_noticed(tmp_path, units):
    plan = make_plan(tmp_path, {"a": 600})
    spans = tuple(Unit(index, (Span("a", *span),)) for index, span in enumerate(units))
    plan = replace(plan, units=spans)
    run = make_run(tmp_path, plan)
    do_units(run, plan)
    assert "a: the plan" in merge(run, plan).failed["a"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    with h5py.File(path) as file:
        place = file["0"]["P"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 8] ^= 64
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def of_another_unit(path):
    with h5py.File(path, "a") as file:
        file["0"].attrs["span"] = json.dumps(["c", 0, 1])


def without_rows(path):
    with h5py.File(path, "a") as file:
        del file["0"]["P"]


@pytest.mark.parametrize("damage", [cut_short, flip_a_byte, empty, of_another_unit, without_rows])
def test_a_unit_result_that_the_disk_lost_is_removed_and_done_again(run, plan, damage):
    do_units(run, plan)
    second = units_of(plan, "c")[1]
    damage(run.result_file(second))
    merged = merge(run, plan)
    assert merged.waiting == ("c",) and not merged.failed
    assert run.finished_units() == {unit.index for unit in plan.units} - {second}
    assert not plan.outputs["c"].exists()
    do_units(run, plan, [second])
    assert merge(run, plan).is_complete
    assert frame_numbers(plan.outputs["c"]).tolist() == list(range(1500))


def test_a_hiccup_of_the_system_costs_no_results(run, plan, monkeypatch):
    do_units(run, plan)
    real = h5py.File

    def too_many(path, *arguments, **options):
        if "result.h5" in str(path):
            raise OSError(24, "Too many open files")
        return real(path, *arguments, **options)

    monkeypatch.setattr(h5py, "File", too_many)
    merged = merge(run, plan)
    assert set(merged.unwritten) == set(LENGTHS)
    assert run.finished_units() == {unit.index for unit in plan.units}


def test_an_outputs_file_that_is_open_elsewhere_does_not_cost_what_was_computed(run, plan):
    do_units(run, plan)
    plan.outputs["a"].write_text("not HDF5")
    merged = merge(run, plan)
    assert "not a readable HDF5 file" in merged.unwritten["a"]
    assert merged.done == ("b", "c") and not merged.is_complete
    with pytest.raises(RunError, match="expected a complete run"):
        finish(run, merged)
    plan.outputs["a"].unlink()
    assert merge(run, plan).is_complete


def test_a_full_disk_does_not_cost_what_was_computed(run, plan, monkeypatch):
    do_units(run, plan)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "write_group", full)
    merged = merge(run, plan)
    assert merged.unwritten["a"].startswith(f"{plan.outputs['a']}: No space left on device.")
    assert not merged.is_complete and run.finished_units()


# ---------------------------------------------------------------------------------------------------- the end


def test_the_end_of_a_run_keeps_its_outcome_and_drops_the_units_results(run, plan):
    do_units(run, plan, faults={"b": "the file is damaged"})
    finish(run, merge(run, plan))
    assert run.is_merged()
    outcome = json.loads(run.done_file.read_text())
    assert outcome["done"] == ["a", "c"] and list(outcome["failed"]) == ["b"]
    assert run.finished_units() == set()
    assert run.log_file(0).exists()


def test_a_run_in_which_something_waits_does_not_end(run):
    with pytest.raises(RunError, match="1 recordings wait"):
        finish(run, Merged(waiting=("a",)))
    assert not run.is_merged()


def test_rows_are_handed_over_in_pieces_of_bounded_size(run, plan, monkeypatch):
    monkeypatch.setattr(merging, "ROWS", 100)
    do_units(run, plan)
    sizes, open_files = [], []
    real = results.write_group

    def watch(path, group, *, blocks, **options):
        def watched():
            for block in blocks:
                sizes.append(len(block["P"]))
                open_files.append(len(h5py.h5f.get_obj_ids(types=h5py.h5f.OBJ_FILE)))
                yield block

        real(path, group, blocks=watched(), **options)

    monkeypatch.setattr(merging, "write_group", watch)
    merge_recording(run, plan, "c", spans_by_key(plan.units)["c"])
    assert sum(sizes) == 1500 and max(sizes) == 100
    assert max(open_files) <= 2  # one unit at a time, and the file that is written
