"""The decoder against a slow reference that shares nothing with it, on documented, random and mutated bytes."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from guarded_text import GuardedText
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, ROW, Flag, Kind
from hftlab.kernels.ladder import Ladders
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_binance import TARGETS
from hftlab.venues.binance.market import CONTROL, DEPTH, OTHER, SHUTDOWN, TRADE, MarketDecoder

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
ETH = Instrument(3, "binance", "ETHBTC", Decimal("0.00000100"), Decimal("0.0001"))
QUARTER = Instrument(1, "binance", "QUARTERUSDT", Decimal("0.25"), Decimal("10"))
WIDE = Instrument(2, "binance", "\uff11\uff12USDT", Decimal("0.01"), Decimal("1"))
ALL = [BTC, QUARTER, WIDE, ETH]

Row = tuple[int, ...]


# ---- the reference: json and Decimal, no table, no kernel


class Rejected(Exception):
    pass


def _no_constant(text: str) -> float:
    raise Rejected(text)


def _finite(text: str) -> float:
    if float(text) in (float("inf"), float("-inf")):
        raise Rejected(text)
    return float(text)


def _whole(text: str) -> int | float:
    return int(text) if len(text) < 40 else _finite(text)


def _int(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise Rejected(key)
    return value


def _ns(event: dict[str, Any], key: str) -> int:
    value = _int(event, key)
    ns = value * (10**3 if value > 10**14 else 10**6)
    if ns >= 2**63:
        raise Rejected(key)
    return ns


def _count(text: Any, step: Decimal) -> int:
    if not isinstance(text, str) or re.fullmatch("[0-9]+([.][0-9]+)?", text, re.ASCII) is None:
        raise Rejected(text)
    numerator, denominator = step.as_integer_ratio()
    whole, _, fraction = text.partition(".")
    top = int(whole + fraction) * denominator
    bottom = numerator * 10 ** len(fraction)
    if top % bottom or top // bottom >= 2**63:
        raise Rejected(text)
    return top // bottom


def _levels(event: dict[str, Any], key: str, instrument: Instrument) -> list[tuple[int, int]]:
    levels = event.get(key)
    if not isinstance(levels, list):
        raise Rejected(key)
    for level in levels:
        if not isinstance(level, list) or len(level) < 2:
            raise Rejected(level)
    return [(_count(level[0], instrument.tick_size), _count(level[1], instrument.lot_size)) for level in levels]


def reference(frame: bytes, ts_recv: int = 7) -> list[Row]:
    """(kind, ts_recv, ts_event, instrument, flags, px, qty, a) of every row; empty for rejected and rowless alike."""
    try:
        text = frame.decode()
        event = json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)
        if isinstance(event, dict) and "stream" in event and "data" in event:
            event = event["data"]
        if not isinstance(event, dict):
            return []
        return _event_rows(event, ts_recv)
    except (ValueError, Rejected, RecursionError, OverflowError):
        return []


def _event_rows(event: dict[str, Any], ts_recv: int) -> list[Row]:
    by_symbol = {i.symbol: i for i in ALL}
    symbol = event.get("s")
    instrument = by_symbol.get(symbol) if isinstance(symbol, str) else None
    name = event.get("e")
    if instrument is None or name not in (None, "depthUpdate", "trade"):
        return []
    tick, lot = instrument.tick_size, instrument.lot_size
    rows: list[Row] = []
    if name == "depthUpdate":
        first, last, ts = _int(event, "U"), _int(event, "u"), _ns(event, "E")
        if first > last:
            raise Rejected("U")
        for key, flag in (("b", 1), ("a", 2)):
            rows += [
                (20, ts_recv, ts, instrument.id, flag, px, qty, last) for px, qty in _levels(event, key, instrument)
            ]
    elif name == "trade":
        if not isinstance(event.get("m"), bool):
            raise Rejected("m")
        px, qty = _count(event.get("p"), tick), _count(event.get("q"), lot)
        rows = [(23, ts_recv, _ns(event, "T"), instrument.id, 2 if event["m"] else 1, px, qty, _int(event, "t"))]
    elif "u" in event and "B" in event:
        for px_key, qty_key, flag in (("b", "B", 1), ("a", "A", 2)):
            px, qty = _count(event.get(px_key), tick), _count(event.get(qty_key), lot)
            rows.append((21, ts_recv, NAT, instrument.id, flag, px, qty, _int(event, "u")))
    if rows:
        rows[-1] = (*rows[-1][:4], rows[-1][4] | 4, *rows[-1][5:])
    return rows


# ---- material


def depth(rng: random.Random) -> dict[str, Any]:
    px_zeros, qty_zeros = ("000000", "000") if rng.random() < 0.8 else ("000", "00")  # the venue's layout, mostly

    def side() -> list[list[str]]:
        return [
            [f"{rng.randint(1, 10**7) / 100:.2f}{px_zeros}", f"{rng.randint(0, 10**6) / 10**5:.5f}{qty_zeros}"]
            for _ in range(rng.randint(0, 6))
        ]

    first = rng.randint(1, 10**11)
    stamp = rng.choice([1_700_000_000_000, 1_700_000_000_000_000]) + rng.randint(0, 10**6)
    return {
        "e": "depthUpdate", "E": stamp, "s": "BTCUSDT", "U": first, "u": first + rng.randint(0, 9),
        "b": side(), "a": side(),
    }  # fmt: skip


def trade(rng: random.Random) -> dict[str, Any]:
    return {
        "e": "trade", "E": 1700000000001, "s": "ETHBTC", "t": rng.randint(1, 10**10), "p": "0.06210100",
        "q": f"{rng.randint(1, 10**6) / 10**4:.8f}", "T": 1700000000000, "m": rng.random() < 0.5, "M": True,
    }  # fmt: skip


def ticker(rng: random.Random) -> dict[str, Any]:
    update_id = rng.randint(1, 10**11)
    ask, ask_qty = rng.choice([("61837.64", "0"), ("61837.64000000", "0.00000000")])
    return {"u": update_id, "s": "BTCUSDT", "b": "61837.63000000", "B": "3.78826000", "a": ask, "A": ask_qty}


def frame_of(rng: random.Random) -> bytes:
    event = rng.choice([depth, depth, trade, ticker])(rng)
    if rng.random() < 0.5:
        event = {"stream": f"{event['s'].lower()}@x", "data": event}
    separators = rng.choice([(",", ":"), (",", ":"), (", ", ": ")])
    return json.dumps(event, separators=separators).encode()


def decoded(decoder: MarketDecoder, frame: bytes, out: np.ndarray[Any, Any]) -> list[Row]:
    n = decoder.decode(frame, 7, out)
    fields = ("kind", "ts_recv", "ts_event", "instrument", "flags", "px", "qty", "a")
    rows = [tuple(int(row[f]) for f in fields) for row in out[:n]]
    assert not out["b"][:n].any() and not out["seq"][:n].any() and not out["code"][:n].any()
    assert (out["source"][:n] == 1).all() and not out["span"][:n].any()
    return rows


@pytest.fixture
def decoder() -> MarketDecoder:
    return MarketDecoder(ALL)


@pytest.fixture
def out() -> np.ndarray[Any, Any]:
    return np.frombuffer(b"\xa5" * 64 * 16384, ROW).copy()  # junk: every field of a row must be written


def test_well_formed_messages_take_the_fast_way_and_give_the_reference_rows(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    rng = random.Random(1)
    for _ in range(2000):
        frame = frame_of(rng)
        rows = reference(frame)
        assert decoded(decoder, frame, out) == rows
        assert rows or decoder.kind == DEPTH
    assert not any(decoder.counts.values()), decoder.counts


def mutated(rng: random.Random, frame: bytes, others: list[bytes]) -> bytes:
    raw = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not raw:
            break
        at, kind = rng.randrange(len(raw)), rng.randrange(7)
        if kind == 0:
            raw[at] = rng.randrange(256)
        elif kind == 1:
            raw[at] = rng.choice(b'0123456789.,:"[]{}eEtT-\\ ')
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            del raw[at : at + rng.randint(1, 12)]
        elif kind == 4:
            raw[at:at] = raw[at : at + rng.randint(1, 40)]
        elif kind == 5:
            raw[at:at] = rng.choice((b"0", b"9999999999", b'"', b"[]", b"null", b"\xff", b"-", b"1e9", b" ", b"0.0001"))
        else:
            other = rng.choice(others)
            cut = rng.randrange(len(other))
            raw[at:] = other[cut:]
    return bytes(raw)


def test_a_hundred_thousand_mutated_frames_give_the_reference_rows_or_are_counted(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    rng = random.Random(20261122)
    frames = [frame_of(rng) for _ in range(500)]
    with_rows = 0
    for n in range(100_000):
        frame = mutated(rng, frames[n % 500], frames)
        before = sum(decoder.counts.values())
        rows = decoded(decoder, frame, out)
        assert rows == reference(frame), frame
        with_rows += bool(rows)
        assert rows or decoder.kind == DEPTH or sum(decoder.counts.values()) == before + 1, frame
    assert 5_000 < with_rows < 90_000
    assert all(decoder.counts[reason] > 100 for reason in ("malformed", "truncated", "unknown_symbol", "off_grid"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64) | st.text(max_size=6) | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
event_like = st.dictionaries(
    st.sampled_from(list("eEsUutTpqmbaBAM")) | st.text(max_size=2),
    json_values
    | st.sampled_from(["depthUpdate", "trade", "BTCUSDT", "ETHBTC", "1.5", "0.01", 1700000000000, [["1.00", "2"]], []]),
    max_size=12,
)
any_frame = st.one_of(
    st.binary(max_size=200),
    event_like.map(lambda e: json.dumps(e).encode()),
    event_like.map(lambda e: json.dumps({"stream": "x", "data": e}, ensure_ascii=False).encode("utf-8", "replace")),
    st.builds(
        lambda seed, changes: json.dumps(depth(random.Random(seed)) | changes, separators=(",", ":")).encode(),
        st.integers(0, 99),
        event_like,
    ),
)

_SHARED_DECODER, _SHARED_OUT = MarketDecoder(ALL), np.zeros(4096, ROW)


@settings(max_examples=1000, deadline=None)
@given(any_frame)
@example(b"")
@example(b"{")
@example(b"[" * 100_000)
@example(b'{"stream":"')
@example(b'{"e":"depthUpdate","E":1,"s":"')
@example(b'{"e":"trade","s":"BTCUSDT","s":"ETHBTC","t":1,"T":1,"p":"1.00","q":"1","m":true}')
def test_any_bytes_give_the_reference_rows(frame: bytes) -> None:
    assert decoded(_SHARED_DECODER, frame, _SHARED_OUT) == reference(frame)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_hundred_thousand_inputs_never_raise_nor_vanish_uncounted(name: str) -> None:
    feed, seeds = TARGETS[name]()
    fuzz(feed, seeds, 100_000)


# ---- many at once, and into a book


def batch_of(frames: list[bytes]) -> tuple[bytes, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ends = np.cumsum([0] + [len(frame) for frame in frames]).astype(np.int64)
    return b"".join(frames), ends, np.arange(len(frames), dtype=np.int64) * 1000


@pytest.mark.parametrize("room", [64, 300, 100_000])
def test_a_batch_gives_what_the_messages_give_one_by_one_however_small_the_array(room: int) -> None:
    rng = random.Random(room)
    frames = [frame_of(rng) for _ in range(300)]
    frames = [mutated(rng, frame, frames) if rng.random() < 0.3 else frame for frame in frames]
    text, ends, stamps = batch_of(frames)
    one, many = MarketDecoder(ALL), MarketDecoder(ALL)
    single, out = np.zeros(64, ROW), np.zeros(room, ROW)
    facts = np.zeros((len(frames), 5), np.int64)
    i = before = 0
    calls = 0
    while i < len(frames):
        done, n = many.decode_batch(text, ends, stamps, out, first=i, facts=facts)
        calls += 1
        assert done > i
        begin = 0
        for k in range(i, done):
            got = one.decode(frames[k], int(stamps[k]), single)
            end = int(facts[k, 4])
            assert out[begin:end].tobytes() == single[:got].tobytes(), frames[k]
            assert facts[k, :4].tolist() == [one.kind, one.instrument, one.first, one.last]
            begin = end
        assert begin == n
        i, before = done, before + n
    assert many.counts == one.counts and before > 500
    assert (calls > 1) == (room < 1000)


def test_a_batch_of_an_array_is_read_in_place_and_its_bounds_are_checked() -> None:
    rng = random.Random(3)
    text, ends, stamps = batch_of([json.dumps(depth(rng), separators=(",", ":")).encode() for _ in range(9)])
    decoder, out = MarketDecoder(ALL), np.zeros(1000, ROW)
    done, n = decoder.decode_batch(text, ends, stamps, out)
    rows = out[:n].tobytes()
    assert decoder.decode_batch(np.frombuffer(text, np.uint8), ends, stamps, out) == (9, n) == (done, n)
    assert out[:n].tobytes() == rows
    for wrong in (ends + 1, ends - 1, ends[::-1].copy(), ends[:-1], ends.astype(np.int32)):
        with pytest.raises(ConfigError, match=r"ends leaves|expected contiguous int64"):
            decoder.decode_batch(text, wrong, stamps, out)
    with pytest.raises(ConfigError, match="first=10"):
        decoder.decode_batch(text, ends, stamps, out, first=10)
    with pytest.raises(ConfigError, match="facts"):
        decoder.decode_batch(text, ends, stamps, out, facts=np.zeros((9, 4), np.int64))
    with pytest.raises(ConfigError, match="out is"):
        decoder.decode(b"{}", 0, np.zeros(8, np.int64))
    assert decoder.decode_batch(b"", np.zeros(1, np.int64), np.zeros(0, np.int64), out) == (0, 0)


def test_any_bytes_like_object_gives_the_same_rows() -> None:
    frame = b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[["1.00000000","1.00000000"]],"a":[]}'
    decoder, out, books = MarketDecoder(ALL), np.zeros(64, ROW), Ladders(ALL)
    n = decoder.decode(frame, 7, out)
    assert n == 1
    rows = out[:n].tobytes()
    for other in (bytearray(frame), memoryview(frame)):
        assert decoder.decode(other, 7, out) == n and out[:n].tobytes() == rows  # type: ignore[arg-type]
        assert decoder.decode_to_book(other, 7, out, books) == n  # type: ignore[arg-type]
    assert not any(decoder.counts.values()) and books.depth(0, 99)[0].tolist() == [[100, 100_000]]


def test_no_byte_behind_a_message_is_read_however_it_is_cut() -> None:
    rng = random.Random(12)
    frames = [frame_of(rng) for _ in range(200)]
    alone, decoder = MarketDecoder(ALL), MarketDecoder(ALL)
    out, single, memory, stamps = np.zeros(64, ROW), np.zeros(64, ROW), GuardedText(), np.full(1, 7, np.int64)
    for k in range(20_000):
        frame = frames[k % 200]
        frame = frame[: rng.randrange(len(frame) + 1)] if k % 3 else mutated(rng, frame, frames)
        ends = np.array([0, len(frame)], np.int64)
        _, n = decoder.decode_batch(memory.lay(frame), ends, stamps, out)
        assert n == alone.decode(frame, 7, single) and out[:n].tobytes() == single[:n].tobytes()
    assert decoder.counts == alone.counts


def test_a_message_larger_than_the_array_does_not_stop_a_batch() -> None:
    levels = ",".join(f'["{n}.00000000","1.00000000"]' for n in range(1, 50))
    large = f'{{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[{levels}],"a":[]}}'.encode()
    small = large.replace(f"[{levels}]".encode(), b'[["1.00000000","1.00000000"]]')
    decoder, out = MarketDecoder(ALL), np.zeros(20, ROW)
    text, ends, stamps = batch_of([small, large, small])
    assert decoder.decode_batch(text, ends, stamps, out) == (1, 1)
    assert decoder.decode_batch(text, ends, stamps, out, first=1) == (3, 1)
    assert decoder.counts["oversize"] == 1


def test_every_way_into_a_book_gives_the_same_book() -> None:
    rng = random.Random(9)
    frames = [json.dumps(depth(rng), separators=rng.choice([(",", ":"), (", ", ": ")])).encode() for _ in range(500)]
    text, ends, stamps = batch_of(frames)
    decoder, out = MarketDecoder(ALL), np.zeros(10_000, ROW)
    by_rows, by_call, by_batch = Ladders(ALL), Ladders(ALL), Ladders(ALL)
    for frame in frames:
        by_rows.apply(out[: decoder.decode(frame, 0, out)])
        decoder.decode_to_book(frame, 0, out, by_call)
    done, rows = decoder.decode_batch(text, ends, stamps, out[:20], books=by_batch)
    assert done == 500 and rows > 1000
    expected = [side.tolist() for side in by_rows.depth(0, 10_000)]
    assert sum(map(len, expected)) > 500
    for books in (by_call, by_batch):
        assert [side.tolist() for side in books.depth(0, 10_000)] == expected


# ---- what each message means


def test_a_depth_update_gives_bids_then_asks_with_the_final_id_and_one_last(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    frame = (
        b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1723161255208,"s":"BTCUSDT","U":157,"u":160,'
        b'"b":[["61737.63000000","0.00000000"],["61730.17000000","1.50000000"]],"a":[["61837.64000000","1.54698000"]]}}'
    )
    assert decoder.decode(frame, 99, out) == 3
    rows = out[:3]
    assert rows["kind"].tolist() == [Kind.LEVEL] * 3
    assert rows["flags"].tolist() == [Flag.BID, Flag.BID, Flag.ASK | Flag.LAST]
    assert rows["px"].tolist() == [6173763, 6173017, 6183764]
    assert rows["qty"].tolist() == [0, 150_000, 154_698]
    assert rows["a"].tolist() == [160] * 3 and rows["ts_event"].tolist() == [1723161255208 * 10**6] * 3
    assert rows["ts_recv"].tolist() == [99] * 3
    assert (decoder.kind, decoder.instrument, decoder.first, decoder.last) == (DEPTH, 0, 157, 160)


def test_an_empty_depth_update_has_no_rows_but_tells_its_range(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    frame = b'{"e":"depthUpdate","E":1,"s":"ETHBTC","U":5,"u":9,"b":[],"a":[]}'
    assert decoder.decode(frame, 0, out) == 0
    assert (decoder.kind, decoder.instrument, decoder.first, decoder.last) == (DEPTH, 3, 5, 9)
    assert not any(decoder.counts.values())


def test_the_side_of_a_trade_is_the_aggressors(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    frame = b'{"e":"trade","E":2,"s":"BTCUSDT","t":12345,"p":"0.01","q":"100","T":1,"m":%s,"M":true}'
    for buyer_is_maker, flag in ((b"true", Flag.ASK), (b"false", Flag.BID)):
        assert decoder.decode(frame % buyer_is_maker, 0, out) == 1
        assert (out[0]["kind"], out[0]["flags"], out[0]["a"]) == (Kind.TRADE, flag | Flag.LAST, 12345)
        assert decoder.kind == TRADE


def test_the_older_trade_message_with_order_ids_is_read(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    frame = (
        b'{"e":"trade","E":2,"s":"BTCUSDT","t":9,"p":"0.01","q":"1","b":88,"a":50,"T":1,"m":true,"M":true}'
    )
    assert decoder.decode(frame, 0, out) == 1 and out[0]["a"] == 9
    assert decoder.counts["fallback"] == 0


def test_aggregate_trades_are_read_only_when_asked_for(out: np.ndarray[Any, Any]) -> None:
    frame = (
        b'{"e":"aggTrade","E":2,"s":"BTCUSDT","a":12345,"p":"0.01","q":"100","f":100,"l":105,"T":1,"m":true,"M":true}'
    )
    silent, told = MarketDecoder([BTC]), MarketDecoder([BTC], agg=True)
    assert silent.decode(frame, 0, out) == 0 and silent.counts["ignored"] == 1
    assert told.decode(frame, 0, out) == 1 and out[0]["a"] == 12345
    swapped = frame.replace(b'"s":"BTCUSDT",', b"").replace(b"}", b',"s":"BTCUSDT"}')
    assert told.decode(swapped, 0, out) == 1 and told.counts["fallback"] == 1
    assert silent.decode(swapped, 0, out) == 0 and silent.counts["ignored"] == 2


def test_field_order_and_unknown_fields_do_not_matter_and_are_counted(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    rng = random.Random(5)
    for _ in range(300):
        event = depth(rng)
        if not event["b"] + event["a"]:
            continue
        event |= {"new": {"nested": [1, 2.5, "x"]}}
        keys = list(event)
        rng.shuffle(keys)
        frame = json.dumps({k: event[k] for k in keys}).encode()
        assert decoded(decoder, frame, out) == reference(frame) != []
        if decoder.counts["fallback"] > 200:
            return
    pytest.fail(f"expected the tolerant reader to be used and counted: {decoder.counts}")


def test_an_unknown_scalar_field_stays_on_the_fast_way(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    frame = json.dumps(depth(random.Random(2)) | {"z": "text", "extra": None, "flag": False, "n": 12}).encode()
    assert decoded(decoder, frame, out) == reference(frame)
    assert decoder.counts["fallback"] == 0


def test_a_symbol_outside_ascii_is_read_by_the_tolerant_reader(
    decoder: MarketDecoder, out: np.ndarray[Any, Any]
) -> None:
    frame = json.dumps({"u": 4, "s": WIDE.symbol, "b": "1.00", "B": "2", "a": "1.01", "A": "3"}, ensure_ascii=False)
    assert decoder.decode(frame.encode(), 0, out) == 2
    assert out["instrument"][:2].tolist() == [2, 2] and decoder.counts["fallback"] == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"1.005","q":"1","m":true}', "off_grid"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"99999999999999999999","q":"1","m":true}', "off_grid"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"-1.00","q":"1","m":true}', "off_grid"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"NaN","q":"1","m":true}', "off_grid"),
        (b'{"e":"trade","s":"QUARTERUSDT","t":1,"T":1,"p":"1.30","q":"10","m":true}', "off_grid"),
        (b'{"e":"trade","s":"DOGEUSDT","t":1,"T":1,"p":"1.00","q":"1","m":true}', "unknown_symbol"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":1.00,"q":"1","m":true}', "malformed"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"1.00","q":"1","m":1}', "malformed"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"1.00","q":"1","m":true}}', "malformed"),
        (b'{"e":"trade","s":"BTCUSDT","t":1,"T":1,"p":"1.00","q":"1","m":true,"\\":true}', "truncated"),
        (b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":9,"u":5,"b":[],"a":[]}', "malformed"),
        (b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[["1.00"]],"a":[]}', "malformed"),
        (b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[["1.00","1"]],"a":[["1.001","1"]]}', "off_grid"),
        (b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[["1.00","1"],', "truncated"),
        (b"hello", "malformed"),
        (b"", "truncated"),
        (b"\xff\xfe\x00", "malformed"),
    ],
)
def test_a_rejected_message_gives_no_row_and_is_counted_by_its_reason(
    decoder: MarketDecoder, out: np.ndarray[Any, Any], frame: bytes, reason: str
) -> None:
    assert decoder.decode(frame, 0, out) == 0
    assert decoder.counts == dict.fromkeys(decoder.counts, 0) | {reason: 1}
    assert decoder.kind == OTHER


def test_a_step_that_is_no_power_of_ten_is_counted_exactly(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    frame = b'{"u":1,"s":"QUARTERUSDT","b":"100.75","B":"20.00","a":"101","A":"12340"}'
    assert decoder.decode(frame, 0, out) == 2
    assert out["px"][:2].tolist() == [403, 404] and out["qty"][:2].tolist() == [2, 1234]
    assert decoder.counts["fallback"] == 0


def test_a_message_with_more_rows_than_the_callers_array_is_refused_whole(decoder: MarketDecoder) -> None:
    small = np.zeros(3, ROW)
    levels = ",".join(f'["{n}.00","1"]' for n in range(1, 5))
    frame = f'{{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":5,"b":[{levels}],"a":[]}}'.encode()
    assert decoder.decode(frame, 0, small) == 0
    assert decoder.counts["oversize"] == 1 and decoder.kind == OTHER


def test_answers_and_notices_have_their_own_kinds(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    for frame, kind in (
        (b'{"result":null,"id":1}', CONTROL),
        (b'{"error":{"code":2,"msg":"Invalid request"},"id":1}', CONTROL),
        (b'{"e":"serverShutdown","E":1770123456789}', SHUTDOWN),
        (b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}', SHUTDOWN),
        (b'{"e":"kline","s":"BTCUSDT","k":{"o":"1"}}', OTHER),
    ):
        assert decoder.decode(frame, 0, out) == 0
        assert decoder.kind == kind, frame
    assert decoder.counts["ignored"] == 5


# ---- snapshots


def test_a_snapshot_is_a_clear_and_its_levels(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    payload = b'{"lastUpdateId":1027024,"bids":[["4.00","431.00000000"],["3.99","1"]],"asks":[["4.01","12"]]}'
    assert decoder.decode_snapshot(payload, 0, 5, out) == 4
    rows = out[:4]
    assert rows["kind"].tolist() == [Kind.CLEAR] + [Kind.LEVEL] * 3
    assert (rows["flags"] & Flag.SNAPSHOT).all() and rows["a"].tolist() == [1027024] * 4
    assert (rows["flags"] & Flag.LAST).tolist() == [0, 0, 0, Flag.LAST]
    assert rows["px"].tolist() == [0, 400, 399, 401] and rows["ts_event"].tolist() == [NAT] * 4
    spaced = json.dumps(json.loads(payload)).encode()
    reordered = json.dumps(dict(reversed(json.loads(payload).items()))).encode()
    fast = rows.copy()
    for other in (spaced, reordered):
        assert decoder.decode_snapshot(other, 0, 5, out) == 4
        assert out[:4].tobytes() == fast.tobytes()
    assert decoder.counts["fallback"] == 1


def test_an_empty_snapshot_is_one_clear(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    assert decoder.decode_snapshot(b'{"lastUpdateId":7,"bids":[],"asks":[]}', 3, 0, out) == 1
    assert out[0]["kind"] == Kind.CLEAR and out[0]["flags"] == Flag.SNAPSHOT | Flag.LAST and out[0]["instrument"] == 3


def test_mutated_snapshots_never_give_a_part_of_a_book(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    rng = random.Random(3)
    levels = [[f"{n}.00000000", "1.50000000"] for n in range(1, 6)]
    payload = json.dumps({"lastUpdateId": 99, "bids": levels, "asks": levels}, separators=(",", ":")).encode()
    kept = 0
    for _ in range(5000):
        frame = mutated(rng, payload, [payload])
        n = decoder.decode_snapshot(frame, 0, 0, out)
        try:
            book = json.loads(frame)
            expected = [
                (_count(px, BTC.tick_size), _count(qty, BTC.lot_size))
                for px, qty in book["bids"] + book["asks"]
            ]
            _int(book, "lastUpdateId")
        except (ValueError, KeyError, TypeError, Rejected):
            assert n == 0 or all(len(level) > 2 for level in book["bids"] + book["asks"] if len(level) != 2)
            continue
        assert n == 1 + len(expected), frame
        assert [(int(r["px"]), int(r["qty"])) for r in out[1:n]] == expected
        kept += 1
    assert kept > 500


def test_a_snapshot_for_an_unknown_instrument_is_counted(decoder: MarketDecoder, out: np.ndarray[Any, Any]) -> None:
    assert decoder.decode_snapshot(b'{"lastUpdateId":7,"bids":[],"asks":[]}', 77, 0, out) == 0
    assert decoder.counts["unknown_symbol"] == 1


def test_many_symbols_are_told_apart(out: np.ndarray[Any, Any]) -> None:
    many = [Instrument(n, "binance", f"S{n:03d}USDT", Decimal(1).scaleb(-(n % 7)), Decimal("0.1")) for n in range(400)]
    decoder = MarketDecoder(many)
    for n in range(400):
        frame = f'{{"u":{n},"s":"S{n:03d}USDT","b":"7","B":"1","a":"8","A":"1.0"}}'.encode()
        assert decoder.decode(frame, 0, out) == 2
        assert out[0]["instrument"] == n and out[0]["px"] == 7 * 10 ** (n % 7)
    assert decoder.decode(b'{"u":1,"s":"S400USDT","b":"7","B":"1","a":"8","A":"1.0"}', 0, out) == 0
    assert decoder.counts["unknown_symbol"] == 1 and decoder.counts["fallback"] == 0


def test_one_symbol_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        MarketDecoder([BTC, BTC])
