"""A report stands alone, says what it assumes before what it found, and is written of anything."""

from __future__ import annotations

import dataclasses
import html
import re
from decimal import Decimal
from pathlib import Path

import pytest

from hftlab.analysis.execution import execution
from hftlab.analysis.frames import pnl_frame
from hftlab.analysis.kpi import kpi_frame
from hftlab.analysis.performance import performance
from hftlab.analysis.report import CAVEATS, Report, amount, report
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Kind, RowArray, join_rows, new_rows
from hftlab.engine import Fault, fault_rows
from hftlab.journal import run_hash
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategies.maker import Maker

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")


@pytest.fixture(scope="module")
def result() -> Result:
    limits = Limits.from_decimals(BTC, CAREFUL_LIMITS["BTCUSDT"])
    return backtest(Maker(), MatchingExchange([BTC], seed=3), instruments=[BTC], limits=limits, seconds=10)


@pytest.fixture(scope="module")
def page(result: Result) -> Report:
    return report(result.rows, result.definitions, title="A <b>title</b>", assumptions=result.assumptions)


def words(page: str) -> str:
    """Return what a reader sees: no scripts, styles or tags."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_a_report_names_no_other_place(page: Report) -> None:
    tags = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)  # a browser test sees what scripts do
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'\s>]+""", tags)
    assert not re.findall(r"@import|url\(", tags)
    assert len(page) < 5_000_000


def test_a_process_that_has_loaded_panel_writes_the_same_report(result: Result, page: Report) -> None:
    pytest.importorskip("panel", reason="needs panel, of the extra 'lab', not installed")
    again = report(result.rows, result.definitions, title="A <b>title</b>", assumptions=result.assumptions)
    assert "panel/bundled" not in again and abs(len(again) - len(page)) < 5_000


def test_assumptions_come_first_each_with_when_it_is_wrong(result: Result, page: Report) -> None:
    text = words(page)
    for sentence in result.assumptions.splitlines():
        assert sentence.strip() in text
    assert text.index(CAVEATS["latency"]) < text.index("Goals") < text.index("Pictures")


def test_every_goal_has_its_verdict_and_the_reason(result: Result, page: Report) -> None:
    text = words(page)
    for name, value, goal, verdict, why in kpi_frame(result.rows, result.definitions, "1s").rows():
        line = f"{name.replace('_', ' ')} {amount(value)} {html.escape(goal)}"
        assert re.search(rf"{re.escape(line)} . {verdict} {re.escape(html.escape(why))}", text), (line, text)


def test_a_simulation_without_assumptions_is_not_to_be_believed(result: Result) -> None:
    assert "do not believe its numbers yet" in words(report(result.rows, result.definitions))


def test_text_of_others_is_text_and_not_markup(page: Report) -> None:
    assert "<b>title</b>" not in page and "&lt;b&gt;title" in page


def test_the_identity_is_the_hash_given_or_that_of_the_rows(result: Result, page: Report) -> None:
    assert run_hash(result.rows) in page
    assert "0123abcd" in words(report(result.rows, result.definitions, run_hash="0123abcd"))


def test_what_was_told_of_the_run_stands_above_its_numbers(result: Result) -> None:
    text = words(report(result.rows, result.definitions, notes=["stopped before its end"]))
    assert text.index("stopped before its end") < text.index("Pictures")


def test_the_last_fills_are_those_of_the_journal(result: Result, page: Report) -> None:
    last = result.fills.row(-1, named=True)
    assert f"{last['side']} {last['px']:,.2f} {last['qty']:.5f} maker" in words(page)


def test_a_notebook_shows_the_same_page_in_a_frame(page: Report) -> None:
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count('"') == 4
    assert repr(page) == f"Report of {len(page):,} characters of HTML"


def test_a_report_is_written_where_it_is_asked_for(result: Result, tmp_path: Path) -> None:
    page = report(result.rows, result.definitions, tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page


def test_a_hole_in_the_data_is_said_above_the_numbers(result: Result) -> None:
    rows = result.rows.copy()
    heads = rows["kind"] != Kind.CONT
    late = heads & (rows["ts_recv"] > rows["ts_recv"][heads].min() + 5_000_000_000)
    rows["ts_recv"][late] += 60_000_000_000
    state = new_rows(1)
    state["kind"], state["code"], state["ts_recv"] = Kind.BOOK_STATE, BookState.STALE, rows["ts_recv"][heads].max()
    text = words(report(join_rows([rows, state]), result.definitions))
    assert "BTCUSDT: 1 silence longer than 5.0 s, 1 min 0 s in all" in text
    assert "the book was stale 1 time." in text


def test_a_fault_stands_in_the_report_with_its_traceback(result: Result) -> None:
    rows = join_rows([result.rows, fault_rows(Fault("on_book", "ZeroDivisionError: <by zero>"), 10**18)])
    assert "on_book ZeroDivisionError: &lt;by zero&gt;" in words(report(rows, result.definitions))


def test_what_was_earned_is_what_the_frames_say(result: Result, page: Report) -> None:
    line = pnl_frame(result.replica).row(0, named=True)
    cells = [amount(line[name]) for name in ("position", "realized", "unrealized", "fees", "net")]
    assert f"BTCUSDT {result.fills.height} {' '.join(cells)} USDT" in words(page)


def test_figures_are_those_of_performance_and_missing_ones_have_a_reason(result: Result, page: Report) -> None:
    told = performance(result.rows, result.definitions, "1s")
    text = words(page)
    assert f"net {amount(told.net)} USDT, after {amount(told.fees)} of fees" in text
    assert f"Sharpe ratio {amount(told.sharpe)} 95 %: {amount(told.sharpe_low)} to {amount(told.sharpe_high)}" in text
    before = words(report(result.rows[: int(result.fills["seq"][0])], result.definitions))
    assert "Sharpe ratio - " in before and "There was no fill" in before


def test_execution_is_told_with_its_markouts(result: Result, page: Report) -> None:
    told = execution(result.rows, result.definitions)
    text = words(page)
    assert f"slippage {amount(told.slippage_bps)} bp of notional, above 0 is cost" in text
    assert f"markout 1s {amount(told.markout_bps['1s'])} bp, above 0 is good for us" in text
    before = words(report(result.rows[: int(result.fills["seq"][0])], result.definitions))
    assert "There was no fill: slippage, shortfall, spreads and markouts are not defined." in before


def test_amounts_of_two_assets_are_not_added(result: Result) -> None:
    euro = dataclasses.replace(BTC, id=1, symbol="BTCEUR", quote="EUR")
    limits = (*result.definitions.limits, *result.definitions.limits)
    both = dataclasses.replace(result.definitions, instruments=(BTC, euro), limits=limits)
    assert "Quoted in EUR, USDT: amounts of several assets are not added" in words(report(result.rows, both))


@pytest.mark.parametrize("take", ["nothing", "one row", "no fill", "one fill"])
def test_a_report_is_written_of_anything(result: Result, take: str) -> None:
    first = int(result.fills["seq"][0])
    rows: dict[str, RowArray] = {
        "nothing": new_rows(0), "one row": result.rows[:1], "no fill": result.rows[:first],
        "one fill": result.rows[: first + 2],
    }  # fmt: skip
    text = words(report(rows[take], result.definitions, assumptions="latency 0"))
    assert ("No fill." in text) == (take != "one fill")
    assert "nan" not in text.lower().split() and "inf" not in text.lower().split()
