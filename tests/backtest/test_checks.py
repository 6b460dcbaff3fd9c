"""Honesty checks: planted cheats are found and named, honest strategies pass."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from hftlab.backtest.checks import Recipe, Sensitivity, determinism, lookahead, sensitivity
from hftlab.backtest.runner import backtest
from hftlab.cli import app
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError, StrategyError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, RowArray
from hftlab.journal import read_all
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees, Queue
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, IOC, SELL, PythonStrategy, Strategy, record

BTC = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits(
    max_order_qty=10**5, max_notional=10**15, max_position=10**8, collar_ticks=10**6, orders_per_s=10**6,
    max_open_orders=4096,
)  # fmt: skip
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def market() -> RowArray:
    """Twenty seconds of synthetic flow, as a recording."""
    exchange = MatchingExchange([BTC], seed=5, fees=Fees(0, 0))
    return backtest(Maker(), exchange, instruments=[BTC], limits=LIMITS, seconds=20).rows


def trade_prices(data: RowArray) -> np.ndarray[Any, Any]:
    return data["px"][data["kind"] == Kind.TRADE]


class Oracle(PythonStrategy):
    """Buys ahead of each trade that the next trade is above: an array of the future."""

    def __init__(self, data: RowArray) -> None:
        super().__init__()
        prices = trade_prices(data)
        self.next_px = np.append(prices[1:], prices[-1:])
        self.n = 0
        self.label = "oracle"

    def on_trade(self, ctx: Any, event: Any) -> None:
        self.n += 1
        if self.n <= len(self.next_px) and self.next_px[self.n - 1] > event.px:
            ctx.submit(0, BUY, ctx.best_ask(0), 10, IOC)


class Centred(Strategy):
    """Sells above a moving average; whether that is centred or trailing is its maker's choice. Compiled."""

    params = record(fair=[0] * 4000)
    state = record(n=0)

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if state.n < 4000 and event.px > params.fair[state.n]:
            ctx.submit(0, SELL, ctx.best_bid(0), 10, IOC)
        state.n += 1


def average(data: RowArray, centred: bool) -> Centred:
    prices = trade_prices(data)[:4000]
    fair = [0] * 4000
    for i in range(len(prices)):
        window = prices[max(0, i - 4) : i + 5] if centred else prices[max(0, i - 8) : i + 1]
        fair[i] = int(window.sum()) // len(window)
    return Centred(fair=fair)


def centred_average(data: RowArray) -> Centred:
    return average(data, True)


def trailing_average(data: RowArray) -> Centred:
    return average(data, False)


class Scaled(PythonStrategy):
    """Notes every book's bid against the day's highest trade: a scale nobody knows before the day is over."""

    def __init__(self, data: RowArray) -> None:
        super().__init__()
        self.top = int(trade_prices(data).max())
        self.base = 7
        self.n = 0

    def on_book(self, ctx: Any, event: Any) -> None:
        self.n += 1
        if self.n % 50 == 0:
            ctx.note(1, ctx.best_bid(0) * 1000 // self.top, self.base)


SCALE = 1


class ByGlobal(PythonStrategy):
    """Reads a global that is filled from the whole day."""

    def on_trade(self, ctx: Any, event: Any) -> None:
        ctx.note(2, event.px + SCALE)


def by_global(data: RowArray) -> ByGlobal:
    global SCALE
    SCALE = int(data["qty"][data["kind"] == Kind.TRADE].sum())
    return ByGlobal()


@pytest.mark.parametrize(
    ("make", "callback", "feature"),
    [
        (Oracle, "on_trade", "self.next_px"),
        (centred_average, "on_trade", "params.fair"),
        (Scaled, "on_book", "self.top"),
        (by_global, "on_trade", "global SCALE"),
    ],
)
def test_a_planted_cheat_is_found_with_its_callback_and_feature(
    market: RowArray, make: Any, callback: str, feature: str
) -> None:
    told = lookahead(make, market, instruments=[BTC], limits=LIMITS, cuts=6)
    assert not told.ok and told.decisions > 0
    assert told.callbacks == [callback]
    assert told.features == [feature]
    assert callback in str(told) and feature in str(told)
    assert all(finding.ahead_ns >= 0 for finding in told.findings)


def test_an_honest_strategy_with_precomputed_values_passes(market: RowArray) -> None:
    told = lookahead(trailing_average, market, instruments=[BTC], limits=LIMITS, cuts=6)
    assert told.ok and told.decisions > 100 and told.cuts == 6, str(told)
    assert "no decision changed" in str(told)


def test_a_check_that_finds_nothing_says_what_it_did_not_look_into(market: RowArray) -> None:
    alone = lookahead(Maker(), market, instruments=[BTC], limits=LIMITS)
    assert alone.ok and not alone.takes_data and "files that it reads" in str(alone)
    idle = lookahead(lambda data: Idle(), market, instruments=[BTC], limits=LIMITS, cuts=2)
    assert "nothing to check" in str(idle)
    with pytest.raises(ConfigError, match="cuts: 0"):
        lookahead(Maker(), market, instruments=[BTC], limits=LIMITS, cuts=0)
    with pytest.raises(ConfigError, match="no market row"):
        lookahead(Maker(), market[:0], instruments=[BTC], limits=LIMITS)


class Idle(PythonStrategy):
    """Does nothing."""

    def on_book(self, ctx: Any, event: Any) -> None:
        """Nothing."""


class Shuffled(PythonStrategy):
    """Notes the order of a set of words, which is the hash seed's."""

    def on_trade(self, ctx: Any, event: Any) -> None:
        for word in {"bid", "ask", "mid", "last", "open", "close"}:
            ctx.note(len(word), ord(word[0]))


class Chancy(PythonStrategy):
    """Takes chance from elsewhere than ``ctx.random()``."""

    def on_book(self, ctx: Any, event: Any) -> None:
        if random.random() < 0.5:
            ctx.note(1)


class Timely(PythonStrategy):
    """Reads the clock of the machine."""

    def on_start(self, ctx: Any, event: Any) -> None:
        import time

        ctx.note(1, time.time_ns())


@pytest.mark.parametrize(("cls", "callback"), [(Shuffled, "on_trade"), (Chancy, "on_book"), (Timely, "on_start")])
def test_what_is_not_deterministic_is_found_with_its_callback(market: RowArray, cls: Any, callback: str) -> None:
    told = determinism(cls(), market[:2000], instruments=[BTC], limits=LIMITS)
    assert not told.ok and told.hashes[0] != told.hashes[1]
    assert told.callback == callback and f"made by {callback}" in str(told)


def test_a_deterministic_strategy_leaves_the_same_bytes_in_two_processes(market: RowArray) -> None:
    told = determinism(Maker(size_lots=1000, cap_lots=10_000), market[:4000], instruments=[BTC], limits=LIMITS)
    assert told.ok and told.rows > 4000 and told.hashes[0] == told.hashes[1]
    assert "the same bytes" in str(told)


def test_a_process_that_fails_says_why(market: RowArray) -> None:
    source = "from hftlab.strategy import PythonStrategy\nclass S(PythonStrategy):\n    def __init__(self): 1 / 0\n"
    with pytest.raises(StrategyError, match="ZeroDivisionError"):
        determinism(Recipe(source, "S"), market[:100], instruments=[BTC], limits=LIMITS)


def test_sensitivity_is_what_single_backtests_say(market: RowArray) -> None:
    maker = Maker(size_lots=1000, cap_lots=10_000)
    scales = (Fees(0, 0), Fees(10_000, 50_000))
    told = sensitivity(
        maker, market, instruments=[BTC], limits=LIMITS, latencies_ns=(0, 5_000_000), queues=(Queue(), Queue("log")),
        fees=scales,
    )  # fmt: skip
    assert told.frame.height == 8 and told.frame["fills"].min() > 0
    from hftlab.sim.models import Latency

    for latency in (0, 5_000_000):
        one = backtest(
            maker, market, instruments=[BTC], limits=LIMITS, latency=Latency(latency, latency), queue=Queue("log"),
            fees=scales[1],
        )  # fmt: skip
        line = told.frame.filter(
            (pl.col("latency_ns") == latency) & (pl.col("queue") == "log") & (pl.col("fees") == str(scales[1]))
        )
        assert line["net"].item() == pytest.approx(float(one.pnl["net"].sum()), abs=1e-9)
        assert line["fills"].item() == one.fills.height
    assert told.plot() is not None
    with pytest.raises(ConfigError, match="latencies_ns: empty"):
        sensitivity(maker, market, instruments=[BTC], limits=LIMITS, latencies_ns=())


def grid_of(net: list[float]) -> Sensitivity:
    latencies = [0, 100_000, 300_000, 1_000_000][: len(net)]
    return Sensitivity(pl.DataFrame({"latency_ns": latencies, "queue": "log", "fees": "f", "net": net}))


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        ([3.0, 1.0, -1.0, -2.0], "this P&L lives between 0 and 200 us"),
        ([-1.0, -1.0, -1.0, -1.0], "this P&L is at no latency above 0"),
        ([1.0, 1.0, 1.0, 1.0], "this P&L lives between 0 and 1 ms, the longest tried"),
        ([1.0, -1.0, 1.0, 1.0], "this P&L lives between 0 and 50 us and between 200 us and 1 ms, the longest tried"),
        ([0.0], "this P&L is at no latency above 0"),
    ],
)
def test_a_sentence_says_where_the_profit_lives(net: list[float], sentence: str) -> None:
    assert str(grid_of(net)) == f"log, f: {sentence}"


CHEAT = '''
from hftlab.core.rows import Kind
from hftlab.strategy import PythonStrategy

class Cheat(PythonStrategy):
    def __init__(self, data, every=1):
        self.total = int(data["qty"].sum())
        self.every, self.n = every, 0

    def on_trade(self, ctx, event):
        self.n += 1
        if self.n % self.every == 0:
            ctx.note(1, self.total)
'''


@pytest.fixture
def files(market: RowArray, tmp_path: Path) -> tuple[str, str]:
    """A cheat's source and a journal, as the shell has them."""
    (tmp_path / "cheat.py").write_text(CHEAT)
    exchange = MatchingExchange([BTC], seed=5, fees=Fees(0, 0))
    backtest(Maker(), exchange, instruments=[BTC], limits=LIMITS, seconds=3, folder=tmp_path / "day")
    return f"{tmp_path / 'cheat.py'}:Cheat", str(tmp_path / "day")


def test_the_shell_finds_a_cheat_and_exits_9(files: tuple[str, str]) -> None:
    told = RUNNER.invoke(app, ["check", "lookahead", *files, "-p", "every=2", "--cuts", "3", "--json"])
    assert told.exit_code == 9, told.output
    plain = json.loads(told.stdout)
    assert (plain["ok"], plain["callbacks"], plain["features"]) == (False, ["on_trade"], ["self.total"])
    honest = RUNNER.invoke(app, ["check", "lookahead", "hftlab.strategies.maker:Maker", files[1]])
    assert honest.exit_code == 0 and "built without any" in honest.stdout


def test_the_shell_checks_determinism_and_sensitivity(files: tuple[str, str], tmp_path: Path) -> None:
    maker = "hftlab.strategies.maker:Maker"
    same = RUNNER.invoke(app, ["check", "determinism", maker, files[1]])
    assert same.exit_code == 0 and "the same bytes" in same.stdout, same.output
    page = tmp_path / "s.html"
    told = RUNNER.invoke(app, ["check", "sensitivity", maker, files[1], "--report", str(page)])
    assert told.exit_code == 0, told.output
    assert len(told.stdout.splitlines()) == 6 and "this P&L" in told.stdout
    assert "this P&amp;L" in page.read_text()


def test_the_shell_backtests_and_keeps_journal_and_report(files: tuple[str, str], tmp_path: Path) -> None:
    arguments = ["backtest", "hftlab.strategies.maker:Maker", files[1], "-p", "size_lots=500", "--queue", "power:2"]
    arguments += ["--latency", "0.5,0.7", "--fees", "0.02,0.05", "--out", str(tmp_path / "run")]
    told = RUNNER.invoke(app, [*arguments, "--report", str(tmp_path / "run.html"), "--json"])
    assert told.exit_code == 0, told.output
    plain = json.loads(told.stdout)
    assert plain["counts"]["submits"] > 0 and not plain["interrupted"]
    assert plain["assumptions"][0] == "latency 500 us to the exchange, 700 us back"
    assert plain["run_hash"] in (tmp_path / "run.html").read_text()
    assert (tmp_path / "run" / "000000.seg").exists()
    shown = RUNNER.invoke(app, [*arguments[:5], "--out", str(tmp_path / "again")])
    assert shown.exit_code == 0 and "fills" in shown.stdout and "BTCUSDT: position" in shown.stdout


def test_the_shell_says_what_is_missing(files: tuple[str, str], tmp_path: Path) -> None:
    maker = "hftlab.strategies.maker:Maker"
    assert RUNNER.invoke(app, ["backtest", maker, str(tmp_path / "absent")]).exit_code == 3
    assert RUNNER.invoke(app, ["check", "determinism", maker, str(tmp_path / "absent")]).exit_code == 3
    with pytest.raises(ConfigError, match=r"expected path.py:Class"):
        RUNNER.invoke(app, ["check", "lookahead", "nothing", files[1]], catch_exceptions=False)


def test_a_strategy_that_fails_is_told_and_exits_9(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from hftlab.strategy import PythonStrategy\n"
        "class Bad(PythonStrategy):\n    def on_trade(self, ctx, event):\n        raise ValueError('no idea')\n"
    )
    told = RUNNER.invoke(app, ["backtest", f"{tmp_path / 'bad.py'}:Bad", files[1]])
    assert told.exit_code == 9 and "FAULT in on_trade: ValueError: no idea" in told.stdout, told.output


def test_ctrl_c_inside_a_callback_keeps_what_is_done_and_exits_130(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        "import os\nimport signal\nfrom hftlab.strategy import PythonStrategy\n"
        "class Stopped(PythonStrategy):\n"
        "    def __init__(self):\n        super().__init__()\n        self.n = 0\n"
        "    def on_trade(self, ctx, event):\n"
        "        self.n += 1\n        ctx.note(1)\n"
        "        if self.n == 20:\n            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    stopped = f"{tmp_path / 'stopped.py'}:Stopped"
    told = RUNNER.invoke(app, ["backtest", stopped, files[1], "--out", str(tmp_path / "o")])
    assert told.exit_code == 130, told.output
    assert "stopped before its end" in told.stdout
    rows = read_all(tmp_path / "o")
    assert rows["flags"][-1] & Flag.COMMIT, "the journal ends with a whole atom"
    assert 20 <= (rows["kind"] == Kind.NOTE).sum() < (rows["kind"] == Kind.TRADE).sum() + 1
