"""The three book rules: a snapshot in the stream, a numbered product with a REST snapshot, a numbered connection."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from venues.coinbase.test_market import NAMES, opened, snapshot, stream

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind
from hftlab.venues.coinbase.capture import read_capture, read_products
from hftlab.venues.coinbase.connection import BUFFER_FRAMES, AdvancedConnection, MarketConnection
from hftlab.venues.coinbase.market import MarketDecoder
from hftlab.venues.coinbase.messages import instruments_from_products

BTC = Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))
ETH = Instrument(1, "coinbase", "ETH-USD", Decimal("0.01"), Decimal("0.00000001"))
ORDER = "d50ec984-77a8-460a-b958-66f114b0de9b"
BOOK_ROWS = {int(Kind[name]) for name in ("LEVEL", "CLEAR", "ADD", "REDUCE", "DELETE", "EXECUTE", "REPLACE")}


class Wire:
    """A connection with its clock and its rows; checks with every call what it always promises."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.out = np.zeros(connection.rows_needed, ROW)
        self.now = 1
        self.states: dict[int, int] = {}
        connection.on_open(self.now)

    def took(self, n: int) -> list[tuple[str, int]]:
        rows = self.out[:n]
        named = []
        believed = dict(self.states)
        for row in rows:
            kind, instrument = int(row["kind"]), int(row["instrument"])
            if kind == Kind.BOOK_STATE:
                assert believed.get(instrument) != int(row["code"]), "a state told twice"
                believed[instrument] = int(row["code"])
                named.append((BookState(int(row["code"])).name, instrument))
            else:
                named.append((Kind(kind).name, instrument))
        for row in rows:
            if int(row["kind"]) in BOOK_ROWS:  # believed before the message, or by its end
                states = (believed.get(int(row["instrument"])), self.states.get(int(row["instrument"])))
                assert BookState.LIVE in states or BookState.STALE in states
        self.states = believed
        return named

    def frame(self, message: dict[str, Any] | bytes, after_s: float = 0.001) -> list[tuple[str, int]]:
        self.now += int(after_s * 1e9)
        raw = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
        return self.took(self.connection.on_frame(raw, self.now, self.out))

    def poll(self, after_s: float) -> list[tuple[str, int]]:
        self.now += int(after_s * 1e9)
        return self.took(self.connection.poll(self.now, self.out))

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.connection.wants_send()]


def l2(time: str, *, snap: bool = False, product: str = "BTC-USD") -> dict[str, Any]:
    if snap:
        return {"type": "snapshot", "product_id": product, "asks": [["2.00", "1"]], "bids": [["1.00", "1"]]}
    return {"type": "l2update", "product_id": product, "changes": [["buy", "1.00", "2"]], "time": f"2024-01-01T{time}Z"}


def match(trade_id: int, kind: str = "match") -> dict[str, Any]:
    return {
        "type": kind, "trade_id": trade_id, "sequence": 1000 + trade_id, "maker_order_id": ORDER,
        "taker_order_id": ORDER, "time": "2024-01-01T00:00:00Z", "product_id": "BTC-USD", "size": "1", "price": "1.00",
        "side": "sell",
    }  # fmt: skip


# ---- levels


def test_subscriptions_name_book_matches_ticker_and_heartbeat() -> None:
    connection = MarketConnection([BTC, ETH], sign=lambda now_ns: {"key": "k", "timestamp": now_ns})
    wire = Wire(connection)
    (request,) = connection.subscribe_requests([0, 1])
    assert json.loads(request) == {
        "type": "subscribe", "product_ids": ["BTC-USD", "ETH-USD"],
        "channels": ["level2_batch", "matches", "ticker", "heartbeat"], "key": "k", "timestamp": wire.now,
    }  # fmt: skip
    assert json.loads(connection.unsubscribe_requests([1])[0])["product_ids"] == ["ETH-USD"]
    assert connection.snapshot_path("BTC-USD") == "/products/BTC-USD/book?level=3"


def test_a_snapshot_makes_the_book_live_and_updates_before_it_are_dropped() -> None:
    wire = Wire(MarketConnection([BTC]))
    assert wire.frame(l2("00:00:01")) == []
    assert wire.frame(l2("", snap=True)) == [("CLEAR", 0), ("LEVEL", 0), ("LEVEL", 0), ("LIVE", 0)]
    assert wire.out[3]["flags"] & Flag.LAST and not wire.out[2]["flags"] & Flag.LAST
    assert wire.frame(l2("00:00:02")) == [("LEVEL", 0)]
    assert wire.connection.counts["unsynced"] == 1
    assert wire.sent() == []


def test_time_that_goes_back_gives_up_the_book_and_subscribes_anew() -> None:
    wire = Wire(MarketConnection([BTC, ETH]))
    wire.frame(l2("", snap=True))
    wire.frame(l2("", snap=True, product="ETH-USD"))
    assert wire.frame(l2("00:00:02")) == [("LEVEL", 0)]
    assert wire.frame(l2("00:00:02")) == [("LEVEL", 0)]
    assert wire.frame(l2("00:00:01")) == [("RESYNCING", 0)]
    assert [(r["type"], r["product_ids"], r["channels"]) for r in wire.sent()] == [
        ("unsubscribe", ["BTC-USD"], ["level2_batch"]), ("subscribe", ["BTC-USD"], ["level2_batch"]),
    ]  # fmt: skip
    assert wire.frame(l2("00:00:03")) == []
    assert wire.frame(l2("00:00:03", product="ETH-USD")) == [("LEVEL", 1)]
    assert wire.frame(l2("", snap=True))[-1] == ("LIVE", 0)
    assert wire.connection.counts["gaps"] == 1


def test_a_book_without_a_snapshot_is_asked_for_again() -> None:
    wire = Wire(MarketConnection([BTC]))
    assert wire.poll(4.0) == [] and wire.sent() == []
    assert wire.poll(2.0) == [] and len(wire.sent()) == 2
    wire.poll(1.0)
    assert wire.sent() == []
    wire.poll(5.0)
    assert len(wire.sent()) == 2


def test_heartbeats_keep_a_quiet_book_and_silence_makes_it_stale() -> None:
    wire = Wire(MarketConnection([BTC], stale_ns=3_000_000_000))
    wire.frame(l2("", snap=True))
    beat = b'{"type":"heartbeat","sequence":9,"last_trade_id":2,"product_id":"BTC-USD","time":"2024-01-01T00:00:00Z"}'
    for _ in range(5):
        assert wire.poll(1.0) == []
        wire.frame(beat)
    assert wire.poll(3.1) == [("STALE", 0)]
    assert wire.poll(3.1) == []
    assert wire.frame(l2("00:00:02")) == [("LEVEL", 0), ("LIVE", 0)]


def test_matches_told_twice_are_dropped_and_ids_jumped_over_counted() -> None:
    wire = Wire(MarketConnection([BTC]))
    assert wire.frame(match(7, "last_match")) == [("TRADE", 0)]
    assert wire.out[0]["flags"] & Flag.SNAPSHOT
    assert wire.frame(match(8)) == [("TRADE", 0)]
    assert wire.frame(match(8)) == []
    assert wire.frame(match(11)) == [("TRADE", 0)]
    assert wire.frame(match(11, "last_match")) == []
    counts = wire.connection.counts
    assert (counts["duplicates"], counts["missed_trades"]) == (1, 2)


def test_a_lost_connection_says_so_for_every_book_and_the_next_one_starts_anew() -> None:
    wire = Wire(MarketConnection([BTC, ETH]))
    wire.frame(l2("", snap=True))
    with pytest.raises(LocalError, match="on_close first"):
        wire.connection.on_open(wire.now)
    assert wire.took(wire.connection.on_close(wire.now, wire.out)) == [("RESYNCING", 0)]
    assert wire.took(wire.connection.on_close(wire.now, wire.out)) == []
    wire.connection.on_open(wire.now)
    assert wire.frame(l2("00:00:09")) == []


def test_errors_are_kept() -> None:
    wire = Wire(MarketConnection([BTC]))
    wire.frame(b'{"type":"error","message":"Authentication Failed","reason":"x"}')
    assert "Authentication Failed" in wire.connection.errors[0]


def test_the_recorded_session_makes_every_book_live_once(shared_data: Path) -> None:
    folder = shared_data / "coinbase"
    instruments = instruments_from_products(read_products(folder / "COINBASE.0"), NAMES)
    connection = MarketConnection(instruments, channel="level2", stale_ns=10**12)
    wire = Wire(connection)
    states = [name for _, frame in read_capture(folder / "COINBASE.ws.28.0") for name in wire.frame(frame)]
    assert sorted(one for one in states if one[0] == "LIVE") == [("LIVE", i.id) for i in instruments]
    assert not any(connection.counts.values())
    assert states.count(("RESYNCING", 0)) == 0


@pytest.mark.parametrize(
    "change", [["buy", "1.005", "2"], ["buy", "1.00", "-1"], ["bu", "1.00", "1"], ["buy", "1.00"]]
)
def test_a_refused_delta_gives_up_its_book_and_no_other(change: list[str]) -> None:
    wire = Wire(MarketConnection([BTC, ETH]))
    wire.frame(l2("", snap=True))
    wire.frame(l2("", snap=True, product="ETH-USD"))
    assert wire.frame(l2("00:00:01") | {"changes": [change]}) == [("RESYNCING", 0)]
    assert [r["product_ids"] for r in wire.sent()] == [["BTC-USD"]] * 2
    assert wire.frame(l2("00:00:02")) == []
    assert wire.frame(l2("00:00:02", product="ETH-USD")) == [("LEVEL", 1)]


def test_a_delta_cut_short_or_a_refused_snapshot_gives_up_the_book() -> None:
    wire = Wire(MarketConnection([BTC, ETH]))
    wire.frame(l2("", snap=True))
    wire.frame(l2("", snap=True, product="ETH-USD"))
    assert wire.frame(b'{"type":"l2update","product_') == [("RESYNCING", 0), ("RESYNCING", 1)]
    assert wire.frame(l2("", snap=True))[-1] == ("LIVE", 0)
    assert wire.frame(l2("", snap=True) | {"bids": [["1.005", "1"]]}) == [("RESYNCING", 0)]


def test_refused_messages_that_change_no_book_leave_it_live() -> None:
    wire = Wire(MarketConnection([BTC]))
    wire.frame(l2("", snap=True))
    assert wire.frame(match(1) | {"price": "1.005"}) == []
    assert wire.frame(l2("00:00:01", product="XRP-USD")) == []
    assert wire.frame(b'{"type":"ticker","product_id":"BTC-USD"') == []
    assert wire.states[0] == BookState.LIVE


def test_disorder_subscribes_anew_once_a_second_at_most_and_poll_tries_again() -> None:
    wire = Wire(MarketConnection([BTC]))
    for _ in range(50):
        wire.frame(l2("", snap=True))
        wire.frame(l2("00:00:02"))
        wire.frame(l2("00:00:01"))
    assert len(wire.sent()) == 2
    wire.poll(5.1)
    assert len(wire.sent()) == 2


def test_the_time_of_a_snapshot_is_no_bound_for_the_updates_after_it() -> None:
    wire = Wire(MarketConnection([BTC]))
    wire.frame(l2("", snap=True) | {"time": "2024-01-01T00:00:05Z"})
    assert wire.frame(l2("00:00:04")) == [("LEVEL", 0)]
    assert wire.frame(l2("00:00:03")) == [("RESYNCING", 0)]


def test_trades_of_a_new_connection_pass_though_their_ids_start_again() -> None:
    wire = Wire(MarketConnection([BTC]))
    assert wire.frame(match(1000)) == [("TRADE", 0)]
    wire.took(wire.connection.on_close(wire.now, wire.out))
    wire.connection.on_open(wire.now)
    assert wire.frame(match(1)) == [("TRADE", 0)]


# ---- every order


def full() -> Wire:
    return Wire(MarketConnection([BTC], channel="full", max_rows=256))


def test_messages_wait_for_the_snapshot_and_those_it_contains_are_dropped() -> None:
    wire = full()
    wire.frame(b'{"type":"subscriptions","channels":[]}')
    assert wire.connection.wants_snapshot() == ["BTC-USD"]
    names = [ORDER[:-1] + digit for digit in "0123"]
    for k in range(4):
        name = names[k][:2] + str(k) + names[k][3:]
        assert wire.frame(opened(10 + k, name)) == []
    n = wire.connection.on_snapshot("BTC-USD", snapshot(11, {ORDER: [1, 5, 5]}), wire.now, wire.out)
    assert wire.took(n) == [("CLEAR", 0), ("ADD", 0), ("ADD", 0), ("ADD", 0), ("LIVE", 0)]
    assert [bool(row["flags"] & Flag.LAST) for row in wire.out[:n]] == [False] * 4 + [True]
    assert wire.connection.wants_snapshot() == []
    assert wire.frame(opened(14, ORDER.replace("d5", "e5"))) == [("ADD", 0)]


def test_a_snapshot_older_than_what_is_held_back_is_asked_for_again() -> None:
    wire = full()
    wire.frame(opened(10, ORDER))
    assert wire.connection.wants_snapshot() == ["BTC-USD"]
    assert wire.connection.on_snapshot("BTC-USD", snapshot(8, {}), wire.now, wire.out) == 0
    assert wire.connection.counts["old_snapshots"] == 1
    assert wire.connection.wants_snapshot() == ["BTC-USD"]
    assert wire.connection.on_snapshot("BTC-USD", b"{}", wire.now, wire.out) == 0
    assert wire.connection.counts["bad_snapshots"] == 1
    assert wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out))[-1] == ("LIVE", 0)
    assert wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out) == 0
    assert wire.connection.counts["unasked_snapshots"] == 1


def test_trades_pass_while_the_book_is_awaited_and_only_once() -> None:
    wire = full()
    trade = match(5) | {"sequence": 10}
    assert wire.frame(trade) == [("TRADE", 0)]
    n = wire.connection.on_snapshot("BTC-USD", snapshot(9, {ORDER: [2, 100, 10**8]}), wire.now, wire.out)
    assert wire.took(n) == [("CLEAR", 0), ("ADD", 0), ("EXECUTE", 0), ("LIVE", 0)]


def test_a_missing_number_gives_up_the_book_and_one_told_twice_is_dropped() -> None:
    wire = full()
    wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out))
    assert wire.frame(opened(10, ORDER)) == [("ADD", 0)]
    assert wire.frame(opened(10, ORDER)) == []
    assert wire.frame(match(1) | {"sequence": 12}) == [("TRADE", 0), ("RESYNCING", 0)]
    row = wire.out[1]
    assert (int(row["a"]), int(row["b"])) == (11, 12)
    assert wire.connection.wants_snapshot() == ["BTC-USD"]
    assert wire.connection.decoder.orders_alive == 0
    n = wire.connection.on_snapshot("BTC-USD", snapshot(12, {ORDER: [1, 5, 5]}), wire.now, wire.out)
    assert wire.took(n)[-1] == ("LIVE", 0)
    assert wire.connection.counts["gaps"] == 1 and wire.connection.counts["duplicates"] == 1


def test_no_snapshot_is_asked_for_while_the_subscription_is_refused() -> None:
    wire = full()
    wire.frame(b'{"type":"error","message":"Authentication Failed","reason":"full requires a key"}')
    for _ in range(5):
        assert wire.poll(6.0) == [] and wire.connection.wants_snapshot() == []
    wire.frame(b'{"type":"subscriptions","channels":[{"name":"full","product_ids":["BTC-USD"]}]}')
    assert wire.connection.wants_snapshot() == ["BTC-USD"]


def beat(sequence: int) -> bytes:
    return (
        b'{"type":"heartbeat","sequence":%d,"last_trade_id":2,"product_id":"BTC-USD","time":"2024-01-01T00:00:00Z"}'
        % sequence
    )


def test_a_heartbeat_that_tells_of_an_unseen_message_gives_up_the_book() -> None:
    wire = full()
    assert wire.frame(beat(50)) == []
    wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out))
    assert wire.frame(opened(10, ORDER)) == [("ADD", 0)]
    assert wire.frame(beat(10)) == wire.frame(beat(9)) == []
    assert wire.frame(beat(11)) == [("RESYNCING", 0)]
    row = wire.out[0]
    assert (int(row["a"]), int(row["b"]), bool(row["flags"] & Flag.LAST)) == (11, 11, True)
    assert wire.connection.wants_snapshot() == ["BTC-USD"] and wire.connection.counts["gaps"] == 1
    assert wire.connection.decoder.orders_alive == 0
    assert wire.frame(beat(11)) == []
    assert wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(11, {}), wire.now, wire.out))[-1] == ("LIVE", 0)
    assert wire.frame(beat(11)) == []
    assert wire.frame(beat(14)) == [("RESYNCING", 0)]
    assert (int(wire.out[0]["a"]), int(wire.out[0]["b"])) == (12, 14)


def test_a_heartbeat_on_a_channel_without_numbers_is_no_gap() -> None:
    wire = Wire(MarketConnection([BTC]))
    wire.frame(l2("", snap=True))
    assert wire.frame(beat(50)) == [] and wire.states[0] == BookState.LIVE


def test_an_order_that_cannot_be_followed_costs_a_resync() -> None:
    wire = full()
    wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {ORDER: [1, 5, 5]}), wire.now, wire.out))
    assert wire.frame(opened(10, ORDER)) == [("RESYNCING", 0)]
    assert wire.connection.wants_snapshot() == ["BTC-USD"]


def test_a_refused_order_message_gives_up_the_book_at_once() -> None:
    wire = full()
    wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out))
    assert wire.frame(json.loads(opened(10, ORDER)) | {"price": "1.005"}) == [("RESYNCING", 0)]
    assert wire.connection.wants_snapshot() == ["BTC-USD"]
    assert wire.frame(opened(11, ORDER)) == []
    assert wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out) == 0
    assert wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(10, {}), wire.now, wire.out))[-1] == ("LIVE", 0)


def test_old_snapshots_are_asked_for_again_at_once_only_once() -> None:
    wire = full()
    wire.frame(opened(100, ORDER))
    asked = 0
    for _ in range(100):
        asked += len(wire.connection.wants_snapshot())
        assert wire.connection.on_snapshot("BTC-USD", snapshot(8, {}), wire.now, wire.out) == 0
    assert asked == 2
    wire.poll(5.1)
    assert wire.connection.wants_snapshot() == ["BTC-USD"]


def test_numbers_told_before_keep_no_book_alive() -> None:
    wire = full()
    wire.took(wire.connection.on_snapshot("BTC-USD", snapshot(9, {}), wire.now, wire.out))
    told = []
    for number in range(1, 8):
        assert wire.frame(opened(number, ORDER), after_s=1.0) == []
        told += wire.poll(0.0)
    assert told == [("STALE", 0)]


def test_what_is_held_back_is_bounded() -> None:
    wire = full()
    for k in range(BUFFER_FRAMES + 10):
        wire.connection.on_frame(opened(100 + k, ORDER), wire.now, wire.out)
    book = wire.connection.books[0]
    assert (len(book.buffer), book.buffer[0][0], wire.connection.counts["dropped"]) == (BUFFER_FRAMES, 110, 10)
    wire.frame(opened(50_000, ORDER))
    assert len(book.buffer) == 1


@pytest.mark.parametrize("seed", range(6))
def test_any_loss_ends_in_the_book_of_a_reader_that_missed_nothing(seed: int) -> None:
    chance = random.Random(seed)
    messages = [json.dumps(m).encode() for m in stream(chance, 400)]
    whole, out = MarketDecoder([BTC]), np.zeros(256, ROW)
    whole.decode_snapshot(snapshot(100, {}), 0, 7, out)
    wire = full()
    book: dict[int, int] = {}

    def learn(n: int) -> None:
        for row in wire.out[:n]:
            kind, ref, lots = int(row["kind"]), int(row["a"]), int(row["qty"])
            if kind == Kind.CLEAR:
                book.clear()
            elif kind == Kind.ADD:
                assert ref not in book
                book[ref] = lots
            elif kind in (Kind.REDUCE, Kind.EXECUTE):
                book[ref] -= lots
                if not book[ref]:
                    del book[ref]
            elif kind == Kind.DELETE:
                assert book.pop(ref) == lots
        wire.took(n)

    alive: dict[int, int] = {}
    for number, frame in enumerate(messages):
        for row in out[: whole.decode(frame, 7, out)]:
            kind, ref = int(row["kind"]), int(row["a"])
            if kind == Kind.ADD:
                alive[ref] = int(row["qty"])
            elif kind == Kind.DELETE:
                del alive[ref]
            elif kind in (Kind.REDUCE, Kind.EXECUTE):
                alive[ref] -= int(row["qty"])
                if not alive[ref]:
                    del alive[ref]
        for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 1, 2]) if number < 390 else 1):
            learn(wire.connection.on_frame(frame, wire.now, wire.out))
        for symbol in wire.connection.wants_snapshot():
            orders = whole._orders[whole._orders[:, 0] != 0]  # the venue's book is the other reader's
            sides: dict[str, list[Any]] = {"bids": [], "asks": []}
            for _, hi, lo, left, px in orders.tolist():
                hexed = f"{hi & (2**64 - 1):016x}{lo & (2**64 - 1):016x}"
                name = "-".join((hexed[:8], hexed[8:12], hexed[12:16], hexed[16:20], hexed[20:]))
                sides["bids"].append([f"{BTC.px(px):f}", f"{BTC.qty(left):f}", name])
            payload = json.dumps({**sides, "sequence": 101 + number}).encode()
            learn(wire.connection.on_snapshot(symbol, payload, wire.now, wire.out))
    assert wire.states[0] == BookState.LIVE
    assert wire.connection.counts["gaps"] > 3
    assert book == alive


# ---- Advanced Trade


def advanced(number: int, *events: tuple[str, str], channel: str = "l2_data") -> dict[str, Any]:
    update = {"side": "bid", "event_time": "2024-01-01T00:00:00Z", "price_level": "1.00", "new_quantity": "2"}
    return {
        "channel": channel, "timestamp": f"2024-01-01T00:00:{number % 60:02d}Z", "sequence_num": number,
        "events": [{"type": kind, "product_id": product, "updates": [update]} for kind, product in events],
    }  # fmt: skip


def test_advanced_subscriptions_are_one_channel_a_message_each_with_a_fresh_token() -> None:
    tokens = iter("abcdefgh")
    connection = AdvancedConnection([BTC], sign=lambda now_ns: {"jwt": next(tokens)})
    requests = [json.loads(r) for r in connection.subscribe_requests([0])]
    assert [r["channel"] for r in requests] == ["level2", "market_trades", "ticker", "heartbeats"]
    assert [r["jwt"] for r in requests] == list("abcd")
    assert "product_ids" not in requests[3]


def test_every_message_counts_acknowledgements_and_heartbeats_included() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    live = [("CLEAR", 0), ("LEVEL", 0), ("LIVE", 0)]
    assert wire.frame(advanced(0, ("snapshot", "BTC-USD"))) == live
    for number, channel in enumerate(("subscriptions", "heartbeats", "candles"), 1):
        assert wire.frame(advanced(number, channel=channel)) == []
    assert wire.frame(advanced(4, ("update", "BTC-USD"))) == [("LEVEL", 0)]
    assert wire.frame(advanced(4, ("update", "BTC-USD"))) == []
    assert (wire.connection.counts["gaps"], wire.connection.counts["duplicates"]) == (0, 1)


def test_a_gap_on_the_connection_resyncs_all_of_its_books() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    wire.frame(advanced(0, ("snapshot", "BTC-USD")))
    wire.frame(advanced(1, ("snapshot", "ETH-USD")))
    assert wire.frame(advanced(3, ("update", "BTC-USD"))) == [("RESYNCING", 0), ("RESYNCING", 1)]
    assert (int(wire.out[0]["a"]), int(wire.out[0]["b"])) == (2, 3)
    assert [(r["type"], r["channel"], r["product_ids"]) for r in wire.sent()] == [
        ("unsubscribe", "level2", ["BTC-USD", "ETH-USD"]), ("subscribe", "level2", ["BTC-USD", "ETH-USD"]),
    ]  # fmt: skip
    assert wire.frame(advanced(4, ("update", "BTC-USD"))) == []
    assert wire.frame(advanced(5, ("snapshot", "ETH-USD"), ("update", "BTC-USD"))) == [
        ("CLEAR", 1), ("LEVEL", 1), ("LIVE", 1),
    ]  # fmt: skip
    assert wire.frame(advanced(6, ("snapshot", "BTC-USD")))[-1] == ("LIVE", 0)


def test_a_snapshot_that_comes_with_the_gap_ends_it_at_once() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    wire.frame(advanced(0, ("snapshot", "BTC-USD")))
    wire.frame(advanced(1, ("snapshot", "ETH-USD")))
    assert wire.frame(advanced(3, ("snapshot", "BTC-USD"))) == [
        ("RESYNCING", 0), ("CLEAR", 0), ("LEVEL", 0), ("LIVE", 0), ("RESYNCING", 1),
    ]  # fmt: skip


def test_an_unreadable_message_that_may_change_a_book_gives_up_all_books_at_once() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    wire.frame(advanced(0, ("snapshot", "BTC-USD"), ("snapshot", "ETH-USD")))
    cut = b'{"channel":"l2_data","sequence_num":1,"events":[{"product_id":"BTC-USD",'
    assert wire.frame(cut) == [("RESYNCING", 0), ("RESYNCING", 1)]
    assert wire.frame(advanced(2, ("update", "BTC-USD"))) == []


def test_an_unreadable_message_of_another_channel_is_seen_as_a_gap_by_the_next() -> None:
    wire = Wire(AdvancedConnection([BTC], max_rows=64))
    wire.frame(advanced(0, ("snapshot", "BTC-USD")))
    assert wire.frame(b'{"channel":"ticker","sequence_num":1,') == []
    assert wire.frame(advanced(2, ("update", "BTC-USD"))) == [("RESYNCING", 0)]


def test_a_refused_message_of_advanced_trade_gives_up_its_book() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    wire.frame(advanced(0, ("snapshot", "BTC-USD"), ("snapshot", "ETH-USD")))
    off_grid = advanced(1, ("update", "BTC-USD"))
    off_grid["events"][0]["updates"][0]["price_level"] = "1.005"
    assert wire.frame(off_grid) == [("RESYNCING", 0)]
    assert wire.frame(advanced(2, ("update", "BTC-USD"))) == []
    assert wire.frame(advanced(3, ("update", "ETH-USD"))) == [("LEVEL", 1)]
    assert wire.frame(advanced(4, ("update", "XRP-USD"))) == []
    assert wire.frame(advanced(5, ("update", "ETH-USD"))) == [("LEVEL", 1)]


def test_gaps_one_after_the_other_subscribe_anew_once_a_second_at_most() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH], max_rows=64))
    for number in range(0, 100, 2):
        wire.frame(advanced(number, ("snapshot", "BTC-USD")))
    assert len(wire.sent()) == 2
    wire.frame(advanced(100, ("update", "BTC-USD")), after_s=1.0)
    assert len(wire.sent()) == 2
    wire.poll(5.1)
    assert len(wire.sent()) == 2


# ---- arguments


def test_arguments_out_of_range_are_named() -> None:
    for wrong in ({"channel": "level9"}, {"stale_ns": 0}, {"max_rows": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MarketConnection([BTC], **wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigError, match="one id twice"):
        MarketConnection([BTC, Instrument(0, "coinbase", "X-Y", Decimal(1), Decimal(1))])
    wire = full()
    with pytest.raises(ConfigError, match="expected channel full"):
        wire.connection.on_snapshot("X-Y", b"", 1, wire.out)
    with pytest.raises(ConfigError, match="may need"):
        wire.connection.on_snapshot("BTC-USD", b"", 1, wire.out[:10])


def test_an_unsubscribed_book_of_advanced_trade_goes_stale_while_others_are_heard() -> None:
    wire = Wire(AdvancedConnection([BTC, ETH]))
    assert wire.frame(advanced(0, ("snapshot", "BTC-USD"), ("snapshot", "ETH-USD")))[-1] == ("LIVE", 1)
    wire.connection.unsubscribe_requests([0])
    told = []
    for number in range(1, 8):
        wire.frame(advanced(number, ("update", "ETH-USD")))
        told += wire.poll(1.0)
    assert told == [("STALE", 0)]


def test_advanced_trade_takes_no_snapshot_from_rest() -> None:
    wire = Wire(AdvancedConnection([BTC]))
    assert wire.connection.on_snapshot("BTC-USD", b"{}", wire.now, wire.out) == 0
    assert wire.connection.counts["unasked_snapshots"] == 1
    with pytest.raises(ConfigError, match="ETH-USD"):
        wire.connection.on_snapshot("ETH-USD", b"{}", wire.now, wire.out)
