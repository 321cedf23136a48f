"""The layers of deg: which modules may import which, which libraries each layer may use, and what must stay light.

The table in docs/development.md is the design. It is enforced by reading the source (every import counts, also those
inside functions, under TYPE_CHECKING, and by the name of a module in a string) and by importing the light modules in a
process where the GPU stack cannot be imported.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = {"deg.launch": "launch", "deg.configs": "configs", "deg.containers": "containers", "deg": "deg"}
"""Folder of each package; longest names first."""

GPU_STACK = {"torch", "torchvision", "pytorch_lightning", "lightning", "kornia", "ray"}
"""Libraries that a login node need not have."""


class Row(NamedTuple):
    name: str
    modules: str
    """Names within deg; `data.*` is a package and everything in it."""
    libraries: set[str]
    """Libraries beyond the standard library."""


def table() -> list[Row]:
    """Return the rows of the page's table, lowest first: a module imports only from its own row and those above it."""
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| `([^`]+)` \| (?:`([^`]+)`)? *\|", page, re.MULTILINE)
    return [Row(name, modules, set(libraries.split())) for name, modules, libraries in rows]


LAYERS = table()
ROW_OF_DEG = 0
"""Row of the package itself: `import deg` belongs to the words."""

ARITHMETIC = "arithmetic.*"

WITHOUT_GPU_STACK = "runs.* projects.* plan.* report.*"
"""Modules for a login node: they never use the GPU stack, not even late, nor the layers that depend on it."""

LATE_GPU_STACK = "execute launch.*"
"""Modules that use the GPU stack when work starts, but can be imported without it."""

PURE = {
    "os",
    "io",
    "pathlib",
    "shutil",
    "tempfile",
    "glob",
    "subprocess",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
}
"""What arithmetic must not use: files, clocks, other processes, global random numbers."""


def source_files() -> dict[str, Path]:
    """Return {module: file} for everything that is installed as part of deg."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = source_files()


def matches(module: str, patterns: str) -> bool:
    """Whether a module is one of these; `data` is a module, `data.*` a package and everything in it."""
    for pattern in patterns.split():
        name = f"deg.{pattern.removesuffix('.*')}"
        if module == name or (pattern.endswith(".*") and module.startswith(f"{name}.")):
            return True
    return False


def row_of(module: str) -> int | None:
    if module == "deg":
        return ROW_OF_DEG
    return next((index for index, row in enumerate(LAYERS) if matches(module, row.modules)), None)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


@cache
def imports(module: str) -> list[tuple[int, str]]:
    """Return (line, name) of everything that a module imports anywhere in the file; deg's own modules in full."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return [found for node in ast.walk(tree(module)) for found in imported(node, package)]


def imported(node: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what one statement or call in a module of `package` imports."""
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield node.lineno, inner if inner in MODULES else base
    elif isinstance(node, ast.Constant) and node.value in MODULES:  # for `python -m`, or to be imported by its name
        yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        start = str(node.values[0].value)
        if start.endswith(".") and start.count(".") > 1:
            yield from ((node.lineno, name) for name in MODULES if name.startswith(start))


def is_own(name: str) -> bool:
    return library_of(name) == "deg"


def library_of(name: str) -> str:
    return name.partition(".")[0]


class Import(NamedTuple):
    """One import in the source: `module`, of row `row`, imports `name` at `where`."""

    module: str
    row: int
    where: str
    name: str


def place(module: str, line: int) -> str:
    return f"{MODULES[module].relative_to(ROOT)}:{line}"


def all_imports(patterns: str | None = None) -> Iterator[Import]:
    """Yield every import of the modules that match, or of all; modules without a row have their own test."""
    for module in sorted(MODULES):
        row = row_of(module)
        if row is not None and (patterns is None or matches(module, patterns)):
            for line, name in imports(module):
                yield Import(module, row, place(module, line), name)


def assert_none(offences: Iterable[str], rule: str) -> None:
    """Fail with all offences, one per line."""
    listed = list(offences)
    assert not listed, f"{rule}:\n" + "\n".join(listed)


def test_the_layers_are_found():
    """Guards the tests below against a moved folder: they would pass if they found nothing."""
    assert {"deg", "deg.errors", "deg.arithmetic.windows", "deg.data", "deg.launch", "deg.configs"} <= MODULES.keys()
    assert len(LAYERS) > 10 and {"torch"} <= LAYERS[-1].libraries | LAYERS[7].libraries
    assert {"cv2", "deg.errors"} <= {found.name for found in all_imports("data.*")}
    for patterns in (ARITHMETIC, WITHOUT_GPU_STACK):
        assert set(patterns.replace(".*", "").split()) <= {module.removeprefix("deg.") for module in MODULES}


def test_every_module_stands_in_the_table():
    assert_none(
        (str(MODULES[module].relative_to(ROOT)) for module in sorted(MODULES) if row_of(module) is None),
        "in no layer; put each into the folder whose imports it needs, or add it to the table in docs/development.md, "
        f"to the lowest row that will do ({', '.join(row.name for row in LAYERS)})",
    )


def test_modules_import_only_from_their_own_layer_and_lower_ones():
    offences = []
    for module, own, where, name in all_imports():
        if is_own(name):
            row = row_of(name)
            if row is None:
                offences.append(f"{where}: imports {name}, which is in no layer")
            elif row > own:
                offences.append(f"{where}: {module} ({LAYERS[own].name}) may not import {name} ({LAYERS[row].name})")
    assert_none(offences, "imports from a higher layer")


def test_modules_use_only_the_libraries_of_their_layer():
    offences = []
    for module, own, where, name in all_imports():
        row, library = LAYERS[own], library_of(name)
        if not is_own(name) and library not in sys.stdlib_module_names and library not in row.libraries:
            offences.append(f"{where}: {module} ({row.name}) may use {sorted(row.libraries)}, not {library}")
    assert_none(offences, "libraries that the layer may not use")


def test_nothing_below_knows_that_launch_exists():
    assert_none(
        (
            f"{where}: imports {name}"
            for module, _, where, name in all_imports()
            if matches(name, "launch.*") and not matches(module, "launch.*")
        ),
        "only deg.launch may import deg.launch",
    )


def test_arithmetic_is_pure():
    offences = [f"{where}: imports {name}" for _, _, where, name in all_imports(ARITHMETIC) if library_of(name) in PURE]
    for module in sorted(name for name in MODULES if matches(name, ARITHMETIC)):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"open", "print", "input"}:
                    offences.append(f"{place(module, node.lineno)}: {called}()")
                elif called.startswith(("np.random.", "numpy.random.")):
                    offences.append(f"{place(module, node.lineno)}: pass a Generator, not {called}()")
    assert_none(offences, "arithmetic has no files, no clock, no chance")


def test_verbs_of_the_login_node_never_use_the_gpu_stack():
    assert_none(
        (
            f"{where}: {module} must do without {name}"
            for module, _, where, name in all_imports(WITHOUT_GPU_STACK)
            if library_of(name) in GPU_STACK or matches(name, "models.* train.*")
        ),
        "not even late",
    )


def test_inference_does_not_import_torchvision():
    """torchvision imports PyTorch's compiler, which doubles the time until a worker begins."""
    allowed = "models.imagenet launch.selftest launch.doctor.gpu"
    assert_none(
        (
            f"{where}: {module} must do without {name}"
            for module, _, where, name in all_imports()
            if library_of(name) == "torchvision" and not matches(module, allowed)
        ),
        "only what needs ImageNet's weights, or reports versions",
    )
    from_inference = [name for _, _, _, name in all_imports("infer.* execute models.weights")]
    assert "deg.models.imagenet" not in from_inference


def light_modules() -> list[str]:
    files = " ".join(row.modules for row in LAYERS if not row.libraries & GPU_STACK)
    patterns = f"{files} {WITHOUT_GPU_STACK} {LATE_GPU_STACK}"
    return sorted(name for name in MODULES if name == "deg" or matches(name, patterns))


FORBID_GPU_STACK = f"""
import importlib, importlib.abc, sys

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {GPU_STACK!r}:
            raise ModuleNotFoundError(f"{{name}} is not on a login node")

sys.meta_path.insert(0, Forbid())
"""


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def light_process():
    """Return the output of a process without the GPU stack that imports each light module and loads all it can."""
    code = FORBID_GPU_STACK + (
        "import traceback\n"
        "from collections import Counter\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError:\n"
        "        print(f'--- import {name}')\n"
        "        traceback.print_exc(file=sys.stdout)\n"
        "loaded = Counter(getattr(module, '__file__', None) for module in list(sys.modules.values()))\n"
        f"print('twice:', [file for file in {[str(path) for path in MODULES.values()]!r} if loaded[file] > 1])\n"
    )
    done = python(code, *light_modules())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_light_modules_import_without_the_gpu_stack(light_process):
    assert light_process.startswith("twice:"), light_process


def test_the_gpu_stack_is_really_forbidden_there():
    """The test above would pass if its hook did nothing."""
    done = python(FORBID_GPU_STACK + "import torch")
    assert "torch is not on a login node" in done.stderr


def test_help_imports_nothing_heavy():
    """`deg --help` answers at once because commands import what they need when they run."""
    heavy = GPU_STACK | {"cv2", "pandas", "h5py", "pyarrow", "omegaconf", "submitit", "spython", "matplotlib", "jinja2"}
    code = (
        "import sys\n"
        "from deg.launch.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        f"print('heavy:', sorted(loaded & {heavy!r}))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout


def test_every_file_is_loaded_as_one_module(light_process):
    """Two modules of one file would have two copies of every class, and `except DegError` would miss half of them."""
    assert light_process.endswith("twice: []\n"), light_process
