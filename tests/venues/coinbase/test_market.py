"""The decoder against a slow reference that shares nothing with it, on recorded, documented and mutated bytes."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from venues.coinbase.reference import ASK, BID, Reference, nanoseconds, told

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, ROW, Flag, Kind
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_coinbase import TARGETS
from hftlab.venues.coinbase import market
from hftlab.venues.coinbase.capture import read_capture, read_products
from hftlab.venues.coinbase.market import (
    BROKEN,
    CONTROL,
    ERROR,
    HEARTBEAT,
    LEVELS,
    LOST,
    ORDER,
    OTHER,
    SNAPSHOT,
    TRADES,
    MarketDecoder,
    order_ref,
)
from hftlab.venues.coinbase.messages import instruments_from_products
from hftlab.venues.coinbase.spec import time_ns

NAMES = [
    "SKL-USD", "SKL-BTC", "BAND-GBP", "NMR-EUR", "BAND-BTC", "YFI-BTC", "DASH-BTC", "NU-GBP", "CRV-EUR", "SKL-GBP",
]  # fmt: skip
BTC = Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))
ETH = Instrument(1, "coinbase", "ETH-USD", Decimal("0.01"), Decimal("0.00000001"))
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "coinbase"


def l2update(changes: bytes, product: bytes = b"BTC-USD", time: bytes = b"2024-01-01T00:00:00Z") -> bytes:
    return b'{"type":"l2update","product_id":"%b","changes":[%b],"time":"%b"}' % (product, changes, time)


def size(lots: int) -> str:
    return f"{BTC.qty(lots):f}"


def price(ticks: int) -> str:
    return f"{BTC.px(ticks):f}"


# ---- recorded bytes


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> tuple[list[Instrument], list[bytes]]:
    folder = shared_data / "coinbase"
    instruments = instruments_from_products(read_products(folder / "COINBASE.0"), NAMES)
    return instruments, [frame for _, frame in read_capture(folder / "COINBASE.ws.28.0")]


def test_every_recorded_message_gives_the_references_rows(recorded: tuple[list[Instrument], list[bytes]]) -> None:
    instruments, frames = recorded
    decoder, reference, out = MarketDecoder(instruments), Reference(instruments), np.zeros(8192, ROW)
    kinds: dict[str, int] = {}
    for frame in frames:
        n = decoder.decode(frame, 7, out)
        assert told(out[:n]) == reference.rows(frame), frame[:200]
        name = json.loads(frame)["type"]
        kinds[name] = kinds.get(name, 0) + 1
    assert kinds["l2update"] == 9719 and kinds["snapshot"] == 10 and kinds["match"] == 97
    assert {name: count for name, count in decoder.counts.items() if count} == {
        "ignored": kinds["ticker"] + kinds["subscriptions"]
    }


def test_recorded_books_never_cross_and_trade_ids_are_contiguous(
    recorded: tuple[list[Instrument], list[bytes]],
) -> None:
    instruments, frames = recorded
    decoder, out = MarketDecoder(instruments), np.zeros(8192, ROW)
    books: dict[int, tuple[dict[int, int], dict[int, int]]] = {i.id: ({}, {}) for i in instruments}
    last_trade: dict[int, int] = {}
    updates = trades = 0
    for frame in frames:
        n = decoder.decode(frame, 7, out)
        for row in out[:n]:
            bids, asks = books[int(row["instrument"])]
            if row["kind"] == Kind.LEVEL:
                side = bids if row["flags"] & Flag.BID else asks
                side[int(row["px"])] = int(row["qty"])
                if row["qty"] == 0:
                    del side[int(row["px"])]
            elif row["kind"] == Kind.TRADE:
                known = last_trade.get(int(row["instrument"]))
                assert known is None or int(row["a"]) == known + 1
                last_trade[int(row["instrument"])] = int(row["a"])
                trades += 1
        if decoder.kind == LEVELS:
            updates += 1
            bids, asks = books[decoder.instrument]
            assert max(bids) < min(asks)
    assert (updates, trades, len(last_trade)) == (9719, 107, 10)


def test_the_replayed_top_is_the_recorded_tickers_within_its_millisecond(
    recorded: tuple[list[Instrument], list[bytes]],
) -> None:
    instruments, frames = recorded
    decoder, out = MarketDecoder(instruments), np.zeros(8192, ROW)
    books: dict[int, tuple[dict[int, int], dict[int, int]]] = {i.id: ({}, {}) for i in instruments}
    tops: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for frame in frames:
        n = decoder.decode(frame, 7, out)
        if decoder.kind not in (LEVELS, SNAPSHOT):
            continue
        bids, asks = books[decoder.instrument]
        for row in out[:n]:
            if row["kind"] == Kind.LEVEL:
                side = bids if row["flags"] & Flag.BID else asks
                side[int(row["px"])] = int(row["qty"])
                if row["qty"] == 0:
                    del side[int(row["px"])]
        key = (instruments[decoder.instrument].symbol, decoder.time // 10**6)
        tops.setdefault(key, set()).add((max(bids), min(asks)))
    by_name = {i.symbol: i for i in instruments}
    first = set(NAMES)
    told = []
    for message in map(json.loads, frames):
        if message["type"] != "ticker":
            continue
        name = message["product_id"]
        if name in first:  # of a trade before the recording
            first.remove(name)
            continue
        px = by_name[name].px_ticks
        key = (name, nanoseconds(message["time"]) // 10**6)
        told.append((px(message["best_bid"]), px(message["best_ask"])) in tops.get(key, set()))
    assert (sum(told), len(told)) == (97, 97)


def test_recorded_advanced_frames_give_the_references_rows(shared_data: Path) -> None:
    recorded = json.loads((shared_data / "coinbase" / "coinbase_advanced.json").read_text())
    decoder, reference, out = MarketDecoder([BTC]), Reference([BTC]), np.zeros(64, ROW)
    for channel in ("market_trades", "ticker"):
        for number, message in enumerate(recorded[channel]):
            frame = json.dumps(message, separators=(",", ":")).encode()
            n = decoder.decode(frame, 7, out)
            assert told(out[:n]) == reference.rows(frame)
            assert decoder.sequence == number
    assert decoder.counts["fallback"] == 2  # the tickers
    assert decoder.counts["malformed"] == 0


# ---- any order of fields


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(inner, chance)) for key, inner in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


def golden(name: str) -> list[bytes]:
    return [line.encode() for line in (GOLDEN / name).read_text().splitlines()]


@pytest.mark.parametrize("frame", golden("exchange.jsonl") + golden("advanced.jsonl"), ids=lambda f: f[:40].decode())
def test_fields_in_any_order_and_unknown_ones_give_the_same_rows(frame: bytes) -> None:
    instruments = [BTC, ETH]
    decoder, out = MarketDecoder(instruments), np.zeros(64, ROW)
    message = json.loads(frame)
    expected = sorted(Reference(instruments).rows(frame))
    for seed in range(25):
        more = {"new_field": "x", "another": 3, "third": None, "nested": {"a": [1]}}
        mixed = shuffled({**message, **more}, random.Random(seed))
        if seed % 2:
            del mixed["nested"]
        n = decoder.decode(json.dumps(mixed).encode(), 7, out)
        rows = told(out[:n])
        strip = 0xFFFF ^ int(Flag.LAST)
        assert sorted((*r[:3], r[3] & strip, *r[4:]) for r in rows) == [
            (*r[:3], r[3] & strip, *r[4:]) for r in sorted((*e[:3], e[3] & strip, *e[4:]) for e in expected)
        ]
        assert not rows or (rows[-1][3] & Flag.LAST and not any(r[3] & Flag.LAST for r in rows[:-1]))
    assert decoder.counts["malformed"] == decoder.counts["off_grid"] == 0
    if expected and b'"ticker"' not in frame[:30] and b"heartbeats" not in frame:
        assert decoder.counts["fallback"] >= 12


def test_a_field_never_seen_before_falls_back_and_is_counted() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    plain = l2update(b'["buy","1.00","2"]')
    assert decoder.decode(plain[:-1] + b',"note":"plain"}', 7, out) == 1
    assert decoder.counts["fallback"] == 0
    assert decoder.decode(plain[:-1] + b',"note":-1.5}', 7, out) == 1
    early = b'{"changes":[["buy","1.00","2"]],' + plain[1:].replace(b'"changes"', b'"others"')
    assert decoder.decode(early, 7, out) == 1
    assert decoder.counts["fallback"] == 2


# ---- what is refused, and why


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "truncated"),
        (b"[]", "malformed"),
        (b"\xff", "malformed"),
        (b"{}", "malformed"),
        (b'{"type":"l2update","product_id":"BTC-USD"', "truncated"),
        (l2update(b"", product=b"X-Y"), "unknown_symbol"),
        (l2update(b'["up","1","1"]'), "malformed"),
        (l2update(b'["buy","1","1"]', time=b"2023-02-29T00:00:00Z"), "malformed"),
        (l2update(b'["buy","1.001","1"]'), "off_grid"),
        (l2update(b'["buy","-1","1"]'), "off_grid"),
        (l2update(b'["buy","1","1e2"]'), "off_grid"),
        (l2update(b'["buy",1,"1"]'), "malformed"),
        (l2update(b'["buy","99999999999999999999","1"]'), "off_grid"),
        (b'{"type":"match","product_id":"BTC-USD","time":"2024-01-01T00:00:00Z"}', "malformed"),
        (b'{"type":5}', "malformed"),
        (b'{"channel":"l2_data","timestamp":"x","sequence_num":1,"events":[]}', "malformed"),
        (b"[" * 5000, "malformed"),
    ],
)  # fmt: skip
def test_a_refused_message_gives_no_rows_and_is_counted_by_reason(frame: bytes, reason: str) -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    assert decoder.decode(frame, 7, out) == 0
    assert {name for name, count in decoder.counts.items() if count} == {reason}
    changes_no_book = reason == "unknown_symbol" or b'"match"' in frame
    assert decoder.kind == (OTHER if changes_no_book else BROKEN)


def test_more_rows_than_fit_are_refused_whole() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(2, ROW)
    assert decoder.decode(l2update(b",".join([b'["buy","1.00","2"]'] * 3)), 7, out) == 0
    assert decoder.counts["oversize"] == 1


def test_a_ticker_without_sizes_gives_no_rows() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(2, ROW)
    head = b'{"type":"ticker","sequence":5,"product_id":"BTC-USD","price":"1","best_bid":"1.00","best_ask":"2.00",'
    assert decoder.decode(head + b'"time":"2021-04-17T16:43:30.244075Z"}', 7, out) == 0
    assert decoder.counts["ignored"] == 1
    assert decoder.decode(head + b'"best_bid_size":"1","time":"2021-04-17T16:43:30.244075Z"}', 7, out) == 0
    assert decoder.counts["malformed"] == 1


def test_control_and_error_messages_are_told_apart() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(2, ROW)
    for frame, kind in (
        (b'{"type":"subscriptions","channels":[]}', CONTROL),
        (b'{"type":"error","message":"x"}', ERROR),
        (b'{"type":"status","products":[]}', OTHER),
        (golden("exchange.jsonl")[0], HEARTBEAT),
    ):
        assert (decoder.decode(frame, 7, out), decoder.kind) == (0, kind)
    assert (decoder.sequence, decoder.trade_id) == (90, 20)


def test_two_instruments_of_one_symbol_are_refused() -> None:
    with pytest.raises(ConfigError, match="one symbol twice"):
        MarketDecoder([BTC, BTC])


def test_a_name_that_no_table_holds_takes_the_tolerant_way() -> None:
    wide = Instrument(5, "coinbase", "W" * 40, Decimal("0.01"), Decimal(1))
    decoder, out = MarketDecoder([BTC, wide]), np.zeros(2, ROW)
    assert decoder.decode(l2update(b'["buy","1.00","2"]', product=b"W" * 40), 7, out) == 1
    assert (decoder.counts["fallback"], int(out[0]["instrument"])) == (1, 5)
    with pytest.raises(ConfigError, match="cannot be followed"):
        decoder.decode_snapshot(b"{}", 5, 7, out)


# ---- times


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 9))
@example(951_782_400_000_000_000, 0)  # 2000-02-29
@example(4_107_542_400_000_000_000, 0)  # 2100-03-01, no leap year
def test_times_are_exact_to_the_nanosecond(ns: int, digits: int) -> None:
    ns = ns % (9_214_646_400 * 10**9)  # to the end of 2261
    seconds, rest = divmod(ns, 10**9)
    fraction = f"{rest:09d}"[:digits]
    days = np.datetime64(seconds, "s")
    text = f"{days}{'.' + fraction if digits else ''}Z"
    expected = seconds * 10**9 + int(fraction.ljust(9, "0"))
    assert time_ns(text) == expected == nanoseconds(text)
    decoder, out = MarketDecoder([BTC]), np.zeros(1, ROW)
    assert decoder.decode(l2update(b'["buy","1.00","2"]', time=text.encode()), 7, out) == 1
    assert int(out[0]["ts_event"]) == expected
    assert decoder.counts["fallback"] == 0


@pytest.mark.parametrize(
    "text",
    ["1969-12-31T23:59:59Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z", "2023-02-29T00:00:00Z",
     "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2016-12-31T23:59:60Z", "2024-01-01T00:00:00", "2024-01-01",
     "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01 00:00:00Z", "2300-01-01T00:00:00Z", ""],
)  # fmt: skip
def test_what_is_no_time_is_refused_by_both_readers(text: str) -> None:
    with pytest.raises(ValueError, match="time="):
        time_ns(text)
    decoder, out = MarketDecoder([BTC]), np.zeros(1, ROW)
    assert decoder.decode(l2update(b'["buy","1.00","2"]', time=text.encode()), 7, out) == 0
    assert decoder.counts["malformed"] == 1


# ---- the full channel


def snapshot(sequence: int, orders: dict[str, list[int]]) -> bytes:
    sides = {
        name: [[price(px), size(left), key] for key, (s, px, left) in orders.items() if s == flag]
        for flag, name in ((BID, "bids"), (ASK, "asks"))
    }
    return json.dumps({**sides, "sequence": sequence, "auction_mode": False, "auction": None}).encode()


def stream(chance: random.Random, n: int) -> Iterator[dict[str, Any]]:
    """Yield messages of the full channel: orders come, go, change and trade, among ones that are on no book."""
    alive: dict[str, tuple[str, int, int]] = {}
    for k in range(n):
        head = {"product_id": "BTC-USD", "sequence": 101 + k, "time": f"2024-01-01T00:00:{k % 60:02d}.5Z"}
        action = chance.choice(["open", "open", "open", "done", "change", "match", "received"])
        stranger = str(uuid.UUID(int=chance.getrandbits(128)))
        name = chance.choice(list(alive)) if alive and chance.random() < 0.9 else stranger
        side, px, left = alive.get(name, ("buy", 500, 100))
        if action == "open":
            name, side = stranger, chance.choice(["buy", "sell"])
            px, left = chance.randrange(1, 1000), chance.randrange(1, 1000)
            alive[name] = (side, px, left)
            fields: dict[str, Any] = {"order_id": name, "price": price(px), "remaining_size": size(left)}
        elif action == "done":
            alive.pop(name, None)
            fields = {"order_id": name, "reason": "canceled", "remaining_size": size(left)}
        elif action == "change":
            new = chance.randrange(0, 1200)
            fields = {"order_id": name, "new_size": size(new), "old_size": size(left)}
            if chance.random() < 0.5:
                px = chance.randrange(1, 1000)
                fields |= {"reason": "modify_order", "new_price": price(px), "old_price": "1"}
            else:
                fields["price"] = chance.choice([price(px), None])
            if name in alive:
                alive[name] = (side, px, new)
                if not new:
                    del alive[name]
        elif action == "match":
            lots = chance.randrange(1, left + 1)
            if name in alive:
                alive[name] = (side, px, left - lots)
                if lots == left:
                    del alive[name]
            fields = {
                "trade_id": k, "maker_order_id": name, "taker_order_id": stranger, "size": size(lots),
                "price": price(px),
            }  # fmt: skip
        else:
            fields = {"order_id": name, "order_type": "market", "funds": "1"}
        yield {"type": action, **head, "side": side, **fields}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tolerant", [False, True])
def test_the_full_channel_follows_orders_as_the_reference_does(seed: int, tolerant: bool) -> None:
    chance = random.Random(seed)
    first = {str(uuid.UUID(int=chance.getrandbits(128))): [BID if k % 2 else ASK, 10 + k, 5 + k] for k in range(20)}
    decoder, reference, out = MarketDecoder([BTC, ETH]), Reference([BTC, ETH]), np.zeros(64, ROW)
    reference.orders = {name: list(order) for name, order in first.items()}
    n = decoder.decode_snapshot(snapshot(100, first), 0, 7, out)
    assert (n, decoder.sequence, decoder.orders_alive) == (21, 100, 20)
    assert [order_ref(name) for name in first if first[name][0] == BID] == [int(a) for a in out["a"][1:11]]
    for message in stream(chance, 600):
        frame = json.dumps({**message, "odd": -1} if tolerant else message).encode()
        n = decoder.decode(frame, 7, out)
        assert told(out[:n]) == reference.rows(frame), frame
        assert decoder.kind == (TRADES if message["type"] == "match" else ORDER)
        assert decoder.orders_alive == len(reference.orders)
    assert (decoder.counts["fallback"] > 0) == tolerant
    decoder.forget(0)
    assert decoder.orders_alive == 0


def opened(sequence: int, name: str, product: str = "BTC-USD") -> bytes:
    return json.dumps(
        {"type": "open", "product_id": product, "sequence": sequence, "time": "2024-01-01T00:00:00Z", "order_id": name,
         "side": "buy", "price": "1.00", "remaining_size": "1"}
    ).encode()  # fmt: skip


def test_messages_out_of_order_change_no_order() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    name = "d50ec984-77a8-460a-b958-66f114b0de9b"
    assert decoder.decode(opened(5, name), 7, out) == 0  # not followed
    assert decoder.decode_snapshot(snapshot(4, {}), 0, 7, out) == 1
    assert decoder.decode(opened(6, name), 7, out) == 0
    assert decoder.decode(opened(4, name), 7, out) == 0
    assert decoder.decode(opened(5, name), 7, out) == 1
    assert decoder.decode(opened(5, name), 7, out) == 0
    assert decoder.orders_alive == 1


def test_two_orders_with_one_reference_are_told_and_not_followed() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    assert decoder.decode_snapshot(snapshot(0, {}), 0, 7, out) == 1
    assert decoder.decode(opened(1, "d50ec984-77a8-460a-b958-66f114b0de9b"), 7, out) == 1
    assert decoder.decode(opened(2, "d50ec984-77a8-460a-b958-66f114b0de9c"), 7, out) == 0
    assert (decoder.kind, decoder.counts["lost"]) == (LOST, 1)


def test_more_orders_than_the_bound_are_told_and_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "MAX_ORDERS", 32)
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    assert decoder.decode_snapshot(snapshot(0, {}), 0, 7, out) == 1
    chance = random.Random(1)
    kinds = []
    for k in range(40):
        decoder.decode(opened(1 + k, str(uuid.UUID(int=chance.getrandbits(128)))), 7, out)
        kinds.append(decoder.kind)
        if decoder.kind == LOST:
            break
    assert len(kinds) == 33 and kinds[-1] == LOST and decoder.orders_alive == 32


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[]", b'{"sequence":1,"bids":[],"asks":[["1","1"]]}', b'{"sequence":-1,"bids":[],"asks":[]}',
     b'{"sequence":1,"bids":[["1.00","1","not-a-uuid"]],"asks":[]}',
     b'{"sequence":1,"bids":[["0.001","1","d50ec984-77a8-460a-b958-66f114b0de9b"]],"asks":[]}',
     b'{"sequence":1,"bids":[["1","1","d50ec984-77a8-460a-b958-66f114b0de9b"],'
     b'["1","1","d50ec984-77a8-460a-b958-66f114b0de9b"]],"asks":[]}'],
)  # fmt: skip
def test_what_is_no_level_3_book_is_refused_and_nothing_is_followed(payload: bytes) -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    assert decoder.decode_snapshot(payload, 0, 7, out) == 0
    assert decoder.orders_alive == 0
    assert decoder.decode(opened(2, "d50ec984-77a8-460a-b958-66f114b0de9b"), 7, out) == 0


# ---- several events in a message


def test_a_message_of_two_products_is_told_part_by_part() -> None:
    decoder, out = MarketDecoder([BTC, ETH]), np.zeros(8, ROW)
    update = {"side": "bid", "event_time": "2024-01-01T00:00:00Z", "price_level": "1.00", "new_quantity": "2"}
    message = {
        "channel": "l2_data", "timestamp": "2024-01-01T00:00:00Z", "sequence_num": 9,
        "events": [
            {"type": "snapshot", "product_id": "BTC-USD", "updates": [update]},
            {"type": "update", "product_id": "ETH-USD", "updates": [update, update]},
        ],
    }  # fmt: skip
    assert decoder.decode(json.dumps(message, separators=(",", ":")).encode(), 7, out) == 4
    assert [tuple(part) for part in decoder.parts] == [(0, True, 0, 2), (1, False, 2, 4)]
    assert [bool(row["flags"] & Flag.LAST) for row in out[:4]] == [False, True, False, True]
    assert decoder.decode(b"{}", 7, out) == 0
    assert decoder.parts == []


def test_a_snapshot_without_levels_clears_the_book() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    assert decoder.decode(b'{"type":"snapshot","product_id":"BTC-USD","bids":[],"asks":[]}', 7, out) == 1
    assert (decoder.kind, int(out[0]["kind"]), int(out[0]["ts_event"])) == (SNAPSHOT, Kind.CLEAR, NAT)
    assert out[0]["flags"] & Flag.LAST


# ---- any bytes


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_are_survived_and_both_readers_agree(name: str) -> None:
    feed, seeds = TARGETS[name]()
    fuzz(feed, seeds, 100_000, seed=11)
