"""Messages to people during the work."""

from __future__ import annotations

import sys


def say(message: str = "") -> None:
    """Write a line for people to standard error, so that standard output holds data only."""
    sys.stderr.write(message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") + "\n")
    sys.stderr.flush()
