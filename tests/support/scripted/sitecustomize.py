"""On the PYTHONPATH of a worker: replaces the real engine and training by scripted ones, without torch."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTED = {
    "deg.infer.spans": "scripted_engine.py",
    "deg.train.fit": "scripted_training.py",
    "deg.train.ranks": "scripted_training.py",
}


class _Late:
    """Finder that supplies the stand-ins when they are first imported, so that other programs pay nothing for them."""

    def find_spec(self, name, path=None, target=None):
        if name in SCRIPTED:
            return importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / SCRIPTED[name])
        if name == "deg.models.device":
            device = ModuleType(name)
            device.choose_device = lambda: "cpu"
            return importlib.util.spec_from_loader(name, _Ready(device))
        return None


class _Ready:
    def __init__(self, module):
        self._module = module

    def create_module(self, spec):
        return self._module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, _Late())
