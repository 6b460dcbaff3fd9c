"""Wire to wire: a frame leaves the venue's socket, the bytes of the order it causes come back to the venue's.

The venue is a process of its own with two bare WebSocket ports on loopback, and takes both ends of the time. On this
side run the classes that trade, on asyncio: `MarketFeed`, `HotPath` with engine, journal and market maker,
`BinanceBroker`. ``poll_*`` is a trader that never sleeps (``wait = "poll"``), and what the goal is about; ``warm_*``
sleeps between events and keeps its path warm, which is the default; the difference is what waking up costs. Both sides
keep to a core of their own, as ``hftlab serve --core`` does; the journal's helper goes where there is room.
``bare_*``: a message there and back between two processes that do nothing else, asleep never: how quiet the machine is.

Of a median of 44 us (polling) some 25 are the system's: the venue's send 10, the order's 8, its way 6. The tail is the
machine's: on the virtual machine where this was written, a loop that only reads the clock misses 16 us and more some
500 times a second.

The check: every tick is answered by two orders, and a replay of the journal gives every row again.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio, on_core
from hftlab.bench.tick_to_order import Desk, Figures, Market, percentiles
from hftlab.engine import replay
from hftlab.journal import read_all
from hftlab.strategies.maker import Maker

__all__ = ["GOALS", "prepare"]

GOALS = {"poll_p99_us": (100.0, 100.0)}

_PAUSE_S = 0.0015
_BARE_BYTES = 900


class _Answer:
    """What an HTTP client gives for a request: the one body there is."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aenter__(self) -> _Answer:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def read(self) -> bytes:
        return self._body


class _Rest:
    """Stands for the HTTP session of the feed: answers every request by a snapshot of the market as it is."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def get(self, url: str, **how: Any) -> _Answer:
        return _Answer(self._market.snapshot())


class _Wire:
    """Feed and broker of a desk on an event loop that runs while a round does."""

    def __init__(self, plan: Plan) -> None:
        self.market, self.desk = Market(2), Desk(plan.folder)
        self._peer: PeerProcess = plan.peer("wire", (), "own core")
        self._loop = asyncio.new_event_loop()
        self._asking = ThreadPoolExecutor(1)
        self._loop.run_until_complete(self._connect())
        atexit.register(self.close)

    def close(self) -> None:
        """Close both connections and the journal."""
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()
        self._asking.shutdown()
        self.desk.close()

    async def _connect(self) -> None:
        desk, ports = self.desk, self._peer.ask(op="listen")
        desk.broker._urls = replace(desk.broker._urls, ws_api=f"ws://127.0.0.1:{ports['orders']}/")
        desk.start()
        tasks = [asyncio.create_task(desk.broker.run())]
        await _until(lambda: desk.broker.connected, desk)
        feed = desk.feed(f"ws://127.0.0.1:{ports['stream']}/", _Rest(self.market))
        tasks.append(asyncio.create_task(feed.run()))
        self._tasks = tasks
        await _until(lambda: bool(desk.connection.books[0].synced), desk)
        await asyncio.get_running_loop().run_in_executor(self._asking, lambda: self._peer.ask(op="ready", orders=2))

    def round(self, n: int, *, polling: bool) -> list[int]:
        """Return the times of `n` ticks, ns."""
        frames = [self.market.frame().decode() for _ in range(n)]
        gc.collect()
        gc.disable()
        try:
            with on_core(-1):
                return self._loop.run_until_complete(self._round(frames, polling))
        finally:
            gc.enable()

    async def _round(self, frames: list[str], polling: bool) -> list[int]:
        keeping = asyncio.create_task(self.desk.warmer.keep(polling=polling))
        try:
            told = await asyncio.get_running_loop().run_in_executor(
                self._asking, lambda: self._peer.ask(op="round", frames=frames, pause_s=_PAUSE_S, orders_each=2)
            )
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        return list(told["times"])

    def check(self, n: int) -> None:
        before = self.desk.engine.counters()
        self.round(n, polling=True)
        after = self.desk.engine.counters()
        ordered = sum(after[k] - before[k] for k in ("submits", "replaces"))
        if ordered != 2 * n:
            raise CheckFailed(f"wire: {ordered} orders for {n} ticks; expected two each")
        if not replay(read_all(self.desk.folder), self.desk.definitions, Maker()).identical:
            raise CheckFailed("wire: a replay of the journal gives other rows")


class _Bare:
    """A process that sends back what comes."""

    def __init__(self, plan: Plan) -> None:
        self._peer = plan.peer("wire", (), "own core")
        self._port = self._peer.ask(op="bare")["port"]

    def round(self, n: int) -> list[int]:
        """Return the times of `n` messages there and back, ns."""
        with ThreadPoolExecutor(1) as asking:
            told = asking.submit(lambda: self._peer.ask(op="echo", bytes=n * _BARE_BYTES))
            with on_core(-1), socket.create_connection(("127.0.0.1", self._port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                times = [_there_and_back(connection) for _ in range(n)]
            told.result()
        return times


def _there_and_back(connection: socket.socket) -> int:
    left, started = _BARE_BYTES, time.perf_counter_ns()
    connection.send(bytes(_BARE_BYTES))
    while left:
        with contextlib.suppress(BlockingIOError):
            left -= len(connection.recv(left))
    return time.perf_counter_ns() - started


async def _until(true: Callable[[], bool], desk: Desk) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise CheckFailed(f"wire: the desk did not connect: {desk.broker.last_error or 'no answer'}")


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases, both sides connected and checked."""
    wire, n = _Wire(plan), plan.sized(600, 20)
    wire.check(plan.sized(200, 20))

    def run(name: str, polling: bool) -> Callable[[], dict[str, float]]:
        return lambda: percentiles(wire.round(n, polling=polling), name, 50, 90, 99)

    names = ["p50_us", "p90_us", "p99_us"]
    cases = Figures(run("poll_", True), [f"poll_{name}" for name in names]).cases()
    cases += Figures(run("warm_", False), [f"warm_{name}" for name in names]).cases()
    bare = _Bare(plan)
    there_and_back = Figures(lambda: percentiles(bare.round(n), "bare_", 50, 99), ["bare_p50_us", "bare_p99_us"])
    cases += there_and_back.cases()
    return cases, []
