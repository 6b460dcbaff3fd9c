"""The JSON benchmark: its messages, its reference, and that a wrong book is noticed."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from hftlab.bench import json as bench
from hftlab.bench.run import CheckFailed, run_bench
from hftlab.kernels.ladder import Ladders


def test_the_messages_are_contiguous_sorted_and_of_the_published_size() -> None:
    frames = bench.binance_depth(200)
    assert frames == bench.binance_depth(200) and 700 < sum(map(len, frames)) / 200 < 770
    events = [json.loads(frame) for frame in frames]
    assert all(b["U"] == a["u"] + 1 for a, b in pairwise(events))
    for event in events:
        bids, asks = ([float(px) for px, _ in event[key]] for key in "ba")
        assert len(bids) == len(asks) == 10 and bids == sorted(bids, reverse=True) and asks == sorted(asks)


def test_the_benchmark_checks_measures_and_reports() -> None:
    told = run_bench("json", scale=0.02, rounds=1)
    assert {"depth20_batch_us", "depth20_call_us", "trade_us"} <= set(told["ours"]) and min(told["ours"].values()) > 0
    assert told["ratio"]["depth20_batch_vs_msgspec"] > 0 and "msgspec_book_ticker_us" in told["peers"]
    assert set(bench.GOALS) - set(told["ours"]) - set(told["ratio"]) == {"depth20_call_vs_cryptofeed"}


def test_a_book_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = Ladders.depth
    monkeypatch.setattr(Ladders, "depth", lambda self, of, n: tuple(side[1:] for side in depth(self, of, n)))
    with pytest.raises(CheckFailed, match="levels"):
        run_bench("json", scale=0.01, rounds=1)
