"""Seeded synthetic order flow: who comes to the simulated exchange when nobody recorded comes.

The model. A latent *value* walks randomly in 1/1024 ticks, with a slow drift and rare jumps, reflected at half and
twice its start. Events arrive as a Poisson process. Each is one of

- an *informed taker*, who buys what is offered below value (or sells what is bid above it), up to value;
- a *noise taker*, who buys or sells a random quantity within `reach_ticks` of the touch;
- a *maker*, who adds a limit order at a heavy-tailed distance from value, on the side that has fewer orders, or
  cancels: half the time a touch that value has passed, else any order; more cancels the more orders rest.

So a quote that stays when value moves is picked off, and quoting the touch without a view loses: the adverse selection
that a market maker must learn to price. If a side falls under `min_levels` price levels, makers refill it next to value
within the same event.

The promise. The seed alone fixes every event's time, kind, side, distance and size and the whole path of value: draw
``j`` of event ``k`` is a function of (seed, instrument, k, j), so slicing time differently changes nothing. What an
event does depends also on the book it meets, hence on own orders. All arithmetic is integer; tables made once hold the
exponential gaps, distances and sizes.

Measured over ten virtual minutes at the defaults, seed 1 (tests/sim/test_flow.py holds the bounds):
median spread 1 tick (mean over time 1.35); 24 levels a side or more; each second 807 book events, of which 27 move the
touch's price, 280 QUOTE and 182 TRADE rows; a quoter who joins the touch on both sides every 100 ms with 0.01 BTC waits
0.22 s for a fill (median; 95 % within 0.68 s), and its 1 s markout is -0.44 ticks a fill (standard error 0.08).

*Scripted flow.* Where time should cluster, instruments move together or regimes change, times, kinds and values come
from a script (`ScriptedFlow`, made by `hftlab.sim.markets`); sizes, distances and cancels are drawn as here, and the
book is the same. When a script ends, nothing comes any more.

When it is wrong. Without a script time does not cluster (real flow is self-exciting) and volatility is constant. Value
moves far less than a real BTCUSDT's (some ticks a second; the venue's real tick is fine, its moves are hundreds),
takers do not read the book's imbalance, nobody reacts to own orders' presence, and refilling is instant. Good for
exercising the path and for teaching; never evidence that a strategy earns.

References
----------
Glosten and Milgrom (1985) for the informed and the noise taker; Steele, Lea and Flood (2014) for splitmix64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.core.rows import Side, Tif
from hftlab.kernels.jit import kernel
from hftlab.kernels.matching import (
    ANONYMOUS,
    FINAL,
    HIGH,
    ID,
    N_FILLS,
    N_LEVELS,
    OWNER,
    PX,
    QTY,
    SIDE,
    Book,
    best_px,
    cancel,
    find_order,
    level_at,
    make_book,
    submit,
)
from hftlab.sim.tape import (
    BID_PX,
    BID_QTY,
    INSTRUMENT,
    SEQ,
    TAPE_SIZE,
    TOUCHED,
    rows_at_most,
    write_fills,
    write_level,
    write_prints,
    write_touch,
)

__all__ = [
    "BUY_TAKER",
    "FlowParams",
    "INFORMED_TAKER",
    "MAKER",
    "Market",
    "SELL_TAKER",
    "ScriptedFlow",
    "UNIT",
    "make_market",
    "refill",
    "run_flow",
]

Int64s = npt.NDArray[np.int64]

UNIT = 1024  # of value, to a tick
TABLE = 4096
MAX_OFFSET = 400  # ticks

MAKER, INFORMED_TAKER, BUY_TAKER, SELL_TAKER = range(4)
"""Kinds of events in a script."""

# flow state
NEXT_NS, EVENT, VALUE, REFILLS, SEED = range(5)
# parameters as the kernel reads them
STEP, DRIFT, JUMP_ODDS, JUMP, INFORMED, NOISE, TARGET, MIN_LEVELS, REACH, VALUE_MIN, VALUE_MAX = range(11)

_BUY, _SELL = int(Side.BUY), int(Side.SELL)
_GTC, _IOC = int(Tif.GTC), int(Tif.IOC)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32, _52 = (np.uint64(n) for n in (30, 27, 31, 32, 52))
_ODDS = 1 << 16
_NEVER = 2**62
_DRIFT_EVENTS = 13  # a new drift every 2**13 events
_DRIFT_STREAM = 1 << 40
_REFILL_STREAM = 1 << 41
_START_STREAM = 1 << 42


@dataclass(frozen=True, slots=True)
class FlowParams:
    """What the flow is like.

    Parameters
    ----------
    start_px_ticks : int
        First value, ticks; 5,000 or more, so that the book's depth stays above zero.
    events_per_s : float
        Mean arrivals a second, 0.1 to 1e6.
    volatility_ticks : float
        Standard deviation of value over one second, without drift and jumps, ticks.
    drift_ticks : float
        Largest drift of value, ticks a second; drawn anew every 8,192 events.
    jumps_per_s : float
        Mean jumps of value a second.
    jump_ticks : int
        Largest jump; each is uniform from 1.
    informed, noise : float
        Shares of events that are informed and noise takers; what is left are makers.
    typical_qty_lots : int
        Median order, lots; orders are log-normal (sigma 1.1), cut to [1/50, 40] of it.
    orders : int
        Resting orders the makers tend to, both sides together; at most 4,000.
    min_levels : int
        Price levels a side never falls under; at most 200.
    reach_ticks : int
        How far beyond the touch a noise taker goes.

    Raises
    ------
    ConfigError
        If a parameter is out of its range.
    """

    start_px_ticks: int = 6_183_700
    events_per_s: float = 800.0
    volatility_ticks: float = 4.0
    drift_ticks: float = 1.0
    jumps_per_s: float = 0.2
    jump_ticks: int = 20
    informed: float = 0.06
    noise: float = 0.08
    typical_qty_lots: int = 6_000
    orders: int = 500
    min_levels: int = 24
    reach_ticks: int = 3

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "start_px_ticks": (5_000, 2**40),
            "events_per_s": (0.1, 1e6),
            "volatility_ticks": (0, 1e4),
            "drift_ticks": (0, 1e4),
            "jumps_per_s": (0, self.events_per_s),
            "jump_ticks": (1, 10_000),
            "informed": (0, 1),
            "noise": (0, 1 - self.informed),
            "typical_qty_lots": (1, 2**40),
            "orders": (2, 4_000),
            "min_levels": (1, 200),
            "reach_ticks": (0, 10_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"flow parameter {name} is {value!r}; expected {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class ScriptedFlow(FlowParams):
    """A flow whose times, kinds and values are given; what else it needs is in the parameters.

    Parameters
    ----------
    script : int64 array, shape (n, 3)
        An event a line, by time: ns after the start, kind (`MAKER` to `SELL_TAKER`), value in 1/1024 ticks.

    Raises
    ------
    ConfigError
        If a parameter is out of its range, or the script's shape, order or kinds are not as said.
    """

    script: Int64s = field(default_factory=lambda: np.zeros((0, 3), np.int64), compare=False)

    def __post_init__(self) -> None:
        FlowParams.__post_init__(self)
        script = self.script
        if script.dtype != np.int64 or script.ndim != 2 or script.shape[1] != 3 or not len(script):
            raise ConfigError(f"script: {script.dtype} of shape {script.shape}; expected int64 of shape (n, 3), n > 0")
        if int(script[0, 0]) < 0 or bool((np.diff(script[:, 0]) < 0).any()):
            raise ConfigError("script: times are negative or descend; expected ns after the start, ascending")
        if int(script[:, 1].min()) < MAKER or int(script[:, 1].max()) > SELL_TAKER or int(script[:, 2].min()) < UNIT:
            raise ConfigError("script: expected kinds 0 to 3, and values of a tick or more")


class Market(NamedTuple):
    """One instrument's matching book, the tape of what it published, and the flow that comes to it."""

    book: Book
    tape: Int64s
    flow: Int64s
    params: Int64s
    gaps: Int64s
    offsets: Int64s
    sizes: Int64s
    script: Int64s  # times, kinds, values; without a line: drawn


def _quantiles(n: int) -> npt.NDArray[np.float64]:
    return (np.arange(n) + 0.5) / n


def _offset_table() -> Int64s:
    """Distance from value, ticks: a third at the nearest price, half within 3, one in a hundred beyond 150."""
    u = _quantiles(TABLE)
    return np.minimum(2.5 * ((1 - u) ** -0.8 - 1), MAX_OFFSET).astype(np.int64)


def _size_table(typical: int) -> Int64s:
    u = _quantiles(TABLE)
    # the logistic quantile, scaled by sqrt(3) / pi, stands in for the normal one: no SciPy for one table
    spread = np.exp(1.1 * np.sqrt(3) / np.pi * np.log(u / (1 - u)))
    lots: Int64s = np.maximum(np.rint(typical * np.clip(spread, 1 / 50, 40)), 1).astype(np.int64)
    return lots


def make_market(instrument: int, params: FlowParams, seed: int, start_ns: int) -> Market:
    """Return a market with its first orders in the book and nothing published yet.

    Parameters
    ----------
    instrument : int
        Index of the instrument, written in every row; also derives this instrument's stream from `seed`.
    params : FlowParams
    seed : int
        Any integer; taken modulo 2**64.
    start_ns : int
        Venue time of the start, ns UTC.
    """
    rate = params.events_per_s
    value = params.start_px_ticks * UNIT + UNIT // 2
    step = round(np.sqrt(3.0 / rate) * params.volatility_ticks * UNIT)
    gaps = np.maximum(np.rint(-np.log(1 - _quantiles(TABLE)) * 1e9 / rate), 1).astype(np.int64)
    fixed = [
        step, round(params.drift_ticks * UNIT / rate), round(params.jumps_per_s / rate * 2**32),
        params.jump_ticks, round(params.informed * _ODDS), round(params.noise * _ODDS), params.orders,
        params.min_levels, params.reach_ticks, value // 2, value * 2,
    ]  # fmt: skip
    tape = np.zeros(TAPE_SIZE, np.int64)
    tape[INSTRUMENT] = instrument
    key = _mix((seed * 0x9E3779B97F4A7C15 + instrument + 1) % 2**64)
    flow = np.array([start_ns, 0, value, 0, key - 2**63], np.int64)
    script = np.zeros((0, 3), np.int64)
    if isinstance(params, ScriptedFlow):
        script = params.script + np.array([start_ns, 0, 0], np.int64)
        flow[VALUE] = script[0, 2]
    sizes = _size_table(params.typical_qty_lots)
    market = Market(
        make_book(), tape, flow, np.array(fixed, np.int64), gaps, _offset_table(), sizes, script
    )
    _open_book(market)
    if len(script):
        flow[NEXT_NS] = script[0, 0]
    return market


def _mix(x: int) -> int:
    """The finaliser of splitmix64, on Python integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@kernel()
def _draw(market: Any, k: Any, j: Any) -> Any:
    """Return 64 random bits: position ``16 k + j`` of this market's splitmix64 stream."""
    x = np.uint64(market.flow[SEED]) + (np.uint64(k) * np.uint64(16) + np.uint64(j)) * _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@kernel(inline=True)
def _below(bits: Any, n: Any) -> Any:
    """Return an int64 uniform in [0, n), n < 2**32."""
    return np.int64(((bits >> _32) * np.uint64(n)) >> _32)


@kernel(inline=True)
def _from(table: Any, bits: Any) -> Any:
    return table[np.int64(bits >> _52)]


@kernel()
def _maker_px(market: Any, side: Any, offset: Any) -> Any:
    """Return the price `offset` ticks from value on `side`, moved where it would not trade."""
    book = market.book
    value = market.flow[VALUE]
    if side == _BUY:
        return max(min((value - UNIT // 2) // UNIT - offset, best_px(book, _SELL) - 1), 1)
    return max(-((-value - UNIT // 2) // UNIT) + offset, best_px(book, _BUY) + 1)


@kernel()
def refill(market: Any, ts: Any, out: Any, n: Any) -> Any:
    """Add orders next to value until each side has `min_levels` levels; return the next free index of `out`."""
    book = market.book
    for side in range(1, 3):
        offset = 0
        while book.head[N_LEVELS + side - 1] < market.params[MIN_LEVELS] and offset < 4 * MAX_OFFSET:
            px = _maker_px(market, side, 0) + (-offset if side == _BUY else offset)
            offset += 1
            if px < 1 or level_at(book, side, px) >= 0:
                continue
            market.flow[REFILLS] += 1
            qty = _from(market.sizes, _draw(market, market.flow[REFILLS] + _REFILL_STREAM, 0))
            if submit(book, 0, side, px, qty, _GTC, False) == 1:
                n = write_level(book, market.tape, side, px, ts, out, n)
    return n


@kernel(inline=True)
def _move_value(market: Any, k: Any) -> None:
    params = market.params
    value = market.flow[VALUE]
    value += _below(_draw(market, k, 1), 2 * params[STEP] + 1) - params[STEP]
    drift = params[DRIFT]
    value += _below(_draw(market, (k >> _DRIFT_EVENTS) + _DRIFT_STREAM, 0), 2 * drift + 1) - drift
    if np.int64(_draw(market, k, 6) >> _32) < params[JUMP_ODDS]:
        jump = (_below(_draw(market, k, 8), params[JUMP]) + 1) * UNIT
        value += jump if _below(_draw(market, k, 9), 2) == 0 else -jump
    if value < params[VALUE_MIN]:
        value = 2 * params[VALUE_MIN] - value
    if value > params[VALUE_MAX]:
        value = 2 * params[VALUE_MAX] - value
    market.flow[VALUE] = value


@kernel()
def _take(market: Any, side: Any, limit: Any, qty: Any, ts: Any, out: Any, payload: Any, n: Any) -> Any:
    book = market.book
    submit(book, 0, side, limit, qty, _IOC, False)
    if book.head[N_FILLS] == 0:
        return n
    market.tape[SEQ] += 1
    n = write_fills(book, market.tape, side, 0, ts, out, payload, n)
    n = write_prints(book, market.tape, side, ts, out, n)
    n = refill(market, ts, out, n)
    return write_touch(book, market.tape, ts, out, n)


@kernel()
def _pick_resting(market: Any, k: Any) -> Any:
    """Return the id of an anonymous order to cancel, or 0: a touch that value has passed, else any."""
    book = market.book
    value = market.flow[VALUE]
    if _below(_draw(market, k, 10), 2) == 0:
        for side in range(1, 3):
            count = book.head[N_LEVELS + side - 1]
            px = best_px(book, side)
            if count > 0 and (px * UNIT > value if side == _BUY else px * UNIT < value):
                slot = book.levels[side - 1, count - 1, FINAL]
                if book.orders[slot, OWNER] == 0:
                    return book.orders[slot, ID]
    for probe in range(4):
        slot = _below(_draw(market, k, 11 + probe), book.head[HIGH])
        if book.orders[slot, ID] != 0 and book.orders[slot, OWNER] == 0:
            return book.orders[slot, ID]
    return 0


@kernel()
def _make(market: Any, k: Any, ts: Any, out: Any, n: Any) -> Any:
    """Add a limit order, or cancel one: the more rest, the likelier a cancel."""
    book = market.book
    bids, asks = book.head[ANONYMOUS], book.head[ANONYMOUS + 1]
    if _below(_draw(market, k, 7), 2 * market.params[TARGET]) < bids + asks:
        order_id = _pick_resting(market, k)
        if order_id == 0:
            return n
        slot = find_order(book, order_id)
        side = book.orders[slot, SIDE]
        px = book.orders[slot, PX]
        cancel(book, order_id)
    else:
        side = _BUY if _below(_draw(market, k, 3), bids + asks + 2) <= asks else _SELL
        px = _maker_px(market, side, _from(market.offsets, _draw(market, k, 4)))
        if submit(book, 0, side, px, _from(market.sizes, _draw(market, k, 5)), _GTC, False) != 1:
            return n
    market.tape[SEQ] += 1
    n = write_level(book, market.tape, side, px, ts, out, n)
    n = refill(market, ts, out, n)
    return write_touch(book, market.tape, ts, out, n)


@kernel(inline=True)
def _kind(market: Any, k: Any) -> Any:
    """Draw what event `k` is."""
    share = _below(_draw(market, k, 2), _ODDS)
    if share < market.params[INFORMED]:
        return INFORMED_TAKER
    if share < market.params[INFORMED] + market.params[NOISE]:
        return BUY_TAKER if _below(_draw(market, k, 3), 2) == 0 else SELL_TAKER
    return MAKER


@kernel(inline=True)
def _next_ns(market: Any, k: Any) -> Any:
    """Return the time of the event after `k`."""
    n = market.script.shape[0]
    if n == 0:
        return market.flow[NEXT_NS] + _from(market.gaps, _draw(market, k, 0))
    return market.script[k + 1, 0] if k + 1 < n else np.int64(_NEVER)


@kernel()
def _event(market: Any, k: Any, ts: Any, out: Any, payload: Any, n: Any) -> Any:
    """Run event `k`; return the next free index of `out`."""
    book = market.book
    params = market.params
    if market.script.shape[0] > 0:
        kind = market.script[k, 1]
        market.flow[VALUE] = market.script[k, 2]
    else:
        _move_value(market, k)
        kind = _kind(market, k)
    qty = _from(market.sizes, _draw(market, k, 5))
    if kind == INFORMED_TAKER:
        value = market.flow[VALUE]
        if best_px(book, _SELL) * UNIT < value and book.head[N_LEVELS + 1] > 0:
            return _take(market, _BUY, value // UNIT, qty, ts, out, payload, n)
        if best_px(book, _BUY) * UNIT > value and book.head[N_LEVELS] > 0:
            return _take(market, _SELL, -(-value // UNIT), qty, ts, out, payload, n)
    elif kind == BUY_TAKER:
        return _take(market, _BUY, best_px(book, _SELL) + params[REACH], qty, ts, out, payload, n)
    elif kind == SELL_TAKER:
        return _take(market, _SELL, best_px(book, _BUY) - params[REACH], qty, ts, out, payload, n)
    return _make(market, k, ts, out, n)


@kernel()
def run_flow(market: Any, until_ns: Any, out: Any, payload: Any) -> Any:
    """Run the flow up to and including `until_ns`; return the rows written.

    Stops early when `out` may not hold another event, or a trade touched a stop (``tape[TOUCHED]``): as long as
    ``flow[0] <= until_ns``, empty it, enter the stop and call again.

    Parameters
    ----------
    market : Market
    until_ns : int64
        Venue time, ns.
    out : array of ROW
        At least `rows_at_most` rows.
    payload : array of REPORT_PAYLOAD
        The same memory as `out`.
    """
    n = 0
    flow, tape = market.flow, market.tape
    while flow[NEXT_NS] <= until_ns and tape[TOUCHED] == 0 and n + rows_at_most(market.book) <= out.shape[0]:
        k = flow[EVENT]
        n = _event(market, k, flow[NEXT_NS], out, payload, n)
        flow[EVENT] = k + 1
        flow[NEXT_NS] = _next_ns(market, k)
    return n


@kernel()
def _open_book(market: Any) -> None:
    """Fill the book before the first event, and take its touch as published."""
    book = market.book
    for i in range(market.params[TARGET]):
        side = _BUY + (i & 1)
        px = _maker_px(market, side, _from(market.offsets, _draw(market, i + _START_STREAM, 4)))
        submit(book, 0, side, px, _from(market.sizes, _draw(market, i + _START_STREAM, 5)), _GTC, False)
    for side in range(1, 3):
        offset = 0
        while book.head[N_LEVELS + side - 1] < market.params[MIN_LEVELS]:
            px = _maker_px(market, side, 0) + (-offset if side == _BUY else offset)
            offset += 1
            if level_at(book, side, px) < 0:
                submit(book, 0, side, px, market.sizes[TABLE // 2], _GTC, False)
        count = book.head[N_LEVELS + side - 1]
        market.tape[BID_PX + 2 * side - 2] = best_px(book, side)
        market.tape[BID_QTY + 2 * side - 2] = book.levels[side - 1, count - 1, QTY]
    market.tape[SEQ] = 1
    market.flow[NEXT_NS] += _from(market.gaps, _draw(market, _START_STREAM, 0))
