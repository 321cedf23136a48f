"""Load the training clips of `deg train feature_extractor` with its own loader, without a network.

    python deg_driver.py JOB.json

JOB.json holds: project, arguments (KEY=VALUE), batches. The last line printed is JSON: `cache_seconds`, the time that
making the frame cache took (0 with compute.cache=none), and `batch_ends`, the times of a clock with an arbitrary start.
original_driver.py does the same for DeepEthogram with `load`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from deg.arithmetic.windows import WINDOW
from deg.data.frames.cache import FrameCache
from deg.options.load import load_config
from deg.plan.train import prepare
from deg.projects.project import open_project
from deg.train.clip_data import ClipData, TrainBatches, frame_transform, make_loader


def load_clips(job: dict[str, Any]) -> dict[str, Any]:
    project = open_project(Path(job["project"]))
    config = load_config(project.config_file, job["arguments"], stage="feature_extractor")
    plan = prepare("feature_extractor", project, config, devices=1).plan
    cache, started = None, time.perf_counter()
    if plan.cache is not None:
        cache = FrameCache(Path(plan.cache), config.compute.cache_format, int(config.compute.cache_limit * 1e9))
        cache.ensure(plan.videos, frame_transform(config.augs))
    ready = time.perf_counter()
    data = ClipData(plan, "train", config, cache)
    batches = TrainBatches(len(data), config.compute.batch_size, seed=0, first=lambda: 0, steps=job["batches"])
    ends = [time.perf_counter()]
    for batch in make_loader(data, batches, num_workers=config.compute.num_workers, pin=False):
        assert batch["clips"].shape[1] == WINDOW
        ends.append(time.perf_counter())
    return {"cache_seconds": ready - started if cache else 0.0, "batch_ends": ends}


if __name__ == "__main__":
    print(json.dumps(load_clips(json.loads(Path(sys.argv[1]).read_text()))))
