"""Kill repeated runs of `deg infer` at random while a reader polls its files.

No file may ever be torn, and in the end every byte must be as in an undisturbed run.

    python tests/bench/kill_inference.py [--kills 200] [--seed 0] [--minutes 30] [--folder DIR] [--scripted] [--json]

The exit status is 1 if anything was wrong. A kill takes about 6 seconds on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SCRIPTED = SUPPORT / "scripted"
sys.path.insert(0, str(SUPPORT))

from kills import Tally, kill_inference  # noqa: E402 - found by the line above


def table(tally: Tally) -> str:
    phases = sorted({phase for _, phase in tally.kills})
    lines = [" ".join(["victim".ljust(14), *(phase.rjust(14) for phase in phases), "all".rjust(8)])]
    for victim in sorted({victim for victim, _ in tally.kills}):
        numbers = [tally.kills[victim, phase] for phase in phases]
        lines.append(" ".join([victim.ljust(14), *(str(n).rjust(14) for n in numbers), str(sum(numbers)).rjust(8)]))
    totals = [sum(n for (_, at), n in tally.kills.items() if at == phase) for phase in phases]
    lines.append(" ".join(["all".ljust(14), *(str(n).rjust(14) for n in totals), str(sum(totals)).rjust(8)]))
    rounds = ", ".join(f"{n} {kind}" for kind, n in sorted(tally.rounds.items()))
    return "\n".join(
        [
            *lines,
            "",
            f"undisturbed run          {tally.reference_seconds:.0f} s",
            f"all kills                {tally.seconds:.0f} s",
            f"commands                 {tally.commands}, of which {tally.completed} came to their end",
            f"results compared         {sum(tally.rounds.values())} times ({rounds})",
            f"the reader               {tally.polls} polls, {tally.files} files read",
            f"folders without a plan   {tally.abandoned}",
            f"longest-lived orphan     {tally.longest_orphan:.2f} s",
            f"violations               {len(tally.violations)}",
            *tally.violations,
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after so many minutes")
    parser.add_argument("--folder", type=Path, help="an empty folder, kept; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scripted", action="store_true", help="workers without networks: four times the kills")
    options = parser.parse_args()
    if options.scripted:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTED), os.environ.get("PYTHONPATH")]))
        os.environ["SCRIPT"] = json.dumps({"pause": 0.02})
    pace = 0.2 if options.scripted else 1.0
    wanted = {"pace": pace, "kills": options.kills, "seed": options.seed, "minutes": options.minutes}
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        tally = kill_inference(options.folder, **wanted)
    else:
        with tempfile.TemporaryDirectory(prefix="kills_") as folder:
            tally = kill_inference(Path(folder), **wanted)
    print(json.dumps(tally.as_dict(), indent=1) if options.json else table(tally))
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
