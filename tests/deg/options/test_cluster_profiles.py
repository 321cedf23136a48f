"""Cluster profiles: how they are named, where they lie, what they override, and how mistakes are reported."""

from __future__ import annotations

import pwd

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deg.configs import cluster_folders, cluster_profile, cluster_profiles, own_cluster_folder
from deg.errors import ConfigError
from deg.options.forms import sbatch_flag, time_limit_minutes
from deg.options.load import as_dict, load_config, restore, to_yaml
from deg.plan.train import SHAPING, SHAPING_COMPUTE


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders of profiles for the test; `places(folder, name, text)` writes a profile into `named`, `own` or `site`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEG_CLUSTERS", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "site"))

    def write(folder, name, text):
        path = tmp_path / folder / ("" if folder == "named" else "deg/clusters") / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(*arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **keywords)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- naming


@pytest.mark.parametrize(
    "words",
    [
        ["cluster=mysite", "cluster.time=8:00:00"],
        ["cluster.time=8:00:00", "cluster=mysite"],
        ["cluster.profile=mysite", "cluster.time=8:00:00"],
    ],
)
def test_a_profile_is_named_beside_options_of_the_cluster(places, words):
    path = places("own", "mysite", "cluster: {partition: gpu, time: '1:00:00', gpu_flag: gres}")
    cluster = load_config(None, words).cluster
    assert (cluster.partition, cluster.gpu_flag, cluster.time) == ("gpu", "gres", "8:00:00")
    assert cluster.profile == str(path)


@pytest.mark.parametrize("text", ["cluster: mysite", "cluster: {profile: mysite}"])
def test_a_profile_is_named_in_a_file(places, tmp_path, text):
    places("own", "mysite", "cluster: {partition: gpu}")
    (tmp_path / "project_config.yaml").write_text(text)
    assert load_config(tmp_path / "project_config.yaml").cluster.partition == "gpu"


def test_the_last_to_name_a_profile_decides(places, tmp_path):
    places("own", "one", "cluster: {partition: one, qos: one}")
    places("own", "two", "cluster: {partition: two}")
    (tmp_path / "project_config.yaml").write_text("cluster: one")
    (tmp_path / "more.yaml").write_text("cluster: two")
    project, more = tmp_path / "project_config.yaml", tmp_path / "more.yaml"
    assert load_config(project, files=[more]).cluster.partition == "two"
    assert load_config(project, files=[more]).cluster.qos is None
    assert load_config(project, ["cluster=one"], files=[more]).cluster.partition == "one"
    assert load_config(project, ["cluster=null"], files=[more]).cluster.profile is None


def test_a_profile_that_nobody_reads_need_not_be_there(places, tmp_path):
    (tmp_path / "project_config.yaml").write_text("cluster: elsewhere")
    assert load_config(tmp_path / "project_config.yaml", ["cluster=null"]).cluster.profile is None


def test_a_path_starts_where_it_is_written(places, tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "site.yaml").write_text("cluster: {partition: lab}")
    (tmp_path / "lab" / "project_config.yaml").write_text("cluster: site.yaml")
    assert load_config(tmp_path / "lab" / "project_config.yaml").cluster.partition == "lab"
    assert load_config(None, ["cluster=lab/site.yaml"]).cluster.partition == "lab"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(None, ["cluster=~/lab/site.yaml"]).cluster.partition == "lab"


def test_a_file_of_any_name_will_do(places, tmp_path):
    (tmp_path / "7").write_text("cluster: {partition: seven}")
    assert load_config(None, ["cluster=7"]).cluster.partition == "seven"


def test_options_of_the_cluster_may_still_be_given_as_a_mapping(places):
    assert load_config(None, ["cluster={partition: gpu}"]).cluster.partition == "gpu"


# ---------------------------------------------------------------------------------------------------- folders


def test_the_first_folder_that_has_the_name_wins(places):
    for folder in ("site", "own", "named"):
        path = places(folder, "mysite", "cluster: {}")
        assert cluster_profiles()["mysite"] == path


def test_the_profiles_of_deg_are_there_and_load(places):
    assert "example" in cluster_profiles()
    for name in cluster_profiles():
        assert load_config(None, [f"cluster={name}"]).cluster.profile


def test_several_folders_may_be_named_and_several_are_the_site_s(tmp_path, monkeypatch):
    monkeypatch.setenv("DEG_CLUSTERS", f"{tmp_path}/a::{tmp_path}/b")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/void")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{tmp_path}/c:{tmp_path}/d")
    assert [str(folder.relative_to(tmp_path)) for folder in cluster_folders()[:-1]] == [
        "a",
        "b",
        ".config/deg/clusters",
        "c/deg/clusters",
        "d/deg/clusters",
    ]


def test_without_variables_the_site_s_folder_is_in_etc(monkeypatch):
    for name in ("DEG_CLUSTERS", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.delenv(name, raising=False)
    assert "/etc/xdg/deg/clusters" in map(str, cluster_folders())


def test_without_a_home_the_other_folders_remain(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert all(folder.is_absolute() for folder in cluster_folders())
    with pytest.raises(ConfigError, match="Neither HOME nor XDG_CONFIG_HOME"):
        own_cluster_folder()


def test_an_unknown_name_is_answered_with_near_ones_and_the_folders(places, tmp_path):
    places("own", "mysite", "cluster: {}")
    answer = message(None, ["cluster=mysit"])
    assert "Did you mean mysite?" in answer and "Found: example, mysite." in answer
    assert all(str(tmp_path / folder) in answer for folder in ("named", "own", "site"))
    assert "deg cluster init" in answer and "cluster=null" in answer


def test_a_file_that_is_not_there_is_answered_with_its_path(places, tmp_path):
    assert str(tmp_path / "no" / "site.yaml") in message(None, ["cluster=no/site.yaml"])
    with pytest.raises(ConfigError, match="there is no file"):
        cluster_profile("~nobody-of-this-name/site.yaml", tmp_path)


# ---------------------------------------------------------------------------------------------------- what it holds


def test_a_profile_wins_over_preset_and_stage_and_loses_to_the_project(places, tmp_path):
    places("own", "mysite", "compute: {num_workers: 3, max_batch_size: 99}\nfeature_extractor: {arch: resnet34}\n")
    (tmp_path / "project_config.yaml").write_text("preset: deg_m\ncompute: {num_workers: 5}\n")
    config = load_config(tmp_path / "project_config.yaml", ["cluster=mysite"], stage="sequence")
    assert (config.compute.max_batch_size, config.compute.num_workers) == (99, 5)
    assert (config.feature_extractor.arch, config.flow_generator.arch) == ("resnet34", "MotionNet")


def test_null_removes_an_option_of_the_profile(places):
    places("own", "mysite", "cluster: {memory_gb: 64, cpus_per_task: 8, time: '1:00:00', qos: long}")
    cluster = load_config(
        None,
        ["cluster=mysite", *(f"cluster.{name}=null" for name in ("memory_gb", "cpus_per_task", "time", "qos"))],
    ).cluster
    assert (cluster.memory_gb, cluster.cpus_per_task, cluster.time, cluster.qos) == (None, None, None, None)


@pytest.mark.parametrize("text", ["cluster: other", "cluster: {profile: other}"])
def test_a_profile_cannot_name_another(places, text):
    path = places("own", "mysite", text)
    answer = message(None, ["cluster=mysite"])
    assert str(path) in answer and "cannot name another one" in answer


def test_a_mistake_in_a_profile_is_answered_with_its_file(places):
    path = places("own", "mysite", "partition: gpu")
    assert message(None, ["cluster=mysite"]) == (
        f"partition, in {path}: there is no such option. Did you mean cluster.partition?"
    )
    path = places("own", "mysite", "cluster: {gpu_flag: gpu}")
    assert f"cluster.gpu_flag = gpu, in {path}: expected gpus_per_node, gres or gpus." in message(
        None, ["cluster=mysite"]
    )


NONSENSE = {
    b"cluster:\n  partition: gpu\n time: 1\n": "line 3",
    b"cluster: [partition\n": "not valid YAML",
    b"- partition\n": "expected `key: value` lines",
    b"\x7fELF\x02\x01\x01\x00\xff": "not UTF-8 text",
    b"cluster: {partition: gpu\x00}\n": "not valid YAML",
    b"cluster: {profile: site}\n": "cannot name another one",
    b"cluster: {partiton: gpu}\n": "Did you mean cluster.partition",
    b"partition: gpu\n": "Did you mean cluster.partition?",
    b"cluster: {time: 4 hours}\n": "expected a time limit",
    b"cluster: {memory_gb: 32G}\n": "cluster.memory_gb = 32G",
    b"cluster: {gpus_per_node: a100:2}\n": "expected a whole number or null",
    b"cluster: {gpu_flag: null}\n": "expected gpus_per_node, gres or gpus",
    b"cluster: {modules: apptainer}\n": "expected a list of texts",
    b"cluster: {requeue: 1}\n": "expected true or false",
    b"cluster: {sbatch: [--mem=0]}\n": "without their dashes",
    b"cluster: {sbatch: [mail-type: END]}\n": "expected a list of texts",
    b"cluster: {setup: ['export X=${HOME}']}\n": "a reference ${...} that cannot be resolved",
    b"!!python/object/apply:os.system ['true']\n": "not valid YAML",
}
"""Profiles, and the messages about them."""


def test_nonsense_in_a_profile_is_answered_with_what_is_wrong(places):
    path = places("own", "site", "")
    answers = {}
    for content in NONSENSE:
        path.write_bytes(content)
        answers[content] = message(None, ["cluster=site"])
    wrong = [f"{content!r}: {answer}" for content, answer in answers.items() if NONSENSE[content] not in answer]
    assert not wrong, "\n".join(wrong)


def test_a_profile_that_is_not_there_is_answered_with_its_name_and_a_remedy(places):
    places("named", "site", "cluster: {}")
    names = ("", "sites", "../named/no.yaml", "named", "no.yaml", "~nobody/x.yaml")
    answers = {name: message(None, [f"cluster={name}" if name else "cluster=''"]) for name in names}
    wrong = [
        f"{name!r}: {answer}"
        for name, answer in answers.items()
        if f"cluster = {name!r}: " not in answer or "deg cluster init" not in answer
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone.yaml")])
def test_a_profile_that_is_no_file_is_named(places, make):
    path = places("named", "site", "")
    path.unlink()
    make(path)
    assert "site.yaml: cannot be read" in message(None, ["cluster=site"])


# ---------------------------------------------------------------------------------------------------- forms


TIME_LIMITS = {
    "90": 90,
    "90:30": 90.5,
    "1:30:00": 90,
    "01:30:30": 90.5,
    "0-1": 60,
    "2-12": 3600,
    "1-00:30": 1470,
    "1-2:3:30": 1563.5,
    "120:00:00": 7200,
    "0:30": 0.5,
}
"""Time limits as text, and their minutes."""


def test_time_limits_are_read_as_slurm_does():
    found = {text: (time_limit_minutes(text), load_config(None, [f"cluster.time={text}"])) for text in TIME_LIMITS}
    wrong = [
        f"{text}: {minutes} minutes, {config.cluster.time}"
        for text, (minutes, config) in found.items()
        if minutes != TIME_LIMITS[text] or config.cluster.time != text
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("text", ["", "0", "0:00", "-5", "1:2:3:4", "1-", "4h", "1.5", "UNLIMITED", "soon", "\u0663"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(ValueError, match="a time limit as Slurm reads it"):
        time_limit_minutes(text)


@pytest.mark.parametrize("key", ["time", "merge_time"])
def test_a_wrong_time_limit_is_a_mistake_of_the_configuration(key):
    assert f"cluster.{key} = 4h, on the command line: expected a time limit" in message(None, [f"cluster.{key}=4h"])


def test_hours_and_minutes_in_a_file_are_not_a_number_of_seconds(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("cluster: {time: 8:00:00, merge_time: 10:00}")
    cluster = load_config(None, [f"cluster={path}"]).cluster
    assert (cluster.time, cluster.merge_time) == ("8:00:00", "10:00")


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("mail-type=END", ("mail-type", "END")),
        ("comment=a=b c", ("comment", "a=b c")),
        ("mem=null", ("mem", None)),
        ("exclusive", ("exclusive", "")),
    ],
)
def test_flags_of_sbatch(text, flag):
    assert sbatch_flag(text) == flag
    assert load_config(None, [f"cluster.sbatch=['{text}']"]).cluster.sbatch == (text,)


@pytest.mark.parametrize("text", ["--mem=3", "=3", "mem=", "a b=c", "mem=1\nrm -rf x", ""])
def test_what_is_no_flag_of_sbatch_is_refused(text):
    with pytest.raises(ValueError, match="without their dashes"):
        sbatch_flag(text)


def test_a_wrong_flag_is_picked_out_of_the_list():
    answer = message(None, ["cluster.sbatch=[exclusive, --mem=3]"])
    assert "cluster.sbatch = [exclusive, --mem=3], on the command line" in answer and "'--mem=3' is not one" in answer


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_every_way_of_writing_a_time_limit_means_the_same(days, hours, minutes, seconds):
    total = days * 1440 + hours * 60 + minutes + seconds / 60
    for text in (
        f"{days}-{hours}:{minutes}:{seconds}",
        f"{days * 24 + hours}:{minutes:02d}:{seconds:02d}",
        f"{days * 1440 + hours * 60 + minutes}:{seconds}",
    ):
        assert time_limit_minutes(text) == pytest.approx(total)


# ---------------------------------------------------------------------------------------------------- what it leaves


def test_a_stored_configuration_comes_back_without_its_profile(places):
    path = places("own", "mysite", "cluster: {partition: gpu, time: 2-00:00:00, sbatch: [mem=null]}")
    config = load_config(None, ["cluster=mysite"])
    path.unlink()
    assert restore(yaml.safe_load(to_yaml(config))) == config
    assert config.cluster.sbatch == ("mem=null",)


def test_the_cluster_does_not_shape_what_is_trained():
    shaping = {section for sections in SHAPING.values() for section in sections}
    assert "cluster" not in shaping and not set(as_dict(load_config(None).cluster)) & set(SHAPING_COMPUTE)
