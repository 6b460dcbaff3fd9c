"""The exchange in process: reports, conservation, fees and determinism; own orders beside a recording."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    RowArray,
    Side,
    Tif,
)
from hftlab.sim.exchange import MAX_OPEN_ORDERS, MatchingExchange, RecordedExchange
from hftlab.sim.flow import FlowParams
from hftlab.sim.models import Fees

BTC = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
ETH = Instrument(1, "sim", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), "ETH", "USDT")
BUY, SELL = Side.BUY, Side.SELL
SECOND = 10**9


def order(
    kind: Kind, cl_ord_id: int, side: int = BUY, px: int = 0, qty: int = 0, *, orig: int = 0, tif: int = Tif.GTC,
    post_only: bool = False, market: bool = False, instrument: int = 0, **said: int,
) -> RowArray:  # fmt: skip
    """An order row; `said` is what only its payload row can say."""
    rows = np.zeros(2 if market or said else 1, ROW)
    rows[0]["kind"], rows[0]["a"], rows[0]["b"], rows[0]["px"], rows[0]["qty"] = kind, cl_ord_id, orig, px, qty
    rows[0]["flags"], rows[0]["code"] = side | (Flag.POST_ONLY if post_only else 0), tif
    rows[0]["instrument"], rows[0]["span"] = instrument, len(rows) - 1
    if len(rows) > 1:
        payload = rows.view(ORDER_PAYLOAD)[1]
        payload["kind"], payload["ord_type"] = Kind.CONT, OrdType.MARKET if market else OrdType.LIMIT
        for name, value in said.items():
            payload[name] = value
    return rows


def join(parts: Iterable[RowArray]) -> RowArray:
    return np.concatenate([part.view(np.int64) for part in parts]).view(ROW)


def reports(rows: RowArray) -> list[dict[str, Any]]:
    payload = rows.view(REPORT_PAYLOAD)
    found = []
    for i in np.flatnonzero(rows["kind"] == Kind.REPORT):
        row, rest = rows[i], payload[i + 1]
        assert row["span"] == 1 and rows[i + 1]["kind"] == Kind.CONT
        found.append(
            {
                "what": ExecType(int(row["code"]) & 255).name, "status": OrdStatus(int(row["code"]) >> 8).name,
                "id": int(row["a"]), "px": int(row["px"]), "qty": int(row["qty"]), "exec": int(row["b"]),
                "maker": bool(row["flags"] & Flag.MAKER), "side": int(row["flags"]) & 3, "ts": int(row["ts_event"]),
                "cum": int(rest["cum_qty"]), "leaves": int(rest["leaves_qty"]), "code": int(rest["venue_code"]),
                "text": bytes(rest["text"]).decode(), "fee": int(rest["fee"]), "asset": int(rest["fee_asset"]),
                "venue_id": int(rest["venue_order_id"]),
            }
        )  # fmt: skip
    return found


def brief(rows: RowArray) -> list[tuple[str, str, int]]:
    return [(r["what"], r["status"], r["qty"] if r["what"] == "FILL" else r["cum"]) for r in reports(rows)]


class Mirror:
    """A client's book of the public rows."""

    def __init__(self, exchange: MatchingExchange) -> None:
        self.seq, bids, asks = exchange.snapshot(0)
        self.side = {1: dict(bids), 2: dict(asks)}
        self.touch = {1: bids[0], 2: asks[0]}
        self.trade_id = 0

    def apply(self, rows: RowArray) -> None:
        for r in rows:
            side = int(r["flags"]) & 3
            px, qty, a = int(r["px"]), int(r["qty"]), int(r["a"])
            if r["kind"] == Kind.LEVEL:
                assert a in (self.seq, self.seq + 1)
                self.seq = a
                self.side[side].pop(px, None)
                if qty:
                    self.side[side][px] = qty
            elif r["kind"] == Kind.QUOTE:
                self.touch[side] = (px, qty)
            elif r["kind"] == Kind.TRADE:
                assert a == self.trade_id + 1 and int(r["b"]) == self.seq + (int(r["b"]) != self.seq)
                self.trade_id = a
            if r["flags"] & Flag.LAST:
                assert max(self.side[1]) < min(self.side[2])
                assert self.touch[1] == (max(self.side[1]), self.side[1][max(self.side[1])])
                assert self.touch[2] == (min(self.side[2]), self.side[2][min(self.side[2])])

    def assert_equals(self, exchange: MatchingExchange) -> None:
        seq, bids, asks = exchange.snapshot(0)
        assert (seq, dict(bids), dict(asks)) == (self.seq, self.side[1], self.side[2])


def stir(exchange: MatchingExchange, seed: int, steps: int = 150) -> Iterable[RowArray]:
    """Random own requests between slices of flow."""
    rng = np.random.default_rng(seed)
    start = exchange.now_ns
    for i in range(1, steps):
        now = start + i * 20_000_000
        _, bids, asks = exchange.snapshot(0)
        side = int(rng.integers(1, 3))
        px = (bids if side == BUY else asks)[int(rng.integers(0, 4))][0]
        px += int(rng.integers(-3, 4))
        tif = [Tif.GTC, Tif.GTC, Tif.IOC, Tif.FOK][int(rng.integers(0, 4))]
        qty = int(rng.integers(1, 60_000))
        yield exchange.advance(now - 1_000)
        match int(rng.integers(0, 5)):
            case 0 | 1:
                yield exchange.send(order(Kind.SUBMIT, i, side, px, qty, tif=tif), now)
            case 2:
                yield exchange.send(order(Kind.SUBMIT, i, side, 0, qty, market=True), now)
            case 3:
                yield exchange.send(order(Kind.CANCEL, int(rng.integers(1, i + 1))), now)
            case _:
                old = int(rng.integers(1, i + 1))
                yield exchange.send(order(Kind.REPLACE_ORDER, i, side, px, qty, orig=old), now)


def stir_rarer(exchange: MatchingExchange, seed: int, steps: int = 250, slices: int = 1) -> Iterable[RowArray]:
    """Stops, icebergs, minimum quantities and dated orders between slices of flow."""
    rng = np.random.default_rng(seed)
    start = exchange.now_ns
    for i in range(1, steps):
        now = start + i * 20_000_000
        for part in range(1, slices + 1):
            yield exchange.advance(now - 20_000_000 + part * 19_000_000 // slices)
        _, bids, asks = exchange.snapshot(0)
        side, other = (int(s) for s in rng.permutation([BUY, SELL]))
        touch = {BUY: bids[0][0], SELL: asks[0][0]}
        away = int(rng.integers(0, 4)) * (1 if side == BUY else -1)
        qty, expire = int(rng.integers(2, 30_000)), now + int(rng.integers(1, 2 * SECOND))
        tif = [Tif.GTC, Tif.GTD][int(rng.integers(0, 2))]
        stop = {"stop_px": touch[other] + away, "expire_ts": expire}
        kind, old = (Kind.SUBMIT, 0) if rng.random() < 0.8 else (Kind.REPLACE_ORDER, int(rng.integers(1, i + 1)))
        match int(rng.integers(0, 6)):
            case 0:
                request = order(kind, i, side, 0, qty, orig=old, tif=tif, ord_type=OrdType.STOP, **stop)
            case 1:
                limit = touch[other] - away
                request = order(kind, i, side, limit, qty, orig=old, tif=tif, ord_type=OrdType.STOP_LIMIT, **stop)
            case 2 | 3:
                shown = max(int(rng.integers(1, qty)), qty // 50)
                request = order(
                    kind, i, side, touch[side], qty, orig=old, tif=tif, display_qty=shown, expire_ts=expire
                )
            case 4:
                request = order(kind, i, side, touch[other], qty, orig=old, min_qty=int(rng.integers(1, qty)))
            case _:
                request = order(Kind.CANCEL, int(rng.integers(1, i + 1)))
        yield exchange.send(request, now)


@pytest.mark.parametrize("stir", [stir, stir_rarer])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_public_rows_rebuild_the_book_and_the_touch_with_own_orders_in_it(seed: int, stir: Any) -> None:
    exchange = MatchingExchange([BTC], seed=seed)
    mirror = Mirror(exchange)
    for rows in stir(exchange, seed):
        mirror.apply(rows)
        mirror.assert_equals(exchange)


@pytest.mark.parametrize("stir", [stir, stir_rarer])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quantity_is_conserved_and_every_fill_is_a_public_trade(seed: int, stir: Any) -> None:
    exchange = MatchingExchange([BTC], seed=seed)
    rows = join(stir(exchange, seed))
    trades = {int(r["a"]): r for r in rows[rows["kind"] == Kind.TRADE]}
    asked: dict[int, int] = {}
    cum: dict[int, int] = {}
    fills = 0
    for r in reports(rows):
        if r["what"] in ("ACK", "REPLACED"):
            asked[r["id"]], cum[r["id"]] = r["qty"], 0
        elif r["what"] == "FILL":
            fills += 1
            cum[r["id"]] += r["qty"]
            trade = trades[r["exec"]]
            assert (int(trade["px"]), int(trade["qty"])) == (r["px"], r["qty"])
            aggressor = int(trade["flags"]) & 3
            assert r["side"] == (3 - aggressor if r["maker"] else aggressor)
            assert r["leaves"] == asked[r["id"]] - cum[r["id"]]
            assert r["status"] == ("FILLED" if r["leaves"] == 0 else "PARTIALLY_FILLED")
        if r["what"] not in ("REJECT", "CANCEL_REJECT"):
            assert r["cum"] == cum[r["id"]] and r["venue_id"] > 0
        if r["what"] in ("CANCELED", "EXPIRED"):
            assert r["leaves"] == 0
    assert fills > 30 and len({r["status"] for r in reports(rows)}) >= 6


def test_how_time_is_sliced_changes_no_row_where_stops_trigger_and_orders_expire() -> None:
    whole, sliced = (join(stir_rarer(MatchingExchange([BTC], seed=4), 4, slices=n)) for n in (1, 7))
    assert whole.tobytes() == sliced.tobytes()
    assert {"EXPIRED", "FILL", "CANCELED", "REPLACED"} <= {r["what"] for r in reports(whole)}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    def run(seed: int) -> bytes:
        return join(stir(MatchingExchange([BTC], seed=seed), 5)).tobytes()

    assert run(1) == run(1)
    assert run(1) != run(2)


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(-10**6, 10**6), st.booleans())
@settings(deadline=None)
def test_fees_are_exact_and_halves_go_against_the_trader(px: int, qty: int, rate: int, maker: bool) -> None:
    fees = Fees(maker_e8=rate if maker else 7, taker_e8=7 if maker else rate)
    exact = Fraction(BTC.money(px * qty)) * rate  # quote x 1e-8 over 1e-8
    charged = fees.charge(BTC, px, qty, maker=maker)
    assert Fraction(-1, 2) < charged - exact <= Fraction(1, 2)


def test_a_fee_of_exactly_half_a_unit_is_rounded_up_for_cost_and_for_rebate() -> None:
    coarse = Instrument(0, "sim", "X", Decimal("0.5"), Decimal(1))
    assert Fees(1, -1).charge(coarse, 1, 1, maker=True) == 1
    assert Fees(1, -1).charge(coarse, 1, 1, maker=False) == 0


def test_reports_carry_the_fee_of_their_fill() -> None:
    fees = Fees(maker_e8=-5_000, taker_e8=40_000)
    exchange = MatchingExchange([BTC, ETH], seed=3, fees=fees)
    rows = exchange.send(order(Kind.SUBMIT, 1, BUY, qty=300_000, market=True), exchange.now_ns)
    fills = [r for r in reports(rows) if r["what"] == "FILL"]
    assert len(fills) > 3
    for r in fills:
        assert r["fee"] == fees.charge(BTC, r["px"], r["qty"], maker=False)
        assert exchange.assets[r["asset"]] == "USDT"


def quiet(**kwargs: Any) -> MatchingExchange:
    """An exchange whose flow hardly ever comes."""
    return MatchingExchange([BTC], flow=FlowParams(events_per_s=0.1, jumps_per_s=0), **kwargs)


def test_a_limit_order_at_the_touch_waits_its_turn() -> None:
    exchange = quiet()
    px, queue = exchange.snapshot(0)[1][0]
    now = exchange.now_ns
    exchange.send(order(Kind.SUBMIT, 1, BUY, px, 10, post_only=True), now)
    exchange.send(order(Kind.SUBMIT, 2, BUY, px, 10), now)
    assert exchange.snapshot(0)[1][0] == (px, queue + 20)


def test_own_orders_never_trade_with_each_other() -> None:
    exchange = quiet()
    ask, shown = exchange.snapshot(0)[2][0]
    exchange.send(order(Kind.SUBMIT, 1, SELL, ask, 5), exchange.now_ns)
    rows = exchange.send(order(Kind.SUBMIT, 2, BUY, ask, shown + 5, tif=Tif.IOC), exchange.now_ns)
    mine = [r for r in reports(rows) if r["id"] == 1]
    assert [(r["what"], r["cum"]) for r in mine] == [("EXPIRED", 0)]


def test_the_time_in_force_decides_what_becomes_of_the_rest() -> None:
    exchange = quiet()
    px, shown = exchange.snapshot(0)[2][0]
    now = exchange.now_ns
    assert brief(exchange.send(order(Kind.SUBMIT, 1, BUY, px, shown + 1, tif=Tif.FOK), now)) == [
        ("ACK", "NEW", 0),
        ("EXPIRED", "EXPIRED", 0),
    ]
    assert reports(exchange.send(order(Kind.SUBMIT, 2, BUY, px, shown + 1, post_only=True), now))[0]["code"] == -2010
    what = brief(exchange.send(order(Kind.SUBMIT, 3, BUY, px, shown + 1, tif=Tif.IOC), now))
    assert what[0][0] == "ACK" and what[-1] == ("EXPIRED", "EXPIRED", shown)
    assert sum(q for w, _, q in what if w == "FILL") == shown


def test_a_market_order_larger_than_the_book_expires_and_the_book_is_two_sided_again() -> None:
    exchange = quiet()
    rows = exchange.send(order(Kind.SUBMIT, 1, SELL, 0, 2**40, market=True), exchange.now_ns)
    assert brief(rows)[-1][:2] == ("EXPIRED", "EXPIRED")
    _, bids, asks = exchange.snapshot(0)
    assert len(bids) >= 20 and len(asks) >= 20


def test_cancel_after_fill_is_cancel_rejected() -> None:
    exchange = quiet()
    px, _ = exchange.snapshot(0)[2][0]
    exchange.send(order(Kind.SUBMIT, 1, BUY, px, 1), exchange.now_ns)
    (answer,) = reports(exchange.send(order(Kind.CANCEL, 1), exchange.now_ns))
    assert (answer["what"], answer["code"], answer["id"]) == ("CANCEL_REJECT", -2011, 1)


def test_a_replace_is_a_new_order_and_a_refused_one_leaves_the_old() -> None:
    exchange = quiet()
    (bid, shown), (ask, _) = exchange.snapshot(0)[1][0], exchange.snapshot(0)[2][0]
    now = exchange.now_ns
    exchange.send(order(Kind.SUBMIT, 1, BUY, bid, 10), now)
    refused = exchange.send(order(Kind.REPLACE_ORDER, 2, BUY, ask, 10, orig=1, post_only=True), now)
    assert [(r["what"], r["id"], r["code"]) for r in reports(refused)] == [("REJECT", 2, -2010)]
    assert exchange.snapshot(0)[1][0] == (bid, shown + 10)
    (done,) = reports(exchange.send(order(Kind.REPLACE_ORDER, 3, BUY, bid, 4, orig=1), now))
    assert (done["what"], done["id"], done["px"], done["qty"], done["leaves"]) == ("REPLACED", 3, bid, 4, 4)
    assert exchange.snapshot(0)[1][0] == (bid, shown + 4)
    assert reports(exchange.send(order(Kind.CANCEL, 1), now))[0]["what"] == "CANCEL_REJECT"
    assert reports(exchange.send(order(Kind.CANCEL, 3), now))[0]["what"] == "CANCELED"


@pytest.mark.parametrize(("keeps", "first"), [(True, 2), (False, 3)])
def test_a_smaller_replace_keeps_its_place_only_where_the_exchange_says_so(keeps: bool, first: int) -> None:
    exchange = quiet(replace_keeps_priority=keeps)
    bid, ask = exchange.snapshot(0)[1][0][0], exchange.snapshot(0)[2][0][0]
    now = exchange.now_ns
    px = bid + 1 if ask - bid > 1 else bid
    exchange.send(order(Kind.SUBMIT, 1, BUY, px, 10), now)
    exchange.send(order(Kind.SUBMIT, 3, BUY, px, 10), now)
    (done,) = reports(exchange.send(order(Kind.REPLACE_ORDER, 2, BUY, px, 4, orig=1), now))
    assert (done["what"], done["leaves"]) == ("REPLACED", 4)
    until = now
    filled: list[int] = []
    while not filled:
        until += 60 * SECOND
        filled = [r["id"] for r in reports(exchange.advance(until)) if r["what"] == "FILL"]
    assert filled[0] == first


def test_a_stop_enters_after_the_trade_that_touches_it_and_says_nothing_before() -> None:
    exchange = quiet()
    (bid, _), (ask, shown) = exchange.snapshot(0)[1][0], exchange.snapshot(0)[2][0]
    now = exchange.now_ns
    stop = order(Kind.SUBMIT, 1, BUY, 0, 7, ord_type=OrdType.STOP, stop_px=ask)
    assert brief(exchange.send(stop, now)) == [("ACK", "NEW", 0)]
    assert exchange.snapshot(0)[1][0][0] == bid
    rows = exchange.send(order(Kind.SUBMIT, 2, BUY, ask, 1), now)
    assert shown > 8
    assert [(r["id"], r["what"], r["qty"], r["maker"]) for r in reports(rows)] == [
        (2, "ACK", 1, False), (2, "FILL", 1, False), (1, "FILL", 7, False),
    ]  # fmt: skip
    assert reports(exchange.send(order(Kind.CANCEL, 1), now))[0]["what"] == "CANCEL_REJECT"


def test_touched_stops_enter_nearest_first_and_may_touch_the_next() -> None:
    exchange = quiet()
    asks = exchange.snapshot(0)[2]
    now = exchange.now_ns
    far, near = asks[1][0], asks[0][0]
    for cl_ord_id, stop_px, qty in ((1, far, 3), (2, near, asks[0][1]), (3, near, 2)):
        exchange.send(order(Kind.SUBMIT, cl_ord_id, BUY, 0, qty, ord_type=OrdType.STOP, stop_px=stop_px), now)
    fills = [r for r in reports(exchange.send(order(Kind.SUBMIT, 4, BUY, near, 1), now)) if r["what"] == "FILL"]
    assert list(dict.fromkeys(r["id"] for r in fills)) == [4, 2, 3, 1]
    assert {r["px"] for r in fills if r["id"] == 2} == {near, far}
    assert {r["px"] for r in fills if r["id"] in (1, 3)} == {far}


def test_a_stop_limit_rests_at_its_limit_and_the_flow_triggers_it_too() -> None:
    exchange = MatchingExchange([BTC], seed=2)
    (bid, _), (ask, _) = exchange.snapshot(0)[1][0], exchange.snapshot(0)[2][0]
    exchange.send(
        order(Kind.SUBMIT, 1, SELL, ask + 50, 9, ord_type=OrdType.STOP_LIMIT, stop_px=bid), exchange.now_ns
    )
    before = dict(exchange.snapshot(0)[2]).get(ask + 50, 0)
    rows = exchange.advance(exchange.now_ns + 5 * SECOND)
    prints = rows[rows["kind"] == Kind.TRADE]
    touch = int(prints["ts_event"][prints["px"] <= bid][0])
    rested = rows[(rows["kind"] == Kind.LEVEL) & (rows["px"] == ask + 50) & (rows["ts_event"] == touch)]
    assert [int(r["qty"]) for r in rested][-1:] == [before + 9]
    (canceled,) = reports(exchange.send(order(Kind.CANCEL, 1), exchange.now_ns))
    assert (canceled["what"], canceled["cum"]) == ("CANCELED", 0)


def test_a_waiting_stop_can_be_canceled_and_replaced_by_a_stop_only() -> None:
    exchange = quiet()
    ask = exchange.snapshot(0)[2][0][0]
    now = exchange.now_ns
    exchange.send(order(Kind.SUBMIT, 1, BUY, 0, 7, ord_type=OrdType.STOP, stop_px=ask), now)
    (no,) = reports(exchange.send(order(Kind.REPLACE_ORDER, 2, BUY, ask, 1, orig=1), now))
    assert (no["what"], no["id"], no["code"]) == ("REJECT", 2, -1116)
    stop = order(Kind.REPLACE_ORDER, 3, BUY, 0, 4, orig=1, ord_type=OrdType.STOP, stop_px=ask + 1)
    (yes,) = reports(exchange.send(stop, now))
    assert (yes["what"], yes["id"], yes["leaves"]) == ("REPLACED", 3, 4)
    assert [r["id"] for r in reports(exchange.send(order(Kind.SUBMIT, 4, BUY, ask, 1), now))] == [4, 4]
    assert [r["what"] for r in reports(exchange.send(order(Kind.CANCEL, 1), now))] == ["CANCEL_REJECT"]
    assert [r["what"] for r in reports(exchange.send(order(Kind.CANCEL, 3), now))] == ["CANCELED"]


def test_an_iceberg_shows_a_slice_and_fills_in_slices() -> None:
    exchange = quiet()
    (bid, _), (ask, _) = exchange.snapshot(0)[1][0], exchange.snapshot(0)[2][0]
    assert ask - bid == 1
    now = exchange.now_ns
    shown = exchange.snapshot(0)[2][0][1]
    exchange.send(order(Kind.SUBMIT, 1, SELL, ask, 10, display_qty=3), now)
    assert exchange.snapshot(0)[2][0] == (ask, shown + 3)
    until = now
    filled: list[tuple[int, int]] = []
    while sum(qty for qty, _ in filled) < 10:
        until += 60 * SECOND
        rows = exchange.advance(until)
        filled += [(r["qty"], r["leaves"]) for r in reports(rows) if r["what"] == "FILL"]
    assert max(qty for qty, _ in filled) <= 3 and filled[-1][1] == 0


def test_a_minimum_quantity_trades_at_once_or_the_order_expires_whole() -> None:
    exchange = quiet()
    ask, shown = exchange.snapshot(0)[2][0]
    now = exchange.now_ns
    assert brief(exchange.send(order(Kind.SUBMIT, 1, BUY, ask, shown + 5, min_qty=shown + 1), now)) == [
        ("ACK", "NEW", 0), ("EXPIRED", "EXPIRED", 0),
    ]  # fmt: skip
    assert exchange.snapshot(0)[2][0] == (ask, shown)
    what = brief(exchange.send(order(Kind.SUBMIT, 2, BUY, ask, shown + 5, min_qty=shown), now))
    assert sum(qty for w, _, qty in what if w == "FILL") == shown
    assert exchange.snapshot(0)[1][0] == (ask, 5)


def test_a_dated_order_and_a_dated_stop_expire_at_their_time_and_not_before() -> None:
    exchange = quiet()
    bid, ask = exchange.snapshot(0)[1][0][0], exchange.snapshot(0)[2][0][0]
    now, end = exchange.now_ns, exchange.now_ns + SECOND
    exchange.send(order(Kind.SUBMIT, 1, BUY, bid - 5, 3, tif=Tif.GTD, expire_ts=end), now)
    stop = {"ord_type": OrdType.STOP, "stop_px": ask + 500, "expire_ts": end - 1}
    exchange.send(order(Kind.SUBMIT, 2, BUY, 0, 3, tif=Tif.GTD, **stop), now)
    assert exchange.next_event_ns() <= end - 1
    assert reports(exchange.advance(end - 2)) == []
    assert [(r["id"], r["what"], r["ts"]) for r in reports(exchange.advance(end + 5))] == [
        (2, "EXPIRED", end - 1), (1, "EXPIRED", end),
    ]  # fmt: skip
    assert exchange.next_event_ns() > end


SPECIAL = [
    ({"ord_type": 9}, -1116, "invalid type"),
    ({"ord_type": OrdType.STOP_LIMIT, "stop_px": 5}, -1013, "PERCENT_PRICE"),
    ({"ord_type": OrdType.STOP_LIMIT, "stop_px": 6_183_000, "post_only": True}, -1116, "invalid type"),
    ({"display_qty": 11}, -1013, "LOT_SIZE"),
    ({"display_qty": -1}, -1013, "LOT_SIZE"),
    ({"min_qty": 11}, -1013, "LOT_SIZE"),
    ({"display_qty": 2, "tif": Tif.IOC}, -1013, "ICEBERG_PARTS"),
    ({"min_qty": 2, "post_only": True}, -1116, "invalid type"),
    ({"expire_ts": 1, "tif": Tif.GTD}, -1115, "invalid tif"),
]


@pytest.mark.parametrize(("said", "code", "text"), SPECIAL)
def test_what_does_not_go_together_is_rejected_and_changes_nothing(said: Any, code: int, text: str) -> None:
    exchange = quiet()
    before = exchange.snapshot(0)
    (answer,) = reports(exchange.send(order(Kind.SUBMIT, 5, BUY, 6_183_000, 10, **said), exchange.now_ns))
    assert (answer["what"], answer["code"], answer["text"]) == ("REJECT", code, text)
    assert exchange.snapshot(0) == before


def test_a_stop_that_the_last_trade_touches_is_rejected() -> None:
    exchange = quiet()
    ask = exchange.snapshot(0)[2][0][0]
    exchange.send(order(Kind.SUBMIT, 1, BUY, ask, 1), exchange.now_ns)
    stop = order(Kind.SUBMIT, 2, BUY, 0, 1, ord_type=OrdType.STOP, stop_px=ask)
    (answer,) = reports(exchange.send(stop, exchange.now_ns))
    assert (answer["what"], answer["code"], answer["text"]) == ("REJECT", -2010, "would trigger")


def test_beside_a_recording_only_plain_orders_are_taken() -> None:
    exchange = recorded(recording())
    for said in ({"ord_type": OrdType.STOP_LIMIT, "stop_px": 6_183_000}, {"display_qty": 2}, {"min_qty": 2}):
        (answer,) = reports(exchange.send(order(Kind.SUBMIT, 1, BUY, 6_180_000, 5, **said), START))
        assert (answer["what"], answer["code"]) == ("REJECT", -1116)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (order(Kind.SUBMIT, 5, BUY, 6_183_000, 1, instrument=9), -1121, "invalid symbol"),
        (order(Kind.SUBMIT, 5, 3, 6_183_000, 1), -1117, "invalid side"),
        (order(Kind.SUBMIT, 5, BUY, 6_183_000, 1, tif=Tif.GTD), -1115, "invalid tif"),
        (order(Kind.SUBMIT, 0, BUY, 6_183_000, 1), -1100, "bad cl_ord_id"),
        (order(Kind.SUBMIT, 1, BUY, 6_183_000, 1), -2010, "duplicate order"),
        (order(Kind.SUBMIT, 5, BUY, 6_183_000, 0), -1013, "LOT_SIZE"),
        (order(Kind.SUBMIT, 5, BUY, 6_183_000, 2**62), -1013, "LOT_SIZE"),
        (order(Kind.SUBMIT, 5, BUY, -1, 1), -1013, "PRICE_FILTER"),
        (order(Kind.SUBMIT, 5, BUY, 100, 1), -1013, "PERCENT_PRICE"),
        (order(Kind.REPLACE_ORDER, 5, BUY, 6_183_000, 1, orig=4), -2011, "unknown order"),
        (order(Kind.REPLACE_ORDER, 5, SELL, 6_184_000, 1, orig=1), -1117, "invalid side"),
    ],
)
def test_a_bad_request_is_rejected_with_its_code_and_changes_nothing(request_: RowArray, code: int, text: str) -> None:
    for exchange in (quiet(), recorded(recording())):
        exchange.send(order(Kind.SUBMIT, 1, BUY, 6_180_000, 1), START)
        before = exchange.snapshot(0)
        (answer,) = reports(exchange.send(request_, START))
        assert (answer["what"], answer["code"], answer["text"]) == ("REJECT", code, text)
        assert exchange.snapshot(0) == before


def test_open_orders_are_bounded() -> None:
    exchange = quiet()
    rows = join([order(Kind.SUBMIT, i, BUY, 6_180_000, 1) for i in range(1, MAX_OPEN_ORDERS + 2)])
    answers = reports(exchange.send(rows, exchange.now_ns))
    assert [a["what"] for a in answers[:-1]] == ["ACK"] * MAX_OPEN_ORDERS
    assert (answers[-1]["what"], answers[-1]["text"]) == ("REJECT", "MAX_NUM_ORDERS")


def test_time_does_not_run_backwards_and_only_order_rows_are_taken() -> None:
    exchange = quiet()
    with pytest.raises(ValueError, match="until_ns is 5; expected now_ns="):
        exchange.advance(5)
    bad = np.zeros(1, ROW)
    with pytest.raises(ValueError, match=r"rows\[0\] has kind 0"):
        exchange.send(bad, exchange.now_ns)
    cut = order(Kind.SUBMIT, 1, BUY, 0, 5, market=True)[:1]
    with pytest.raises(ValueError, match="announces 1 payload rows; only 0"):
        exchange.send(cut, exchange.now_ns)


def test_instruments_must_be_given_once_and_have_flow_parameters() -> None:
    with pytest.raises(ConfigError, match="instruments is empty"):
        MatchingExchange([])
    with pytest.raises(ConfigError, match="repeat"):
        RecordedExchange([BTC, BTC])
    with pytest.raises(ConfigError, match="no parameters for instrument 1"):
        MatchingExchange([BTC, ETH], flow={0: FlowParams()})


# own orders beside a recording: bids 100 x 6_183_700 and down, asks 6_183_702 and up

START = 1_767_225_600_000_000_000


def row(kind: Kind, side: int = 0, px: int = 0, qty: int = 0, *, last: bool = True, code: int = 0, ts: int = 7) -> Any:
    rows = np.zeros(1, ROW)
    r = rows[0]
    r["kind"], r["px"], r["qty"], r["code"], r["ts_event"], r["a"] = kind, px, qty, code, ts, 11
    r["flags"] = side | (Flag.LAST if last else 0)
    return rows


BID, ASK = 6_183_700, 6_183_702


def recording() -> RowArray:
    levels = [row(Kind.LEVEL, BUY, BID - i, 100, last=False) for i in range(5)]
    levels += [row(Kind.LEVEL, SELL, ASK + i, 100, last=i == 4) for i in range(5)]
    return join([row(Kind.CLEAR, last=False), *levels])


def recorded(rows: RowArray) -> RecordedExchange:
    exchange = RecordedExchange([BTC], fees=Fees(0, 0))
    assert len(exchange.on_market(rows)) == 0
    return exchange


def resting(px: int = BID, qty: int = 10, side: int = BUY) -> RecordedExchange:
    exchange = recorded(recording())
    assert brief(exchange.send(order(Kind.SUBMIT, 1, side, px, qty), 5)) == [("ACK", "NEW", 0)]
    return exchange


def fills(rows: RowArray) -> list[tuple[int, int, int]]:
    return [(r["id"], r["px"], r["qty"]) for r in reports(rows) if r["what"] == "FILL"]


def test_the_recorded_book_is_what_the_rows_say() -> None:
    seq, bids, asks = recorded(recording()).snapshot(0, limit=2)
    assert (seq, bids, asks) == (11, [(BID, 100), (BID - 1, 100)], [(ASK, 100), (ASK + 1, 100)])


def test_an_order_waits_behind_the_recorded_lots_and_then_fills_up_to_the_trade() -> None:
    exchange = resting()
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 60))) == []
    out = exchange.on_market(row(Kind.TRADE, SELL, BID, 44))  # 40 were ahead
    assert fills(out) == [(1, BID, 4)]
    assert reports(out)[0]["maker"] and reports(out)[0]["ts"] == 7
    assert brief(exchange.on_market(row(Kind.TRADE, SELL, BID, 1000))) == [("FILL", "FILLED", 6)]


def test_the_wrong_aggressor_and_a_worse_price_do_not_fill() -> None:
    exchange = resting()
    assert fills(exchange.on_market(row(Kind.TRADE, BUY, BID, 1000))) == []
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID + 1, 1000))) == []


def test_a_trade_through_the_price_fills_at_the_orders_price_whatever_the_queue() -> None:
    exchange = resting()
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID - 1, 7))) == [(1, BID, 7)]


def test_the_queue_shrinks_to_the_level_when_the_level_shows_less() -> None:
    exchange = resting()
    exchange.on_market(row(Kind.LEVEL, BUY, BID, 3))
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 5))) == [(1, BID, 2)]


def test_a_level_that_grows_again_stands_behind() -> None:
    exchange = resting()
    exchange.on_market(join([row(Kind.LEVEL, BUY, BID, 3), row(Kind.LEVEL, BUY, BID, 500)]))
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 5))) == [(1, BID, 2)]


def test_a_level_cleared_and_shown_again_within_one_message_keeps_the_queue() -> None:
    exchange = resting()
    exchange.on_market(recording())
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 100))) == []


def test_two_own_orders_at_one_level_keep_their_order_and_share_the_trade() -> None:
    exchange = resting()
    exchange.send(order(Kind.SUBMIT, 2, BUY, BID, 10), 6)
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 115))) == [(1, BID, 10), (2, BID, 5)]


def test_the_best_priced_own_order_fills_first_and_no_lot_fills_twice() -> None:
    exchange = resting(BID - 1)
    exchange.send(order(Kind.SUBMIT, 2, BUY, BID + 1, 10), 6)
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID - 2, 13))) == [(2, BID + 1, 10), (1, BID - 1, 3)]


def test_new_quantity_displayed_against_an_order_fills_it() -> None:
    exchange = resting(BID + 1)
    out = exchange.on_market(row(Kind.LEVEL, SELL, BID + 1, 4))
    assert fills(out) == [(1, BID + 1, 4)]
    assert fills(exchange.on_market(row(Kind.LEVEL, SELL, BID + 1, 4))) == []  # nothing new
    assert fills(exchange.on_market(row(Kind.LEVEL, SELL, BID, 100))) == [(1, BID + 1, 6)]


def test_a_marketable_order_takes_displayed_lots_and_leaves_them_there() -> None:
    exchange = recorded(recording())
    before = exchange.snapshot(0)
    out = exchange.send(order(Kind.SUBMIT, 1, BUY, ASK + 1, 250), 5)
    assert fills(out) == [(1, ASK, 100), (1, ASK + 1, 100)]
    assert exchange.snapshot(0) == before
    assert not any(r["maker"] for r in reports(out))


def test_beside_a_recording_ioc_fok_post_only_and_market_keep_their_rules() -> None:
    exchange = recorded(recording())
    assert brief(exchange.send(order(Kind.SUBMIT, 1, BUY, ASK, 101, tif=Tif.FOK), 5))[1] == ("EXPIRED", "EXPIRED", 0)
    assert brief(exchange.send(order(Kind.SUBMIT, 2, BUY, ASK, 101, tif=Tif.IOC), 5))[1:] == [
        ("FILL", "PARTIALLY_FILLED", 100),
        ("EXPIRED", "EXPIRED", 100),
    ]
    assert reports(exchange.send(order(Kind.SUBMIT, 3, BUY, ASK, 1, post_only=True), 5))[0]["code"] == -2010
    out = exchange.send(order(Kind.SUBMIT, 4, SELL, 0, 1000, market=True), 5)
    assert fills(out) == [(4, BID - i, 100) for i in range(5)]
    assert brief(out)[-1] == ("EXPIRED", "EXPIRED", 500) and reports(out)[0]["px"] == 0


def test_beside_a_recording_own_orders_never_trade_with_each_other() -> None:
    exchange = resting(ASK - 1, 10, SELL)
    out = exchange.send(order(Kind.SUBMIT, 2, BUY, ASK - 1, 5), 6)
    assert [(r["id"], r["what"]) for r in reports(out)] == [(2, "ACK"), (1, "EXPIRED")]


def test_beside_a_recording_a_replace_goes_to_the_back_and_a_cancel_ends_it() -> None:
    exchange = resting()
    exchange.on_market(row(Kind.TRADE, SELL, BID, 90))
    (done,) = reports(exchange.send(order(Kind.REPLACE_ORDER, 2, BUY, BID, 8, orig=1), 6))
    assert (done["what"], done["id"], done["qty"]) == ("REPLACED", 2, 8)
    assert fills(exchange.on_market(row(Kind.TRADE, SELL, BID, 101))) == [(2, BID, 1)]
    assert brief(exchange.send(order(Kind.CANCEL, 2), 7)) == [("CANCELED", "CANCELED", 1)]
    assert brief(exchange.send(order(Kind.CANCEL, 2), 7)) == [("CANCEL_REJECT", "NONE", 0)]


def test_while_the_recorded_book_is_not_live_new_orders_are_rejected_and_cancels_work() -> None:
    exchange = resting()
    exchange.on_market(row(Kind.BOOK_STATE, code=BookState.RESYNCING))
    assert reports(exchange.send(order(Kind.SUBMIT, 2, BUY, BID, 1), 6))[0]["text"] == "book not live"
    assert brief(exchange.send(order(Kind.CANCEL, 1), 6)) == [("CANCELED", "CANCELED", 0)]
    exchange.on_market(join([recording(), row(Kind.BOOK_STATE, code=BookState.LIVE)]))
    assert brief(exchange.send(order(Kind.SUBMIT, 2, BUY, BID, 1), 6)) == [("ACK", "NEW", 0)]


@given(
    st.lists(
        st.tuples(st.sampled_from([BUY, SELL]), st.integers(BID - 3, ASK + 3), st.integers(1, 80), st.integers(0, 3)),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=150)
def test_beside_a_recording_no_trade_fills_more_than_its_quantity(events: list[tuple[int, int, int, int]]) -> None:
    exchange = recorded(recording())
    for i, (side, px, qty, verb) in enumerate(events, 1):
        if verb == 0:
            exchange.send(order(Kind.SUBMIT, i, side, px, qty, post_only=True), i)
        elif verb == 1:
            exchange.send(order(Kind.CANCEL, max(i - qty % 7, 1)), i)
        elif verb == 2:
            out = exchange.on_market(row(Kind.TRADE, side, px, qty))
            assert sum(q for _, _, q in fills(out)) <= qty
        else:
            out = exchange.on_market(row(Kind.LEVEL, side, px, qty))
            assert sum(q for _, _, q in fills(out)) <= qty
        for r in reports(out) if verb >= 2 else ():
            assert r["leaves"] >= 0 and (r["status"] == "FILLED") == (r["leaves"] == 0)
