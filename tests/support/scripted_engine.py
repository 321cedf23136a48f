"""An engine that computes nothing: each row names its frame. A script says what goes wrong.

The script is JSON in the environment variable SCRIPT; all keys are optional:

    pause     seconds that each batch of 16 frames takes
    folder    where deaths are counted, one file each
    deaths    {key: n}: the first n workers that reach the recording are killed by SIGKILL in its middle
    faults    {key: message}: the recording cannot be decoded
    refuse    no engine can be made; this is the message
    start     {"exit": status}: the worker ends before it begins; with "devices", on these alone
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from deg.errors import VideoError, WeightsError

BATCH = 16
FEATURES = 512


def rows_of(first: int, last: int, classes: int, features: int = FEATURES) -> dict[str, np.ndarray]:
    """Return the engine's rows of frames [first, last): the number of the frame, plus column / 8 in the features."""
    frames = np.arange(first, last, dtype=np.float32)[:, None]
    column = np.arange(features, dtype=np.float32) / 8
    return {
        "logits": frames + np.zeros(classes, np.float32),
        "P": (frames % 100) / 100 + np.zeros(classes, np.float32),
        "spatial_features": frames + column,
        "flow_features": -frames - column,
    }


class FeatureSpans:
    def __init__(self, plan, device="cpu", script=None):
        self._script = script if script is not None else json.loads(os.environ.get("SCRIPT", "{}"))
        self._classes = len(plan.class_names)
        self._names = self._columns()
        self.columns = {
            name: rows.shape[1] for name, rows in rows_of(0, 1, self._classes).items() if name in self._names
        }
        start = self._script.get("start")
        if start and os.environ.get("CUDA_VISIBLE_DEVICES", "0") in start.get("devices", ["0"]):
            sys.stderr.write("the driver is too old\n")
            sys.exit(start["exit"])
        if "refuse" in self._script:
            raise WeightsError(self._script["refuse"])

    def _columns(self):
        return ("logits", "P", "spatial_features", "flow_features")

    def describe(self):
        return {"device": "script", "precision": "fp32"}

    def expect(self, spans):
        pass

    def run_span(self, span):
        self._span = span
        for first in range(span.start, span.stop, BATCH):
            if span.key in self._script.get("faults", {}):
                raise VideoError(f"{span.key}.mp4", self._script["faults"][span.key], "Copy it again.")
            if first >= span.start + len(span) // 2:
                self._die(span.key)
            time.sleep(self._script.get("pause", 0))
            rows = rows_of(first, min(first + BATCH, span.stop), self._classes)
            yield {name: rows[name] for name in self._names}

    def _die(self, key):
        if key in self._script.get("deaths", {}):
            for number in range(self._script["deaths"][key]):
                try:
                    (Path(self._script["folder"]) / f"{key}.{number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)

    def checks(self):
        frames = {
            "head": np.arange(max(self._span.start - 5, 0), self._span.start + 5),
            "tail": np.arange(self._span.stop - 5, self._span.stop + 5),
        }
        found = {}
        for end, numbers in frames.items():
            found |= {f"{end}_frames": numbers.astype(np.int64), f"{end}_crc32": (7 * numbers).astype(np.int64)}
        return found

    def close(self):
        pass


class SequenceSpans(FeatureSpans):
    def _columns(self):
        return ("logits", "P")

    def checks(self):
        return {}
