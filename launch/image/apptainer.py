"""Run Apptainer through spython, with a time limit and with errors that say what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deg.errors import LaunchError

TIMED_OUT = 124
"""Exit status of `timeout`."""

Tell = Callable[[str], None]


def client(program: str, seconds: int, *, merged: bool = False, environment: Mapping[str, str] | None = None) -> Any:
    """Return spython's client for a program; its commands are ended after `seconds`.

    With `merged`, errors come with the output. spython itself has no time limit and knows the program only by the name
    `singularity`. LaunchError if there is no such program.
    """
    if shutil.which(program) is None:
        raise LaunchError(
            f"Expected the program {program}, found none on this machine. Load its module (often `module load "
            "apptainer`), name it with --apptainer, or work on a machine that has it."
        )
    from spython.main import get_client

    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    command = ["env", *variables, "timeout", "--foreground", "--kill-after=10", str(seconds), program]
    if merged:
        command = ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]
    made = get_client(quiet=True)
    made._init_command = lambda action, flags=None: [*command, *(flags or ()), action]
    return made


def follow(lines: Iterable[str], tell: Tell, doing: str) -> None:
    """Pass on what a command says while it runs. LaunchError with its last lines if it fails."""
    last: list[str] = []
    try:
        for line in lines:
            tell(line.rstrip("\n"))
            last = [*last[-9:], line.rstrip("\n")]
    except subprocess.CalledProcessError as error:
        raise failure(doing, error.returncode, "\n".join(last)) from None


def ask(client: Any, action: str, *words: str) -> tuple[int, str]:
    """Run a command; return its exit status and all that it said."""
    done = client._run_command([*client._init_command(action), *words], quiet=True, return_result=True)
    said = done["message"] if isinstance(done["message"], str) else "".join(done["message"])
    return done["return_code"], said


def failure(doing: str, status: int, said: str) -> LaunchError:
    """Return the error for a command that failed, with advice."""
    hint = ""
    if status == TIMED_OUT:
        hint = "\nIt took too long and was ended."
    elif "Requesting capability" in said:
        hint = (
            "\nThis machine withholds capabilities from root. Build as an ordinary user, or as root of a user "
            "namespace, where --base must be a folder or an image file."
        )
    elif "No space left" in said:
        hint = "\nThe disk is full: set APPTAINER_TMPDIR to a folder with more space."
    return LaunchError(f"{doing} failed with exit status {status}:\n{said}{hint}")
