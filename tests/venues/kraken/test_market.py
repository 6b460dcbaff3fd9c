"""The decoder against a slow reference that shares nothing with it: recordings, generated streams, mutated bytes."""

from __future__ import annotations

import json
import random
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from venues.kraken.reference import Reader, Row

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, ROW, RowArray
from hftlab.testing.fuzz import fuzz, inputs
from hftlab.testing.targets_kraken import TARGETS
from hftlab.venues.binance.capture import read_capture
from hftlab.venues.kraken.market import (
    BOOK,
    BROKEN,
    CONTROL,
    HEARTBEAT,
    OTHER,
    SEVERAL,
    STATUS,
    TICKER,
    TRADE,
    MarketDecoder,
)
from hftlab.venues.kraken.messages import instruments_from_asset_pairs

BTC = Instrument(0, "kraken", "BTC/USD", Decimal("0.1"), Decimal("0.00000001"))
DOGE = Instrument(5, "kraken", "DOGE/EUR", Decimal("0.00001"), Decimal("0.0001"))
QUARTER = Instrument(3, "kraken", "QQQ/USD", Decimal("0.25"), Decimal("10"))
ALL = [BTC, DOGE, QUARTER]
PAIRS = [
    "WAVES/EUR", "XMR/USD", "KSM/XBT", "GRT/ETH", "SC/EUR", "ETH/CHF", "OCEAN/XBT", "OMG/USD", "XBT/CHF", "ADA/XBT",
]  # fmt: skip


def as_rows(rows: RowArray) -> list[Row]:
    fields = ("kind", "ts_recv", "ts_event", "instrument", "flags", "px", "qty", "a")
    return [tuple(int(row[field]) for field in fields) for row in rows]


def stamp(rng: random.Random) -> str:
    text = f"20{rng.randint(20, 40)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T"
    text += f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"
    digits = rng.choice([0, 3, 6, 6, 6, 9])
    return text + (f".{rng.randrange(10**digits):0{digits}d}" if digits else "") + "Z"


def number(rng: random.Random, step: Decimal, most: int, zeros: int = 0) -> str:
    value = f"{rng.randint(0, most) * step:f}"
    return value + ("0" * zeros if "." in value else "." + "0" * zeros if zeros else "")


def levels_v2(rng: random.Random, instrument: Instrument, n: int) -> str:
    def level() -> str:
        px = number(rng, instrument.tick_size, 60)
        qty = "0.00000000" if rng.random() < 0.3 else number(rng, instrument.lot_size, 10**10, rng.choice([0, 0, 2]))
        return f'{{"price":{px},"qty":{qty}}}'

    return ",".join(level() for _ in range(rng.randint(0, n)))


def v2_frame(rng: random.Random) -> bytes:
    i = rng.choice(ALL)
    kind, channel = rng.choice(["update"] * 6 + ["snapshot"]), rng.choice(["book"] * 6 + ["trade", "ticker"])
    n = 20 if kind == "snapshot" else 4
    if channel == "book":
        time = f',"timestamp":"{stamp(rng)}"' if rng.random() < 0.9 else ""
        entries = (
            f'{{"symbol":"{i.symbol}","bids":[{levels_v2(rng, i, n)}],"asks":[{levels_v2(rng, i, n)}],'
            f'"checksum":{rng.getrandbits(32)}{time}}}'
        )
    elif channel == "trade":
        entries = ",".join(
            f'{{"symbol":"{i.symbol}","side":"{rng.choice(["buy", "sell"])}","price":{number(rng, i.tick_size, 10**6)},'
            f'"qty":{number(rng, i.lot_size, 10**6)},"ord_type":"{rng.choice(["limit", "market"])}",'
            f'"trade_id":{rng.randint(0, 10**9)},"timestamp":"{stamp(rng)}"}}'
            for _ in range(rng.randint(1, 3))
        )
    else:
        entries = (
            f'{{"symbol":"{i.symbol}","bid":{number(rng, i.tick_size, 99)},"bid_qty":{number(rng, i.lot_size, 99)},'
            f'"ask":{number(rng, i.tick_size, 99)},"ask_qty":{number(rng, i.lot_size, 99)},"last":105899.40,'
            f'"volume":163.28908096,"vwap":105904.39279,"low":104711.00,"high":106613.10,"change":-250.0,'
            f'"change_pct":-0.24}}'
        )
    return f'{{"channel":"{channel}","type":"{kind}","data":[{entries}]}}'.encode()


def v1_frame(rng: random.Random) -> bytes:
    i = rng.choice(ALL)
    pair = i.symbol.replace("BTC", "XBT").replace("DOGE", "XDG")

    def levels(n: int, mark: str = "") -> str:
        def level() -> str:
            px, qty = number(rng, i.tick_size, 60, 2), number(rng, i.lot_size, 10**10, rng.choice([0, 2]))
            qty = "0.00000000" if rng.random() < 0.3 else qty
            again = ',"r"' if rng.random() < 0.1 else ""
            return f'["{px}","{qty}","{rng.randint(10**9, 2 * 10**9)}.{rng.randrange(10**6):06d}"{again}]'

        return "[" + ",".join(level() for _ in range(rng.randint(0, n))) + "]"

    c = f'"c":"{rng.getrandbits(32)}"'
    body, name = rng.choice([
        (f'{{"as":{levels(15)},"bs":{levels(15)}}}', "book-10"),
        (f'{{"a":{levels(3)},{c}}}', "book-10"),
        (f'{{"b":{levels(3)},{c}}}', "book-10"),
        (f'{{"a":{levels(3)}}},{{"b":{levels(3)},{c}}}', "book-10"),
        (f'[["{number(rng, i.tick_size, 99)}","{number(rng, i.lot_size, 99)}","1618678142.557","s","l",""]]', "trade"),
        (f'["{number(rng, i.tick_size, 99)}","{number(rng, i.tick_size, 99)}","1618678142.557535",'
         f'"{number(rng, i.lot_size, 99)}","{number(rng, i.lot_size, 99)}"]', "spread"),
        (f'{{"a":["{number(rng, i.tick_size, 99)}",35,"{number(rng, i.lot_size, 99)}"],'
         f'"b":["{number(rng, i.tick_size, 99)}",1,"{number(rng, i.lot_size, 99)}"],'
         f'"c":["13.2","3.7"],"v":["26.8","72.0"],"t":[640,1353],"o":["1.0","2.0"]}}', "ticker"),
    ])  # fmt: skip
    return f'[{rng.randint(0, 9999)},{body},"{name}","{pair}"]'.encode()


def same(decoder: MarketDecoder, reader: Reader, frame: bytes, out: RowArray) -> int:
    """Decode with both and compare everything; return the number of rows."""
    n = decoder.decode(frame, 7, out)
    expected = reader.rows(frame, 7)
    assert as_rows(out[:n]) == expected, frame
    if decoder.kind == BOOK:
        assert (decoder.checksum, decoder.computed) == (reader.checksum, reader.computed), frame
    return n


# ---- recordings


@pytest.fixture(scope="module")
def recorded_pairs(shared_data: Path) -> list[Instrument]:
    for _, payload in read_capture(shared_data / "kraken" / "KRAKEN.0"):
        if b"pair_decimals" in payload:
            return instruments_from_asset_pairs(payload, PAIRS)
    raise AssertionError("the recording holds no AssetPairs")


@pytest.mark.parametrize("name", ["50", "48", "49"])
def test_every_recorded_message_equals_the_reference_row_by_row(
    shared_data: Path, recorded_pairs: list[Instrument], name: str
) -> None:
    decoder, reader = MarketDecoder(recorded_pairs, version=1, depth=1000), Reader(recorded_pairs, 1, 1000)
    out, sums, rows = np.zeros(16384, ROW), [], 0
    for _, frame in read_capture(shared_data / "kraken" / f"KRAKEN.ws.{name}.0", on_broken=lambda at, why: None):
        rows += same(decoder, reader, frame, out)
        if decoder.kind == BOOK and decoder.checksum >= 0:
            sums.append(decoder.checksum == decoder.computed)
    assert rows > 0
    assert decoder.counts["fallback"] == 0
    assert not any(decoder.counts[why] for why in ("malformed", "truncated", "unknown_symbol", "off_grid", "oversize"))
    if name == "50":
        assert (sum(sums), len(sums)) == (4269, 4269)


def as_v2(frame: bytes) -> bytes | None:
    """Rewrite a book message of version 1 in the form of version 2, the text of every number kept; None for others."""
    message = json.loads(frame)
    if not isinstance(message, list) or not message[-2].startswith("book-"):
        return None
    merged = {key: value for part in message[1:-2] for key, value in part.items()}
    bids, asks = merged.get("bs", merged.get("b", [])), merged.get("as", merged.get("a", []))
    told = [",".join(f'{{"price":{px},"qty":{qty}}}' for px, qty, *_ in side) for side in (bids, asks)]
    kind, symbol = "snapshot" if "as" in merged else "update", message[-1].replace("XBT", "BTC")
    return (
        f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{symbol}","bids":[{told[0]}],'
        f'"asks":[{told[1]}],"checksum":{merged.get("c", 0)},"timestamp":"2021-04-17T16:48:52.930000Z"}}]}}'
    ).encode()


def test_the_recording_rewritten_in_version_2_keeps_every_checksum(
    shared_data: Path, recorded_pairs: list[Instrument]
) -> None:
    """Not a recording of version 2, but every number of a recording in its form: both readers make the same books."""
    old = MarketDecoder(recorded_pairs, version=1, depth=1000)
    new = MarketDecoder(recorded_pairs, version=2, depth=1000)
    out, again, proved = np.zeros(16384, ROW), np.zeros(16384, ROW), 0
    for _, frame in read_capture(shared_data / "kraken" / "KRAKEN.ws.50.0", on_broken=lambda at, why: None):
        rewritten = as_v2(frame)
        if rewritten is None:
            continue
        n, m = old.decode(frame, 7, out), new.decode(rewritten, 7, again)
        names = ["kind", "instrument", "flags", "px", "qty"]
        if not new.snapshot and b'},{"b"' not in frame:  # where both versions tell the sides in the same order
            assert [again[k][:m].tolist() for k in names] == [out[k][:n].tolist() for k in names]
        if new.snapshot:
            assert new.computed == old.computed
        else:
            assert new.checksum == new.computed == old.computed
            proved += 1
    assert proved == 4269 and new.counts["fallback"] == 0


# ---- generated and mutated streams


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_generated_streams_equal_the_reference(seed: int, version: int) -> None:
    rng = random.Random(seed)
    decoder, reader = MarketDecoder(ALL, version=version, depth=10), Reader(ALL, version, 10)
    out = np.zeros(2048, ROW)
    for _ in range(60):
        same(decoder, reader, v2_frame(rng) if version == 2 else v1_frame(rng), out)
    assert decoder.counts["fallback"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_any_spelling_of_the_json_gives_the_same_rows(seed: int) -> None:
    rng = random.Random(seed)
    decoder, reader = MarketDecoder(ALL, depth=10), Reader(ALL, 2, 10)
    out = np.zeros(2048, ROW)
    for _ in range(20):
        frame = v2_frame(rng).replace(b'"symbol"', b'"new_field": {"deep": [1, null]}, "symbol"').replace(b",", b" , ")
        same(decoder, reader, frame, out)
    assert decoder.counts["fallback"] == 20 and not decoder.counts["malformed"]


@pytest.mark.parametrize("version", [1, 2])
def test_mutated_messages_never_disagree_with_the_reference(version: int) -> None:
    rng = random.Random(version)
    seeds = [v2_frame(rng) if version == 2 else v1_frame(rng) for _ in range(40)]
    decoder, reader = MarketDecoder(ALL, version=version, depth=10), Reader(ALL, version, 10)
    out, rejected = np.zeros(2048, ROW), 0
    for frame in inputs(seeds, 6000, seed=version):
        same(decoder, reader, frame, out)
        rejected += decoder.kind == BROKEN
    assert rejected > 500
    assert all(decoder.counts[why] for why in ("malformed", "truncated", "unknown_symbol", "off_grid", "fallback"))


# ---- single messages


def v2(entry: dict[str, Any] | str, channel: str = "book", kind: str = "update") -> bytes:
    text = entry if isinstance(entry, str) else json.dumps(entry, separators=(",", ":"))
    return f'{{"channel":"{channel}","type":"{kind}","data":[{text}]}}'.encode()


def entry(bids: str = "", asks: str = "", symbol: str = "BTC/USD", checksum: int = 1) -> str:
    return f'{{"symbol":"{symbol}","bids":[{bids}],"asks":[{asks}],"checksum":{checksum}}}'


LEVEL = '{"price":45283.5,"qty":0.10000000}'


def test_an_update_before_any_snapshot_gives_rows_and_no_checksum_of_ours() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(64, ROW)
    assert decoder.decode(v2(entry(LEVEL)), 0, out) == 1
    assert (decoder.kind, decoder.checksum, decoder.computed) == (BOOK, 1, -1)


def test_a_forgotten_book_begins_again_with_the_next_snapshot() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(64, ROW)
    decoder.decode(v2(entry(LEVEL), kind="snapshot"), 0, out)
    before = decoder.computed
    decoder.forget(0)
    decoder.decode(v2(entry(LEVEL)), 0, out)
    assert decoder.computed == -1
    decoder.decode(v2(entry(LEVEL), kind="snapshot"), 0, out)
    assert decoder.snapshot and decoder.computed == before


def test_version_1_sums_the_text_as_it_was_sent() -> None:
    decoder, out = MarketDecoder([BTC], version=1), np.zeros(64, ROW)
    levels = b'"as":[["5541.30000","2.507","1534614248.123678"]],"bs":[["5541","1.5","1534614248.7"]]'
    snapshot = b"[0,{" + levels + b'},"book-10","XBT/USD"]'
    decoder.decode(snapshot, 0, out)
    assert decoder.computed == zlib.crc32(b"554130000" + b"2507" + b"5541" + b"15")
    decoder.decode(b'[0,{"b":[["5541.0","1.50","1534614249.7"]],"c":"1"},"book-10","XBT/USD"]', 0, out)
    assert decoder.computed == zlib.crc32(b"554130000" + b"2507" + b"55410" + b"150")
    assert not any(decoder.counts.values()) and int(out[0]["a"]) == 0


def test_version_2_sums_the_text_at_the_pairs_precision() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(64, ROW)
    decoder.decode(v2(entry('{"price":5541,"qty":1.5}', '{"price":5541.3,"qty":2.507}'), kind="snapshot"), 0, out)
    assert decoder.computed == zlib.crc32(b"55413" + b"250700000" + b"55410" + b"150000000")
    assert decoder.counts["fallback"] == 0


def test_levels_that_fall_out_of_the_depth_leave_as_rows() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(64, ROW)
    many = ",".join(f'{{"price":{100 + n}.0,"qty":1.0}}' for n in range(10))
    decoder.decode(v2(entry(many), kind="snapshot"), 0, out)
    assert decoder.decode(v2(entry('{"price":105.5,"qty":2.0}')), 0, out) == 2
    assert (int(out[1]["px"]), int(out[1]["qty"]), int(out[1]["flags"])) == (1000, 0, 1 | 4)
    assert int(out[0]["flags"]) == 1


def test_what_may_have_changed_a_book_and_was_refused_is_broken() -> None:
    decoder, out = MarketDecoder(ALL), np.zeros(8, ROW)
    cases = [
        (v2(entry('{"price":0.05,"qty":1.0}')), 0, "off_grid"),
        (v2(entry('{"price":"5","qty":1.0}')), 0, "malformed"),
        (v2(entry(",".join([LEVEL] * 9))), 0, "oversize"),
        (v2(entry(LEVEL)) + b"}", -1, "malformed"),
        (v2(entry(LEVEL))[:-3], -1, "truncated"),
    ]
    for frame, instrument, why in cases:
        before = decoder.counts[why]
        assert decoder.decode(frame, 0, out) == 0
        assert (decoder.kind, decoder.instrument, decoder.counts[why]) == (BROKEN, instrument, before + 1), frame


def test_what_cannot_have_changed_a_book_is_not_broken() -> None:
    decoder, out = MarketDecoder(ALL), np.zeros(8, ROW)
    for frame, kind in [
        (v2(entry(LEVEL, symbol="XXX/USD")), OTHER),
        (v2('{"symbol":"BTC/USD","side":"up"}', "trade"), OTHER),
        (b"[]", OTHER),
        (b'{"channel":"heartbeat"}', HEARTBEAT),
        (b'{"channel": "heartbeat"}', HEARTBEAT),
        (b'{"channel":"status","type":"update","data":[{"connection_id":15113583034416118705}]}', STATUS),
        (b'{"method":"subscribe","result":{"channel":"book"},"success":true}', CONTROL),
        (b'{"error":"Subscription depth not supported","method":"subscribe","success":false}', CONTROL),
        (b'{"channel":"instrument","type":"snapshot","data":{"assets":[],"pairs":[]}}', OTHER),
        (v2('{"symbol":"BTC/USD","bid":1.0,"bid_qty":2.5,"ask":1.5,"ask_qty":3.2,"last":1.0}', "ticker"), TICKER),
        (v2('{"symbol":"BTC/USD","side":"sell","price":5117.0,"qty":40.0,"ord_type":"market","trade_id":4665906,'
            '"timestamp":"2023-09-25T07:49:37.708706Z"}', "trade"), TRADE),
    ]:  # fmt: skip
        decoder.decode(frame, 0, out)
        assert decoder.kind == kind, frame
    assert decoder.counts["unknown_symbol"] == 1 and decoder.counts["malformed"] == 2


def test_more_trades_than_there_is_room_for_are_counted_and_leave_the_book_alone() -> None:
    decoder, out = MarketDecoder(ALL), np.zeros(2, ROW)
    trade = (
        '{"symbol":"BTC/USD","side":"sell","price":5117.0,"qty":40.0,"ord_type":"market","trade_id":4665906,'
        '"timestamp":"2023-09-25T07:49:37.708706Z"}'
    )
    assert decoder.decode(v2(",".join([trade] * 3), "trade"), 0, out) == 0
    assert (decoder.kind, decoder.counts["oversize"]) == (OTHER, 1)
    assert decoder.decode(v2(",".join([trade] * 2), "trade"), 0, out) == 2


def test_a_message_of_several_symbols_is_taken_apart() -> None:
    decoder, out = MarketDecoder(ALL), np.zeros(64, ROW)
    frame = v2(entry(LEVEL) + "," + entry('{"price":0.00010,"qty":2.0}', symbol="DOGE/EUR"), kind="snapshot")
    assert decoder.decode(frame, 0, out) == 0 and decoder.kind == SEVERAL
    parts = decoder.split(frame)
    assert [(decoder.decode(part, 0, out), decoder.instrument, int(out[1]["px"])) for part in parts] == [
        (2, 0, 452835), (2, 5, 10),
    ]  # fmt: skip


def test_times_are_nanoseconds_and_a_snapshot_without_one_says_so() -> None:
    decoder, out = MarketDecoder([BTC]), np.zeros(8, ROW)
    decoder.decode(v2(entry(LEVEL), kind="snapshot"), 3, out)
    assert (int(out[1]["ts_event"]), int(out[1]["ts_recv"])) == (NAT, 3)
    decoder.decode(v2(entry(LEVEL)[:-1] + ',"timestamp":"2024-02-29T23:59:59.123456789Z"}'), 3, out)
    assert int(out[0]["ts_event"]) == 1709251199123456789
    assert decoder.counts["fallback"] == 0
    assert decoder.decode(v2(entry(LEVEL)[:-1] + ',"timestamp":"2023-02-29T23:59:59Z"}'), 3, out) == 0
    assert decoder.kind == BROKEN


@pytest.mark.parametrize("settings", [{"version": 3}, {"depth": 27}])
def test_settings_the_venue_does_not_have_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"depth=27|version=3"):
        MarketDecoder([BTC], **settings)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_hundred_thousand_random_and_mutated_inputs_break_no_promise(name: str) -> None:
    fuzz(*TARGETS[name](), 100_000)
