"""What `deg doctor` finds about a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from deg.launch.doctor import machine
from deg.launch.doctor.machine import GIB


def test_variables_that_bring_other_libraries_into_an_image_are_a_fault():
    found = machine.judge_environment({"PYTHONPATH": "/home/ann/lib", "LD_PRELOAD": ""}, [], in_image=True)
    assert found.state == "fault" and "PYTHONPATH" in found.found and "LD_PRELOAD" not in found.found


def test_a_virtual_environment_is_all_right_outside_of_an_image():
    assert machine.judge_environment({"VIRTUAL_ENV": "/venv"}, [], in_image=False).state == "ok"
    assert machine.judge_environment({"VIRTUAL_ENV": "/venv"}, [], in_image=True).state == "fault"


def test_modules_from_a_home_folder_are_a_fault_in_an_image():
    outside = ["/home/ann/.local/lib/python3.11/site-packages"]
    assert machine.judge_environment({}, outside, in_image=True).state == "fault"
    assert machine.judge_environment({}, outside, in_image=False).state == "ok"


def test_a_home_that_is_not_there_is_no_fault(tmp_path):
    found = machine.judge_home(tmp_path / "none")
    assert found.state == "ok" and "not there" in found.found


@pytest.mark.parametrize(
    ("usable", "asked", "state"), [(8, 8, "ok"), (1, 8, "warning"), (1, None, "warning"), (2, None, "ok")]
)
def test_cores_are_those_asked_for(usable, asked, state):
    assert machine.judge_cores(usable, 64, asked).state == state


def test_memory_is_what_the_control_group_leaves():
    judge = machine.judge_memory
    assert judge(64 * GIB, 60 * GIB, None, None).state == "ok"
    assert judge(64 * GIB, 60 * GIB, 2 * GIB, None).state == "warning"
    assert judge(64 * GIB, 2 * GIB, None, None).state == "warning"
    less = judge(64 * GIB, 60 * GIB, 8 * GIB, 32)
    assert less.state == "warning" and "32 GiB, as asked for" in less.expected


def test_the_least_limit_of_all_control_groups_holds(tmp_path):
    group = tmp_path / "cgroup"
    group.write_text("0::/system/job_7/step_0\n")
    for folder, limit in (("system", "max"), ("system/job_7", str(8 * GIB)), ("system/job_7/step_0", "max")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
    assert machine.cgroup_limit(group, tmp_path) == 8 * GIB


def test_limits_of_the_first_version_of_control_groups_are_read(tmp_path):
    group = tmp_path / "cgroup"
    group.write_text("9:name=systemd:/\n4:cpu,memory:/slurm/job_7\n0::/\n")
    folder = tmp_path / "memory" / "slurm" / "job_7"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cgroup_limit(group, tmp_path) == 4 * GIB
    (folder / "memory.limit_in_bytes").unlink()
    assert machine.cgroup_limit(group, tmp_path) is None


def test_little_shared_memory_is_told_with_what_to_do():
    found = machine.judge_shared_memory(64 * 2**20, 64 * 2**20)
    assert found.state == "warning" and "compute.num_workers=0" in found.remedy


def test_scratch_is_tried_by_writing(tmp_path):
    assert machine.check_scratch(tmp_path).state in ("ok", "warning")
    missing = machine.check_scratch(tmp_path / "none")
    assert missing.state == "fault" and "No such file" in missing.found


def test_scratch_in_memory_is_told():
    assert machine.judge_scratch(Path("/tmp"), 100 * GIB, "tmpfs", None).state == "warning"
    assert machine.judge_scratch(Path("/tmp"), 100 * GIB, "xfs", None).state == "ok"
    assert machine.judge_scratch(Path("/tmp"), GIB, "xfs", None).state == "warning"


def test_scratch_is_where_the_profile_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert machine.scratch_folder(None) == tmp_path
    monkeypatch.setenv("LOCAL_DISK", "/nvme")
    assert machine.scratch_folder("$LOCAL_DISK/me") == Path("/nvme/me")


def test_the_innermost_mount_tells_the_file_system(tmp_path):
    mounts = tmp_path / "mountinfo"
    lines = [
        "1 0 0:1 / / rw - ext4 /dev/vda rw",
        f"2 1 0:2 / {tmp_path} rw shared:1 - nfs4 server:/x rw",
        f"3 1 0:3 / {tmp_path}/a\\040b rw - lustre server:/y rw",
    ]
    mounts.write_text("\n".join(lines))
    (tmp_path / "a b").mkdir()
    (tmp_path / "ab").mkdir()
    kinds = [machine.file_system_type(tmp_path / name, mounts) for name in ("a b", "ab")]
    assert kinds == ["lustre", "nfs4"]


def test_a_made_video_is_decoded(tmp_path):
    assert machine.check_video(tmp_path).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_video_with_missing_frames_is_a_fault():
    assert machine.judge_video(7).state == "fault"
