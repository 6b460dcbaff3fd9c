"""Binance's decoders as targets of mutated input: market data by each reader, one by one and in batches, snapshots.

The seeds are the messages of the venue's documentation in their documented layout, with small numbers changed.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec
import numpy as np

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind
from hftlab.kernels.ladder import Ladders
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.testing.fuzz import Feed
from hftlab.venues.binance.connection import BUFFER_ROWS, FuturesConnection
from hftlab.venues.binance.market import DEPTH, MarketDecoder
from hftlab.venues.binance.orders import OrderCodec
from hftlab.venues.binance.server import DEFAULT_ACCOUNT, DEFAULT_INSTRUMENTS, BinanceServer

__all__ = ["TARGETS"]

_INSTRUMENTS = [
    Instrument(0, "binance", "BNBBTC", Decimal("0.0001"), Decimal("0.01")),
    Instrument(1, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001")),
]
_SEEDS = [
    b'{"e":"depthUpdate","E":1672515782136,"s":"BNBBTC","U":157,"u":160,'
    b'"b":[["0.00240000","10.00000000"]],"a":[["0.00260000","100.00000000"],["0.00270000","0.00000000"]]}',
    b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1723161255208123,"s":"BTCUSDT","U":157,"u":160,'
    b'"b":[["61737.63000000","0.00000000"],["61730.17000000","1.50000000"]],"a":[]}}',
    b'{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.00100000","q":"100.00000000","T":1672515782136,'
    b'"m":true,"M":true}',
    b'{"e":"aggTrade","E":1672515782136,"s":"BNBBTC","a":12345,"p":"0.00100000","q":"100.00000000","f":100,"l":105,'
    b'"T":1672515782136,"m":false,"M":true}',
    b'{"u":400900217,"s":"BTCUSDT","b":"25.35000000","B":"31.21000000","a":"25.36000000","A":"40.66000000"}',
    b'{"e": "trade", "s": "BNBBTC", "t": 1, "p": "0.0010", "q": "1", "T": 1, "m": true, "new": null}',
    b'{"result":null,"id":1}',
]
_SNAPSHOT = b'{"lastUpdateId":1027024,"bids":[["4.00000000","431.00000000"]],"asks":[["4.00020000","12.00000000"]]}'
_FUTURES = [
    b'{"e":"depthUpdate","E":123456789,"T":123456788,"s":"BNBBTC","U":1027000,"u":1027030,"pu":1026990,"b":[["0.0024",'
    b'"10"]],"a":[["0.0026","100"]]}',
    b'{"e":"depthUpdate","E":123456789,"T":123456788,"s":"BNBBTC","U":1027035,"u":1027040,"pu":1027030,"b":[],"a":[]}',
    b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":123456789,"T":123456788,"s":"BTCUSDT","U":1027020,'
    b'"u":1027029,"pu":1027019,"b":[["7403.89","0.002"]],"a":[["7405.96","3.34"]]}}',
    b'{"e":"bookTicker","u":400900217,"E":1568014460893,"T":1568014460891,"s":"BNBBTC","b":"25.3519","B":"31.21",'
    b'"a":"25.3652","A":"40.66"}',
    b'{"e":"trade","E":1672515782136,"T":1672515782136,"s":"BNBBTC","t":5,"p":"0.001","q":"100","X":"MARKET","m":true}',
    _SNAPSHOT,
]
_ACCOUNT = [
    b'{"subscriptionId":0,"event":{"e":"executionReport","E":1499405658658,"s":"BTCUSDT","c":"fuzz-7","S":"BUY","o":'
    b'"LIMIT","f":"GTC","q":"1.00000","p":"0.10","C":"","x":"NEW","X":"NEW","r":"NONE","i":4293153,"l":"0.00000","z":'
    b'"0.00000","L":"0.00","n":"0","N":null,"T":1499405658657,"t":-1,"m":false}}',
    b'{"subscriptionId":0,"event":{"e":"executionReport","E":1499405658658,"s":"BTCUSDT","c":"fuzz-7","S":"BUY","o":'
    b'"LIMIT","f":"GTC","q":"1.00000","p":"0.10","C":"","x":"TRADE","X":"FILLED","r":"NONE","i":4293153,"l":"1.00000",'
    b'"z":"1.00000","L":"0.10","n":"0.001","N":"BTC","T":1499405658657,"t":77,"m":true}}',
    b'{"subscriptionId":0,"event":{"e":"outboundAccountPosition","E":1564034571105,"u":1564034571073,"B":[{"a":"ETH",'
    b'"f":"10000.000000","l":"0.000000"}]}}',
    b'{"id":"p7","status":400,"error":{"code":-2010,"msg":"Account has insufficient balance for requested action."}}',
    b'{"id":"p7","status":200,"result":{"symbol":"BTCUSDT","orderId":12,"clientOrderId":"fuzz-7","transactTime":1}}',
]


def _market() -> tuple[Feed, list[bytes]]:
    alone, batched = MarketDecoder(_INSTRUMENTS, agg=True), MarketDecoder(_INSTRUMENTS, agg=True)
    books, out, again = Ladders(_INSTRUMENTS, span=256), np.zeros(64, ROW), np.zeros(64, ROW)
    stamps, ends = np.full(1, 7, np.int64), np.zeros(2, np.int64)

    def feed(data: bytes) -> None:
        refused = sum(alone.counts.values()) - alone.counts["fallback"]
        n = alone.decode(data, 7, out)
        if n == 0 and alone.kind != DEPTH:
            assert sum(alone.counts.values()) - alone.counts["fallback"] == refused + 1, "a message vanished uncounted"
        for k in range(n):
            assert out[k]["ts_recv"] == 7 and out[k]["instrument"] < 2 and out[k]["qty"] >= 0
            assert bool(out[k]["flags"] & Flag.LAST) == (k == n - 1)
            assert out[k]["kind"] in (Kind.LEVEL, Kind.QUOTE, Kind.TRADE)
        ends[1] = len(data)
        assert batched.decode_batch(data, ends, stamps, again, books=books) == (1, n)
        assert again[:n].tobytes() == out[:n].tobytes() and batched.counts == alone.counts

    return feed, _SEEDS


def _snapshot() -> tuple[Feed, list[bytes]]:
    decoder, out = MarketDecoder(_INSTRUMENTS), np.zeros(64, ROW)

    def feed(data: bytes) -> None:
        refused = sum(decoder.counts.values()) - decoder.counts["fallback"]
        n = decoder.decode_snapshot(data, 0, 7, out)
        if n == 0:
            assert sum(decoder.counts.values()) - decoder.counts["fallback"] == refused + 1, "uncounted"
        else:
            assert out[0]["kind"] == Kind.CLEAR and (out["kind"][1:n] == Kind.LEVEL).all()
            assert (out["a"][:n] == out[0]["a"]).all() and (out["qty"][:n] >= 0).all()

    return feed, [_SNAPSHOT, b'{"lastUpdateId":7,"bids":[],"asks":[]}']


def _futures() -> tuple[Feed, list[bytes]]:
    """A connection to USD-M futures: LEVEL rows leave between LIVE and RESYNCING only, and buffers stay bounded."""
    connection = FuturesConnection(_INSTRUMENTS, snapshot_limit=5)
    out, believed, now = np.zeros(connection.rows_needed, ROW), {0: False, 1: False}, 1
    connection.on_open(now)

    def took(n: int) -> None:
        levels = False
        for row in out[:n]:
            identity = int(row["instrument"])
            if row["kind"] == Kind.BOOK_STATE:
                believed[identity] = row["code"] in (BookState.LIVE, BookState.STALE)
                levels = False
            elif row["kind"] == Kind.CLEAR:
                levels = True  # of a snapshot and what was held back: LIVE follows
            elif row["kind"] == Kind.LEVEL:
                assert levels or believed[identity]
        assert not levels

    def feed(data: bytes) -> None:
        nonlocal now
        now += 10_000_000
        took(connection.on_frame(data, now, out))
        took(connection.poll(now, out))
        for symbol in connection.wants_snapshot():
            took(connection.on_snapshot(symbol, data if data.startswith(b'{"last') else _SNAPSHOT, now, out))
        assert all(book.buffered_rows <= BUFFER_ROWS for book in connection.books.values())

    return feed, _FUTURES


def _account() -> tuple[Feed, list[bytes]]:
    """An account's answers and events: reports come in pairs of rows, complete, or not at all."""
    codec, out = OrderCodec(_INSTRUMENTS, "key", "secret", "fuzz-", ["USDT", "BTC"]), np.zeros(64, ROW)
    kinds = {int(kind) for kind in ExecType}

    def feed(data: bytes) -> None:
        n = codec.decode(data, 7, out)
        assert 0 <= n <= len(out) and n % 2 == 0
        for k in range(0, n, 2):
            assert out[k]["kind"] == Kind.REPORT and out[k + 1]["kind"] == Kind.CONT
            assert int(out[k]["code"]) & 255 in kinds and out[k]["qty"] >= 0
        del codec.assets[64:]

    return feed, _ACCOUNT


def _face() -> tuple[Feed, list[bytes]]:
    """A client of the simulated venue, on a stream and on the order connection: it is answered in JSON."""
    instrument = DEFAULT_INSTRUMENTS["BTCUSDT"]
    exchange = MatchingExchange([instrument], seed=1, fees=Fees(0, 0), start_ns=10**18)
    server = BinanceServer(exchange, [instrument])
    server.tick(10**18, exchange.advance(10**18 + 100_000_000))
    peers = server.peer("/stream", ""), server.peer("/ws-api/v3", "")
    codec = OrderCodec([instrument], *DEFAULT_ACCOUNT[:2], "fuzz-", ["USDT", "BTC"])

    def feed(data: bytes) -> None:
        for peer in peers:
            for answer in peer.receive(data, 10**12):
                msgspec.json.decode(answer)
        for item in server.take():
            for peer in peers:
                for message in peer.render(item):
                    msgspec.json.decode(message)

    return feed, [
        b'{"method":"SUBSCRIBE","params":["btcusdt@depth@100ms","btcusdt@trade"],"id":1}',
        b'{"method":"UNSUBSCRIBE","params":["btcusdt@trade"],"id":2}',
        b'{"method":"LIST_SUBSCRIPTIONS","id":3}',
        b'{"id":"a","method":"ping"}',
        b'{"id":"b","method":"exchangeInfo","params":{"symbol":"BTCUSDT"}}',
        b'{"id":"c","method":"depth","params":{"symbol":"BTCUSDT","limit":5}}',
        *codec.session_requests(10**12),
    ]


TARGETS = {
    "binance-account": _account,
    "binance-face": _face,
    "binance": _market,
    "binance-futures": _futures,
    "binance-snapshot": _snapshot,
}
