"""Test an image from inside: `python -m deg.launch.selftest FLAVOUR`, which is the image's %test.

Apptainer runs it when the image has been built, `deg image check` runs it on the cluster: as the user who calls it,
with the root file system read-only, an empty home folder and, where the kernel lets a user cut it off, no network.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from deg.containers import Flavour, flavour
from deg.errors import DegError, LaunchError
from deg.launch.doctor.gpu import NV_LIBRARIES, judge_pytorch, measure
from deg.launch.say import say

DRIVER_FILES = ("libcuda.so*", "libcudadebugger.so*", "libnvcuvid.so*", "libnvidia-*.so*")
"""Libraries of the driver. They come from the host, by --nv; one in the image may be used instead and not fit it."""
FRAMES = 40
SECONDS = 600


def main(arguments: list[str]) -> int:
    """Run the tests in turn; return exit status 0, or that of the first that fails."""
    kind = flavour(arguments[0])
    for test in (versions, no_driver_inside, readable_by_all, inference, gpu):
        try:
            say(f"{test.__name__.replace('_', ' ')}: {test(kind)}")
        except DegError as error:
            say(f"{test.__name__.replace('_', ' ')}: FAILED: {error}")
            return error.exit_status
    return 0


def versions(kind: Flavour) -> str:
    """Check that torch and CUDA are those of the flavour, and that what deg needs can be imported."""
    import av
    import cv2
    import h5py
    import kornia  # noqa: F401 - some GPU libraries are loaded only now
    import pytorch_lightning
    import torch
    import torchvision

    found = torch.__version__.partition("+")[0], torch.version.cuda
    if found != (kind.torch, kind.cuda):
        raise LaunchError(f"expected torch {kind.torch} for CUDA {kind.cuda}, found {found[0]} for {found[1]}")
    others = {"torchvision": torchvision, "lightning": pytorch_lightning, "opencv": cv2, "av": av, "h5py": h5py}
    names = ", ".join(f"{name} {module.__version__}" for name, module in others.items())
    return f"Python {platform.python_version()}, torch {found[0]} for CUDA {found[1]}, {names}"


def no_driver_inside(kind: Flavour) -> str:
    """Check that no library of the NVIDIA driver lies in the image."""
    found = [
        str(path)
        for top in ("/opt", "/usr")
        for pattern in DRIVER_FILES
        for path in Path(top).rglob(pattern)
        if not path.is_symlink() or path.exists()
    ]
    if found:
        raise LaunchError(f"expected no library of the NVIDIA driver in the image, found {', '.join(found)}")
    return f"the driver is the host's, {kind.min_driver} or newer"


def readable_by_all(kind: Flavour) -> str:
    """Check that every user can read every file, and write none."""
    count = 0
    for folder, _, names in os.walk(sys.prefix):
        for name in (folder, *(f"{folder}/{name}" for name in names)):
            count += 1
            if not Path(name).lstat().st_mode & 0o004:
                raise LaunchError(f"expected {name} to be readable by everybody")
            if os.getuid() and os.access(name, os.W_OK):
                raise LaunchError(f"expected {name} to be writable by nobody")
    return f"{count} files, as user {os.getuid()}"


def inference(kind: Flavour) -> str:
    """Run `deg infer` on a generated video with untrained networks, on the CPU."""
    from deg.projects.shapes import BEHAVIORS, write_shapes_video

    with tempfile.TemporaryDirectory() as scratch:
        project, home = Path(scratch) / "project", Path(scratch) / "home"
        home.mkdir(mode=0o500)
        video = Path(scratch) / "shapes.mp4"
        write_shapes_video(video, num_frames=FRAMES, height=96, width=128, seed=0)
        environment = {**os.environ, "HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
        alone = _without_network()
        deg = [*alone, sys.executable, "-m", "deg.launch.cli"]
        _run([*deg, "new", str(project), "--behaviors", ",".join(BEHAVIORS)], environment)
        _run([*deg, "add", str(project), str(video)], environment)
        write_untrained_weights(project, "preset=deg_f", "augs.resize=[64,64]")
        _run([*deg, "infer", "all", str(project), "feature_extractor.weights=latest"], environment)
        if not list(project.glob("DATA/*/*_outputs.h5")):
            raise LaunchError(f"expected a result of {video.name}, found none")
    return f"{FRAMES} frames on the CPU" + (", with no network" if alone else "; the network could not be cut off here")


def _without_network() -> list[str]:
    """Return a command that starts a program without a network; empty if the kernel does not allow it."""
    command = ["unshare", "--map-current-user", "--net"]
    allowed = subprocess.run([*command, "true"], capture_output=True, timeout=SECONDS).returncode == 0
    return command if allowed else []


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise LaunchError(f"{' '.join(command)} ended with exit status {done.returncode}:\n{done.stderr}")


def write_untrained_weights(folder: Path, *overrides: str) -> None:
    """Write networks with random weights into a project's folder of models, as if they had been trained there."""
    import torch
    import yaml

    from deg.models.sequence import build_sequence
    from deg.models.two_stream import build_two_stream
    from deg.options.load import as_dict, load_config
    from deg.projects.project import open_project
    from deg.types import NUM_FEATURES

    project = open_project(folder)
    config = load_config(project.config_file, overrides)
    classes = len(project.class_names)
    torch.manual_seed(0)
    two_stream = build_two_stream(config.feature_extractor, config.flow_generator, classes)
    networks = {
        "flow_generator": two_stream.flow_generator,
        "feature_extractor": two_stream,
        "sequence": build_sequence(config.sequence, NUM_FEATURES, classes),
    }
    for number, (stage, network) in enumerate(networks.items()):
        run = project.model_path / f"000101_00000{number}_{stage}_train"
        run.mkdir(parents=True)
        stored = as_dict(config) | {"run": {"type": "train", "model": stage, "dir": str(run)}}
        stored["flow_generator"]["weights"] = "latest"
        (run / "config.yaml").write_text(yaml.safe_dump(stored))
        torch.save({"epoch": 0, "state_dict": network.state_dict(), "hyperparameters": None}, run / "checkpoint.pt")


def gpu(kind: Flavour) -> str:
    """Check that each GPU computes correctly, with the host's driver."""
    if not Path("/dev/nvidiactl").exists():
        return "there is none here"
    if not Path(NV_LIBRARIES).is_dir():
        return "there is one here, visible only with --nv"
    findings = judge_pytorch(measure(), in_image=True)
    if faults := [finding.sentence() for finding in findings if finding.state == "fault"]:
        raise LaunchError(" ".join(faults))
    return "; ".join(finding.found for finding in findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
