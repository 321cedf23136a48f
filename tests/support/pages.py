"""The pages of the documentation, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from checkout import ROOT, files

FENCE = re.compile(
    r"^(?P<ticks>```+|~~~+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=ticks)\s*$", re.DOTALL | re.MULTILINE
)


def pages() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `deg` of every such command in the shell blocks of a page.

    In a block with prompts, only lines with a prompt are commands. Comments, pipes and redirections are left out.
    """
    for block in FENCE.finditer(text):
        if block["language"] not in {"bash", "sh", "shell", "console"}:
            continue
        lines = block["text"].replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command: list[str] = []
            for word in [*words, ";"]:
                if not set(word) <= set("();<>|&"):
                    command.append(word)
                    continue
                if command and command[0].rpartition("/")[2] == "deg":
                    yield command[1:]
                command = []
