"""Write docs/options.md from the schema: `python -m deg.options.page > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deg.configs import preset, preset_names
from deg.options.load import Option, describe, describe_limits, options, sections
from deg.options.stages import STAGE_DEFAULTS, WITHOUT_EFFECT

INTRODUCTION = """\
# Options

<!-- Written by `python -m deg.options.page > docs/options.md`; change deg/options/schema.py instead. -->

Options are set in a project's `project_config.yaml`,

```yaml
preset: deg_m
train:
  loss_weight_exp: 0.5
```

or after a command, as `key=value` with the dots of the tables below:

    deg train feature_extractor PROJECT preset=deg_m train.loss_weight_exp=0.5 'augs.resize=[224, 224]'

If several places set the same option, the later one in this list wins:

1. the defaults in the tables,
2. the defaults of the stage,
3. the preset named in a file,
4. the [cluster profile](cluster.md), wherever it is named (`cluster=NAME`, or `cluster: NAME` in a file),
5. `project_config.yaml`,
6. `--config FILE`,
7. a preset named on the command line,
8. `key=value` on the command line.

**Unlike in DeepEthogram:** there, an architecture in `project_config.yaml` wins over `preset=...` on the command line.
Here the preset on the command line wins over the project file, because it was chosen for this very command.

The keys are DeepEthogram's. A key that does not exist is an error; the list at the end names the keys that are accepted
and do nothing. Values are YAML: `null` means nothing, lists are written in brackets and are replaced as a whole, and
`${project.name}` stands for the value of another option. On the command line, text is taken as it is typed.
"""


def options_markdown() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, *_sections(), _stages(), _presets(), _without_effect()]
    return "\n".join(parts)


def _sections() -> Iterator[str]:
    yield f"## Top level\n\n{_options_table(option for option in options() if '.' not in option.key)}"
    for name, kind in sections().items():
        yield f"## `{name}`\n\n{kind.__doc__}\n\n{_options_table(options(kind, f'{name}.'))}"


def _options_table(members: Iterable[Option]) -> str:
    rows = [(f"`{option.key}`", _value(option.default), _allowed(option), option.doc) for option in members]
    return _table(("key", "default", "allowed", "meaning"), rows)


def _allowed(option: Option) -> str:
    words = describe(option.hint)
    if limits := describe_limits(option.limits):
        words += f"; {limits}"
    return f"{words} ({option.unit})" if option.unit else words


def _stages() -> str:
    columns = {stage: dict(_flat(defaults)) for stage, defaults in STAGE_DEFAULTS.items()}
    about = "An empty cell means the default in the tables above."
    return f"## Defaults of the stages\n\n{about}\n\n{_side_by_side(columns)}"


def _presets() -> str:
    columns = {name: dict(_flat(preset(name))) for name in preset_names()}
    return "## Presets\n\n" + _side_by_side(columns)


def _without_effect() -> str:
    keys = ", ".join(f"`{key}`" for key in WITHOUT_EFFECT)
    return f"## Keys without effect\n\nDeepEthogram writes these keys, or once read them; deg ignores them: {keys}.\n"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> str:
    keys = sorted({key for column in columns.values() for key in column})
    rows = [
        (f"`{key}`", *(_value(column[key]) if key in column else "" for column in columns.values())) for key in keys
    ]
    return _table(("key", *(f"`{name}`" for name in columns)), rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _value(value: Any) -> str:
    """Return a default as YAML writes it, floats without needless digits."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(options_markdown())
