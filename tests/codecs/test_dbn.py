"""DBN: records to rows, proven by recordings, and by records built from the specification."""

from __future__ import annotations

import struct
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hftlab.codecs.dbn import MAX_RECORD_ROWS, DbnDecoder, bars, read_metadata
from hftlab.core.errors import ProtocolError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, NO_PX, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_convert import TARGETS, dbn_levels, dbn_mbo, dbn_metadata, dbn_price

FUZZ_INPUTS = 100_000
UNDEFINED = (1 << 63) - 1
_LAYOUTS = [(1, 360, 200, 22), (2, 400, 200, 71), (3, 520, 238, 71)]
NANO = 1_000_000_000


def _read(path: Path) -> bytes:
    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
        return bytes(stream.read())


def _decoder(data: bytes, *others: DbnDecoder) -> DbnDecoder:
    metadata = read_metadata(data)
    assert metadata is not None
    return DbnDecoder(metadata, [i for other in others for i in other.instruments])


def _rows(data: bytes, decoder: DbnDecoder, piece: int = 1 << 20) -> RowArray:
    """Decode in pieces, as a file is read."""
    out, parts, rest = new_rows(4096), [], b""
    for at in range(decoder.metadata.length, len(data), piece):
        rest += data[at : at + piece]
        while True:
            taken, n = decoder.decode(rest, out)
            rest = rest[taken:]
            parts.append(out[:n].copy())
            if taken == 0 or not rest:
                break
    assert rest == b""
    return join_rows(parts)


def _built(*records: bytes, version: int = 3) -> tuple[RowArray, DbnDecoder, list[tuple[int, str]]]:
    data = dbn_metadata(version, 0, {5602: "ESM4"}) + b"".join(records)
    metadata = read_metadata(data)
    assert metadata is not None
    told: list[tuple[int, str]] = []
    decoder = DbnDecoder(metadata, on_broken=lambda offset, reason: told.append((offset - metadata.length, reason)))
    out = new_rows(512)
    taken, n = decoder.decode(data[metadata.length :], out)
    assert taken <= len(data) - metadata.length
    return out[:n], decoder, told


def test_the_recorded_snapshot_gives_the_documented_book(shared_data: Path) -> None:
    definition = _read(shared_data / "l3" / "orderbooks_definition.dbn.zst")
    known = _decoder(definition)
    assert len(_rows(definition, known)) == 0
    assert (known.instruments[0].tick_size, known.instruments[0].quote) == (Decimal("0.25"), "USD")
    data = _read(next((shared_data / "l3").glob("orderbooks_mbo*.dbn.zst")))
    decoder = _decoder(data, known)
    rows = _rows(data, decoder, 10_007)
    assert len(decoder.instruments) == 1, "the definition and the orders are one instrument's"
    orders: dict[int, list[int]] = {}
    unknown = 0
    for row in rows:
        kind, reference = int(row["kind"]), int(row["a"])
        if kind in (Kind.ADD, Kind.REPLACE):
            unknown += kind == Kind.REPLACE and reference not in orders
            orders[reference] = [int(row["flags"]) & 3, int(row["px"]), int(row["qty"])]
        elif kind == Kind.REDUCE:
            unknown += reference not in orders
            orders[reference][2] -= int(row["qty"])
            if orders[reference][2] == 0:
                del orders[reference]
    bids, asks = ({px for side, px, _ in orders.values() if side == flag} for flag in (Flag.BID, Flag.ASK))
    touch = [sum(q for _, px, q in orders.values() if px == best) for best in (max(bids), min(asks))]
    assert (unknown, len(bids), len(asks)) == (0, 976, 571)
    px = decoder.instruments[0].px
    assert (px(max(bids)), px(min(asks)), touch) == (Decimal("5214.00"), Decimal("5214.25"), [28, 17])


def test_recorded_trades_resample_to_the_recorded_bars(shared_data: Path) -> None:
    folder = shared_data / "bars"
    trades = _read(next(folder.glob("futures_trades*")))
    decoder = _decoder(trades)
    rows = _rows(trades, decoder)
    told = _read(next(folder.glob("futures_ohlcv*")))
    metadata = read_metadata(told)
    assert metadata is not None
    (number,) = (n for n, symbol in metadata.symbols.items() if symbol == decoder.instruments[0].symbol)
    minutes = rows["ts_event"] // (60 * NANO) * (60 * NANO)
    same = 0
    for minute in np.unique(minutes):
        one = rows[minutes == minute]
        (bar,) = (b for b in bars(told, metadata) if b["instrument"] == number and b["ts_event"] == minute)
        px = one["px"]
        same += (px[0], px.max(), px.min(), px[-1], one["qty"].sum()) == tuple(bar.tolist()[5:])
    assert same == 4


def test_recorded_quotes_carry_the_same_trades_as_the_trades_file(shared_data: Path) -> None:
    folder = shared_data / "bars"
    quotes, trades = (_read(next(folder.glob(f"futures_{kind}*"))) for kind in ("mbp-1", "trades"))
    both = [_rows(data, _decoder(data)) for data in (quotes, trades)]
    told = [rows[rows["kind"] == Kind.TRADE][["ts_event", "px", "qty", "b"]].tolist() for rows in both]
    assert told[0] == told[1] and len(told[1]) == 120
    quote = both[0][both[0]["kind"] == Kind.QUOTE]
    assert (quote["px"][quote["flags"] & Flag.BID > 0] < quote["px"][quote["flags"] & Flag.ASK > 0]).all()


def test_each_order_action_becomes_its_row() -> None:
    px = 5214 * NANO
    rows, decoder, told = _built(
        dbn_mbo(b"R", b"N", 0, UNDEFINED, 0, flags=32),
        dbn_mbo(b"A", b"B", 7, px, 5, flags=0),
        dbn_mbo(b"M", b"B", 7, px + 1, 3),
        dbn_mbo(b"T", b"A", 0, px, 1, flags=0),
        dbn_mbo(b"F", b"B", 7, px, 1, flags=0),
        dbn_mbo(b"C", b"B", 7, px, 1),
        dbn_mbo(b"N", b"N", 0, UNDEFINED, 0),
        dbn_mbo(b"A", b"A", 0, UNDEFINED, 0, flags=128 | 64),
    )
    bid, ask, last = Flag.BID, Flag.ASK, Flag.LAST
    assert [(r["kind"], r["flags"], r["px"], r["qty"], r["a"], r["b"]) for r in rows] == [
        (Kind.CLEAR, Flag.SNAPSHOT, 0, 0, 77, 0),
        (Kind.ADD, bid, px, 5, 7, 0),
        (Kind.REPLACE, bid | last, px + 1, 3, 7, 7),
        (Kind.TRADE, ask, px, 1, 0, 77),
        (Kind.TRADE, ask | Flag.MAKER | Flag.NON_PRINTABLE, px, 1, 7, 77),
        (Kind.REDUCE, bid | last, px, 1, 7, 0),
        (Kind.QUOTE, ask | last, NO_PX, 0, 77, 0),
    ]
    assert (rows["ts_event"] == 900).all() and (rows["ts_recv"] == 1_000).all() and (rows["source"] == 1).all()
    assert told == [] and decoder.instruments[0].tick_size == Decimal("1e-9")


def test_ten_levels_become_the_changes_between_two_records() -> None:
    px, step = 5214 * NANO, NANO // 4
    first = dbn_levels([(px, 28, 9), (px - step, 5, 1)], [(px + step, 17, 8)])
    second = dbn_levels([(px, 20, 8), (px - 2 * step, 1, 1)], [(px + step, 17, 8), (px + 2 * step, 4, 2)])
    rows, _, _ = _built(
        dbn_price(10, b"A", b"B", px, 2, first), dbn_price(10, b"T", b"B", px + step, 2, second, flags=0)
    )
    bid, ask, last = Flag.BID, Flag.ASK, Flag.LAST
    assert [(r["kind"], r["flags"], r["px"], r["qty"], r["b"]) for r in rows] == [
        (Kind.CLEAR, Flag.SNAPSHOT, 0, 0, 0),
        (Kind.LEVEL, bid, px, 28, 9),
        (Kind.LEVEL, bid, px - step, 5, 1),
        (Kind.LEVEL, ask | last, px + step, 17, 8),
        (Kind.TRADE, bid, px + step, 2, 77),
        (Kind.LEVEL, bid, px, 20, 8),
        (Kind.LEVEL, bid, px - step, 0, 0),
        (Kind.LEVEL, bid, px - 2 * step, 1, 1),
        (Kind.LEVEL, ask, px + 2 * step, 4, 2),
    ]


def test_random_ten_level_books_are_what_their_changes_add_up_to() -> None:
    chance = np.random.default_rng(5)
    books, records = [], []
    for _ in range(200):
        sides = []
        for sign in (-1, 1):
            px = np.sort(chance.choice(30, chance.integers(0, 11), replace=False)) * sign + 100
            sides.append([(int(p), int(chance.integers(1, 4)), int(chance.integers(1, 3))) for p in px])
        books.append(sides)
        records.append(dbn_price(10, b"A", b"N", UNDEFINED, 0, dbn_levels(sides[0], sides[1])))
    held: dict[int, dict[int, tuple[int, int]]] = {Flag.BID: {}, Flag.ASK: {}}
    data = dbn_metadata(2, 2, {}) + b"".join(records)
    rows, at = _rows(data, _decoder(data)), 0
    # a record without a change gives no row, and so no LAST: compare after those that have one
    for sides, before in zip(books, [None, *books[:-1]], strict=True):
        while sides != before and at < len(rows):
            row, at = rows[at], at + 1
            if row["kind"] == Kind.LEVEL:
                side, px = held[int(row["flags"]) & 3], int(row["px"])
                side.pop(px, None)
                if row["qty"]:
                    side[px] = (int(row["qty"]), int(row["b"]))
            if row["flags"] & Flag.LAST:
                break
        for flag, told in zip((Flag.BID, Flag.ASK), sides, strict=True):
            assert held[flag] == {px: (qty, count) for px, qty, count in told}
    assert at == len(rows)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_metadata_of_each_version_names_the_instruments(version: int) -> None:
    metadata = read_metadata(dbn_metadata(version, 2, {5602: "ESM4", 7: "NQM4"}))
    assert metadata is not None
    assert (metadata.version, metadata.dataset, metadata.schema) == (version, "GLBX.MDP3", "mbp-10")
    assert metadata.symbols == {5602: "ESM4", 7: "NQM4"}
    assert metadata.end_ns == NAT and not metadata.ts_out


@pytest.mark.parametrize(("version", "length", "at", "width"), _LAYOUTS)
def test_a_definition_of_each_version_gives_tick_and_symbol(version: int, length: int, at: int, width: int) -> None:
    record = bytearray(length)
    struct.pack_into("<BBHIQ", record, 0, length // 4, 0x13, 1, 5602, 900)
    struct.pack_into("<q", record, 24, NANO // 4)
    record[at : at + 4] = b"ESM4"
    record[at + width + 26 : at + width + 28] = b"ES"
    money = 224 if version == 3 else 186
    record[money : money + 3] = b"USD"
    rows, decoder, told = _built(bytes(record), dbn_mbo(b"A", b"B", 7, 5214 * NANO, 5), version=version)
    (instrument,) = decoder.instruments
    assert (instrument.symbol, instrument.base, instrument.quote) == ("ESM4", "ES", "USD")
    assert instrument.tick_size == Decimal("0.25")
    assert (rows["px"].tolist(), told) == ([5214 * 4], [])


def test_broken_records_are_told_with_their_offsets_and_the_rest_is_there() -> None:
    def good(order: int) -> bytes:
        return dbn_mbo(b"A", b"B", order, 5214 * NANO, 5)

    no_length = bytes([1]) + good(4)[1:]
    rows, decoder, told = _built(
        good(1),
        dbn_mbo(b"?", b"B", 2, 5214 * NANO, 5),
        good(2),
        dbn_mbo(b"A", b"N", 2, 5214 * NANO, 5),
        no_length,
        good(3),
        dbn_mbo(b"A", b"B", 2, UNDEFINED, 5),
        dbn_mbo(b"A", b"B", 2, 5214 * NANO, 5, instrument=9),
        good(5),
    )
    assert rows["a"].tolist() == [1, 2, 3, 5]
    assert [offset for offset, _ in told] == [56, 168, 224, 336, 392]
    assert [reason.split()[0] for _, reason in told] == ["action", "side", "a", "price", "its"]
    assert decoder.counts["broken"] == 5


def test_a_price_off_the_grid_of_its_definition_is_a_broken_record() -> None:
    data = dbn_metadata(3, 0, {5602: "ESM4"}) + dbn_mbo(b"A", b"B", 1, 5214 * NANO + 1, 5)
    metadata = read_metadata(data)
    assert metadata is not None
    told: list[str] = []
    given = Instrument(4, "GLBX.MDP3", "ESM4", Decimal("0.25"), Decimal(1))
    decoder = DbnDecoder(metadata, [given], on_broken=lambda offset, reason: told.append(reason))
    assert decoder.decode(data[metadata.length :], new_rows(MAX_RECORD_ROWS)) == (56, 0)
    assert told == ["price is off the instrument's grid"]


def test_two_publishers_of_one_instrument_are_two_instruments() -> None:
    first = dbn_mbo(b"A", b"B", 1, 5214 * NANO, 5)
    second = first[:2] + (2).to_bytes(2, "little") + first[4:]
    rows, decoder, _ = _built(first, second)
    assert rows["instrument"].tolist() == [0, 1]
    assert [i.venue for i in decoder.instruments] == ["GLBX.MDP3", "GLBX.MDP3/2"]


def test_more_instruments_than_the_table_begins_with_keep_their_levels() -> None:
    px = 5214 * NANO
    record = dbn_price(10, b"A", b"B", px, 2, dbn_levels([(px, 28, 9)], []))
    many = [record[:4] + n.to_bytes(4, "little") + record[8:] for n in range(200)]
    data = dbn_metadata(3, 2, {}) + b"".join(many + many)
    rows = _rows(data, _decoder(data))
    assert rows["kind"].tolist() == [Kind.CLEAR, Kind.LEVEL] * 200, "the second time nothing has changed"
    assert rows["instrument"].tolist() == [n for n in range(200) for _ in range(2)]


def test_a_stream_of_another_kind_or_version_is_refused_with_the_reason() -> None:
    with pytest.raises(ProtocolError, match="not a DBN stream"):
        read_metadata(b"PK\3\4....")
    with pytest.raises(ProtocolError, match="version 4"):
        read_metadata(b"DBN\4" + bytes(4))
    with pytest.raises(ProtocolError, match="cannot be read"):
        broken = bytearray(dbn_metadata(3, 0, {1: "A"}))
        broken[112:116] = b"\xff\xff\0\0"
        read_metadata(bytes(broken))


def test_no_input_breaks_the_dbn_decoder() -> None:
    feed, seeds = TARGETS["dbn"]()
    fuzz(feed, seeds, FUZZ_INPUTS)
