"""A tick's way from rows to sent orders, and the made-up ticks that keep it warm."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from hftlab.clock import now_ns
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, RowArray, new_rows
from hftlab.engine import Engine, RowBuffer, control_row, replay
from hftlab.journal import JournalWriter, read_all
from hftlab.kernels.latency import HAS_COUNTER, Latency
from hftlab.services.hotpath import HotPath, Warmer, ns_per_cycle
from hftlab.strategies.maker import Maker
from hftlab.strategy import PythonStrategy, Strategy
from hftlab.venues.binance.orders import OrderCodec

BTC = Instrument(
    0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), base="BTC", quote="USDT", min_qty=1, max_qty=2**40
)
LIMITS = Limits(1000, 2**60, 100_000, 2**40)
DEFINITIONS = Definitions("test", "sim", (BTC,), (LIMITS,), StrategyRef("Maker", "", {}), 1)


class Broker:
    """Takes orders and tells when."""

    def __init__(self) -> None:
        self.taken: list[RowArray] = []

    def send(self, commands: RowArray) -> RowArray:
        self.taken.append(commands.copy())
        done = new_rows(len(commands))
        done["kind"], done["ts_recv"], done["a"] = Kind.SENT, now_ns(), commands["a"]
        return done


class Failing(Broker):
    def send(self, commands: RowArray) -> RowArray:
        raise OSError("no network")


def book(mid: int = 1_000_000, update: int = 1) -> RowArray:
    rows = new_rows(3)
    rows["kind"], rows["ts_recv"], rows["a"], rows["qty"] = Kind.LEVEL, now_ns(), update, 500
    rows["flags"], rows["px"] = [Flag.BID, Flag.ASK, Flag.LAST], [mid - 1, mid + 1, 0]
    rows[2]["kind"], rows[2]["code"] = Kind.BOOK_STATE, BookState.LIVE
    return rows


def path_of(strategy: Strategy | PythonStrategy, sink: object | None = None, broker: Broker | None = None) -> HotPath:
    path = HotPath(Engine(DEFINITIONS, strategy), sink or RowBuffer(), Latency(ns_per_cycle()))
    path.broker = broker or Broker()
    path.process(control_row("start", now_ns()))
    return path


def test_a_tick_is_journaled_sent_and_its_send_times_follow() -> None:
    path = path_of(Maker())
    path.on_market(book(), now_ns())
    (taken,) = path.broker.taken
    rows = path.sink.rows()
    assert taken["kind"].tolist() == [Kind.SUBMIT, Kind.SUBMIT]
    assert rows["kind"][-4:].tolist() == [Kind.SUBMIT, Kind.SUBMIT, Kind.SENT, Kind.SENT]
    assert rows["a"][-4:].tolist() == taken["a"].tolist() * 2


def test_every_hop_of_a_tick_is_counted_once() -> None:
    path = path_of(Maker())
    path.on_market(book(), now_ns() - 5_000)
    counted = {hop: h.n for hop, h in path.latency.histograms().items() if h.n}
    outside = {"decode": 1, "engine": 1, "tick_to_order": 1}
    kernel = {"apply": 1, "strategy": 1, "risk": 1, "order_rows": 1} if HAS_COUNTER else {}
    # on_start is no callback of the maker: the one that ran is on_book
    assert counted == outside | kernel
    assert path.latency.histogram("decode").total_ns >= 5_000


class Plain(Maker):
    """The maker in plain Python."""

    compiled = False


def test_hops_of_a_callback_in_plain_python_are_counted_too() -> None:
    path = path_of(Plain(compiled=False))
    path.on_market(book(), now_ns())
    assert len(path.broker.taken) == 1
    if HAS_COUNTER:
        told = path.latency.summary()
        assert told["strategy"]["n"] == told["risk"]["n"] == told["order_rows"]["n"] == 1
        assert told["strategy"]["p50_us"] > told["risk"]["p50_us"]


def test_a_measured_session_replays_byte_for_byte_without_measuring() -> None:
    path = path_of(Maker())
    for k in range(50):
        path.on_market(book(1_000_000 + k % 7, k + 1), now_ns())
    report = replay(path.sink.rows(), DEFINITIONS, Maker())
    assert report.identical and report.submits == 2


def test_reports_timers_and_control_may_cause_orders_too() -> None:
    path = path_of(Maker())
    path.on_market(book(), now_ns())
    path.process(control_row("cancel_all", now_ns()))
    assert path.broker.taken[1]["kind"].tolist() == [Kind.CANCEL, Kind.CANCEL]
    assert path.sink.rows()["kind"][-2:].tolist() == [Kind.SENT, Kind.SENT]


def test_whatever_fails_is_told_before_it_is_raised() -> None:
    told: list[BaseException] = []
    path = HotPath(Engine(DEFINITIONS, Maker()), RowBuffer(), Latency(), told.append)
    path.broker = Failing()
    path.process(control_row("start", now_ns()))
    with pytest.raises(OSError, match="no network"):
        path.on_market(book(), now_ns())
    assert [str(error) for error in told] == ["no network"]


def test_made_up_ticks_leave_no_trace(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, DEFINITIONS.to_dict(), fsync_ms=None)
    path = path_of(Maker(), writer)
    path.on_market(book(1_000_000, 50_093_239_218), now_ns())
    codec = OrderCodec([BTC], "key", "secret", "hft-", ["USDT"])
    codec.measure(path.latency)
    warmer = Warmer(path, codec.rehearse)
    arena, rows = path.engine.arena.copy(), read_all(tmp_path).tobytes()
    counted = {hop: h.n for hop, h in path.latency.histograms().items()}
    for _ in range(20):
        warmer.run()
    assert np.array_equal(path.engine.arena, arena)
    assert read_all(tmp_path).tobytes() == rows and len(path.broker.taken) == 1
    assert {hop: h.n for hop, h in path.latency.histograms().items()} == counted
    path.on_market(book(1_000_100, 50_093_239_219), now_ns())
    writer.close()
    assert replay(read_all(tmp_path), DEFINITIONS, Maker()).identical


def test_made_up_ticks_go_all_the_way_through_a_compiled_strategy() -> None:
    path = path_of(Maker())
    rehearsed: list[int] = []
    warmer = Warmer(path, lambda commands, now_ms: rehearsed.append(len(commands)))
    for _ in range(10):
        warmer.run()
    assert warmer._engine.counters()["replaces"] >= 16, "each tick moves both quotes"
    assert rehearsed == [1] * 10


def test_the_loop_is_entered_once_for_a_made_up_tick_as_for_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    warmer = Warmer(path_of(Maker()), lambda commands, now_ms: None)
    again: list[int] = []
    monkeypatch.setattr(warmer._engine, "_go_on", lambda why, sink: again.append(why))
    for _ in range(4):
        warmer.run()
    assert again == []


@pytest.mark.parametrize("polling", [False, True])
def test_the_path_is_kept_warm_only_while_nothing_happens_and_lets_others_run_between_pieces(polling: bool) -> None:
    path = path_of(Maker())
    rehearsed: list[int] = []
    warmer = Warmer(path, lambda commands, now_ms: rehearsed.append(len(commands)))
    turns: list[str] = []

    async def scenario() -> None:
        keeping = asyncio.create_task(warmer.keep(polling=polling))
        path.last_row_ns = now_ns() + 10**18  # a market that never rests
        await asyncio.sleep(0.02)
        assert rehearsed == []
        path.last_row_ns = 0
        original = warmer.pieces

        def noted() -> Iterator[None]:
            for _ in original():
                turns.append("piece")
                yield

        warmer.pieces = noted  # type: ignore[method-assign]  # to see the turns of the loop between them
        while not rehearsed:
            turns.append("other")
            await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(scenario())
    first, last = turns.index("piece"), len(turns) - 1 - turns[::-1].index("piece")
    assert turns[first : last + 1].count("piece") >= 3
    assert all(a != b for a, b in itertools.pairwise(turns[first : last + 1]))


class Counting(PythonStrategy):
    """Counts what it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def on_book(self, ctx: object, event: object) -> None:
        """Count."""
        self.seen += 1


def test_a_strategy_in_plain_python_is_never_run_on_made_up_ticks() -> None:
    strategy = Counting()
    warmer = Warmer(path_of(strategy), lambda commands, now_ms: None)
    warmer.run()
    assert strategy.seen == 0


@pytest.mark.skipif(not HAS_COUNTER, reason="no cycle counter may be read on this processor")
def test_a_cycle_is_as_long_each_time_it_is_measured() -> None:
    first, second = ns_per_cycle(), ns_per_cycle()
    assert 0.1 < first < 2 and first == pytest.approx(second, rel=0.02)
