"""Dashboards: readers of a session's journal, in a notebook cell or served by a process of their own."""

from __future__ import annotations

from hftlab.dash.app import TICK_MS, make_dashboard, serve
from hftlab.dash.feed import SessionFeed

__all__ = ["SessionFeed", "TICK_MS", "make_dashboard", "serve"]
