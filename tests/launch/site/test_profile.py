"""A profile made from Slurm's answers: texts of several versions and sites, what is chosen, and the commands."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deg.launch import cli
from deg.launch.site import ask
from deg.launch.site.ask import (
    Association,
    Node,
    Partition,
    Site,
    parse_associations,
    parse_gpus,
    parse_nodes,
    parse_partitions,
    parse_settings,
)
from deg.launch.site.profile import Choice, choose, profile_text, shown
from deg.options.load import as_dict, load_config, options
from deg.options.schema import Cluster

# ---------------------------------------------------------------------------------------------------- recorded texts

CONFIG_22_05 = """\
Configuration data as of 2026-11-22T14:40:00
AccountingStorageBackupHost = (null)
AccountingStorageEnforce = none
AccountingStorageHost   = localhost
AccountingStorageType   = accounting_storage/none
ClusterName             = mini
DefMemPerNode           = UNLIMITED
GresTypes               = gpu
JobRequeue              = 1
JobSubmitPlugins        = (null)
KillWait                = 5 sec
MaxArraySize            = 1001
MaxMemPerNode           = UNLIMITED
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE
SLURM_VERSION           = 22.05.8

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%
ClusterName             = not this one

Slurmctld(primary) at login is UP
"""

PARTITIONS_22_05 = """\
PartitionName=gpu
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=YES QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO
   MaxNodes=UNLIMITED MaxTime=02:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=n[1-3]
   PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO
   OverTimeLimit=NONE PreemptMode=REQUEUE
   State=UP TotalCPUs=24 TotalNodes=3 SelectTypeParameters=NONE
   JobDefaults=(null)
   DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
   TRES=cpu=24,mem=192000M,node=3,billing=24

PartitionName=short
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=NO QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO
   MaxNodes=UNLIMITED MaxTime=00:01:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=n[1-3]
   State=UP TotalCPUs=24 TotalNodes=3 SelectTypeParameters=NONE
"""

NODES_22_05 = "".join(f"{name}|n{number}|8|64000|gpu:2\n" for name in ("gpu", "short") for number in (1, 2, 3))

CONFIG_24_05 = """\
Configuration data as of 2026-03-01T09:12:33
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = hpc1
JobRequeue              = 0
JobSubmitPlugins        = lua
KillWait                = 30 sec
MaxArraySize            = 10001
MaxMemPerCPU            = 8000
PreemptMode             = GANG,SUSPEND
PreemptType             = preempt/qos
SelectType              = select/cons_tres
SelectTypeParameters    = CR_Core_Memory,CR_CORE_DEFAULT_DIST_BLOCK
SLURM_VERSION           = 24.05.4
"""

PARTITIONS_24_05 = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A MaxTime=7-00:00:00 \
RootOnly=NO PreemptMode=OFF State=UP Nodes=c[001-200] SelectTypeParameters=NONE MaxMemPerNode=UNLIMITED
PartitionName=gpu AllowGroups=ALL AllowAccounts=neuro,phys DenyQos=debug Default=NO QoS=gpu MaxTime=2-00:00:00 \
GraceTime=60 RootOnly=NO PreemptMode=CANCEL State=UP Nodes=g[01-10] MaxMemPerNode=UNLIMITED SelectTypeParameters=NONE
PartitionName=gpu-debug AllowGroups=ALL AllowAccounts=ALL Default=NO MaxTime=00:30:00 RootOnly=NO PreemptMode=OFF \
State=UP Nodes=g11
PartitionName=gpu-chem AllowGroups=ALL AllowAccounts=chem Default=NO MaxTime=UNLIMITED State=UP Nodes=g[12-40]
PartitionName=gpu-admin AllowGroups=wheel AllowAccounts=ALL Default=NO MaxTime=UNLIMITED State=UP Nodes=g[12-40]
PartitionName=gpu-old AllowGroups=ALL AllowAccounts=ALL DenyAccounts=neuro Default=NO MaxTime=UNLIMITED State=UP
PartitionName=gpu-dead AllowGroups=ALL AllowAccounts=ALL Default=NO MaxTime=UNLIMITED State=INACTIVE
"""

NODES_24_05 = (
    "cpu|c001|128|512000|(null)\n"
    + "".join(f"gpu|g{number:02d}|64|515000|gpu:a100:4(S:0-3),nvme:1(S:0,2)\n" for number in range(1, 10))
    + "gpu|g10|128|1030000|gpu:h100:8(S:0-7)\n"
    + "gpu-debug|g11|32|128000|gpu:1g.5gb:7\n"
    + "".join(f"{name}|g12|64|515000|gpu:16\n" for name in ("gpu-chem", "gpu-admin", "gpu-old", "gpu-dead"))
)

ASSOCIATIONS_24_05 = """\
hpc1|neuro||normal,gpu-long|500
hpc1|neuro|cpu|big|
hpc2|phys||normal|
"""


def linear_site(**changes) -> Site:
    """Return an old cluster: whole nodes, GPUs by gres, memory not allocated."""
    config = "ClusterName = old\nSelectType = select/linear\nSelectTypeParameters = (null)\nJobRequeue = 1\n"
    partitions = "PartitionName=batch Default=YES MaxTime=UNLIMITED State=UP\n"
    nodes = "batch|a|16|64000|gpu:tesla:2,gpu:kepler:2\n"
    return replace(
        Site(parse_settings(config), parse_partitions(partitions), parse_nodes(nodes), user="alice"), **changes
    )


def small_site(**changes) -> Site:
    recorded = Site(
        parse_settings(CONFIG_22_05),
        parse_partitions(PARTITIONS_22_05),
        parse_nodes(NODES_22_05),
        without_accounting="no accounting here",
        user="alice",
        groups=("alice",),
    )
    return replace(recorded, **changes)


def large_site(**changes) -> Site:
    recorded = Site(
        parse_settings(CONFIG_24_05),
        parse_partitions(PARTITIONS_24_05),
        parse_nodes(NODES_24_05),
        parse_associations(ASSOCIATIONS_24_05, "hpc1"),
        user="alice",
        groups=("alice", "neuro"),
    )
    return replace(recorded, **changes)


# ---------------------------------------------------------------------------------------------------- parsing


GPUS_OF_GRES = {
    "gpu:2": {"": 2},
    "gpu:a100:4(S:0-1)": {"a100": 4},
    "gpu:a100:4(S:0,2),nvme:1": {"a100": 4},
    "gpu:tesla:2,gpu:kepler:2,bandwidth:lustre:no_consume:4G": {"tesla": 2, "kepler": 2},
    "gpu:nvidia_a100_80gb_pcie_1g.10gb:7": {"nvidia_a100_80gb_pcie_1g.10gb": 7},
    "gpu:tesla:no_consume:1": {"tesla": 1},
    "gpu": {"": 1},
    "gpu:0": {},
    "shard:a100:16,mps:400": {},
    "(null)": {},
    "": {},
}


def test_gpus_of_a_node():
    wrong = [f"{gres}: {parse_gpus(gres)}" for gres, gpus in GPUS_OF_GRES.items() if parse_gpus(gres) != gpus]
    assert not wrong, "\n".join(wrong)


def test_nodes_are_read_and_other_lines_passed_over():
    assert parse_nodes("CLUSTER: hpc1\n\ngpu|g1|64+|515000+|gpu:a100:4(S:0-3)\n") == (
        Node("gpu", "g1", 64, 515000, {"a100": 4}),
    )


def test_settings_are_those_of_slurm_conf_and_not_of_later_sections():
    settings = parse_settings(CONFIG_22_05)
    assert (settings["clustername"], settings["slurm_version"], settings["killwait"]) == ("mini", "22.05.8", "5 sec")


def test_partitions_of_one_line_and_of_several_are_read_alike():
    several = parse_partitions(PARTITIONS_22_05)
    assert parse_partitions(" ".join(PARTITIONS_22_05.split())) == several
    assert several == (
        Partition("gpu", default=True, max_minutes=120, preempt_mode="REQUEUE"),
        Partition("short", max_minutes=1),
    )


def test_limits_and_rights_of_partitions_are_read():
    gpu = parse_partitions(PARTITIONS_24_05)[1]
    assert gpu == Partition(
        "gpu", max_minutes=2880, accounts=("neuro", "phys"), preempt_mode="CANCEL", grace_seconds=60
    )
    limited = "PartitionName=x MaxTime=UNLIMITED SelectTypeParameters=CR_Core MaxMemPerCPU=4 RootOnly=YES State=DRAIN"
    assert parse_partitions(limited) == (
        Partition("x", up=False, select="CR_Core", memory_per_cpu_mb=4, root_only=True),
    )


def test_rights_on_other_clusters_are_left_out():
    assert parse_associations(ASSOCIATIONS_24_05, "hpc1") == (
        Association("neuro", "", ("normal", "gpu-long"), 500),
        Association("neuro", "cpu", ("big",), None),
    )


RUBBISH = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*" |\n=:,()+*", "PartitionName=", "gpu", "gpu:4", "MaxTime=1-0", "7", "\u0663"])).map(
        "".join
    ),
)


@given(RUBBISH, RUBBISH, RUBBISH, RUBBISH)
def test_whatever_slurm_says_makes_a_profile_that_loads(tmp_path_factory, config, partitions, nodes, associations):
    asked = Site(
        parse_settings(config),
        parse_partitions(partitions),
        parse_nodes(nodes),
        parse_associations(associations, ""),
        user="alice",
    )
    check_profile(choose(asked), tmp_path_factory.mktemp("profile"))


# ---------------------------------------------------------------------------------------------------- choosing


def test_a_small_site_without_accounting():
    choice = choose(small_site())
    assert choice.cluster == Cluster(
        partition="gpu",
        gpus_per_node=1,
        cpus_per_task=4,
        memory_gb=None,
        time="2:00:00",
        jobs=6,
    )
    assert choice.notes["account"] == ("Unknown: no accounting here",)
    assert "SelectTypeParameters = CR_CORE" in " ".join(choice.notes["memory_gb"])
    assert "MaxArraySize is 1001." in choice.notes["max_array_size"]
    assert "PreemptMode = REQUEUE" in " ".join(choice.notes["requeue"])
    assert "killed 5 s later" in " ".join(choice.notes["requeue"])


def test_a_large_site_with_rights():
    choice = choose(large_site())
    assert choice.cluster == Cluster(
        partition="gpu",
        merge_partition="cpu",
        account="neuro",
        qos=None,
        gpus_per_node=1,
        cpus_per_task=16,
        memory_gb=64,
        time="4:00:00",
        jobs=16,
        requeue=False,
    )
    notes = {option: " ".join(said) for option, said in choice.notes.items()}
    assert "gpu: 9 x 4 a100; 1 x 8 h100; at most 2-00:00:00." in notes["partition"]
    assert "gpu-debug: 1 x 7 1g.5gb; at most 0:30:00." in notes["partition"]
    assert "gpu-long, normal" in notes["qos"] and "big" not in notes["qos"]
    assert "a100, h100" in notes["gpu_type"] and "4 to 8" in notes["gpus_per_node"]
    assert "500 jobs" in notes["max_array_size"] and "10001" in notes["max_array_size"]
    assert "PreemptMode = CANCEL" in notes["requeue"] and "killed 90 s later" in notes["requeue"]
    assert "deg resume" in notes["requeue"] and "JobRequeue = 0" in notes["requeue"]
    assert "JobSubmitPlugins = lua" in " ".join(choice.about)


@pytest.mark.parametrize("name", ["gpu-chem", "gpu-admin", "gpu-old", "gpu-dead"])
def test_partitions_that_the_user_may_not_use_are_not_offered(name):
    assert name not in " ".join(choose(large_site()).notes["partition"])


def test_root_may_use_partitions_of_any_group():
    assert "gpu-admin" in " ".join(choose(large_site(user="root", associations=())).notes["partition"])


def test_without_knowing_accounts_partitions_of_accounts_are_offered():
    offered = choose(large_site(associations=(), without_accounting="sacctmgr is down")).notes["partition"]
    assert "gpu-chem" in " ".join(offered)


def test_an_old_site():
    choice = choose(linear_site())
    assert choice.cluster.gpu_flag == "gres" and choice.cluster.memory_gb is None and choice.cluster.time == "4:00:00"
    assert "select/linear" in " ".join(choice.notes["gpu_flag"])
    assert choice.notes["partition"] == ("batch: 1 x 2 kepler, 2 tesla; no time limit; the default.",)


def test_a_site_without_gpus():
    nodes = tuple(Node("batch", f"n{number}", 4, 8192, {}) for number in range(2))
    partitions = (Partition("batch", default=True),)
    choice = choose(linear_site(nodes=nodes, partitions=partitions, settings={"selecttype": "select/cons_tres"}))
    assert (choice.cluster.partition, choice.cluster.gpus_per_node) == ("batch", None)
    assert (choice.cluster.cpus_per_task, choice.cluster.memory_gb) == (4, 7)
    assert "No partition with GPUs" in choice.notes["partition"][0]


def test_the_only_quality_of_service_is_taken():
    associations = (Association("neuro", "", ("normal",), None),)
    assert choose(large_site(associations=associations)).cluster.qos == "normal"


def test_two_accounts_are_a_choice_for_the_user():
    associations = tuple(Association(name, "", ("normal",), None) for name in ("neuro", "phys"))
    choice = choose(large_site(associations=associations))
    assert choice.cluster.account is None
    assert choice.notes["account"] == ("alice has neuro, phys. null: the default one.",)


def test_a_user_without_any_account_is_told():
    assert choose(large_site(associations=())).notes["account"] == ("sacctmgr knows none for alice.",)


@pytest.mark.parametrize(
    ("settings", "partition", "gib"),
    [
        ({"maxmempercpu": "1024"}, {}, 8),
        ({"maxmempernode": "32768"}, {}, 16),
        ({"maxmempernode": "UNLIMITED"}, {}, 56),
        ({"maxmempernode": "32768"}, {"memory_per_node_mb": 65536}, 32),
        ({}, {"select": "CR_Core"}, None),
        ({"selecttypeparameters": "CR_CPU"}, {"select": "CR_Core_Memory"}, 56),
    ],
)
def test_memory_is_what_the_site_lets_a_gpu_have(settings, partition, gib):
    changed = linear_site(
        settings={"selecttype": "select/cons_tres", "selecttypeparameters": "CR_Core_Memory", **settings},
        partitions=(Partition("batch", default=True, **partition),),
        nodes=(Node("batch", "n1", 16, 2 * 64000, {"": 2}),),
    )
    assert choose(changed).cluster.memory_gb == gib


def test_jobs_that_are_only_suspended_are_not_mentioned():
    settings = {"preempttype": "preempt/qos", "preemptmode": "GANG,SUSPEND"}
    assert "requeue" not in choose(linear_site(settings=settings)).notes


def test_a_short_limit_leaves_time_to_work_before_the_signal():
    partitions = (Partition("gpu", default=True, max_minutes=1),)
    cluster = choose(small_site(partitions=partitions)).cluster
    assert (cluster.time, cluster.merge_time, cluster.stop_ahead) == ("0:01:00", "0:01:00", 15)


def test_a_partition_that_lasts_is_preferred_to_a_large_one_of_minutes():
    partitions = (Partition("short", default=True, max_minutes=30), Partition("long", max_minutes=None))
    nodes = (Node("short", "n1", 8, 64000, {"": 8}), Node("long", "n2", 8, 64000, {"": 1}))
    assert choose(small_site(partitions=partitions, nodes=nodes)).cluster.partition == "long"


def test_if_only_singularity_is_there_it_is_used_and_modules_are_mentioned():
    choice = choose(small_site(programs=("singularity",)))
    assert choice.cluster.apptainer == "singularity" and "modules" in choice.notes
    assert choose(small_site(programs=())).cluster.apptainer == "apptainer"
    assert "modules" not in choose(small_site()).notes


# ---------------------------------------------------------------------------------------------------- writing


def check_profile(choice: Choice, folder) -> str:
    """Check that the written profile gives the options that were chosen."""
    text = profile_text(choice, "mysite")
    path = folder / "mysite.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = load_config(None, [f"cluster={path}"]).cluster
    assert replace(loaded, profile=None) == choice.cluster
    return text


@pytest.mark.parametrize("asked", [small_site(), large_site(), linear_site()], ids=["small", "large", "old"])
def test_a_written_profile_is_complete_and_says_what_was_chosen(tmp_path, asked):
    text = check_profile(choose(asked), tmp_path)
    assert all(f"{option.key}: " in text for option in options(Cluster) if option.key != "profile")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_what_was_not_decided_is_a_comment_with_its_default(tmp_path):
    text = profile_text(choose(small_site()), "mysite")
    assert "\n  # restarts: 10\n" in text and "\n  partition: gpu\n" in text and "\n  image: null\n" in text


def test_options_that_become_a_flag_say_so():
    cluster = Cluster(partition="gpu", gpu_flag="gres")
    flags = {"partition": "gpu", "gres": "gpu:a100:2", "mem": "64G", "requeue": True, "qos": None}
    text = shown(cluster, flags, {"mem"})
    assert yaml.safe_load(text) == {"cluster": as_dict(cluster)}
    for line in (
        "partition: gpu  # --partition=gpu",
        "gpus_per_node: 1  # --gres=gpu:a100:2",
        "memory_gb: 32.0  # --mem is removed",
        "requeue: true  # --requeue",
        "qos: null",
    ):
        assert f"\n  {line}\n" in text


# ---------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs on PATH that repeat Slurm's answers; `slurm(sacctmgr="exit 1")` replaces one by a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SINFO_PARTITION", "nothing")

    def say(**scripts):
        for name, text in (("config", CONFIG_24_05), ("partition", PARTITIONS_24_05), ("nodes", NODES_24_05)):
            (folder / name).write_text(text)
        usual = {
            "sinfo": f'test -z "$SINFO_PARTITION" && cat {folder}/nodes',
            "scontrol": f"cat {folder}/$2",
            "sacctmgr": "printf 'hpc1|neuro||normal|\\n'",
        }
        for name, script in {**usual, **scripts}.items():
            program = folder / name
            program.unlink(missing_ok=True)
            if script is not None:
                program.write_text(f"#!/bin/sh\n{script}\n")
                program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return folder

    return say


def test_init_writes_a_profile_that_can_be_named(slurm, tmp_path, capsys):
    slurm()
    assert cli.run(["cluster", "init", "mysite"]) == 0
    path = tmp_path / "config" / "deg" / "clusters" / "mysite.yaml"
    assert str(path) in capsys.readouterr().err
    cluster = load_config(None, ["cluster=mysite"]).cluster
    assert (cluster.partition, cluster.account, cluster.qos) == ("gpu", "neuro", "normal")
    assert [entry.name for entry in path.parent.iterdir()] == ["mysite.yaml"]


def test_init_without_a_name_takes_the_cluster_s(slurm, tmp_path):
    slurm()
    assert cli.run(["cluster", "init"]) == 0
    assert (tmp_path / "config" / "deg" / "clusters" / "hpc1.yaml").exists()


def test_init_replaces_nothing_unasked(slurm, tmp_path, capsys):
    slurm()
    path = tmp_path / "mine.yaml"
    path.write_text("cluster: {partition: mine}\n")
    assert cli.run(["cluster", "init", "--to", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err and "mine" in path.read_text()
    assert cli.run(["cluster", "init", "--to", str(path), "--overwrite"]) == 0
    assert load_config(None, [f"cluster={path}"]).cluster.partition == "gpu"


def test_init_can_be_tried(slurm, tmp_path, capsys):
    slurm()
    assert cli.run(["cluster", "init", "mysite", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["cluster"]["partition"] == "gpu"
    assert not (tmp_path / "config").exists()


def test_init_as_a_document(slurm, capsys):
    slurm()
    assert cli.run(["cluster", "init", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] is None and document["cluster"]["partition"] == "gpu" and document["notes"]["partition"]


@pytest.mark.parametrize("sacctmgr", ["echo 'slurmdbd is down' >&2; exit 1", None])
def test_without_sacctmgr_the_profile_says_so(slurm, capsys, monkeypatch, sacctmgr):
    folder = slurm(sacctmgr=sacctmgr)
    if sacctmgr is None:  # even if the machine of the tests has one
        monkeypatch.setenv("PATH", f"{folder}:/nowhere")
        (folder / "cat").symlink_to("/bin/cat")
    assert cli.run(["cluster", "init", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.replace("#", " ").split())
    assert ("slurmdbd is down" if sacctmgr else "There is no sacctmgr on PATH") in text


def test_a_site_that_keeps_no_accounts_is_not_asked_for_them(slurm, capsys):
    folder = slurm(sacctmgr="echo asked >&2; exit 1")
    (folder / "config").write_text(CONFIG_22_05)
    assert cli.run(["cluster", "init", "--dry-run", "--json"]) == 0
    assert "accounting_storage/none" in json.loads(capsys.readouterr().out)["notes"]["account"][0]


def test_without_slurm_init_says_where_to_try(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.run(["cluster", "init", "--json"]) == 3
    said = capsys.readouterr()
    assert "There is no scontrol on PATH" in said.err and json.loads(said.out)["status"] == 3


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exit 7", "exit status 7"),
        ("exec sleep 60", "did not answer within"),
    ],
)
def test_a_slurm_that_does_not_answer_is_named(slurm, capsys, monkeypatch, script, said):
    slurm(sinfo=script)
    monkeypatch.setattr(ask, "SECONDS", 1.0)
    assert cli.run(["cluster", "init"]) == 3
    answer = capsys.readouterr().err
    assert said in answer and "sinfo" in answer


@pytest.mark.parametrize("name", ["a/b", "x.yaml", "..", "a b", ""])
def test_a_name_is_no_path(slurm, capsys, name):
    slurm()
    assert cli.run(["cluster", "init", name]) == 2
    assert "--to" in capsys.readouterr().err


def test_list_names_profiles_and_files(slurm, capsys):
    slurm()
    assert cli.run(["cluster", "init", "mysite"]) == 0
    assert cli.run(["cluster", "list", "--json"]) == 0
    profiles = json.loads(capsys.readouterr().out)["profiles"]
    assert {"example", "mysite"} <= set(profiles)
    assert cli.run(["cluster", "list"]) == 0
    assert profiles["mysite"] in capsys.readouterr().out.replace("\n", "")


def test_show_gives_all_options_of_a_profile(capsys):
    assert cli.run(["cluster", "show", "example", "cluster.gpu_flag=gres"]) == 0
    text = capsys.readouterr().out
    assert set(yaml.safe_load(text)["cluster"]) == {option.key for option in options(Cluster)}
    assert "# --gres=gpu:1\n" in text
    assert cli.run(["cluster", "show", "example", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"]["partition"] == "gpu"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gpus_per_node=2", "gpu_type=a100"], "gpus_per_node: 2  # --gpus-per-node=a100:2"),
        (["gpus_per_node=2"], "memory_gb: 32.0  # --mem=65536M"),
        (["memory_flag=mem_per_cpu"], "memory_gb: 32.0  # --mem-per-cpu=4096M"),
        (["memory_gb=null"], "memory_gb: null"),
        (["cpus_per_task=null"], "cpus_per_task: null"),
        (["gpu_flag=gpus", "gpus_per_node=2", "nodes=3"], "gpus_per_node: 2  # --gpus=6"),
        (["requeue=false"], "requeue: false  # --no-requeue"),
        (["sbatch=[time=null]"], "time: '4:00:00'  # --time is removed"),
    ],
)
def test_show_tells_the_flags_of_a_training(capsys, words, line):
    assert cli.run(["cluster", "show", "example", *(f"cluster.{word}" for word in words)]) == 0
    assert f"\n  {line}\n" in capsys.readouterr().out


def test_show_of_an_unknown_profile(capsys):
    assert cli.run(["cluster", "show", "exampel"]) == 2
    assert "Did you mean example?" in capsys.readouterr().err
