"""Where the engine keeps its state: one block of memory, addressed by offsets.

Everything the engine knows lies in one *arena*: a header, then tables of instruments, orders, executions and timers,
the books' sides, and the strategy's own state. Offsets, not pointers, tie the parts together, so a checkpoint is one
copy and two arenas are equal when their bytes are. What is not state (where the input lies, where output goes, the
addresses of compiled functions) is kept apart in the `HOST` record, whose address is what a strategy holds as ``ctx``.

All fields are int64 or uint64. Sizes are fixed when the arena is made: no table grows while trading, and every full
table has a stated answer (an order is refused, the oldest execution id is forgotten, the deepest level is forgotten).
"""

from __future__ import annotations

import numpy as np

from hftlab.core.rows import ORDER_PAYLOAD, REPORT_PAYLOAD, ROW
from hftlab.kernels.jit import record_at

__all__ = [
    "ATOM_ROWS",
    "CALLBACKS",
    "ENGINE",
    "EXECUTION",
    "HOST",
    "INSTRUMENT",
    "MAX_OUTPUT_ROWS",
    "MAX_REFUSED_ROWS",
    "ORDER",
    "TIMER",
    "UNDO",
    "engine_at",
    "execution_at",
    "host_at",
    "instrument_at",
    "order_at",
    "order_payload_at",
    "report_payload_at",
    "row_at",
    "timer_at",
    "undo_at",
]

MAX_OUTPUT_ROWS = 1024
"""Most rows one atom may emit; a submit beyond that is refused with ATOM_FULL."""

MAX_REFUSED_ROWS = 64
"""Most REFUSED rows of one atom. Equal refusals share a row that counts them; kinds beyond these are only counted."""

ATOM_ROWS = 1 + 255 + MAX_OUTPUT_ROWS + 8192
"""Room that must be free before an atom starts: the input with its payload, its output, and a cancel for every order
that may be open (the kill switch must never be short of room)."""

CALLBACKS = ("on_start", "on_book", "on_trade", "on_execution", "on_timer", "on_gap", "on_stop")
"""Callbacks of a strategy; the index is the callback's number."""


def _fields(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names.split()])


HOST = np.dtype(
    [
        *_fields(
            "host arena now_ns "  # own address, the arena's, time of the row in work
            "rows i n max_rows "  # input rows: address, next index, count, budget
            "out out_n out_cap seq "  # output: address, rows written in this call, room, seq of out[0]
            "atom_start event phase wake_callback undo_from undo_n timers_saved turns_left "  # the atom in work
            "turn_line refused_n "  # the loop that took too many turns; REFUSED rows
        "commands_before commands "  # order rows of the engine's life before this call, and of this call
        "latency "  # address of the histograms, 0 for none: written, never read back (see `kernels.latency`)
            "fn_run fn_submit fn_cancel fn_replace fn_set_timer fn_query fn_random fn_note"
        ).descr,
        ("callbacks", "<i8", (8,)),
        ("refused", "<i8", (MAX_REFUSED_ROWS,)),  # where in ``out`` the atom's REFUSED rows are
    ]
)

ENGINE = _fields(
    "now_ns rows_applied next_order_id n_instruments started kill_switch strategy_halted "
    "open_orders max_open_orders order_mask exec_mask exec_used n_timers next_deadline "
    "off_instruments off_orders off_execs off_timers off_state state_bytes off_params off_backup off_undo "
    "rng rate_interval_ns rate_window_ns rate_tat "
    "submits cancels replaces refusals fills reports illegal_reports duplicate_fills foreign_reports faults "
    "book_gaps next_timer_id is_replica disconnected"
)

INSTRUMENT = _fields(
    "off_bids off_asks "  # the sides of the book, `kernels.ladder.SIDE`
    "book_state book_seq quote_seq quote_bid_px quote_bid_qty quote_ask_px quote_ask_qty "
    "last_px last_qty trades "
    "position position_in_doubt cash cost realized bought sold fee_quote fee_base fee_other quote_asset base_asset "
    "working_buy working_sell "
    "max_order_qty max_notional max_position collar_ticks min_qty max_qty min_notional"
)

ORDER = _fields(
    "cl_ord_id instrument side px order_qty cum_qty reserved status tif flags "
    "orig replaced_by venue_order_id ts_submit ts_ack cost"
)

EXECUTION = _fields("key_a key_b")

TIMER = _fields("timer_id deadline tag pending set_ns")

UNDO = np.dtype([("slot", "<i8"), ("order", ORDER)])
"""What an order slot (its offset) held before the callback in work changed it. A row changes two slots at most, so
``2 * MAX_OUTPUT_ROWS`` of these are enough."""

host_at = record_at(HOST)
engine_at = record_at(ENGINE)
instrument_at = record_at(INSTRUMENT)
order_at = record_at(ORDER)
undo_at = record_at(UNDO)
execution_at = record_at(EXECUTION)
timer_at = record_at(TIMER)
row_at = record_at(ROW)
report_payload_at = record_at(REPORT_PAYLOAD)
order_payload_at = record_at(ORDER_PAYLOAD)
