"""Batch scripts: which flags the options of a cluster become, and how scripts reach the scheduler."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shims import Shims

from deg.errors import LaunchError
from deg.launch.on.slurm.jobs import work
from deg.launch.scheduler import script as slurm
from deg.launch.scheduler.script import (
    Need,
    Script,
    Submitter,
    array_size,
    for_again,
    gpu_hours,
    merge_need,
    training_need,
    worker_need,
)
from deg.options.forms import time_limit_minutes
from deg.options.schema import Cluster

SITE = Cluster(
    partition="gpu", account="lab", cpus_per_task=4, memory_gb=16.0, nodes=2, gpus_per_node=2, time="2:00:00", jobs=4
)
JOBS = Path("/lab/the models/x_launch/jobs")
"""Folder with a space in its path, which needs quoting in the shell."""
LAUNCH = str(JOBS.parent)

SETUP = f"""
# setup
{slurm.OUTLIVE_WORK}
{slurm.TELL_END}
export DEG_STOP_AHEAD=120

# command
export SUBMITIT_EXECUTOR=slurm
"""

TRAINING = f"""\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --cpus-per-task=4
#SBATCH --error='/lab/the models/x_launch/jobs/%j_0_log.err'
#SBATCH --gpus-per-node=2
#SBATCH --job-name=deg-mice-train-sequence
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=32768M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='/lab/the models/x_launch/jobs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=2:00:00
{SETUP}\
srun --unbuffered --output '/lab/the models/x_launch/jobs/%j_%t_log.out' \
--error '/lab/the models/x_launch/jobs/%j_%t_log.err' --wait=120 --cpus-per-task=4 \
bash '/lab/the models/x_launch/jobs/container.sh' -u -m submitit.core._submit '/lab/the models/x_launch/jobs'


# teardown
status=$?
trap '' TERM USR1 USR2
bash '/lab/the models/x_launch/jobs/after.sh' "$status" '/lab/the models/x_launch' execute 3 0 '/lab/my run' yes
"""

ARRAY = f"""\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-5%4
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:7
#SBATCH --error='/lab/the models/x_launch/jobs/%A_%a_0_log.err'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=deg-mice-infer-sequence
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=16384M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/lab/the models/x_launch/jobs/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=2:00:00
{SETUP}\
srun --unbuffered --output '/lab/the models/x_launch/jobs/%A_%a_%t_log.out' \
--error '/lab/the models/x_launch/jobs/%A_%a_%t_log.err' --wait=120 --cpus-per-task=4 \
bash '/lab/the models/x_launch/jobs/container.sh' -u -m submitit.core._submit '/lab/the models/x_launch/jobs'


# teardown
status=$?
trap '' TERM USR1 USR2
bash '/lab/the models/x_launch/jobs/after.sh' "$status" '/lab/the models/x_launch' execute 4 0 '/lab/my run' yes
"""

MERGE = f"""\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterany:8
#SBATCH --error='/lab/the models/x_launch/jobs/%j_0_log.err'
#SBATCH --job-name=deg-mice-infer-sequence-merge
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=16384M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/lab/the models/x_launch/jobs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1:00:00
{SETUP}\
srun --unbuffered --output '/lab/the models/x_launch/jobs/%j_%t_log.out' \
--error '/lab/the models/x_launch/jobs/%j_%t_log.err' --wait=120 --cpus-per-task=4 \
bash '/lab/the models/x_launch/jobs/container.sh' -u -m submitit.core._submit '/lab/the models/x_launch/jobs'


# teardown
status=$?
trap '' TERM USR1 USR2
bash '/lab/the models/x_launch/jobs/after.sh' "$status" '/lab/the models/x_launch' merge 4 yes
"""


@pytest.fixture
def shims(tmp_path, monkeypatch):
    """A PATH with commands of Slurm that print nothing."""
    found = Shims(tmp_path / "bin", monkeypatch)
    for name in ("sbatch", "srun"):
        found(name)
    return found


def submitter(cluster: Cluster = SITE, folder: Path = JOBS) -> Submitter:
    return Submitter(folder, cluster, folder / "container.sh", folder / "after.sh")


def script(cluster: Cluster, need: Need | None = None, **changes) -> Script:
    """Make a script; without a need, the one of an array for inference."""
    plain = Script(need or worker_need(cluster, "name"), work, ("execute", LAUNCH, "0", "0"), ("after",))
    return replace(plain, **changes)


@pytest.fixture
def flags(shims):
    """`flags(need, option=value, ...)` returns {flag: value} of a batch script; a flag without a value has ""."""

    def flags(kind=worker_need, **options) -> dict[str, str]:
        cluster = replace(Cluster(), **options)
        text = submitter(cluster).text(script(cluster, kind(cluster, "name")))
        return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))

    return flags


# ---------------------------------------------------------------------------------------------------- whole texts


def test_the_script_of_a_training(shims):
    after = (LAUNCH, "execute", "3", "0", "/lab/my run", "yes")
    need = training_need(SITE, "deg-mice-train-sequence")
    assert submitter().text(script(SITE, need, after=after)) == TRAINING


def test_the_script_of_an_array(shims):
    after = (LAUNCH, "execute", "4", "0", "/lab/my run", "yes")
    need = worker_need(SITE, "deg-mice-infer-sequence")
    assert submitter().text(script(SITE, need, after=after, elements=6), "afterok:7") == ARRAY


def test_the_script_of_a_merge_job_asks_for_no_gpu(shims):
    need = merge_need(SITE, "deg-mice-infer-sequence-merge")
    assert submitter().text(script(SITE, need, after=(LAUNCH, "merge", "4", "yes")), "afterany:8") == MERGE


def test_a_script_for_later_is_without_array_and_dependency(shims):
    before, after = ARRAY.splitlines(), for_again(ARRAY).splitlines()
    assert [line for line in before if line not in after] == ["#SBATCH --array=0-5%4", "#SBATCH --dependency=afterok:7"]
    assert for_again(MERGE.replace("#SBATCH --dependency=afterany:8\n", "")) == for_again(MERGE)


def test_one_script_leaves_nothing_in_the_next(shims):
    one = submitter()
    one.text(script(SITE, elements=3), "afterok:7")
    assert one.text(script(SITE)) == submitter().text(script(SITE))


# ---------------------------------------------------------------------------------------------------- flag by flag

GPU_FLAGS = ("gpus-per-node", "gres", "gpus", "gpus-per-task")


@pytest.mark.parametrize(
    ("kind", "options", "asked"),
    [
        (training_need, {"gpus_per_node": 2}, {"gpus-per-node": "2"}),
        (training_need, {"gpus_per_node": 2, "gpu_type": "a100"}, {"gpus-per-node": "a100:2"}),
        (training_need, {"gpus_per_node": 2, "gpu_flag": "gres"}, {"gres": "gpu:2"}),
        (training_need, {"gpus_per_node": 2, "gpu_flag": "gres", "gpu_type": "a100"}, {"gres": "gpu:a100:2"}),
        (training_need, {"gpus_per_node": 2, "gpu_flag": "gpus", "nodes": 3}, {"gpus": "6"}),
        (training_need, {"gpus_per_node": 2, "gpu_flag": "gpus", "gpu_type": "h100"}, {"gpus": "h100:2"}),
        (training_need, {"gpus_per_node": 0}, {}),
        (training_need, {"gpus_per_node": None}, {}),
        (worker_need, {"gpus_per_node": 4}, {"gpus-per-node": "1"}),
        (worker_need, {"gpus_per_node": 4, "gpu_flag": "gres"}, {"gres": "gpu:1"}),
        (worker_need, {"gpus_per_node": 4, "gpu_flag": "gpus", "nodes": 3}, {"gpus": "1"}),
        (worker_need, {"gpus_per_node": None}, {}),
        (merge_need, {"gpus_per_node": 4, "gpu_flag": "gres"}, {}),
    ],
)
def test_every_way_of_asking_for_gpus(flags, kind, options, asked):
    found = flags(kind, **options)
    assert {name: found[name] for name in GPU_FLAGS if name in found} == asked


@pytest.mark.parametrize(
    ("kind", "options", "asked"),
    [
        (worker_need, {"memory_gb": 32.0}, {"mem": "32768M"}),
        (worker_need, {"memory_gb": 0.3}, {"mem": "308M"}),
        (training_need, {"memory_gb": 10.0, "gpus_per_node": 4, "nodes": 2}, {"mem": "40960M"}),
        (training_need, {"memory_gb": 10.0, "tasks_per_node": 3}, {"mem": "30720M"}),
        (worker_need, {"memory_gb": 1.0, "memory_flag": "mem_per_cpu", "cpus_per_task": 3}, {"mem-per-cpu": "342M"}),
        (training_need, {"memory_gb": 8.0, "memory_flag": "mem_per_cpu", "cpus_per_task": 8}, {"mem-per-cpu": "1024M"}),
        (merge_need, {"memory_gb": 8.0, "memory_flag": "mem_per_cpu", "cpus_per_task": None}, {"mem-per-cpu": "8192M"}),
        (worker_need, {"memory_gb": None}, {}),
        (merge_need, {"memory_gb": None, "memory_flag": "mem_per_cpu"}, {}),
    ],
)  # fmt: skip
def test_memory_by_node_by_core_or_not_at_all(flags, kind, options, asked):
    found = flags(kind, **options)
    assert {name: value for name, value in found.items() if name.startswith("mem")} == asked


@pytest.mark.parametrize(
    ("options", "flag", "value"),
    [
        ({"partition": "gpu"}, "partition", "gpu"),
        ({"account": "lab"}, "account", "lab"),
        ({"qos": "high"}, "qos", "high"),
        ({"constraint": "a100|h100"}, "constraint", "'a100|h100'"),
        ({"time": "1-12:00:00"}, "time", "1-12:00:00"),
        ({"cpus_per_task": 12}, "cpus-per-task", "12"),
        ({"nodes": 1}, "nodes", "1"),
        ({"stop_ahead": 90}, "signal", "USR2@90"),
    ],
)
def test_an_option_is_a_flag_and_null_is_none(flags, options, flag, value):
    (name,) = options
    assert flags(**options)[flag] == value
    assert flag not in flags(**{name: None})


@pytest.mark.parametrize("kind", [training_need, worker_need, merge_need])
def test_every_job_may_be_requeued_if_the_site_allows_that_and_is_cancelled_with_what_it_waits_for(flags, kind):
    allowed, forbidden = flags(kind), flags(kind, requeue=False)
    assert "requeue" in allowed and "no-requeue" not in allowed
    assert "no-requeue" in forbidden and "requeue" not in forbidden
    assert allowed["kill-on-invalid-dep"] == "yes"


@pytest.mark.parametrize("kind", [training_need, worker_need, merge_need])
def test_no_key_for_workload_accounting(flags, kind):
    assert "wckey" not in flags(kind)


def test_merge_jobs_have_a_time_and_a_partition_of_their_own(flags):
    options = {"partition": "gpu", "merge_partition": "cpu", "time": "9:00", "merge_time": "5:00"}
    assert {name: flags(merge_need, **options)[name] for name in ("partition", "time")} == {
        "partition": "cpu",
        "time": "5:00",
    }
    assert flags(worker_need, **options)["partition"] == "gpu" and flags(worker_need, **options)["time"] == "9:00"
    assert flags(merge_need, **options | {"merge_partition": None})["partition"] == "gpu"


@pytest.mark.parametrize(
    ("options", "nodes", "tasks"),
    [
        ({"gpus_per_node": 4, "nodes": 2}, "2", "4"),
        ({"gpus_per_node": 0}, "1", "1"),
        ({"gpus_per_node": None, "nodes": None}, None, "1"),
        ({"gpus_per_node": 4, "tasks_per_node": 2}, "1", "2"),
        ({"gpus_per_node": None, "tasks_per_node": 3}, "1", "3"),
    ],
)
def test_ranks_of_a_training(flags, options, nodes, tasks):
    found = flags(training_need, **options)
    assert found.get("nodes") == nodes and found["ntasks-per-node"] == tasks
    assert flags(worker_need, **options)["ntasks-per-node"] == "1"


def test_flags_are_added_and_taken_away(flags):
    added = flags(sbatch=("mail-type=END,FAIL", "exclusive", "comment=a b;c"))
    assert added["mail-type"] == "END,FAIL" and added["exclusive"] == "" and added["comment"] == "'a b;c'"
    without = flags(sbatch=("open-mode=null", "kill-on-invalid-dep=null", "requeue=null"))
    assert not {"open-mode", "kill-on-invalid-dep", "requeue"} & without.keys()
    assert without.keys() | {"open-mode", "kill-on-invalid-dep", "requeue"} == flags().keys()


def test_a_flag_of_the_site_wins_over_that_of_deg(flags):
    assert flags(sbatch=("open-mode=truncate", "signal=B:USR2@30"))["open-mode"] == "truncate"
    assert flags(sbatch=("signal=B:USR2@30",))["signal"] == "B:USR2@30"


def test_cores_are_asked_for_again_on_srun(shims):
    def srun(cluster: Cluster) -> str:
        return next(line for line in submitter(cluster).text(script(cluster)).splitlines() if line.startswith("srun "))

    assert " --cpus-per-task=5 " in srun(Cluster(cpus_per_task=5))
    assert "cpus-per-task" not in srun(Cluster(cpus_per_task=None))


# ---------------------------------------------------------------------------------------------------- submitting


@pytest.fixture
def jobs(tmp_path):
    folder = tmp_path / "my models" / "x_launch" / "jobs"
    folder.mkdir(parents=True)
    for name in ("container.sh", "after.sh"):
        (folder / name).write_text("exit 0\n")
    return folder


SMALL = Cluster(cpus_per_task=1, memory_gb=0.5, gpus_per_node=None, time="5:00")


def test_an_array_is_submitted_and_each_element_finds_its_work(recorder, jobs):
    number = submitter(SMALL, jobs).submit_script(script(SMALL, elements=3))
    assert list(recorder.jobs()[number].states) == [f"{number}_{element}" for element in range(3)]
    pickles = sorted(path.name for path in jobs.iterdir() if path.suffix == ".pkl")
    assert pickles == [f"{number}_{element}_submitted.pkl" for element in range(3)]
    assert len({(jobs / name).read_bytes() for name in pickles}) == 1
    assert not [path.name for path in jobs.iterdir() if path.suffix == ".sh" and path.name.startswith(".")]


def test_a_job_waits_for_those_before_it(recorder, jobs):
    first = submitter(SMALL, jobs).submit_script(script(SMALL))
    second = submitter(SMALL, jobs).submit_script(script(SMALL), f"afterok:{first}")
    assert list(recorder.jobs()) == [first, second] and recorder.jobs()[second].dependency == f"afterok:{first}"


def test_a_refusal_says_what_the_scheduler_said_and_what_it_was_asked_for(recorder, jobs):
    recorder.forbid("mem")
    with pytest.raises(LaunchError, match="--mem is not allowed on this cluster") as refused:
        submitter(SMALL, jobs).submit_script(script(SMALL))
    assert "--mem=512M" in str(refused.value) and "cluster.memory_gb=null" in str(refused.value)
    assert refused.value.exit_status == 3 and recorder.jobs() == {}
    fitting = replace(SMALL, memory_gb=None)
    submitter(fitting, jobs).submit_script(script(fitting))
    assert len(recorder.jobs()) == 1


def test_a_refusal_leaves_no_files(recorder, jobs):
    recorder.refuse("partition=nowhere", "Invalid partition name specified")
    with pytest.raises(LaunchError, match="Invalid partition"):
        submitter(SMALL, jobs).submit_script(script(replace(SMALL, partition="nowhere")))
    assert sorted(path.name for path in jobs.iterdir()) == ["after.sh", "container.sh"]


def test_the_job_that_this_process_may_be_in_has_no_influence(shims, jobs, monkeypatch, tmp_path):
    shims("sbatch", "Submitted batch job 12\n", then=f"env >{tmp_path}/seen")
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_NTASKS", "SLURM_GPUS", "SBATCH_PARTITION", "SRUN_DEBUG"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/of/the/site/slurm.conf")
    assert submitter(SMALL, jobs).submit_script(script(SMALL)) == "12"
    given = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    of_slurm = {name: value for name, value in given.items() if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    assert of_slurm == {"SLURM_CONF": "/etc/of/the/site/slurm.conf"}
    assert os.environ["SLURM_JOB_ID"] == "1"


def test_a_dry_run_asks_the_scheduler_and_submits_nothing(recorder, jobs):
    recorder.refuse("ntasks-per-node=99", "Requested node configuration is not available")
    text = submitter(SMALL, jobs).text(script(SMALL))
    assert "to start at" in slurm.test_only(text)
    assert "allocation failure" in slurm.test_only(text.replace("--ntasks-per-node=1", "--ntasks-per-node=99"))
    assert recorder.jobs() == {}


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_a_machine_without_slurm(tmp_path, monkeypatch, missing):
    there = Shims(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    there("srun" if missing == "sbatch" else "sbatch")
    with pytest.raises(LaunchError, match="login node"):
        submitter()


# ---------------------------------------------------------------------------------------------------- sizes and sums


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ("MaxArraySize            = 1001\n", 1001),
        ("ClusterName = MaxArraySize\nMaxArraySize = 10\nMaxJobCount = 10000\n", 10),
        ("MaxArraySize = 1\n", 1),
        ("MaxArraySize = 0\n", 1),
        ("nothing of the kind\n", 1000),
    ],
)
def test_the_largest_index_is_one_less_than_the_sites_array_size(shims, told, size):
    shims("scontrol", told)
    assert array_size(Cluster()) == size


def test_an_array_as_long_as_the_site_allows_is_taken(recorder, jobs):
    recorder.configure(MaxArraySize=4)
    longest = array_size(SMALL)
    submitter(SMALL, jobs).submit_script(script(SMALL, elements=longest))
    with pytest.raises(LaunchError, match="Invalid job array specification"):
        submitter(SMALL, jobs).submit_script(script(SMALL, elements=longest + 1))


def test_an_array_size_that_is_given_or_cannot_be_asked_for(shims):
    shims("scontrol", "MaxArraySize = 10\n")
    assert array_size(Cluster(max_array_size=77)) == 77
    shims("scontrol", errors="Unable to contact slurm controller", status=1)
    assert array_size(Cluster()) == slurm.SLURM_ARRAY_SIZE


def needs() -> st.SearchStrategy[Need]:
    hours = st.integers(1, 100).map(lambda hours: f"{hours}:00:00")
    return st.builds(Need, st.just("n"), st.integers(1, 9), st.integers(1, 8), st.integers(0, 8), hours, st.none())


@given(st.lists(st.tuples(needs(), st.integers(1, 50)), max_size=8))
def test_gpu_hours_are_all_gpus_for_all_the_time(asked):
    wanted = sum(n.nodes * n.gpus_per_node * count * int((n.time or "0").partition(":")[0]) for n, count in asked)
    assert gpu_hours(asked) == pytest.approx(wanted)


def test_gpu_hours_without_a_limit_are_not_known():
    endless = Need("n", 1, 1, 1, None, None)
    assert gpu_hours([(endless, 1)]) is None
    assert gpu_hours([(replace(endless, gpus_per_node=0), 5)]) == 0


@given(st.builds(Cluster, nodes=st.integers(1, 9) | st.none(), gpus_per_node=st.integers(0, 8) | st.none()))
def test_a_training_asks_for_as_many_gpus_as_it_has_ranks(cluster):
    need = training_need(cluster, "n")
    assert need.tasks_per_node == max(need.gpus_per_node, 1) and need.nodes >= 1
    assert worker_need(cluster, "n").gpus_per_node == min(need.gpus_per_node, 1)
    assert math.isclose(
        gpu_hours([(need, 1)]) or 0, need.nodes * need.gpus_per_node * time_limit_minutes(cluster.time or "") / 60
    )
