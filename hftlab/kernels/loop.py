"""The engine's loop: one input row at a time, apply, decide, commit.

``run`` takes input rows and writes a journal: each input row is copied out, applied to the state, and if it wakes the
strategy, the rows the strategy caused follow it. The input and all it caused are an *atom*; its last row carries
COMMIT. The budget is counted in rows, never in time, so how a host slices its calls cannot change a result.

Compiled strategies are called by address. For a strategy in plain Python the loop returns WAKE and is entered again
when the callback has run: the same code before and after, so both forms leave the same bytes.

When a callback fails (an exception, or more than `TURNS` loop turns), its order rows are undone newest first, header,
state and timers are restored from the copy made before the call, and ``run`` returns FAULT so that the host can copy
what a later rerun in plain Python needs to give a traceback. Entered again at once, the loop writes the FAULT row,
halts the strategy and cancels every open order, all in the same atom.

Time is the largest ``ts_recv`` so far: a row that is late does not turn it back. What turns it back, or explains a
leap, is a CLOCK_STEP row (px: the step in ns): time becomes that row's, and what is measured from it moves along.
Pending timers keep what was left of their intervals; the order rate's bucket is never more than full. A row whose time
is far ahead for no reason stops the clock, and with it timers and rate, until time catches up or a CLOCK_STEP row,
whose step may be 0, brings it back: nothing else does.

The event a strategy sees is the input row as the journal holds it: with its number, and without the marks (COMMIT,
OUTPUT) that differ between a first run and a replay.
"""

from __future__ import annotations

from typing import Any

from hftlab.core.rows import NO_PX, BookState, ExecType, Flag, Kind
from hftlab.kernels.jit import call_at, copy_bytes, kernel, load, store
from hftlab.kernels.ladder import best_px, best_qty, clear_side, has_best, level_px, level_qty, set_key
from hftlab.kernels.latency import (
    APPLY,
    ORDER_ROWS,
    RISK,
    STRATEGY,
    add_cycles,
    fold_noted,
    mark,
    since_mark,
    spent,
    ticks,
)
from hftlab.kernels.orders import (
    FOREIGN,
    ILLEGAL,
    ILLEGAL_FILL,
    OK,
    apply_report,
    find_order,
    instrument_address,
    is_open,
    mark_in_flight_unknown,
)
from hftlab.kernels.risk import NO_UNDO, apply_order_row, best_ask, best_bid, cancel_all, emit, undo_orders
from hftlab.kernels.state import (
    ATOM_ROWS,
    ENGINE,
    HOST,
    MAX_OUTPUT_ROWS,
    TIMER,
    engine_at,
    host_at,
    instrument_at,
    order_at,
    report_payload_at,
    row_at,
    timer_at,
)

__all__ = [
    "BAD_ROW",
    "BUDGET",
    "DONE",
    "FAULT",
    "FULL",
    "MAX_TIMERS",
    "PYTHON",
    "TURNS",
    "WAKE",
    "collect_commands",
    "due_timer",
    "enter",
    "enter_held",
    "note",
    "query",
    "random_bits",
    "roll_back",
    "run",
    "set_timer",
]

DONE, WAKE, FULL, FAULT, BUDGET, BAD_ROW = 0, 1, 2, 3, 4, 5
"""Why `run` returned: input used up; a Python callback must run; output room must grow; a callback failed; rows spent;
the next input row is no row (unwritten, a payload without its head, or a head whose payload is not there)."""

PYTHON = 1
"""Entry of the callback table for a callback that runs in plain Python; 0 is none, anything else an address."""

TURNS = 1_000_000
"""Loop turns one callback may take before it counts as never returning."""

MAX_TIMERS = 64
NEXT, RETURNED, RAISED = 0, 1, 2
"""Phases: take the next row; a Python callback returned; a callback failed and the fault must be written."""

FAULT_STRATEGY, FAULT_REPORT, FAULT_INSTRUMENT = 1, 2, 3
"""Codes of FAULT rows: a callback failed (a = callback); an illegal report (a = cl_ord_id, b = status | exec_type << 8)
or a fill of an order so old that the table has forgotten it (status 0); a row named an instrument the session does not
have (a = instrument, b = kind)."""

START, STOP, HALT, RESUME, CANCEL_ALL, DISCONNECT, CONNECT, CONFIRM_POSITION = 1, 2, 3, 4, 5, 6, 7, 8
"""Codes of CONTROL rows. DISCONNECT: the order connection is down, so nothing new may be sent, until CONNECT.
CONFIRM_POSITION: the operator's word, after checking with the venue, that the positions are as the engine has them; no
position of any instrument is in doubt any more."""

(POSITION, BEST_BID, BEST_ASK, BEST_BID_QTY, BEST_ASK_QTY, DEPTH_PX, DEPTH_QTY, OPEN_ORDERS, BOOK_STATE, ORDER_STATUS,
 ORDER_LEAVES, ORDER_PX, WORKING_BUY, WORKING_SELL, LAST_PX) = range(1, 16)  # fmt: skip
"""What `query` answers."""

ON_START, ON_BOOK, ON_TRADE, ON_EXECUTION, ON_TIMER, ON_GAP, ON_STOP = range(7)

_call1, _call4 = call_at(1), call_at(4)
_CALLBACKS_AT = int(HOST.fields["callbacks"][1])  # type: ignore[index]
_ENGINE_BYTES, _TIMER_BYTES = ENGINE.itemsize, TIMER.itemsize
_TIMERS_BYTES = MAX_TIMERS * TIMER.itemsize
_LIVE, _EMPTY, _CROSSED, _RESYNCING = (
    int(BookState.LIVE), int(BookState.EMPTY), int(BookState.CROSSED), int(BookState.RESYNCING),
)  # fmt: skip
_BID, _ASK, _LAST, _COMMIT, _OUTPUT, _SNAPSHOT = (
    int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.COMMIT), int(Flag.OUTPUT), int(Flag.SNAPSHOT),
)  # fmt: skip
_K = Kind
_LEVEL, _QUOTE, _CLEAR, _TRADE, _BOOK_STATE, _REPORT = (
    int(_K.LEVEL), int(_K.QUOTE), int(_K.CLEAR), int(_K.TRADE), int(_K.BOOK_STATE), int(_K.REPORT),
)  # fmt: skip
_CONTROL, _TIMER, _RESTART, _FAULT_KIND, _NOTE, _CLOCK_STEP = (
    int(_K.CONTROL), int(_K.TIMER), int(_K.RESTART), int(_K.FAULT), int(_K.NOTE), int(_K.CLOCK_STEP),
)  # fmt: skip
_NO_PX = NO_PX
_FILL, _CONT = int(ExecType.FILL), int(_K.CONT)
_TIME_MAX = 2**62
"""Times from the year 2116 on are not believed: one would stop the clock for good, and sums with it leave int64."""
_SUBMIT, _CANCEL, _REPLACE, _REFUSED = (
    int(_K.SUBMIT), int(_K.CANCEL), int(_K.REPLACE_ORDER), int(_K.REFUSED),
)  # fmt: skip


@kernel(inline=True)
def _signed(value: int) -> int:
    """Return a row's unsigned word as int64: mixing the two in one expression would make a float."""
    return int(value)


@kernel(inline=True)
def _set_level(bids: int, asks: int, flags: int, px: int, qty: int) -> None:
    """Set a level of the side that a row names; what names none is an ask."""
    is_bid = flags & _BID != 0
    set_key(bids if is_bid else asks, px if is_bid else -px, qty)


@kernel(inline=True)
def _judge_crossed(arena: int, at: int) -> None:
    """Move a live book to CROSSED when its best bid is not below its best ask, and back."""
    inst = instrument_at(at)
    if inst.book_state != _LIVE and inst.book_state != _CROSSED:
        return
    bids, asks = arena + inst.off_bids, arena + inst.off_asks
    crossed = has_best(bids) and has_best(asks) and best_px(bids, 1) >= best_px(asks, -1)
    inst.book_state = _CROSSED if crossed else _LIVE


@kernel(inline=True)
def _quote(arena: int, at: int, flags: int, px: int, qty: int, seq: int) -> int:
    """Take one side of a top-of-book quote; return ON_BOOK when a newer top is complete, else -1."""
    inst = instrument_at(at)
    if seq <= inst.book_seq or seq < inst.quote_seq:
        return -1
    if inst.quote_seq <= inst.book_seq:  # the other side may not come: start from the book's own top
        bids, asks = arena + inst.off_bids, arena + inst.off_asks
        inst.quote_bid_px = best_px(bids, 1)
        inst.quote_bid_qty = best_qty(bids)
        inst.quote_ask_px = best_px(asks, -1)
        inst.quote_ask_qty = best_qty(asks)
        inst.quote_seq = seq
    if flags & _BID != 0:
        inst.quote_bid_px = px
        inst.quote_bid_qty = qty
    else:
        inst.quote_ask_px = px
        inst.quote_ask_qty = qty
    inst.quote_seq = seq
    if flags & _LAST != 0 and inst.book_state == _LIVE:
        return ON_BOOK
    return -1


@kernel(inline=True)
def _clear_book(arena: int, at: int) -> None:
    inst = instrument_at(at)
    clear_side(arena + inst.off_bids)
    clear_side(arena + inst.off_asks)
    inst.book_seq = 0
    inst.quote_seq = 0


@kernel(inline=True)
def _refresh_deadline(arena: int) -> None:
    e = engine_at(arena)
    deadline = 0
    for k in range(MAX_TIMERS):
        t = timer_at(arena + e.off_timers + k * _TIMER_BYTES)
        if t.pending != 0 and (deadline == 0 or t.deadline < deadline):
            deadline = t.deadline
    e.next_deadline = deadline


@kernel(inline=True)
def _step_clock(arena: int, now_ns: int, step: int) -> None:
    """Take a new time, and move what is measured from it by `step` ns.

    A timer set after a leap ahead, but before the row that explains it, is on the new time already and stays.
    """
    e = engine_at(arena)
    if not (0 <= now_ns < _TIME_MAX and -_TIME_MAX < step < _TIME_MAX):
        return
    e.now_ns = now_ns
    e.rate_tat = min(e.rate_tat + step, now_ns + e.rate_window_ns)
    for k in range(MAX_TIMERS):
        t = timer_at(arena + e.off_timers + k * _TIMER_BYTES)
        if t.pending != 0 and t.set_ns <= now_ns - step:
            t.set_ns += step
            if 0 < t.deadline < _TIME_MAX:  # one beyond is never, whatever the clock says
                t.deadline = max(1, t.deadline + step)
    _refresh_deadline(arena)


@kernel(inline=True)
def _fault_row(host: int, code: int, a: int, b: int) -> None:
    if engine_at(host_at(host).arena).is_replica != 0:
        return  # the journal holds the row already
    engine_at(host_at(host).arena).faults += 1
    r = row_at(emit(host, _FAULT_KIND, 0))
    r.code = code
    r.a = a
    r.b = b


@kernel(inline=True)
def _apply_report_row(host: int, arena: int, row: int) -> int:
    r = row_at(row)
    exec_type = r.code & 255
    venue_order_id = 0
    fee = 0
    fee_asset = -1
    if r.span > 0:
        p = report_payload_at(row + 64)
        venue_order_id = _signed(p.venue_order_id)
        fee = p.fee
        fee_asset = _signed(p.fee_asset)
    cl_ord_id = _signed(r.a)
    outcome = apply_report(
        arena, cl_ord_id, _signed(exec_type), r.px, r.qty, _signed(r.b), venue_order_id, fee, fee_asset, r.ts_recv
    )
    if outcome == OK:
        return ON_EXECUTION
    at = find_order(arena, cl_ord_id)
    if outcome in (ILLEGAL, ILLEGAL_FILL):  # a duplicate is only counted
        _fault_row(host, FAULT_REPORT, cl_ord_id, order_at(at).status | (_signed(exec_type) << 8))
    elif outcome == FOREIGN and exec_type == _FILL and 0 < cl_ord_id < engine_at(arena).next_order_id:
        instrument = _signed(r.instrument)  # ours once, and forgotten: its lots are in no position
        if instrument < engine_at(arena).n_instruments:
            instrument_at(instrument_address(arena, instrument)).position_in_doubt = 1
        _fault_row(host, FAULT_REPORT, cl_ord_id, _signed(exec_type) << 8)
    return -1


@kernel(inline=True)
def _apply_control(host: int, arena: int, code: int) -> int:
    e = engine_at(arena)
    if code == START:
        if e.started != 0:
            return -1
        e.started = 1
        return ON_START
    if code == STOP:
        return ON_STOP
    if code == HALT:
        e.kill_switch = 1
    elif code == RESUME:
        e.kill_switch = 0
    elif code == DISCONNECT:
        e.disconnected = 1
    elif code == CONNECT:
        e.disconnected = 0
    elif code == CONFIRM_POSITION:
        for k in range(e.n_instruments):
            instrument_at(instrument_address(arena, k)).position_in_doubt = 0
    if code in (HALT, CANCEL_ALL) and e.is_replica == 0:
        cancel_all(host)
    return -1


@kernel(inline=True)
def _apply(host: int, arena: int, row: int) -> int:
    """Apply one input row; return the callback it wakes, or -1."""
    r = row_at(row)
    e = engine_at(arena)
    kind = _signed(r.kind)
    if kind in (_LEVEL, _QUOTE, _CLEAR, _TRADE, _BOOK_STATE):
        instrument = _signed(r.instrument)
        if instrument >= e.n_instruments:
            _fault_row(host, FAULT_INSTRUMENT, instrument, kind)
            return -1
        at = instrument_address(arena, instrument)
        inst = instrument_at(at)
        flags = _signed(r.flags)
        if kind == _LEVEL:
            _set_level(arena + inst.off_bids, arena + inst.off_asks, flags, r.px, r.qty)
            inst.book_seq = _signed(r.a)  # of a snapshot too, which BOOK_STATE ends: older quotes are known for old
            if flags & _LAST != 0:
                _judge_crossed(arena, at)
                if inst.book_state == _LIVE and flags & _SNAPSHOT == 0:
                    return ON_BOOK
            return -1
        if kind == _QUOTE:
            return _quote(arena, at, flags, r.px, r.qty, _signed(r.a))
        if kind == _TRADE:
            inst.last_px = r.px
            inst.last_qty = r.qty
            inst.trades += 1
            return ON_TRADE if flags & _SNAPSHOT == 0 else -1  # history that a venue tells when one subscribes
        if kind == _CLEAR:
            _clear_book(arena, at)
            return -1
        code = _signed(r.code)
        if code == _RESYNCING and load(row + 56) != 0:  # got a sequence it did not expect; 0: the connection ended
            e.book_gaps += 1
        inst.book_state = code
        _judge_crossed(arena, at)
        return ON_BOOK if inst.book_state == _LIVE else ON_GAP
    if kind == _REPORT:
        return _apply_report_row(host, arena, row)
    if kind == _CONTROL:
        return _apply_control(host, arena, _signed(r.code))
    if kind == _TIMER:
        for k in range(MAX_TIMERS):
            t = timer_at(arena + e.off_timers + k * _TIMER_BYTES)
            if t.pending != 0 and t.timer_id == _signed(r.a):
                t.pending = 0
                e.n_timers -= 1
                _refresh_deadline(arena)
                return ON_TIMER
        return -1
    if kind == _RESTART:
        mark_in_flight_unknown(arena)
        e.started = 0
        for k in range(e.n_instruments):
            at = instrument_address(arena, k)
            _clear_book(arena, at)
            instrument_at(at).book_state = _EMPTY
    elif e.is_replica != 0 and _signed(r.flags) & _OUTPUT != 0:
        if kind in (_SUBMIT, _CANCEL, _REPLACE):
            apply_order_row(arena, row)
        elif kind == _FAULT_KIND:
            e.faults += 1
            if r.code == FAULT_STRATEGY:
                e.strategy_halted = 1
        elif kind == _REFUSED:
            e.refusals += _signed(r.a)
    return -1


@kernel(inline=True)
def _is_whole(row: int, span: int) -> bool:
    """Return whether the row is a head and its payload follows it."""
    if row_at(row).kind <= _CONT:
        return False
    k = 1
    while k <= span and row_at(row + 64 * k).kind == _CONT:
        k += 1
    return k > span


@kernel(inline=True)
def _begin(host: int, row: int, span: int) -> int:
    """Copy an input row and its payload to the output, stamp their heads; return the copy's address."""
    h = host_at(host)
    copy = h.out + 64 * h.out_n
    copy_bytes(copy, row, 64 * (1 + span))
    head = row_at(copy)
    head.seq = h.seq + h.out_n
    head.flags = head.flags & ~(_COMMIT | _OUTPUT)
    for k in range(1, span + 1):
        r = row_at(copy + 64 * k)
        r.seq = h.seq + h.out_n + k
        r.source = head.source
        r.span = head.span
    h.atom_start = h.out_n
    h.out_n += 1 + span
    h.refused_n = 0
    e = engine_at(h.arena)
    e.rows_applied += 1
    time = row_at(row).ts_recv
    if head.kind == _CLOCK_STEP:
        _step_clock(h.arena, time, head.px)
    elif e.now_ns < time < _TIME_MAX:
        e.now_ns = time
    h.now_ns = e.now_ns
    return copy  # type: ignore[no-any-return]


@kernel(inline=True)
def _back_up(host: int) -> None:
    h = host_at(host)
    e = engine_at(h.arena)
    backup = h.arena + e.off_backup
    copy_bytes(backup, h.arena, _ENGINE_BYTES)
    copy_bytes(backup + _ENGINE_BYTES, h.arena + e.off_state, e.state_bytes)
    h.timers_saved = 0
    h.undo_n = 0
    h.undo_from = h.out_n
    h.turns_left = TURNS


@kernel(inline=True)
def _roll_back(host: int) -> None:
    h = host_at(host)
    undo_orders(host)
    h.undo_n = NO_UNDO
    h.out_n = h.undo_from
    h.refused_n = 0
    e = engine_at(h.arena)
    backup = h.arena + e.off_backup
    state_bytes = e.state_bytes
    copy_bytes(h.arena, backup, _ENGINE_BYTES)
    copy_bytes(h.arena + e.off_state, backup + _ENGINE_BYTES, state_bytes)
    if h.timers_saved != 0:
        copy_bytes(h.arena + e.off_timers, backup + _ENGINE_BYTES + state_bytes, _TIMERS_BYTES)


@kernel(inline=True)
def _take_levels(host: int) -> None:
    """Process the LEVEL rows that come next, and what else wakes nobody: atoms of one row.

    The same as one by one, at 5 ns a row instead of 40: what holds for all of them is looked up once. A LEVEL row that
    ends a message, or a TRADE, wakes nobody where no callback listens to it.
    """
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    deaf = e.started == 0 or e.strategy_halted != 0
    no_book = deaf or load(host + _CALLBACKS_AT + 8 * ON_BOOK) == 0
    no_trade = deaf or load(host + _CALLBACKS_AT + 8 * ON_TRADE) == 0
    row, out, seq, now = h.rows + 64 * h.i, h.out + 64 * h.out_n, h.seq + h.out_n, e.now_ns
    most = min(h.n - h.i, h.max_rows, h.out_cap - h.out_n - ATOM_ROWS + 1)
    known, at, bids, asks = -1, 0, 0, 0
    n = 0
    while n < most:
        head, where = load(row), load(row + 24)
        flags = where >> 32
        kind = (head >> 48) & 0xFFFF  # and span
        if not ((kind == _LEVEL and (no_book or flags & _LAST == 0)) or (kind == _TRADE and no_trade)):
            break
        instrument = where & 0xFFFFFFFF
        if instrument != known:
            if instrument >= e.n_instruments:
                break
            known, at = instrument, instrument_address(arena, instrument)
            bids, asks = arena + instrument_at(at).off_bids, arena + instrument_at(at).off_asks
        copy_bytes(out, row, 64)
        store(out, (head >> 32 << 32) | ((seq + n) & 0xFFFFFFFF))
        store(out + 24, (where & ~(_OUTPUT << 32)) | (_COMMIT << 32))
        time = load(row + 8)
        if now < time < _TIME_MAX:
            now = time
        if kind == _LEVEL:
            _set_level(bids, asks, flags, load(row + 32), load(row + 40))
            instrument_at(at).book_seq = load(row + 48)
            if flags & _LAST != 0:
                _judge_crossed(arena, at)
        else:
            inst = instrument_at(at)
            inst.last_px, inst.last_qty = load(row + 32), load(row + 40)
            inst.trades += 1
        row += 64
        out += 64
        n += 1
    h.i += n
    h.out_n += n
    h.max_rows -= n
    e.rows_applied += n
    e.now_ns = now


@kernel(inline=True)
def _finish(host: int) -> None:
    """End the atom: what follows a callback, then COMMIT on its last head row."""
    h = host_at(host)
    h.undo_n = NO_UNDO
    e = engine_at(h.arena)
    first = row_at(h.out + 64 * h.atom_start)
    if first.kind == _CONTROL and first.code == STOP:
        if e.is_replica == 0:
            cancel_all(host)
        e.started = 0
    at = h.atom_start
    last = at
    while at < h.out_n:
        last = at
        at += 1 + _signed(row_at(h.out + 64 * at).span)
    r = row_at(h.out + 64 * last)
    r.flags = r.flags | _COMMIT
    h.i += 1 + _signed(first.span)
    h.max_rows -= 1
    h.phase = NEXT


@kernel(inline=True)
def _decided(latency: int) -> None:
    """A callback has returned: count it, without what its orders cost, and those."""
    if latency == 0:
        return
    now = ticks()
    risk, order_rows = spent(latency, 0), spent(latency, 1)
    add_cycles(latency, STRATEGY, since_mark(latency, now) - risk - order_rows)
    if risk != 0:
        add_cycles(latency, RISK, risk)
    if order_rows != 0:
        add_cycles(latency, ORDER_ROWS, order_rows)
    mark(latency, ticks())


@kernel(inline=True)
def _applied(latency: int) -> None:
    """A callback is about to run: count what was applied since the last one, or since the loop was entered."""
    if latency != 0:
        now = ticks()
        add_cycles(latency, APPLY, since_mark(latency, now))
        mark(latency, ticks())


@kernel(inline=True)
def _enter(latency: int, phase: int) -> None:
    """The loop is entered: count what the host noted; a Python callback that returned ends here."""
    if latency == 0:
        return
    if phase == RETURNED:
        _decided(latency)
    elif phase == NEXT:
        fold_noted(latency)
        mark(latency, ticks())


@kernel("int64(int64)")
def run(host: int) -> int:
    """Process input rows until there is a reason to stop; return DONE, WAKE, FULL, FAULT, BUDGET or BAD_ROW.

    Parameters
    ----------
    host : int64
        Address of the HOST record: input ``rows[i:n]``, output at ``out`` with room for ``out_cap`` rows, of which
        ``out_n`` are written. An input row whose payload is cut off at ``n``, or that is no row, is left alone.
    """
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    _enter(h.latency, h.phase)
    while True:
        if h.phase == RAISED:
            _fault_row(host, FAULT_STRATEGY, h.wake_callback, 0)
            e.strategy_halted = 1
            cancel_all(host)
            _finish(host)
        elif h.phase == RETURNED:
            _finish(host)
        if h.i >= h.n:
            return DONE
        if h.max_rows <= 0:
            return BUDGET
        if h.out_cap - h.out_n < ATOM_ROWS:
            return FULL
        _take_levels(host)
        if h.i >= h.n or h.max_rows <= 0 or h.out_cap - h.out_n < ATOM_ROWS:
            continue
        row = h.rows + 64 * h.i
        span = _signed(row_at(row).span)
        if h.i + 1 + span > h.n or not _is_whole(row, span):
            return BAD_ROW
        event = _begin(host, row, span)
        callback = _apply(host, arena, row)
        if callback >= 0 and e.started != 0 and e.strategy_halted == 0:
            entry = load(host + _CALLBACKS_AT + 8 * callback)
            if entry != 0:
                h.wake_callback = callback
                h.event = event
                _back_up(host)
                _applied(h.latency)
                if entry == PYTHON:
                    return WAKE
                if _call4(entry, host, arena + e.off_state, arena + e.off_params, event) < 0:
                    _roll_back(host)
                    h.phase = RAISED
                    return FAULT
                _decided(h.latency)
        _finish(host)


@kernel()
def enter(rows: Any, host: int, out: int, room: int, seq: int) -> int:
    """Take new input rows and a place for what they cause, and `run`: all that a host says in one call.

    An array's address costs NumPy 8 us for a dtype with overlapping fields, and this kernel nothing.

    Parameters
    ----------
    rows : array of ROW
        Contiguous; from the first.
    host : int64
        Address of the HOST record; ``fn_run`` in it is the address of `run`, so that it is not compiled here again.
    out, room, seq : int64
        Address of the output, rows free there, number of the first of them.
    """
    h = host_at(host)
    e = engine_at(h.arena)
    h.rows = int(rows.ctypes.data)
    h.i = 0
    h.n = len(rows)
    h.max_rows = len(rows) + 1
    h.out = out
    h.out_cap = room
    h.out_n = 0
    h.seq = seq
    h.commands_before = e.submits + e.cancels + e.replaces
    why = _call1(h.fn_run, host)
    h.commands = e.submits + e.cancels + e.replaces - h.commands_before
    return why  # type: ignore[no-any-return]


@kernel(nogil=False)
def enter_held(rows: Any, host: int, out: int, room: int, seq: int) -> int:
    """`enter` without giving up the GIL: for the few rows of a message."""
    return enter(rows, host, out, room, seq)


@kernel("int64(int64)")
def roll_back(host: int) -> int:
    """Undo the callback in work, which failed in plain Python, and make the next `run` write its fault."""
    _roll_back(host)
    host_at(host).phase = RAISED
    return 0


@kernel("int64(int64, int64, int64)")
def set_timer(host: int, deadline: int, tag: int) -> int:
    """Ask for a TIMER row at `deadline` (ns, UTC); return the timer's id, or 0 when all `MAX_TIMERS` are pending."""
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    if h.timers_saved == 0:
        copy_bytes(
            arena + e.off_backup + _ENGINE_BYTES + e.state_bytes, arena + e.off_timers, _TIMERS_BYTES
        )
        h.timers_saved = 1
    for k in range(MAX_TIMERS):
        t = timer_at(arena + e.off_timers + k * _TIMER_BYTES)
        if t.pending == 0:
            t.timer_id = e.next_timer_id + 1
            e.next_timer_id = t.timer_id
            t.deadline = deadline
            t.tag = tag
            t.set_ns = e.now_ns
            t.pending = 1
            e.n_timers += 1
            _refresh_deadline(arena)
            return t.timer_id  # type: ignore[no-any-return]
    return 0


@kernel("int64(int64)")
def due_timer(arena: int) -> int:
    """Return the id of the pending timer with the earliest deadline (ties: the lowest id), or 0."""
    e = engine_at(arena)
    best = 0
    deadline = 0
    for k in range(MAX_TIMERS):
        t = timer_at(arena + e.off_timers + k * _TIMER_BYTES)
        if t.pending != 0 and (best == 0 or t.deadline < deadline or (t.deadline == deadline and t.timer_id < best)):
            best = t.timer_id
            deadline = t.deadline
    return best


@kernel("int64(int64, int64, int64, int64)")
def collect_commands(rows: int, n: int, out: int, room: int) -> int:
    """Copy the order rows among ``rows[:n]``, each with its payload, to `out`; return how many rows that were.

    Stops before a row that `room` does not hold: one atom's orders always fit a buffer of ATOM_ROWS.
    """
    found = 0
    k = 0
    while k < n:
        r = row_at(rows + 64 * k)
        kind = _signed(r.kind)
        size = 1 + _signed(r.span)
        if kind in (_SUBMIT, _CANCEL, _REPLACE) and _signed(r.flags) & _OUTPUT != 0:
            if found + size > room:
                break
            copy_bytes(out + 64 * found, rows + 64 * k, 64 * size)
            found += size
        k += size
    return found


@kernel("int64(int64)")
def random_bits(host: int) -> int:
    """Return the next 53 random bits of the session's seeded sequence (splitmix64)."""
    e = engine_at(host_at(host).arena)
    e.rng += -7046029254386353131  # 0x9E3779B97F4A7C15
    z = e.rng
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    return (z >> 11) & 0x1FFFFFFFFFFFFF  # type: ignore[no-any-return]


@kernel("int64(int64, int64, int64, int64)")
def note(host: int, code: int, a: int, b: int) -> int:
    """Write a NOTE row with two integers of the strategy's own meaning."""
    h = host_at(host)
    if h.out_n - h.atom_start + 1 > MAX_OUTPUT_ROWS:
        return 0
    r = row_at(emit(host, _NOTE, 0))
    r.code = code & 0xFFFF
    r.px = a
    r.qty = b
    return 1


@kernel("int64(int64, int64, int64, int64)")
def query(host: int, what: int, key: int, argument: int) -> int:
    """Return one fact for a strategy; `key` is an instrument, or a cl_ord_id for the ORDER questions.

    DEPTH takes ``side << 32 | level`` with level 0 the best. What does not exist is NO_PX for prices, 0 for quantities
    and states.
    """
    h = host_at(host)
    arena = h.arena
    e = engine_at(arena)
    if what in (ORDER_STATUS, ORDER_LEAVES, ORDER_PX):
        address = find_order(arena, key)
        if address == 0:
            return _NO_PX if what == ORDER_PX else 0
        o = order_at(address)
        if what == ORDER_STATUS:
            return o.status  # type: ignore[no-any-return]
        if what == ORDER_PX:
            return o.px  # type: ignore[no-any-return]
        return o.order_qty - o.cum_qty if is_open(o.status) else 0
    if what == OPEN_ORDERS:
        return e.open_orders  # type: ignore[no-any-return]
    if key < 0 or key >= e.n_instruments:
        return _NO_PX if what in (BEST_BID, BEST_ASK, DEPTH_PX, LAST_PX) else 0
    at = instrument_address(arena, key)
    inst = instrument_at(at)
    if what == POSITION:
        return inst.position  # type: ignore[no-any-return]
    if what == BEST_BID:
        return best_bid(arena, at)
    if what == BEST_ASK:
        return best_ask(arena, at)
    if what == BOOK_STATE:
        return inst.book_state  # type: ignore[no-any-return]
    if what == BEST_BID_QTY:
        if inst.quote_seq > inst.book_seq:
            return inst.quote_bid_qty  # type: ignore[no-any-return]
        return best_qty(arena + inst.off_bids)
    if what == BEST_ASK_QTY:
        if inst.quote_seq > inst.book_seq:
            return inst.quote_ask_qty  # type: ignore[no-any-return]
        return best_qty(arena + inst.off_asks)
    if what in (DEPTH_PX, DEPTH_QTY):
        side = argument >> 32
        level = argument & 0xFFFFFFFF
        levels = arena + (inst.off_bids if side == _BID else inst.off_asks)
        if what == DEPTH_PX:
            return level_px(levels, 1 if side == _BID else -1, level)
        return level_qty(levels, level)
    if what == WORKING_BUY:
        return inst.working_buy  # type: ignore[no-any-return]
    if what == WORKING_SELL:
        return inst.working_sell  # type: ignore[no-any-return]
    if what == LAST_PX:
        return inst.last_px if inst.trades > 0 else _NO_PX
    return 0
