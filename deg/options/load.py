"""Turn YAML files and the command line into frozen options. This is the only place where that happens.

Later layers win: defaults, the stage's defaults, preset, cluster profile, project_config.yaml, `--config FILE`, a
preset named on the command line, `key=value`. Each layer is checked by itself, so that a message can say where the
mistake is.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deg.configs import cluster_profile, preset
from deg.errors import ConfigError, show_path
from deg.options.schema import Config
from deg.options.stages import STAGE_DEFAULTS, WITHOUT_EFFECT
from deg.options.yamlfile import parse_yaml, read_yaml

COMMAND_LINE = "on the command line"
Options = TypeVar("Options")


def load_config(
    project_file: Path | None,
    overrides: Sequence[str] = (),
    *,
    stage: str | None = None,
    files: Sequence[Path] = (),
) -> Config:
    """Return all options, resolved and checked.

    `stage` is flow_generator, feature_extractor, sequence or inference; `files` win over the project file; `overrides`
    are `a.b=value` with YAML values. If several layers name a cluster profile, the last one is read; `cluster.profile`
    of the result is its file, or None. Raises ConfigError, which names the key and where it was set.
    """
    if stage is not None and stage not in STAGE_DEFAULTS:
        raise ValueError(f"stage {stage!r} is not one of {', '.join(STAGE_DEFAULTS)}")
    paths = [path for path in (project_file, *files) if path is not None]
    layers = [(f"in {show_path(path)}", _read_layer(path)) for path in paths]
    command_line = parse_overrides(overrides)
    folders = [*(path.parent for path in paths), Path()]
    profile = _named_profile(zip(folders, [*(layer for _, layer in layers), command_line], strict=True))
    if profile is not None:
        layers = [(f"in {show_path(profile)}", _read_profile(profile)), *layers]
    if "preset" in command_line:
        layers = [*layers, *_preset_layer(command_line["preset"])]
    elif named := [layer["preset"] for _, layer in layers if "preset" in layer]:
        layers = [*_preset_layer(named[-1]), *layers]
    config = _assemble(STAGE_DEFAULTS.get(stage or "", {}), [*layers, (COMMAND_LINE, command_line)])
    if profile is None:
        return config
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, profile=str(profile)))


def _preset_layer(name: Any) -> list[tuple[str, dict[str, Any]]]:
    return [] if name is None else [(f"in preset {name}", preset(str(name)))]


def _read_layer(path: Path) -> dict[str, Any]:
    """Return a file's options, with `cluster: NAME` read as `cluster: {profile: NAME}`."""
    layer = read_mapping(path)
    cluster = layer.get("cluster")
    return layer if cluster is None or isinstance(cluster, Mapping) else {**layer, "cluster": {"profile": cluster}}


def _named_profile(layers: Iterable[tuple[Path, Mapping[str, Any]]]) -> Path | None:
    """Return the file of the cluster profile that the last layer with `cluster.profile` names; None if that is null.

    A relative path starts at the folder of the layer.
    """
    for folder, layer in reversed(list(layers)):
        cluster = layer.get("cluster")
        if isinstance(cluster, Mapping) and "profile" in cluster:
            name = cluster["profile"]
            if isinstance(name, str | int) and not isinstance(name, bool):
                return cluster_profile(str(name), folder)
            return None  # null, or a value of a wrong type, which `_assemble` refuses
    return None


def _read_profile(path: Path) -> dict[str, Any]:
    layer = _read_layer(path)
    cluster = layer.get("cluster")
    if isinstance(cluster, Mapping) and cluster.get("profile") is not None:
        raise ConfigError(
            f"cluster.profile = {_show(cluster['profile'])}, in {show_path(path)}: a cluster profile cannot name "
            "another one. Copy the options that it needs into it."
        )
    return layer


def _assemble(defaults: Mapping[str, Any], layers: Iterable[tuple[str, dict[str, Any]]]) -> Config:
    """Check each layer, then merge them; later layers win."""
    trees = [dict(defaults)]
    ignored: set[str] = set()
    for source, layer in layers:
        known, without_effect = _known_options(layer, source)
        ignored.update(without_effect)
        _build(Config, _without_references(known), source)
        trees.append(known)
    try:
        merged = OmegaConf.merge(*map(OmegaConf.create, trees))
        resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: a reference ${{...}} that cannot be resolved: {reason}.") from error
    config = _build(Config, resolved, "with all files put together")
    if config.compute.min_batch_size > config.compute.max_batch_size:
        raise ConfigError(
            f"compute.min_batch_size = {config.compute.min_batch_size} is more than compute.max_batch_size = "
            f"{config.compute.max_batch_size}. Lower the first or raise the second."
        )
    return dataclasses.replace(config, ignored=tuple(sorted(ignored)))


# ---------------------------------------------------------------------------------------------------- keys


@dataclasses.dataclass(frozen=True)
class Option:
    """One option as the schema describes it."""

    key: str
    """Dotted name, as on the command line."""
    default: Any
    hint: Any
    """Type annotation in the schema."""
    doc: str
    unit: str
    limits: Mapping[str, float]


def options(kind: type = Config, prefix: str = "") -> Iterator[Option]:
    """Yield every option of a section and of the sections in it, in the order of the schema."""
    for name, hint, entry in _fields(kind):
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from options(hint, f"{prefix}{name}.")
        else:
            about = entry.metadata
            yield Option(f"{prefix}{name}", entry.default, hint, about["doc"], about["unit"], about["limits"])


def sections() -> dict[str, Any]:
    """Return the sections of the configuration by name."""
    return {name: hint for name, hint, _ in _fields(Config) if dataclasses.is_dataclass(hint)}


_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)


def _fields(kind: Any) -> tuple[tuple[str, Any, dataclasses.Field[Any]], ...]:
    """Return name, type and field of everything that a user may set in a section."""
    hints = _hints(kind)
    entries = [(entry.name, hints[entry.name], entry) for entry in dataclasses.fields(kind)]
    return tuple(item for item in entries if dataclasses.is_dataclass(item[1]) or "doc" in item[2].metadata)


def _known_options(layer: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Return `layer` without empty sections and without DeepEthogram's keys that have no effect; and those keys."""
    without_effect: list[str] = []

    def keep(kind: Any, mapping: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
        kinds = {name: hint for name, hint, _ in _fields(kind)}
        kept: dict[str, Any] = {}
        for key, value in mapping.items():
            path = f"{prefix}{key}"
            is_section = dataclasses.is_dataclass(kinds.get(key))
            if path in WITHOUT_EFFECT:
                without_effect.append(path)
            elif key not in kinds:
                if isinstance(value, Mapping) and value:
                    path += f".{next(iter(value))}"
                raise ConfigError(f"{path}, {source}: there is no such option.{did_you_mean(path)}")
            elif is_section and isinstance(value, Mapping):
                kept[key] = keep(kinds[key], value, f"{path}.")
            elif not is_section or value is not None:
                kept[key] = value
        return kept

    return keep(Config, layer, ""), without_effect


def did_you_mean(key: str) -> str:
    """Return a sentence that suggests options similar to `key`, or says where all of them are listed."""
    if key == "reload.weights":
        return " Name the weights under flow_generator.weights, feature_extractor.weights or sequence.weights."
    known = {option.key.lower(): option.key for option in options()}
    name = key.lower().rpartition(".")[2]
    near = (
        difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.85)
        or [other for other in known if other.rpartition(".")[2] == name]
        or difflib.get_close_matches(key.lower(), known, n=3, cutoff=0.75)
    )
    found = [known[other] for other in near]
    return f" Did you mean {' or '.join(found)}?" if found else " docs/options.md lists them all."


# ---------------------------------------------------------------------------------------------------- values


class _Misfit(Exception):
    """A value does not have the expected type. The message is advice, or empty."""


def _build(kind: type[Options], mapping: Any, source: str, prefix: str = "") -> Options:
    """Return `kind` with the values of `mapping`, each checked for type, range and form; the rest are defaults."""
    if not isinstance(mapping, Mapping):
        names = ", ".join(f"{prefix}{name}" for name, _, _ in _fields(kind)[:3])
        raise ConfigError(
            f"{prefix.rstrip('.')} = {_show(mapping)}, {source}: expected options of their own, such as {names}."
        )
    values: dict[str, Any] = {}
    for name, hint, entry in _fields(kind):
        if name not in mapping:
            continue
        key, value = f"{prefix}{name}", mapping[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            values[name] = _build(hint, value, source, f"{key}.")
            continue
        try:
            values[name] = _fit(value, hint)
        except _Misfit as misfit:
            raise ConfigError(
                f"{key} = {_show(value)}, {source}: expected {describe(hint)}. {misfit}".rstrip()
            ) from None
        if not _within(values[name], entry.metadata["limits"]):
            limits = describe_limits(entry.metadata["limits"])
            raise ConfigError(f"{key} = {_show(value)}, {source}: expected {describe(hint)}, {limits}.")
        if form := entry.metadata["form"]:
            _check_form(form, values[name], f"{key} = {_show(value)}, {source}")
    return kind(**values)


def _without_references(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `layer` without values such as ${project.name}, which only the merged configuration can resolve."""

    def is_reference(value: Any) -> bool:
        return any(map(is_reference, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value

    return {
        key: _without_references(value) if isinstance(value, Mapping) else value
        for key, value in layer.items()
        if not is_reference(value)
    }


def _fit(value: Any, hint: Any) -> Any:
    """Return `value` converted to the type `hint`. Raises _Misfit if it does not fit, or if data would be lost."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        advice = ""
        for argument in arguments:
            try:
                return _fit(value, argument)
            except _Misfit as misfit:
                advice = advice or str(misfit)
        raise _Misfit(advice)
    elif origin is Literal:
        if isinstance(value, str | int) and not isinstance(value, bool) and value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            if arguments[-1] is Ellipsis:
                return tuple(_fit(item, arguments[0]) for item in value)
            if len(value) == len(arguments):
                return tuple(_fit(item, argument) for item, argument in zip(value, arguments, strict=True))
    elif hint is NoneType:
        if value is None:
            return None
    elif hint is str:
        if isinstance(value, bool):
            raise _Misfit("YAML reads yes, no, on and off without quotes as true and false: put it in quotes.")
        if isinstance(value, str | int):
            return str(value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = hint(value)
        if number == value:
            return number
    raise _Misfit


def _within(value: Any, limits: Mapping[str, float]) -> bool:
    if isinstance(value, tuple):
        return all(_within(item, limits) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (
        limits.get("low", -math.inf) <= value <= limits.get("high", math.inf)
        and ("above" not in limits or value > limits["above"])
        and ("below" not in limits or value < limits["below"])
    )


def _check_form(form: Callable[[str], Any], value: str | tuple[str, ...] | None, where: str) -> None:
    for text in value if isinstance(value, tuple) else () if value is None else (value,):
        try:
            form(text)
        except ValueError as expected:
            found = f"; {text!r} is not one" if isinstance(value, tuple) else ""
            raise ConfigError(f"{where}: expected {expected}{found}.") from None


def describe(hint: Any) -> str:
    """Return a type in words, such as `a whole number, auto or null`."""
    words = _words(hint)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(hint: Any) -> list[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [word for argument in arguments for word in _words(argument)]
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if origin is tuple:
        items = {int: "whole numbers", float: "numbers", str: "texts"}[arguments[0]]
        return [f"a list of {items}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {items}"]
    return {int: ["a whole number"], float: ["a number"], bool: ["true", "false"], str: ["text"], NoneType: ["null"]}[
        hint
    ]


def describe_limits(limits: Mapping[str, float]) -> str:
    """Return a range in words, such as `at least 0, less than 1`; empty without limits."""
    words = {"low": "at least", "high": "at most", "above": "more than", "below": "less than"}
    return ", ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())


def _show(value: Any) -> str:
    """Return a value as YAML writes it."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


# ---------------------------------------------------------------------------------------------------- files


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; empty if the file is. Raises ConfigError with file and line."""
    try:
        return read_yaml(path, ConfigError)
    except OSError as error:
        raise ConfigError(f"{show_path(path)}: cannot be read: {error.strerror}.") from error


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides such as `["a.b=1", "a.c=[x, y]"]` as nested mappings.

    Text is taken literally, so that paths may contain `=` and `#`. `cluster=NAME` stands for `cluster.profile=NAME`.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ConfigError(f"{override!r} on the command line: expected key=value, such as train.lr=1e-4.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{override!r} on the command line: the value is not valid YAML ({getattr(error, 'problem', error)}). "
                f"Put text with special characters in two pairs of quotes: {key}='\"...\"'."
            ) from error
        if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"', "!", "|", ">"):
            value = text
        if key == "cluster" and not isinstance(value, dict):
            key = "cluster.profile"
        *parents, leaf = key.split(".")
        node = tree
        for depth, parent in enumerate(parents, start=1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                section = ".".join(parents[:depth])
                raise ConfigError(f"{override!r} on the command line: {section} was already given a value of its own.")
        node[leaf] = value
    return tree


# ---------------------------------------------------------------------------------------------------- run directories


def read_run_config(path: Path) -> dict[str, Any]:
    """Return the unchecked config.yaml of a run of deg or DeepEthogram. Raises ConfigError if it is no YAML mapping."""
    return read_mapping(path)


def overlay(
    current: Options, stored: Mapping[str, Any], *, keep: Collection[str] = (), source: str = "in the run's config.yaml"
) -> Options:
    """Return `current` with the values that a training run stored for its section, except for the keys in `keep`.

    This serves `inference.use_loaded_model_cfg`. Keys that deg does not know are ignored. Raises ConfigError if a value
    has the wrong type or is out of range.
    """
    assert dataclasses.is_dataclass(current) and not isinstance(current, type)
    kind = type(current)
    prefix = next((f"{name}." for name, hint in sections().items() if hint is kind), "")
    known = {name: stored[name] for name, _, _ in _fields(kind) if name in stored and name not in keep}
    built = _build(kind, known, source, prefix)
    return dataclasses.replace(current, **{name: getattr(built, name) for name in known})


def restore(stored: Mapping[str, Any]) -> Config:
    """Return the configuration that `as_dict` stored. Raises ConfigError if this version of deg cannot read it."""
    known, _ = _known_options({key: value for key, value in stored.items() if key != "run"}, "in the plan of the run")
    return _build(Config, known, "in the plan of the run")


def as_dict(config: Any) -> dict[str, Any]:
    """Return all options of a configuration or a section as plain values that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return as_dict(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {name: plain(getattr(config, name)) for name, _, _ in _fields(type(config))}


def to_yaml(config: Config) -> str:
    """Return all options as the text of a config.yaml, which `load_config` and DeepEthogram can read."""
    return yaml.safe_dump(as_dict(config), sort_keys=True, allow_unicode=True)
