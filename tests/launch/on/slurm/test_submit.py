"""`--on slurm`: what is planned, written and submitted; nothing remains of what the scheduler refuses."""

from __future__ import annotations

import itertools
import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from scenes.launch import WORDS, only_launch, submitted
from scenes.project import add_weights, make_labelled_project, make_project
from scenes.run import scripted_workers

from deg.launch import cli
from deg.launch.on.slurm import submit
from deg.launch.on.slurm.orders import request_of, workers_on
from deg.launch.stages import infer as inference
from deg.launch.stages import train
from deg.launch.stages.request import StageRequest
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

LENGTHS = {"mouse_1": 1100, "mouse_2": 30}
UNITS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("made") / "mice", LENGTHS)


@pytest.fixture
def folder(made, tmp_path):
    """A project with all networks; each test has its own."""
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "mice")], check=True)
    return tmp_path / "mice"


@pytest.fixture
def deg(capsys, monkeypatch):
    """`deg("infer", ...)` with --on slurm returns the exit status, the JSON document, and the messages."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    moments = itertools.count()

    class Clock(datetime):
        """A clock that moves by itself: run names contain the second, and a test should not wait for the next one."""

        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 22, 12, 0, 0) + timedelta(seconds=next(moments))

    for module in (submit, inference, train):
        monkeypatch.setattr(module, "datetime", Clock)

    def deg(*words: object, on: str = "slurm"):
        cluster = WORDS if on == "slurm" else ()
        status = cli.run([*map(str, words[:1]), *cluster, *map(str, words[1:]), "--on", on, "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return deg


@pytest.fixture
def infer(deg, folder):
    """`infer("feature_extractor", ...)` is `deg infer STAGE PROJECT ... --on slurm`, and returns the same as `deg`."""
    return lambda stage, *words, **rest: deg("infer", stage, folder, "feature_extractor.weights=latest", *words, **rest)


def listed(folder: Path):
    """Return all files except the event logs, in which every look at a run leaves a trace."""
    files = [path for path in folder.rglob("*") if not path.is_dir() and path.name != "events.jsonl"]
    return sorted((str(path), path.lstat().st_mtime_ns) for path in files)


# ---------------------------------------------------------------------------------------------------- what is submitted


def test_an_inference_is_an_array_and_a_job_that_merges(recorder, infer, folder):
    status, report, said = infer("feature_extractor")
    launch = only_launch(folder)
    assert status == report["exit_status"] == 0 and report["launch"] == launch.name
    assert submitted(launch) == [(0, "execute", tuple(range(UNITS)), 0), (0, "merge", None, 0)]
    array, merging = (job.job for job in launch.jobs())
    jobs = recorder.waiting()
    assert list(jobs) == [array, merging] and [job["job"] for job in report["jobs"]] == [array, merging]
    assert jobs[array].options["array"] == f"0-{UNITS - 1}%{UNITS}" and jobs[array].dependency == ""
    assert jobs[merging].dependency == f"afterany:{array}"
    assert f"Submitted {launch.name}" in said and "deg status" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [("sbatch: Job 7 to start at 2026-11-22T12:00:00", False), ("allocation failure: More processors requested", True)],
)
def test_a_job_that_the_scheduler_will_never_begin_is_told(recorder, infer, monkeypatch, words, told):
    monkeypatch.setattr("deg.launch.on.slurm.submit.test_only", lambda text: words)
    status, _, said = infer("feature_extractor")
    assert status == 0 and ("may never begin" in said and words in said) is told


def test_the_run_is_planned_at_once_and_its_units_are_shared_out(recorder, infer, folder):
    infer("feature_extractor", "cluster.jobs=2")
    (stage,) = only_launch(folder).load().stages
    run = RunDir(folder / "models" / stage.run)
    assert len(run.load_plan().units) == stage.elements == UNITS
    (array, _) = (job.job for job in only_launch(folder).jobs())
    assert recorder.waiting()[array].options["array"] == f"0-{UNITS - 1}%2"


def test_only_the_first_stage_is_planned_and_the_others_wait_for_each_other(recorder, infer, folder):
    assert infer("all")[0] == 0
    launch = only_launch(folder)
    loaded = launch.load()
    assert loaded.run_of(0).plan_file.exists() and not loaded.run_of(1).path.exists()
    assert [(role, stage) for stage, role, _, _ in submitted(launch)] == [
        ("execute", 0), ("merge", 0), ("execute", 1), ("merge", 1),
    ]  # fmt: skip
    jobs, names = recorder.waiting(), [job.job for job in launch.jobs()]
    assert [jobs[name].dependency for name in names] == [
        "", f"afterany:{names[0]}", f"afterok:{names[1]}", f"afterany:{names[2]},afterok:{names[1]}",
    ]  # fmt: skip
    assert {jobs[name].options["kill-on-invalid-dep"] for name in names} == {"yes"}


def test_the_whole_chain_is_submitted_at_once(recorder, deg, tmp_path):
    project = make_labelled_project(tmp_path / "mice")
    status, report, _ = deg("run", project, "feature_extractor.weights=random", "cluster.nodes=2")
    launch = only_launch(project)
    loaded = launch.load()
    assert status == 0 and loaded.report
    assert [stage.name for stage in loaded.stages] == [stage["stage"] for stage in report["stages"]]
    assert [stage.name for stage in loaded.stages] == [
        "train flow_generator",
        "train feature_extractor",
        "infer feature_extractor",
        "train sequence",
        "infer sequence",
    ]
    assert [loaded.run_of(index).plan_file.exists() for index in range(5)] == [True, False, False, False, False]
    assert "flow_generator.weights=latest" in loaded.stages[1].command
    assert [role for _, role, _, _ in submitted(launch)] == ["execute", "merge"] * 5
    jobs = [recorder.waiting()[job.job] for job in launch.jobs()]
    assert [job.options["nodes"] for job in jobs] == ["2", "1", "2", "1", "1", "1", "1", "1", "1", "1"]
    assert loaded.run_of(0).load_training_plan().devices == 2


def test_what_is_trained_is_left_out_of_the_chain(recorder, deg, folder):
    for video in folder.glob("DATA/*/*.mp4"):
        write_some_labels(video)
    status, report, said = deg("run", folder)
    assert status == 0
    assert [stage["stage"] for stage in report["stages"]] == ["infer feature_extractor", "infer sequence"]
    assert "train flow_generator: trained by" in said


def write_some_labels(video: Path) -> None:
    lines = [",background,groom,rear", *(f"{i},{i % 3 == 0:d},{i % 3 == 1:d},{i % 3 == 2:d}" for i in range(30))]
    video.with_name(f"{video.stem}_labels.csv").write_text("\n".join(lines) + "\n")


def test_a_training_is_one_job_of_all_ranks(recorder, deg, tmp_path):
    project = make_labelled_project(tmp_path / "mice")
    status, _, _ = deg("train", "flow_generator", project, "cluster.nodes=2", "cluster.tasks_per_node=2")
    launch = only_launch(project)
    job, merging = (recorder.waiting()[job.job] for job in launch.jobs())
    assert status == 0 and submitted(launch) == [(0, "execute", None, 0), (0, "merge", None, 0)]
    assert (job.options["nodes"], job.options["ntasks-per-node"]) == ("2", "2")
    assert merging.dependency == f"afterany:{launch.jobs()[0].job}"
    assert launch.load().run_of(0).load_training_plan().devices == 4


@pytest.mark.parametrize(("max_array_size", "arrays"), [(10, [3]), (3, [3]), (2, [2, 1]), (1, [1, 1, 1])])
def test_arrays_are_no_longer_than_the_site_allows(recorder, infer, folder, max_array_size, arrays):
    recorder.configure(MaxArraySize=max_array_size)
    assert infer("feature_extractor")[0] == 0
    launch = only_launch(folder)
    jobs = [job for job in launch.jobs() if job.role == "execute"]
    assert [len(job.elements) for job in jobs] == arrays
    merging = recorder.waiting()[launch.jobs()[-1].job]
    assert merging.dependency == "afterany:" + ":".join(job.job for job in jobs)
    # the batch script gives each array the number of its first element
    firsts = [(launch.stage_folder(0) / f"execute-{chunk}.sh").read_text().split() for chunk in range(len(arrays))]
    assert [int(words[words.index("execute") + 2]) for words in firsts] == [sum(arrays[:i]) for i in range(len(arrays))]


def test_what_is_needed_to_submit_again_lies_beside(recorder, infer, folder):
    infer("feature_extractor")
    stage = only_launch(folder).stage_folder(0)
    again = {"execute-0.sh", "execute-0.pkl", "merge.sh", "merge.pkl"}
    assert {path.name for path in stage.iterdir()} == {"config.yaml", *again}
    assert "--array" not in (stage / "execute-0.sh").read_text()
    assert "--dependency" not in (stage / "merge.sh").read_text()


def test_a_name_that_is_given(recorder, infer, folder):
    status, report, _ = infer("all", "--run", "try")
    assert status == 0 and report["launch"] == "try_launch"
    runs = [stage.run for stage in only_launch(folder).load().stages]
    assert runs == ["try_feature_extractor_inference", "try_sequence_inference"]
    status, report, _ = infer("sequence", "--run", "try")
    assert status == 2 and "a launch of this name exists" in report["error"]


# ---------------------------------------------------------------------------------------------------- what is kept


def requests(folder: Path) -> list[StageRequest]:
    """Return the stage requests that a project's launch holds."""
    launch = only_launch(folder).load()
    return [request_of(launch, index) for index in range(len(launch.stages))]


def test_options_hold_as_they_were_when_it_was_submitted(recorder, infer, folder, tmp_path):
    (tmp_path / "more.yaml").write_text("inference: {units_per_device: 7}")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"cluster": {"account": "lab", "qos": "high"}}))
    assert infer("all", "--config", tmp_path / "more.yaml", f"cluster={tmp_path / 'site.yaml'}", "notes=first")[0] == 0
    (tmp_path / "more.yaml").unlink()
    (tmp_path / "site.yaml").unlink()
    (folder / "project_config.yaml").write_text(
        (folder / "project_config.yaml").read_text().replace("inference:", "notes: later\ninference:")
    )
    assert [request.stage for request in requests(folder)] == ["feature_extractor", "sequence"]
    for request in requests(folder):
        config = request.config
        assert (config.inference.units_per_device, config.notes) == (7, "first")
        assert (config.cluster.account, config.cluster.qos, workers_on(config.cluster, request)) == ("lab", "high", 4)
    text = only_launch(folder).config_file(1).read_text()
    assert text.startswith(f"# deg infer sequence {folder} ") and "units_per_device: 7" in text


@pytest.fixture
def elsewhere(folder, tmp_path, monkeypatch):
    """The user's current folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


PATHS = {
    "compute.cache": ("frames", "{here}/frames"),
    "flow_generator.weights": ("../w.pt", "{here}/../w.pt"),
    "sequence.weights": ("latest", "latest"),
    "split.file": ("split.yaml", "{project}/split.yaml"),
    "cluster.binds": ("[scans,$ARCHIVE/old]", ("{here}/scans", "$ARCHIVE/old")),
    "inference.directory_list": ("../mice/DATA/mouse_2", "{here}/../mice/DATA/mouse_2"),
}
"""Options that name files: what the user writes, and the value that every stage gets."""


def test_every_option_that_is_a_path_means_the_same_in_all_stages(recorder, deg, folder, elsewhere):
    (elsewhere.parent / "w.pt").write_bytes(b"")
    fixed = ["feature_extractor.weights=latest"]
    words = [f"{key}={given}" for key, (given, _) in PATHS.items()]
    weights = add_weights(folder, "flow_generator", "TinyMotionNet", "210101_000000") / "checkpoint.pt"
    weights.rename(elsewhere.parent / "w.pt")
    assert deg("infer", "all", "../mice", *fixed, *words)[0] == 0
    for request in requests(folder):
        assert request.project.path == folder and request.videos == ("mouse_2",)
        for key, (_, wanted) in PATHS.items():
            section, name = key.split(".")
            found = getattr(getattr(request.config, section), name)
            texts = wanted if isinstance(wanted, tuple) else (wanted,)
            full = tuple(text.format(here=elsewhere, project=folder) for text in texts)
            assert (found if isinstance(found, tuple) else (found,)) == full, key


@pytest.mark.parametrize("named", ["mouse_2", "../mice/DATA/mouse_2", "../mice/DATA/mouse_2/mouse_2.mp4"])
def test_recordings_are_chosen_when_it_is_submitted(recorder, deg, folder, elsewhere, named):
    assert deg("infer", "all", "../mice", "--videos", named, "feature_extractor.weights=latest")[0] == 0
    assert [request.videos for request in requests(folder)] == [("mouse_2",)] * 2


# ---------------------------------------------------------------------------------------------------- refusals


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "models").glob("*launch*")]


def test_a_refusal_in_the_middle_takes_everything_back(recorder, infer, folder):
    recorder.refuse("", "Job violates accounting/QOS policy", "QOSMaxSubmitJobPerUserLimit", from_job=3)
    status, report, _ = infer("all", "inference.units_per_device=1")
    assert status == 3 and "QOSMaxSubmitJobPerUserLimit" in report["error"]
    assert recorder.waiting() == {} and len(recorder.jobs()) == 2 and left(folder) == []
    recorder.refuse_nothing()
    status, report, _ = infer("all", "inference.units_per_device=1")
    assert status == 0 and len(recorder.waiting()) == 4


def test_a_flag_that_the_site_forbids_is_named(recorder, infer, folder):
    recorder.forbid("mem")
    status, report, _ = infer("feature_extractor")
    assert status == 3 and "--mem is not allowed on this cluster" in report["error"] and left(folder) == []
    assert infer("feature_extractor", "cluster.memory_gb=null")[0] == 0


def test_a_mistake_in_the_first_stage_is_told_at_once(recorder, infer, folder):
    status, report, _ = infer("feature_extractor", "feature_extractor.weights=nowhere.pt")
    assert status == 2 and "nowhere.pt" in report["error"]
    assert recorder.jobs() == {} and left(folder) == []


def test_a_missing_image_is_named(recorder, infer, folder, tmp_path):
    status, report, _ = infer("feature_extractor", f"cluster.image={tmp_path / 'deg.sif'}")
    assert status == 2 and str(tmp_path / "deg.sif") in report["error"] and "deg image" in report["error"]
    assert recorder.jobs() == {} and left(folder) == []


def test_without_slurm_nothing_is_written(infer, folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    status, report, _ = infer("feature_extractor")
    assert status == 3 and "login node" in report["error"] and left(folder) == []


def test_the_same_command_again_is_refused_while_jobs_are_alive(recorder, infer, folder):
    infer("feature_extractor")
    before = listed(folder)
    status, report, _ = infer("feature_extractor")
    assert status == 2 and "are running or queued for it" in report["error"]
    assert listed(folder) == before and len(recorder.waiting()) == 2


@pytest.mark.parametrize("on", ["slurm", "local"])
def test_a_training_that_jobs_work_on_is_left_to_them(recorder, deg, tmp_path, on):
    project = make_labelled_project(tmp_path / "mice")
    words = ("train", "flow_generator", project, "compute.devices=1")
    deg(*words)
    status, report, _ = deg(*words, on=on)
    assert status == 2 and "are running or queued for it" in report["error"] and len(recorder.waiting()) == 2


def test_after_the_jobs_are_gone_the_run_is_resumed(recorder, infer, folder):
    infer("feature_extractor", "--run", "first")
    recorder.tell("CANCELLED")
    status, report, said = infer("feature_extractor")
    assert status == 0 and "Resuming the interrupted run first_feature_extractor_inference" in said
    assert [stage["run"] for stage in report["stages"]] == ["first_feature_extractor_inference"]


def test_when_all_is_done_nothing_is_submitted(recorder, deg, folder, infer, monkeypatch, tmp_path):
    scripted_workers(monkeypatch, tmp_path)
    fixed = ("feature_extractor.weights=latest", "inference.devices=1")
    assert deg("infer", "all", folder, *fixed, on="local")[0] == 0
    before = listed(folder)
    status, report, said = infer("all")
    assert status == 0 and report["launch"] is None and "Nothing to do" in said
    assert listed(folder) == before and recorder.jobs() == {}


def test_what_is_done_is_left_out(recorder, deg, folder, infer, monkeypatch, tmp_path):
    scripted_workers(monkeypatch, tmp_path)
    fixed = ("feature_extractor.weights=latest", "inference.devices=1")
    assert deg("infer", "feature_extractor", folder, *fixed, on="local")[0] == 0
    _, report, _ = infer("all")
    assert [stage["stage"] for stage in report["stages"]] == ["infer sequence"]


# ---------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_shows_all_and_writes_nothing(recorder, infer, folder):
    before = listed(folder)
    status, report, said = infer("all", "--dry-run", "cluster.gpus_per_node=1", "cluster.time=2:00:00")
    assert status == 0 and listed(folder) == before and recorder.jobs() == {}
    assert list(report["scripts"]) == [
        "container.sh",
        "infer feature_extractor",
        "merge infer feature_extractor",
        "infer sequence",
        "merge infer sequence",
    ]
    assert f"#SBATCH --array=0-{UNITS - 1}%" in report["scripts"]["infer feature_extractor"]
    assert all("to start at" in words for words in report["test_only"].values()) and len(report["test_only"]) == 4
    elements = sum(stage["elements"] for stage in report["stages"])
    assert report["gpu_hours_at_most"] == pytest.approx(2 * elements)
    assert "exec " in report["scripts"]["container.sh"] and "GPU hours at most" in said


def test_a_dry_run_tells_what_the_scheduler_would_refuse(recorder, infer, folder):
    before = listed(folder)
    recorder.refuse("partition=nowhere", "Invalid partition name specified")
    status, report, _ = infer("feature_extractor", "--dry-run", "cluster.partition=nowhere")
    assert status == 0 and "nvalid partition" in report["test_only"]["infer feature_extractor"]
    assert listed(folder) == before and left(folder) == []


def test_a_dry_run_of_the_chain(recorder, deg, tmp_path):
    project = make_labelled_project(tmp_path / "mice")
    before = listed(project)
    status, report, _ = deg("run", project, "feature_extractor.weights=random", "--dry-run")
    assert status == 0 and len(report["scripts"]) == 1 + 2 * 5
    assert listed(project) == before and recorder.jobs() == {} and left(project) == []
