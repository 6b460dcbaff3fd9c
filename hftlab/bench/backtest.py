"""Backtests: events a second of one recorded market, beside hftbacktest and nautilus_trader on the same events.

**Data.** 5 M L2 events of a drawn market, one each millisecond on average: nine in ten set a level within some ticks of
the touch, one in ten is a trade at it; each is a message of its own, received 0.5 ms later or a little more. The peer
gets them as its own array of floats, ours are the rows that `hftlab.convert.events` makes of that array, once
(``convert_ns``, into memory that the process has had before).

**Model**, the same on both sides: 1 ms to the exchange and 1 ms back, constant; the risk-averse queue; no partial
fills, every own order judged as if it were the only one (hftbacktest's NoPartialFillExchange, our ``alone=True``, which
for orders of one lot are the same rules); ladders for depth (ROIVectorMarketDepth). ``grid`` is a market maker of 5 x 5
orders that looks each 100 ms (`hftlab.strategies.grid`; the peer's is its equal in its own words). ``replay`` has a
timer each 100 ms and does nothing; ``each_event`` wakes a compiled strategy at every event.

**What is timed** of ours is the whole call of `hl.backtest`: reading the rows over for broken ones, the engine, risk,
own rows. ``grid_ns`` writes the journal to disk, ``grid_memory_ns`` keeps the own rows in memory. Of the peer it is the
making of its object, from the array in memory, and its run. Compiling is outside on both sides. Before anything is
timed the fills of both are compared one by one (time at the exchange, side, price); of a thousand one may differ, since
at equal times both take another order: hftbacktest market data, then requests; ours requests first. What differed is
said.

nautilus_trader replays quote ticks to a Python strategy that counts them; so do ours, compiled and in Python.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.backtest.runner import Result, backtest
from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.convert.events import event_rows
from hftlab.convert.hftbacktest import BUY, DEPTH, EVENT, EXCH, LOCAL, SELL, TRADE
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Flag, Kind, RowArray, new_rows
from hftlab.kernels.jit import kernel
from hftlab.sim.models import Fees, Latency, Queue
from hftlab.strategies.grid import Grid
from hftlab.strategy import PythonStrategy, Strategy, record

__all__ = [
    "Counting",
    "EVENTS",
    "EveryEvent",
    "GOALS",
    "INSTRUMENT",
    "Replays",
    "Ticking",
    "draw_events",
    "fills_of",
    "prepare",
]

EVENTS = 5_000_000
GOALS = {
    "grid_vs_hftbacktest": (2.0, 3.0),
    "grid_memory_vs_hftbacktest": (2.0, 4.0),
    "replay_vs_hftbacktest": (2.0, 3.5),
    "each_event_vs_hftbacktest": (1.0, 1.6),
    "quotes_python_vs_nautilus": (2.0, 4.0),
    "quotes_vs_nautilus": (20.0, 100.0),
    "python_book_us": (2.0, 1.0),
    "convert_ns": (60.0, 60.0),
}

HFTBACKTEST = ("hftbacktest==2.4.4",)
NAUTILUS = ("nautilus_trader==1.221.0",)
STEP_NS = 100_000_000
_LATENCY_NS = 1_000_000
_QUOTES = 200_000
_PYTHON = 500_000
_TOLERANCE = 1e-3

_FIRST_NS = 1_700_000_000_000_000_000
_MID, _WIDTH, _FILLED, _FARTHEST = 100_000, 200_000, 32, 300
_BOTH, _BUY, _SELL = EXCH | LOCAL, BUY, SELL

INSTRUMENT = Instrument(0, "bench", "X", Decimal("0.1"), Decimal("1"), "X", "USD")
LIMITS = Limits(
    max_order_qty=10, max_notional=10**9, max_position=1000, collar_ticks=10_000, orders_per_s=1_000_000,
    max_open_orders=1000,
)  # fmt: skip

Events = npt.NDArray[np.void]


@kernel()
def _lots() -> int:
    return 1 + int(np.random.exponential(20.0))


@kernel()
def _draw(events: Any, bids: Any, asks: Any, seed: int) -> None:
    """Fill `events`; `bids` and `asks` are the lots by price, all zero."""
    np.random.seed(seed)
    bid, ask = _MID, _MID + 1
    exch, before = _FIRST_NS, 0
    for k in range(len(events)):
        is_buy = np.random.random() < 0.5
        levels, step, touch = (bids, -1, bid) if is_buy else (asks, 1, ask)
        what, draw = DEPTH, np.random.random()
        px, lots = touch, 0
        if k < 2 * _FILLED:  # the book there is at first, a level each
            is_buy = k & 1 == 0
            levels, px = (bids, bid - k // 2) if is_buy else (asks, ask + k // 2)
            lots = _lots()
        elif draw < 0.1:  # a trade: the buyer takes from the asks
            what = TRADE
            px = ask if is_buy else bid
            lots = 1 + int(np.random.exponential(3.0))
        elif draw < 0.115:  # the touch is taken away, if there is another near enough
            following = touch + step
            while levels[following] == 0 and abs(following - touch) < _FARTHEST:
                following += step
            if levels[following] == 0:
                lots = _lots()
            elif is_buy:
                bid = following
            else:
                ask = following
        elif draw < 0.13:  # or improved, where the spread has room
            if ask - bid > 1:
                px = touch - step
                if is_buy:
                    bid = px
                else:
                    ask = px
            lots = _lots()
        else:
            px = touch + step * int(np.random.exponential(8.0))
            if px == touch or np.random.random() > 0.2:
                lots = _lots()
        if what == DEPTH:
            levels[px] = lots
        if k > 0:
            exch += 1 + int(np.random.exponential(1e6))
        # the first is received at once, so that both sides count their steps from the same moment
        local = exch if k == 0 else max(exch + 500_000 + int(np.random.exponential(2e5)), before + 1)
        before = local
        event = events[k]
        event.ev = np.uint64(_BOTH | what | (_BUY if is_buy else _SELL))
        event.exch_ts = exch
        event.local_ts = local
        event.px = px / 10.0
        event.qty = float(lots)


def draw_events(n: int, seed: int = 5) -> Events:
    """Return `n` L2 events of a drawn market as hftbacktest's array; ticks of 0.1, lots of 1.

    Examples
    --------
    >>> events = draw_events(1000)
    >>> len(events), bool((np.diff(events["local_ts"]) > 0).all())
    (1000, True)
    """
    events = np.zeros(n, EVENT)
    _draw(events, np.zeros(_WIDTH, np.int64), np.zeros(_WIDTH, np.int64), seed)
    return events


# --- strategies


class Ticking(Strategy):
    """Do nothing, each 100 ms: what a replay in steps costs."""

    params = record(interval_ns=STEP_NS)
    state = record(n=0)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Ask for the first step."""
        ctx.set_timer(ctx.now_ns + params.interval_ns)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Ask for the next."""
        state.n += 1
        ctx.set_timer(event.px + params.interval_ns)


class EveryEvent(Strategy):
    """Count the events, one wake-up each, and write the count down at the end."""

    state = record(n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Count a change of the book."""
        state.n += 1

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Count a trade."""
        state.n += 1

    def on_stop(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Tell."""
        ctx.note(1, state.n)


class Counting(PythonStrategy):
    """The same in free Python."""

    def __init__(self) -> None:
        self.n = 0

    def on_book(self, ctx: Any, event: Any) -> None:
        """Count a change of the book."""
        self.n += 1

    def on_stop(self, ctx: Any, event: Any) -> None:
        """Tell."""
        ctx.note(1, self.n)


# --- ours


class Replays:
    """One market's rows, and what is run over them.

    Parameters
    ----------
    plan : Plan
        Its folder holds a journal while it is written.
    rows : array of ROW
        Market rows of `INSTRUMENT`.
    """

    def __init__(self, plan: Plan, rows: RowArray) -> None:
        self.plan, self.rows, self._runs = plan, rows, 0

    def run(self, strategy: Strategy | PythonStrategy, rows: RowArray, *, on_disk: bool = False) -> tuple[Result, int]:
        """Return what a backtest left, and the nanoseconds it took."""
        self._runs += 1
        folder = self.plan.folder / f"backtest-{self._runs}" if on_disk else None
        started = time.perf_counter_ns()
        result = backtest(
            strategy, rows, instruments=[INSTRUMENT], limits=LIMITS, latency=Latency(_LATENCY_NS, _LATENCY_NS),
            queue=Queue("risk_averse"), fees=Fees(maker_e8=0, taker_e8=0), alone=True, folder=folder,
            journal_market=False,
        )  # fmt: skip
        took = time.perf_counter_ns() - started
        if folder is not None:
            shutil.rmtree(folder)
        return result, took

    def case(self, name: str, strategy: Callable[[], Strategy | PythonStrategy], n: int, on_disk: bool = False) -> Case:
        """Return the case of a run over the first `n` events, per event."""
        per = 1e3 if name.endswith("_us") else 1.0
        rows = self.rows[: n + 1]
        return Case(name, lambda: self.run(strategy(), rows, on_disk=on_disk)[1] / n / per)


def fills_of(own: RowArray) -> Counter[tuple[int, int, int]]:
    """Return a run's fills as (time at the exchange ns, +1 for a buy, px)."""
    fills = own[(own["kind"] == Kind.REPORT) & (own["code"] & 0xFF == ExecType.FILL)]
    sides = np.where(fills["flags"] & int(Flag.BID) != 0, 1, -1)
    return Counter(zip(fills["ts_event"].tolist(), sides.tolist(), fills["px"].tolist(), strict=True))


def _noted(result: Result) -> int:
    notes = result.own[result.own["kind"] == Kind.NOTE]
    return int(notes["px"][0]) if len(notes) else -1


def _check_counts(ours: Replays, n: int) -> None:
    """Compare what the counting strategies counted with the messages there were; the first says that the book lives."""
    rows = ours.rows[: n + 1]
    books = int((rows["kind"] != Kind.TRADE).sum())
    for strategy, expected in ((EveryEvent(), n + 1), (EveryEvent(compiled=False), n + 1), (Counting(), books)):
        counted = _noted(ours.run(strategy, rows)[0])
        if counted != expected:
            raise CheckFailed(f"backtest: {strategy} was woken {counted} times; expected {expected}")


# --- the peers


def _with_hftbacktest(plan: Plan, ours: Replays, events: Events) -> tuple[list[Case], list[Ratio]]:
    """Return hftbacktest's cases, its fills compared with ours."""
    path = plan.folder / "events.npy"
    np.save(path, events)
    peer = plan.peer("hftbacktest_replay", HFTBACKTEST)
    told = peer.ask(op="prepare", path=str(path), fills=str(plan.folder / "fills.npy"), latency_ns=_LATENCY_NS)
    theirs = Counter(map(tuple, np.load(plan.folder / "fills.npy").tolist()))
    result, _ = ours.run(Grid(), ours.rows)
    # theirs are looked at when a step wakes: what fills after the last step of the data is not seen by either grid
    mine = Counter({key: count for key, count in fills_of(result.own).items() if key[0] <= told["until_ns"]})
    n, differing = max(1, theirs.total()), (mine - theirs).total() + (theirs - mine).total()
    plan.tell(f"grid: {mine.total():,} fills, hftbacktest's {theirs.total():,}; {differing} of them not the same")
    if differing > _TOLERANCE * n:
        first = min((mine - theirs) + (theirs - mine))
        raise CheckFailed(
            f"backtest: of {mine.total()} fills and hftbacktest's {theirs.total()}, {differing} differ, first {first}"
        )
    count = len(events)
    cases, ratios = [], []
    for what, names in {
        "grid": ("grid", "grid_memory"), "replay": ("replay",), "each_event": ("each_event",),
    }.items():  # fmt: skip
        cases.append(Case(f"{what}_ns", _asked(peer, what, count), peer="hftbacktest"))
        ratios += [Ratio(f"{name}_vs_hftbacktest", f"{name}_ns", f"hftbacktest_{what}_ns") for name in names]
    return cases, ratios


def _asked(peer: Any, what: str, n: int) -> Callable[[], float]:
    return lambda: float(peer.ask(op="round", what=what)["value"]) / n


def _quote_rows(n: int) -> RowArray:
    """Return `n` quotes of both sides, a millisecond apart: the touch wanders by one tick."""
    chance = np.random.default_rng(1)
    mid = _MID + np.cumsum(chance.integers(-1, 2, n))
    rows = new_rows(2 * n + 1)
    states, quotes = rows[:1], rows[1:]
    states["kind"], states["code"], states["flags"] = Kind.BOOK_STATE, 1, Flag.LAST
    quotes["kind"], quotes["qty"] = Kind.QUOTE, 1
    quotes["ts_event"] = quotes["ts_recv"] = _FIRST_NS + np.repeat(np.arange(n), 2) * 1_000_000
    states["ts_event"] = states["ts_recv"] = _FIRST_NS
    quotes["px"][::2], quotes["px"][1::2] = mid, mid + 1
    quotes["flags"][::2], quotes["flags"][1::2] = Flag.BID, Flag.ASK | Flag.LAST
    quotes["a"] = np.repeat(np.arange(1, n + 1), 2)
    return rows


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases; with peers, hftbacktest's and nautilus_trader's beside them."""
    n, quotes, slow = plan.sized(EVENTS, 20_000), plan.sized(_QUOTES, 2_000), plan.sized(_PYTHON, 5_000)
    events = draw_events(n)
    ours = Replays(plan, event_rows(events, INSTRUMENT))
    few = min(n, 20_000)
    _check_counts(ours, few)
    quoted = Replays(plan, _quote_rows(quotes))
    ours.run(Ticking(), ours.rows[:few])
    grid, _ = ours.run(Grid(), ours.rows[:few], on_disk=True)
    if grid.counters["fills"] == 0 or grid.counters["refusals"]:
        raise CheckFailed(f"backtest: the grid's counters are {grid.counters}; expected fills, and none refused")

    def convert() -> float:
        event_rows(events, INSTRUMENT)  # new memory is touched here: what that takes is the system's
        started = time.perf_counter_ns()
        event_rows(events, INSTRUMENT)
        return (time.perf_counter_ns() - started) / n

    def quotes_of(name: str, strategy: Callable[[], Strategy | PythonStrategy]) -> Case:
        per = 1e3 if name.endswith("_us") else 1.0
        return Case(name, lambda: quoted.run(strategy(), quoted.rows)[1] / quotes / per)

    cases = [
        ours.case("grid_ns", Grid, n, on_disk=True),
        ours.case("grid_memory_ns", Grid, n),
        ours.case("replay_ns", Ticking, n),
        ours.case("each_event_ns", EveryEvent, n),
        ours.case("python_book_us", Counting, slow),
        quotes_of("quotes_us", EveryEvent),
        quotes_of("quotes_python_us", Counting),
        Case("convert_ns", convert),
    ]
    ratios: list[Ratio] = []
    if plan.peers:
        more, ratios = _with_hftbacktest(plan, ours, events)
        cases += more
        peer = plan.peer("nautilus_quotes", NAUTILUS)
        told = peer.ask(op="prepare", n=quotes)
        if told["counted"] != quotes:
            raise CheckFailed(f"backtest: nautilus_trader's strategy counted {told['counted']} of {quotes} quotes")
        cases.append(Case("quotes_us", lambda: float(peer.ask(op="round")["value"]) / quotes / 1e3, peer="nautilus"))
        for name in ("quotes", "quotes_python"):
            ratios.append(Ratio(f"{name}_vs_nautilus", f"{name}_us", "nautilus_quotes_us"))
    return cases, ratios
