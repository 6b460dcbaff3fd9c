"""The live engine under virtual time: recorded days and the synthetic exchange."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftlab.backtest.data import capture_rows, journal_market
from hftlab.backtest.runner import VirtualSession, backtest
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Kind, RowArray
from hftlab.engine import Engine, RowBuffer, replay
from hftlab.journal import read_all, verify
from hftlab.sim.exchange import MatchingExchange, RecordedExchange
from hftlab.sim.models import Fees, Latency
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, LIVE, SELL, Strategy, record
from hftlab.venues.binance.capture import read_capture, read_snapshots
from hftlab.venues.binance.connection import MarketConnection
from hftlab.venues.binance.messages import instruments_from_exchange_info

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits.from_decimals(
    BTC, {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200", "orders_per_s": 50}
)


def definitions(*instruments: Instrument) -> Definitions:
    limits = tuple(
        Limits(max_order_qty=10**9, max_notional=10**15, max_position=10**9, collar_ticks=10**6) for _ in instruments
    )
    return Definitions("t", "backtest", instruments, limits, StrategyRef("Maker", ""))


@pytest.fixture(scope="module")
def capture(shared_data: Path) -> Path:
    return shared_data / "binance" / "btcusdt_20240808.gz"


def tops_agree(engine: Engine, messages: Iterator[tuple[int, RowArray]], process: Any) -> tuple[int, int]:
    """Process a market and count where the book's top equals the recorded ticker of the same update id."""
    tickers: dict[tuple[int, int], tuple[int, ...]] = {}
    tops: dict[tuple[int, int], tuple[int, ...]] = {}
    for now, rows in messages:
        process(now, rows)
        last = rows[-1]
        key = (int(last["instrument"]), int(last["a"]))
        if last["kind"] == Kind.QUOTE:
            tickers[key] = (*rows["px"].tolist(), *rows["qty"].tolist())
        elif last["kind"] in (Kind.LEVEL, Kind.BOOK_STATE) and engine.instruments[key[0]]["book_state"] == LIVE:
            seq = int(engine.instruments[key[0]]["book_seq"])
            bids, asks = engine.levels(key[0], 1)
            tops[key[0], seq] = (int(bids[0, 0]), int(asks[0, 0]), int(bids[0, 1]), int(asks[0, 1]))
    both = tickers.keys() & tops.keys()
    return sum(tickers[key] == tops[key] for key in both), len(both)


def test_book_equals_the_recorded_ticker_564_of_564_times_with_the_maker_on(capture: Path) -> None:
    made = Definitions("t", "backtest", (BTC,), (LIMITS,), StrategyRef("Maker", ""))
    engine = Engine(made, Maker(size_lots=1000, cap_lots=10_000))
    session = VirtualSession(engine, RecordedExchange([BTC]), RowBuffer())
    connection = MarketConnection([BTC])
    started = False

    def process(now: int, rows: RowArray) -> None:
        nonlocal started
        if not started:
            session.start(now)
            started = True
        session.on_market(now, rows)

    equal, compared = tops_agree(session.engine, capture_rows(read_capture(capture), connection), process)
    assert (equal, compared) == (564, 564)
    session.stop()
    counters = session.engine.counters()
    assert counters["submits"] > 0 and counters["fills"] > 0
    assert counters["book_gaps"] == 0 == counters["illegal_reports"] == counters["open_orders"]
    assert not any(v for k, v in connection.decoder.counts.items() if k != "ignored"), connection.decoder.counts


def test_recorded_day_gives_the_same_bytes_twice_and_in_both_forms(capture: Path) -> None:
    def run(compiled: bool) -> Any:
        maker = Maker(size_lots=1000, cap_lots=10_000, compiled=compiled)
        return backtest(maker, capture, instruments=[BTC], limits=LIMITS)

    first, second, plain = run(True), run(True), run(False)
    assert first.rows.tobytes() == second.rows.tobytes() == plain.rows.tobytes()
    assert first.fills.height > 0 and first.orders.height > first.fills.height / 2
    assert first.replay(Maker(size_lots=1000, cap_lots=10_000, compiled=False)).identical


@pytest.mark.parametrize(("venue", "agreeing"), [("BINANCE", 26), ("BINANCE_US", 57)])
def test_several_symbols_go_through_one_engine(shared_data: Path, venue: str, agreeing: int) -> None:
    folder = shared_data / "binance"
    snapshots = {symbol: payload for _, symbol, payload in read_snapshots(folder / f"{venue}.http.0.0")}
    info = (folder / f"{venue}.0").read_bytes().split(b": ", 1)[1]
    instruments = instruments_from_exchange_info(info.splitlines()[0], list(snapshots), books=snapshots)
    engine, sink = Engine(definitions(*instruments)), RowBuffer()
    messages = capture_rows(
        read_capture(folder / f"{venue}.ws.1.0"), MarketConnection(instruments), snapshots=snapshots
    )
    assert tops_agree(engine, messages, lambda now, rows: engine.process(rows, sink)) == (agreeing, agreeing)
    assert {BookState(int(s)) for s in engine.instruments["book_state"]} == {BookState.LIVE}


def anonymous_kb() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="RssAnon is read from Linux's /proc")
def test_ten_sessions_of_a_recorded_day_leave_no_memory_behind(capture: Path, tmp_path: Path) -> None:
    frames = list(read_capture(capture))

    def session(k: int) -> None:
        folder = tmp_path / str(k)
        connection = MarketConnection([BTC])
        result = backtest(
            Maker(size_lots=1000, cap_lots=10_000), capture_rows(frames, connection),
            instruments=[BTC], limits=LIMITS, folder=folder,
        )  # fmt: skip
        assert result.counters["fills"] > 0
        del result
        gc.collect()

    for k in range(4):
        session(k)
    before = anonymous_kb()
    for k in range(4, 14):
        session(k)
    grown = anonymous_kb() - before
    assert grown < 1024, f"grew by {grown} kB"


class Taker(Strategy):
    """Buys and sells one lot across the spread in turn: every order is a taker."""

    state = record(side=BUY, order=0)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        px = ctx.best_ask(0) + 5 if state.side == BUY else ctx.best_bid(0) - 5
        if ctx.submit(0, state.side, px, 1000, GTC) > 0:
            state.side = SELL if state.side == BUY else BUY
        ctx.set_timer(ctx.now_ns + 100_000_000)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.set_timer(ctx.now_ns + 100_000_000)


def synthetic(strategy: Strategy, seconds: float = 20, fees: Fees | None = None, **how: Any) -> Any:
    exchange = MatchingExchange([BTC], seed=5, fees=fees or Fees(0, 0))
    return backtest(strategy, exchange, instruments=[BTC], limits=LIMITS, seconds=seconds, **how)


def test_timers_wake_a_strategy_at_the_times_it_asked_for() -> None:
    result = synthetic(Taker())
    timers = result.rows[result.rows["kind"] == Kind.TIMER]
    assert (timers["ts_recv"] == timers["px"]).all()
    assert 195 <= len(timers) <= 200


def test_a_taker_pays_the_spread_and_its_fees_exactly() -> None:
    result = synthetic(Taker(), fees=Fees(maker_e8=0, taker_e8=100_000))
    fills, line = result.fills, result.pnl.row(0, named=True)
    assert fills.height > 100 and not fills["maker"].any()
    notional = int((fills["px_ticks"].to_numpy() * fills["qty_lots"].to_numpy()).sum())
    rounding = fills.height * 1e-8
    assert abs(line["fees"] - float(BTC.money(notional)) * 0.001) <= rounding
    assert line["realized"] + line["unrealized"] < 0


def test_fees_and_profit_add_up_to_cash() -> None:
    result = synthetic(Maker(size_lots=1000, cap_lots=10_000))
    fills = result.fills
    signed = np.where(fills["side"].to_numpy() == "buy", 1, -1) * fills["qty_lots"].to_numpy()
    cash = -int((signed * fills["px_ticks"].to_numpy()).sum())
    told = result.replica.pnl(0)
    bid, _, ask, _ = result.replica.touch(0)
    assert told["position"] == signed.sum()
    assert told["total_x2"] == 2 * cash + int(signed.sum()) * (bid + ask)


def test_latency_changes_what_a_strategy_gets() -> None:
    near = synthetic(Maker(size_lots=1000, cap_lots=10_000), latency=Latency(0, 0))
    far = synthetic(Maker(size_lots=1000, cap_lots=10_000), latency=Latency(50_000_000, 50_000_000))
    assert near.run_hash != far.run_hash
    sent = {int(r["a"]): int(r["ts_recv"]) for r in far.rows[far.rows["kind"] == Kind.SUBMIT]}
    acks = far.rows[(far.rows["kind"] == Kind.REPORT) & (far.rows["code"] & 255 == 1)]
    waits = [int(r["ts_recv"]) - sent[int(r["a"])] for r in acks if int(r["a"]) in sent]
    assert min(waits) == max(waits) == 100_000_000


def test_silence_is_visible_as_clock_rows() -> None:
    exchange = RecordedExchange([BTC])
    session = VirtualSession(Engine(definitions(BTC), Maker()), exchange, sink := RowBuffer())
    session.start(10**18)
    session._settle(10**18 + 1_000_000_000)
    clocks = sink.rows()[1:]
    assert (clocks["kind"] == Kind.CLOCK).all() and len(clocks) == 10


def test_a_journal_on_disk_is_the_run_and_can_be_the_next_market(tmp_path: Path) -> None:
    maker = Maker(size_lots=1000, cap_lots=10_000)
    result = synthetic(maker, folder=tmp_path / "journal")
    assert read_all(tmp_path / "journal").tobytes() == result.rows.tobytes()
    assert verify(tmp_path / "journal").ok
    again = backtest(maker, tmp_path / "journal", instruments=[BTC], limits=LIMITS, fees=Fees(0, 0))
    assert again.fills.height > 0 and again.pnl["fees"].sum() == 0
    market = [rows for _, rows in journal_market(result.rows)]
    assert sum(map(len, market)) == int(np.isin(again.rows["kind"], [20, 21, 22, 23, 25]).sum())
    assert again.orders.height > 0
    assert replay(again.rows, again.definitions, maker).identical


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a recording nor a journal"):
        backtest(Maker(), tmp_path / "absent.gz", instruments=[BTC], limits=LIMITS)
    with pytest.raises(ConfigError, match="seconds: missing"):
        backtest(Maker(), MatchingExchange([BTC]), instruments=[BTC], limits=LIMITS)


def test_a_result_is_drawn_reported_and_kept(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    result = synthetic(Maker(size_lots=1000, cap_lots=10_000), seconds=5)
    assert result.plot() is not None
    page = result.report(tmp_path / "run.html", title="a title")
    assert (tmp_path / "run.html").read_text() == page
    assert "a title" in page and result.run_hash in page and "latency 1 ms to the exchange" in page
    run_id = result.to_mlflow("lab", mlruns=tmp_path / "mlruns")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    kept = client.get_run(run_id)
    assert kept.data.params["size_lots"] == "1000" and kept.data.tags["run_hash"] == result.run_hash
    assert kept.data.metrics["net"] == pytest.approx(float(result.pnl["net"].sum()))
    assert {file.path for file in client.list_artifacts(run_id)} == {"report.html", "summary.txt"}
    assert kept.info.status == "FINISHED"


@pytest.mark.parametrize("recorded", [True, False])
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(size_lots=1000, cap_lots=10_000)
    monkeypatch.setattr("hftlab.backtest.runner._CHUNK_ROWS", 500)
    whole = synthetic(maker, seconds=4)
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"instruments": [BTC], "limits": LIMITS, "folder": tmp_path / "j", "progress": interrupt}
    if recorded:
        result = backtest(maker, whole.rows, **how)
    else:
        result = backtest(maker, MatchingExchange([BTC], seed=5, fees=Fees(0, 0)), seconds=4, **how)
    assert result.interrupted and "stopped before its end" in result.summary()
    assert 0 < told[0][0] < told[1][0] < told[2][0] < told[2][1]
    assert 0 < len(result.rows) < len(whole.rows)
    assert read_all(tmp_path / "j").tobytes() == result.rows.tobytes() and verify(tmp_path / "j").ok
    assert result.counters["open_orders"] == 0 and result.replay(maker).identical
