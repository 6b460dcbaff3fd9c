"""The row: one 64-byte record for everything that happens.

A session is a sequence of rows, and nothing else: market data, orders, reports, timers, control. One fixed layout buys
three things. A journal is an array (``numpy.frombuffer`` reads it), a kernel touches one cache line per event, and two
runs are equal when their bytes are equal. The price is that what does not fit 64 bytes follows in *payload rows*: kind
``CONT``, bytes 0-7 repeated, 56 bytes of content each, at most 255 of them, in the same atom.

Integers only where money is: ``px`` in the instrument's ticks, ``qty`` in its lots, times in ns since 1970 UTC.
``NAT`` (the smallest int64, as in NumPy) means a time was not given.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BookState",
    "CONT",
    "ExecType",
    "Flag",
    "Kind",
    "MAX_SPAN",
    "NAT",
    "NO_PX",
    "ORDER_PAYLOAD",
    "OrdStatus",
    "OrdType",
    "PAYLOAD_BYTES",
    "REPORT_PAYLOAD",
    "ROW",
    "Reason",
    "RowArray",
    "Side",
    "Tif",
    "join_rows",
    "new_rows",
    "payload_bytes",
    "payload_rows",
]

RowArray = npt.NDArray[np.void]

NAT = -(2**63)
NO_PX = -(2**62)
"""Where there is no price. Arithmetic of a few ticks on it cannot overflow, and risk refuses any price of 0 or less."""
MAX_SPAN = 255
PAYLOAD_BYTES = 56

ROW = np.dtype(
    {
        "names": [
            "seq", "source", "kind", "span", "ts_recv", "ts_event", "instrument", "flags", "code",
            "px", "qty", "a", "b", "f0", "f1", "f2", "f3",
        ],
        "formats": [
            "<u4", "<u2", "u1", "u1", "<i8", "<i8", "<u4", "<u2", "<u2",
            "<i8", "<i8", "<u8", "<u8", "<f8", "<f8", "<f8", "<f8",
        ],
        "offsets": [0, 4, 6, 7, 8, 16, 24, 28, 30, 32, 40, 48, 56, 32, 40, 48, 56],
        "itemsize": 64,
    }
)  # fmt: skip
"""The row's dtype. ``f0..f3`` overlay ``px, qty, a, b``."""

REPORT_PAYLOAD = np.dtype(
    [
        ("seq", "<u4"), ("source", "<u2"), ("kind", "u1"), ("span", "u1"),
        ("cum_qty", "<i8"), ("leaves_qty", "<i8"), ("venue_order_id", "<u8"),
        ("fee", "<i8"), ("fee_asset", "<u4"), ("venue_code", "<i4"), ("text", "S16"),
    ]
)  # fmt: skip
"""Payload row of a REPORT: quantities in lots, ``fee`` in 1e-8 of the asset (> 0 paid), ``fee_asset`` the index of the
session's asset table, ``venue_code`` the venue's error code (0 = none), ``text`` its first 16 bytes."""

ORDER_PAYLOAD = np.dtype(
    [
        ("seq", "<u4"), ("source", "<u2"), ("kind", "u1"), ("span", "u1"),
        ("ord_type", "<u8"), ("stop_px", "<i8"), ("display_qty", "<i8"), ("min_qty", "<i8"), ("expire_ts", "<i8"),
        ("reserved", "<i8", (2,)),
    ]
)  # fmt: skip
"""Payload row of a SUBMIT that is not a plain limit order."""


class Kind(enum.IntEnum):
    """What a row is. 0 is an unwritten row."""

    UNWRITTEN = 0
    CONT = 1
    # market by order (L3): a = order reference, b = new reference or match id
    ADD = 10
    REDUCE = 11
    DELETE = 12
    EXECUTE = 13
    REPLACE = 14
    # market by price (L2) and top (L1): a = venue sequence, b = order count. LEVEL qty 0 removes the level;
    # QUOTE carries one side; CLEAR empties the book of `instrument` ahead of a snapshot
    LEVEL = 20
    QUOTE = 21
    CLEAR = 22
    # TRADE: a = trade id, b = venue sequence; flags BID = buyer was the aggressor, ASK = seller was
    TRADE = 23
    STATUS = 24
    # BOOK_STATE: code = BookState, a = expected, b = got venue sequence
    BOOK_STATE = 25
    # orders: px, qty; a = cl_ord_id, b = orig_cl_ord_id; flags BID = buy, ASK = sell, POST_ONLY, REDUCE_ONLY;
    # code = Tif, or Reason on REFUSED, whose a is the number of refusals it stands for
    SUBMIT = 30
    CANCEL = 31
    REPLACE_ORDER = 32
    REFUSED = 33
    # REPORT: code = exec_type | ord_status << 8; px, qty = last price and quantity; a = cl_ord_id, b = exec id
    REPORT = 34
    # host facts
    SENT = 40  # a = cl_ord_id, b = seq of the order row; ts_event = the real send time
    CLOCK = 41
    CLOCK_STEP = 42  # px = step in ns
    TIMER = 43  # a = timer id, px = the deadline asked for
    RESTART = 44
    CHECKPOINT = 45
    FAULT = 46  # code = what failed (engine.FaultCode); a, b = detail
    # model output, notes, control
    PREDICTION = 50
    NOTE = 51
    CONTROL = 52  # code = engine.Control
    DEFINE = 53
    TEXT = 54
    BLOB = 55


CONT = int(Kind.CONT)


class Flag(enum.IntFlag):
    """Bits of ``flags``."""

    BID = 1
    ASK = 2
    LAST = 4  # the row that ends a venue message; callbacks fire here
    COMMIT = 8  # the last row of an atom
    OUTPUT = 16  # written by the engine, not an input
    SNAPSHOT = 32
    RECOVERED = 64
    MAKER = 128
    POST_ONLY = 256
    REDUCE_ONLY = 512
    CROSS = 1024  # a trade of an auction
    NON_PRINTABLE = 2048  # an execution that the venue also reports otherwise: do not count its volume twice


class Side(enum.IntEnum):
    """Side of an order or an aggressor; equals the flag BID or ASK of its rows."""

    BUY = 1
    SELL = 2


class BookState(enum.IntEnum):
    """How far a book may be believed. Only LIVE may be traded on."""

    EMPTY = 0
    LIVE = 1
    STALE = 2
    RESYNCING = 3
    CROSSED = 4


class Tif(enum.IntEnum):
    """Time in force, FIX tag 59."""

    DAY = 0
    GTC = 1
    IOC = 3
    FOK = 4
    GTD = 6


class OrdType(enum.IntEnum):
    """Order type, FIX tag 40."""

    MARKET = 1
    LIMIT = 2
    STOP = 3
    STOP_LIMIT = 4


class ExecType(enum.IntEnum):
    """What a report says happened (FIX tag 150, our numbering)."""

    ACK = 1
    FILL = 2
    REJECT = 3
    CANCEL_REJECT = 4
    REPLACED = 5
    CANCELED = 6
    EXPIRED = 7
    LOST = 8  # the host's word, not the venue's: sent, and no answer will come on this connection


class OrdStatus(enum.IntEnum):
    """State of an order (FIX tag 39, plus the states in flight and in doubt)."""

    NONE = 0
    PENDING_NEW = 1
    NEW = 2
    PARTIALLY_FILLED = 3
    PENDING_CANCEL = 4
    PENDING_REPLACE = 5
    UNKNOWN = 6
    FILLED = 7
    CANCELED = 8
    REJECTED = 9
    EXPIRED = 10


class Reason(enum.IntEnum):
    """Why an order was refused. ``submit`` returns the negative of it."""

    NONE = 0
    KILL_SWITCH = 1
    BOOK_STATE = 2
    FAT_FINGER_QTY = 3
    FAT_FINGER_NOTIONAL = 4
    POSITION = 5
    PRICE_COLLAR = 6
    THROTTLE = 7
    BAD_SIDE = 8
    BAD_PX = 9
    BAD_QTY = 10
    BAD_TIF = 11
    UNKNOWN_INSTRUMENT = 12
    UNKNOWN_ORDER = 13
    OPEN_ORDERS = 14
    OVERFLOW = 15
    ATOM_FULL = 16
    STRATEGY_HALTED = 17
    NOT_ARMED = 18
    ORDER_STATE = 19
    POST_ONLY = 20
    POSITION_DOUBT = 21
    DISCONNECTED = 22


def new_rows(n: int) -> RowArray:
    """Return `n` zeroed rows with ``ts_event`` not given."""
    rows = np.zeros(n, ROW)
    rows["ts_event"] = NAT
    return rows


def join_rows(parts: Iterable[RowArray]) -> RowArray:
    """Return the rows of `parts` in one array.

    Not numpy.concatenate: it promotes the dtype, and a dtype with overlapping fields is packed to 96 bytes by that.

    Examples
    --------
    >>> join_rows([new_rows(2), new_rows(1)]).itemsize
    64
    """
    words = [np.ascontiguousarray(part).view(np.uint8) for part in parts if len(part)]
    return np.concatenate(words).view(ROW) if words else np.zeros(0, ROW)


def payload_rows(content: bytes) -> RowArray:
    """Return `content` as CONT rows, zero-padded; bytes 0-7 of each are filled in by whoever writes them.

    Parameters
    ----------
    content : bytes
        At most 14,276 bytes: the first 4 of the payload hold its length.

    Raises
    ------
    ValueError
        If `content` does not fit 255 rows; larger content goes to a blob file and the row holds its hash.

    Examples
    --------
    >>> rows = payload_rows(b"x" * 60)
    >>> len(rows), payload_bytes(rows) == b"x" * 60
    (2, True)
    """
    framed = len(content).to_bytes(4, "little") + content
    n = -(-len(framed) // PAYLOAD_BYTES)
    if n > MAX_SPAN:
        raise ValueError(
            f"content is {len(content)} bytes; at most {MAX_SPAN * PAYLOAD_BYTES - 4} fit payload rows: "
            "store it as a blob"
        )
    raw = np.zeros((n, 64), np.uint8)
    raw[:, 6] = CONT
    raw[:, 8:] = np.frombuffer(framed.ljust(n * PAYLOAD_BYTES, b"\0"), np.uint8).reshape(n, PAYLOAD_BYTES)
    return raw.reshape(-1).view(ROW)


def payload_bytes(rows: npt.NDArray[Any]) -> bytes:
    """Return the content that `payload_rows` laid into `rows` (the CONT rows only).

    Raises
    ------
    ValueError
        If the stored length exceeds what the rows can hold.
    """
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 64)[:, 8:].tobytes()
    n = int.from_bytes(raw[:4], "little")
    if n > len(raw) - 4:
        raise ValueError(f"payload says {n} bytes, its {len(rows)} rows hold at most {len(raw) - 4}")
    return raw[4 : 4 + n]
