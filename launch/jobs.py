"""Answers jobs that an earlier version of deg submitted: their files name the function below."""

from __future__ import annotations

import sys

from deg.launch.say import say


def work(*words: str) -> None:
    """Say what to do, and end the job."""
    say(
        "Error: another version of deg submitted this job. End its launch with `deg cancel`, then give the command "
        "again that submitted it: what is done stays done."
    )
    sys.exit(2)
