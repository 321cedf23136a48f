"""Compare what `deg train` learns with what DeepEthogram learns: same recordings, split, first weights, steps, scorer.

    python tests/bench/accuracy_against_original.py --data LABELLED --work DIR [--only original] [--seeds 0 1 2]

LABELLED holds videos and their labels, NAME.mp4 (or .avi ...) and NAME_labels.csv. Each program gets a copy of one
project for each seed, and trains flow generator, feature extractor and sequence network on it from random weights, the
same for both. `deg infer` computes the outputs of both programs' networks; they are compared with the labels of the
validation recordings, with the thresholds that each training chose. Clips that show the same moment (their names are
equal without what --moment matches) are in one part, and every behaviour is in both. For deg, sequence.arch=tcn is
trained as well, over the same features as its tgmj.

Every finished step is kept in --work: the next call resumes one that was interrupted or that had --only, and must have
the same settings. The result is in DIR/result.json, and printed as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml
from against_original import HERE, machine, measure, original_python

from deg.arithmetic.ethogram import apply_thresholds, with_background
from deg.arithmetic.metrics import Counts, binary_confusion, epoch_metrics, threshold_metrics

DEG = Path(sys.executable).with_name("deg")
PROGRAMS = ("original", "deg")
STAGES = ("flow_generator", "feature_extractor", "sequence")
PRETRAINED_CLASSES = 700
"""Classes of the random weights: not the project's number, as with published weights, so that the last layer is new."""
SEQUENCE_LENGTH = 180
MADE_BY = {"resnet18": "features", "tgmj": "outputs_tgmj", "tcn": "outputs_tcn"}
"""The step that writes each group of the outputs."""


@dataclass(frozen=True)
class Settings:
    """All that the numbers depend on, except the programs."""

    data: str
    moment: str
    split_seed: int
    val_share: float
    size: tuple[int, int]
    steps: tuple[int, int, int]
    """Steps of the three stages, in order; the tuples below are in the same order."""
    epochs: tuple[int, int, int]
    batch_size: tuple[int, int, int]
    lr: tuple[float, float, float]
    val_steps: tuple[int, int, int]
    setting: tuple[str, ...]


# ------------------------------------------------------------------------------------------- the same for both programs


def make_template(settings: Settings, folder: Path) -> None:
    """Make a project with all recordings, its options and its split."""
    data = Path(settings.data)
    labels = sorted(data.glob("*_labels.csv"))
    names = [path.name.removesuffix("_labels.csv") for path in labels]
    videos = [next(path for path in data.glob(f"{name}.*") if path.suffix != ".csv") for name in names]
    behaviors = list(pd.read_csv(labels[0], index_col=0).columns)[1:]
    shutil.rmtree(folder, ignore_errors=True)
    measure([DEG, "new", folder, "--behaviors", ",".join(behaviors)])
    measure([DEG, "add", folder, *videos, *(word for path in labels for word in ("--labels", path))])
    config = yaml.safe_load((folder / "project_config.yaml").read_text())
    config["preset"], config["augs"]["resize"] = "deg_f", list(settings.size)
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    parts = grouped_split(read_labels(folder), settings)
    shares = [1 - settings.val_share, settings.val_share, 0.0]
    (folder / "DATA" / "split.yaml").write_text(yaml.safe_dump({"metadata": {"split": shares}} | parts))


def read_labels(project: Path) -> dict[str, np.ndarray]:
    """Return the labels (T, K) of each recording."""
    files = sorted(project.glob("DATA/*/*_labels.csv"))
    return {path.parent.name: pd.read_csv(path, index_col=0).to_numpy(np.int64) for path in files}


def grouped_split(labels: Mapping[str, np.ndarray], settings: Settings) -> dict[str, list[str]]:
    """Draw splits until each class has, in validation, at least half and at most twice its share."""
    moments: dict[str, list[str]] = {}
    for key in labels:
        moments.setdefault(re.sub(settings.moment, "", key), []).append(key)
    rng = np.random.default_rng(settings.split_seed)
    share, total_K = settings.val_share, sum(labels_TK.sum(axis=0) for labels_TK in labels.values())
    for _ in range(1000):
        chosen = rng.choice(sorted(moments), max(1, round(share * len(moments))), replace=False)
        val = sorted(key for moment in chosen for key in moments[moment])
        shares_K = sum(labels[key].sum(axis=0) for key in val) / total_K
        if share / 2 <= shares_K.min() and shares_K.max() <= 2 * share:
            return {"train": sorted(set(labels) - set(val)), "val": val, "test": []}
    sys.exit("No split was found that has enough of each class in both parts.")


def write_random_weights(project: Path, seed: int) -> None:
    """Write random weights where both programs look for pretrained ones."""
    import torch

    from deg.models.two_stream import build_two_stream
    from deg.options.schema import FeatureExtractor, FlowGenerator

    torch.manual_seed(seed)
    network = build_two_stream(FeatureExtractor(), FlowGenerator(), PRETRAINED_CLASSES)
    parts = {"flow_generator": ("TinyMotionNet", network.flow_generator), "feature_extractor": ("resnet18", network)}
    for number, (model, (arch, part)) in enumerate(parts.items()):
        folder = project / "models" / "pretrained_models" / f"200101_00000{number}_{model}_random"
        folder.mkdir(parents=True)
        config = {"run": {"model": model, "type": "train"}, model: {"arch": arch}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({"epoch": 0, "state_dict": part.state_dict(), "hyperparameters": None}, folder / "checkpoint.pt")


def training_options(stage: str, project: Path, settings: Settings) -> list[str]:
    """Return the command line of one stage, after the name of the project."""
    number = STAGES.index(stage)
    batch, wanted = settings.batch_size[number], settings.steps[number]
    train = yaml.safe_load((project / "DATA" / "split.yaml").read_text())["train"]
    frames = [len(labels_TK) for key, labels_TK in read_labels(project).items() if key in train]
    samples = sum(-(-count // SEQUENCE_LENGTH) for count in frames) if stage == "sequence" else sum(frames)
    # DeepEthogram's epochs have at most this many whole batches
    steps = min(max(wanted // settings.epochs[number], 1), samples // batch)
    options = {
        "train.lr": settings.lr[number],
        "train.num_epochs": wanted // steps,
        "train.steps_per_epoch.train": steps,
        "train.steps_per_epoch.val": settings.val_steps[number],
        "train.stopping_type": "num_epochs",
        "train.viz_metrics": "false",
        "train.viz_examples": 0,
        "compute.batch_size": batch,
        "compute.num_workers": 0,
    }
    if stage != "sequence":
        options["flow_generator.weights"] = "pretrained" if stage == "flow_generator" else "latest"
    if stage == "feature_extractor":
        options["feature_extractor.weights"] = "pretrained"
    if stage == "sequence":
        options |= {"sequence.sequence_length": SEQUENCE_LENGTH}
    return [f"{key}={value}" for key, value in options.items()] + list(settings.setting)


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Student:
    """One program that trains with one seed."""

    program: str
    seed: int
    project: Path
    """Folder of its project; the records of finished steps lie beside it."""
    settings: Settings
    threads: int
    python: Path | None
    """The Python of DeepEthogram's environment."""

    def learn(self) -> None:
        if not (self.project.parent / "ready.json").exists():
            shutil.rmtree(self.project.parent, ignore_errors=True)
            shutil.copytree(self.project.parents[2] / "template", self.project)
            write_random_weights(self.project, self.seed)
            (self.project.parent / "ready.json").write_text("{}")
        for name, command in self._steps().items():
            self._do(name, command)

    def _steps(self) -> dict[str, list[str | Path]]:
        """Return the commands by name, in order."""
        infer: list[str | Path] = [f"inference.threads={self.threads}", "inference.precision=fp32"]
        features = [DEG, "infer", "feature_extractor", self.project, "feature_extractor.weights=latest", *infer]
        steps = {stage: self._train(stage) for stage in STAGES[:2]} | {"features": features}
        for arch in ("tgmj",) if self.program == "original" else ("tgmj", "tcn"):
            steps[f"sequence_{arch}"] = self._train("sequence", f"sequence.arch={arch}")
            steps[f"outputs_{arch}"] = [DEG, "infer", "sequence", self.project, f"sequence.arch={arch}"]
            steps[f"outputs_{arch}"] += ["sequence.weights=latest", *infer]
        return steps

    def _train(self, stage: str, *more: str) -> list[str | Path]:
        options = [*training_options(stage, self.project, self.settings), *more]
        if self.program == "deg":
            ours = [f"train.seed={self.seed}", "train.precision=fp32", "compute.devices=1"]
            return [DEG, "train", stage, self.project, *options, *ours, f"compute.threads={self.threads}"]
        job = self.project.parent / f"job_{stage}.json"
        arguments = [f"project.path={self.project}", "preset=deg_f", *options]
        given = {"do": "command", "module": f"{stage}.train", "arguments": arguments, "seed": self.seed}
        job.write_text(json.dumps(given))
        assert self.python is not None
        return [self.python, HERE / "original_driver.py", job]

    def _do(self, name: str, command: Sequence[str | Path]) -> None:
        record = self.project.parent / f"done_{name}.json"
        if record.exists():
            return
        self._forget_unfinished_runs()
        print(f"{self.program}, seed {self.seed}: {name} ...", end=" ", file=sys.stderr, flush=True)
        seconds, cpu_seconds = self._run(command, self.project.parent / f"log_{name}.txt")
        print(f"{seconds:.0f} s, CPU {cpu_seconds:.0f} s", file=sys.stderr, flush=True)
        runs = sorted(folder.name for folder in (self.project / "models").iterdir())
        record.write_text(json.dumps({"runs": runs, "seconds": seconds, "cpu_seconds": cpu_seconds}))

    def _run(self, command: Sequence[str | Path], log: Path) -> tuple[float, float]:
        """Run a command and return its wall and CPU seconds. A failure ends the program; finished steps are kept."""
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with log.open("w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
            status = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
        if status:
            sys.exit(f"{command[0]} ended with status {status}\n{log.read_text()[-3000:]}")
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter() - started, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime

    def _forget_unfinished_runs(self) -> None:
        """Remove what an interrupted step left, so that `latest` does not find it."""
        known = {"pretrained_models"}
        for record in self.project.parent.glob("done_*.json"):
            known.update(json.loads(record.read_text())["runs"])
        for folder in (self.project / "models").iterdir():
            if folder.name not in known:
                shutil.rmtree(folder)

    def seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each finished step."""
        records = sorted(self.project.parent.glob("done_*.json"), key=lambda path: path.stat().st_mtime)
        cpu = {path.stem.removeprefix("done_"): json.loads(path.read_text())["cpu_seconds"] for path in records}
        return {name: round(seconds, 1) for name, seconds in cpu.items()}

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the scores of each group of the outputs that exists."""
        there = [group for group, step in MADE_BY.items() if (self.project.parent / f"done_{step}.json").exists()]
        return {group: score(self.project, group) for group in there}


# ------------------------------------------------------------------------------------------------------------- scoring


def score(project: Path, group: str) -> dict[str, Any]:
    """Score the outputs of one network by the labels of the validation recordings, all frames together."""
    labels, outputs, predictions = [], [], []
    for key in yaml.safe_load((project / "DATA" / "split.yaml").read_text())["val"]:
        labels.append(read_labels(project)[key])
        with h5py.File(project / "DATA" / key / f"{key}_outputs.h5") as file:
            outputs.append(file[group]["P"][()])
            thresholds_K = file[group]["thresholds"][()]
        predictions.append(with_background(apply_thresholds(outputs[-1], thresholds_K)))
    labels_TK, outputs_TK = np.concatenate(labels), np.concatenate(outputs)
    metrics = epoch_metrics(binary_confusion(np.concatenate(predictions), labels_TK))
    precision_K = threshold_metrics(Counts.of(outputs_TK, labels_TK)).mAP
    return {
        "f1": metrics.f1_class_mean_nobg,
        "f1_by_class": metrics.f1_by_class.tolist(),
        "average_precision": float(precision_K[1:].mean()),
        "average_precision_by_class": precision_K.tolist(),
        "thresholds": thresholds_K.tolist(),
    }


def chance(project: Path) -> list[float]:
    """Return the F1 of each class for a prediction that every behaviour is always present."""
    val = yaml.safe_load((project / "DATA" / "split.yaml").read_text())["val"]
    share_K = np.concatenate([read_labels(project)[key] for key in val]).mean(axis=0)
    return (2 * share_K / (1 + share_K)).tolist()


def summary(students: Sequence[Student], settings: Settings, template: Path) -> dict[str, Any]:
    found = {program: {s.seed: s.scores() for s in students if s.program == program} for program in PROGRAMS}
    means: dict[str, dict[str, Any]] = {}
    for program, by_seed in found.items():
        means[program] = {}
        for group in MADE_BY:
            scores = [by_group[group] for by_group in by_seed.values() if group in by_group]
            if scores:
                names = ("f1", "f1_by_class", "average_precision", "average_precision_by_class")
                mean = {name: np.mean([each[name] for each in scores], axis=0).tolist() for name in names}
                spread = float(np.std([each["f1"] for each in scores], ddof=1)) if len(scores) > 1 else None
                means[program][group] = mean | {"seeds": len(scores), "f1_spread": spread}
    config = yaml.safe_load((template / "project_config.yaml").read_text())
    split = yaml.safe_load((template / "DATA" / "split.yaml").read_text())
    return {
        "machine": machine(),
        "settings": asdict(settings),
        "class_names": config["project"]["class_names"],
        "split": {part: split[part] for part in ("train", "val")},
        "f1_of_always": chance(template),
        "means": means,
        "gains": {
            "deg over DeepEthogram, feature extractor": gain(found, ("deg", "resnet18"), ("original", "resnet18")),
            "deg over DeepEthogram, sequence tgmj": gain(found, ("deg", "tgmj"), ("original", "tgmj")),
            "tcn over tgmj, same features": gain(found, ("deg", "tcn"), ("deg", "tgmj")),
        },
        "seeds": found,
        "cpu_seconds": {
            program: {s.seed: s.seconds() for s in students if s.program == program} for program in PROGRAMS
        },
    }


def gain(found: Mapping[str, Any], one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any] | None:
    """Return the difference in F1 over the seeds that both have; None if there is no such seed."""
    mine, theirs = (
        {seed: scores[group]["f1"] for seed, scores in found[program].items() if group in scores}
        for program, group in (one, other)
    )
    by_seed = {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}
    return {"f1": float(np.mean(list(by_seed.values()))), "by_seed": by_seed} if by_seed else None


def table(result: dict[str, Any]) -> str:
    names, means = result["class_names"], result["means"]
    always = result["f1_of_always"]
    columns = [*names[1:], "macro F1", "spread", "mean AP", "seeds"]
    lines = [
        result["machine"],
        f"size {result['settings']['size']}, steps {result['settings']['steps']}; "
        f"{len(result['split']['train'])} recordings for training, {len(result['split']['val'])} for validation",
        "",
        "F1 on the validation recordings, means over seeds",
        " " * 31 + " ".join(name.rjust(max(8, len(name))) for name in columns),
    ]

    def line(what: str, values: Sequence[Any]) -> str:
        cells = [
            f"{value:.3f}" if isinstance(value, float) else str("" if value is None else value) for value in values
        ]
        return what.ljust(31) + " ".join(
            cell.rjust(max(8, len(name))) for cell, name in zip(cells, columns, strict=True)
        )

    lines.append(line("always there", [*always[1:], float(np.mean(always[1:])), None, None, None]))
    titles = {"resnet18": "feature extractor", "tgmj": "sequence tgmj", "tcn": "sequence tcn"}
    for group, title in titles.items():
        for program in PROGRAMS:
            if found := means[program].get(group):
                values = [*found["f1_by_class"][1:], found["f1"], found["f1_spread"], found["average_precision"]]
                lines.append(line(f"{title}, {program}", [*values, found["seeds"]]))
    gains = [
        f"{what}: {found['f1']:+.3f} (seeds: {', '.join(f'{value:+.3f}' for value in found['by_seed'].values())})"
        for what, found in result["gains"].items()
        if found
    ]
    return "\n".join([*lines, "", *gains])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    three: dict[str, Any] = {"nargs": 3, "metavar": ("FLOW", "FEATURES", "SEQUENCE")}
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=PROGRAMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=[40, 300, 200], **three, help="of training")
    parser.add_argument("--epochs", type=int, default=[1, 3, 20], **three, help="at least; validation after each")
    parser.add_argument("--batch-size", type=int, default=[16, 16, 4], **three)
    parser.add_argument("--lr", type=float, default=[1e-4, 5e-4, 5e-4], **three)
    parser.add_argument("--val-steps", type=int, default=[8, 40, 8], **three, help="at most, after each epoch")
    parser.add_argument("--val-share", type=float, default=0.27, help="of the moments")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--moment", default="(fe)?male_", help="a pattern; see above")
    parser.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE", help="more, for both programs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--venv", type=Path, default=HERE.parents[1] / "build" / "original")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    settings = Settings(
        data=str(options.data.resolve()),
        **{name: getattr(options, name) for name in ("moment", "split_seed", "val_share")},
        **{
            name: tuple(getattr(options, name))
            for name in ("size", "steps", "epochs", "batch_size", "val_steps", "lr", "setting")
        },
    )
    work = options.work.resolve()
    kept = work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != json.loads(json.dumps(asdict(settings))):
        sys.exit(f"{kept}: other settings were used there. Repeat them, or name another --work.")
    if not kept.exists():
        make_template(settings, work / "template")
        kept.write_text(json.dumps(asdict(settings), indent=1))
    wanted = [options.only] if options.only else list(PROGRAMS)
    python = original_python(options.venv) if "original" in wanted else None
    students = [
        Student(program, seed, work / program / f"seed_{seed}" / "project", settings, options.threads, python)
        for seed in options.seeds
        for program in PROGRAMS
    ]
    for student in students:
        if student.program in wanted:
            student.learn()
    result = summary(students, settings, work / "template")
    (work / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
