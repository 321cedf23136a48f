"""The commands that users type give the same numbers for a finished project of DeepEthogram 0.5.0.

`filled_outputs/` holds the original's results for its whole pipeline, from video to HDF5, with weights that `fill`
draws again from names and shapes. The group `tgmj` of the recordings' own outputs holds the results of the original's
own sequence network.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fill import filled_state

from deg.launch.cli import run
from deg.models.two_stream import build_two_stream
from deg.options.load import load_config

pytestmark = pytest.mark.slow

PATTERN = "261122_063920_feature_extractor_train"
SEQUENCE_RUN = "261122_064227_sequence_train"
CLASSES = 4
LIMITS = {"P": 1e-4, "logits": 5e-4, "spatial_features": 2e-3, "flow_features": 2e-3, "thresholds": 0.0}


@pytest.fixture
def project(tmp_path, shared_data) -> Path:
    """A copy to write to, with the runs and those recordings that are short enough."""
    source = shared_data("data/deg_project_original")
    copy = tmp_path / "field deepethogram"
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    for folder in copy.rglob("*"):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    return copy


def make_filled_runs(project: Path, preset: str, salt: int) -> tuple[Path, Path]:
    """Training runs as the original leaves them, with weights drawn from names and shapes."""
    config = load_config(None, [f"preset={preset}"])
    network = build_two_stream(config.feature_extractor, config.flow_generator, CLASSES)
    stored = yaml.safe_load((project / "models" / PATTERN / "config.yaml").read_text())
    stored["feature_extractor"].update(arch=config.feature_extractor.arch, n_rgb=config.feature_extractor.n_rgb)
    stored["flow_generator"].update(arch=config.flow_generator.arch)
    parts = {"feature_extractor": (network, ""), "flow_generator": (network.flow_generator, "flow_generator.")}
    weights = []
    for model, (part, prefix) in parts.items():
        run_folder = project / "models" / f"200101_{salt:06d}_{model}_train"
        run_folder.mkdir()
        stored["run"] = {"type": "train", "model": model, "dir": str(run_folder)}
        (run_folder / "config.yaml").write_text(yaml.safe_dump(stored))
        state = filled_state(part.state_dict(), salt, prefix)
        torch.save(
            {"epoch": 1, "state_dict": state, "optimizer": None, "hyperparameters": None}, run_folder / "checkpoint.pt"
        )
        weights.append(run_folder / "checkpoint.pt")
    metrics = project / "models" / PATTERN / "classification_metrics.h5"
    shutil.copyfile(metrics, weights[0].parent / metrics.name)
    return weights[0], weights[1]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("preset", "salt", "group"), [("deg_f", 1, "resnet18"), ("deg_s", 3, "resnet3d_34")])
def test_feature_inference_equals_the_original(project, preset, salt, group):
    """One preset stacks frames in channels, the other uses clips. deg_m differs from deg_f only in tested networks."""
    extractor, flow = make_filled_runs(project, preset, salt)
    outputs = project / "DATA" / "field_4" / "field_4_outputs.h5"
    with h5py.File(outputs) as before:
        others = {name: before[name]["P"][()] for name in before if name != group}
    arguments = ["infer", "feature_extractor", str(project), "--videos", "field_4", f"preset={preset}"]
    arguments += [f"feature_extractor.weights={extractor}", f"flow_generator.weights={flow}"]
    assert run(arguments) == 0
    with h5py.File(outputs) as ours, h5py.File(project / "filled_outputs" / f"field_4_{preset}.h5") as theirs:
        assert set(ours[group]) == set(theirs[group])
        assert list(ours[group]["class_names"].asstr()) == list(theirs[group]["class_names"].asstr())
        for name, limit in LIMITS.items():
            assert ours[group][name].dtype == theirs[group][name].dtype
            assert ours[group][name].shape == theirs[group][name].shape
            np.testing.assert_allclose(ours[group][name], theirs[group][name], rtol=0, atol=limit, err_msg=name)
        for name, probabilities in others.items():
            np.testing.assert_array_equal(ours[name]["P"], probabilities)


@pytest.mark.parametrize("weights", ["checkpoint.pt", "lightning_checkpoints/epoch=3-step=12.ckpt"])
def test_sequence_inference_equals_the_original(project, weights):
    theirs = {}
    for outputs in project.glob("DATA/*/*_outputs.h5"):
        with h5py.File(outputs) as file:
            theirs[outputs] = {name: file["tgmj"][name][()] for name in ("P", "logits", "thresholds")}
    given = project / "models" / SEQUENCE_RUN / weights
    assert run(["infer", "sequence", str(project), f"sequence.weights={given}"]) == 0
    assert len(theirs) == 4
    for outputs, expected in theirs.items():
        with h5py.File(outputs) as file:
            assert "deg_mark" in file["tgmj"].attrs
            np.testing.assert_allclose(file["tgmj"]["logits"], expected["logits"], rtol=1e-4, atol=5e-6)
            np.testing.assert_allclose(file["tgmj"]["P"], expected["P"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(file["tgmj"]["thresholds"], expected["thresholds"], atol=1e-6)


def test_exported_predictions_equal_the_original(project):
    theirs = {path: path.read_text() for path in project.glob("DATA/*/*_predictions.csv")}
    assert len(theirs) == 4
    for path in theirs:
        path.unlink()
    assert run(["export", str(project), "--format", "csv"]) == 0
    for path, text in theirs.items():
        assert path.read_text() == text


def test_parquet_holds_the_same_predictions_with_probabilities(project, tmp_path):
    assert run(["export", str(project), "--format", "parquet", "--to", str(tmp_path / "out")]) == 0
    table = pd.read_parquet(tmp_path / "out" / "field_1_predictions.parquet")
    predictions = pd.read_csv(project / "DATA" / "field_1" / "field_1_predictions.csv", index_col=0)
    with h5py.File(project / "DATA" / "field_1" / "field_1_outputs.h5") as file:
        probabilities_TK = file["tgmj"]["P"][()]
    for k, name in enumerate(predictions):
        np.testing.assert_array_equal(table[f"{name}_prediction"], predictions[name])
        np.testing.assert_array_equal(table[f"{name}_probability"], probabilities_TK[:, k])


def test_looking_at_a_project_writes_nothing(project):
    def everything() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in project.rglob("*")}

    before = everything()
    run(["check", str(project), "--deep"])
    run(["infer", "sequence", str(project), "--dry-run"])
    assert everything() == before
