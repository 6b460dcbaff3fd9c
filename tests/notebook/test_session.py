"""Sessions on the real trader and the simulated venue, as a notebook works with them.

What must hold whatever happens to the notebook: the trader's journal goes on growing, orders go on, a new client joins.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

import hftlab as hl
from hftlab.core.errors import ConfigError, Refused, StrategyError
from hftlab.core.rows import Kind, OrdStatus
from hftlab.notebook.session import Session, attach, sessions, sim
from hftlab.services import control, supervisor
from hftlab.services.control import NotRunning, TimedOut
from hftlab.services.paths import SessionNotFound
from hftlab.services.spec import SessionSpec, read_spec
from hftlab.services.trader import client_prefix
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, LIVE, NO_PX, POST_ONLY, Strategy, record
from hftlab.venues.binance.server import DEFAULT_ACCOUNT

MAX_GAP_S = 1.0
CLIENT = """
import sys, time
import hftlab as hl
from hftlab.strategies.maker import Maker
session = hl.sim(Maker(), name=sys.argv[1])
print(session.status()["pid"], flush=True)
{then}
"""


class Resting(Strategy):
    """Keep `n` bids far below the market, submitted once."""

    params = record(n=3)
    state = record(placed=0)

    def on_book(ctx, state, params, event):
        bid = ctx.best_bid(event.instrument)
        if ctx.book_state(event.instrument) == LIVE and bid != NO_PX and state.placed < params.n:
            placed = ctx.submit(event.instrument, BUY, bid - 2000 - state.placed, 100, GTC, POST_ONLY)
            state.placed += 1 if placed > 0 else 0


def until(true: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module", autouse=True)
def supervised() -> Iterator[Path]:
    """Give the module one short home, so that its sessions share a supervisor; nothing may be left of them."""
    root = Path(tempfile.mkdtemp(prefix="hft"))
    before = os.environ.get("HFTLAB_HOME")
    os.environ["HFTLAB_HOME"] = str(root)
    try:
        yield root
        supervisor.shutdown()
        left = [p for p in psutil.process_iter() if p.pid != os.getpid() and home_of(p) == str(root)]
        for process in left:
            process.kill()
        assert left == []
    finally:
        if before is None:
            del os.environ["HFTLAB_HOME"]
        else:
            os.environ["HFTLAB_HOME"] = before
        shutil.rmtree(root, ignore_errors=True)


def home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HFTLAB_HOME")
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None


@pytest.fixture(scope="module")
def maker(supervised: Path) -> Iterator[Session]:
    """Return a session with the example market maker; each test leaves it trading."""
    session = sim(Maker(), name="maker")
    yield session
    session.stop()


def gap_s(session: Session, since_ns: int) -> float:
    """Return the longest time between two rows of the journal after `since_ns`, seconds."""
    rows = session.rows()
    at = rows["ts_recv"][rows["kind"] != Kind.CONT]  # a payload row has other bytes there
    at = np.unique(at[at >= since_ns])
    assert len(at) > 5
    return float(np.diff(at).max()) / 1e9


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_wait_returns_when_enough_was_seen_and_the_frames_agree(maker: Session) -> None:
    seen = asyncio.run(maker.wait(fills=5, orders=10, timeout=60))
    assert seen["fills"] >= 5 and seen["orders"] >= 10
    fills = maker.fills
    assert len(fills) >= 5
    assert {"seq", "ts", "symbol", "side", "px", "qty", "fee", "fee_asset", "maker", "cl_ord_id"} <= set(fills.columns)
    assert set(fills["side"]) <= {"buy", "sell"} and fills["maker"].all() and fills["seq"].is_sorted()
    assert set(fills["cl_ord_id"]) <= set(maker.orders["cl_ord_id"])


def test_orders_have_the_engines_own_states_and_what_their_fills_add_up_to(maker: Session) -> None:
    maker.wait_sync(fills=5)
    orders, fills = maker.orders, maker.fills  # fills are read later: they may only have grown
    assert set(orders["status"]) <= {status.name.lower() for status in OrdStatus}
    filled = orders.filter(pl.col("status") == "filled")
    assert len(filled) > 0
    assert (filled["qty"] - filled["cum_qty"]).abs().max() < 1e-12
    added = filled.join(fills.group_by("cl_ord_id").agg(pl.col("qty").sum().alias("of_fills")), "cl_ord_id")
    assert len(added) == len(filled) and (added["of_fills"] - added["qty"]).abs().max() < 1e-12


def test_position_and_pnl_follow_from_the_fills(maker: Session) -> None:
    maker.halt("count")
    try:
        fills = maker.fills
        signed = (fills["qty"] * fills["side"].replace_strict({"buy": 1.0, "sell": -1.0})).sum()
        cash = -(fills["qty"] * fills["px"] * fills["side"].replace_strict({"buy": 1.0, "sell": -1.0})).sum()
        (row,) = maker.pnl.to_dicts()
        assert row["position"] == pytest.approx(signed, abs=1e-12)
        assert maker.position == {"BTCUSDT": row["position_lots"]} == {"BTCUSDT": round(signed / 1e-5)}
        top = maker.book(depth=1)
        mid = top["px"].mean()
        assert row["realized"] + row["unrealized"] == pytest.approx(cash + signed * mid, abs=0.5)
    finally:
        maker.resume()


def test_book_is_two_sorted_sides_on_the_grid(maker: Session) -> None:
    book = maker.book(depth=5)
    bids, asks = book.filter(pl.col("side") == "bid"), book.filter(pl.col("side") == "ask")
    assert bids["level"].to_list() == asks["level"].to_list() == [0, 1, 2, 3, 4]
    assert bids["px_ticks"].is_sorted(descending=True) and asks["px_ticks"].is_sorted()
    assert bids["px_ticks"][0] < asks["px_ticks"][0]
    assert (book["px"] - book["px_ticks"] * 0.01).abs().max() < 1e-9 and (book["qty_lots"] > 0).all()
    with pytest.raises(ConfigError, match="instrument: 1; expected 0 to 0"):
        maker.book(1)


def test_latency_tells_every_hop_of_the_running_trader(maker: Session) -> None:
    told = maker.latency()
    assert {"decode", "engine", "encode", "send", "tick_to_order"} <= set(told["hop"])
    assert (told["n"] > 0).all() and (told["p50_us"] <= told["p99_us"]).all()
    assert (told["p99_us"] <= told["p999_us"]).all()


def test_wait_that_ends_in_vain_says_what_it_saw(maker: Session) -> None:
    with pytest.raises(TimedOut, match=r"maker: waited 0.3 s for 1000000 fills; saw \d+ fills, \d+ orders, \d+ rows"):
        maker.wait_sync(fills=1_000_000, timeout=0.3)


def test_a_detached_session_is_joined_again_by_using_it(maker: Session) -> None:
    rows = maker.wait_sync(rows=10)["rows"]
    maker.detach()
    assert maker.wait_sync(rows=rows)["rows"] >= rows
    assert len(maker.rows()) >= rows


def test_a_second_client_joins_by_name_and_sees_the_same(maker: Session) -> None:
    maker.wait_sync(fills=3)
    other = attach("maker")
    assert other.fills.head(3).equals(maker.fills.head(3))
    assert (other.mode, other.definitions.strategy.name) == ("sim", "Maker")
    listed = sessions().filter(pl.col("name") == "maker").to_dicts()
    assert [(one["state"], one["strategy"], one["symbols"]) for one in listed] == [("trading", "Maker", "BTCUSDT")]
    assert "maker (sim) trading: BTCUSDT" in repr(other)


def test_halt_cancels_everything_stays_latched_and_is_released_by_resume(maker: Session) -> None:
    told = maker.halt("test")
    assert told["open"] == 0 == maker.open_orders
    submitted = maker.wait_sync()["orders"]
    time.sleep(0.5)
    assert (maker.status()["state"], maker.status()["halt_reason"]) == ("halted", "test")
    assert maker.wait_sync()["orders"] == submitted
    maker.resume()
    maker.wait_sync(orders=submitted + 1, timeout=30)


def test_the_dashboard_redraws_itself_on_the_notebooks_loop_until_the_session_is_detached(maker: Session) -> None:
    async def cell() -> tuple[bool, int, int]:
        import panel as pn

        shown = maker.dashboard()
        (redraw,) = maker._redrawing
        before = redraw.counter
        await asyncio.sleep(1.5)
        drawn = redraw.counter
        maker.detach()
        await asyncio.sleep(0.6)
        return isinstance(shown, pn.viewable.Viewable), drawn - before, redraw.counter - drawn

    viewable, drawn, after = asyncio.run(cell())
    assert viewable and drawn >= 2 and after <= 1
    assert maker.wait_sync(rows=1)["rows"] > 0


# --- starting ---------------------------------------------------------------------------------------------------------


def test_the_same_call_joins_the_running_session_and_another_strategy_is_refused(maker: Session) -> None:
    assert sim(Maker(), name="maker").status()["pid"] == maker.status()["pid"]
    with pytest.raises(Refused, match="running with another specification"):
        sim(Maker(edge_ticks=5), name="maker")


def test_a_session_that_does_not_exist_is_not_found() -> None:
    with pytest.raises(SessionNotFound, match="there is no session 'nobody'"):
        attach("nobody")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symbols": "BTCUSDT"}, r"expected a sequence of symbols, such as \('BTCUSDT',\)"),
        ({"symbols": ("XRPUSDT",)}, "limits: none for XRPUSDT"),
        ({"name": "a b"}, "name: 'a b'; expected"),
        ({"limits": {"BTCUSDT": {"max_order": "1"}}}, "limits: max_position is missing"),
        ({"venue": {"rate": "many"}}, "the simulated venue did not start: .*invalid float value: 'many'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, Refused), match=message):
        sim(Maker(), **{"name": "wrong", **arguments})


def test_paper_without_addresses_is_specified_for_the_venues_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SessionSpec] = []

    def start(spec: SessionSpec, timeout: float) -> None:
        asked.append(spec)

    monkeypatch.setattr("hftlab.notebook.session._start", start)
    hl.paper(Maker(), name="p")
    hl.paper(Maker(), name="p", endpoints={"rest": "http://a", "stream": "ws://b", "ws_api": "ws://c"})
    assert [(one.mode, one.endpoints) for one in asked] == [
        ("paper", None), ("paper", {"rest": "http://a", "stream": "ws://b", "ws_api": "ws://c"}),
    ]  # fmt: skip


def test_a_class_is_refused_where_an_instance_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"expected an instance such as Maker\(edge_ticks=2\)"):
        sim(Maker)


def test_a_file_that_defines_and_starts_its_strategy_is_refused_before_it_starts_itself(tmp_path: Path) -> None:
    script = tmp_path / "all_in_one.py"
    script.write_text(
        "import hftlab as hl\nclass Twice(hl.Strategy):\n    def on_book(ctx, state, params, event):\n        return\n"
        "hl.sim(Twice(), name='twice')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "also starts a session; put the two into separate cells" in done.stderr
    assert "twice" not in sessions()["name"].to_list()


def test_a_source_that_leans_on_another_cell_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "leaning.py").write_text(
        "class Leans(base):\n    def on_book(ctx, state, params, event):\n        return\n"
    )
    code = (
        "import linecache, sys, types, hftlab as hl\n"
        "text = open(sys.argv[1]).read(); m = types.ModuleType('cell'); m.base = hl.Strategy\n"
        "exec(compile(text, sys.argv[1], 'exec'), m.__dict__)\n"
        "hl.sim(m.Leans())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "leaning.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert StrategyError.__name__ in done.stderr and "name 'base' is not defined" in done.stderr
    assert "it must hold its own imports" in done.stderr


# --- the notebook dies ------------------------------------------------------------------------------------------------


def client(name: str, then: str) -> tuple[subprocess.Popen[str], int]:
    """Start a kernel's stand-in, a process group leader as Jupyter starts them; return it and its trader's pid."""
    code = CLIENT.format(then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("how", ["sigint", "sigkill", "busy"])
def test_the_trader_does_not_notice_what_happens_to_the_kernel(how: str) -> None:
    process, pid = client(f"k-{how}", "while True: pass" if how == "busy" else "time.sleep(600)")
    since = time.time_ns()
    try:
        if how != "busy":  # the whole process group, as Jupyter does
            os.killpg(process.pid, signal.SIGINT if how == "sigint" else signal.SIGKILL)
            process.wait(10)
        joined = hl.attach(f"k-{how}")
        before = joined.wait_sync()["orders"]
        time.sleep(1.5)
        joined.wait_sync(orders=before + 3, timeout=30)
        assert joined.status()["pid"] == pid, "the trader is the same process"
        gap = gap_s(joined, since)
        print(f"{how}: longest gap between two rows {gap * 1e3:.0f} ms")
        assert gap < MAX_GAP_S
    finally:
        process.kill()
        process.wait()
    joined.stop()
    assert joined.status()["state"] == "stopped" and joined.open_orders == 0


# --- the trader dies --------------------------------------------------------------------------------------------------


def venue_orders(folder: Path) -> list[str]:
    """Return the client ids of the account's open orders, asked of the venue itself."""
    endpoints = json.loads((folder / "run.json").read_text())["endpoints"]
    query = f"symbol=BTCUSDT&timestamp={time.time_ns() // 1_000_000}"
    signature = hmac.new(DEFAULT_ACCOUNT[1].encode(), query.encode(), hashlib.sha256).hexdigest()
    url = f"{endpoints['rest']}/api/v3/openOrders?{query}&signature={signature}"
    asked = urllib.request.Request(url, headers={"X-MBX-APIKEY": DEFAULT_ACCOUNT[0]})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return [one["clientOrderId"] for one in json.load(answer)]


def own_view(session: Session) -> set[str]:
    """Return the client ids of the orders that are open by the journal."""
    prefix = client_prefix(session.mode, session.name)
    open_ones = session.orders.filter(pl.col("status").is_in(["new", "partially_filled"]))
    return {f"{prefix}{n}" for n in open_ones["cl_ord_id"]}


def test_a_killed_trader_comes_back_and_its_orders_are_accounted_for_and_not_doubled() -> None:
    session = sim(Resting(), name="resting")
    until(lambda: len(own_view(session)) == 3)
    first = own_view(session)
    assert set(venue_orders(session.folder)) == first
    pid = session.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    died = time.time_ns()
    until(lambda: session.status()["state"] == "trading" and session.status()["pid"] != pid, 60)
    session.wait_sync(rows=len(session.rows()) + 50)
    until(lambda: set(venue_orders(session.folder)) == own_view(session))
    at_venue = venue_orders(session.folder)
    assert len(at_venue) == len(set(at_venue)) <= 3, "none is there twice"
    assert not first & set(at_venue), "what the dead trader left open was canceled, as its policy says"
    rows = session.rows()
    assert (rows["kind"] == Kind.RESTART).sum() == 1
    submitted = rows["a"][rows["kind"] == Kind.SUBMIT]
    assert len(submitted) == len(np.unique(submitted))
    canceled = session.orders.filter(pl.col("status") == "canceled")["cl_ord_id"].to_list()
    assert first <= {f"{client_prefix('sim', 'resting')}{n}" for n in canceled}
    back = rows["ts_recv"][rows["ts_recv"] > died][0]
    print(f"the first row after the kill came after {(back - died) / 1e9:.2f} s")
    assert session.stop()["restarts"] == 1
    assert session.open_orders == 0


def test_a_venue_that_dies_is_started_again_and_the_session_goes_on() -> None:
    session = sim(Maker(), name="venueless")
    session.wait_sync(orders=3)
    (held,) = (one for one in supervisor.ensure()["sessions"] if one["name"] == "venueless")
    os.kill(held["venue_pid"], signal.SIGKILL)
    pid, before = session.status()["pid"], session.wait_sync()["orders"]
    until(lambda: session.status()["feed"]["BTCUSDT"]["reconnects"] > 0)
    session.wait_sync(orders=before + 5, timeout=60)
    assert session.status()["pid"] == pid, "the trader rode it out"
    assert session.stop()["state"] == "stopped"


def test_a_second_trader_on_one_session_is_refused_in_one_sentence(maker: Session) -> None:
    before = maker.status()["pid"]
    endpoints = (maker.folder / "run.json").read_text()
    command = [sys.executable, "-m", "hftlab.services.trader", str(maker.folder), "--endpoints"]
    command.append(json.dumps(json.loads(endpoints)["endpoints"]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert len(done.stderr.splitlines()) == 1 and "already" in done.stderr, done.stderr
    assert maker.status()["pid"] == before
    rows = maker.wait_sync()["rows"]
    maker.wait_sync(rows=rows + 20)


def test_an_ended_session_stays_readable_and_says_that_it_does_not_run() -> None:
    session = sim(Maker(), name="short")
    session.wait_sync(orders=2)
    assert session.stop()["state"] == "stopped"
    ended = attach("short")
    assert ended.status()["state"] == "stopped"
    assert len(ended.orders) >= 2 and len(ended.book()) > 0 and read_spec(ended.folder).name == "short"
    for act in (ended.halt, ended.resume, ended.stop, ended.cancel_all):
        with pytest.raises(NotRunning, match="session short is not running"):
            act()
    with pytest.raises(ConfigError, match=r"short is stopped \(no reason kept\): saw"):
        ended.wait_sync(fills=10**9, timeout=5)
    with pytest.raises(NotRunning):
        control.request(ended.folder, "status")
