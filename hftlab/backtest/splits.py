"""Which time a choice may be made on, and which time judges it: holdout, walk-forward, purged folds.

**Model.** A split is one test interval and the training intervals that may be looked at for it. Two things leak across
a border. What is known at t may have been labelled, marked or held up to ``t + horizon_ns``, so training that close
before a test has seen the test, and training that close after it is seen by it; that is *purged*. And markets remember:
what happened just after a test resembles it; so a further ``embargo_ns`` is kept free. Lopez de Prado puts the embargo
after the test only. Here it is kept on both sides, because a strategy carries a position over the border in both
directions, and a stricter gap costs little of a day.

**Promise.** No training interval comes closer to the test than ``horizon_ns + embargo_ns``; intervals are half open,
``[start, end)``, in ns, in order, not empty; tests of one scheme do not overlap.

**When they are wrong.** `WalkForward` and `Holdout` keep the order of time: nothing is judged by what was tuned on its
future. `Purged` uses every minute as a test once, so training lies on both sides of it: good for telling noise from
skill, no forecast of what trading it would have earned. `Holdout` is one judgement; who looks twice has tuned on it.

References
----------
Lopez de Prado, M. (2018), Advances in Financial Machine Learning, ch. 7, "Cross-Validation in Finance".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError

__all__ = ["Holdout", "Interval", "Purged", "Split", "Splitter", "WalkForward", "inside", "read_splitter"]

Interval = tuple[int, int]
"""``[start, end)``, ns since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Split:
    """One test interval, and what may be looked at for it."""

    train: tuple[Interval, ...]
    test: Interval


class Splitter(Protocol):
    """A scheme: what it makes of the time from `start_ns` to `end_ns`."""

    def split(self, start_ns: int, end_ns: int) -> tuple[Split, ...]:
        """Return the splits, by the time of their tests."""


def inside(times: npt.NDArray[np.int64], intervals: tuple[Interval, ...]) -> npt.NDArray[np.bool_]:
    """Return which of `times` lie in one of `intervals`.

    Examples
    --------
    >>> inside(np.array([1, 5, 9]), ((0, 5), (9, 10))).tolist()
    [True, False, True]
    """
    found = np.zeros(len(times), np.bool_)
    for start, end in intervals:
        found |= (times >= start) & (times < end)
    return found


def _around(start: int, end: int, test: Interval, gap: int) -> tuple[Interval, ...]:
    """Return what is left of ``[start, end)`` farther than `gap` from `test`."""
    parts = ((start, min(end, test[0] - gap)), (max(start, test[1] + gap), end))
    return tuple(part for part in parts if part[0] < part[1])


def _edges(start: int, end: int, parts: int) -> list[int]:
    return [start + (end - start) * k // parts for k in range(parts + 1)]


def _checked(name: str, splits: list[Split]) -> tuple[Split, ...]:
    for k, one in enumerate(splits):
        if not one.train or one.test[0] >= one.test[1]:
            what = "test" if one.train else "training"
            raise ConfigError(f"{name}: split {k} has no time left for {what}; fewer folds, a shorter gap or more data")
    return tuple(splits)


def _not_negative(name: str, **values: int) -> None:
    for what, value in values.items():
        if value < 0:
            raise ConfigError(f"{name}: {what}={value}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Holdout:
    """The last `share` of the time is the test; the rest, less the gap, is for training.

    Parameters
    ----------
    share : float
        Between 0 and 1.
    horizon_ns, embargo_ns : int
        See the module.

    Examples
    --------
    >>> Holdout(0.25, embargo_ns=5).split(0, 100)
    (Split(train=((0, 70),), test=(75, 100)),)
    """

    share: float = 0.3
    horizon_ns: int = 0
    embargo_ns: int = 0

    def __post_init__(self) -> None:
        _not_negative("Holdout", horizon_ns=self.horizon_ns, embargo_ns=self.embargo_ns)
        if not 0 < self.share < 1:
            raise ConfigError(f"Holdout: share={self.share}; expected more than 0, less than 1")

    def split(self, start_ns: int, end_ns: int) -> tuple[Split, ...]:
        """Return the one split."""
        test = (end_ns - round((end_ns - start_ns) * self.share), end_ns)
        train = _around(start_ns, test[0], test, self.horizon_ns + self.embargo_ns)
        return _checked("Holdout", [Split(train, test)])


@dataclass(frozen=True, slots=True)
class WalkForward:
    """Train on the past, test on what comes next, move on.

    The time is cut into ``folds + 1`` equal pieces; the k-th test is piece k + 1.

    Parameters
    ----------
    folds : int
        Tests.
    window : int, optional
        Pieces before a test that it is trained on; all of them if absent (an anchored walk).
    horizon_ns, embargo_ns : int
        See the module.

    Examples
    --------
    >>> for one in WalkForward(folds=3, window=1, embargo_ns=2).split(0, 40):
    ...     print(one.train, one.test)
    ((0, 8),) (10, 20)
    ((10, 18),) (20, 30)
    ((20, 28),) (30, 40)
    """

    folds: int = 4
    window: int | None = None
    horizon_ns: int = 0
    embargo_ns: int = 0

    def __post_init__(self) -> None:
        _not_negative("WalkForward", horizon_ns=self.horizon_ns, embargo_ns=self.embargo_ns)
        if self.folds < 1 or (self.window is not None and self.window < 1):
            raise ConfigError(f"WalkForward: folds={self.folds}, window={self.window}; expected 1 or more")

    def split(self, start_ns: int, end_ns: int) -> tuple[Split, ...]:
        """Return the splits, earliest test first."""
        edges, gap = _edges(start_ns, end_ns, self.folds + 1), self.horizon_ns + self.embargo_ns
        found = []
        for k in range(1, self.folds + 1):
            test = (edges[k], edges[k + 1])
            first = start_ns if self.window is None else edges[max(0, k - self.window)]
            found.append(Split(_around(first, test[0], test, gap), test))
        return _checked("WalkForward", found)


@dataclass(frozen=True, slots=True)
class Purged:
    """Each of `folds` equal pieces is the test once; all other time, less the gap, is for training.

    Parameters
    ----------
    folds : int
        2 or more.
    horizon_ns, embargo_ns : int
        See the module.

    Examples
    --------
    >>> [one.train for one in Purged(folds=3, horizon_ns=1, embargo_ns=1).split(0, 30)]
    [((12, 30),), ((0, 8), (22, 30)), ((0, 18),)]
    """

    folds: int = 5
    horizon_ns: int = 0
    embargo_ns: int = 0

    def __post_init__(self) -> None:
        _not_negative("Purged", horizon_ns=self.horizon_ns, embargo_ns=self.embargo_ns)
        if self.folds < 2:
            raise ConfigError(f"Purged: folds={self.folds}; expected 2 or more")

    def split(self, start_ns: int, end_ns: int) -> tuple[Split, ...]:
        """Return the splits, earliest test first."""
        edges, gap = _edges(start_ns, end_ns, self.folds), self.horizon_ns + self.embargo_ns
        tests = list(pairwise(edges))
        return _checked("Purged", [Split(_around(start_ns, end_ns, test, gap), test) for test in tests])


def read_splitter(text: str, *, horizon_ns: int = 0, embargo_ns: int = 0) -> Splitter:
    """Return a scheme written as ``holdout:0.3``, ``walk:4``, ``walk:4:1`` (its window) or ``purged:5``.

    Raises
    ------
    ConfigError
        If it is none of these.

    Examples
    --------
    >>> read_splitter("walk:3:1", embargo_ns=5)
    WalkForward(folds=3, window=1, horizon_ns=0, embargo_ns=5)
    """
    name, *numbers = text.split(":")
    try:
        if name == "holdout" and len(numbers) <= 1:
            return Holdout(float(numbers[0]) if numbers else 0.3, horizon_ns, embargo_ns)
        if name == "walk" and len(numbers) <= 2:
            window = int(numbers[1]) if len(numbers) > 1 else None
            return WalkForward(int(numbers[0]) if numbers else 4, window, horizon_ns, embargo_ns)
        if name == "purged" and len(numbers) <= 1:
            return Purged(int(numbers[0]) if numbers else 5, horizon_ns, embargo_ns)
    except ValueError:
        pass
    raise ConfigError(f"splits: {text!r}; expected holdout:0.3, walk:4 (or walk:4:1 with a window) or purged:5")
