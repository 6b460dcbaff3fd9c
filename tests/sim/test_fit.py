"""Fitted latency and queue models: what was put into a simulation comes out; the exact queue is the book's."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from math import erf
from pathlib import Path

import numpy as np
import pytest

from hftlab.backtest.runner import Result, backtest
from hftlab.books import L3Book
from hftlab.convert.source import DbnSource, ItchSource, LobsterSource, Source
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Flag, Kind, OrdStatus, RowArray, Side, Tif, join_rows, new_rows
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.fit import HORIZONS_NS, QueueFit, fit_latency, fit_queue, queue_paths, score_queues
from hftlab.sim.models import Latency, Queue
from hftlab.strategies.maker import Maker

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits(max_order_qty=10**9, max_notional=10**15, max_position=10**9, collar_ticks=10**6)
DEFINITIONS = Definitions("t", "sim", (BTC,), (LIMITS,), StrategyRef("Maker", ""))
MS = 10**6
START = 10**18


def quoted(capture: Path, queue: Queue) -> Result:
    maker = Maker(size_lots=1000, cap_lots=10_000)
    latency = Latency.lognormal(2 * MS, 0.5)
    return backtest(maker, capture, instruments=[BTC], limits=LIMITS, queue=queue, latency=latency)


@pytest.fixture(scope="module")
def capture(shared_data: Path) -> Path:
    return shared_data / "binance" / "btcusdt_20240808.gz"


@pytest.fixture(scope="module")
def averse(capture: Path) -> Result:
    return quoted(capture, Queue())


@pytest.fixture(scope="module")
def proportional(capture: Path) -> Result:
    return quoted(capture, Queue("proportional"))


@pytest.fixture(scope="module")
def fit(proportional: Result) -> QueueFit:
    return fit_queue(proportional.rows, proportional.definitions)


# --- latency


def test_fitted_latency_is_what_the_backtest_put_in(averse: Result) -> None:
    fitted = fit_latency(averse.rows)
    assert fitted.dated and len(fitted.at_ns) > 1_000
    lines = {line["way"]: line for line in fitted.table.iter_rows(named=True)}
    for way in ("entry", "response"):  # a connection keeps its order, so it is a little slower than its samples
        assert lines[way]["median_low"] < lines[way]["median"] < lines[way]["median_high"]
        assert 1.9 * MS < lines[way]["median"] < 2.5 * MS
        assert 5 * MS < lines[way]["p99"] < 9 * MS
    assert np.array_equal(fitted.latency().entry_ns, fitted.entry_ns)
    assert np.array_equal(fitted.latency(by_time=True).at_ns, fitted.at_ns)


def test_round_trips_are_halved_where_the_venue_gives_no_times(averse: Result) -> None:
    rows = averse.rows.copy()
    rows["ts_event"][rows["kind"] == Kind.REPORT] = 0
    fitted = fit_latency(rows)
    assert not fitted.dated
    assert int(np.abs(fitted.entry_ns - fitted.response_ns).max()) <= 1
    assert np.array_equal(fitted.entry_ns + fitted.response_ns, _trips(averse.rows))


def _trips(rows: RowArray) -> np.ndarray:
    fitted = fit_latency(rows)
    return fitted.entry_ns + fitted.response_ns


def test_a_journal_without_answers_has_no_latency() -> None:
    with pytest.raises(ConfigError, match="no order of this journal was answered"):
        fit_latency(new_rows(3))


# --- queue


def test_true_model_foretells_every_fill_of_a_backtest(averse: Result) -> None:
    fitted = fit_queue(averse.rows, averse.definitions)
    assert fitted.best == Queue()
    assert fitted.table["brier"][0] == 0.0
    assert fitted.table["brier"][1] > 0.001
    assert fitted.warning(Queue()) is None
    assert "optimistic" in (fitted.warning(Queue("log")) or "")


def test_exponent_of_a_proportional_backtest_is_found_within_its_interval(fit: QueueFit) -> None:
    exponent, low, high = fit.exponent
    assert low <= 1.0 <= high and low <= exponent <= high and high < 4
    likely = fit.predicted[:, :, 1] >= 0.5  # queues[1] is proportional
    assert float((likely == (fit.filled > 0)).mean()) > 0.99
    assert fit.warning(Queue("proportional")) is None


def test_brier_score_is_the_weighted_mean_of_squared_errors(fit: QueueFit) -> None:
    line = fit.table.filter(fit.table["model"] == "log").row(0, named=True)
    errors = [
        (fit.weight[i, h], fit.predicted[i, h, 2] - fit.filled[i, h])
        for i in range(len(fit.filled)) for h in range(len(HORIZONS_NS))
    ]  # fmt: skip
    total = sum(w for w, _ in errors)
    assert line["brier"] == pytest.approx(sum(w * e * e for w, e in errors) / total)
    assert line["bias"] == pytest.approx(sum(w * e for w, e in errors) / total)
    assert line["brier_low"] <= line["brier"] <= line["brier_high"]


def test_reliability_rises_and_covers_every_prediction(fit: QueueFit) -> None:
    curve = fit.reliability(Queue("proportional"))
    assert curve["bin"].to_list() == sorted(curve["bin"].to_list())
    assert curve["realised"][0] < 0.05 and curve["realised"][-1] > 0.95
    assert ((curve["low"] <= curve["realised"] + 1e-9) & (curve["realised"] <= curve["high"] + 1e-9)).all()
    with pytest.raises(ConfigError, match="expected one of"):
        fit.reliability(Queue("power", 1.25))


def test_own_lots_in_the_market_rows_are_not_taken_for_others() -> None:
    exchange = MatchingExchange([BTC], seed=3)
    run = backtest(
        Maker(size_lots=20_000, cap_lots=2_000_000, skew_ticks=0), exchange, instruments=[BTC], limits=LIMITS,
        seconds=40,
    )  # fmt: skip
    told, untold = (fit_queue(run.rows, run.definitions, own_shown=shown) for shown in (True, False))
    assert told.filled.sum() > 100
    assert told.predicted[:, :, 0].sum() > untold.predicted[:, :, 0].sum()  # less behind, so more of a cancel was ahead
    assert told.table["brier"][0] < 0.02


def test_proportional_doubt_is_the_probability_that_the_one_cancel_was_ahead() -> None:
    rows = join_rows([
        market(Kind.LEVEL, 0, 100, 60), submit(1, 1, 100, 10), report(1, 2, ExecType.ACK),
        market(Kind.LEVEL, 3, 100, 100), market(Kind.LEVEL, 4, 100, 80),
        market(Kind.TRADE, 5, 100, 50, Side.SELL), market(Kind.LEVEL, 5, 100, 30),
    ])  # fmt: skip
    fitted = fit_queue(rows, DEFINITIONS, own_shown=False)
    # 60 ahead, 40 behind; of 20 canceled 12 were ahead, +- 20 sqrt(0.6 0.4); 50 lots trade
    mean, spread = 60 - 12 - 50, 20 * (0.6 * 0.4) ** 0.5
    share = 0.5 * (1 + erf(-(mean + 0.5) / spread / 2**0.5))
    assert fitted.predicted[0, :, 1].tolist() == pytest.approx([share] * len(HORIZONS_NS))
    assert fitted.predicted[0, :, 0].tolist() == [0.0] * len(HORIZONS_NS)  # risk averse: 60 ahead, 50 traded


def test_a_canceled_order_counts_up_to_its_cancel_only() -> None:
    rows = join_rows([
        market(Kind.LEVEL, 0, 100, 60),
        *(part for k in (1, 2, 3) for part in (submit(k, 1, 100, 10), report(k, 2, ExecType.ACK))),
        report(1, 502, ExecType.CANCELED), report(2, 702, ExecType.FILL), market(Kind.LEVEL, 60_000, 99, 5),
    ])  # fmt: skip
    fitted = fit_queue(rows, DEFINITIONS)
    assert fitted.filled.sum(0).tolist() == [0, 0, 1, 1, 1]  # within 0.1, 0.3, 1, 3, 10 s
    assert fitted.weight[0].tolist() == [1, 1, 0, 0, 0]
    assert fitted.weight[1].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1.5])  # two of three were left to be filled
    assert fitted.weight[2].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1.5])


def test_a_journal_without_passive_orders_or_market_says_so() -> None:
    with pytest.raises(ConfigError, match="no market rows"):
        fit_queue(new_rows(1), DEFINITIONS)
    with pytest.raises(ConfigError, match="no passive order"):
        fit_queue(market(Kind.LEVEL, 0, 100, 60), DEFINITIONS)
    rows = join_rows([market(Kind.LEVEL, 0, 100, 60), submit(1, 1, 100, 10), report(1, 2, ExecType.ACK)])
    rows["instrument"] = 9
    with pytest.raises(ConfigError, match="orders name instrument 9; expected below 1"):
        fit_queue(rows, DEFINITIONS)
    rows["instrument"][1:] = 0  # market rows of others are passed over
    assert fit_queue(rows, DEFINITIONS).predicted.sum() == 0
    with pytest.raises(ConfigError, match="horizons_ns"):
        fit_queue(market(Kind.LEVEL, 0, 100, 60), DEFINITIONS, horizons_ns=[3, 2])





def market(kind: Kind, ms: int, px: int, qty: int, side: Side = Side.BUY) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["px"], rows["qty"], rows["flags"] = kind, px, qty, side | Flag.LAST
    rows["ts_event"] = rows["ts_recv"] = START + ms * MS
    return rows


def submit(order: int, ms: int, px: int, qty: int) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["px"], rows["qty"], rows["flags"] = Kind.SUBMIT, px, qty, Side.BUY | Flag.POST_ONLY
    rows["code"], rows["a"], rows["ts_recv"] = Tif.GTC, order, START + ms * MS
    return rows


def report(order: int, ms: int, what: ExecType) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["code"], rows["a"] = Kind.REPORT, what | OrdStatus.NEW << 8, order
    rows["flags"], rows["qty"] = Side.BUY | Flag.MAKER, 10 if what == ExecType.FILL else 0
    rows["ts_event"] = rows["ts_recv"] = START + ms * MS
    return rows


# --- against the exact queue


def recording(name: str, folder: Path) -> RowArray:
    sources: dict[str, Source] = {
        "itch": ItchSource(folder / "itch" / "synthetic_8009.itch", date(2024, 1, 2)),
        "lobster": LobsterSource(folder / "l3" / "AAPL_2012-06-21_34200000_57600000_message_10.csv"),
        "cme": DbnSource(folder / "l3" / "orderbooks_mbo_2024-05-08T00-00-00_2024-05-08T00-00-02.dbn.zst"),
    }
    return join_rows([rows.copy() for rows in sources[name]])


@pytest.mark.parametrize("name", ["lobster", "cme"])
def test_exact_queue_is_that_of_the_book_by_order(shared_data: Path, name: str) -> None:
    """A real order that came right behind a virtual one has the same lots ahead for as long as it rests."""
    rows = recording(name, shared_data)
    paths = queue_paths(rows, every=1)
    joined = paths.filter(paths["order"].is_first_distinct())
    book, at, compared = L3Book(), 0, 0
    followers: dict[int, int] = {}
    for order, row, instrument, side, px in joined.select("order", "row", "instrument", "side", "px").iter_rows():
        behind = rows[(row + 1) % len(rows)]
        told = (int(behind["instrument"]), int(behind["flags"]) & 3, int(behind["px"]))
        if behind["kind"] == Kind.ADD and told == (instrument, side, px):
            followers[order] = int(behind["a"])
    for order, row, exact in paths.select("order", "row", "exact").iter_rows():
        book.apply(rows[at : row + 1])
        at = row + 1
        position = book.position(followers.get(order, 0))
        if position is not None:
            assert position.lots_ahead == exact
            compared += 1
    assert compared > 20


def test_risk_averse_is_never_too_early_and_nearest_on_recorded_books(shared_data: Path) -> None:
    for name, errors in (("lobster", (6.7, 24.9)), ("cme", (0.5, 4.8))):  # the table in the module's docstring
        table = score_queues(recording(name, shared_data))
        assert table["error"][:2].round(1).to_list() == list(errors)
        assert table["bias"][0] == table["error"][0] == min(table["error"])
        assert table["made_up"][0] == 0
        paths = queue_paths(recording(name, shared_data))
        assert (paths["risk averse"] >= paths["exact"]).all()
        assert (paths["proportional"] <= paths["risk averse"]).all()


def test_all_models_are_exact_where_orders_stand_alone(shared_data: Path) -> None:
    table = score_queues(recording("itch", shared_data))
    assert table["steps"][0] > 1_000 and table["ahead"][0] > 50
    assert table["error"].to_list() == [0.0] * 5
    assert table["late_s"].is_nan().all()


def by_order(kind: Kind, ref: int, ms: int, qty: int = 0) -> RowArray:
    rows = market(kind, ms, 100, qty)
    rows["a"] = ref
    return rows


def test_scores_of_a_queue_counted_by_hand() -> None:
    rows = join_rows([
        by_order(Kind.ADD, 1, 0, 30),  # virtual order 0 joins behind 30
        by_order(Kind.ADD, 2, 1, 30),
        by_order(Kind.DELETE, 2, 2),  # behind it: proportional takes 15 of them to have been ahead
        by_order(Kind.EXECUTE, 1, 3, 20),  # proportional: 15 ahead, 20 trade, so a fill 1 ms too early
        by_order(Kind.ADD, 3, 4, 5),
        by_order(Kind.EXECUTE, 1, 5, 10),
        by_order(Kind.EXECUTE, 3, 6, 5),  # what came later trades: now it is filled really
    ])  # fmt: skip
    table = score_queues(rows, every=100, queues=[Queue(), Queue("proportional")])
    assert table["steps"].to_list() == [0, 0]  # nobody joined
    rows["flags"][1:] &= ~np.uint16(Flag.LAST)  # one message, so one virtual order
    averse, proportional = score_queues(rows, every=1, queues=[Queue(), Queue("proportional")]).iter_rows(named=True)
    assert (averse["steps"], averse["error"], averse["fills"], averse["late_s"]) == (2, 0.0, 1, 0.0)
    assert proportional["bias"] == pytest.approx(-(15 + 10) / 2)
    assert proportional["late_s"] == pytest.approx(-0.003) and proportional["fill_error_s"] == pytest.approx(0.003)


def test_rows_without_orders_cannot_be_scored() -> None:
    with pytest.raises(ConfigError, match="no ADD row"):
        score_queues(market(Kind.LEVEL, 0, 100, 1))
    with pytest.raises(ConfigError, match="every is 0"):
        queue_paths(by_order(Kind.ADD, 1, 0, 1), every=0)
