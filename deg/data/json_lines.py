"""Files that grow by a line of JSON at a time: what happened, in its order.

On one host lines of several processes do not mix; between hosts a network file system may lose one of two that come at
the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, line: Mapping[str, Any], *, alone: bool = False) -> None:
    """Add one object, by one short write. `alone`: no other process writes; a line that a crash tore is ended first."""
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
    """All objects, oldest first; a torn line is passed over, and a file that is not there has none."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
