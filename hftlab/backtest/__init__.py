"""Backtests: the live engine under virtual time.

``hl.backtest(strategy, market, ...)`` runs one. Python puts this room's module where that function's name is looked up
as soon as anything imports the room, so the module can be called and passes the call on, as `hftlab.sim` does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a strategy over a market; see `hftlab.backtest.runner.backtest`."""
        return import_module("hftlab.backtest.runner").backtest(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
