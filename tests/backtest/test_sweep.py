"""Sweeps: what is tried, what is kept, what is shared, and what happens to a worker that dies."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hftlab.backtest.data import read_tape
from hftlab.backtest.runner import backtest
from hftlab.backtest.splits import Holdout, Purged, WalkForward
from hftlab.backtest.sweep import Between, Status, Sweep, estimate, read_sweep, summarise, sweep
from hftlab.backtest.trials import ROWS, STEPS, Steps
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError, NotFound
from hftlab.core.instruments import Instrument
from hftlab.core.rows import RowArray
from hftlab.journal import read_all
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.strategies.maker import Maker
from hftlab.strategy import PythonStrategy, Strategy, load_strategy

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits.from_decimals(
    BTC, {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200", "orders_per_s": 50}
)
MAKER = Maker(size_lots=1000, cap_lots=10_000)
FREE = Fees(0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of 20 s of the synthetic market."""
    place = tmp_path_factory.mktemp("market") / "journal"
    exchange = MatchingExchange([BTC], seed=5, fees=FREE)
    backtest(Maker(edge_ticks=10**5), exchange, instruments=[BTC], limits=LIMITS, seconds=20, folder=place)
    return place


@pytest.fixture(scope="module")
def market(folder: Path) -> RowArray:
    return read_all(folder)


def run(market: Any, tmp_path: Path, strategy: Any = MAKER, **how: Any) -> Sweep:
    given = {"instruments": [BTC], "limits": LIMITS, "fees": FREE, "cores": 1, "progress": False, **how}
    return sweep(strategy, market, folder=tmp_path, **given)


def made(source: str, name: str, **params: Any) -> Strategy | PythonStrategy:
    return load_strategy("import os\nfrom hftlab.strategy import *\n" + source, name, params)


def same(left: Sweep, right: Sweep) -> bool:
    columns = ["trial", "params", "state", "value", "value_oos", "run_hash"]
    return left.lines.select(columns).equals(right.lines.select(columns))


def test_a_trial_is_the_backtest_of_its_parameters_to_the_last_byte(market: RowArray, tmp_path: Path) -> None:
    fees = Fees(maker_e8=20_000, taker_e8=50_000)
    found = run(market, tmp_path, edge_ticks=range(3), skew_ticks=[0, 8], fees=fees)
    assert len(found.trials) == 6 and (found.trials["state"] == "done").all()
    for line in found.lines.iter_rows(named=True):
        maker = Maker(size_lots=1000, cap_lots=10_000, **json.loads(line["params"]))
        alone = backtest(maker, market, instruments=[BTC], limits=LIMITS, fees=fees)
        assert line["run_hash"] == alone.run_hash
        assert math.isclose(math.fsum(line["net"]), alone.pnl["net"][0], rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(math.fsum(line["step_fees"]), alone.pnl["fees"][0], rel_tol=1e-9)
        assert sum(line["step_fills"]) == alone.counters["fills"] > 0
    assert 0 <= found.deflated_sharpe <= 1 and "the luck of so many trials" in found.summary()
    assert found.trials["value"].is_sorted(descending=True)
    assert found.best == {name: found.trials[name][0] for name in ("edge_ticks", "skew_ticks")}


def test_in_sample_is_the_training_time_and_out_of_sample_the_test(market: RowArray, tmp_path: Path) -> None:
    found = run(market, tmp_path, edge_ticks=range(2), splits=Holdout(0.3))
    for line in found.lines.iter_rows(named=True):
        net = line["net"]
        assert math.isclose(line["value"], math.fsum(net[: STEPS * 7 // 10]), abs_tol=1e-12)
        assert math.isclose(line["value_oos"], math.fsum(net[STEPS * 7 // 10 :]), abs_tol=1e-12)


def test_a_walk_forward_chooses_in_training_what_it_tells_of_the_test(market: RowArray, tmp_path: Path) -> None:
    found = run(market, tmp_path, edge_ticks=range(4), splits=WalkForward(3, embargo_ns=10**8))
    assert len(found.walk_forward) == 3
    for k, line in enumerate(found.walk_forward.iter_rows(named=True)):
        trains = found.lines["train_values"].list.get(k)
        assert line["value"] == trains.max()
        chosen = found.lines.filter(pl.col("trial") == line["trial"])
        assert line["value_oos"] == chosen["test_values"][0][k]


class Recorder:
    """A progress callable that remembers, and does something once at a given number of trials."""

    def __init__(self, at: int, act: Any) -> None:
        self.at, self.act, self.told = at, act, [0]

    def __call__(self, status: Status) -> None:
        self.told.append(status.done)
        if self.act and status.done >= self.at:
            act, self.act = self.act, None
            act(status)


def mapping(pid: int) -> dict[str, int] | None:
    """Return what the kernel tells of a process's mapping of the market, kB; None if it has none yet."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    at = next((k for k, line in enumerate(lines) if line.endswith(f"/{ROWS}")), None)
    if at is None:
        return None
    told = {one.split(":")[0]: int(one.split()[1]) for one in lines[at + 1 : at + 20] if one.endswith(" kB")}
    return {"inode": int(lines[at].split()[4]), "pid": pid, **told}


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="mappings are read from Linux's /proc")
def test_two_workers_hold_one_copy_of_the_market(market: RowArray, tmp_path: Path) -> None:
    looks: list[list[dict[str, int] | None]] = []
    space = {"edge_ticks": range(10), "skew_ticks": range(10)}

    def look(status: Status) -> None:
        if status.done % 10 == 5:
            looks.append([mapping(pid) for pid in status.pids])

    run(market, tmp_path, cores=2, progress=look, **space)
    both = [[one for one in look if one is not None] for look in looks]
    one, two = [look for look in both if len(look) == 2][-1]
    size = read_tape(market, [BTC]).rows.nbytes
    assert one["pid"] != two["pid"] and one["inode"] == two["inode"]
    assert one["Private_Dirty"] == two["Private_Dirty"] == 0
    assert min(one["Rss"], two["Rss"]) * 1024 >= 0.9 * size
    assert (one["Pss"] + two["Pss"]) * 1024 <= 1.1 * size
    assert not list(tmp_path.glob(f"*/*/{ROWS}"))


def test_workers_that_are_killed_cost_nothing_but_time(market: RowArray, tmp_path: Path) -> None:
    calm = run(market, tmp_path / "calm", edge_ticks=range(6), skew_ticks=[0, 4])
    killer = Recorder(3, lambda status: [os.kill(pid, signal.SIGKILL) for pid in status.pids])
    found = run(market, tmp_path / "rough", edge_ticks=range(6), skew_ticks=[0, 4], cores=2, progress=killer)
    assert same(found, calm) and (found.trials["state"] == "done").all()


def test_a_trial_that_ends_its_process_fails_with_a_sentence(market: RowArray, tmp_path: Path) -> None:
    source = (
        "class Fatal(PythonStrategy):\n"
        "    deadly = 0\n"
        "    def on_start(self, ctx, event):\n"
        "        if self.deadly: os._exit(7)\n"
    )
    found = run(market, tmp_path, made(source, "Fatal", note={1, 2}), deadly=[0, 1, 0])
    assert found.lines["state"].to_list() == ["done", "failed", "done"]
    assert found.lines["error"][1] == "its process ended 3 times, the last with code 7"


def test_an_error_of_a_trial_is_kept_with_its_sentence_and_the_sweep_goes_on(market: RowArray, tmp_path: Path) -> None:
    source = (
        "class Divides(Strategy):\n"
        "    params = record(by=1)\n"
        "    def on_book(ctx, state, params, event):\n"
        "        ctx.set_timer(ctx.now_ns + 10**9 // params.by)\n"
    )
    found = run(market, tmp_path, made(source, "Divides"), by=[2, 0, 1.5, 3])
    assert found.lines["state"].to_list() == ["done", "failed", "failed", "done"]
    assert "fault in on_book: ZeroDivisionError" in found.lines["error"][1]
    assert "by=1.5; expected an integer" in found.lines["error"][2]
    assert "trial 1 failed: fault in on_book" in found.summary()
    assert found.trials["state"].to_list()[2:] == ["failed", "failed"]


def test_an_objective_of_ones_own_is_maximised_and_its_errors_are_failed_trials(
    market: RowArray, tmp_path: Path
) -> None:
    found = run(market, tmp_path, edge_ticks=range(3), objective=lambda s: -s["fills"])
    fills = found.trials["fills"].to_list()
    assert fills == sorted(fills) and found.trials["value"].to_list() == [-one for one in fills]
    broken = run(market, tmp_path, edge_ticks=range(2), study="broken", objective=lambda s: s["profit"])
    assert (broken.trials["state"] == "failed").all() and "KeyError: 'profit'" in broken.trials["error"][0]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_sweep import MAKER, run
run(Path(sys.argv[2]), Path(sys.argv[3]), edge_ticks=range(40), skew_ticks=range(0, 8), method="random", trials=60,
    progress=lambda status: print(status.done, flush=True))
"""


def test_a_sweep_that_is_killed_goes_on_and_loses_only_what_was_in_flight(folder: Path, tmp_path: Path) -> None:
    order = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), str(tmp_path / "cut")]
    child = subprocess.Popen(order, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = 0
    while told < 10:
        told = int(child.stdout.readline())
    child.kill()
    told = max([told, *(int(line) for line in child.stdout.read().splitlines() if line.strip())])
    child.wait()
    cut = read_sweep("sweep", tmp_path / "cut")
    assert told <= len(cut.lines) < 60
    how = {"edge_ticks": range(40), "skew_ticks": range(8), "method": "random", "trials": 60}
    watch = Recorder(0, None)
    whole = run(folder, tmp_path / "cut", progress=watch, **how)
    assert watch.told[1] == len(cut.lines)
    assert whole.lines.join(cut.lines, ["trial", "ended_ns"], "semi").height == len(cut.lines)
    assert whole.lines["trial"].to_list() == list(range(60))
    assert same(whole, run(folder, tmp_path / "calm", **how))


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(market: RowArray, tmp_path: Path) -> None:
    def stop(status: Status) -> None:
        raise KeyboardInterrupt

    cut = run(market, tmp_path, edge_ticks=range(8), progress=Recorder(3, stop))
    assert cut.interrupted and len(cut.lines) == 3 and "stopped before its end" in cut.summary()
    assert len(run(market, tmp_path, edge_ticks=range(8)).lines) == 8


def test_a_study_goes_on_only_with_what_it_was_begun_with(market: RowArray, tmp_path: Path) -> None:
    run(market, tmp_path, edge_ticks=range(2))
    with pytest.raises(ConfigError, match="begun with another space"):
        run(market, tmp_path, edge_ticks=range(3))
    with pytest.raises(ConfigError, match="begun with another data"):
        run(market[:-100], tmp_path, edge_ticks=range(2))
    with pytest.raises(ConfigError, match="begun with another fees, seed"):
        run(market, tmp_path, edge_ticks=range(2), fees=Fees(1, 1), seed=2)
    assert len(list((tmp_path / "sweep").glob("market-*"))) == 0

    def again(status: Status) -> None:
        with pytest.raises(ConfigError, match="another process is running"):
            run(market, tmp_path, edge_ticks=range(2), study="held")

    run(market, tmp_path, edge_ticks=range(2), study="held", progress=Recorder(0, again))
    with pytest.raises(NotFound, match="there are: held, sweep"):
        read_sweep("none", tmp_path)


def test_chance_depends_on_the_seed_alone_and_stays_in_its_bounds(market: RowArray, tmp_path: Path) -> None:
    space = {"edge_ticks": Between(0, 20), "skew_ticks": Between(1, 64, log=True), "slack_ticks": [1, 2]}
    how = {"method": "random", "trials": 12, **space}
    one, two = run(market, tmp_path / "1", cores=1, **how), run(market, tmp_path / "2", cores=2, **how)
    assert same(one, two)
    assert not same(one, run(market, tmp_path / "3", seed=2, **how))
    assert one.trials["edge_ticks"].is_between(0, 20).all() and one.trials["skew_ticks"].is_between(1, 64).all()
    assert one.trials["slack_ticks"].is_in([1, 2]).all() and one.trials["edge_ticks"].n_unique() > 4


def test_a_part_of_a_grid_is_drawn_without_repetition(market: RowArray, tmp_path: Path) -> None:
    found = run(market, tmp_path, edge_ticks=Between(0, 8, step=2), skew_ticks=[0, 4, 8], trials=10)
    assert len(found.trials.select("edge_ticks", "skew_ticks").unique()) == 10


def test_tpe_searches_gives_up_and_goes_on(market: RowArray, tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def stop(status: Status) -> None:
        raise KeyboardInterrupt

    how = {"method": "tpe", "prune": True, "edge_ticks": Between(0, 30), "skew_ticks": [0, 4, 8]}
    cut = run(market, tmp_path, trials=40, progress=Recorder(25, stop), **how)
    assert len(cut.lines) == 25
    found = run(market, tmp_path, trials=40, **how)
    assert found.lines["trial"].to_list() == list(range(40))
    assert found.lines.head(25).equals(cut.lines.head(25))
    states = set(found.lines["state"])
    assert states == {"done", "pruned"}
    given_up = found.lines.filter(pl.col("state") == "pruned")
    assert given_up["value"].is_null().all() and (given_up["slices"].list.len() >= 1).all()


def test_giving_up_never_looks_at_the_test(market: RowArray, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    found = run(market, tmp_path, method="tpe", prune=True, trials=4, edge_ticks=Between(0, 5), splits=Holdout(0.5))
    for line in found.lines.iter_rows(named=True):
        sums = np.cumsum(line["net"])
        borders = [math.floor(STEPS * 0.5 * part / 4) for part in (1, 2, 3)]
        assert np.allclose(line["slices"], [sums[k - 1] for k in borders], atol=1e-12)


def test_a_lost_worker_of_a_cluster_costs_nothing_and_results_come_once(market: RowArray, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    calm = run(market, tmp_path / "calm", edge_ticks=range(80), skew_ticks=[0, 4])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(cluster.workers.values())).pid
        killed: list[int] = []

        def kill(status: Status) -> None:
            killed.append(status.done)
            os.kill(victim, signal.SIGKILL)

        how = {"edge_ticks": range(80), "skew_ticks": [0, 4], "client": client}
        found = run(market, tmp_path / "cluster", progress=Recorder(2, kill), **how)
    assert killed and killed[0] < 160, "killed while trials were still to come"
    assert same(found, calm) and found.lines.height == 160  # which worker did which is a matter of speed


def test_the_best_twenty_are_children_of_one_run(market: RowArray, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    found = run(market, tmp_path, edge_ticks=range(22))
    parent = found.log(tmp_path / "mlruns")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    top = client.get_run(parent)
    assert top.data.params["strategy"] == "Maker" and top.data.metrics["value"] == found.trials["value"][0]
    children = client.search_runs([top.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 20
    assert {int(one.data.params["edge_ticks"]) for one in children} == set(found.trials["edge_ticks"].head(20))
    assert any(one.path.endswith(".parquet") for one in client.list_artifacts(parent))


def test_an_estimate_runs_two_trials_and_keeps_nothing(market: RowArray, tmp_path: Path) -> None:
    told = estimate(MAKER, market, instruments=[BTC], limits=LIMITS, edge_ticks=range(50), cores=2)
    assert told.trials == 50 and told.cores == 2 and told.trial_s > 0
    assert math.isclose(told.seconds, 25 * told.trial_s) and "50 trials of" in str(told)
    assert not list(tmp_path.iterdir())


def test_pictures_and_stability_tell_the_trials(market: RowArray, tmp_path: Path) -> None:
    found = run(market, tmp_path, edge_ticks=range(3), skew_ticks=[0, 4, 8])
    stable = found.stability("edge_ticks")
    assert stable["trials"].to_list() == [3, 3, 3]
    for line in stable.iter_rows(named=True):
        values = found.trials.filter(edge_ticks=line["edge_ticks"])["value"].to_numpy()
        assert line["value"] == np.median(values) and line["best"] == values.max()
        assert np.allclose([line["low"], line["high"]], np.percentile(values, [25, 75]), rtol=1e-12)
    walk = found.plot_walk_forward()
    test = found.lines.filter(pl.col("trial") == found.trials["trial"][0])["net"][0].to_list()[STEPS * 7 // 10 :]
    assert np.allclose(walk.renderers[0].data_source.data["y"], np.cumsum(test))
    pictures = [walk, found.plot("edge_ticks", "skew_ticks"), found.plot_progress(), found.plot_stability("edge_ticks")]
    assert all(type(one).__module__.startswith("bokeh") for one in pictures)
    with pytest.raises(ConfigError, match="was not searched; there are edge_ticks, skew_ticks"):
        found.plot("edge_ticks", "size_lots")


def test_a_summary_is_the_arithmetic_of_its_steps() -> None:
    net = np.array([1.0, -3.0, 2.0, 5.0] + [0.0] * (STEPS - 4))
    steps = Steps(net, np.full(STEPS, 0.5), np.ones(STEPS, np.int64), np.full(STEPS, 10.0))
    told = summarise(steps, np.arange(STEPS) < 4)
    assert told["net_pnl"] == 5 and told["gross_pnl"] == 7 and told["fees"] == 2 and told["fills"] == 4
    assert told["drawdown"] == -3 and told["turnover"] == 40
    assert math.isclose(told["sharpe"], net[:4].mean() / net[:4].std(ddof=1))
    assert math.isnan(summarise(steps, np.arange(STEPS) > 10)["sharpe"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "space: empty"),
        ({"edge": range(3)}, "no parameter 'edge'; there are edge_ticks"),
        ({"edge_ticks": 3}, "edge_ticks=3; expected values"),
        ({"edge_ticks": []}, "edge_ticks has no values"),
        ({"edge_ticks": Between(0.0, 1.0)}, "no end of values"),
        ({"edge_ticks": [1], "method": "bayes"}, "method: 'bayes'; expected one of grid, random, tpe"),
        ({"edge_ticks": [1], "prune": True}, "prune: needs method='tpe'"),
        ({"edge_ticks": [1], "objective": "profit"}, "objective: 'profit'; expected one of net_pnl"),
        ({"edge_ticks": [1], "trials": 0}, "trials: 0"),
        ({"edge_ticks": [1], "cores": 0}, "cores: 0"),
        ({"edge_ticks": [1], "study": "a/b"}, "study: 'a/b'"),
        ({"edge_ticks": [1], "splits": WalkForward(STEPS)}, "no whole step of 500"),
        ({"edge_ticks": [1], "splits": Purged(2, embargo_ns=10**13)}, "no time left for training"),
    ],
)
def test_what_cannot_be_swept_is_said(market: RowArray, tmp_path: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(market, tmp_path, **how)


def test_a_synthetic_exchange_and_mixed_quotes_are_refused(market: RowArray, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record it once"):
        run(MatchingExchange([BTC]), tmp_path, edge_ticks=[1])
    other = Instrument(1, "binance", "ETHBTC", Decimal("0.01"), Decimal("0.001"), "ETH", "BTC")
    with pytest.raises(ConfigError, match="quoted in BTC, USDT"):
        run(market, tmp_path, edge_ticks=[1], instruments=[BTC, other])


def test_a_worker_ends_when_its_sweep_is_gone(folder: Path, tmp_path: Path) -> None:
    script = SCRIPT.replace("print(status.done", "print(*status.pids")
    order = [sys.executable, "-c", script, str(Path(__file__).parent), str(folder), str(tmp_path)]
    child = subprocess.Popen(order, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.wait()
    for _ in range(600):
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"worker {pid} outlived its sweep by 30 s")


def test_the_shell_sweeps_estimates_and_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        order = [sys.executable, "-m", "hftlab.cli", "sweep", *words]
        return subprocess.run(order, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    what = ["hftlab.strategies.maker:Maker", str(folder), "-p", "size_lots=1000", "--cores", "1", "--fees", "0"]
    cost = shell(*what, "-s", "edge_ticks=0:3", "--estimate", "--json")
    assert json.loads(cost.stdout)["trials"] == 4 and not (tmp_path / "sweeps").exists()
    done = shell(*what, "-s", "edge_ticks=0:3", "--splits", "walk:2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["counts"] == {"done": 4} and "best in sample" in done.stderr
    found = read_sweep("maker", tmp_path / "sweeps")
    assert [one["trial"] for one in told["trials"]] == found.trials["trial"].to_list()
    assert len(found.walk_forward) == 2
    table = shell(*what, "-s", "edge_ticks=0:3", "--splits", "walk:2", "-n", "2").stdout.splitlines()
    assert len(table) == 3 and table[0].split()[:4] == ["TRIAL", "STATE", "EDGE_TICKS", "VALUE"]
    assert shell(*what, "-s", "edge_ticks=0:4", "--splits", "walk:2").returncode == 4
    assert shell(*what, "-s", "edge=0:4").returncode == 4
    assert shell(what[0], str(tmp_path / "absent"), "-s", "edge_ticks=1").returncode == 3


def test_the_best_of_much_noise_is_deflated_and_a_steady_earner_is_not() -> None:
    def swept(net: np.ndarray[Any, Any]) -> Sweep:
        values = net[:, :400].sum(axis=1)
        lines = pl.DataFrame(
            {"trial": range(len(net)), "state": "done", "params": "{}", "value": values, "net": net.tolist()}
        )
        study = {"borders": [0, 5000], "splits": [[[[0, 4000]], [4000, 5000]]], "space": {}}
        return Sweep(Path("none"), study, lines)

    noise = np.random.default_rng(1).normal(0.0, 1.0, (200, STEPS))
    assert swept(noise).deflated_sharpe < 0.9
    assert swept(noise + np.where(np.arange(200) == 7, 0.4, 0.0)[:, None]).deflated_sharpe > 0.95
    assert math.isnan(swept(np.zeros((3, STEPS))).deflated_sharpe)
