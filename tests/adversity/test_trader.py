"""A trader process against a venue over sockets: recorded days, and everything that goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adversity.live import Trader, Venue, maker_spec, replayed, trader, until, venue

from hftlab.backtest.runner import backtest
from hftlab.core.definitions import Limits
from hftlab.core.rows import BookState, ExecType, Flag, Kind, RowArray
from hftlab.engine import Replica
from hftlab.journal import verify
from hftlab.services.control import request
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec
from hftlab.strategies.maker import Maker

SPEED = "30"


@pytest.fixture(scope="module")
def market() -> Iterator[Venue]:
    with venue("--seed", "7") as running:
        yield running


def book_tops(rows: RowArray, definitions: Any) -> dict[int, tuple[int, ...]]:
    """Replay a journal's market into books and return the top after each venue sequence."""
    replica = Replica(definitions)
    tops: dict[int, tuple[int, ...]] = {}
    ends = np.nonzero(
        ((rows["kind"] == Kind.LEVEL) | (rows["kind"] == Kind.BOOK_STATE)) & (rows["flags"] & Flag.LAST != 0)
    )[0]
    start = 0
    for end in ends:
        stop = end + 1
        while stop < len(rows) and not rows["flags"][stop - 1] & Flag.COMMIT:
            stop += 1
        replica.apply(rows[start:stop])
        start = stop
        if replica.instruments[0]["book_state"] == BookState.LIVE:
            bids, asks = replica.levels(0, 1)
            tops[int(replica.instruments[0]["book_seq"])] = (*bids[0].tolist(), *asks[0].tolist())
    return tops


def recorded_tickers(rows: RowArray) -> dict[int, list[int]]:
    """Return bid px, bid qty, ask px, ask qty of every recorded ticker by its update id."""
    quotes = rows[rows["kind"] == Kind.QUOTE]
    tickers: dict[int, list[int]] = {}
    for seq, px, qty in zip(quotes["a"].tolist(), quotes["px"].tolist(), quotes["qty"].tolist(), strict=True):
        tickers.setdefault(seq, []).extend((px, qty))
    return tickers


def test_recorded_day_over_sockets_keeps_every_promise_of_the_virtual_run(
    shared_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = shared_data / "binance" / "btcusdt_20240808.gz"
    with venue("--capture", str(capture), "--speed", SPEED) as running, trader(maker_spec(), running.endpoints) as live:
        live.wait(lambda told: told["state"] == "trading", "trading")
        until(lambda: running.status()["done"], "the end of the recording", 120)
        assert live.stop() == 0
    rows, definitions = live.rows(), live.definitions()
    report = replayed(live.folder)
    assert report["replay_identical"] and report["journal_verified"] and report["book_gaps"] == 0
    assert report["orders"] > 0 and report["fills"] > 0

    instrument = definitions.instruments[0]
    limits = Limits.from_decimals(instrument, CAREFUL_LIMITS["BTCUSDT"])
    virtual = backtest(Maker(), capture, instruments=[instrument], limits=limits)
    tops, tickers = book_tops(rows, definitions), recorded_tickers(rows)
    checks = book_tops(virtual.rows, virtual.definitions).keys() & recorded_tickers(virtual.rows).keys()
    assert len(checks) == 564
    joined = min(tops)  # the snapshot is fetched while the recording plays, so a check or two may pass before it
    assert {seq for seq in tops if seq in tickers} == {seq for seq in checks if seq >= joined}
    assert sum(seq >= joined for seq in checks) >= 550
    assert [seq for seq in tops if seq in tickers and list(tops[seq]) != tickers[seq]] == []

    differences = difference_list(rows, virtual.rows)
    with capsys.disabled():
        print("\nsocket run against virtual run:\n  " + "\n  ".join(differences))
    market = (Kind.LEVEL, Kind.TRADE, Kind.QUOTE)
    count = lambda of: {k.name: int((of["kind"] == k).sum()) for k in market}  # noqa: E731
    # the first deltas, before the snapshot joined, may be buffered or dropped; everything after is the same market
    assert all(abs(count(rows)[k] - n) <= n // 50 for k, n in count(virtual.rows).items())


def difference_list(live: RowArray, virtual: RowArray) -> list[str]:
    """Say in words how two runs of one market differ, kind by kind.

    They differ for four reasons. The venue's protocol reports a replace as CANCELED and ACK, the exchange in process as
    REPLACED. Played at 30 times its speed, a millisecond on the wire is 30 ms of market: orders meet an older book, and
    fewer requests fit between two moves. The order rate is limited in seconds of the trader's clock, 30 of the
    market's. And only a live session writes SENT rows, connection CONTROL rows and the account's balances.
    """
    names = {int(k): k.name for k in Kind}
    counts = [Counter(names[k] for k in run["kind"].tolist()) for run in (live, virtual)]
    told = [
        f"{name}: {counts[0][name]} over sockets, {counts[1][name]} under virtual time"
        for name in sorted(counts[0] | counts[1])
        if counts[0][name] != counts[1][name]
    ]
    for exec_type in ExecType:
        n = [
            int(((run["kind"] == Kind.REPORT) & (run["code"] & 255 == exec_type)).sum()) for run in (live, virtual)
        ]
        if n[0] != n[1]:
            told.append(f"REPORT {exec_type.name}: {n[0]} over sockets, {n[1]} under virtual time")
    return told


def test_session_over_sockets_trades_and_replays_byte_for_byte(market: Venue, home: Path) -> None:
    with trader(maker_spec("plain"), market.endpoints) as live:
        live.fills(5)
        assert live.stop() == 0
    report = replayed(live.folder)
    assert report["replay_identical"] and report["journal_verified"] and report["book_gaps"] == 0
    assert report["fills"] >= 5 and report["ticks_to_order"] > 0
    rows = live.rows()
    sent = rows[rows["kind"] == Kind.SENT]
    assert set(sent["a"].tolist()) <= set(rows["a"][np.isin(rows["kind"], [30, 31, 32])].tolist())
    assert (sent["ts_event"] > 0).all()


def test_no_order_is_left_at_the_venue_after_a_stop(market: Venue, home: Path) -> None:
    with trader(maker_spec("leaves"), market.endpoints) as live:
        live.wait(lambda told: told["counters"].get("open_orders", 0) > 0, "an open order")
        assert live.stop() == 0
    assert market.open_orders("leaves") == []


def test_a_gap_resyncs_the_book_while_the_book_says_so(market: Venue, home: Path) -> None:
    with trader(maker_spec("gap"), market.endpoints) as live:
        live.fills(1)
        market.fault("gap", n=3)
        live.wait(lambda told: told["counters"]["book_gaps"] >= 1, "a gap")
        live.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")
        assert live.stop() == 0
    rows = live.rows()
    states = rows[(rows["kind"] == Kind.BOOK_STATE)]
    lost = states[(states["code"] == BookState.RESYNCING) & (states["b"] > 0)]
    assert len(lost) >= 1 and (lost["b"] > lost["a"]).all()
    for at in lost["seq"]:
        back = states[(states["seq"] > at) & (states["code"] == BookState.LIVE)]["seq"].min()
        between = rows[(rows["seq"] > at) & (rows["seq"] < back)]
        assert not (between["kind"] == Kind.SUBMIT).any()
    assert replayed(live.folder)["replay_identical"]


def test_a_cut_market_connection_comes_back(market: Venue, home: Path) -> None:
    with trader(maker_spec("cut"), market.endpoints) as live:
        live.fills(1)
        market.fault("cut", scope="market")
        live.wait(lambda told: told["feed"]["BTCUSDT"]["reconnects"] >= 1, "a reconnect")
        before = live.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")["counters"]["fills"]
        live.fills(before + 2)
        assert live.stop() == 0
    assert replayed(live.folder)["replay_identical"]


def test_a_lost_order_connection_settles_by_the_venues_word(market: Venue, home: Path) -> None:
    with trader(maker_spec("lost"), market.endpoints) as live:
        live.wait(lambda told: told["counters"].get("open_orders", 0) > 0, "an open order")
        market.fault("cut", scope="user")
        live.wait(lambda told: told["broker"]["reconnects"] >= 1 and told["broker"]["connected"], "a new connection")
        before = live.status()["counters"]["fills"]
        live.fills(before + 2)
        assert live.stop() == 0
    assert market.open_orders("lost") == []
    rows = live.rows()
    recovered = rows[(rows["kind"] == Kind.REPORT) & (rows["flags"] & Flag.RECOVERED != 0)]
    assert len(recovered) >= 1
    report = replayed(live.folder)
    assert report["replay_identical"]


def test_kill_9_is_recovered_with_no_order_doubled_and_none_lost(market: Venue, home: Path) -> None:
    spec = maker_spec("killed")
    with trader(spec, market.endpoints) as live:
        live.fills(3)
        live.wait(lambda told: told["counters"]["open_orders"] > 0, "an open order")
        os.kill(live.process.pid, signal.SIGKILL)
        live.process.wait(10)
    left = market.open_orders("killed")
    before = live.rows()
    with trader(spec, market.endpoints) as again:
        again.wait(lambda told: told["state"] == "trading", "trading")
        told = again.wait(lambda told: told["counters"]["fills"] > 3, "more fills")
        assert told["counters"]["illegal_reports"] == 0
        assert again.stop() == 0
    rows = again.rows()
    assert rows[: len(before)].tobytes() == before.tobytes()
    assert (rows["kind"] == Kind.RESTART).sum() == 1
    submitted = rows[(rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)]["a"]
    assert len(set(submitted.tolist())) == len(submitted)
    after_restart = rows[int(np.nonzero(rows["kind"] == Kind.RESTART)[0][0]) :]
    settled = after_restart[after_restart["kind"] == Kind.REPORT]["a"].tolist()
    for order in left:
        assert int(order["clientOrderId"].rsplit("-", 1)[1]) in settled
    assert market.open_orders("killed") == []
    assert replayed(again.folder)["replay_identical"]


def test_fills_while_the_trader_was_dead_are_found(market: Venue, home: Path) -> None:
    spec = maker_spec("missed")
    with trader(spec, market.endpoints) as live:
        live.wait(lambda told: told["counters"].get("open_orders", 0) == 2, "two quotes")
        live.kill()
    known = {int(o["clientOrderId"].rsplit("-", 1)[1]) for o in market.open_orders("missed")}
    until(lambda: len(market.open_orders("missed")) < len(known) or not known, "a fill behind its back")
    with trader(spec, market.endpoints) as again:
        again.wait(lambda told: told["state"] == "trading", "trading")
        assert again.stop() == 0
    rows = again.rows()
    restart = int(np.nonzero(rows["kind"] == Kind.RESTART)[0][0])
    found = rows[restart:]
    fills = found[
        (found["kind"] == Kind.REPORT) & (found["code"] & 255 == ExecType.FILL) & (found["flags"] & Flag.RECOVERED != 0)
    ]
    assert len(fills) >= 1
    assert replayed(again.folder)["replay_identical"]


def test_second_trader_on_a_session_is_refused_in_one_sentence(market: Venue, home: Path) -> None:
    spec = maker_spec("twice")
    with trader(spec, market.endpoints) as first:
        first.wait(lambda told: told["state"] == "trading", "trading")
        with trader(spec, market.endpoints) as second:
            assert second.process.wait(30) == 7
        assert "already has a trader" in first.log.read_text().splitlines()[-1]
        assert first.status()["state"] == "trading"
        assert first.stop() == 0


def test_wrong_key_is_a_clear_error_and_nothing_is_traded(market: Venue, home: Path) -> None:
    spec = maker_spec("wrong")
    object.__setattr__(spec, "key", {"api_key_env": "HFT_TEST_KEY", "secret_env": "HFT_TEST_SECRET"})
    with trader(spec, market.endpoints, HFT_TEST_KEY="hftlab-sim-key", HFT_TEST_SECRET="not-the-secret") as live:
        assert live.process.wait(60) == 6
    text = live.log.read_text()
    assert "-1022" in text and "not-the-secret" not in text
    assert not (live.rows()["kind"] == Kind.SUBMIT).any()


def test_missing_key_names_the_variable(market: Venue, home: Path) -> None:
    spec = maker_spec("nokey")
    object.__setattr__(spec, "key", {"api_key_env": "HFT_TEST_ABSENT", "secret_env": "HFT_TEST_ABSENT"})
    with trader(spec, market.endpoints) as live:
        assert live.process.wait(60) == 4
    assert "HFT_TEST_ABSENT" in live.log.read_text()


FAULTY = """
import hftlab as hl
from hftlab.strategy import BUY, GTC, POST_ONLY, Strategy, record

class Faulty(Strategy):
    state = record(n=0)
    def on_book(ctx, state, params, event):
        state.n += 1
        if state.n % 20 == 1:
            ctx.submit(0, BUY, ctx.best_bid(0) - 50, 100, GTC, POST_ONLY)
        if state.n == 100:
            state.n = 1 // (state.n - 100)
"""


def test_a_failing_strategy_is_halted_with_its_traceback_and_its_orders_are_canceled(
    market: Venue, home: Path
) -> None:
    with trader(maker_spec("faulty", source=FAULTY, strategy="Faulty"), market.endpoints) as live:
        told = live.wait(lambda told: told["state"] == "faulted", "the fault")
        assert "ZeroDivisionError" in told["faults"][0]["traceback"]
        assert "state.n = 1 // (state.n - 100)" in told["faults"][0]["traceback"]
        live.wait(lambda told: told["counters"]["open_orders"] == 0, "no open order")
        seq = live.status()["seq"]
        live.wait(lambda told: told["seq"] > seq + 100, "the process going on")
        assert live.stop() == 0
    assert market.open_orders("faulty") == []
    assert replayed(live.folder)["replay_identical"]


def test_halt_cancels_all_and_stays_latched_over_a_restart(market: Venue, home: Path) -> None:
    spec = maker_spec("halted")
    with trader(spec, market.endpoints) as live:
        live.wait(lambda told: told["counters"].get("open_orders", 0) > 0, "an open order")
        answer = request(live.folder, "halt", reason="test")
        assert answer["open"] == 0 and answer["canceled"]
        submits = live.status()["counters"]["submits"]
        live.kill()
    with trader(spec, market.endpoints) as again:
        again.wait(lambda told: told["state"] == "halted", "halted")
        again.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")
        assert again.status()["counters"]["submits"] == submits
        assert request(again.folder, "resume")["state"] == "trading"
        again.wait(lambda told: told["counters"]["submits"] > submits, "orders after the resume")
        assert again.stop() == 0


@pytest.fixture
def small_home(home: Path) -> Iterator[Path]:
    """A home on a disk that holds one journal segment, not two."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(home)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_nearly_full_disk_halts_trading_with_a_reason_and_loses_nothing(market: Venue, small_home: Path) -> None:
    with trader(maker_spec("full"), market.endpoints) as live:
        told = live.wait(lambda told: told["state"] == "halted", "the halt")
        assert "No space left on device" in told["halt_reason"]
        live.wait(lambda told: told["counters"]["open_orders"] == 0, "no open order")
        seq = live.status()["seq"]
        live.wait(lambda told: told["seq"] > seq, "rows after the halt")
        assert live.stop() == 0
    assert market.open_orders("full") == []
    report = replayed(live.folder)
    assert report["replay_identical"] and report["journal_verified"]
    assert report["rows"] >= seq


DEEP = """
from hftlab.strategy import BUY, GTC, LIVE, POST_ONLY, Strategy, record

class Deep(Strategy):
    state = record(order=0)
    def on_book(ctx, state, params, event):
        if ctx.book_state(0) == LIVE and ctx.order_status(state.order) == 0:
            state.order = max(0, ctx.submit(0, BUY, ctx.best_bid(0) - 5000, 100, GTC, POST_ONLY))
"""
"""One order far from the market: it is open until somebody cancels it."""


def deep(name: str) -> SessionSpec:
    return maker_spec(name, source=DEEP, strategy="Deep")


def resting(live: Trader) -> None:
    live.wait(lambda told: told["counters"].get("open_orders", 0) == 1 and told["counters"]["reports"] > 0, "an order")


def flat(market: Venue, name: str) -> None:
    until(lambda: market.open_orders(name) == [], "no order at the venue", 20)


def test_halt_while_the_order_connection_is_down_cancels_when_it_is_back(market: Venue, home: Path) -> None:
    with trader(deep("cutoff"), market.endpoints) as live:
        resting(live)
        market.fault("silence", scope="user", seconds=1)
        market.fault("cut", scope="user")
        live.wait(lambda told: not told["broker"]["connected"], "the loss of the connection")
        request(live.folder, "halt", timeout_s=30, reason="test")
        flat(market, "cutoff")
        live.wait(lambda told: told["state"] == "halted" and told["counters"]["open_orders"] == 0, "flat")
        assert live.stop() == 0


def test_a_cancel_that_the_venue_rejects_is_tried_again_until_flat(market: Venue, home: Path) -> None:
    with trader(deep("stubborn"), market.endpoints) as live:
        resting(live)
        market.fault("error", code=-1003, msg="Too much request weight used.", n=4)
        assert request(live.folder, "halt", timeout_s=30, reason="test")["open"] == 0
        assert market.open_orders("stubborn") == []
        assert live.stop() == 0
    assert replayed(live.folder)["replay_identical"]


def test_a_silent_order_connection_is_given_up_and_settled(market: Venue, home: Path) -> None:
    with trader(maker_spec("mute"), market.endpoints) as live:
        live.fills(1)
        market.fault("silence", scope="user", seconds=6)
        live.wait(lambda told: told["broker"]["reconnects"] >= 1, "the end of the silent connection", 20)
        live.wait(lambda told: told["broker"]["connected"], "a new connection")
        before = live.status()["counters"]["fills"]
        live.fills(before + 2)
        assert live.stop() == 0
    assert market.open_orders("mute") == []
    assert replayed(live.folder)["replay_identical"]


def test_an_error_while_asking_about_doubt_does_not_end_trading(market: Venue, home: Path) -> None:
    with trader(maker_spec("asking"), market.endpoints) as live:
        live.fills(1)
        market.fault("error", code=-1007, msg="Timeout waiting for response.", carried_out=True)
        market.fault("error", code=-1003, msg="Too much request weight used.", n=3)
        before = live.status()["counters"]["fills"]
        live.fills(before + 3)
        assert live.status()["broker"]["connected"]
        assert live.stop() == 0
    assert market.open_orders("asking") == []


def test_a_paper_session_that_was_killed_starts_flat(market: Venue, home: Path) -> None:
    paper = replace(deep("papered"), mode="paper", endpoints=market.endpoints)
    with trader(paper, market.endpoints) as live:
        resting(live)
        live.kill()
    with trader(paper, market.endpoints) as again:
        told = again.wait(lambda told: told["state"] == "trading", "trading")
        assert told["counters"]["open_orders"] == 0
        assert again.stop() == 0
    rows = again.rows()
    expired = (rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.EXPIRED)
    assert (rows["flags"][expired] & Flag.RECOVERED != 0).all() and expired.sum() == 1


def test_a_halt_that_was_left_for_a_dead_trader_holds_before_its_first_order(market: Venue, home: Path) -> None:
    spec = maker_spec("latched")
    with trader(spec, market.endpoints) as live:
        live.fills(1)
        live.kill()
    submits = int((live.rows()["kind"] == Kind.SUBMIT).sum())
    (live.folder / "halt").write_text("left while it was down")
    with trader(spec, market.endpoints) as again:
        told = again.wait(lambda told: told["state"] == "halted", "halted")
        assert told["halt_reason"] == "left while it was down"
        again.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")
        assert again.status()["counters"]["submits"] == submits
        assert request(again.folder, "resume")["state"] == "trading"
        assert not (again.folder / "halt").exists()
        assert again.stop() == 0


def test_an_error_of_the_venue_becomes_a_reject_and_the_rest_goes_on(market: Venue, home: Path) -> None:
    with trader(maker_spec("refused"), market.endpoints) as live:
        live.fills(1)
        market.fault("error", code=-1013, msg="Filter failure: TEST")
        live.wait(lambda told: told["counters"]["fills"] >= 3, "fills after the error")
        assert live.stop() == 0
    rows = live.rows()
    refused = [ExecType.REJECT, ExecType.CANCEL_REJECT]
    rejects = rows[(rows["kind"] == Kind.REPORT) & np.isin(rows["code"] & 255, refused)]
    assert len(rejects) >= 1


def test_an_unknown_outcome_is_asked_for_and_never_taken_for_a_reject(market: Venue, home: Path) -> None:
    with trader(maker_spec("doubt"), market.endpoints) as live:
        live.fills(1)
        market.fault("error", code=-1007, msg="Timeout waiting for response.", carried_out=True)
        live.wait(lambda told: told["counters"]["fills"] >= 4, "fills after the doubt")
        assert live.stop() == 0
    assert market.open_orders("doubt") == []
    rows = live.rows()
    reports = rows[rows["kind"] == Kind.REPORT]
    lost = set(reports["a"][reports["code"] & 255 == ExecType.LOST].tolist())
    assert lost
    for cl_ord_id in lost:
        mine = (reports["a"] == cl_ord_id) & (reports["code"] & 255 != ExecType.LOST)
        assert mine.any()
    assert not (reports["code"] & 255 == ExecType.REJECT)[np.isin(reports["a"], list(lost))].any()
    assert replayed(live.folder)["replay_identical"]


def test_the_journal_of_a_session_verifies(market: Venue, home: Path) -> None:
    with trader(maker_spec("sealed"), market.endpoints) as live:
        live.fills(1)
        assert live.stop() == 0
    report = verify(live.journal)
    assert report.ok and report.unsealed_rows == 0


def test_paper_takes_a_real_feed_and_fills_at_the_exchange_in_process(market: Venue, home: Path) -> None:
    paper = replace(maker_spec("paper"), mode="paper", endpoints=market.endpoints)
    before = market.status()["orders"]
    with trader(paper, market.endpoints) as live:
        live.fills(3)
        assert live.stop() == 0
    assert market.status()["orders"] == before
    report = replayed(live.folder)
    assert report["replay_identical"] and report["fills"] >= 3


def test_a_socket_that_stays_silent_is_noticed_and_nothing_is_quoted(market: Venue, home: Path) -> None:
    with trader(maker_spec("silent"), market.endpoints) as live:
        live.fills(1)
        market.fault("silence", seconds=5)
        live.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "stale", "a stale book")
        live.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")
        assert live.stop() == 0
    rows = live.rows()
    states = rows[rows["kind"] == Kind.BOOK_STATE]
    stale = states[states["code"] == BookState.STALE]["seq"].min()
    back = states[(states["code"] == BookState.LIVE) & (states["seq"] > stale)]["seq"].min()
    between = rows[(rows["seq"] > stale) & (rows["seq"] < back)]
    assert not (between["kind"] == Kind.SUBMIT).any() and (between["kind"] == Kind.CLOCK).sum() >= 5
    assert replayed(live.folder)["replay_identical"]


def test_duplicates_and_reordered_frames_change_nothing_but_counters(market: Venue, home: Path) -> None:
    with trader(maker_spec("twisted"), market.endpoints) as live:
        live.fills(1)
        market.fault("duplicate", n=5)
        market.fault("reorder", n=2)
        fills = live.status()["counters"]["fills"]
        live.fills(fills + 3)
        live.wait(lambda told: told["feed"]["BTCUSDT"]["state"] == "live", "a live book")
        assert live.stop() == 0
    assert replayed(live.folder)["replay_identical"]


def test_status_tells_hops_feed_and_position(market: Venue, home: Path) -> None:
    with trader(maker_spec("told"), market.endpoints) as live:
        told = live.fills(2)
        assert told["feed"]["BTCUSDT"]["state"] == "live"
        assert {"engine", "send", "tick_to_order"} <= told["hops"].keys()
        assert isinstance(told["position"]["BTCUSDT"], int)
        assert live.stop() == 0

