"""From rows to sent orders: what happens to a tick between the feed and the socket, and how long it takes.

One object and no layer more than needed: `on_market` is what a feed calls for each message, and everything up to the
call of send happens inside it. The engine publishes the atom, the broker sends what was published, and the SENT rows
(the real send times) follow as the next input, before anything else can come.

**Latency, always on.** Kernel hops are counted by the engine's loop and by the encoder. A hop in Python costs one
reading of the clock and one store (some 90 ns); the loop counts it at its next entry. All of them use the wall clock
that rows carry, so a step of the clock shows as one wrong duration.

**Kept warm.** A path that runs once in 20 ms runs from cold caches and takes ten to twenty times as long as one that
runs at once again (measured: 145 us against 8 us). So while nothing happens, `Warmer.run` sends a made-up tick down
the same code: the decoder, an engine of its own with the same compiled strategy, the real encoder; nothing leaves it,
and no state that matters is touched. It also touches the memory that the next real tick needs: the book, the order
table, the next rows of the journal. It is done in pieces with a turn of the event loop after each, so that a tick which
arrives meanwhile waits for one piece, not for all: that is the price, and ``wait = "sleep"`` in the specification
declines it. A strategy in plain Python is not run twice
(it may hold anything); for it the rest is kept warm.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from hftlab.brokers.binance import report_rows
from hftlab.clock import now_ns
from hftlab.core.decimals import DecimalGrid
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, ExecType, Flag, Kind, OrdStatus, RowArray, Tif, new_rows
from hftlab.engine import Engine, Sink, control_row
from hftlab.feeds.transport import Poller
from hftlab.kernels.jit import address_of, cycle_counter, kernel, load, store
from hftlab.kernels.ladder import level_qty
from hftlab.kernels.latency import DECODE, ENGINE_CALL, HAS_COUNTER, TICK_TO_ORDER, Latency
from hftlab.kernels.orders import instrument_address
from hftlab.kernels.state import ATOM_ROWS, ORDER, engine_at, instrument_at
from hftlab.strategy import Strategy
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["Broker", "HotPath", "Warmer", "ns_per_cycle"]

_WARM_NS, _WARM_S = 1_000_000, 0.001
"""After how long without rows the path is kept warm, and how often that is looked at."""
_CALIBRATION_NS = 2_000_000
_TOUCHED_ROWS = 256
_TOUCHED_LEVELS = 64
_ORDER_BYTES = ORDER.itemsize


class Broker(Protocol):
    """What the hot path asks of a broker."""

    def send(self, commands: RowArray) -> RowArray:
        """Send order rows; return what is to be journaled of it."""
        ...


@kernel("int64()")
def _cycles() -> int:
    return cycle_counter()  # type: ignore[no-any-return]  # an intrinsic is untyped


def ns_per_cycle() -> float:
    """Return how long a step of the cycle counter is, ns, by watching it for 2 ms; 0 where it may not be read.

    The reading between two clock readings that lie closest counts: a process that loses the CPU in between does not
    spoil it.
    """
    if not HAS_COUNTER:
        return 0.0

    def pair() -> tuple[int, int]:
        found = []
        for _ in range(20):
            before = time.perf_counter_ns()
            cycles = _cycles()
            after = time.perf_counter_ns()
            found.append((after - before, (before + after) // 2, int(cycles)))
        return min(found)[1:]

    pair()
    at, cycles = pair()
    while time.perf_counter_ns() - at < _CALIBRATION_NS:
        pass
    later_at, later = pair()
    return (later_at - at) / (later - cycles)


class HotPath:
    """One session's way from rows to sent orders.

    Parameters
    ----------
    engine : Engine
    sink : Sink
        The journal's writer.
    latency : Latency
        Where the hops are counted.
    failed : callable(error), optional
        Told of whatever is raised, before it is raised: an engine that has missed a row must not go on.

    Attributes
    ----------
    broker : Broker
        Set before the first order.
    last_row_ns : int
        When rows came last.
    """

    broker: Broker

    def __init__(
        self, engine: Engine, sink: Sink, latency: Latency, failed: Callable[[BaseException], None] = lambda error: None
    ) -> None:
        self.engine, self.sink, self.latency = engine, sink, latency
        self.last_row_ns = self._touched = 0
        self._failed = failed
        self._noted = latency.noted
        engine.measure(latency)
        engine.arena[:: mmap.PAGESIZE // 8] += 0  # a store into each page now, not at the first order that needs it

    def on_market(self, rows: RowArray, received_ns: int) -> None:
        """Take the rows of a message that was received at `received_ns`; send what they cause."""
        try:
            started = self.last_row_ns = now_ns()
            noted, engine, sink = self._noted, self.engine, self.sink
            noted[DECODE] = started - received_ns
            if engine.process(rows, sink):
                decided = now_ns()
                done = self.broker.send(engine.commands())
                noted[TICK_TO_ORDER] = now_ns() - received_ns
                noted[ENGINE_CALL] = decided - started
                engine.process(done, sink)
            if sink.seq > self._touched:
                self._touch_ahead()
        except BaseException as error:
            self._failed(error)
            raise

    def _touch_ahead(self) -> None:
        """Write into the pages of the next rows: the first store after a page was flushed costs some 5 us, here."""
        _touch_rows(self.sink.ensure(ATOM_ROWS)[0])
        self._touched = self.sink.seq + _TOUCHED_ROWS // 2

    def process(self, rows: RowArray) -> None:
        """Take rows that are no market data: reports, timers, control."""
        try:
            self.last_row_ns = now_ns()
            engine, sink = self.engine, self.sink
            if engine.process(rows, sink):
                engine.process(self.broker.send(engine.commands()), sink)
        except BaseException as error:
            self._failed(error)
            raise


@kernel("int64(int64)")
def _touch_rows(rows: int) -> int:
    """Write zeros over the first words of the next rows, which are unwritten."""
    for row in range(_TOUCHED_ROWS):
        store(rows + 64 * row, 0)
    return 0


@kernel("int64(int64)")
def _touch_arena(arena: int) -> int:
    """Read what the next tick needs of the arena."""
    e = engine_at(arena)
    total = 0
    for at in range(0, e.off_orders, 64):
        total += load(arena + at)
    first = max(0, (e.next_order_id & e.order_mask) - 8)
    for slot in range(first, min(first + 16, e.order_mask + 1)):
        order = arena + e.off_orders + slot * _ORDER_BYTES
        total += load(order) + load(order + 64)
    for k in range(e.n_instruments):
        inst = instrument_at(instrument_address(arena, k))
        for level in range(0, _TOUCHED_LEVELS, 4):
            total += level_qty(arena + inst.off_bids, level) + level_qty(arena + inst.off_asks, level)
    return total  # so that the reads are not left out


class _Nowhere:
    """A sink that keeps nothing."""

    seq = 0

    def __init__(self) -> None:
        self._rows = np.zeros(ATOM_ROWS + 256, ROW)  # an atom's room is left after each row: the loop is entered once
        self._at = address_of(self._rows)

    def ensure(self, rows: int) -> tuple[int, int]:
        return self._at, len(self._rows)

    def commit(self, rows: int) -> None:
        pass


class _MadeUpMarket:
    """A market that does not exist: its price goes up and down, each time by one message through a real decoder."""

    def __init__(self, instrument: Instrument) -> None:
        self._connection = MarketConnection([instrument])
        self._px, self._qty = DecimalGrid.of_px(instrument), DecimalGrid.of_qty(instrument)
        self._symbol, self._out = instrument.symbol, np.zeros(max(16384, self._connection.rows_needed), ROW)
        self._id = 0
        self._levels = [self._sides(_MID + _STEP, _MID), self._sides(_MID, _MID + _STEP)]
        now = now_ns()
        self._connection.on_open(now)
        self._connection.on_frame(self._frame(), now, self._out)
        bids, asks = self._levels[0]
        snapshot = f'{{"lastUpdateId":0,"bids":{bids},"asks":{asks}}}'.encode()
        self.opening = self._out[: self._connection.on_snapshot(self._symbol, snapshot, now, self._out)].copy()

    def _sides(self, before: int, mid: int) -> tuple[str, str]:
        """Return bids and asks of a book around `mid`, and the removals of what the move from `before` passed."""
        told = []
        for away in (-1, 1):
            levels = [(mid + away * k, self._qty.text(1000)) for k in range(1, 11)]
            if away * (mid - before) > 0:
                levels += [(before + away * k, "0") for k in range(1, _STEP + 1)]
            told.append("[" + ",".join(f'["{self._px.text(px)}","{qty}"]' for px, qty in levels) + "]")
        return told[0], told[1]

    def _frame(self) -> bytes:
        bids, asks = self._levels[self._id & 1]
        self._id += 1
        event = f'{{"e":"depthUpdate","E":{self._id},"s":"{self._symbol}","U":{self._id},"u":{self._id},'
        return f'{{"stream":"x","data":{event}"b":{bids},"a":{asks}}}}}'.encode()

    def tick(self) -> RowArray:
        """Return the rows of the next message."""
        return self._out[: self._connection.on_frame(self._frame(), now_ns(), self._out)]


_REPLIES = {
    int(Kind.SUBMIT): (ExecType.ACK, OrdStatus.NEW),
    int(Kind.REPLACE_ORDER): (ExecType.REPLACED, OrdStatus.NEW),
    int(Kind.CANCEL): (ExecType.CANCELED, OrdStatus.CANCELED),
}
_MID, _STEP = 1_000_000, 4


class Warmer:
    """Sends made-up ticks down the path while nothing happens; see the module.

    Parameters
    ----------
    path : HotPath
        Whose code and memory are kept warm.
    rehearse : callable(commands, now_ms)
        Encodes an order row and forgets it.
    """

    def __init__(self, path: HotPath, rehearse: Callable[[RowArray, int], None]) -> None:
        definitions = path.engine.definitions
        limits = tuple(replace(limit, orders_per_s=1_000_000_000) for limit in definitions.limits)
        strategy = path.engine.strategy
        own = strategy if isinstance(strategy, Strategy) and strategy.compiled else None
        self._path, self._rehearse = path, rehearse
        self._engine, self._sink = Engine(replace(definitions, limits=limits), own), _Nowhere()
        self._market = _MadeUpMarket(definitions.instruments[0])
        self._order = new_rows(1)
        self._order["kind"], self._order["flags"], self._order["code"] = Kind.SUBMIT, Flag.BID, Tif.GTC
        self._order["px"], self._order["qty"], self._order["a"] = _MID, 1000, 1
        self._arena = address_of(path.engine.arena)
        self._replies = {kind: report_rows(0, 0, 0, *reply, 0) for kind, reply in _REPLIES.items()}
        self._engine.process(control_row("start", now_ns()), self._sink)
        for order in self._decide(self._market.opening):
            self._answer(*order)

    def run(self) -> None:
        """Send one made-up tick."""
        for _ in self.pieces():
            pass

    async def keep(self, *, polling: bool) -> None:
        """Send a made-up tick each millisecond in which nothing happened, until cancelled.

        Parameters
        ----------
        polling : bool
            Never let the event loop sleep: for a core of its own.
        """
        path, warmed = self._path, 0
        poller = Poller() if polling else None
        while True:
            await asyncio.sleep(0 if polling else _WARM_S)
            if poller is not None:
                poller.turn()
            if now_ns() - max(path.last_row_ns, warmed) > _WARM_NS:
                for _ in self.pieces():
                    await asyncio.sleep(0)  # what has come meanwhile goes first
                warmed = now_ns()

    def pieces(self) -> Iterator[None]:
        """Send one made-up tick, a piece for each step of the iteration."""
        rows = self._market.tick()
        yield
        orders = self._decide(rows)
        yield
        for kind, order, side in orders:
            self._answer(kind, order, side)
            yield
        self._rehearse(self._order, now_ns() // 1_000_000)
        yield
        _touch_arena(self._arena)
        _touch_rows(self._path.sink.ensure(ATOM_ROWS)[0])

    def _decide(self, rows: RowArray) -> list[tuple[int, int, int]]:
        """Give rows to the engine; return kind, number and side of the orders they cause."""
        if not self._engine.process(rows, self._sink):
            return []
        commands = self._engine.commands()
        sides = commands["flags"] & (Flag.BID | Flag.ASK)
        return list(zip(commands["kind"].tolist(), commands["a"].tolist(), sides.tolist(), strict=True))

    def _answer(self, kind: int, order: int, side: int) -> None:
        """Have the venue agree to an order; what is no order (a payload row) is passed over."""
        if (report := self._replies.get(kind)) is not None:
            report["a"][0], report["flags"][0], report["ts_recv"][0] = order, side, now_ns()
            self._engine.process(report, self._sink)
