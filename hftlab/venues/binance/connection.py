"""Binance: the local book rules and the market data connections of spot and USD-M futures, without a socket.

Model. The venue sends deltas that carry a range of update ids, U to u, and are contiguous: the next U is the last u
plus 1. A REST snapshot carries one id. The documented rule joins them: buffer deltas, fetch a snapshot, drop what it
already contains, apply the rest, and start again whenever a range is missing. `BookSync` is that rule for one symbol;
`MarketConnection` runs one for each, and gives rows that are already in order and without gaps.

Promise. While a book is not LIVE or STALE no LEVEL row of it leaves; every change of belief is one BOOK_STATE row, the
last of its message and its only LAST row; a gap in one symbol touches no other symbol. Trades and bookTicker rows pass
at once, whatever the book's state. A snapshot may carry ``lastUpdateId + 1 == U`` of the first buffered delta: that is
contiguous, although the venue's text would fetch once more.

Bounds. An unsynced book buffers at most `BUFFER_ROWS` level rows; when full the oldest deltas go (counted): a snapshot
then has to be newer than the first one kept, which the rule checks anyhow. Worst case accepted: a venue whose snapshots
are always older than the buffer keeps that symbol unsynced, asking once each `SNAPSHOT_RETRY_NS`.

USD-M futures. Their ids are not contiguous: each delta names the last id of the one before, ``pu``. The rule is the
same otherwise, so `FuturesConnection` is this machine with `FuturesSync`: a delta continues the book if its ``pu`` is
the book's id, and a snapshot joins where its id lies between a delta's ``pu`` and ``u`` (the venue's text asks for U to
u, a subset: between ``pu`` and U there is no update). These deltas are taken one by one, not by the kernel of a read.

References
----------
Binance, web-socket-streams.md, "How to manage a local order book correctly", and its counterpart of USD-M futures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from ctypes import string_at
from typing import Any

import msgspec
import numpy as np

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, BookState, Flag, Kind, RowArray
from hftlab.kernels.jit import address_of
from hftlab.kernels.words import BYTES_AT
from hftlab.venues.binance.market import CONTROL, DEPTH, SHUTDOWN, MarketDecoder, put_row
from hftlab.venues.binance.spec import (
    DEPTH_LIMIT_MAX,
    FUTURES_DEPTH_LIMITS,
    depth_path,
    futures_depth_path,
    stream_names,
)
from hftlab.venues.sequence import UNKNOWN, Chain, Range, Sequencing, Verdict

__all__ = [
    "BUFFER_ROWS", "BookSync", "FuturesConnection", "FuturesSync", "MarketConnection", "SNAPSHOT_RETRY_NS",
]  # fmt: skip

BUFFER_ROWS = 4096
"""Level rows an unsynced book holds back; some seconds of the busiest symbol."""
SNAPSHOT_RETRY_NS = 5_000_000_000
"""After so long without a usable snapshot it is asked for again."""

_LAST = int(Flag.LAST)
_LAST_ID, _HEARD_NS, _IS_LIVE = 0, 1, 2  # of what a book shares with the decoder
_KEPT_ERRORS = 16
_OLD_RETRY_NS = 100_000_000  # doubled with each old snapshot: a replica lags by milliseconds, or is broken
_EMPTY, _LIVE = int(BookState.EMPTY), int(BookState.LIVE)
_STALE, _RESYNCING = int(BookState.STALE), int(BookState.RESYNCING)
_BOOK_STATE = int(Kind.BOOK_STATE)
_APPLY, _OLD = Verdict.APPLY, Verdict.OLD


def _strip_last(out: RowArray, n: int) -> None:
    """Take LAST from the first `n` rows: a BOOK_STATE row after them ends the message."""
    out["flags"][:n] &= 0xFFFF ^ _LAST


class _SharedRange(Range):
    """The range rule whose memory a kernel moves as well."""

    __slots__ = ("_shared",)

    def __init__(self, shared: memoryview) -> None:
        self._shared = shared
        super().__init__()

    @property
    def last(self) -> int:
        """The id that the book knows."""
        return int(self._shared[_LAST_ID])

    @last.setter
    def last(self, last: int) -> None:
        self._shared[_LAST_ID] = last


class BookSync:
    """The documented local-book rule for one symbol: which deltas may be applied, and when to fetch a snapshot.

    Attributes
    ----------
    sequence : Range
        Which update ids continue the book; its ``last`` is `UNKNOWN` while unsynced.
    asked_ns : int
        When a snapshot was asked for (`NAT`: not asked).
    address : int
        Of what the decoder's kernel reads and moves for the usual delta: see `MarketDecoder.follow`.
    """

    __slots__ = (
        "_shared", "_state", "address", "asked_ns", "buffer", "buffered_rows", "instrument", "old", "sequence",
        "subscribed", "wait_ns",
    )  # fmt: skip

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        shared = np.zeros(3, np.int64)
        self._shared, self.address = shared.data, address_of(shared)
        self.state = _EMPTY
        self.sequence: Sequencing = _SharedRange(self._shared)
        self.heard_ns = NAT
        self.asked_ns = NAT
        self.wait_ns = SNAPSHOT_RETRY_NS  # from `asked_ns` until it is asked for again
        self.old = 0  # snapshots too old to use, since the book was lost
        self.subscribed = True
        self.buffer: deque[tuple[int, int, RowArray]] = deque()
        self.buffered_rows = 0

    @property
    def state(self) -> int:
        """EMPTY before the first snapshot, then LIVE, STALE or RESYNCING; the decoder moves a LIVE one only."""
        return self._state

    @state.setter
    def state(self, state: int) -> None:
        """Tell the decoder's kernel as well."""
        self._state = state
        self._shared[_IS_LIVE] = state == _LIVE

    @property
    def heard_ns(self) -> int:
        """When the last contiguous delta came."""
        return int(self._shared[_HEARD_NS])

    @heard_ns.setter
    def heard_ns(self, heard_ns: int) -> None:
        """Write it where the decoder's kernel does."""
        self._shared[_HEARD_NS] = heard_ns

    @property
    def synced(self) -> bool:
        """Whether deltas are being applied: the book is LIVE or STALE."""
        return self.sequence.last != UNKNOWN

    def lose(self) -> None:
        """Forget the book: from here on deltas are buffered until a snapshot joins them."""
        self.sequence.reset()
        self.asked_ns = NAT
        self.wait_ns = SNAPSHOT_RETRY_NS
        self.old = 0
        self.clear()

    def clear(self) -> None:
        """Drop what is buffered."""
        self.buffer.clear()
        self.buffered_rows = 0

    def hold(self, first: int, last: int, rows: RowArray, previous: int = UNKNOWN) -> int:
        """Buffer a copy of one delta's `rows`, ids `first` to `last`; return how many old deltas that pushed out.

        A delta that does not continue the buffer starts it anew: what came before can never be joined.
        """
        return self._keep(first, last, rows, bool(self.buffer) and first <= self.buffer[-1][1] + 1)

    def _keep(self, first: int, last: int, rows: RowArray, continues: bool) -> int:
        dropped = 0
        if self.buffer and last <= self.buffer[-1][1]:
            return 0
        if self.buffer and not continues:
            dropped = len(self.buffer)
            self.clear()
        self.buffer.append((first, last, rows.copy()))
        self.buffered_rows += len(rows)
        while self.buffered_rows > BUFFER_ROWS:
            self.buffered_rows -= len(self.buffer.popleft()[2])
            dropped += 1
        return dropped

    def joins(self, update_id: int) -> bool:
        """Return whether a snapshot with `update_id` can be followed by what is buffered."""
        return not self.buffer or self.buffer[0][0] <= update_id + 1

    def join(self, update_id: int) -> list[RowArray]:
        """Take a snapshot that `joins`: return the rows of the buffered deltas newer than it, in order."""
        kept = [rows for _, last, rows in self.buffer if last > update_id]
        self.sequence.reset(max([update_id] + [last for _, last, _ in self.buffer]))
        self.asked_ns = NAT
        self.clear()
        return kept


class FuturesSync(BookSync):
    """The rule of USD-M futures for one symbol; the first id of a buffered delta is its ``pu``."""

    __slots__ = ()

    def __init__(self, instrument: Instrument) -> None:
        super().__init__(instrument)
        self.sequence = Chain()

    def hold(self, first: int, last: int, rows: RowArray, previous: int = UNKNOWN) -> int:
        """Buffer a copy of one delta's `rows`; one whose `previous` is not the last buffered starts the buffer anew."""
        return self._keep(previous, last, rows, bool(self.buffer) and previous == self.buffer[-1][1])

    def joins(self, update_id: int) -> bool:
        """Return whether a snapshot with `update_id` can be followed by what is buffered."""
        newer = next((previous for previous, last, _ in self.buffer if last >= update_id), None)
        return newer is None or 0 <= newer <= update_id

    def join(self, update_id: int) -> list[RowArray]:
        """Take a snapshot that `joins`: return the rows of the buffered deltas not older than it, in order."""
        self.sequence.reset(update_id)
        kept = []
        for previous, last, rows in self.buffer:
            if last >= update_id:
                self.sequence.check(previous, last, previous)
                kept.append(rows)
        self.asked_ns = NAT
        self.clear()
        return kept


class MarketConnection:
    """One market data connection: messages and snapshots in, gap-checked rows out.

    Parameters
    ----------
    instruments : sequence of Instrument
        What the connection may carry.
    source : int
        Written in every row.
    stale_ns : int
        A synced book without a delta for longer is STALE.
    snapshot_limit : int
        Levels a side to ask for, 1 to 5000.

    Attributes
    ----------
    counts : dict[str, int]
        ``gaps``, ``duplicates`` (u not above the book's id), ``old_snapshots``, ``bad_snapshots``,
        ``unasked_snapshots`` (the book was in sync), ``buffered`` and ``dropped`` deltas. The decoder's are in
        ``decoder.counts``.
    errors : deque of str
        The last 16 error answers to control requests.
    shutdown : bool
        The venue has announced that it will close this connection.

    Raises
    ------
    ConfigError
        If `stale_ns` or `snapshot_limit` is out of range, or two instruments share a symbol or an id.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        source: int = 1,
        stale_ns: int = 3_000_000_000,
        snapshot_limit: int = 1000,
    ) -> None:
        if stale_ns <= 0:
            raise ConfigError(f"stale_ns={stale_ns}; expected above 0")
        if not 1 <= snapshot_limit <= DEPTH_LIMIT_MAX:
            raise ConfigError(f"snapshot_limit={snapshot_limit}; expected 1 to {DEPTH_LIMIT_MAX}")
        self.decoder = MarketDecoder(instruments, source)
        self.source = source
        self.stale_ns = stale_ns
        self.snapshot_limit = snapshot_limit
        self.books = {i.id: self._sync(i) for i in instruments}
        if len(self.books) != len(instruments):
            raise ConfigError("instruments name one id twice; expected each id once")
        span = np.zeros(2, np.int64)
        self._span, self._span_at = span.data, address_of(span)
        self.counts = dict.fromkeys(
            ("gaps", "duplicates", "old_snapshots", "bad_snapshots", "unasked_snapshots", "buffered", "dropped"), 0
        )
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self.shutdown = False
        self._by_symbol = {b.instrument.symbol: b for b in self.books.values()}
        self._wanted: dict[str, None] = {}
        self._request_id = 0
        self._pending: dict[int, list[BookSync]] = {}

    def _sync(self, instrument: Instrument) -> BookSync:
        """Return an instrument's rule, which the decoder's kernel follows."""
        book = BookSync(instrument)
        self.decoder.follow(instrument.id, book.address)
        return book

    def _previous(self, frame: bytes) -> int:
        """Return the id before a delta's first, where the market tells it."""
        return UNKNOWN

    @property
    def rows_needed(self) -> int:
        """Rows `out` must have in every call: a snapshot, all that may be buffered behind it, and the book's state."""
        return 1 + 2 * self.snapshot_limit + BUFFER_ROWS + 1

    def subscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the SUBSCRIBE message for the instruments `ids`; its answer makes their snapshots wanted."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = True
        request = self._control("SUBSCRIBE", books)
        self._pending[self._request_id] = books
        return [request]

    def unsubscribe_requests(self, ids: Sequence[int]) -> list[bytes]:
        """Return the UNSUBSCRIBE message for `ids`; their books turn STALE by `poll` as the deltas stop."""
        books = [self.books[i] for i in ids]
        for book in books:
            book.subscribed = False
        return [self._control("UNSUBSCRIBE", books)]

    def wants_send(self) -> list[bytes]:
        """Return what is to be sent now: nothing, ever. A gap is mended by REST, and pings are the transport's."""
        return []

    def snapshot_path(self, symbol: str) -> str:
        """Return path and query of the REST snapshot of `symbol`."""
        return depth_path(symbol, self.snapshot_limit)

    def _control(self, method: str, books: list[BookSync]) -> bytes:
        self._request_id += 1
        streams = [name for book in books for name in stream_names(book.instrument.symbol)]
        return msgspec.json.encode({"method": method, "params": streams, "id": self._request_id})

    def on_open(self, now_ns: int) -> None:
        """A new connection is up: every book starts from nothing, and waits for a delta or a subscription's answer.

        Raises
        ------
        LocalError
            If a book is still in sync: `on_close` has to say first, in rows, that it is not.
        """
        if any(book.synced for book in self.books.values()):
            raise LocalError("on_open: a book is still in sync with the connection before; expected on_close first")
        self.shutdown = False
        self._wanted.clear()
        self._pending.clear()
        for book in self.books.values():
            book.lose()
            book.heard_ns = now_ns

    def on_close(self, now_ns: int, out: RowArray) -> int:
        """The connection is gone: write RESYNCING for every book that was in sync; return the rows."""
        n = 0
        for book in self.books.values():
            if book.synced:
                n = self._state(book, _RESYNCING, book.sequence.last + 1, 0, now_ns, NAT, out, n)
            book.lose()
        self._wanted.clear()
        return n

    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        """Take one message; write the rows to sequence now to the front of `out` and return their number."""
        span = self._span
        frame = bytes(frame)  # as it is, if it is bytes
        span[0], span[1] = id(frame) + BYTES_AT, len(frame)
        done, n = self.decoder.take(self._span_at, 1, now_ns, out)
        return n if done else self._on_unusual(frame, now_ns, out)

    def on_spans(self, spans: int, n: int, now_ns: int, out: RowArray) -> tuple[int, int]:
        """Take messages that were received together, where they lie; return how many, one or more, and their rows.

        What is usual (deltas that continue live books, trades and quotes in the documented layout) is one call of a
        kernel. It stops before what is not; the next call begins with that, alone.

        Parameters
        ----------
        spans, n : int
            Address of `n` pairs of int64: address and length of each message.
        now_ns : int
            When they were received.
        out : ROW array
            Overwritten; at least `rows_needed` rows.
        """
        done, rows = self.decoder.take(spans, n, now_ns, out)
        if done:
            return done, rows
        address, size = np.frombuffer(string_at(spans, 16), np.int64).tolist()
        return 1, self._on_unusual(string_at(address, size), now_ns, out)

    def _on_unusual(self, frame: bytes, now_ns: int, out: RowArray) -> int:
        decoder = self.decoder
        n = decoder.decode(frame, now_ns, out)
        kind = decoder.kind
        if kind == DEPTH:
            ids = decoder.first, decoder.last, self._previous(frame)
            return self._on_delta(self.books[decoder.instrument], ids, n, now_ns, out)
        if kind == CONTROL:
            self._on_answer(frame, now_ns)
        elif kind == SHUTDOWN:
            self.shutdown = True
        return n

    def _on_delta(self, book: BookSync, ids: tuple[int, int, int], n: int, now_ns: int, out: RowArray) -> int:
        if book.sequence.last == UNKNOWN:
            self._hold(book, ids, out[:n], now_ns)
            return 0
        verdict, last = book.sequence.check(*ids), ids[1]
        if verdict is not _APPLY:
            if verdict is _OLD:
                self.counts["duplicates"] += 1
                return 0
            self.counts["gaps"] += 1
            ts_event = int(out[0]["ts_event"]) if n else NAT
            expected, got = book.sequence.expected, book.sequence.got
            book.lose()
            self._hold(book, ids, out[:n], now_ns)
            return self._state(book, _RESYNCING, expected, got, now_ns, ts_event, out, 0)
        book.heard_ns = now_ns
        if book.state != _LIVE:
            ts_event = int(out[0]["ts_event"]) if n else NAT
            _strip_last(out, n)
            return self._state(book, _LIVE, last, last, now_ns, ts_event, out, n)
        return n

    def _hold(self, book: BookSync, ids: tuple[int, int, int], rows: RowArray, now_ns: int) -> None:
        """Buffer a delta of a book that is not in sync, and want its snapshot."""
        first, last, previous = ids
        self.counts["buffered"] += 1
        self.counts["dropped"] += book.hold(first, last, rows, previous)
        if book.asked_ns == NAT:
            self._want(book, now_ns)

    def wants_snapshot(self) -> list[str]:
        """Return the symbols whose REST snapshot is to be fetched now, each once; `poll` asks again if none comes."""
        if not self._wanted:
            return []
        symbols = list(self._wanted)
        self._wanted.clear()
        return symbols

    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int:
        """Take the answer to a snapshot request: write the new book, the deltas after it and LIVE; return the rows.

        Parameters
        ----------
        symbol : str
            What was asked for.
        payload : bytes
            The answer's body; anything but a snapshot is counted and asked for again by `poll`.
        now_ns : int
            When it was received.
        out : ROW array
            Overwritten; at least `rows_needed` rows.

        Returns
        -------
        int
            0 if the snapshot cannot be used: bad, older than the first buffered delta (asked for again at once the
            first time, then by `poll`), or of a book that is in sync.

        Raises
        ------
        ConfigError
            If `symbol` is unknown or `out` is too short.
        """
        book = self._by_symbol.get(symbol)
        if book is None:
            raise ConfigError(f"symbol={symbol!r} is not on this connection; it carries {sorted(self._by_symbol)}")
        if len(out) < self.rows_needed:
            raise ConfigError(f"out has {len(out)} rows; a snapshot may need {self.rows_needed}")
        if book.synced:
            self.counts["unasked_snapshots"] += 1
            return 0
        n = self.decoder.decode_snapshot(payload, book.instrument.id, now_ns, out[: len(out) - BUFFER_ROWS - 1])
        if n == 0:
            self.counts["bad_snapshots"] += 1
            return 0
        update_id = int(out[0]["a"])
        if not book.joins(update_id):
            self.counts["old_snapshots"] += 1
            if not book.old:
                self._want(book, now_ns)
            else:
                book.asked_ns = now_ns
                book.wait_ns = min(_OLD_RETRY_NS << min(book.old - 1, 10), SNAPSHOT_RETRY_NS)
            book.old += 1
            return 0
        for rows in book.join(update_id):
            out[n : n + len(rows)] = rows
            n += len(rows)
        book.heard_ns = now_ns
        _strip_last(out, n)
        last = book.sequence.last
        return self._state(book, _LIVE, last, last, now_ns, NAT, out, n)

    def poll(self, now_ns: int, out: RowArray) -> int:
        """Look at the clock: write STALE for books gone silent, ask again for overdue snapshots; return the rows."""
        n = 0
        for book in self.books.values():
            if book.synced:
                if book.state == _LIVE and now_ns - book.heard_ns > self.stale_ns:
                    n = self._state(book, _STALE, book.sequence.last + 1, 0, now_ns, NAT, out, n)
            elif book.subscribed and book.heard_ns != NAT:
                since = book.heard_ns if book.asked_ns == NAT else book.asked_ns
                if now_ns - since > book.wait_ns:
                    self._want(book, now_ns)
        return n

    def _want(self, book: BookSync, now_ns: int) -> None:
        book.asked_ns, book.wait_ns = now_ns, SNAPSHOT_RETRY_NS
        self._wanted[book.instrument.symbol] = None

    def _on_answer(self, frame: bytes, now_ns: int) -> None:
        """A control request was answered: from here on its streams flow, so a snapshot cannot miss a delta."""
        answer: dict[str, Any] = msgspec.json.decode(frame)
        request_id = answer.get("id")
        books = self._pending.pop(request_id, []) if isinstance(request_id, int) else []
        if "error" in answer or "msg" in answer:
            self.errors.append(frame.decode(errors="replace")[:200])
            return
        for book in books:
            if not book.synced and book.asked_ns == NAT:
                self._want(book, now_ns)

    def _state(
        self, book: BookSync, state: int, expected: int, got: int, now_ns: int, ts_event: int, out: RowArray, n: int
    ) -> int:
        """Write a BOOK_STATE row at `n`; return the next free row."""
        book.state = state
        put_row(
            out, n, _BOOK_STATE, self.source, now_ns, ts_event, book.instrument.id, _LAST, state, 0, 0, expected, got
        )  # fmt: skip
        return n + 1


class _Linked(msgspec.Struct):
    """Of a delta of USD-M futures, wrapped by the combined stream or not, the id before it."""

    pu: int = UNKNOWN
    data: _Linked | None = None


class FuturesConnection(MarketConnection):
    """One market data connection to USD-M futures; everything but the rule is as of `MarketConnection`.

    Raises
    ------
    ConfigError
        As `MarketConnection`; `snapshot_limit` is one of `spec.FUTURES_DEPTH_LIMITS`.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        source: int = 1,
        stale_ns: int = 3_000_000_000,
        snapshot_limit: int = 1000,
    ) -> None:
        if snapshot_limit not in FUTURES_DEPTH_LIMITS:
            limits = ", ".join(map(str, FUTURES_DEPTH_LIMITS))
            raise ConfigError(f"snapshot_limit={snapshot_limit}; expected one of {limits}")
        self._links = msgspec.json.Decoder(_Linked)
        super().__init__(instruments, source=source, stale_ns=stale_ns, snapshot_limit=snapshot_limit)

    def _sync(self, instrument: Instrument) -> BookSync:
        return FuturesSync(instrument)

    def _previous(self, frame: bytes) -> int:
        """Return ``pu``; a delta without one continues nothing."""
        try:
            told = self._links.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return UNKNOWN
        previous = told.pu if told.data is None else told.data.pu
        return previous if previous >= 0 else UNKNOWN

    def snapshot_path(self, symbol: str) -> str:
        """Return path and query of the REST snapshot of `symbol`."""
        return futures_depth_path(symbol, self.snapshot_limit)
