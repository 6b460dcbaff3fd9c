"""Recordings of every kind to rows, tables and books: what ``hftlab convert`` and ``hftlab book`` do.

``hl.convert(source, destination)`` converts. Python puts this room's module where that function's name is looked up as
soon as anything imports the room, so the module can be called and passes the call on, as `hftlab.backtest` does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Convert a recording; see `hftlab.convert.run.convert`."""
        return import_module("hftlab.convert.run").convert(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
