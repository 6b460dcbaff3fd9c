"""The websocket benchmark: both sides take the whole stream and have the reference's book."""

from __future__ import annotations

import pytest

from hftlab.bench import websocket as bench
from hftlab.bench.run import CheckFailed, run_bench
from hftlab.engine import Engine


def test_the_benchmark_checks_measures_and_reports() -> None:
    told = run_bench("websocket", scale=0.03, rounds=1)
    assert set(told["ours"]) == {"message_us", "messages_per_s"} and min(told["ours"].values()) > 0
    assert set(told["peers"]) == {"websockets_message_us", "websockets_messages_per_s"}
    assert told["ratio"]["message_vs_websockets"] > 0


def test_a_book_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = Engine.levels
    monkeypatch.setattr(bench.Engine, "levels", lambda self, i, n: tuple(side[1:] for side in levels(self, i, n)))
    with pytest.raises(CheckFailed, match="book begins"):
        run_bench("websocket", scale=0.03, rounds=1)
