"""Matching engine: a mixed stream of operations in one kernel, and one operation called from Python.

The stream is drawn from a seed: 44 % limit orders round a mid that drifts, 44 % cancels (most of them of a recent
order, some of one that has traded since), 6 % replaces, 4 % market orders, 2 % IOC and FOK limits; some 2,000 orders
rest. The check runs a prefix of it through a plain Python
engine of dicts and lists and compares every trade and the whole book; that engine is also timed, as the peer
``python``. ``ruled_ns`` is the same stream under the whole rule book (`hftlab.kernels.rules`: expiry, accounts, bands,
ticks, stops and an event for everything), whose trades and book are compared with the plain kernel's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.core.rows import OrdType, Side, Tif
from hftlab.kernels import matching, rules
from hftlab.kernels.jit import kernel
from hftlab.kernels.matching import Matcher, make_book, market_px

__all__ = ["GOALS", "prepare"]

GOALS = {"batch_ns": (40.0, 25.0), "call_us": (0.8, 0.8)}  # ruled_ns is told, not judged

Int64s = npt.NDArray[np.int64]

_SUBMIT, _CANCEL, _REPLACE = 0, 1, 2
_KIND, _TARGET, _SIDE, _PX, _QTY, _TIF = range(6)
_LAST_ID = matching.LAST_ID
_N_FILLS = matching.N_FILLS
_SELL, _GTC = int(Side.SELL), int(Tif.GTC)
_IOC, _FOK = int(Tif.IOC), int(Tif.FOK)
_MARKET, _LIMIT, _TRADE = int(OrdType.MARKET), int(OrdType.LIMIT), int(rules.What.TRADE)
_R_SIDE, _R_TYPE, _R_PX, _R_QTY, _R_TIF = rules.SIDE, rules.TYPE, rules.PX, rules.QTY, rules.TIF
_R_LAST_ID, _R_N_EVENTS = rules.LAST_ID, rules.N_EVENTS
_E_ID, _E_PX, _E_QTY = rules.E_ID, rules.E_PX, rules.E_QTY
_BUY_AT_MARKET, _SELL_AT_MARKET = market_px(1), market_px(2)
_LIVE = 2_000  # orders that the stream believes to rest, at least


@kernel()
def _draw(ops: Any, live: Any, seed: int) -> None:
    """Fill `ops`: kind, number of the operation whose order is meant, side, px, qty, time in force."""
    np.random.seed(seed)
    n_live, mid = 0, 1_000_000
    for i in range(len(ops)):
        what, side = np.random.random(), np.random.randint(1, 3)
        away = int(np.random.exponential(12.0)) - 1
        if np.random.random() < 0.002:
            mid += np.random.randint(-1, 2)
        ops[i, _SIDE], ops[i, _QTY], ops[i, _TIF] = side, np.random.randint(1, 101), _GTC
        if what < 0.44 or n_live < _LIVE:
            ops[i, _PX] = mid - away if side == 1 else mid + 1 + away
            live[n_live] = i
            n_live += 1
        elif what < 0.48:
            ops[i, _PX] = _BUY_AT_MARKET if side == 1 else _SELL_AT_MARKET
            ops[i, _TIF] = _IOC
        elif what < 0.50:
            ops[i, _PX] = mid + 3 if side == 1 else mid - 2
            ops[i, _TIF] = _IOC if what < 0.49 else _FOK
        else:
            back = int(np.random.exponential(200.0))
            k = n_live - 1 - back if back < n_live and np.random.random() < 0.8 else np.random.randint(0, n_live)
            ops[i, _TARGET] = live[k]
            ops[i, _KIND] = _CANCEL
            if what >= 0.94:
                ops[i, _KIND], ops[i, _PX] = _REPLACE, mid + np.random.randint(-20, 20)
                live[k] = i
            else:
                n_live -= 1
                live[k] = live[n_live]


def _operations(n: int, seed: int) -> Int64s:
    ops = np.zeros((n, 6), np.int64)
    _draw(ops, np.zeros(n + 1, np.int64), seed)
    return ops


@kernel()
def _run(book: Any, ops: Any, ids: Any, first: int, end: int, keep: bool, tape: Any) -> int:
    """Apply operations `first` to `end`; each trade goes to `tape` (a ring of maker's id, px, qty)."""
    trades = 0
    for i in range(first, end):
        kind = ops[i, _KIND]
        target = ids[ops[i, _TARGET]]
        if kind == _SUBMIT:
            matching.submit(book, 0, ops[i, _SIDE], ops[i, _PX], ops[i, _QTY], ops[i, _TIF], False)
            ids[i] = book.head[_LAST_ID]
        elif kind == _CANCEL:
            ids[i] = 0
            matching.cancel(book, target)
            continue
        else:
            matching.replace(book, target, 0, ops[i, _PX], ops[i, _QTY], ops[i, _TIF], False, keep)
            ids[i] = book.head[_LAST_ID]
        for k in range(book.head[_N_FILLS]):
            tape[trades & (len(tape) - 1), 0] = book.fills[k, 0]
            tape[trades & (len(tape) - 1), 1] = book.fills[k, 2]
            tape[trades & (len(tape) - 1), 2] = book.fills[k, 3]
            trades += 1
    return trades


@kernel()
def _run_ruled(venue: Any, ops: Any, ids: Any, request: Any, tape: Any) -> int:
    """Apply all operations under the rule book; trades go to `tape` as in `_run`."""
    trades = 0
    for i in range(len(ops)):
        kind = ops[i, _KIND]
        target = ids[ops[i, _TARGET]]
        if kind == _CANCEL:
            ids[i] = 0
            rules.cancel(venue, target)
            continue
        at_market = abs(ops[i, _PX]) == _BUY_AT_MARKET
        request[_R_TYPE] = _MARKET if at_market else _LIMIT
        request[_R_SIDE], request[_R_PX] = ops[i, _SIDE], ops[i, _PX]
        request[_R_QTY], request[_R_TIF] = ops[i, _QTY], ops[i, _TIF]
        if kind == _SUBMIT:
            rules.submit(venue, request)
        else:
            rules.replace(venue, target, request)
        ids[i] = venue.state[_R_LAST_ID]
        for k in range(venue.state[_R_N_EVENTS]):
            if venue.events[k, 0] == _TRADE:
                tape[trades & (len(tape) - 1), 0] = venue.events[k, _E_ID]
                tape[trades & (len(tape) - 1), 1] = venue.events[k, _E_PX]
                tape[trades & (len(tape) - 1), 2] = venue.events[k, _E_QTY]
                trades += 1
        while rules.step(venue) != 0:
            pass
    return trades


class _PlainBook:
    """The same rules in dicts and lists: the reference of the check, and the peer ``python``."""

    def __init__(self) -> None:
        self.sides: dict[int, dict[int, list[list[int]]]] = {1: {}, 2: {}}
        self.where: dict[int, tuple[int, int, list[int]]] = {}
        self.trades: list[tuple[int, int]] = []

    def step(self, number: int, op: list[int]) -> None:
        kind, target, side, px, qty, tif = op
        if kind == _SUBMIT:
            self._arrive(number, side, px, qty, tif)
        elif target in self.where:
            side = self._remove(target)
            if kind == _REPLACE:
                self._arrive(number, side, px, qty, tif)

    def _remove(self, number: int) -> int:
        side, px, order = self.where.pop(number)
        queue = self.sides[side][px]
        queue.remove(order)
        if not queue:
            del self.sides[side][px]
        return side

    def _arrive(self, number: int, side: int, px: int, qty: int, tif: int) -> None:
        other = self.sides[3 - side]

        def reached() -> list[int]:
            return sorted((p for p in other if (p <= px if side == 1 else p >= px)), reverse=side == _SELL)

        if tif == Tif.FOK and sum(order[1] for p in reached() for order in other[p]) < qty:
            return
        while qty and other:
            best = min(other) if side == 1 else max(other)
            if best > px if side == 1 else best < px:
                break
            queue = other[best]
            taken = min(qty, queue[0][1])
            self.trades.append((best, taken))
            qty -= taken
            queue[0][1] -= taken
            if not queue[0][1]:
                del self.where[queue.pop(0)[0]]
                if not queue:
                    del other[best]
        if qty and tif == _GTC:
            order = [number, qty]
            self.sides[side].setdefault(px, []).append(order)
            self.where[number] = (side, px, order)

    def depth(self, side: int) -> list[tuple[int, int]]:
        levels = self.sides[side]
        return [(px, sum(order[1] for order in levels[px])) for px in sorted(levels, reverse=side == 1)]


def _depth(book: matching.Book, side: int) -> list[tuple[int, int]]:
    used = book.levels[side - 1, : book.head[side - 1]][::-1]
    return [(abs(int(level[matching.KEY])), int(level[matching.QTY])) for level in used]


def _check(ops: Int64s) -> None:
    book, plain = make_book(1 << 16, 1 << 12), _PlainBook()
    tape = np.zeros((1 << 18, 3), np.int64)
    trades = _run(book, ops, np.zeros(len(ops), np.int64), 0, len(ops), False, tape)
    for number, op in enumerate(ops.tolist()):
        plain.step(number, op)
    ours = [(int(px), int(qty)) for _, px, qty in tape[:trades]]
    if ours != plain.trades or any(_depth(book, side) != plain.depth(side) for side in (1, 2)):
        raise CheckFailed("matching: the kernel's trades or book differ from the plain engine's")


def _check_ruled(ops: Int64s) -> None:
    book, venue = make_book(1 << 16, 1 << 12), rules.make_ruled_book(None, 1 << 16, 1 << 12)
    tapes = np.zeros((2, 1 << 18, 3), np.int64)
    trades = _run(book, ops, np.zeros(len(ops), np.int64), 0, len(ops), True, tapes[0])
    request = np.zeros(len(rules.REQUEST_FIELDS), np.int64)
    ruled = _run_ruled(venue, ops, np.zeros(len(ops), np.int64), request, tapes[1])
    same = trades == ruled and np.array_equal(tapes[0], tapes[1])
    if not same or any(_depth(book, side) != _depth(venue.book, side) for side in (1, 2)):
        raise CheckFailed("matching: under the rule book plain orders trade otherwise than in the plain kernel")


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: ``batch_ns`` an operation, ``ruled_ns``, ``call_us`` a submit or cancel, and plain Python."""
    n = plan.sized(2_000_000, 20_000)
    ops = _operations(n, 1)
    _check(ops[:20_000])
    _check_ruled(ops[:20_000])
    cases = [
        Case("batch_ns", _batch(ops)),
        Case("ruled_ns", _ruled(ops[: plan.sized(500_000, 5_000)])),
        Case("call_us", _calls(plan.sized(100_000, 2_000))),
        Case("batch_ns", _plain(ops[: plan.sized(40_000, 2_000)]), peer="python"),
    ]
    return cases, [Ratio("batch_vs_python", "batch_ns", "python_batch_ns")]


def _batch(ops: Int64s) -> Callable[[], float]:
    book, ids, tape = make_book(1 << 18, 1 << 12), np.zeros(len(ops), np.int64), np.zeros((1 << 12, 3), np.int64)
    empty = tuple(part.copy() for part in book)

    def run() -> float:
        for part, before in zip(book, empty, strict=True):
            part[:] = before
        started = time.perf_counter_ns()
        _run(book, ops, ids, 0, len(ops), False, tape)
        return (time.perf_counter_ns() - started) / len(ops)

    return run


def _ruled(ops: Int64s) -> Callable[[], float]:
    ids, tape = np.zeros(len(ops), np.int64), np.zeros((1 << 12, 3), np.int64)
    request = np.zeros(len(rules.REQUEST_FIELDS), np.int64)

    def run() -> float:
        venue = rules.make_ruled_book(None, 1 << 16, 1 << 12)
        started = time.perf_counter_ns()
        _run_ruled(venue, ops, ids, request, tape)
        return (time.perf_counter_ns() - started) / len(ops)

    return run


def _calls(n: int) -> Callable[[], float]:
    """One submit that rests and its cancel, by turns, in a book of 200 levels a side."""
    matcher = Matcher()
    for k in range(1, 201):
        matcher.submit(0, 1, 10_000 - k, 5)
        matcher.submit(0, 2, 10_000 + k, 5)
    matcher.cancel(0)

    def run() -> float:
        started = time.perf_counter_ns()
        for _ in range(n // 2):
            matcher.submit(0, 1, 9_998, 5)
            matcher.cancel(matcher.last_id)
        return (time.perf_counter_ns() - started) / n / 1e3

    return run


def _plain(ops: Int64s) -> Callable[[], float]:
    steps = ops.tolist()

    def run() -> float:
        plain = _PlainBook()
        started = time.perf_counter_ns()
        for number, op in enumerate(steps):
            plain.step(number, op)
        return (time.perf_counter_ns() - started) / len(steps)

    return run
