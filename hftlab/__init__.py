"""hftlab: research-to-production toolkit for high-frequency trading.

``import hftlab as hl`` costs nothing: each public name is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftlab.analysis.execution import execution
    from hftlab.analysis.kpi import kpi_frame
    from hftlab.analysis.performance import performance
    from hftlab.backtest.checks import determinism, lookahead, sensitivity
    from hftlab.backtest.parity import parity
    from hftlab.backtest.runner import backtest
    from hftlab.backtest.splits import Holdout, Purged, WalkForward
    from hftlab.backtest.sweep import Between, read_sweep, sweep
    from hftlab.books import ConsolidatedBook, L2Book, L3Book
    from hftlab.convert.run import book, convert
    from hftlab.core.definitions import Limits
    from hftlab.core.errors import HftlabError, LocalError, Refused, RemoteError
    from hftlab.core.instruments import Instrument
    from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind, OrdStatus, OrdType, Reason, Side, Tif
    from hftlab.kernels.rules import RuledMatcher, Rules
    from hftlab.notebook.promote import promote
    from hftlab.notebook.session import Session, attach, paper, sessions, sim
    from hftlab.sim.fit import fit_latency, fit_queue, score_queues
    from hftlab.sim.markets import synthetic
    from hftlab.sim.models import Fees, Impact, Latency, Queue
    from hftlab.strategy import PythonStrategy, Strategy, record

__all__ = [
    "Between",
    "BookState",
    "ConsolidatedBook",
    "ExecType",
    "Fees",
    "Flag",
    "HftlabError",
    "Holdout",
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
    "Purged",
    "PythonStrategy",
    "Queue",
    "ROW",
    "Reason",
    "Refused",
    "RemoteError",
    "RuledMatcher",
    "Rules",
    "Session",
    "Side",
    "Strategy",
    "Tif",
    "WalkForward",
    "attach",
    "backtest",
    "book",
    "convert",
    "determinism",
    "execution",
    "fit_latency",
    "fit_queue",
    "kpi_frame",
    "lookahead",
    "paper",
    "parity",
    "performance",
    "promote",
    "read_sweep",
    "record",
    "score_queues",
    "sensitivity",
    "sessions",
    "sim",
    "sweep",
    "synthetic",
]

__version__ = "0.3.0"

_HOME_OF = {
    "Between": "hftlab.backtest.sweep",
    "BookState": "hftlab.core.rows",
    "ConsolidatedBook": "hftlab.books",
    "ExecType": "hftlab.core.rows",
    "Fees": "hftlab.sim.models",
    "Flag": "hftlab.core.rows",
    "HftlabError": "hftlab.core.errors",
    "Holdout": "hftlab.backtest.splits",
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
    "Purged": "hftlab.backtest.splits",
    "PythonStrategy": "hftlab.strategy",
    "Queue": "hftlab.sim.models",
    "ROW": "hftlab.core.rows",
    "Reason": "hftlab.core.rows",
    "Refused": "hftlab.core.errors",
    "RemoteError": "hftlab.core.errors",
    "RuledMatcher": "hftlab.kernels.rules",
    "Rules": "hftlab.kernels.rules",
    "Session": "hftlab.notebook.session",
    "Side": "hftlab.core.rows",
    "Strategy": "hftlab.strategy",
    "Tif": "hftlab.core.rows",
    "WalkForward": "hftlab.backtest.splits",
    "attach": "hftlab.notebook.session",
    "backtest": "hftlab.backtest.runner",
    "book": "hftlab.convert.run",
    "convert": "hftlab.convert.run",
    "determinism": "hftlab.backtest.checks",
    "execution": "hftlab.analysis.execution",
    "fit_latency": "hftlab.sim.fit",
    "fit_queue": "hftlab.sim.fit",
    "kpi_frame": "hftlab.analysis.kpi",
    "lookahead": "hftlab.backtest.checks",
    "paper": "hftlab.notebook.session",
    "parity": "hftlab.backtest.parity",
    "performance": "hftlab.analysis.performance",
    "promote": "hftlab.notebook.promote",
    "read_sweep": "hftlab.backtest.sweep",
    "record": "hftlab.strategy",
    "score_queues": "hftlab.sim.fit",
    "sensitivity": "hftlab.backtest.checks",
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
