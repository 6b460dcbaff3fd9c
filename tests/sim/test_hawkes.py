"""Hawkes arrivals: rates, clustering and branching as theory says; the seed's promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hftlab.core.errors import ConfigError
from hftlab.sim.hawkes import Hawkes, arrivals

Floats = npt.NDArray[np.float64]

ONE = Hawkes([50.0], [[0.6]], 0.02)
SECONDS = 2_000.0


@pytest.fixture(scope="module")
def times() -> Floats:
    return arrivals(ONE, SECONDS, seed=11)[0]


def counts(times: Floats, window: float, seconds: float = SECONDS) -> Floats:
    return np.histogram(times, np.arange(0, seconds + window / 2, window))[0].astype(np.float64)


def test_mean_rate_is_the_one_asked_for(times: Floats) -> None:
    error = (50.0 * SECONDS) ** 0.5 / (1 - 0.6)  # standard error of the count
    assert abs(len(times) - 50.0 * SECONDS) < 4 * error


def test_variance_of_counts_gives_the_branching_ratio_back(times: Floats) -> None:
    of = counts(times, 2.0)
    assert 1 - (of.mean() / of.var()) ** 0.5 == pytest.approx(0.6, abs=0.04)


def test_counts_of_neighbouring_windows_go_together_as_theory_says_and_poisson_does_not(times: Floats) -> None:
    # Hawkes (1971): with rate L, ratio n and decay b, covariance at lag t is A exp(-c t), c = b (1 - n),
    # A = L b n (2 - n) / (2 (1 - n)); of counts in windows w at lag w: A (1 - exp(-c w))**2 / c**2.
    rate, n, b, w = 50.0, 0.6, 50.0, 0.05
    c, a = b * (1 - n), rate * b * n * (2 - n) / (2 * (1 - n))
    expected = a * (1 - np.exp(-c * w)) ** 2 / c**2

    def covariance(of: Floats) -> float:
        return float(np.mean((of[1:] - of.mean()) * (of[:-1] - of.mean())))

    assert covariance(counts(times, w)) == pytest.approx(expected, rel=0.1)
    poisson, _ = arrivals(Hawkes([50.0], [[0.0]], 0.02), SECONDS, seed=11)
    assert abs(covariance(counts(poisson, w))) < 0.05 * expected


def test_without_children_gaps_are_exponential() -> None:
    times, _ = arrivals(Hawkes([200.0], [[0.0]], 1.0), 500.0, seed=3)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.03)


def test_compensated_times_are_those_of_a_poisson_process_of_rate_one(times: Floats) -> None:
    """The time-change theorem, with the intensity from the definition: slow, and independent of the thinning."""
    few = times[:4_000]
    compensators = []
    excited, before = 0.0, 0.0
    for at in few:
        gap = at - before
        compensators.append(20.0 * gap + excited / 50.0 * (1 - np.exp(-50.0 * gap)))
        excited = excited * np.exp(-50.0 * gap) + 0.6 * 50.0
        before = at
    uniform = np.sort(1 - np.exp(-np.array(compensators)))
    rank = np.arange(1, len(few) + 1) / len(few)
    assert float(np.abs(uniform - rank).max()) < 1.63 / len(few) ** 0.5  # Kolmogorov and Smirnov, 1 %


def test_types_have_their_rates_and_call_for_their_own() -> None:
    process = Hawkes([30.0, 60.0], [[0.5, 0.1], [0.0, 0.3]], 0.01)
    times, types = arrivals(process, 1_000.0, seed=5)
    shares = np.bincount(types) / 1_000.0
    assert shares.tolist() == pytest.approx([30.0, 60.0], rel=0.05)
    assert process.ratio == pytest.approx(0.5)
    followed = float((types[1:][types[:-1] == 0] == 0).mean())
    assert followed > 0.4 > 30 / 90
    assert bool((np.diff(times) > 0).all()) and times[-1] < 1_000.0


def test_the_seed_alone_decides_and_a_longer_run_begins_alike(times: Floats) -> None:
    assert np.array_equal(arrivals(ONE, SECONDS, seed=11)[0], times)
    longer, _ = arrivals(ONE, SECONDS + 10, seed=11)
    assert np.array_equal(longer[: len(times)], times)
    assert not np.array_equal(arrivals(ONE, SECONDS, seed=12)[0][:100], times[:100])


@pytest.mark.parametrize(
    ("rates", "branching", "decay", "said"),
    [
        ([1.0], [[1.0]], 1.0, "ratio is 1"),
        ([1.0, 1.0], [[0.0, 1.2], [0.9, 0.0]], 1.0, "ratio is 1.04"),
        ([1.0, 9.0], [[0.0, 0.5], [0.0, 0.0]], 1.0, "no more children than arrivals"),
        ([1.0], [[-0.1]], 1.0, "none below 0"),
        ([1.0], [[0.5]], 0.0, "decay_s=0"),
        ([1.0, 2.0], [[0.5]], 1.0, "shapes"),
        ([float("nan")], [[0.5]], 1.0, "finite"),
    ],
)
def test_a_process_that_cannot_be_is_refused(rates: list[float], branching: object, decay: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Hawkes(rates, branching, decay)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="seconds is 0"):
        arrivals(ONE, 0.0)
