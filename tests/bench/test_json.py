"""The JSON benchmark: its messages, its reference, and that a wrong book is noticed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from venues.kraken.reference import Reader

from hftlab.bench import json as bench
from hftlab.bench.run import CheckFailed, Plan, run_bench
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
    others = ["coinbase_l2", "coinbase_advanced", "coinbase_match", "kraken_v1", "kraken_v2", "kraken_trade"]
    assert {f"{one}_us" for one in others} <= set(told["ours"])
    assert {f"{one}_vs_msgspec" for one in others} <= set(told["ratio"])
    assert told["ratio"]["depth20_batch_vs_msgspec"] > 0 and "msgspec_book_ticker_us" in told["peers"]
    assert set(bench.GOALS) - set(told["ours"]) - set(told["ratio"]) == {"depth20_call_vs_cryptofeed"}


def test_a_book_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    depth = Ladders.depth
    monkeypatch.setattr(Ladders, "depth", lambda self, of, n: tuple(side[1:] for side in depth(self, of, n)))
    for venue in bench._VENUES:
        with pytest.raises(CheckFailed, match="levels"):
            venue(Plan(tmp_path, scale=0.01))


def test_the_kraken_messages_carry_the_checksums_of_a_plain_reader() -> None:
    frames, sums, (bids, asks) = bench.kraken_books(300, 2)
    reader = Reader([bench.PAIR], 2, 10)
    for frame, crc in zip(frames, sums, strict=True):
        reader.rows(frame, 0)
        assert reader.checksum == reader.computed == crc
    book = reader.books[0]
    assert (len(bids), len(asks)) == (10, 10)
    assert {bench.PAIR.px(px) for px in book.bids} == set(bids) and {bench.PAIR.px(px) for px in book.asks} == set(asks)


def test_a_kraken_checksum_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crc = bench._kraken_crc
    monkeypatch.setattr(bench, "_kraken_crc", lambda *levels: crc(*levels) ^ 1)
    with pytest.raises(CheckFailed, match="CRC32"):
        bench._kraken(Plan(tmp_path, scale=0.01))
