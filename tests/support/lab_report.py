"""A project whose report is known: simulated predictions, labels, and a training with its metrics."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml
from scenes.project import make_project

from deg.arithmetic.ethogram import apply_thresholds, with_background
from deg.arithmetic.metrics import Counts, binary_confusion, epoch_metrics, threshold_metrics
from deg.data.labels import write_labels
from deg.data.metrics_file import MetricsFile, classification_row
from deg.data.results import Mark, write_group
from deg.projects.project import write_split

CLASSES = ("background", 'groom <b>&"x"', "舐める", "عض")
"""Names that must be escaped, or that are in scripts which no font of the pictures has."""
THRESHOLDS = np.array([0.5, 0.6, 0.4, 0.5], np.float32)


def simulate(num_frames: int, noise: float, seed: int, classes: int = len(CLASSES)) -> tuple[np.ndarray, np.ndarray]:
    """Return (probabilities, labels) of bouts of 10 frames; the last class never occurs."""
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.integers(0, classes - 1, num_frames // 10 + 1), 10)[:num_frames]
    labels_TK = np.eye(classes, dtype=np.int8)[active]
    logits_TK = 6 * labels_TK - 3 + noise * rng.normal(size=labels_TK.shape)
    return (1 / (1 + np.exp(-logits_TK))).astype(np.float32), labels_TK


def add_recording(
    folder: Path,
    key: str,
    probabilities_TK: np.ndarray,
    labels_TK: np.ndarray | None = None,
    *,
    activation: str = "sigmoid",
    group: str = "tgmj",
) -> Path:
    """Add a recording with results and return its outputs file. Its video is an empty file."""
    place = folder / "DATA" / key
    place.mkdir()
    (place / f"{key}.mp4").write_bytes(b"")
    if labels_TK is not None:
        write_labels(place / f"{key}_labels.csv", labels_TK, CLASSES)
    weights = {"sequence": {"path": str(folder / "models/run/last.ckpt"), "sha256": "ab" * 32}}
    write_group(
        place / f"{key}_outputs.h5",
        group,
        num_frames=len(probabilities_TK),
        columns={"logits": len(CLASSES), "P": len(CLASSES)},
        blocks=[{"logits": probabilities_TK, "P": probabilities_TK}],
        class_names=CLASSES,
        thresholds_K=THRESHOLDS,
        mark=Mark(len(probabilities_TK), {}, "made up", 0, 0),
        provenance={"weights": weights, "engines": [{"activation": activation}]},
    )
    return place / f"{key}_outputs.h5"


def validation_row(noise: float, seed: int = 5, **others) -> dict:
    """Return the scores of a network with that noise on a validation set."""
    probabilities_TK, labels_TK = simulate(400, noise, seed)
    by_threshold = threshold_metrics(Counts.of(probabilities_TK, labels_TK))
    predictions_TK = with_background(apply_thresholds(probabilities_TK, by_threshold.optimum))
    scores = epoch_metrics(binary_confusion(predictions_TK, labels_TK))
    return classification_row(by_threshold, scores, loss=noise, data_loss=noise, reg_loss=0.0, fps=10.0, **others)


def add_training(folder: Path, name: str = "261122_100000_sequence_train", stage: str = "sequence") -> MetricsFile:
    """Add a finished training of three epochs; the second is the best."""
    run = folder / "models" / name
    run.mkdir(parents=True)
    config = {
        "run": {"model": stage, "type": "train", "dir": str(run)},
        stage: {"arch": "tgmj"},
        "project": {"class_names": list(CLASSES)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = MetricsFile(
        run / "classification_metrics.h5", key_metric="f1_class_mean_nobg", key_metric_mode="max", num_parameters=12345
    )
    for noise, lr in ((6.0, 1e-3), (2.0, 1e-3), (4.0, 1e-4)):
        metrics.append(train=validation_row(noise / 2, lr=lr), val=validation_row(noise))
    return metrics


def make_reported_lab(folder: Path) -> Path:
    """Make a project: `accurate` and `bad` agree with their labels as named, `another` has none; plus a training."""
    bouts = {"type": "min_bout", "min_bout_length": 2}
    make_project(folder, project={"class_names": list(CLASSES)}, postprocessor=bouts)
    add_recording(folder, "accurate", *simulate(120, noise=0.5, seed=1))
    add_recording(folder, "bad", *simulate(150, noise=5.0, seed=2))
    add_recording(folder, "another", simulate(90, noise=1.0, seed=3)[0])
    write_split(folder / "DATA" / "split.yaml", {"train": ["accurate"], "val": ["bad"], "test": []}, (0.5, 0.5, 0.0))
    add_training(folder)
    return folder


class Page(HTMLParser):
    """The content of a page: its text, tables, pictures, links and anchors."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.text = path, ""
        self.tags: set[str] = set()
        self.pictures: list[dict[str, str]] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._into: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self._into.append(tag)
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "img":
            self.pictures.append(found)
        self.links += [found[name] for name in ("href", "src", "srcset", "data", "action") if name in found]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h2", "h3", "h4", "h5"):
            self.headings.append("")

    def handle_endtag(self, tag):
        while self._into and self._into.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._into or "script" in self._into:
            return
        self.text += data
        if {"td", "th"} & set(self._into):
            self.tables[-1][-1][-1] += data
        if {"h2", "h3", "h4", "h5"} & set(self._into):
            self.headings[-1] += data

    def table(self, heading: str) -> dict[str, list[str]]:
        """Return the rows of the first table whose heading row contains this text, by their first cell."""
        [found, *_] = [table for table in self.tables if table and heading in " ".join(table[0])]
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in found}
