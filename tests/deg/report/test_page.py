"""The page of `deg report` is complete and self-contained, and its numbers equal those of deg.arithmetic.metrics."""

from __future__ import annotations

import shutil
from datetime import datetime

import h5py
import numpy as np
import pytest
import yaml
from lab_report import CLASSES, THRESHOLDS, Page, add_recording, add_training, make_reported_lab, simulate

from deg.arithmetic.ethogram import Postprocessor
from deg.arithmetic.metrics import Counts, Rates, binary_confusion, epoch_metrics, threshold_metrics
from deg.data.labels import repair, write_labels
from deg.data.results import read_predictions
from deg.errors import ProjectError
from deg.options.load import load_config
from deg.projects.project import open_project
from deg.report import figures
from deg.report.page import build_report, find_target, new_folder

pytestmark = pytest.mark.slow

NOT_DEFINED = "\N{EN DASH}"
NOW = datetime(2026, 11, 22, 12, 0, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A lab and its report, which no test changes."""
    lab = make_reported_lab(tmp_path_factory.mktemp("report") / "lab")
    return lab, report(lab)


@pytest.fixture
def lab(finished, tmp_path, monkeypatch):
    """A lab for this test alone, with empty pictures: drawing takes most of the time, and `finished` has real ones."""
    for name in ("learning_curves", "precision_recall", "ethogram_strip"):
        monkeypatch.setattr(figures, name, lambda *given: figures.Figure(figsize=(1, 1)))
    return shutil.copytree(finished[0], tmp_path / "lab")


def report(lab, *overrides, folder=None, run=None):
    project = open_project(lab)
    config = load_config(project.config_file, overrides, stage="inference")
    return build_report(project, config, folder=folder or lab / "reports" / "one", now=NOW, run=run)


def page_of(files) -> Page:
    return Page(files.page)


# ---- whole and self-contained


def test_every_picture_is_there_and_every_file_is_shown(finished):
    files, page = finished[1], page_of(finished[1])
    sources = [picture["src"] for picture in page.pictures]
    assert {files.page.parent / source for source in sources} == set(files.pictures)
    assert len(sources) == len(set(sources)) == 1 + len(CLASSES) + 3  # curves, precision-recall, recordings
    for path in files.pictures:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing(finished):
    page = page_of(finished[1])
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    for link in page.links:
        assert link.startswith(("#", "pictures/")), link
    html = finished[1].page.read_text()
    assert "http" not in html and "url(" not in html and "@import" not in html


def test_links_within_the_page_lead_somewhere(finished):
    page = page_of(finished[1])
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert len(inner) >= 3 and set(inner) <= page.anchors


def test_pictures_are_as_large_as_the_page_says(finished):
    files, page = finished[1], page_of(finished[1])
    for picture in page.pictures:
        header = (files.page.parent / picture["src"]).read_bytes()[16:24]
        width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
        assert (width, height) == (2 * int(picture["width"]), 2 * int(picture["height"]))
        assert picture["alt"]


def test_all_recordings_and_classes_are_named_in_any_script(finished):
    page = page_of(finished[1])
    for name in ("accurate", "bad", "another"):
        assert any(heading.startswith(name) for heading in page.headings)
    for name in CLASSES:
        assert page.text.count(name) >= 5


def test_names_are_text_and_not_markup(lab):
    (lab / "DATA" / "accurate").rename(lab / "DATA" / "<script>alert(1)<script>")
    page = page_of(report(lab))
    assert "script" not in page.tags
    assert "<script>alert(1)" in page.text


# ---- numbers


def seen_by_deg(lab, key):
    """Return (probabilities, predictions, labels) of a recording, computed by the functions of deg."""
    found = read_predictions(lab / "DATA" / key / f"{key}_outputs.h5", "tgmj")
    predictions_TK = Postprocessor((2,) * len(CLASSES))(found.probabilities_TK, THRESHOLDS)
    labels_TK = np.loadtxt(lab / "DATA" / key / f"{key}_labels.csv", delimiter=",", skiprows=1, dtype=int)[:, 1:]
    return found.probabilities_TK, predictions_TK, labels_TK


def shown(value: float) -> str:
    return f"{value:.2f}"


def test_agreement_with_the_labels_is_what_deg_metrics_says(finished):
    lab, files = finished
    probabilities_TK, predictions_TK, labels_TK = seen_by_deg(lab, "bad")
    confusion_K22 = binary_confusion(predictions_TK, labels_TK)
    rates, curves = (
        Rates.of(confusion_K22.transpose(1, 2, 0)),
        threshold_metrics(Counts.of(probabilities_TK, labels_TK)),
    )
    [table, *_] = [table for table in page_of(files).tables if table and table[0][:2] == ["class", "labelled frames"]]
    rows = {row[0]: row[1:] for row in table[1:]}
    for k, name in enumerate(CLASSES[:3]):
        scores = (rates.precision, rates.recall, rates.f1, curves.auroc, curves.mAP)
        assert rows[name] == [str((labels_TK[:, k] == 1).sum()), *(shown(score[k]) for score in scores)]
    mean = epoch_metrics(confusion_K22).f1_class_mean_nobg
    assert (
        f"Validation: 1 recording (150 labelled frames; mean F1 without background {mean:.2f})" in page_of(files).text
    )


def test_confusion_is_shown_in_shares_and_frames(finished):
    lab, files = finished
    _, predictions_TK, labels_TK = seen_by_deg(lab, "bad")
    [(negatives, alarms), (missed, found)] = binary_confusion(predictions_TK, labels_TK)[1]
    [_, of_groom, *_] = [table for table in page_of(files).tables if table and table[0] == ["", "predicted"]]
    assert of_groom[2] == [
        "yes",
        f"{100 * found / (found + missed):.0f} %{found}",
        f"{100 * missed / (found + missed):.0f} %{missed}",
    ]
    assert of_groom[3][1] == f"{100 * alarms / (alarms + negatives):.0f} %{alarms}"


def test_scores_of_the_training_are_those_of_its_best_epoch(finished):
    lab, files = finished
    metrics = add_training(lab.parent / "again")
    assert metrics.best_epoch() == 1
    rows = page_of(files).table("threshold")
    by_class = ("f1_by_class", "auroc_by_class", "mAP_by_class")
    for k, name in enumerate(CLASSES[1:3], start=1):
        threshold = metrics.values("val", "metrics_by_threshold/optimum")[1, k]
        rates = Rates.of(metrics.values("val", "binary_confusion")[1].transpose(1, 2, 0))
        f1, auroc, ap = (metrics.values("val", score)[1, k] for score in by_class)
        expected = (threshold, rates.precision[k], rates.recall[k], f1, auroc, ap)
        assert rows[name][1:] == [shown(value) for value in expected]
    assert rows["background"][1] == NOT_DEFINED, "no probability is compared with a threshold of the background"
    assert "Validation, epoch 1" in page_of(files).text


def test_f1_of_a_recording_is_over_the_behaviours_that_matter_in_it(finished):
    lab, files = finished
    _, predictions_TK, labels_TK = seen_by_deg(lab, "accurate")
    assert not labels_TK[:, 3].any() and not predictions_TK[:, 3].any()
    f1_K = epoch_metrics(binary_confusion(predictions_TK, labels_TK)).f1_by_class
    row = page_of(files).table("recording")["accurate"]
    # part, frames, frames with labels, mean, then behaviours and the background
    assert row == [
        "training",
        "120",
        "120",
        shown(f1_K[1:3].mean()),
        shown(f1_K[1]),
        shown(f1_K[2]),
        NOT_DEFINED,
        shown(f1_K[0]),
    ]


def test_what_is_not_defined_is_not_a_zero(finished):
    """The last class never occurs: it has no recall, no F1 unless it is predicted, and no AUROC."""
    row = page_of(finished[1]).table("threshold")[CLASSES[3]]
    assert row[0] == "0" and row[3] == row[5] == row[6] == NOT_DEFINED


def test_frames_without_labels_are_not_compared(lab):
    labels_TK = simulate(150, 5.0, 2)[1]
    labels_TK[50:] = -1
    write_labels(lab / "DATA/bad/bad_labels.csv", labels_TK, CLASSES)
    _, predictions_TK, _ = seen_by_deg(lab, "bad")
    f1_K = epoch_metrics(binary_confusion(predictions_TK[:50], repair(labels_TK[:50]))).f1_by_class
    row = page_of(report(lab)).table("recording")["bad"]
    assert row[:3] == ["validation", "150", "50"] and row[-1] == shown(f1_K[0])


def test_classes_that_exclude_each_other_have_a_table_of_which_is_taken_for_which(lab):
    for key in ("accurate", "bad", "another"):
        with h5py.File(lab / "DATA" / key / f"{key}_outputs.h5", "a") as file:
            provenance = file["tgmj"].attrs["deg_provenance"]
            file["tgmj"].attrs["deg_provenance"] = provenance.replace("sigmoid", "softmax")
    probabilities_TK, _, labels_TK = seen_by_deg(lab, "accurate")
    confused = ((labels_TK[:, 1] == 1) & (probabilities_TK.argmax(axis=1) == 1)).sum()
    table = page_of(report(lab)).tables
    square = [rows for rows in table if rows and "most probable" in rows[0][0]]
    assert len(square) == 2  # validation, training
    assert square[1][2][2].endswith(f"%{confused}")


def test_the_summary_counts_recordings_and_frames_by_part(finished):
    rows = page_of(finished[1]).table("not in the split")
    assert rows["recordings"] == ["1", "1", "1"]
    assert rows["of them fully labelled"] == ["1", "1", "0"]
    assert rows["frames"] == ["120", "150", "90"]
    groom = [str((simulate(frames, 1, seed)[1][:, 1] == 1).sum()) for frames, seed in ((120, 1), (150, 2))]
    assert rows[f"frames labelled {CLASSES[1]}"] == [*groom, "0"]


def test_it_says_what_made_the_predictions(finished):
    rows = page_of(finished[1]).table("tgmj")
    assert rows["recordings"] == ["3"] and rows["weights"] == ["sequence: models/run/last.ckpt"]
    assert rows[f"threshold of {CLASSES[1]}"] == ["0.60"]


# ---- recordings


def test_the_worst_recording_comes_first_and_unlabelled_ones_last(finished):
    assert finished[1].recordings == ("bad", "accurate", "another")


def test_a_recording_says_its_part_and_its_results(finished):
    assert any(heading.startswith("badvalidationtgmjF1 0.") for heading in page_of(finished[1]).headings)
    assert "anothernot in the splittgmj" in page_of(finished[1]).headings


def test_a_long_recording_says_that_columns_stand_for_several_frames(lab):
    add_recording(lab, "night", simulate(5000, 1.0, 9)[0])
    assert "Each column stands for 6 frames" in page_of(report(lab)).text


def test_labels_of_another_length_are_left_out_with_a_note(lab):
    write_labels(lab / "DATA/bad/bad_labels.csv", simulate(140, 5.0, 2)[1], CLASSES)
    page = page_of(report(lab))
    assert "Labels left out: they have 140 rows, the results 150 frames." in page.text
    assert page.table("recording")["bad"][2:4] == ["none", NOT_DEFINED]


def test_other_results_are_chosen_by_the_configuration(lab):
    add_recording(lab, "old", *simulate(60, 1.0, 4), group="resnet18")
    assert "oldnot in the splitresnet18F1" in "".join(page_of(report(lab)).headings)


# ---- what cannot be read


def test_a_recording_without_results_is_named_and_the_others_are_drawn(lab):
    (lab / "DATA/accurate/accurate_outputs.h5").unlink()
    (lab / "DATA/another/another_outputs.h5").write_bytes(b"nonsense")
    files = report(lab)
    assert files.recordings == ("bad",) and set(files.failed) == {"accurate", "another"}
    page = page_of(files)
    assert "2 of 3 recordings could not be drawn" in page.text and "no results yet" in page.text
    assert "not a readable HDF5 file" in page.text


def test_results_that_are_no_numbers_are_named(lab):
    with h5py.File(lab / "DATA/bad/bad_outputs.h5", "a") as file:
        file["tgmj/P"][3, 1] = np.nan
    assert "not all are numbers" in report(lab).failed["bad"]


def test_damaged_labels_split_and_metrics_are_named(lab):
    (lab / "DATA/bad/bad_labels.csv").write_text("nonsense\n")
    (lab / "DATA/split.yaml").write_text("train: 7\n")
    (lab / "models/261122_100000_sequence_train/classification_metrics.h5").write_bytes(b"nonsense")
    files = report(lab)
    said = "\n".join(files.notices)
    assert len(files.notices) == 3 and len(files.recordings) == 3
    for part in ("bad_labels.csv", "split.yaml", "classification_metrics.h5"):
        assert part in said and part in page_of(files).text


def test_an_empty_project_has_a_report(tmp_path):
    from deg.projects.project import create_project

    create_project(tmp_path / "new", ["groom"])
    assert "There are no recordings" in page_of(report(tmp_path / "new")).text


# ---- which trainings


def test_the_newest_training_of_each_stage_is_shown(lab):
    add_training(lab, "261123_100000_sequence_train")
    add_training(lab, "261122_090000_feature_extractor_train", "feature_extractor")
    headings = page_of(report(lab)).headings
    trainings = [heading for heading in headings if heading.endswith("_train")]
    assert trainings == [
        "feature extractor 261122_090000_feature_extractor_train",
        "sequence 261123_100000_sequence_train",
    ]


def test_a_training_that_was_tested_has_two_tables(lab):
    metrics = add_training(lab, "261123_100000_sequence_train")
    metrics.write_test({name: metrics.values("val", name)[0] for name in metrics.names("val")})
    assert "Test" in [heading.partition(" (")[0] for heading in page_of(report(lab)).headings]


def test_a_curriculum_shows_each_phase(lab):
    run = lab / "models/261122_100000_sequence_train"
    phase = run / "curriculum" / "spatial"
    phase.mkdir(parents=True)
    shutil.copy(run / "classification_metrics.h5", phase)
    assert "Phase spatial of the curriculum" in page_of(report(lab)).text


def test_a_training_for_other_behaviours_says_so(lab):
    file = lab / "models/261122_100000_sequence_train/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["project"]["class_names"][1] = "jump"
    file.write_text(yaml.safe_dump(config))
    assert "jump, 舐める, عض: not the classes that the project has now" in page_of(report(lab)).text


def test_a_report_of_a_run_shows_that_training_only(lab):
    add_training(lab, "261123_100000_sequence_train")
    project, run = find_target(lab / "models/261122_100000_sequence_train")
    assert project.path == lab
    page = page_of(report(lab, run=run))
    assert "261122_100000_sequence_train" in page.text and "261123_100000" not in page.text


def test_a_report_of_an_inference_shows_its_recordings(lab, tmp_path):
    from scenes.run import make_plan, make_run

    plan = make_plan(lab, {"accurate": 120, "bad": 150}, stage="sequence")
    run = make_run(lab, plan)
    files = report(lab, run=find_target(run.path)[1])
    assert files.recordings == ("bad", "accurate") and "Training" not in page_of(files).headings


def test_a_folder_that_is_neither_project_nor_run_is_refused(tmp_path):
    with pytest.raises(ProjectError, match="expected a file project_config"):
        find_target(tmp_path)


def test_the_original_s_project_has_a_report(shared_data, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(shared_data("data/deg_project_original"), lab, ignore=shutil.ignore_patterns("*.ckpt", "*.pt"))
    files = report(lab)
    page = page_of(files)
    assert not files.failed and not files.notices and len(files.recordings) == 4
    assert {"flow generator", "feature extractor", "sequence"} <= {" ".join(h.split()[:-1]) for h in page.headings}
    assert "results of DeepEthogram do not say" in page.text


# ---- the folder


def test_a_former_report_is_replaced_whole(lab):
    (lab / "DATA/accurate/accurate_outputs.h5").rename(lab / "accurate.h5")
    few = report(lab)
    (lab / "accurate.h5").rename(lab / "DATA/accurate/accurate_outputs.h5")
    many = report(lab)
    assert len(many.pictures) == len(few.pictures) + 1
    assert sorted(path.name for path in (lab / "reports").iterdir()) == ["one"]
    assert set(many.page.parent.rglob("*.png")) == set(many.pictures)


def test_a_folder_with_anything_else_is_left_alone(lab, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(ProjectError, match="expected nothing there but an earlier report, found mine"):
        report(lab, folder=tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "precious"


def test_a_disk_that_refuses_leaves_the_former_report(lab, monkeypatch):
    before = report(lab).page.read_bytes()

    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deg.report.page.flush", refuse)
    with pytest.raises(OSError, match="No space left"):
        report(lab)
    assert (lab / "reports/one/index.html").read_bytes() == before
    assert [path.name for path in (lab / "reports").iterdir()] == ["one"]


def test_two_reports_of_one_second_have_their_own_folders(lab):
    project = open_project(lab)
    first = new_folder(project, NOW)
    first.mkdir(parents=True)
    assert (first.name, new_folder(project, NOW).name) == ("261122_120000", "261122_120000_2")
