"""Places: each name of `--on` has one, and stages and chain work at a new one as they are."""

from __future__ import annotations

import pytest
from scenes.place import Here
from scenes.project import make_labelled_project

from deg.launch.on import NAMES, place_named
from deg.launch.stages.chain import run_chain
from deg.launch.stages.request import ChainRequest


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_a_place_with_its_verbs(name):
    place = place_named(name)
    assert all(callable(getattr(place, verb)) for verb in ("how_many", "do_stages", "do_chain"))


@pytest.mark.slow
def test_the_whole_chain_is_done_by_workers_of_a_third_kind(tmp_path):
    project = make_labelled_project(tmp_path / "mice")
    request = ChainRequest(project, ("feature_extractor.weights=random",))
    report = run_chain(request, Here())
    assert [step.state for step in report.steps] == ["done"] * 6
    assert [step.state for step in run_chain(request, Here()).steps] == ["there"] * 2 + [
        "done",
        "there",
        "done",
        "there",
    ]
