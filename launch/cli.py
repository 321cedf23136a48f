"""The command `deg`.

To add a command: write a click command in the module of launch/commands/ for its family, name it in COMMANDS below with
one line of help, import what is heavy inside the function, and show it in README.md or docs/. Tests check that it is
shown there and that `deg --help` stays light.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Sequence

import click

from deg.errors import DegError
from deg.launch.say import say
from deg.version import __version__

COMMANDS = {
    "new": ("deg.launch.commands.project", "Make a new project."),
    "add": ("deg.launch.commands.project", "Add recordings and labels to a project."),
    "check": ("deg.launch.commands.project", "Find faults in a project, and say what to do about them."),
    "train": ("deg.launch.commands.train", "Train one network."),
    "run": ("deg.launch.commands.train", "Do everything that is missing: train, infer, report."),
    "resume": ("deg.launch.commands.train", "Resume what was interrupted."),
    "infer": ("deg.launch.commands.infer", "Compute features and probabilities of every video."),
    "report": ("deg.launch.commands.report", "Write a page that shows training and predictions."),
    "export": ("deg.launch.commands.infer", "Write predictions as CSV or Parquet."),
    "status": ("deg.launch.commands.watch", "Show how far the runs are."),
    "logs": ("deg.launch.commands.watch", "Show what the processes of a run wrote."),
    "why": ("deg.launch.commands.watch", "Say why a run is not done, and what to do."),
    "cancel": ("deg.launch.commands.watch", "Stop what runs or waits."),
    "cluster": ("deg.launch.commands.cluster", "Write, list and show profiles of clusters."),
    "doctor": ("deg.launch.commands.doctor", "Check whether this machine, cluster and image are fit for the work."),
    "image": ("deg.launch.commands.image", "Build, fetch and check the container image."),
    "bench": ("deg.launch.commands.look", "Measure frames per second of each part on this machine."),
    "demo": ("deg.launch.commands.look", "Make a small project and run everything on it."),
}

USAGE, DEFECT = 2, 70


class Commands(click.Group):
    """The commands of `deg`. A command's module is imported only when it is called: `deg --help` imports none."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        return getattr(module, name)  # type: ignore[no-any-return]

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=2)
            advice = f"Did you mean {' or '.join(near)}?" if near else f"The commands are {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {args[0]!r}. {advice}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deg")
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
def main_group(debug: bool) -> None:
    """DeepEthogram at cluster scale: the same projects, weights and numbers, on every GPU.

    A PROJECT is a project folder or its project_config.yaml; options of the configuration follow as key=value
    (docs/options.md). Exit status: 0 all done; 1 done except for some recordings, each named with its reason; 2 usage,
    configuration or input; 3 scheduler or container; 75 stopped by a signal: run it again to resume.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run the command line; every error becomes a message on standard error and an exit status.

    With --json the error is a JSON document on standard output as well, so that a script need not read prose.
    """
    try:
        status = main_group(args=arguments, prog_name="deg", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        _print_error(arguments, error.format_message(), USAGE)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("Stopped.\n")
        return 130
    except SystemExit:  # click's answer to a closed pipe: the reader of our output has gone
        return 0
    except DegError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        say(f"Error: {error}")
        _print_error(arguments, str(error), error.exit_status)
        return error.exit_status
    except OSError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        say(f"Error: the system refused: {error}")
        _print_error(arguments, str(error), USAGE)
        return USAGE
    except Exception:  # noqa: BLE001 - the last line of defence: whatever arrives here is our own mistake
        traceback.print_exc()
        sys.stderr.write("This is a defect of deg, not of your data. Please report it with the lines above.\n")
        return DEFECT


def _print_error(arguments: Sequence[str], message: str, status: int) -> None:
    if "--json" in arguments:
        sys.stdout.write(json.dumps({"error": message, "status": status}) + "\n")


if __name__ == "__main__":
    main()
