"""What `deg doctor` finds about PyTorch, GPUs and ranks; no GPU is needed for these tests."""

from __future__ import annotations

import pytest

from deg.launch.doctor import collective, gpu
from deg.launch.doctor.child import Child

pytestmark = pytest.mark.slow

ARCHES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
GPU = {
    "name": "NVIDIA A100",
    "capability": [8, 0],
    "free": 79 * 2**30,
    "total": 80 * 2**30,
    "errors": {"fp32": 2e-7, "bf16": 4e-3},
}
MEASURED = {
    "torch": "2.15.0",
    "cuda": "13.2",
    "libraries": "torchvision 0.30",
    "seconds": 8.0,
    "arches": ARCHES,
    "problem": "",
    "libcuda": "/.singularity.d/libs/libcuda.so.1",
    "gpus": [GPU],
    "cpu": {},
}
NONE = {**MEASURED, "gpus": [], "problem": "the driver is too old", "cpu": {"errors": {"fp32": 1e-7}}, "libcuda": ""}


@pytest.mark.parametrize(
    ("cuda", "driver", "state"),
    [
        ("13.2", "580.65.06", "ok"),
        ("13.2", "570.86", "fault"),
        ("12.8", "525.60.13", "ok"),
        ("12.8", "470.57", "fault"),
        ("13.2", None, "not tried"),
        (None, "580.65", "warning"),
    ],
)
def test_the_driver_must_be_new_enough_for_the_cuda_of_pytorch(cuda, driver, state):
    assert gpu.judge_driver(cuda, driver).state == state


@pytest.mark.parametrize(
    ("capability", "supported"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((11, 0), False),
        ((12, 1), True),
    ],
)
def test_code_runs_on_its_generation_and_ptx_on_later_ones(capability, supported):
    assert gpu.is_supported(capability, ARCHES) is supported


def test_code_for_one_device_alone_is_understood():
    assert gpu.is_supported((9, 0), ["sm_90a"]) and not gpu.is_supported((8, 0), ["sm_90a"])


def test_a_good_gpu_is_described():
    found = gpu.judge_gpu(0, GPU, ARCHES)
    assert found.state == "ok" and "NVIDIA A100, 79.0 GiB free of 80.0 GiB, compute capability 8.0" in found.found


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"capability": [7, 0]}, "fault", "cu12"),
        ({"failure": "CUDA error: an illegal memory access"}, "fault", "illegal memory"),
        ({"errors": {"fp32": 0.3, "bf16": 4e-3}}, "fault", "fp32 is wrong"),
        ({"errors": {"fp32": 1e-7, "bf16": float("nan")}}, "warning", "bf16 is wrong"),
        ({"free": 10 * 2**30}, "warning", "10.0 GiB free"),
    ],
)
def test_what_is_wrong_with_a_gpu_is_told(change, state, words):
    found = gpu.judge_gpu(0, {**GPU, **change}, ARCHES)
    assert found.state == state and words in found.sentence()


def test_fewer_gpus_than_asked_for_are_a_fault():
    found = gpu.judge_count(MEASURED, 2, has_driver=True, chosen="0")
    assert found.state == "fault" and "expected 2, as asked for" in found.sentence()
    assert gpu.judge_count(MEASURED, 1, has_driver=True, chosen="0").state == "ok"


def test_a_job_without_a_driver_is_asked_about_nv():
    found = gpu.judge_count(NONE, 1, has_driver=False, chosen="0")
    assert found.state == "fault" and "--nv" in found.remedy


def test_a_machine_without_gpus_is_warned_about_and_one_with_a_driver_is_at_fault():
    assert gpu.judge_count(NONE, None, has_driver=False, chosen=None).state == "warning"
    assert gpu.judge_count(NONE, None, has_driver=True, chosen=None).state == "fault"
    assert gpu.judge_count(NONE, None, has_driver=True, chosen="").state == "warning"
    assert gpu.judge_count(NONE, 0, has_driver=False, chosen=None).state == "ok"


def test_a_driver_library_of_the_image_is_a_fault():
    assert gpu.judge_libcuda("/.singularity.d/libs/libcuda.so.1").state == "ok"
    assert gpu.judge_libcuda("/usr/lib/x86_64-linux-gnu/libcuda.so.1").state == "fault"


def test_pytorch_need_not_be_where_jobs_use_an_image():
    failure = {"failure": "No module named 'torch'"}
    assert [found.state for found in gpu.judge_pytorch(failure, needed=False)] == ["not tried"]
    assert [found.state for found in gpu.judge_pytorch(failure)] == ["fault"]


def test_pytorch_is_measured_on_this_machine():
    measured = gpu.ask_pytorch()
    assert measured["torch"] and (measured["gpus"] or measured["cpu"]["errors"]["fp32"] < 1e-4)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
    ],
)
def test_the_driver_tells_its_version(line, version, tmp_path):
    file = tmp_path / "version"
    file.write_text(f"{line}\nGCC version: 12.2.0\n")
    assert gpu.driver_version(file) == version


def test_a_machine_without_a_driver_has_no_version(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver_version(tmp_path / "none") is None


def test_a_child_that_dies_or_hangs_has_failed():
    assert "No module named" in Child("deg.launch.no_such_module").answer(60)["failure"]
    hanging = Child("http.server", ["--bind", "127.0.0.1", "0"])
    assert hanging.answer(0.5)["failure"].startswith("no answer in 0 s")


# ------------------------------------------------------------------------------------------------------------- ranks

ANSWER = {"backend": "nccl", "ranks": 2, "right": True, "gb_per_second": 40.0, "ways": ["P2P/CUMEM"]}


def test_two_ranks_of_this_machine_sum():
    found = collective.check_local_ranks(0)
    assert found.state == "ok" and "2 ranks on 1 host(s) by gloo" in found.found


def test_nccl_needs_a_gpu_for_each_rank_of_a_host():
    assert [collective.backend_for(2, gpus) for gpus in (0, 1, 2)] == ["gloo", "gloo", "nccl"]


def test_ranks_of_a_host_that_go_through_the_network_are_told():
    assert collective.judge_ranks([ANSWER], hosts=1).state == "ok"
    slow = {**ANSWER, "ways": ["NET/Socket"]}
    found = collective.judge_ranks([slow], hosts=1)
    assert found.state == "warning" and "--sharens" in found.remedy
    assert collective.judge_ranks([slow], hosts=2).state == "ok"


def test_ranks_that_do_not_meet_or_sum_wrongly_are_a_fault():
    lost = collective.judge_ranks([{"failure": "no answer in 120 s"}], hosts=2)
    assert lost.state == "fault" and "NCCL_SOCKET_IFNAME" in lost.remedy
    assert collective.judge_ranks([ANSWER, {**ANSWER, "right": False}], hosts=1).state == "fault"


def test_the_ways_of_nccl_are_read_from_its_log():
    log = """n1:12:34 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
n1:12:34 [0] NCCL INFO Channel 01 : 0[0] -> 1[1] via SHM/direct/direct
n1:12:34 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [send] via NET/IB/0
n1:12:34 [0] NCCL INFO Connected all rings"""
    assert collective.ways_of(log) == ["NET/IB", "P2P/CUMEM", "SHM/direct"]
    assert collective.ways_of("") == []
