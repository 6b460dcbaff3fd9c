"""A session under virtual time: the live engine, fed from a recording or a synthetic exchange.

Two clocks, one rule. What the market does carries the time at which *we* received it; our requests reach the exchange
``entry_ns`` after the decision, and its answers reach us ``response_ns`` later. Everything due is processed in time
order: requests at the exchange first, then answers, then timers, then the market, so equal times have one order and two
runs have the same bytes. While nothing happens for 100 ms a CLOCK row is written, as the live host does.

When it is wrong: latency is constant; against a recording the market does not react to us, and the exchange sees a
recorded message at the time we received it rather than when it happened, so the feed's own delay is not charged to our
orders. Against the synthetic exchange there is no feed delay.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hftlab.analysis.frames import OrderLog, pnl_frame
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, ROW, Kind, RowArray, join_rows, new_rows
from hftlab.engine import Engine, Fault, Replay, Replica, RowBuffer, Sink, control_row, fault_rows, replay
from hftlab.journal import JournalWriter, read_all, run_hash
from hftlab.sim.exchange import MatchingExchange, RecordedExchange
from hftlab.sim.models import Fees
from hftlab.strategy import PythonStrategy, Strategy
from hftlab.venues.binance.capture import is_snapshot, read_capture
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["Result", "VirtualSession", "backtest", "capture_rows", "journal_market"]

CLOCK_NS = 100_000_000
_MARKET = np.array([Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE, Kind.BOOK_STATE], np.uint8)

Market = Iterable[tuple[int, RowArray]]
"""Messages of a market: (receive time ns, rows), in time order."""


def capture_rows(
    frames: Iterable[tuple[int, bytes]], connection: MarketConnection, *, snapshots: dict[str, bytes] | None = None
) -> Iterator[tuple[int, RowArray]]:
    """Yield the rows of a Binance capture, gap-checked, message by message.

    Parameters
    ----------
    frames : iterable of (receive time ns, message)
        As `read_capture` gives them; a snapshot among them answers the (only) symbol that waits for one.
    connection : MarketConnection
        Its instruments say what is decoded.
    snapshots : dict of symbol to payload, optional
        Answers to snapshot requests that lie outside the capture.
    """
    out = np.zeros(connection.rows_needed, ROW)
    connection.on_open(0)
    answers = dict(snapshots or {})
    inline: list[str] = []
    for now, frame in frames:
        for symbol in connection.wants_snapshot():
            if symbol in answers:
                n = connection.on_snapshot(symbol, answers[symbol], now, out)
                if n:
                    yield now, out[:n]
            else:
                inline.append(symbol)
        if is_snapshot(frame):
            n = connection.on_snapshot(inline.pop(0), frame, now, out) if inline else 0
        else:
            n = connection.on_frame(frame, now, out)
        if n:
            yield now, out[:n]


def journal_market(rows: RowArray) -> Iterator[tuple[int, RowArray]]:
    """Yield the market rows of a journal, grouped by receive time, as a session saw them."""
    market = rows[np.isin(rows["kind"], _MARKET)]
    if not len(market):
        return
    edges = np.nonzero(np.diff(market["ts_recv"]))[0] + 1
    for part in np.split(market, edges):
        yield int(part["ts_recv"][0]), part


class VirtualSession:
    """Engine and exchange under virtual time.

    Parameters
    ----------
    definitions : Definitions
    strategy : Strategy or PythonStrategy
    exchange : MatchingExchange or RecordedExchange
    sink : Sink
        Where the rows go.
    entry_ns, response_ns : int
        Latency of a request to the exchange and of its answer back, ns.
    """

    def __init__(
        self,
        definitions: Definitions,
        strategy: Strategy | PythonStrategy,
        exchange: MatchingExchange | RecordedExchange,
        sink: Sink,
        *,
        entry_ns: int = 1_000_000,
        response_ns: int = 1_000_000,
    ) -> None:
        if entry_ns < 0 or response_ns < 0:
            raise ConfigError(f"latency: ({entry_ns}, {response_ns}) ns; expected 0 or more")
        self.engine = Engine(definitions, strategy)
        self.exchange = exchange
        self.sink = sink
        self._entry_ns, self._response_ns = entry_ns, response_ns
        self._due: list[tuple[int, int, int, RowArray]] = []  # time, 0 request | 1 answer, order of arrival, rows
        self._arrivals = 0
        self._last_ns = 0
        self._faults = 0

    def start(self, now_ns: int) -> None:
        """Start the strategy at `now_ns`."""
        self._last_ns = now_ns
        self._process(control_row("start", now_ns), now_ns)

    def stop(self) -> None:
        """Run ``on_stop``, cancel everything and let the answers come in."""
        if isinstance(self.exchange, MatchingExchange):
            self._last_ns = max(self._last_ns, self.exchange.now_ns)
        self._process(control_row("stop", self._last_ns), self._last_ns)
        while self._due:
            self._settle(self._due[0][0])

    def on_market(self, now_ns: int, rows: RowArray) -> None:
        """Process a market message received at `now_ns`, and before it everything that was due."""
        self._settle(now_ns)
        if isinstance(self.exchange, RecordedExchange):
            self._answer(now_ns, self.exchange.on_market(rows))
        self._process(rows, now_ns)

    def run(self, market: Market) -> None:
        """Process a whole market."""
        for now_ns, rows in market:
            if self._last_ns == 0:
                self.start(now_ns)
            self.on_market(now_ns, rows)

    def run_synthetic(self, until_ns: int) -> None:
        """Run against a `MatchingExchange` until `until_ns`, venue time.

        The flow is advanced to each request's arrival, so a request meets the book as it stood then.
        """
        exchange = self.exchange
        assert isinstance(exchange, MatchingExchange)
        if self._last_ns == 0:
            self.start(exchange.now_ns)
            self._take(self._snapshot_rows(exchange), exchange.now_ns)
        while exchange.now_ns < until_ns:
            step = exchange.next_event_ns()
            if self._due:
                step = min(step, self._due[0][0])
            deadline = self.engine.next_deadline
            if deadline:
                step = min(step, max(deadline, self._last_ns))
            step = min(max(step, exchange.now_ns), until_ns)
            self._take(exchange.advance(step), step)
            self._settle(step)
            if step == until_ns:
                break

    def _snapshot_rows(self, exchange: MatchingExchange) -> RowArray:
        parts = []
        for instrument in self.engine.definitions.instruments:
            sequence, bids, asks = exchange.snapshot(instrument.id)
            rows = new_rows(2 + len(bids) + len(asks))
            rows["instrument"], rows["a"] = instrument.id, sequence
            rows["kind"], rows["kind"][0], rows["kind"][-1] = Kind.LEVEL, Kind.CLEAR, Kind.BOOK_STATE
            rows["flags"] = 32
            rows["flags"][1 : 1 + len(bids)] |= 1
            rows["flags"][1 + len(bids) : -1] |= 2
            rows["flags"][-2] |= 4
            rows["flags"][-1] = 4
            levels = np.array([*bids, *asks], np.int64).reshape(-1, 2)
            rows["px"][1:-1], rows["qty"][1:-1] = levels[:, 0], levels[:, 1]
            rows["code"][-1], rows["b"][-1] = 1, sequence
            parts.append(rows)
        return join_rows(parts)

    def _take(self, rows: RowArray, now_ns: int) -> None:
        """Split what the synthetic exchange said into market rows, processed now, and answers, on their way."""
        if not len(rows):
            return
        report = rows["kind"] == Kind.REPORT
        if report.any():
            report[1:] |= report[:-1] & (rows["kind"][1:] == CONT)
            self._answer(now_ns, rows[report])
            rows = rows[~report]
        if len(rows):
            rows = rows.copy()
            rows["ts_recv"] = np.where(rows["ts_event"] > 0, rows["ts_event"], now_ns)
            self._process(rows, now_ns)

    def _settle(self, now_ns: int) -> None:
        """Process, in time order, every request, answer, timer and idle clock due up to `now_ns`."""
        while True:
            deadline = self.engine.next_deadline
            due = self._due[0][0] if self._due else now_ns + 1
            idle = self._last_ns + CLOCK_NS
            at = min(due, deadline or now_ns + 1, idle)
            if at > now_ns:
                return
            if due == at:
                _, what, _, rows = heapq.heappop(self._due)
                if what == 0:
                    answers = self.exchange.send(rows, at)
                    if isinstance(self.exchange, MatchingExchange):
                        self._take(answers, at)
                    else:
                        self._answer(at, answers)
                else:
                    rows["ts_recv"][rows["kind"] == Kind.REPORT] = at
                    self._process(rows, at)
            elif deadline == at:
                timer = self.engine.due_timer(at)
                assert timer is not None
                self._process(timer, at)
            else:
                clock = new_rows(1)
                clock["kind"], clock["ts_recv"] = Kind.CLOCK, at
                self._process(clock, at)

    def _answer(self, now_ns: int, rows: RowArray) -> None:
        if len(rows):
            self._push(now_ns + self._response_ns, 1, rows)

    def _push(self, at: int, what: int, rows: RowArray) -> None:
        self._arrivals += 1
        heapq.heappush(self._due, (at, what, self._arrivals, rows))

    def _process(self, rows: RowArray, now_ns: int) -> None:
        self._last_ns = max(self._last_ns, now_ns)
        if self.engine.process(rows, self.sink):
            self._push(now_ns + self._entry_ns, 0, self.engine.commands().copy())
        while len(self.engine.faults) > self._faults:
            text = fault_rows(self.engine.faults[self._faults], now_ns)
            self._faults += 1
            self.engine.process(text, self.sink)


@dataclass(frozen=True)
class Result:
    """What a backtest left.

    Parameters
    ----------
    definitions : Definitions
    rows : array of ROW
        The whole journal.
    counters : dict
        The engine's.
    faults : list of Fault
    assumptions : str
        Latency and fill model in words.
    folder : Path, optional
        Where the journal lies, if it was written to disk.
    """

    definitions: Definitions
    rows: RowArray
    counters: dict[str, int]
    faults: list[Fault]
    assumptions: str
    folder: Path | None = None

    @cached_property
    def run_hash(self) -> str:
        """The run's identity: SHA-256 of its rows alone."""
        return run_hash(self.rows)

    @cached_property
    def replica(self) -> Replica:
        """State at the end of the run."""
        replica = Replica(self.definitions)
        replica.apply(self.rows)
        return replica

    @cached_property
    def _log(self) -> OrderLog:
        return OrderLog(self.rows)

    @cached_property
    def orders(self) -> pl.DataFrame:
        """Orders, one line each (see `hftlab.analysis.frames.OrderLog.orders`)."""
        return self._log.orders(self.replica)

    @cached_property
    def fills(self) -> pl.DataFrame:
        """Fills, one line each (see `hftlab.analysis.frames.OrderLog.fills`)."""
        return self._log.fills(self.definitions)

    @cached_property
    def pnl(self) -> pl.DataFrame:
        """Position and P&L an instrument at the end."""
        return pnl_frame(self.replica)

    def replay(self, strategy: Strategy | PythonStrategy) -> Replay:
        """Run the journal's input rows through a fresh engine and compare every row."""
        return replay(self.rows, self.definitions, strategy)

    def summary(self) -> str:
        """Return the assumptions, then what happened, as text."""
        c = self.counters
        lines = [self.assumptions, f"{len(self.rows):,} rows, hash {self.run_hash[:8]}"]
        lines.append(f"{c['submits'] + c['replaces']:,} orders, {c['fills']:,} fills, {c['refusals']:,} refused")
        for line in self.pnl.iter_rows(named=True):
            parts = [f"{name} {_amount(line[name])}" for name in ("realized", "unrealized", "fees", "net")]
            lines.append(f"{line['symbol']}: position {line['position']:g}, {', '.join(parts)}")
        lines += [f"FAULT in {f.callback}: {f.traceback.splitlines()[-1]}" for f in self.faults]
        return "\n".join(lines)


def _amount(value: float) -> str:
    """Return an amount of money to 4 significant digits, and to all of those before its point.

    Examples
    --------
    >>> [_amount(value) for value in (0.0, -0.00123456, 1.5, 123456.7)]
    ['0', '-0.001235', '+1.500', '+123,457']
    """
    return f"{value:+,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def backtest(
    strategy: Strategy | PythonStrategy,
    market: MatchingExchange | Path | str | RowArray | Market,
    *,
    instruments: Sequence[Instrument],
    limits: Sequence[Limits] | Limits,
    seed: int = 1,
    latency_ns: tuple[int, int] = (1_000_000, 1_000_000),
    seconds: float | None = None,
    fees: Fees | None = None,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run a strategy over a market under virtual time.

    Parameters
    ----------
    strategy : Strategy or PythonStrategy
    market : MatchingExchange, path, rows, or iterable of (time, rows)
        The synthetic exchange (give `seconds`); a Binance capture file; a journal's folder or its rows (their market
        is used, their orders are not).
    instruments, limits
        What is traded, and one `Limits` each (or one for all).
    seed : int
        Of ``ctx.random()``.
    latency_ns : (int, int)
        Request to the exchange, answer back.
    seconds : float, optional
        How long to run the synthetic exchange, venue time.
    fees : Fees, optional
        Of a recorded market; the venue's base fee if absent. The synthetic exchange has its own.
    folder : Path, optional
        Write the journal there; without it, it stays in memory.
    progress : callable, optional
        Told the virtual time, ns, now and then.

    Raises
    ------
    ConfigError
        If the market cannot be read or `seconds` is missing.
    """
    if not isinstance(strategy, (Strategy, PythonStrategy)):
        raise ConfigError(f"strategy: {strategy!r}; expected an instance such as Maker(edge_ticks=2)")
    instruments = tuple(instruments)
    each = (limits,) * len(instruments) if isinstance(limits, Limits) else tuple(limits)
    ref = StrategyRef(type(strategy).__name__, "", strategy.param_values())
    definitions = Definitions("backtest", "backtest", instruments, each, ref, seed)
    sink: RowBuffer | JournalWriter = RowBuffer() if folder is None else JournalWriter(folder, definitions.to_dict())
    synthetic = isinstance(market, MatchingExchange)
    if isinstance(market, MatchingExchange) and fees is not None:
        raise ConfigError("fees: given beside a synthetic exchange, which has its own; pass them to MatchingExchange")
    charged = Fees() if fees is None else fees
    exchange = market if isinstance(market, MatchingExchange) else RecordedExchange(instruments, fees=charged)
    session = VirtualSession(
        definitions, strategy, exchange, sink, entry_ns=latency_ns[0], response_ns=latency_ns[1]
    )
    try:
        if isinstance(market, MatchingExchange):
            if seconds is None:
                raise ConfigError("seconds: missing; say how long the synthetic exchange runs, such as seconds=60")
            session.run_synthetic(market.now_ns + int(seconds * 1e9))
        else:
            source = _market(market, instruments)
            session.run(source if progress is None else _told(source, progress))
        session.stop()
        rows = sink.rows() if isinstance(sink, RowBuffer) else read_all(Path(str(folder)))
    finally:
        if isinstance(sink, JournalWriter):
            sink.close()
    latency = f"{latency_ns[0] / 1e6:g} ms to the exchange, {latency_ns[1] / 1e6:g} ms back"
    model = "synthetic flow, one matching book"
    if not synthetic:
        percent = f"maker {charged.maker_e8 / 1e6:g} %, taker {charged.taker_e8 / 1e6:g} %"
        model = f"recorded market, own orders queue behind it; fees {percent}"
    return Result(
        definitions, rows, session.engine.counters(), session.engine.faults, f"latency {latency}; {model}", folder
    )


def _market(market: Any, instruments: Sequence[Instrument]) -> Market:
    if isinstance(market, np.ndarray):
        return journal_market(market)
    if isinstance(market, (str, Path)):
        path = Path(market)
        if path.is_dir():
            return journal_market(read_all(path))
        if path.is_file():
            return capture_rows(read_capture(path), MarketConnection(instruments))
        raise ConfigError(f"market: {path} is neither a capture file nor a journal's folder")
    return market  # type: ignore[no-any-return]


def _told(market: Market, progress: Callable[[int], None]) -> Iterator[tuple[int, RowArray]]:
    for k, (now, rows) in enumerate(market):
        if k % 1000 == 0:
            progress(now)
        yield now, rows
