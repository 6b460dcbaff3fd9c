"""Pre-trade risk: the only code that writes SUBMIT and REPLACE_ORDER rows.

A strategy asks; these kernels check, reserve the worst case, write the row, or refuse with a reason, at once and in
both forms of a strategy. The checks run in one order (state of session and book, shape, size, price collar, position,
open orders, rate), so the first reason is the same everywhere. They fail closed: a missing or crossed touch, an
overflow, a book that is not live or a limit of 0 refuses. All integers: there is no NaN to slip through a comparison.

Worst cases: a buy is checked as if every working buy filled and no sell did. A replace is checked as if the worse of
old and new stood. The order rate is a leaky bucket in whole nanoseconds (the generic cell rate algorithm): `rate_tat`
is the time at which the bucket would be empty again; a full bucket's worth may go at once, and then one at each
interval. Cancels are never throttled.

A strategy that asks in vain at every turn of a loop must not fill the journal: refusals of one atom that agree in
instrument, side and reason share one REFUSED row, with the price and quantity of the first and their number in ``a``.

A callback that fails is undone: before an order slot changes, what it held goes to a log, and `undo_orders` lays it
back newest first, so that not a byte of the order table tells of the callback.
"""

from __future__ import annotations

from hftlab.core.instruments import INT64_MAX
from hftlab.core.rows import NAT, NO_PX, ROW, BookState, Flag, Kind, OrdStatus, OrdType, Reason, Side, Tif
from hftlab.kernels.jit import copy_bytes, kernel, load, store
from hftlab.kernels.ladder import best_px
from hftlab.kernels.latency import spend, ticks
from hftlab.kernels.orders import (
    find_order,
    instrument_address,
    is_open,
    order_address,
    set_reserved,
)
from hftlab.kernels.state import (
    HOST,
    MAX_OUTPUT_ROWS,
    MAX_REFUSED_ROWS,
    ORDER,
    UNDO,
    engine_at,
    host_at,
    instrument_at,
    order_at,
    order_payload_at,
    row_at,
    undo_at,
)

__all__ = [
    "NO_UNDO",
    "apply_order_row",
    "best_ask",
    "best_bid",
    "cancel",
    "cancel_all",
    "emit",
    "replace",
    "submit",
    "undo_orders",
]

NO_UNDO = -1
"""``undo_n`` of the HOST record outside callbacks: nothing is logged, because nothing will be undone."""

_PX_MAX = 2**60
"""Prices beyond it are refused: twice a price, less a touch, must not leave int64."""

_LIVE = int(BookState.LIVE)
_BUY, _SELL = int(Side.BUY), int(Side.SELL)
_GTC, _IOC, _FOK, _DAY = int(Tif.GTC), int(Tif.IOC), int(Tif.FOK), int(Tif.DAY)
_OUTPUT, _POST_ONLY = int(Flag.OUTPUT), int(Flag.POST_ONLY)
_SUBMIT, _CANCEL, _REPLACE, _REFUSED, _CONT = (
    int(Kind.SUBMIT), int(Kind.CANCEL), int(Kind.REPLACE_ORDER), int(Kind.REFUSED), int(Kind.CONT),
)  # fmt: skip
_PENDING_NEW, _PENDING_CANCEL, _PENDING_REPLACE = (
    int(OrdStatus.PENDING_NEW), int(OrdStatus.PENDING_CANCEL), int(OrdStatus.PENDING_REPLACE),
)  # fmt: skip
_NEW, _PARTIAL, _UNKNOWN = int(OrdStatus.NEW), int(OrdStatus.PARTIALLY_FILLED), int(OrdStatus.UNKNOWN)
_MARKET = int(OrdType.MARKET)
_R = Reason
(_KILL, _BOOK, _FAT_QTY, _FAT_NOTIONAL, _POSITION, _COLLAR, _THROTTLE) = (
    int(_R.KILL_SWITCH), int(_R.BOOK_STATE), int(_R.FAT_FINGER_QTY), int(_R.FAT_FINGER_NOTIONAL), int(_R.POSITION),
    int(_R.PRICE_COLLAR), int(_R.THROTTLE),
)  # fmt: skip
(_BAD_SIDE, _BAD_PX, _BAD_QTY, _BAD_TIF, _NO_INSTRUMENT, _NO_ORDER, _OPEN_ORDERS, _OVERFLOW, _ATOM_FULL, _HALTED) = (
    int(_R.BAD_SIDE), int(_R.BAD_PX), int(_R.BAD_QTY), int(_R.BAD_TIF), int(_R.UNKNOWN_INSTRUMENT),
    int(_R.UNKNOWN_ORDER), int(_R.OPEN_ORDERS), int(_R.OVERFLOW), int(_R.ATOM_FULL), int(_R.STRATEGY_HALTED),
)  # fmt: skip
_ORDER_STATE, _DOUBT, _DISCONNECTED = int(_R.ORDER_STATE), int(_R.POSITION_DOUBT), int(_R.DISCONNECTED)
_REDUCE_ONLY = int(Flag.REDUCE_ONLY)
_ALLOWED_FLAGS = _POST_ONLY | _REDUCE_ONLY
_ORDER_BYTES, _UNDO_BYTES = ORDER.itemsize, UNDO.itemsize
_SAVED_AT = int(UNDO.fields["order"][1])  # type: ignore[index]  # a structured dtype has fields
_REFUSED_AT = int(HOST.fields["refused"][1])  # type: ignore[index]  # a structured dtype has fields
_A_AT = int(ROW.fields["a"][1])  # type: ignore[index]  # a structured dtype has fields
_NO_PX, _MARKET_PX = NO_PX, NAT


@kernel(inline=True)
def emit(host: int, kind: int, span: int) -> int:
    """Start an output row at the end of the atom and return its address; the caller fills the rest.

    Rows are zeroed first: the memory may hold a discarded atom.
    """
    h = host_at(host)
    address = h.out + 64 * h.out_n
    for k in range(0, 64 * (1 + span), 8):
        store(address + k, 0)
    for k in range(span + 1):
        r = row_at(address + 64 * k)
        r.seq = h.seq + h.out_n + k
        r.source = 0
        r.kind = kind if k == 0 else _CONT
        r.span = span
    r = row_at(address)
    r.ts_recv = h.now_ns
    r.ts_event = NAT
    r.flags = _OUTPUT
    h.out_n += 1 + span
    return address  # type: ignore[no-any-return]


@kernel(inline=True)
def best_bid(arena: int, instrument: int) -> int:
    """Return the best bid in ticks of the instrument at that address, from the book or a newer quote; NO_PX if none."""
    inst = instrument_at(instrument)
    if inst.quote_seq > inst.book_seq:
        return inst.quote_bid_px  # type: ignore[no-any-return]
    return best_px(arena + inst.off_bids, 1)


@kernel(inline=True)
def best_ask(arena: int, instrument: int) -> int:
    """Return the best ask in ticks of the instrument at that address, from the book or a newer quote; NO_PX if none."""
    inst = instrument_at(instrument)
    if inst.quote_seq > inst.book_seq:
        return inst.quote_ask_px  # type: ignore[no-any-return]
    return best_px(arena + inst.off_asks, -1)


@kernel(inline=True)
def _refusal(
    arena: int, at: int, side: int, px: int, qty: int, tif: int, flags: int, extra: int, opening: int
) -> int:
    """Return 0 if an order may go out, else the reason.

    ``extra`` is what the order adds to the working lots of its side, ``opening`` 1 if it needs an order slot.
    """
    e = engine_at(arena)
    inst = instrument_at(at)
    if e.kill_switch != 0:
        return _KILL
    if e.strategy_halted != 0 or e.started == 0:
        return _HALTED
    if e.disconnected != 0:
        return _DISCONNECTED
    if inst.book_state != _LIVE:
        return _BOOK
    if inst.position_in_doubt != 0:
        return _DOUBT
    if side != _BUY and side != _SELL:
        return _BAD_SIDE
    if tif != _GTC and tif != _IOC and tif != _FOK and tif != _DAY:
        return _BAD_TIF
    if flags & ~_ALLOWED_FLAGS != 0 or (flags & _POST_ONLY != 0 and tif != _GTC and tif != _DAY):
        return _BAD_TIF
    if qty < max(1, inst.min_qty) or qty > inst.max_qty:
        return _BAD_QTY
    if qty > inst.max_order_qty:
        return _FAT_QTY
    bid = best_bid(arena, at)
    ask = best_ask(arena, at)
    if bid == _NO_PX or ask == _NO_PX or bid >= ask:
        return _BOOK
    reference = px
    if px == _MARKET_PX:  # a market order: priced at the far touch, and it may not rest
        if tif != _IOC and tif != _FOK:
            return _BAD_TIF
        reference = ask if side == _BUY else bid
    elif px <= 0:
        return _BAD_PX
    if reference <= 0 or reference > _PX_MAX or bid < -_PX_MAX or ask > _PX_MAX or qty > INT64_MAX // reference:
        return _OVERFLOW
    notional = reference * qty
    if notional > inst.max_notional:
        return _FAT_NOTIONAL
    if notional < inst.min_notional:
        return _BAD_QTY
    if abs(2 * reference - bid - ask) > 2 * inst.collar_ticks:
        return _COLLAR
    headroom = inst.max_position - inst.position - inst.working_buy
    closing = -inst.position - inst.working_buy
    if side == _SELL:
        headroom = inst.max_position + inst.position - inst.working_sell
        closing = inst.position - inst.working_sell
    if extra > headroom or (flags & _REDUCE_ONLY != 0 and extra > max(0, closing)):
        return _POSITION
    if opening != 0 and e.open_orders >= e.max_open_orders:
        return _OPEN_ORDERS
    if e.rate_interval_ns <= 0 or max(e.rate_tat, e.now_ns) + e.rate_interval_ns > e.now_ns + e.rate_window_ns:
        return _THROTTLE
    return 0


@kernel(inline=True)
def _refuse(host: int, instrument: int, side: int, px: int, qty: int, orig: int, reason: int) -> int:
    h = host_at(host)
    engine_at(h.arena).refusals += 1
    for k in range(h.refused_n):
        row = h.out + 64 * load(host + _REFUSED_AT + 8 * k)
        r = row_at(row)
        if int(r.instrument) == instrument and int(r.flags) & 3 == side & 3 and int(r.code) == reason:
            store(row + _A_AT, load(row + _A_AT) + 1)
            return -reason
    if h.refused_n < MAX_REFUSED_ROWS and h.out_n - h.atom_start + 1 <= MAX_OUTPUT_ROWS:
        store(host + _REFUSED_AT + 8 * h.refused_n, h.out_n)
        h.refused_n += 1
        r = row_at(emit(host, _REFUSED, 0))
        r.a = 1
        r.instrument = instrument
        r.flags = _OUTPUT | (side & 3)
        r.code = reason
        r.px = px
        r.qty = qty
        r.b = orig
    return -reason


@kernel(inline=True)
def _next_id(arena: int) -> int:
    """Take the next client order id whose slot is free."""
    e = engine_at(arena)
    cl_ord_id = e.next_order_id
    while is_open(order_at(order_address(arena, cl_ord_id)).status):
        cl_ord_id += 1
    e.next_order_id = cl_ord_id + 1
    return cl_ord_id  # type: ignore[no-any-return]


@kernel(inline=True)
def _open(
    arena: int, cl_ord_id: int, instrument: int, side: int, px: int, qty: int, tif: int, flags: int, orig: int
) -> int:
    """Lay a new order into its slot and take one order from the rate bucket; return the slot's address."""
    e = engine_at(arena)
    address = order_address(arena, cl_ord_id)
    o = order_at(address)
    o.cl_ord_id = cl_ord_id
    o.instrument = instrument
    o.side = side
    o.px = px
    o.order_qty = qty
    o.cum_qty = 0
    o.reserved = 0
    o.status = _PENDING_NEW
    o.tif = tif
    o.flags = flags
    o.orig = orig
    o.replaced_by = 0
    o.venue_order_id = 0
    o.ts_submit = e.now_ns
    o.ts_ack = 0
    o.cost = 0
    e.open_orders += 1
    e.rate_tat = max(e.rate_tat, e.now_ns) + e.rate_interval_ns
    return address


@kernel(inline=True)
def _replace_in_flight(arena: int, at: int) -> bool:
    """Return whether the venue has yet to answer a replace of the order; until then it is not touched again."""
    o = order_at(at)
    new = find_order(arena, o.replaced_by)
    return new != 0 and is_open(order_at(new).status)


@kernel(inline=True)
def _remember(host: int, slot: int) -> None:
    """Log what an order slot holds, before a callback changes it."""
    h = host_at(host)
    if h.undo_n == NO_UNDO:
        return
    log = h.arena + engine_at(h.arena).off_undo + h.undo_n * _UNDO_BYTES
    undo_at(log).slot = slot - h.arena
    copy_bytes(log + _SAVED_AT, slot, _ORDER_BYTES)
    h.undo_n += 1


@kernel(inline=True)
def _now(latency: int) -> int:
    return ticks() if latency != 0 else 0


@kernel(inline=True)
def _spend_risk(latency: int, started: int) -> int:
    """Add the cycles since `started` to those spent on risk; return the moment."""
    now = 0
    if latency != 0:
        now = ticks()
        spend(latency, 0, now - started)
    return now


@kernel(inline=True)
def _spend_rows(latency: int, started: int) -> None:
    if latency != 0:
        spend(latency, 1, ticks() - started)


@kernel("int64(int64, int64, int64, int64, int64, int64, int64)")
def submit(host: int, instrument: int, side: int, px: int, qty: int, tif: int, flags: int) -> int:
    """Check a new order and write its SUBMIT row; return its cl_ord_id, or the negative `Reason`.

    Parameters
    ----------
    host : int64
        Address of the HOST record.
    instrument, side : int64
        Index; 1 buy, 2 sell.
    px, qty : int64
        Ticks (NAT: a market order, IOC or FOK) and lots.
    tif, flags : int64
        `Tif`; POST_ONLY, REDUCE_ONLY.
    """
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    if instrument < 0 or instrument >= e.n_instruments:
        return _refuse(host, 0, side, px, qty, 0, _NO_INSTRUMENT)
    if h.out_n - h.atom_start + 2 > MAX_OUTPUT_ROWS:
        return _refuse(host, instrument, side, px, qty, 0, _ATOM_FULL)
    at = instrument_address(arena, instrument)
    started = _now(h.latency)
    reason = _refusal(arena, at, side, px, qty, tif, flags, qty, 1)
    checked = _spend_risk(h.latency, started)
    if reason != 0:
        return _refuse(host, instrument, side, px, qty, 0, reason)
    cl_ord_id = _next_id(arena)
    _remember(host, order_address(arena, cl_ord_id))
    address = _open(arena, cl_ord_id, instrument, side, px, qty, tif, flags, 0)
    set_reserved(arena, address, qty)
    e.submits += 1
    is_market = px == _MARKET_PX
    row = emit(host, _SUBMIT, 1 if is_market else 0)
    r = row_at(row)
    r.instrument = instrument
    r.flags = _OUTPUT | side | flags
    r.code = tif
    r.px = px
    r.qty = qty
    r.a = cl_ord_id
    if is_market:
        order_payload_at(row + 64).ord_type = _MARKET
    _spend_rows(h.latency, checked)
    return cl_ord_id


@kernel("int64(int64, int64, int64, int64)")
def replace(host: int, cl_ord_id: int, px: int, qty: int) -> int:
    """Check new price and quantity of an open order and write its REPLACE_ORDER row.

    ``qty`` is the whole quantity of the new order. Returns the new cl_ord_id, or the negative `Reason`.
    """
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    old_at = find_order(arena, cl_ord_id)
    if old_at == 0:
        return _refuse(host, 0, 0, px, qty, cl_ord_id, _NO_ORDER)
    old = order_at(old_at)
    if h.out_n - h.atom_start + 2 > MAX_OUTPUT_ROWS:
        return _refuse(host, old.instrument, old.side, px, qty, cl_ord_id, _ATOM_FULL)
    if (old.status != _NEW and old.status != _PARTIAL) or _replace_in_flight(arena, old_at):
        return _refuse(host, old.instrument, old.side, px, qty, cl_ord_id, _ORDER_STATE)
    at = instrument_address(arena, old.instrument)
    extra = max(0, qty - (old.order_qty - old.cum_qty))
    started = _now(h.latency)
    reason = _refusal(arena, at, old.side, px, qty, old.tif, old.flags, extra, 1)
    checked = _spend_risk(h.latency, started)
    if reason != 0:
        return _refuse(host, old.instrument, old.side, px, qty, cl_ord_id, reason)
    new_id = _next_id(arena)
    _remember(host, order_address(arena, new_id))
    _remember(host, old_at)
    address = _open(arena, new_id, old.instrument, old.side, px, qty, old.tif, old.flags, cl_ord_id)
    set_reserved(arena, address, extra)
    old.status = _PENDING_REPLACE
    old.replaced_by = new_id
    e.replaces += 1
    r = row_at(emit(host, _REPLACE, 0))
    r.instrument = old.instrument
    r.flags = _OUTPUT | old.side | old.flags
    r.code = old.tif
    r.px = px
    r.qty = qty
    r.a = new_id
    r.b = cl_ord_id
    _spend_rows(h.latency, checked)
    return new_id


@kernel(inline=True)
def _mark_cancel(arena: int, at: int) -> None:
    """Put an open order into PENDING_CANCEL, unless doubt or a replace in flight says more about it."""
    o = order_at(at)
    if o.status == _UNKNOWN or (o.status == _PENDING_REPLACE and _replace_in_flight(arena, at)):
        return
    if is_open(o.status):
        o.status = _PENDING_CANCEL


@kernel(inline=True)
def _write_cancel(host: int, at: int) -> None:
    h = host_at(host)
    o = order_at(at)
    _mark_cancel(h.arena, at)
    engine_at(h.arena).cancels += 1
    r = row_at(emit(host, _CANCEL, 0))
    r.instrument = o.instrument
    r.flags = _OUTPUT | o.side
    r.px = o.px
    r.qty = o.order_qty - o.cum_qty
    r.a = o.cl_ord_id


@kernel("int64(int64, int64)")
def cancel(host: int, cl_ord_id: int) -> int:
    """Write a CANCEL row for an open order; return its cl_ord_id, or the negative `Reason`. Never throttled."""
    h = host_at(host)
    arena = h.arena
    at = find_order(arena, cl_ord_id)
    if at == 0:
        return -_NO_ORDER
    o = order_at(at)
    if not is_open(o.status) or o.status == _PENDING_CANCEL:
        return -_ORDER_STATE
    if o.status == _PENDING_REPLACE and _replace_in_flight(arena, at):
        return -_ORDER_STATE
    if h.out_n - h.atom_start + 2 > MAX_OUTPUT_ROWS:
        return -_ATOM_FULL
    started = _now(h.latency)
    _remember(host, at)
    _write_cancel(host, at)
    _spend_rows(h.latency, started)
    return cl_ord_id


@kernel("int64(int64)")
def cancel_all(host: int) -> int:
    """Write a CANCEL row for every open order, replaces in flight included; return how many."""
    h = host_at(host)
    e = engine_at(h.arena)
    n = 0
    for slot in range(e.order_mask + 1):
        at = h.arena + e.off_orders + slot * _ORDER_BYTES
        status = order_at(at).status
        if is_open(status) and status != _PENDING_CANCEL:
            _write_cancel(host, at)
            n += 1
    return n


@kernel(inline=True)
def apply_order_row(arena: int, row: int) -> None:
    """Apply an order row as it stands in a journal, for a replica: no check, the engine that wrote it made them."""
    r = row_at(row)
    e = engine_at(arena)
    kind = int(r.kind)
    cl_ord_id = load(row + 48)
    if kind == _CANCEL:
        e.cancels += 1
        address = find_order(arena, cl_ord_id)
        if address != 0:
            _mark_cancel(arena, address)
        return
    flags = int(r.flags)
    orig = load(row + 56)
    address = _open(
        arena, cl_ord_id, int(r.instrument), flags & 3, r.px, r.qty, int(r.code), flags & _ALLOWED_FLAGS, orig
    )
    e.next_order_id = cl_ord_id + 1
    reserved = r.qty
    if kind == _REPLACE:
        e.replaces += 1
        old_at = find_order(arena, orig)
        if old_at != 0:
            old = order_at(old_at)
            old.status = _PENDING_REPLACE
            old.replaced_by = cl_ord_id
            reserved = max(0, r.qty - (old.order_qty - old.cum_qty))
    else:
        e.submits += 1
    set_reserved(arena, address, reserved)


@kernel(inline=True)
def undo_orders(host: int) -> None:
    """Lay back the order slots that the callback in work has changed, newest first, with what they held reserved."""
    h = host_at(host)
    arena = h.arena
    while h.undo_n > 0:
        h.undo_n -= 1
        log = arena + engine_at(arena).off_undo + h.undo_n * _UNDO_BYTES
        slot = arena + undo_at(log).slot
        set_reserved(arena, slot, 0)
        copy_bytes(slot, log + _SAVED_AT, _ORDER_BYTES)
        lots = order_at(slot).reserved
        order_at(slot).reserved = 0
        set_reserved(arena, slot, lots)
