"""The documentation is true: its links lead somewhere, its commands exist, and it names no private machine."""

from __future__ import annotations

import re
import shlex

import pytest
from checkout import ROOT, files
from pages import FENCE, commands, pages, read

from deg.config import load_config
from deg.launch import cli
from deg.launch.arguments import split_words

LINK = re.compile(r"\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)[^)]*\)|^\[[^\]]+\]:\s*(?P<reference>\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+\s+(?P<text>.+?)\s*#*$", re.MULTILINE)

PRIVATE = re.compile(
    r"(?<![\w.])/wor[k]\b"  # where deg is written
    r"|\.\./shared\b"  # test data beside the checkout: only tests/conftest.py knows where it lies
    # where packages come from is for each machine to say
    r"|\bpypi(?:\.org|/)|\bpythonhosted\.org|\bdeb\.debian\.org|\bnpmjs\.org|--(?:extra-)?index-ur[l]|--find-link[s]"
)


def links(text: str) -> list[str]:
    """Targets of the links of a page, leaving out code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return [found["target"] or found["reference"] for found in LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """What `#...` can name in a page: its headings as code hosts spell them."""
    titles = [found["text"].lower() for found in HEADING.finditer(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


PAGE = """
# Title of `this` page!

See [one](one.md#part), [two]( <two.md> "title") and [three].
Not `[code](code.md)`.

[three]: three.md

```console
$ deg check PROJECT --json | less   # look
deg this is output
$ cd there && .venv/bin/deg run PROJECT \\
      --on slurm > log.txt
```

```bash
deg status
degree 5
```

```
deg no language, no command
[no](link.md)
```
"""


def test_links_are_found():
    assert links(PAGE) == ["one.md#part", "two.md", "three.md"]


def test_anchors_are_those_of_the_headings():
    assert anchors(PAGE) == {"title-of-this-page"}


def test_commands_are_found():
    assert list(commands(PAGE)) == [["check", "PROJECT", "--json"], ["run", "PROJECT", "--on", "slurm"], ["status"]]


@pytest.mark.parametrize("page", pages(), ids=str)
def test_relative_links_lead_somewhere(page):
    for link in links(read(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: there is no {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: no heading for {link}"


SHOWN = [
    pytest.param(page, words, id=f"{page}: deg {shlex.join(words)}")
    for page in pages()
    for words in commands(read(page))
]


@pytest.mark.parametrize(("page", "words"), SHOWN)
def test_shown_command_is_understood(page, words, capsys):
    """Parsed by the real command line with --help added, which does nothing and still refuses what is unknown."""
    status = cli.run([*words, "--help"])
    assert status == 0, f"{page}: deg {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(("page", "words"), SHOWN)
def test_shown_options_of_the_configuration_exist(page, words, mysite):
    _, overrides = split_words(words)
    load_config(None, overrides)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_command_is_documented(command):
    assert any(words[:1] == [command] for page in pages() for words in commands(read(page))), (
        f"show `deg {command}` in README.md or docs/"
    )


def test_private_places_are_recognised():
    """Assembled here, for this file is searched too."""
    for text in ("/".join(["", "work", "main"]), "/".join(["..", "shared", "golden"]), "https://pypi" + ".org/simple"):
        assert PRIVATE.search(text), text
    for text in ("network/main", "/workspace", "a/work/b", "PyPI", "shared/"):
        assert not PRIVATE.search(text), text


def test_no_file_names_a_private_place():
    offences = []
    for path in files():
        try:
            lines = read(path).splitlines()
        except UnicodeDecodeError:
            continue  # pictures, videos, arrays
        offences += [f"{path}:{number}: {line}" for number, line in enumerate(lines, start=1) if PRIVATE.search(line)]
    assert not offences, "a matter of one machine, not of the project:\n" + "\n".join(offences)
