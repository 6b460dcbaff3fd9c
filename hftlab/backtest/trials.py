"""One trial of a sweep: a market laid down once, a backtest on it, and what it earned step by step.

**Shared data.** A sweep writes its market to two files, rows and the times they were at the exchange, and every worker
maps them, read only: a machine holds one copy in its page cache, whatever the number of workers and trials, and a
worker on another machine reads it by path. Nothing of the market is copied: the kernel reads the mapping.

**Steps.** The time of the market is cut into `STEPS` equal steps. Where the mid stood at each border is found once, for
all trials; what a trial earned in a step is then exact integer arithmetic on its own fills: cash, position times mid,
fees. So a trial costs its backtest and little else, and every interval, of training or testing, is a sum of steps: one
run an assignment of parameters, however many splits judge it.

**When it is wrong.** A strategy is not started anew for each test: it enters a test with the position and the memory it
then has, as it would when traded; a gap of the splits keeps the two apart. A border of an interval that falls within a
step loses that step. Without a two-sided book a position is marked at the last mid there was.

**Workers** are processes that are started once, import and compile once, and are handed trials one at a time over a
socket pair. A worker whose parent is gone ends by itself; what a dead worker was at is known to its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import NO_PX, REPORT_PAYLOAD, ROW, ExecType, Flag, Kind, RowArray
from hftlab.engine import Engine, Replica, RowBuffer
from hftlab.journal import run_hash
from hftlab.sim.models import Fees, Impact, Latency, Queue
from hftlab.sim.recorded import RecordedMarket, exchange_times
from hftlab.strategy import PythonStrategy, Strategy, load_strategy

__all__ = ["MARKS", "Market", "Outcome", "ROWS", "SLICES", "STEPS", "Setup", "Steps", "TIMES", "lay_market",
           "open_market", "run_here", "run_trial",
           "serve", "step_borders"]  # fmt: skip

STEPS = 500
"""Steps that the time of a market is cut into."""

SLICES = 4
"""Parts after which a trial can be given up: three times, before the last."""

ROWS, TIMES, MARKS = "rows.bin", "times.bin", "marks.npz"
_ORDERS = "orders.npy"

_CHUNK_ROWS = 1_000_000

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Setup:
    """What all trials of a sweep have in common; small, and sent to each worker once.

    Parameters
    ----------
    folder : str
        Where the market lies; on a cluster, a path that every worker can read.
    source, name : str
        The strategy's source and class.
    params : dict
        Parameters that are not searched.
    compiled : bool
    instruments, limits : tuple
    latency, queue, fees, impact
        See `hftlab.sim.models`.
    seed : int
        Of ``ctx.random()``.
    judged_ns : int
        Where the last test begins: a trial is given up by what it did before.
    path : tuple of str
        Where Python looks for modules.
    """

    folder: str
    source: str
    name: str
    params: dict[str, Any]
    compiled: bool
    instruments: tuple[Instrument, ...]
    limits: tuple[Limits, ...]
    latency: Latency
    queue: Queue
    fees: Fees
    impact: Impact
    seed: int
    judged_ns: int
    path: tuple[str, ...] = ()

    def strategy(self, params: Mapping[str, Any]) -> Strategy | PythonStrategy:
        """Return the strategy with `params`; its class is loaded, and compiles, once a process."""
        return _load_class(self.source, self.name, self.compiled)({**self.params, **params})


@lru_cache(maxsize=4)
def _load_class(source: str, name: str, compiled: bool) -> Callable[[dict[str, Any]], Strategy | PythonStrategy]:
    """Return a function from parameters to a strategy of class `name`."""
    found = type(load_strategy(source, name, {}, compiled=compiled))
    if issubclass(found, Strategy):
        return lambda params: found(compiled=compiled, **params)
    return lambda params: found(**params)


@dataclass(frozen=True, slots=True)
class Market:
    """A mapped market, and the mids that every trial is marked at.

    Parameters
    ----------
    rows : array of ROW
    times : array of int64, shape (rows,)
        When each row was at the exchange, ns.
    orders : array of int64, optional
        Of a market by order: ``marks`` of a `hftlab.backtest.data.Tape`.
    borders : array of int64, shape (STEPS + 1,)
        Of the steps, ns.
    marks_x2 : array of int64, shape (instruments, STEPS + 1)
        Twice the mid at each border, ticks; 0 before there was one.
    """

    rows: RowArray
    times: Int64s
    orders: Int64s | None
    borders: Int64s
    marks_x2: Int64s


@dataclass(frozen=True, slots=True)
class Steps:
    """What a trial did in each step: arrays of shape (STEPS,), amounts in the quote asset."""

    net: Floats
    fees: Floats
    fills: Int64s
    turnover: Floats


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Parameters
    ----------
    number : int
    params : dict
    state : str
        ``done``, ``pruned`` or ``failed``.
    steps : Steps, optional
        Of a trial that is done.
    error : str
        Of a failed trial, a sentence.
    seconds : float
        It took.
    run_hash : str
        Of a trial that is done: the hash that `hftlab.backtest.runner.Result` gives the same run.
    slices : tuple of float
        The objective after each part, where trials can be given up.
    """

    number: int
    params: dict[str, Any]
    state: str
    steps: Steps | None = None
    error: str = ""
    seconds: float = 0.0
    run_hash: str = ""
    orders: int = 0
    worker: int = field(default_factory=os.getpid)
    slices: tuple[float, ...] = ()


# --- the market -------------------------------------------------------------------------------------------------------


def lay_market(
    folder: Path,
    rows: RowArray,
    instruments: tuple[Instrument, ...],
    latency: Latency,
    orders: Int64s | None = None,
) -> None:
    """Write a market into `folder` for workers to map: all of a file, or none of it."""
    folder.mkdir(parents=True, exist_ok=True)
    borders = step_borders(rows)
    marks = _marks(rows, borders, instruments)
    for name, array in ((ROWS, rows), (TIMES, exchange_times(rows, latency.feed_ns)[0])):
        part = folder / f"{name}.part"
        np.ascontiguousarray(array).view(np.uint8).tofile(part)
        part.replace(folder / name)
    if orders is not None:
        np.save(folder / _ORDERS, orders)
    with open(folder / f"{MARKS}.part", "wb") as file:
        np.savez(file, borders=borders, marks_x2=marks)
    (folder / f"{MARKS}.part").replace(folder / MARKS)  # the last of them: when it is there, all are


def open_market(folder: Path) -> Market:
    """Map the market in `folder`."""
    # Seen as plain arrays: the mapping lives as long as they do.
    rows = np.memmap(folder / ROWS, ROW, "r").view(np.ndarray)
    times = np.memmap(folder / TIMES, np.int64, "r").view(np.ndarray)
    by_order = (folder / _ORDERS).exists()
    orders = np.load(folder / _ORDERS, mmap_mode="r").view(np.ndarray) if by_order else None
    with np.load(folder / MARKS) as marks:
        return Market(rows, times, orders, marks["borders"], marks["marks_x2"])


def step_borders(rows: RowArray) -> Int64s:
    """Return the borders of the steps, ns: from the first row to the latest."""
    first, last = int(rows["ts_recv"][0]), int(rows["ts_recv"].max())
    if last - first < STEPS:
        raise ConfigError(f"data: {last - first} ns from its first row to its last; expected at least {STEPS}")
    return np.array([first + (last - first) * k // STEPS for k in range(STEPS + 1)], np.int64)


def _marks(rows: RowArray, borders: Int64s, instruments: tuple[Instrument, ...]) -> Int64s:
    """Return twice the mid of each instrument at each border, ticks."""
    received = np.maximum.accumulate(rows["ts_recv"])
    limits = (Limits(max_order_qty=1, max_notional=1, max_position=1, collar_ticks=1),) * len(instruments)
    book = Replica(Definitions("marks", "backtest", instruments, limits, StrategyRef("none", "")))
    marks = np.zeros((len(instruments), STEPS + 1), np.int64)
    at = 0
    for k, upto in enumerate(np.searchsorted(received, borders, "right").tolist()):
        book.apply(rows[at:upto])
        at = upto
        for one in range(len(instruments)):
            bid, _, ask, _ = book.touch(one)
            known = bid != NO_PX and ask != NO_PX
            marks[one, k] = bid + ask if known else marks[one, k - 1] if k else 0
    return marks


# --- a trial ----------------------------------------------------------------------------------------------------------


def _steps_of(own: RowArray, market: Market, instruments: tuple[Instrument, ...]) -> Steps:
    """Return what the fills among a run's rows earned in each step; what came after the last border is in the last."""
    at = np.flatnonzero((own["kind"] == Kind.REPORT) & (own["code"] & 255 == ExecType.FILL))
    fills, payload = own[at], own.view(REPORT_PAYLOAD)[at + 1]
    step = np.clip(np.searchsorted(market.borders, fills["ts_recv"], "left") - 1, 0, STEPS - 1)
    fees: Floats = np.zeros(STEPS)
    np.add.at(fees, step, payload["fee"] * float(MONEY_SCALE))
    net, turnover = -fees, np.zeros(STEPS)
    for one in instruments:
        mine = fills["instrument"] == one.id
        unit = float(one.tick_size * one.lot_size)
        lots = np.where(fills["flags"][mine] & Flag.BID != 0, fills["qty"][mine], -fills["qty"][mine])
        value = _totals(step[mine], fills["px"][mine] * fills["qty"][mine])
        cash_x2 = -2 * _totals(step[mine], fills["px"][mine] * lots)
        position = np.cumsum(_totals(step[mine], lots))
        # worth at the later border, less worth at the earlier, of the position held there
        held_x2 = position * market.marks_x2[one.id, 1:]
        before_x2 = np.concatenate([np.zeros(1, np.int64), held_x2[:-1]])
        net += (cash_x2 + held_x2 - before_x2) * (unit / 2)
        turnover += value * unit
    return Steps(net, fees, np.bincount(step, minlength=STEPS).astype(np.int64), turnover)


def _totals(step: Int64s, amounts: Int64s) -> Int64s:
    """Return the sum of `amounts` of each step, exact."""
    out = np.zeros(STEPS, np.int64)
    np.add.at(out, step, amounts)
    return out


def run_trial(
    setup: Setup,
    market: Market,
    number: int,
    params: dict[str, Any],
    goes_on: Callable[[int, Steps], bool] | None = None,
) -> Outcome:
    """Run one trial and return how it ended; no error leaves it.

    Parameters
    ----------
    goes_on : callable(part, steps), optional
        Asked after each part but the last; False gives the trial up.
    """
    begun = time.perf_counter()

    def outcome(state: str, **what: Any) -> Outcome:
        return Outcome(number, params, state, seconds=time.perf_counter() - begun, **what)

    try:
        strategy = setup.strategy(params)
        ref = StrategyRef(type(strategy).__name__, "", strategy.param_values())
        engine = Engine(Definitions("backtest", "backtest", setup.instruments, setup.limits, ref, setup.seed), strategy)
        sink = RowBuffer()
        run = RecordedMarket(
            engine, market.rows, sink, latency=setup.latency, queue=setup.queue, fees=setup.fees, impact=setup.impact,
            keep=False, times=market.times, marks=market.orders,
        )  # fmt: skip
        run.start()
        for part, upto in enumerate(_parts(setup, market) if goes_on else []):
            _run_to(run, upto)
            if goes_on is not None and not goes_on(part, _steps_of(sink.rows(), market, setup.instruments)):
                return outcome("pruned")
        _run_to(run, len(market.rows))
        run.stop()
    except Exception as error:  # the sentence of a failed trial: the sweep goes on
        return outcome("failed", error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000])
    if engine.faults:
        fault = engine.faults[0]
        return outcome("failed", error=f"fault in {fault.callback}: {fault.traceback.strip().splitlines()[-1]}")
    rows, counted = sink.rows(), engine.counters()
    return outcome(
        "done", steps=_steps_of(rows, market, setup.instruments), run_hash=run_hash(rows),
        orders=counted["submits"] + counted["replaces"],
    )  # fmt: skip


def _run_to(run: RecordedMarket, upto: int) -> None:
    while run.at < upto:
        run.run(min(run.at + _CHUNK_ROWS, upto))


def _parts(setup: Setup, market: Market) -> list[int]:
    """Return the rows up to which each part but the last goes: equal shares of the time before the last test."""
    first = int(market.borders[0])
    length = setup.judged_ns - first
    ends = [first + length * (k + 1) // SLICES for k in range(SLICES - 1)]
    return [int(k) for k in np.searchsorted(market.rows["ts_recv"], ends)]


# --- workers ----------------------------------------------------------------------------------------------------------


def serve(fd: int) -> None:
    """Run the trials that come over the socket `fd`, until it is closed: the whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what becomes of us
    with Connection(fd) as parent:
        try:
            setup: Setup = parent.recv()
            sys.path.extend(place for place in setup.path if place not in sys.path)
            market = open_market(Path(setup.folder))
            while True:
                number, params, prunes = parent.recv()

                def goes_on(part: int, steps: Steps, number: int = number) -> bool:
                    parent.send((number, part, steps))
                    return bool(parent.recv())

                parent.send(run_trial(setup, market, number, params, goes_on if prunes else None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception:
            parent.send(traceback.format_exc())
            raise


_ONE_AT_A_TIME = threading.Lock()
_MARKETS: dict[str, Market] = {}


def run_here(setup: Setup, number: int, params: dict[str, Any]) -> Outcome:
    """Run one trial in this process, as a cluster's worker does: the market is mapped at the first, by its path."""
    with _ONE_AT_A_TIME:
        if setup.folder not in _MARKETS:
            _MARKETS.clear()
            sys.path.extend(place for place in setup.path if place not in sys.path)
            _MARKETS[setup.folder] = open_market(Path(setup.folder))
        return run_trial(setup, _MARKETS[setup.folder], number, params)
