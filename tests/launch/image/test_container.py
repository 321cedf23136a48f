"""container.sh: its text, and what it does on a node whose Apptainer reports how it was called."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deg.errors import LaunchError
from deg.launch.image.container import MOST_BINDS, Container, bind_roots, cleanup_script, script
from deg.options.schema import Cluster

TELL = """#!{python}
import json, os, sys
json.dump({{"argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}}, sys.stdout)
"""


@pytest.fixture
def node(tmp_path):
    """A node: a disk, and a folder of programs with an `apptainer` that reports its arguments and environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "disk").mkdir()
    write_program(tmp_path / "bin" / "apptainer", TELL.format(python=sys.executable))
    (tmp_path / "image.sif").touch()
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def container(node: Path, **changes) -> Container:
    return replace(Container(image=node / "image.sif", scratch=str(node / "disk")), **changes)


def run_script(node: Path, text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    file = node / "container.sh"
    file.write_text(text, encoding="utf-8")
    return subprocess.run(
        ["bash", str(file), *arguments],
        env={"PATH": f"{node / 'bin'}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def told(node: Path, given: Container, *arguments: str, **environment: str) -> dict:
    done = run_script(node, script(given), *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def inside(told: dict) -> dict[str, str]:
    """Return the environment that Apptainer would make for Python."""
    return {k.removeprefix("APPTAINERENV_"): v for k, v in told["env"].items() if k.startswith("APPTAINERENV_")}


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# the command line


def test_the_whole_script():
    """Read container.sh beside this file: it is what runs on the node."""
    text = script(
        Container(
            image=Path("/shared/deg.sif"),
            binds=(Path("/lab/project"), Path("/raw data")),
            modules=("apptainer/1.4",),
            setup=("ulimit -n 4096",),
            environment=("UCX_*",),
            options=("--sharens",),
            scratch="/local/$USER",
            nv=True,
            torch_home=Path("/lab/torch"),
        )
    )
    assert text == (Path(__file__).parent / "container.sh").read_text()


def test_the_last_line_replaces_the_shell(node):
    done = subprocess.Popen(
        ["bash", "-c", script(container(node)), "container.sh"],
        env={"PATH": f"{node / 'bin'}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = done.communicate(timeout=30)
    assert json.loads(out)["pid"] == done.pid


def test_gpus_are_shown_where_the_site_has_some():
    assert " --nv " in last_line(script(Container(Path("/i"), nv=True)))
    assert "--nv" not in script(Container(Path("/i"), nv=False))


def test_folders_of_any_name_are_shown(node):
    names = ("a b", "c,d", "e:f", 'g"h', "i'j", "k\\l", "m$HOME`x`", "n=o", "üñ", '"p,q"', "r\ns")
    got = told(node, container(node, binds=tuple(node / name for name in names)), "-c", "pass")
    mounts = [
        word
        for before, word in zip(got["argv"], got["argv"][1:], strict=False)
        if before == "--mount" and "disk" not in word
    ]
    quoted = [str(node / name).replace('"', '""') for name in names]
    right = [f'type=bind,"src={folder}","dst={folder}"' for folder in quoted]
    wrong = [f"{mount}, not {wanted}" for mount, wanted in zip(mounts, right, strict=True) if mount != wanted]
    assert not wrong, "\n".join(wrong)


def test_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(LaunchError, match="UTF-8"):
        script(Container(Path("/i"), binds=(Path("/data/\udcff"),)))


def test_arguments_arrive_as_they_were_given(node):
    words = ["-u", "-m", "x", "a b", "c'd", 'e"f', "*", "$HOME", ""]
    argv = told(node, container(node), *words)["argv"]
    assert argv[argv.index("python") :] == ["python", *words]
    assert argv[argv.index("python") - 1] == str(node / "image.sif")


def test_it_starts_outside_of_the_home_folder(node):
    """Apptainer shows the folder that it is started in, and with it ~/.local, despite --no-home."""
    assert told(node, container(node))["cwd"] == "/"


def test_the_image_has_a_temporary_folder_of_its_own_on_the_nodes_disk(node):
    scratch = node / 'odd "disk", really'
    got = told(node, container(node, scratch=str(scratch)), SLURM_JOB_ID="7")
    folder = scratch / f"deg-{os.getuid()}-7"
    assert inside(got)["DEG_SCRATCH"] == inside(got)["TMPDIR"] == str(folder)
    assert f'type=bind,"src={str(folder).replace(chr(34), chr(34) * 2)}"' in " ".join(got["argv"])


# the environment


def test_what_the_scheduler_says_enters(node):
    given = {
        "SLURM_PROCID": "3",
        "SUBMITIT_EXECUTOR": "slurm",
        "CUDA_VISIBLE_DEVICES": "1,2",
        "NCCL_SOCKET_IFNAME": "ib0,ib1",
        "MASTER_PORT": "1234",
        "DEG_LAUNCH": "x y'\"\n$z",
        "https_proxy": "http://proxy:3128",
    }
    seen = inside(told(node, container(node), **given))
    assert {name: seen[name] for name in given} == given


def test_nothing_else_enters(node):
    astray = {
        "PYTHONPATH": "/home/me/lib",
        "PYTHONHOME": "/usr",
        "LD_PRELOAD": "",
        "LD_LIBRARY_PATH": "/opt/cuda",
        "CUDA_HOME": "/opt/cuda",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "CONDA_PREFIX": "/conda",
        "APPTAINERENV_PYTHONPATH": "/home/me/lib",
        "SINGULARITYENV_LD_LIBRARY_PATH": "/x",
    }
    got = told(node, container(node), SLURM_JOB_ID="1", **astray)
    own = {"DEG_SCRATCH", "TMPDIR", "SLURM_JOB_ID", "PYTHONNOUSERSITE", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE"}
    caches = {name for name in inside(got) if inside(got)[name].startswith(inside(got)["DEG_SCRATCH"] + "/")}
    assert inside(got).keys() == own | caches
    assert not [name for name in got["env"] if name.startswith("SINGULARITYENV_")]
    assert "--cleanenv" in got["argv"]


def test_caches_lie_on_the_nodes_disk_whatever_the_user_had_set(node):
    seen = inside(told(node, container(node), SLURM_JOB_ID="1", TRITON_CACHE_DIR="/nfs/home/me/.triton"))
    folder = seen["DEG_SCRATCH"]
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH"):
        assert seen[name].startswith(folder + "/")


def test_the_profile_lets_variables_in(node):
    got = told(node, container(node, environment=("UCX_*", "LAB")), UCX_TLS="rc,self", LAB="7", LABEL="no")
    assert inside(got)["UCX_TLS"] == "rc,self" and inside(got)["LAB"] == "7"
    assert "LABEL" not in inside(got)


def test_variables_that_the_setup_gives_to_the_image_enter(node):
    got = told(node, container(node, setup=("export APPTAINERENV_FROM_SETUP=1",)))
    assert inside(got)["FROM_SETUP"] == "1"


@pytest.mark.parametrize(
    ("given", "threads"),
    [({"SLURM_CPUS_PER_TASK": "6"}, "6"), ({"SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "2"}, "2"), ({}, None)],
)
def test_threads_are_the_cores_of_the_task(node, given, threads):
    assert inside(told(node, container(node), **given)).get("OMP_NUM_THREADS") == threads


# scratch


def test_the_first_scratch_that_is_there_is_taken(node):
    (node / "tmpdir").mkdir()
    given = container(node, scratch=None)
    seen = inside(told(node, given, SLURM_TMPDIR=str(node / "none"), TMPDIR=str(node / "tmpdir"), SLURM_JOB_ID="5"))
    assert seen["DEG_SCRATCH"] == str(node / "tmpdir" / f"deg-{os.getuid()}-5")


def test_scratch_names_variables_of_the_node(node):
    seen = inside(told(node, container(node, scratch=f"{node}/$WHO/`x`"), WHO="me and you", SLURM_JOB_ID="5"))
    assert seen["DEG_SCRATCH"] == f"{node}/me and you/`x`/deg-{os.getuid()}-5"


def test_the_jobs_folder_is_for_its_owner_alone(node):
    folder = Path(inside(told(node, container(node), SLURM_JOB_ID="5"))["DEG_SCRATCH"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_scratch_that_cannot_be_made_is_told(node):
    done = run_script(node, script(container(node, scratch="/proc/nowhere")), SLURM_JOB_ID="5")
    assert done.returncode == LaunchError.exit_status
    assert "cluster.scratch" in done.stderr


def test_cleanup_removes_the_jobs_folder_and_no_other(node):
    given = container(node)
    mine = Path(inside(told(node, given, SLURM_JOB_ID="5"))["DEG_SCRATCH"])
    other = Path(inside(told(node, given, SLURM_JOB_ID="6"))["DEG_SCRATCH"])
    assert run_script(node, cleanup_script(given), SLURM_JOB_ID="5").returncode == 0
    assert not mine.exists() and other.exists()


# before the image


def test_modules_are_loaded_although_the_shell_does_not_know_them_yet(node):
    """The command is found where environment modules are installed; the setup follows."""
    (node / "init").mkdir()
    (node / "init" / "bash").write_text(f'module() {{ echo "$@" >> {shlex.quote(str(node / "loaded"))}; }}\n')
    given = container(node, modules=("apptainer/1.4", "odd name"), setup=(f"echo setup >> '{node}/loaded'",))
    told(node, given, MODULESHOME=str(node))
    assert (node / "loaded").read_text().splitlines() == ["load apptainer/1.4", "load odd name", "setup"]


def test_a_module_that_cannot_be_loaded_is_told(node):
    (node / "init").mkdir()
    (node / "init" / "bash").write_text("module() { return 1; }\n")
    done = run_script(node, script(container(node, modules=("nowhere/1",))), MODULESHOME=str(node))
    assert done.returncode == LaunchError.exit_status
    assert "nowhere/1" in done.stderr and "cluster.modules" in done.stderr


def test_a_node_without_apptainer_is_told(node):
    done = run_script(node, script(container(node, apptainer="apptainer-of-elsewhere")))
    assert done.returncode == LaunchError.exit_status
    assert "apptainer-of-elsewhere" in done.stderr and "cluster.apptainer" in done.stderr


def test_an_image_that_the_node_does_not_see_is_told(node):
    done = run_script(node, script(container(node, image=node / "elsewhere.sif")))
    assert done.returncode == LaunchError.exit_status
    assert "elsewhere.sif" in done.stderr


def test_without_an_image_the_same_python_runs_with_caches_on_the_nodes_disk(node):
    code = "import json, os, sys; json.dump([sys.executable, dict(os.environ)], sys.stdout)"
    done = run_script(node, script(container(node, image=None)), "-c", code, SLURM_JOB_ID="5", SLURM_CPUS_PER_TASK="3")
    python, environment = json.loads(done.stdout)
    assert python == sys.executable
    assert environment["TRITON_CACHE_DIR"].startswith(f"{node}/disk/deg-")
    assert environment["OMP_NUM_THREADS"] == "3"


# from the cluster's options


def test_options_of_the_cluster_become_a_container(node):
    (node / "link.sif").symlink_to(node / "image.sif")
    cluster = Cluster(
        image=str(node / "link.sif"), modules=("a",), setup=("b",), environment=("C_*",), binds=(str(node / "disk"),),
        scratch="/s", apptainer="singularity", apptainer_options=("--sharens",), gpus_per_node=2,
    )  # fmt: skip
    assert Container.of(cluster, [node / "bin" / "apptainer"]) == Container(
        image=node / "image.sif", binds=(node / "bin", node / "disk"), apptainer="singularity", options=("--sharens",),
        modules=("a",), setup=("b",), environment=("C_*",), scratch="/s", nv=True,
    )  # fmt: skip


@pytest.mark.parametrize("gpus", [None, 0])
def test_no_gpus_no_nv(gpus):
    assert Container.of(Cluster(gpus_per_node=gpus), []).nv is False


@pytest.mark.parametrize("name", ["A-B", "A*B", "1A", "A B", "A) rm", ""])
def test_a_name_that_is_no_variable_is_refused(name):
    with pytest.raises(LaunchError, match=r"cluster\.environment"):
        Container.of(Cluster(environment=(name,)), [])


# folders that must be seen


def test_folders_within_others_are_left_out(tmp_path):
    project = tmp_path / "project"
    (project / "DATA").mkdir(parents=True)
    (project / "DATA" / "a.mp4").touch()
    assert bind_roots([project / "DATA" / "a.mp4", project, project / "DATA"]) == (project,)


def test_a_link_within_the_project_brings_the_folder_that_it_leads_to(tmp_path):
    project, raw = tmp_path / "project", tmp_path / "raw"
    project.mkdir()
    raw.mkdir()
    (raw / "a.mp4").touch()
    (project / "a.mp4").symlink_to(raw / "a.mp4")
    assert bind_roots([project, project / "a.mp4"]) == (project, raw)


def test_the_name_by_which_a_link_reaches_its_folder_is_seen_too(tmp_path):
    """project/a.mp4 -> archive/a.mp4, and archive -> disk7: the kernel looks for `archive` in the image."""
    project, disk = tmp_path / "project", tmp_path / "disk7"
    project.mkdir()
    disk.mkdir()
    (disk / "a.mp4").touch()
    (tmp_path / "archive").symlink_to(disk)
    (project / "a.mp4").symlink_to(tmp_path / "archive" / "a.mp4")
    assert bind_roots([project / "a.mp4"]) == (tmp_path / "archive", disk, project)


def test_links_in_a_circle_are_told(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(LaunchError, match="circle"):
        bind_roots([tmp_path / "a"])


def test_many_folders_are_brought_together(tmp_path):
    for session in range(MOST_BINDS + 1):
        (tmp_path / "raw" / f"{session:03d}").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    roots = bind_roots([tmp_path / "project", *(tmp_path / "raw").iterdir()])
    assert roots == (tmp_path / "project", tmp_path / "raw")


@pytest.mark.parametrize("folder", ["/", "/usr", "/opt", "/etc"])
def test_folders_that_would_hide_the_image_are_refused(folder):
    with pytest.raises(LaunchError, match="another folder"):
        bind_roots([folder])


NAMES = st.sampled_from(["a", "b", "c"])
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees=TREES, asked=TREES, links=st.dictionaries(st.sampled_from(["x", "a/y", "b/z"]), NAMES, max_size=3))
def test_roots_hold_every_path_and_not_each_other(tmp_path_factory, trees, asked, links):
    top = tmp_path_factory.mktemp("tree")
    for tree in trees:
        (top / tree).mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        if (top / name).parent.is_dir() and (top / target).is_dir() and not (top / name).exists():
            (top / name).symlink_to(top / target)
    paths = [top / name for name in [*asked, *links]]
    roots = bind_roots(paths)
    for path in paths:
        assert any(path.resolve().is_relative_to(root) for root in roots)
        assert any(path.is_relative_to(root) for root in roots)
    for root in roots:
        assert not any(root.is_relative_to(other) for other in roots if other != root)
    assert bind_roots(roots) == roots


def test_a_signal_to_all_processes_leaves_the_mount_of_the_image(node):
    """The program by which Apptainer mounts an image without root ignores signals that are meant for Python."""
    mounts = node / "bin" / "squashfuse_ll"
    mounts.write_text('#!/bin/sh\n[ "$1" = --help ] && exit 254\nexec sleep 60\n')
    mounts.chmod(0o755)
    apptainer = node / "bin" / "apptainer"
    apptainer.write_text("#!/bin/sh\nsquashfuse_ll image place & echo $!; wait\n")
    running = subprocess.Popen(
        ["bash", "-c", script(container(node)), "container.sh"],
        env={"PATH": f"{node / 'bin'}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    mount = int(running.stdout.readline())
    time.sleep(0.5)  # until it has reached its `exec`
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(mount, number)
    time.sleep(0.2)
    os.kill(mount, 0)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
