"""A market feed: keeps one stream connection to a venue alive and turns its messages into rows.

The venue's rules (subscribe, join snapshot and deltas, gaps, checksums, staleness) are its sans-I/O connection, of the
one shape that `VenueConnection` describes; this module gives it sockets and time. Three things keep it honest: a socket
that connects and says nothing is closed after ``silence_s`` and tried again; reconnects back off from 0.1 s to 10 s
with jitter, so that a venue's restart is not met by a herd; and every book is RESYNCING from the moment its connection
is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hftlab.clock import now_ns
from hftlab.core.errors import HftlabError
from hftlab.core.rows import ROW, RowArray
from hftlab.feeds.transport import SPAN_BYTES, Link, Messages, connect

if TYPE_CHECKING:
    import aiohttp

__all__ = ["MarketFeed", "VenueConnection", "backoff_s"]

_EARLY_FRAMES = 64
_TOGETHER = 32
"""Messages of one read that are taken at once: an order that the first causes waits for the others, some 35 us."""


def backoff_s(attempt: int, chance: float) -> float:
    """Return how long to wait before reconnect number `attempt` (from 0): 0.1 s doubling to 10 s, less up to half.

    Examples
    --------
    >>> backoff_s(0, 0.0), backoff_s(20, 1.0)
    (0.1, 5.0)
    """
    return min(10.0, 0.1 * 2.0 ** min(attempt, 10)) * (1 - chance / 2)


TakeSpans = Callable[[int, int, int, RowArray], tuple[int, int]]


class VenueConnection(Protocol):
    """What a feed asks of a venue's market data connection: a state machine without a socket.

    Every method that takes `out` writes rows to its front and returns how many; `out` has at least `rows_needed` rows.
    After each of them the feed asks `wants_send` and `wants_snapshot`. A connection may also have
    ``on_spans(spans, n, now_ns, out) -> (messages taken, rows)``, which reads `n` messages of one read where they lie:
    `spans` is the address of their addresses and lengths (pairs of int64), valid during the call; at least one is
    taken.
    """

    @property
    def rows_needed(self) -> int:
        """Rows that one call may write at most."""
        ...

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the messages that subscribe to the instruments `ids`, in order."""
        ...

    def wants_send(self) -> list[bytes]:
        """Return messages to be sent now, each once: resubscriptions, pongs."""
        ...

    def wants_snapshot(self) -> list[str]:
        """Return the symbols whose REST snapshot is to be fetched now, each once."""
        ...

    def snapshot_path(self, symbol: str) -> str:
        """Return the REST path, with its query, of the snapshot of `symbol`."""
        ...

    def on_open(self, now_ns: int) -> None:
        """A new connection is up."""
        ...

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        """Take one message."""
        ...

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        """Take the body of the answer to a snapshot request."""
        ...

    def poll(self, now_ns: int, out: RowArray) -> int:
        """Look at the clock: staleness, overdue snapshots."""
        ...

    def on_close(self, now_ns: int, out: RowArray) -> int:
        """The connection is gone: every book that was in sync is RESYNCING."""
        ...


class MarketFeed:
    """Market data of one venue connection.

    Parameters
    ----------
    connection : VenueConnection
        The venue's rules.
    ids : sequence of int
        Instruments to subscribe to.
    stream, rest : str
        Where the venue listens: the ws:// address of the stream, the http:// root of its snapshots.
    deliver : callable(rows, received_ns)
        Takes each message's rows; they are overwritten by the next.
    session : aiohttp.ClientSession
        For REST snapshots.
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
        connection: VenueConnection,
        ids: Sequence[int],
        stream: str,
        rest: str,
        deliver: Callable[[RowArray, int], None],
        session: aiohttp.ClientSession,
        *,
        silence_s: float = 10.0,
    ) -> None:
        self.connection = connection
        self.ids = list(ids)
        self.reconnects = self.frames = self.last_frame_ns = 0
        self.last_error = ""
        self._stream, self._rest, self._deliver, self._session = stream, rest, deliver, session
        self._silence_s = silence_s
        self._out = np.zeros(max(16384, connection.rows_needed), ROW)
        self._take: TakeSpans | None = getattr(connection, "on_spans", None)
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._link: Link | None = None
        # A venue's greeting may come before `connect` returns: it waits for on_open. Nothing is subscribed by then, so
        # a flood loses its oldest
        self._early: deque[bytes] = deque(maxlen=_EARLY_FRAMES)
        self._random = random.Random(now_ns())

    async def run(self) -> None:
        """Connect, read, reconnect, until cancelled."""
        attempt = 0
        while True:
            closed = asyncio.Event()
            try:
                before = self.frames
                self._early.clear()
                link = await connect(self._stream, self._on_messages, closed.set)
                self._open(link)
                await self._watch(closed)
                attempt = attempt if self.frames == before else 0
                self.last_error = self.last_error or link.failure or "the venue closed the connection"
            except (OSError, TimeoutError, HftlabError) as error:
                self.last_error = f"{type(error).__name__}: {error}"
            finally:
                await self._drop()
            self.reconnects += 1
            await asyncio.sleep(backoff_s(attempt, self._random.random()))
            attempt += 1

    def _open(self, link: Link) -> None:
        self._link = link
        self.connection.on_open(now_ns())
        for request in self.connection.subscribe_requests(self.ids):
            link.send(request)
        while self._early:
            self._on_message(self._early.popleft())

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
            self._do_wanted()
            if now - max(opened, self.last_frame_ns) > self._silence_s * 1e9:
                self.last_error = f"nothing received for {self._silence_s:g} s"
                return

    async def _drop(self) -> None:
        link, self._link = self._link, None
        for task in self._fetches.values():
            task.cancel()
        self._fetches.clear()
        now = now_ns()
        n = self.connection.on_close(now, self._out)
        if n:
            self._deliver(self._out[:n], now)
        if link is not None:
            await link.close()

    def _on_message(self, frame: bytes) -> None:
        now = now_ns()
        self.frames += 1
        self.last_frame_ns = now
        n = self.connection.on_frame(frame, now, self._out)
        if n:
            self._deliver(self._out[:n], now)
        self._do_wanted()

    def _on_messages(self, messages: Messages) -> None:
        """Take messages that came in one read."""
        take, left = self._take, messages.count
        if self._link is None:
            self._early.extend(messages)
            return
        if take is None:
            for frame in messages:
                self._on_message(frame)
            return
        now = self.last_frame_ns = now_ns()
        self.frames += left
        out, spans = self._out, messages.address
        while left:
            done, n = take(spans, min(left, _TOGETHER), now, out)
            left -= done
            spans += SPAN_BYTES * done
            if n:
                self._deliver(out[:n], now)
        self._do_wanted()

    def _do_wanted(self) -> None:
        """Send and fetch what the connection asks for."""
        if self._link is not None:
            for message in self.connection.wants_send():
                self._link.send(message)
        for symbol in self.connection.wants_snapshot():
            running = self._fetches.get(symbol)
            if running is None or running.done():
                self._fetches[symbol] = asyncio.create_task(self._fetch(symbol))

    async def _fetch(self, symbol: str) -> None:
        """Ask for one snapshot; the connection asks again if it does not come or does not join."""
        import aiohttp

        url = self._rest + self.connection.snapshot_path(symbol)
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                payload = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.last_error = f"snapshot of {symbol}: {type(error).__name__}: {error}"
            return
        finally:
            self._fetches.pop(symbol, None)  # before it may be wanted again
        now = now_ns()
        n = self.connection.on_snapshot(symbol, payload, now, self._out)
        if n:
            self._deliver(self._out[:n], now)
        self._do_wanted()
