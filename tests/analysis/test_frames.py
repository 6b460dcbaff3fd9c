"""Frames against the rows they are made of, read whole, in pieces, with doubles and strangers among them."""

from __future__ import annotations

import itertools
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from hftlab.analysis.frames import OrderLog, book_frame, pnl_frame, tick_to_order_ns
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Kind, join_rows, new_rows
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.strategies.maker import Maker

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")


@pytest.fixture(scope="module")
def result() -> Result:
    limits = Limits.from_decimals(BTC, CAREFUL_LIMITS["BTCUSDT"])
    market = MatchingExchange([BTC], seed=3, fees=Fees(maker_e8=10_000, taker_e8=20_000))
    return backtest(Maker(edge_ticks=0), market, instruments=[BTC], limits=limits, seconds=20)


def test_every_fill_is_one_line_with_the_numbers_of_its_report(result: Result) -> None:
    rows = result.rows
    at = np.flatnonzero((rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.FILL))
    fills = result.fills
    assert len(fills) == result.counters["fills"] > 10
    assert fills["seq"].to_list() == at.tolist()
    assert (fills["px_ticks"].to_numpy() == rows["px"][at]).all() and (
        fills["qty_lots"].to_numpy() == rows["qty"][at]
    ).all()
    assert ((fills["px"] - fills["px_ticks"] * 0.01).abs() < 1e-9).all()
    assert set(fills["fee_asset"]) == {"USDT"}
    assert fills["fee"].sum() == pytest.approx(pnl_frame(result.replica)["fees"].item(), abs=1e-9)


def test_orders_are_those_that_left_risk_and_their_fills_add_up(result: Result) -> None:
    orders = result.orders
    assert len(orders) == result.counters["submits"] + result.counters["replaces"]
    assert orders["cum_qty"].sum() == pytest.approx(result.fills["qty"].sum())
    filled = orders.filter(pl.col("status") == "filled")
    assert len(filled) > 0 and ((filled["qty"] - filled["cum_qty"]).abs() < 1e-12).all()
    assert set(orders["status"]) <= {"filled", "canceled", "rejected", "expired"}, "the run has ended"


def test_a_log_fed_in_pieces_equals_one_fed_at_once(result: Result) -> None:
    log, heads = OrderLog(), np.flatnonzero(result.rows["kind"] != Kind.CONT)
    edges = [0, *heads[97::97].tolist(), len(result.rows)]
    for begin, end in itertools.pairwise(edges):
        log.add(result.rows[begin:end], begin)
    assert log.fills(result.definitions).equals(result.fills)
    assert log.orders(result.replica).equals(result.orders)


def test_a_fill_told_twice_and_a_strangers_fill_are_no_lines(result: Result) -> None:
    rows = result.rows
    at = int(np.flatnonzero((rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.FILL))[0])
    again = rows[at : at + 1 + int(rows["span"][at])]
    stranger = again.copy()
    stranger["a"][0] = 10**9
    log = OrderLog(join_rows([rows, again, stranger]))
    assert log.fills(result.definitions).equals(result.fills)


def test_nothing_is_frames_without_lines_and_with_all_columns(result: Result) -> None:
    empty = OrderLog()
    assert empty.fills(result.definitions).schema == result.fills.schema
    assert empty.orders(result.replica).schema == result.orders.schema
    assert len(empty.fills(result.definitions)) == len(empty.orders(result.replica)) == 0


def test_the_book_is_the_replicas_levels_in_both_units(result: Result) -> None:
    book = book_frame(result.replica, depth=3)
    bids, asks = result.replica.levels(0, 3)
    assert book.select("px_ticks", "qty_lots").rows() == [tuple(one) for one in [*bids.tolist(), *asks.tolist()]]
    assert book["side"].to_list() == ["bid"] * 3 + ["ask"] * 3 and book["level"].to_list() == [0, 1, 2] * 2
    assert ((book["px"] - book["px_ticks"] * 0.01).abs() < 1e-9).all()


def test_tick_to_order_is_the_first_send_of_each_input_that_led_to_an_order() -> None:
    rows = new_rows(5)
    rows["kind"] = [Kind.SUBMIT, Kind.SUBMIT, Kind.SENT, Kind.SENT, Kind.SENT]
    rows["a"], rows["ts_recv"], rows["ts_event"] = [1, 2, 2, 1, 9], [100, 100, 0, 0, 0], [0, 0, 140, 130, 500]
    assert tick_to_order_ns(rows).tolist() == [30]
