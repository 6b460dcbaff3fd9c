"""Binance's decoders as targets of mutated input: market data by each reader, one by one and in batches, snapshots.

The seeds are the messages of the venue's documentation in their documented layout, with small numbers changed.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind
from hftlab.kernels.ladder import Ladders
from hftlab.testing.fuzz import Feed
from hftlab.venues.binance.market import DEPTH, MarketDecoder

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


TARGETS = {"binance": _market, "binance-snapshot": _snapshot}
