"""The scores of validation decide when the learning rate falls and when training ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deg.options.schema import Train
from deg.train.optimisation import Course, cosine


def course(mode="max", **options):
    options = Train(**{"lr": 1e-4, **options})
    return Course(options, torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], options.lr), mode)


def rates(course, scores):
    """Return the learning rate of each epoch, and the number of epochs at the end, if it ended."""
    used = []
    for done, score in enumerate(scores, start=1):
        used.append(course.lr)
        course.judge(score)
        if course.reason_to_stop(done):
            return used, done
        course.next_epoch(score)
    return used, None


def test_plateau_falls_step_by_step_to_the_floor_and_then_training_ends():
    """It falls to 1e-5, 1e-6 and 5e-7, each after `patience` epochs without improvement and one more, then ends."""
    used, ended = rates(course(patience=1), [0.5] * 50)
    assert sorted({float(f"{lr:.3g}") for lr in used}, reverse=True) == [1e-4, 1e-5, 1e-6, 5e-7]
    assert ended is not None and ended < 50


def test_a_score_that_grows_keeps_the_learning_rate():
    used, ended = rates(course(patience=1, num_epochs=30), [epoch / 30 for epoch in range(30)])
    assert set(used) == {1e-4} and ended == 30


def test_for_a_loss_less_is_better():
    used, _ = rates(course(mode="min", patience=0, num_epochs=5), [5.0, 4.0, 3.0, 2.0, 1.0])
    assert set(used) == {1e-4}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_no_number_is_worse_than_any(mode):
    judged = course(mode=mode)
    assert judged.judge(0.3)
    assert not judged.judge(float("nan"))
    assert judged.best == 0.3 and judged.worse_epochs == 1


def test_early_stopping_waits_for_patience_and_counts_a_tie_as_no_loss():
    options = {"stopping_type": "early", "patience": 2, "scheduler": None, "num_epochs": 100}
    assert rates(course(**options), [0.5, 0.4, 0.5, 0.4, 0.4, 0.9])[1] == 5
    assert rates(course(**options, early_stopping_begins=8), [0.5] + [0.1] * 20)[1] == 9


def test_num_epochs_ends_it_in_any_case():
    assert rates(course(stopping_type="num_epochs", num_epochs=4), [0.0] * 9)[1] == 4


def test_multistep_falls_at_the_milestones_by_the_reduction_factor():
    used, _ = rates(course(scheduler="multistep", milestones=(2, 4), reduction_factor=0.5, num_epochs=6), [1.0] * 6)
    assert used == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])


def test_cosine_comes_in_waves_each_half_as_high():
    used, _ = rates(course(scheduler="cosine", num_epochs=60), [1.0] * 60)
    assert used == pytest.approx([cosine(epoch, 1e-4) for epoch in range(60)])
    assert (used[0], used[25], used[50]) == pytest.approx((1e-4, 5e-5, 2.5e-5))
    assert used[24] < 1e-6 < used[12]


def test_without_a_scheduler_the_learning_rate_stays():
    assert set(rates(course(scheduler=None, num_epochs=9), [0.0] * 9)[0]) == {1e-4}


@pytest.mark.parametrize("scheduler", ["plateau", "cosine", "multistep", None])
def test_a_resumed_course_is_as_if_it_had_never_stopped(scheduler):
    options = Train(lr=1e-3, scheduler=scheduler, patience=1, milestones=(3, 7), num_epochs=99)
    scores = [0.1, 0.5, 0.4, 0.3, 0.3, 0.6, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4]

    def adam():
        return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], options.lr)

    whole = Course(options, adam(), "max")
    expected = rates(whole, scores)[0]
    optimizer = adam()
    first = Course(options, optimizer, "max")
    used = rates(first, scores[:5])[0]
    again = adam()
    second = Course(replace(options), again, "max")
    again.load_state_dict(optimizer.state_dict())
    second.restore(first.state())
    for score in scores[5:]:
        used.append(second.lr)
        second.judge(score)
        second.next_epoch(score)
    assert used == pytest.approx(expected)
    assert (second.best, second.worse_epochs) == (whole.best, whole.worse_epochs)
