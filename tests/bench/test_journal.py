"""The journal and pipeline benchmarks run on small input, check what they time, and answer in their units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hftlab.bench import journal, pipeline
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


def test_every_case_of_the_pipeline_benchmark_gives_a_figure(tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path, scale=0.02)
    try:
        cases, _ = prepare_bench("pipeline", plan)
        assert {case.key: case.run() > 0 for case in cases} == dict.fromkeys(
            ("rows_per_s", "durable_rows_per_s", "inline_rows_per_s"), True
        )
    finally:
        plan.close()
    assert set(goals("pipeline")) == {"rows_per_s"}


def test_books_that_differ_from_one_process_fail_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def books(engine: Any) -> list[list[list[int]]]:
        calls.append(1)
        return [[[len(calls)]]]

    monkeypatch.setattr(pipeline, "_books", books)
    with pytest.raises(CheckFailed, match="or the books differ"):
        prepare_bench("pipeline", Plan(folder=tmp_path, scale=0.02))
