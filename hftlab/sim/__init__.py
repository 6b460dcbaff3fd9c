"""The simulated exchange: matching, synthetic flow, and own orders beside a recording. Virtual time, no I/O.

``hl.sim(strategy)`` starts a session on it. Python puts this room's module where that function's name is looked up as
soon as anything imports the room, so the module can be called and passes the call on: both meanings of ``hl.sim`` hold,
in any order of imports.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Start a session on the simulated exchange; see `hftlab.notebook.session.sim`."""
        return import_module("hftlab.notebook.session").sim(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
