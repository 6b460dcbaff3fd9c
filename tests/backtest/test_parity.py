"""Parity: a gap is called by the cause that made it, and its parts sum to it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from adversity.live import maker_spec, trader, venue

from hftlab.backtest.parity import CAUSES, Parity, _calibrated, _decimal, _orders, _paired, check_replay, parity
from hftlab.backtest.runner import backtest
from hftlab.cli import ExitCode
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import REPORT_PAYLOAD, BookState, ExecType, Flag, Kind, OrdStatus, RowArray, join_rows, new_rows
from hftlab.engine import Engine, RowBuffer, control_row, input_rows
from hftlab.journal import JournalWriter
from hftlab.sim.models import Fees, Latency, Queue
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, LIVE, POST_ONLY, Strategy, record, source_of

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits.from_decimals(
    BTC,
    {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "600", "orders_per_s": 50},
)
FREE = Fees(0, 0)
NEAR, FAR = Latency(1_000_000, 1_000_000), Latency(20_000_000, 20_000_000)


class Patient(Strategy):
    """Bids 400 USDT below the touch each half second and never reacts: one input can be changed without another."""

    params = record(below_ticks=40_000)
    state = record(bids=0)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if ctx.book_state(0) == LIVE:
            bid = ctx.best_bid(0) - params.below_ticks
            state.bids += int(ctx.submit(0, BUY, bid, 1000, GTC, POST_ONLY) > 0)
        ctx.set_timer(ctx.now_ns + 500_000_000)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.set_timer(ctx.now_ns + 500_000_000)


@pytest.fixture(scope="module")
def capture(shared_data: Path) -> Path:
    return shared_data / "binance" / "btcusdt_20240808.gz"


def maker() -> Maker:
    return Maker(size_lots=1000, cap_lots=10_000)


def session(data: Path | RowArray, strategy: Strategy | None = None, **how: Any) -> Any:
    how = {"instruments": [BTC], "limits": LIMITS, "fees": FREE, "latency": NEAR, **how}
    return backtest(strategy or maker(), data, **how)


@pytest.fixture(scope="module")
def slow(capture: Path) -> Any:
    return session(capture, latency=FAR)


@pytest.fixture(scope="module")
def patient(capture: Path) -> Any:
    return session(capture, Patient())


def adds_up(told: Parity) -> None:
    """The parts of the gap sum to it: exactly in total, and as floats order by order."""
    assert sum(told.by_cause.values()) == told.gap
    lines = told.orders
    assert np.allclose(sum(lines[cause].to_numpy() for cause in CAUSES), lines["gap"].to_numpy(), atol=1e-12)
    assert np.allclose((lines["session"] - lines["backtest"]).to_numpy(), lines["gap"].to_numpy(), atol=1e-12)
    assert abs(lines["gap"].sum() - float(told.gap)) < 1e-9


def only(told: Parity, cause: str) -> None:
    """The whole gap has one cause, and there is a gap."""
    adds_up(told)
    assert told.gap != 0
    assert {name: amount for name, amount in told.by_cause.items() if amount} == {cause: told.gap}
    assert all((told.orders[name] == 0).all() for name in CAUSES if name != cause)


def edited(run: Any, edit: Callable[[RowArray], RowArray], strategy: Strategy) -> RowArray:
    """Return the journal that the inputs of a run would have made with something in them changed."""
    engine, sink = Engine(run.definitions, strategy), RowBuffer()
    engine.process(edit(input_rows(run.rows)), sink)
    return sink.rows()


def order_ids(rows: RowArray) -> list[int]:
    return [int(a) for a in rows["a"][rows["kind"] == Kind.SUBMIT]]


def answered(rows: RowArray, cl_ord_id: int) -> int:
    """Return where the acknowledgement of an order lies."""
    acks = (rows["kind"] == Kind.REPORT) & (rows["a"] == cl_ord_id) & (rows["code"] & 255 == ExecType.ACK)
    return int(np.flatnonzero(acks)[0])


def fill(order: Any, at_ns: int) -> RowArray:
    """Return the report of an order's whole fill."""
    rows = new_rows(2)
    rows["kind"] = Kind.REPORT, Kind.CONT
    rows["span"] = 1, 0
    rows["ts_recv"][0], rows["ts_event"][0] = at_ns, at_ns
    rows["flags"][0] = BUY | int(Flag.MAKER)
    rows["code"][0] = ExecType.FILL | OrdStatus.FILLED << 8
    rows["px"][0], rows["qty"][0], rows["a"][0], rows["b"][0] = order["px"], order["qty"], order["a"], 10**9
    payload = rows.view(REPORT_PAYLOAD)[1]
    payload["cum_qty"], payload["fee_asset"] = order["qty"], 1
    return rows


def inserted(rows: RowArray, more: RowArray) -> RowArray:
    """Return `rows` with `more` at their place in time."""
    heads = np.flatnonzero(rows["kind"] != Kind.CONT)
    at = int(heads[np.searchsorted(rows["ts_recv"][heads], more["ts_recv"][0], side="right")])
    return join_rows([rows[:at], more, rows[at:]])


def written(folder: Path, definitions: Definitions, rows: RowArray) -> Path:
    """Return the folder of a session whose journal holds `rows`."""
    writer = JournalWriter(folder / "journal", definitions.to_dict())
    for part in np.array_split(np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 64), len(rows) // 1000 + 1):
        address, _ = writer.ensure(len(part))
        ctypes.memmove(address, part.ctypes.data, part.nbytes)
        writer.commit(len(part))
    writer.close()
    return folder


# --- known causes ----------------------------------------------------------------------------------------------------


def test_a_session_with_the_assumed_latency_queue_and_fees_has_no_gap(capture: Path) -> None:
    run = session(capture)
    told = parity(run.rows, run.definitions, strategy=maker(), latency=NEAR)
    adds_up(told)
    assert run.fills.height > 20
    assert told.replay.identical and told.gap == 0 and told.is_good
    assert told.unexplained_total == 0 == told.unexplained_by_order


def test_slower_answers_are_latency_and_nothing_else(slow: Any) -> None:
    told = parity(slow.rows, slow.definitions, strategy=maker(), latency=NEAR)
    only(told, "latency")
    assert told.is_good


def test_the_sessions_own_orders_calibrate_the_next_backtest(slow: Any) -> None:
    told = parity(slow.rows, slow.definitions, strategy=maker(), latency=NEAR, queue=Queue("power", 3.0))
    adds_up(told)
    assert told.queue_fit is not None and told.queue_fit.best == Queue(), "what the session was made with"
    assert told.fitted_queue == Queue() and told.fitted_pnl == told.session_pnl != told.backtest_pnl
    assert "fitted: queue risk averse" in str(told)
    assert any("the backtest was optimistic" in note for note in told.notes)


def test_a_model_that_nothing_speaks_against_is_kept(slow: Any) -> None:
    told = parity(slow.rows, slow.definitions, strategy=maker(), latency=NEAR)
    assert told.queue_fit is not None
    worst = told.queue_fit.table.row(-1, named=True)
    fit = replace(told.queue_fit, predicted=np.full_like(told.queue_fit.predicted, 0.5))
    assert worst["brier"] > 0 and _calibrated(told.queue_fit, Queue("power", worst["exponent"] or 1.0)) == Queue()
    assert _calibrated(fit, Queue("log")) == Queue("log"), "all are equally bad"
    assert _calibrated(fit, Queue("power", 9.9)) == fit.best, "one that was not compared has nothing for it"


def test_slower_answers_one_way_are_latency_where_the_venue_dates_them(capture: Path) -> None:
    run = session(capture, latency=Latency(30_000_000, 5_000_000))
    told = parity(run.rows, run.definitions, strategy=maker(), latency=NEAR)
    assert told.latency_fit is not None and told.latency_fit.dated
    only(told, "latency")


def test_other_fees_are_fee_and_nothing_else(capture: Path) -> None:
    run = session(capture, fees=Fees(maker_e8=12_345, taker_e8=54_321))
    told = parity(run.rows, run.definitions, strategy=maker(), latency=NEAR, fees=FREE)
    only(told, "fee")
    tiers = Fees(0, 0, tiers=[("100", 12_345, 54_321)])
    only(parity(run.rows, run.definitions, strategy=maker(), latency=NEAR, fees=tiers), "fee")
    charged = parity(run.rows, run.definitions, strategy=maker(), latency=NEAR)
    assert charged.gap == 0, "unless told otherwise the backtest is charged what the session was"


def test_fills_that_another_queue_gives_are_queue_and_nothing_else(capture: Path) -> None:
    run = session(capture, queue=Queue("power", 3.0))
    told = parity(run.rows, run.definitions, strategy=maker(), latency=NEAR)
    adds_up(told)
    sizes = {cause: float(told.orders[cause].abs().sum()) for cause in CAUSES}
    assert sizes["queue"] > 0.95 * sum(sizes.values()) and sizes["unexplained"] == 0
    assert "filled otherwise" in told.orders["how"].to_list()


def test_orders_that_only_the_venue_refuses_are_reject(capture: Path) -> None:
    free = session(capture)
    bound = int(np.median(free.fills["px_ticks"].to_numpy()))
    run = session(capture, instruments=[replace(BTC, max_px=bound)])
    assert ((run.rows["kind"] == Kind.REPORT) & (run.rows["code"] & 255 == ExecType.REJECT)).sum() > 5
    told = parity(run.rows, replace(run.definitions, instruments=(BTC,)), strategy=maker(), latency=NEAR)
    adds_up(told)
    sizes = {cause: float(told.orders[cause].abs().sum()) for cause in CAUSES}
    assert sizes["reject"] > 0.95 * sum(sizes.values()) and sizes["unexplained"] == 0


def blind_span(run: Any) -> tuple[Any, int]:
    """Return an order that rests in the middle of a run, and a time while it does."""
    submits = run.rows[run.rows["kind"] == Kind.SUBMIT]
    order = submits[len(submits) // 2]
    return order, int(order["ts_recv"]) + 700_000_000


def test_a_fill_while_the_book_was_stale_is_stale(patient: Any) -> None:
    order, at = blind_span(patient)

    def edit(rows: RowArray) -> RowArray:
        states = new_rows(2)
        states["kind"], states["flags"] = Kind.BOOK_STATE, int(Flag.LAST)
        states["code"], states["ts_recv"] = (BookState.STALE, BookState.LIVE), (at - 1000, at + 1000)
        for state in (states[:1], states[1:]):
            rows = inserted(rows, state)
        return inserted(rows, fill(order, at))

    rows = edited(patient, edit, Patient())
    only(parity(rows, patient.definitions, strategy=Patient(), latency=NEAR), "stale")


def test_a_fill_while_the_session_was_halted_is_stale(patient: Any) -> None:
    order, at = blind_span(patient)

    def edit(rows: RowArray) -> RowArray:
        for what, when in (("disconnect", at - 1000), ("connect", at + 1000)):
            rows = inserted(rows, control_row(what, when))
        return inserted(rows, fill(order, at))

    rows = edited(patient, edit, Patient())
    only(parity(rows, patient.definitions, strategy=Patient(), latency=NEAR), "stale")


def test_a_fill_while_the_feed_was_silent_is_stale(patient: Any) -> None:
    order, at = blind_span(patient)

    def edit(rows: RowArray) -> RowArray:
        market = np.isin(rows["kind"], (Kind.LEVEL, Kind.QUOTE, Kind.TRADE))
        silent = market & (np.abs(rows["ts_recv"] - at) < 1_500_000_000)
        return inserted(rows[~silent], fill(order, at))

    rows = edited(patient, edit, Patient())
    only(parity(rows, patient.definitions, strategy=Patient(), latency=NEAR), "stale")


def test_a_fill_that_no_market_row_shows_is_unexplained(patient: Any) -> None:
    order, at = blind_span(patient)
    rows = edited(patient, lambda rows: inserted(rows, fill(order, at)), Patient())
    told = parity(rows, patient.definitions, strategy=Patient(), latency=NEAR)
    only(told, "unexplained")
    assert told.replay.identical and not told.is_good and told.unexplained_total == 1
    assert "no trade or quote shows it" in told.orders.filter(pl.col("unexplained") != 0)["how"][0]


def test_the_same_fill_beside_a_trade_at_its_price_is_queue(patient: Any) -> None:
    order, at = blind_span(patient)

    def edit(rows: RowArray) -> RowArray:
        trade = new_rows(1)
        trade["kind"], trade["flags"], trade["ts_recv"] = Kind.TRADE, int(Flag.ASK | Flag.LAST), at - 1000
        trade["px"], trade["qty"], trade["a"] = order["px"], order["qty"], 77
        return inserted(inserted(rows, trade), fill(order, at))

    rows = edited(patient, edit, Patient())
    behind = parity(rows, patient.definitions, strategy=Patient(), latency=NEAR)
    only(behind, "queue") if behind.gap else adds_up(behind)


def test_an_order_that_the_replay_does_not_decide_is_unexplained(capture: Path) -> None:
    run = session(capture, Patient())
    told = parity(run.rows, run.definitions, strategy=Patient(below_ticks=0), latency=NEAR)
    adds_up(told)
    assert not told.replay.identical and not told.is_good
    assert told.by_cause["unexplained"] == told.gap != 0


def test_what_follows_a_halt_by_hand_is_stale(capture: Path) -> None:
    run = session(capture)

    def edit(rows: RowArray) -> RowArray:
        heads = np.flatnonzero(rows["kind"] != Kind.CONT)
        at = int(heads[len(heads) // 2])
        market = rows[at:][np.isin(rows["kind"][at:], (Kind.LEVEL, Kind.QUOTE, Kind.TRADE))]
        return join_rows([rows[:at], control_row("halt", int(rows["ts_recv"][at])), market])

    told = parity(edited(run, edit, maker()), run.definitions, strategy=maker(), latency=NEAR)
    only(told, "stale")
    assert "decided while the session could not act" in told.orders["how"].to_list()


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_names_the_first_row_that_differs_and_the_field(slow: Any) -> None:
    rows = slow.rows.copy()
    at = int(np.flatnonzero(rows["kind"] == Kind.SUBMIT)[3])
    rows["px"][at] += 7
    told = check_replay(rows, slow.definitions, maker())
    assert told.difference == at
    assert f"row {at:,}, SUBMIT" in told.reason
    assert f"px {rows['px'][at]} in the journal, {rows['px'][at] - 7} decided" in told.reason


def test_replay_names_a_decision_that_is_missing_and_one_that_is_new(slow: Any) -> None:
    at = int(np.flatnonzero(slow.rows["kind"] == Kind.SUBMIT)[3])
    without = join_rows([slow.rows[:at], slow.rows[at + 1 :]])
    assert "SUBMIT" in check_replay(without, slow.definitions, maker()).reason
    other = Maker(size_lots=2000, cap_lots=10_000)
    told = check_replay(slow.rows, slow.definitions, other)
    assert "qty 1000 in the journal, 2000 decided" in told.reason


# --- orders and lines ------------------------------------------------------------------------------------------------


def test_orders_sum_to_the_engines_profit_and_fees(slow: Any) -> None:
    told = parity(slow.rows, slow.definitions, strategy=maker(), latency=NEAR)
    units = slow.replica.pnl(0)
    assert told.session_pnl == BTC.money(units["total_x2"]) / 2 - units["fee_quote"] * Decimal("1e-8")


def test_a_fill_that_was_told_twice_counts_once(slow: Any) -> None:
    at = np.flatnonzero((slow.rows["kind"] == Kind.REPORT) & (slow.rows["code"] & 255 == ExecType.FILL))[0]
    twice = join_rows([slow.rows[: at + 2], slow.rows[at : at + 2], slow.rows[at + 2 :]])
    once = [order.fills for order in _orders(slow.rows)]
    assert [order.fills for order in _orders(twice)] == once


def test_orders_pair_by_time_first_and_then_by_nearness(slow: Any) -> None:
    first = _orders(slow.rows)
    assert all(one is other for one, other in _paired(first, first))
    later = _orders(slow.rows)
    for order in later:
        order.decided_ns += 1000
    pairs = _paired(first, later)
    assert len(pairs) == len(first)
    assert all(one.what == other.what for one, other in pairs if one is not None and other is not None)
    for order in later:
        order.decided_ns += 10**12
    assert not any(one is not None and other is not None for one, other in _paired(first, later))


def test_an_exact_fraction_becomes_the_decimal_it_is() -> None:
    assert _decimal(Fraction(1, 2) * Fraction(1, 10**11)) == Decimal("5E-12")


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_says_the_same_as_text_json_and_page(slow: Any, tmp_path: Path) -> None:
    told = parity(slow.rows, slow.definitions, strategy=maker(), latency=NEAR)
    text, plain = str(told), told.to_dict()
    assert f"{told.gap:+,.8f}" in text and plain["gap"] == str(told.gap)
    assert all(cause in text and cause in plain["causes"] for cause in CAUSES)
    assert told.causes["amount"].sum() == pytest.approx(float(told.gap))
    pytest.importorskip("panel")  # once loaded, its own scripts would come from elsewhere
    page = told.html(tmp_path / "parity.html").read_text()
    assert "From the backtest (" in page and "<script src" not in page, "it needs no network"


def test_a_session_without_any_order_says_so_and_has_no_gap(capture: Path) -> None:
    idle = Maker(size_lots=1000, cap_lots=10_000, edge_ticks=10**9)
    run = session(capture, idle)
    told = parity(run.rows, run.definitions, strategy=idle)
    assert told.gap == 0 and told.orders.height == 0 and told.is_good
    assert "no order of the session was answered" in str(told)
    told.plot()


def test_a_journal_is_read_from_its_folder_and_needs_its_strategys_source(slow: Any, tmp_path: Path) -> None:
    ref = StrategyRef("Maker", source_of(Maker), slow.definitions.strategy.params)
    whole = written(tmp_path / "whole", replace(slow.definitions, strategy=ref), slow.rows)
    assert parity(whole, latency=NEAR).gap == parity(whole / "journal", latency=NEAR).gap != 0
    bare = written(tmp_path / "bare", slow.definitions, slow.rows)
    with pytest.raises(ConfigError, match="does not hold the source of 'Maker'"):
        parity(bare)


def test_what_cannot_be_answered_is_refused_in_words(slow: Any) -> None:
    with pytest.raises(ConfigError, match=r"give result\.definitions"):
        parity(slow.rows)
    euro = replace(BTC, id=1, symbol="BTCEUR", quote="EUR")
    both = replace(slow.definitions, instruments=(BTC, euro), limits=(LIMITS, LIMITS))
    with pytest.raises(ConfigError, match="quoted in EUR, USDT"):
        parity(slow.rows, both, strategy=maker())


# --- the real thing --------------------------------------------------------------------------------------------------


def test_a_simulated_session_over_sockets_is_explained(home: Path) -> None:
    with (
        venue("--seed", "7", "--rate", "2000", "--maker-fee-e8", "10000") as running,
        trader(maker_spec(), running.endpoints) as live,
    ):
        live.fills(25)
        assert live.stop() == 0
    told = parity(live.folder)
    adds_up(told)
    assert told.replay.identical and told.gap != 0
    assert told.is_good, str(told)
    page, table = home / "parity.html", home / "orders.csv"
    said = run("parity", live.folder.name, "--html", str(page), "--orders", str(table), "--json")
    assert said.returncode == ExitCode.DONE, said.stderr
    assert json.loads(said.stdout) == {"schema": 1, **told.to_dict()}
    assert page.stat().st_size > 100_000 and pl.read_csv(table).height == told.orders.height
    other = run("parity", live.folder.name, "--latency", "30,40", "--queue", "power:2", "--fees", "0.5")
    assert "latency 30 ms to the exchange, 40 ms back; queue power 2; fees: maker 0.5 %, taker 0.5 %" in other.stdout


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from hftlab.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["none", "--latency", "fast"], ExitCode.CONFIG, "latency: 'fast'; expected milliseconds"),
        (["none", "--latency", "1,2,3"], ExitCode.CONFIG, "latency: '1,2,3'; expected milliseconds"),
        (["none", "--queue", "fifo"], ExitCode.CONFIG, "queue: 'fifo'; expected one of risk_averse"),
        (["none", "--queue", "power:x"], ExitCode.CONFIG, "queue: 'power:x'; expected a model"),
        (["none", "--fees", "0.00000001"], ExitCode.CONFIG, "fees: '0.00000001'; expected percent"),
        (["none", "--orders", "x.txt"], ExitCode.CONFIG, "expected a name that ends in .parquet or .csv"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_its_exit_code(
    home: Path, arguments: list[str], code: ExitCode, sentence: str
) -> None:
    done = run("parity", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_a_session_that_does_not_replay_fails_the_check(slow: Any, tmp_path: Path) -> None:
    ref = StrategyRef("Maker", source_of(Maker), {"size_lots": 2000, "cap_lots": 10_000})
    folder = written(tmp_path / "other", replace(slow.definitions, strategy=ref), slow.rows)
    done = run("parity", str(folder))
    assert done.returncode == ExitCode.CHECK_FAILED, done.stderr
    assert "qty 1000 in the journal, 2000 decided" in done.stdout
