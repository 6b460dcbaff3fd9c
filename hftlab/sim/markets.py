"""Synthetic markets that cluster, move together and change their mood: scripts for the matching exchange.

`synthetic` writes a script for each instrument (`hftlab.sim.flow.ScriptedFlow`): when somebody comes, what they are,
and where value stands. `MatchingExchange` plays it on the same book and with the same makers and takers as its Poisson
flow, so own orders rest among the others' and trade with them.

What it assumes
---------------
Arrivals
    Poisson, or with `Clustering` a Hawkes process (`hftlab.sim.hawkes`) of four types: makers, informed takers, buyers,
    sellers. Takers call for takers, mostly of their own side: trades come in runs of one sign. Mean rates stay those of
    `FlowParams`.
Value
    A random walk with Gaussian steps every 10 ms. Steps of several instruments are correlated as asked, through the
    Cholesky factor of the matrix. Jumps come to each instrument alone. There is no drift.
Informed takers
    The share `informed` of events. They know value, jumps included, and trade while the book is wrong, up to value.
    Nobody else does, and makers learn at once what quotes are too good only when they happen to look: that is what an
    own maker's markouts are made of.
Regimes
    A Markov chain in continuous time, the same for all instruments. In a regime everything comes `rate` times as often
    and value moves `volatility` times as much. The change of rate is a change of clock, so clusters too are shorter
    where it is faster.

Measured (tests/sim/test_markets.py holds the bounds): with `Clustering(takers=0.7, same_side=0.95)` neighbouring trades
have a sign autocorrelation of 0.28, and trades a second a variance of 11 times their mean (theory 11.1; Poisson 0.0 and
1.0). Mids of two instruments with a correlation of 0.8 have 0.67 over 1 s and 0.80 over 5 s. A maker's mean markout
after 1 s is +0.6 ticks without informed takers, -1.0 with a share of 0.06 and -1.7 with 0.12 (one jump a second).

When it is wrong. Correlation is of values at 10 ms, hence of mids only over times in which mids follow value (seconds);
real prices lead and lag each other (Epps). Regimes switch at a point in time and are the same for all. Takers do not
split one order over hours, so signs forget within seconds. Makers do not step back when they are picked off. Everything
that `hftlab.sim.flow` says of itself holds. A script lies in memory, 24 bytes an event: an hour of the default flow is
70 MB an instrument.

References
----------
Glosten and Milgrom (1985) for the informed taker. Hamilton (1989), A new approach to the economic analysis of
nonstationary time series. Bacry and Muzy (2014), Hawkes model for price and trades high-frequency dynamics. Epps
(1979), Comovements in stock prices in the very short run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.sim.flow import BUY_TAKER, INFORMED_TAKER, MAKER, SELL_TAKER, UNIT, FlowParams, ScriptedFlow
from hftlab.sim.hawkes import Hawkes, arrivals

__all__ = ["Clustering", "Regime", "Synthetic", "synthetic"]

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

GRID_NS = 10_000_000
"""Value moves once each so many ns."""

_MOST_EVENTS = 10**8
_MOST_SECONDS = 100_000  # a day is 86,400
_DEFAULT_FLOW = FlowParams()


@dataclass(frozen=True, slots=True)
class Clustering:
    """How arrivals call for arrivals; all are mean numbers of direct children.

    Parameters
    ----------
    takers : float
        Takers that a taker calls for.
    same_side : float
        Share of those that are on its side, 0 to 1.
    makers : float
        Maker events that a maker event calls for.
    decay_s : float
        Mean age at which children come, s.

    Examples
    --------
    >>> process = Clustering(takers=0.6, same_side=0.9, makers=0.3).process(FlowParams())
    >>> round(process.ratio, 3), process.rates.tolist()
    (0.6, [688.0, 48.0, 32.0, 32.0])
    """

    takers: float = 0.6
    same_side: float = 0.9
    makers: float = 0.3
    decay_s: float = 0.02

    def process(self, flow: FlowParams) -> Hawkes:
        """Return the Hawkes process of makers, informed takers, buyers and sellers with the rates of `flow`.

        Raises
        ------
        ConfigError
            If a share is not one, or the branching ratio is 1 or more.
        """
        if not 0 <= self.same_side <= 1:
            raise ConfigError(f"same_side is {self.same_side}; expected 0 to 1")
        branching = np.zeros((4, 4))
        branching[MAKER, MAKER] = self.makers
        branching[INFORMED_TAKER, INFORMED_TAKER] = self.takers
        branching[BUY_TAKER, BUY_TAKER] = branching[SELL_TAKER, SELL_TAKER] = self.takers * self.same_side
        branching[BUY_TAKER, SELL_TAKER] = branching[SELL_TAKER, BUY_TAKER] = self.takers * (1 - self.same_side)
        return Hawkes(_rates(flow), branching, self.decay_s)


@dataclass(frozen=True, slots=True)
class Regime:
    """A mood of the market.

    Parameters
    ----------
    mean_s : float
        How long it lasts on average, s; the time is exponential.
    rate : float
        Arrivals, as a multiple of the flow's, 0.01 to 100.
    volatility : float
        Volatility of value, as a multiple of the flow's, 0 to 100.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    mean_s: float
    rate: float = 1.0
    volatility: float = 1.0

    def __post_init__(self) -> None:
        ranges = {"mean_s": (1e-3, 1e9), "rate": (0.01, 100.0), "volatility": (0.0, 100.0)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"regime: {name} is {getattr(self, name)!r}; expected {low:g} to {high:g}")


@dataclass(frozen=True)
class Synthetic:
    """Scripted flows, and what they were written from.

    Parameters
    ----------
    flows : dict of instrument id to ScriptedFlow
        For ``MatchingExchange(instruments, flow=...)``.
    switches : int64 array, shape (n, 2)
        When which regime begins: ns after the start, index of the regime. The first line is at 0.
    """

    flows: dict[int, ScriptedFlow]
    switches: Int64s

    def regime_at(self, ns: npt.ArrayLike) -> Int64s:
        """Return the index of the regime at each time, ns after the start."""
        found: Int64s = self.switches[np.searchsorted(self.switches[:, 0], np.asarray(ns), "right") - 1, 1]
        return found


def synthetic(
    instruments: Sequence[Instrument],
    seconds: float,
    *,
    flow: FlowParams | Mapping[int, FlowParams] = _DEFAULT_FLOW,
    clustering: Clustering | None = None,
    regimes: Sequence[Regime] = (),
    transitions: npt.ArrayLike | None = None,
    correlation: float | npt.ArrayLike = 0.0,
    seed: int = 1,
) -> Synthetic:
    """Return scripted flows for a matching exchange; equal arguments give equal scripts.

    Parameters
    ----------
    instruments : sequence of Instrument
    seconds : float
        Length of the scripts; after it nothing comes any more.
    flow : FlowParams or mapping of instrument id to FlowParams
        Rates, volatility, jumps, shares of takers. ``drift_ticks`` is not used.
    clustering : Clustering, optional
        Hawkes arrivals; Poisson without.
    regimes : sequence of Regime
        The chain begins in the first; without any, everything stays as `flow` says.
    transitions : array of float, shape (regimes, regimes), optional
        Probability of the next regime (column) after a row's; all others alike if absent.
    correlation : float or array, shape (instruments, instruments)
        Of the steps of value: one number for all pairs, or the whole matrix, positive definite.
    seed : int
        Of the scripts; the exchange's own seed fixes sizes, distances and cancels.

    Raises
    ------
    ConfigError
        If `correlation` or `transitions` is not such a matrix, scripts would hold more than 1e8 events or last longer
        than 100,000 s, or flows are missing.

    Examples
    --------
    >>> from decimal import Decimal
    >>> pair = [Instrument(k, "sim", name, Decimal("0.01"), Decimal("0.001")) for k, name in enumerate(("A", "B"))]
    >>> made = synthetic(pair, 5.0, correlation=0.8, clustering=Clustering(), regimes=[Regime(2.0), Regime(1.0, 3.0)])
    >>> sorted(made.flows), made.switches[0].tolist(), bool(len(made.flows[0].script) > 1_000)
    ([0, 1], [0, 0], True)
    """
    if not 0 < seconds <= _MOST_SECONDS:
        raise ConfigError(f"seconds is {seconds}; expected more than 0, up to {_MOST_SECONDS:,}")
    chosen = {instrument.id: _params(flow, instrument) for instrument in instruments}
    most = max((regime.rate for regime in regimes), default=1.0) * seconds
    expected = sum(params.events_per_s for params in chosen.values()) * most
    if expected > _MOST_EVENTS:
        raise ConfigError(f"seconds: up to {expected:.2g} events are to be expected; {_MOST_EVENTS:.0e} is the most")
    root = np.random.SeedSequence(seed % 2**64)
    common, *own = [np.random.default_rng(s) for s in root.spawn(1 + len(instruments))]
    switches = _switches(regimes, transitions, seconds, common)
    grid = np.arange(0, round(seconds * 1e9), GRID_NS)
    clock = _Clock(switches, regimes, seconds)
    steps = common.standard_normal((len(grid), len(instruments))) @ _cholesky(correlation, len(instruments)).T
    volatility = np.array([regime.volatility for regime in regimes] or [1.0])
    steps *= volatility[clock.regime_at(grid)][:, None]
    flows: dict[int, ScriptedFlow] = {}
    for k, (instrument, params) in enumerate(chosen.items()):
        times, kinds = _comers(params, clustering, clock, own[k])
        value = _value(params, steps[:, k], own[k])
        script = np.column_stack([times, kinds, value[np.minimum(times // GRID_NS, len(grid) - 1)]])
        plain = {f.name: getattr(params, f.name) for f in fields(FlowParams)}
        flows[instrument] = ScriptedFlow(**plain, script=np.ascontiguousarray(script, np.int64))
    return Synthetic(flows, switches)


def _params(flow: FlowParams | Mapping[int, FlowParams], instrument: Instrument) -> FlowParams:
    params = flow if isinstance(flow, FlowParams) else flow.get(instrument.id)
    if params is None:
        raise ConfigError(f"flow has no parameters for instrument {instrument.id} ({instrument.symbol})")
    return params


def _rates(flow: FlowParams) -> Floats:
    """Return the mean arrivals a second of makers, informed takers, buyers and sellers."""
    shares = [1 - flow.informed - flow.noise, flow.informed, flow.noise / 2, flow.noise / 2]
    rates: Floats = flow.events_per_s * np.maximum(np.array(shares), 0.0)
    return rates


def _cholesky(correlation: float | npt.ArrayLike, n: int) -> Floats:
    matrix = np.asarray(correlation, np.float64)
    if matrix.ndim == 0:
        matrix = np.full((n, n), float(matrix)) + np.diag(np.full(n, 1 - float(matrix)))
    if matrix.shape != (n, n) or not np.allclose(matrix, matrix.T) or not np.allclose(np.diag(matrix), 1):
        raise ConfigError(f"correlation: shape {matrix.shape}; expected symmetric, {n} by {n}, with 1 on its diagonal")
    try:
        factor: Floats = np.linalg.cholesky(matrix).astype(np.float64)
    except np.linalg.LinAlgError:
        raise ConfigError(f"correlation: {matrix.tolist()} is not positive definite") from None
    return factor


def _switches(
    regimes: Sequence[Regime], transitions: npt.ArrayLike | None, seconds: float, random: np.random.Generator
) -> Int64s:
    """Return when which regime begins."""
    n = len(regimes)
    if n < 2:
        return np.zeros((1, 2), np.int64)
    odds = (np.ones((n, n)) - np.eye(n)) / (n - 1) if transitions is None else np.asarray(transitions, np.float64)
    if odds.shape != (n, n) or bool((odds < 0).any()) or not np.allclose(odds.sum(1), 1):
        raise ConfigError(f"transitions: shape {odds.shape}; expected {n} rows of {n} probabilities, each of sum 1")
    found, at, now = [(0, 0)], 0.0, 0
    while True:
        at += random.exponential(regimes[now].mean_s)
        if at >= seconds:
            return np.array(found, np.int64)
        now = int(random.choice(n, p=odds[now]))
        found.append((round(at * 1e9), now))


class _Clock:
    """Time as the flow feels it: a regime of rate 2 makes two of its seconds of one."""

    def __init__(self, switches: Int64s, regimes: Sequence[Regime], seconds: float) -> None:
        self._switches = switches
        rates = np.array([regime.rate for regime in regimes] or [1.0])[switches[:, 1]]
        self._real = np.append(switches[:, 0] / 1e9, seconds)
        self._felt = np.concatenate([[0.0], np.cumsum(np.diff(self._real) * rates)])
        self.length = float(self._felt[-1])

    def real_ns(self, felt: Floats) -> Int64s:
        """Return when felt times (s) are, ns."""
        ns: Int64s = np.rint(np.interp(felt, self._felt, self._real) * 1e9).astype(np.int64)
        return ns

    def regime_at(self, ns: Int64s) -> Int64s:
        found: Int64s = self._switches[np.searchsorted(self._switches[:, 0], ns, "right") - 1, 1]
        return found


def _comers(
    flow: FlowParams, clustering: Clustering | None, clock: _Clock, random: np.random.Generator
) -> tuple[Int64s, Int64s]:
    """Return when who comes: ns and kinds."""
    rates = _rates(flow)
    if clustering is None:
        n = random.poisson(float(rates.sum()) * clock.length)
        felt: Floats = np.sort(random.uniform(0, clock.length, n))
        kinds: Int64s = random.choice(4, len(felt), p=rates / rates.sum())
    else:
        felt, kinds = arrivals(clustering.process(flow), clock.length, seed=int(random.integers(2**63)))
    if not len(felt):
        raise ConfigError(f"seconds: nobody comes in {clock.length:g} s at {flow.events_per_s:g} events a second")
    return clock.real_ns(felt), kinds


def _value(flow: FlowParams, steps: Floats, random: np.random.Generator) -> Int64s:
    """Return value at each step of the grid in 1/1024 ticks, within half and twice its start."""
    seconds = GRID_NS / 1e9
    walk = np.cumsum(steps * flow.volatility_ticks * seconds**0.5)
    jumps: Any = random.poisson(flow.jumps_per_s * seconds, len(steps))
    sizes = random.integers(1, flow.jump_ticks + 1, len(steps)) * random.choice((-1, 1), len(steps))
    value = flow.start_px_ticks + 0.5 + walk + np.cumsum(jumps * sizes)
    held = np.clip(value, flow.start_px_ticks / 2, flow.start_px_ticks * 2)
    units: Int64s = np.rint(held * UNIT).astype(np.int64)
    return units
