"""`deg demo`: makes a project, fills it, trains, infers and reports, as the commands that users type would do."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deg.data.atomic import write_atomically
from deg.data.labels import write_labels
from deg.errors import ProjectError, show_path
from deg.launch.say import say
from deg.launch.stages.chain import run_chain
from deg.launch.stages.place import Workers
from deg.launch.stages.request import ChainRequest
from deg.options.yamlfile import read_yaml, yaml_text
from deg.projects.shapes import BEHAVIORS, write_shapes_video

VIDEOS = 4
FRAMES = 200
SEED = 1
OPTIONS: dict[str, dict[str, Any]] = {
    # LR is 0: in a mirrored video a move to the right would be one to the left
    "augs": {"resize": [36, 48], "LR": 0.0, "grayscale": 0.0, "degrees": 0},
    "compute": {"batch_size": 16, "num_workers": 1},
    "split": {"train_val_test": [0.75, 0.25, 0.0]},
    "train": {
        "lr": 1e-3,
        "num_epochs": 2,
        "steps_per_epoch": {"train": 20},
        "stopping_type": "num_epochs",
        "scheduler": None,
    },
    "flow_generator": {"weights": None},
    "feature_extractor": {"weights": "random"},
    # every frame begins a stretch, so that an epoch has as many steps as with the other networks
    "sequence": {"sequence_length": 30, "nonoverlapping": False},
}
"""Options with which everything takes minutes on two cores, and the networks still learn to tell movements apart."""


def run_demo(folder: Path, workers: Workers) -> dict[str, Any]:
    """Make the project and run every step. Raises ProjectError if `folder` holds something else."""
    if folder.is_file():
        raise ProjectError(f"{show_path(folder)}: expected a folder, found a file. Name another folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "demo.json").exists():
        raise ProjectError(
            f"{show_path(folder)}: expected no folder or an empty one, found files. Name another folder."
        )
    started = time.monotonic()
    if not (folder / "demo.json").exists():
        _make(folder)
    if status := _do(folder, workers):
        return {"project": str(folder), "exit_status": status}
    pages = sorted(str(path) for path in folder.glob("reports/*/index.html"))
    results = sorted(str(path) for path in (folder / "DATA").glob("*/*_outputs.h5"))
    f1 = {stage: _validation(folder, stage) for stage in ("feature_extractor", "sequence")}
    _conclude(folder, f1, pages[-1], results)
    say(f"It took {(time.monotonic() - started) / 60:.1f} minutes.")
    return {"project": str(folder), "f1": f1, "report": pages[-1], "results": results, "exit_status": 0}


def _do(folder: Path, workers: Workers) -> int:
    """Check the project, do what is missing, and export. Return the exit status of the first step that fails, or 0."""
    from deg.options.load import load_config
    from deg.projects.check import check_project
    from deg.projects.export import export_recordings
    from deg.projects.project import open_project

    _show("check", folder)
    project = open_project(folder)
    checked = check_project(project, load_config(project.config_file))
    for issue in checked.issues:
        say(f"{issue.severity}: {issue.key + ': ' if issue.key else ''}{issue.message}")
    if not checked.ok:
        return 1
    _show("run", folder)
    if status := run_chain(ChainRequest(folder), workers).exit_status:
        return status
    _show("export", folder, "--format", "csv")
    project = open_project(folder)
    config = load_config(project.config_file, stage="inference")
    exported = export_recordings(project, config, list(project.records.values()), file_format="csv")
    for key, path in exported.written.items():
        say(f"{key}: {path}")
    for key, reason in exported.failed.items():
        say(f"{key}: FAILED: {reason}")
    return 1 if exported.failed else 0


def _show(*words: object) -> None:
    """Say which command does what follows."""
    say(f"\n$ deg {shlex.join(map(str, words))}")


def _conclude(folder: Path, f1: Mapping[str, Mapping[str, float]], page: str, results: Sequence[str]) -> None:
    """Say what was learned, and where to look."""
    say(
        f"\nThree networks have learned to tell {' and '.join(BEHAVIORS)} from background. This is their F1 on the"
        " validation video, which none of them was trained on; 1 is perfect, and 0 means that nothing was found."
    )
    for stage, scores in f1.items():
        say(f"  {stage:17s} " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    say("Where to look:")
    say(f"  report    {page} (open it in a browser)")
    say(f"  results   {len(results)} files that DeepEthogram's GUI opens, such as {results[0]}")
    say(f"  networks  {folder / 'models'}")


def _validation(folder: Path, stage: str) -> Mapping[str, float]:
    """Return the F1 of each class on the validation video, and the mean without background.

    The network is the newest one of the stage.
    """
    from deg.launch.stages.chain import find_network
    from deg.launch.stages.train import read_best
    from deg.options.load import load_config
    from deg.projects.project import open_project
    from deg.runs.rundir import RunDir

    project = open_project(folder)
    network = find_network(project, stage, getattr(load_config(project.config_file), stage).arch)
    assert network is not None  # `deg run` has just trained it
    row = read_best(RunDir(network.folder)).val
    return {**dict(zip(project.class_names, row["f1_by_class"], strict=True)), "mean": row["f1_class_mean_nobg"]}


def _make(folder: Path) -> None:
    """Make the project: labelled videos, and options with which training takes minutes."""
    from deg.projects.add import add_recording
    from deg.projects.project import create_project

    _show("new", folder, "--behaviors", ",".join(BEHAVIORS))
    project = create_project(folder, BEHAVIORS)
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(VIDEOS):
            video = Path(scratch) / f"shapes_{index}.mp4"
            labels = video.with_name(f"shapes_{index}_labels.csv")
            labels_TK = write_shapes_video(video, num_frames=FRAMES, height=192, width=256, seed=SEED + index)
            write_labels(labels, labels_TK, ["background", *BEHAVIORS])
            _show("add", folder, video.name, "--labels", labels.name)
            add_recording(project, video, labels)
    config_file = folder / "project_config.yaml"
    config = read_yaml(config_file, ProjectError)
    config["preset"] = "deg_f"
    for section, options in OPTIONS.items():
        config[section] = {**config.get(section, {}), **options}
    write_atomically(config_file, yaml_text(config))
    write_atomically(folder / "demo.json", json.dumps({"seed": SEED, "videos": VIDEOS, "frames": FRAMES}))
