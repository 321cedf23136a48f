"""Check that DeepEthogram itself finds and loads runs of `deg train`, and gets the numbers of `deg infer` from them.

    python tests/compat/run_of_ours_in_the_original.py PROJECT [--venv DIR] [--videos KEY ...] [KEY=VALUE ...]

PROJECT has a trained feature extractor, a sequence network or both. Everything happens in a copy of it. DeepEthogram's
own code looks for the newest weights, loads them, reads the thresholds, draws its learning curves and infers; `deg
infer` does the same in fp32 with the same flow generator. The sequence networks of both read the features that `deg
infer` wrote. Each check prints one line, OK or FAIL; the exit status is 1 if any failed. KEY=VALUE are options for both
programs.

DeepEthogram's environment is made as by tests/bench/against_original.py. It takes the newest networks of the
architectures that the project's configuration names.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from against_original import measure, original_python  # noqa: E402 - found by the line above

from deg.options.load import load_config  # noqa: E402
from deg.options.schema import Config  # noqa: E402
from deg.projects.project import Project, open_project  # noqa: E402
from deg.runs.networks import companion, read_thresholds, resolve_weights, run_section, scan, training_flow_weights  # noqa: E402

DEG = Path(sys.executable).with_name("deg")
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Largest difference that is allowed in a probability, logit or feature."""
READ_BY_THE_GUI = [("sequence", key) for key in ("latent_name", "output_name", "arch")] + [
    ("feature_extractor", "arch")
]


@dataclass
class Checks:
    """Numbers of checks done and failed."""

    done: int = 0
    failed: int = 0

    def that(self, what: str, holds: bool, otherwise: str = "") -> None:
        self.done += 1
        self.failed += not holds
        print(f"{'OK  ' if holds else 'FAIL'}  {what}{'' if holds or not otherwise else ': ' + otherwise}", flush=True)


@dataclass(frozen=True)
class Bench:
    """The copied project and the tools to work on it."""

    project: Project
    config: Config
    keys: tuple[str, ...]
    options: tuple[str, ...]
    python: Path
    folder: Path

    def outputs(self, key: str) -> Path:
        video = self.project.records[key].video
        assert video is not None
        return video.parent / f"{video.stem}_outputs.h5"

    def infer(self, stage: str, weights: Path) -> None:
        videos = [word for key in self.keys for word in ("--videos", key)]
        given = [f"{stage}.weights={weights}", "inference.precision=fp32", *self.options]
        measure([DEG, "infer", stage, self.project.path, *videos, "--overwrite", *given])

    def ask(self, do: str, arguments: Sequence[str] = (), **job: Any) -> dict[str, Any]:
        """Return the driver's answer. Raise SystemExit with DeepEthogram's own words if it fails."""
        arguments = [f"project.path={self.project.path}", "compute.num_workers=1", *arguments, *self.options]
        file = self.folder / "job.json"
        file.write_text(json.dumps({"do": do, "arguments": arguments} | job))
        output, _ = measure([self.python, BENCH / "original_driver.py", file])
        return json.loads(output.splitlines()[-1])

    def infer_in_the_original(self, stage: str, *arguments: str) -> None:
        folders = ",".join(str(self.project.records[key].folder) for key in self.keys)
        chosen = [f"inference.directory_list=[{folders}]", "inference.overwrite=true", *arguments]
        self.ask("command", chosen, module=f"{stage}.inference", seed=None)

    def take(self, key: str, group: str) -> dict[str, np.ndarray] | None:
        """Return the results of one network and remove them from the file; None if there are none."""
        with h5py.File(self.outputs(key), "r+") as file:
            if group not in file:
                return None
            found = {name: dataset[()] for name, dataset in file[group].items()}
            del file[group]
        return found


# -------------------------------------------------------------------------------------------------------------- checks


def check_stage(bench: Bench, checks: Checks, stage: str) -> None:
    section = bench.config.feature_extractor if stage == "feature_extractor" else bench.config.sequence
    runs = [run for run in scan(bench.project.model_path) if (run.model, run.arch) == (stage, section.arch)]
    ours = resolve_weights("latest", model=stage, arch=section.arch, project=bench.project)
    assert ours is not None
    print(f"\n{stage}: {ours.relative_to(bench.project.model_path)}")
    flow = [] if stage == "sequence" else flow_generator(bench, ours)
    found = bench.ask("look_up", [f"{stage}.weights=latest", *flow], model=stage)
    missing = {run.weights.parts for run in runs} - {Path(path).parts for path in found["listed"]}
    checks.that("its look-up lists every run", not missing, f"not {sorted(Path(*parts) for parts in missing)}")
    checks.that("its `latest` is ours", Path(found["weights"]) == ours, found["weights"])
    checks.that(
        f"its network takes all tensors of the file ({found['loaded']})",
        found["loaded"] > 0 and not found["lacking"],
        f"{len(found['lacking'])} not, such as {found['lacking'][:3]}",
    )
    thresholds_K = read_thresholds(ours, len(bench.project.class_names))
    same = not thresholds_K.assumed and np.array_equal(thresholds_K.values, found["thresholds"])
    checks.that("its thresholds are ours", same, f"{found['thresholds']}, not {thresholds_K.values.tolist()}")
    drawn = bench.ask("draw", metrics=str(companion(ours).metrics))["figures"]
    checks.that(f"it draws the metrics of every epoch ({len(drawn)} figures)", bool(drawn))
    if stage == "sequence":
        configured = companion(ours).config
        lacking = [(part, key) for part, key in READ_BY_THE_GUI if key not in run_section(configured, part)]
        checks.that("the run's config.yaml has what its GUI reads", not lacking, f"no {lacking}")
    compare_inference(bench, checks, stage, ours, flow)


def flow_generator(bench: Bench, extractor: Path) -> list[str]:
    """Return the option for the flow generator that the feature extractor was trained with, as `deg infer` finds it."""
    path, _ = training_flow_weights(companion(extractor).config or {}, bench.project)
    if path is None:
        sys.exit(f"{extractor}: its config.yaml does not say which flow generator it was trained with.")
    return [f"flow_generator.weights={path}"]


def compare_inference(bench: Bench, checks: Checks, stage: str, weights: Path, flow: Sequence[str]) -> None:
    sequence = bench.config.sequence
    group = sequence.latent_name or bench.config.feature_extractor.arch
    if stage == "sequence":
        group = sequence.output_name or sequence.arch
        for key in bench.keys:
            bench.take(key, group)
    else:
        for key in bench.keys:
            bench.outputs(key).unlink(missing_ok=True)
    bench.infer_in_the_original(stage, f"{stage}.weights=latest", *flow)
    theirs = {key: bench.take(key, group) for key in bench.keys}
    bench.infer(stage, weights)
    for key in bench.keys:
        with h5py.File(bench.outputs(key)) as file:
            ours = {name: dataset[()] for name, dataset in file[group].items()}
        compare(checks, f"{key}, group {group}", ours, theirs[key])


def compare(checks: Checks, what: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray] | None) -> None:
    if theirs is None:
        checks.that(f"{what}: it wrote results", False)
        return
    checks.that(f"{what}: same datasets", set(ours) == set(theirs), f"{sorted(ours)}, its {sorted(theirs)}")
    for name in sorted(set(ours) & set(theirs)):
        mine, its = ours[name], theirs[name]
        if mine.shape != its.shape:
            checks.that(f"{what}: {name}", False, f"shape {mine.shape}, its {its.shape}")
        elif name in ("thresholds", "class_names"):
            checks.that(f"{what}: {name} identical", bool((mine == its).all()), f"{mine}, its {its}")
        else:
            largest = float(np.abs(mine - its).max())
            close = np.allclose(mine, its, rtol=RELATIVE, atol=ABSOLUTE)
            checks.that(f"{what}: {name} agree, largest difference {largest:.1e} of {np.abs(its).max():.3g}", close)


# ---------------------------------------------------------------------------------------------------------------- main


def prepare(options: argparse.Namespace, folder: Path) -> Bench:
    source = open_project(options.project)
    copy = folder / "project"
    shutil.copytree(source.path, copy, ignore=shutil.ignore_patterns("frame_cache"))
    project = open_project(copy)
    config = load_config(project.config_file, options.settings, stage="inference")
    keys = options.videos or [key for key, record in project.records.items() if record.video is not None]
    python = original_python(options.venv)
    return Bench(project, config, tuple(keys), tuple(options.settings), python, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, metavar="PROJECT")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--venv", type=Path, default=BENCH.parents[1] / "build" / "original")
    parser.add_argument("--videos", nargs="+", metavar="KEY", help="these recordings only; default: all")
    options = parser.parse_intermixed_args()
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(options, Path(folder).resolve())
        trained = {run.model for run in scan(bench.project.model_path)}
        for stage in ("feature_extractor", "sequence"):
            if stage in trained:
                try:
                    check_stage(bench, checks, stage)
                except SystemExit as ended:
                    checks.that(f"{stage}: it comes to its end", False, str(ended.code))
    print(f"\n{checks.done} checks, {checks.failed} failed")
    return 1 if checks.failed or not checks.done else 0


if __name__ == "__main__":
    sys.exit(main())
