"""The benchmark runner: what it promises of figures, peers and checks, on cases that are not about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from hftlab.bench import run as bench_run
from hftlab.bench.run import BENCHES, Case, PeerProcess, Plan, Ratio, prepare_bench, run_bench, run_rounds, title
from hftlab.bench.show import table
from hftlab.core.errors import ConfigError, HftlabError


def test_a_figure_is_the_median_of_its_rounds_with_the_quartiles_beside_it() -> None:
    values = iter([5.0, 1.0, 4.0, 2.0, 3.0])
    told = run_rounds([Case("x_ns", lambda: next(values))], [], 5, lambda i, what: None)
    assert told["ours"] == {"x_ns": 3.0}
    assert told["spread"] == {"x_ns": [2.0, 4.0]}


def test_a_ratio_is_taken_within_each_round() -> None:
    ours, theirs = iter([1.0, 10.0, 100.0]), iter([2.0, 20.0, 300.0])
    cases = [Case("x_us", lambda: next(ours)), Case("x_us", lambda: next(theirs), peer="slow")]
    told = run_rounds(cases, [Ratio("x_vs_slow", "x_us", "slow_x_us")], 3, lambda i, what: None)
    assert told["ratio"] == {"x_vs_slow": 2.0}


def test_of_rates_the_higher_is_the_better() -> None:
    cases = [Case("rows_per_s", lambda: 30.0), Case("rows_per_s", lambda: 10.0, peer="slow")]
    told = run_rounds(cases, [Ratio("rows_vs_slow", "rows_per_s", "slow_rows_per_s")], 1, lambda i, what: None)
    assert told["ratio"] == {"rows_vs_slow": 3.0}


def test_cases_take_turns_and_the_first_one_changes() -> None:
    order: list[str] = []

    def case(name: str) -> Case:
        return Case(f"{name}_ns", lambda: float(order.append(name) or 1))

    run_rounds([case("a"), case("b"), case("c")], [], 3, lambda i, what: None)
    assert "".join(order) == "abcbcacab"


def test_a_long_case_runs_once() -> None:
    calls: list[int] = []
    run_rounds([Case("x_s", lambda: float(calls.append(1) or 1), once=True)], [], 4, lambda i, what: None)
    assert len(calls) == 1


def test_a_figure_without_a_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no unit"):
        Case("speed", lambda: 1.0)


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there are itch, json"):
        run_bench("nothing")


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_says_what_it_measures(name: str) -> None:
    assert 10 < len(title(name)) < 120


def peer_script(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "peers").mkdir()
    (folder / "peers" / "echo.py").write_text(text)
    monkeypatch.setattr(bench_run, "__file__", str(folder / "run.py"))


def test_a_peer_answers_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_script(
        tmp_path,
        monkeypatch,
        "import sys, json\nfor line in sys.stdin: print(json.dumps({'got': json.loads(line)}), flush=True)\n",
    )
    plan = Plan(tmp_path)
    peer = plan.peer("echo", ())
    assert peer.ask(op="round", n=3) == {"got": {"op": "round", "n": 3}}
    plan.close()
    assert peer._process.returncode == 0


def test_a_peer_that_dies_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_script(tmp_path, monkeypatch, "import sys\nsys.stdin.readline()\nraise SystemExit('out of luck')\n")
    peer = PeerProcess("echo", ())
    with pytest.raises(HftlabError, match="peer echo ended with code 1: out of luck"):
        peer.ask(op="round")
    peer.close()


def test_the_report_has_the_published_keys_and_reads_as_a_table(tmp_path: Path) -> None:
    report = run_bench("matching", scale=0.01, rounds=2)
    assert set(report) == {"schema", "bench", "ours", "spread", "peers", "ratio", "machine"}
    assert json.loads(json.dumps(report)) == report
    assert set(report["ours"]) == {"batch_ns", "call_us", "ruled_ns"}
    assert report["ratio"]["batch_vs_python"] > 1
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    console.print(table(report))
    shown = console.export_text()
    assert "batch_ns" in shown and "python_batch_ns" in shown and "40 ns" in shown


@pytest.mark.parametrize("name", [n for n in BENCHES if n not in ("matching", "fuzz", "import")])
def test_every_benchmark_checks_and_runs_small(name: str, tmp_path: Path) -> None:
    plan = Plan(tmp_path, scale=0.01)
    try:
        cases, ratios = prepare_bench(name, plan)
        told = run_rounds(cases, ratios, 1, lambda i, what: None)
    finally:
        plan.close()
    assert told["ours"]
    assert all(value >= 0 for value in told["ours"].values())
