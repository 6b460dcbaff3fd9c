"""Backtests: the live engine under virtual time."""

from hftlab.backtest.runner import Result, VirtualSession, backtest

__all__ = ["Result", "VirtualSession", "backtest"]
