"""Books as anyone would write them first, in dicts and lists: what the kernels are held against."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from hftlab.core.rows import NO_PX, BookState, Flag, Kind, RowArray

BOUND = -NO_PX


def side_of(flags: int) -> int | None:
    """0 for bids, 1 for asks, None for neither or both."""
    return {1: 0, 2: 1}.get(flags & 3)


class SlowL3:
    """Every symbol's book by order: ``orders[ref] = [instrument, side, px, qty]``, a list of references a price."""

    def __init__(self, max_orders: int = 1 << 24, max_instruments: int = 1 << 16) -> None:
        self.orders: dict[int, list[int]] = {}
        self.queues: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(dict)
        self.counts: Counter[str] = Counter()
        self.max_orders, self.max_instruments = max_orders, max_instruments

    def apply(self, rows: RowArray) -> None:
        for row in rows:
            self.apply_row(row)

    def apply_row(self, row: Any) -> None:
        kind, px, qty, a, b = (int(row[name]) for name in ("kind", "px", "qty", "a", "b"))
        if kind == Kind.ADD:
            side = side_of(int(row["flags"]))
            if side is None or qty <= 0 or not -BOUND < px < BOUND:
                self.counts["bad"] += 1
            elif row["instrument"] >= self.max_instruments:
                self.counts["foreign"] += 1
            elif a in self.orders:
                self.counts["duplicate"] += 1
            elif len(self.orders) >= self.max_orders:
                self.counts["dropped"] += 1
            else:
                self.enter(a, int(row["instrument"]), side, px, qty)
        elif kind in (Kind.REDUCE, Kind.EXECUTE):
            if qty <= 0:
                self.counts["bad"] += 1
            elif a not in self.orders:
                self.counts["unknown"] += 1
            elif qty < self.orders[a][3]:
                self.orders[a][3] -= qty
            else:
                self.counts["overdrawn"] += qty > self.orders[a][3]
                self.leave(a)
        elif kind == Kind.DELETE:
            if a not in self.orders:
                self.counts["unknown"] += 1
            else:
                self.leave(a)
        elif kind == Kind.REPLACE:
            self.replace(row, a, b, px, qty)
        elif kind == Kind.CLEAR:
            for ref in [ref for ref, order in self.orders.items() if order[0] == row["instrument"]]:
                self.leave(ref)

    def replace(self, row: Any, old: int, new: int, px: int, qty: int) -> None:
        if qty <= 0 or not -BOUND < px < BOUND:
            self.counts["bad"] += 1
        elif old not in self.orders:
            self.counts["unknown"] += 1
            if row["flags"] & 3:
                added = row.copy()
                added["kind"], added["a"] = Kind.ADD, new
                self.apply_row(added)
        elif old == new and px == self.orders[old][2] and qty <= self.orders[old][3]:
            self.orders[old][3] = qty
        else:
            instrument, side, _, _ = self.orders[old]
            self.leave(old)
            if new in self.orders:
                self.counts["duplicate"] += 1
            else:
                self.enter(new, instrument, side, px, qty)

    def enter(self, ref: int, instrument: int, side: int, px: int, qty: int) -> None:
        queues = self.queues[instrument, side]
        if sum(self.orders[r][3] for r in queues.get(px, [])) + qty >= 2**63:
            self.counts["bad"] += 1
            return
        is_best = px not in queues and (not queues or (px > max(queues) if side == 0 else px < min(queues)))
        other = self.queues[instrument, 1 - side]
        if is_best and other:
            gap = px - min(other) if side == 0 else max(other) - px
            self.counts["locked"] += gap == 0
            self.counts["crossed"] += gap > 0
        queues.setdefault(px, []).append(ref)
        self.orders[ref] = [instrument, side, px, qty]

    def leave(self, ref: int) -> None:
        instrument, side, px, _ = self.orders.pop(ref)
        queue = self.queues[instrument, side][px]
        queue.remove(ref)
        if not queue:
            del self.queues[instrument, side][px]

    def levels(self, instrument: int, side: int) -> list[tuple[int, int, int]]:
        """Price, lots and orders of each level, best first."""
        queues = self.queues[instrument, side]
        return [
            (px, sum(self.orders[ref][3] for ref in queues[px]), len(queues[px]))
            for px in sorted(queues, reverse=side == 0)
        ]


class SlowL2:
    """Every symbol's book by price: a dict a side, and the newer quote."""

    def __init__(self, levels: int = 1000, max_instruments: int = 1 << 16) -> None:
        self.capacity, self.max_instruments = levels, max_instruments
        self.sides: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        self.seq: dict[int, int] = defaultdict(int)
        self.quote_seq: dict[int, int] = defaultdict(int)
        self.quote: dict[int, list[tuple[int, int] | None]] = {}
        self.gap: dict[int, int] = defaultdict(lambda: -1)
        self.state: dict[int, int] = defaultdict(lambda: int(BookState.EMPTY))
        self.counts: Counter[str] = Counter()

    def apply(self, rows: RowArray) -> None:
        for row in rows:
            self.apply_row(row)

    def apply_row(self, row: Any) -> None:
        kind, of, flags, px, qty = (int(row[name]) for name in ("kind", "instrument", "flags", "px", "qty"))
        seq = int(row["a"].astype("i8"))
        if kind not in (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.BOOK_STATE):
            return
        if of >= self.max_instruments:
            self.counts["foreign"] += 1
        elif kind == Kind.CLEAR:
            self.sides[of, 0].clear()
            self.sides[of, 1].clear()
            self.seq[of] = self.quote_seq[of] = 0
            self.quote.pop(of, None)
            self.gap[of] = -1
        elif kind == Kind.BOOK_STATE:
            self.state[of] = int(row["code"])
        else:
            side = side_of(flags)
            no_quote = kind == Kind.QUOTE and qty == 0
            if side is None or qty < 0 or not (-BOUND < px < BOUND or no_quote):
                self.counts["bad"] += 1
            elif kind == Kind.LEVEL:
                self.set_level(of, side, px, qty)
            else:
                self.set_quote(of, side, px, qty, seq)
            if kind == Kind.LEVEL and flags & Flag.LAST:
                self.end_message(of, seq)

    def set_level(self, of: int, side: int, px: int, qty: int) -> None:
        levels = self.sides[of, side]
        if qty == 0:
            levels.pop(px, None)
            return
        levels[px] = qty
        if len(levels) > self.capacity:
            del levels[min(levels) if side == 0 else max(levels)]
            self.counts["forgotten"] += 1

    def touch(self, of: int) -> list[tuple[int, int] | None]:
        bids, asks = self.sides[of, 0], self.sides[of, 1]
        return [(max(bids), bids[max(bids)]) if bids else None, (min(asks), asks[min(asks)]) if asks else None]

    def best(self, of: int) -> list[tuple[int, int] | None]:
        return self.quote.get(of) or self.touch(of)

    def set_quote(self, of: int, side: int, px: int, qty: int, seq: int) -> None:
        if seq != 0 and (seq <= self.seq[of] or seq < self.quote_seq[of]):
            return
        quote = self.quote.setdefault(of, self.touch(of))
        quote[side] = (px, qty) if qty > 0 else None
        self.quote_seq[of] = seq

    def end_message(self, of: int, seq: int) -> None:
        self.seq[of] = seq
        if seq == 0 or seq >= self.quote_seq[of]:
            self.quote.pop(of, None)
        bid, ask = self.touch(of)
        gap = -1 if bid is None or ask is None else (bid[0] > ask[0]) - (bid[0] < ask[0])
        self.counts["locked"] += gap == 0 and self.gap[of] != 0
        self.counts["crossed"] += gap > 0 and self.gap[of] <= 0
        self.gap[of] = gap
