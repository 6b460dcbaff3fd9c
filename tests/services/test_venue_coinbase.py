"""Coinbase's face on sockets: ccxt trades on it, the project's own connections follow it through gaps and drops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import ccxt
import ccxt.pro
import numpy as np
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.rows import ROW, BookState, Flag, Kind
from hftlab.feeds.market import MarketFeed
from hftlab.services.venue import VenueService, VenueSettings
from hftlab.venues.coinbase.connection import MarketConnection
from hftlab.venues.coinbase.orders import exchange_signature
from hftlab.venues.coinbase.server import DEFAULT_ACCOUNT, PASSPHRASE

KEY, SECRET = DEFAULT_ACCOUNT[:2]
WAIT_S = 30


def _run(script: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(script(), 2 * WAIT_S)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[VenueService, aiohttp.ClientSession]]:
    service = VenueService(VenueSettings(venue="coinbase", **settings))
    await service.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield service, session
    finally:
        await service.close()


async def fault(service: VenueService, session: aiohttp.ClientSession, **what: Any) -> None:
    async with session.post(f"{service.rest}/hftlab/fault", json=what) as answer:
        assert answer.status == 200, await answer.text()


async def status(service: VenueService, session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get(f"{service.rest}/hftlab/status") as answer:
        return dict(await answer.json())


# ---- ccxt, unchanged but for its addresses


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the REST address of a venue that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    service = VenueService(VenueSettings(venue="coinbase", seed=11))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(WAIT_S)
    yield service.rest
    asyncio.run_coroutine_threadsafe(service.close(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT_S)
    loop.close()


CREDENTIALS = {
    "apiKey": KEY, "secret": SECRET, "password": PASSPHRASE, "enableRateLimit": False, "timeout": 1000 * WAIT_S,
}  # fmt: skip


def _point(exchange: Any, address: str) -> Any:
    exchange.urls["api"] = {"public": address, "private": address, "ws": address.replace("http", "ws")}
    return exchange


@pytest.fixture
def client(address: str) -> ccxt.coinbaseexchange:
    return _point(ccxt.coinbaseexchange(dict(CREDENTIALS)), address)


def test_ccxt_loads_the_markets_with_their_increments(client: ccxt.coinbaseexchange) -> None:
    market = client.load_markets()["BTC/USD"]
    assert (market["precision"]["price"], market["precision"]["amount"]) == (0.01, 0.00001)
    assert market["limits"]["cost"]["min"] == 1.0 and market["active"]


def test_ccxt_reads_an_order_book_and_trades(client: ccxt.coinbaseexchange) -> None:
    book = client.fetch_order_book("BTC/USD", 20)
    assert book["bids"][0][0] < book["asks"][0][0] and len(book["bids"]) > 20
    client.create_order("BTC/USD", "market", "buy", 0.001)
    assert client.fetch_trades("BTC/USD")


def test_ccxt_places_finds_and_cancels_a_limit_order(client: ccxt.coinbaseexchange) -> None:
    before = client.fetch_balance()["USD"]["used"]
    placed = client.create_order("BTC/USD", "limit", "buy", 0.01, 50_000.0)
    assert placed["status"] == "open"
    assert client.fetch_balance()["USD"]["used"] - before == pytest.approx(500.0)
    assert client.fetch_order(placed["id"], "BTC/USD")["price"] == 50_000.0
    assert placed["id"] in [order["id"] for order in client.fetch_open_orders("BTC/USD")]
    client.cancel_order(placed["id"], "BTC/USD")
    assert client.fetch_order(placed["id"], "BTC/USD")["status"] == "canceled"
    assert placed["id"] not in [order["id"] for order in client.fetch_open_orders("BTC/USD")]
    assert client.fetch_balance()["USD"]["used"] == pytest.approx(before)


def test_ccxt_buys_at_market_and_sees_its_fills(client: ccxt.coinbaseexchange) -> None:
    before = client.fetch_balance()["BTC"]["total"]
    order = client.create_order("BTC/USD", "market", "buy", 0.01)
    assert client.fetch_order(order["id"])["filled"] == 0.01
    assert client.fetch_balance()["BTC"]["total"] == pytest.approx(before + 0.01)
    assert order["id"] in [trade["order"] for trade in client.fetch_my_trades("BTC/USD")]


def test_ccxt_calls_each_refusal_by_its_name(client: ccxt.coinbaseexchange) -> None:
    with pytest.raises(ccxt.InsufficientFunds):
        client.create_order("BTC/USD", "limit", "buy", 300.0, 50_000.0)
    with pytest.raises(ccxt.OrderNotFound):
        client.fetch_order("00000000-0000-0000-0000-000000000000")
    with pytest.raises(ccxt.InvalidOrder):
        client.private_post_orders(
            {"product_id": "BTC-USD", "side": "buy", "price": "1.001", "size": "1", "type": "limit"}
        )
    client.password = "wrong"
    with pytest.raises(ccxt.AuthenticationError):
        client.fetch_balance()
    client.apiKey = "nobody"
    with pytest.raises(ccxt.AuthenticationError):
        client.fetch_balance()


def test_ccxt_pro_follows_book_trades_and_its_own_order(address: str) -> None:
    async def script() -> None:
        exchange = _point(ccxt.pro.coinbaseexchange(dict(CREDENTIALS)), address)
        try:
            for _ in range(5):
                book = await exchange.watch_order_book("BTC/USD")
                assert book["bids"][0][0] < book["asks"][0][0]
            own = asyncio.create_task(exchange.watch_orders("BTC/USD"))
            trades = asyncio.create_task(exchange.watch_trades("BTC/USD"))
            ticker = asyncio.create_task(exchange.watch_ticker("BTC/USD"))
            await asyncio.sleep(0.5)  # until the subscription has gone out: ccxt tells nobody when
            placed = await exchange.create_order("BTC/USD", "limit", "buy", 0.01, 50_000.0)
            orders = await own
            assert placed["id"] in [order["id"] for order in orders]
            await exchange.cancel_order(placed["id"])
            assert (await trades)[-1]["price"] > 0
            touch = await ticker
            assert touch["bid"] < touch["ask"]
        finally:
            await exchange.close()

    _run(script)


# ---- the project's own protocol code on real sockets


class Market:
    """A market data client: the connection's state machine fed from a socket, and the book its rows make."""

    def __init__(self, service: VenueService, session: aiohttp.ClientSession, channel: str) -> None:
        self.service, self.session = service, session

        def sign(now_ns: int) -> dict[str, str]:
            return exchange_signature(KEY, SECRET, PASSPHRASE, now_ns)

        self.connection = MarketConnection(
            service.settings.instruments(), channel=channel, sign=sign, stale_ns=10**15, max_rows=20_000
        )
        self.out = np.zeros(self.connection.rows_needed, ROW)
        self.levels: dict[tuple[int, int], int] = {}
        self.orders: dict[int, tuple[int, int, int]] = {}
        self.state = int(BookState.EMPTY)
        self.states: list[int] = []

    def take(self, n: int) -> None:
        for row in self.out[:n]:
            kind, ref = int(row["kind"]), int(row["a"])
            key = (int(row["flags"]) & int(Flag.BID | Flag.ASK), int(row["px"]))
            if kind == Kind.CLEAR:
                self.levels.clear()
                self.orders.clear()
            elif kind == Kind.LEVEL:
                self.levels[key] = int(row["qty"])
                if row["qty"] == 0:
                    del self.levels[key]
            elif kind == Kind.ADD:
                assert ref not in self.orders
                self.orders[ref] = (*key, int(row["qty"]))
            elif kind in (Kind.REDUCE, Kind.EXECUTE):
                side, px, lots = self.orders[ref]
                self.orders[ref] = (side, px, lots - int(row["qty"]))
                if lots == int(row["qty"]):
                    del self.orders[ref]
            elif kind == Kind.DELETE:
                del self.orders[ref]
            elif kind == Kind.BOOK_STATE:
                self.state = int(row["code"])
                self.states.append(self.state)

    def book(self) -> dict[tuple[int, int], int]:
        if not self.connection.full:
            return dict(self.levels)
        book: dict[tuple[int, int], int] = {}
        for side, px, lots in self.orders.values():
            book[side, px] = book.get((side, px), 0) + lots
        return book

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with self.session.ws_connect(self.service.stream, max_msg_size=0) as ws:
            self.connection.on_open(time.time_ns())
            for request in self.connection.subscribe_requests([0]):
                await ws.send_bytes(request)
            try:
                yield ws
            finally:
                self.take(self.connection.on_close(time.time_ns(), self.out))

    async def step(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        message = await ws.receive(timeout=WAIT_S)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return False
        self.take(self.connection.on_frame(message.data.encode(), time.time_ns(), self.out))
        for request in self.connection.wants_send():
            await ws.send_bytes(request)
        for symbol in self.connection.wants_snapshot():
            async with self.session.get(self.service.rest + self.connection.snapshot_path(symbol)) as answer:
                body = await answer.read()
            self.take(self.connection.on_snapshot(symbol, body, time.time_ns(), self.out))
        return True


def _truth(service: VenueService) -> dict[tuple[int, int], int]:
    _, bids, asks = service.face.exchange.snapshot(0, 5000)  # type: ignore[attr-defined]  # this face's own
    return {(int(Flag.BID), int(p)): int(q) for p, q in bids} | {(int(Flag.ASK), int(p)): int(q) for p, q in asks}


@pytest.mark.parametrize("channel", ["level2_batch", "level2", "full"])
def test_a_local_book_equals_the_venues(channel: str) -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, channel)
            equal = 0
            async with market.connected() as ws:
                for k in range(3000):
                    assert await market.step(ws)
                    if market.state == BookState.LIVE and k > 50:
                        equal += market.book() == _truth(service)
                        if equal >= 5:
                            break
            assert equal >= 5 and not market.connection.errors
            assert market.connection.counts["gaps"] == 0

    _run(script)


def test_the_full_book_rejoins_after_a_gap_and_survives_duplicates() -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, "full")
            async with market.connected() as ws:
                while market.state != BookState.LIVE:
                    assert await market.step(ws)
                await fault(service, session, kind="gap", n=3)
                while market.connection.counts["gaps"] == 0 or market.state != BookState.LIVE:
                    assert await market.step(ws)
                assert (await status(service, session))["swallowed"] == 3
                await fault(service, session, kind="duplicate", n=50)
                while market.connection.counts["duplicates"] < 40:
                    assert await market.step(ws)
                equal = False
                while not equal:
                    assert await market.step(ws)
                    equal = market.state == BookState.LIVE and market.book() == _truth(service)

    _run(script)


def test_deltas_out_of_order_are_seen_and_the_level2_book_is_subscribed_anew() -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, "level2_batch")
            async with market.connected() as ws:
                while market.state != BookState.LIVE:
                    assert await market.step(ws)
                await fault(service, session, kind="reorder", n=1)
                while market.connection.counts["gaps"] == 0 or market.state != BookState.LIVE:
                    assert await market.step(ws)
                assert market.states[:3] == [BookState.LIVE, BookState.RESYNCING, BookState.LIVE]
                equal = False
                while not equal:
                    assert await market.step(ws)
                    equal = market.book() == _truth(service)

    _run(script)


def test_a_dropped_connection_is_resyncing_until_the_next_one() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            market = Market(service, session, "level2")
            for kind in ("drop", "cut"):
                async with market.connected() as ws:
                    while market.state != BookState.LIVE:
                        assert await market.step(ws)
                    await fault(service, session, kind=kind)
                    while await market.step(ws):
                        pass
                assert market.state == BookState.RESYNCING

    _run(script)


def test_the_projects_feed_keeps_a_coinbase_book_over_a_cut() -> None:
    async def script() -> None:
        async with serving(rate=400.0) as (service, session):
            market = Market(service, session, "full")

            def deliver(rows: Any, received_ns: int) -> None:
                market.out = rows
                market.take(len(rows))

            feed = MarketFeed(market.connection, [0], service.stream, service.rest, deliver, session)
            running = asyncio.create_task(feed.run())
            try:
                for told, kind in ((1, "gap"), (3, "cut")):
                    while len(market.states) < told:
                        await asyncio.sleep(0.01)
                    await fault(service, session, kind=kind)
                while len(market.states) < 5 or market.book() != _truth(service):
                    await asyncio.sleep(0.001)
                assert feed.reconnects == 1
                assert market.states == [BookState.LIVE, BookState.RESYNCING] * 2 + [BookState.LIVE]
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    _run(script)


# ---- settings


def test_the_venue_is_chosen_by_name_with_its_own_instruments_and_account() -> None:
    settings = VenueSettings(venue="coinbase")
    assert (list(settings.symbols), settings.api_key, dict(settings.balances)) == (
        ["BTC-USD"], KEY, dict(DEFAULT_ACCOUNT[2]),
    )  # fmt: skip
    assert [i.symbol for i in VenueSettings(venue="coinbase", symbols=("ETH-USD", "BTC-USD")).instruments()] == [
        "ETH-USD", "BTC-USD",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="not built in"):
        VenueSettings(venue="coinbase", symbols=("BTCUSDT",)).instruments()


def test_recordings_and_exchange_info_are_binances_alone(tmp_path: Any) -> None:
    for name in ("capture", "exchange_info"):
        with pytest.raises(ConfigError, match=f"{name}=.* needs venue=binance"):
            VenueSettings(venue="coinbase", **{name: tmp_path / "x"})
    with pytest.raises(ConfigError, match="venue='nyse'; expected one of binance, coinbase, kraken"):
        VenueSettings(venue="nyse")


def test_the_status_page_names_venue_and_clients() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            assert service.ws_api == service.stream
            async with session.ws_connect(service.stream) as ws:
                now = exchange_signature(KEY, SECRET, PASSPHRASE, time.time_ns())
                await ws.send_str(json.dumps({"type": "subscribe", "channels": ["user"], **now}))
                assert (await ws.receive_json(timeout=WAIT_S))["type"] == "subscriptions"
                page = await status(service, session)
                assert (page["venue"], page["user_clients"], page["stream_clients"]) == ("coinbase", 1, 0)

    _run(script)


def test_the_command_serves_the_venue_it_is_told() -> None:
    command = [sys.executable, "-m", "hftlab.services.venue", "--die-with-parent", "--venue", "coinbase"]
    with subprocess.Popen([*command, "--symbol", "ETH-USD"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        try:
            assert set(ready) == {"rest", "stream", "ws_api", "pid"}
            with urllib.request.urlopen(f"{ready['rest']}/products", timeout=WAIT_S) as answer:
                assert [product["id"] for product in json.loads(answer.read())] == ["ETH-USD"]
        finally:
            process.terminate()
        assert process.wait(WAIT_S) == 0
