"""The ITCH benchmark: its stream, its reference, and that a wrong book is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hftlab.bench import itch
from hftlab.bench.run import CheckFailed, run_bench
from hftlab.books import L3Book


def test_the_stream_is_the_same_for_the_same_seed_and_mixed_like_a_feed() -> None:
    data = itch._stream(30_000, 200, 3)
    assert np.array_equal(data, itch._stream(30_000, 200, 3))
    plain = itch._PlainBooks()
    n = plain.feed(data.tobytes(), 0, len(data))
    shares = {kind: count / n for kind, count in plain.kinds.items()}
    assert n == 30_200 and plain.kinds["R"] == 200
    assert 0.4 < shares["A"] + shares["F"] < 0.5 and 0.4 < shares["D"] < 0.5 and set("ECUX") < set(shares)
    assert 500 < len(plain.orders) < 2_000


def test_the_benchmark_checks_measures_and_reports() -> None:
    told = run_bench("itch", scale=0.002, rounds=1)
    assert set(told["ours"]) == {"decode_ns", "books_ns"} and min(told["ours"].values()) > 0
    assert set(told["peers"]) == {"python_books_ns"} and told["ratio"]["books_vs_python"] > 0


def test_a_book_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = itch._stream(5_000, 50, 1)
    itch._check(data, 50)
    apply = L3Book.apply_at
    monkeypatch.setattr(L3Book, "apply_at", lambda self, address, n: apply(self, address, max(0, n - 1)))
    with pytest.raises(CheckFailed, match="itch:"):
        itch._check(data, 50)


def test_a_peer_that_parses_something_else_is_noticed(tmp_path: Path) -> None:
    class Liar:
        def ask(self, **request: object) -> dict[str, object]:
            return {"kinds": {"A": 1}, "sums": {"reference": 1, "shares": 2, "price": 3}}

    data = itch._stream(100, 10, 1)
    with pytest.raises(CheckFailed, match="the peer parsed"):
        itch._peer(Liar(), tmp_path, data, False)  # type: ignore[arg-type]  # it only asks
