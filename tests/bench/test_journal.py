"""The journal and pipeline benchmarks run on small input, check what they time, and answer in their units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hftlab.bench import journal
from hftlab.bench.run import CheckFailed, Plan, goals, prepare_bench


def test_every_case_of_the_journal_benchmark_gives_a_figure(tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path, scale=0.01)
    try:
        cases, _ = prepare_bench("journal", plan)
        figures = {case.key: case.run() for case in cases}
    finally:
        plan.close()
    assert all(value > 0 for value in figures.values())
    assert set(goals("journal")) <= set(figures)
    assert list(tmp_path.glob("journal-*")) == []  # nothing piles up


def test_a_row_that_comes_out_wrong_fails_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rows: int, n: int, seq: int) -> Any:
        return 1

    monkeypatch.setattr(journal, "_wrong", wrong)
    plan = Plan(folder=tmp_path, scale=0.01)
    try:
        with pytest.raises(CheckFailed, match="rows came out wrong"):
            prepare_bench("journal", plan)
    finally:
        plan.close()
