"""Files that grow by one line of JSON at a time: a record of events in their order.

On one host, lines of several processes do not mix. Between hosts, a network file system may lose one of two lines that
are written at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, line: Mapping[str, Any], *, alone: bool = False) -> None:
    """Append one object in one short write. `alone`: no other process writes; a line torn by a crash is ended first."""
    text = json.dumps(line, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if alone and size and os.pread(descriptor, 1, size - 1) != b"\n":
            text = "\n" + text
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all objects, oldest first. Torn lines are skipped; a file that does not exist has no objects."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
