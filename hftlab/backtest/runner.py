"""A session under virtual time: the live engine, fed from a recording or a synthetic exchange.

Beside a recording everything runs in one kernel, `hftlab.sim.recorded`, whose module says when an order fills and when
that is wrong. The synthetic exchange is a real market, which our orders are part of; `VirtualSession` plays it.

Two clocks, one rule. Our requests reach the exchange ``entry`` after the decision, and its answers reach us
``response`` later. Everything due is processed in time order: requests at the exchange first, then answers, then
timers, then the market, so equal times have one order and two runs have the same bytes. While nothing happens for
100 ms a CLOCK row is written, as the live host does.

**A run's identity** is `Result.run_hash`: the hash of all rows but the recorded market's. That market is named by a
hash of its own, and need not be journaled again: `merged` puts a run's rows and its market together, byte for byte as
a journal that holds both.
"""

from __future__ import annotations

import heapq
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hftlab.analysis.frames import OrderLog, pnl_frame
from hftlab.analysis.performance import Performance, equity_frame, performance, positions_frame
from hftlab.backtest.data import Tape, read_tape
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.engine import Engine, Fault, Replay, Replica, RowBuffer, Sink, control_row, fault_rows, replay
from hftlab.journal import JournalWriter, read_all, run_hash
from hftlab.kernels.state import ATOM_ROWS
from hftlab.sim.exchange import MatchingExchange, RecordedExchange
from hftlab.sim.models import BASE_FEES, Fees, Impact, Latency, Queue
from hftlab.sim.recorded import CLOCK_NS, MARKET_KINDS, RecordedMarket
from hftlab.strategy import PythonStrategy, Strategy

__all__ = ["Progress", "Result", "VirtualSession", "backtest", "merged"]

_CHUNK_ROWS = 1 << 18
_PYTHON_CHUNK_ROWS = 1 << 12  # a Ctrl-C is heard between chunks
_SAMPLED = "1s"
_MARKET = np.array(MARKET_KINDS, np.uint8)

Progress = Callable[[int, int], None]
"""Told how much is done and how much there is: rows of a recording, nanoseconds of a synthetic market."""

_BASE_LATENCY = Latency()


class VirtualSession:
    """Engine and exchange under virtual time.

    Parameters
    ----------
    engine : Engine
        Fresh, with the strategy.
    exchange : MatchingExchange or RecordedExchange
    sink : Sink
        Where the rows go.
    latency : Latency
    """

    def __init__(
        self,
        engine: Engine,
        exchange: MatchingExchange | RecordedExchange,
        sink: Sink,
        *,
        latency: Latency = _BASE_LATENCY,
    ) -> None:
        self.engine = engine
        self.exchange = exchange
        self.sink = sink
        self._latency = latency
        self._sampled = [0, 0]  # requests and answers so far
        self._arrived = [0, 0]  # the latest of either: a connection keeps its order
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
            self._push(self._due_at(now_ns, 1), 1, rows)

    def _due_at(self, now_ns: int, way: int) -> int:
        """Return when a request (0) or an answer (1) that leaves now is there."""
        latency = self._latency
        samples = latency.response_ns if way else latency.entry_ns
        if len(latency.at_ns):
            k = max(0, int(np.searchsorted(latency.at_ns, now_ns, "right")) - 1)
        else:
            k = self._sampled[way] % len(samples)
        self._sampled[way] += 1
        self._arrived[way] = max(self._arrived[way], now_ns + int(samples[k]))
        return self._arrived[way]

    def _push(self, at: int, what: int, rows: RowArray) -> None:
        self._arrivals += 1
        heapq.heappush(self._due, (at, what, self._arrivals, rows))

    def _process(self, rows: RowArray, now_ns: int) -> None:
        self._last_ns = max(self._last_ns, now_ns)
        if self.engine.process(rows, self.sink):
            self._push(self._due_at(now_ns, 0), 0, self.engine.commands().copy())
        while len(self.engine.faults) > self._faults:
            text = fault_rows(self.engine.faults[self._faults], now_ns)
            self._faults += 1
            self.engine.process(text, self.sink)


def merged(own: RowArray, market: RowArray) -> RowArray:
    """Return a run's rows and the recorded market's in one array, as a journal that holds both would.

    Parameters
    ----------
    own : array of ROW
        A run's rows without its market, as numbered by the run.
    market : array of ROW
        The market it ran on, from its first row.

    Examples
    --------
    >>> own = new_rows(1); own["seq"], own["kind"] = 1, Kind.CLOCK
    >>> market = new_rows(2); market["kind"] = Kind.TRADE
    >>> merged(own, market)["seq"].tolist()
    [0, 1, 2]
    """
    low = own["seq"].astype(np.int64)
    places = low + (np.cumsum(np.diff(low, prepend=0) < 0) << 32)
    total = len(own) + len(market)
    if len(places) and int(places[-1]) >= total:
        total = int(places[-1]) + 1
    rows = new_rows(total)
    free = np.ones(total, bool)
    free[places] = False
    rows[places] = own
    taken = market[: int(free.sum())]
    slots = np.flatnonzero(free)[: len(taken)]
    rows[slots] = taken
    rows["seq"][slots] = slots
    flags = rows["flags"]
    following = np.zeros(total, bool)
    following[:-1] = flags[1:] & int(Flag.OUTPUT) != 0
    kept = flags[slots] & ~np.uint16(int(Flag.COMMIT) | int(Flag.OUTPUT))
    flags[slots] = np.where(following[slots], kept, kept | int(Flag.COMMIT))
    return rows


@dataclass(frozen=True)
class Result:
    """What a backtest left.

    Parameters
    ----------
    definitions : Definitions
    market : array of ROW
        The recorded market, as far as it was received.
    counters : dict
        The engine's.
    faults : list of Fault
    assumptions : str
        Latency and fill model in words, a line each.
    memory : array of ROW, optional
        `own`, if the journal was not written to disk.
    folder : Path, optional
        Where the journal lies, if it was.
    interrupted : bool
        Whether it was stopped by Ctrl-C before its end.
    notes : dict of str to int
        What was told of the data: late rows, gaps, broken records.
    """

    definitions: Definitions
    market: RowArray
    counters: dict[str, int]
    faults: list[Fault]
    assumptions: str
    memory: RowArray | None = None
    folder: Path | None = None
    interrupted: bool = False
    notes: dict[str, int] = field(default_factory=dict)

    @cached_property
    def own(self) -> RowArray:
        """All rows but the recorded market's; of a synthetic market all. Read from the disk when first asked for."""
        if self.memory is not None:
            return self.memory
        rows = read_all(Path(str(self.folder)))
        return rows[~np.isin(rows["kind"], _MARKET)] if len(self.market) else rows

    @cached_property
    def rows(self) -> RowArray:
        """The whole journal, market and own rows in order; 64 bytes a row, made when first asked for."""
        return merged(self.own, self.market) if len(self.market) else self.own

    @cached_property
    def run_hash(self) -> str:
        """The run's identity: SHA-256 of all rows but the recorded market's."""
        return run_hash(self.own)

    @cached_property
    def market_hash(self) -> str:
        """What names the recorded market: SHA-256 of its rows."""
        return run_hash(self.market)

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
    def positions(self) -> pl.DataFrame:
        """The position after each fill (see `hftlab.analysis.performance.positions_frame`)."""
        return positions_frame(self.rows, self.definitions)

    @cached_property
    def equity(self) -> pl.DataFrame:
        """P&L at the end of each second (see `hftlab.analysis.performance.equity_frame`)."""
        return equity_frame(self.rows, self.definitions, _SAMPLED)

    def performance(self, interval: str | int = "1s", *, trials: int = 1, spread: float = 0.0) -> Performance:
        """Return what was earned, and how sure one can be of it (see `hftlab.analysis.performance`)."""
        sampled = self.equity if interval == _SAMPLED else None
        return performance(self.rows, self.definitions, interval, trials=trials, spread=spread, equity=sampled)

    @cached_property
    def pnl(self) -> pl.DataFrame:
        """Position and P&L an instrument at the end."""
        return pnl_frame(self.replica)

    def plot(self, instrument: int | None = None) -> Any:
        """Return linked Bokeh figures: price with fills and the book at each, position, equity, drawdown, markouts."""
        from hftlab.analysis.plots import overview

        return overview(self.rows, self.definitions, instrument)

    def report(self, path: Path | str | None = None, *, title: str = "") -> Any:
        """Return the report as one HTML page, which a notebook shows, and write it to `path` if given."""
        from hftlab.analysis.report import report

        notes = [f"{count:,} {what}" for what, count in self.notes.items()]
        if self.interrupted:
            notes.insert(0, "The run was stopped before its end: this is what was done until then.")
        assumed = self.assumptions.splitlines()
        return report(
            self.rows, self.definitions, path, title=title, assumptions=assumed, notes=notes, run_hash=self.run_hash
        )

    def to_mlflow(self, experiment: str = "backtests", *, mlruns: Path | str | None = None) -> str:
        """Keep parameters, numbers, hashes and the report in an MLflow experiment; return the run's id."""
        from hftlab.tracking import Tracked, log_run

        strategy, totals = self.definitions.strategy, self.pnl
        numbers = {name: float(totals[name].sum()) for name in ("realized", "unrealized", "fees", "net")}
        counted = {name: float(self.counters[name]) for name in ("submits", "replaces", "cancels", "fills", "refusals")}
        tags = {"run_hash": self.run_hash, "market_hash": self.market_hash, "assumptions": self.assumptions}
        files = {"report.html": str(self.report()), "summary.txt": self.summary()}
        return log_run(
            Tracked(strategy.name, {**strategy.params, "seed": self.definitions.seed}, numbers | counted, tags, files),
            experiment=experiment, mlruns=mlruns,
        )  # fmt: skip

    def replay(self, strategy: Strategy | PythonStrategy) -> Replay:
        """Run the journal's input rows through a fresh engine and compare every row."""
        return replay(self.rows, self.definitions, strategy)

    def summary(self) -> str:
        """Return the assumptions, then what happened, as text."""
        c = self.counters
        lines = [self.assumptions, f"{len(self.own) + len(self.market):,} rows, hash {self.run_hash[:8]}"]
        lines += [f"{count:,} {what}" for what, count in self.notes.items()]
        if self.interrupted:
            lines.append("stopped before its end: what was done until then")
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
    data: Any,
    *,
    instruments: Sequence[Instrument] | None = None,
    limits: Sequence[Limits] | Limits,
    latency: Latency | None = None,
    queue: Queue | None = None,
    fees: Fees | None = None,
    impact: Impact | None = None,
    alone: bool = False,
    seed: int = 1,
    seconds: float | None = None,
    folder: Path | str | None = None,
    journal_market: bool = True,
    progress: bool | Progress = False,
) -> Result:
    """Run a strategy over a market under virtual time.

    Parameters
    ----------
    strategy : Strategy or PythonStrategy
    data : MatchingExchange, path, rows, iterable of (time, rows), or list of these
        The synthetic exchange (give `seconds`); a journal's folder or its rows (their market is used, their orders are
        not); any recording that ``hftlab convert`` reads; several recordings, merged by time.
    instruments : sequence of Instrument, optional
        What is traded, ids 0, 1, ...; what the data says of itself if absent.
    limits : Limits or sequence of Limits
        For all instruments, or one each.
    latency, queue, fees, impact : optional
        See `hftlab.sim.models`: 1 ms both ways, risk averse, the venue's base fee, and own trades that consume. The
        synthetic exchange has a real queue, its own fees, and feels our trades.
    alone : bool
        Whether each own order is judged as if it were the only one (see `hftlab.sim.recorded`).
    seed : int
        Of ``ctx.random()``.
    seconds : float, optional
        How long to run the synthetic exchange, venue time.
    folder : Path, optional
        Write the journal there; without it, it stays in memory.
    journal_market : bool
        Whether a recorded market's rows go into that journal again.
    progress : bool or callable(done, total)
        True shows a bar, with rate and time left; a callable is told now and then.

    Returns
    -------
    Result
        After Ctrl-C, of what was done until then.

    Raises
    ------
    ConfigError
        If the data cannot be read or is broken, or an argument does not fit it.
    """
    if not isinstance(strategy, (Strategy, PythonStrategy)):
        raise ConfigError(f"strategy: {strategy!r}; expected an instance such as Maker(edge_ticks=2)")
    latency = latency or _BASE_LATENCY
    if isinstance(data, MatchingExchange):
        for name, given in (("fees", fees), ("queue", queue), ("impact", impact)):
            if given is not None:
                raise ConfigError(f"{name}: given beside a synthetic exchange, which has its own")
        if seconds is None:
            raise ConfigError("seconds: missing; say how long the synthetic exchange runs, such as seconds=60")
        if instruments is None:
            raise ConfigError("instruments: missing; give those of the synthetic exchange")
        tape = Tape(new_rows(0), tuple(instruments))
        assumptions = f"{latency}\nsynthetic flow, one matching book"
    else:
        tape = read_tape(data, instruments)
        queue, fees, impact = queue or Queue(), fees or BASE_FEES, impact or Impact()
        waits = "by order, so exactly" if tape.marks is not None else str(queue)
        assumptions = f"{latency}\nrecorded market, own orders wait in its queues: {waits}\n{fees}\n{impact}"
    each = (limits,) * len(tape.instruments) if isinstance(limits, Limits) else tuple(limits)
    ref = StrategyRef(type(strategy).__name__, "", strategy.param_values())
    definitions = Definitions("backtest", "backtest", tape.instruments, each, ref, seed)
    place = None if folder is None else Path(folder)
    sink = _sink(place, definitions, len(tape.rows))
    show = _bar(progress) if isinstance(progress, bool) else progress
    engine = Engine(definitions, strategy)
    try:
        if isinstance(data, MatchingExchange):
            interrupted = _play(VirtualSession(engine, data, sink, latency=latency), int((seconds or 0) * 1e9), show)
            received = 0
        else:
            market = RecordedMarket(
                engine, tape.rows, sink, latency=latency, queue=queue or Queue(), fees=fees or BASE_FEES,
                impact=impact, alone=alone, marks=tape.marks, keep=place is not None and journal_market,
            )  # fmt: skip
            interrupted = _run(market, show, _CHUNK_ROWS if strategy.compiled else _PYTHON_CHUNK_ROWS)
            received = market.at
    finally:
        if isinstance(sink, JournalWriter):
            sink.close()
    memory = sink.rows() if isinstance(sink, RowBuffer) else None
    if tape.late:
        tape.notes["rows older than the row before them"] = tape.late
    return Result(
        definitions, tape.rows[:received], engine.counters(), engine.faults, assumptions, memory, place, interrupted,
        tape.notes,
    )  # fmt: skip


def _sink(folder: Path | None, definitions: Definitions, market_rows: int) -> RowBuffer | JournalWriter:
    """Return where the rows go: what a backtest wrote can be written again, so nothing waits for the disk.

    In memory they get one block from the beginning, a quarter as long as the market: large enough for large pages, and
    for most runs; what of it is not written is never touched.
    """
    if folder is not None:
        return JournalWriter(folder, definitions.to_dict(), fsync_ms=None)
    return RowBuffer(max(4 * ATOM_ROWS, market_rows // 4))


def _run(market: RecordedMarket, show: Progress, chunk: int) -> bool:
    """Play a recording to its end, and return whether Ctrl-C ended it before."""
    total, interrupted = len(market.rows), False
    market.start()
    try:
        with _interrupts() as asked:
            while market.at < total and not asked:
                market.run(market.at + chunk)
                show(market.at, total)
        interrupted = bool(asked)
    except KeyboardInterrupt:
        interrupted = True
    market.stop()
    return interrupted


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note a Ctrl-C instead of raising it: raised inside a callback it would leave half an atom. The second raises."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _play(session: VirtualSession, length_ns: int, show: Progress) -> bool:
    """Play the synthetic exchange for `length_ns`, and return whether Ctrl-C ended it before."""
    exchange = session.exchange
    assert isinstance(exchange, MatchingExchange)
    first, interrupted = exchange.now_ns, False
    step = max(1, length_ns // 100)
    try:
        with _interrupts() as asked:
            for at in range(first + step, first + length_ns + step, step):
                session.run_synthetic(min(at, first + length_ns))
                show(min(at - first, length_ns), length_ns)
                if asked:
                    break
        interrupted = bool(asked)
    except KeyboardInterrupt:
        interrupted = True
    session.stop()
    return interrupted


def _bar(shown: bool) -> Progress:
    """Return a progress bar, with rate and time left: tqdm's in a notebook, rich's in a terminal."""
    if not shown:
        return lambda done, total: None
    return _notebook_bar() if "ipykernel" in sys.modules else _terminal_bar()


def _notebook_bar() -> Progress:
    from tqdm.auto import tqdm

    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, unit=" rows", unit_scale=True, desc="backtest", leave=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def _terminal_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed / 1e6:.2f} M rows/s" if task.speed else ""

    columns = (TextColumn("backtest"), BarColumn(), TaskProgressColumn(), Rate(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("backtest", total=None)
    bar.start()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    return show
