"""Sessions for the dashboard's tests: the program `live_session.py`, and its parts under virtual time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hftlab.engine import Engine

START_NS = 1_800_000_000_000_000_000


def _load() -> ModuleType:
    name = "hftlab_tests_live_session"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("live_session.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def live() -> ModuleType:
    """Return the module of sessions that live."""
    return _load()


@pytest.fixture(scope="session")
def make_session(live: ModuleType) -> Callable[..., Any]:
    """Return the maker of a market maker's session under virtual time that writes into a sink."""

    def make(sink: Any, *, symbols: int = 1, strategy: Any = None) -> Any:
        strategy = strategy or live.Maker()
        definitions = live.definitions_of(strategy, symbols)
        exchange = live.MatchingExchange(
            definitions.instruments, seed=7, fees=live.Fees(maker_e8=2_000, taker_e8=10_000), start_ns=START_NS
        )
        return live.Session(Engine(definitions, strategy), exchange, sink)

    return make
