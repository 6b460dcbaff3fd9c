"""Fuzz targets of Coinbase: market messages of both APIs, level 3 books, and an account's events.

Seeds are documented messages (docs.cdp.coinbase.com, WebSocket Channels), shortened. Each feed asserts what its decoder
promises: the kernels and the tolerant reader agree, and nothing is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import msgspec
import numpy as np

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.venues.coinbase.connection import AdvancedConnection, MarketConnection
from hftlab.venues.coinbase.market import MarketDecoder
from hftlab.venues.coinbase.orders import AdvancedOrderCodec, OrderCodec
from hftlab.venues.coinbase.server import DEFAULT_ACCOUNT, DEFAULT_INSTRUMENTS, PASSPHRASE, CoinbaseServer

__all__ = ["TARGETS"]

Feed = Callable[[bytes], None]

_ORDER = b"d50ec984-77a8-460a-b958-66f114b0de9b"
_EXCHANGE = [
    b'{"type":"snapshot","product_id":"BTC-USD","bids":[["10101.10","0.45054140"]],"asks":[["10102.55","0.57753524"]]}',
    b'{"type":"l2update","product_id":"BTC-USD","time":"2019-08-14T20:42:27.265Z",'
    b'"changes":[["buy","10101.80000000","0.162567"],["sell","10102.00","0"]]}',
    b'{"type":"match","trade_id":10,"sequence":50,"maker_order_id":"%b","taker_order_id":"%b",'
    b'"time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","size":"5.23512","price":"400.23","side":"sell"}'
    % (_ORDER, _ORDER),
    b'{"type":"ticker","sequence":37475248783,"product_id":"BTC-USD","price":"1285.22","best_bid":"1285.04",'
    b'"best_bid_size":"0.46688654","best_ask":"1285.27","best_ask_size":"1.56637040","side":"buy",'
    b'"time":"2022-10-19T23:28:22.061769Z","trade_id":370843401,"last_size":"11.4396987"}',
    b'{"type":"open","time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","sequence":101,'
    b'"order_id":"%b","price":"200.2","remaining_size":"1.00","side":"sell"}' % _ORDER,
    b'{"type":"change","reason":"modify_order","time":"2022-06-06T22:55:43.433114Z","sequence":102,"order_id":"%b",'
    b'"side":"sell","product_id":"BTC-USD","old_size":"80","new_size":"8","new_price":"6","old_price":"7"}' % _ORDER,
    b'{"type":"done","time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","sequence":103,"price":"200.2",'
    b'"order_id":"%b","reason":"filled","side":"sell","remaining_size":"0"}' % _ORDER,
    b'{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD","time":"2014-11-07T08:19:28.464459Z"}',
]
_ADVANCED = [
    b'{"channel":"l2_data","client_id":"","timestamp":"2023-02-09T20:32:50.714964855Z","sequence_num":0,"events":['
    b'{"type":"snapshot","product_id":"BTC-USD","updates":[{"side":"bid","event_time":"1970-01-01T00:00:00Z",'
    b'"price_level":"21921.73","new_quantity":"0.06317902"},{"side":"offer","event_time":"1970-01-01T00:00:00Z",'
    b'"price_level":"21921.9","new_quantity":"0.02"}]}]}',
    b'{"channel":"market_trades","client_id":"","timestamp":"2023-02-09T20:19:35.39625135Z","sequence_num":1,"events":['
    b'{"type":"update","trades":[{"trade_id":"12","product_id":"BTC-USD","price":"1260.01","size":"0.3","side":"BUY",'
    b'"time":"2019-08-14T20:42:27.265Z"}]}]}',
]
_BOOK = b'{"bids":[["295.96","0.05088265","%b"]],"asks":[],"sequence":100,"auction_mode":false,"auction":null}' % _ORDER


def _instruments() -> list[Instrument]:
    return [Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))]


def _market() -> tuple[Feed, list[bytes]]:
    """Both readers on the same bytes: what the kernel takes, the tolerant reader takes, with the same rows."""
    fast, slow = MarketDecoder(_instruments()), MarketDecoder(_instruments())
    out, other = np.zeros(64, ROW), np.zeros(64, ROW)

    def feed(data: bytes) -> None:
        before = fast.counts["fallback"]
        n = fast.decode(data, 7, out)
        if n and fast.counts["fallback"] == before:
            assert slow._tolerant(data, 7, other) == n
            assert out[:n].tobytes() == other[:n].tobytes()
            assert (fast.kind, fast.instrument, fast.sequence, fast.trade_id, fast.time) == (
                slow.kind, slow.instrument, slow.sequence, slow.trade_id, slow.time,
            )  # fmt: skip

    return feed, _EXCHANGE + _ADVANCED


def _full() -> tuple[Feed, list[bytes]]:
    """A connection on the full channel that is fed anything as a message, and as a book when it asks for one."""
    connection = MarketConnection(_instruments(), channel="full", max_rows=64)
    out = np.zeros(connection.rows_needed, ROW)
    connection.on_open(1)
    at = 1

    def feed(data: bytes) -> None:
        nonlocal at
        at += 1_000_000_000
        book = connection.books[0]
        connection.on_frame(data, at, out)
        connection.poll(at, out)
        for symbol in connection.wants_snapshot():
            connection.on_snapshot(symbol, data if data.startswith(b'{"bids"') else _BOOK, at, out)
        assert len(book.buffer) <= 8192
        assert book.synced or connection.decoder.orders_alive == 0
        if connection.decoder.orders_alive > 32:  # so that mutated books do not gather
            connection.on_close(at, out)
            connection.on_open(at)

    return feed, [*_EXCHANGE, _BOOK]


def _advanced() -> tuple[Feed, list[bytes]]:
    """A connection to Advanced Trade that is fed anything."""
    connection = AdvancedConnection(_instruments(), max_rows=64)
    out = np.zeros(connection.rows_needed, ROW)
    connection.on_open(1)

    def feed(data: bytes) -> None:
        n = connection.on_frame(data, 1, out)
        assert 0 <= n <= connection.rows_needed
        connection.wants_send()

    return feed, _ADVANCED + _EXCHANGE[:2]


def _orders() -> tuple[Feed, list[bytes]]:
    """An account's events of both APIs, and anything as the answer to an order."""
    instruments = _instruments()
    exchange = OrderCodec(instruments, "key", "c2VjcmV0", "phrase", "fuzz-", ["USD"])
    advanced = AdvancedOrderCodec(instruments, lambda method, path, now_ns: "token", "fuzz-", ["USD"])
    out = np.zeros(64, ROW)
    row = np.zeros(1, ROW)
    row["kind"], row["a"], row["flags"], row["code"], row["px"], row["qty"] = 30, 7, 1, 1, 100, 100
    request, other = (codec.encode(row[0], None, 0) for codec in (exchange, advanced))

    def feed(data: bytes) -> None:
        for n in (
            exchange.decode(data, 1, out),
            advanced.decode(data, 1, out),
            exchange.on_answer(request, 200, data, 1, out),
            advanced.on_answer(other, 200, data, 1, out),
        ):
            assert n % 2 == 0 and 0 <= n <= len(out)

    client = exchange.client_oid(7).encode()
    state = (
        b'{"channel":"user","timestamp":"2023-02-09T20:33:57.609931463Z","sequence_num":0,"events":[{"type":"update",'
        b'"orders":[{"order_id":"%b","client_order_id":"fuzz-7","cumulative_quantity":"0.5","leaves_quantity":"0.5",'
        b'"filled_value":"10.01","total_fees":"0.1","status":"OPEN","product_id":"BTC-USD","order_side":"BUY"}]}]}'
    )
    answer = b'{"id":"%b","product_id":"BTC-USD","side":"buy","status":"open","size":"1","price":"1","client_oid":"%b"}'
    seeds = [
        b'{"type":"received","time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","sequence":10,'
        b'"order_id":"%b","size":"1.34","price":"502.1","side":"buy","order_type":"limit","client_oid":"%b"}'
        % (_ORDER, client),
        _EXCHANGE[2],
        _EXCHANGE[6],
        state % _ORDER,
        answer % (_ORDER, client),
        b'{"success":true,"success_response":{"order_id":"%b"}}' % _ORDER,
    ]
    return feed, seeds


def _face() -> tuple[Feed, list[bytes]]:
    """A client of the simulated venue: whatever it sends, it is answered in JSON, and the feed goes on."""
    instrument = DEFAULT_INSTRUMENTS["BTC-USD"]
    exchange = MatchingExchange([instrument], seed=1, fees=Fees(0, 0), start_ns=10**18)
    server = CoinbaseServer(exchange, [instrument])
    server.tick(10**18, exchange.advance(10**18 + 100_000_000))
    peer = server.peer("/", "")
    codec = OrderCodec([instrument], *DEFAULT_ACCOUNT[:2], PASSPHRASE, "fuzz-", ["USD"])

    def feed(data: bytes) -> None:
        for answer in peer.receive(data, 10**12):
            msgspec.json.decode(answer)
        for item in server.take():
            for message in peer.render(item):
                msgspec.json.decode(message)
        for beat in peer.poll(10**12):
            msgspec.json.decode(beat)

    channels = b'"product_ids":["BTC-USD"],"channels":'
    return feed, [
        b'{"type":"subscribe",' + channels + b'["level2_batch","matches","ticker","heartbeat"]}',
        b'{"type":"subscribe","channels":[{"name":"heartbeat","product_ids":["BTC-USD"]},"status"]}',
        b'{"type":"unsubscribe",' + channels + b'["matches"]}',
        codec.subscribe_request(10**18),
    ]


TARGETS: dict[str, Callable[[], tuple[Feed, list[bytes]]]] = {
    "coinbase": _market,
    "coinbase_advanced": _advanced,
    "coinbase_face": _face,
    "coinbase_full": _full,
    "coinbase_orders": _orders,
}
