"""Kraken's face on sockets: ccxt reads and trades on it, the project's own code follows it through every fault."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import ccxt
import ccxt.pro
import numpy as np
import pytest

from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind, RowArray, Side, Tif
from hftlab.feeds.market import MarketFeed
from hftlab.services.venue import VenueService, VenueSettings
from hftlab.venues.kraken.connection import MarketConnection
from hftlab.venues.kraken.messages import instruments_from_asset_pairs
from hftlab.venues.kraken.orders import OrderCodec
from hftlab.venues.kraken.server import DEFAULT_ACCOUNT, PRIVATE_PATH
from hftlab.venues.kraken.spec import ASSET_PAIRS_PATH

KEY, SECRET = DEFAULT_ACCOUNT[:2]
WAIT_S = 30


def _run(script: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(script(), 2 * WAIT_S)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[VenueService, aiohttp.ClientSession]]:
    service = VenueService(VenueSettings(venue="kraken", **settings))
    await service.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield service, session
    finally:
        await service.close()


async def fault(service: VenueService, session: aiohttp.ClientSession, **what: Any) -> None:
    async with session.post(f"{service.rest}/hftlab/fault", json=what) as answer:
        assert answer.status == 200, await answer.text()


# ---- ccxt, unchanged but for its addresses


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the REST address of a venue that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    service = VenueService(VenueSettings(venue="kraken", seed=11))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(WAIT_S)
    yield service.rest
    asyncio.run_coroutine_threadsafe(service.close(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT_S)
    loop.close()


class Exact(float):
    """A number that remembers its text: ccxt's checksum splits it at the point, and JSON's floats have lost it."""

    def __init__(self, text: Any) -> None:
        self.text = str(text)

    def split(self, separator: str) -> list[str]:
        return self.text.split(separator)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ccxt read JSON numbers as text: with floats its checksum option cannot work."""
    client = importlib.import_module("ccxt.async_support.base.ws.client")
    parser = SimpleNamespace(loads=functools.partial(json.loads, parse_float=str), dumps=json.dumps)
    monkeypatch.setattr(client, "json_parser", parser)
    monkeypatch.setattr(client, "json_dumps", json.dumps)


def ccxt_pro(address: str, *, checksum: bool = False) -> Any:
    exchange = ccxt.pro.kraken({
        "apiKey": KEY, "secret": SECRET, "enableRateLimit": False, "timeout": 1000 * WAIT_S,
        "options": {"watchOrderBook": {"checksum": checksum}},
    })  # fmt: skip
    stream = address.replace("http", "ws")
    exchange.urls["api"] |= {
        "public": address, "private": address,
        "ws": {
            "public": stream, "private": stream, "publicV2": f"{stream}/v2", "privateV2": f"{stream}{PRIVATE_PATH}",
        },
    }  # fmt: skip
    return exchange


@pytest.mark.usefixtures("exact")
def test_ccxt_pro_checks_every_checksum_of_the_book(address: str) -> None:
    async def script() -> None:
        exchange = ccxt_pro(address, checksum=True)
        try:
            await exchange.load_markets()
            exchange.number = Exact
            for _ in range(60):  # a wrong checksum raises ChecksumError
                book = await exchange.watch_order_book("BTC/USD", 10)
                assert book["bids"][0][0] < book["asks"][0][0] and len(book["bids"]) == 10
        finally:
            await exchange.close()

    _run(script)


@pytest.mark.usefixtures("exact")
def test_ccxt_pro_sees_a_checksum_that_is_wrong(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with the checksum of another text ccxt gives up the book."""
    monkeypatch.setattr("hftlab.venues.kraken.server.zlib.crc32", lambda text: len(text))

    async def script() -> None:
        exchange = ccxt_pro(address, checksum=True)
        try:
            await exchange.load_markets()
            exchange.number = Exact
            with pytest.raises(ccxt.ChecksumError):
                for _ in range(60):
                    await exchange.watch_order_book("BTC/USD", 10)
        finally:
            await exchange.close()

    _run(script)


def test_ccxt_pro_follows_trades_ticker_and_its_own_orders(address: str) -> None:
    async def script() -> None:
        exchange = ccxt_pro(address)
        try:
            market = (await exchange.load_markets())["BTC/USD"]
            assert float(market["precision"]["price"]) == 0.01 and market["active"]
            trades = asyncio.create_task(exchange.watch_trades("BTC/USD"))
            ticker = asyncio.create_task(exchange.watch_ticker("BTC/USD"))
            mine = asyncio.create_task(exchange.watch_orders("BTC/USD"))
            await asyncio.sleep(0.5)  # until the subscriptions have gone out: ccxt tells nobody when
            placed = await exchange.create_order_ws("BTC/USD", "limit", "buy", 0.01, 50_000.0)
            assert placed["id"] in [order["id"] for order in await mine]
            amended = await exchange.edit_order_ws(placed["id"], "BTC/USD", "limit", "buy", 0.02, 49_000.0)
            assert amended["id"] == placed["id"]
            canceled = await exchange.cancel_order_ws(placed["id"])
            assert canceled["result"]["order_id"] == placed["id"]
            fills = asyncio.create_task(exchange.watch_my_trades("BTC/USD"))
            bought = await exchange.create_order_ws("BTC/USD", "market", "buy", 0.01)
            assert bought["id"] in [fill["order"] for fill in await fills]
            assert (await trades)[-1]["price"] > 0
            touch = await ticker
            assert touch["bid"] < touch["ask"]
            balance = await exchange.fetch_balance()
            assert balance["BTC"]["total"] > 10
            with pytest.raises(ccxt.BaseError, match="Insufficient funds"):
                await exchange.create_order_ws("BTC/USD", "limit", "buy", 300.0, 50_000.0)
            book = await exchange.fetch_order_book("BTC/USD", 20)
            assert len(book["bids"]) == 20
        finally:
            await exchange.close()

    _run(script)


# ---- the project's own protocol code on real sockets


class Market:
    """A market data client: the connection's state machine fed from a socket, and the book its rows make."""

    def __init__(self, service: VenueService, session: aiohttp.ClientSession, depth: int = 25) -> None:
        self.service, self.session = service, session
        self.connection = MarketConnection(service.settings.instruments(), stale_ns=10**15, depth=depth)
        self.out = np.zeros(self.connection.rows_needed, ROW)
        self.levels: dict[tuple[int, int], int] = {}
        self.state = BookState.EMPTY
        self.states: list[str] = []

    def take(self, n: int) -> None:
        for row in self.out[:n]:
            if row["kind"] == Kind.CLEAR:
                self.levels.clear()
            elif row["kind"] == Kind.LEVEL:
                key = (int(row["flags"]) & 3, int(row["px"]))
                self.levels[key] = int(row["qty"])
                if row["qty"] == 0:
                    del self.levels[key]
            elif row["kind"] == Kind.BOOK_STATE:
                self.state = BookState(int(row["code"]))
                self.states.append(self.state.name)

    def truth(self) -> dict[tuple[int, int], int]:
        face: Any = self.service.face
        _, bids, asks = face.exchange.snapshot(0, self.connection.depth)
        return {(1, int(p)): int(q) for p, q in bids} | {(2, int(p)): int(q) for p, q in asks}

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with self.session.ws_connect(self.service.stream, max_msg_size=0) as ws:
            self.connection.on_open(time.time_ns())
            for request in self.connection.subscribe_requests([0]):
                await ws.send_str(request.decode())
            try:
                yield ws
            finally:
                self.take(self.connection.on_close(time.time_ns(), self.out))

    async def step(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        message = await ws.receive(timeout=WAIT_S)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return False
        self.take(self.connection.on_frame(message.data.encode(), time.time_ns(), self.out))
        self.take(self.connection.poll(time.time_ns(), self.out))
        for request in self.connection.wants_send():
            await ws.send_str(request.decode())
        return True

    async def until_equal(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while self.state != BookState.LIVE or self.levels != self.truth():
            assert await self.step(ws)


def test_a_local_book_equals_the_venues_and_no_checksum_differs() -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            async with session.get(f"{service.rest}{ASSET_PAIRS_PATH}") as answer:
                (told,) = instruments_from_asset_pairs(await answer.read(), ["BTC/USD"])
            assert told.tick_size == service.settings.instruments()[0].tick_size
            market = Market(service, session)
            async with market.connected() as ws:
                for _ in range(10):
                    await market.until_equal(ws)
                    assert await market.step(ws)
            assert market.connection.counts["gaps"] == 0 and not market.connection.errors
            assert market.states == ["LIVE", "RESYNCING"]

    _run(script)


@pytest.mark.parametrize("kind", ["gap", "reorder"])
def test_lost_and_reordered_messages_are_seen_by_the_checksum_and_healed(kind: str) -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, depth=10)
            async with market.connected() as ws:
                await market.until_equal(ws)
                await asyncio.sleep(1.1)  # a symbol is subscribed anew once a second
                while market.connection.counts["gaps"] == 0:
                    await fault(service, session, kind=kind, n=3)
                    for _ in range(20):
                        assert await market.step(ws)
                await market.until_equal(ws)
            assert market.states[:3] == ["LIVE", "RESYNCING", "LIVE"]

    _run(script)


def test_a_dropped_connection_is_resyncing_until_the_next_one() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            market = Market(service, session)
            for kind in ("drop", "cut"):
                async with market.connected() as ws:
                    await market.until_equal(ws)
                    await fault(service, session, kind=kind)
                    while await market.step(ws):
                        pass
                assert market.state == BookState.RESYNCING

    _run(script)


def test_the_projects_feed_runs_the_connection_through_gap_and_drop() -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, depth=10)

            def deliver(rows: RowArray, now_ns: int) -> None:
                market.out[: len(rows)] = rows
                market.take(len(rows))

            async def until(done: Callable[[], bool]) -> None:
                while not done():
                    await asyncio.sleep(0.01)

            feed = MarketFeed(market.connection, [0], service.stream, service.rest, deliver, session)
            task = asyncio.create_task(feed.run())
            try:
                await until(lambda: market.state == BookState.LIVE)
                await asyncio.sleep(1.1)  # a symbol is subscribed anew once a second
                while market.connection.counts["gaps"] == 0:
                    await fault(service, session, kind="gap", n=3)
                    await asyncio.sleep(0.2)
                await until(lambda: market.state == BookState.LIVE)
                await fault(service, session, kind="drop")
                await until(lambda: market.states.count("RESYNCING") >= 2 and market.state == BookState.LIVE)
                await until(lambda: market.levels == market.truth())
                assert feed.reconnects == 1
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    _run(script)


def test_our_orders_are_acknowledged_amended_canceled_and_filled_over_sockets() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            (btc,) = service.settings.instruments()
            codec = OrderCodec([btc], KEY, SECRET, "socket-test", ["BTC", "USD"])
            path, body, headers = codec.token_request(time.time_ns() // 1000)
            async with session.post(f"{service.rest}{path}", data=body, headers=headers) as answer:
                codec.take_token(await answer.read())
            out, seen = np.zeros(64, ROW), []

            def row(kind: Kind, cl_ord_id: int, px: int, qty: int, orig: int = 0, tif: int = Tif.GTC) -> Any:
                rows = np.zeros(1, ROW)
                rows[0]["kind"], rows[0]["a"], rows[0]["b"], rows[0]["flags"] = kind, cl_ord_id, orig, Side.BUY
                rows[0]["px"], rows[0]["qty"], rows[0]["code"] = px, qty, tif
                return rows[0]

            assert service.ws_api.endswith(PRIVATE_PATH)
            async with session.ws_connect(service.ws_api) as ws:

                async def until(done: Callable[[], bool]) -> None:
                    while not done():
                        raw = (await ws.receive_str(timeout=WAIT_S)).encode()
                        n = codec.decode(raw, time.time_ns(), out)
                        for report in out[:n:2]:
                            seen.append((int(report["a"]), ExecType(int(report["code"]) & 255).name))

                for request in codec.session_requests(0):
                    await ws.send_str(request.decode())
                await until(lambda: codec.subscribed and codec.open_orders == [] and codec.balances is not None)
                assert codec.balances is not None and codec.balances["BTC"].free == 10
                await ws.send_str(codec.encode(row(Kind.SUBMIT, 1, 5_000_000, 100), None, 0).decode())
                await until(lambda: seen == [(1, "ACK")])
                await ws.send_str(codec.encode(row(Kind.REPLACE_ORDER, 2, 4_900_000, 50, 1), None, 0).decode())
                await until(lambda: seen[-1] == (2, "REPLACED"))
                await ws.send_str(codec.encode(row(Kind.CANCEL, 2, 0, 0), None, 0).decode())
                await until(lambda: seen[-1] == (2, "CANCELED"))
                await ws.send_str(codec.encode(row(Kind.SUBMIT, 3, 7_000_000, 100, tif=Tif.IOC), None, 0).decode())
                await until(lambda: (3, "FILL") in seen)
                await fault(service, session, kind="error", code=500, msg="EService:Unavailable", n=1)
                await ws.send_str(codec.encode(row(Kind.SUBMIT, 4, 5_000_000, 100), None, 0).decode())
                await until(lambda: seen[-1] == (4, "LOST"))
            assert not codec.in_doubt and codec.counts["malformed"] == 0
            assert Flag.BID == Side.BUY

    _run(script)
