"""What a simulation assumes: latency, queue, fees, impact. Each says when it is wrong.

A backtest is as honest as these four. They are plain values: a `Result` prints them, a sweep varies them, and
`hftlab.sim.fit` finds them from a session's own orders.

Latency
    A request reaches the exchange ``entry`` after the decision, its answer reaches us ``response`` after the exchange
    acted. A connection keeps its order: nothing overtakes. Wrong where latency depends on what the market does, as it
    does most when it matters: in a burst both ways are slower for everybody. ``measured`` replays what a session saw at
    that time of day, bursts included, but only where it had orders to measure with.

Queue
    Where a resting order stands at its price when only totals are known. Trades eat from the front; what is canceled
    is ahead of us in part, and the models differ in which part. ``risk_averse``: none, until the level is smaller than
    what was ahead; so orders fill later than they would. The others split a cancel between ahead and behind by weights
    f(ahead) and f(behind): ``proportional`` f(x) = x; ``power`` f(x) = x**n, a larger n puts more of it on the longer
    part; ``log`` f(x) = log(1 + x). All are wrong for orders so large that others see them, and where cancels cluster
    at the front (a maker who pulls) or the back (a spoofer).

Fees
    Fractions of notional, in the quote asset, exact to 1e-8 of it. Tiers go by what this run has traded, not by the
    last 30 days, which a venue counts.

Impact
    Lots that we took are gone from the exchange's book until the venue tells that price again. Optionally a taker pays
    ``sqrt_ticks * sqrt(lots / per_lots)`` ticks more, rounded down, never beyond its limit. Wrong in that nobody
    reacts: makers who would have stepped back stay where they were recorded.

References
----------
Rigtorp, E. (2013), Estimating order queue position. hftbacktest, "Queue Models" and "Latency Models".
Almgren, R. et al. (2005), Direct estimation of equity market impact (temporary impact grows less than linearly).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Kind, RowArray

__all__ = ["BASE_FEES", "Fees", "Impact", "Latency", "Queue", "notional_unit"]

_DRAWS = 4096
_QUEUES = ("risk_averse", "proportional", "power", "log")
_MOST_NS = 3_600_000_000_000
_ANSWERS = (int(ExecType.ACK), int(ExecType.REPLACED), int(ExecType.CANCELED), int(ExecType.REJECT))
_ORDERS = (int(Kind.SUBMIT), int(Kind.REPLACE_ORDER))

Int64s = npt.NDArray[np.int64]


def _constant(ns: int) -> Int64s:
    return np.array([ns], np.int64)


class Latency:
    """How long a request takes to the exchange, and its answer back, ns.

    Parameters
    ----------
    entry_ns, response_ns : int or array of int
        One value, or samples: the k-th request takes sample ``k % len``. With `at_ns`, the samples of that time.
    feed_ns : int
        Assumed age of market rows that the venue did not date.
    at_ns : array of int, optional
        When each sample was measured, ascending: a request at t takes the last sample measured at t or before.

    Raises
    ------
    ConfigError
        If a latency is negative or longer than an hour, or the arrays do not fit each other.

    Examples
    --------
    >>> print(Latency(entry_ns=250_000, response_ns=300_000))
    latency 250 us to the exchange, 300 us back
    >>> print(Latency.lognormal(200_000, 0.5, seed=3))
    latency sampled: median 202 us, 99 % 631 us to the exchange; median 200 us, 99 % 632 us back
    """

    def __init__(
        self,
        entry_ns: int | npt.ArrayLike = 1_000_000,
        response_ns: int | npt.ArrayLike = 1_000_000,
        *,
        feed_ns: int = 0,
        at_ns: npt.ArrayLike | None = None,
    ) -> None:
        self.entry_ns, self.response_ns = self._samples("entry_ns", entry_ns), self._samples("response_ns", response_ns)
        self.feed_ns = int(self._samples("feed_ns", feed_ns)[0])
        self.at_ns = np.zeros(0, np.int64) if at_ns is None else np.ascontiguousarray(at_ns, np.int64)
        if len(self.at_ns) and (
            len(self.at_ns) != len(self.entry_ns)
            or len(self.at_ns) != len(self.response_ns)
            or bool((np.diff(self.at_ns) < 0).any())
        ):
            raise ConfigError("at_ns: expected ascending times, one for each sample of entry_ns and of response_ns")

    @staticmethod
    def _samples(name: str, given: int | npt.ArrayLike) -> Int64s:
        array = np.atleast_1d(np.asarray(given))
        if array.dtype.kind not in "iu" or array.ndim != 1 or not len(array):
            raise ConfigError(f"{name}: {given!r}; expected whole nanoseconds, one or a flat list of them")
        if int(array.min()) < 0 or int(array.max()) > _MOST_NS:
            raise ConfigError(f"{name}: {int(array.min())} to {int(array.max())} ns; expected 0 to an hour")
        return np.ascontiguousarray(array, np.int64)

    @classmethod
    def sampled(cls, entry_ns: npt.ArrayLike, response_ns: npt.ArrayLike, *, feed_ns: int = 0) -> Latency:
        """Return a latency that takes the samples in turn."""
        return cls(entry_ns, response_ns, feed_ns=feed_ns)

    @classmethod
    def lognormal(cls, median_ns: int, sigma: float, *, seed: int = 1, feed_ns: int = 0) -> Latency:
        """Return samples of a lognormal distribution, both ways alike: `median_ns`, and `sigma` of its logarithm."""
        if median_ns <= 0 or not 0 <= sigma <= 3:
            raise ConfigError(f"lognormal: median_ns={median_ns}, sigma={sigma}; expected more than 0, and 0 to 3")
        draws = np.random.default_rng(seed).lognormal(np.log(median_ns), sigma, (2, _DRAWS))
        entry, response = np.minimum(draws, _MOST_NS).astype(np.int64)
        return cls(entry, response, feed_ns=feed_ns)

    @classmethod
    def measured(cls, rows: RowArray) -> Latency:
        """Return what a session's journal measured: each order's way to its first answer, half of it each way.

        A journal knows when an order was decided and when the answer came, not when the venue acted, unless the
        answer is dated by a clock that agrees with ours; so the round trip is halved.

        Raises
        ------
        ConfigError
            If no order of the journal was answered.
        """
        kind = rows["kind"]
        sent = np.flatnonzero(np.isin(kind, _ORDERS))
        answered = np.flatnonzero((kind == Kind.REPORT) & np.isin(rows["code"] & 255, _ANSWERS))
        first: dict[int, int] = {}
        for order, at in zip(rows["a"][answered].tolist(), rows["ts_recv"][answered].tolist(), strict=True):
            first.setdefault(order, at)
        pairs = [
            (at, first[order] - at)
            for order, at in zip(rows["a"][sent].tolist(), rows["ts_recv"][sent].tolist(), strict=True)
            if order in first and first[order] >= at
        ]
        if not pairs:
            raise ConfigError("latency: no order of this journal was answered; give Latency(entry_ns, response_ns)")
        times, trips = np.array(sorted(pairs), np.int64).T
        trips = np.minimum(trips, _MOST_NS)
        return cls(trips // 2, trips - trips // 2, at_ns=times)

    def __str__(self) -> str:
        if len(self.entry_ns) == len(self.response_ns) == 1:
            return f"latency {_time(self.entry_ns[0])} to the exchange, {_time(self.response_ns[0])} back"
        ways = [
            f"median {_time(np.median(way))}, 99 % {_time(np.percentile(way, 99))}"
            for way in (self.entry_ns, self.response_ns)
        ]
        what = "measured" if len(self.at_ns) else "sampled"
        return f"latency {what}: {ways[0]} to the exchange; {ways[1]} back"


def _time(ns: Any) -> str:
    return f"{ns / 1e6:.3g} ms" if ns >= 1e6 else f"{ns / 1e3:.3g} us"


@dataclass(frozen=True, slots=True)
class Queue:
    """How cancels at an order's price are shared between those ahead of it and those behind.

    Parameters
    ----------
    model : str
        ``risk_averse``, ``proportional``, ``power`` or ``log``.
    exponent : float
        Of ``power``.

    Examples
    --------
    >>> Queue("power", 2.0).number, str(Queue())
    (2, 'queue risk averse')
    """

    model: str = "risk_averse"
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.model not in _QUEUES:
            raise ConfigError(f"queue: {self.model!r}; expected one of {', '.join(_QUEUES)}")
        if not 0 < self.exponent <= 10:
            raise ConfigError(f"queue: exponent {self.exponent}; expected more than 0, up to 10")

    @property
    def number(self) -> int:
        """The model's number in `hftlab.kernels.queue`."""
        return _QUEUES.index(self.model)

    def __str__(self) -> str:
        shown = f" {self.exponent:g}" if self.model == "power" else ""
        return f"queue {self.model.replace('_', ' ')}{shown}"


@dataclass(frozen=True, slots=True)
class Fees:
    """Fees as fractions of notional in 1e-8, charged in the quote asset; below 0 is a rebate.

    Parameters
    ----------
    maker_e8, taker_e8 : int
    tiers : tuple of (volume, maker_e8, taker_e8)
        From so much traded in this run (Decimal or its text, in the quote asset) these fees hold instead; ascending.

    Examples
    --------
    >>> from decimal import Decimal
    >>> btc = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
    >>> Fees(maker_e8=-10_000, taker_e8=100_000).charge(btc, 6_183_700, 1_000, maker=False)   # 0.1 % of 618.37
    61837000
    """

    maker_e8: int = 100_000
    taker_e8: int = 100_000
    tiers: Sequence[tuple[Decimal | str | int, int, int]] = field(default=())

    def __post_init__(self) -> None:
        volumes = [Decimal(str(volume)) for volume, _, _ in self.tiers]
        if any(not volume.is_finite() or volume <= 0 for volume in volumes) or sorted(set(volumes)) != volumes:
            raise ConfigError(f"tiers: volumes {[str(v) for v in volumes]}; expected ascending, each above 0")
        for rate in (self.maker_e8, self.taker_e8, *(rate for tier in self.tiers for rate in tier[1:])):
            if type(rate) is not int or abs(rate) > 10**8:
                raise ConfigError(f"fees: {rate!r}; expected a whole number of 1e-8 of notional, -1e8 to 1e8")

    def charge(self, instrument: Instrument, px: int, qty: int, *, maker: bool) -> int:
        """Return the fee of a fill in 1e-8 of the quote asset, exact, halves rounded up (against the trader)."""
        rate = self.maker_e8 if maker else self.taker_e8
        exact = px * qty * rate * notional_unit(instrument)
        return int((2 * exact.numerator + exact.denominator) // (2 * exact.denominator))

    def __str__(self) -> str:
        tiers = f", {len(self.tiers)} tiers by volume" if self.tiers else ""
        return f"fees: maker {self.maker_e8 / 1e6:g} %, taker {self.taker_e8 / 1e6:g} %{tiers}"


BASE_FEES = Fees()


def notional_unit(instrument: Instrument) -> Fraction:
    """Return what one tick times one lot is worth in the quote asset."""
    return Fraction(*instrument.tick_size.as_integer_ratio()) * Fraction(*instrument.lot_size.as_integer_ratio())


@dataclass(frozen=True, slots=True)
class Impact:
    """What our taking does to the book.

    Parameters
    ----------
    consume : bool
        Lots we took are gone until the venue tells that price again; False: a recording nobody can change.
    sqrt_ticks, per_lots
        A taker pays ``sqrt_ticks * sqrt(lots / per_lots)`` ticks more, rounded down, never beyond its limit.

    Examples
    --------
    >>> print(Impact(sqrt_ticks=2.0, per_lots=100))
    own trades consume, and cost 2 ticks * sqrt(lots / 100) more
    """

    consume: bool = True
    sqrt_ticks: float = 0.0
    per_lots: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sqrt_ticks <= 1e6 or self.per_lots < 1:
            raise ConfigError(
                f"impact: sqrt_ticks={self.sqrt_ticks}, per_lots={self.per_lots}; expected 0 to 1e6, and 1 or more"
            )

    def __str__(self) -> str:
        what = "own trades consume" if self.consume else "own trades consume nothing"
        more = f", and cost {self.sqrt_ticks:g} ticks * sqrt(lots / {self.per_lots}) more" if self.sqrt_ticks else ""
        return what + more
