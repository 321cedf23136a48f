"""On the PYTHONPATH of a rank: turns `python -m deg.execute` into the scripted rank, which trains nothing."""

import importlib.util
import sys
from pathlib import Path


class _Instead:
    def find_spec(self, name, path=None, target=None):
        if name == "deg.execute":
            return importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripted_rank.py")
        return None


sys.meta_path.insert(0, _Instead())
