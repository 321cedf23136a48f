"""The answer to jobs that an earlier version of deg submitted: their files name the function below."""

from __future__ import annotations

import sys

from deg.launch.say import say


def work(*words: str) -> None:
    """Say what to do, and end the job."""
    say(
        "Error: another version of deg submitted this job. Stop its launch with `deg cancel`, then repeat the command "
        "that submitted it. Finished work is kept."
    )
    sys.exit(2)
