"""The venue on sockets: ccxt drives it, a recording passes through it, faults and stops are what they say."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ccxt
import numpy as np
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind, Side, Tif
from hftlab.services.venue import DEFAULT_INSTRUMENTS, VenueService, VenueSettings
from hftlab.venues.binance.connection import MarketConnection
from hftlab.venues.binance.orders import OrderCodec

KEY, SECRET = "hftlab-sim-key", "hftlab-sim-secret"
CAPTURE = "binance/btcusdt_20240808.gz"
WAIT_S = 30


def _run(script: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(script(), 2 * WAIT_S)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[VenueService, aiohttp.ClientSession]]:
    service = VenueService(VenueSettings(**settings))
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


async def next_json(ws: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    return dict(await ws.receive_json(timeout=WAIT_S))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.01)


# ---- ccxt, unchanged but for its addresses


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the REST address of a venue that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    service = VenueService(VenueSettings(seed=11))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(WAIT_S)
    yield service.rest
    asyncio.run_coroutine_threadsafe(service.close(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT_S)
    loop.close()


def _on(value: Any, address: str) -> Any:
    if isinstance(value, dict):
        return {name: _on(inner, address) for name, inner in value.items()}
    return address + urlsplit(value).path


@pytest.fixture
def client(address: str) -> ccxt.binance:
    exchange = ccxt.binance({"apiKey": KEY, "secret": SECRET, "enableRateLimit": False, "timeout": 1000 * WAIT_S})
    exchange.urls["api"] = _on(exchange.urls["api"], address)
    return exchange


def test_ccxt_loads_the_markets_with_their_filters(client: ccxt.binance) -> None:
    markets = client.load_markets()
    market = markets["BTC/USDT"]
    assert (market["precision"]["price"], market["precision"]["amount"]) == (0.01, 0.00001)
    assert (market["limits"]["cost"]["min"], market["limits"]["amount"]["max"]) == (5.0, 9000.0)
    assert market["spot"] and market["active"]


def test_ccxt_reads_an_order_book(client: ccxt.binance) -> None:
    book = client.fetch_order_book("BTC/USDT", 20)
    assert len(book["bids"]) == len(book["asks"]) == 20
    assert book["bids"][0][0] < book["asks"][0][0]
    assert book["nonce"] > 0


def test_ccxt_places_finds_and_cancels_a_limit_order(client: ccxt.binance) -> None:
    before = client.fetch_balance()["USDT"]["used"]
    placed = client.create_order("BTC/USDT", "limit", "buy", 0.01, 50_000.0)
    assert placed["status"] == "open"
    assert client.fetch_balance()["USDT"]["used"] - before == pytest.approx(500.0)
    assert client.fetch_order(placed["id"], "BTC/USDT")["clientOrderId"] == placed["clientOrderId"]
    assert placed["id"] in [order["id"] for order in client.fetch_open_orders("BTC/USDT")]
    assert client.cancel_order(placed["id"], "BTC/USDT")["status"] == "canceled"
    assert client.fetch_order(placed["id"], "BTC/USDT")["status"] == "canceled"
    assert placed["id"] not in [order["id"] for order in client.fetch_open_orders("BTC/USDT")]
    assert client.fetch_balance()["USDT"]["used"] == pytest.approx(before)


def test_ccxt_buys_at_market_and_sees_the_trade(client: ccxt.binance) -> None:
    before = client.fetch_balance()["BTC"]["total"]
    order = client.create_order("BTC/USDT", "market", "buy", 0.01)
    assert (order["status"], order["filled"]) == ("closed", 0.01)
    assert client.fetch_balance()["BTC"]["total"] == pytest.approx(before + 0.01)
    assert order["id"] in [trade["order"] for trade in client.fetch_my_trades("BTC/USDT")]


def test_ccxt_edits_an_order_by_cancel_replace(client: ccxt.binance) -> None:
    placed = client.create_order("BTC/USDT", "limit", "buy", 0.01, 50_000.0)
    edited = client.edit_order(placed["id"], "BTC/USDT", "limit", "buy", 0.01, 50_001.0)
    assert edited["id"] != placed["id"]
    assert client.fetch_order(placed["id"], "BTC/USDT")["status"] == "canceled"
    client.cancel_all_orders("BTC/USDT")


def test_ccxt_calls_each_refusal_by_its_name(client: ccxt.binance) -> None:
    with pytest.raises(ccxt.InsufficientFunds):
        client.create_order("BTC/USDT", "limit", "buy", 1000.0, 50_000.0)
    with pytest.raises(ccxt.OrderNotFound):
        client.fetch_order("999999", "BTC/USDT")
    with pytest.raises(ccxt.OrderNotFound):
        client.cancel_order("999999", "BTC/USDT")
    with pytest.raises(ccxt.OrderImmediatelyFillable):
        client.create_order("BTC/USDT", "limit", "buy", 0.01, 70_000.0, {"postOnly": True})
    client.secret = "wrong"
    with pytest.raises(ccxt.AuthenticationError):
        client.fetch_balance()
    client.apiKey = "nobody"
    with pytest.raises(ccxt.AuthenticationError):
        client.fetch_balance()


# ---- the project's own protocol code on real sockets


class Market:
    """A market data client: the connection's state machine fed from a socket, snapshots by REST, a plain book."""

    def __init__(self, service: VenueService, session: aiohttp.ClientSession) -> None:
        self.service, self.session = service, session
        self.connection = MarketConnection(service.settings.instruments(), stale_ns=10**15)
        self.out = np.zeros(max(self.connection.rows_needed, 16_384), ROW)
        self.books: dict[int, dict[int, int]] = {int(Flag.BID): {}, int(Flag.ASK): {}}
        self.state, self.frames, self.now_ns = int(BookState.EMPTY), 0, 1
        self.connection.on_open(self.now_ns)

    def take(self, n: int) -> None:
        for row in self.out[:n]:
            if row["kind"] == Kind.CLEAR:
                for book in self.books.values():
                    book.clear()
            elif row["kind"] == Kind.LEVEL:
                book = self.books[int(row["flags"]) & 3]
                book[int(row["px"])] = int(row["qty"])
                if row["qty"] == 0:
                    del book[int(row["px"])]
            elif row["kind"] == Kind.BOOK_STATE:
                self.state = int(row["code"])

    async def on(self, frame: bytes) -> None:
        self.now_ns += 1_000_000
        self.frames += 1
        self.take(self.connection.on_frame(frame, self.now_ns, self.out))
        for symbol in self.connection.wants_snapshot():
            address = f"{self.service.rest}/api/v3/depth?symbol={symbol}&limit=1000"
            async with self.session.get(address) as answer:
                self.take(self.connection.on_snapshot(symbol, await answer.read(), self.now_ns, self.out))

    def touch(self) -> tuple[tuple[int, int], tuple[int, int]]:
        bids, asks = self.books[int(Flag.BID)], self.books[int(Flag.ASK)]
        return (max(bids), bids[max(bids)]), (min(asks), asks[min(asks)])


def test_a_local_book_joins_and_rejoins_after_a_gap() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            market = Market(service, session)
            async with session.ws_connect(f"{service.stream}/stream?streams=btcusdt@depth@100ms") as ws:
                while market.state != BookState.LIVE or market.frames < 5:
                    await market.on((await ws.receive_str(timeout=WAIT_S)).encode())
                await fault(service, session, kind="gap", n=2)
                while market.connection.counts["gaps"] == 0 or market.state != BookState.LIVE:
                    await market.on((await ws.receive_str(timeout=WAIT_S)).encode())
                assert (await status(service, session))["swallowed"] == 2
                (bid, _), (ask, _) = market.touch()
                assert bid < ask

    _run(script)


def test_order_rows_make_the_round_trip_through_the_codec() -> None:
    async def script() -> None:
        instrument = DEFAULT_INSTRUMENTS["BTCUSDT"]
        codec = OrderCodec([instrument], KEY, SECRET, "t1-", ["BTC", "USDT"])
        out = np.zeros(64, ROW)
        got: list[tuple[int, int]] = []
        async with serving() as (service, session), session.ws_connect(service.ws_api) as ws:

            async def until_report(exec_type_name: str, cl_ord_id: int) -> None:
                wanted = (int(ExecType[exec_type_name]), cl_ord_id)
                while wanted not in got:
                    frame = (await ws.receive_str(timeout=WAIT_S)).encode()
                    n = codec.decode(frame, 1, out)
                    got.extend((int(r["code"]) & 255, int(r["a"])) for r in out[:n] if r["kind"] == Kind.REPORT)

            for request in codec.session_requests(now_ms()):
                await ws.send_str(request.decode())
            rows = np.zeros(1, ROW)
            row = rows[0]
            row["kind"], row["a"], row["code"], row["flags"] = Kind.SUBMIT, 1, Tif.GTC, int(Side.BUY)
            row["px"], row["qty"] = instrument.px_ticks("50000"), instrument.qty_lots("0.01")
            await ws.send_str(codec.encode(row, None, now_ms()).decode())
            await until_report("ACK", 1)
            row["kind"], row["a"], row["b"] = Kind.REPLACE_ORDER, 2, 1
            await ws.send_str(codec.encode(row, None, now_ms()).decode())
            await until_report("CANCELED", 1)  # the venue's cancelReplace is a cancel and a new order
            await until_report("ACK", 2)
            row["kind"], row["a"], row["b"] = Kind.CANCEL, 2, 0
            await ws.send_str(codec.encode(row, None, now_ms()).decode())
            await until_report("CANCELED", 2)
            await ws.send_str(codec.encode(row, None, now_ms()).decode())
            await until_report("CANCEL_REJECT", 2)
            assert (await status(service, session))["orders"] == 2

    _run(script)


# ---- recordings


def _cut(shared_data: Path, folder: Path, lines: int) -> tuple[Path, list[bytes]]:
    """Write the first lines of the recorded day into `folder`; return the path and the messages."""
    with gzip.open(shared_data / CAPTURE, "rb") as file:
        head = [next(file) for _ in range(lines)]
    path = folder / "capture.txt"
    path.write_bytes(b"".join(head))
    return path, [line.rstrip(b"\n").split(b" ", 1)[1] for line in head]


def test_a_recording_passes_byte_for_byte_and_in_order(shared_data: Path, tmp_path: Path) -> None:
    path, messages = _cut(shared_data, tmp_path, 3000)
    streams = "btcusdt@depth@100ms/btcusdt@trade/btcusdt@bookTicker"

    async def script() -> None:
        async with serving(capture=path, speed=float("inf")) as (service, session):
            assert not (await status(service, session))["started"]
            async with session.ws_connect(f"{service.stream}/stream?streams={streams}") as ws:
                expected = [m for m in messages if m.startswith(b'{"stream"')]
                got = [(await ws.receive_str(timeout=WAIT_S)).encode() for _ in expected]
                assert got == expected
                state = await status(service, session)
                assert (state["done"], state["played"], state["broken_lines"]) == (True, 3000, 0)
                async with session.get(f"{service.rest}/api/v3/depth?symbol=BTCUSDT&limit=1000") as answer:
                    snapshot = await answer.read()
                assert snapshot == next(m for m in messages if m.startswith(b'{"lastUpdateId"'))
                assert not ws.closed

    _run(script)


def test_the_top_of_the_served_book_is_the_recorded_book_ticker(shared_data: Path, tmp_path: Path) -> None:
    path, messages = _cut(shared_data, tmp_path, 12_000)
    (instrument,) = VenueSettings(capture=path).instruments()
    tickers: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
    for message in messages:
        if b"@bookTicker" in message[:40]:
            d = json.loads(message)["data"]
            bid, ask = ((instrument.px_ticks(d[p]), instrument.qty_lots(d[q])) for p, q in (("b", "B"), ("a", "A")))
            tickers[d["u"]] = (bid, ask)
    last_u = max(json.loads(m)["data"]["u"] for m in messages if b"depthUpdate" in m[:80])

    async def script() -> None:
        checked = 0
        async with serving(capture=path, speed=100.0) as (service, session):
            market = Market(service, session)
            book = market.connection.books[0]
            async with session.ws_connect(f"{service.stream}/stream?streams=btcusdt@depth@100ms") as ws:
                while book.sequence.last < last_u:
                    await market.on((await ws.receive_str(timeout=WAIT_S)).encode())
                    if market.state == BookState.LIVE and book.sequence.last in tickers:
                        assert market.touch() == tickers[book.sequence.last]
                        checked += 1
            assert market.connection.counts["gaps"] == 0
        assert checked > 50

    _run(script)


def test_a_broken_line_is_counted_and_the_rest_is_served(shared_data: Path, tmp_path: Path) -> None:
    path, _ = _cut(shared_data, tmp_path, 100)
    path.write_bytes(path.read_bytes() + b"not a line\n")

    async def script() -> None:
        async with serving(capture=path, speed=1000.0) as (service, session):
            assert (await status(service, session))["broken_lines"] == 1
            async with session.ws_connect(f"{service.stream}/ws/btcusdt@trade") as ws:
                assert (await next_json(ws))["e"] == "trade"

                async def done() -> bool:
                    return bool((await status(service, session))["done"])

                await until(done)

    _run(script)


def test_own_orders_fill_beside_a_recording(shared_data: Path, tmp_path: Path) -> None:
    path, _ = _cut(shared_data, tmp_path, 12_000)
    (instrument,) = VenueSettings(capture=path).instruments()

    async def script() -> None:
        codec = OrderCodec([instrument], KEY, SECRET, "t2-", ["BTC", "USDT"])
        async with serving(capture=path, speed=50.0) as (service, session), session.ws_connect(service.ws_api) as user:
            for request in codec.session_requests(now_ms()):
                await user.send_str(request.decode())
            async with session.ws_connect(f"{service.stream}/ws/btcusdt@bookTicker") as ws:
                quote = await next_json(ws)
                for _ in range(20):
                    quote = await next_json(ws)
                rows = np.zeros(1, ROW)
                row = rows[0]
                row["kind"], row["a"], row["code"], row["flags"] = Kind.SUBMIT, 1, Tif.GTC, int(Side.BUY)
                row["px"], row["qty"] = instrument.px_ticks(quote["a"]), instrument.qty_lots("0.001")
                await user.send_str(codec.encode(row, None, now_ms()).decode())
                while True:
                    message = await next_json(user)
                    if message.get("event", {}).get("x") == "TRADE":
                        break
                report = message["event"]
                assert Decimal(report["L"]) <= Decimal(quote["a"]) + 100
                assert (report["X"], report["z"]) == ("FILLED", "0.00100000")
                assert report["T"] < 1_723_200_000_000  # the recording's time, not today's

    _run(script)


# ---- faults and connections


def test_faults_do_what_they_say() -> None:
    async def script() -> None:
        async with serving() as (service, session):
            name = f"{service.stream}/ws/btcusdt@depth@100ms"
            async with session.ws_connect(name) as ws:
                await fault(service, session, kind="duplicate", n=1000)
                frames = [await next_json(ws) for _ in range(8)]
                assert any(a == b for a, b in pairwise(frames))
            async with (
                serving() as (other, session2),
                session2.ws_connect(f"{other.stream}/ws/btcusdt@depth@100ms") as ws,
            ):
                await fault(other, session2, kind="reorder", n=1)
                frames = [await next_json(ws) for _ in range(4)]
                assert [f["u"] for f in frames] != sorted(f["u"] for f in frames)
                await fault(other, session2, kind="silence", seconds=0.3)
                before = frames[-1]["u"]
                later = max([(await next_json(ws))["U"] for _ in range(3)])
                assert later > before + 1
                await fault(other, session2, kind="drop")
                while (message := await ws.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert (message.type, ws.close_code) == (aiohttp.WSMsgType.CLOSE, 1001)
            async with session.ws_connect(name) as ws:
                await fault(service, session, kind="cut")
                while (message := await ws.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert ws.close_code == 1006
            for bad in (
                {},
                {"kind": "x"},
                {"kind": "gap", "n": -1},
                {"kind": "error"},
                {"kind": "cut", "scope": "x"},
                [],
            ):
                async with session.post(f"{service.rest}/hftlab/fault", json=bad) as answer:
                    assert answer.status == 400
                    assert "expected" in (await answer.json())["error"]

    _run(script)


def test_a_client_that_does_not_read_is_disconnected_and_the_others_go_on() -> None:
    async def script() -> None:
        async with serving(queue=50, rate=20_000.0) as (service, session):
            host, port = urlsplit(service.rest).netloc.split(":")
            with socket.socket() as lazy:
                lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                lazy.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(lazy, (host, int(port)))
                await loop.sock_sendall(
                    lazy,
                    b"GET /stream?streams=btcusdt@trade/btcusdt@bookTicker/btcusdt@depth@100ms HTTP/1.1\r\n"
                    b"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                )

                async def thrown_out() -> bool:
                    return int((await status(service, session))["slow_consumers"]) == 1

                await until(thrown_out)
            async with session.ws_connect(f"{service.stream}/ws/btcusdt@depth@100ms") as ws:
                assert (await next_json(ws))["e"] == "depthUpdate"

    _run(script)


def test_control_pages_exist_on_loopback_only() -> None:
    async def script() -> None:
        async with serving(host="0.0.0.0") as (service, session):
            port = urlsplit(service.rest).port
            for path in ("status", "fault"):
                async with session.get(f"http://127.0.0.1:{port}/hftlab/{path}") as answer:
                    assert answer.status == 404
            async with session.get(f"http://127.0.0.1:{port}/api/v3/ping") as answer:
                assert await answer.json() == {}

    _run(script)


def test_settings_out_of_range_are_named() -> None:
    for wrong in ({"speed": 0.0}, {"speed": float("inf")}, {"port": 70_000}, {"queue": 0}, {"symbols": ()}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            VenueSettings(**wrong)
    with pytest.raises(ConfigError, match="NOPE"):
        VenueService(VenueSettings(symbols=("NOPE",)))


# ---- the process


def _spawn(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hftlab.services.venue", "--die-with-parent", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_where_it_listens_and_stops_cleanly(number: signal.Signals) -> None:
    process = _spawn()
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["pid"] == process.pid
        assert ready["ws_api"] == ready["rest"].replace("http", "ws") + "/ws-api/v3"
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def test_a_port_in_use_is_one_clear_line_and_exit_code_4() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = _spawn("--port", str(port))
        try:
            out, err = process.communicate(timeout=2 * WAIT_S)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, out, len(err.splitlines())) == (4, "", 1)
    assert f"port {port} on 127.0.0.1" in err
    assert "in use" in err
