"""From what the matching kernel did to the rows the world sees.

One *book event* is one call of the matching kernel and everything it changed. Its rows come in a fixed order: own
REPORTs (each with its payload row), TRADEs, one LEVEL for every price that changed, one QUOTE for every side whose
touch changed; the last public row carries LAST. The venue sequence grows by one per event that changed a level, and all
rows of the event carry it. A price that empties and is refilled in the same event may show twice: the later row holds.

The payload's fee and venue order id are zero here: exact fees need more than 64 bits, so `hftlab.sim.exchange` fills
them in.
"""

from __future__ import annotations

from typing import Any

from hftlab.core.rows import ExecType, Flag, Kind, OrdStatus
from hftlab.kernels.jit import kernel
from hftlab.kernels.matching import (
    ANONYMOUS,
    CUM,
    FILL_PX,
    FILL_QTY,
    LEAVES,
    MAKER_CUM,
    MAKER_LEAVES,
    MAKER_OWNER,
    N_FILLS,
    N_LEVELS,
    ORDERS,
    OWNED,
    QTY,
    SLICES,
    best_px,
    level_at,
)

__all__ = ["TAPE_SIZE", "rows_at_most", "write_fills", "write_level", "write_prints", "write_report", "write_touch"]

SEQ, TRADE_ID, INSTRUMENT, BID_PX, BID_QTY, ASK_PX, ASK_QTY, OUTCOME = range(8)
LAST_PX, STOP_BUY, STOP_SELL, TOUCHED, TOUCH_HIGH, TOUCH_LOW = range(8, 14)
TAPE_SIZE = 14
"""Length of the tape's state: sequence, trade id, instrument, last published touch, outcome of the last request; last
trade's price, lowest buy stop and highest sell stop that wait (0: none), whether a trade has touched one, and the
highest and lowest price of those that did."""

_CONT, _REPORT = int(Kind.CONT), int(Kind.REPORT)
_TRADE, _LEVEL, _QUOTE = int(Kind.TRADE), int(Kind.LEVEL), int(Kind.QUOTE)
_LAST, _MAKER = int(Flag.LAST), int(Flag.MAKER)
_FILL, _EXPIRED = int(ExecType.FILL), int(ExecType.EXPIRED)
_PARTIAL, _FULL, _OVER = int(OrdStatus.PARTIALLY_FILLED), int(OrdStatus.FILLED), int(OrdStatus.EXPIRED)


@kernel(inline=True)
def rows_at_most(book: Any) -> Any:
    """Return how many rows one event may write now: each resting order and slice reported and printed."""
    resting = book.head[ANONYMOUS] + book.head[ANONYMOUS + 1] + book.head[OWNED]
    slices = book.head[SLICES]  # an own slice: report, payload, trade, and a level that changes back and forth
    return 3 * resting + 4 * slices + 2 * (book.head[N_LEVELS] + book.head[N_LEVELS + 1]) + 128


@kernel()
def _put(
    out: Any, n: Any, kind: Any, ts: Any, instrument: Any, flags: Any, code: Any, px: Any, qty: Any, a: Any, b: Any
) -> None:
    row = out[n]
    row["seq"] = 0
    row["source"] = 0
    row["kind"] = kind
    row["span"] = 0
    row["ts_recv"] = 0
    row["ts_event"] = ts
    row["instrument"] = instrument
    row["flags"] = flags
    row["code"] = code
    row["px"] = px
    row["qty"] = qty
    row["a"] = a
    row["b"] = b


@kernel()
def write_report(
    tape: Any, out: Any, payload: Any, n: Any, ts: Any, exec_type: Any, status: Any, flags: Any, px: Any, qty: Any,
    owner: Any, exec_id: Any, cum: Any, leaves: Any,
) -> Any:  # fmt: skip
    """Write a REPORT and its payload at `n`; return the next free index."""
    _put(out, n, _REPORT, ts, tape[INSTRUMENT], flags, exec_type | status << 8, px, qty, owner, exec_id)
    out[n]["span"] = 1
    _put(out, n + 1, _CONT, 0, 0, 0, 0, 0, 0, 0, 0)
    payload[n + 1]["cum_qty"] = cum
    payload[n + 1]["leaves_qty"] = leaves
    return n + 2


@kernel()
def write_fills(book: Any, tape: Any, side: Any, owner: Any, ts: Any, out: Any, payload: Any, n: Any) -> Any:
    """Write the reports of the last call's fills, resting and incoming order alike; return the next free index."""
    trade_id = tape[TRADE_ID]
    traded = 0
    for k in range(book.head[N_FILLS]):
        traded += book.fills[k, FILL_QTY]
    cum = book.head[CUM] - traded
    leaves = book.head[LEAVES] + traded
    for k in range(book.head[N_FILLS]):
        maker, px, qty = book.fills[k, MAKER_OWNER], book.fills[k, FILL_PX], book.fills[k, FILL_QTY]
        if qty == 0:
            n = write_report(
                tape, out, payload, n, ts, _EXPIRED, _OVER, 3 - side, 0, 0, maker, 0, book.fills[k, MAKER_CUM], 0
            )
            continue
        trade_id += 1
        cum += qty
        leaves -= qty
        if maker != 0:
            status = _FULL if book.fills[k, MAKER_LEAVES] == 0 else _PARTIAL
            n = write_report(
                tape, out, payload, n, ts, _FILL, status, 3 - side | _MAKER, px, qty, maker, trade_id,
                book.fills[k, MAKER_CUM], book.fills[k, MAKER_LEAVES],
            )  # fmt: skip
        elif owner != 0:
            status = _FULL if leaves == 0 else _PARTIAL
            n = write_report(tape, out, payload, n, ts, _FILL, status, side, px, qty, owner, trade_id, cum, leaves)
    return n


@kernel()
def write_level(book: Any, tape: Any, side: Any, px: Any, ts: Any, out: Any, n: Any) -> Any:
    """Write the LEVEL row of `side` at `px` as it is now (quantity 0: gone); return the next free index."""
    i = level_at(book, side, px)
    qty = 0
    orders = 0
    if i >= 0:
        qty = book.levels[side - 1, i, QTY]
        orders = book.levels[side - 1, i, ORDERS]
    _put(out, n, _LEVEL, ts, tape[INSTRUMENT], side, 0, px, qty, tape[SEQ], orders)
    return n + 1


@kernel(inline=True)
def _touch(tape: Any, px: Any) -> None:
    tape[LAST_PX] = px
    if (tape[STOP_BUY] > 0 and px >= tape[STOP_BUY]) or (tape[STOP_SELL] > 0 and px <= tape[STOP_SELL]):
        if tape[TOUCHED] == 0:
            tape[TOUCHED], tape[TOUCH_HIGH], tape[TOUCH_LOW] = 1, px, px
        tape[TOUCH_HIGH] = max(tape[TOUCH_HIGH], px)
        tape[TOUCH_LOW] = min(tape[TOUCH_LOW], px)


@kernel()
def write_prints(book: Any, tape: Any, side: Any, ts: Any, out: Any, n: Any) -> Any:
    """Write trades and levels of the last call's fills; return the next free index.

    The caller has advanced the sequence, and goes on with the levels of its own side and `write_touch`. Trades that
    touch a stop are noted: whoever holds the stops looks at ``tape[TOUCHED]`` before the next event.
    """
    for k in range(book.head[N_FILLS]):
        if book.fills[k, FILL_QTY] > 0:
            tape[TRADE_ID] += 1
            _touch(tape, book.fills[k, FILL_PX])
            _put(
                out, n, _TRADE, ts, tape[INSTRUMENT], side, 0, book.fills[k, FILL_PX], book.fills[k, FILL_QTY],
                tape[TRADE_ID], tape[SEQ],
            )  # fmt: skip
            n += 1
    for k in range(book.head[N_FILLS]):
        if k == 0 or book.fills[k, FILL_PX] != book.fills[k - 1, FILL_PX]:
            n = write_level(book, tape, 3 - side, book.fills[k, FILL_PX], ts, out, n)
    return n


@kernel()
def write_touch(book: Any, tape: Any, ts: Any, out: Any, n: Any) -> Any:
    """Write a QUOTE for each side whose touch changed, mark the event's last row; return the next free index.

    Row ``n - 1`` must be a public row of the event. An empty side is quoted as price 0, quantity 0.
    """
    for side in range(1, 3):
        count = book.head[N_LEVELS + side - 1]
        px = 0
        qty = 0
        orders = 0
        if count > 0:
            px = best_px(book, side)
            qty = book.levels[side - 1, count - 1, QTY]
            orders = book.levels[side - 1, count - 1, ORDERS]
        known = BID_PX + 2 * (side - 1)
        if px != tape[known] or qty != tape[known + 1]:
            tape[known] = px
            tape[known + 1] = qty
            _put(out, n, _QUOTE, ts, tape[INSTRUMENT], side, 0, px, qty, tape[SEQ], orders)
            n += 1
    out[n - 1]["flags"] |= _LAST
    return n
