"""Growth: what a row costs after a million rows and after a hundred million, in one session with a journal.

A system that slows down or grows as the day goes on is found out in the afternoon. Here one engine with the compiled
maker takes a synthetic market's rows, its orders are acknowledged and filled, every row goes into a journal whose old
segments are rotated away, and the cost of a row is taken over the windows that end at 10^6, 10^7 and 10^8 rows. Each
4,096 rows a fixed loop runs in between; the windows' costs are told relative to it, since the machine's own speed
wanders by more than what is looked for. ``at_1e8_vs_1e6`` is what a row cost early over what it costs late: 1 is flat,
0.87 is 15 % more. The journal is not flushed (``fsync_ms=None``), so that the disk's own pace is not measured.

The check: every row that went in is in the journal's count, the book at the end is the market's, the report of every
fill was taken once, and no row was refused as illegal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hftlab.backtest.runner import VirtualSession
from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.brokers.binance import report_rows
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import REPORT_PAYLOAD, ExecType, Kind, OrdStatus, RowArray, join_rows
from hftlab.engine import Engine, RowBuffer, control_row
from hftlab.journal import JournalWriter
from hftlab.journal.seal import rotate
from hftlab.kernels.jit import kernel
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategies.maker import Maker
from hftlab.strategy import Strategy

__all__ = ["GOALS", "prepare"]

GOALS = {"at_1e8_vs_1e6": (1 / 1.15, 1.0), "memory_growth_mb": (16.0, 1.0)}

_CHUNK = 4096
_WINDOW_CHUNKS = 120
_SEGMENT_ROWS = 1 << 18
_MARKET_S = 200  # venue seconds of synthetic market: some 300,000 rows
_BTC = Instrument(0, "synthetic", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")


@kernel()
def _fixed_loop(table: Any, n: int) -> int:
    """A loop of fixed work over 256 KB: what the machine can do at the moment."""
    x = np.uint64(88172645463325252)
    mask = np.uint64(len(table) - 1)
    for _ in range(n):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        table[x & mask] += 1
    return int(x >> np.uint64(1))


def _definitions() -> Definitions:
    limits = Limits.from_decimals(
        _BTC,
        {"max_order": "1", "max_position": "10", "max_notional": "10000000", "collar": "1000", "orders_per_s": 1000},
    )
    return Definitions("growth", "backtest", (_BTC,), (limits,), StrategyRef("Maker", ""))


class _Idle(Strategy):
    """Looks on."""


def _market(seconds: float) -> RowArray:
    """Return a synthetic market as input rows: a snapshot, then everything the venue said in `seconds`."""
    buffer = RowBuffer()
    exchange = MatchingExchange([_BTC], seed=1, start_ns=1_000_000_000)
    engine = Engine(_definitions(), _Idle())
    VirtualSession(engine, exchange, buffer).run_synthetic(exchange.now_ns + int(seconds * 1e9))
    rows = buffer.rows()
    kinds = (Kind.CLEAR, Kind.LEVEL, Kind.QUOTE, Kind.TRADE, Kind.BOOK_STATE)
    return rows[np.isin(rows["kind"], kinds)].copy()


class _Session:
    """Engine, journal and the answers of an obliging venue."""

    def __init__(self, folder: Path) -> None:
        definitions = _definitions()
        self.engine = Engine(definitions, Maker(size_lots=1000, cap_lots=10_000))
        self.writer = JournalWriter(folder, definitions.to_dict(), segment_rows=_SEGMENT_ROWS, fsync_ms=None)
        self.folder = folder
        self.inputs = self.fills = 0
        self.engine.process(control_row("start", 1), self.writer)

    def take(self, rows: RowArray) -> int:
        """Process one chunk and the answers to what it caused; return the nanoseconds that took."""
        answers = self._answers(int(rows["ts_recv"][0]))
        both = join_rows([answers, rows])
        started = time.perf_counter_ns()
        self.engine.process(both, self.writer)
        spent = time.perf_counter_ns() - started
        self.inputs += len(both)
        return spent

    def _answers(self, now: int) -> RowArray:
        """Return the venue's word on every order that waits for it: it rests, and each third one fills at once."""
        parts = []
        for order in self.engine.open_orders():
            asked: dict[str, Any] = {"px": int(order["px"]), "qty": int(order["order_qty"])}
            name, side = int(order["cl_ord_id"]), int(order["side"])
            if order["status"] == OrdStatus.PENDING_NEW:
                what = ExecType.REPLACED if order["orig"] else ExecType.ACK
                parts.append(report_rows(name, 0, side, what, OrdStatus.NEW, now, **asked))
                if name % 3 == 0:
                    self.fills += 1
                    fill = report_rows(name, 0, side, ExecType.FILL, OrdStatus.FILLED, now, exec_id=self.fills, **asked)
                    fill[1:].view(REPORT_PAYLOAD)["cum_qty"] = asked["qty"]
                    parts.append(fill)
        return join_rows(parts)


def _rss_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: resident memory of our own, without mapped files, is not told
        return 0.0
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


class _Growth:
    """The run, once; its figures afterwards."""

    def __init__(self, plan: Plan) -> None:
        self.folder = plan.folder / "journal"
        self.block = _market(max(4.0, _MARKET_S * min(1.0, plan.scale * 5)))
        self.marks = [plan.sized(n, 3 * _CHUNK * (k + 1)) for k, n in enumerate((10**6, 10**7, 10**8))]
        self.cost: list[float] = []
        self.memory_mb = 0.0
        self._table = np.zeros(32_768, np.int64)
        _fixed_loop(self._table, 1)

    def run(self) -> None:
        session = _Session(self.folder)
        block, span = self.block, int(self.block["ts_recv"][-1] - self.block["ts_recv"][0]) + 1_000_000
        steps = np.uint64(int(block["a"].max()) + 1)
        sequenced = np.isin(block["kind"], (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR))
        windows: list[list[tuple[int, int, int]]] = [[] for _ in self.marks]
        rss_early = 0.0
        try:
            while session.inputs < self.marks[-1]:
                for first in range(0, len(block), _CHUNK):
                    rows = block[first : first + _CHUNK]
                    before = session.inputs
                    spent = session.take(rows)
                    started = time.perf_counter_ns()
                    _fixed_loop(self._table, 20_000)
                    fixed = time.perf_counter_ns() - started
                    for window, mark in zip(windows, self.marks, strict=True):
                        if mark - _WINDOW_CHUNKS * _CHUNK <= before < mark:
                            window.append((spent, session.inputs - before, fixed))
                    if session.inputs >= self.marks[0] and not rss_early:
                        rss_early = _rss_mb()
                    if session.inputs >= self.marks[-1]:
                        break
                block["ts_recv"] += span
                block["ts_event"] += span
                block["a"][sequenced] += steps
                rotate(self.folder, 4)
            self.memory_mb = max(0.0, _rss_mb() - rss_early)
            self._check(session)
        finally:
            session.writer.close()
        fixed_ns = median(fixed for window in windows for _, _, fixed in window)
        self.cost = [median(ns / n * fixed_ns / fixed for ns, n, fixed in window) for window in windows]

    def _check(self, session: _Session) -> None:
        counters = session.engine.counters()
        wrong = {name: counters[name] for name in ("illegal_reports", "duplicate_fills", "faults") if counters[name]}
        fills = counters["fills"]
        if wrong or fills != session.fills or session.writer.seq < session.inputs:
            raise CheckFailed(f"growth: {wrong}, {fills} of {session.fills} fills, {session.writer.seq} rows")
        if session.fills < self.marks[-1] // _CHUNK // 4:
            raise CheckFailed(f"growth: only {session.fills} fills; the strategy did not trade")

    def figure(self, k: int) -> Callable[[], float]:
        def run() -> float:
            if not self.cost:
                self.run()
            return self.cost[k]

        return run


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: the cost of a row at three marks, and how much memory was gained between first and last."""
    growth = _Growth(plan)
    names = ("row_at_1e6_ns", "row_at_1e7_ns", "row_at_1e8_ns")
    cases = [Case(name, growth.figure(k), once=True) for k, name in enumerate(names)]
    cases.append(Case("memory_growth_mb", lambda: growth.memory_mb, once=True))
    return cases, [Ratio("at_1e8_vs_1e6", names[2], names[0]), Ratio("at_1e7_vs_1e6", names[1], names[0])]
