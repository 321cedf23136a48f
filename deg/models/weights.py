"""Weight files of DeepEthogram and of deg, read without running code from them and copied into networks.

A `.pt` is {epoch, state_dict, ...} or a bare state dict. A `.ckpt` is Lightning's: the keys of its state dict have the
prefix `model.`, the state of the loss is among them (`criterion.`), and a configuration is pickled beside it as
OmegaConf objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from typing import Any

import torch
from torch import Tensor, nn

from deg.errors import WeightsError, show_path
from deg.models.sequence import SEQUENCE_NETWORKS, build_sequence
from deg.models.two_stream import EXTRACTORS, FLOW_GENERATORS, Stream, TwoStream
from deg.options.schema import Sequence

MINIMUM_MATCHED = 0.9
"""A file that has less than this share of a network's tensors, last layers excluded, belongs to another network."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file, by the names that they have in the file."""

    path: Path
    state_dict: dict[str, Tensor]
    epoch: int | None


@dataclass(frozen=True)
class LoadReport:
    """What a network got from a weight file. Its other tensors kept their values."""

    path: Path
    matched: int
    """Number of tensors copied."""
    total: int
    """Number of tensors of the network."""
    missing: tuple[str, ...]
    """Names of tensors that the file does not have, or has in another shape."""
    fresh_classifier: bool
    """Whether a last layer is missing: the weights are for other classes."""


class _Omitted:
    """A stand-in for pickled objects that are not tensors: it accepts anything and keeps nothing."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> Callable[..., Any]:
    module, _, leaf = name.rpartition(".")
    return type(leaf, (_Omitted,), {"__module__": module})


OMITTED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    _stand_in(name)
    for name in (
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.nodes.AnyNode",
        "typing.Any",
        "collections.defaultdict",
        "builtins.dict",
        "builtins.list",
        "builtins.int",
    )
]
"""Stand-ins for what Lightning checkpoints of DeepEthogram name besides tensors. No OmegaConf object is ever built, and
the configuration inside a checkpoint is ignored; config.yaml holds it as well."""

UNREADABLE = (
    *(RuntimeError, EOFError, UnpicklingError, StructError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError, ArithmeticError, MemoryError),
)
"""Exceptions that torch.load raised in trials with files cut short, changed at random, or of another kind."""


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pt` or `.ckpt`, with its tensors on the CPU.

    Raises WeightsError if the file cannot be read, is not a checkpoint, or names anything that could run code.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(OMITTED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{show_path(path)}: cannot be opened ({error.strerror or error}).") from error
    except UNREADABLE as error:
        raise WeightsError(f"{show_path(path)}: {_why_unreadable(path, error)}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{show_path(path)}: expected a checkpoint, found a {type(content).__name__}.")
    state = content.get("state_dict", content)
    tensors = {
        key: value
        for key, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(key, str) and isinstance(value, Tensor) and "criterion" not in key.split(".")
    }
    if not tensors:
        raise WeightsError(f"{show_path(path)}: expected a checkpoint, but there are no weights in it.")
    epoch = content.get("epoch")
    return Checkpoint(path, tensors, epoch if isinstance(epoch, int) else None)


def _why_unreadable(path: Path, error: BaseException) -> str:
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    if forbidden:
        return (
            f"refused, because it names {forbidden[1]}, and loading that could run code from the file. Expected "
            "tensors only. If you trust the file, open it where it was made, and save its state_dict alone there with "
            "torch.save."
        )
    size = path.stat().st_size
    return f"not a readable checkpoint ({size} bytes): it is empty, cut short or another kind of file. Copy it again."


def load_weights(
    network: nn.Module, source: Checkpoint | Path | str, *, part: str | None = None, strict: bool = False
) -> LoadReport:
    """Copy the tensors of a weight file into the tensors of a network that have the same name and shape.

    `part` names the submodule of the file's network to take them from (`spatial_classifier`, `flow_generator`, ...).
    The layers that depend on the number of classes (network.class_layers) may differ or be missing; they then keep
    their values. With `strict`, for inference, no tensor may keep its value.

    Raises WeightsError if less than MINIMUM_MATCHED of the other tensors match, or if `strict` is not satisfied.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    wanted = network.state_dict()
    found = _best_match(checkpoint.state_dict, wanted, part)
    same = {key: value for key, value in found.items() if key in wanted and value.shape == wanted[key].shape}
    # No result depends on the count of batches, and files of old PyTorch versions do not have it.
    missing = [key for key in wanted if key not in same and not key.endswith(".num_batches_tracked")]
    classes = {key for key in wanted if _is_within(key, network.class_layers)}  # type: ignore[arg-type]
    body = [key for key in wanted if key not in classes and not key.endswith(".num_batches_tracked")]
    body_missing = [key for key in missing if key not in classes]
    too_few = len(body) - len(body_missing) < MINIMUM_MATCHED * len(body)
    # If the network is only a last layer, it has no body by which to recognise a file of another network.
    foreign = part is None and found.keys().isdisjoint(wanted)
    if too_few or foreign or (strict and body_missing):
        raise WeightsError(_misfit(checkpoint, wanted, part, body_missing or missing, len(body) or len(wanted)))
    if strict and missing:
        raise WeightsError(_other_classes(checkpoint.path, missing[0], found, wanted))
    network.load_state_dict(same, strict=False)
    return LoadReport(checkpoint.path, len(same), len(wanted), tuple(missing), len(missing) > len(body_missing))


def load_two_stream(
    network: TwoStream,
    extractor_weights: Checkpoint | Path | str,
    flow_weights: Checkpoint | Path | str | None,
    *,
    strict: bool = True,
) -> dict[str, LoadReport]:
    """Load streams and fusion from the first file, and the flow generator from the second, or the first if it is None.

    DeepEthogram always uses a separate file for the flow generator: the flow generator inside a feature extractor that
    DeepEthogram trained has other batch-norm statistics. Returns a report for each submodule, by name. Raises
    WeightsError in the same cases as load_weights.
    """
    extractor = extractor_weights if isinstance(extractor_weights, Checkpoint) else read_checkpoint(extractor_weights)
    reports = {
        name: load_weights(network.get_submodule(name), extractor, part=name, strict=strict)
        for name in ("spatial_classifier", "flow_classifier", "fusion")
        if network.get_submodule(name).state_dict()
    }
    generator = "flow_generator"
    if flow_weights is None:
        reports[generator] = load_weights(network.flow_generator, extractor, part=generator, strict=strict)
    else:
        reports[generator] = load_weights(network.flow_generator, flow_weights, strict=strict)
    return reports


def _best_match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], part: str | None) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the names so that as many as possible are names of the network.

    The names alone do not tell how many to remove: the keys of an mlp themselves begin with `model.`.
    """
    candidates = [_part(peeled, part) for peeled in _peel(state)]
    return max(candidates, key=lambda candidate: len(candidate.keys() & wanted.keys()))


def _peel(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state as it is, then with one more `module.` or `model.` removed from its keys, until none has any."""
    while True:
        yield dict(state)
        peeled = {re.sub(r"^(module|model)\.", "", key): value for key, value in state.items()}
        if peeled.keys() == state.keys():
            return
        state = peeled


def _part(state: Mapping[str, Tensor], part: str | None) -> dict[str, Tensor]:
    if part is None:
        return dict(state)
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _is_within(key: str, layers: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{layer}.") for layer in layers)


def _misfit(
    checkpoint: Checkpoint, wanted: Mapping[str, Tensor], part: str | None, missing: list[str], total: int
) -> str:
    inside = f" in {part}" if part else ""
    expected = _architecture(wanted) or "the network that was built"
    looks = _architecture(checkpoint.state_dict) or "none that deg knows"
    return (
        f"{show_path(checkpoint.path)}: only {total - len(missing)} of {total} tensors match{inside}. "
        f"Expected {expected}; the file looks like {looks}. "
        f"Missing, or of another shape: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. "
        "Choose weights of this architecture, or set the architecture to that of the weights."
    )


def _other_classes(path: Path, key: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if key not in found:
        return (
            f"{show_path(path)}: the last layer, {key}, is not in the file. Choose weights with the same last layers."
        )
    here, there = tuple(wanted[key].shape), tuple(found[key].shape)
    if here[1:] != there[1:]:
        return (
            f"{show_path(path)}: expected the last layer, {key}, to have shape {here}, found shape {there}. "
            "Choose weights trained on the same number of features."
        )
    return (
        f"{show_path(path)}: the weights have {there[0]} classes, the project {here[0]} "
        "(background included). Choose weights trained with this project's classes, or train them first."
    )


def _architecture(state: Mapping[str, Tensor]) -> str | None:
    """Return the known network whose names and numbers of axes a state dict has; None if there is none."""
    forms = [{(key, value.dim()) for key, value in peeled.items()} for peeled in _peel(state)]
    # Large networks contain the names of small ones: the largest that is nearly complete is the answer.
    present = {
        name: len(known)
        for name, known in _known_architectures().items()
        if any(len(known & form) >= MINIMUM_MATCHED * len(known) for form in forms)
    }
    return max(present, key=present.__getitem__, default=None)


@cache
def _known_architectures() -> dict[str, set[tuple[str, int]]]:
    with torch.device("meta"):
        networks = {f"flow generator {arch}": make(11) for arch, make in FLOW_GENERATORS.items()}
        for arch, make in EXTRACTORS.items():
            networks[f"one stream of {arch}"] = stream = Stream(make(images=1, channels=3), 2)
            networks[f"feature extractor {arch}"] = nn.ModuleDict({"spatial_classifier": stream})
        for arch in SEQUENCE_NETWORKS:
            section = replace(Sequence(), arch=arch)  # type: ignore[arg-type]
            networks[f"sequence network {arch}"] = build_sequence(section, 1024, 2)
    return {name: {(key, value.dim()) for key, value in net.state_dict().items()} for name, net in networks.items()}
