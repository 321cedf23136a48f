"""Options: where they come from, which one wins, and how mistakes are reported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deg.errors import ConfigError
from deg.options.load import (
    as_dict,
    load_config,
    options,
    overlay,
    parse_overrides,
    read_run_config,
    restore,
    sections,
    to_yaml,
)
from deg.options.page import options_markdown
from deg.options.schema import Config, FeatureExtractor, Sequence
from deg.options.stages import STAGE_DEFAULTS, WITHOUT_EFFECT

DOCS = Path(__file__).parents[3] / "docs" / "options.md"


@pytest.fixture
def project_file(tmp_path):
    """`project_file("preset: deg_m")` writes a project_config.yaml and returns its path."""

    def write(text: str, name: str = "project_config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(*arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **keywords)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- defaults


def test_without_any_file_the_defaults_are_the_originals():
    config = load_config(None)
    assert config == Config()
    assert (config.train.lr, config.train.loss_weight_exp, config.compute.batch_size) == (1e-4, 0.25, "auto")
    assert (config.flow_generator.weights, config.feature_extractor.weights, config.sequence.weights) == (
        "pretrained",
        "pretrained",
        None,
    )


@pytest.mark.parametrize(
    ("stage", "epochs", "patience", "style", "alpha", "max_batch"),
    [
        ("flow_generator", 10, 3, "l2_sp", 1e-5, 512),
        ("feature_extractor", 20, 3, "l2_sp", 1e-5, 512),
        ("sequence", 100, 5, "l2", 0.01, 64),
    ],
)
def test_each_stage_trains_as_the_originals_command_does(stage, epochs, patience, style, alpha, max_batch):
    config = load_config(None, stage=stage)
    assert (config.train.num_epochs, config.train.patience) == (epochs, patience)
    assert config.train.steps_per_epoch.train == 1000
    assert (config.train.regularization.style, config.train.regularization.alpha) == (style, alpha)
    assert config.compute.max_batch_size == max_batch


@pytest.mark.parametrize(
    ("stage", "val_steps"), [("flow_generator", 200), ("feature_extractor", None), ("sequence", None)]
)
def test_behaviours_are_judged_on_the_whole_of_validation_and_test(stage, val_steps):
    steps = load_config(None, stage=stage).train.steps_per_epoch
    assert (steps.val, steps.test) == (val_steps, None)


def test_a_stored_configuration_comes_back_equal():
    config = load_config(None, ["train.lr=0.01", "augs.resize=[32, 48]"], stage="sequence")
    assert restore(json.loads(json.dumps(as_dict(config)))) == config


def test_inference_by_default_asks_for_the_flow_generator_of_the_training_run():
    assert load_config(None, stage="inference").flow_generator.weights is None


def test_every_option_is_explained():
    wordless = [option.key for option in options() if not option.doc.endswith(".")]
    assert not wordless, "\n".join(wordless)


def test_every_default_is_allowed_and_stays_as_it_is():
    wrong = []
    for option in options():
        try:
            value = load_config(None, [f"{option.key}={json.dumps(option.default)}"])
        except ConfigError as error:
            wrong.append(str(error))
            continue
        for part in option.key.split("."):
            value = getattr(value, part)
        if value != option.default:
            wrong.append(f"{option.key}: {option.default!r} becomes {value!r}")
    assert not wrong, "\n".join(wrong)


def test_importing_the_options_brings_in_nothing_heavy():
    heavy = "{'torch', 'pandas', 'cv2', 'h5py', 'numpy'}"
    script = f"import sys, deg.options.schema, deg.options.load; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------- order


def test_the_project_file_wins_over_its_own_preset(project_file):
    path = project_file("preset: deg_m\nfeature_extractor: {arch: resnet18}\n")
    config = load_config(path)
    assert (config.feature_extractor.arch, config.flow_generator.arch) == ("resnet18", "MotionNet")


def test_a_preset_on_the_command_line_wins_over_the_project_file(project_file):
    path = project_file("preset: deg_m\nfeature_extractor: {arch: resnet18, dropout_p: 0.4}\n")
    config = load_config(path, ["preset=deg_s"])
    assert config.preset == "deg_s"
    assert (config.feature_extractor.arch, config.feature_extractor.n_rgb) == ("resnet3d_34", 11)
    assert (config.flow_generator.arch, config.feature_extractor.dropout_p) == ("TinyMotionNet3D", 0.4)


def test_an_option_on_the_command_line_wins_over_a_preset_there():
    assert load_config(None, ["feature_extractor.arch=resnet18", "preset=deg_s"]).feature_extractor.arch == "resnet18"


def test_stage_profile_project_file_and_command_line_win_in_that_order(project_file):
    profile = project_file("train: {num_epochs: 2, patience: 2, lr: 2e-3, min_lr: 2e-7}\n", "site.yaml")
    project = project_file("train: {patience: 3, lr: 3e-3, min_lr: 3e-7}\n")
    extra = project_file("train: {lr: 4e-3, min_lr: 4e-7}\n", "extra.yaml")
    overrides = ["train.min_lr=5e-7", f"cluster={profile}"]
    train = load_config(project, overrides, stage="flow_generator", files=[extra]).train
    assert (train.steps_per_epoch.val, train.num_epochs, train.patience) == (200, 2, 3)
    assert (train.lr, train.min_lr) == (4e-3, 5e-7)


def test_lists_are_replaced_whole(project_file):
    path = project_file("train: {milestones: [1, 2, 3]}")
    assert load_config(path, ["train.milestones=[7]"]).train.milestones == (7,)


def test_an_option_may_refer_to_another(project_file):
    path = project_file("project: {name: mice}\nnotes: ${project.name}_2\n")
    assert load_config(path).notes == "mice_2"


def test_a_section_with_all_its_lines_commented_out_changes_nothing(project_file):
    assert load_config(project_file("train:\n  # lr: 3\naugs: {}\n")) == Config()


# --------------------------------------------------------------------------------------- the original's files


def test_a_project_file_of_the_original_means_what_it_meant(shared_data):
    config = load_config(shared_data("data/deg_project_original") / "project_config.yaml")
    assert config.project.class_names == ("background", "move_right", "spin", "jump")
    assert (config.augs.resize, config.augs.normalization.N) == ((96, 128), 117)
    assert config.augs.normalization.std == (0.058467253564340925, 0.0597550232067062, 0.06030847515384179)
    assert (config.preset, config.compute.batch_size, config.train.loss_weight_exp) == ("deg_f", 8, 1.0)


def test_keys_without_effect_are_collected_not_refused(project_file):
    path = project_file("augs: {random_resize: true}\ngui: {cmap: deepethogram}\nfeature_extractor: {n_flow: 10}\n")
    config = load_config(path, ["compute.dali=true"])
    assert config.ignored == ("augs.random_resize", "compute.dali", "feature_extractor.n_flow", "gui")
    assert dataclasses.replace(config, ignored=()) == Config()


def test_no_key_is_both_an_option_and_without_effect():
    assert not {option.key for option in options()} & set(WITHOUT_EFFECT)
    assert not set(sections()) & set(WITHOUT_EFFECT)


def test_every_config_of_the_originals_runs_is_accepted(shared_data):
    runs = sorted((shared_data("data/deg_project_original") / "models").rglob("config.yaml"))
    assert len(runs) == 7
    for path in runs:
        assert "run" in load_config(None, files=[path]).ignored


def test_the_section_of_a_training_run_is_laid_over_the_current_one(shared_data):
    folder = shared_data("data/deg_project_original") / "models" / "261122_064227_sequence_train"
    current = Sequence(weights="latest", output_name="mine", sequence_length=180)
    stored = read_run_config(folder / "config.yaml")["sequence"]
    assert overlay(current, stored, keep=("weights", "output_name")) == dataclasses.replace(current, sequence_length=90)


def test_laying_over_passes_unknown_keys_and_names_a_value_that_deg_cannot_use():
    assert overlay(FeatureExtractor(), {"inputs": "both", "n_rgb": 3}) == FeatureExtractor(n_rgb=3)
    with pytest.raises(
        ConfigError, match=r"feature_extractor\.arch = alexnet, in the run's config\.yaml: expected res"
    ):
        overlay(FeatureExtractor(), {"arch": "alexnet"})


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr=fast", "train.lr = fast, on the command line: expected a number or auto."),
        ("train.lr=-1", "train.lr = -1, on the command line: expected a number or auto, more than 0."),
        ("train.num_epochs=2.5", "train.num_epochs = 2.5, on the command line: expected a whole number."),
        ("augs.LR=3", "augs.LR = 3, on the command line: expected a number, at least 0, at most 1."),
        ("augs.resize=[1, 2, 3]", "expected a whole number, a list of 2 whole numbers or null."),
        ("augs.resize=[0, 224]", "augs.resize = [0, 224], on the command line:"),
        ("augs.normalization.std=[0, 1, 1]", "expected a list of 3 numbers, more than 0."),
        ("sequence.arch=tgmm", "expected tgmj, tgm, linear, conv_nonlinear, rnn, mlp or tcn."),
        ("inference.precision=16", "expected auto, fp32, bf16 or fp16."),
        ("compute.num_workers=true", "compute.num_workers = true, on the command line: expected a whole number."),
        ("compute.fp16=1", "expected true or false."),
        ("train.min_lr=.nan", "expected a number."),
        ("train=4", "train = 4, on the command line: expected options of their own, such as train.lr,"),
        ("project.name=yes", "put it in quotes"),
        ("preset=deg_x", "Choose one of deg_f, deg_m, deg_s."),
        ("compute.min_batch_size=600", "is more than compute.max_batch_size = 512. Lower the first"),
        ("notes=${project.nam}", "notes: a reference ${...} that cannot be resolved"),
        ("train.lr", "expected key=value"),
        ("--lr=3", "expected key=value"),
        ("augs.resize=[1,", "not valid YAML"),
    ],
)
def test_a_mistake_is_answered_with_the_key_the_value_and_what_is_allowed(override, expected):
    assert expected in message(None, [override])


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("train.num_epoch", "train.num_epochs"),
        ("tran.lr", "train.lr"),
        ("augs.lr", "augs.LR"),
        ("augs.ud", "augs.UD"),
        ("num_epochs", "train.num_epochs"),
        ("train.steps_per_epoch.trian", "train.steps_per_epoch.train"),
        ("arch", "flow_generator.arch or feature_extractor.arch or sequence.arch"),
    ],
)
def test_an_unknown_key_is_answered_with_what_may_have_been_meant(wrong, meant):
    assert message(None, [f"{wrong}=1"]) == (
        f"{wrong}, on the command line: there is no such option. Did you mean {meant}?"
    )


def test_reload_weights_of_the_old_documentation_is_answered_with_the_keys_that_work():
    assert "sequence.weights" in message(None, ["reload.weights=/x.ckpt"])


def test_a_mistake_in_a_file_is_answered_with_the_file(project_file):
    path = project_file("train:\n  lr: fast\n")
    assert message(path) == f"train.lr = fast, in {path}: expected a number or auto."


def test_a_mistake_that_a_later_file_hides_is_found_all_the_same(project_file):
    assert "train.lr = fast" in message(project_file("train: {lr: fast}"), ["train.lr=1e-3"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"train:\n  lr: 1\n augs: 2\n", "line 3"),
        (b"train: [1\n", "not valid YAML"),
        (b"- a\n- b\n", "expected `key: value` lines, found a list"),
        (b"project: {name: m\xfcller}\n", "not UTF-8 text"),
        (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
    ids=["indentation", "bracket", "list", "latin-1", "code"],
)
def test_a_broken_file_is_answered_with_its_name_and_the_fault(tmp_path, content, expected):
    path = tmp_path / "project_config.yaml"
    path.write_bytes(content)
    answer = message(path)
    assert str(path) in answer
    assert expected in answer


def test_a_missing_file_is_a_mistake_and_an_empty_one_is_not(tmp_path, project_file):
    assert "No such file" in message(tmp_path / "absent.yaml")
    assert load_config(project_file("")) == Config()


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("null", None),
        ("true", True),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("'quoted'", "quoted"),
        ("/data/a=b #3/x.ckpt", "/data/a=b #3/x.ckpt"),
        ("2026-11-22", "2026-11-22"),
    ],
)
def test_values_on_the_command_line_are_yaml_but_text_stays_as_typed(text, value):
    assert parse_overrides([f"a.b={text}"]) == {"a": {"b": value}}


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(),
        st.booleans(),
        st.none(),
        st.lists(st.integers(), max_size=3),
    )
)
def test_what_yaml_writes_the_command_line_reads(value):
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    assert parse_overrides([f"x={text}"]) == {"x": value}


def test_a_whole_number_may_be_written_as_a_float_and_a_name_as_a_number():
    config = load_config(None, ["train.num_epochs=1e2", "notes=12"])
    assert (config.train.num_epochs, config.notes) == (100, "12")
    assert isinstance(config.train.num_epochs, int)


def test_one_directory_may_stand_alone():
    config = load_config(None, ["inference.directory_list=/data/mouse 1"])
    assert config.inference.directory_list == "/data/mouse 1"


# ---------------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("stage", [None, *STAGE_DEFAULTS])
def test_a_written_config_is_complete_and_reads_back_the_same(project_file, stage):
    config = load_config(None, ["preset=deg_s", "augs.resize=[96, 128]", "project.class_names=[background, 'no']"])
    config = load_config(project_file(to_yaml(config)), stage=stage)
    assert load_config(project_file(to_yaml(config))) == config


def test_a_written_config_has_the_keys_that_the_gui_reads():
    written = yaml.safe_load(to_yaml(Config()))
    assert {"latent_name", "output_name", "arch"} <= set(written["sequence"])
    assert written["feature_extractor"]["arch"] == "resnet18"
    assert "ignored" not in written


def test_the_page_of_options_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == options_markdown(), (
        "docs/options.md is stale: run `python -m deg.options.page > docs/options.md`"
    )
