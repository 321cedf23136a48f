"""The small cluster behaves as clusters do: otherwise no test on it would mean anything."""

from __future__ import annotations

import json
import re
import time

import pytest
from small_cluster import NODES, Site

WAITS = "trap 'exit 75' USR2; while true; do sleep 0.2; done"
"""Script that ends when it is told to."""


def output(folder, job: str) -> str:
    return (folder / f"slurm-{job}.out").read_text()


def test_jobs_run_as_the_ordinary_user_on_hosts_of_their_own(cluster, user, folder):
    script = """
    say='echo "$(hostname) $(id -un) $(ls /tmp | grep -vc ^deg-) $CUDA_VISIBLE_DEVICES"; cat /etc/hosts'
    srun -N3 -n3 --output=%t.txt bash -c "$say"
    """
    job = user.submit(script, "-N3", "--gpus-per-node=2", folder=folder)
    assert cluster.wait(job)[job] == "COMPLETED"
    told = [(folder / f"{rank}.txt").read_text().splitlines() for rank in range(3)]
    assert [lines[0] for lines in told] == [f"{node} {user.name} 0 0,1" for node in NODES]
    assert all(node in "\n".join(told[0]) for node in NODES)


def test_compute_nodes_have_no_python_unless_the_site_says_so(cluster, user, folder):
    script = (
        "for p in /usr/bin/python3* /usr/local/bin/python3*; do [ -f $p ] && $p -c 'print(\"python\")'; done; echo end"
    )
    without = user.submit(script, folder=folder)
    cluster.wait(without)
    assert "python\n" not in output(folder, without)
    assert output(folder, without).endswith("end\n")
    cluster.configure(Site(python_on_nodes=True))
    with_it = user.submit(script, folder=folder)
    cluster.wait(with_it)
    assert "python\n" in output(folder, with_it)


def test_jobs_of_a_host_without_power_and_of_one_without_network_come_back(cluster, user, folder):
    script = f"echo start ${{SLURM_RESTART_COUNT:-0}}\n[ ${{SLURM_RESTART_COUNT:-0}} = 1 ] && exit 0\n{WAITS}"
    jobs = [user.submit(script, f"--nodelist={node}", "--open-mode=append", folder=folder) for node in ("n2", "n3")]
    cluster.wait(*jobs, state="RUNNING")
    cluster.kill_node("n2")
    cluster.cut_node("n3")
    cluster.wait(*jobs, state="PENDING")
    assert cluster.run("sinfo", "-h", "-n", "n2,n3", "-p", "gpu", "-o", "%T").startswith("down")
    cluster.start_node("n2")
    cluster.start_node("n3")
    states = cluster.wait(*jobs)
    assert [states[job] for job in jobs] == ["COMPLETED", "COMPLETED"]
    assert [re.findall("start .", output(folder, job)) for job in jobs] == [["start 0", "start 1"]] * 2


def test_an_urgent_job_takes_the_place_of_another_which_comes_back(cluster, user, folder):
    script = f"[ ${{SLURM_RESTART_COUNT:-0}} = 1 ] && exit 0\n{WAITS}"
    hog = user.submit(script, "-N3", "--exclusive", "--open-mode=append", folder=folder)
    cluster.wait(hog, state="RUNNING")
    urgent = user.submit("sleep 1", "--partition=urgent", "-N3", "--exclusive", folder=folder)
    states = cluster.wait(urgent)
    assert states[urgent] == "COMPLETED"
    assert cluster.wait(hog)[hog] == "COMPLETED"
    assert "DUE TO PREEMPTION" in output(folder, hog)


def test_a_job_is_told_before_its_time_limit_and_ended_at_it(cluster, user, folder):
    told = f'srun bash -c "{WAITS}"; echo after $?'
    deaf = 'srun bash -c "trap : USR2; while true; do sleep 0.2; done"'
    heeds = user.submit(told, "--partition=short", "--time=1", "--signal=USR2@50", folder=folder)
    ignores = user.submit(deaf, "--partition=short", "--time=1", "--signal=USR2@50", folder=folder)
    states = cluster.wait(heeds, ignores, seconds=150)
    assert output(folder, heeds).endswith("after 75\n")
    assert states[ignores] == "TIMEOUT"


def test_a_site_with_accounting_and_one_without(cluster, user, folder):
    assert "accounting storage is disabled" in user.run("sacct", check=False).stderr
    cluster.configure(Site(accounting=True))
    job = user.submit("exit 3", folder=folder)
    cluster.wait(job)
    words = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Account")
    end = time.monotonic() + 30  # accounting lags behind
    while "FAILED" not in (said := user.run(*words).stdout) and time.monotonic() < end:
        time.sleep(0.5)
    assert said == "FAILED|3:0|lab\n"


def test_a_site_of_small_arrays(cluster, user, folder):
    cluster.configure(Site(max_array_size=10))
    assert re.search(r"MaxArraySize\s+= 10\n", user.run("scontrol", "show", "config").stdout)
    user.submit("true", "--array=0-9", folder=folder)
    with pytest.raises(AssertionError, match="Invalid job array specification"):
        user.submit("true", "--array=0-10", folder=folder)


def test_a_site_that_does_not_requeue(cluster, user, folder):
    cluster.configure(Site(requeue=False))
    job = user.submit("scontrol requeue $SLURM_JOB_ID || exit 9", "--requeue", folder=folder)
    assert cluster.wait(job)[job] == "FAILED"
    assert "disabled" in output(folder, job)


@pytest.mark.parametrize("flag", ["--mem=1G", "--mem-per-cpu=1G"])
def test_a_site_where_memory_must_not_be_asked_for(cluster, user, folder, flag):
    cluster.configure(Site(memory_flag=False))
    with pytest.raises(AssertionError, match="memory must not be asked for"):
        user.submit("true", flag, folder=folder)
    job = user.submit("true", folder=folder)
    assert cluster.wait(job)[job] == "COMPLETED"


@pytest.mark.parametrize("flag", ["--gpus=1", "--gpus-per-node=1"])
def test_a_site_where_gpus_are_asked_for_by_gres_alone(cluster, user, folder, flag):
    cluster.configure(Site(gpus_by="gres"))
    with pytest.raises(AssertionError, match="ask by --gres"):
        user.submit("true", flag, folder=folder)
    job = user.submit("srun bash -c 'echo gpus $CUDA_VISIBLE_DEVICES'", "--gres=gpu:1", folder=folder)
    assert cluster.wait(job)[job] == "COMPLETED"
    assert "gpus 0" in output(folder, job)


RING = """
import json, os, sys, torch, torch.distributed as dist
rank = int(os.environ["SLURM_PROCID"])
dist.init_process_group("gloo", init_method=f"tcp://{os.environ['FIRST']}:29517", rank=rank, world_size=2)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
print(json.dumps({"rank": rank, "total": total.item(), "host": os.uname().nodename, "uid": os.getuid()}))
dist.destroy_process_group()
"""


def test_two_ranks_in_containers_of_two_hosts_talk(cluster, user, folder, image):
    user.give(folder / "ring.py", RING)
    script = f"""
    export FIRST=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
    srun --output=rank-%t.txt apptainer exec --no-home --bind {folder} {image} python {folder}/ring.py
    """
    job = user.submit(script, "-N2", "--ntasks-per-node=1", folder=folder)
    states = cluster.wait(job, seconds=300)
    said = [(folder / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert states[job] == "COMPLETED", "\n".join([output(folder, job), *said])
    told = [json.loads(text.splitlines()[-1]) for text in said]
    assert [one["total"] for one in told] == [3.0, 3.0]
    assert [one["host"] for one in told] == ["n1", "n2"]
    assert {one["uid"] for one in told} == {int(user.run("id", "-u").stdout)}
