"""USD-M futures: the chain of ``pu``, joined to snapshots, on the documented message and on random lossy streams."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import numpy as np
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, ROW, BookState, Flag, Kind
from hftlab.venues.binance.connection import FuturesConnection, MarketConnection
from hftlab.venues.binance.market import MarketDecoder

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.1"), Decimal("0.001"))
BNB = Instrument(1, "binance", "BNBUSDT", Decimal("0.0001"), Decimal("0.01"))
SECOND = 1_000_000_000

# "Diff. Book Depth Streams" and "Individual Symbol Book Ticker Streams" of the documentation; prices put on BNB's grid
DEPTH = b"""{
  "e": "depthUpdate", "E": 123456789, "T": 123456788, "s": "BNBUSDT", "U": 157, "u": 160, "pu": 149,
  "b": [["0.0024", "10"]], "a": [["0.0026", "100"]]
}"""
TICKER = (
    b'{"e":"bookTicker","u":400900217,"E": 1568014460893,"T": 1568014460891,"s":"BNBUSDT",'
    b'"b":"25.3519","B":"31.21","a":"25.3652","A":"40.66"}'
)


class Client:
    """A connection with a clock; each call returns the kinds or states of its rows and keeps the book they make."""

    def __init__(self, *instruments: Instrument) -> None:
        self.connection = FuturesConnection(instruments or (BTC,))
        self.out = np.zeros(self.connection.rows_needed, ROW)
        self.now = SECOND
        self.book: dict[tuple[bool, int], int] = {}
        self.state = BookState.EMPTY
        self.connection.on_open(self.now)

    def took(self, n: int) -> list[str]:
        told = []
        for row in self.out[:n]:
            kind = Kind(int(row["kind"]))
            if kind == Kind.BOOK_STATE:
                self.state = BookState(int(row["code"]))
            elif kind == Kind.CLEAR:
                self.book.clear()
            elif kind == Kind.LEVEL:
                key = bool(row["flags"] & Flag.BID), int(row["px"])
                self.book[key] = int(row["qty"])
                if not row["qty"]:
                    del self.book[key]
            told.append(self.state.name if kind == Kind.BOOK_STATE else kind.name)
        return told

    def frame(self, frame: bytes) -> list[str]:
        return self.took(self.connection.on_frame(frame, self.now, self.out))

    def snapshot(self, payload: bytes) -> list[str]:
        return self.took(self.connection.on_snapshot("BTCUSDT", payload, self.now, self.out))

    def poll(self, seconds: float) -> list[str]:
        self.now += int(seconds * SECOND)
        return self.took(self.connection.poll(self.now, self.out))


def delta(previous: int, first: int, last: int, levels: dict[tuple[bool, int], int] | None = None) -> bytes:
    sides: dict[bool, list[list[str]]] = {True: [], False: []}
    for (bid, px), qty in (levels or {(True, 10): last}).items():
        sides[bid].append([f"{px * BTC.tick_size:f}", f"{qty * BTC.lot_size:f}"])
    told = {"e": "depthUpdate", "E": 1_700_000_000_000 + last, "T": 1_700_000_000_000 + last, "s": "BTCUSDT"}
    ids = {"U": first, "u": last, "pu": previous, "b": sides[True], "a": sides[False]}
    return json.dumps({**told, **ids}, separators=(",", ":")).encode()


def snapshot(update_id: int, levels: dict[tuple[bool, int], int] | None = None) -> bytes:
    sides: dict[bool, list[list[str]]] = {True: [], False: []}
    for (bid, px), qty in (levels or {}).items():
        sides[bid].append([f"{px * BTC.tick_size:f}", f"{qty * BTC.lot_size:f}"])
    told = {"lastUpdateId": update_id, "E": 1_700_000_000_000, "T": 1_700_000_000_000}
    return json.dumps({**told, "bids": sides[True], "asks": sides[False]}).encode()


def test_the_documented_messages_are_read() -> None:
    connection = FuturesConnection([BTC, BNB])
    decoder, out = connection.decoder, np.zeros(8, ROW)
    for frame in (DEPTH, b'{"stream":"bnbusdt@depth","data":' + DEPTH + b"}"):
        assert decoder.decode(frame, 0, out) == 2
        assert (decoder.first, decoder.last, connection._previous(frame)) == (157, 160, 149)
    assert [(int(r["px"]), int(r["qty"]), int(r["instrument"])) for r in out[:2]] == [(24, 1000, 1), (26, 10_000, 1)]
    assert not any(decoder.counts.values())


def test_the_documented_ticker_is_read_alike_by_both_readers() -> None:
    decoder, out, other = MarketDecoder([BNB]), np.zeros(4, ROW), np.zeros(4, ROW)
    assert decoder.decode(TICKER, 5, out) == 2 and not any(decoder.counts.values())
    assert int(out[0]["ts_event"]) == 1568014460893 * 10**6 and int(out[1]["px"]) == 253_652
    assert decoder._tolerant(TICKER, 5, other) == 2
    assert out.tobytes() == other.tobytes()
    spot = TICKER.replace(b'"e":"bookTicker",', b"")
    assert decoder.decode(spot, 5, out) == 2 and int(out[0]["ts_event"]) == NAT


def test_paths_streams_and_limits_are_those_of_futures() -> None:
    connection = FuturesConnection([BTC], snapshot_limit=500)
    assert connection.snapshot_path("BTCUSDT") == "/fapi/v1/depth?symbol=BTCUSDT&limit=500"
    assert json.loads(connection.subscribe_requests([0])[0])["params"][0] == "btcusdt@depth@100ms"
    with pytest.raises(ConfigError, match="snapshot_limit=5000; expected one of 5, 10"):
        FuturesConnection([BTC], snapshot_limit=5000)


def joined(update_id: int) -> tuple[Client, list[str]]:
    """Three deltas held back, (100, 105], (105, 110], (110, 120], then a snapshot."""
    client = Client()
    for previous, first, last in ((100, 103, 105), (105, 106, 110), (110, 113, 120)):
        assert client.frame(delta(previous, first, last)) == []
    assert client.connection.wants_snapshot() == ["BTCUSDT"]
    return client, client.snapshot(snapshot(update_id))


@pytest.mark.parametrize(
    ("update_id", "deltas"),
    [(100, 3), (102, 3), (104, 3), (105, 3), (106, 2), (110, 2), (111, 1), (119, 1), (120, 1), (121, 0)],
)
def test_a_snapshot_joins_what_is_not_older_than_it(update_id: int, deltas: int) -> None:
    client, told = joined(update_id)
    assert told == ["CLEAR", *["LEVEL"] * deltas, "LIVE"]
    first = (120, 125, 130) if deltas else (120, 121, 130)
    assert client.frame(delta(*first)) == ["LEVEL"]
    assert client.frame(delta(130, 140, 141)) == ["LEVEL"]
    assert client.frame(delta(130, 140, 141)) == []
    assert client.frame(delta(150, 151, 152)) == ["RESYNCING"]
    row = client.out[0]
    assert (int(row["a"]), int(row["b"])) == (141, 150)
    assert client.connection.counts["gaps"] == client.connection.counts["duplicates"] == 1


def test_a_snapshot_older_than_the_first_delta_held_back_is_asked_for_again() -> None:
    client, told = joined(99)
    assert told == [] and client.connection.counts["old_snapshots"] == 1
    assert client.connection.wants_snapshot() == ["BTCUSDT"]
    assert client.snapshot(snapshot(120))[-1] == "LIVE"


def test_after_a_snapshot_alone_the_first_delta_has_to_reach_it() -> None:
    for previous, first, last, told in (
        (90, 95, 99, []), (90, 95, 100, ["LEVEL"]), (97, 98, 103, ["LEVEL"]), (100, 104, 105, ["LEVEL"]),
        (99, 104, 105, ["LEVEL"]), (101, 104, 105, ["RESYNCING"]), (101, 102, 105, ["RESYNCING"]),
    ):  # fmt: skip
        client = Client()
        assert client.snapshot(snapshot(100)) == ["CLEAR", "LIVE"]
        assert client.frame(delta(previous, first, last)) == told, (previous, first, last)


@pytest.mark.parametrize("named", [b'"pv":105', b'"pu":-1', b'"pu":104', b'"pu":"105"', b'"pu":null'])
def test_a_delta_that_does_not_name_the_one_before_continues_nothing(named: bytes) -> None:
    client = Client()
    client.snapshot(snapshot(100))
    assert client.frame(delta(98, 99, 105)) == ["LEVEL"]
    told = client.frame(delta(105, 106, 110).replace(b'"pu":105', named))
    assert told == ["RESYNCING"] and client.connection.wants_snapshot() == ["BTCUSDT"]


def test_spots_rule_would_take_every_jump_of_ids_for_a_gap() -> None:
    spot = MarketConnection([BTC])
    out = np.zeros(spot.rows_needed, ROW)
    spot.on_open(1)
    spot.on_snapshot("BTCUSDT", snapshot(100), 1, out)
    spot.on_frame(delta(100, 101, 103), 1, out)
    spot.on_frame(delta(103, 110, 112), 1, out)
    assert spot.counts["gaps"] == 1


@pytest.mark.parametrize("seed", range(12))
def test_random_lossy_streams_end_in_the_venues_book_and_are_never_believed_wrongly(seed: int) -> None:
    chance, client = random.Random(seed), Client()
    truth: dict[tuple[bool, int], int] = {}
    history: dict[int, dict[tuple[bool, int], int]] = {}
    last, waiting = 1000, []
    history[last] = {}
    for step in range(600):
        levels = {}
        for _ in range(chance.randint(0, 4)):
            key = chance.random() < 0.5, chance.randint(1, 30)
            levels[key] = chance.choice([0, chance.randint(1, 999)])
        for key, qty in levels.items():
            truth[key] = qty
            if not qty:
                del truth[key]
        previous, first = last, last + chance.randint(1, 9)
        last = first + chance.randint(0, 9)
        history[last] = dict(truth)
        copies = 1 if step > 560 else chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2])
        frame = delta(previous, first, last, levels) if levels else delta(previous, first, last, {(True, 31): 0})
        for _ in range(copies):
            was = client.state
            told = client.frame(frame)
            if "LEVEL" in told:
                assert was == BookState.LIVE
            if client.state == BookState.LIVE and copies:
                assert client.book == truth, step
        client.poll(0.3)
        waiting += [(step + chance.randint(0, 5), last) for _ in client.connection.wants_snapshot()]
        for due, update_id in [one for one in waiting if one[0] <= step]:
            waiting.remove((due, update_id))
            client.snapshot(snapshot(update_id, history[update_id]))
    assert client.state == BookState.LIVE and client.book == truth
    assert client.connection.counts["gaps"] > 5 and client.connection.counts["duplicates"] > 5


def test_a_silent_book_is_stale_and_the_next_delta_makes_it_live() -> None:
    client = Client()
    client.snapshot(snapshot(100))
    assert client.poll(3.5) == ["STALE"]
    assert client.frame(delta(99, 100, 101)) == ["LEVEL", "LIVE"]
