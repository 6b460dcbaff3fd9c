"""The latency histograms: bounded error, addition, a file that others read, and no influence on any result."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.kernels.jit import kernel
from hftlab.kernels.latency import (
    BUCKETS,
    HAS_COUNTER,
    HOPS,
    RISK,
    SEND,
    STRATEGY,
    WORDS,
    Latency,
    add_cycles,
    bucket_of,
    record_ns,
    summarised,
)

durations = st.integers(0, 2**40 - 1)


def plain_bucket(ns: int) -> int:
    """The same scale by floats and loops."""
    value = min(max(ns, 0), 2**40 - 1)
    shift = 0
    while value >> shift >= 64:
        shift += 1
    return 32 * shift + (value >> shift)


@given(st.integers(-(2**62), 2**62))
def test_bucket_is_that_of_the_plain_scale_and_inside_the_table(ns: int) -> None:
    assert bucket_of(ns) == plain_bucket(ns)
    assert 0 <= bucket_of(ns) < BUCKETS


@given(durations)
def test_a_single_duration_is_told_within_three_percent(ns: int) -> None:
    latency = Latency()
    record_ns(latency.address, RISK, ns)
    assert latency.histogram("risk").percentile(50) == pytest.approx(ns, rel=0.016, abs=0.5)


@given(st.lists(durations, min_size=1, max_size=200), st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentile_is_numpys_within_three_percent(values: list[int], q: float) -> None:
    latency = Latency()
    for ns in values:
        record_ns(latency.address, RISK, ns)
    told = latency.histogram("risk")
    exact = float(np.percentile(values, q, method="inverted_cdf"))
    assert told.percentile(q) == pytest.approx(exact, rel=0.031, abs=0.5)
    assert (told.n, told.total_ns, told.largest_ns) == (len(values), sum(values), max(values))


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_two_histograms_add_to_that_of_both_and_subtract_again(left: list[int], right: list[int]) -> None:
    parts = []
    for values in (left, right, left + right):
        latency = Latency()
        for ns in values:
            record_ns(latency.address, SEND, ns)
        parts.append(latency.histogram("send"))
    assert np.array_equal((parts[0] + parts[1]).counts, parts[2].counts)
    assert np.array_equal((parts[2] - parts[0]).counts, parts[1].counts)
    assert (parts[2] - parts[0]).total_ns == parts[1].total_ns


def test_an_empty_histogram_has_no_percentile() -> None:
    told = Latency().histogram("send")
    assert math.isnan(told.percentile(50)) and math.isnan(told.mean_ns)
    assert summarised(told) == {"n": 0} and Latency().summary() == {}
    with pytest.raises(ValueError, match="0 to 100"):
        told.percentile(101)


def test_what_the_host_notes_is_counted_once() -> None:
    latency = Latency()
    latency.noted[SEND] = 1500
    latency.fold()
    latency.fold()
    assert latency.histogram("send").n == 1
    assert latency.summary()["send"]["p50_us"] == pytest.approx(1.5, rel=0.02)


def test_hops_do_not_share_memory() -> None:
    latency = Latency()
    for i, _ in enumerate(HOPS):
        for _ in range(i + 1):
            record_ns(latency.address, i, 2**39)
    assert [latency.histogram(hop).n for hop in HOPS] == list(range(1, len(HOPS) + 1))


@kernel("int64(int64, int64, int64)")
def count_cycles(latency: int, cycles: int, n: int) -> int:
    for _ in range(n):
        add_cycles(latency, STRATEGY, cycles)
    return 0


@pytest.mark.skipif(not HAS_COUNTER, reason="no cycle counter may be read on this processor")
def test_cycles_are_counted_as_ns_by_their_length() -> None:
    latency = Latency(0.5)
    count_cycles(latency.address, 4000, 3)
    assert latency.histogram("strategy").total_ns == 6000


def test_without_the_length_of_a_cycle_no_cycles_are_counted() -> None:
    latency = Latency(0.0)
    count_cycles(latency.address, 4000, 3)
    assert latency.histogram("strategy").n == 0


def test_a_file_is_read_by_others_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "latency"
    writer = Latency.create(path)
    reader = Latency.open(path)
    record_ns(writer.address, SEND, 777)
    assert reader.histogram("send").total_ns == 777
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == 8 * WORDS
    with pytest.raises(ValueError, match="read-only"):
        reader._words[0] = 0


def test_a_new_life_begins_empty_and_leaves_the_old_ones_readers_alone(tmp_path: Path) -> None:
    path = tmp_path / "latency"
    first = Latency.create(path)
    record_ns(first.address, SEND, 1)
    old = Latency.open(path)
    Latency.create(path)
    assert old.histogram("send").n == 1
    assert Latency.open(path).histogram("send").n == 0


@pytest.mark.parametrize("content", [b"", b"x", bytes(8 * WORDS), bytes(8 * WORDS + 3)])
def test_a_file_of_another_layout_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="latency"):
        Latency.open(path)


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no latency histograms"):
        Latency.open(tmp_path / "latency")
