"""Tell whether the tests of the test tools have passed with the present tools and image.

    python tests/cluster/proved_tools.py             status 0 if they have, 1 if something has changed since
    python tests/cluster/proved_tools.py --record    they have just passed: record that in proved_tools.txt

`make test` leaves these tests out if they have passed. The file is committed, so a fresh clone and CI know it too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cluster_user import ROOT, fingerprint
from small_cluster import what_is_missing

HERE = Path(__file__).resolve().parent
TESTS_OF_TOOLS = {"test_fake_slurm.py", "test_small_cluster.py"}
OUTSIDE = (
    "containers",
    "tests/support/fake_slurm",
    "tests/support/recorded_slurm.py",
    "tests/support/shims.py",
    "tests/launch/test_recorded_slurm.py",
)
RECORD = HERE / "proved_tools.txt"


def tools() -> Iterator[Path]:
    """Yield the image's recipe, the fake and the recorded Slurm, the parts of the small cluster, and their tests."""
    yield from (ROOT / name for name in OUTSIDE)
    for path in sorted(HERE.iterdir()):
        if path != RECORD and (path.name in TESTS_OF_TOOLS or not path.name.startswith("test_")):
            yield path


def are_proved() -> bool:
    return RECORD.exists() and RECORD.read_text().strip() == fingerprint(tools())


def record() -> None:
    if missing := what_is_missing():
        print(f"the tests of the test tools did not run, and nothing is recorded: {missing}", file=sys.stderr)
    else:
        RECORD.write_text(f"{fingerprint(tools())}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        sys.exit(0 if are_proved() else 1)
