"""One line per row."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    CONT,
    NAT,
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    Reason,
    RowArray,
    Tif,
    payload_rows,
)
from hftlab.journal import format_row

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
T0 = 1_723_075_200_123_456_789


def _row(kind: int, payload: RowArray | None = None, **fields: Any) -> RowArray:
    rows = np.zeros(1 + (0 if payload is None else len(payload)), ROW)
    rows["kind"][0], rows["seq"][0], rows["ts_recv"][0], rows["ts_event"][0] = kind, 5, T0, NAT
    for name, value in fields.items():
        rows[name][0] = value
    if payload is not None:
        rows.view(np.uint8).reshape(-1, 64)[1:] = payload.view(np.uint8).reshape(-1, 64)
        rows["span"][0] = len(payload)
    return rows


def _payload(dtype: np.dtype[Any], **fields: Any) -> RowArray:
    payload = np.zeros(1, dtype)
    payload["kind"] = CONT
    for name, value in fields.items():
        payload[name] = value
    return payload.view(np.uint8).view(ROW)


CASES = [
    (
        _row(Kind.LEVEL, px=6183763, qty=120, a=9, flags=Flag.BID | Flag.LAST),
        "LEVEL BID|LAST BTCUSDT px=61837.63 qty=0.00120 venue_seq=9",
    ),
    (
        _row(Kind.SUBMIT, px=100, qty=1, a=3, code=Tif.IOC, flags=Flag.ASK | Flag.OUTPUT, source=2),
        "SUBMIT ASK|OUTPUT BTCUSDT IOC px=1.00 qty=0.00001 cl_ord_id=3 source=2",
    ),
    (
        _row(Kind.REFUSED, px=1, qty=1, code=Reason.PRICE_COLLAR),
        "REFUSED BTCUSDT PRICE_COLLAR px=0.01 qty=0.00001",
    ),
    (
        _row(Kind.BOOK_STATE, code=BookState.RESYNCING, a=7, b=9),
        "BOOK_STATE BTCUSDT RESYNCING expected=7 got=9",
    ),
    (
        _row(
            Kind.REPORT,
            _payload(REPORT_PAYLOAD, cum_qty=2, leaves_qty=3, venue_order_id=44, fee=-12, venue_code=-2010, text=b"no"),
            code=ExecType.FILL | OrdStatus.PARTIALLY_FILLED << 8,
            px=100, qty=2, a=3, b=8,
        ),
        "REPORT BTCUSDT FILL -> PARTIALLY_FILLED px=1.00 qty=0.00002 cl_ord_id=3 exec_id=8 cum=0.00002 leaves=0.00003 "
        "venue_order_id=44 fee=-0.00000012 venue_code=-2010 'no'",
    ),
    (
        _row(Kind.SUBMIT, _payload(ORDER_PAYLOAD, ord_type=OrdType.MARKET), qty=1, a=3, code=Tif.IOC, flags=Flag.BID),
        "SUBMIT BID BTCUSDT IOC px=0.00 qty=0.00001 cl_ord_id=3 MARKET",
    ),
    (
        _row(Kind.PREDICTION, f0=0.5, f1=0.25, f2=-1.0, f3=2.0),
        "PREDICTION #0 f0=0.5 f1=0.25 f2=-1 f3=2",
    ),
    (
        _row(Kind.TIMER, a=1, px=T0),
        "TIMER deadline=2024-08-08T00:00:00.123456789 timer=1",
    ),
    (
        _row(Kind.CONTROL, payload_rows(msgspec.msgpack.encode({"halt": True})), code=2),
        "CONTROL stop {'halt': True}",
    ),
    (_row(Kind.TEXT, payload_rows(b"\xc1\xff")), "TEXT <2 bytes>"),
    (_row(222, code=7, flags=0x8000), "222 0x8000 code=7"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "expected"), CASES, ids=lambda case: case.split()[0] if isinstance(case, str) else "")
def test_a_row_reads_as_one_line(rows: RowArray, expected: str) -> None:
    assert format_row(rows, [BTC]) == f"5 2024-08-08T00:00:00.123456789 {expected}"


def test_payload_rows_alone_and_left_out_are_said() -> None:
    rows = _row(Kind.TEXT, payload_rows(b"hello" * 30))
    assert format_row(rows[0]).endswith("TEXT +3 payload")
    assert format_row(rows[1]) == "0 CONT payload"


def test_long_payloads_are_cut() -> None:
    assert len(format_row(_row(Kind.TEXT, payload_rows(b"z" * 5000)))) < 260


@given(raw=st.binary(min_size=64, max_size=64), with_instrument=st.booleans())
def test_any_64_bytes_are_one_line(raw: bytes, with_instrument: bool) -> None:
    line = format_row(np.frombuffer(raw, ROW)[0], [BTC] if with_instrument else None)
    assert line and "\n" not in line


def test_every_word_of_the_engines_control_rows_is_shown_and_an_unknown_code_as_its_number() -> None:
    from hftlab.engine import CONTROL, control_row

    for word in CONTROL:
        assert format_row(control_row(word, 10**18)[0]).endswith(f" CONTROL {word}")
    assert format_row(_row(Kind.CONTROL, code=99)).split(" CONTROL ")[1].startswith("99")
