"""The one command line that runs Python in the image, as the text of a script for the compute node.

    srun bash container.sh ARGUMENTS      for each task of a job:
        modules, lines of setup           what the site needs before anything else
        $DEG_SCRATCH                      a folder of the job on the node's own disk; all caches lie in it
        exec apptainer exec ... IMAGE python ARGUMENTS

The node needs Apptainer and bash, no Python. The last line is an `exec`, so a signal to the task reaches Python. Only
those variables of the node enter the image that ALLOWED, the cluster's profile or the script itself name: a stray
PYTHONPATH or LD_PRELOAD would change what runs. They enter as APPTAINERENV_NAME, not by `--env`, which splits values at
commas, and are set in each task, because srun gives each task its own.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deg.errors import LaunchError, show_path
from deg.options.schema import Cluster

ALLOWED = (
    *("SLURM_*", "SUBMITIT_*", "DEG_*"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_*", "NVIDIA_*", "GPU_DEVICE_ORDINAL", "ROCR_*"),
    *("NCCL_*", "GLOO_*", "TORCH_*", "OMP_*", "MASTER_ADDR", "MASTER_PORT"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TZ"),
)
"""Variables of the node that the image sees; a * at the end stands for any ending."""

CACHES = {
    "TMPDIR": "",
    "XDG_CACHE_HOME": "/cache",
    "MPLCONFIGDIR": "/matplotlib",
    "NUMBA_CACHE_DIR": "/numba",
    "TORCHINDUCTOR_CACHE_DIR": "/inductor",
    "TRITON_CACHE_DIR": "/triton",
    "CUDA_CACHE_PATH": "/cuda",
}
"""Caches of libraries, below $DEG_SCRATCH: on a shared disk the tasks of a job would fight over them."""

PYTHON = {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""For Python in the image: it uses only its own packages, not those in ~/.local or in the folder it is started in."""

MOST_BINDS = 32
"""If there are more folders than this, they are replaced by folders that hold several of them."""

OF_THE_IMAGE = frozenset(
    Path(name)
    for name in ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/opt/deg", "/proc", "/root")
) | frozenset(Path(name) for name in ("/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/var"))
"""Folders in which the image has files of its own: the same folder of the node would hide these."""

_MODULE_FILES = (
    '"$MODULESHOME/init/bash" "$LMOD_PKG/init/bash" /etc/profile.d/*lmod*.sh /etc/profile.d/*module*.sh '
    "/usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash"
)


_KEEP_MOUNT = (
    "# Without root, Apptainer mounts the image with a process of its own. A signal that Slurm sends to all processes",
    "# of a job would end it, and the image would be gone. Signals that are ignored here stay ignored in that process.",
    "if mounts=$(command -v squashfuse_ll); then",
    '  mkdir -p "$DEG_SCRATCH/bin"',
    """  printf '#!/bin/sh\\ntrap "" USR1 USR2 TERM\\nexec %q "$@"\\n' "$mounts" >"$DEG_SCRATCH/bin/new.$$" &&""",
    '    chmod 700 "$DEG_SCRATCH/bin/new.$$" && mv -f "$DEG_SCRATCH/bin/new.$$" "$DEG_SCRATCH/bin/squashfuse_ll"',
    '  "$DEG_SCRATCH/bin/squashfuse_ll" --help >/dev/null 2>&1',
    '  [ $? = 126 ] || PATH="$DEG_SCRATCH/bin:$PATH"  # 126: programs may not run from this disk',
    "fi",
)


@dataclass(frozen=True)
class Container:
    """How Python is run on a node. `binds` are folders, each seen under the same name inside and outside."""

    image: Path | None
    """The image; None: no image, but the Python that runs now, which the node must see as well."""
    binds: tuple[Path, ...] = ()
    apptainer: str = "apptainer"
    options: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    scratch: str | None = None
    nv: bool = False
    torch_home: Path | None = None
    """Folder where PyTorch finds weights that were downloaded earlier; None if there is none."""

    @classmethod
    def of(cls, cluster: Cluster, paths: Iterable[Path | str]) -> Container:
        """Make it from a cluster's options, with folders that hold all `paths` and those that the options add.

        LaunchError if a folder cannot be shown in an image, or if cluster.environment holds an invalid name.
        """
        for name in cluster.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\*?", name):
                raise LaunchError(
                    f"cluster.environment: expected names of variables, perhaps with a * at the end, found {name!r}."
                )
        image = Path(cluster.image).expanduser().resolve() if cluster.image else None
        downloads = Path(os.environ.get("TORCH_HOME") or "~/.cache/torch").expanduser()
        torch_home = downloads if downloads.is_dir() else None
        shown = [*paths, *(Path(folder).expanduser() for folder in cluster.binds), *filter(None, [torch_home])]
        return cls(
            image=image,
            torch_home=torch_home,
            binds=bind_roots(shown) if image else (),
            apptainer=cluster.apptainer,
            options=cluster.apptainer_options,
            modules=cluster.modules,
            setup=cluster.setup,
            environment=cluster.environment,
            scratch=cluster.scratch,
            nv=bool(cluster.gpus_per_node),
        )


def bind_roots(paths: Iterable[Path | str]) -> tuple[Path, ...]:
    """Return the folders to show in the image so that every path leads to the same file there; none inside another.

    They are the real folders and, where a path contains symbolic links, also the names by which the links reach them.
    If they are too many, folders that hold several of them take their place. LaunchError if one would hide the image's
    own files.
    """
    found: set[Path] = set()
    for path in paths:
        found |= _folders_on_the_way(Path(path))
    roots = _outermost(found)
    while len(roots) > MOST_BINDS and (parent := _fullest_parent(roots)) is not None:
        roots = _outermost({*roots, parent})
    for folder in roots:
        if folder in OF_THE_IMAGE:
            raise LaunchError(
                f"{show_path(folder)}: jobs cannot see what lies in this folder, because every image has files of "
                "its own there. Put the project, videos and weights into another folder."
            )
    return roots


def _folders_on_the_way(path: Path) -> set[Path]:
    """Return the folder of a path under every name that appears while its symbolic links are followed one by one."""
    folders = set()
    name = path.absolute()
    for _ in range(40):  # as many links as the kernel follows
        folders.add(_folder(name))
        link = next((part for part in (*reversed(name.parents), name) if part.is_symlink()), None)
        if link is None:
            return folders | {_folder(path.resolve())}
        name = Path(os.path.normpath(link.parent / link.readlink() / name.relative_to(link)))
    raise LaunchError(f"{show_path(path)}: expected a file or folder, found symbolic links that lead in a circle.")


def _folder(path: Path) -> Path:
    return path.parent if path.exists() and not path.is_dir() else path


def _outermost(folders: Iterable[Path]) -> tuple[Path, ...]:
    given = set(folders)
    return tuple(sorted(folder for folder in given if given.isdisjoint(folder.parents)))


def _fullest_parent(roots: Sequence[Path]) -> Path | None:
    """Return the folder that holds most of the roots and hides nothing; None if there is none."""
    held: dict[Path, int] = {}
    for root in roots:
        if root.parent not in OF_THE_IMAGE:
            held[root.parent] = held.get(root.parent, 0) + 1
    return max(sorted(held), key=lambda parent: (held[parent], len(parent.parts)), default=None)


def script(container: Container) -> str:
    """Return the text of container.sh. LaunchError if a folder's name cannot be written in it."""
    lines = [
        "#!/usr/bin/env bash",
        "# Written by deg. Runs Python with the arguments given, for one task of a job: srun bash container.sh ...",
        'fail() { echo "deg: $HOSTNAME: $*" >&2; exit 3; }',
        "unset ${!APPTAINERENV_*} ${!SINGULARITYENV_*}",
    ]
    if container.modules:
        lines += _load(container.modules)
    lines += container.setup
    lines += _make_scratch(container.scratch)
    lines += [f'export {name}="$DEG_SCRATCH{folder}"' for name, folder in CACHES.items()]
    lines.append(f"export TORCH_HOME={_torch_home(container)}")
    lines.append(
        '[ -n "$OMP_NUM_THREADS" ] || [ -z "$SLURM_CPUS_PER_TASK" ] || export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK'
    )
    lines += _run_in_image(container, container.image) if container.image else [_run_here()]
    return "\n".join(lines) + "\n"


def _torch_home(container: Container) -> str:
    return '"$DEG_SCRATCH/torch"' if container.torch_home is None else _quote(str(container.torch_home))


def cleanup_script(container: Container) -> str:
    """Return the text of a script that removes $DEG_SCRATCH. Run it on each node when no task of the job runs there."""
    lines = [
        "#!/usr/bin/env bash",
        *_find_scratch(container.scratch),
        '[ ! -O "$DEG_SCRATCH" ] || rm -rf "$DEG_SCRATCH"',
    ]
    return "\n".join(lines) + "\n"


def _load(modules: Sequence[str]) -> list[str]:
    """Return lines that load modules. A batch shell is no login shell, so `module` may have to be found first."""
    return [
        f"for file in {_MODULE_FILES}; do",
        "  type module >/dev/null 2>&1 && break",
        '  [ ! -r "$file" ] || . "$file"',
        "done",
        "type module >/dev/null 2>&1 || fail 'cluster.modules needs the command `module`, which this node lacks.'",
        *(f"module load {shlex.quote(name)} || fail 'cluster.modules:' {shlex.quote(name)} failed" for name in modules),
    ]


def _find_scratch(scratch: str | None) -> list[str]:
    if scratch is None:
        choose = (
            'for scratch in "$SLURM_TMPDIR" "$TMPDIR" /tmp; do [ -d "$scratch" ] && [ -w "$scratch" ] && break; done'
        )
    else:
        words = re.sub(r'(["`\\])', r"\\\1", scratch)  # $VARIABLES are expanded on the node
        choose = f'scratch="{words}"'
    return [choose, 'export DEG_SCRATCH="$scratch/deg-$UID-${SLURM_JOB_ID:-$$}"']


def _make_scratch(scratch: str | None) -> list[str]:
    """Return lines that make the job's own folder, which its tasks on the same node share."""
    return [
        *_find_scratch(scratch),
        'mkdir -p -m 700 "$DEG_SCRATCH" && [ -O "$DEG_SCRATCH" ] ||'
        ' fail "expected to make $DEG_SCRATCH as a folder of this user, but cannot: see cluster.scratch."',
    ]


def _run_here() -> str:
    return f'exec {_quote(sys.executable)} "$@"'


def _run_in_image(container: Container, image: Path) -> list[str]:
    apptainer = _quote(container.apptainer)
    missing = f"there is no program {container.apptainer} here: see cluster.modules, cluster.setup, cluster.apptainer."
    unseen = f"there is no image {image} here: it must lie on a file system that all nodes see."
    allowed = "|".join((*ALLOWED, *CACHES, *PYTHON, *container.environment))
    command = ["exec", apptainer, "exec", "--cleanenv", "--no-home", "--pwd", "/"]
    if container.nv:
        command.append("--nv")
    command += [_quote(option) for option in container.options]
    for folder in container.binds:
        command += ["--mount", _quote(_mount(str(folder)))]
    command += ["--mount", f'"{_mount("$scratch").replace(chr(34), chr(92) + chr(34))}"']
    command += [_quote(str(image)), "python", '"$@"']
    return [
        *(f"export {name}={value}" for name, value in PYTHON.items()),
        f"command -v {apptainer} >/dev/null || fail {_quote(missing)}",
        f"[ -e {_quote(str(image))} ] || fail {_quote(unseen)}",
        "for name in $(compgen -e); do",
        "  case $name in",
        f'    {allowed}) export "APPTAINERENV_$name=${{!name}}" ;;',
        "  esac",
        "done",
        *_KEEP_MOUNT,
        'scratch=${DEG_SCRATCH//\\"/\\"\\"}',
        "cd /  # Apptainer would show the folder that it is started in, with the home folder around it",
        " ".join(command),
    ]


def _mount(folder: str) -> str:
    """Return a folder as argument of `--mount`, which reads CSV: any name works. `--bind` takes no comma or colon."""
    quoted = folder.replace('"', '""')
    return f'type=bind,"src={quoted}","dst={quoted}"'


def _quote(word: str) -> str:
    try:
        word.encode()
    except UnicodeEncodeError:
        raise LaunchError(
            f"{show_path(word)}: Apptainer takes only names in UTF-8, and this is not one. Rename it, or put what is "
            "needed into another folder."
        ) from None
    return shlex.quote(word)
