"""LOBSTER's CSV files: a line's text to a row.

Model. LOBSTER reconstructs the book of one Nasdaq stock and day, and sells two files with as many lines: *messages*
(``seconds,type,order,size,price,direction``) and the *book* after each (``ask,size,bid,size`` a level, best first).
Prices are in 1/10000 of a dollar, which is the tick here; times are seconds after midnight in New York.

==== ================================== =====================================================================
type what happened                      row
==== ================================== =====================================================================
1    a new limit order                  ADD
2    part of an order was canceled      REDUCE by the size
3    an order was deleted               DELETE
4    a visible order was executed       EXECUTE, px = the order's own price
5    a hidden order was executed        TRADE, flagged with the aggressor's side; the book does not change
6    an auction's trade                 TRADE flagged CROSS
7    trading was halted or went on      STATUS: price -1 halted, 0 quotes go on, 1 trading goes on
==== ================================== =====================================================================

The messages tell what changes the first `n` levels and nothing of what lies deeper, so orders exist that no message
added: those from before the first line, and those that came while their level was out of sight. The book file shows
their sum when their level comes into sight. `LobsterDecoder.seed` makes up one order for each level of its first line
(less what the first message itself did); `LobsterDecoder.reveal` compares each later line with the book that the rows
give so far and makes up what is missing, in rows flagged RECOVERED. Made-up orders have references from `MADE_UP` on.
A message about an order never added is told of the made-up order at its price, while that lasts.

Promise. A line gives one row or, counted, none; nothing raises for foreign text; nothing is rounded.

Worst case accepted: quantities are right at every level in sight, the queue is not: who came first among orders that
were never added is not recorded. Without the book file, levels that come into sight are missing: of 999 recorded
messages of AAPL, ten levels, 14 bring one, and 44 later ones have another best bid than the book file.

References
----------
LOBSTER, "Output Structure", and the ReadMe of its sample files.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from decimal import Decimal

from hftlab.core.rows import Flag, Kind, RowArray
from hftlab.core.status import Status

__all__ = ["LobsterDecoder", "MADE_UP", "TICK", "read_levels"]

TICK = Decimal("0.0001")
"""Unit of a price in the files, dollars."""
MADE_UP = 1 << 62
"""References of made-up orders begin here; Nasdaq's own are far below."""

_LINE = re.compile(rb"(\d{1,6})(?:\.(\d{1,9})\d*)?,([1-7]),(\d{1,18}),(\d{1,18}),(-?\d{1,18}),(-?1)\s*")
_FIELDS = re.compile(rb"-?\d{1,18}(?:,-?\d{1,18})*\s*")
_NO_LEVEL = 9_999_999_999  # the files' price of a level that is not there, negative on the bid side

_BID, _ASK, _LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
_SNAPSHOT, _RECOVERED = int(Flag.SNAPSHOT), int(Flag.RECOVERED)
_ADD, _REDUCE, _DELETE, _EXECUTE = int(Kind.ADD), int(Kind.REDUCE), int(Kind.DELETE), int(Kind.EXECUTE)
_KINDS = {1: _ADD, 2: _REDUCE, 3: _DELETE, 4: _EXECUTE, 5: int(Kind.TRADE), 6: int(Kind.TRADE), 7: int(Kind.STATUS)}
_HALTS = {-1: Status.HALTED, 0: Status.QUOTING, 1: Status.TRADING}


def read_levels(line: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
    """Return (bids, asks) of a line of the book file, best first, as (ticks, shares); None if it is no such line.

    Examples
    --------
    >>> read_levels(b"5859400,200,5853300,18,9999999999,0,-9999999999,0")
    ([(5853300, 18)], [(5859400, 200)])
    """
    if _FIELDS.fullmatch(line) is None:
        return None
    values = [int(v) for v in line.split(b",")]
    if len(values) % 4:
        return None
    sides = zip(values[2::4], values[3::4], strict=True), zip(values[0::4], values[1::4], strict=True)
    bids, asks = ([(px, qty) for px, qty in side if abs(px) != _NO_LEVEL] for side in sides)
    return bids, asks


class _Side:
    """The levels of one side that the rows so far give: quantity by price, and the orders behind it."""

    __slots__ = ("keys", "levels", "orders", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[int] = []  # sign * px, ascending: the best level last
        self.levels: dict[int, int] = {}
        self.orders: dict[int, dict[int, int]] = {}

    def add(self, reference: int, px: int, qty: int) -> None:
        if px not in self.levels:
            insort(self.keys, self.sign * px)
            self.levels[px] = 0
            self.orders[px] = {}
        self.levels[px] += qty
        self.orders[px][reference] = qty

    def take(self, reference: int, px: int, qty: int) -> None:
        left = self.orders[px][reference] - qty
        self.levels[px] -= qty
        if left:
            self.orders[px][reference] = left
            return
        del self.orders[px][reference]
        if not self.orders[px]:
            del self.orders[px], self.levels[px]
            del self.keys[bisect_left(self.keys, self.sign * px)]

    def best(self, n: int) -> list[tuple[int, int]]:
        return [(px, self.levels[px]) for px in (self.sign * key for key in reversed(self.keys[-n:]))] if n else []


class LobsterDecoder:
    """Lines of one message file, and of the book file beside it, to rows.

    Parameters
    ----------
    instrument : int
        Written in every row.
    midnight_ns : int
        When the day began in New York, ns UTC; 0 leaves times as ns after midnight.
    source : int
        Written in every row.

    Attributes
    ----------
    counts : dict[str, int]
        ``malformed`` lines; reductions of orders that are ``unknown``, even made up; ``revealed`` lines of the book
        file that showed what the messages had not told.

    Examples
    --------
    >>> from hftlab.core.rows import new_rows
    >>> decoder, out = LobsterDecoder(), new_rows(1)
    >>> decoder.decode(b"34200.004241176,1,16113575,18,5853300,1", out), out["px"].tolist(), out["ts_event"].tolist()
    (1, [5853300], [34200004241176])
    """

    def __init__(self, instrument: int = 0, *, midnight_ns: int = 0, source: int = 1) -> None:
        self.instrument = instrument
        self.counts = dict.fromkeys(("malformed", "unknown", "revealed"), 0)
        self._midnight_ns = midnight_ns
        self._source = source
        self._sides = {_BID: _Side(1), _ASK: _Side(-1)}
        self._at: dict[int, tuple[int, int]] = {}  # order: its side's flag and price
        self._made_up: dict[tuple[int, int], int] = {}  # flag and price: the order made up there last
        self._next = MADE_UP
        self._ts = midnight_ns

    def seed(self, book: bytes, message: bytes, out: RowArray) -> int:
        """Write CLEAR and an ADD for each level that stood before `message`; return the number of rows.

        Parameters
        ----------
        book, message : bytes
            The first lines of both files.
        out : ROW array
            Overwritten from the front; two rows more than `book` has levels.

        Returns
        -------
        int
            0 if one of the lines cannot be read.

        Raises
        ------
        ValueError
            If `out` is too short.
        """
        levels, match = read_levels(book), _LINE.fullmatch(message)
        if levels is None or match is None:
            return 0
        sides = dict(zip((_BID, _ASK), map(dict, levels), strict=True))
        kind, qty, px = int(match[3]), int(match[5]), int(match[6])
        if kind <= 4:
            side = sides[_BID if match[7] == b"1" else _ASK]
            side[px] = side.get(px, 0) + (-qty if kind == 1 else qty)
        wanted = [(flag, px, qty) for flag, side in sides.items() for px, qty in side.items() if qty > 0 and px > 0]
        self._need(out, len(wanted) + 1)
        self._ts = self._time(match)
        self._row(out, 0, int(Kind.CLEAR), _SNAPSHOT, 0, 0, 0)
        for n, (flag, px, qty) in enumerate(wanted):
            self._make_up(out, n + 1, flag, px, qty, _SNAPSHOT)
        out["flags"][len(wanted)] |= _LAST
        return len(wanted) + 1

    def decode(self, line: bytes, out: RowArray, n: int = 0) -> int:
        """Write the row of one message at ``out[n]``; return 1, or 0 if the line cannot be read."""
        match = _LINE.fullmatch(line)
        code, px = (int(match[3]), int(match[6])) if match else (0, 0)
        qty = int(match[5]) if match else 0
        if match is None or (px not in _HALTS if code == 7 else px <= 0 or qty == 0):
            self.counts["malformed"] += 1
            return 0
        self._ts = self._time(match)
        is_buy, reference, kind = match[7] == b"1", int(match[4]), _KINDS[code]
        flag = _BID if is_buy else _ASK
        if code == 7:
            self._row(out, n, kind, _LAST, 0, 0, 0, int(_HALTS[px]))
        elif code == 6:
            self._row(out, n, kind, _LAST | int(Flag.CROSS), px, qty, 0)
        elif code == 5:  # the direction is the resting order's, the flag the aggressor's
            self._row(out, n, kind, _LAST | (_ASK if is_buy else _BID), px, qty, 0)
        elif code == 1:
            self._add(reference, flag, px, qty)
            self._row(out, n, kind, _LAST | flag, px, qty, reference)
        else:
            reference = self._take(reference, flag, px, qty)
            # of an order made up, one member's deletion is a reduction
            kind = _REDUCE if code == 3 and reference >= MADE_UP else kind
            self._row(out, n, kind, _LAST | flag, px, qty, reference)
        return 1

    def reveal(self, book: bytes, out: RowArray, n: int = 0) -> int:
        """Write, from ``out[n]`` on, what `book` shows and the rows so far do not give; return the number of rows.

        Together with the message's row at ``out[n - 1]`` they are one message: LAST moves to the last of them.

        Parameters
        ----------
        book : bytes
            The book file's line that belongs to the message decoded last.
        out : ROW array
            Written from `n` on.

        Returns
        -------
        int
            0 nearly always, and for a line that cannot be read (counted).

        Raises
        ------
        ValueError
            If `out` is too short.
        """
        levels = read_levels(book)
        if levels is None:
            self.counts["malformed"] += 1
            return 0
        first = n
        for flag, told in zip((_BID, _ASK), levels, strict=True):
            if self._sides[flag].best(len(told)) != told:
                n = self._mend(flag, told, out, n)
        if n > first:
            self.counts["revealed"] += 1
            out["flags"][n - 1] |= _LAST
            if first:
                out["flags"][first - 1] &= 0xFFFF ^ _LAST
        return n - first

    def _mend(self, flag: int, told: list[tuple[int, int]], out: RowArray, n: int) -> int:
        """Write the rows that make one side what the book file says it is; return the next free row."""
        side = self._sides[flag]
        wanted = dict(told)
        worst = side.sign * told[-1][0] if told else -(1 << 63)
        for px in [side.sign * key for key in side.keys if key >= worst]:
            if side.levels[px] > wanted.get(px, 0):  # something left while out of sight; which order is not told
                for reference, qty in list(side.orders[px].items()):
                    self._need(out, n + 1)
                    self._row(out, n, _DELETE, flag | _RECOVERED, px, qty, reference)
                    side.take(reference, px, qty)
                    del self._at[reference]
                    n += 1
        for px, qty in told:
            missing = qty - side.levels.get(px, 0)
            if missing > 0:
                self._need(out, n + 1)
                self._make_up(out, n, flag, px, missing, _RECOVERED)
                n += 1
        return n

    def _make_up(self, out: RowArray, n: int, flag: int, px: int, qty: int, mark: int) -> None:
        self._made_up[flag, px] = self._next
        self._add(self._next, flag, px, qty)
        self._row(out, n, _ADD, flag | mark, px, qty, self._next)
        self._next += 1

    def _add(self, reference: int, flag: int, px: int, qty: int) -> None:
        if reference in self._at:  # said twice: the book has it already
            return
        self._at[reference] = flag, px
        self._sides[flag].add(reference, px, qty)

    def _take(self, reference: int, flag: int, px: int, qty: int) -> int:
        """Note that `qty` shares of an order are gone; return the reference under which a book knows the order."""
        made_up = self._made_up.get((flag, px), reference)
        if reference not in self._at and made_up in self._at:
            reference = made_up
        at = self._at.get(reference)
        if at is None:
            self.counts["unknown"] += 1
            return reference
        side, px = self._sides[at[0]], at[1]
        left = side.orders[px][reference]
        side.take(reference, px, min(qty, left))
        if qty >= left:
            del self._at[reference]
        return reference

    def _need(self, out: RowArray, n: int) -> None:
        if len(out) < n:
            raise ValueError(f"out has {len(out)} rows; this line needs {n} or more")

    def _time(self, match: re.Match[bytes]) -> int:
        return self._midnight_ns + int(match[1]) * 1_000_000_000 + int((match[2] or b"0").ljust(9, b"0"))

    def _row(
        self, out: RowArray, n: int, kind: int, flags: int, px: int, qty: int, a: int, code: int = 0
    ) -> None:
        row, ts = out[n], self._ts
        row["seq"], row["source"], row["kind"], row["span"], row["code"] = 0, self._source, kind, 0, code
        row["ts_recv"], row["ts_event"], row["instrument"], row["flags"] = ts, ts, self.instrument, flags
        row["px"], row["qty"], row["a"], row["b"] = px, qty, a, 0
