"""Books to look at and to ask: by price, by order, and over several venues.

A book takes rows (``book.apply(rows)``) and answers questions. It serves every instrument of a feed; rows name theirs.
Prices are ticks, quantities lots, both int64. A missing price is None; a side is shown best first.

- `L3Book`: market by order. Knows each order, its place in the queue, and so everything the others know.
- `L2Book`: market by price, to a fixed number of levels, with the newer of levels and quotes as the touch.
- `ConsolidatedBook`: the best bid and offer of one asset over several venues. The venues' grids may differ: prices and
  quantities are compared as whole numbers of a step that divides every venue's, and where such a step leaves int64
  they are refused rather than rounded. A stale venue is left out and named. Two venues may lock or cross each other:
  that is legal, and told.

The work is done by `hftlab.kernels.l3` and `hftlab.kernels.l2`, whole blocks of rows at a time. What is asked here
costs microseconds, and nothing while it is not asked.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import INT64_MAX, Instrument, decimal_to_units, units_to_decimal
from hftlab.core.rows import NAT, NO_PX, ROW, BookState, Kind, RowArray
from hftlab.kernels import l2, l3

__all__ = [
    "Best",
    "ConsolidatedBook",
    "Depth",
    "L2Book",
    "L3Book",
    "Nbbo",
    "Order",
    "QueuePosition",
    "RestingOrders",
    "SideDepth",
    "Touch",
    "Trace",
]

Int64s = npt.NDArray[np.int64]


class Touch(enum.IntEnum):
    """How the best prices of a book stand to each other, or why that is not to be believed."""

    EMPTY = 0
    ONE_SIDED = 1
    LIVE = 2
    LOCKED = 3
    CROSSED = 4
    STALE = 5
    RESYNCING = 6


_DOUBT = {int(BookState.STALE): Touch.STALE, int(BookState.RESYNCING): Touch.RESYNCING}


class Best(NamedTuple):
    """Best price and quantity of each side, ticks and lots; None where the side is empty."""

    bid_px: int | None
    bid_qty: int | None
    ask_px: int | None
    ask_qty: int | None


class SideDepth(NamedTuple):
    """Levels of one side, best first: ticks, lots and numbers of orders (None where the feed does not tell them)."""

    px: Int64s
    qty: Int64s
    orders: Int64s | None


@dataclass(frozen=True, slots=True)
class Depth:
    """The best levels of both sides; shown as a table."""

    bids: SideDepth
    asks: SideDepth

    def __repr__(self) -> str:
        return _table(self.bids, self.asks)


class Order(NamedTuple):
    """An order of a book: its reference, instrument, whether it bids, ticks, lots left."""

    ref: int
    instrument: int
    is_bid: bool
    px: int
    qty: int


class QueuePosition(NamedTuple):
    """What stands before an order at its price: exact, since the book knows every order."""

    orders_ahead: int
    lots_ahead: int


class RestingOrders(NamedTuple):
    """Orders at one price, first in the queue first: references (uint64) and lots."""

    ref: npt.NDArray[np.uint64]
    qty: Int64s


class Trace(NamedTuple):
    """The book after each message.

    Parameters
    ----------
    row : int64 array, shape (n,)
        Index, in the rows applied, of the row that ended the message.
    instrument : int64 array, shape (n,)
    bid_px, bid_qty, bid_orders, ask_px, ask_qty, ask_orders : int64 arrays, shape (n, depth)
        Ticks, lots and numbers of orders (0 by price), best first; where there is no level, NO_PX and 0.
    """

    row: Int64s
    instrument: Int64s
    bid_px: Int64s
    bid_qty: Int64s
    bid_orders: Int64s
    ask_px: Int64s
    ask_qty: Int64s
    ask_orders: Int64s


def _table(bids: SideDepth, asks: SideDepth, scale_px: Decimal | None = None, scale_qty: Decimal | None = None) -> str:
    """Return a side-by-side table of two sides, best first."""

    def cells(side: SideDepth, mirrored: bool) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for k in range(len(side.px)):
            px = str(side.px[k]) if scale_px is None else str(units_to_decimal(int(side.px[k]), scale_px))
            qty = str(side.qty[k]) if scale_qty is None else str(units_to_decimal(int(side.qty[k]), scale_qty))
            cell = (px, qty) if side.orders is None else (px, qty, str(side.orders[k]))
            found.append(cell[::-1] if mirrored else cell)
        return found

    names = ("bid", "qty") if bids.orders is None else ("bid", "qty", "orders")
    head = (*names[::-1], "ask", *names[1:])
    left, right = cells(bids, True), cells(asks, False)
    width = len(names)
    body = [
        (left[k] if k < len(left) else ("",) * width) + (right[k] if k < len(right) else ("",) * width)
        for k in range(max(len(left), len(right)))
    ]
    widths = [max(len(line[c]) for line in [head, *body]) for c in range(2 * width)]
    lines = ["  ".join(text.rjust(widths[c]) for c, text in enumerate(line)).rstrip() for line in [head, *body]]
    return "\n".join(lines)


def _as_rows(rows: RowArray) -> RowArray:
    """Return `rows` in one piece of memory, having made sure that they are rows."""
    if rows.dtype != ROW or rows.ndim != 1:
        raise ConfigError(f"rows is an array of {rows.dtype} with {rows.ndim} dimensions; expected a flat array of ROW")
    return np.ascontiguousarray(rows)


def _address(array: npt.NDArray[Any]) -> int:
    """Return where an array begins; ten times cheaper for rows than their array interface, which lists the fields."""
    return int(array.ctypes.data)


def _side_number(side: int) -> int:
    if side not in (1, 2):
        raise ConfigError(f"side is {side!r}; expected 1 (BID, Side.BUY) or 2 (ASK, Side.SELL)")
    return int(side) - 1


class _Book(ABC):
    """What books by price and by order answer alike."""

    tables: l2.LevelTables | l3.Tables
    _counted: tuple[str, ...]

    def apply(self, rows: RowArray) -> None:
        """Apply a block of rows, all instruments mixed; rows of other kinds are passed over.

        Raises
        ------
        ConfigError
            If `rows` is not a flat array of ROW.
        """
        block = _as_rows(rows)
        self.tables.apply(_address(block), len(block))

    def apply_at(self, address: int, n: int) -> None:
        """Apply `n` rows that lie at `address`, mapped and whole: what a decoder's buffer is applied by."""
        self.tables.apply(address, n)

    def trace(self, rows: RowArray, depth: int = 10) -> Trace:
        """Apply a block of rows and return the book of the instrument concerned after each message that changed one.

        A message ends at a row with Flag.LAST. Costs 48 bytes a row and level of depth while it runs: trace long
        streams in blocks of some thousand rows.

        Raises
        ------
        ConfigError
            If `rows` is not a flat array of ROW, or `depth` is below 1.
        """
        block, depth = _as_rows(rows), _depth(depth)
        ends, out = np.zeros(len(block) + 1, np.int64), np.zeros((len(block), 2, depth, 3), np.int64)
        self.tables.trace(_address(block), len(block), depth, _address(ends), _address(out))
        n = int(ends[0])
        row, out = ends[1 : n + 1], out[:n]
        sides = [out[:, side, :, what] for side in (0, 1) for what in (0, 1, 2)]
        return Trace(row, block["instrument"][row].astype(np.int64), *sides)

    @property
    def counts(self) -> dict[str, int]:
        """Return what the book could not believe, and how often it came to be locked or crossed."""
        return {name: int(self.tables.head[name]) for name in self._counted}

    @abstractmethod
    def best(self, instrument: int = 0) -> Best:
        """Return the touch of an instrument."""

    @abstractmethod
    def depth(self, instrument: int = 0, n: int = 10) -> Depth:
        """Return the `n` best levels a side of an instrument."""

    @abstractmethod
    def level_counts(self, instrument: int = 0) -> tuple[int, int]:
        """Return how many bid and ask levels an instrument has."""

    @abstractmethod
    def instruments(self) -> list[int]:
        """Return the instruments that have levels."""

    @abstractmethod
    def _told(self, instrument: int) -> int:
        """Return the code of the last BOOK_STATE row of an instrument, 0 if there was none."""

    def state(self, instrument: int = 0) -> Touch:
        """Return how the touch of an instrument stands; STALE and RESYNCING by the word of its feed."""
        doubt = _DOUBT.get(self._told(instrument))
        return doubt if doubt is not None else _touch(self.best(instrument))

    def __repr__(self) -> str:
        named = self.instruments()
        title = f"{type(self).__name__} of {len(named)} instrument{'' if len(named) == 1 else 's'}"
        counted = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        lines = [title + (f"; {counted}" if counted else "")]
        for instrument in named[:_SHOWN]:
            bids, asks = self.level_counts(instrument)
            lines.append(f"instrument {instrument}: {self.state(instrument).name}, {bids} bid and {asks} ask levels")
            lines.append(repr(self.depth(instrument, 5)))
        if len(named) > _SHOWN:
            lines.append(f"and {len(named) - _SHOWN} more")
        return "\n".join(lines)


_SHOWN = 3


def _depth(n: int) -> int:
    if n < 1:
        raise ConfigError(f"depth is {n}; expected 1 or more")
    return int(n)


def _touch(best: Best) -> Touch:
    if best.bid_px is None and best.ask_px is None:
        return Touch.EMPTY
    if best.bid_px is None or best.ask_px is None:
        return Touch.ONE_SIDED
    if best.bid_px == best.ask_px:
        return Touch.LOCKED
    return Touch.CROSSED if best.bid_px > best.ask_px else Touch.LIVE


class L2Book(_Book):
    """Market-by-price books of the instruments of a feed, from LEVEL, QUOTE, CLEAR and BOOK_STATE rows.

    Parameters
    ----------
    levels : int
        Levels a side that a book knows; a full side forgets its farthest, counted as ``forgotten``.
    max_instruments : int
        Instruments are numbered below this; rows of others are counted as ``foreign``.

    Examples
    --------
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> rows = new_rows(3)
    >>> rows["kind"], rows["px"], rows["qty"] = Kind.LEVEL, [99, 98, 101], [5, 7, 4]
    >>> rows["flags"] = [Flag.BID, Flag.BID, Flag.ASK | Flag.LAST]
    >>> book = L2Book()
    >>> book.apply(rows)
    >>> book.best()
    Best(bid_px=99, bid_qty=5, ask_px=101, ask_qty=4)
    >>> book.depth(n=2)
    qty  bid  ask  qty
      5   99  101    4
      7   98
    """

    tables: l2.LevelTables
    _counted = l2.L2_COUNTS

    def __init__(self, levels: int = 1000, max_instruments: int = 1 << 16) -> None:
        self.tables = l2.LevelTables(levels, max_instruments)

    def _of(self, instrument: int) -> np.void | None:
        known = self.tables.instruments
        return known[instrument] if 0 <= instrument < len(known) else None

    def _told(self, instrument: int) -> int:
        of = self._of(instrument)
        return 0 if of is None else int(of["state"])

    def best(self, instrument: int = 0) -> Best:
        """Return the touch of an instrument: of its levels, or of its quote where that is newer."""
        of = self._of(instrument)
        if of is None:
            return Best(None, None, None, None)
        if of["quoted"]:
            return Best(
                *_level(int(of["quote_bid_px"]), int(of["quote_bid_qty"])),
                *_level(int(of["quote_ask_px"]), int(of["quote_ask_qty"])),
            )
        touch = self.depth(instrument, 1)
        return Best(*_first(touch.bids), *_first(touch.asks))

    def depth(self, instrument: int = 0, n: int = 10) -> Depth:
        """Return the `n` best levels a side of an instrument; quotes do not show here."""
        of, n = self._of(instrument), _depth(n)
        sides = []
        for side, name in enumerate(("n_bids", "n_asks")):
            used = 0 if of is None else int(of[name])
            held = self.tables.levels[instrument if of is not None else 0, side, max(0, used - n) : used][::-1]
            sides.append(SideDepth(held[:, 0].copy(), held[:, 1].copy(), None))
        return Depth(*sides)

    def level_counts(self, instrument: int = 0) -> tuple[int, int]:
        """Return how many bid and ask levels an instrument has."""
        of = self._of(instrument)
        return (0, 0) if of is None else (int(of["n_bids"]), int(of["n_asks"]))

    def instruments(self) -> list[int]:
        """Return the instruments that have levels or a quote."""
        known = self.tables.instruments
        return [int(k) for k in np.flatnonzero(known["n_bids"] + known["n_asks"] + known["quoted"])]


def _level(px: int, qty: int) -> tuple[int | None, int | None]:
    return (None, None) if px == NO_PX else (px, qty)


def _first(side: SideDepth) -> tuple[int | None, int | None]:
    return (int(side.px[0]), int(side.qty[0])) if len(side.px) else (None, None)


class L3Book(_Book):
    """Market-by-order books of the instruments of a feed, from ADD, REDUCE, DELETE, EXECUTE, REPLACE and CLEAR rows.

    Parameters
    ----------
    orders, instruments : int
        Room to begin with. Tables double when they are full; growing copies them, so a feed whose size is known says
        it here.
    max_orders : int
        Most live orders of all instruments together; orders beyond are counted as ``dropped`` and are not in the book.
        An order has room for itself, a level and its index entries: 96 to 128 bytes.
    max_instruments : int
        Instruments are numbered below this; orders of others are counted as ``foreign``.

    Examples
    --------
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> rows = new_rows(3)
    >>> rows["kind"], rows["a"], rows["flags"] = Kind.ADD, [1, 2, 3], [Flag.BID, Flag.BID, Flag.ASK]
    >>> rows["px"], rows["qty"] = [99, 99, 101], [5, 7, 4]
    >>> book = L3Book()
    >>> book.apply(rows)
    >>> book
    L3Book of 1 instrument
    instrument 0: LIVE, 1 bid and 1 ask levels
    orders  qty  bid  ask  qty  orders
         2   12   99  101    4       1
    >>> book.position(2)
    QueuePosition(orders_ahead=1, lots_ahead=5)
    """

    tables: l3.Tables
    _counted = l3.COUNTS

    def __init__(
        self, orders: int = 1 << 12, instruments: int = 64, max_orders: int = 1 << 24, max_instruments: int = 1 << 16
    ) -> None:
        self.tables = l3.Tables(
            min(orders, max_orders), min(instruments, max_instruments), max_orders, max_instruments
        )

    def __len__(self) -> int:
        """Return the number of live orders."""
        return int(self.tables.head["live"])

    @property
    def address(self) -> int:
        """Return the address of the book's registers, for `hftlab.kernels.l3.apply_rows`."""
        return self.tables.address

    def _told(self, instrument: int) -> int:
        sides = self.tables.sides
        return int(sides["state"][2 * instrument]) if 0 <= 2 * instrument < len(sides) else 0

    def _side(self, instrument: int, side: int, n: int) -> SideDepth:
        used = self.level_counts(instrument)[side]
        out = np.zeros((min(n, used), 3), np.int64)
        if len(out):
            l3.copy_side(self.address, 2 * instrument + side, len(out), _address(out))
        return SideDepth(out[:, 0].copy(), out[:, 1].copy(), out[:, 2].copy())

    def best(self, instrument: int = 0) -> Best:
        """Return the touch of an instrument."""
        return Best(*_first(self._side(instrument, 0, 1)), *_first(self._side(instrument, 1, 1)))

    def depth(self, instrument: int = 0, n: int = 10) -> Depth:
        """Return the `n` best levels a side of an instrument, with the numbers of their orders."""
        n = _depth(n)
        return Depth(self._side(instrument, 0, n), self._side(instrument, 1, n))

    def level_counts(self, instrument: int = 0) -> tuple[int, int]:
        """Return how many bid and ask levels an instrument has."""
        if not 0 <= 2 * instrument < len(self.tables.sides):
            return 0, 0
        bids, asks = self.tables.sides["n"][2 * instrument : 2 * instrument + 2]
        return int(bids), int(asks)

    def instruments(self) -> list[int]:
        """Return the instruments that have orders."""
        n = self.tables.sides["n"]
        return [int(k) for k in np.flatnonzero(n[::2] | n[1::2])]

    def order(self, ref: int) -> Order | None:
        """Return the order named `ref`, or None if no such order is live."""
        slot = self._slot(ref)
        if slot == 0:
            return None
        order = self.tables.orders[slot]
        level = self.tables.levels[order["level"]]
        side = int(level["side"])
        px = -int(level["key"]) if side & 1 else int(level["key"])
        return Order(int(ref), side >> 1, side & 1 == 0, px, int(order["qty"]))

    def position(self, ref: int) -> QueuePosition | None:
        """Return what stands before the order `ref` in its queue, or None if no such order is live.

        Walks the queue from the order to its head.
        """
        slot = self._slot(ref)
        if slot == 0:
            return None
        n = lots = 0
        orders = self.tables.orders
        before = int(orders[slot]["prev"])
        while before:
            n, lots = n + 1, lots + int(orders[before]["qty"])
            before = int(orders[before]["prev"])
        return QueuePosition(n, lots)

    def orders(self, instrument: int, side: int, px: int) -> RestingOrders:
        """Return the orders of one price, first in the queue first; none if there is no such level.

        Parameters
        ----------
        instrument : int
        side : int
            ``Side.BUY`` or ``Flag.BID`` for bids, ``Side.SELL`` or ``Flag.ASK`` for asks.
        px : int
            Ticks.

        Raises
        ------
        ConfigError
            If `side` is neither.
        """
        number = 2 * instrument + _side_number(side)
        key = -px if number & 1 else px
        refs, lots = [], []
        if 0 <= number < len(self.tables.sides):
            at, n = (int(self.tables.sides[number][name]) for name in ("at", "n"))
            k = at + int(np.searchsorted(self.tables.keys[at : at + n], key))
            slot = 0
            if k < at + n and self.tables.keys[k] == key:
                slot = int(self.tables.levels["first"][self.tables.slots[k]])
            while slot:
                order = self.tables.orders[slot]
                refs.append(int(order["ref"]))
                lots.append(int(order["qty"]))
                slot = int(order["next"])
        return RestingOrders(np.array(refs, np.uint64), np.array(lots, np.int64))

    def _slot(self, ref: int) -> int:
        return int(l3.find_order(self.address, np.uint64(ref))) if 0 <= ref < 1 << 64 else 0


class Nbbo(NamedTuple):
    """Best bid and offer over several venues, in steps of the consolidated grid.

    Parameters
    ----------
    bid_px, ask_px : int or None
        Best price; None where no venue bids or offers.
    bid_qty, ask_qty : int
        Sum over the venues at that price; 0 where there is none.
    bid_venues, ask_venues : dict of str to int
        Each venue at that price and its quantity.
    state : Touch
        LOCKED and CROSSED are legal between venues. STALE if every venue is left out.
    stale : tuple of str
        Venues left out, because their feed says so or has been silent.
    """

    bid_px: int | None
    bid_qty: int
    bid_venues: dict[str, int]
    ask_px: int | None
    ask_qty: int
    ask_venues: dict[str, int]
    state: Touch
    stale: tuple[str, ...]


def _common_step(steps: Sequence[Decimal]) -> Decimal:
    """Return the largest step that divides all of `steps`.

    Examples
    --------
    >>> _common_step([Decimal("0.25"), Decimal("0.1")])
    Decimal('0.05')
    """
    places = max(0, *(-int(step.as_tuple().exponent) for step in steps))
    whole = [int(Fraction(step) * 10**places) for step in steps]
    return units_to_decimal(gcd(*whole), Decimal((0, (1,), -places)))


def _fits(count: int, what: str) -> int:
    if not -INT64_MAX <= count <= INT64_MAX:
        raise OffGridError(f"{what} is {count} steps of the venues' common grid, which does not fit int64")
    return count


class ConsolidatedBook:
    """One asset over several venues: the best bid and offer of all, on a grid that divides every venue's.

    A venue is stale, and left out, when the last BOOK_STATE row of its feed says STALE or RESYNCING, or when its last
    row is older than `max_age_ns`; without that bound a feed that fell silent is believed.

    Parameters
    ----------
    instruments : sequence of Instrument
        The same asset on different venues, one each; rows name them by ``id``.
    book : L2Book or L3Book, optional
        Keeps the venues' own books; a new `L2Book` if None.
    max_age_ns : int, optional
        Oldest ``ts_recv`` of a venue's last row, counted back from the newest of all venues, or from what is asked.

    Raises
    ------
    ConfigError
        If there are no instruments, or two of one venue or id.
    OffGridError
        If a step of a venue is no int64 number of common steps. `best` and `depth` raise it for a price that is none.

    Examples
    --------
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> coarse = Instrument(0, "east", "BTC-USD", Decimal("0.25"), Decimal(1))
    >>> fine = Instrument(1, "west", "XBT/USD", Decimal("0.1"), Decimal("0.5"))
    >>> rows = new_rows(3)
    >>> rows["kind"], rows["instrument"], rows["px"] = Kind.LEVEL, [0, 1, 1], [400, 1000, 1002]
    >>> rows["qty"], rows["flags"] = [3, 4, 5], [Flag.BID, Flag.BID, Flag.ASK]
    >>> book = ConsolidatedBook([coarse, fine])
    >>> book.apply(rows)
    >>> book
    ConsolidatedBook of east, west: LIVE, best bid at east, west, best ask at west
    qty     bid     ask  qty
    5.0  100.00  100.20  2.5
    """

    def __init__(
        self, instruments: Sequence[Instrument], book: L2Book | L3Book | None = None, max_age_ns: int | None = None
    ) -> None:
        if not instruments:
            raise ConfigError("instruments is empty; expected one of each venue")
        venues, ids = [i.venue for i in instruments], [i.id for i in instruments]
        if len(set(venues)) < len(venues) or len(set(ids)) < len(ids):
            raise ConfigError(f"instruments are of venues {venues} with ids {ids}; expected each venue and id once")
        self.instruments = tuple(instruments)
        self.max_age_ns = max_age_ns
        self.book = L2Book(max_instruments=1 + max(ids)) if book is None else book
        self.tick_size = _common_step([i.tick_size for i in instruments])
        self.lot_size = _common_step([i.lot_size for i in instruments])
        self._ticks = [decimal_to_units(i.tick_size, self.tick_size, f"tick_size of {i.venue}") for i in instruments]
        self._lots = [decimal_to_units(i.lot_size, self.lot_size, f"lot_size of {i.venue}") for i in instruments]
        self._seen_ns = dict.fromkeys(ids, NAT)

    def apply(self, rows: RowArray) -> None:
        """Apply a block of rows of all venues; rows of other instruments are passed over.

        Raises
        ------
        ConfigError
            If `rows` is not a flat array of ROW.
        """
        self.book.apply(rows)
        market = (rows["kind"] >= Kind.ADD) & (rows["kind"] <= Kind.BOOK_STATE)
        for instrument in self._seen_ns:
            received = rows["ts_recv"][market & (rows["instrument"] == instrument)]
            if len(received):
                self._seen_ns[instrument] = max(self._seen_ns[instrument], int(received.max()))

    def stale(self, now_ns: int | None = None) -> tuple[str, ...]:
        """Return the venues that are left out.

        Parameters
        ----------
        now_ns : int, optional
            Time to count ages from; the newest ``ts_recv`` of all venues if None.
        """
        now = max(self._seen_ns.values()) if now_ns is None else now_ns
        return tuple(i.venue for i in self.instruments if self._is_stale(i.id, now))

    def _is_stale(self, instrument: int, now_ns: int) -> bool:
        if self.book.state(instrument) in (Touch.STALE, Touch.RESYNCING):
            return True
        seen = self._seen_ns[instrument]
        return self.max_age_ns is not None and seen != NAT and now_ns - seen > self.max_age_ns

    def best(self, now_ns: int | None = None) -> Nbbo:
        """Return the best bid and offer of the venues that are not stale.

        Parameters
        ----------
        now_ns : int, optional
            As in `stale`.

        Raises
        ------
        OffGridError
            If a price or a sum of quantities does not fit int64 on the common grid.
        """
        stale = self.stale(now_ns)
        bids, asks = [], []
        for k, instrument in enumerate(self.instruments):
            if instrument.venue not in stale:
                best = self.book.best(instrument.id)
                bids += self._offer(k, best.bid_px, best.bid_qty)
                asks += self._offer(k, best.ask_px, best.ask_qty)
        bid_px, ask_px = max((px for px, _, _ in bids), default=None), min((px for px, _, _ in asks), default=None)
        bid_venues = {venue: qty for px, qty, venue in bids if px == bid_px}
        ask_venues = {venue: qty for px, qty, venue in asks if px == ask_px}
        bid_qty, ask_qty = _fits(sum(bid_venues.values()), "bid qty"), _fits(sum(ask_venues.values()), "ask qty")
        state = _touch(Best(bid_px, bid_qty, ask_px, ask_qty)) if len(stale) < len(self.instruments) else Touch.STALE
        return Nbbo(bid_px, bid_qty, bid_venues, ask_px, ask_qty, ask_venues, state, stale)

    def _offer(self, k: int, px: int | None, qty: int | None) -> list[tuple[int, int, str]]:
        """Return what one venue shows, on the common grid; empty if it shows nothing."""
        venue = self.instruments[k].venue
        if px is None or qty is None:
            return []
        return [(_fits(px * self._ticks[k], f"px of {venue}"), _fits(qty * self._lots[k], f"qty of {venue}"), venue)]

    def depth(self, n: int = 10, now_ns: int | None = None) -> Depth:
        """Return the `n` best levels a side of all venues that are not stale, quantities summed at equal prices.

        Raises
        ------
        OffGridError
            If a price or a sum of quantities does not fit int64 on the common grid.
        """
        n, stale = _depth(n), self.stale(now_ns)
        sums: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for k, instrument in enumerate(self.instruments):
            if instrument.venue in stale:
                continue
            shown = self.book.depth(instrument.id, n)
            for total, side in zip(sums, (shown.bids, shown.asks), strict=True):
                for px, qty in zip(side.px.tolist(), side.qty.tolist(), strict=True):
                    for at, lots, _ in self._offer(k, px, qty):
                        total[at] = _fits(total.get(at, 0) + lots, "qty")
        sides = []
        for total, falling in zip(sums, (True, False), strict=True):
            best = sorted(total, reverse=falling)[:n]
            sides.append(SideDepth(np.array(best, np.int64), np.array([total[px] for px in best], np.int64), None))
        return Depth(*sides)

    def __repr__(self) -> str:
        best, depth = self.best(), self.depth(5)
        said = [f"ConsolidatedBook of {', '.join(i.venue for i in self.instruments)}: {best.state.name}"]
        said += [f"best bid at {', '.join(best.bid_venues)}"] if best.bid_venues else []
        said += [f"best ask at {', '.join(best.ask_venues)}"] if best.ask_venues else []
        said += [f"stale {', '.join(best.stale)}"] if best.stale else []
        return ", ".join(said) + "\n" + _table(depth.bids, depth.asks, self.tick_size, self.lot_size)
