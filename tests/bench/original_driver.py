"""Run DeepEthogram's own code on the CPU, by the Python of its own environment.

    ENVIRONMENT/bin/python original_driver.py JOB.json

The key `do` of JOB.json says what is done; the last line printed is the answer, as JSON.

    extract   feature-extractor inference over one video, its result beside the video. Given: video, weights, network
              ({cnn, flow, images}), class_names, mean, std, size, workers. Answer: `seconds` that its extract() took,
              from a network in memory to an HDF5 file.
    command   what `python -m deepethogram.MODULE ARGUMENTS` does. Given: module (such as feature_extractor.train),
              arguments, seed (null: none, as in the program itself). Answer: `seconds`, and the times at which training
              began and at which each of its steps ended (`step_ends`, of a clock with an arbitrary start).
    load      loading the training clips of the feature extractor, without a network. Given: arguments as for
              feature_extractor.train, batches. Answer: `batch_ends`, by the same clock.
    look_up   what inference finds before it starts. Given: model (feature_extractor or sequence), arguments as for its
              inference. Answer: `weights`, the file it takes; `listed`, all weight files of that kind that it knows of;
              `thresholds`; `loaded` and `lacking`, the tensors of its network that have and have not the values in that
              file.
    draw      learning curves and so on, from a metrics file into the folder `figures` beside it. Given: metrics.
              Answer: `figures`.

Only the device is changed, because DeepEthogram always asks for a GPU: models, losses, augmentation, data and metrics
are its own.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch

Job = dict[str, Any]

ENTRIES = {
    "flow_generator.train": "flow_generator_train",
    "feature_extractor.train": "feature_extractor_train",
    "feature_extractor.inference": "feature_extractor_inference",
    "sequence.train": "sequence_train",
    "sequence.inference": "sequence_inference",
}
"""Each module's function that takes the configuration made by make_<module>_cfg of `configuration`."""


# ------------------------------------------------------------------------------------------------------------ commands


class Clock(pl.callbacks.Callback):
    """Times at which training began and at which each of its steps ended."""

    def __init__(self) -> None:
        self.step_ends: list[float] = []

    def on_train_start(self, *args: Any) -> None:
        self.step_ends.append(time.perf_counter())

    def on_train_batch_end(self, *args: Any) -> None:
        self.step_ends.append(time.perf_counter())


def train_on_the_cpu(clock: Clock) -> None:
    """Make every Trainer created from now on use the CPU."""
    original = pl.Trainer

    class Trainer(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, gpus: Any = None, callbacks: Any = (), **options: Any):
            super().__init__(*args, accelerator="cpu", devices=1, callbacks=[*callbacks, clock], **options)

    pl.Trainer = Trainer


def extract_on_the_cpu(module: Any) -> None:
    """Replace the device, which the call of extract() names once, by keyword or by position."""
    original = module.extract

    def extract(*args: Any, **options: Any) -> Any:
        args = tuple("cpu" if isinstance(value, str) and value.startswith("cuda:") else value for value in args)
        return original(*args, **{**options, "device": "cpu"} if "device" in options else options)

    module.extract = extract


def configuration(module: str, arguments: list[str]) -> Any:
    """Return the configuration for a command line. sys.argv stays set, because it is read until the end of the run."""
    from deepethogram import configuration, projects

    sys.argv = [module, *arguments]
    make = getattr(configuration, f"make_{module.replace('.', '_')}_cfg")
    return make(projects.get_project_path_from_cl(sys.argv), use_command_line=True)


def run_command(job: Job) -> Job:
    if job["seed"] is not None:
        seed_all(job["seed"])
    module = importlib.import_module(f"deepethogram.{job['module']}")
    clock = Clock()
    train_on_the_cpu(clock)
    if job["module"].endswith("inference"):
        extract_on_the_cpu(module)
    started = time.perf_counter()
    getattr(module, ENTRIES[job["module"]])(configuration(job["module"], job["arguments"]))
    return {"seconds": time.perf_counter() - started, "step_ends": clock.step_ends}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# ------------------------------------------------------------------------------------------------------- parts of them


def load_clips(job: Job) -> Job:
    from deepethogram import projects
    from deepethogram.data.datasets import get_datasets_from_cfg
    from torch.utils.data import DataLoader

    config = projects.convert_config_paths_to_absolute(configuration("feature_extractor.train", job["arguments"]))
    frames = config.feature_extractor.n_flows + 1
    datasets, _ = get_datasets_from_cfg(config, model_type="feature_extractor", input_images=frames)
    loader = DataLoader(
        datasets["train"], config.compute.batch_size, shuffle=True, num_workers=config.compute.num_workers
    )
    ends = [time.perf_counter()]
    for batch in loader:
        assert batch["images"].shape[2] == frames
        ends.append(time.perf_counter())
        if len(ends) > job["batches"]:
            break
    return {"batch_ends": ends}


def look_up(job: Job) -> Job:
    import h5py
    from deepethogram import projects, utils

    model = job["model"]
    config = projects.convert_config_paths_to_absolute(configuration(f"{model}.inference", job["arguments"]))
    weights = projects.get_weightfile_from_cfg(config, model)
    files = utils.get_run_files_from_weights(weights)
    with h5py.File(files["metrics_file"]) as file:
        epoch = utils.get_best_epoch_from_weightfile(weights)
        thresholds = file["val/metrics_by_threshold/optimum"][epoch, :]
    config[model].weights = weights
    network = build_network(model, config, weights)
    stored = utils.load_state_dict_from_file(weights)[0]
    names = [name for name in network.state_dict() if not name.startswith("flow_generator.")]
    loaded = {name: torch.equal(network.state_dict()[name], stored[name]) for name in names if name in stored}
    return {
        "weights": weights,
        "listed": projects.get_weights_from_model_path(config.project.model_path)[model][config[model].arch],
        "thresholds": thresholds.tolist(),
        "loaded": sum(loaded.values()),
        "lacking": [name for name in names if not loaded.get(name)],
    }


def draw(job: Job) -> Job:
    from deepethogram import viz

    os.chdir(Path(job["metrics"]).parent)  # it draws into the current folder
    plt.switch_backend("agg")
    viz.visualize_logger_multilabel_classification(job["metrics"])
    return {"figures": sorted(path.name for path in Path("figures").glob("*.png"))}


def build_network(model: str, config: Any, weights: str) -> torch.nn.Module:
    """Build the network as inference does, with all values of the weight file that it accepts."""
    from deepethogram import utils

    build = importlib.import_module(f"deepethogram.{model}.train").build_model_from_cfg
    if model == "feature_extractor":
        return build(config)[-1]
    return utils.load_weights(build(config, 1024, len(config.project.class_names)), weights)


def extract_video(job: Job) -> Job:
    from deepethogram.configuration import load_config_by_name
    from deepethogram.data.augs import get_cpu_transforms, get_gpu_transforms
    from deepethogram.feature_extractor.inference import extract
    from deepethogram.feature_extractor.models.hidden_two_stream import hidden_two_stream
    from deepethogram.postprocessing import Postprocessor

    network, names = job["network"], job["class_names"]
    model = hidden_two_stream(
        network["cnn"],
        network["flow"],
        len(names),
        num_rgb=network["images"],
        num_flows=10,
        dropout_p=0.25,
        reload_imagenet=False,
    )
    model.load_state_dict(torch.load(job["weights"], map_location="cpu", weights_only=True)["state_dict"])
    augs = load_config_by_name("augs").augs
    augs.resize, augs.normalization.mean, augs.normalization.std = job["size"], job["mean"], job["std"]
    thresholds = np.full(len(names), 0.5)
    started = time.perf_counter()
    extract(
        [job["video"]],
        model,
        final_activation="sigmoid",
        thresholds=thresholds,
        postprocessor=Postprocessor(thresholds.copy()),
        mean_by_channels=job["mean"],
        fusion="average",
        num_rgb=11,
        latent_name=network["cnn"],
        class_names=names,
        device="cpu",
        cpu_transform=get_cpu_transforms(augs)["val"],
        gpu_transform=get_gpu_transforms(augs, "2d" if network["images"] == 1 else "3d")["val"],
        overwrite=True,
        num_workers=job["workers"],
        batch_size="auto",
    )
    return {"seconds": time.perf_counter() - started}


JOBS = {"extract": extract_video, "command": run_command, "load": load_clips, "look_up": look_up, "draw": draw}

if __name__ == "__main__":
    answered = json.loads(Path(sys.argv[1]).read_text())
    answer = JOBS[answered["do"]](answered)
    sys.stdout.flush()
    print("\n" + json.dumps(answer), flush=True)
