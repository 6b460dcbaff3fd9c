"""A market feed: keeps one stream connection to a venue alive and turns its messages into rows.

The venue's rules (subscribe, join snapshot and deltas, gaps, staleness) are the sans-I/O `MarketConnection`; this
module gives it sockets and time. Three things keep it honest: a socket that connects and says nothing is closed after
``silence_s`` and tried again; reconnects back off from 0.1 s to 10 s with jitter, so that a venue's restart is not met
by a herd; and every book is RESYNCING from the moment its connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hftlab.clock import now_ns
from hftlab.core.errors import HftlabError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, RowArray
from hftlab.feeds.transport import Link, connect
from hftlab.venues.binance.connection import MarketConnection
from hftlab.venues.binance.spec import Urls, depth_path

if TYPE_CHECKING:
    import aiohttp

__all__ = ["MarketFeed", "backoff_s"]


def backoff_s(attempt: int, chance: float) -> float:
    """Return how long to wait before reconnect number `attempt` (from 0): 0.1 s doubling to 10 s, less up to half.

    Examples
    --------
    >>> backoff_s(0, 0.0), backoff_s(20, 1.0)
    (0.1, 5.0)
    """
    return min(10.0, 0.1 * 2.0 ** min(attempt, 10)) * (1 - chance / 2)


class MarketFeed:
    """Market data of one venue's instruments.

    Parameters
    ----------
    instruments : sequence of Instrument
    urls : Urls
        Where the venue listens.
    deliver : callable(rows, received_ns)
        Takes each message's rows; they are overwritten by the next.
    session : aiohttp.ClientSession
        For REST snapshots.
    transport : str
        See `hftlab.feeds.transport.connect`.
    silence_s : float
        A connection that has brought nothing for so long is closed.

    Attributes
    ----------
    reconnects, frames : int
    last_frame_ns : int
        When the last message came.
    last_error : str
        What ended the last connection or failed the last attempt; empty if nothing has.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        urls: Urls,
        deliver: Callable[[RowArray, int], None],
        session: aiohttp.ClientSession,
        *,
        transport: str = "picows",
        silence_s: float = 10.0,
        stale_s: float = 3.0,
    ) -> None:
        self.connection = MarketConnection(instruments, stale_ns=int(stale_s * 1e9))
        self.instruments = instruments
        self.reconnects = self.frames = self.last_frame_ns = 0
        self.last_error = ""
        self._urls, self._deliver, self._session = urls, deliver, session
        self._transport, self._silence_s = transport, silence_s
        self._out = np.zeros(max(16384, self.connection.rows_needed), ROW)
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._link: Link | None = None
        self._random = random.Random(now_ns())

    async def run(self) -> None:
        """Connect, read, reconnect, until cancelled."""
        attempt = 0
        while True:
            closed = asyncio.Event()
            try:
                self._link = await connect(self._urls.stream, self._on_message, closed.set, transport=self._transport)
                self.connection.on_open(now_ns())
                self._link.send(self.connection.subscribe_request([i.id for i in self.instruments]))
                before = self.frames
                await self._watch(closed)
                attempt = attempt if self.frames == before else 0
                self.last_error = self.last_error or "the venue closed the connection"
            except (OSError, TimeoutError, HftlabError) as error:
                self.last_error = f"{type(error).__name__}: {error}"
            finally:
                await self._drop()
            self.reconnects += 1
            await asyncio.sleep(backoff_s(attempt, self._random.random()))
            attempt += 1

    async def _watch(self, closed: asyncio.Event) -> None:
        """Poll the connection's timers until it is closed or silent."""
        self.last_error = ""
        opened = self.last_frame_ns = now_ns()
        while not closed.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closed.wait(), 0.05)
            now = now_ns()
            n = self.connection.poll(now, self._out)
            if n:
                self._deliver(self._out[:n], now)
            self._fetch_wanted()
            if now - max(opened, self.last_frame_ns) > self._silence_s * 1e9:
                self.last_error = f"nothing received for {self._silence_s:g} s"
                return

    async def _drop(self) -> None:
        link, self._link = self._link, None
        for task in self._fetches.values():
            task.cancel()
        self._fetches.clear()
        n = self.connection.on_close(now_ns(), self._out)
        if n:
            self._deliver(self._out[:n], now_ns())
        if link is not None:
            await link.close()

    def _on_message(self, frame: bytes) -> None:
        now = now_ns()
        self.frames += 1
        self.last_frame_ns = now
        n = self.connection.on_frame(frame, now, self._out)
        if n:
            self._deliver(self._out[:n], now)
        self._fetch_wanted()

    def _fetch_wanted(self) -> None:
        for symbol in self.connection.wants_snapshot():
            running = self._fetches.get(symbol)
            if running is None or running.done():
                self._fetches[symbol] = asyncio.create_task(self._fetch(symbol))

    async def _fetch(self, symbol: str) -> None:
        """Ask for one snapshot; the connection asks again if it does not come or does not join."""
        import aiohttp

        url = self._urls.rest + depth_path(symbol, self.connection.snapshot_limit)
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                payload = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.last_error = f"snapshot of {symbol}: {type(error).__name__}: {error}"
            return
        now = now_ns()
        n = self.connection.on_snapshot(symbol, payload, now, self._out)
        if n:
            self._deliver(self._out[:n], now)
