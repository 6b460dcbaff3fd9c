"""One line of text per row, for eyes: what ``hftlab journal show`` and ``tail`` print."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from hftlab.core.instruments import MONEY_SCALE, Instrument, units_to_decimal
from hftlab.core.rows import (
    CONT,
    NAT,
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    Reason,
    RowArray,
    Tif,
    payload_bytes,
)

__all__ = ["format_row"]

_BY_ORDER = (Kind.ADD, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.REPLACE)
_BY_PRICE = (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR)
_ORDERS = (Kind.SUBMIT, Kind.CANCEL, Kind.REPLACE_ORDER, Kind.REFUSED)


class _Control(enum.IntEnum):
    """The words of CONTROL rows, as the engine has them (`hftlab.engine.CONTROL`, a layer up)."""

    START = 1
    STOP = 2
    HALT = 3
    RESUME = 4
    CANCEL_ALL = 5
    DISCONNECT = 6
    CONNECT = 7
    CONFIRM_POSITION = 8


# What a and b are called, by kind
_A_B: dict[int, tuple[str, str]] = {
    **dict.fromkeys(_BY_ORDER, ("ref", "other")),
    **dict.fromkeys(_BY_PRICE, ("venue_seq", "orders")),
    Kind.TRADE: ("trade_id", "venue_seq"),
    Kind.BOOK_STATE: ("expected", "got"),
    **dict.fromkeys(_ORDERS, ("cl_ord_id", "orig_cl_ord_id")),
    Kind.REPORT: ("cl_ord_id", "exec_id"),
    Kind.SENT: ("cl_ord_id", "of_row"),
    Kind.TIMER: ("timer", "b"),
}
_PRICED = {*_BY_ORDER, *_BY_PRICE, Kind.TRADE, *_ORDERS, Kind.REPORT}
_NAMES: dict[int, type[enum.IntEnum]] = {
    Kind.BOOK_STATE: BookState,
    Kind.SUBMIT: Tif,
    Kind.REPLACE_ORDER: Tif,
    Kind.REFUSED: Reason,
}


def format_row(row: Any, instruments: Sequence[Instrument] | None = None) -> str:
    """Return one line of text: number, time of receipt, kind, flags, and the fields by their names.

    Parameters
    ----------
    row : ROW scalar, or array of ROW
        One row; or a row and the payload rows after it, whose content is then shown too.
    instruments : sequence of Instrument, optional
        Turns ticks and lots into prices and quantities, and ids into symbols; without it the integers are shown.

    Examples
    --------
    >>> from hftlab.core.rows import ROW
    >>> rows = np.zeros(1, ROW)
    >>> rows["seq"], rows["kind"], rows["ts_recv"], rows["px"], rows["qty"] = 12, Kind.TRADE, 10**18, 705, 3
    >>> rows["flags"], rows["a"] = Flag.BID | Flag.LAST, 99
    >>> format_row(rows[0])
    '12 2001-09-09T01:46:40.000000000 TRADE BID|LAST #0 px=705 qty=3 trade_id=99'
    """
    head, payload = (row[0], row[1:]) if isinstance(row, np.ndarray) and row.ndim else (row, None)
    kind = int(head["kind"])
    words = [str(int(head["seq"])), _time(int(head["ts_recv"])), _name(Kind, kind)]
    if kind == CONT:
        return " ".join([*words[:1], "CONT", "payload"])
    if flags := int(head["flags"]):
        words.append(_flags(flags))
    instrument = _instrument(head, instruments)
    words += _fields(head, kind, instrument)
    if payload is not None and len(payload):
        words += _payload(kind, payload, instrument)
    elif span := int(head["span"]):
        words.append(f"+{span} payload")
    return " ".join(words)


def _time(ns: int) -> str:
    return "-" if ns == NAT else str(np.datetime64(ns, "ns"))


def _name(names: type[enum.IntEnum], value: int) -> str:
    try:
        return names(value).name
    except ValueError:
        return str(value)


def _flags(value: int) -> str:
    known = [flag.name for flag in Flag if flag & value and flag.name]
    rest = value & ~sum(Flag)
    return "|".join(known + ([hex(rest)] if rest else []))


def _instrument(head: Any, instruments: Sequence[Instrument] | None) -> Instrument | None:
    index = int(head["instrument"])
    return instruments[index] if instruments is not None and index < len(instruments) else None


def _fields(head: Any, kind: int, instrument: Instrument | None) -> list[str]:
    if kind in (Kind.PREDICTION, Kind.NOTE):
        return [f"#{int(head['instrument'])}", *(f"{name}={float(head[name]):g}" for name in ("f0", "f1", "f2", "f3"))]
    words = []
    if kind in _PRICED or kind in (Kind.BOOK_STATE, Kind.STATUS):
        words.append(instrument.symbol if instrument else f"#{int(head['instrument'])}")
    code = int(head["code"])
    if kind == Kind.REPORT:
        words += [_name(ExecType, code & 0xFF), f"-> {_name(OrdStatus, code >> 8)}"]
    elif kind == Kind.CONTROL:
        words.append(_name(_Control, code).lower())
    elif kind in _NAMES:
        words.append(_name(_NAMES[kind], code))
    elif code:
        words.append(f"code={code}")
    px, qty = int(head["px"]), int(head["qty"])
    if kind in _PRICED and kind != Kind.CLEAR:
        words.append(f"px={instrument.px(px) if instrument else px}")
        words.append(f"qty={instrument.qty(qty) if instrument else qty}")
    elif kind == Kind.TIMER:
        words.append(f"deadline={_time(px)}")
    else:
        words += [f"{name}={value}" for name, value in (("px", px), ("qty", qty)) if value]
    names = _A_B.get(kind, ("a", "b"))
    words += [f"{name}={int(head[key])}" for name, key in zip(names, ("a", "b"), strict=True) if head[key]]
    event, source = int(head["ts_event"]), int(head["source"])
    if event not in (0, NAT):
        words.append(f"event={_time(event)}")
    if source:
        words.append(f"source={source}")
    return words


def _payload(kind: int, rows: RowArray, instrument: Instrument | None) -> list[str]:
    raw: npt.NDArray[Any] = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 64)
    if kind == Kind.REPORT:
        report = raw[0].view(REPORT_PAYLOAD)[0]
        cum, leaves = int(report["cum_qty"]), int(report["leaves_qty"])
        words = [
            f"cum={instrument.qty(cum) if instrument else cum}",
            f"leaves={instrument.qty(leaves) if instrument else leaves}",
            f"venue_order_id={int(report['venue_order_id'])}",
            f"fee={units_to_decimal(int(report['fee']), MONEY_SCALE):f}",
        ]
        if code := int(report["venue_code"]):
            words.append(f"venue_code={code}")
        return [*words, repr(bytes(report["text"]).decode(errors="replace"))] if report["text"] else words
    if kind in (Kind.SUBMIT, Kind.REPLACE_ORDER):
        order = raw[0].view(ORDER_PAYLOAD)[0]
        named = [f"{name}={int(order[name])}" for name in ("stop_px", "display_qty", "min_qty") if order[name]]
        expire = int(order["expire_ts"])
        return [_name(OrdType, int(order["ord_type"])), *named, *([f"expire={_time(expire)}"] if expire else [])]
    return [_content(rows)]


def _content(rows: RowArray) -> str:
    """Show msgpack as what it holds, text as text, anything else as its length; 200 characters at most."""
    try:
        content = payload_bytes(rows)
    except ValueError as error:
        return f"<{error}>"
    try:
        shown = repr(msgspec.msgpack.decode(content))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        try:
            shown = repr(content.decode())
        except UnicodeDecodeError:
            shown = f"<{len(content)} bytes>"
    return shown if len(shown) <= 200 else shown[:197] + "..."
