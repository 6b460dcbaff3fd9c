"""The engine's shell: memory, calls into the loop, Python callbacks, faults.

The engine is a fold: rows in, rows out, state in one arena. This module owns that memory and nothing else: no clock, no
socket, no thread. A host (a backtest, a trader, a replay) gives it rows and a *sink* to write into, and reads back what
was written. Hosts differ; the bytes do not.

When a compiled callback fails, what comes first is the FAULT row and the cancels: `Engine.process` only copies what a
rerun needs. The rerun in plain Python, for a traceback in the user's own lines, happens when a host reads
`Engine.faults`, which it does after sending. It is bounded: an endless loop is told by its line without one, and any
other ends after `RERUN_TURNS` loop turns.

A sink is anything with ``seq``, ``ensure(rows) -> (address, room)`` and ``commit(rows)``: a journal's writer, or the
`RowBuffer` here, which keeps rows in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import from_dtype, types

from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import CONT, NO_PX, ROW, Flag, Kind, OrdStatus, RowArray, join_rows, new_rows, payload_rows
from hftlab.kernels import loop, risk
from hftlab.kernels.jit import address_of, function_address
from hftlab.kernels.ladder import SIDE, copy_side, lay_side, side_bytes, side_levels
from hftlab.kernels.latency import Latency
from hftlab.kernels.state import (
    ATOM_ROWS,
    CALLBACKS,
    ENGINE,
    EXECUTION,
    HOST,
    INSTRUMENT,
    MAX_OUTPUT_ROWS,
    ORDER,
    TIMER,
    UNDO,
)
from hftlab.strategy import (
    PYTHON_TURNS,
    Compiled,
    Context,
    Event,
    PythonStrategy,
    Strategy,
    counted_loops,
    counted_method,
    endless_loop,
    view_class,
)

__all__ = [
    "CONTROL",
    "Engine",
    "Fault",
    "RERUN_TURNS",
    "Replay",
    "Replica",
    "RowBuffer",
    "Sink",
    "book_size",
    "control_row",
    "fault_rows",
    "first_difference",
    "input_rows",
    "replay",
    "text_rows",
]

ORDER_SLOTS = 8192
EXECUTION_SLOTS = 65536
_MOST_LEVELS = 1 << 30
_MOST_BLOCK_ROWS = 1 << 20

CONTROL = {
    "start": loop.START,
    "stop": loop.STOP,
    "halt": loop.HALT,
    "resume": loop.RESUME,
    "cancel_all": loop.CANCEL_ALL,
    "disconnect": loop.DISCONNECT,
    "connect": loop.CONNECT,
    "confirm_position": loop.CONFIRM_POSITION,
}
"""Words of CONTROL rows. ``confirm_position`` is the operator's, after checking with the venue that the positions are
as the engine has them: it ends the doubt in which a fill that does not fit its order leaves a position."""

RERUN_TURNS = 200_000
"""Loop turns after which the rerun of a failed callback gives up: it takes a fraction of a second at most."""

_FEW_ROWS = 512
"""Up to so many rows are processed without giving up the GIL: 5 to 20 us."""

_entries: list[Any] = [loop.enter, loop.enter_held]
_ENTER, _ENTER_HELD = (
    entry.compile((types.Array(from_dtype(ROW), 1, "C"), *[types.int64] * 4)) for entry in _entries
)
"""Their machine code itself: numba's search for the code that fits the arguments costs more than a message's rows, and
`Engine.process` has looked at the array. A reader's array, which may not be written, takes the same way."""


def book_size(n: int) -> tuple[int, int]:
    """Return the window in ticks and the far levels of each side of `n` instruments' books.

    Up to 16 instruments get 131,072 ticks and 8,192 levels behind them; as their number doubles, the window is halved,
    and from 257 on so is what lies behind it, down to 1,024 of each. Books are laid out in at most 102 MB up to 2,048
    instruments and in 49 KB each beyond (8,000: 396 MB). NumPy asks for large pages, so reckon with all of it: small
    ones would save most, and cost thousands of books three times the time a row.

    Examples
    --------
    >>> book_size(1), book_size(100), book_size(8000)
    ((131072, 8192), (16384, 8192), (1024, 1024))
    """
    share = 1 << ((1 << 21) // max(1, n)).bit_length() >> 1
    return max(1024, min(131_072, share)), max(1024, min(8192, share))


class Sink(Protocol):
    """Where an engine writes its rows."""

    @property
    def seq(self) -> int:
        """Full sequence number of the next row."""
        ...

    def ensure(self, rows: int) -> tuple[int, int]:
        """Return (address, free rows) with at least `rows` free in one piece."""
        ...

    def commit(self, rows: int) -> None:
        """Publish the next `rows` rows."""
        ...


class RowBuffer:
    """A sink in memory, growing by blocks, each twice as long as the one before, up to 64 MB.

    Large blocks are few page faults: the first touch of 4 KB of new memory may cost as much as writing 1,000 rows.

    Examples
    --------
    >>> len(RowBuffer().rows())
    0
    """

    def __init__(self, block_rows: int = 4 * ATOM_ROWS) -> None:
        self._block_rows = block_rows
        self._full: list[RowArray] = []
        self._block = np.zeros(block_rows, ROW)
        self._block_at = address_of(self._block)
        self._used = 0
        self.seq = 0

    def ensure(self, rows: int) -> tuple[int, int]:
        """Return (address, free rows), starting a new block when fewer than `rows` are free."""
        if self._block_rows - self._used < rows:
            self._full.append(self._block[: self._used])
            self._block_rows = max(min(2 * self._block_rows, _MOST_BLOCK_ROWS), rows)
            self._block = np.zeros(self._block_rows, ROW)
            self._block_at = address_of(self._block)
            self._used = 0
        return self._block_at + 64 * self._used, self._block_rows - self._used

    def commit(self, rows: int) -> None:
        """Count the next `rows` rows as written."""
        self._used += rows
        self.seq += rows

    def rows(self) -> RowArray:
        """Return all rows so far; what lies in one block is not copied."""
        last = self._block[: self._used]
        return join_rows([*self._full, last]) if self._full else last


@dataclass(frozen=True, slots=True)
class Fault:
    """A strategy's failure.

    Parameters
    ----------
    callback : str
    traceback : str
        In the user's own lines, from a run of the callback in plain Python; of an endless loop, its own line.
    """

    callback: str
    traceback: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """A compiled callback that failed: copies of what it started from, and the event with its payload."""

    callback: str
    arena: npt.NDArray[np.int64]
    host: npt.NDArray[Any]
    event: bytes


def control_row(what: str, now_ns: int) -> RowArray:
    """Return a CONTROL row: a key of `CONTROL`.

    Raises
    ------
    ConfigError
        If `what` is none of them.
    """
    if what not in CONTROL:
        raise ConfigError(f"control: {what!r}; expected one of {', '.join(CONTROL)}")
    rows = new_rows(1)
    rows["kind"], rows["code"], rows["ts_recv"] = Kind.CONTROL, CONTROL[what], now_ns
    return rows


def fault_rows(fault: Fault, now_ns: int) -> RowArray:
    """Return the TEXT row, with its payload, that carries a fault's traceback into the journal."""
    return text_rows(f"{fault.callback}\n{fault.traceback}", now_ns)


def text_rows(text: str, now_ns: int) -> RowArray:
    """Return a TEXT row with its payload: the last 14,000 bytes of `text`."""
    payload = payload_rows(text.encode()[-14000:])
    head = new_rows(1)
    head["kind"], head["ts_recv"], head["span"] = Kind.TEXT, now_ns, len(payload)
    return join_rows([head, payload])


def _words(array: npt.NDArray[Any]) -> memoryview[int]:
    return memoryview(array.view(np.uint8).reshape(-1).data)


class Engine:
    """One session's state and its loop.

    Parameters
    ----------
    definitions : Definitions
    strategy : Strategy or PythonStrategy, optional
        Without one, rows are applied and nothing is decided.

    Attributes
    ----------
    failures : int
        How often a callback has failed; `faults` explains them.

    Raises
    ------
    StrategyError
        If a compiled strategy does not compile.
    """

    def __init__(self, definitions: Definitions, strategy: Strategy | PythonStrategy | None = None) -> None:
        self.definitions = definitions
        self.failures = 0
        self.strategy = strategy
        self._faults: list[Fault] = []
        self._failed: list[_Failed] = []
        n = len(definitions.instruments)
        state, params = self._strategy_records(strategy)
        sizes = {
            "header": ENGINE.itemsize,
            "instruments": n * INSTRUMENT.itemsize,
            "orders": ORDER_SLOTS * ORDER.itemsize,
            "execs": EXECUTION_SLOTS * EXECUTION.itemsize,
            "timers": loop.MAX_TIMERS * TIMER.itemsize,
            "state": state.nbytes,
            "params": params.nbytes,
            "backup": ENGINE.itemsize + state.nbytes + loop.MAX_TIMERS * TIMER.itemsize,
            "undo": 2 * MAX_OUTPUT_ROWS * UNDO.itemsize,
            "books": 2 * n * side_bytes(*book_size(n)),
        }
        offsets: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            offsets[name] = total
            total += -(-size // 64) * 64
        self.arena = np.zeros(total // 8, np.int64)
        self._bytes = self.arena.view(np.uint8)
        self.header = self._view(0, ENGINE, 1)[0]
        self.instruments = self._view(offsets["instruments"], INSTRUMENT, n)
        self.orders = self._view(offsets["orders"], ORDER, ORDER_SLOTS)
        self._state = self._bytes[offsets["state"] : offsets["state"] + state.nbytes]
        self._params = self._bytes[offsets["params"] : offsets["params"] + params.nbytes]
        self._state[:] = state.view(np.uint8).reshape(-1)
        self._params[:] = params.view(np.uint8).reshape(-1)
        self._lay_header(offsets, state.nbytes)
        self._lay_instruments(offsets["books"])
        self.host = np.zeros(1, HOST)
        self._host_at = address_of(self.host)
        self._lay_host()
        self._commands = np.zeros(ATOM_ROWS, ROW)
        self._commands_at = address_of(self._commands)
        self._earlier: list[RowArray] = []
        self._last = (0, 0)
        self._h = _words(self.host).cast("q")
        self._e = _words(self.arena).cast("q")

    @staticmethod
    def _strategy_records(strategy: Strategy | PythonStrategy | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if isinstance(strategy, Strategy):
            return strategy.state.values(), strategy.param_record.copy()
        return np.zeros(1, np.int64), np.zeros(1, np.int64)

    def _view(self, offset: int, dtype: np.dtype[Any], n: int) -> npt.NDArray[Any]:
        return self._bytes[offset : offset + n * dtype.itemsize].view(dtype)

    def _lay_header(self, offsets: dict[str, int], state_bytes: int) -> None:
        h = self.header
        for name in ("instruments", "orders", "execs", "timers", "state", "params", "backup", "undo"):
            h[f"off_{name}"] = offsets[name]
        h["state_bytes"] = state_bytes
        h["n_instruments"] = len(self.definitions.instruments)
        h["order_mask"], h["exec_mask"] = ORDER_SLOTS - 1, EXECUTION_SLOTS - 1
        h["next_order_id"] = 1
        h["rng"] = self.definitions.seed
        limits = self.definitions.limits
        if limits:
            h["max_open_orders"] = min(limit.max_open_orders for limit in limits)
            per_s = min(limit.orders_per_s for limit in limits)
            h["rate_interval_ns"] = -(-1_000_000_000 // per_s)
            h["rate_window_ns"] = h["rate_interval_ns"] * per_s

    def _lay_instruments(self, books_at: int) -> None:
        size = book_size(len(self.definitions.instruments))
        side = side_bytes(*size)
        for instrument, limits in zip(self.definitions.instruments, self.definitions.limits, strict=True):
            inst = self.instruments[instrument.id]
            inst["off_bids"] = books_at + 2 * side * instrument.id
            inst["off_asks"] = inst["off_bids"] + side
            for name in ("off_bids", "off_asks"):
                lay_side(self._bytes[int(inst[name]) :], *size)
            inst["quote_asset"] = self.definitions.asset(instrument.quote)
            inst["base_asset"] = self.definitions.asset(instrument.base)
            for name in ("min_qty", "max_qty", "min_notional"):
                inst[name] = getattr(instrument, name)
            for name in ("max_order_qty", "max_notional", "max_position", "collar_ticks"):
                inst[name] = getattr(limits, name)

    def _lay_host(self) -> None:
        host = self.host[0]
        host["host"], host["arena"] = self._host_at, address_of(self.arena)
        host["undo_n"] = risk.NO_UNDO
        for name, function in {
            "run": loop.run, "submit": risk.submit, "cancel": risk.cancel, "replace": risk.replace,
            "set_timer": loop.set_timer, "query": loop.query, "random": loop.random_bits, "note": loop.note,
        }.items():  # fmt: skip
            host[f"fn_{name}"] = function_address(function)
        self._python: list[Any] = [None] * len(CALLBACKS)
        self._turns = PYTHON_TURNS if isinstance(self.strategy, PythonStrategy) else loop.TURNS
        if self.strategy is None:
            return
        self._ctx = Context(self._host_at, _words(self.host))
        self._event = Event()
        if isinstance(self.strategy, Strategy):
            self._bind_strategy(self.strategy)
        else:
            for index, name in enumerate(CALLBACKS):
                method = getattr(self.strategy, name, None)
                if method is not None:
                    host["callbacks"][index] = loop.PYTHON
                    self._python[index] = _bound(counted_method(method), self._ctx)

    def _bind_strategy(self, strategy: Strategy) -> None:
        state = view_class(strategy.state.dtype, "State")(_words(self._state))
        params = view_class(strategy.params.dtype, "Params")(_words(self._params).toreadonly())
        for name, function in strategy.callbacks().items():
            plain = counted_loops(function)
            self._python[CALLBACKS.index(name)] = _bound(plain, self._ctx, state, params)
            self.host["callbacks"][0, CALLBACKS.index(name)] = loop.PYTHON
        if strategy.compiled:
            self._compiled = Compiled.of(type(strategy))
            for name, address in self._compiled.addresses.items():
                self.host["callbacks"][0, CALLBACKS.index(name)] = address

    # --- running -----------------------------------------------------------------------------------------------------

    def process(self, rows: RowArray, sink: Sink) -> int:
        """Process input rows, writing them and all they cause into `sink`; return how many order rows were written.

        Parameters
        ----------
        rows : array of ROW
            Whole input rows with their payloads, contiguous, ``ts_recv`` set. ``seq`` is stamped here.
        sink : Sink
            Receives whole atoms; each call ends with one commit.

        Returns
        -------
        int
            SUBMIT, CANCEL and REPLACE_ORDER rows written by this call; `commands` returns them.

        Raises
        ------
        ValueError
            If a row is no row: unwritten, a payload without its head, or a payload cut off. The rows before it are
            processed.
        """
        if rows.dtype != ROW or rows.ndim != 1 or not rows.flags.c_contiguous:
            found = f"{rows.ndim} dimensions of {rows.dtype.itemsize}-byte items"
            raise ValueError(f"rows: {found}; expected a contiguous array of 64-byte rows")
        h, host = self._h, self._host_at
        if self._earlier:
            self._earlier.clear()
        address, room = sink.ensure(ATOM_ROWS)
        enter = _ENTER_HELD if len(rows) <= _FEW_ROWS else _ENTER
        why = enter(rows, host, address, room, sink.seq)
        if why == loop.DONE:
            written = h[_OUT_N]
            self._last = address, written
            sink.commit(written)
        else:
            self._go_on(why, sink)
            if h[_I] != h[_N]:
                raise ValueError(_bad_row(rows, h[_I]))
        return h[_COMMANDS]

    def _go_on(self, why: int, sink: Sink) -> None:
        """Do what the loop returned for, and enter it again until the input is used up."""
        h, e = self._h, self._e
        run, host = loop.run, self._host_at
        while True:
            if why in (loop.WAKE, loop.FAULT):
                self.resume(why)
            else:
                self._close_room(sink)
                if why != loop.FULL:
                    break
                self._earlier.append(self._collect(*self._last).copy())  # the sink may take that memory back
                self._open_room(sink)
            why = run(host)
        h[_COMMANDS] = e[_SUBMITS] + e[_CANCELS] + e[_REPLACES] - h[_COMMANDS_BEFORE]

    def resume(self, why: int) -> None:
        """Do what `loop.run` returned for: run a Python callback (WAKE), or keep what a failed one began from (FAULT).

        For hosts that run the loop themselves, and call it again after this.
        """
        if why == loop.WAKE:
            self._wake()
        else:
            self._keep_failed()

    def _open_room(self, sink: Sink) -> None:
        address, room = sink.ensure(ATOM_ROWS)
        h = self._h
        h[_OUT], h[_OUT_CAP], h[_OUT_N], h[_SEQ] = address, room, 0, sink.seq

    def _close_room(self, sink: Sink) -> None:
        h = self._h
        self._last = h[_OUT], h[_OUT_N]
        if h[_OUT_N]:
            sink.commit(h[_OUT_N])

    def measure(self, latency: Latency) -> None:
        """Have the loop add its hops to `latency` from now on. No result depends on it."""
        self._latency = latency  # keeps its memory alive
        self._h[_LATENCY] = latency.address

    def commands(self) -> RowArray:
        """Return the order rows of the last `process` call, each with its payload row, in order.

        The rows are a copy that the next call overwrites. One kernel call: an order is rare, so whatever runs here runs
        from a cold cache, where each line of Python costs a microsecond.
        """
        last = self._collect(*self._last)
        return join_rows([*self._earlier, last]) if self._earlier else last

    def _collect(self, address: int, n: int) -> RowArray:
        if n > len(self._commands):
            self._commands = np.zeros(n, ROW)
            self._commands_at = address_of(self._commands)
        return self._commands[: loop.collect_commands(address, n, self._commands_at, n)]

    def _wake(self) -> None:
        h = self._h
        event = self._event
        event.raw = _row_bytes(h[_EVENT])
        h[_TURNS_LEFT] = self._turns
        try:
            self._python[h[_CALLBACK]](event)
        except (Exception, SystemExit) as error:
            text = _user_traceback(error)
            self.failures += 1
            self._faults.append(Fault(CALLBACKS[h[_CALLBACK]], text))
            loop.roll_back(self._host_at)
        else:
            h[_PHASE] = 1

    def _keep_failed(self) -> None:
        """Copy what the callback that failed started from: the fault and the cancels must not wait for a traceback."""
        self.failures += 1
        name, event = CALLBACKS[self._h[_CALLBACK]], _row_bytes(self._h[_EVENT])
        self._failed.append(_Failed(name, self._copied(), self.host.copy(), event))

    def _copied(self) -> npt.NDArray[np.int64]:
        """Return a copy of the arena: of the books only the levels, for most of their room has never been touched."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        twin = np.frombuffer(mmap.mmap(-1, self.arena.nbytes, flags=private), np.int64)  # np.zeros takes large pages
        sides = [int(at) for name in ("off_bids", "off_asks") for at in self.instruments[name]]
        books = min(sides, default=self.arena.nbytes) // 8
        twin[:books] = self.arena[:books]
        here, there = address_of(self.arena), address_of(twin)
        for at in sides:
            copy_side(there + at, here + at)
        return twin

    def _explained(self, failed: _Failed) -> Fault:
        """Run a callback that failed again, as plain Python on the copies, for its traceback."""
        strategy, name = self.strategy, failed.callback
        assert isinstance(strategy, Strategy)
        function, twin = strategy.callbacks()[name], failed.host[0]
        if twin["turns_left"] < 0:
            return Fault(name, endless_loop(function, int(twin["turn_line"])))
        scratch = np.zeros(ATOM_ROWS, ROW)
        twin["latency"] = 0
        twin["host"], twin["arena"] = address_of(failed.host), address_of(failed.arena)
        twin["out"], twin["out_cap"], twin["turns_left"] = address_of(scratch), ATOM_ROWS, RERUN_TURNS
        twin["out_n"], twin["atom_start"] = twin["out_n"] - twin["atom_start"], 0
        at = int(self.header["off_state"])
        raw = failed.arena.view(np.uint8)[at : at + self._state.nbytes]
        state = view_class(strategy.state.dtype, "State")(_words(raw))
        params = view_class(strategy.params.dtype, "Params")(_words(self._params).toreadonly())
        event = Event()
        event.raw = failed.event
        text = f"{name} failed when compiled, but not as plain Python (an integer beyond 64 bits?)"
        try:
            counted_loops(function)(Context(int(twin["host"]), _words(failed.host)), state, params, event)
        except (Exception, SystemExit) as error:
            text = _user_traceback(error)
            if twin["turns_left"] < 0:
                text = f"{name} failed when compiled; as plain Python it was ended after {RERUN_TURNS:,} loop turns"
        return Fault(name, text)

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> list[Fault]:
        """The strategy's failures so far, oldest first.

        The first reading after a compiled callback failed runs it again, up to a fraction of a second: read this after
        sending what `process` wrote.
        """
        while self._failed:
            self._faults.append(self._explained(self._failed.pop(0)))
        return self._faults

    @property
    def next_deadline(self) -> int:
        """Earliest timer deadline, ns UTC; 0 when none is pending."""
        return self._e[_DEADLINE]

    def due_timer(self, now_ns: int) -> RowArray | None:
        """Return the TIMER row that is due at `now_ns`, or None. Feed it to `process` and ask again."""
        deadline = self._e[_DEADLINE]
        if deadline == 0 or deadline > now_ns:
            return None
        rows = new_rows(1)
        rows["kind"], rows["ts_recv"] = Kind.TIMER, now_ns
        rows["px"], rows["a"] = deadline, loop.due_timer(address_of(self.arena))
        return rows

    def levels(
        self, instrument: int, limit: int = _MOST_LEVELS
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (bids, asks), each an int64 array of (px ticks, qty lots), best first, at most `limit` levels."""
        inst, arena = self.instruments[instrument], int(self.host["arena"][0])
        bids, asks = arena + int(inst["off_bids"]), arena + int(inst["off_asks"])
        return side_levels(bids, 1, limit), side_levels(asks, -1, limit)

    def levels_forgotten(self, instrument: int) -> int:
        """Return how many levels the book of an instrument has forgotten: its sides were full, or they had no price."""
        inst = self.instruments[instrument]
        heads = [int(inst[name]) for name in ("off_bids", "off_asks")]
        return sum(int(self._view(head, SIDE, 1)["forgotten"][0]) for head in heads)

    def touch(self, instrument: int) -> tuple[int, int, int, int]:
        """Return (bid px, bid qty, ask px, ask qty) in ticks and lots; NO_PX and 0 where a side is empty."""
        ask = loop.query
        host = self._host_at
        return (
            ask(host, loop.BEST_BID, instrument, 0), ask(host, loop.BEST_BID_QTY, instrument, 0),
            ask(host, loop.BEST_ASK, instrument, 0), ask(host, loop.BEST_ASK_QTY, instrument, 0),
        )  # fmt: skip

    def open_orders(self) -> npt.NDArray[Any]:
        """Return a copy of the records of all open orders, by cl_ord_id."""
        status = self.orders["status"]
        found = self.orders[(status >= OrdStatus.PENDING_NEW) & (status <= OrdStatus.UNKNOWN)]
        return found[np.argsort(found["cl_ord_id"])].copy()

    def counters(self) -> dict[str, int]:
        """Return the engine's counters by name."""
        return {name: int(self.header[name]) for name in _COUNTERS}

    def mark_x2(self, instrument: int) -> int:
        """Return twice the price that marks a position, ticks: the touch's mid, the last trade, 0 without either."""
        inst = self.instruments[instrument]
        bid, _, ask_px, _ = self.touch(instrument)
        if bid != NO_PX and ask_px != NO_PX:
            return bid + ask_px
        return 2 * int(inst["last_px"]) if inst["trades"] else 0

    def pnl(self, instrument: int) -> dict[str, int]:
        """Return position (lots) and P&L (ticks x lots, exact) of an instrument, marked at the mid of the touch.

        ``unrealized`` is doubled into ``unrealized_x2`` so that a mid between two ticks stays an integer; fees are in
        1e-8 of their asset. Without a two-sided touch the last trade marks; without that, cost (unrealized 0).
        """
        inst, mark_x2 = self.instruments[instrument], self.mark_x2(instrument)
        position, cost = int(inst["position"]), int(inst["cost"])
        unrealized_x2 = position * mark_x2 - 2 * cost if mark_x2 else 0
        return {
            "position": position,
            "realized": int(inst["realized"]),
            "unrealized_x2": unrealized_x2,
            "total_x2": 2 * int(inst["realized"]) + unrealized_x2,
            "fee_quote": int(inst["fee_quote"]),
            "fee_base": int(inst["fee_base"]),
        }


_COUNTERS = (
    "rows_applied", "submits", "cancels", "replaces", "refusals", "fills", "reports", "illegal_reports",
    "duplicate_fills", "foreign_reports", "faults", "book_gaps", "open_orders", "kill_switch", "strategy_halted",
    "started",
)  # fmt: skip


def _user_traceback(error: BaseException) -> str:
    """Return the traceback from the strategy's first line on: frames of this package are not the user's mistake."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.endswith("hftlab/engine.py")]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)]
    return "".join(lines) + "".join(traceback.format_exception_only(error))


def _bound(callback: Callable[..., None], *first: Any) -> Callable[[Event], None]:
    """Return a callback of the event alone. It holds no engine: an engine let go is freed at once."""
    return lambda event: callback(*first, event)


_string_at = ctypes.string_at


def _row_bytes(address: int) -> bytes:
    """Return a copy of the row at `address` and its payload: a strategy may keep it longer than the memory lives."""
    row = _string_at(address, 64)
    return _string_at(address, 64 * (1 + row[7])) if row[7] else row


def _bad_row(rows: RowArray, i: int) -> str:
    kind, span = int(rows["kind"][i]), int(rows["span"][i])
    if kind <= CONT:
        return f"rows: row {i} is of kind {kind}; expected a head row (kind 2 or more)"
    after = f"expected {span} rows of kind {CONT} after it, within {len(rows)} rows"
    return f"rows: row {i} says {span} payload rows; {after}"


def _at(name: str, dtype: np.dtype[Any] = HOST) -> int:
    return int(dtype.fields[name][1]) // 8  # type: ignore[index]


_LATENCY = _at("latency")
_I, _N, _COMMANDS, _COMMANDS_BEFORE = _at("i"), _at("n"), _at("commands"), _at("commands_before")
_OUT, _OUT_N, _OUT_CAP, _SEQ = _at("out"), _at("out_n"), _at("out_cap"), _at("seq")
_EVENT, _PHASE, _CALLBACK, _TURNS_LEFT = _at("event"), _at("phase"), _at("wake_callback"), _at("turns_left")
_DEADLINE = _at("next_deadline", ENGINE)
_SUBMITS, _CANCELS, _REPLACES = _at("submits", ENGINE), _at("cancels", ENGINE), _at("replaces", ENGINE)


class _Discard:
    """A sink that keeps nothing: the rows exist already."""

    seq = 0

    def __init__(self) -> None:
        self._rows = np.zeros(4 * ATOM_ROWS, ROW)
        self._rows_at = address_of(self._rows)

    def ensure(self, rows: int) -> tuple[int, int]:
        return self._rows_at, len(self._rows)

    def commit(self, rows: int) -> None:
        pass


class Replica(Engine):
    """State rebuilt from a journal, for readers: dashboards, notebooks, reports. Decides nothing, writes nothing.

    Rows are applied as they stand, order rows included, so it follows any journal without its strategy. Start it at the
    journal's first row: orders and positions carry over a RESTART. What no row tells is not in it: pending timers, the
    state of the random sequence, the strategy's own state.
    """

    def __init__(self, definitions: Definitions) -> None:
        super().__init__(definitions, None)
        self.header["is_replica"] = 1
        self._sink = _Discard()

    def apply(self, rows: RowArray) -> None:
        """Apply journal rows, whole atoms, in order (a reader's view will do: they are not written to)."""
        if len(rows):
            self.process(rows, self._sink)


def first_difference(left: RowArray, right: RowArray) -> int | None:
    """Return the index of the first row that differs, or None if both are equal byte for byte."""
    n = min(len(left), len(right))
    if left[:n].tobytes() != right[:n].tobytes():
        a = np.ascontiguousarray(left[:n]).view(np.uint64).reshape(n, 8)
        b = np.ascontiguousarray(right[:n]).view(np.uint64).reshape(n, 8)
        return int(np.nonzero((a != b).any(axis=1))[0][0])
    return None if len(left) == len(right) else n


def input_rows(rows: RowArray) -> RowArray:
    """Return the input rows of a journal (a copy): everything the engine did not write itself."""
    head = rows["kind"] != CONT
    output = (rows["flags"] & Flag.OUTPUT != 0) & head
    atom_is_output = np.zeros(len(rows), bool)
    spans = rows["span"][output]
    starts = np.nonzero(output)[0]
    for start, span in zip(starts, spans, strict=True):
        atom_is_output[start : start + 1 + span] = True
    return rows[~atom_is_output].copy()


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found: rows compared, SUBMIT rows among them, books lost to a gap, and the first difference (None:
    identical)."""

    rows: int
    submits: int
    book_gaps: int
    difference: int | None

    @property
    def identical(self) -> bool:
        """Whether every row came out byte for byte."""
        return self.difference is None


def replay(rows: RowArray, definitions: Definitions, strategy: Strategy | PythonStrategy | None) -> Replay:
    """Run the input rows of a journal through a fresh engine and compare every row it writes.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions, strategy
        As the journal names them.
    """
    engine, sink = Engine(definitions, strategy), RowBuffer()
    engine.process(input_rows(rows), sink)
    again = sink.rows()
    submits = int((again["kind"] == Kind.SUBMIT).sum())
    return Replay(len(rows), submits, int(engine.header["book_gaps"]), first_difference(rows, again))

