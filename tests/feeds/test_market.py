"""A market feed against a real socket: any venue's connection, greetings, what it wants to send and to fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from hftlab.core.rows import BookState, Flag, Kind, RowArray
from hftlab.feeds.market import MarketFeed, VenueConnection


class Scripted:
    """A venue's connection that notes what it is asked, and writes one row a frame."""

    rows_needed = 4

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.to_send: list[bytes] = []
        self.to_fetch: list[str] = []

    def _row(self, out: RowArray, kind: Kind, code: int, now_ns: int) -> int:
        out[:1] = 0
        out["kind"][0], out["code"][0], out["flags"][0], out["ts_recv"][0] = kind, code, Flag.LAST, now_ns
        return 1

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        return [b"subscribe %d" % i for i in ids]

    def wants_send(self) -> list[bytes]:
        wanted, self.to_send = self.to_send, []
        return wanted

    def wants_snapshot(self) -> list[str]:
        wanted, self.to_fetch = self.to_fetch, []
        return wanted

    def snapshot_path(self, symbol: str) -> str:
        return f"/book/{symbol}"

    def on_open(self, now_ns: int) -> None:
        self.calls.append("open")

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        self.calls.append(frame)
        if frame == b"subscribe 2":
            self.to_send, self.to_fetch = [b"again"], ["A"]
        return self._row(out, Kind.TRADE, 0, now_ns)

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        self.calls.append((symbol, payload))
        if payload == b"old":
            self.to_fetch = [symbol]  # wanted again while its fetch is the one that runs
            return 0
        return self._row(out, Kind.BOOK_STATE, BookState.LIVE, now_ns)

    def poll(self, now_ns: int, out: RowArray) -> int:
        return 0

    def on_close(self, now_ns: int, out: RowArray) -> int:
        self.calls.append("close")
        return self._row(out, Kind.BOOK_STATE, BookState.RESYNCING, now_ns)


async def _serve(
    handle: Callable[[web.WebSocketResponse], Awaitable[None]], payloads: list[bytes]
) -> tuple[web.AppRunner, int]:
    async def stream(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await handle(socket)
        return socket

    async def book(request: web.Request) -> web.Response:
        return web.Response(body=payloads.pop(0))

    app = web.Application()
    app.router.add_get("/ws", stream)
    app.router.add_get("/book/{symbol}", book)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    return runner, site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # asyncio's, not the base's


async def _echo(socket: web.WebSocketResponse) -> None:
    """Greet at once, then answer every message with itself, and close after "again"."""
    await socket.send_str("hello")
    async for message in socket:
        await socket.send_str(message.data)
        if message.data == "again":
            await asyncio.sleep(0.2)  # for the snapshots
            await socket.close()


def test_a_feed_does_what_the_venues_connection_asks_in_order() -> None:
    connection = Scripted()
    kinds: list[tuple[int, int]] = []

    def deliver(rows: RowArray, received_ns: int) -> None:
        assert received_ns == rows["ts_recv"][0]
        kinds.append((int(rows["kind"][0]), int(rows["code"][0])))

    async def scenario() -> MarketFeed:
        runner, port = await _serve(_echo, [b"old", b"new"])
        async with aiohttp.ClientSession() as session:
            typed: VenueConnection = connection
            feed = MarketFeed(
                typed, [1, 2], f"ws://127.0.0.1:{port}/ws", f"http://127.0.0.1:{port}", deliver, session
            )
            running = asyncio.create_task(feed.run())
            while "close" not in connection.calls:
                await asyncio.sleep(0.005)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()
        return feed

    feed = asyncio.run(asyncio.wait_for(scenario(), 30))
    calls = connection.calls[: connection.calls.index("close") + 1]
    assert calls[0] == "open"  # the greeting waits for it
    assert calls[1] == b"hello"
    frames = [call for call in calls if isinstance(call, bytes)]
    assert frames == [b"hello", b"subscribe 1", b"subscribe 2", b"again"]
    assert [call for call in calls if isinstance(call, tuple)] == [("A", b"old"), ("A", b"new")]
    assert (Kind.BOOK_STATE, BookState.LIVE) in kinds and kinds[-1] == (Kind.BOOK_STATE, BookState.RESYNCING)
    assert feed.frames == 4 and feed.last_error == "the venue closed the connection"


def test_a_venue_that_cannot_be_reached_is_tried_again_and_named() -> None:
    async def scenario() -> MarketFeed:
        async with aiohttp.ClientSession() as session:
            feed = MarketFeed(
                Scripted(), [1], "ws://127.0.0.1:1/ws", "http://127.0.0.1:1", lambda rows, ns: None, session
            )
            running = asyncio.create_task(feed.run())
            while feed.reconnects < 2:
                await asyncio.sleep(0.005)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return feed

    assert "refused" in asyncio.run(asyncio.wait_for(scenario(), 30)).last_error.lower()
