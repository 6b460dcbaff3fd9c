"""Own orders: the one table of states, what a report does to an order, and to the portfolio.

States follow FIX. The table `TRANSITIONS` is the only place that says which report is legal in which state and where it
leads; the compiled lookup and the documentation's diagram are made from it. Three rules of money stand behind it:

- *Only the venue's word settles an order.* A cancel in flight, a lost connection or a timeout never ends one: LOST
  leads to UNKNOWN, which still counts at its worst case, until a report says otherwise.
- *A fill is always money.* A fill that arrives after the cancel (the streams may cross) moves the position; the state
  stays CANCELED. A fill seen twice (same instrument, order and execution id) is dropped and counted.
- *An illegal report changes nothing.* It becomes a FAULT row naming state, report and order. An illegal *fill* (beyond
  the order's quantity, on a rejected order, at no price) also puts the position in doubt, and risk refuses while it is.

Reports of one venue may come over two connections, so an ACK or REPLACED that comes late is legal and changes no state.

Worst case of an order: its ``reserved`` lots, summed per side into ``working_buy`` and ``working_sell``. A replace in
flight reserves the worse of old and new: the old order keeps its leaves, the new one adds what it has beyond them. That
is the worst of what may *still* fill: a venue that cancels the rest of a partly filled order and then places the whole
new quantity lets the fills in between come on top, so a position limit may be passed by what the old order filled while
its replace was in flight. Replace with the leaves you want, and keep the limit that far from what you can bear.

Order slots are reused: an order lies at ``cl_ord_id & mask``, ids skip slots still open, so a lookup is one load.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hftlab.core.instruments import INT64_MAX
from hftlab.core.rows import ExecType, Kind, OrdStatus
from hftlab.kernels.jit import kernel
from hftlab.kernels.state import (
    ENGINE,
    EXECUTION,
    INSTRUMENT,
    ORDER,
    engine_at,
    execution_at,
    instrument_at,
    order_at,
)

__all__ = [
    "OPEN_STATES",
    "TRANSITIONS",
    "apply_report",
    "find_order",
    "instrument_address",
    "is_open",
    "mark_in_flight_unknown",
    "mul_div",
    "order_address",
    "sent_rows",
    "set_reserved",
    "settle_fill",
    "transition_rows",
]

_S, _X = OrdStatus, ExecType

TRANSITIONS: dict[OrdStatus, dict[ExecType, OrdStatus]] = {
    _S.PENDING_NEW: {
        _X.ACK: _S.NEW, _X.FILL: _S.PARTIALLY_FILLED, _X.REJECT: _S.REJECTED, _X.REPLACED: _S.NEW,
        _X.CANCELED: _S.CANCELED, _X.EXPIRED: _S.EXPIRED, _X.LOST: _S.UNKNOWN,
    },
    _S.NEW: {
        _X.ACK: _S.NEW, _X.FILL: _S.PARTIALLY_FILLED, _X.CANCELED: _S.CANCELED, _X.EXPIRED: _S.EXPIRED,
        _X.REPLACED: _S.NEW, _X.CANCEL_REJECT: _S.NEW, _X.LOST: _S.UNKNOWN,
    },
    _S.PARTIALLY_FILLED: {
        _X.ACK: _S.PARTIALLY_FILLED, _X.FILL: _S.PARTIALLY_FILLED, _X.CANCELED: _S.CANCELED, _X.EXPIRED: _S.EXPIRED,
        _X.REPLACED: _S.PARTIALLY_FILLED, _X.CANCEL_REJECT: _S.PARTIALLY_FILLED, _X.LOST: _S.UNKNOWN,
    },
    _S.PENDING_CANCEL: {
        _X.ACK: _S.PENDING_CANCEL, _X.FILL: _S.PENDING_CANCEL, _X.CANCELED: _S.CANCELED, _X.EXPIRED: _S.EXPIRED,
        _X.REJECT: _S.REJECTED, _X.REPLACED: _S.PENDING_CANCEL, _X.CANCEL_REJECT: _S.NEW, _X.LOST: _S.UNKNOWN,
    },
    _S.PENDING_REPLACE: {
        _X.ACK: _S.PENDING_REPLACE, _X.FILL: _S.PENDING_REPLACE, _X.CANCELED: _S.CANCELED, _X.EXPIRED: _S.EXPIRED,
        _X.REJECT: _S.REJECTED, _X.REPLACED: _S.PENDING_REPLACE, _X.CANCEL_REJECT: _S.NEW, _X.LOST: _S.UNKNOWN,
    },
    _S.UNKNOWN: {
        _X.ACK: _S.NEW, _X.FILL: _S.UNKNOWN, _X.REJECT: _S.REJECTED, _X.REPLACED: _S.NEW, _X.CANCELED: _S.CANCELED,
        _X.EXPIRED: _S.EXPIRED, _X.CANCEL_REJECT: _S.UNKNOWN, _X.LOST: _S.UNKNOWN,
    },
    _S.FILLED: {_X.ACK: _S.FILLED, _X.REPLACED: _S.FILLED, _X.CANCEL_REJECT: _S.FILLED, _X.LOST: _S.FILLED},
    _S.CANCELED: {
        _X.ACK: _S.CANCELED, _X.FILL: _S.CANCELED, _X.REPLACED: _S.CANCELED, _X.CANCEL_REJECT: _S.CANCELED,
        _X.LOST: _S.CANCELED,
    },
    _S.REJECTED: {_X.CANCEL_REJECT: _S.REJECTED, _X.LOST: _S.REJECTED},
    _S.EXPIRED: {
        _X.ACK: _S.EXPIRED, _X.FILL: _S.EXPIRED, _X.REPLACED: _S.EXPIRED, _X.CANCEL_REJECT: _S.EXPIRED,
        _X.LOST: _S.EXPIRED,
    },
}  # fmt: skip
"""``{state: {report: next state}}``. Three readings: a FILL that completes an order leads to FILLED from any open
state; NEW stands for PARTIALLY_FILLED where the order has fills, and after a CANCEL_REJECT for PENDING_NEW where the
venue has not yet confirmed the order; REPLACED is legal only for an order that replaces another."""

OPEN_STATES = (_S.PENDING_NEW, _S.NEW, _S.PARTIALLY_FILLED, _S.PENDING_CANCEL, _S.PENDING_REPLACE, _S.UNKNOWN)

_TABLE = np.zeros((len(OrdStatus), len(ExecType) + 1), np.int64)
for _state, _row in TRANSITIONS.items():
    for _exec, _next in _row.items():
        _TABLE[_state, _exec] = _next

_NEW, _PARTIAL, _FILLED, _UNKNOWN = int(_S.NEW), int(_S.PARTIALLY_FILLED), int(_S.FILLED), int(_S.UNKNOWN)
_PENDING_NEW, _PENDING_CANCEL, _PENDING_REPLACE = int(_S.PENDING_NEW), int(_S.PENDING_CANCEL), int(_S.PENDING_REPLACE)
_CANCELED, _REJECTED = int(_S.CANCELED), int(_S.REJECTED)
_ACK, _FILL, _REJECT, _REPLACED = int(_X.ACK), int(_X.FILL), int(_X.REJECT), int(_X.REPLACED)
_CANCEL_REJECT = int(_X.CANCEL_REJECT)
_SENT = int(Kind.SENT)
_BUY = 1
_ORDER_BYTES, _INSTRUMENT_BYTES, _EXECUTION_BYTES = ORDER.itemsize, INSTRUMENT.itemsize, EXECUTION.itemsize
_N_EXEC = len(ExecType) + 1
assert ENGINE.itemsize % 8 == 0

OK, ILLEGAL, DUPLICATE, FOREIGN, ILLEGAL_FILL = 0, 1, 2, 3, 4
"""What `apply_report` says became of a report."""


@kernel(inline=True)
def is_open(status: int) -> bool:
    """Return whether an order in `status` may still trade."""
    return _PENDING_NEW <= status <= _UNKNOWN


@kernel(inline=True)
def instrument_address(arena: int, instrument: int) -> int:
    """Return the address of an instrument's record; the caller has checked the index."""
    return arena + engine_at(arena).off_instruments + instrument * _INSTRUMENT_BYTES  # type: ignore[no-any-return]


@kernel(inline=True)
def order_address(arena: int, cl_ord_id: int) -> int:
    """Return the address of the slot that `cl_ord_id` would lie in."""
    e = engine_at(arena)
    return arena + e.off_orders + (cl_ord_id & e.order_mask) * _ORDER_BYTES  # type: ignore[no-any-return]


@kernel(inline=True)
def find_order(arena: int, cl_ord_id: int) -> int:
    """Return the address of the order `cl_ord_id`, or 0 if the table does not hold it (any more)."""
    address = order_address(arena, cl_ord_id)
    if cl_ord_id <= 0 or order_at(address).cl_ord_id != cl_ord_id:
        return 0
    return address


@kernel(inline=True)
def set_reserved(arena: int, address: int, lots: int) -> None:
    """Set an order's worst-case lots and carry the difference into its instrument's working total."""
    o = order_at(address)
    inst = instrument_at(instrument_address(arena, o.instrument))
    if o.side == _BUY:
        inst.working_buy += lots - o.reserved
    else:
        inst.working_sell += lots - o.reserved
    o.reserved = lots


@kernel(inline=True)
def mul_div(value: int, numerator: int, denominator: int) -> int:
    """Return ``value * numerator // denominator`` for 0 <= numerator <= denominator without a 128-bit product.

    The remainder product is below denominator squared: exact for positions up to 3e9 lots.
    """
    whole = value // denominator
    return whole * numerator + (value - whole * denominator) * numerator // denominator


@kernel(inline=True)
def settle_fill(instrument: int, side: int, px: int, qty: int) -> None:
    """Book a trade of `qty` lots at `px` ticks into position, cash, cost and realized P&L (all ticks x lots).

    ``cost`` is what the open position was bought (or sold) for, signed like the position. Closing part of it moves the
    matching share of cost out, rounded down to a whole unit that stays in the open part; realized plus unrealized is
    exact at every moment, and realized is exact when flat.
    """
    inst = instrument_at(instrument)
    signed = qty if side == _BUY else -qty
    position = inst.position
    inst.cash -= signed * px
    if position == 0 or (position > 0) == (signed > 0):
        inst.cost += signed * px
    else:
        closing = min(abs(position), qty)
        closed_cost = mul_div(inst.cost, closing, abs(position))
        direction = 1 if position > 0 else -1
        inst.realized += direction * closing * px - closed_cost
        inst.cost -= closed_cost
        if qty > closing:
            inst.cost = (qty - closing) * px * (-direction)
    inst.position = position + signed
    if side == _BUY:
        inst.bought += qty
    else:
        inst.sold += qty


@kernel(inline=True)
def _execution_slot(arena: int, key_a: int, key_b: int) -> int:
    """Return the address of the slot that holds this execution, or that should come to hold it.

    Open addressing over a window of 8 slots; when the window is full its slots are overwritten in turn, so an id is
    forgotten only after the table has filled around it.
    """
    e = engine_at(arena)
    h = (key_a * 0x9E3779B97F4A7C1 + key_b * 0x61C8864680B583B) ^ (key_b >> 7)
    base = (h ^ (h >> 29)) & e.exec_mask & ~7
    window = arena + e.off_execs + base * _EXECUTION_BYTES
    for k in range(8):
        x = execution_at(window + k * _EXECUTION_BYTES)
        if (x.key_a == key_a and x.key_b == key_b) or x.key_a == 0:
            return window + k * _EXECUTION_BYTES  # type: ignore[no-any-return]
    return window + (e.exec_used & 7) * _EXECUTION_BYTES  # type: ignore[no-any-return]


@kernel(inline=True)
def _close(arena: int, address: int) -> None:
    """Take an order that has just become terminal out of the working totals, and free its other leg.

    Only a REJECTED replacement gives the old order back: if it got in, the venue has ended the old one and will say so.
    """
    e = engine_at(arena)
    o = order_at(address)
    set_reserved(arena, address, 0)
    e.open_orders -= 1
    if o.replaced_by != 0:
        other = find_order(arena, o.replaced_by)
        if other != 0 and is_open(order_at(other).status):
            n = order_at(other)
            set_reserved(arena, other, n.order_qty - n.cum_qty)
    if o.orig != 0 and o.status == _REJECTED:
        other = find_order(arena, o.orig)
        if other != 0 and order_at(other).status == _PENDING_REPLACE:
            old = order_at(other)
            old.status = _PARTIAL if old.cum_qty > 0 else _NEW


@kernel(inline=True)
def _refresh_reserved(arena: int, address: int) -> None:
    """Recompute the worst case of an open order and of the other leg of its replace."""
    o = order_at(address)
    leaves = o.order_qty - o.cum_qty
    if o.orig != 0:
        old_at = find_order(arena, o.orig)
        if old_at != 0 and is_open(order_at(old_at).status):
            old = order_at(old_at)
            leaves = max(0, leaves - (old.order_qty - old.cum_qty))
    set_reserved(arena, address, leaves)
    if o.replaced_by != 0:
        new_at = find_order(arena, o.replaced_by)
        if new_at != 0 and is_open(order_at(new_at).status):
            new = order_at(new_at)
            set_reserved(arena, new_at, max(0, (new.order_qty - new.cum_qty) - (o.order_qty - o.cum_qty)))


@kernel(inline=True)
def apply_report(
    arena: int,
    cl_ord_id: int,
    exec_type: int,
    px: int,
    qty: int,
    exec_id: int,
    venue_order_id: int,
    fee: int,
    fee_asset: int,
    ts: int,
) -> int:
    """Apply a venue's report to its order and the portfolio; return OK, ILLEGAL, DUPLICATE, FOREIGN or ILLEGAL_FILL.

    Parameters
    ----------
    cl_ord_id, exec_type : int64
        The order and `ExecType`.
    px, qty : int64
        Last price (ticks) and quantity (lots) of a FILL.
    exec_id : int64
        Execution id of a FILL, unique for the instrument and order.
    venue_order_id, fee, fee_asset : int64
        As in REPORT_PAYLOAD; fee in 1e-8 of the asset, > 0 paid.
    ts : int64
        Time of the row, ns.
    """
    e = engine_at(arena)
    e.reports += 1
    address = find_order(arena, cl_ord_id)
    if address == 0:
        e.foreign_reports += 1
        return FOREIGN
    o = order_at(address)
    if not 0 < exec_type < _N_EXEC:
        e.illegal_reports += 1
        return ILLEGAL
    following = _TABLE[o.status, exec_type]
    if exec_type == _FILL:
        key = (cl_ord_id << 12) | (o.instrument & 4095)
        seen = execution_at(_execution_slot(arena, key, exec_id))
        if seen.key_a == key and seen.key_b == exec_id:
            e.duplicate_fills += 1
            return DUPLICATE
        if following == 0 or qty <= 0 or qty > o.order_qty - o.cum_qty or px <= 0 or px > INT64_MAX // qty:
            e.illegal_reports += 1
            instrument_at(instrument_address(arena, o.instrument)).position_in_doubt = 1
            return ILLEGAL_FILL
        seen.key_a = key
        seen.key_b = exec_id
        e.exec_used += 1
    if following == 0 or (exec_type == _REPLACED and o.orig == 0):
        e.illegal_reports += 1
        return ILLEGAL
    was_open = is_open(o.status)
    if venue_order_id != 0:
        o.venue_order_id = venue_order_id
    if exec_type in (_ACK, _REPLACED) and o.ts_ack == 0:
        o.ts_ack = ts
    if exec_type == _FILL:
        e.fills += 1
        o.cum_qty += qty
        o.cost += px * qty
        at = instrument_address(arena, o.instrument)
        settle_fill(at, o.side, px, qty)
        inst = instrument_at(at)
        if fee_asset == inst.quote_asset:
            inst.fee_quote += fee
        elif fee_asset == inst.base_asset:
            inst.fee_base += fee
        else:
            inst.fee_other += fee
        if was_open and o.cum_qty == o.order_qty:
            following = _FILLED
    elif exec_type == _REPLACED:
        old_at = find_order(arena, o.orig)
        if old_at != 0 and is_open(order_at(old_at).status):
            order_at(old_at).status = _CANCELED
            _close(arena, old_at)
    if following == _NEW:
        if o.cum_qty > 0:
            following = _PARTIAL
        elif exec_type == _CANCEL_REJECT and o.ts_ack == 0:
            following = _PENDING_NEW
    o.status = following
    if was_open:
        if is_open(following):
            _refresh_reserved(arena, address)
        else:
            _close(arena, address)
    return OK


@kernel(inline=True)
def mark_in_flight_unknown(arena: int) -> int:
    """Mark every order whose last request has no answer as UNKNOWN; return how many. For a restart."""
    e = engine_at(arena)
    marked = 0
    for slot in range(e.order_mask + 1):
        o = order_at(arena + e.off_orders + slot * _ORDER_BYTES)
        if o.status == _PENDING_NEW or o.status == _PENDING_CANCEL or o.status == _PENDING_REPLACE:
            o.status = _UNKNOWN
            marked += 1
    return marked


def transition_rows() -> list[tuple[str, str, str]]:
    """Return the table as (state, report, next state) names, for documentation and diagrams.

    Examples
    --------
    >>> ("NEW", "CANCELED", "CANCELED") in transition_rows()
    True
    """
    return [(state.name, report.name, to.name) for state, row in TRANSITIONS.items() for report, to in row.items()]


@kernel()
def sent_rows(commands: Any, stamps: Any, out: Any) -> int:
    """Write a SENT row for each order row of `commands` into `out`; return how many.

    Parameters
    ----------
    commands : array of ROW
        Order rows, each followed by its payload.
    stamps : int64 array
        When each was sent, ns UTC.
    out : array of ROW
        At least as many rows as there are orders; overwritten.
    """
    n = 0
    i = 0
    while i < len(commands):
        order = commands[i]
        row = out[n]
        row.seq = 0
        row.source = 0
        row.kind = _SENT
        row.span = 0
        row.ts_recv = stamps[n]
        row.ts_event = stamps[n]
        row.instrument = order.instrument
        row.flags = 0
        row.code = 0
        row.px = 0
        row.qty = 0
        row.a = order.a
        row.b = order.seq
        i += 1 + int(order.span)
        n += 1
    return n
