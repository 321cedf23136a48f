"""A project opens unchanged, wherever it was moved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from deg.errors import ProjectError
from deg.options.load import load_config
from deg.projects.project import create_project, open_project, read_split, write_split


@pytest.fixture
def project(tmp_path):
    return create_project(tmp_path / "lab_deepethogram", ["groom", "rear"])


def rewrite(project, /, **sections) -> Path:
    """Change the project file as a person would with an editor."""
    content = yaml.safe_load(project.config_file.read_text())
    for name, changes in sections.items():
        content[name] = content.get(name, {}) | changes if isinstance(changes, dict) else changes
    project.config_file.write_text(yaml.safe_dump(content))
    return project.config_file


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- opening


def test_the_original_project_opens_by_folder_and_by_file(shared_data):
    folder = shared_data("data/deg_project_original")
    for path in (folder, str(folder), folder / "project_config.yaml"):
        project = open_project(path)
        assert project.path == folder
        assert project.class_names == ("background", "move_right", "spin", "jump")
        assert list(project.records) == ["field_1", "field_2", "field_3", "field_4"]
        assert project.records["field_4"].labels is None
        assert project.model_path == folder / "models"
        assert project.pretrained_path == folder / "models/pretrained_models"
        assert project.normalization.N == 117
        assert project.split_file() == folder / "DATA/split.yaml"


def test_opening_writes_nothing(shared_data, tmp_path):
    shutil.copytree(
        shared_data("data/deg_project_original"), tmp_path / "moved", ignore=shutil.ignore_patterns("*.mp4")
    )
    before = tree(tmp_path)
    open_project(tmp_path / "moved")
    assert tree(tmp_path) == before


def test_a_relative_path_is_made_absolute(project, monkeypatch):
    monkeypatch.chdir(project.path.parent)
    assert open_project("lab_deepethogram").path == project.path


def test_project_yaml_takes_precedence_over_project_config_yaml(project):
    content = yaml.safe_load(project.config_file.read_text())
    content["project"]["class_names"] = ["background", "sniff"]
    (project.path / "project.yaml").write_text(yaml.safe_dump(content))
    assert open_project(project.path).class_names == ("background", "sniff")
    assert open_project(project.config_file).class_names == ("background", "groom", "rear")


@pytest.mark.parametrize(
    ("stale", "data_path"),
    [
        ("/gone/lab", "DATA"),
        ("/gone/lab", "/gone/lab/DATA"),
        ("/gone/lab", "/elsewhere/DATA"),
        ("C:\\Users\\me\\lab", "DATA\\"),
        ("C:\\Users\\me\\lab", "C:\\Users\\me\\lab\\DATA"),
        ("C:/Users/me/lab", "C:/Users/me/lab/DATA"),
        ("C:\\Users\\me\\lab", "c:\\users\\ME\\lab\\DATA"),
        (None, "\\\\server\\share\\lab\\DATA"),
        (None, None),
    ],
)
def test_paths_of_another_machine(project, stale, data_path):
    rewrite(project, project={"path": stale, "data_path": data_path})
    assert open_project(project.path).data_path == project.path / "DATA"


def test_data_may_lie_elsewhere(project, tmp_path):
    (tmp_path / "big_disk").mkdir()
    rewrite(project, project={"data_path": str(tmp_path / "big_disk")})
    assert open_project(project.path).data_path == tmp_path / "big_disk"


def test_a_copied_project_does_not_reach_into_the_one_it_was_copied_from(project, tmp_path):
    rewrite(project, project={"data_path": str(project.data_path)})
    shutil.copytree(project.path, tmp_path / "copy")
    assert open_project(tmp_path / "copy").data_path == tmp_path / "copy/DATA"


def test_a_new_project_has_a_folder_for_downloaded_weights(project):
    """DeepEthogram refuses to infer in a project without that folder."""
    assert project.pretrained_path == project.path / "models/pretrained_models"


def test_downloaded_weights_are_looked_for_and_may_be_missing(project):
    (project.path / "models/pretrained_models").rmdir()
    assert open_project(project.path).pretrained_path is None
    (project.path / "pretrained_models").mkdir()
    assert open_project(project.path).pretrained_path == project.path / "pretrained_models"
    (project.path / "models/pretrained_models").mkdir()
    assert open_project(project.path).pretrained_path == project.path / "models/pretrained_models"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("project:\n  class_names: [background\nx: 1\n", ["line 3"]),
        ("a: b: c\n", ["line 1"]),
        ("", ["expected a section `project`, found none"]),
        ("- 1\n", ["found a list"]),
        ("augs: {}\n", ["section `project`"]),
        ("project: {}\n", ["class_names", "found None"]),
        ("project: {class_names: []}\n", ["class_names"]),
        ("project: {class_names: [groom, background]}\n", ["`background` first"]),
        ("project: {class_names: [background, groom, groom]}\n", ["groom occurs more than once"]),
        ("project: {class_names: [background, yes]}\n", ["found True", "quotes"]),
        ("project: {class_names: [background], data_path: gone}\n", ["gone", "data_path"]),
        ("project: !!python/object/apply:os.system [echo]\n", ["line 1"]),
    ],
)
def test_a_broken_project_file_is_refused_with_the_reason(project, content, words):
    project.config_file.write_text(content)
    with pytest.raises(ProjectError) as error:
        open_project(project.path)
    assert "project_config.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_project_file_that_is_no_text_is_refused(project):
    project.config_file.write_bytes(b"project: \xff\xfe")
    with pytest.raises(ProjectError, match="not UTF-8"):
        open_project(project.path)


def test_what_is_no_project_is_refused(project, tmp_path):
    with pytest.raises(ProjectError, match="nothing is there"):
        open_project(tmp_path / "gone")
    with pytest.raises(ProjectError, match="Make a project with `deg new`"):
        open_project(tmp_path)
    with pytest.raises(ProjectError, match=r"Did you mean .*lab_deepethogram"):
        open_project(project.data_path)


# ---- making


def test_a_new_project_has_the_layout_of_the_original(tmp_path):
    project = create_project(tmp_path / "a/lab_deepethogram", ["groom", "background", " rear "])
    assert project.class_names == ("background", "groom", "rear")
    content = yaml.safe_load(project.config_file.read_text())
    assert content["project"] == {
        "class_names": ["background", "groom", "rear"],
        "config_file": "project_config.yaml",
        "data_path": "DATA",
        "labeler": None,
        "model_path": "models",
        "name": "lab",
        "path": str(tmp_path / "a/lab_deepethogram"),
        "pretrained_path": "pretrained_models",
    }
    assert content["augs"]["normalization"] == {"N": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert content["train"]["loss_weight_exp"] == 1.0
    assert list(content) == sorted(content)
    assert project.data_path.is_dir() and project.model_path.is_dir()
    assert load_config(project.config_file).project.class_names == ("background", "groom", "rear")


@pytest.mark.parametrize(
    ("behaviors", "word"),
    [([], "at least one"), (["background"], "at least one"), (["a", "a"], "once"), ([""], "at least one")],
)
def test_behaviours_that_are_not_allowed(tmp_path, behaviors, word):
    with pytest.raises(ProjectError, match=word):
        create_project(tmp_path / "lab", behaviors)
    assert not (tmp_path / "lab").exists()


def test_an_existing_project_is_left_alone(project):
    before = tree(project.path)
    with pytest.raises(ProjectError, match="already holds a project"):
        create_project(project.path, ["sniff"])
    assert tree(project.path) == before


# ---- splits


def test_a_split_file_is_read_and_written_as_the_original_does(shared_data, tmp_path):
    original = shared_data("data/deg_project_original") / "DATA/split.yaml"
    parts, fractions = read_split(original)
    assert parts == {"train": ["field_4", "field_3", "field_1"], "val": ["field_2"], "test": []}
    assert fractions == (0.8, 0.2, 0.0)
    write_split(tmp_path / "split.yaml", parts, fractions)
    assert (tmp_path / "split.yaml").read_bytes() == original.read_bytes()


def test_names_that_are_not_utf8_survive(tmp_path):
    parts = {"train": [os.fsdecode(b"mouse_\xff")], "val": ["größe"], "test": []}
    write_split(tmp_path / "split.yaml", parts, (0.8, 0.2, 0))
    assert read_split(tmp_path / "split.yaml") == (parts, (0.8, 0.2, 0.0))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("train: [0012, 3]\n", "quotes"),
        ("train: mouse\n", "expected a list"),
        ("metadata: {split: [0.5]}\n", "three shares"),
        ("metadata: {split: [-1, 1, 1]}\n", "three shares"),
        ("train: [\n", "line"),
    ],
)
def test_a_broken_split_file_is_refused(tmp_path, content, word):
    (tmp_path / "split.yaml").write_text(content)
    with pytest.raises(ProjectError, match=word):
        read_split(tmp_path / "split.yaml")


def test_a_split_file_without_shares(tmp_path):
    (tmp_path / "split.yaml").write_text("train: [a]\n")
    assert read_split(tmp_path / "split.yaml") == ({"train": ["a"], "val": [], "test": []}, None)


def test_a_split_file_may_be_named(project):
    assert project.split_file("my.yaml") == project.path / "my.yaml"
    assert project.split_file("/data/my.yaml") == Path("/data/my.yaml")


# ---- adding


def test_a_project_whose_own_path_is_not_utf8_opens(tmp_path):
    """The YAML has its path with an escape that the fast YAML library refuses."""
    folder = tmp_path / os.fsdecode(b"lab_\xff")
    (folder / "DATA").mkdir(parents=True)
    content = {"project": {"path": str(folder), "class_names": ["background", "groom"]}, "augs": {}}
    (folder / "project_config.yaml").write_text(yaml.safe_dump(content))
    assert open_project(folder).class_names == ("background", "groom")
    assert load_config(folder / "project_config.yaml").project.class_names == ("background", "groom")
