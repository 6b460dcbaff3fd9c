"""The rule book against a slow reference, on streams that mix every feature; invariants on a million operations."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.rows import OrdType, Side, Tif
from hftlab.kernels import rules
from hftlab.kernels.jit import kernel
from hftlab.kernels.matching import Book, Matcher, Outcome, best_px, conceal, find_order, leaves_of
from hftlab.kernels.rules import Allocation, Phase, RuledMatcher, Rules, SelfTrade, What, Why

BUY, SELL = int(Side.BUY), int(Side.SELL)
DAY, GTC, IOC, FOK, GTD = (int(t) for t in Tif)
MARKET, LIMIT, STOP, STOP_LIMIT = (int(t) for t in OrdType)
INFINITE = 2**63 - 1
Told = tuple[Any, ...]


@dataclass
class Order:
    """An order of the reference; `px` None is at market."""

    tag: int
    account: int
    side: int
    px: int | None
    qty: int
    tif: int
    display: int
    least: int
    expire: int
    stop: int | None = None
    cum: int = 0
    hidden: int = 0
    age: int = 0

    @property
    def shown(self) -> int:
        return self.qty - self.hidden


@dataclass
class Reference:
    """The rules in lists and sorting. `orders` is in time priority; an iceberg's new slice moves it to the end."""

    rules: Rules
    max_orders: int
    max_levels: int
    max_stops: int
    orders: list[Order] = field(default_factory=list)
    stops: list[Order] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    phase: Phase = Phase.CONTINUOUS
    now: int = 0
    last: int | None = None
    reference: int | None = None
    high: int | None = None
    low: int | None = None
    band: tuple[int, int] = (-rules.MAX_PX, rules.MAX_PX)
    limit: int = 0
    clear: tuple[int, int, int] | None = None
    ages: int = 0

    # -- what a call tells

    def gone(self, what: What, o: Order, why: Why) -> None:
        self.told.append((what, o.tag, o.qty, o.cum, why))

    def traded(self, px: int) -> None:
        self.last = px
        self.high = px if self.high is None else max(px, self.high)
        self.low = px if self.low is None else min(px, self.low)

    # -- the book

    def side(self, side: int) -> list[Order]:
        """Orders of a side, those that trade first at the front."""
        sign = -1 if side == BUY else 1
        found = [o for o in self.orders if o.side == side]
        return sorted(found, key=lambda o: -INFINITE if o.px is None else sign * o.px)

    def against(self, side: int, px: int | None) -> list[Order]:
        sign = 1 if side == BUY else -1
        return [o for o in self.side(3 - side) if px is None or o.px is None or sign * (px - o.px) >= 0]

    def level_of(self, o: Order) -> list[Order]:
        return [m for m in self.orders if m.side == o.side and m.px == o.px]

    def slices(self) -> int:
        return sum(-(-o.hidden // o.display) for o in self.orders if o.display)

    def has_room(self, side: int, px: int | None, qty: int, display: int) -> bool:
        prices = {o.px for o in self.orders if o.side == side}
        if len(self.orders) == self.max_orders or (px not in prices and len(prices) == self.max_levels):
            return False
        return not display or self.slices() + -(-qty // display) <= self.max_orders

    # -- trading

    def fill(self, maker: Order, qty: int, taker: Order) -> None:
        assert maker.px is not None
        taker.qty -= qty
        taker.cum += qty
        maker.qty -= qty
        maker.cum += qty
        self.told.append((What.TRADE, taker.side, maker.px, qty, maker.tag, maker.qty, maker.cum, taker.tag, taker.qty))
        self.traded(maker.px)
        if maker.qty == 0:
            self.orders.remove(maker)
        elif maker.shown == 0:
            maker.hidden -= min(maker.display, maker.hidden)
            self.orders.remove(maker)
            self.orders.append(maker)

    def trade(self, taker: Order, px: int | None) -> bool:
        """Trade; return whether self-trade prevention stopped the taker."""
        mode = self.rules.self_trade if taker.account else SelfTrade.ALLOWED
        while taker.qty and (found := self.against(taker.side, px)):
            level = self.level_of(found[0])
            pro_rata = self.rules.allocation == Allocation.PRO_RATA
            candidates = level if pro_rata else level[:1]
            own = next((o for o in candidates if o.account == taker.account), None)
            if mode != SelfTrade.ALLOWED and own is not None:
                if mode != SelfTrade.CANCEL_NEWEST:
                    self.gone(What.CANCELED, own, Why.SELF_TRADE)
                    self.orders.remove(own)
                if mode != SelfTrade.CANCEL_OLDEST:
                    return True
                continue
            if not pro_rata:
                self.fill(level[0], min(taker.qty, level[0].shown), taker)
                continue
            shown = [o.shown for o in level]
            shares = shown
            if taker.qty < sum(shown):
                shares = [taker.qty * s // sum(shown) for s in shown]
                shares = [s if s >= self.rules.min_allocation else 0 for s in shares]
                left = taker.qty - sum(shares)
                for i, s in enumerate(shown):
                    more = min(left, s - shares[i])
                    shares[i] += more
                    left -= more
            for o, share in zip(level, shares, strict=True):
                if share:
                    self.fill(o, share, taker)
        return False

    def offers(self, taker: Order, px: int | None, needed: int) -> bool:
        """Whether so much would trade at once: tried on a copy."""
        trial = Reference(self.rules, self.max_orders, self.max_levels, self.max_stops)
        trial.orders = [Order(**vars(o)) for o in self.orders]
        copy = Order(**vars(taker))
        trial.trade(copy, px)
        return copy.cum - taker.cum >= needed

    def trading_limit(self, o: Order) -> int | None:
        if o.px is not None:
            return o.px
        return None if self.phase == Phase.AUCTION else self.band[1 if o.side == BUY else 0]

    def enter(self, o: Order) -> Outcome:
        o.cum, o.hidden = 0, 0
        limit = self.trading_limit(o)
        if self.phase == Phase.CONTINUOUS:
            needed = o.qty if o.tif == FOK else o.least
            if needed and not self.offers(o, limit, needed):
                self.gone(What.EXPIRED, o, Why.TIME_IN_FORCE if o.tif == FOK else Why.MIN_QTY)
                return Outcome.EXPIRED
            if self.trade(o, limit) and o.qty:
                self.gone(What.CANCELED, o, Why.SELF_TRADE)
                return Outcome.CANCELED
        if o.qty == 0:
            return Outcome.FILLED
        if not self.may_rest(o):
            self.gone(What.EXPIRED, o, Why.TIME_IN_FORCE)
            return Outcome.EXPIRED
        if o.display:
            o.hidden = o.qty - min(o.display, o.qty)
        self.ages += 1
        o.age = self.ages
        self.orders.append(o)
        self.told.append((What.RESTING, o.tag, o.px, o.shown, o.qty, o.cum))
        return Outcome.RESTING

    def may_rest(self, o: Order) -> bool:
        return self.phase == Phase.AUCTION if o.px is None else o.tif not in (IOC, FOK)

    # -- admission

    def step_at(self, px: int) -> int:
        return [step for i, (at, step) in enumerate(self.rules.ticks) if i == 0 or at <= px][-1]

    def on_tick(self, px: int) -> bool:
        return px % self.step_at(px) == 0

    def touches(self, side: int, stop: int) -> bool:
        return self.last is not None and (self.last >= stop if side == BUY else self.last <= stop)

    def submit(self, kind: int, o: Order, post_only: bool) -> Outcome:
        self.told = []
        stops, priced, fast = kind in (STOP, STOP_LIMIT), kind in (LIMIT, STOP_LIMIT), o.tif in (IOC, FOK)
        if post_only and (kind != LIMIT or fast or o.least):
            return Outcome.BAD_ORDER
        if o.display and (not priced or fast):
            return Outcome.BAD_ORDER
        if o.qty <= 0 or o.display > o.qty or o.least > o.qty:
            return Outcome.BAD_QTY
        if (stops and not self.on_tick(o.stop or 0)) or (priced and not self.on_tick(o.px or 0)):
            return Outcome.OFF_TICK
        if priced and not self.band[0] <= (o.px or 0) <= self.band[1]:
            return Outcome.BEYOND_BAND
        if o.tif == GTD and o.expire <= self.now:
            return Outcome.BAD_TIME
        if self.phase not in (Phase.CONTINUOUS, Phase.AUCTION):
            return Outcome.BAD_PHASE
        if stops and self.touches(o.side, o.stop or 0):
            return Outcome.WOULD_TRIGGER
        if self.phase == Phase.AUCTION and not stops and (fast or o.least or post_only):
            return Outcome.BAD_PHASE
        if stops:
            if len(self.stops) == self.max_stops:
                return Outcome.STOPS_FULL
            self.ages += 1
            o.age = self.ages
            self.stops.append(o)
            self.told.append((What.PARKED, o.tag, o.stop, o.qty))
            return Outcome.PARKED
        if post_only and self.against(o.side, o.px):
            return Outcome.WOULD_CROSS
        if self.may_rest(o) and not self.has_room(o.side, o.px, o.qty, o.display):
            return Outcome.FULL
        self.told.append((What.ACCEPTED, o.tag, o.qty))
        outcome = self.enter(o)
        self.publish()
        return outcome

    def step(self) -> bool:
        """Enter the next touched stop."""
        if self.phase != Phase.CONTINUOUS:
            return False
        buys = [o for o in self.stops if o.side == BUY and self.high is not None and (o.stop or 0) <= self.high]
        sells = [o for o in self.stops if o.side == SELL and self.low is not None and (o.stop or 0) >= self.low]
        ready = sorted(buys, key=lambda o: o.stop or 0) + sorted(sells, key=lambda o: -(o.stop or 0))
        if not ready:
            self.high = self.low = None
            return False
        o = ready[0]
        self.stops.remove(o)
        self.told.append((What.TRIGGERED, o.tag, o.stop, o.qty))
        why = None
        if o.px is not None and not self.band[0] <= o.px <= self.band[1]:
            why = Why.BAND
        elif self.may_rest(o) and not self.has_room(o.side, o.px, o.qty, o.display):
            why = Why.FULL
        if why is not None:
            self.gone(What.EXPIRED, o, why)
        else:
            self.enter(o)
        self.publish()
        return True

    def find(self, tag: int) -> Order | None:
        return next((o for o in [*self.orders, *self.stops] if o.tag == tag), None)

    def cancel(self, tag: int) -> int:
        self.told = []
        o = self.find(tag)
        if o is None:
            return int(Outcome.UNKNOWN)
        self.gone(What.CANCELED, o, Why.ASKED)
        if o in self.stops:
            self.stops.remove(o)
        else:
            self.orders.remove(o)
            self.publish()
        return o.qty

    def replace(self, old: int, tag: int, px: int, qty: int, post_only: bool) -> Outcome:
        self.told = []
        o = self.find(old)
        if o is None:
            return Outcome.UNKNOWN
        if qty <= 0:
            return Outcome.BAD_QTY
        if o.px is not None and not self.on_tick(px):
            return Outcome.OFF_TICK
        if o.px is not None and not self.band[0] <= px <= self.band[1]:
            return Outcome.BEYOND_BAND
        if self.phase not in (Phase.CONTINUOUS, Phase.AUCTION):
            return Outcome.BAD_PHASE
        new_px = None if o.px is None else px
        if o in self.stops:
            if post_only:
                return Outcome.BAD_ORDER
            if qty < o.least:
                return Outcome.BAD_QTY
            o.tag, o.px, o.qty, o.display = tag, new_px, qty, min(o.display, qty)
            self.told.append((What.REPLACED, tag, qty))
            return Outcome.PARKED
        if post_only and self.phase == Phase.AUCTION:
            return Outcome.BAD_PHASE
        if post_only and self.against(o.side, new_px):
            return Outcome.WOULD_CROSS
        if new_px == o.px and qty <= o.qty:
            shown = min(o.shown, qty)
            o.tag, o.qty, o.hidden, o.cum = tag, qty, qty - shown, 0
            self.told.append((What.REPLACED, tag, qty))
            self.publish()
            return Outcome.RESTING
        at = self.orders.index(o)
        self.orders.remove(o)
        new = Order(tag, o.account, o.side, new_px, qty, o.tif, min(o.display, qty), 0, o.expire)
        if o.display and self.slices() + -(-qty // o.display) > self.max_orders:
            self.orders.insert(at, o)
            return Outcome.FULL
        if not self.has_room(o.side, new_px, qty, 0):
            self.orders.insert(at, o)
            return Outcome.FULL
        self.told.append((What.REPLACED, tag, qty))
        outcome = self.enter(new)
        self.publish()
        return outcome

    # -- time, phases, bands

    def expire(self, which: list[Order], why: Why) -> int:
        for o in which:
            self.gone(What.EXPIRED, o, why)
            (self.stops if o in self.stops else self.orders).remove(o)
        return len(which)

    def advance(self, now: int) -> int:
        self.told, self.now = [], now
        due = [o for o in [*self.orders, *self.stops] if o.tif == GTD and o.expire <= now]
        n = self.expire(sorted(due, key=lambda o: (o.expire, o.age)), Why.EXPIRY)
        if n:
            self.publish()
        return n

    def end_session(self) -> int:
        self.told = []
        of_day = [o for o in [*self.orders, *self.stops] if o.tif == DAY]
        self.phase = Phase.CLOSED
        return self.expire(sorted(of_day, key=lambda o: o.age), Why.END_OF_SESSION)

    def expire_market(self) -> None:
        self.expire(sorted((o for o in self.orders if o.px is None), key=lambda o: o.age), Why.UNCROSSED)

    def enter_phase(self, phase: Phase) -> bool:
        self.told = []
        if phase == Phase.CONTINUOUS:
            bids, asks = self.side(BUY), self.side(SELL)
            if self.phase == Phase.AUCTION or (asks and bids and self.against(SELL, asks[0].px)):
                return False
            self.expire_market()
        self.phase = phase
        if phase == Phase.AUCTION:
            self.clear = None
        self.publish()
        return True

    def set_band(self, low: int, high: int) -> int:
        self.told, self.band = [], (low, high)
        outside = [o for o in self.orders if o.px is not None and not low <= o.px <= high]
        n = self.expire(sorted(outside, key=lambda o: o.age), Why.BAND)
        self.publish()
        return n

    def publish(self) -> None:
        if self.phase == Phase.AUCTION:
            before, self.clear = self.clear, self.clearing()
            if before != self.clear:
                self.told.append((What.INDICATIVE, *(self.clear or (None, 0, 0))))
        elif self.phase == Phase.CONTINUOUS:
            bids, asks = self.side(BUY), self.side(SELL)
            limit = BUY if bids and bids[0].px == self.band[1] else SELL if asks and asks[0].px == self.band[0] else 0
            if limit != self.limit:
                self.limit = limit
                self.told.append((What.LIMIT_STATE, limit))

    # -- auctions

    def clearing(self) -> tuple[int, int, int] | None:
        """Every tick between the lowest and the highest limit, by brute force."""
        reference = self.reference if self.reference is not None else self.last
        limits = [o.px for o in self.orders if o.px is not None]
        if limits:
            prices = [p for p in range(min(limits), max(limits) + 1) if self.on_tick(p)]
        else:
            prices = [] if reference is None or not self.on_tick(reference) else [reference]
        found = []
        for p in prices:
            bids = sum(o.qty for o in self.orders if o.side == BUY and (o.px is None or o.px >= p))
            asks = sum(o.qty for o in self.orders if o.side == SELL and (o.px is None or o.px <= p))
            if min(bids, asks) and self.band[0] <= p <= self.band[1]:
                distance = p if reference is None else abs(p - reference)
                found.append(((-min(bids, asks), abs(bids - asks), distance, -p), (p, min(bids, asks), bids - asks)))
        return min(found)[1] if found else None

    def uncross(self, reference: int | None, then: Phase) -> int:
        self.told = []
        if self.phase != Phase.AUCTION:
            return int(Outcome.BAD_PHASE)
        self.reference = self.reference if reference is None else reference
        px, volume, _ = self.clearing() or (0, 0, 0)
        left = volume
        while left:
            buy, sell = self.side(BUY)[0], self.side(SELL)[0]
            qty = min(left, buy.qty, sell.qty)
            left -= qty
            for o in (buy, sell):
                o.qty -= qty
                o.cum += qty
                o.hidden = max(0, o.qty - o.display) if o.display else 0
                if not o.qty:
                    self.orders.remove(o)
            self.told.append((What.TRADE, 0, px, qty, buy.tag, buy.qty, buy.cum, sell.tag, sell.qty))
            self.traded(px)
        self.expire_market()
        self.clear, self.phase = None, then
        self.publish()
        return volume


def told(market: RuledMatcher) -> list[Told]:
    """The events of the last call as the reference tells them."""
    found: list[Told] = []
    for e in market.events:
        px = None if abs(e.px) == INFINITE else e.px
        match e.what:
            case What.TRADE:
                found.append((e.what, e.side, e.px, e.qty, e.tag, e.leaves, e.cum, e.other_tag, e.other_leaves))
            case What.RESTING:
                found.append((e.what, e.tag, px, e.qty, e.leaves, e.cum))
            case What.PARKED | What.TRIGGERED:
                found.append((e.what, e.tag, e.px, e.qty))
            case What.CANCELED | What.EXPIRED:
                found.append((e.what, e.tag, e.qty, e.cum, e.why))
            case What.INDICATIVE:
                found.append((e.what, None if e.qty == 0 else e.px, e.qty, e.leaves))
            case What.LIMIT_STATE:
                found.append((e.what, e.side))
            case _:
                found.append((e.what, e.tag, e.qty))
    return found


def queue(market: RuledMatcher, side: int) -> list[tuple[Any, ...]]:
    """Every order of a side as (tag, px, shown, open, cum), in the order in which they trade."""
    book = market.venue.book
    found = []
    for i in range(int(book.head[side - 1]) - 1, -1, -1):
        slot = int(book.levels[side - 1, i, 3])
        lots = 0
        while slot >= 0:
            o = book.orders[slot]
            lots += int(o[4])
            px = None if abs(int(o[3])) == INFINITE else int(o[3])
            found.append((int(o[1]), px, int(o[4]), int(leaves_of.py_func(book, slot)), int(o[5])))
            slot = int(o[6])
        assert lots == book.levels[side - 1, i, 1]
    return found


def parked(market: RuledMatcher) -> list[tuple[int, int]]:
    stops = market.venue.stops
    return sorted((int(o[1]), int(o[4])) for o in stops.orders[: stops.head[3]] if o[0])


def assert_same(market: RuledMatcher, reference: Reference) -> None:
    assert told(market) == reference.told
    for side in (BUY, SELL):
        assert queue(market, side) == [(o.tag, o.px, o.shown, o.qty, o.cum) for o in reference.side(side)]
    assert parked(market) == sorted((o.tag, o.qty) for o in reference.stops)
    assert market.phase == reference.phase
    assert market.venue.book.head[13] == reference.slices()
    assert market.indicative == reference.clear
    if reference.phase == Phase.CONTINUOUS:
        bids, asks = reference.side(BUY), reference.side(SELL)
        assert not bids or not asks or (bids[0].px or 0) < (asks[0].px or 0)


def id_of(market: RuledMatcher, tag: int) -> int:
    """The kernel's id of the order or stop with a tag; of none, an id that was never given."""
    venue = market.venue
    for book, bit in ((venue.book, 0), (venue.stops, rules.STOP_BIT)):
        for o in book.orders:
            if o[0] and o[1] == tag:
                return int(o[0]) | bit
    return 999 << 20


sides = st.sampled_from([BUY, SELL])
prices = st.integers(94, 107)
amounts = st.integers(0, 12)
submits = st.fixed_dictionaries(
    {
        "side": sides, "px": prices, "qty": amounts, "account": st.sampled_from([0, 0, 1, 2]),
        "ord_type": st.sampled_from([LIMIT] * 6 + [MARKET, STOP, STOP, STOP_LIMIT]),
        "tif": st.sampled_from([GTC] * 5 + [DAY, IOC, FOK, GTD]), "post_only": st.sampled_from([False] * 4 + [True]),
        "stop_px": prices, "display_qty": st.sampled_from([0, 0, 0, 1, 3]), "min_qty": st.sampled_from([0, 0, 0, 4]),
        "expire_ns": st.integers(0, 30),
    }
)  # fmt: skip
others = st.one_of(
    st.tuples(st.just("cancel"), st.integers(1, 60)),
    st.tuples(st.just("replace"), st.integers(1, 60), prices, amounts, st.booleans()),
    st.tuples(st.just("replace"), st.integers(1, 60), prices, amounts, st.just(False)),
    st.tuples(st.just("advance"), st.integers(0, 4)),
    st.tuples(st.just("enter"), st.sampled_from([Phase.AUCTION, Phase.CONTINUOUS, Phase.HALTED])),
    st.tuples(st.just("enter"), st.just(Phase.CONTINUOUS)),
    st.tuples(st.just("uncross"), st.one_of(st.none(), prices), st.sampled_from([Phase.CONTINUOUS, Phase.CLOSED])),
    st.tuples(st.just("end_session")),
    st.tuples(st.just("set_band"), st.sampled_from([(95, 105), (98, 103), (0, 1000)])),
)
books = st.builds(
    Rules, allocation=st.sampled_from(Allocation), min_allocation=st.integers(1, 3),
    self_trade=st.sampled_from(SelfTrade), ticks=st.sampled_from([((0, 1),), ((0, 1), (100, 2)), ((96, 2), (100, 5))]),
)  # fmt: skip


def act(market: RuledMatcher, reference: Reference, action: Any, tag: int) -> Any:
    """Do the same to both, and run the stops of the reference, as `RuledMatcher` runs its own; the answer."""
    answer: Any
    expected: Any
    if isinstance(action, dict):
        given_ = dict(action)
        kind = given_["ord_type"]
        priced = kind in (LIMIT, STOP_LIMIT)
        order = Order(
            tag, given_["account"], given_["side"], given_["px"] if priced else None, given_["qty"], given_["tif"],
            given_["display_qty"], given_["min_qty"], given_["expire_ns"], given_["stop_px"],
        )  # fmt: skip
        answer = market.submit(given_.pop("side"), given_.pop("px"), given_.pop("qty"), tag=tag, **given_)
        expected = reference.submit(kind, order, action["post_only"])
    else:
        verb, *words = action
        match verb:
            case "cancel":
                answer, expected = market.cancel(id_of(market, words[0])), reference.cancel(words[0])
            case "replace":
                old, px, qty, post_only = words
                answer = market.replace(id_of(market, old), px, qty, tag=tag, post_only=post_only)
                expected = reference.replace(old, tag, px, qty, post_only)
            case "advance":
                now = reference.now + words[0]
                answer, expected = market.advance(now), reference.advance(now)
            case "enter":
                answer, expected = market.enter(words[0]) is None, reference.enter_phase(words[0])
            case "uncross":
                answer, expected = market.uncross(words[0], words[1]), reference.uncross(words[0], words[1])
            case "end_session":
                answer, expected = market.end_session(), reference.end_session()
            case _:
                answer, expected = market.set_band(*words[0]), reference.set_band(*words[0])
    assert answer == expected
    while reference.step():
        pass
    assert_same(market, reference)
    return answer


@given(
    st.lists(st.one_of(submits, submits, submits, others), max_size=50), books,
    st.sampled_from([(40, 16, 8), (6, 3, 2)]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_stream_of_everything_gives_the_events_and_books_of_the_reference(
    actions: list[Any], book: Rules, bounds: tuple[int, int, int]
) -> None:
    market, reference = RuledMatcher(book, *bounds), Reference(book, *bounds)
    for tag, action in enumerate(actions, 1):
        act(market, reference, action, tag)


def drawn(chance: random.Random, tag: int) -> Any:
    """One action, mostly orders in continuous trading, so that long streams get somewhere."""
    verb = chance.random()
    px, near = chance.randint(94, 107), chance.randint(max(1, tag - 30), tag)
    if verb < 0.75:
        kind = chance.choice([LIMIT] * 7 + [MARKET, STOP, STOP_LIMIT])
        return {
            "side": chance.choice([BUY, SELL]), "px": px, "qty": chance.randint(0, 12), "ord_type": kind,
            "account": chance.choice([0, 0, 1, 2]), "tif": chance.choice([GTC] * 6 + [DAY, IOC, FOK, GTD, GTD]),
            "post_only": chance.random() < 0.1, "stop_px": chance.randint(92, 110),
            "display_qty": chance.choice([0, 0, 0, 1, 3]), "min_qty": chance.choice([0, 0, 0, 4]),
            "expire_ns": tag // 8 + chance.randint(-3, 12),
        }  # fmt: skip
    if verb < 0.97:
        return chance.choice(
            [
                ("cancel", near), ("replace", near, px, chance.randint(0, 14), chance.random() < 0.2),
                ("replace", near, px, chance.randint(1, 4), False), ("advance", 1),
            ]
        )  # fmt: skip
    return chance.choice(
        [
            ("enter", Phase.AUCTION), ("uncross", chance.choice([None, px]), Phase.CONTINUOUS),
            ("enter", Phase.CONTINUOUS), ("uncross", px, Phase.CONTINUOUS), ("enter", Phase.HALTED), ("end_session",),
            ("set_band", *chance.choice([(95, 105), (98, 103), (0, 1000), (0, 1000)])), ("enter", Phase.CONTINUOUS),
        ]
    )  # fmt: skip


def test_long_streams_agree_too_and_see_every_event_reason_and_answer() -> None:
    seen: set[Any] = set()
    for seed in range(12):
        chance = random.Random(seed)
        book = Rules(
            Allocation(seed % 2), 1 + seed % 3, SelfTrade(seed % 4), [(0, 1)] if seed < 8 else [(96, 1), (100, 2)]
        )
        bounds = (12, 6, 4) if seed % 3 == 0 else (60, 16, 24)
        market, reference = RuledMatcher(book, *bounds), Reference(book, *bounds)
        for tag in range(1, 500):
            action = drawn(chance, tag)
            if isinstance(action, dict) and action["display_qty"] > action["qty"]:
                action["display_qty"] = 0
            if isinstance(action, tuple) and action[0] == "set_band":
                action = ("set_band", action[1:])
            seen.add(act(market, reference, action, tag))
            seen.update(e.what for e in market.events)
            seen.update(e.why for e in market.events if e.what in (What.CANCELED, What.EXPIRED))
    assert set(What) | (set(Why) - {Why.NONE}) | set(Outcome) <= seen


@kernel()
def _open_lots(venue: Any) -> Any:
    total = 0
    for book in (venue.book, venue.stops):
        for slot in range(book.head[3]):
            if book.orders[slot, 0] != 0:
                total += leaves_of(book, slot)
    return total


@kernel()
def _is_wrong(venue: Any, before: Any, came: Any, plain: Any) -> Any:
    """Hold the events and books of one call to the invariants; 0, or which of them failed."""
    state, events = venue.state, venue.events
    left, over = came, 0
    for k in range(state[rules.N_EVENTS]):
        what, qty = events[k, rules.E_WHAT], events[k, rules.E_QTY]
        if what == 3:  # TRADE
            over += 2 * qty
            again = k > 0 and events[k - 1, rules.E_WHAT] == 3
            if again and events[k, rules.E_SIDE] != 0:
                worse = events[k, rules.E_PX] - events[k - 1, rules.E_PX]
                if (worse if events[k, rules.E_SIDE] == 1 else -worse) < 0:
                    return 1
                if plain and worse == 0 and events[k, rules.E_ID] <= events[k - 1, rules.E_ID]:
                    return 2
        elif what == 7 or what == 8:  # CANCELED, EXPIRED
            over += qty
    if before + left - over != _open_lots(venue):
        return 3
    book = venue.book
    two_sided = book.head[0] > 0 and book.head[1] > 0
    if state[rules.PHASE] == 1 and two_sided:
        return 4 * (best_px(book, BUY) >= best_px(book, SELL))
    return 0


@kernel()
def _storm(venue: Any, request: Any, seed: Any, n: Any, plain: Any, counts: Any) -> Any:
    """Run `n` operations of every kind; return the number of the first that broke an invariant, or -1."""
    np.random.seed(seed)
    now = 0
    ids = counts[8:]
    for k in range(n):
        before = _open_lots(venue)
        came = 0
        dice = np.random.random()
        if dice < 0.62:
            kind = 2 if np.random.random() < 0.8 else np.random.randint(1, 5)
            tif = 1 if np.random.random() < 0.8 else (0, 3, 4, 6)[np.random.randint(0, 4)]
            qty = np.random.randint(1, 100)
            request[0], request[1] = k + 1, np.random.randint(0, 4)
            request[2] = np.random.randint(1, 3)
            request[3], request[4], request[5], request[6] = kind, 1000 + np.random.randint(-15, 16), qty, tif
            request[7], request[8] = np.random.random() < 0.05, 1000 + np.random.randint(-30, 31)
            request[9] = 0
            if not plain and np.random.random() < 0.2 and tif != 3 and tif != 4 and kind != 1 and kind != 3:
                request[9] = min(qty, np.random.randint(5, 30))
            request[10] = qty // 2 if np.random.random() < 0.05 else 0
            request[11] = now + np.random.randint(1, 2000)
            outcome = rules.submit(venue, request)
            if outcome > 0:
                came = qty
            if venue.state[rules.LAST_ID] != 0:
                ids[k % len(ids)] = venue.state[rules.LAST_ID]
        elif dice < 0.90:
            slot = np.random.randint(0, venue.book.head[3] + 1)
            anyone = np.random.random() < 0.2 or slot >= len(venue.book.orders)
            outcome = rules.cancel(venue, ids[np.random.randint(0, len(ids))] if anyone else venue.book.orders[slot, 0])
        elif dice < 0.97:
            request[0], request[4], request[5], request[7] = (
                k + 1, 1000 + np.random.randint(-15, 16), np.random.randint(1, 100), 0,
            )  # fmt: skip
            order_id = ids[np.random.randint(0, len(ids))]
            book = venue.stops if order_id & rules.STOP_BIT else venue.book
            slot = find_order(book, order_id & ~rules.STOP_BIT)
            old = leaves_of(book, slot) if slot >= 0 else 0
            outcome = rules.replace(venue, order_id, request)
            if outcome > 0:
                came = request[5] - old
            if venue.state[rules.LAST_ID] != 0:
                ids[k % len(ids)] = venue.state[rules.LAST_ID]
        elif dice < 0.9965:
            now += 20
            outcome = rules.advance(venue, now)
        elif dice < 0.997:
            outcome = rules.set_phase(venue, 2 if np.random.random() < 0.7 else 3)
        else:
            outcome = rules.uncross(venue, 1000, 1)
            if outcome < 0:
                before = _open_lots(venue)
                outcome = rules.set_phase(venue, 1)
                if outcome < 0:
                    outcome = rules.set_phase(venue, 2)
        counts[0] += outcome > 0
        wrong = _is_wrong(venue, before, came, plain)
        while wrong == 0:
            for e in range(venue.state[rules.N_EVENTS]):
                counts[1] += venue.events[e, rules.E_WHAT] == 3
                counts[2] += venue.events[e, rules.E_WHAT] == 6
            before = _open_lots(venue)
            if rules.step(venue) == 0:
                break
            wrong = _is_wrong(venue, before, 0, plain)
        if wrong != 0:
            counts[3] = wrong
            return k
        counts[4] = max(counts[4], before)
    return -1


@pytest.mark.parametrize(
    ("book", "plain"),
    [
        (Rules(), True), (Rules(self_trade=SelfTrade.CANCEL_BOTH), False),
        (Rules(Allocation.PRO_RATA, 2), False), (Rules(self_trade=SelfTrade.CANCEL_NEWEST), False),
    ],
)  # fmt: skip
def test_a_million_operations_conserve_quantity_and_keep_priority_and_never_leave_a_crossed_book(
    book: Rules, plain: bool
) -> None:
    venue = rules.make_ruled_book(book, 2048, 256, 512)
    counts = np.zeros(8 + 512, np.int64)
    broken = _storm(venue, np.zeros(12, np.int64), 7, 250_000, plain, counts)
    assert broken == -1, f"operation {broken} broke invariant {counts[3]}"
    assert counts[0] > 120_000 and counts[1] > 70_000 and counts[2] > 400, counts[:5]


def depth(book: Book) -> list[Any]:
    """Key, lots, orders and head and tail of each level."""
    return [book.levels[s, : book.head[s]].tolist() for s in (0, 1)]


plain_orders = st.tuples(sides, prices, st.integers(1, 12), st.sampled_from([GTC, GTC, IOC, FOK]), st.integers(0, 3))


@given(st.lists(plain_orders, max_size=80))
@settings(max_examples=100, deadline=None)
def test_without_rules_the_plain_matcher_trades_the_same_icebergs_among_them(orders: list[Any]) -> None:
    plain, ruled = Matcher(128, 32), RuledMatcher(None, 128, 32, 4)
    for tag, (side, px, qty, tif, display) in enumerate(orders, 1):
        shown = min(display, qty) if tif == GTC else 0
        outcome = plain.submit(0, side, px, qty, tif)
        if outcome == Outcome.RESTING and shown:
            conceal(plain.book, plain.last_id, shown)
        assert ruled.submit(side, px, qty, tag=tag, tif=tif, display_qty=shown) == outcome
        trades = [(e.order_id, e.px, e.qty, e.leaves, e.cum) for e in ruled.events if e.what == What.TRADE]
        assert [(f[0], f[2], f[3], f[4], f[5]) for f in plain.fills.tolist()] == trades
        assert depth(plain.book) == depth(ruled.venue.book)
        assert plain.book.head[12:].tolist() == ruled.venue.book.head[12:].tolist()


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"min_allocation": 0}, "min_allocation is 0; expected 1 or more"),
        ({"ticks": ()}, "ticks is empty"),
        ({"ticks": ((0, 1), (7, 5))}, r"ticks has \(7, 5\) after \(0, 1\)"),
        ({"ticks": ((0, 2), (5, 5))}, r"ticks has \(5, 5\) after \(0, 2\)"),
        ({"ticks": ((10, 1), (10, 2))}, r"ticks has \(10, 2\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Rules(**settings_)


def test_time_does_not_run_backwards_and_a_band_is_in_order() -> None:
    market = RuledMatcher(None, 8, 8, 8)
    market.advance(10)
    with pytest.raises(ValueError, match="now_ns is 9; expected 10 or later"):
        market.advance(9)
    with pytest.raises(ValueError, match="the band is 5 to 4"):
        market.set_band(5, 4)
    assert market.uncross() == Outcome.BAD_PHASE


def test_words_that_are_none_and_prices_and_quantities_out_of_range_are_refused() -> None:
    market = RuledMatcher(None, 8, 8, 8)
    assert market.submit(3, 100, 1) == market.submit(BUY, 100, 1, ord_type=5) == Outcome.BAD_ORDER
    assert market.submit(BUY, 100, 1, tif=2) == Outcome.BAD_ORDER
    assert market.submit(BUY, 100, rules.MAX_QTY + 1) == Outcome.BAD_QTY
    assert market.submit(BUY, rules.MAX_PX, 1) == market.submit(SELL, -(2**63), 1) == Outcome.OFF_TICK
    assert market.submit(BUY, 100, 1, display_qty=-1) == market.submit(BUY, 100, 1, min_qty=2) == Outcome.BAD_QTY
    assert market.events == [] and market.cancel(0) == market.cancel(-1) == market.cancel(2**63 - 1) == Outcome.UNKNOWN
