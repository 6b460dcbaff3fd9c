"""Coinbase: the local book rules and the market data connections of both APIs, as state machines without a socket.

Three rules, because the venue has three ways to carry a book:

======================  ===============================================================================================
level2, level2_batch    A snapshot in the stream, then absolute levels without a number: a loss cannot be seen. What can
                        be: time. The venue's times of one product never went back in recorded data (9,719 updates), so
                        a message older than the one before is taken as disorder, and the book is subscribed anew
full                    Every message of a product carries its sequence, one more than the last. Messages are held back,
                        a level 3 snapshot is fetched by REST, those it contains are dropped and the rest applied; a
                        number that is missing starts this again. A heartbeat tells the last number there is: one
                        above ours was lost, and no later message has to come to show it
Advanced Trade          Every message of the *connection* carries a number, acknowledgements included. One that is
                        missing may have been any book's: all of them are subscribed anew
======================  ===============================================================================================

Promise. While a book is not LIVE or STALE no LEVEL and no L3 row of it leaves; every change of belief is one BOOK_STATE
row. Trades and quotes pass at once, whatever the book's state; a match told twice (its id is not above the last) is
dropped, and ids that were jumped over are counted: the matches channel may lose messages. A heartbeat of a product
shows that a quiet book is not a dead one. A refused message that may have changed a book costs that book at once.

Bounds. A product of the full channel holds back at most `BUFFER_FRAMES` messages; when full the oldest go (counted): a
snapshot then has to be newer than the first one kept. A snapshot larger than `max_rows` is refused and counted by the
decoder (``oversize``): its book never becomes LIVE. Worst case accepted: a level2 update that was lost stays unseen
until the book crosses or is subscribed anew; use full, or Advanced Trade, where that matters.

References
----------
docs.cdp.coinbase.com: Exchange WebSocket Overview (sequence numbers), Channels (level2, full); Advanced Trade WebSocket
Overview (sequence numbers), Channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, BookState, Flag, Kind, RowArray
from hftlab.venues.coinbase.market import (
    BROKEN,
    CONTROL,
    ERROR,
    HEARTBEAT,
    LEVELS,
    LOST,
    ORDER,
    OTHER,
    SNAPSHOT,
    TICKER,
    TRADES,
    MarketDecoder,
    Part,
    put_row,
)
from hftlab.venues.coinbase.spec import CHANNELS, book_path
from hftlab.venues.sequence import UNKNOWN, PlusOne, Sequencing, Unnumbered, Verdict

__all__ = [
    "AdvancedConnection", "BUFFER_FRAMES", "BookSync", "MarketConnection", "RESUBSCRIBE_NS", "SNAPSHOT_RETRY_NS",
    "Sign",
]  # fmt: skip

BUFFER_FRAMES = 8192
"""Messages of one product held back on the full channel; some seconds of the busiest."""
SNAPSHOT_RETRY_NS = 5_000_000_000
"""After so long without a usable snapshot it is asked for again."""
RESUBSCRIBE_NS = 1_000_000_000
"""A book is subscribed anew at most once in so long; one lost again before waits for `poll`."""

Sign = Callable[[int], Mapping[str, object]]
"""Given the time in ns, the fields that sign a subscription: `orders.exchange_signature`, or a fresh ``jwt``."""

_KEPT_ERRORS = 16
_LAST = int(Flag.LAST)
_EMPTY, _LIVE = int(BookState.EMPTY), int(BookState.LIVE)
_STALE, _RESYNCING = int(BookState.STALE), int(BookState.RESYNCING)
_BOOK_STATE, _TRADE = int(Kind.BOOK_STATE), int(Kind.TRADE)


class BookSync:
    """How far one product's book may be believed.

    Attributes
    ----------
    state : BookState
        EMPTY before the first snapshot, then LIVE, STALE or RESYNCING.
    synced : bool
        Whether deltas are being applied: the book is LIVE or STALE.
    policy : Sequencing
        Of the full channel `PlusOne`, else `Unnumbered`.
    heard_ns, asked_ns : int
        When something of the product last came; when a snapshot was asked for (`NAT`: not asked).
    sent_ns : int
        When the book was last subscribed anew on this connection, whatever came of it; `NAT`: never.
    retried : bool
        Whether an unusable snapshot was followed by a request at once; the next waits.
    time : int
        The venue's time of the last delta applied, ns.
    trade_id : int
        Of the last match; -1 before the first.
    """

    __slots__ = (
        "asked_ns", "buffer", "heard_ns", "instrument", "policy", "retried", "sent_ns", "state", "subscribed", "synced",
        "time", "trade_id",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, policy: Sequencing) -> None:
        self.instrument = instrument
        self.policy = policy
        self.state = _EMPTY
        self.synced = False
        self.heard_ns = NAT
        self.asked_ns = NAT
        self.sent_ns = NAT
        self.retried = False
        self.time = NAT
        self.trade_id = -1
        self.subscribed = True
        self.buffer: deque[tuple[int, int, bytes]] = deque()

    def lose(self) -> None:
        """Forget the book: nothing is applied until a snapshot comes."""
        self.synced = False
        self.asked_ns = NAT
        self.time = NAT
        self.buffer.clear()
        self.policy.reset()

    def hold(self, sequence: int, ts_recv: int, frame: bytes) -> int:
        """Buffer one message of the full channel; return how many old ones that pushed out.

        A message that does not continue the buffer starts it anew: what came before can never be joined.
        """
        dropped = 0
        if self.buffer and sequence > self.buffer[-1][0] + 1:
            dropped = len(self.buffer)
            self.buffer.clear()
        elif self.buffer and sequence <= self.buffer[-1][0]:
            return 0
        self.buffer.append((sequence, ts_recv, frame))
        if len(self.buffer) > BUFFER_FRAMES:
            self.buffer.popleft()
            dropped += 1
        return dropped


def _strip_last(out: RowArray, n: int) -> None:
    """Take LAST from the first `n` rows: a BOOK_STATE row after them ends the message."""
    out["flags"][:n] &= 0xFFFF ^ _LAST


class _Books:
    """What both connections share: books, belief in them, staleness, what is to be sent."""

    def __init__(
        self, instruments: Sequence[Instrument], policy: type[Sequencing], source: int, stale_ns: int, sign: Sign | None
    ) -> None:
        if stale_ns <= 0:
            raise ConfigError(f"stale_ns={stale_ns}; expected above 0")
        self.decoder = MarketDecoder(instruments, source)
        self.source = source
        self.stale_ns = stale_ns
        self.books = {i.id: BookSync(i, policy()) for i in instruments}
        if len(self.books) != len(instruments):
            raise ConfigError("instruments name one id twice; expected each id once")
        self.counts = dict.fromkeys(
            (
                "gaps", "duplicates", "missed_trades", "unsynced", "old_snapshots", "bad_snapshots",
                "unasked_snapshots", "buffered", "dropped",
            ), 0,
        )  # fmt: skip
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self.shutdown = False
        self._sign = sign
        self._now_ns = 0
        self._by_symbol = {b.instrument.symbol: b for b in self.books.values()}
        self._wanted: dict[str, None] = {}
        self._sends: deque[bytes] = deque()

    def _request(self, **fields: object) -> bytes:
        signed = self._sign(self._now_ns) if self._sign is not None else {}
        return msgspec.json.encode({**fields, **signed})

    def _symbols(self, books: Sequence[BookSync]) -> list[str]:
        return [book.instrument.symbol for book in books]

    def _resubscribe(self, books: Sequence[BookSync], now_ns: int) -> None:
        """Ask for new snapshots of `books`; those that were subscribed anew just now are left to `poll`."""
        due = []
        for book in books:
            if book.subscribed and (book.sent_ns == NAT or now_ns - book.sent_ns >= RESUBSCRIBE_NS):
                book.sent_ns = now_ns
                due.append(book)
            book.asked_ns = book.sent_ns
        if due:
            self._send_anew(self._symbols(due))

    def _send_anew(self, symbols: list[str]) -> None:
        """Unsubscribe and subscribe the books of `symbols`; each API has its own words for it."""
        raise NotImplementedError

    def on_open(self, now_ns: int) -> None:
        """A new connection is up: every book starts from nothing.

        Raises
        ------
        LocalError
            If a book is still in sync: `on_close` has to say first, in rows, that it is not.
        """
        if any(book.synced for book in self.books.values()):
            raise LocalError("on_open: a book is still in sync with the connection before; expected on_close first")
        self._now_ns = now_ns
        self.shutdown = False
        self._wanted.clear()
        self._sends.clear()
        for book in self.books.values():
            book.lose()
            book.heard_ns = now_ns
            book.sent_ns = NAT
            book.retried = False
            book.trade_id = -1  # the venue may have restarted its ids; what is told twice comes as last_match

    def on_close(self, now_ns: int, out: RowArray) -> int:
        """The connection is gone: write RESYNCING for every book that was in sync; return the rows."""
        n = 0
        for book in self.books.values():
            if book.synced:
                n = self._lost(book, now_ns, NAT, out, n)
            book.lose()
        self._wanted.clear()
        self._sends.clear()
        return n

    def wants_send(self) -> list[bytes]:
        """Return the messages to be sent now, each once: new subscriptions to books that were lost."""
        if not self._sends:
            return []
        messages = list(self._sends)
        self._sends.clear()
        return messages

    def wants_snapshot(self) -> list[str]:
        """Return the symbols whose REST snapshot is to be fetched now, each once; `poll` asks again if none comes."""
        if not self._wanted:
            return []
        symbols = list(self._wanted)
        self._wanted.clear()
        return symbols

    def snapshot_path(self, symbol: str) -> str:
        """Return path and query of the REST snapshot of `symbol`: the Exchange's level 3 book."""
        return book_path(symbol)

    def poll(self, now_ns: int, out: RowArray) -> int:
        """Look at the clock: write STALE for books gone silent, ask again for overdue snapshots; return the rows."""
        n = 0
        self._now_ns = now_ns
        overdue = []
        for book in self.books.values():
            if book.synced:
                if book.state == _LIVE and now_ns - book.heard_ns > self.stale_ns:
                    n = self._state(book, _STALE, now_ns, NAT, out, n)
            elif book.subscribed and book.heard_ns != NAT:
                since = book.heard_ns if book.asked_ns == NAT else book.asked_ns
                if now_ns - since > SNAPSHOT_RETRY_NS:
                    overdue.append(book)
        if overdue:
            self._resubscribe(overdue, now_ns)
        return n

    def _lost(self, book: BookSync, now_ns: int, ts_event: int, out: RowArray, n: int) -> int:
        """Stop believing in `book`: a RESYNCING row at `n`; return the next free row."""
        book.lose()
        return self._state(book, _RESYNCING, now_ns, ts_event, out, n)

    def _state(self, book: BookSync, state: int, now_ns: int, ts_event: int, out: RowArray, n: int) -> int:
        """Write a BOOK_STATE row at `n`; return the next free row."""
        book.state = state
        expected, got = max(book.policy.expected, 0), max(book.policy.got, 0)
        put_row(
            out, n, _BOOK_STATE, self.source, now_ns, ts_event, book.instrument.id, _LAST, state, 0, 0, expected, got
        )  # fmt: skip
        return n + 1

    def _live(self, book: BookSync, now_ns: int, ts_event: int, out: RowArray, n: int) -> int:
        """Say after the `n` rows of a message that `book` may be believed again."""
        _strip_last(out, n)
        return self._state(book, _LIVE, now_ns, ts_event, out, n)

    def _on_broken(self, now_ns: int, out: RowArray) -> int:
        """A message was refused that may have changed a book, or any book: stop believing; return the rows."""
        who = self.decoder.instrument
        lost = [book for book in self.books.values() if book.synced and who in (-1, book.instrument.id)]
        n = 0
        for book in lost:
            self.counts["gaps"] += 1
            n = self._lost(book, now_ns, NAT, out, n)
        if lost:
            self._resubscribe(lost, now_ns)
        return n

    def _on_levels(self, book: BookSync, snapshot: bool, now_ns: int, out: RowArray, n: int) -> int:
        """Take the rows of a snapshot or of deltas, at the front of `out`: return how many leave."""
        stamp = self.decoder.time
        book.heard_ns = now_ns
        if snapshot:
            book.synced = True
            book.asked_ns = NAT
            book.time = NAT  # its own time is no bound for deltas: they may be stamped before it was made
        elif not book.synced:
            self.counts["unsynced"] += 1
            return 0
        elif stamp < book.time:
            self.counts["gaps"] += 1
            n = self._lost(book, now_ns, stamp, out, 0)
            self._resubscribe([book], now_ns)
            return n
        elif stamp != NAT:
            book.time = stamp
        return n if book.state == _LIVE else self._live(book, now_ns, stamp, out, n)


class MarketConnection(_Books):
    """One connection to the Exchange feed: messages and snapshots in, gap-checked rows out.

    Parameters
    ----------
    instruments : sequence of Instrument
        What the connection may carry.
    channel : str
        How books come: one of `spec.CHANNELS`. ``full`` gives L3 rows, the others LEVEL rows; all but level2_batch need
        `sign` at the venue.
    source : int
        Written in every row.
    stale_ns : int
        A synced book of which nothing came for longer, heartbeats included, is STALE.
    sign : callable(now_ns), optional
        Gives the fields that authenticate a subscription.
    max_rows : int
        Levels, or orders, that a snapshot may hold.

    Attributes
    ----------
    counts : dict[str, int]
        ``gaps``; ``duplicates`` (messages and matches told twice); ``missed_trades`` (ids jumped over); ``unsynced``
        (deltas dropped while a snapshot was awaited); ``old_snapshots``, ``bad_snapshots``, ``unasked_snapshots`` (the
        book was in sync); ``buffered`` and ``dropped`` messages. The decoder's are in ``decoder.counts``.
    errors : deque of str
        The last 16 error messages.
    shutdown : bool
        Always False: the venue announces no closing.

    Raises
    ------
    ConfigError
        If `channel`, `stale_ns` or `max_rows` is out of range, or two instruments share a symbol or an id.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        channel: str = "level2_batch",
        source: int = 1,
        stale_ns: int = 5_000_000_000,
        sign: Sign | None = None,
        max_rows: int = 131_072,
    ) -> None:
        if channel not in CHANNELS:
            raise ConfigError(f"channel={channel!r}; expected one of {', '.join(CHANNELS)}")
        if max_rows < 1:
            raise ConfigError(f"max_rows={max_rows}; expected 1 or more")
        self.full = channel == "full"
        super().__init__(instruments, PlusOne if self.full else Unnumbered, source, stale_ns, sign)
        self.channel = channel
        self.max_rows = max_rows
        self._answered = False  # the subscription: a snapshot without a stream behind it would be believed for nothing
        self._others = ["ticker", "heartbeat"] if self.full else ["matches", "ticker", "heartbeat"]

    @property
    def rows_needed(self) -> int:
        """Rows `out` must have in every call: a snapshot, all that may be held back behind it, and the book's state."""
        return self.max_rows + 2 + (2 * BUFFER_FRAMES if self.full else 0)

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the message that subscribes to the instruments `ids`: book, matches, ticker, heartbeat."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = True
        channels = [self.channel, *self._others]
        return [self._request(type="subscribe", product_ids=self._symbols(books), channels=channels)]

    def unsubscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the message that unsubscribes from `ids`; their books turn STALE by `poll` as the messages stop."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = False
        channels = [self.channel, *self._others]
        return [self._request(type="unsubscribe", product_ids=self._symbols(books), channels=channels)]

    def _resubscribe(self, books: Sequence[BookSync], now_ns: int) -> None:
        if not self.full:
            super()._resubscribe(books, now_ns)
            return
        for book in books if self._answered else ():
            book.asked_ns = now_ns
            self._wanted[book.instrument.symbol] = None

    def on_open(self, now_ns: int) -> None:
        """A new connection is up: every book starts from nothing, and waits for an answer to its subscription."""
        super().on_open(now_ns)
        self._answered = False

    def _send_anew(self, symbols: list[str]) -> None:
        for what in ("unsubscribe", "subscribe"):
            self._sends.append(self._request(type=what, product_ids=symbols, channels=[self.channel]))

    def _again(self, book: BookSync, now_ns: int) -> None:
        """A snapshot could not be used: ask for another at once, but only once; what follows waits for `poll`."""
        if book.retried and now_ns - book.asked_ns <= SNAPSHOT_RETRY_NS:
            return
        book.retried = True
        self._resubscribe([book], now_ns)

    def _lost(self, book: BookSync, now_ns: int, ts_event: int, out: RowArray, n: int) -> int:
        if self.full:
            self.decoder.forget(book.instrument.id)
        return super()._lost(book, now_ns, ts_event, out, n)

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        """Take one message; write the rows to sequence now to the front of `out` and return their number."""
        decoder = self.decoder
        self._now_ns = now_ns
        n = decoder.decode(frame, now_ns, out)
        kind = decoder.kind
        if not self._answered and kind not in (ERROR, OTHER) and (kind != BROKEN or decoder.instrument >= 0):
            self._answered = True
        if kind == LEVELS or kind == SNAPSHOT:
            return self._on_levels(self.books[decoder.instrument], kind == SNAPSHOT, now_ns, out, n)
        if kind == TRADES or kind == ORDER or kind == LOST:
            book = self.books[decoder.instrument]
            if not self.full or not book.synced:
                book.heard_ns = now_ns
            if self.full and not (n and out[0]["flags"] & Flag.SNAPSHOT):
                return self._on_full(book, frame, kind, now_ns, out, n)
            return self._on_match(book, out, n) if kind == TRADES else 0
        if kind == HEARTBEAT or kind == TICKER:
            book = self.books[decoder.instrument]
            book.heard_ns = now_ns
            if kind == HEARTBEAT and self.full and book.synced:
                return self._on_beat(book, now_ns, out)
        elif kind == BROKEN:
            return self._on_broken(now_ns, out)
        elif kind == ERROR:
            self.errors.append(frame.decode(errors="replace")[:200])
        elif kind == CONTROL and self.full:
            missing = [b for b in self.books.values() if b.subscribed and not b.synced and b.asked_ns == NAT]
            self._resubscribe(missing, now_ns)
        return n

    def _on_match(self, book: BookSync, out: RowArray, n: int) -> int:
        """Count what the ids of matches tell of a loss; drop a match told twice."""
        trade_id, known = self.decoder.trade_id, book.trade_id
        if trade_id <= known:
            if not out[0]["flags"] & Flag.SNAPSHOT:
                self.counts["duplicates"] += 1
            return 0
        if known >= 0:
            self.counts["missed_trades"] += trade_id - known - 1
        book.trade_id = trade_id
        return n

    def _on_beat(self, book: BookSync, now_ns: int, out: RowArray) -> int:
        """Compare the number that a heartbeat tells with ours: one above it was lost, and may have been the last."""
        policy, told = book.policy, self.decoder.sequence
        if told <= policy.last:
            return 0
        self.counts["gaps"] += 1
        policy.expected, policy.got = policy.last + 1, told
        n = self._lost(book, now_ns, self.decoder.time, out, 0)
        self._resubscribe([book], now_ns)
        return n

    def _on_full(self, book: BookSync, frame: bytes, kind: int, now_ns: int, out: RowArray, n: int) -> int:
        """Take a numbered message of the full channel; the decoder has applied it if it was the next one."""
        sequence = self.decoder.sequence
        if not book.synced:
            return self._hold(book, sequence, frame, kind, now_ns, out, n)
        verdict = book.policy.check(sequence)
        if verdict == Verdict.OLD:
            self.counts["duplicates"] += 1
            return 0
        book.heard_ns = now_ns  # numbers told before keep no book alive
        if verdict == Verdict.GAP or kind == LOST:
            self.counts["gaps"] += 1
            stamp = self.decoder.time
            n = self._on_match(book, out, n) if kind == TRADES else 0
            if n:
                _strip_last(out, n)
            n = self._lost(book, now_ns, stamp, out, n)
            self._hold(book, sequence, frame, ORDER, now_ns, out, 0)
            return n
        if kind == TRADES:
            self._on_match(book, out, n)
        if book.state != _LIVE:
            return self._live(book, now_ns, self.decoder.time, out, n)
        return n

    def _hold(self, book: BookSync, sequence: int, frame: bytes, kind: int, now_ns: int, out: RowArray, n: int) -> int:
        self.counts["buffered"] += 1
        self.counts["dropped"] += book.hold(sequence, now_ns, frame)
        if book.asked_ns == NAT:
            self._resubscribe([book], now_ns)
        return self._on_match(book, out, n) if kind == TRADES else 0

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        """Take the answer to a snapshot request: write the new book, the messages after it and LIVE; return the rows.

        Parameters
        ----------
        symbol : str
            What was asked for.
        payload : bytes
            The answer's body; anything but a level 3 book is counted and asked for again by `poll`.
        now_ns : int
            When it was received.
        out : ROW array
            Overwritten; at least `rows_needed` rows.

        Returns
        -------
        int
            0 if the snapshot cannot be used: bad, older than the first message held back (asked for again at once the
            first time, then by `poll`), or of a book that is in sync.

        Raises
        ------
        ConfigError
            If `symbol` is unknown, `out` is too short, or the channel is not full.
        """
        book = self._by_symbol.get(symbol)
        if book is None or not self.full:
            raise ConfigError(
                f"symbol={symbol!r} on channel {self.channel}; expected channel full and of {sorted(self._by_symbol)}"
            )
        if len(out) < self.rows_needed:
            raise ConfigError(f"out has {len(out)} rows; a snapshot may need {self.rows_needed}")
        if book.synced:
            self.counts["unasked_snapshots"] += 1
            return 0
        decoder, identity = self.decoder, book.instrument.id
        n = decoder.decode_snapshot(payload, identity, now_ns, out[: self.max_rows + 1])
        if n == 0:
            self.counts["bad_snapshots"] += 1
            return 0
        sequence = decoder.sequence
        if book.buffer and book.buffer[0][0] > sequence + 1:
            self.counts["old_snapshots"] += 1
            decoder.forget(identity)
            self._again(book, now_ns)
            return 0
        book.policy.reset(sequence)
        for number, ts_recv, frame in book.buffer:
            if number > sequence:
                more = decoder.decode(frame, ts_recv, out[n:])
                if decoder.kind in (LOST, BROKEN) or book.policy.check(number) != Verdict.APPLY:
                    decoder.forget(identity)
                    asked_ns = book.asked_ns
                    book.lose()
                    book.asked_ns = asked_ns
                    self._again(book, now_ns)
                    return 0
                n += more - (decoder.kind == TRADES)  # the trade has passed when it came
        book.buffer.clear()
        book.synced = True
        book.retried = False
        book.asked_ns = NAT
        book.heard_ns = now_ns
        book.policy.expected = book.policy.got = max(book.policy.last, 0)
        return self._live(book, now_ns, NAT, out, n)


class AdvancedConnection(_Books):
    """One connection to Advanced Trade's market data: one number for every message of it.

    Parameters
    ----------
    instruments : sequence of Instrument
        What the connection may carry.
    source : int
        Written in every row.
    stale_ns : int
        When the connection has brought nothing for longer, heartbeats included, its books are STALE.
    sign : callable(now_ns), optional
        Gives the field ``jwt``; the venue recommends it and serves market data without.
    max_rows : int
        Levels that a message may hold.

    Attributes
    ----------
    counts, errors, shutdown
        As of `MarketConnection`.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        source: int = 1,
        stale_ns: int = 5_000_000_000,
        sign: Sign | None = None,
        max_rows: int = 131_072,
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows={max_rows}; expected 1 or more")
        super().__init__(instruments, Unnumbered, source, stale_ns, sign)
        self.max_rows = max_rows
        self.policy = PlusOne()

    @property
    def rows_needed(self) -> int:
        """Rows `out` must have in every call: a message, and the state of every book."""
        return self.max_rows + 1 + 2 * len(self.books)

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the messages that subscribe to `ids`: the venue takes one channel a message."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = True
        symbols = self._symbols(books)
        requests = [
            self._request(type="subscribe", product_ids=symbols, channel=name)
            for name in ("level2", "market_trades", "ticker")
        ]
        return [*requests, self._request(type="subscribe", channel="heartbeats")]

    def unsubscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the messages that unsubscribe from `ids`; their books turn STALE by `poll`."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = False
        symbols = self._symbols(books)
        return [
            self._request(type="unsubscribe", product_ids=symbols, channel=name)
            for name in ("level2", "market_trades", "ticker")
        ]

    def _send_anew(self, symbols: list[str]) -> None:
        for what in ("unsubscribe", "subscribe"):
            self._sends.append(self._request(type=what, product_ids=symbols, channel="level2"))

    def on_open(self, now_ns: int) -> None:
        """A new connection is up: it counts from its own first message."""
        super().on_open(now_ns)
        self.policy.reset()

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        """Take one message; write the rows to sequence now to the front of `out` and return their number."""
        decoder = self.decoder
        self._now_ns = now_ns
        n = decoder.decode(frame, now_ns, out[: self.max_rows + 1])
        if decoder.kind == ERROR:
            self.errors.append(frame.decode(errors="replace")[:200])
        if decoder.sequence == UNKNOWN and decoder.kind == BROKEN:
            return self._on_broken(now_ns, out)
        if decoder.sequence == UNKNOWN:
            return n  # unreadable, or an error message: the number after it shows whether it counted
        for book in self.books.values():
            if book.subscribed:  # what was unsubscribed goes STALE, however much comes of others
                book.heard_ns = now_ns
        verdict = self.policy.check(decoder.sequence)
        if verdict == Verdict.OLD:
            self.counts["duplicates"] += 1
            return 0
        if verdict == Verdict.APPLY and decoder.kind == BROKEN:
            return self._on_broken(now_ns, out)
        lost: list[BookSync] = []
        if verdict == Verdict.GAP:
            lost = self._on_gap(now_ns)
        if decoder.kind == LEVELS or decoder.kind == SNAPSHOT:
            parts = decoder.parts or [Part(decoder.instrument, decoder.kind == SNAPSHOT, 0, n)]
            n = self._on_parts(parts, lost, now_ns, out) if len(parts) > 1 or lost else self._on_part(
                parts[0], now_ns, out
            )
        for book in lost:
            if not book.synced:
                n = self._told(book, now_ns, out, n)
        return n

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        """Take no REST snapshot: books come in the stream; count it and return 0.

        Raises
        ------
        ConfigError
            If `symbol` is unknown.
        """
        if symbol not in self._by_symbol:
            raise ConfigError(f"symbol={symbol!r} is not on this connection; it carries {sorted(self._by_symbol)}")
        self.counts["unasked_snapshots"] += 1
        return 0

    def _on_gap(self, now_ns: int) -> list[BookSync]:
        """Something of this connection was missed: lose every book; return those that were in sync."""
        self.counts["gaps"] += 1
        lost = [book for book in self.books.values() if book.synced]
        for book in lost:
            book.lose()
            book.state = _RESYNCING
        expected, got = self.policy.expected, self.policy.got
        self.policy.reset(got)
        self.policy.expected, self.policy.got = expected, got
        again = [book for book in self.books.values() if book.subscribed]
        if again:
            self._resubscribe(again, now_ns)
        return lost

    def _told(self, book: BookSync, now_ns: int, out: RowArray, n: int) -> int:
        book.policy.expected, book.policy.got = self.policy.expected, self.policy.got
        return self._state(book, _RESYNCING, now_ns, self.decoder.time, out, n)

    def _on_part(self, part: Part, now_ns: int, out: RowArray) -> int:
        if part.instrument < 0:
            return 0
        return self._on_levels(self.books[part.instrument], part.snapshot, now_ns, out, part.stop)

    def _on_parts(self, parts: Sequence[Part], lost: Sequence[BookSync], now_ns: int, out: RowArray) -> int:
        """Take the events of one message one by one, each with what it does to its book."""
        rows = out[: parts[-1].stop].copy() if parts else out[:0].copy()
        n = 0
        for part in parts:
            book = self.books[part.instrument]
            size = part.stop - part.start
            if book in lost and part.snapshot and not book.synced:
                n = self._told(book, now_ns, out, n)  # the snapshot that comes with the gap ends it at once
            out[n : n + size] = rows[part.start : part.stop]
            n += self._on_levels(book, part.snapshot, now_ns, out[n:], size)
        return n
