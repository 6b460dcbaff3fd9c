"""Has a message been missed? The five rules by which venues let a book's reader know, behind one interface.

Model. A book's reader asks one question for each message: apply it, drop it as known, or give up the book. Venues
differ in what they give to answer it:

========== ======================================= ==============================================================
policy     a message carries                       it continues the book when
========== ======================================= ==============================================================
Range      ids first to last (Binance spot U, u)   the range reaches on from the id known: first <= known + 1 <= last
Chain      its id and the one before (futures pu)  the one before is the one known; the first after a snapshot has it
                                                   between its own and the one before
PlusOne    one number (Coinbase, ITCH)             it is the one known plus 1
Checksum   a checksum of the book after it         our book has the same checksum (`verify`, after applying)
Unnumbered nothing (Coinbase level2, Alpaca)       always; a snapshot in the stream starts the book anew
========== ======================================= ==============================================================

Promise. `check` and `verify` never raise. Only APPLY moves `last`: after GAP the policy still knows where the book
stood, and says with `expected` and `got` what a BOOK_STATE row should say, until the caller resets it. `reset()` with
no number means that nothing is known: the next message is taken as the first, whatever it carries. A reader that needs
a snapshot first asks only when it has one.

Why objects: a connection holds one for each book (or one for all, where a venue numbers the connection) and does not
care which. A check costs about 0.1 us in Python. Worst case accepted: Unnumbered sees no loss at all, and Checksum only
one that touches the levels it covers.

References
----------
Binance, web-socket-streams.md, "How to manage a local order book correctly", and its USD-M counterpart (pu); Coinbase
Exchange, "Sequence Numbers"; Kraken, "Book checksum (v2)".
"""

from __future__ import annotations

import enum

__all__ = ["Chain", "Checksum", "PlusOne", "Range", "Sequencing", "UNKNOWN", "Unnumbered", "Verdict"]

UNKNOWN = -1
"""`Sequencing.last` while nothing is known, and a number that a message does not carry."""


class Verdict(enum.IntEnum):
    """What to do with a message: apply it; drop it, the book has it already; give up the book, something is missing."""

    APPLY = 0
    OLD = 1
    GAP = 2


_APPLY, _OLD, _GAP = Verdict.APPLY, Verdict.OLD, Verdict.GAP


class Sequencing:
    """One policy's memory of where a book, or a connection, stands. The base says APPLY to everything.

    Attributes
    ----------
    last : int
        Number of the last message applied; `UNKNOWN` after ``reset()``.
    expected, got : int
        What the last question came down to: for a BOOK_STATE row's ``a`` and ``b``.
    """

    __slots__ = ("expected", "got", "last")

    def __init__(self, last: int = UNKNOWN) -> None:
        self.expected = 0
        self.got = 0
        self.reset(last)

    def reset(self, last: int = UNKNOWN) -> None:
        """Start from a snapshot that contains everything up to `last`; without one, from the next message."""
        self.last = last

    def check(self, first: int, last: int = UNKNOWN, previous: int = UNKNOWN) -> Verdict:
        """Return what to do with a message that carries these numbers; APPLY remembers it as applied.

        Parameters
        ----------
        first, last : int
            First and last update id in the message; a message with one number gives it as `first`.
        previous : int
            Id of the message before, where the message names it.
        """
        return _APPLY

    def verify(self, expected: int, got: int) -> Verdict:
        """Return whether the book, `got`, is what the venue says it is, `expected`: APPLY or GAP."""
        return _APPLY


class Range(Sequencing):
    """Messages carry a range of ids without holes between messages (Binance spot).

    Examples
    --------
    >>> book = Range(last=100)
    >>> book.check(99, 103).name, book.check(99, 103).name, book.check(105, 106).name, (book.expected, book.got)
    ('APPLY', 'OLD', 'GAP', (104, 105))
    """

    __slots__ = ()

    def check(self, first: int, last: int = UNKNOWN, previous: int = UNKNOWN) -> Verdict:
        """Return OLD if the range ends at or before the id known, GAP if it begins after the next one, else APPLY."""
        known = self.last
        self.expected = known + 1
        self.got = first
        if known != UNKNOWN:
            if last <= known:
                return _OLD
            if first > known + 1:
                return _GAP
        self.last = last
        return _APPLY


class Chain(Sequencing):
    """Messages name the last id of the message before (Binance USD-M futures, ``pu``).

    The first message after a snapshot may name one that the snapshot is ahead of: the snapshot's id has to lie in the
    message's range, or between the message before and it, where no update can be.

    Examples
    --------
    >>> book = Chain(last=100)
    >>> book.check(98, 103, 97).name, book.check(110, 112, 103).name, book.check(120, 121, 119).name
    ('APPLY', 'APPLY', 'GAP')
    """

    __slots__ = ("_joined",)

    def reset(self, last: int = UNKNOWN) -> None:
        """Start from a snapshot with id `last`: the next message to apply is the one that spans it."""
        self.last = last
        self._joined = last == UNKNOWN

    def check(self, first: int, last: int = UNKNOWN, previous: int = UNKNOWN) -> Verdict:
        """Return APPLY if `previous` is the id known, or, first after a snapshot, if it or `first` <= known <= last."""
        known = self.last
        self.expected = known
        if known == UNKNOWN:
            self.got = previous
        elif self._joined:
            self.got = previous
            if last <= known:
                return _OLD
            if previous != known:
                return _GAP
        else:
            self.got = first
            if last < known:
                return _OLD
            if first > known and not 0 <= previous <= known:
                return _GAP
            self._joined = True
        self.last = last
        return _APPLY


class PlusOne(Sequencing):
    """Messages are numbered one by one, in a product (Coinbase Exchange) or a connection (Advanced Trade, ITCH).

    Examples
    --------
    >>> product = PlusOne()
    >>> [product.check(n).name for n in (7, 8, 8, 10)], (product.expected, product.got)
    (['APPLY', 'APPLY', 'OLD', 'GAP'], (9, 10))
    """

    __slots__ = ()

    def check(self, first: int, last: int = UNKNOWN, previous: int = UNKNOWN) -> Verdict:
        """Return APPLY if `first` is the number known plus 1, OLD below, GAP above."""
        known = self.last
        self.expected = known + 1
        self.got = first
        if first != known + 1 and known != UNKNOWN:
            return _OLD if first <= known else _GAP
        self.last = first
        return _APPLY


class Checksum(Sequencing):
    """Messages carry no number but a checksum of the book after them (Kraken): apply first, then `verify`.

    Examples
    --------
    >>> book = Checksum()
    >>> book.check(0).name, book.verify(974942666, 974942666).name, book.verify(974942666, 1).name
    ('APPLY', 'APPLY', 'GAP')
    """

    __slots__ = ()

    def verify(self, expected: int, got: int) -> Verdict:
        """Return APPLY if the checksums are equal, else GAP; `last` becomes the checksum agreed on."""
        self.expected = expected
        self.got = got
        if expected != got:
            return _GAP
        self.last = got
        return _APPLY


class Unnumbered(Sequencing):
    """Messages carry nothing: a loss cannot be seen, and the next snapshot in the stream is all there is."""

    __slots__ = ()
