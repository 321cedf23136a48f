"""A training as a whole: what it leaves, and that its end does not depend on the number of stops and ranks.

Networks, data loaders and files are real; the data are so small that a training takes seconds.
"""

from __future__ import annotations

import json
import signal

import h5py
import numpy as np
import pytest
import torch
from scenes.training import make_clip_run, make_sequence_run
from train_here import StopAfter, kill_when, start_rank, train_here, weights_of

from deg.data.json_lines import read_lines
from deg.data.metrics_file import MetricsFile
from deg.errors import RunError, WeightsError
from deg.launch.devices import free_port
from deg.models.weights import read_checkpoint
from deg.runs.networks import read_thresholds, scan, weight_files
from deg.train.auto import Chosen, choose
from deg.train.phase import Phase
from deg.train.ranks import Ranks
from deg.work import STOPPED, Stopped

pytestmark = pytest.mark.slow

SHORT = ("train.num_epochs=3", "train.stopping_type=num_epochs", "train.lr=1e-3")


def same_weights(one, other, **tolerance):
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys()
    if not tolerance:
        return all(torch.equal(left[name], right[name]) for name in left)
    return all(torch.allclose(left[name].float(), right[name].float(), **tolerance) for name in left)


def same_metrics(one, other):
    def rows(run):
        file = MetricsFile.open(next(run.path.glob("*_metrics.h5")))
        return {(p, n): file.values(p, n) for p in ("train", "val") for n in file.names(p) if n != "fps"}

    left, right = rows(one), rows(other)
    assert left.keys() == right.keys()
    return [name for name in left if not np.array_equal(left[name], right[name], equal_nan=True)] == []


def choose_as_rank(run, rank):
    """Choose the precision as this rank of two; only the first rank may measure, with data that are not needed here."""
    plan = run.load_training_plan()
    return choose(
        run.unit_folder(0),
        Phase(run, plan, plan.config, 0, Ranks(rank, 2, rank, 1), torch.device("cpu")),
        data=None,
        note=lambda message: None,
    )


# ---------------------------------------------------------------------------------------------------- what it leaves


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sequence network that has learned from features that tell the labels, and its messages."""
    folder = tmp_path_factory.mktemp("trained")
    run = make_sequence_run(
        folder, "sequence.arch=linear", "train.num_epochs=12", "train.lr=1e-2", test=True, lengths=(160, 120, 60, 60)
    )
    return run, train_here(run).said


def test_a_network_learns(trained):
    run, _ = trained
    metrics = MetricsFile.open(run.path / "classification_metrics.h5")
    scores = metrics.values("val", "f1_class_mean")
    assert scores.max() > max(0.9, scores[0])


def test_it_leaves_what_deepethogram_looks_for(trained):
    run, _ = trained
    [found] = scan(run.path.parent)
    best = weight_files(run.path)[0]
    assert (found.model, found.arch, found.weights) == ("sequence", "linear", best)
    metrics = MetricsFile.open(run.path / "classification_metrics.h5")
    epoch = metrics.best_epoch()
    assert best.name.startswith(f"epoch={epoch}-step=")
    assert {path.name for path in run.path.iterdir()} >= {"checkpoint.pt", "lightning_logs", "metrics.jsonl"}
    expected = metrics.values("val", "metrics_by_threshold/optimum")[epoch]
    assert np.array_equal(read_thresholds(best, 3).values, expected)
    told = torch.load(best, weights_only=True)["deg"]
    assert told["class_names"] == ["background", "groom", "rear"]
    assert told["thresholds"] == pytest.approx(expected)


def test_best_and_last_hold_the_same_network_in_both_forms(trained):
    run, _ = trained
    last = read_checkpoint(run.path / "lightning_checkpoints" / "last.ckpt").state_dict
    assert {name.removeprefix("model."): value.tolist() for name, value in last.items()} == {
        name: value.tolist() for name, value in weights_of(run).items()
    }


def test_every_epoch_has_a_row_a_line_and_an_event(trained):
    run, said = trained
    epochs = MetricsFile.open(run.path / "classification_metrics.h5").num_epochs
    lines = read_lines(run.path / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(epochs))
    assert [event["epoch"] for event in said if event["event"] == "epoch"] == list(range(epochs))
    assert lines[-1]["val"].keys() >= {"loss", "data_loss", "reg_loss", "f1_by_class", "auroc_class_mean"}


def test_the_test_part_is_judged_once_with_the_thresholds_of_validation(trained):
    run, _ = trained
    with h5py.File(run.path / "classification_metrics.h5") as file:
        assert file["test/f1_class_mean"].shape == (1,)
        assert file["test/f1_class_mean"][0] > 0.7
        assert file["test/binary_confusion"][0].sum() == 60 * 3


def test_it_says_that_it_is_done_and_is_not_done_again(trained):
    run, _ = trained
    done = json.loads(run.phase_done_file(0).read_text())
    assert done["weights"] == str(weight_files(run.path)[0]) and done["reason"]
    assert not list((run.unit_folder(0) / "state").iterdir())
    assert train_here(run).said == []


# ---------------------------------------------------------------------------------------------------- resuming


SEQUENCE = ("sequence.arch=tgmj", *SHORT)
"""A training with dropout, batch norm, and several epochs of 8 batches of 4 stretches."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = make_sequence_run(tmp_path_factory.mktemp("uninterrupted"), *SEQUENCE, "compute.batch_size=2")
    train_here(run)
    return run


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 4, 5, 7, 9])
def test_resumed_equals_uninterrupted_bit_for_bit(uninterrupted, tmp_path, looks):
    """It is stopped many times: in the middle of an epoch, before and in validation, and at the end of an epoch."""
    run = make_sequence_run(tmp_path, *SEQUENCE, "compute.batch_size=2")
    stops = 0
    while not run.phase_done_file(0).exists():
        try:
            train_here(run, stop=StopAfter(looks + stops))
        except Stopped:
            stops += 1
        assert stops < 40
    assert stops >= 1
    assert same_weights(run, uninterrupted)
    assert same_metrics(run, uninterrupted)
    assert len(read_lines(run.path / "metrics.jsonl")) == 3


def test_a_damaged_newest_state_costs_only_the_way_from_the_one_before(uninterrupted, tmp_path):
    run = make_sequence_run(tmp_path, *SEQUENCE, "compute.batch_size=2", "train.checkpoint_every=1e-9")
    with pytest.raises(Stopped):
        train_here(run, stop=StopAfter(6))
    states = sorted((run.unit_folder(0) / "state").iterdir())
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:-1000])
    said = train_here(run).said
    assert any(states[0].name in event.get("message", "") for event in said)
    assert same_weights(run, uninterrupted) and same_metrics(run, uninterrupted)


CLIPS = ("train.num_epochs=2", "train.steps_per_epoch.train=3", "train.steps_per_epoch.val=2", "train.lr=1e-4")


def test_a_feature_extractor_resumes_bit_for_bit_too(tmp_path):
    """It has augmentation, random crops and dropout."""
    runs = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        crop = ("augs.crop_size=[48,48]",)
        runs.append(make_clip_run(tmp_path / name, "feature_extractor", *CLIPS, *crop))
    whole, stopped = runs
    train_here(whole)
    for looks in (1, 4):
        with pytest.raises(Stopped):
            train_here(stopped, stop=StopAfter(looks))
    train_here(stopped)
    assert same_weights(stopped, whole) and same_metrics(stopped, whole)


def test_killed_without_warning_it_loses_no_more_than_the_last_interval(uninterrupted, tmp_path):
    run = make_sequence_run(tmp_path, *SEQUENCE, "compute.batch_size=2", "train.checkpoint_every=1e-9")
    state = run.unit_folder(0) / "state"
    for batches in (2, 9, 17):

        def reached(batches=batches):
            return any(int(path.stem.removeprefix("step-")) >= batches for path in state.glob("step-*.ckpt"))

        process = start_rank(run)
        kill_when(process, reached)
    assert not run.phase_done_file(0).exists() or process.poll() == 0
    last = start_rank(run)
    assert last.wait() == 0, last.complaints[-2000:]
    assert same_weights(run, uninterrupted) and same_metrics(run, uninterrupted)


def test_a_signal_stops_at_a_step_and_saves(tmp_path):
    run = make_sequence_run(tmp_path, *SEQUENCE, "train.num_epochs=100000")
    process = start_rank(run)
    next(event for event in process.events() if event["event"] == "epoch")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == STOPPED
    assert list((run.unit_folder(0) / "state").glob("step-*.ckpt"))


# ---------------------------------------------------------------------------------------------------- several ranks


def train_by(run, ranks, stop_after=None):
    port = str(free_port())
    environments = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(ranks)
    ]
    processes = [start_rank(run, **environment) for environment in environments]
    if stop_after is not None:
        events = processes[0].events()
        next(event for event in events if event["event"] == "epoch" and event["epoch"] == stop_after)
        for process in processes:
            process.send_signal(signal.SIGUSR2)
    for process in processes:
        assert process.wait() == (0 if stop_after is None else STOPPED), process.complaints[-3000:]


WITHOUT_DROPOUT = ("sequence.dropout_p=0", "sequence.input_dropout=0")


def test_two_ranks_equal_one_on_the_same_batches(tmp_path):
    """One rank validates 2 of the 5 stretches, the other 3; batch norm, loss and scores are computed over all.

    Adam makes a whole step out of the last bit of a gradient near 0, so a few weights may differ.
    """
    runs = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        run = make_sequence_run(folder, *SEQUENCE, *WITHOUT_DROPOUT, lengths=(90, 70, 100), devices=ranks)
        train_by(run, ranks) if ranks > 1 else train_here(run)
        runs.append(run)
    one, two = runs
    left, right = weights_of(one), weights_of(two)
    assert left.keys() == right.keys()
    for name in left:
        far = ~torch.isclose(left[name], right[name], rtol=1e-4, atol=1e-5)
        assert far.float().mean() < 0.05, name
        assert (left[name] - right[name]).abs().max() < 1e-3, name
    scores = [MetricsFile.open(run.path / "classification_metrics.h5") for run in runs]
    for part in ("train", "val"):
        left, right = (file.values(part, "data_loss") for file in scores)
        assert left == pytest.approx(right, rel=1e-4)
        confusions = [file.values(part, "metrics_by_threshold/confusion") for file in scores]
        assert confusions[0].sum() == confusions[1].sum()


def test_two_ranks_take_the_step_that_one_takes_with_a_feature_extractor(tmp_path):
    """Augmentation, batch norm and gradient are computed over the whole batch.

    Only one step is compared: Adam makes a step of lr out of the last bit of a gradient near 0, so later ones differ.
    """
    lr, runs = 1e-4, []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        short = ("train.num_epochs=1", "train.steps_per_epoch.train=1", f"train.lr={lr}")
        run = make_clip_run(folder, "feature_extractor", *short, "feature_extractor.dropout_p=0", devices=ranks)
        train_by(run, ranks) if ranks > 1 else train_here(run)
        runs.append(run)
    one, two = (MetricsFile.open(run.path / "classification_metrics.h5") for run in runs)
    assert one.values("train", "data_loss") == pytest.approx(two.values("train", "data_loss"), rel=1e-4)
    weights = [weights_of(run) for run in runs]
    for name, left in weights[0].items():
        right = weights[1][name]
        if "running" in name:
            assert torch.allclose(left, right, rtol=1e-4, atol=1e-5), name
        elif left.is_floating_point():
            far = (left - right).abs() > 0.01 * lr
            assert far.float().mean() < 0.1 and (left - right).abs().max() < 2.1 * lr, name


def test_two_ranks_that_were_stopped_resume_as_if_they_had_not(tmp_path):
    runs = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        longer = ("compute.batch_size=2", "train.num_epochs=12")
        runs.append(make_sequence_run(folder, *SEQUENCE, *longer, lengths=(190, 150, 50), devices=2))
    whole, stopped = runs
    train_by(whole, 2)
    train_by(stopped, 2, stop_after=1)
    train_by(stopped, 2)
    assert same_weights(whole, stopped, rtol=1e-5, atol=1e-7)
    assert same_metrics(whole, stopped)


# ---------------------------------------------------------------------------------------------------- stages, options


def test_a_flow_generator_learns_without_labels(tmp_path):
    run = make_clip_run(tmp_path, "flow_generator", *CLIPS, "flow_generator.flow_sparsity=true",
                        "flow_generator.sparsity_weight=0.05")  # fmt: skip
    train_here(run)
    metrics = MetricsFile.open(run.path / "opticalflow_metrics.h5")
    assert (metrics.key_metric, metrics.key_metric_mode) == ("SSIM", "min")
    assert {"loss", "SSIM", "L1", "smoothness", "reg_loss", "fps"} <= set(metrics.names("val"))
    assert np.isfinite(metrics.values("val", "SSIM")).all()
    assert scan(run.path.parent)[0].model == "flow_generator"


def test_a_curriculum_leaves_each_phase_in_a_folder_of_its_own(tmp_path):
    short = ("train.num_epochs=1", "train.steps_per_epoch.train=2", "train.steps_per_epoch.val=1")
    run = make_clip_run(tmp_path, "feature_extractor", "feature_extractor.curriculum=true", *short)
    with pytest.raises(RunError, match="expected the network of phase spatial, found none"):
        train_here(run, unit=1)
    networks = []
    for unit in range(3):
        train_here(run, unit=unit)
        folder = run.path if unit == 2 else run.path / "curriculum" / ("spatial", "flow")[unit]
        assert MetricsFile.open(folder / "classification_metrics.h5").num_epochs == 1
        networks.append(read_checkpoint(weight_files(folder)[0]).state_dict)

    def moved(before, after, part):
        return any(not torch.equal(networks[before][name], networks[after][name])
                   for name in networks[before] if part in name)  # fmt: skip

    assert not moved(0, 1, "spatial_classifier") and moved(0, 1, "flow_classifier")
    assert moved(1, 2, "spatial_classifier") and moved(1, 2, "flow_classifier")
    assert not moved(0, 2, "flow_generator")
    assert [found.weights for found in scan(run.path.parent)] == [weight_files(run.path)[0]]


@pytest.mark.parametrize(("option", "follows"), [("frozen", False), ("original", True)])
def test_the_flow_generators_statistics_follow_the_batches_only_as_in_the_original(tmp_path, option, follows):
    run = make_clip_run(tmp_path, "feature_extractor", "train.num_epochs=1", "train.steps_per_epoch.train=2",
                        "train.steps_per_epoch.val=1", f"train.flow_batchnorm={option}")  # fmt: skip
    train_here(run)
    before = torch.load(tmp_path / "flow.pt", weights_only=True)["state_dict"]
    after = {name.removeprefix("flow_generator."): value for name, value in weights_of(run).items()}
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert bool(changed) == follows
    assert all("running" in name or "num_batches" in name for name in changed)


@pytest.mark.parametrize("arch", ["tgm", "conv_nonlinear", "rnn", "mlp", "tcn"])
def test_every_sequence_network_trains(tmp_path, arch):
    run = make_sequence_run(tmp_path, f"sequence.arch={arch}", "train.num_epochs=1", "sequence.tcn_layers=3")
    train_here(run)
    assert np.isfinite(MetricsFile.open(run.path / "classification_metrics.h5").values("val", "loss")).all()
    assert scan(run.path.parent)[0].arch == arch


@pytest.mark.parametrize("weighted", ["false", "true"])
def test_classes_that_exclude_each_other_are_learned_in_time(tmp_path, weighted):
    """DeepEthogram sorts these labels by class; deg keeps their order in time."""
    run = make_sequence_run(
        tmp_path, "sequence.arch=linear", "feature_extractor.final_activation=softmax", "train.lr=1e-2",
        "train.num_epochs=12", f"train.softmax_weights={weighted}", lengths=(160, 120, 60),
    )  # fmt: skip
    train_here(run)
    assert MetricsFile.open(run.path / "classification_metrics.h5").values("val", "f1_class_mean").max() > 0.8


def test_batch_size_and_learning_rate_can_be_found_by_trial(tmp_path):
    run = make_sequence_run(tmp_path, "sequence.arch=linear", "train.num_epochs=1", "compute.batch_size=auto",
                            "train.lr=auto", lengths=(400, 400, 40))  # fmt: skip
    said = train_here(run).said
    chosen = json.loads((run.unit_folder(0) / "chosen.json").read_text())
    assert 1 <= chosen["batch_size"] <= 40 and 1e-6 < chosen["lr"] < 1e-2
    assert any("train.lr=auto" in event.get("message", "") for event in said)


def test_the_first_rank_chooses_the_precision_for_all(tmp_path):
    """The other ranks may run on processors that are faster in another precision."""
    run = make_sequence_run(tmp_path, "train.precision=auto")
    file = run.unit_folder(0) / "chosen.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"batch_size": 4, "lr": 1e-3, "precision": "bf16"}))
    assert choose_as_rank(run, 1).precision == choose_as_rank(run, 0).precision == "bf16"


def test_what_was_chosen_before_precisions_were_written_down_stays(tmp_path):
    run = make_sequence_run(tmp_path, "compute.batch_size=auto", "train.lr=auto")
    file = run.unit_folder(0) / "chosen.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"batch_size": 7, "lr": 0.25}))
    assert choose_as_rank(run, 0) == Chosen(7, 0.25, "fp32") == choose_as_rank(run, 1)


def test_pieces_of_a_batch_make_the_step_of_the_whole(tmp_path):
    """Without batch norm and dropout, four pieces of one stretch each equal one batch of four."""
    runs = []
    for pieces in (1, 4):
        folder = tmp_path / str(pieces)
        folder.mkdir()
        run = make_sequence_run(folder, "sequence.arch=linear", *SHORT, f"train.accumulate={pieces}")
        train_here(run)
        runs.append(run)
    assert same_weights(*runs, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_finite_ends_it_before_anything_is_learned_from_it(tmp_path):
    run = make_sequence_run(tmp_path, "sequence.arch=linear", "train.lr=1e38", "train.num_epochs=5")
    with pytest.raises(RunError, match=r"Batch \d+ .*expected a finite loss, found .*recording mouse_\d, frames \["):
        train_here(run)
    if (run.path / "checkpoint.pt").exists():
        assert all(torch.isfinite(value).all() for value in weights_of(run).values())


def test_labels_that_changed_since_are_not_mixed_with_those_before(tmp_path):
    run = make_sequence_run(tmp_path, *SHORT)
    labels = tmp_path / "mouse_0_labels.csv"
    labels.write_text(labels.read_text().replace("0,1,0,0", "0,0,1,0"))
    with pytest.raises(RunError, match="the labels have changed since the run was planned"):
        train_here(run)


def test_weights_that_changed_since_are_refused(tmp_path):
    run = make_clip_run(tmp_path, "feature_extractor", *CLIPS)
    flow = tmp_path / "flow.pt"
    flow.write_bytes(flow.read_bytes() + b"more")
    with pytest.raises(WeightsError, match=r"flow\.pt: the weights have changed since the run was planned"):
        train_here(run)


def test_a_metrics_file_that_cannot_be_read_is_set_aside(tmp_path):
    run = make_sequence_run(tmp_path, "sequence.arch=linear", "train.num_epochs=1")
    (run.path / "classification_metrics.h5").write_bytes(b"torn")
    train_here(run)
    assert (run.path / "classification_metrics.damaged.h5").read_bytes() == b"torn"
    assert MetricsFile.open(run.path / "classification_metrics.h5").num_epochs == 1


def test_without_its_launcher_a_rank_stops(tmp_path):
    run = make_sequence_run(tmp_path, *SEQUENCE, "train.num_epochs=100000")
    process = start_rank(run, DEG_LAUNCHER="1")  # whose standard input is at its end from the start
    assert process.wait(120) == STOPPED
