"""What `deg doctor` finds about a scheduler, by the answers of a recorder and the messages of a real one."""

from __future__ import annotations

import pytest

from deg.launch.doctor import slurm
from deg.options.schema import Cluster

CLUSTER = Cluster(cpus_per_task=2, memory_gb=1.0, time="0:10:00")


def findings(cluster: Cluster = CLUSTER) -> dict:
    return {found.check: found for found in slurm.check_scheduler(cluster)}


def test_a_scheduler_that_takes_what_is_asked_for_is_fit(recorder):
    found = findings()
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(found, "ok")
    assert len(found) == 6 and "22.05.8" in found["Slurm"].found


def test_a_site_that_wants_gpus_by_gres_is_found_out(recorder):
    recorder.forbid("gpus-per-node", "gpus")
    found = findings()
    assert found["how to ask for GPUs"].profile == {"gpu_flag": "gres"}
    assert found["request of a training"].profile == {"gpu_flag": "gres"}
    assert found["how to ask for GPUs"].state == "fault"


def test_a_site_that_forbids_memory_is_found_out(recorder):
    recorder.forbid("mem", "mem-per-cpu", "gpus-per-node", "gpus")
    assert findings()["request of a training"].profile == {"gpu_flag": "gres", "memory_gb": None}


def test_a_site_that_wants_memory_by_core_is_found_out(recorder):
    recorder.forbid("mem")
    assert findings()["request of a training"].profile == {"memory_flag": "mem_per_cpu"}


def test_a_request_that_nothing_helps_is_told_in_the_words_of_the_scheduler(recorder):
    recorder.refuse("partition=nowhere", "Invalid partition name specified")
    found = findings(Cluster(partition="nowhere"))["request of a training"]
    assert found.state == "fault" and "invalid partition" in found.found.lower() and found.profile == {}


def test_a_site_without_accounts_is_fit(recorder):
    recorder("sacct", errors="Slurm accounting storage is disabled", status=1)
    found = findings()["accounting"]
    assert found.state == "ok" and found.found.startswith("none")


def test_arrays_larger_than_the_site_takes_are_a_fault(recorder):
    recorder.configure(MaxArraySize=10)
    found = findings(Cluster(max_array_size=50))["array size"]
    assert found.state == "fault" and found.profile == {"max_array_size": 10}


def test_a_site_that_does_not_tell_its_array_size():
    assert slurm.judge_array(None, None).state == "warning"
    assert slurm.judge_array(None, 100).state == "ok"


def test_without_slurm_there_is_one_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = slurm.check_scheduler(CLUSTER)
    assert found.state == "fault" and "login node" in found.sentence()


def test_memory_that_is_not_shared_out_is_told():
    assert "not allocated" in slurm.judge_memory_sharing("CR_CORE").found
    assert slurm.judge_memory_sharing("CR_CORE_MEMORY").found == "allocated to jobs (CR_CORE_MEMORY)"


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("sbatch: Job 26 to start at 2026-11-22T15:23:21 using 2 processors on nodes n1 in partition gpu", True),
        ("sbatch: lua: remember to clean up\nsbatch: Job 7 to start at 2026-11-22T15:23:21", True),
        ("allocation failure: Requested node configuration is not available", False),
        ("", False),
    ],
)
def test_the_words_of_sbatch_tell_whether_it_would_take_a_script(words, taken):
    assert slurm.is_taken(words) is taken
