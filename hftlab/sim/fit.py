"""Fitted assumptions: the latency and the queue model that a session's own orders speak for, and how sure they are.

**Latency** (`fit_latency`). An order's way is measured from the decision to the venue's stamp of the answer, and from
there to our receipt, if the venue's clock agrees with ours so far that 99 % of both are not negative; else the round
trip is halved. Wrong where the venue stamps something else than the moment it acted, and for times at which there were
no orders to measure with.

**Queue** (`fit_queue`). Every passive order of the journal is followed through the market rows under every model at
once. Lots that vanish without a trade were ahead of the order in part; a model says in which part (see
`hftlab.kernels.queue`), and that part is read as a *probability*: what vanished was one order, ahead of ours with
probability ``w``. So the lots ahead are a random number with the model's estimate as its mean and a variance that grows
by ``w (1 - w) gone**2``, and the probability that trades have reached us by then is that of a normal variable. A model
that knows no doubt, as risk averse does, says 0 or 1. A trade through the order's price fills it under all models.

The score is the Brier score of "filled within h of arrival" over several h. Orders that were canceled before h without
a fill say nothing about h; orders that stayed stand in for them, weighted by the inverse of the probability to have
stayed (Graf and others). The exponent of `power` is the one of least score. Intervals are of a bootstrap over orders.
Wrong where cancels depend on the queue: an order that is withdrawn *because* it is about to be filled badly makes the
fills of the others look likelier than they are. Wrong too where own orders share a price, and where the depth stream is
slow (100 ms at Binance): many small cancels then look like one large one, and the doubt is overstated.

**Against the truth** (`score_queues`). Where a recording knows every order, the queue is exact. Virtual orders of no
size join the touch, each model sees the levels and trades alone, and its estimate is compared with the lots that really
stand ahead, after each message about that price. Errors are in lots, estimate less exact, over `steps` comparisons;
`ahead` is the mean of the lots really ahead; `made up` are fills that a model promised and nobody had, `missed` the
other way round:

================================ ============ ===== ===== ===== ===== ========= ===== ====== =======
data                             model        steps ahead  bias error error p90 fills missed made up
================================ ============ ===== ===== ===== ===== ========= ===== ====== =======
LOBSTER, AAPL 2012-06-21, 10 s   risk averse    518  99.6  +6.7   6.7       2.0   117      7       0
LOBSTER, AAPL 2012-06-21, 10 s   proportional   518  99.6 -19.8  24.9      72.0   124      0      31
LOBSTER, AAPL 2012-06-21, 10 s   log            518  99.6 -21.0  26.2      82.3   124      0      28
LOBSTER, AAPL 2012-06-21, 10 s   power 2        518  99.6 -16.8  21.9      61.1   124      0      31
LOBSTER, AAPL 2012-06-21, 10 s   power 3        518  99.6 -15.7  20.8      66.2   124      0      31
CME by Databento, ESM4, 2 s      risk averse    996  15.7  +0.5   0.5       2.0     0      0       0
CME by Databento, ESM4, 2 s      proportional   996  15.7  -4.8   4.8      10.5     0      0       0
CME by Databento, ESM4, 2 s      log            996  15.7  -4.5   4.5      10.9     0      0       0
CME by Databento, ESM4, 2 s      power 2        996  15.7  -4.7   4.7       9.8     0      0       0
CME by Databento, ESM4, 2 s      power 3        996  15.7  -4.6   4.6       9.3     0      0       0
================================ ============ ===== ===== ===== ===== ========= ===== ====== =======

In both most of what is canceled came last, so risk averse, which is never too early, is also nearest. Both are short,
and every order's own path is measured many times: the table shows how to measure, not which model your market has. The
synthetic ITCH file of the tests tells nothing here: orders stand alone at their price, and all models are exact.

How much later or earlier a model is filled is in the table that `score_queues` returns. For AAPL, mean of the size of
the error of fill time: risk averse 0, proportional and power 2 0.08 s, log 0.4 s, power 3 1.8 s (one fill, long early).

Worst case accepted: every market row looks at every order that rests, under every model; `queue_paths` and
`score_queues` walk the rows in Python, some microseconds each.

References
----------
Brier (1950), Verification of forecasts expressed in terms of probability. Graf, Schmoor, Sauerbrei and Schumacher
(1999), Assessment and comparison of prognostic classification schemes for survival data. Efron and Tibshirani (1993),
An Introduction to the Bootstrap. Rigtorp (2013), Estimating order queue position.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import NAT, ExecType, Flag, Kind, RowArray, Tif
from hftlab.engine import book_size
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.ladder import best_px, clear_side, has_best, key_qty, lay_side, set_key, side_bytes
from hftlab.kernels.queue import cancels_ahead
from hftlab.sim.models import Latency, Queue
from hftlab.sim.recorded import MARKET_KINDS, exchange_times

__all__ = [
    "EXPONENTS",
    "HORIZONS_NS",
    "LatencyFit",
    "QueueFit",
    "fit_latency",
    "fit_queue",
    "queue_paths",
    "score_queues",
]

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

HORIZONS_NS = (100_000_000, 300_000_000, 1_000_000_000, 3_000_000_000, 10_000_000_000)
"""Times from arrival at which fills are predicted, ns."""

EXPONENTS = (0.25, 0.5, 0.75, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Exponents of `power` that are tried besides 1, which is `proportional`."""

_DRAWS = 400
_BINS = 10
_LEVEL = 95  # per cent of an interval
_AGREES = 0.99
_PASSIVE_TIFS = (int(Tif.DAY), int(Tif.GTC), int(Tif.GTD))
_ACK, _FILL, _REPLACED = int(ExecType.ACK), int(ExecType.FILL), int(ExecType.REPLACED)
_CANCELED, _EXPIRED, _REJECT = int(ExecType.CANCELED), int(ExecType.EXPIRED), int(ExecType.REJECT)
_ANSWERS = (_ACK, _REPLACED, _CANCELED, _REJECT)
_NEVER = 2**62
_BID, _ASK, _LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
_LEVEL_ROW, _TRADE, _QUOTE, _CLEAR = int(Kind.LEVEL), int(Kind.TRADE), int(Kind.QUOTE), int(Kind.CLEAR)


# --- intervals --------------------------------------------------------------------------------------------------------


def _interval(draws: Floats) -> tuple[float, float]:
    """Return the middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def _resampled(n: int, draws: int, seed: int) -> Floats:
    """Return how often each of `n` orders is drawn, shape (draws, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(np.float64)


def _quantile_line(name: str, values: Int64s, seed: int) -> dict[str, Any]:
    """Return count, quantiles and their bootstrap intervals of one way; values are ns."""
    random = np.random.default_rng(seed)
    wanted = {"median": 50.0, "p90": 90.0, "p99": 99.0}
    line: dict[str, Any] = {"way": name, "n": len(values)}
    picks = random.integers(0, len(values), (200, min(len(values), 5_000)))
    drawn = np.percentile(values[picks], list(wanted.values()), axis=1)
    for (what, q), draws in zip(wanted.items(), drawn, strict=True):
        line[what] = float(np.percentile(values, q))
        line[f"{what}_low"], line[f"{what}_high"] = _interval(draws)
    return line | {"max": int(values.max())}


# --- latency ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatencyFit:
    """What a session's own orders say of its latency.

    Parameters
    ----------
    at_ns, entry_ns, response_ns : int64 arrays
        One measurement an order, by time of decision.
    feed_ns : int64 array
        Age of each dated market message when it was received.
    dated : bool
        Whether the venue's stamps split the round trip; else it was halved.
    seed : int
        Of the bootstrap.
    """

    at_ns: Int64s
    entry_ns: Int64s
    response_ns: Int64s
    feed_ns: Int64s
    dated: bool
    seed: int = 1

    @cached_property
    def table(self) -> pl.DataFrame:
        """Quantiles in ns with 95 % intervals: way, n, median, median_low, median_high, p90..., p99..., max."""
        ways = {
            "entry": self.entry_ns, "response": self.response_ns, "round trip": self.entry_ns + self.response_ns,
            "feed": self.feed_ns,
        }  # fmt: skip
        return pl.DataFrame([_quantile_line(name, ns, self.seed) for name, ns in ways.items() if len(ns)])

    def latency(self, *, by_time: bool = False) -> Latency:
        """Return the model: samples taken in turn, or with `by_time` those of the same time as measured."""
        feed_ns = max(0, int(np.median(self.feed_ns))) if len(self.feed_ns) else 0
        at_ns = self.at_ns if by_time else None
        return Latency(self.entry_ns, self.response_ns, feed_ns=feed_ns, at_ns=at_ns)

    def __str__(self) -> str:
        how = "split by the venue's stamps" if self.dated else "round trips halved"
        return f"{self.latency()}; {len(self.at_ns):,} orders, {how}"


def fit_latency(rows: RowArray, *, seed: int = 1) -> LatencyFit:
    """Return the latency that a journal's own orders had.

    Parameters
    ----------
    rows : array of ROW
        A session's journal.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ConfigError
        If no order of the journal was answered.
    """
    kind = rows["kind"]
    reports = rows[(kind == Kind.REPORT) & np.isin(rows["code"] & 255, _ANSWERS)]
    first: dict[int, tuple[int, int]] = {}
    for order, at, stamp in zip(
        reports["a"].tolist(), reports["ts_recv"].tolist(), reports["ts_event"].tolist(), strict=True
    ):
        first.setdefault(order, (at, stamp))
    orders = rows[(kind == Kind.SUBMIT) | (kind == Kind.REPLACE_ORDER)]
    trips = [
        (at, *first[order])
        for order, at in zip(orders["a"].tolist(), orders["ts_recv"].tolist(), strict=True)
        if order in first and first[order][0] >= at
    ]
    if not trips:
        raise ConfigError("rows: no order of this journal was answered; expected at least one to measure latency by")
    decided, received, stamped = np.array(sorted(trips), np.int64).T
    split = stamped > 0
    agrees = split & (stamped >= decided) & (stamped <= received)
    dated = bool(split.any()) and float(agrees.mean()) >= _AGREES
    entry = np.where(agrees, stamped - decided, (received - decided) // 2) if dated else (received - decided) // 2
    market = rows[np.isin(kind, MARKET_KINDS) & (rows["flags"] & _LAST != 0) & (rows["ts_event"] > 0)]
    return LatencyFit(decided, entry, received - decided - entry, market["ts_recv"] - market["ts_event"], dated, seed)


# --- own orders -------------------------------------------------------------------------------------------------------

_INSTRUMENT, _SIDE, _KEY, _QTY, _ARRIVED, _LEFT, _PENDING, _WAS, _TRADED, _DIRTY = range(10)
_ARRIVES, _FILLS, _ENDS = range(3)


class _Orders(NamedTuple):
    """Passive orders at the exchange: `table` as the kernel reads it, first fill and end of each, and what happens."""

    table: Int64s
    filled_ns: Int64s  # _NEVER without a fill
    ended_ns: Int64s  # canceled, replaced or expired; the journal's end if it still rested
    events: Int64s  # columns: time, what, order, lots


def _passive_orders(rows: RowArray, last_ns: int) -> _Orders:
    """Return the orders that came to rest, at the venue's times where it gave them."""
    sent: dict[int, Any] = {}
    for row in rows[(rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)]:
        if int(row["code"]) in _PASSIVE_TIFS and row["span"] == 0:
            sent[int(row["a"])] = row
    arrived: dict[int, int] = {}
    ended: dict[int, int] = {}
    fills: dict[int, list[tuple[int, int]]] = defaultdict(list)
    taken: set[int] = set()
    for row in rows[rows["kind"] == Kind.REPORT]:
        order, what = int(row["a"]), int(row["code"]) & 255
        at = int(row["ts_event"]) if int(row["ts_event"]) > 0 else int(row["ts_recv"])
        if order not in sent:
            continue
        if what in (_ACK, _REPLACED):
            arrived.setdefault(order, at)
            if what == _REPLACED:
                ended.setdefault(int(sent[order]["b"]), at)
        elif what == _FILL:
            fills[order].append((at, int(row["qty"])))
            if not row["flags"] & Flag.MAKER:
                taken.add(order)
        elif what in (_CANCELED, _EXPIRED):
            ended.setdefault(order, at)
    known = [order for order in arrived if order not in taken]
    table = np.zeros((len(known), 10), np.int64)
    events: list[tuple[int, int, int, int]] = []
    for k, order in enumerate(known):
        row = sent[order]
        side = _BID if row["flags"] & _BID else _ASK
        key = int(row["px"]) if side == _BID else -int(row["px"])
        table[k, :6] = int(row["instrument"]), side, key, int(row["qty"]), arrived[order], int(row["qty"])
        events.append((arrived[order], _ARRIVES, k, 0))
        events += [(at, _FILLS, k, qty) for at, qty in fills[order]]
        if order in ended:
            events.append((ended[order], _ENDS, k, 0))
    return _Orders(
        table,
        np.array([min((at for at, _ in fills[order]), default=_NEVER) for order in known], np.int64),
        np.array([ended.get(order, max(last_ns, arrived[order])) for order in known], np.int64),
        np.array(sorted(events), np.int64).reshape(-1, 4),
    )


# --- prediction -------------------------------------------------------------------------------------------------------


@kernel()
def _tell(order: Any, k: Any, probability: Any, ts: Any, horizons: Any, orders: Any, out: Any) -> None:
    """Raise the probability of `order` under model `k` for every horizon that `ts` lies within."""
    for h in range(horizons.shape[0]):
        if ts - orders[order, _ARRIVED] <= horizons[h] and probability > out[order, h, k]:
            out[order, h, k] = probability


@kernel()
def _tell_all(order: Any, ts: Any, horizons: Any, orders: Any, out: Any) -> None:
    for k in range(out.shape[2]):
        _tell(order, k, 1.0, ts, horizons, orders, out)


@kernel()
def _change(
    instrument: Any, side: Any, key: Any, qty: Any, ts: Any, book: Any, orders: Any, active: Any, n: Any, horizons: Any,
    out: Any,
) -> None:  # fmt: skip
    """Set a level; orders at its price note what it was, orders that it crosses are filled."""
    was = key_qty(book, key)
    for j in range(n):
        i = active[j]
        if orders[i, _INSTRUMENT] != instrument:
            continue
        if orders[i, _SIDE] == side:
            if orders[i, _KEY] == key and orders[i, _DIRTY] == 0:
                orders[i, _DIRTY] = 1
                orders[i, _WAS] = was + orders[i, _PENDING]
                orders[i, _PENDING] = 0
        elif qty > was and orders[i, _KEY] >= -key:
            _tell_all(i, ts, horizons, orders, out)
    set_key(book, key, qty)


@kernel()
def _trade(
    instrument: Any, side: Any, key: Any, qty: Any, ts: Any, orders: Any, need: Any, doubt: Any, active: Any, n: Any,
    horizons: Any, out: Any,
) -> None:  # fmt: skip
    """Take a trade against orders of `side` at `key`: lots ahead go first, what is left reaches the order."""
    for j in range(n):
        i = active[j]
        if orders[i, _INSTRUMENT] != instrument or orders[i, _SIDE] != side or orders[i, _KEY] < key:
            continue
        if orders[i, _KEY] > key:
            _tell_all(i, ts, horizons, orders, out)
            continue
        orders[i, _TRADED] += qty
        for k in range(out.shape[2]):
            need[i, k] -= qty
            spread = math.sqrt(2.0 * doubt[i, k])
            if spread > 0.0:
                probability = 0.5 * math.erfc((need[i, k] + 0.5) / spread)
            else:
                probability = 1.0 if need[i, k] <= -1.0 else 0.0
            _tell(i, k, probability, ts, horizons, orders, out)


@kernel()
def _share(
    i: Any, shown: Any, is_new: Any, own_shown: Any, models: Any, exponents: Any, orders: Any, need: Any, doubt: Any
) -> None:
    """At a message's end: share what vanished at the order's price between ahead and behind."""
    own = orders[i, _LEFT] if own_shown else 0
    traded, was = orders[i, _TRADED], orders[i, _WAS]
    for k in range(models.shape[0]):
        ahead = need[i, k]
        if ahead > 0.0:
            if not is_new:
                gone = float(max(0, was - shown - traded))
                behind = max(0.0, float(was - traded - own) - ahead)
                gone = min(gone, ahead + behind)
                least = max(gone - behind, 0.0)
                share = cancels_ahead(models[k], exponents[k], ahead, behind, gone)
                free = gone - least
                if free > 0.0:
                    w = (share - least) / free
                    doubt[i, k] += w * (1.0 - w) * free * free
                ahead -= share
            need[i, k] = min(ahead, float(max(shown - own, 0)))
    orders[i, _DIRTY] = 0
    orders[i, _TRADED] = 0


@kernel()
def _follow(
    rows: Any, times: Any, books: Any, orders: Any, events: Any, own_shown: Any, horizons: Any, models: Any,
    exponents: Any, active: Any, need: Any, doubt: Any, out: Any,
) -> int:  # fmt: skip
    """Fill ``out[order, horizon, model]`` with the probability of a first fill within the horizon."""
    n = 0
    e = 0
    snapped = False
    longest = horizons[horizons.shape[0] - 1]
    for r in range(rows.shape[0]):
        row = rows[r]
        ts = times[r]
        while e < events.shape[0] and events[e, 0] <= ts:
            i = events[e, 2]
            what = events[e, 1]
            if what == _ARRIVES:
                book = books[orders[i, _INSTRUMENT], orders[i, _SIDE] - 1]
                active[n] = i
                n += 1
                for k in range(models.shape[0]):
                    need[i, k] = float(key_qty(book, orders[i, _KEY]))
                orders[i, _PENDING] = orders[i, _QTY] if own_shown else 0
            elif what == _FILLS:
                orders[i, _LEFT] -= events[e, 3]
            else:
                j = 0
                while j < n and active[j] != i:
                    j += 1
                if j < n:
                    n -= 1
                    active[j] = active[n]
            e += 1
        instrument = np.int64(row["instrument"])
        if instrument >= books.shape[0]:
            continue
        kind = np.int64(row["kind"])
        flags = np.int64(row["flags"])
        side = flags & 3
        px = row["px"]
        key = px if side == _BID else -px
        if kind == _CLEAR:
            clear_side(books[instrument, 0])
            clear_side(books[instrument, 1])
            snapped = True
        elif side == _BID or side == _ASK:
            book = books[instrument, side - 1]
            if kind == _LEVEL_ROW:
                books[instrument, 2] = np.int64(row["a"])
                _change(instrument, side, key, row["qty"], ts, book, orders, active, n, horizons, out)
            elif kind == _QUOTE and np.int64(row["a"]) > books[instrument, 2]:
                sign = 1 if side == _BID else -1
                while has_best(book) and sign * best_px(book, sign) > key:
                    better = sign * best_px(book, sign)
                    _change(instrument, side, better, 0, ts, book, orders, active, n, horizons, out)
                _change(instrument, side, key, row["qty"], ts, book, orders, active, n, horizons, out)
            elif kind == _TRADE:
                against = 3 - side
                key = px if against == _BID else -px
                _trade(instrument, against, key, row["qty"], ts, orders, need, doubt, active, n, horizons, out)
        if flags & _LAST == 0:
            continue
        j = 0
        while j < n:
            i = active[j]
            if orders[i, _INSTRUMENT] == instrument and (orders[i, _DIRTY] != 0 or snapped):
                shown = key_qty(books[instrument, orders[i, _SIDE] - 1], orders[i, _KEY])
                _share(i, shown, snapped, own_shown, models, exponents, orders, need, doubt)
            if ts - orders[i, _ARRIVED] > longest:
                n -= 1
                active[j] = active[n]
            else:
                j += 1
        snapped = False
    return n


def _predicted(
    market: RowArray, instruments: int, orders: _Orders, own_shown: bool, queues: Sequence[Queue], horizons: Int64s
) -> Floats:
    """Return the probability of a first fill, shape (orders, horizons, models)."""
    times, _ = exchange_times(market)
    size = book_size(instruments)
    side = side_bytes(*size)
    memory = [np.zeros(side, np.uint8) for _ in range(2 * instruments)]
    for part in memory:
        lay_side(part, *size)
    books = np.zeros((instruments, 3), np.int64)
    books[:, :2] = np.array([address_of(part) for part in memory], np.int64).reshape(-1, 2)
    n = len(orders.table)
    out = np.zeros((n, len(horizons), len(queues)))
    _follow(
        market, times, books, orders.table.copy(), orders.events, own_shown, horizons,
        np.array([queue.number for queue in queues], np.int64), np.array([queue.exponent for queue in queues]),
        np.zeros(n + 1, np.int64), np.zeros((n, len(queues))), np.zeros((n, len(queues))), out,
    )  # fmt: skip
    return out


def _outcomes(orders: _Orders, horizons: Int64s) -> tuple[Floats, Floats]:
    """Return whether each order was filled within each horizon, and its weight; both of shape (orders, horizons)."""
    lived = orders.ended_ns - orders.table[:, _ARRIVED]
    waited = np.where(orders.filled_ns < _NEVER, orders.filled_ns - orders.table[:, _ARRIVED], _NEVER)
    censored = waited == _NEVER
    until = np.minimum(lived, waited)
    at = np.unique(until[censored])
    risk = len(until) - np.searchsorted(np.sort(until), at, "left")
    left = np.searchsorted(np.sort(until[censored]), at, "right") - np.searchsorted(
        np.sort(until[censored]), at, "left"
    )
    stayed = np.concatenate([[1.0], np.cumprod(1 - left / risk)]) if len(at) else np.ones(1)
    filled = waited[:, None] <= horizons[None, :]
    before = stayed[np.searchsorted(at, until, "left")]  # the probability to have stayed until just before
    by_horizon = stayed[np.searchsorted(at, horizons, "left")]
    weight = np.where(filled, 1 / np.maximum(before, 1e-12)[:, None], 0.0)
    stays = ~filled & (until[:, None] >= horizons[None, :])
    weight = np.where(stays, 1 / np.maximum(by_horizon, 1e-12)[None, :], weight)
    return filled.astype(np.float64), weight


@dataclass(frozen=True)
class QueueFit:
    """How well each queue model foretells a session's own fills.

    Parameters
    ----------
    queues : tuple of Queue
        The models compared.
    horizons_ns : int64 array
    predicted : float64 array, shape (orders, horizons, models)
    filled, weight : float64 arrays, shape (orders, horizons)
        Whether the order was filled by then, and what it counts (0: it was withdrawn before).
    seed : int
        Of the bootstrap.
    """

    queues: tuple[Queue, ...]
    horizons_ns: Int64s
    predicted: Floats
    filled: Floats
    weight: Floats
    seed: int = 1

    @cached_property
    def _draws(self) -> tuple[Floats, Floats, Floats]:
        """Brier scores and biases, shape (draws, models), and shares of fills; draw 0 is the sample itself."""
        error = self.predicted - self.filled[:, :, None]
        squares = (self.weight[:, :, None] * error**2).sum(1)
        sums = (self.weight[:, :, None] * error).sum(1)
        n = len(self.filled)
        counts = np.concatenate([np.ones((1, n)), _resampled(n, _DRAWS, self.seed)])
        total = np.maximum(counts @ self.weight.sum(1), 1e-12)
        realised = counts @ (self.weight * self.filled).sum(1) / total
        return counts @ squares / total[:, None], counts @ sums / total[:, None], realised

    @cached_property
    def table(self) -> pl.DataFrame:
        """Models, best first.

        Returns
        -------
        polars.DataFrame
            model, exponent, brier, brier_low, brier_high, predicted and realised (mean probability and share of
            fills), bias (predicted less realised), bias_low, bias_high.
        """
        brier, bias, realised = self._draws
        lines = []
        for k, queue in enumerate(self.queues):
            low, high = _interval(brier[1:, k])
            bias_low, bias_high = _interval(bias[1:, k])
            lines.append({
                "model": queue.model, "exponent": queue.exponent if queue.model == "power" else None,
                "brier": float(brier[0, k]), "brier_low": low, "brier_high": high,
                "predicted": float(realised[0] + bias[0, k]), "realised": float(realised[0]),
                "bias": float(bias[0, k]), "bias_low": bias_low, "bias_high": bias_high,
            })  # fmt: skip
        return pl.DataFrame(lines, schema_overrides={"exponent": pl.Float64}).sort("brier", maintain_order=True)

    @cached_property
    def best(self) -> Queue:
        """The model of least Brier score; the simplest of equals."""
        return self.queues[int(np.argmin(self._draws[0][0]))]

    @cached_property
    def exponent(self) -> tuple[float, float, float]:
        """The exponent of `power` of least Brier score (1: proportional), and its 95 % interval."""
        family = [k for k, queue in enumerate(self.queues) if queue.model in ("power", "proportional")]
        family.sort(key=lambda k: self.queues[k].exponent)
        exponents = np.array([self.queues[k].exponent for k in family])
        chosen = exponents[np.argmin(self._draws[0][:, family], axis=1)]
        return (float(chosen[0]), *_interval(chosen[1:]))

    def reliability(self, queue: Queue | None = None) -> pl.DataFrame:
        """Return predicted against realised share of fills, in ten bins of the prediction.

        Parameters
        ----------
        queue : Queue, optional
            One of `queues`; the best if absent.

        Returns
        -------
        polars.DataFrame
            bin (its lower edge), predicted, realised, low and high (Wilson's 95 % interval), n (predictions, by
            weight). Bins without a prediction are absent.
        """
        queue = queue or self.best
        p, y, w = self.predicted[:, :, self._place(queue)].ravel(), self.filled.ravel(), self.weight.ravel()
        bins = np.minimum((p * _BINS).astype(np.int64), _BINS - 1)
        lines = []
        for b in range(_BINS):
            inside = (bins == b) & (w > 0)
            if inside.any():
                weights = w[inside]
                n = float(weights.sum() ** 2 / (weights**2).sum())
                realised = float(np.average(y[inside], weights=weights))
                low, high = _wilson(realised, n)
                lines.append({
                    "bin": b / _BINS, "predicted": float(np.average(p[inside], weights=weights)),
                    "realised": realised, "low": low, "high": high, "n": n,
                })  # fmt: skip
        return pl.DataFrame(lines)

    def warning(self, assumed: Queue) -> str | None:
        """Return a sentence if a backtest that assumed this model promises more fills than there were, else None."""
        k = self._place(assumed)
        low, high = _interval(self._draws[1][1:, k])
        if low <= 0:
            return None
        realised = float(self._draws[2][0])
        return (
            f"the backtest was optimistic: with {assumed} it promises a fill in {realised + self._draws[1][0, k]:.1%} "
            f"of cases, the session had one in {realised:.1%} (difference {low:.1%} to {high:.1%}, "
            f"{len(self.filled):,} orders); {self.best} fits best"
        )

    def _place(self, queue: Queue) -> int:
        for k, known in enumerate(self.queues):
            if known == queue or (known.model == queue.model != "power"):
                return k
        raise ConfigError(f"queue: {queue}; expected one of {', '.join(str(known) for known in self.queues)}")


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `n` trials."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _queues(exponents: Sequence[float]) -> tuple[Queue, ...]:
    """Return the models to compare, the simplest first."""
    plain = tuple(Queue(name) for name in ("risk_averse", "proportional", "log"))
    return plain + tuple(Queue("power", exponent) for exponent in exponents if exponent != 1.0)


def fit_queue(
    rows: RowArray,
    definitions: Definitions,
    *,
    own_shown: bool | None = None,
    horizons_ns: Sequence[int] = HORIZONS_NS,
    exponents: Sequence[float] = EXPONENTS,
    seed: int = 1,
) -> QueueFit:
    """Return how well each queue model foretells the fills of a journal's own passive orders.

    Parameters
    ----------
    rows : array of ROW
        A session's journal: its market rows and its own.
    definitions : Definitions
    own_shown : bool, optional
        Whether the market rows count our own lots. True for live sessions and for simulated ones, False for a backtest
        on a recording and for paper; by default what the mode says, with backtests taken to be on recordings.
    horizons_ns : sequence of int
        Times from arrival at which fills are foretold, ascending, ns.
    exponents : sequence of float
        Of `power`.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ConfigError
        If the journal has no passive order that was acknowledged, or no market rows, or orders of an instrument that
        the definitions do not have.
    """
    horizons = np.array(horizons_ns, np.int64)
    if not len(horizons) or bool((np.diff(horizons) <= 0).any()) or int(horizons[0]) <= 0:
        raise ConfigError(f"horizons_ns: {list(horizons_ns)}; expected ascending times above 0")
    market = rows[np.isin(rows["kind"], MARKET_KINDS)]
    if not len(market):
        raise ConfigError("rows: no market rows; expected a journal that holds them (journal_market=True)")
    orders = _passive_orders(rows, int(market["ts_recv"].max()))
    if not len(orders.table):
        raise ConfigError("rows: no passive order of this journal was acknowledged; expected at least one")
    n = len(definitions.instruments)
    if int(orders.table[:, _INSTRUMENT].max()) >= n:
        raise ConfigError(f"rows: orders name instrument {int(orders.table[:, _INSTRUMENT].max())}; expected below {n}")
    shown = definitions.mode in ("live", "sim") if own_shown is None else own_shown
    queues = _queues(exponents)
    filled, weight = _outcomes(orders, horizons)
    predicted = _predicted(market, n, orders, shown, queues, horizons)
    return QueueFit(queues, horizons, predicted, filled, weight, seed)


# --- against the truth ------------------------------------------------------------------------------------------------


class _Resting(NamedTuple):
    """An order of the recording: its side of the book, and its turn in time."""

    at: tuple[int, int, int]  # instrument, side, px
    turn: int


class _Virtual:
    """An order of no size behind all lots at its price: the lots really ahead, and each model's estimate."""

    __slots__ = ("born", "estimates", "exact", "exact_fill", "fills", "number", "turn")

    def __init__(self, number: int, born: int, turn: int, ahead: int, models: int) -> None:
        self.number, self.born, self.turn = number, born, turn
        self.exact = ahead
        self.estimates = [float(ahead)] * models
        self.exact_fill: int | None = None
        self.fills: list[int | None] = [None] * models

    def traded(self, ts: int, qty: int, is_ahead: bool) -> None:
        if is_ahead:
            self.exact -= qty
        elif self.exact_fill is None:
            self.exact_fill = ts
        for k, estimate in enumerate(self.estimates):
            if qty > estimate and self.fills[k] is None:
                self.fills[k] = ts
            self.estimates[k] = max(estimate - qty, 0.0)

    def canceled(self, qty: int, is_ahead: bool, level: int, queues: Sequence[Queue]) -> None:
        """Take `qty` lots off a level that had `level`."""
        if is_ahead:
            self.exact -= qty
        for k, queue in enumerate(queues):
            ahead = self.estimates[k]
            self.estimates[k] -= float(cancels_ahead(queue.number, queue.exponent, ahead, level - ahead, float(qty)))


class _Exact:
    """The recording's orders, levels and virtual orders; `step` applies a row."""

    def __init__(self, queues: Sequence[Queue], horizon_ns: int) -> None:
        self.queues, self.horizon_ns = queues, horizon_ns
        self.resting: dict[int, _Resting] = {}
        self.left: dict[int, int] = {}
        self.levels: dict[tuple[int, int, int], int] = defaultdict(int)
        self.virtual: dict[tuple[int, int, int], list[_Virtual]] = defaultdict(list)
        self.turn = 0

    def add(self, ref: int, at: tuple[int, int, int], qty: int) -> None:
        self.turn += 1
        self.resting[ref] = _Resting(at, self.turn)
        self.left[ref] = qty
        self.levels[at] += qty

    def take(self, ref: int, qty: int | None, ts: int, trades: bool) -> tuple[int, int, int] | None:
        """Take `qty` lots (None: all) off an order; return where it stood, None if it is unknown."""
        order = self.resting.get(ref)
        if order is None:
            return None
        qty = self.left[ref] if qty is None else min(qty, self.left[ref])
        for virtual in self.virtual.get(order.at, ()):
            if trades:
                virtual.traded(ts, qty, order.turn <= virtual.turn)
            else:
                virtual.canceled(qty, order.turn <= virtual.turn, self.levels[order.at], self.queues)
        self.levels[order.at] -= qty
        self.left[ref] -= qty
        if self.left[ref] == 0:
            del self.left[ref], self.resting[ref]
        if self.levels[order.at] == 0:
            del self.levels[order.at]
        return order.at

    def step(self, row: Any, ts: int) -> tuple[int, int, int] | None:
        """Apply a row; return the price that it took lots off."""
        kind, ref = row["kind"], int(row["a"])
        if kind == Kind.ADD:
            side = int(row["flags"]) & 3
            if side in (_BID, _ASK) and ref not in self.resting:
                self.add(ref, (int(row["instrument"]), side, int(row["px"])), int(row["qty"]))
            return None
        if kind == Kind.EXECUTE or kind == Kind.REDUCE:
            return self.take(ref, int(row["qty"]), ts, kind == Kind.EXECUTE)
        if kind == Kind.DELETE:
            return self.take(ref, None, ts, False)
        if kind == Kind.REPLACE:
            return self.replace(row, ref, ts)
        if kind == Kind.CLEAR:
            for known in [known for known, order in self.resting.items() if order.at[0] == row["instrument"]]:
                self.take(known, None, ts, False)
        return None

    def replace(self, row: Any, ref: int, ts: int) -> tuple[int, int, int] | None:
        """Move an order: the same reference, price and no more lots keep its place, all else goes to the back."""
        order, px, qty = self.resting.get(ref), int(row["px"]), int(row["qty"])
        if order is None:
            side = int(row["flags"]) & 3
            if side in (_BID, _ASK):  # an arrival: so says Databento
                self.add(int(row["b"]), (int(row["instrument"]), side, px), qty)
            return None
        if ref == int(row["b"]) and px == order.at[2] and qty <= self.left[ref]:
            return self.take(ref, self.left[ref] - qty, ts, False)
        at = self.take(ref, None, ts, False)
        self.add(int(row["b"]), (order.at[0], order.at[1], px), qty)
        return at

    def join(self, number: int, at: tuple[int, int, int], ts: int) -> _Virtual:
        """Place a virtual order behind all lots at a price."""
        virtual = _Virtual(number, ts, self.turn, self.levels[at], len(self.queues))
        self.virtual[at].append(virtual)
        return virtual

    def touch(self, instrument: int, side: int) -> tuple[int, int, int] | None:
        prices = [px for of, s, px in self.levels if of == instrument and s == side]
        return (instrument, side, max(prices) if side == _BID else min(prices)) if prices else None


def _walk(
    rows: RowArray, queues: Sequence[Queue], every: int, horizon_ns: int
) -> Iterator[tuple[int, tuple[int, int, int], _Virtual, bool]]:
    """Yield (index of the row, price, virtual order, whether it joins): one joins, or its price has lost lots."""
    exact = _Exact(queues, horizon_ns)
    number = messages = 0
    for index, row in enumerate(rows):
        ts = int(row["ts_event"]) if int(row["ts_event"]) != NAT else int(row["ts_recv"])
        at = exact.step(row, ts)
        if at is not None and at in exact.virtual:
            kept = [v for v in exact.virtual[at] if ts - v.born <= horizon_ns]
            for virtual in kept:
                yield index, at, virtual, False
            exact.virtual[at] = [v for v in kept if v.exact_fill is None or None in v.fills]
        if not row["flags"] & _LAST or row["flags"] & Flag.SNAPSHOT:
            continue
        messages += 1
        if messages % every == 0:
            for side in (_BID, _ASK):
                place = exact.touch(int(row["instrument"]), side)
                if place is not None:
                    yield index, place, exact.join(number, place, ts), True
                    number += 1


def queue_paths(
    rows: RowArray, *, every: int = 5, horizon_ns: int = 60_000_000_000, queues: Sequence[Queue] | None = None
) -> pl.DataFrame:
    """Return exact and estimated lots ahead of virtual orders, from rows that know every order.

    Parameters
    ----------
    rows : array of ROW
        Market rows by order: ADD, REDUCE, DELETE, EXECUTE, REPLACE.
    every : int
        After each so many messages two orders of no size join, at the best bid and the best ask.
    horizon_ns : int
        How long each is followed.
    queues : sequence of Queue, optional
        All four models, `power` with 2 and 3, if absent.

    Returns
    -------
    polars.DataFrame
        order (its number), row (index of the row that it happened at), instrument, side (1 bid, 2 ask), px, exact, and
        a column of lots ahead for each model; one line when it joins, and one after each message that took lots off its
        price, up to its fill.

    Raises
    ------
    ConfigError
        If `every` is below 1, or the rows know no orders.
    """
    chosen = _chosen(rows, every, queues)
    lines = []
    for row, at, virtual, _ in _walk(rows, chosen, every, horizon_ns):
        if virtual.exact_fill is None:
            lines.append((virtual.number, row, *at, virtual.exact, *virtual.estimates))
    names = ["order", "row", "instrument", "side", "px", "exact", *(_name(queue) for queue in chosen)]
    return pl.DataFrame(lines, names, orient="row", schema_overrides={_name(queue): pl.Float64 for queue in chosen})


def _chosen(rows: RowArray, every: int, queues: Sequence[Queue] | None) -> tuple[Queue, ...]:
    if every < 1:
        raise ConfigError(f"every is {every}; expected 1 or more messages")
    if not bool((rows["kind"] == Kind.ADD).any()):
        raise ConfigError("rows: no ADD row; expected a recording by order (L3)")
    return tuple(queues) if queues is not None else _queues((2.0, 3.0))


def _name(queue: Queue) -> str:
    return str(queue).removeprefix("queue ")


def score_queues(
    rows: RowArray, *, every: int = 5, horizon_ns: int = 60_000_000_000, queues: Sequence[Queue] | None = None
) -> pl.DataFrame:
    """Return the error of each queue model against the exact queue, from rows that know every order.

    Parameters
    ----------
    rows, every, horizon_ns, queues
        As in `queue_paths`.

    Returns
    -------
    polars.DataFrame
        model, steps (compared: as long as the truth or a model sees lots ahead), ahead (lots really ahead, mean), bias
        (mean of estimate less exact, lots), error (mean of its size), error_p90, fills (orders filled both really and
        by the model), late_s (mean of the model's fill time less the real one), fill_error_s and fill_error_p90_s (of
        its size), missed (filled really, not by the model), made_up (the other way round). NaN where there is nothing
        to take a mean of.

    Raises
    ------
    ConfigError
        As `queue_paths`.
    """
    chosen = _chosen(rows, every, queues)
    errors: list[list[float]] = []
    ahead: list[int] = []
    orders: dict[int, _Virtual] = {}
    for _, _, virtual, joins in _walk(rows, chosen, every, horizon_ns):
        orders[virtual.number] = virtual
        if not joins and virtual.exact_fill is None and (virtual.exact or any(virtual.estimates)):
            errors.append([estimate - virtual.exact for estimate in virtual.estimates])
            ahead.append(virtual.exact)
    apart = np.array(errors, np.float64).reshape(-1, len(chosen))
    return pl.DataFrame(
        [_score(_name(queue), ahead, apart[:, k], [(v.exact_fill, v.fills[k]) for v in orders.values()])
         for k, queue in enumerate(chosen)]
    )  # fmt: skip


def _score(
    name: str, ahead: Sequence[int], apart: Floats, fills: Sequence[tuple[int | None, int | None]]
) -> dict[str, Any]:
    late = np.array([told - real for real, told in fills if real is not None and told is not None], np.float64) / 1e9
    return {
        "model": name,
        "steps": len(apart),
        "ahead": _mean(np.array(ahead, np.float64)),
        "bias": _mean(apart),
        "error": _mean(np.abs(apart)),
        "error_p90": _p90(np.abs(apart)),
        "fills": len(late),
        "late_s": _mean(late),
        "fill_error_s": _mean(np.abs(late)),
        "fill_error_p90_s": _p90(np.abs(late)),
        "missed": sum(real is not None and told is None for real, told in fills),
        "made_up": sum(real is None and told is not None for real, told in fills),
    }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _p90(values: Floats) -> float:
    return float(np.percentile(values, 90)) if len(values) else math.nan
