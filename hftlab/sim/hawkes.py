"""Arrivals that call for more arrivals: a Hawkes process of several types with one exponential kernel.

The model. Type i arrives with an intensity of ``base[i]`` plus, for each past event of a type j,
``branching[i, j] * decay * exp(-decay * age)`` with ``decay = 1 / decay_s``. So an event of type j has on average
``branching[i, j]`` direct children of type i, born after an exponential time of mean `decay_s`. The *branching ratio*
is the spectral radius of that matrix; below 1 the process is stationary, with mean rates ``(I - branching)^-1 base``.
For one type of ratio n, counts over windows much longer than the decay have a variance of ``1 / (1 - n)**2`` times
their mean (Poisson: 1).

The method is Ogata's thinning: between events all intensities fall, so the sum just now bounds what comes. A candidate
arrives at that rate, and is kept with the share of it that is left by then. Exact, no time step. As all types share one
decay, the past is one number a type, whatever its length.

The promise. Times and types are a function of the parameters and the seed, in chunks of any size, on one machine: the
logarithm and the exponential are its library's.

When it is wrong. Real flow remembers over many time scales at once (its kernels fall like a power), ratios fitted to
it are close to 1, and it answers to the book, not only to arrivals. With one decay, clustering ends some `decay_s`
after it began, and long memory of trade signs does not come out. The process begins without a past, so its first few
``decay_s / (1 - ratio)`` are calmer than the rest.

References
----------
Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes. Ogata (1981), On Lewis' simulation
method for point processes. Bacry, Mastromatteo and Muzy (2015), Hawkes processes in finance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.kernels.jit import kernel

__all__ = ["Hawkes", "arrivals"]

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_CHUNK = 1 << 16
_MOST_TYPES = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(n) for n in (30, 27, 31, 11))


@dataclass(frozen=True)
class Hawkes:
    """A stationary Hawkes process, by its mean rates.

    Parameters
    ----------
    rates : sequence of float, shape (d,)
        Mean arrivals a second of each type, children included.
    branching : array of float, shape (d, d)
        Mean direct children of type i (row) of an event of type j (column).
    decay_s : float
        Mean age at which children are born, s.

    Raises
    ------
    ConfigError
        If a number is negative or not finite, the branching ratio is 1 or more, or a type would get more children than
        it has arrivals.

    Examples
    --------
    >>> process = Hawkes([10.0], [[0.6]], 0.1)
    >>> process.ratio, process.base.round(3).tolist()
    (0.6, [4.0])
    """

    rates: Any
    branching: Any
    decay_s: float

    def __post_init__(self) -> None:
        rates, branching = np.asarray(self.rates, np.float64), np.asarray(self.branching, np.float64)
        d = len(rates) if rates.ndim == 1 else 0
        if not 1 <= d <= _MOST_TYPES or branching.shape != (d, d):
            raise ConfigError(
                f"rates, branching: shapes {rates.shape}, {branching.shape}; expected (d,), (d, d), d to {_MOST_TYPES}"
            )
        if not (np.isfinite(rates).all() and np.isfinite(branching).all() and 1e-6 <= self.decay_s <= 1e6):
            raise ConfigError(f"rates, branching, decay_s={self.decay_s}: expected finite numbers, decay_s 1e-6 to 1e6")
        if bool((rates < 0).any()) or float(rates.sum()) <= 0 or bool((branching < 0).any()):
            raise ConfigError("rates, branching: expected none below 0, and one rate above")
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "branching", branching)
        if self.ratio >= 1:
            raise ConfigError(f"branching: ratio is {self.ratio:.3g}; expected below 1, else arrivals never cease")
        if bool((self.base < -1e-9 * rates.sum()).any()):
            raise ConfigError(
                f"branching: types would get {(branching @ rates).round(3).tolist()} children a second, and have rates "
                f"{rates.round(3).tolist()}; expected no more children than arrivals"
            )

    @property
    def ratio(self) -> float:
        """The branching ratio: the spectral radius of `branching`, below 1."""
        return float(np.abs(np.linalg.eigvals(self.branching)).max())

    @property
    def base(self) -> Floats:
        """Arrivals a second that nobody called for, so that the mean rates come out."""
        base: Floats = self.rates - self.branching @ self.rates
        return base


@kernel()
def _uniform(key: Any, k: Any) -> Any:
    """Return number `k` of a splitmix64 stream, in (0, 1]."""
    x = key + np.uint64(k) * _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    x = x ^ (x >> _31)
    return (float(x >> _11) + 1.0) * 2.0**-53


@kernel()
def _thin(
    key: Any, base: Any, branching: Any, decay: Any, excited: Any, clock: Any, drawn: Any, until: Any, times: Any,
    types: Any,
) -> int:  # fmt: skip
    """Write arrivals up to `until`, as far as there is room; return how many. State: excited, clock, drawn."""
    n = 0
    d = base.shape[0]
    while n < times.shape[0]:
        bound = 0.0
        for i in range(d):
            bound += max(base[i], 0.0) + excited[i]
        if bound <= 0.0:
            clock[0] = until
            return n
        gap = -math.log(_uniform(key, drawn[0])) / bound
        u = _uniform(key, drawn[0] + 1) * bound
        if clock[0] + gap > until:
            clock[0] = until
            return n  # the two numbers are not used up: whoever goes on beyond `until` would draw them again
        drawn[0] += 2
        clock[0] += gap
        fallen = math.exp(-decay * gap)
        for i in range(d):
            excited[i] *= fallen
        for i in range(d):
            u -= max(base[i], 0.0) + excited[i]
            if u <= 0.0:
                times[n] = clock[0]
                types[n] = i
                n += 1
                for child in range(d):
                    excited[child] += branching[child, i] * decay
                break
    return n


def arrivals(process: Hawkes, seconds: float, *, seed: int = 1) -> tuple[Floats, Int64s]:
    """Return times (s, ascending, from 0 to `seconds`) and types of a Hawkes process that begins without a past.

    Parameters
    ----------
    process : Hawkes
    seconds : float
        Up to 1e9 arrivals are expected to fit memory; 16 bytes each.
    seed : int
        Any integer, taken modulo 2**64.

    Raises
    ------
    ConfigError
        If `seconds` is not above 0, or more than 1e9 arrivals are to be expected.

    Examples
    --------
    >>> times, types = arrivals(Hawkes([50.0, 50.0], [[0.5, 0.1], [0.1, 0.5]], 0.05), 20.0)
    >>> bool(1_000 < len(times) < 3_000), bool((np.diff(times) > 0).all())
    (True, True)
    """
    if not seconds > 0 or float(process.rates.sum()) * seconds > 1e9:
        raise ConfigError(f"seconds is {seconds}; expected more than 0, and at most 1e9 arrivals")
    d = len(process.rates)
    excited, clock, drawn = np.zeros(d), np.zeros(1), np.zeros(1, np.int64)
    parts: list[tuple[Floats, Int64s]] = []
    while clock[0] < seconds:
        times, types = np.zeros(_CHUNK), np.zeros(_CHUNK, np.int64)
        n = _thin(
            np.uint64(seed % 2**64), process.base, process.branching, 1 / process.decay_s, excited, clock, drawn,
            float(seconds), times, types,
        )  # fmt: skip
        parts.append((times[:n], types[:n]))
    return np.concatenate([times for times, _ in parts]), np.concatenate([types for _, types in parts])
