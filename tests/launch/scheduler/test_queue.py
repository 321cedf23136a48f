"""What the scheduler says about jobs: texts as real commands print them, and commands on PATH that print them."""

from __future__ import annotations

import pytest
from shims import Shims

from deg.errors import LaunchError
from deg.launch.scheduler import queue
from deg.launch.scheduler.queue import (
    JobState,
    alive,
    elements,
    in_accounts,
    parse_sacct,
    parse_squeue,
    seconds,
    states,
)

SQUEUE = """\
12_0|RUNNING|n1|1795354200|5:01|4:00:00|None
12_1|COMPLETED|n2|1795354200|1:00|4:00:00|None
12_[3-5%2]|PENDING||N/A|0:00|4:00:00|JobArrayTaskLimit
13|PENDING||1795361400|0:00|1:00:00|DependencyNeverSatisfied
14|PENDING|(null)|N/A|0:00|UNLIMITED|ReqNodeNotAvail, UnavailableNodes:n[1-2]|n9
"""

SACCT = """\
20_0|FAILED|n1|1795354200|00:01:00|04:00:00|1:0|None
20_0.batch|FAILED|n1|1795354200|00:01:00||1:0|
20_0.extern|COMPLETED|n1|1795354200|00:01:00||0:0|
20_0.0|OUT_OF_ME+|n1|1795354200|00:01:00||0:125|
20_0.1|OUT_OF_MEMORY|n1|1795354200|00:01:00||0:125|
20_1|CANCELLED by 1000|n2|1795354200|1-02:03:04|UNLIMITED|0:9|None
21|RUNNING|n1|1795354200|00:01:00|04:00:00|0:0|None
22|TIMEOUT|None assigned|Unknown|00:00:00|00:10:00|0:0|NonZeroExitCode
22.batch|CANCELLED|n1|Unknown|00:00:00||0:15|
23|COMPLETED|n1|1795354200|00:01:00|04:00:00|0:0|
23.0|OUT_OF_MEMORY|n1|1795354200|00:01:00||0:125|
"""


@pytest.fixture
def shims(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "AGAIN_SECONDS", 0.0)
    return Shims(tmp_path / "bin", monkeypatch)


def test_a_line_of_squeue_is_read_whole():
    found = parse_squeue(SQUEUE)
    assert found["12_0"] == JobState("12_0", "RUNNING", "", "n1", 1795354200.0, 301.0, 14400.0)
    assert found["14"].reason == "ReqNodeNotAvail, UnavailableNodes:n[1-2]|n9"
    assert (found["14"].node, found["14"].start, found["14"].limit) == ("", None, None)


def test_a_pending_array_is_taken_apart():
    assert [job for job in parse_squeue(SQUEUE) if job.startswith("12")] == ["12_0", "12_1", "12_3", "12_4", "12_5"]
    assert list(elements("7_[0,4-8:2,11%3]")) == ["7_0", "7_4", "7_6", "7_8", "7_11"]
    assert list(elements("7")) == ["7"] and list(elements("7_3")) == ["7_3"]


def test_a_job_whose_dependency_failed_will_never_run():
    found = parse_squeue(SQUEUE)
    assert found["13"].never_runs and not found["14"].never_runs


def test_memory_that_only_a_step_knows_of():
    found = {state.job: state for state in parse_sacct(SACCT)}
    assert list(found) == ["20_0", "20_1", "21", "22", "23"]
    assert found["20_0"].state == "OUT_OF_MEMORY" and found["20_0"].status == 1
    assert found["23"].state == "COMPLETED"


def test_what_stands_around_a_state_is_left_out():
    found = {state.job: state for state in parse_sacct(SACCT)}
    assert (found["20_1"].state, found["20_1"].status, found["20_1"].elapsed) == ("CANCELLED", 137, 93784.0)
    assert (found["22"].node, found["22"].start) == ("", None)


@pytest.mark.parametrize(("text", "expected"), [("0:07", 7), ("1:00:00", 3600), ("2-00:00:01", 172801), ("N/A", None)])
def test_stretches_of_time(text, expected):
    assert seconds(text) == expected


def test_squeue_is_asked_first_and_sacct_of_the_rest(shims):
    shims("squeue", SQUEUE)
    shims("sacct", SACCT)
    found = states(["12", "13", "20", "21", "22", "23", "99"])
    assert {job: state.state for job, state in found.items()} == {
        "12_0": "RUNNING",
        "12_1": "COMPLETED",
        "12_3": "PENDING",
        "12_4": "PENDING",
        "12_5": "PENDING",
        "13": "PENDING",
        "20_0": "OUT_OF_MEMORY",
        "20_1": "CANCELLED",
        "21": "UNKNOWN",  # accounting that still says RUNNING after the end is not believed
        "22": "TIMEOUT",
        "23": "COMPLETED",
        "99": "UNKNOWN",
    }
    assert "--jobs=20,21,22,23,99" in shims.calls("sacct")[0] and len(shims.calls("squeue")) == 1


def test_one_element_is_asked_for_by_its_array(shims):
    shims("squeue", SQUEUE)
    shims("sacct", status=1)
    assert list(states(["12_4"])) == ["12_4"]
    assert "--jobs=12" in shims.calls("squeue")[0]


def test_a_site_without_accounts(shims):
    shims("squeue", errors="slurm_load_jobs error: Invalid job id specified", status=1)
    shims("sacct", errors="Slurm accounting storage is disabled", status=1)
    assert states(["5"]) == {"5": JobState("5", "UNKNOWN")}
    assert in_accounts(["5"]) == []
    assert len(shims.calls("squeue")) == 1


def test_jobs_that_are_alive(shims):
    shims("squeue", SQUEUE)
    assert alive(["12", "14"]) == {"12_0", "12_3", "12_4", "12_5", "14"}
    assert alive([]) == set()


def test_a_scheduler_that_is_busy_is_asked_once_more(shims, tmp_path):
    mark = tmp_path / "asked"
    shims("squeue", then=f'[ -e {mark} ] && echo "5|RUNNING|n1|N/A|0:01|1:00|None" && exit 0; touch {mark}', status=1)
    assert alive(["5"]) == {"5"}


def test_a_scheduler_that_does_not_answer(shims, monkeypatch):
    shims("squeue", errors="Unable to contact slurm controller", status=1)
    with pytest.raises(LaunchError, match="Unable to contact slurm controller"):
        states(["5"])
    assert len(shims.calls("squeue")) == 2
    shims("squeue", then="exec sleep 30")
    with pytest.raises(LaunchError, match="no answer within"):
        queue.run_scheduler(["squeue"], timeout=0.2)


def test_no_scheduler_here(shims, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"squeue: not found on PATH.*login node"):
        states(["5"])


def test_settings_of_the_user_do_not_hide_jobs(shims, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    shims("squeue", then='echo "5|RUNNING|n1|N/A|0:01|1:00|$SQUEUE_PARTITION$SLURM_TIME_FORMAT"')
    assert states(["5"])["5"].reason == "%s"
