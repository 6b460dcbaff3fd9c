"""Parity: why a session earned what its backtest did not, order by order.

**Three questions, in this order.** Does the session's journal replay: do the same inputs give the same decisions, byte
for byte? (If not, nothing else can be believed, and the first row that differs is named.) What would a backtest have
told of the same interval, from its market rows alone, with the same strategy, parameters, seed and limits? And where
does the difference of their P&L, the *gap* (session less backtest), come from?

**Method.** Four books are kept of the same orders, and the gap is what lies between the first and the last:

1. the backtest, as somebody assumed it (`latency`, `queue`, `fees`);
2. the same fills at the fees that the session was charged;
3. a second backtest with the latency that the session measured on its own orders;
4. the session.

Each fill counts ``side * quantity * (mark - price) - fee``, against one mark, the mid at the journal's end. So every
order has a P&L of its own, the orders' sum is the run's P&L, and every difference between two books is a difference
between orders. Orders of different books are one *line* where they are the same decision: same instrument, side, price,
quantity, kind and time; what is left over pairs up where only the time differs, by at most `NEAR_NS`. Amounts are exact
fractions until they are shown, so the causes of a line sum to its gap, and the lines to the total, without a remainder.

**What the words mean**, and when they are wrong.

fee
    From book 1 to 2, and what the session was charged for its own fills beyond its usual rate. Fees in the base asset
    are valued at the fill's price. Wrong for fees in a third asset: those are left out, and a note says so.
latency
    From book 2 to 3: a counterfactual run, so it holds all that followed from the delay. Also orders that arrived at
    another time than the measured latency says, and what followed from late timers and late answers. How it is
    measured, and when that is wrong, says `hftlab.sim.fit`: the venue's stamps split a round trip, or it is halved.
reject
    The venue refused what the backtest accepted, or the other way round.
stale
    Fills and decisions while the session could not see or act: its book not live, its feed silent (no market row for
    ten times as long as 99 of 100 pauses, and half a second at least), its connection down, halted by hand, stopped, or
    on its way back after a restart. A backtest on the session's own journal is blind in the same moments, and can be
    told of no fill there. Wrong where a market that sleeps is taken for a feed that does.
queue
    The same order arrived at the same time, and was filled otherwise than the fill model says. Besides the place in
    the queue this holds the session's own footprint (its market rows show its own lots, behind which the backtest's
    order queues) and what a message of many changes leaves open about their order.
unexplained
    Everything else; above all what the market rows *contradict*: a session's fill with no trade near its time at its
    price or through it and no quantity against it, or none where a trade went through its price. A fill is believed
    within `EVIDENCE_NS` of such a trade: a private and a public stream have no common order.

*What followed.* Once outcomes differ, the strategy stands differently in both runs and decides differently. An order
that exists in one book only has the cause of the last difference of inputs before it, on its instrument if there was
one (an answer, a fill, a late timer, a halt); if nothing differed before, it is unexplained. This is the one judgement
that is not a counterfactual: between two causes that overlap in time it gives all that follows to the later one.

**Fills calibrate themselves.** The same orders say which latency and which queue model the next backtest should assume
(`hftlab.sim.fit`); the report tells how well each model foretold the fills, warns if the assumed one was optimistic,
and what a backtest with the fitted ones makes: what is left then is what no assumption of these could have known.
A simulated venue that plays a recording dates its rows on another day; they count as dated when they were received.

**Worst case accepted.** Two runs part for good after their first difference if the strategy never returns to the same
state (a random one, one that counts); then most of the gap is "what followed" the first causes, told as such by the
column ``how``. All orders lie in memory: some 1 kB each.

References
----------
Perold, A. (1988), The implementation shortfall: paper versus reality. The two portfolios there are the first and the
last book here.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.analysis.style import ASK, BID, GREY, HALT, INK, WARN
from hftlab.backtest.runner import backtest
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import (
    CONT,
    NAT,
    REPORT_PAYLOAD,
    BookState,
    ExecType,
    Flag,
    Kind,
    RowArray,
    Tif,
    join_rows,
    new_rows,
)
from hftlab.engine import CONTROL, Engine, Replica, RowBuffer, first_difference, input_rows
from hftlab.journal import JournalReader, read_all
from hftlab.sim.fit import LatencyFit, QueueFit, fit_latency, fit_queue
from hftlab.sim.models import BASE_FEES, Fees, Latency, Queue, notional_unit
from hftlab.strategy import PythonStrategy, Strategy, load_strategy

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

__all__ = ["CAUSES", "EVIDENCE_NS", "MOST_UNEXPLAINED", "NEAR_NS", "Parity", "ReplayCheck", "check_replay", "parity"]

CAUSES = ("latency", "queue", "stale", "fee", "reject", "unexplained")
"""What a gap is split into."""

NEAR_NS = 250_000_000
"""Two orders alike in all but time are one decision if no more than this lies between."""

EVIDENCE_NS = 250_000_000
"""A session's fill is believed if the market rows show within this time that it could happen."""

MOST_UNEXPLAINED = 0.05
"""Share of the gap, in total and order by order, up to which a session counts as explained."""

_FOREVER = 2**62
_LEAST_SILENCE_NS = 500_000_000
_ANOTHER_DAY_NS = 60_000_000_000
_MARKET = (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE, Kind.BOOK_STATE)
_SIDES = int(Flag.BID | Flag.ASK)
_BUY = int(Flag.BID)
_ANSWERS = (int(ExecType.ACK), int(ExecType.REPLACED), int(ExecType.REJECT))
_ENDS = (int(ExecType.CANCELED), int(ExecType.EXPIRED), int(ExecType.REJECT), int(ExecType.LOST))
_RESTING = (int(Tif.DAY), int(Tif.GTC), int(Tif.GTD))
_COLOURS = {
    "latency": BID, "queue": "#2E7D5B", "stale": WARN, "fee": ASK, "reject": HALT, "unexplained": GREY,
}  # fmt: skip


# --- replay ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayCheck:
    """Whether a journal's decisions came out again.

    Parameters
    ----------
    rows : int
        Rows of the journal.
    difference : int or None
        The first row that differs; None: all are identical.
    reason : str
        What differs in it, in words; empty if nothing does.
    """

    rows: int
    difference: int | None
    reason: str

    @property
    def identical(self) -> bool:
        """Whether every row came out byte for byte."""
        return self.difference is None

    def __str__(self) -> str:
        return f"replay: {self.rows:,} rows identical" if self.identical else f"replay: {self.reason}"


def check_replay(rows: RowArray, definitions: Definitions, strategy: Strategy | PythonStrategy) -> ReplayCheck:
    """Run a journal's inputs through a fresh engine and say which row comes out differently first, and in what.

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
    at = first_difference(rows, again)
    return ReplayCheck(len(rows), at, "" if at is None else _difference(rows, again, at))


def _difference(rows: RowArray, again: RowArray, at: int) -> str:
    """Return in one sentence how row `at` of a journal and of its replay differ."""
    if at >= len(again):
        return f"row {at:,}, {_row_words(rows, at)}, is in the journal and was not decided in the replay"
    if at >= len(rows):
        return f"row {at:,}, {_row_words(again, at)}, was decided in the replay and is not in the journal"
    kinds = [int(part["kind"][at]) for part in (rows, again)]
    if kinds[0] != kinds[1]:
        told = "was decided in the replay" if int(again["flags"][at]) & Flag.OUTPUT else "comes next in the replay"
        return f"row {at:,} is {_row_words(rows, at)} in the journal; {_row_words(again, at)} {told}"
    names = ("source", "span", "ts_recv", "ts_event", "instrument", "flags", "code", "px", "qty", "a", "b")
    pairs = ((name, int(rows[name][at]), int(again[name][at])) for name in names)
    fields = ", ".join(f"{name} {had} in the journal, {got} decided" for name, had, got in pairs if had != got)
    return f"row {at:,}, {_row_words(rows, at)}: {fields or 'bytes of its payload differ'}"


def _row_words(rows: RowArray, at: int) -> str:
    kind = int(rows["kind"][at])
    name = Kind(kind).name if kind in Kind.__members__.values() else f"kind {kind}"
    return f"{name} at {int(rows['ts_recv'][at])}" if kind != CONT else "a payload row"


# --- orders and what they earned -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fill:
    at_ns: int  # received
    px: int
    qty: int
    maker: bool
    fee: int
    fee_asset: int
    exec_id: int


@dataclass(slots=True)
class _Order:
    """An order as its submit row and its reports tell it."""

    instrument: int
    side: int
    px: int
    qty: int
    form: tuple[int, int, int]  # kind, time in force, flags
    decided_ns: int
    answered_ns: int = 0  # 0: never
    asked_ns: int = 0  # when it was last asked to end, by a cancel or a replacement
    ended_ns: int = _FOREVER
    rejected: bool = False
    fills: list[_Fill] = field(default_factory=list)

    @property
    def what(self) -> tuple[Any, ...]:
        """What was decided, but for the time."""
        return self.instrument, self.side, self.px, self.qty, self.form


def _orders(rows: RowArray) -> list[_Order]:
    """Return the orders of a journal as they were decided; an execution that was told twice counts once."""
    payloads = np.ascontiguousarray(rows).view(REPORT_PAYLOAD)
    found: dict[int, _Order] = {}
    earlier: dict[int, int] = {}
    told: set[tuple[int, int]] = set()
    wanted = np.flatnonzero(np.isin(rows["kind"], (Kind.SUBMIT, Kind.CANCEL, Kind.REPLACE_ORDER, Kind.REPORT)))
    names = ("kind", "ts_recv", "instrument", "flags", "code", "px", "qty", "a", "b", "span")
    columns = (rows[name][wanted].tolist() for name in names)
    for i, kind, ts, instrument, flags, code, px, qty, a, b, span in zip(wanted.tolist(), *columns, strict=True):
        if kind in (Kind.CANCEL, Kind.REPLACE_ORDER) and (ending := a if kind == Kind.CANCEL else b) in found:
            found[ending].asked_ns = ts
        if kind in (Kind.SUBMIT, Kind.REPLACE_ORDER):
            form = (kind, code, flags & int(Flag.POST_ONLY | Flag.REDUCE_ONLY))
            found[a] = _Order(instrument, flags & _SIDES, px, qty, form, ts)
            earlier[a] = b
        order, what = found.get(a), code & 255
        if kind != Kind.REPORT or order is None:
            continue
        if what in _ANSWERS and not order.answered_ns:
            order.answered_ns = ts
        if what == ExecType.REPLACED and earlier.get(a) in found:
            found[earlier[a]].ended_ns = ts
        if what in _ENDS:
            order.ended_ns = ts
        order.rejected |= what == ExecType.REJECT
        if what == ExecType.FILL and (a, b) not in told:
            told.add((a, b))
            fee, asset = (int(payloads[i + 1]["fee"]), int(payloads[i + 1]["fee_asset"])) if span else (0, 0)
            order.fills.append(_Fill(ts, px, qty, bool(flags & Flag.MAKER), fee, asset, b))
            if sum(fill.qty for fill in order.fills) >= order.qty:
                order.ended_ns = ts
    return list(found.values())


class _Ledger:
    """What orders earned: exact, in the quote asset.

    Parameters
    ----------
    definitions : Definitions
    marks_x2 : sequence of int
        Twice the mark of each instrument, ticks; 0 where there is none.
    """

    def __init__(self, definitions: Definitions, marks_x2: Sequence[int]) -> None:
        self._definitions, self._marks_x2 = definitions, marks_x2
        self._units = [notional_unit(one) for one in definitions.instruments]
        self._quotes = [definitions.asset(one.quote) for one in definitions.instruments]
        self._bases = [definitions.asset(one.base) for one in definitions.instruments]

    def gross(self, order: _Order) -> Fraction:
        """Return what the fills of an order are worth at the mark, before fees."""
        mark_x2 = self._marks_x2[order.instrument]
        lots = sum(fill.qty * (mark_x2 - 2 * fill.px) for fill in order.fills)
        return (lots if order.side == _BUY else -lots) * self._units[order.instrument] / 2

    def charged(self, order: _Order) -> Fraction:
        """Return the fees told in the reports, those in the base asset valued at the fill's price."""
        return sum((self._fee(order.instrument, fill) or Fraction(0) for fill in order.fills), Fraction(0))

    def _fee(self, instrument: int, fill: _Fill) -> Fraction | None:
        amount = Fraction(fill.fee, 10**8)
        if not fill.fee or fill.fee_asset == self._quotes[instrument]:
            return amount
        if fill.fee_asset == self._bases[instrument]:
            return amount * fill.px * Fraction(self._definitions.instruments[instrument].tick_size)
        return None

    def at_rates(self, order: _Order, fees: Fees) -> Fraction:
        """Return the fees of an order's fills at `fees`."""
        one = self._definitions.instruments[order.instrument]
        e8 = sum(fees.charge(one, fill.px, fill.qty, maker=fill.maker) for fill in order.fills)
        return Fraction(e8, 10**8)

    def rates(self, orders: Iterable[_Order], assumed: Fees) -> Fees:
        """Return the usual rates of the session's fills; those it has no fill for, as assumed."""
        paid, traded = [Fraction(0), Fraction(0)], [Fraction(0), Fraction(0)]
        for order in orders:
            for fill in order.fills:
                fee = self._fee(order.instrument, fill)
                if fee is not None:
                    paid[fill.maker] += fee
                    traded[fill.maker] += fill.px * fill.qty * self._units[order.instrument]
        taker, maker = (
            round(10**8 * fee / notional) if notional else usual
            for fee, notional, usual in zip(paid, traded, (assumed.taker_e8, assumed.maker_e8), strict=True)
        )
        return Fees(maker_e8=maker, taker_e8=taker)

    def net(self, *orders: _Order) -> Fraction:
        """Return what orders earned after the fees told in their reports."""
        return sum((self.gross(order) - self.charged(order) for order in orders), Fraction(0))

    def unvalued(self, orders: Iterable[_Order]) -> int:
        """Return how many fills were charged in an asset that is neither quote nor base."""
        return sum(self._fee(order.instrument, fill) is None for order in orders for fill in order.fills)


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """One decision in the books that have it, and what its part of the gap comes from."""

    assumed: _Order | None = None
    measured: _Order | None = None
    session: _Order | None = None
    how: str = ""
    amounts: dict[str, Fraction] = field(default_factory=lambda: dict.fromkeys(CAUSES, Fraction(0)))

    @property
    def any_order(self) -> _Order:
        order = self.session or self.measured or self.assumed
        assert order is not None
        return order

    def is_one_decision(self, within_ns: int) -> bool:
        """Return whether the session decided it as the backtest with its latency did, but for so many ns."""
        had, got = self.session, self.measured
        return had is not None and got is not None and abs(had.decided_ns - got.decided_ns) <= within_ns

    @property
    def gap(self) -> Fraction:
        return sum(self.amounts.values(), Fraction(0))


def _paired(left: Sequence[_Order], right: Sequence[_Order]) -> list[tuple[_Order | None, _Order | None]]:
    """Return the orders of two runs side by side: same decision at the same time first, then near in time."""
    pairs: list[tuple[_Order | None, _Order | None]] = []
    waiting: dict[tuple[Any, ...], deque[_Order]] = defaultdict(deque)
    for order in right:
        waiting[(*order.what, order.decided_ns)].append(order)
    alone = []
    for order in left:
        same = waiting[(*order.what, order.decided_ns)]
        if same:
            pairs.append((order, same.popleft()))
        else:
            alone.append(order)
    near: dict[tuple[Any, ...], deque[_Order]] = defaultdict(deque)
    for order in sorted((order for rest in waiting.values() for order in rest), key=lambda order: order.decided_ns):
        near[order.what].append(order)
    for order in alone:
        others = near[order.what]
        while others and others[0].decided_ns < order.decided_ns - NEAR_NS:
            pairs.append((None, others.popleft()))
        is_near = bool(others) and others[0].decided_ns <= order.decided_ns + NEAR_NS
        pairs.append((order, others.popleft() if is_near else None))
    pairs += [(None, order) for others in near.values() for order in others]
    return pairs


def _lines(assumed: Sequence[_Order], measured: Sequence[_Order], session: Sequence[_Order]) -> list[_Line]:
    """Return one line a decision, in the order of time."""
    lines, by_order = [], {}
    for one, other in _paired(session, measured):
        line = _Line(measured=other, session=one)
        lines.append(line)
        if other is not None:
            by_order[id(other)] = line
    left = []
    for one, other in _paired(assumed, measured):
        if one is not None and other is not None:
            by_order[id(other)].assumed = one
        elif one is not None:
            left.append(one)
    lone = {id(line.session): line for line in lines if line.measured is None}
    for one, other in _paired(left, [line.session for line in lines if line.measured is None and line.session]):
        if one is not None and other is not None:
            lone[id(other)].assumed = one
        elif one is not None:
            lines.append(_Line(assumed=one))
    return sorted(lines, key=lambda line: line.any_order.decided_ns)


# --- what the session could see --------------------------------------------------------------------------------------


class _Sight:
    """When a session could see and act, and what the market rows say of its fills.

    Parameters
    ----------
    rows : array of ROW
        The session's journal.
    n : int
        Instruments.
    same_ns : int
        Reports of one event that come no farther apart are told with another delay; beyond that, another event.
    """

    def __init__(self, rows: RowArray, n: int, same_ns: int) -> None:
        self.instruments, self.same_ns = n, same_ns
        halts, silences = self._halts(rows), self._silences(rows)
        self._idle = [[*halts, *self._book_spans(rows, i)] for i in range(n)]
        self._blind = [[*spans, *silences] for spans in self._idle]
        self._trades = [self._trades_of(rows, i) for i in range(n)]
        self._against = [[self._shown_of(rows, i, side) for side in (Flag.ASK, Flag.BID)] for i in range(n)]

    @staticmethod
    def _halts(rows: RowArray) -> list[tuple[int, int]]:
        """Return the spans in which the session did not trade: not started, stopped, halted, down, restarting."""
        names = {code: name for name, code in CONTROL.items()}
        pairs = {"start": "stopped", "resume": "halted", "connect": "down"}
        opens = {"stop": "stopped", "halt": "halted", "disconnect": "down"}
        since: dict[str, int] = {"stopped": 0}
        spans = []
        host = rows[np.isin(rows["kind"], (Kind.CONTROL, Kind.RESTART))]
        for kind, code, ts in zip(host["kind"].tolist(), host["code"].tolist(), host["ts_recv"].tolist(), strict=True):
            name = "" if kind == Kind.RESTART else names.get(code, "")
            if kind == Kind.RESTART:
                since.setdefault("stopped", ts)
            elif name in opens:
                since.setdefault(opens[name], ts)
            elif pairs.get(name) in since:
                spans.append((since.pop(pairs[name]), ts))
        return spans + [(start, _FOREVER) for start in since.values()]

    @staticmethod
    def _silences(rows: RowArray) -> list[tuple[int, int]]:
        """Return the spans in which no market row came for far longer than usual: the feed was down, not the market."""
        times = np.unique(rows["ts_recv"][np.isin(rows["kind"], _MARKET)])
        pauses = np.diff(times)
        if not len(pauses):
            return []
        long = np.flatnonzero(pauses > max(_LEAST_SILENCE_NS, 10 * int(np.percentile(pauses, 99))))
        return [(int(times[k]), int(times[k + 1])) for k in long]

    @staticmethod
    def _book_spans(rows: RowArray, instrument: int) -> list[tuple[int, int]]:
        """Return the spans in which the book was not live; a journal that never tells is taken to be live."""
        told = rows[(rows["kind"] == Kind.BOOK_STATE) & (rows["instrument"] == instrument)]
        spans, since = [], None if not len(told) else 0
        for code, ts in zip(told["code"].tolist(), told["ts_recv"].tolist(), strict=True):
            if code == BookState.LIVE and since is not None:
                spans.append((since, ts))
                since = None
            elif code != BookState.LIVE and since is None:
                since = ts
        return spans if since is None else [*spans, (since, _FOREVER)]

    @staticmethod
    def _trades_of(rows: RowArray, instrument: int) -> RowArray:
        trades: RowArray = rows[(rows["kind"] == Kind.TRADE) & (rows["instrument"] == instrument)]
        return trades

    @staticmethod
    def _shown_of(rows: RowArray, instrument: int, side: Flag) -> RowArray:
        told = ((rows["kind"] == Kind.LEVEL) | (rows["kind"] == Kind.QUOTE)) & (rows["qty"] > 0)
        shown: RowArray = rows[told & (rows["instrument"] == instrument) & (rows["flags"] & int(side) != 0)]
        return shown

    def is_blind(self, instrument: int, at_ns: int) -> bool:
        """Return whether the session could not see or act on an instrument at a time."""
        return any(start <= at_ns < end for start, end in self._blind[instrument])

    def is_idle(self, instrument: int, at_ns: int) -> bool:
        """Return whether it could not act; while its feed was silent it could, on its own fills."""
        return any(start <= at_ns < end for start, end in self._idle[instrument])

    def contradicts(self, order: _Order) -> str:
        """Return what the market rows hold against the fills of a session's order; empty if nothing."""
        trades = self._trades[order.instrument]
        for fill in order.fills:
            seen = not self.is_blind(order.instrument, fill.at_ns)
            if seen and fill.maker and not self._could_fill(order, fill, trades):
                return "filled, and no trade or quote shows it"
        if not order.answered_ns or order.rejected or order.form[1] not in _RESTING:
            return ""
        start = order.answered_ns + EVIDENCE_NS
        end = min(order.ended_ns, _FOREVER) - EVIDENCE_NS
        sign = 1 if order.side == _BUY else -1
        inside = self._between(trades, start, end)
        other = int(Flag.ASK) if order.side == _BUY else int(Flag.BID)
        through = (sign * (order.px - inside["px"]) > 0) & (inside["flags"] & other != 0)
        return "a trade went through its price without filling it" if through.any() else ""

    def _could_fill(self, order: _Order, fill: _Fill, trades: RowArray) -> bool:
        sign = 1 if order.side == _BUY else -1
        near = self._between(trades, fill.at_ns - EVIDENCE_NS, fill.at_ns + EVIDENCE_NS)
        reached = sign * (fill.px - near["px"]) >= 0
        if (reached & (near["a"] == fill.exec_id)).any() or int(near["qty"][reached].sum()) >= fill.qty:
            return True
        shown = self._against[order.instrument][0 if order.side == _BUY else 1]
        near = self._between(shown, fill.at_ns - EVIDENCE_NS, fill.at_ns + EVIDENCE_NS)
        return bool((sign * (fill.px - near["px"]) >= 0).any())

    @staticmethod
    def _between(rows: RowArray, start: int, end: int) -> RowArray:
        at = rows["ts_recv"]
        return rows[np.searchsorted(at, start) : np.searchsorted(at, end, side="right")]


# --- causes ----------------------------------------------------------------------------------------------------------


class _Company:
    """Which other own orders an order met: those before it share the lots that would fill it, those opposite bar it.

    Parameters
    ----------
    lines : sequence of _Line
    """

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._resting: dict[tuple[str, int, int], npt.NDArray[np.int64]] = {}
        for run in ("session", "measured"):
            found: dict[tuple[str, int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
            for k, line in enumerate(lines):
                order: _Order | None = getattr(line, run)
                if order is not None and order.answered_ns:
                    found[run, order.instrument, order.side].append((k, order.px, order.answered_ns, order.ended_ns))
            self._resting |= {key: np.array(orders, np.int64) for key, orders in found.items()}

    def differs(self, order: _Order, side: int, until_ns: int) -> bool:
        """Return whether the session and the backtest had other orders of `side` at an order's price or better.

        Counted are those that rested between the order's answer and `until_ns`.
        """
        met = [self._met(run, order, side, until_ns) for run in ("session", "measured")]
        return met[0] != met[1]

    def _met(self, run: str, order: _Order, side: int, until_ns: int) -> set[int]:
        orders = self._resting.get((run, order.instrument, side))
        if orders is None:
            return set()
        line, px, start, end = orders.T
        better = px >= order.px if side == _BUY else px <= order.px
        return set(line[better & (start <= until_ns) & (end >= order.answered_ns)].tolist())


def _outcome(line: _Line, sight: _Sight, company: _Company) -> tuple[int, str, str] | None:
    """Return when one decision came out differently, why, and how that is known; None if it came out alike.

    The cause is empty where the outcome itself followed from other differences.
    """
    had, got = line.session, line.measured
    assert had is not None and got is not None
    if got.answered_ns and not had.answered_ns and not had.fills:
        return got.answered_ns, "stale", "never answered"
    if had.rejected != got.rejected:
        refused = "the session" if had.rejected else "the backtest"
        at = min(t for t in (had.answered_ns, got.answered_ns) if t)
        if company.differs(had, _SIDES - had.side, at):
            return at, "", "against other own orders"
        return at, "reject", f"refused in {refused} only"
    unlike = _first_unlike(had, got)
    if unlike is not None:
        at, apart = unlike
        if apart <= sight.same_ns:
            return at, "latency", "told of its fill at another time"
        if sight.is_blind(had.instrument, at):
            return at, "stale", "filled while the session could not see or act"
        if abs(had.answered_ns - got.answered_ns) > sight.same_ns:
            return at, "latency", "answered at another time"
        if company.differs(had, had.side, at):
            return at, "", "beside other own orders"
        against = sight.contradicts(had)
        return (at, "unexplained", against) if against else (at, "queue", "filled otherwise")
    moments = [(had.answered_ns, got.answered_ns)]
    if abs(had.asked_ns - got.asked_ns) <= sight.same_ns:
        moments.append((had.ended_ns, got.ended_ns))
    times = [min(filter(None, pair)) for pair in moments if pair[0] != pair[1]]
    return (min(times), "latency", "answered at another time") if times else None


def _first_unlike(had: _Order, got: _Order) -> tuple[int, int] | None:
    """Return when the first fill came that two orders do not share, and how far apart they were told of it.

    A fill of one alone is for ever apart from the other's. None: all fills are alike.
    """
    for ours, theirs in itertools.zip_longest(had.fills, got.fills):
        if ours != theirs:
            alike = ours is not None and theirs is not None and (ours.px, ours.qty) == (theirs.px, theirs.qty)
            if alike and ours.at_ns == theirs.at_ns:
                continue
            apart = abs(ours.at_ns - theirs.at_ns) if alike else _FOREVER
            return min(fill.at_ns for fill in (ours, theirs) if fill is not None), apart
    return None


def _host_events(rows: RowArray, n: int) -> list[tuple[int, int, str, str]]:
    """Return what a session's host did that a backtest knows nothing of: (when, instrument or -1, cause, how).

    A halt concerns every instrument. A timer is a little late nearly always, so it is only the cause where none of the
    instrument's own is known.
    """
    timers = rows[(rows["kind"] == Kind.TIMER) & (rows["ts_recv"] > rows["px"])]
    events = [(ts, -1, "latency", "after a late timer") for ts in timers["px"].tolist()]
    usual = (CONTROL["start"], CONTROL["stop"], CONTROL["connect"])
    other = (rows["kind"] == Kind.CONTROL) & ~np.isin(rows["code"], usual) | (rows["kind"] == Kind.RESTART)
    halts = itertools.product(rows["ts_recv"][other].tolist(), range(n))
    return events + [(ts, i, "stale", "after a halt or a restart") for ts, i in halts]


class _LastCause:
    """The last difference of inputs before a time, of an instrument, or of any."""

    def __init__(self, events: Iterable[tuple[int, int, str, str]]) -> None:
        self._times: dict[int, list[int]] = defaultdict(list)
        self._what: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for at, instrument, cause, how in sorted(events):
            for key in (instrument, -1) if instrument >= 0 else (-1,):
                self._times[key].append(at)
                self._what[key].append((cause, how))

    def before(self, instrument: int, at_ns: int) -> tuple[str, str]:
        """Return cause and words for an order that only one run decided at a time."""
        for key in (instrument, -1):
            k = bisect.bisect_right(self._times[key], at_ns)
            if k:
                cause, how = self._what[key][k - 1]
                return cause, how if how.startswith("after") else f"followed: {how}"
        return "unexplained", "decided differently though no input differed before"


def _attribute(lines: Sequence[_Line], books: _Ledger, rows: RowArray, sight: _Sight, usual: Fees) -> None:
    """Fill in what each line's part of the gap comes from. `usual`: the fees that the session was mostly charged."""
    events = _host_events(rows, sight.instruments)
    unlike: dict[int, tuple[int, str, str]] = {}
    company = _Company(lines)
    for k, line in enumerate(lines):
        outcome = _outcome(line, sight, company) if line.is_one_decision(sight.same_ns) else None
        if outcome is not None:
            unlike[k] = at, cause, how = outcome
            if cause:
                events.append((at, line.any_order.instrument, cause, how))
    last = _LastCause(events)
    for k, line in enumerate(lines):
        _split(line, books, usual)
        rest = line.amounts.pop("rest")
        if rest:
            cause, line.how = _cause(line, unlike.get(k), last, sight)
            line.amounts[cause] += rest


def _split(line: _Line, books: _Ledger, usual: Fees) -> None:
    """Put what counterfactual books tell into a line; the rest, from the last backtest to the session, as "rest"."""

    def net(order: _Order | None, cost: Callable[[_Order], Fraction]) -> Fraction:
        return Fraction(0) if order is None else books.gross(order) - cost(order)

    first = net(line.assumed, books.charged)
    second = net(line.assumed, lambda order: books.at_rates(order, usual))
    third = net(line.measured, lambda order: books.at_rates(order, usual))
    fourth = net(line.session, lambda order: books.at_rates(order, usual))
    last = net(line.session, books.charged)
    line.amounts["fee"] = second - first + last - fourth
    line.amounts["latency"] = third - second
    line.amounts["rest"] = fourth - third
    if line.amounts["latency"]:
        line.how = "other with the measured latency"
    elif line.amounts["fee"]:
        line.how = "charged otherwise"


def _cause(
    line: _Line, outcome: tuple[int, str, str] | None, last: _LastCause, sight: _Sight
) -> tuple[str, str]:
    """Return cause and words for what a line earned in the session other than with the measured latency."""
    order = line.any_order
    against = "" if line.session is None else sight.contradicts(line.session)
    if outcome is not None and outcome[1]:
        return outcome[1], outcome[2]
    if against:
        return "unexplained", against
    if outcome is not None:
        return last.before(order.instrument, outcome[0])
    if line.session is None and sight.is_idle(order.instrument, order.decided_ns):
        return "stale", "decided while the session could not act"
    times = [one.decided_ns for one in (line.session, line.measured) if one is not None]
    return last.before(order.instrument, min(times))


# --- the report ------------------------------------------------------------------------------------------------------


def _decimal(amount: Fraction) -> Decimal:
    """Return a fraction of ticks, lots and halves as the decimal it is."""
    with localcontext() as context:
        context.prec = 60
        return Decimal(amount.numerator) / Decimal(amount.denominator)


@dataclass(frozen=True)
class Parity:
    """What a session and its backtest earned, and where the difference comes from.

    Parameters
    ----------
    definitions : Definitions
        The session's.
    replay : ReplayCheck
    session_pnl, backtest_pnl : Decimal
        After fees, in the quote asset, marked at the mid at the journal's end.
    by_cause : dict of str to Decimal
        The gap by `CAUSES`; sums to it exactly.
    orders : polars.DataFrame
        One line a decision that traded in any book: ts, symbol, side, px, qty, in_session, in_backtest,
        filled_session, filled_backtest (quantities), session, backtest (P&L), gap, one column a cause, how.
    assumed, measured : str
        Latency, queue and fees of the backtest, and what the session measured of them.
    latency_fit : LatencyFit or None
        What the session's own orders say of its latency; None if none was answered.
    queue_fit : QueueFit or None
        How well each queue model foretells the session's fills; None if no order rested.
    fitted_queue : Queue
        The best of these models, or the assumed one if the session's orders are too few to tell it from the best.
    fitted_pnl : Decimal
        What a backtest makes with that latency, that model and the session's usual fees.
    notes : tuple of str
        What the reader must know besides; above all, if the backtest was optimistic.
    """

    definitions: Definitions
    replay: ReplayCheck
    session_pnl: Decimal
    backtest_pnl: Decimal
    by_cause: Mapping[str, Decimal]
    orders: pl.DataFrame
    assumed: str
    measured: str
    latency_fit: LatencyFit | None
    queue_fit: QueueFit | None
    fitted_queue: Queue
    fitted_pnl: Decimal
    notes: tuple[str, ...]

    @property
    def gap(self) -> Decimal:
        """Session less backtest, in the quote asset."""
        return self.session_pnl - self.backtest_pnl

    @property
    def unexplained_total(self) -> float:
        """|unexplained| over |gap|; NaN where there is unexplained and no gap."""
        return _share(abs(float(self.by_cause["unexplained"])), abs(float(self.gap)))

    @property
    def unexplained_by_order(self) -> float:
        """Sum of |unexplained| over sum of |gap|, order by order."""
        return _share(float(self.orders["unexplained"].abs().sum()), float(self.orders["gap"].abs().sum()))

    @property
    def followed_by_order(self) -> float:
        """Share of the gap, order by order, that followed from an earlier difference instead of being one."""
        followed = self.orders.filter(pl.col("how").str.contains("^(followed|after)"))
        return _share(float(followed["gap"].abs().sum()), float(self.orders["gap"].abs().sum()))

    @property
    def is_good(self) -> bool:
        """Whether the replay is identical and less than `MOST_UNEXPLAINED` of the gap is unexplained, both ways."""
        shares = (self.unexplained_total, self.unexplained_by_order)
        return self.replay.identical and all(share < MOST_UNEXPLAINED for share in shares)

    @cached_property
    def causes(self) -> pl.DataFrame:
        """One line a cause: amount, share of the gap's parts (of the sum of their sizes), orders it touches."""
        sizes = sum(abs(float(amount)) for amount in self.by_cause.values())
        return pl.DataFrame(
            {
                "cause": CAUSES,
                "amount": [float(self.by_cause[cause]) for cause in CAUSES],
                "share": [_share(abs(float(self.by_cause[cause])), sizes) for cause in CAUSES],
                "orders": [int((self.orders[cause] != 0).sum()) for cause in CAUSES],
            }
        )

    @property
    def asset(self) -> str:
        """The asset in which amounts are told."""
        return self.definitions.instruments[0].quote or "quote"

    def __str__(self) -> str:
        asset = self.asset
        lines = [
            f"{self.definitions.session} ({self.definitions.mode}), {self.definitions.strategy.name}",
            str(self.replay),
            f"backtest: {self.assumed}",
            f"session:  {self.measured}",
            "",
            f"{'session':<14}{self.session_pnl:>+18,.8f} {asset}",
            f"{'backtest':<14}{self.backtest_pnl:>+18,.8f} {asset}",
            f"{'gap':<14}{self.gap:>+18,.8f} {asset}",
        ]
        for line in self.causes.iter_rows(named=True):
            amount = self.by_cause[line["cause"]]
            lines.append(f"  {line['cause']:<12}{amount:>+18,.8f} {asset}  {line['orders']:>6,} orders")
        lines.append(
            f"unexplained: {self.unexplained_total:.2%} of the gap, {self.unexplained_by_order:.2%} order by order; "
            f"{self.followed_by_order:.0%} followed from an earlier difference"
        )
        return "\n".join([*lines, *self._fit_lines(), *self.notes])

    def _fit_lines(self) -> list[str]:
        if self.queue_fit is None:
            return []
        line = _line_of(self.queue_fit, self.fitted_queue)
        return [
            f"fitted: {self.fitted_queue}, Brier {line['brier']:.3f} ({line['brier_low']:.3f} to "
            f"{line['brier_high']:.3f}), fills foretold {line['predicted']:.1%}, realised {line['realised']:.1%}; with "
            f"it and the measured latency a backtest makes {self.fitted_pnl:+,.8f} {self.asset}, "
            f"{self.session_pnl - self.fitted_pnl:+,.8f} from the session"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON; amounts as decimal text."""
        return {
            "session": self.definitions.session,
            "mode": self.definitions.mode,
            "replay_identical": self.replay.identical,
            "first_difference": self.replay.difference,
            "reason": self.replay.reason,
            "asset": self.asset,
            "session_pnl": str(self.session_pnl),
            "backtest_pnl": str(self.backtest_pnl),
            "gap": str(self.gap),
            "causes": {cause: str(amount) for cause, amount in self.by_cause.items()},
            "unexplained_total": self.unexplained_total,
            "unexplained_by_order": self.unexplained_by_order,
            "followed_by_order": self.followed_by_order,
            "assumed": self.assumed,
            "measured": self.measured,
            "fitted_queue": str(self.fitted_queue),
            "fitted_pnl": str(self.fitted_pnl),
            "notes": list(self.notes),
            "good": self.is_good,
        }

    def plot(self) -> LayoutDOM:
        """Return the pictures: the gap by cause, as it grew and order by order; how reliably fills were foretold."""
        from bokeh.layouts import column

        fitted = [] if self.queue_fit is None else [self._reliability(self.queue_fit)]
        return column(self._waterfall(), *self._over_time(), *fitted, sizing_mode="stretch_width")

    def _reliability(self, fit: QueueFit) -> Any:
        from bokeh.models import ColumnDataSource, HoverTool, Range1d
        from bokeh.models.annotations import Whisker
        from bokeh.plotting import figure

        bins: dict[str, Any] = fit.reliability(self.fitted_queue).to_dict(as_series=False)
        source = ColumnDataSource(bins)
        plot = figure(
            height=280, sizing_mode="stretch_width", toolbar_location=None, x_range=Range1d(start=-0.02, end=1.02),
            y_range=Range1d(start=-0.02, end=1.02), x_axis_label=f"foretold by {self.fitted_queue}",
            y_axis_label="realised",
            title="Share of orders filled in time: on the line the model is right, below it optimistic",
        )  # fmt: skip
        plot.line([0, 1], [0, 1], color=GREY, line_dash="dashed")
        plot.line("predicted", "realised", color=BID, source=source)
        points = plot.scatter("predicted", "realised", size=8, color=BID, source=source)
        plot.add_layout(Whisker(base="predicted", lower="low", upper="high", source=source, line_color=BID))
        shown = [("foretold", "@predicted{0.0%}"), ("realised", "@realised{0.0%}"), ("orders", "@n{0}")]
        plot.add_tools(HoverTool(tooltips=shown, renderers=[points]))
        return plot

    def _waterfall(self) -> Any:
        from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d
        from bokeh.plotting import figure

        steps = [float(self.by_cause[cause]) for cause in CAUSES]
        ends = np.cumsum(steps)
        starts = np.concatenate([[0.0], ends[:-1], [0.0]])
        ends = np.concatenate([ends, [float(self.gap)]])
        names, amounts = [*CAUSES, "gap"], [*steps, float(self.gap)]
        source = ColumnDataSource(
            {
                "name": names,
                "top": np.maximum(starts, ends),
                "bottom": np.minimum(starts, ends),
                "amount": amounts,
                "colour": [*(_COLOURS[cause] for cause in CAUSES), INK],
                "text": [f"{amount:+,.4g}" if amount else "0" for amount in amounts],
            }
        )
        low, high = float(min(starts.min(), ends.min())), float(max(starts.max(), ends.max()))
        room = 0.15 * (high - low) or 1.0
        title = f"From the backtest ({self.backtest_pnl:+,.6f} {self.asset}) to the session ({self.session_pnl:+,.6f})"
        x_range, y_range = FactorRange(factors=names), Range1d(start=low - room, end=high + room)
        plot = figure(
            x_range=x_range, y_range=y_range, height=280, title=title, sizing_mode="stretch_width",
            toolbar_location=None, y_axis_label=self.asset,
        )  # fmt: skip
        plot.vbar("name", 0.7, "top", "bottom", color="colour", source=source)
        plot.text("name", "top", "text", text_align="center", y_offset=-4, text_font_size="12px", source=source)
        plot.add_tools(HoverTool(tooltips=[("", "@name"), (self.asset, "@amount{+0.00000000}")]))
        plot.xgrid.grid_line_color = None
        return plot

    def _over_time(self) -> list[Any]:
        from bokeh.models import ColumnDataSource, HoverTool
        from bokeh.plotting import figure

        at = self.orders["ts"].dt.timestamp("us").to_numpy() / 1e3
        style: dict[str, Any] = {"height": 220, "sizing_mode": "stretch_width", "x_axis_type": "datetime"}
        style |= {"y_axis_label": self.asset, "tools": "xpan,xwheel_zoom,reset"}
        grown = figure(title="The gap as it grew, by the time of the decision", **style)
        each = figure(title="Order by order", x_range=grown.x_range, **style)
        for cause in (cause for cause in CAUSES if (self.orders[cause] != 0).any()):
            colour = _COLOURS[cause]
            grown.step(at, self.orders[cause].cum_sum().to_numpy(), mode="after", color=colour, legend_label=cause,
                       line_width=2)  # fmt: skip
            part = self.orders.filter(pl.col(cause) != 0)
            source = ColumnDataSource(
                {
                    "at": part["ts"].dt.timestamp("us").to_numpy() / 1e3,
                    **{name: part[name].to_list() for name in (cause, "symbol", "side", "px", "qty", "how")},
                }
            )
            each.scatter("at", cause, size=7, alpha=0.7, color=colour, legend_label=cause, source=source)
        each.add_tools(
            HoverTool(tooltips=[("", "@symbol @side @qty at @px{0.[00000000]}"), ("why", "@how"), ("", "$y")])
        )
        grown.step(at, self.orders["gap"].cum_sum().to_numpy(), mode="after", color=INK, line_dash="dashed",
                   legend_label="gap")  # fmt: skip
        for plot in (part for part in (grown, each) if part.legend):
            plot.legend.click_policy = "hide"
            plot.legend.label_text_font_size, plot.legend.border_line_alpha = "11px", 0.0
            plot.add_layout(plot.legend[0], "right")
        return [grown, each]

    def html(self, path: Path) -> Path:
        """Write the report as one file that needs no network, and return its path."""
        from html import escape

        from bokeh.embed import components
        from bokeh.layouts import column
        from bokeh.models.widgets import Div

        from hftlab.analysis.report import inline_scripts

        worst = self.orders.sort(pl.col("gap").abs(), descending=True).head(40)
        names = ("ts", "symbol", "side", "px", "qty", "session", "backtest", "gap", "how")
        head = "".join(f"<th style='text-align:left;padding:2px 10px'>{name}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td style='padding:2px 10px'>{escape(_shown(line[name]))}</td>" for name in names)
            + "</tr>" for line in worst.iter_rows(named=True)
        )  # fmt: skip
        text = Div(text=f"<pre style='font-size:13px;white-space:pre-wrap'>{escape(str(self))}</pre>")
        table = Div(text=f"<h3>The {worst.height} orders of the largest gap</h3><table>{head}{body}</table>")
        page = column(text, self.plot(), table, sizing_mode="stretch_width")
        script, div = components(page)
        title = f"<title>Parity of {escape(self.definitions.session)}</title>"
        path.write_text(f"<!doctype html><meta charset=utf-8>{title}{inline_scripts([page])}{div}{script}")
        return path


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.8g}"
    return str(value)


def _share(part: float, whole: float) -> float:
    if not part:
        return 0.0
    return part / whole if whole else float("nan")


def _frame(lines: Sequence[_Line], books: _Ledger, definitions: Definitions) -> pl.DataFrame:
    """Return the lines that traded in any book."""
    rows = []
    for line in lines:
        orders = (line.session, line.measured, line.assumed)
        if not any(order is not None and order.fills for order in orders):
            continue
        order = line.any_order
        one = definitions.instruments[order.instrument]
        session, backtested = (
            Fraction(0) if part is None else books.net(part) for part in (line.session, line.assumed)
        )
        filled = [0 if part is None else sum(fill.qty for fill in part.fills) for part in (line.session, line.assumed)]
        rows.append(
            {
                "ts": order.decided_ns,
                "symbol": one.symbol,
                "side": "buy" if order.side == _BUY else "sell",
                "px": None if order.px == NAT else float(one.px(order.px)),
                "qty": float(one.qty(order.qty)),
                "in_session": line.session is not None,
                "in_backtest": line.assumed is not None,
                "filled_session": float(one.qty(filled[0])),
                "filled_backtest": float(one.qty(filled[1])),
                "session": float(session),
                "backtest": float(backtested),
                "gap": float(line.gap),
                **{cause: float(line.amounts[cause]) for cause in CAUSES},
                "how": line.how,
            }
        )
    floats = ("px", "qty", "filled_session", "filled_backtest", "session", "backtest", "gap", *CAUSES)
    schema: dict[str, Any] = {"ts": pl.Int64, "symbol": pl.String, "side": pl.String, "px": pl.Float64}
    schema |= {"qty": pl.Float64, "in_session": pl.Boolean, "in_backtest": pl.Boolean}
    schema |= {name: pl.Float64 for name in floats if name not in schema} | {"how": pl.String}
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col("ts").cast(pl.Datetime("ns", "UTC")))


# --- the whole -------------------------------------------------------------------------------------------------------


def parity(
    session: Path | str | RowArray,
    definitions: Definitions | None = None,
    *,
    strategy: Strategy | PythonStrategy | None = None,
    latency: Latency | None = None,
    queue: Queue | None = None,
    fees: Fees | None = None,
) -> Parity:
    """Return why a session earned what its backtest did not.

    Parameters
    ----------
    session : path or array of ROW
        A session's folder, its journal, or the journal's rows.
    definitions : Definitions, optional
        Of rows; a journal holds its own.
    strategy : Strategy or PythonStrategy, optional
        Where the journal does not hold its source, as that of a backtest does not.
    latency, queue : Latency, Queue, optional
        What the backtest assumes: what `hftlab.backtest.runner.backtest` assumes if nothing is said.
    fees : Fees, optional
        What it assumes of them; what the session was usually charged if nothing is said.

    Returns
    -------
    Parity

    Raises
    ------
    ConfigError
        If the journal holds no source and no strategy is given, or its instruments have several quote assets: their
        amounts do not add up.

    Examples
    --------
    A session whose answers took longer than somebody assumed:

    >>> from hftlab.core.definitions import Limits
    >>> from hftlab.core.instruments import Instrument
    >>> from hftlab.sim.exchange import MatchingExchange
    >>> from hftlab.strategies.maker import Maker
    >>> btc = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
    >>> limits = Limits(max_order_qty=1000, max_notional=10**12, max_position=5000, collar_ticks=10_000)
    >>> given = {"instruments": [btc], "limits": limits}
    >>> market = backtest(Maker(edge_ticks=50), MatchingExchange([btc], seed=3), seconds=5, **given)
    >>> run = backtest(Maker(), market.rows, latency=Latency(30_000_000, 30_000_000), **given)
    >>> told = parity(run.rows, run.definitions, strategy=Maker())
    >>> told.replay.identical, told.gap == told.by_cause["latency"] != 0
    (True, True)
    """
    rows, definitions = _read(session, definitions)
    make = _maker(definitions, strategy)
    replayed = check_replay(rows, definitions, make())
    own = _orders(rows)
    books = _Ledger(definitions, _marks_x2(rows, definitions))
    usual = books.rates(own, fees or BASE_FEES)
    latency, queue, fees = latency or Latency(), queue or Queue(), fees or usual
    current = _as_dated_now(rows)
    latency_fit, queue_fit = _fits(current, definitions)
    seen = latency
    if latency_fit is not None:
        found = latency_fit
        seen = Latency(found.entry_ns, found.response_ns, feed_ns=latency.feed_ns, at_ns=found.at_ns)
    market = _market(current)

    def run(way: Latency, model: Queue, rates: Fees) -> list[_Order]:
        return _orders(
            backtest(
                make(), market, instruments=definitions.instruments, limits=definitions.limits, seed=definitions.seed,
                latency=way, queue=model, fees=rates,
            ).rows
        )  # fmt: skip

    assumed, measured = run(latency, queue, fees), run(seen, queue, usual)
    better = queue if queue_fit is None else _calibrated(queue_fit, queue)
    fitted = measured if better == queue else run(seen, better, usual)
    lines = _lines(assumed, measured, own)
    sight = _Sight(rows, len(definitions.instruments), _jitter_ns(seen))
    _attribute(lines, books, rows, sight, usual)
    by_cause = {cause: sum((line.amounts[cause] for line in lines), Fraction(0)) for cause in CAUSES}
    filled = [sum(len(order.fills) for order in part) for part in (own, assumed)]
    return Parity(
        definitions, replayed, _decimal(books.net(*own)), _decimal(books.net(*assumed)),
        {cause: _decimal(amount) for cause, amount in by_cause.items()},
        _frame(lines, books, definitions),
        f"{latency}; {queue}; {fees}; {len(assumed):,} orders, {filled[1]:,} fills",
        f"{seen}; {usual}; {len(own):,} orders, {filled[0]:,} fills", latency_fit, queue_fit,
        better, _decimal(books.net(*fitted)), _notes(latency_fit, queue_fit, queue, books.unvalued(own)),
    )  # fmt: skip


def _as_dated_now(rows: RowArray) -> RowArray:
    """Return rows whose venue times can be set beside ours: without those of a recording that a simulated venue plays.

    Such times are of another day. Rows without one are taken to be at the venue when we received them.
    """
    dated = rows["ts_event"] > 0
    dated &= np.isin(rows["kind"], _MARKET)
    if not dated.any() or abs(float(np.median((rows["ts_recv"] - rows["ts_event"])[dated]))) < _ANOTHER_DAY_NS:
        return rows
    current = rows.copy()
    current["ts_event"][rows["kind"] != CONT] = NAT
    return current


def _fits(rows: RowArray, definitions: Definitions) -> tuple[LatencyFit | None, QueueFit | None]:
    """Return what a session's own orders say of its latency and queue; None where they say nothing."""
    try:
        latency = fit_latency(rows)
    except ConfigError:  # no order was answered
        return None, None
    try:
        return latency, fit_queue(rows, definitions)
    except ConfigError:  # none rested
        return latency, None


def _line_of(fit: QueueFit, queue: Queue) -> dict[str, Any]:
    """Return a fit's line about a model; empty if it was not compared."""
    exponent = queue.exponent if queue.model == "power" else None
    lines = fit.table.iter_rows(named=True)
    return next((line for line in lines if (line["model"], line["exponent"]) == (queue.model, exponent)), {})


def _calibrated(fit: QueueFit, assumed: Queue) -> Queue:
    """Return the model that foretells the fills best, or the assumed one where it may well be as good."""
    known, best = _line_of(fit, assumed), _line_of(fit, fit.best)
    return assumed if known and known["brier"] <= best["brier_high"] else fit.best


def _notes(latency: LatencyFit | None, queue: QueueFit | None, assumed: Queue, unvalued: int) -> tuple[str, ...]:
    """Return what the reader of a report must know besides."""
    notes = []
    if latency is None:
        notes.append("no order of the session was answered: its latency is taken to be the assumed one")
    warning = queue.warning(assumed) if queue is not None and _line_of(queue, assumed) else None
    if warning is not None:
        notes.append(f"WARNING: {warning}")
    if unvalued:
        notes.append(f"fees of {unvalued:,} fills in a third asset are left out")
    return tuple(notes)


def _read(session: Path | str | RowArray, definitions: Definitions | None) -> tuple[RowArray, Definitions]:
    if isinstance(session, np.ndarray):
        if definitions is None:
            raise ConfigError("definitions: missing; rows do not tell their instruments, give result.definitions")
        rows = session
    else:
        folder = Path(session)
        journal = folder / "journal" if (folder / "journal").is_dir() else folder
        reader = JournalReader(journal)
        definitions = definitions or Definitions.from_dict(reader.definitions)
        reader.close()
        rows = read_all(journal)
    quotes = sorted({one.quote for one in definitions.instruments})
    if len(quotes) != 1:
        raise ConfigError(f"instruments are quoted in {', '.join(quotes)}; expected one asset, so that amounts add up")
    return rows, definitions


def _maker(
    definitions: Definitions, strategy: Strategy | PythonStrategy | None
) -> Callable[[], Strategy | PythonStrategy]:
    """Return what makes a fresh strategy for each run: a `PythonStrategy` may remember the last one."""
    ref = definitions.strategy
    if strategy is None and not ref.source:
        raise ConfigError(f"strategy: the journal does not hold the source of {ref.name!r}; give the strategy itself")
    one = strategy or load_strategy(ref.source, ref.name, ref.params)
    return (lambda: type(one)(**one.chosen)) if isinstance(one, PythonStrategy) else (lambda: one)


def _marks_x2(rows: RowArray, definitions: Definitions) -> list[int]:
    """Return twice the mark of each instrument at the journal's end: the mid, else the last trade, else 0."""
    replica = Replica(definitions)
    replica.apply(rows)
    marks = []
    for one in definitions.instruments:
        bid, bid_qty, ask, ask_qty = replica.touch(one.id)
        last = int(replica.instruments[one.id]["last_px"])
        marks.append(bid + ask if bid_qty and ask_qty else 2 * last)
    return marks


def _market(rows: RowArray) -> RowArray:
    """Return the market rows of a session from its start to its last stop: what comes after it, it had no part in.

    A backtest starts at its first row, so a row that says nothing (an empty book is emptied) stands at the start.
    """
    starts, stops = (
        np.flatnonzero((rows["kind"] == Kind.CONTROL) & (rows["code"] == CONTROL[word])) for word in ("start", "stop")
    )
    ended = len(stops) and (not len(starts) or stops[-1] > starts[-1])
    market = rows[: stops[-1]] if ended else rows
    market = market[np.isin(market["kind"], _MARKET)]
    if len(starts) and len(market) and rows["ts_recv"][starts[0]] < market["ts_recv"][0]:
        opening = new_rows(1)
        opening["kind"], opening["ts_recv"] = Kind.CLEAR, rows["ts_recv"][starts[0]]
        market = join_rows([opening, market])
    return market


def _jitter_ns(latency: Latency) -> int:
    """Return by how much the delays of two answers differ at most, but for the first and last in a hundred."""
    ways = (np.percentile(way, (1, 99)) for way in (latency.entry_ns, latency.response_ns))
    return sum(int(high - low) for low, high in ways)
