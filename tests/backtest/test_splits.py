"""Splits of time: what training may touch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.backtest.splits import Holdout, Purged, Splitter, WalkForward, inside, read_splitter
from hftlab.core.errors import ConfigError

START = 1_700_000_000_000_000_000
GAPS = st.tuples(st.integers(0, 2000), st.integers(0, 2000))


@st.composite
def schemes(draw: st.DrawFn) -> Splitter:
    horizon, embargo = draw(GAPS)
    folds = draw(st.integers(2, 6))
    gaps = {"horizon_ns": horizon, "embargo_ns": embargo}
    return draw(
        st.sampled_from(
            [
                Holdout(draw(st.floats(0.1, 0.9)), **gaps),
                WalkForward(folds, **gaps),
                WalkForward(folds, draw(st.integers(1, 3)), **gaps),
                Purged(folds, **gaps),
            ]
        )
    )


@given(schemes(), st.integers(50_000, 10**15))
def test_no_training_interval_touches_a_test_and_its_gap_on_both_sides(scheme: Splitter, length: int) -> None:
    gap = scheme.horizon_ns + scheme.embargo_ns  # type: ignore[attr-defined]  # all three have them
    splits = scheme.split(START, START + length)
    for one in splits:
        low, high = one.test
        assert START <= low < high <= START + length
        for start, end in one.train:
            assert START <= start < end <= START + length
            assert end <= low - gap or start >= high + gap
    tests = [one.test for one in splits]
    assert all(a[1] <= b[0] for a, b in pairwise(tests))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(100, 10**12))
def test_a_walk_forward_is_never_trained_on_its_future(folds: int, window: int, length: int) -> None:
    for scheme in (WalkForward(folds), WalkForward(folds, window)):
        for one in scheme.split(START, START + length):
            assert all(end <= one.test[0] for _, end in one.train)


@given(st.integers(2, 8), st.integers(1000, 10**12))
def test_purged_folds_test_every_moment_once_and_train_on_all_others_without_a_gap(folds: int, length: int) -> None:
    splits = Purged(folds).split(START, START + length)
    times = START + np.random.default_rng(length).integers(0, length, 200)
    tested = sum(inside(times, (one.test,)).astype(int) for one in splits)
    assert (tested == 1).all()
    for one in splits:
        assert (inside(times, one.train) != inside(times, (one.test,))).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Holdout(1.0), "share=1.0"),
        (lambda: WalkForward(0), "folds=0"),
        (lambda: Purged(1), "folds=1"),
        (lambda: Purged(3, embargo_ns=-1), "embargo_ns=-1"),
        (lambda: WalkForward(4, embargo_ns=30).split(0, 100), "no time left for training"),
        (lambda: Purged(4).split(5, 5), "no time left"),
        (lambda: read_splitter("fold:3"), "splits: 'fold:3'; expected holdout:0.3"),
        (lambda: read_splitter("walk:a"), "splits: 'walk:a'"),
    ],
)
def test_what_cannot_be_split_is_said(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]  # each of them is a lambda


def test_schemes_are_read_from_text() -> None:
    assert read_splitter("holdout") == Holdout()
    assert read_splitter("holdout:0.2", embargo_ns=7) == Holdout(0.2, embargo_ns=7)
    assert read_splitter("walk:3") == WalkForward(3) and read_splitter("walk:3:2") == WalkForward(3, 2)
    assert read_splitter("purged:4", horizon_ns=3) == Purged(4, horizon_ns=3)
