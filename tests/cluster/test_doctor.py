"""`deg doctor --on slurm`, typed by an ordinary user: what it finds about sites of different kinds."""

from __future__ import annotations

import json

import pytest
from small_cluster import Site


@pytest.fixture
def doctor(cluster, image, user, folder):
    """`doctor("key=value"..., status=0)` returns the whole document, and lists of findings by check."""

    def examine(*words: str, status: int = 0):
        options = [f"cluster.image={image}", "cluster.cpus_per_task=2", "cluster.memory_gb=2", *words]
        done = user.deg("doctor", folder, "--on", "slurm", "--json", *options, check=False, timeout=600)
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        document = json.loads(done.stdout)
        found: dict[str, list[dict]] = {}
        for finding in document["findings"]:
            found.setdefault(finding["check"], []).append(finding)
        return document, found

    return examine


def test_a_cluster_that_is_fit_is_found_fit(doctor):
    document, found = doctor("cluster.gpus_per_node=0")
    assert document["profile"] == {}
    assert found["job"][0]["found"].endswith("2 ranks")
    # ranks of a user without rights, each in a container, on a node without any Python of its own
    assert [one["found"] for one in found["Apptainer's mode"] if one["where"]] == ["user namespaces"]
    assert found["environment"][0]["state"] == "ok"
    assert found["ranks together"][0]["found"].startswith("2 ranks on 1 host(s) by gloo")
    assert found["shared memory of ranks"][0]["state"] == "ok"
    assert found["signal"][0]["found"].startswith("a rank gets SIGUSR2")
    assert found["requeueing"][0]["found"].endswith("began again")


def test_stand_in_gpus_on_two_nodes_are_no_gpus_and_requeueing_is_forbidden(doctor, cluster):
    cluster.configure(Site(requeue=False))
    document, found = doctor("cluster.gpus_per_node=2", "cluster.nodes=2", status=3)
    assert [one["state"] for one in found["GPUs"]] == ["fault"]
    assert found["GPUs"][0]["where"].split(", ") == ["n1", "n2"]
    assert found["GPUs"][0]["expected"] == "1, as asked for"
    assert "CUDA_VISIBLE_DEVICES=0" in found["GPUs"][0]["found"]
    assert found["ranks together"][0]["found"].startswith("2 ranks on 2 host(s) by gloo")
    assert found["files of other ranks"][0]["state"] == "ok"
    assert found["requeueing"][0]["state"] == "warning" and document["profile"] == {"requeue": False}


def test_a_site_with_rules_of_its_own(doctor, cluster):
    cluster.configure(Site(accounting=True, memory_flag=False, gpus_by="gres", max_array_size=10))
    document, found = doctor("cluster.max_array_size=1000", status=3)
    assert document["profile"] == {"gpu_flag": "gres", "memory_gb": None, "max_array_size": 10}
    assert found["accounting"][0]["found"] == "sacct answers"
    assert found["job"][0]["state"] == "not tried" and document["folder"] is None
