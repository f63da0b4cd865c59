"""Importing what takes seconds, a little faster."""

import gc
import importlib
from types import ModuleType

__all__ = ["import_at_rest"]


def import_at_rest(name: str) -> ModuleType:
    """Import a module while the garbage collector rests.

    torch and transformers make a million objects that stay. Searched for garbage again and again as they
    come, they take a tenth longer. Afterwards they are set apart (`gc.freeze`), so that no later search goes
    through them either. For programs: a library leaves the collector to whoever imports it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if collects:
            gc.enable()
