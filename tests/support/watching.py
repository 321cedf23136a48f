"""Compare the files of an inference with those of an undisturbed run, and watch them while they are written.

python watching.py PROJECT REFERENCE        polls until standard input ends, then prints what it saw, as JSON
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deg.data.results import read_mark, verify_group
from deg.errors import DegError
from deg.runs.rundir import RunDir


def outputs_of(project: Path) -> list[Path]:
    return sorted(project.glob("DATA/*/*_outputs.h5"))


def runs_of(project: Path) -> list[RunDir]:
    return [RunDir(file.parent) for file in sorted(project.glob("models/*/plan.json"))]


Expected = dict[str, dict[str, tuple[Any, dict[str, np.ndarray]]]]
"""Expected results: {recording: {group: (mark, {dataset: values})}}."""


def read_outputs(project: Path) -> Expected:
    return {path.parent.name: read_groups(path) for path in outputs_of(project)}


def read_groups(path: Path) -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    with h5py.File(path, "r", locking=False) as file:
        values = {group: {name: file[group][name][()] for name in file[group]} for group in file}
    return {group: (read_mark(path, group), datasets) for group, datasets in values.items()}


def same_bytes(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.tolist() == right.tolist() if left.dtype.hasobject else left.tobytes() == right.tobytes()


def differences(project: Path, expected: Expected) -> list[str]:
    """Return what differs in a finished project from the undisturbed one, dataset by dataset, and superfluous files."""
    found = read_outputs(project)
    wrong = [f"{key}: no outputs" for key in expected.keys() - found.keys()]
    for key, groups in found.items():
        if list(groups) != list(expected[key]):
            wrong.append(f"{key}: groups {list(groups)}")
            continue
        for group, (mark, datasets) in groups.items():
            wanted_mark, wanted = expected[key][group]
            if mark != wanted_mark:
                wrong.append(f"{key}/{group}: mark {mark}")
            if list(datasets) != list(wanted):
                wrong.append(f"{key}/{group}: datasets {list(datasets)}")
            wrong += [
                f"{key}/{group}/{name} differs" for name in wanted if not same_bytes(datasets[name], wanted[name])
            ]
    wrong += [f"{path} is left over" for path in [*parts_of(project), *project.glob("models/*/units/*/result.h5")]]
    wrong += [f"{run.name} is not finished" for run in runs_of(project) if not run.is_merged()]
    return wrong


def parts_of(project: Path) -> list[Path]:
    """Return parts of files, except in folders that never became runs because of a kill: nobody reads these."""
    in_runs = [part for run in runs_of(project) for part in run.path.rglob("*.part")]
    return [*in_runs, *project.glob("*.part"), *(project / "DATA").rglob("*.part")]


class Watch:
    """A watch on every file with its final name: it looks at those that changed since the last look."""

    def __init__(self, project: Path, expected: Expected):
        self._project, self._expected = project, expected
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self.polls, self.files, self.violations = 0, 0, list[str]()

    def poll(self) -> None:
        self.polls += 1
        for look, pattern in (
            (self._look_at_outputs, "DATA/*/*_outputs.h5"),
            (self._look_at_unit, "models/*/units/*/result.h5"),
            (self._look_at_plan, "models/*/plan.json"),
            (self._look_at_outcome, "models/*/done.json"),
        ):
            for path in self._project.glob(pattern):
                self._look(path, look)

    def _look(self, path: Path, look: Callable[[Path], list[str]]) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._seen.get(path) == identity:
            return
        try:
            wrong = look(path)
        except (OSError, KeyError, ValueError, RuntimeError, DegError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong and not self._is_still(path, identity):
            return  # it was replaced or removed while it was read: the next poll looks again
        self._seen[path] = identity
        self.files += 1
        self.violations += [f"{path.relative_to(self._project)}: {what}" for what in wrong]

    @staticmethod
    def _is_still(path: Path, identity: tuple[int, int, int]) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return (status.st_ino, status.st_mtime_ns, status.st_size) == identity

    def _look_at_outputs(self, path: Path) -> list[str]:
        wrong = []
        for group, (mark, datasets) in read_groups(path).items():
            wanted_mark, wanted = self._expected[path.parent.name][group]
            if mark is None:
                wrong.append(f"{group} has no mark")
                continue
            verify_group(path, group, mark.frames)
            if mark != wanted_mark:
                wrong.append(f"{group} has another mark")
            wrong += [f"{group}/{name} differs" for name in wanted if not same_bytes(datasets[name], wanted[name])]
        return wrong

    def _look_at_unit(self, path: Path) -> list[str]:
        wrong = []
        with h5py.File(path, "r", locking=False) as file:
            for span in file.values():
                key, start, stop = json.loads(span.attrs["span"])
                if "error" in span.attrs:
                    wrong.append(f"{key} failed: {span.attrs['error']}")
                    continue
                group = "resnet18" if "spatial_features" in span else "tgmj"
                _, wanted = self._expected[key][group]
                wrong += [
                    f"{key}[{start}:{stop}]/{name} differs"
                    for name in json.loads(span.attrs["crc32"])
                    if not same_bytes(span[name][()], wanted[name][start:stop])
                ]
        return wrong

    def _look_at_plan(self, path: Path) -> list[str]:
        RunDir(path.parent).load_plan()
        return []

    def _look_at_outcome(self, path: Path) -> list[str]:
        """Check that all results exist which a finished run names."""
        plan, outcome = RunDir(path.parent).load_plan(), json.loads(path.read_text())
        wrong = [f"{key} failed: {reason}" for key, reason in outcome["failed"].items()]
        return wrong + [
            f"{key} is not there" for key in outcome["done"] if read_mark(plan.outputs[key], plan.group) is None
        ]


def watch(project: Path, reference: Path) -> None:
    """Poll until standard input ends, then print what was seen as one line of JSON."""
    seen = Watch(project, read_outputs(reference))
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        seen.poll()
    seen.poll()
    print(json.dumps({"polls": seen.polls, "files": seen.files, "violations": seen.violations}), flush=True)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
