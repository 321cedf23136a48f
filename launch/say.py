"""What is said to people while work goes on."""

from __future__ import annotations

import sys


def say(message: str = "") -> None:
    """A line for people, on standard error, so that standard output is data only."""
    sys.stderr.write(message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") + "\n")
    sys.stderr.flush()
