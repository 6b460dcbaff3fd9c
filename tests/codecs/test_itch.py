"""TotalView-ITCH: real packets field by field, every type of the specification, books, cut files, a plain reference."""

from __future__ import annotations

import csv
import ctypes
import gzip
import json
import mmap
import struct
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import types

from hftlab.books import L3Book
from hftlab.codecs import itch
from hftlab.codecs.itch import (
    MESSAGES,
    ItchDecoder,
    ItchFile,
    fields,
    frame,
    message_bytes,
    message_fields,
    session_date,
    session_midnight_ns,
    text_of,
)
from hftlab.codecs.moldudp import MoldUDPClient
from hftlab.codecs.pcap import PcapFile
from hftlab.core.errors import ConfigError, OffGridError, ProtocolError
from hftlab.core.rows import CONT, NAT, NO_PX, Flag, Kind, RowArray, join_rows, payload_bytes
from hftlab.core.status import Status
from hftlab.kernels.jit import kernel
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_itch import TARGETS

DAY = date(2023, 8, 22)
MIDNIGHT = 1_692_676_800 * 10**9
HEAD = struct.pack(">HH", 0x1234, 0xABCD) + (34_200_000_000_001).to_bytes(6, "big")


def decoded(data: bytes, day: date = DAY, capacity: int = 1024) -> tuple[RowArray, ItchDecoder, int]:
    decoder, parts, at = ItchDecoder(day, capacity=capacity), [], 0
    while True:
        rows, end = decoder.decode(data, at)
        parts.append(rows.copy())
        if end == at:
            return join_rows(parts), decoder, at
        at = end


# --- the reference: written from the specification with struct, sharing nothing with the decoder ----------------------

LAST, BID, ASK = int(Flag.LAST), int(Flag.BID), int(Flag.ASK)


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def reference(message: bytes, day: date = DAY) -> tuple[int, ...] | None:
    """Return (kind, span, ts_event, instrument, flags, code, px, qty, a, b), or None where the message is no good."""
    kind = chr(message[0])
    locate, tracking = struct.unpack(">HH", message[1:5])
    ts, body = MIDNIGHT + number(message[5:11]), message[11:]
    sides = {"B": BID, "S": ASK}

    def one(row_kind: Kind, px: int = NO_PX, qty: int = 0, a: int = 0, b: int = 0, flags: int = 0) -> tuple[int, ...]:
        return int(row_kind), 0, ts, locate, LAST | flags, tracking, px, qty, a, b

    def status(
        code: Status, px: int = NO_PX, qty: int = 0, a: int = 0, b: int = 0, flags: int = 0
    ) -> tuple[int, ...] | None:
        return None if qty >= 1 << 63 else (int(Kind.STATUS), 1, ts, locate, LAST | flags, int(code), px, qty, a, b)

    def by(character: str, words: dict[str, Status]) -> Status:
        return words.get(character, Status.UNKNOWN)

    if kind in "AF":
        ref, side, shares, _, px = struct.unpack(">QcI8sI", body[:25])
        flag = sides.get(side.decode("latin-1"))
        return None if flag is None else one(Kind.ADD, px, shares, ref, number(body[25:]), flag)
    if kind == "E":
        ref, shares, match = struct.unpack(">QIQ", body)
        return one(Kind.EXECUTE, NO_PX, shares, ref, match)
    if kind == "C":
        ref, shares, match, printable, px = struct.unpack(">QIQcI", body)
        return one(Kind.EXECUTE, px, shares, ref, match, int(Flag.NON_PRINTABLE) if printable == b"N" else 0)
    if kind == "X":
        ref, shares = struct.unpack(">QI", body)
        return one(Kind.REDUCE, NO_PX, shares, ref)
    if kind == "D":
        return one(Kind.DELETE, a=number(body))
    if kind == "U":
        old, new, shares, px = struct.unpack(">QQII", body)
        return one(Kind.REPLACE, px, shares, old, new)
    if kind == "P":
        ref, side, shares, _, px, match = struct.unpack(">QcI8sIQ", body)
        flag = BID if side == b"S" else ASK if side == b"B" and day < date(2014, 7, 14) else 0
        return one(Kind.TRADE, px, shares, match, ref, flag)
    if kind == "Q":
        shares, _, px, match, cross = struct.unpack(">Q8sIQB", body)
        if shares == 0:
            return status(Status.AUCTION_EMPTY, a=match, b=cross)
        return None if shares >= 1 << 63 else one(Kind.TRADE, px, shares, match, cross, int(Flag.CROSS))
    character = chr(body[0])
    if kind == "S":
        day_words = {
            "O": Status.MESSAGES_START, "S": Status.SYSTEM_OPEN, "Q": Status.MARKET_OPEN, "M": Status.MARKET_CLOSE,
            "E": Status.SYSTEM_CLOSE, "C": Status.MESSAGES_END,
        }  # fmt: skip
        return status(by(character, day_words), a=body[0])
    if kind == "R":
        stock, category, _, lot, _, _, _, authenticity = struct.unpack(">8sBcIcc2sc", body[:19])
        listed = Status.LISTED_TEST if authenticity == b"T" else Status.LISTED
        return status(listed, qty=lot, a=number(stock), b=category)
    if kind == "H":
        _, state, _, reason = struct.unpack(">8scc4s", body)
        states = {"H": Status.HALTED, "P": Status.PAUSED, "Q": Status.QUOTING, "T": Status.TRADING}
        return status(by(state.decode("latin-1"), states), a=number(reason), b=state[0])
    if kind == "Y":
        action = chr(body[8])
        restricted = Status.SHORT_SALE_RESTRICTED
        words = {"0": Status.SHORT_SALE_FREE, "1": restricted, "2": restricted}
        return status(by(action, words), a=ord(action))
    if kind == "L":
        mpid, _, _, _, state = struct.unpack(">4s8sccc", body)
        return status(Status.PARTICIPANT, a=number(mpid), b=state[0])
    if kind == "V":
        one_, two, three = struct.unpack(">QQQ", body)
        return status(Status.BREAKER_LEVELS, qty=one_, a=two, b=three)
    if kind == "W":
        return status(Status.BREAKER_BREACHED, a=body[0] & 15)
    if kind == "K":
        _, release, qualifier, px = struct.unpack(">8sIcI", body)
        words = {"A": Status.RELEASE_EXPECTED, "C": Status.RELEASE_CANCELED}
        return status(by(qualifier.decode("latin-1"), words), px, a=release)
    if kind == "J":
        _, px, upper, lower, extension = struct.unpack(">8sIIII", body)
        return status(Status.AUCTION_COLLAR, px, extension, lower, upper)
    if kind == "h":
        _, market, action_ = struct.unpack(">8sBc", body)
        words = {"H": Status.VENUE_HALTED, "T": Status.VENUE_RESUMED}
        return status(by(action_.decode("latin-1"), words), a=market)
    if kind == "I":
        paired, shares, side, _, _, near, px, _, _ = struct.unpack(">QQc8sIIIcc", body)
        return status(Status.IMBALANCE, px, shares, paired, near, sides.get(side.decode("latin-1"), 0))
    if kind == "N":
        interest = {"B": BID, "S": ASK, "A": BID | ASK}
        return status(Status.RETAIL_INTEREST, flags=interest.get(chr(body[8]), 0))
    if kind == "O":
        _, _, _, _, near, _, lower, upper = struct.unpack(">8scIIIQII", body)
        return status(Status.PRICE_DISCOVERY, near, a=lower, b=upper)
    assert kind == "B"
    return status(Status.TRADE_BROKEN, a=number(body))


SIZES = {
    "S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35, "h": 21, "A": 36, "F": 40, "E": 31,
    "C": 36, "X": 23, "D": 19, "U": 35, "P": 44, "Q": 40, "B": 19, "I": 50, "N": 20, "O": 48,
}  # fmt: skip
CHARACTERS = {  # where a type's telling character stands, and what the specification allows there
    "S": (11, b"OSQMEC"), "R": (29, b"PT"), "H": (19, b"HPQT"), "Y": (19, b"012"), "W": (11, b"123"), "K": (23, b"AC"),
    "h": (20, b"HT"), "A": (19, b"BS"), "F": (19, b"BS"), "C": (31, b"YN"), "P": (19, b"BS"), "Q": (39, b"OCHI"),
    "I": (27, b"BSNO"), "N": (19, b"BSAN"),
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of a known type and length: random bytes, most often with an allowed telling character."""
    kind = draw(st.sampled_from(sorted(SIZES)))
    body = bytearray(draw(st.binary(min_size=SIZES[kind], max_size=SIZES[kind])))
    body[0] = ord(kind)
    if kind in CHARACTERS and draw(st.integers(0, 9)):
        at, allowed = CHARACTERS[kind]
        body[at] = draw(st.sampled_from(allowed))
    if kind in "QIV" and draw(st.integers(0, 4)):
        at = 19 if kind == "I" else 11
        body[at] &= 0x7F
        if kind == "Q" and draw(st.booleans()):
            body[11:19] = bytes(8)
    return bytes(body)


def flat(row: Any) -> tuple[int, ...]:
    names = ("kind", "span", "ts_event", "instrument", "flags", "code", "px", "qty", "a", "b")
    return tuple(int(row[name]) for name in names)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages(), max_size=40), st.integers(2, 20), st.booleans())
def test_rows_equal_those_of_the_plain_reference(stream: list[bytes], capacity: int, is_old: bool) -> None:
    day = date(2014, 7, 11) if is_old else DAY
    rows, decoder, used = decoded(frame(stream), day, capacity)
    shift = session_midnight_ns(day) - MIDNIGHT
    expected = [row for row in (reference(message, day) for message in stream) if row is not None]
    heads = rows[rows["kind"] != CONT]
    assert [flat(row) for row in heads] == [(*row[:2], row[2] + shift, *row[3:]) for row in expected]
    assert used == len(frame(stream)) and decoder.messages == len(expected)
    assert decoder.skipped["impossible_field"] == len(stream) - len(expected) == len(decoder.problems)
    told = [message for message in stream if reference(message, day) is not None]
    at = 0
    for message in told:
        if rows["span"][at]:
            assert payload_bytes(rows[at + 1 : at + 2]) == message
            assert rows["span"][at + 1] == 1 and rows["kind"][at + 1] == CONT
        at += 1 + int(rows["span"][at])
    assert at == len(rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages(), max_size=20), st.binary(max_size=40), st.data())
def test_a_stream_cut_anywhere_and_continued_gives_the_same_rows(
    stream: list[bytes], noise: bytes, data: st.DataObject
) -> None:
    whole = frame(stream) + noise
    cut = data.draw(st.integers(0, len(whole)))
    expected, _, used = decoded(whole)
    first, _, at = decoded(whole[:cut])
    second, _, end = decoded(whole[at:])
    assert join_rows([first, second]).tobytes() == expected.tobytes() and at + end == used


# --- every type of the specification, laid out by hand ----------------------------------------------------------------


def test_the_lengths_are_those_of_the_specification() -> None:
    assert {kind: message.size for kind, message in MESSAGES.items()} == SIZES


BY_HAND: list[tuple[bytes, dict[str, Any], tuple[Any, ...]]] = [
    # body after the header; fields; kind or status, px, qty, a, b, flags besides LAST
    (b"S" + HEAD + b"M", {"event_code": "M"}, (Status.MARKET_CLOSE, NO_PX, 0, ord("M"), 0, 0)),
    (
        b"R" + HEAD + b"ZXIET   QN\0\0\0\x64NCZ TN 1N\0\0\0\x03Y",
        {
            "stock": "ZXIET", "market_category": "Q", "financial_status_indicator": "N", "round_lot_size": 100,
            "round_lots_only": "N", "issue_classification": "C", "issue_sub_type": "Z", "authenticity": "T",
            "short_sale_threshold_indicator": "N", "ipo_flag": " ", "luld_reference_price_tier": "1", "etp_flag": "N",
            "etp_leverage_factor": 3, "inverse_indicator": "Y",
        },
        (Status.LISTED_TEST, NO_PX, 100, number(b"ZXIET   "), ord("Q"), 0),
    ),
    (
        b"V" + HEAD + struct.pack(">QQQ", 407_012_345_678, 380_000_000_000, 350_000_000_001),
        {"level_1": Decimal("4070.12345678"), "level_2": Decimal(3800), "level_3": Decimal("3500.00000001")},
        (Status.BREAKER_LEVELS, NO_PX, 407_012_345_678, 380_000_000_000, 350_000_000_001, 0),
    ),
    (b"W" + HEAD + b"2", {"breached_level": "2"}, (Status.BREAKER_BREACHED, NO_PX, 0, 2, 0, 0)),
    (
        b"K" + HEAD + b"NEWCO   " + struct.pack(">IcI", 37_800, b"A", 170_000),
        {
            "stock": "NEWCO", "ipo_quotation_release_time": 37_800, "ipo_quotation_release_qualifier": "A",
            "ipo_price": Decimal(17),
        },
        (Status.RELEASE_EXPECTED, 170_000, 0, 37_800, 0, 0),
    ),
    (
        b"h" + HEAD + b"AAPL    BH",
        {"stock": "AAPL", "market_code": "B", "operational_halt_action": "H"},
        (Status.VENUE_HALTED, NO_PX, 0, ord("B"), 0, 0),
    ),
    (
        b"Q" + HEAD + struct.pack(">Q8sIQc", 1_234_567, b"AAPL    ", 1_771_500, 42, b"C"),
        {"shares": 1_234_567, "stock": "AAPL", "cross_price": Decimal("177.15"), "match_number": 42, "cross_type": "C"},
        (Kind.TRADE, 1_771_500, 1_234_567, 42, ord("C"), Flag.CROSS),
    ),
    (b"B" + HEAD + struct.pack(">Q", 2**64 - 1), {"match_number": 2**64 - 1},
     (Status.TRADE_BROKEN, NO_PX, 0, 2**64 - 1, 0, 0)),
    (
        b"I" + HEAD + struct.pack(">QQc8sIIIcc", 900, 300, b"S", b"AAPL    ", 10_000, 20_000, 30_000, b"O", b"L"),
        {
            "paired_shares": 900, "imbalance_shares": 300, "imbalance_direction": "S", "stock": "AAPL",
            "far_price": Decimal(1), "near_price": Decimal(2), "current_reference_price": Decimal(3), "cross_type": "O",
            "price_variation_indicator": "L",
        },
        (Status.IMBALANCE, 30_000, 300, 900, 20_000, Flag.ASK),
    ),
    (b"N" + HEAD + b"AAPL    A", {"stock": "AAPL", "interest_flag": "A"},
     (Status.RETAIL_INTEREST, NO_PX, 0, 0, 0, Flag.BID | Flag.ASK)),
    (
        b"O" + HEAD + struct.pack(">8scIIIQII", b"DLCR    ", b"Y", 1, 2, 250_000, 34_200_000_000_000, 200_000, 300_000),
        {
            "stock": "DLCR", "open_eligibility_status": "Y", "minimum_allowable_price": Decimal("0.0001"),
            "maximum_allowable_price": Decimal("0.0002"), "near_execution_price": Decimal(25),
            "near_execution_time": 34_200_000_000_000, "lower_price_range_collar": Decimal(20),
            "upper_price_range_collar": Decimal(30),
        },
        (Status.PRICE_DISCOVERY, 250_000, 0, 200_000, 300_000, 0),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "told", "row"), BY_HAND, ids=lambda v: chr(v[0]) if isinstance(v, bytes) else "")
def test_types_without_a_recorded_packet_follow_the_specification(
    message: bytes, told: dict[str, Any], row: tuple[Any, ...]
) -> None:
    rows, decoder, _ = decoded(frame([message]))
    header = {
        "message_type": chr(message[0]), "stock_locate": 0x1234, "tracking_number": 0xABCD,
        "timestamp": 34_200_000_000_001,
    }  # fmt: skip
    assert fields(rows, {0x1234: "AAPL"}) == message_fields(message) == {**header, **told}
    assert message_bytes({**header, **told}) == message
    what, px, qty, a, b, flags = row
    kind = what if isinstance(what, Kind) else Kind.STATUS
    code = 0xABCD if kind is Kind.TRADE else int(what)
    got = rows[0]
    assert (int(got["kind"]), int(got["code"])) == (kind, code)
    assert tuple(int(got[name]) for name in ("px", "qty", "a", "b")) == (px, qty, a, b)
    assert int(got["flags"]) == Flag.LAST | flags and int(got["instrument"]) == 0x1234
    assert int(got["ts_event"]) == MIDNIGHT + 34_200_000_000_001
    assert decoder.messages == 1


# --- real packets, decoded by someone else ----------------------------------------------------------------------------

OTHER_NAMES = {"canceledshares": "cancelledshares", "crossshares": "shares", "locatecode": "stocklocate"}
PACKETS = [
    "AddOrderNoMPID", "AddOrderWithMPID", "CrossTrade", "LULDAuctionCollar", "MarketParticipantPosition",
    "NetOrderImbalanceIndicator", "NonCrossTrade", "OrderCancel", "OrderDelete", "OrderExecuted",
    "OrderExecutedWithPrice", "OrderReplace", "RegSHORestriction", "StockTradingAction", "SystemEvent",
]  # fmt: skip


def leaves(tree: Any, found: dict[str, str]) -> dict[str, str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves(value, found)
        elif f"{key}_tree" not in tree:
            found[key.rpartition(".")[2]] = value
    return found


@pytest.mark.parametrize("name", PACKETS)
def test_real_packets_equal_an_independent_decode_field_by_field(shared_data: Path, name: str) -> None:
    folder = shared_data / "itch" / "packets"
    capture = PcapFile(folder / f"{name}.pcap")
    others = json.loads((folder / f"{name}.pcap.json").read_text())["packets"]
    client = MoldUDPClient()
    decoder = ItchDecoder(DAY)
    for datagram, other in zip(capture, others, strict=True):
        (tree,) = (value for key, value in other.items() if key.startswith("omi."))
        told = leaves(tree, {})
        client.next_sequence = int(told.pop("sequencenumber"))  # each was cut out of a stream of its own
        (data,) = client.receive(datagram.payload, datagram.ts_ns)
        assert data.count == int(told.pop("messagecount")) == 1 and told.pop("session") == ""
        blocks = getattr(data, "blocks", b"")
        assert int(told.pop("messagelength")) == len(blocks) - 2
        told.pop("messageindex")
        rows, used = decoder.decode(blocks, 0, datagram.ts_ns)
        assert used == len(blocks) and int(rows["ts_recv"][0]) == datagram.ts_ns
        assert 0 < datagram.ts_ns - int(rows["ts_event"][0]) < 1_000_000_000, "captured just after the exchange's time"
        stocks = {int(told.get("stocklocate", 0)): told.get("stock", "")}
        for ours in (message_fields(blocks[2:]), fields(rows, stocks), fields(rows, stocks, decoder.midnight_ns)):
            plain = {key.replace("_", ""): value for key, value in ours.items()}
            assert len(plain) == len(told)
            for key, expected in told.items():
                got = plain[OTHER_NAMES.get(key, key)]
                assert got == (expected if isinstance(got, str) else type(got)(expected)), key
    assert capture.problems == [] and decoder.messages == len(others)


# --- books ------------------------------------------------------------------------------------------------------------


def test_books_equal_the_recorded_ten_levels_after_every_message(shared_data: Path) -> None:
    day = ItchFile(shared_data / "itch" / "synthetic_8009.itch", date(2024, 1, 2))
    book, after = L3Book(), {}
    for block in day:
        trace = book.trace(block, 10)
        for k, instrument in enumerate(trace.instrument.tolist()):
            line = np.stack([trace.ask_px[k], trace.ask_qty[k], trace.bid_px[k], trace.bid_qty[k]], axis=1)
            after.setdefault(instrument, []).append(line.reshape(-1))
    assert day.cut is None and day.decoder.messages == 8009 and not any(book.counts[k] for k in ("unknown", "bad"))
    assert day.decoder.stocks == {1: "AAPL", 2: "MSFT", 3: "GOOGL"}
    compared = 0
    for instrument, symbol in day.decoder.stocks.items():
        name = f"{symbol}_2024-01-02_34200000_57600000_orderbook_10.csv.gz"
        with gzip.open(shared_data / "itch" / name, "rt") as file:
            expected = np.array([[int(cell) for cell in line] for line in csv.reader(file)])
        expected[np.abs(expected) == 9_999_999_999] = NO_PX
        assert np.array_equal(np.array(after[instrument]), expected), symbol
        compared += len(expected)
    assert compared == 8000


def test_times_and_events_of_the_recorded_messages_agree(shared_data: Path) -> None:
    day = ItchFile(shared_data / "itch" / "synthetic_8009.itch", date(2024, 1, 2))
    rows = join_rows(block.copy() for block in day)
    kinds = {Kind.ADD: "1", Kind.REDUCE: "2", Kind.DELETE: "3", Kind.EXECUTE: "4"}
    for instrument, symbol in day.decoder.stocks.items():
        mine = rows[(rows["instrument"] == instrument) & (rows["kind"] != Kind.STATUS) & (rows["kind"] != CONT)]
        name = f"{symbol}_2024-01-02_34200000_57600000_message_10.csv.gz"
        with gzip.open(shared_data / "itch" / name, "rt") as file:
            expected = [line[:3] for line in csv.reader(file)]
        assert [[kinds[Kind(k)], str(ref)] for k, ref in zip(mine["kind"], mine["a"], strict=True)] == [
            line[1:] for line in expected
        ]
        seconds = (mine["ts_event"] - session_midnight_ns(date(2024, 1, 2))) / 1e9
        assert np.allclose(seconds, [float(line[0]) for line in expected], atol=1e-8, rtol=0)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_cut_file_says_where_and_keeps_everything_before(shared_data: Path) -> None:
    path = shared_data / "itch" / "day_start_cut.itch"
    day = ItchFile(path, date(2018, 1, 30))
    rows = join_rows(block.copy() for block in day)
    size, at, whole = path.stat().st_size, 0, 0
    raw = path.read_bytes()
    while at + 2 <= size and at + 2 + number(raw[at : at + 2]) <= size:
        at += 2 + number(raw[at : at + 2])
        whole += 1
    assert (day.cut, day.decoder.messages, whole) == (at, 101, 101) and day.decoder.problems == []
    assert int(rows["code"][0]) == Status.MESSAGES_START
    assert sorted(day.decoder.instruments) == list(range(1, 99))
    first = day.decoder.instruments[1]
    assert (first.symbol, first.tick_size, first.lot_size, first.quote) == ("A", Decimal("0.0001"), 1, "USD")


@pytest.fixture
def stream() -> bytes:
    chance = np.random.default_rng(5)
    kinds = chance.choice(sorted(SIZES), 6000)
    out = []
    for kind in kinds.tolist():
        body = bytearray(chance.bytes(SIZES[kind]))
        body[0] = ord(kind)
        if kind in CHARACTERS:
            at, allowed = CHARACTERS[kind]
            body[at] = allowed[int(chance.integers(len(allowed)))]
        body[11] &= 0x7F
        body[19 if kind == "I" else 11] &= 0x7F
        out.append(bytes(body))
    return frame(out)


@pytest.mark.parametrize("packing", ["plain", "gzip", "two gzip members"])
def test_a_file_read_in_windows_gives_the_rows_of_one_buffer(
    stream: bytes, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(itch, "_WINDOW", 2 * mmap.ALLOCATIONGRANULARITY)
    monkeypatch.setattr(itch, "_INFLATED", 1000)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "plain": bytes,
        "gzip": gzip.compress,
        "two gzip members": lambda data: gzip.compress(data[:777]) + gzip.compress(data[777:]) + bytes(7),
    }
    path = tmp_path / "day.itch"
    path.write_bytes(packers[packing](stream + b"\0\x13D"))
    day = ItchFile(path, DAY, capacity=100)
    rows = join_rows(block.copy() for block in day)
    assert rows.tobytes() == decoded(stream)[0].tobytes() and len(rows) > 6000
    assert day.cut == len(stream) and day.decoder.problems == []
    assert day.position >= (len(stream) if packing == "plain" else day.size - 20)
    assert join_rows(block.copy() for block in day).tobytes() == rows.tobytes(), "a second reading gives the same"


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_a_cut_archive_keeps_what_can_be_inflated_and_says_so(stream: bytes, keep: float, tmp_path: Path) -> None:
    packed = gzip.compress(stream)
    path = tmp_path / "01302019.NASDAQ_ITCH50.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    day = ItchFile(path)
    messages = sum(int((block["kind"] != CONT).sum()) for block in day)
    assert day.day == date(2019, 1, 30)
    assert keep * 5500 < messages <= 6000 and "gzip archive is cut at" in day.decoder.problems[0].reason


def test_a_broken_archive_is_a_problem_with_its_offset(stream: bytes, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(stream))
    packed[len(packed) // 2 :] = np.random.default_rng(1).bytes(len(packed) - len(packed) // 2)
    path = tmp_path / "day.gz"
    path.write_bytes(packed)
    day = ItchFile(path, DAY)
    rows, expected = join_rows(block.copy() for block in day), decoded(stream)[0]
    sound = int(0.45 * len(expected))  # a little of what is broken inflates to nonsense before it shows
    assert sound < len(rows) and rows[:sound].tobytes() == expected[:sound].tobytes()
    assert any("gzip archive is broken" in p.reason for p in day.decoder.problems)


def _starts(stream: bytes) -> list[int]:
    at, found = 0, []
    while at < len(stream):
        found.append(at)
        at += 2 + int.from_bytes(stream[at : at + 2], "big")
    return found


@pytest.mark.parametrize("packing", ["plain", "gzip"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), damages=st.integers(1, 6))
def test_a_wrong_length_costs_only_its_own_message(
    stream: bytes, packing: str, seed: int, damages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a length became: all other messages come, and the problem has the offset of the one that did not."""
    monkeypatch.setattr(itch, "_INFLATED", 5000)
    chance = np.random.default_rng(seed)
    starts = [*_starts(stream), len(stream)]
    hit = (5 * chance.choice((len(starts) - 2) // 5, damages, replace=False)).tolist()
    damaged, sound = bytearray(stream), bytearray(stream)
    for n in sorted(hit, reverse=True):
        at = starts[n]
        size = int.from_bytes(stream[at : at + 2], "big")
        near = [size + 1, size - 1, 0, 0xFFFF, 1, size ^ 0x100, size ^ 0x8000]
        wrong = [*near, int(chance.integers(1 << 16))][int(chance.integers(8))]
        damaged[at : at + 2] = (wrong if wrong != size else size + 2).to_bytes(2, "big")
        del sound[at : starts[n + 1]]
    path = tmp_path / "day.itch"
    path.write_bytes(gzip.compress(damaged) if packing == "gzip" else damaged)
    day = ItchFile(path, DAY, capacity=100)
    rows = join_rows(block.copy() for block in day)
    assert rows.tobytes() == decoded(bytes(sound))[0].tobytes()
    assert [p.offset for p in day.decoder.problems] == sorted(starts[n] for n in hit)
    assert day.decoder.skipped["wrong_length"] + day.decoder.skipped["unknown_type"] == damages and day.cut is None


def test_unknown_types_in_a_row_are_skipped_one_by_one(stream: bytes, tmp_path: Path) -> None:
    """A later revision's messages are no wrong lengths: their lengths lead to messages that are known."""
    strange = frame([b"z" + bytes(20)] * 500)
    starts = _starts(stream)
    data = stream[: starts[50]] + strange + stream[starts[50] :] + strange
    (tmp_path / "day.itch").write_bytes(data)
    day = ItchFile(tmp_path / "day.itch", DAY)
    rows = join_rows(block.copy() for block in day)
    assert rows.tobytes() == decoded(stream)[0].tobytes() and day.cut is None
    assert day.decoder.skipped == {"unknown_type": 1000, "wrong_length": 0, "impossible_field": 0}
    assert {p.reason for p in day.decoder.problems} == {"unknown message type 'z', 21 bytes"}


def test_noise_between_messages_is_told_with_its_length(stream: bytes, tmp_path: Path) -> None:
    noise = np.random.default_rng(8).bytes(300_000)
    at = _starts(stream)[3000]
    (tmp_path / "day.itch").write_bytes(stream[:at] + noise + stream[at:] + noise[:777])
    day = ItchFile(tmp_path / "day.itch", DAY)
    rows = join_rows(block.copy() for block in day)
    assert rows.tobytes() == decoded(stream)[0].tobytes() and day.cut is None
    assert [p.offset for p in day.decoder.problems] == [at, len(stream) + len(noise)]
    reasons = [p.reason for p in day.decoder.problems]
    assert reasons[0] == "the length here is wrong; 300000 bytes on, messages begin again"
    assert reasons[1] == "the length here is wrong; 777 bytes on, the stream ends, with no message before"


def test_an_empty_file_has_no_rows_and_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "day.itch").write_bytes(b"")
    day = ItchFile(tmp_path / "day.itch", DAY)
    assert list(day) == [] and day.cut is None


def test_leaving_a_file_half_read_frees_it(stream: bytes, tmp_path: Path) -> None:
    path = tmp_path / "day.itch"
    path.write_bytes(stream)
    blocks = iter(ItchFile(path, DAY, capacity=10))
    assert len(next(blocks)) in (9, 10)
    blocks.close()  # type: ignore[attr-defined]  # an iterator by its type, a generator in fact


def test_a_file_without_a_date_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "day.itch").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"day\.itch does not tell the session's date"):
        ItchFile(tmp_path / "day.itch")
    with pytest.raises(ConfigError, match="is not a file"):
        ItchFile(tmp_path / "none.itch", DAY)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("12302019.NASDAQ_ITCH50", date(2019, 12, 30)), ("20190730.BX_ITCH_50.gz", None),
        ("99302019.NASDAQ_ITCH50", None), ("S022717-v50.txt.gz", date(2017, 2, 27)),
    ],
)  # fmt: skip
def test_a_published_name_tells_the_date(name: str, told: date | None) -> None:
    assert session_date(name) == told


# --- what is no good --------------------------------------------------------------------------------------------------


def test_unknown_types_wrong_lengths_and_sides_are_told_by_offset_and_skipped() -> None:
    good = message_bytes({"message_type": "D", "order_reference_number": 5})
    bad_side = message_bytes({"message_type": "A", "buy_sell_indicator": "X", "shares": 1})
    parts = [good, b"?strange message", good, b"D" + bytes(30), b"", bad_side, good, b"!"]
    rows, decoder, used = decoded(frame(parts))
    assert rows["a"].tolist() == [5, 5, 5] and used == len(frame(parts))
    assert decoder.skipped == {"unknown_type": 3, "wrong_length": 1, "impossible_field": 1}
    starts = np.cumsum([0, *(2 + len(part) for part in parts)])
    assert [problem.offset for problem in decoder.problems] == [int(starts[k]) for k in (1, 3, 4, 5, 7)]
    assert [problem.reason for problem in decoder.problems] == [
        "unknown message type '?', 16 bytes",
        "message type 'D' of 31 bytes, which is not its length",
        "unknown message type '\\x00', 0 bytes",
        "message type 'A' with an impossible side or share count",
        "unknown message type '!', 1 bytes",
    ]


def test_more_problems_than_there_are_notes_are_all_counted() -> None:
    rows, decoder, used = decoded(b"\0\1?" * 1000)
    assert (len(rows), used) == (0, 3000)
    assert decoder.skipped["unknown_type"] == 1000 and len(decoder.problems) == 64


def test_nothing_is_read_behind_the_end_of_the_buffer() -> None:
    """The messages end at the end of a page, and the next page may not be touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as memory:
        place = np.frombuffer(memory, np.uint8)
        address = place.ctypes.data
        assert libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
        try:
            for kind in SIZES:
                data = frame([message_bytes({"message_type": "D"}), message_bytes({"message_type": kind})])
                for cut in range(len(data)):
                    part = data[: len(data) - cut]
                    place[page - len(part) : page] = np.frombuffer(part, np.uint8)
                    decoder = ItchDecoder(DAY)
                    used, _ = decoder.decode_at(address + page - len(part), len(part))
                    assert used in (len(data), 21, 0) and (used == len(data)) == (cut == 0)
        finally:
            libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 3)
            del place


def test_no_row_is_written_behind_the_buffer() -> None:
    data = frame([message_bytes({"message_type": "W", "breached_level": "1"})] * 5)
    decoder = ItchDecoder(DAY, capacity=3)
    rows, at = decoder.decode(data)
    assert (len(rows), at) == (2, 14), "a third row is free, but a message may need two"
    assert not decoder.rows[2:].tobytes().strip(b"\0")


def test_capacity_and_position_are_checked() -> None:
    with pytest.raises(ConfigError, match="capacity=1"):
        ItchDecoder(DAY, capacity=1)
    with pytest.raises(ConfigError, match="at=9; expected 0 to 3"):
        ItchDecoder(DAY).decode(b"abc", 9)


def test_a_price_off_the_grid_and_a_name_that_is_none_are_refused() -> None:
    with pytest.raises(OffGridError, match="price"):
        message_bytes({"message_type": "A", "price": Decimal("1.00005")})
    with pytest.raises(ProtocolError, match="has no field colour"):
        message_bytes({"message_type": "A", "colour": 1})
    with pytest.raises(ProtocolError, match="shares=4294967296 does not fit 4 bytes"):
        message_bytes({"message_type": "A", "shares": 1 << 32})
    with pytest.raises(ProtocolError, match="does not fit 8 bytes"):
        message_bytes({"message_type": "A", "stock": "TOOLONGNAME"})
    with pytest.raises(ProtocolError, match="is 3 bytes; expected 12"):
        message_fields(b"S12")
    with pytest.raises(ProtocolError, match="not of TotalView-ITCH"):
        message_fields(b"?")


def test_rows_of_other_feeds_are_refused_by_fields() -> None:
    rows, _, _ = decoded(frame([message_bytes({"message_type": "W"})]))
    with pytest.raises(ProtocolError, match="pass both"):
        fields(rows[:1])
    rows["kind"] = Kind.LEVEL
    with pytest.raises(ProtocolError, match="LEVEL"):
        fields(rows)


# --- details ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(messages())
def test_fields_of_a_row_are_the_fields_of_its_message(message: bytes) -> None:
    printable = bytes([message[0], *(33 + b % 94 for b in message[1:])])
    at, allowed = CHARACTERS.get(chr(message[0]), (0, b""))
    if allowed:
        printable = printable[:at] + bytes([allowed[printable[at] % len(allowed)]]) + printable[at + 1 :]
    rows, _, _ = decoded(frame([printable]))
    expected = message_fields(printable)
    stocks = {int(expected["stock_locate"]): str(expected.get("stock", ""))}
    if chr(message[0]) == "P":
        expected["buy_sell_indicator"] = "S" if printable[19] == ord("S") else "B"
    assert fields(rows, stocks, MIDNIGHT) == expected
    assert message_bytes(message_fields(printable)) == printable


def test_midnight_is_new_yorks_in_winter_and_summer() -> None:
    assert session_midnight_ns(date(2024, 1, 2)) == 1_704_171_600 * 10**9
    assert session_midnight_ns(DAY) == MIDNIGHT


def test_a_receive_time_is_written_as_given_and_else_the_messages_own() -> None:
    decoder = ItchDecoder(DAY)
    data = frame([message_bytes({"message_type": "D", "timestamp": 7})])
    assert decoder.decode(data, 0, 99)[0]["ts_recv"].tolist() == [99]
    rows, _ = decoder.decode(data, 0, NAT)
    assert rows["ts_recv"].tolist() == rows["ts_event"].tolist() == [MIDNIGHT + 7]


def test_text_comes_back_from_numbers() -> None:
    assert text_of(number(b"FLTU")) == "FLTU" and text_of(number(b"A B C   ")) == "A B C"


def test_the_kernel_holds_no_reference_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HFTLAB_CACHE", str(tmp_path))  # compiled afresh: what comes from a cache shows no code
    signature = types.UniTuple(types.int64, 2)(*(types.int64,) * 8)
    (code,) = kernel(signature)(itch.decode.py_func).inspect_llvm().values()
    assert "define" in code and "llvm.bswap" in code
    assert "NRT_" not in code


@pytest.mark.parametrize("name", ["itch", "itch-file", "itch-message"])
def test_a_hundred_thousand_mutated_inputs_are_survived(name: str) -> None:
    feed, seeds = TARGETS[name]()
    fuzz(feed, seeds, 100_000)
