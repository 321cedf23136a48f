"""Runs DeepEthogram's feature-extractor inference over one video on the CPU. For the Python of its own environment.

    ENVIRONMENT/bin/python original_driver.py JOB.json

JOB.json: video, weights, network ({cnn, flow, images}), class_names, mean, std, size, workers. The result lies beside
the video, as DeepEthogram puts it there. The last line printed is JSON: `seconds` that its extract() took, from a
network in memory to an HDF5 file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from deepethogram.configuration import load_config_by_name
from deepethogram.data.augs import get_cpu_transforms, get_gpu_transforms
from deepethogram.feature_extractor.inference import extract
from deepethogram.feature_extractor.models.hidden_two_stream import hidden_two_stream
from deepethogram.postprocessing import Postprocessor


def main(job: dict) -> None:
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
        device="cpu",  # its own command asks for a GPU, always
        cpu_transform=get_cpu_transforms(augs)["val"],
        gpu_transform=get_gpu_transforms(augs, "2d" if network["images"] == 1 else "3d")["val"],
        overwrite=True,
        num_workers=job["workers"],
        batch_size="auto",
    )
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
