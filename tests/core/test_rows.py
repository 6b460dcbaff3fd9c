"""The row's layout is a file format: these tests hold it where other programs and old journals expect it."""

from __future__ import annotations

import enum
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core import rows
from hftlab.core.rows import (
    CONT,
    MAX_SPAN,
    NAT,
    ORDER_PAYLOAD,
    PAYLOAD_BYTES,
    REPORT_PAYLOAD,
    ROW,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    Reason,
    Side,
    Tif,
    payload_bytes,
    payload_rows,
)

MAX_CONTENT = MAX_SPAN * PAYLOAD_BYTES - 4

LAYOUT = {
    "seq": ("<u4", 0), "source": ("<u2", 4), "kind": ("|u1", 6), "span": ("|u1", 7),
    "ts_recv": ("<i8", 8), "ts_event": ("<i8", 16), "instrument": ("<u4", 24), "flags": ("<u2", 28),
    "code": ("<u2", 30),
    "px": ("<i8", 32), "qty": ("<i8", 40), "a": ("<u8", 48), "b": ("<u8", 56),
    "f0": ("<f8", 32), "f1": ("<f8", 40), "f2": ("<f8", 48), "f3": ("<f8", 56),
}  # fmt: skip


def int_enums() -> list[type[enum.IntEnum] | type[enum.IntFlag]]:
    return [v for v in vars(rows).values() if isinstance(v, type) and issubclass(v, enum.IntEnum | enum.IntFlag)]


def test_row_is_64_bytes_with_every_field_at_its_place() -> None:
    assert ROW.itemsize == 64
    assert {name: (ROW[name].str, ROW.fields[name][1]) for name in ROW.names} == LAYOUT


def test_row_bytes_are_little_endian_and_packed() -> None:
    row = np.zeros(1, ROW)
    row["seq"], row["source"], row["kind"], row["span"] = 0x01020304, 0x0506, 7, 8
    row["ts_recv"], row["ts_event"] = -9, NAT
    row["instrument"], row["flags"], row["code"] = 10, 11, 12
    row["px"], row["qty"], row["a"], row["b"] = -13, 14, 2**64 - 1, 16
    expected = struct.pack(
        "<IHBBqqIHHqqQQ", 0x01020304, 0x0506, 7, 8, -9, -(2**63), 10, 11, 12, -13, 14, 2**64 - 1, 16
    )
    assert row.tobytes() == expected


def test_floats_overlay_the_integers_they_share_bytes_with() -> None:
    row = np.zeros(1, ROW)
    for number, (real, whole) in enumerate([("f0", "px"), ("f1", "qty"), ("f2", "a"), ("f3", "b")], start=1):
        row[real] = number + 0.5
        assert row[whole].tobytes() == struct.pack("<d", number + 0.5)


@pytest.mark.parametrize("payload", [REPORT_PAYLOAD, ORDER_PAYLOAD])
def test_payload_layouts_are_a_row_long_and_begin_like_a_row(payload: np.dtype) -> None:
    assert payload.itemsize == ROW.itemsize
    for name in ("seq", "source", "kind", "span"):
        assert (payload[name].str, payload.fields[name][1]) == LAYOUT[name]
    ends = [offset + kind.itemsize for kind, offset in (payload.fields[name][:2] for name in payload.names)]
    starts = [payload.fields[name][1] for name in payload.names]
    assert starts[1:] == ends[:-1], "fields neither overlap nor leave holes"
    assert all(offset % min(kind.itemsize, 8) == 0 for kind, offset in (payload.fields[n][:2] for n in payload.names))


def test_enum_values_are_unique_within_each_enum() -> None:
    assert len(int_enums()) >= 9
    for kind in int_enums():
        aliases = [name for name, member in kind.__members__.items() if member.name != name]
        assert not aliases, f"{kind.__name__} gives one value two names: {aliases}"


def test_enum_values_fit_the_fields_that_hold_them() -> None:
    for kind in int_enums():
        highest = 0xFF if kind in (Kind, ExecType, OrdStatus) else 0xFFFF  # a REPORT packs two of them into code
        assert all(0 <= int(member) <= highest for member in kind), kind.__name__


def test_every_flag_is_one_bit() -> None:
    assert all(int(flag).bit_count() == 1 for flag in Flag)


def test_zero_bytes_are_an_unwritten_row() -> None:
    assert np.frombuffer(bytes(64), ROW)["kind"][0] == Kind.UNWRITTEN == 0
    assert CONT == Kind.CONT != Kind.UNWRITTEN


def test_side_equals_the_flag_of_its_rows() -> None:
    assert (int(Side.BUY), int(Side.SELL)) == (int(Flag.BID), int(Flag.ASK))


def test_time_in_force_has_the_numbers_of_fix_tag_59() -> None:
    assert {tif.name: int(tif) for tif in Tif} == {"DAY": 0, "GTC": 1, "IOC": 3, "FOK": 4, "GTD": 6}


def test_an_empty_book_and_no_reason_are_zero_so_that_fresh_memory_means_them() -> None:
    assert (BookState.EMPTY, OrdStatus.NONE, Reason.NONE) == (0, 0, 0)


def test_nat_is_numpys_not_a_time() -> None:
    assert np.isnat(np.array([NAT]).view("datetime64[ns]")[0])


@given(st.binary(max_size=MAX_CONTENT) | st.integers(0, MAX_CONTENT).map(lambda n: b"\xff" * n))
def test_payload_rows_give_their_content_back(content: bytes) -> None:
    laid = payload_rows(content)
    assert laid.dtype == ROW
    assert len(laid) == -(-(len(content) + 4) // PAYLOAD_BYTES) <= MAX_SPAN
    assert (laid["kind"] == CONT).all()
    laid["seq"], laid["source"], laid["span"] = np.arange(len(laid)), 0xFFFF, 0xFF  # bytes 0-7 are the writer's
    assert payload_bytes(laid) == content


def test_payload_of_255_full_rows_fits_and_one_byte_more_is_refused() -> None:
    assert len(payload_rows(bytes(MAX_CONTENT))) == MAX_SPAN
    with pytest.raises(ValueError, match=f"content is {MAX_CONTENT + 1} bytes; at most {MAX_CONTENT} fit"):
        payload_rows(bytes(MAX_CONTENT + 1))


def test_payload_that_claims_more_bytes_than_its_rows_hold_is_refused() -> None:
    laid = payload_rows(b"x" * 100)
    with pytest.raises(ValueError, match="payload says 100 bytes, its 1 rows hold at most 52"):
        payload_bytes(laid[:1])
