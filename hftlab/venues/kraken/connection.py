"""Kraken spot: one market data connection as a state machine without a socket; the checksum decides.

Model. The venue numbers nothing. A subscription begins with a snapshot in the stream, and every message after it
carries the CRC32 of the ten best levels a side as they are after it. The decoder keeps each book and computes the same;
the policy `sequence.Checksum` compares. Equal: the rows go out. Different: something was lost or misread, the book is
RESYNCING, its rows stop, and it is subscribed anew: unsubscribe, subscribe, and the next snapshot in the stream
rebuilds it. No REST request is ever needed.

Promise. While a book is not LIVE or STALE no LEVEL row of it leaves; every change of belief is one BOOK_STATE row, the
last of its instrument's rows in a message, whose expected and got are the venue's checksum and ours; one symbol's
mismatch touches no other symbol. Of an instrument's rows in a message only the last carries LAST. Trades and ticker
rows pass at once. A snapshot of a book that is LIVE (the venue may send one) replaces it without a BOOK_STATE row:
CLEAR, the levels, LAST on the last. A book that is unsubscribed is given up at once, is STALE with the next `poll`, and
what the venue still had on its way changes nothing.

STALE means that the *connection* has been silent. A market may be quiet for many seconds while its book is right; the
venue says so by a heartbeat a second, and since a connection delivers in order, any message proves that nothing is
missing before it: then every STALE book is LIVE again.

Bounds. Nothing is buffered: what comes for a book out of sync is dropped (counted) until its snapshot. A symbol is
subscribed anew at most once each `RESUBSCRIBE_NS`, so a venue whose snapshots fail their own checksum is asked at that
pace and not in a loop; the list of messages to send holds two a book and a ping.

Worst case accepted: a loss below the tenth level is seen only when the levels above it have gone. A subscription that
the venue drops without a word looks like a quiet market as long as heartbeats come.

References
----------
Kraken: WebSocket v2 book, heartbeat, status, ping; guide "Book checksum (WebSocket v2)"; the same of v1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, BookState, Flag, Kind, RowArray
from hftlab.venues.kraken.market import (
    BOOK,
    BROKEN,
    CHECKSUM,
    COMPUTED,
    CONTROL,
    IS_SNAPSHOT,
    KIND,
    SEVERAL,
    STATUS,
    WHO,
    MarketDecoder,
)
from hftlab.venues.kraken.messages import json_decoder
from hftlab.venues.kraken.spec import PING_INTERVAL_S, depth_path, v1_name
from hftlab.venues.sequence import Checksum, Verdict

__all__ = ["KeptBook", "MarketConnection", "RESUBSCRIBE_NS"]

RESUBSCRIBE_NS = 1_000_000_000
"""So far apart, at least, are two subscriptions of one symbol."""
_SNAPSHOT_RETRY_NS = 5_000_000_000
_MESSAGE_ROWS = 4096  # levels of the updates in one message: the recorded maximum is below 100
_LAST = int(Flag.LAST)
_KEPT_ERRORS = 16
_EMPTY, _LIVE = int(BookState.EMPTY), int(BookState.LIVE)
_STALE, _RESYNCING = int(BookState.STALE), int(BookState.RESYNCING)
_BOOK_STATE = int(Kind.BOOK_STATE)
_GAP = Verdict.GAP


class KeptBook:
    """What a connection knows of one symbol's book; the levels themselves are the decoder's.

    Attributes
    ----------
    state : BookState
        EMPTY before the first snapshot, then LIVE, STALE or RESYNCING.
    synced : bool
        Updates are applied: the book is LIVE or STALE.
    policy : Checksum
        The rule, and the checksum last agreed on.
    asked_ns : int
        When it was last subscribed to (`NAT`: not on this connection, or not yet noticed).
    waiting : bool
        The snapshot of a subscription is on its way.
    ended : bool
        It was unsubscribed: its messages are dropped until it is subscribed to again.
    """

    __slots__ = ("asked_ns", "ended", "instrument", "policy", "state", "subscribed", "synced", "waiting")

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.policy = Checksum()
        self.state = _EMPTY
        self.synced = False
        self.subscribed = False
        self.asked_ns = NAT
        self.waiting = True
        self.ended = False


class MarketConnection:
    """One market data connection: messages in, rows of proved books out.

    Parameters
    ----------
    instruments : sequence of Instrument
        What the connection may carry.
    source : int
        Written in every row.
    stale_ns : int
        A connection silent for longer makes its books STALE; the venue sends a heartbeat a second.
    depth : int
        Levels a side: 10, 25, 100, 500 or 1000. The checksum covers ten; fewer levels mean fewer messages.
    version : int
        Of the protocol: 2, or 1.

    Attributes
    ----------
    counts : dict[str, int]
        ``gaps`` (checksums that differ), ``bad_snapshots``, ``broken`` (books given up because a message could not be
        read), ``dropped`` (updates of a book out of sync), ``unasked_snapshots`` (from REST), ``resubscribed``. The
        decoder's are in ``decoder.counts``.
    errors : deque of str
        The last 16 error answers to requests.
    shutdown : bool
        The venue has announced maintenance.

    Raises
    ------
    ConfigError
        If `stale_ns` is out of range, or as `MarketDecoder` says.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        source: int = 1,
        stale_ns: int = 3_000_000_000,
        depth: int = 100,
        version: int = 2,
    ) -> None:
        if stale_ns <= 0:
            raise ConfigError(f"stale_ns={stale_ns}; expected above 0")
        self.decoder = MarketDecoder(instruments, source, version=version, depth=depth)
        self.source, self.stale_ns, self.depth, self.version = source, stale_ns, depth, version
        self.books = {i.id: KeptBook(i) for i in instruments}
        if len(self.books) != len(instruments):
            raise ConfigError("instruments name one id twice; expected each id once")
        self.counts = dict.fromkeys(
            ("gaps", "bad_snapshots", "broken", "dropped", "unasked_snapshots", "resubscribed"), 0
        )
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self.shutdown = False
        self._symbols = {i.symbol for i in instruments}
        self._facts = self.decoder.facts
        self._json = json_decoder()
        self._sends: list[bytes] = []
        self._request_id = 0
        self._heard_ns = self._pinged_ns = NAT
        self._silent = False
        self._out: RowArray | None = None
        self._room: RowArray | None = None

    @property
    def rows_needed(self) -> int:
        """Rows `out` must have in every call: one message, what it cuts off, and every book's state, twice.

        A message may hold a snapshot of every book, each twice the depth and as much cut off, or long updates.
        """
        return max(len(self.books) * (1 + 4 * self.depth), 2 * _MESSAGE_ROWS) + 2 * len(self.books) + 1

    # ---- what is sent

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the messages that subscribe to books, trades and best prices of the instruments `ids`."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed, book.ended = True, False
            book.asked_ns, book.waiting = NAT, True
        return self._requests("subscribe", books)

    def unsubscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the messages that end the subscriptions of `ids`; the next `poll` says that their books are STALE."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed, book.ended = False, True
            self._forget(book)
        return self._requests("unsubscribe", books)

    def _requests(self, method: str, books: list[KeptBook]) -> list[bytes]:
        return [self._request(method, name, books) for name in ("book", "trade", "ticker")]

    def _request(self, method: str, channel: str, books: Iterable[KeptBook]) -> bytes:
        self._request_id += 1
        symbols = [book.instrument.symbol for book in books]
        if self.version == 1:
            what: dict[str, Any] = {"name": channel} | ({"depth": self.depth} if channel == "book" else {})
            pairs = [v1_name(symbol) for symbol in symbols]
            return msgspec.json.encode(
                {"event": method, "reqid": self._request_id, "pair": pairs, "subscription": what}
            )
        params: dict[str, Any] = {"channel": channel, "symbol": symbols}
        if channel == "book":
            params["depth"] = self.depth
        elif channel == "ticker":
            params["event_trigger"] = "bbo"
        if method == "subscribe":
            params["snapshot"] = channel == "book"
        return msgspec.json.encode({"method": method, "params": params, "req_id": self._request_id})

    def wants_send(self) -> list[bytes]:
        """Return messages to be sent now, each once: subscriptions anew, pings."""
        if not self._sends:
            return []
        sends, self._sends = self._sends, []
        return sends

    def wants_snapshot(self) -> list[str]:
        """Return nothing: snapshots come in the stream."""
        return []

    def snapshot_path(self, symbol: str) -> str:
        """Return path and query of a REST snapshot of `symbol`; no connection asks for one."""
        return depth_path(symbol, self.depth)

    # ---- what comes

    def on_open(self, now_ns: int) -> None:
        """A new connection is up: every book waits for the snapshot that its subscription brings.

        Raises
        ------
        LocalError
            If a book is still in sync: `on_close` has to say first, in rows, that it is not.
        """
        if any(book.synced for book in self.books.values()):
            raise LocalError("on_open: a book is still in sync with the connection before; expected on_close first")
        self.shutdown = False
        self._sends.clear()
        self._silent = False
        self._heard_ns = self._pinged_ns = now_ns
        for book in self.books.values():
            book.asked_ns, book.waiting = now_ns, True

    def on_close(self, now_ns: int, out: RowArray) -> int:
        """The connection is gone: write RESYNCING for every book that was in sync; return the rows."""
        n = self._end(now_ns, out, 0)
        for book in self.books.values():
            if book.synced:
                n = self._state(book, _RESYNCING, book.policy.last, 0, now_ns, NAT, out, n)
            self._forget(book)
        self._sends.clear()
        self._heard_ns = NAT
        return n

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        """Take one message; write the rows to sequence now to the front of `out` and return their number."""
        decoder = self.decoder
        if out is not self._out:  # room for every book's state behind a message's rows
            self._out, self._room = out, out[: max(0, len(out) - len(self.books) - 1)]
        assert self._room is not None
        n = decoder.decode(frame, now_ns, self._room)
        self._heard_ns = now_ns
        kind = self._facts[KIND]
        if kind == BOOK:
            n = self._on_book(self.books[self._facts[WHO]], n, now_ns, out)
        elif kind == BROKEN:
            n = self._on_broken(decoder.instrument, now_ns, out)
        elif kind == SEVERAL:
            n = 0
            for part in decoder.split(frame):
                n += self.on_frame(part, now_ns, out[n:])
        elif kind == CONTROL:
            self._on_answer(frame)
        elif kind == STATUS:
            self.shutdown = b'"maintenance"' in frame
        if self._silent:
            n = self._revive(now_ns, out, n)
        return n

    def _on_book(self, book: KeptBook, n: int, now_ns: int, out: RowArray) -> int:
        decoder, policy, facts = self.decoder, book.policy, self._facts
        expected, got = facts[CHECKSUM], facts[COMPUTED]
        if book.ended:
            decoder.forget(book.instrument.id)
            self.counts["dropped"] += 1
            return 0
        if facts[IS_SNAPSHOT]:
            if expected < 0:
                policy.reset(got)  # version 1 proves its snapshots by the first update only
            elif policy.verify(expected, got) == _GAP:
                self.counts["bad_snapshots"] += 1
                return self._resync(book, expected, got, now_ns, decoder.ts_event, out, 0)
            book.synced = True
        elif not book.synced:
            self.counts["dropped"] += 1
            return 0
        elif policy.verify(expected, got) == _GAP:
            self.counts["gaps"] += 1
            return self._resync(book, expected, got, now_ns, decoder.ts_event, out, 0)
        if book.state == _LIVE:
            return n
        out["flags"][:n] &= 0xFFFF ^ _LAST
        return self._state(book, _LIVE, got, got, now_ns, decoder.ts_event, out, n)

    def _on_broken(self, instrument: int, now_ns: int, out: RowArray) -> int:
        """Give up the book that an unreadable message may have changed; all of them if it does not say which."""
        n = 0
        for book in self.books.values():
            if book.synced and instrument in (-1, book.instrument.id):
                self.counts["broken"] += 1
                n = self._resync(book, book.policy.last, 0, now_ns, NAT, out, n)
        return n

    def _revive(self, now_ns: int, out: RowArray, n: int) -> int:
        """The connection speaks again, and in order: what was only STALE is LIVE, said after the message's `n` rows."""
        self._silent = False
        told = out[:n]
        for book in self.books.values():
            if book.state == _STALE and book.synced:
                told["flags"][told["instrument"] == book.instrument.id] &= 0xFFFF ^ _LAST
                last = book.policy.last
                n = self._state(book, _LIVE, last, last, now_ns, NAT, out, n)
        return n

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        """Take no REST snapshot: it cannot be joined to a stream without numbers; count it and return 0.

        Raises
        ------
        ConfigError
            If `symbol` is unknown.
        """
        if symbol not in self._symbols:
            raise ConfigError(f"symbol={symbol!r} is not on this connection; it carries {sorted(self._symbols)}")
        self.counts["unasked_snapshots"] += 1
        return 0

    def poll(self, now_ns: int, out: RowArray) -> int:
        """Look at the clock: write STALE if the connection is silent, subscribe anew what has no snapshot, ping.

        And write STALE for what has been unsubscribed.
        """
        n = self._end(now_ns, out, 0)
        if self._heard_ns == NAT:
            return n
        if now_ns - self._heard_ns > self.stale_ns and not self._silent:
            self._silent = True
            for book in self.books.values():
                if book.synced:
                    n = self._state(book, _STALE, book.policy.last, 0, now_ns, NAT, out, n)
        for book in self.books.values():
            if book.subscribed and not book.synced:
                if book.asked_ns == NAT:
                    book.asked_ns = now_ns
                elif now_ns - book.asked_ns >= (_SNAPSHOT_RETRY_NS if book.waiting else RESUBSCRIBE_NS):
                    self._resubscribe(book, now_ns)
        if now_ns - self._pinged_ns > PING_INTERVAL_S * 1_000_000_000:
            self._pinged_ns = now_ns
            self._request_id += 1
            ping = {"event": "ping", "reqid": self._request_id}
            self._sends.append(
                msgspec.json.encode(ping if self.version == 1 else {"method": "ping", "req_id": self._request_id})
            )
        return n

    # ---- losing a book

    def _end(self, now_ns: int, out: RowArray, n: int) -> int:
        """Write that unsubscribed books are STALE, from row `n` on; return the next free row."""
        for book in self.books.values():
            if book.ended and book.state in (_LIVE, _RESYNCING):
                n = self._state(book, _STALE, 0, 0, now_ns, NAT, out, n)
        return n

    def _forget(self, book: KeptBook) -> None:
        book.synced = False
        book.policy.reset()
        self.decoder.forget(book.instrument.id)

    def _resync(
        self, book: KeptBook, expected: int, got: int, now_ns: int, ts_event: int, out: RowArray, n: int
    ) -> int:
        self._forget(book)
        book.waiting = False
        if book.asked_ns == NAT or now_ns - book.asked_ns >= RESUBSCRIBE_NS:
            self._resubscribe(book, now_ns)
        if book.state == _RESYNCING:
            return n
        return self._state(book, _RESYNCING, expected, got, now_ns, ts_event, out, n)

    def _resubscribe(self, book: KeptBook, now_ns: int) -> None:
        book.asked_ns, book.waiting = now_ns, True
        self.counts["resubscribed"] += 1
        self._sends += [self._request(method, "book", [book]) for method in ("unsubscribe", "subscribe")]

    def _on_answer(self, frame: bytes) -> None:
        answer: Any = self._json.decode(frame)  # which the decoder has read already
        if answer.get("success") is False or answer.get("status") == "error" or answer.get("event") == "error":
            self.errors.append(frame.decode(errors="replace")[:200])

    def _state(
        self, book: KeptBook, state: int, expected: int, got: int, now_ns: int, ts_event: int, out: RowArray, n: int
    ) -> int:
        """Write a BOOK_STATE row at `n`; return the next free row."""
        book.state = state
        row = out[n]
        row["seq"], row["source"], row["kind"], row["span"] = 0, self.source, _BOOK_STATE, 0
        row["ts_recv"], row["ts_event"], row["instrument"] = now_ns, ts_event, book.instrument.id
        row["flags"], row["code"], row["px"], row["qty"], row["a"], row["b"] = _LAST, state, 0, 0, expected, got
        return n + 1
