"""The synthetic flow: what its docstring states, measured over ten virtual minutes; the seed's promise."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind, RowArray, Side, Tif
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.flow import FlowParams

BTC = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
ETH = Instrument(1, "sim", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), "ETH", "USDT")
BUY, SELL = int(Side.BUY), int(Side.SELL)
SECOND = 10**9
STEP = SECOND // 10
SECONDS = 600

Int64s = npt.NDArray[np.int64]


def join(parts: list[RowArray]) -> RowArray:
    return np.concatenate([part.view(np.int64) for part in parts]).view(ROW)


def order(kind: Kind, cl_ord_id: int, side: int = BUY, px: int = 0, qty: int = 0) -> RowArray:
    rows = np.zeros(1, ROW)
    r = rows[0]
    r["kind"], r["a"], r["px"], r["qty"], r["code"] = kind, cl_ord_id, px, qty, Tif.GTC
    r["flags"] = side | Flag.POST_ONLY
    return rows


@dataclass
class Touch:
    """Best prices after every event that changed the touch."""

    ts: Int64s
    bid: Int64s
    ask: Int64s

    @classmethod
    def of(cls, rows: RowArray) -> Touch:
        quotes = rows[rows["kind"] == Kind.QUOTE]
        is_bid = (quotes["flags"] & BUY) > 0

        def carried(mask: npt.NDArray[np.bool_]) -> Int64s:
            px: Int64s = quotes["px"][np.maximum.accumulate(np.where(mask, np.arange(len(quotes)), 0))]
            return px

        ends = (quotes["flags"] & Flag.LAST) > 0
        start = int(max(np.argmax(is_bid), np.argmax(~is_bid)))  # both sides known
        ends[:start] = False
        return cls(quotes["ts_event"][ends], carried(is_bid)[ends], carried(~is_bid)[ends])

    def mid_at(self, ts: Int64s) -> npt.NDArray[np.float64]:
        i = np.clip(np.searchsorted(self.ts, ts, side="right") - 1, 0, None)
        mid: npt.NDArray[np.float64] = (self.bid[i] + self.ask[i]) / 2
        return mid


@dataclass
class Day:
    """Ten minutes of flow with a naive quoter who joins the touch on both sides every 100 ms."""

    rows: RowArray
    fewest_levels: int
    waits: list[float]

    @property
    def touch(self) -> Touch:
        return Touch.of(self.rows)

    def count(self, kind: Kind) -> int:
        return int((self.rows["kind"] == kind).sum())


def quote_naively(exchange: MatchingExchange) -> Day:
    parts: list[RowArray] = []
    quotes: dict[int, tuple[int, int]] = {}  # side -> id, px
    wanted_since = {BUY: exchange.now_ns, SELL: exchange.now_ns}
    waits: list[float] = []
    fewest = 10**9
    ids = iter(range(1, 10**9))
    start = exchange.now_ns

    def note(rows: RowArray, now: int) -> None:
        parts.append(rows)
        fills = rows[(rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == 2)]
        for r in fills:
            side = int(r["flags"]) & 3
            waits.append((int(r["ts_event"]) - wanted_since[side]) / SECOND)
            wanted_since[side] = int(r["ts_event"])
            if int(r["code"]) >> 8 == 7:
                quotes.pop(side, None)

    for now in range(start + STEP, start + SECONDS * SECOND + 1, STEP):
        note(exchange.advance(now), now)
        _, bids, asks = exchange.snapshot(0)
        fewest = min(fewest, len(bids), len(asks))
        for side, (px, _) in ((BUY, bids[0]), (SELL, asks[0])):
            if side in quotes and quotes[side][1] != px:
                note(exchange.send(order(Kind.CANCEL, quotes.pop(side)[0]), now), now)
            if side not in quotes:
                quotes[side] = (next(ids), px)
                note(exchange.send(order(Kind.SUBMIT, quotes[side][0], side, px, 1_000), now), now)
    return Day(join(parts), fewest, waits)


@pytest.fixture(scope="module", params=[1, 2])
def day(request: pytest.FixtureRequest) -> Day:
    return quote_naively(MatchingExchange([BTC], seed=request.param))


@pytest.fixture(scope="module")
def undisturbed() -> RowArray:
    exchange = MatchingExchange([BTC], seed=1)
    return exchange.advance(exchange.now_ns + SECONDS * SECOND)


def test_the_book_keeps_twenty_levels_a_side(day: Day) -> None:
    assert day.fewest_levels >= 20


def test_the_median_spread_is_one_to_three_ticks(day: Day) -> None:
    touch = day.touch
    spread = (touch.ask - touch.bid)[:-1]
    by_size = np.argsort(spread)
    held = np.cumsum(np.diff(touch.ts)[by_size])
    median = spread[by_size][np.searchsorted(held, held[-1] / 2)]
    assert 1 <= median <= 3 and spread.min() >= 1


def test_the_touch_moves_and_trades_print_many_times_a_second(undisturbed: RowArray) -> None:
    touch = Touch.of(undisturbed)
    moves = int(((np.diff(touch.bid) != 0) | (np.diff(touch.ask) != 0)).sum()) / SECONDS
    kinds = undisturbed["kind"]
    events = int(((undisturbed["flags"] & Flag.LAST) > 0).sum()) / SECONDS
    quotes, trades = (int((kinds == k).sum()) / SECONDS for k in (Kind.QUOTE, Kind.TRADE))
    assert 5 <= moves <= 100 and 200 <= quotes <= 600 and 50 <= trades <= 400 and 500 <= events <= 1_000


def test_an_order_at_the_touch_fills_within_seconds(day: Day) -> None:
    assert len(day.waits) > 600
    assert np.median(day.waits) < 2 and np.quantile(day.waits, 0.95) < 10


def test_a_naive_quoter_at_the_touch_has_negative_one_second_markouts(day: Day) -> None:
    assert markouts(day).mean() < -0.2


def markouts(day: Day) -> npt.NDArray[np.float64]:
    """One-second markouts of the quoter's fills, ticks."""
    fills = day.rows[(day.rows["kind"] == Kind.REPORT) & (day.rows["code"] & 255 == 2)]
    touch = day.touch
    fills = fills[fills["ts_event"] < touch.ts[-1] - SECOND]
    sign = np.where(fills["flags"] & BUY, 1, -1)
    result: npt.NDArray[np.float64] = sign * (touch.mid_at(fills["ts_event"] + SECOND) - fills["px"])
    return result


def test_prices_stay_positive_and_near_their_start(undisturbed: RowArray) -> None:
    touch = Touch.of(undisturbed)
    assert touch.bid.min() > 6_183_700 - 3_000 and touch.ask.max() < 6_183_700 + 3_000


def test_how_time_is_sliced_does_not_change_the_rows(undisturbed: RowArray) -> None:
    exchange = MatchingExchange([BTC], seed=1)
    start, rng = exchange.now_ns, np.random.default_rng(3)
    ends = np.unique(rng.integers(0, 20 * SECOND, 300)).tolist()
    parts = [exchange.advance(start + end) for end in [0, *ends, 20 * SECOND]]
    whole = undisturbed[: len(join(parts))]
    assert join(parts).tobytes() == whole.tobytes() and len(whole) > 10_000


def test_sliced_by_its_own_event_times_each_call_gives_one_event() -> None:
    exchange = MatchingExchange([BTC], seed=4)
    for _ in range(500):
        at = exchange.next_event_ns()
        rows = exchange.advance(at)
        assert exchange.next_event_ns() > at
        assert int(((rows["flags"] & Flag.LAST) > 0).sum()) <= 1
        assert set(rows["ts_event"].tolist()) <= {at}


def test_several_instruments_come_merged_by_time_each_with_its_own_flow() -> None:
    flows = {0: FlowParams(), 1: FlowParams(start_px_ticks=262_500, typical_qty_lots=9_000)}
    both = MatchingExchange([BTC, ETH], seed=1, flow=flows)
    start = both.now_ns
    rows = join([both.advance(start + STEP * i) for i in range(1, 31)])
    assert (np.diff(rows["ts_event"]) >= 0).all()
    alone = MatchingExchange([BTC], seed=1).advance(start + 30 * STEP)
    assert rows[rows["instrument"] == 0].tobytes() == alone.tobytes()
    eth = rows[(rows["instrument"] == 1) & (rows["kind"] == Kind.LEVEL)]
    assert len(eth) > 1_000 and (abs(eth["px"] - 262_500) < 1_000).all()


def test_the_times_of_events_do_not_depend_on_own_orders() -> None:
    def times(disturb: bool) -> list[int]:
        exchange = MatchingExchange([BTC], seed=9)
        found = []
        for i in range(1, 400):
            found.append(exchange.next_event_ns())
            exchange.advance(found[-1])
            if disturb:
                exchange.send(order(Kind.SUBMIT, i, BUY, exchange.snapshot(0)[1][0][0], 5_000), exchange.now_ns)
        return found

    assert times(True) == times(False)


def test_a_book_of_low_prices_stays_two_sided_and_above_zero() -> None:
    exchange = MatchingExchange([BTC], flow=FlowParams(start_px_ticks=5_000, volatility_ticks=500, jump_ticks=5_000))
    for i in range(1, 100):
        exchange.advance(exchange.now_ns + SECOND)
        _, bids, asks = exchange.snapshot(0)
        assert len(bids) >= 20 and len(asks) >= 20 and bids[-1][0] >= 1, i


@pytest.mark.parametrize(
    ("name", "value"),
    [("start_px_ticks", 10), ("events_per_s", 0), ("noise", 0.99), ("orders", 10**6), ("min_levels", 0)],
)
def test_a_parameter_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"flow parameter {name} is "):
        FlowParams(**{name: value})  # type: ignore[arg-type]  # one of several types, by name
