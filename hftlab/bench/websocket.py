"""websocket: a depth stream from a loopback socket to the engine's book, every row journaled, on one core.

A sender on another core streams 10,000 depthUpdates of 20 levels (735 bytes) as fast as they are taken. Ours is the
path of a session that trades: `MarketFeed` over its `Link`, `MarketConnection` (decoding, the sequence rule), `Engine`
(book, sorted), `JournalWriter` with its group fdatasync. The client is pinned to the first core where the system allows
it.

Figures: ``message_us`` is the CPU time a message of the whole process, the kernel's part of receiving and the journal's
helper thread included, to the moment when every row is flushed and every full block sealed: what one core is asked for,
whoever else uses the machine. The journal's next segment is there before, as in a session that runs.
``messages_per_s`` is by the clock, to the last message's row: it needs two idle cores to mean anything. The check
compares the best levels of the engine's book with a reference, and counts the journal's rows. Peer: websockets, msgspec
and a book in dicts, measured likewise.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable
from decimal import Decimal
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import aiohttp

from hftlab.bench.json import BTC, binance_depth, plain_book
from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio, on_core
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.rows import RowArray
from hftlab.engine import Engine
from hftlab.feeds.market import MarketFeed
from hftlab.journal.writer import JournalWriter
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["GOALS", "prepare"]

GOALS = {"message_vs_websockets": (5.0, 5.0), "messages_per_s": (500_000.0, 500_000.0)}

MESSAGES = 10_000
_LEVELS = 200
_PATIENCE_S = 60


class _Connection(MarketConnection):
    """Says ``go`` to the sender when its book is live, and when that was."""

    went = (0.0, 0.0)

    def wants_send(self) -> list[bytes]:
        if self.went[0] or not self.books[0].synced:
            return []
        self.went = time.perf_counter(), time.process_time()
        return [b"go"]


class _Rest:
    """An empty book for whoever asks: the snapshot before the first message."""

    def __init__(self, update_id: int) -> None:
        self.payload = b'{"lastUpdateId":%d,"bids":[],"asks":[]}' % update_id

    @contextlib.asynccontextmanager
    async def get(self, url: str, **_: Any) -> Any:
        """Return the answer."""

        async def read() -> bytes:
            return self.payload

        yield SimpleNamespace(read=read)


class _Stream:
    """The sender, and what its messages must give."""

    def __init__(self, plan: Plan) -> None:
        frames = binance_depth(plan.sized(MESSAGES, 300))
        self.n, self.rows = len(frames), 20 * len(frames)
        self.first, self.last = (_update_id(frame, key) for frame, key in ((frames[0], b'"U":'), (frames[-1], b'"u":')))
        self.plain = [
            sorted(((float(px), float(qty)) for px, qty in side.items()), reverse=k == 0)[:_LEVELS]
            for k, side in enumerate(plain_book(frames))
        ]
        path = plan.folder / "depth.frames"
        path.write_bytes(b"\n".join(frames))
        self.folder = plan.folder
        self.port = int(plan.peer("ws_sender", []).ask(op="prepare", path=str(path))["port"])
        limits = {"max_order": "1", "max_position": "1", "max_notional": "1", "collar": "1", "orders_per_s": 1}
        self.definitions = Definitions(
            "bench", "live", (BTC,), (Limits.from_decimals(BTC, limits),), StrategyRef("", "")
        )
        self.journals = count()

    def round(self) -> tuple[float, float]:
        """Take the stream once; return seconds by the clock and of CPU."""
        folder = self.folder / f"journal-{next(self.journals)}"
        with on_core(0), JournalWriter(folder, self.definitions.to_dict()) as writer:
            writer.ensure(3 * writer.room()[1] // 4 + 1)  # answers when the next segment is there
            engine = Engine(self.definitions)
            took = asyncio.run(self._take(engine, writer))
            written = writer.seq
        self._check(engine, written)
        shutil.rmtree(folder)
        return took

    async def _take(self, engine: Engine, writer: JournalWriter) -> tuple[float, float]:
        connection, done = _Connection([BTC]), asyncio.Event()
        sequence = connection.books[0].sequence

        def deliver(rows: RowArray, received_ns: int) -> None:
            engine.process(rows, writer)
            if sequence.last == self.last:
                done.set()

        rest = cast(aiohttp.ClientSession, _Rest(self.first - 1))
        feed = MarketFeed(connection, [0], f"ws://127.0.0.1:{self.port}/", "", deliver, rest)
        running = asyncio.create_task(feed.run())
        try:
            await asyncio.wait_for(done.wait(), _PATIENCE_S)
            now = time.perf_counter()
            while writer.behind:
                await asyncio.sleep(0.001)
            cpu = time.process_time()
        except TimeoutError:
            raise CheckFailed(f"websocket: the book stands at {sequence.last}: {feed.last_error}") from None
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        return now - connection.went[0], cpu - connection.went[1]

    def _check(self, engine: Engine, written: int) -> None:
        for side, levels in zip(engine.levels(0, _LEVELS), self.plain, strict=True):
            found = [
                (float(Decimal(px) * BTC.tick_size), float(Decimal(qty) * BTC.lot_size)) for px, qty in side.tolist()
            ]
            if found != levels:
                raise CheckFailed(f"websocket: the book begins {found[:3]}; expected {levels[:3]}")
        if written < self.rows:
            raise CheckFailed(f"websocket: the journal has {written} rows; expected {self.rows} and some")

    def peer_round(self, peer: PeerProcess) -> dict[str, Any]:
        """Let the peer take the stream once, and look at its book."""
        told = peer.ask(op="round", port=self.port, last=self.last, levels=_LEVELS)
        book = [[tuple(level) for level in told["bids"]][::-1], [tuple(level) for level in told["asks"]]]
        if book != self.plain:
            raise CheckFailed(f"websocket: the peer's book begins {book[0][:3]}; expected {self.plain[0][:3]}")
        return told


def _update_id(frame: bytes, key: bytes) -> int:
    return int(frame.split(key)[1].split(b",")[0])


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: one stream a round gives both of ours, and both of the peer's."""
    stream = _Stream(plan)
    peer = plan.peer("websockets_dict", [])
    cases = [
        *_pair(stream.n, stream.round, None),
        *_pair(stream.n, lambda: _taken(stream.peer_round(peer)), "websockets"),
    ]
    for case in cases:
        case.run()
    return cases, [Ratio("message_vs_websockets", "message_us", "websockets_message_us")]


def _taken(told: dict[str, Any]) -> tuple[float, float]:
    return float(told["took"]), float(told["value"])


def _pair(n: int, take: Callable[[], tuple[float, float]], peer: str | None) -> list[Case]:
    return [
        Case("message_us", lambda: take()[1] / n * 1e6, peer),
        Case("messages_per_s", lambda: n / take()[0], peer),
    ]
