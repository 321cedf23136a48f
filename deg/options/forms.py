"""Parse texts that must have a certain form: time limits and flags, as Slurm's sbatch reads them.

Each function returns what the text means, or raises ValueError with the words that complete "expected ...".
"""

from __future__ import annotations

import re

_TIME_LIMIT = re.compile(
    r"(?P<days>[0-9]+)-(?P<hours>[0-9]+)(:(?P<minutes>[0-9]+)(:(?P<seconds>[0-9]+))?)?"
    r"|(?P<h>[0-9]+):(?P<m>[0-9]+):(?P<s>[0-9]+)"
    r"|(?P<only_minutes>[0-9]+)(:(?P<and_seconds>[0-9]+))?"
)
_FLAG = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9-]+)(=(?P<value>[^\r\n]+))?")


def time_limit_minutes(text: str) -> float:
    """Return the minutes that a Slurm time limit means: 90 for 90, 90:00, 1:30:00, 0-1:30 and 0-1:30:00; 60 for 0-1."""
    found = _TIME_LIMIT.fullmatch(text.strip())
    if found:
        days, hours, minutes, seconds, h, m, s, only_minutes, and_seconds = (
            int(number or 0) for number in found.group(*_TIME_LIMIT.groupindex)
        )
        total = days * 1440 + (hours + h) * 60 + minutes + m + only_minutes + (seconds + s + and_seconds) / 60
        if total > 0:
            return total
    raise ValueError(
        "a time limit as Slurm reads it, more than 0: minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
        "days-hours:minutes or days-hours:minutes:seconds"
    )


def sbatch_flag(text: str) -> tuple[str, str | None]:
    """Return name and value of an sbatch flag.

    The value is None for `name=null`, which removes the flag, and empty for `name` alone.
    """
    found = _FLAG.fullmatch(text.strip())
    if not found:
        raise ValueError(
            "long flags of sbatch without their dashes: name=value such as mail-type=END, a name alone such as "
            "exclusive, or name=null to remove one"
        )
    value = found["value"]
    return found["name"], None if value == "null" else (value or "")
