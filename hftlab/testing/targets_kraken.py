"""Fuzz targets of Kraken: market messages of both versions, a connection, an account's events, and the venue's face.

Seeds are messages of the venue's documentation and of its public feed, shortened. Each feed asserts what its decoder
promises: nothing is raised, every row is complete, and a refused message gives no row.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import msgspec
import numpy as np

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.venues.kraken.connection import MarketConnection
from hftlab.venues.kraken.market import BROKEN, MarketDecoder
from hftlab.venues.kraken.orders import OrderCodec
from hftlab.venues.kraken.server import DEFAULT_ACCOUNT, DEFAULT_INSTRUMENTS, KrakenServer

__all__ = ["TARGETS"]

Feed = Callable[[bytes], None]

_V2 = [
    b'{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":45283.5,"qty":0.10000000},'
    b'{"price":45283.4,"qty":1.54582015}],"asks":[{"price":45285.2,"qty":0.00100000}],"checksum":3310070434}]}',
    b'{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":45281.0,"qty":0.10000000}],'
    b'"asks":[{"price":45285.2,"qty":0}],"checksum":2114181697,"timestamp":"2023-10-06T17:35:55.440295Z"}]}',
    b'{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"sell","price":45117.1,"qty":40.0,'
    b'"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
    b'{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":45944.2,"bid_qty":2.5,"ask":45944.3,'
    b'"ask_qty":3.2,"last":45899.4,"volume":163.28908096,"vwap":45904.39279,"low":44711.0,"high":46613.1,"change":'
    b'-250.0,"change_pct":-0.24}]}',
    b'{"channel":"heartbeat"}',
    b'{"method":"subscribe","result":{"channel":"book","depth":10,"symbol":"BTC/USD"},"success":true,"req_id":1}',
]
_V1 = [
    b'[0,{"as":[["5541.3","2.50700000","1534614248.123678"]],"bs":[["5541.2","1.52900000","1534614248.765567"]]},'
    b'"book-10","XBT/USD"]',
    b'[0,{"a":[["5541.3","2.50700000","1534614248.456738"],["5542.5","0.40100000","1534614248.456738"]]},'
    b'{"b":[["5541.3","0.00000000","1534614335.345903","r"]],"c":"974942666"},"book-10","XBT/USD"]',
    b'[0,[["5541.2","0.15850568","1534614057.321597","s","l",""]],"trade","XBT/USD"]',
    b'[0,{"a":["5525.4",1,"1.000"],"b":["5525.1",1,"1.000"],"c":["5525.1","0.00398963"],"v":["2634.1","3591.1"],'
    b'"p":["5631.4","5653.7"],"t":[11493,16267],"l":["5505.0","5505.0"],"h":["5783.0","5783.0"]},"ticker","XBT/USD"]',
    b'[0,["5698.4","5700.0","1542057299.545897","1.01234567","0.98765432"],"spread","XBT/USD"]',
    b'{"event":"heartbeat"}',
]
_EVENTS = [
    b'{"channel":"executions","type":"update","data":[{"order_id":"OVN7VD-7VYHS-APBKHA","symbol":"BTC/USD","order_qty":'
    b'0.00010000,"exec_type":"pending_new","side":"buy","order_type":"limit","cl_ord_id":"%b","limit_price":80000.0,'
    b'"order_status":"pending_new","timestamp":"2026-01-22T06:06:19.833306Z"}],"sequence":2}',
    b'{"channel":"executions","type":"update","data":[{"order_id":"OVN7VD-7VYHS-APBKHA","exec_id":"T5DIUI-5N4KO-Z5BPXK",'
    b'"exec_type":"trade","trade_id":8253473,"symbol":"BTC/USD","side":"buy","last_qty":0.00001,"last_price":80000.2,'
    b'"liquidity_ind":"t","order_status":"filled","cl_ord_id":"%b","fees":[{"asset":"USD","qty":0.3458}]}]}',
    b'{"channel":"executions","type":"update","data":[{"timestamp":"2026-01-22T06:06:27.552281Z","exec_type":"amended",'
    b'"order_status":"new","cum_qty":0.00000000,"order_qty":0.00010000,"limit_price":81818.0,"cl_ord_id":"%b",'
    b'"order_id":"OVN7VD-7VYHS-APBKHA"}],"sequence":4}',
    b'{"channel":"executions","type":"snapshot","data":[{"exec_type":"canceled","cl_ord_id":"%b","order_id":"O1"}]}',
    b'{"channel":"balances","type":"snapshot","data":[{"asset":"BTC","balance":1.2,"wallets":[]}],"sequence":1}%.0b',
    b'{"method":"add_order","req_id":1,"success":false,"error":"EOrder:Insufficient funds"}%.0b',
]
_REQUESTS = [
    b'{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":10,"snapshot":true},"req_id":1}',
    b'{"method":"unsubscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":10},"req_id":2}',
    b'{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD"],"event_trigger":"bbo"}}',
    b'{"method":"subscribe","params":{"channel":"executions","snap_orders":true,"token":"TOKEN"},"req_id":3}',
    b'{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":0.01,'
    b'"limit_price":50000.0,"time_in_force":"gtc","post_only":true,"cl_ord_id":"mine","token":"TOKEN"},"req_id":4}',
    b'{"method":"add_order","params":{"order_type":"market","side":"sell","symbol":"BTC/USD","order_qty":0.001,'
    b'"token":"TOKEN"}}',
    b'{"method":"amend_order","params":{"cl_ord_id":"mine","order_qty":0.02,"limit_price":49000.0,"token":"TOKEN"}}',
    b'{"method":"cancel_order","params":{"cl_ord_id":["mine"],"token":"TOKEN"},"req_id":5}',
    b'{"method":"cancel_all","params":{"token":"TOKEN"}}',
    b'{"method":"ping","req_id":6}',
]
_KINDS = (int(Kind.LEVEL), int(Kind.CLEAR), int(Kind.TRADE), int(Kind.QUOTE))
_STATES = {int(state) for state in BookState}


def _instrument() -> Instrument:
    return Instrument(3, "kraken", "BTC/USD", Decimal("0.1"), Decimal("0.00000001"))


def _market(version: int) -> Callable[[], tuple[Feed, list[bytes]]]:
    def make() -> tuple[Feed, list[bytes]]:
        decoder = MarketDecoder([_instrument()], version=version, depth=10)
        out = np.zeros(64, ROW)
        last = int(Flag.LAST)

        def feed(data: bytes) -> None:
            n = decoder.decode(data, 1, out)
            assert 0 <= n <= len(out)
            assert n == 0 or decoder.kind != BROKEN
            if n:
                rows = out[:n]
                assert np.isin(rows["kind"], _KINDS).all() and (rows["instrument"] == 3).all()
                assert rows["flags"][n - 1] & last and not (rows["flags"][: n - 1] & last).any()
                assert (rows["px"] >= 0).all() and (rows["qty"] >= 0).all()

        return feed, _V2 if version == 2 else _V1

    return make


def _connection() -> tuple[Feed, list[bytes]]:
    """Whatever comes, LEVEL rows leave only between LIVE and RESYNCING, and the messages to send stay few."""
    connection = MarketConnection([_instrument()], depth=10)
    out = np.zeros(connection.rows_needed, ROW)
    believed, now = False, 1
    connection.subscribe_requests([3])
    connection.on_open(now)

    def feed(data: bytes) -> None:
        nonlocal believed, now
        now += 100_000_000
        n = connection.on_frame(data, now, out)
        n_states = 0
        for row in out[:n]:
            if row["kind"] == Kind.BOOK_STATE:
                n_states += 1
                assert int(row["code"]) in _STATES and row["flags"] & Flag.LAST
                believed = row["code"] in (BookState.LIVE, BookState.STALE)
            elif row["kind"] == Kind.LEVEL and not row["flags"] & Flag.SNAPSHOT:
                assert believed
        assert n_states <= 2
        connection.poll(now, out)
        assert len(connection.wants_send()) <= 5 and len(connection.errors) <= 16

    return feed, _V2


def _account() -> tuple[Feed, list[bytes]]:
    codec = OrderCodec([_instrument()], "key", "c2VjcmV0", "fuzz", ["BTC", "USD"])
    seeds = [event % codec.client_order_id(7).encode() for event in _EVENTS]
    out = np.zeros(16, ROW)
    kinds = {int(kind) for kind in ExecType}

    def feed(data: bytes) -> None:
        n = codec.decode(data, 1, out)
        assert 0 <= n <= len(out) and n % 2 == 0
        for i in range(0, n, 2):
            assert out[i]["kind"] == Kind.REPORT and out[i + 1]["kind"] == Kind.CONT
            assert int(out[i]["code"]) & 255 in kinds and out[i]["qty"] >= 0
        del codec.assets[64:]

    return feed, seeds


def _face() -> tuple[Feed, list[bytes]]:
    """A client of the simulated venue: whatever it sends, it is answered in JSON, and money stays where it is held."""
    instrument = DEFAULT_INSTRUMENTS["BTC/USD"]
    exchange = MatchingExchange([instrument], seed=1, fees=Fees(0, 0), start_ns=10**18)
    server = KrakenServer(exchange, [instrument], orders_per_10s=100)
    server.tick(10**18, exchange.advance(10**18 + 100_000_000))
    codec = OrderCodec([instrument], *DEFAULT_ACCOUNT[:2], "fuzz", ["BTC", "USD"])
    path, body, headers = codec.token_request(1)
    codec.take_token(server.rest("POST", path, b"", body.encode(), headers, 0).body)
    token = codec.token.encode()
    server.tick(10**18 + 100_000_000, np.zeros(0, ROW))
    public, private = server.peer("/v2", ""), server.peer("/auth/v2", "")
    account = next(iter(server.accounts.values()))

    def feed(data: bytes) -> None:
        for peer in (public, private):
            for answer in peer.receive(data, 0):
                msgspec.json.decode(answer)
        for item in server.take():
            for peer in (public, private):
                for message in peer.render(item):
                    msgspec.json.decode(message)
        assert all(0 <= account.held[asset] <= units for asset, units in account.balance.items())

    return feed, [request.replace(b"TOKEN", token) for request in _REQUESTS]


TARGETS = {
    "kraken-v1": _market(1),
    "kraken-v2": _market(2),
    "kraken-connection": _connection,
    "kraken-account": _account,
    "kraken-face": _face,
}
