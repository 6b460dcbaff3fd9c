"""hftlab: research-to-production toolkit for high-frequency trading.

``import hftlab as hl`` costs nothing: each public name is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftlab.backtest.parity import parity
    from hftlab.backtest.runner import backtest
    from hftlab.backtest.sweep import sweep
    from hftlab.books import ConsolidatedBook, L2Book, L3Book
    from hftlab.convert.run import book, convert
    from hftlab.core.definitions import Limits
    from hftlab.core.errors import HftlabError, LocalError, Refused, RemoteError
    from hftlab.core.instruments import Instrument
    from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind, OrdStatus, OrdType, Reason, Side, Tif
    from hftlab.notebook.promote import promote
    from hftlab.notebook.session import Session, attach, paper, sessions, sim
    from hftlab.sim.fit import fit_latency, fit_queue, score_queues
    from hftlab.sim.markets import synthetic
    from hftlab.sim.models import Fees, Impact, Latency, Queue
    from hftlab.strategy import PythonStrategy, Strategy, record

__all__ = [
    "BookState",
    "ConsolidatedBook",
    "ExecType",
    "Fees",
    "Flag",
    "HftlabError",
    "Impact",
    "Instrument",
    "Kind",
    "L2Book",
    "L3Book",
    "Latency",
    "Limits",
    "LocalError",
    "OrdStatus",
    "OrdType",
    "PythonStrategy",
    "Queue",
    "ROW",
    "Reason",
    "Refused",
    "RemoteError",
    "Session",
    "Side",
    "Strategy",
    "Tif",
    "attach",
    "backtest",
    "book",
    "convert",
    "fit_latency",
    "fit_queue",
    "paper",
    "parity",
    "promote",
    "record",
    "score_queues",
    "sessions",
    "sim",
    "sweep",
    "synthetic",
]

__version__ = "0.3.0"

_HOME_OF = {
    "BookState": "hftlab.core.rows",
    "ConsolidatedBook": "hftlab.books",
    "ExecType": "hftlab.core.rows",
    "Fees": "hftlab.sim.models",
    "Flag": "hftlab.core.rows",
    "HftlabError": "hftlab.core.errors",
    "Impact": "hftlab.sim.models",
    "Instrument": "hftlab.core.instruments",
    "Kind": "hftlab.core.rows",
    "L2Book": "hftlab.books",
    "L3Book": "hftlab.books",
    "Latency": "hftlab.sim.models",
    "Limits": "hftlab.core.definitions",
    "LocalError": "hftlab.core.errors",
    "OrdStatus": "hftlab.core.rows",
    "OrdType": "hftlab.core.rows",
    "PythonStrategy": "hftlab.strategy",
    "Queue": "hftlab.sim.models",
    "ROW": "hftlab.core.rows",
    "Reason": "hftlab.core.rows",
    "Refused": "hftlab.core.errors",
    "RemoteError": "hftlab.core.errors",
    "Session": "hftlab.notebook.session",
    "Side": "hftlab.core.rows",
    "Strategy": "hftlab.strategy",
    "Tif": "hftlab.core.rows",
    "attach": "hftlab.notebook.session",
    "backtest": "hftlab.backtest.runner",
    "book": "hftlab.convert.run",
    "convert": "hftlab.convert.run",
    "fit_latency": "hftlab.sim.fit",
    "fit_queue": "hftlab.sim.fit",
    "paper": "hftlab.notebook.session",
    "parity": "hftlab.backtest.parity",
    "promote": "hftlab.notebook.promote",
    "record": "hftlab.strategy",
    "score_queues": "hftlab.sim.fit",
    "sessions": "hftlab.notebook.session",
    "sim": "hftlab.notebook.session",
    "sweep": "hftlab.backtest.sweep",
    "synthetic": "hftlab.sim.markets",
}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'hftlab' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
