"""The command line: one message for each mistake, one document for --json, an exit status that can be relied on."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from scenes.project import make_project

from deg.errors import DegError, LaunchError, VideoError
from deg.launch import cli
from deg.launch.commands.arguments import one_project, split_words
from deg.version import __version__


@pytest.fixture
def raising(monkeypatch):
    """`raising(error)` makes a command that fails so."""

    def make(error):
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def broken(as_json):
            raise error

        from deg.launch.commands import watch

        monkeypatch.setattr(watch, "status", broken)

    return make


def test_help_names_every_command(capsys):
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_every_command_explains_itself_with_an_example(capsys):
    silent = []
    for name in cli.COMMANDS:
        status = cli.run([name, "--help"])
        said = capsys.readouterr()
        if status != 0 or f"Example: deg {name}" not in said.out:
            silent.append(f"deg {name}: status {status}\n{said.out}{said.err}")
    assert not silent, "\n".join(silent)


def test_the_version(capsys):
    assert cli.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_a_command_that_does_not_exist(capsys):
    assert cli.run(["infre"]) == 2
    assert "Did you mean infer?" in capsys.readouterr().err
    assert cli.run(["xyzzy"]) == 2
    assert "The commands are new, add" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DegError("no such thing"), 2),
        (LaunchError("no such thing"), 3),
        (VideoError("a.mp4", "no such thing", "Go."), 2),
    ],
)
def test_a_user_s_mistake_is_a_message_without_traceback(raising, capsys, error, status):
    raising(error)
    assert cli.run(["status"]) == status
    said = capsys.readouterr()
    assert "Error: " in said.err and "no such thing" in said.err and "Traceback" not in said.err
    assert said.out == ""


def test_with_json_the_error_is_one_document_too(raising, capsys):
    raising(LaunchError("no such thing"))
    assert cli.run(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"error": "no such thing", "status": 3}


@pytest.mark.parametrize(
    "words", [["infer", "--json", "--nonsense"], ["infer", "--json"], ["infer", "--json", "a", "b"]]
)
def test_with_json_a_mistake_of_usage_is_one_document_too(words, capsys):
    assert cli.run(words) == 2
    assert json.loads(capsys.readouterr().out)["status"] == 2


def test_what_the_system_refuses_is_said(raising, capsys):
    raising(OSError(28, "No space left on device"))
    assert cli.run(["status", "--json"]) == 2
    said = capsys.readouterr()
    assert "the system refused" in said.err and "No space left" in json.loads(said.out)["error"]


def test_a_name_that_is_not_utf8_can_be_said(raising):
    code = "from deg.launch.cli import run; import sys; sys.exit(run(['status', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, b"/tmp/m\xe4use"], capture_output=True)
    assert done.returncode == 2 and b"Error: " in done.stderr and b"Traceback" not in done.stderr


def test_a_defect_is_called_a_defect_and_shown(raising, capsys):
    raising(KeyError("frames"))
    assert cli.run(["status"]) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said and "defect of deg" in said


def test_debug_shows_where_an_error_comes_from(raising, capsys):
    raising(DegError("no such thing"))
    assert cli.run(["--debug", "status"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_no_error(raising, capsys):
    raising(KeyboardInterrupt())
    assert cli.run(["status"]) == 130
    assert capsys.readouterr().err.strip() == "Stopped."


def test_a_reader_of_the_output_may_go_away():
    command = f"{sys.executable} -m deg.launch.cli --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_words_with_an_equals_sign_are_options_unless_they_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    plain, overrides = split_words(["all", "a=b", "augs.resize=[1,2]", "./x=y", "notes=a=b"])
    assert plain == ["all", "a=b", "./x=y"] and overrides == ["augs.resize=[1,2]", "notes=a=b"]


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_one_project_is_expected(words):
    with pytest.raises(click.UsageError, match="Expected one PROJECT"):
        one_project(words)


def test_an_unknown_option_of_the_configuration_is_a_mistake_of_the_user(tmp_path, capsys):
    folder = make_project(tmp_path / "mice", {"m": 20})
    assert cli.run(["infer", str(folder), "augs.resiez=[1,2]", "--json"]) == 2
    assert "did you mean" in json.loads(capsys.readouterr().out)["error"].lower()
