"""Captured frames of crypto venues: lines of time and message, to the rows that a live connection would have given.

Model. Each line is one message with the time it was received. Two recorders' formats are known:

- hftbacktest's and ours: ``local_ns payload``, book snapshots inline, often gzip;
- cryptofeed's: ``epoch_seconds: payload``. ``address <-> time`` is a new connection, ``address <- time: payload`` what
  was sent, ``address -> time: payload`` a REST answer. Files stand beside each other: ``NAME.0`` holds the venue's list
  of instruments, ``NAME.http.*`` the REST answers, ``NAME.ws.*`` one file a connection. Opening ``NAME.0`` takes them
  all, opening one ``ws`` file that one; the answers are merged in by their times.

The frames go through the venue's own `MarketConnection`: gaps, checksums and snapshots are judged exactly as live.

Where nobody says what a symbol's tick and lot are (no list beside the capture), the capture is read once before: see
`hftlab.convert.source`.

A gap in a recording cannot be mended by asking the venue. Where the connection asks in vain for a snapshot, the book
goes on from what it was: the rows say RESYNCING, then give the book as known before the gap, flagged RECOVERED, and
what follows; the gap is told as a problem. Levels that changed within the gap are wrong until they change again, or
until a later level of the other side shows that they are gone: then a LEVEL row flagged RECOVERED takes them out. The
alternative is a day without a book. It needs a venue whose snapshots come by REST (Binance); a Kraken book that is
given up stays so until the recording's next snapshot.

Worst case accepted: a line longer than 64 MB is told as broken, in pieces.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np

from hftlab.books import L2Book
from hftlab.codecs import Problem
from hftlab.convert.source import Grid, Source, opened
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, RowArray, join_rows, new_rows
from hftlab.kernels.jit import address_of
from hftlab.venues.binance import connection as binance
from hftlab.venues.binance.market import MarketDecoder as BinanceDecoder
from hftlab.venues.binance.messages import instruments_from_exchange_info
from hftlab.venues.coinbase import connection as coinbase
from hftlab.venues.coinbase.market import MarketDecoder as CoinbaseDecoder
from hftlab.venues.coinbase.messages import instruments_from_products
from hftlab.venues.kraken import connection as kraken
from hftlab.venues.kraken.messages import instruments_from_asset_pairs
from hftlab.venues.kraken.spec import v2_name

__all__ = ["CaptureSource", "is_capture_line"]

_HFTBACKTEST = re.compile(rb"([0-9]{1,19}) (\S.*)", re.DOTALL)
_TIMED = re.compile(rb"([0-9]{1,10}\.?[0-9]*): (\S.*)", re.DOTALL)
_ADDRESSED = re.compile(rb"((?:https?|wss?)://\S+) (<->|<-|->) ([0-9]{1,10}\.?[0-9]*)(?:: (\S.*))?", re.DOTALL)
_CONFIGURATION = b"configuration: "
_LONGEST_LINE = 1 << 26
_FINEST = Decimal("1e-8")
_LEVELS = 5000
_OUT_ROWS = 1 << 15
_RECOVERED, _BID, _ASK, _LAST = int(Flag.RECOVERED), int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
_LEVEL, _CLEAR = int(Kind.LEVEL), int(Kind.CLEAR)
_BENIGN = ("ignored", "fallback")  # counts of a decoder that say nothing was lost


def _ns(seconds: bytes) -> int:
    return int(Decimal(seconds.decode()) * 1_000_000_000)


class _Line(NamedTuple):
    ts: int
    offset: int
    file: str
    way: bytes  # b"" a message, else what stands between address and time
    address: str
    payload: bytes


def is_capture_line(line: bytes) -> bool:
    """Return whether a line is one of a capture's.

    Examples
    --------
    >>> is_capture_line(b'1723161253937085768 {"e":"trade"}'), is_capture_line(b"34200.1,1,2,3,4,1")
    (True, False)
    """
    return any(p.fullmatch(line) for p in (_HFTBACKTEST, _TIMED, _ADDRESSED)) or line.startswith(_CONFIGURATION)


# --- venues -----------------------------------------------------------------------------------------------------------


class _Connection(Protocol):
    decoder: Any
    counts: dict[str, int]

    @property
    def rows_needed(self) -> int: ...
    def on_open(self, now_ns: int) -> None: ...
    def on_frame(self, frame: bytes, now_ns: int, out: RowArray) -> int: ...
    def wants_snapshot(self) -> list[str]: ...
    def on_snapshot(self, symbol: str, payload: bytes, now_ns: int, out: RowArray) -> int: ...


@dataclass(frozen=True, slots=True)
class _Venue:
    """What must be known of a venue to read its captures: how a payload shows whose it is, and its own modules."""

    name: str
    mark: re.Pattern[bytes]
    symbol: re.Pattern[bytes]  # its group is the symbol
    asked: re.Pattern[bytes]  # finds the symbols in what was sent to the venue, or in a stream's address
    listed: Callable[[bytes, Sequence[str], Mapping[str, bytes]], list[Instrument]]
    connect: Callable[[Sequence[Instrument], dict[str, int]], _Connection]
    decoder: Callable[[Sequence[Instrument]], Any] | None
    spell: Callable[[str], str] = str


def _symbols(pattern: re.Pattern[bytes], text: bytes) -> list[str]:
    return [name.decode() for found in pattern.findall(text) for name in re.findall(rb"[A-Za-z0-9./_-]+", found)]


_VENUES = (
    _Venue(
        "binance",
        re.compile(rb'"e": ?"(?:depthUpdate|trade|aggTrade|kline)"|"lastUpdateId"|"stream": ?"|"u":\d+,"s":"'),
        re.compile(rb'"s": ?"([^"]+)"'),
        re.compile(rb"[=/]([a-z0-9]+)@"),
        lambda info, symbols, books: instruments_from_exchange_info(info, symbols, books=books),
        lambda instruments, told: binance.MarketConnection(instruments, snapshot_limit=_LEVELS),
        BinanceDecoder,
        str.upper,
    ),
    _Venue(
        "coinbase",
        re.compile(rb'"product_id": ?"|"type": ?"subscriptions"|"channel": ?"(?:l2_data|market_trades)"'),
        re.compile(rb'"product_id": ?"([^"]+)"'),
        re.compile(rb'"product_ids": ?\[([^\]]*)\]'),
        lambda info, symbols, books: instruments_from_products(info, symbols),
        lambda instruments, told: coinbase.MarketConnection(instruments),
        CoinbaseDecoder,
    ),
    _Venue(
        "kraken",
        re.compile(rb'"connectionID"|"systemStatus"|"channel": ?"(?:book|status|heartbeat|ticker|trade)"|^\[\d+,[\[{]'),
        re.compile(rb'(?:","|"symbol": ?")([A-Z0-9.]+/[A-Z0-9.]+)"'),
        re.compile(rb'"(?:pair|symbol)": ?\[([^\]]*)\]'),
        lambda info, symbols, books: instruments_from_asset_pairs(info, symbols),
        lambda instruments, told: kraken.MarketConnection(instruments, **told),
        None,
        v2_name,
    ),
)


# --- the source -------------------------------------------------------------------------------------------------------


class CaptureSource(Source):
    """A capture of Binance, Coinbase or Kraken frames.

    Parameters
    ----------
    path : Path
        A capture, packed or not; of cryptofeed's ``NAME.0`` or one ``NAME.ws.*``.
    listing : Path, optional
        The venue's list of instruments (the answer to exchangeInfo, products, AssetPairs; plain or as a capture's
        line); by default ``NAME.0`` beside the capture.
    venue : str, optional
        Whose it is; by default what the messages show.

    Raises
    ------
    ConfigError
        If no message shows a known venue, or no symbol is found.
    """

    format = "capture"

    def __init__(self, path: Path, listing: Path | None = None, venue: str | None = None) -> None:
        super().__init__(path)
        self._files, self._answers, beside = _files_of(path)
        self.size = sum(file.stat().st_size for file in self._files)
        self._read: dict[Path, int] = {}
        self._venue = self._recognise(venue)
        self._inline: str | None = None
        symbols = self._asked()
        info = _listing(listing or beside)
        self._instruments = self._listed(info, symbols) if info and symbols else self._learned(info)
        if len(self._instruments) == 1:
            self._inline = self._instruments[0].symbol
        self._told = self._kraken_terms() if self._venue.name == "kraken" else {}

    @property
    def instruments(self) -> list[Instrument]:
        """Return those that were listed, asked for, or met."""
        return list(self._instruments)

    # --- lines ---

    def _lines(self, path: Path) -> Iterator[_Line]:
        """Yield the lines of one file; times never go back, so that files can be merged."""
        file, raw = opened(path, lambda p: self._damaged(Problem(p.offset, self._named(path.name, p.reason))))
        offset = latest = 0
        with file:
            while line := file.readline(_LONGEST_LINE):
                found = self._line(line.strip(), offset, path.name, latest)
                if found is not None:
                    latest = found.ts
                    self._read[path] = raw.tell()
                    yield found
                offset += len(line)

    def _line(self, text: bytes, offset: int, name: str, latest: int) -> _Line | None:
        if match := _HFTBACKTEST.fullmatch(text):
            return _Line(max(latest, int(match[1])), offset, name, b"", "", match[2])
        if match := _TIMED.fullmatch(text):
            return _Line(max(latest, _ns(match[1])), offset, name, b"", "", match[2])
        if match := _ADDRESSED.fullmatch(text):
            ts = max(latest, _ns(match[3]))
            return _Line(ts, offset, name, match[2], match[1].decode("latin-1"), match[4] or b"")
        if text and not text.startswith(_CONFIGURATION):
            self._tell(offset, self._named(name, f"expected 'time payload', got {text[:60]!r}"))
        return None

    def _merged(self) -> Iterator[_Line]:
        files = [self._lines(path) for path in (*self._files, *self._answers)]
        return iter(heapq.merge(*files, key=lambda line: line.ts)) if len(files) > 1 else files[0]

    def _named(self, name: str, reason: str) -> str:
        return reason if len(self._files) + len(self._answers) == 1 else f"{name}: {reason}"

    # --- what the capture is about ---

    def _recognise(self, venue: str | None) -> _Venue:
        for line, _ in zip(self._lines(self._files[0]), range(200), strict=False):
            for known in _VENUES:
                if known.name == venue or (venue is None and known.mark.search(line.payload)):
                    return known
        names = ", ".join(v.name for v in _VENUES)
        raise ConfigError(f"{self.path} holds no message of a known venue ({names}); name it with --venue")

    def _asked(self) -> list[str]:
        """Return the symbols that were subscribed to, by what the first lines say; none where they do not say."""
        found: dict[str, None] = {}
        for file in self._files:
            for line, _ in zip(self._lines(file), range(50), strict=False):
                if line.way in (b"<-", b"<->"):
                    text = line.payload if line.way == b"<-" else line.address.encode("latin-1")
                    found.update(dict.fromkeys(self._venue.spell(s) for s in _symbols(self._venue.asked, text)))
        return list(found)

    def _listed(self, info: bytes, symbols: Sequence[str]) -> list[Instrument]:
        books: dict[str, bytes] = {}
        for answers in self._answers:
            for line in self._lines(answers):
                if (symbol := _answered(line)) in symbols:
                    books.setdefault(str(symbol), line.payload)
        return self._venue.listed(info, symbols, books)

    def _learned(self, info: bytes | None) -> list[Instrument]:
        """Read the capture for its symbols, and, without a list, for the grids of their prices and quantities."""
        venue, out, held = self._venue, new_rows(_OUT_ROWS), new_rows(_OUT_ROWS)
        out_bytes, held_bytes = out.view(np.uint8), held.view(np.uint8)
        found: dict[str, Instrument] = {}
        decoders: dict[str, Any] = {}
        grid = Grid()
        inline: list[bytes] = []
        n = 0
        for line in self._merged():
            match = venue.symbol.search(line.payload)
            if line.way or match is None:
                if binance_snapshot(line.payload) and len(inline) < 4:
                    inline.append(line.payload)
                continue
            symbol = venue.spell(match[1].decode("latin-1"))
            if symbol not in found:
                found[symbol] = self._finest(symbol, len(found), line.payload)
                if venue.decoder is not None:
                    decoders[symbol] = venue.decoder([found[symbol]])
            if info is None and symbol in decoders:
                more = decoders[symbol].decode(line.payload, 0, out)
                if n + more > _OUT_ROWS:
                    grid.add(held[:n])
                    n = 0
                held_bytes[64 * n : 64 * (n + more)] = out_bytes[: 64 * more]
                n += more
        grid.add(held[:n])
        if not found:
            raise ConfigError(f"{self.path}: no message names a symbol")
        if info is not None:
            return self._listed(info, list(found))
        if venue.name == "binance" and len(found) == 1:
            (only,) = found
            for payload in inline:
                grid.add(out[: decoders[only].decode_snapshot(payload, found[only].id, 0, out)])
        return [grid.refine(i) if venue.decoder is not None else i for i in found.values()]

    def _finest(self, symbol: str, identity: int, payload: bytes) -> Instrument:
        """Return an instrument in steps that hold whatever the venue writes; Kraken's checksum needs its digits."""
        tick, lot = _FINEST, _FINEST
        if self._venue.name == "kraken" and (match := re.search(rb'\["\d+\.(\d+)","\d+\.(\d+)"', payload)):
            tick, lot = (Decimal(1).scaleb(-len(match[k])) for k in (1, 2))
        return Instrument(identity, self._venue.name, symbol, tick, lot)

    def _kraken_terms(self) -> dict[str, int]:
        """Return version and depth of a Kraken capture, which its checksums depend on."""
        terms = {"version": 1, "depth": 10}
        for file in self._files:
            for line, _ in zip(self._lines(file), range(200), strict=False):
                if b'"channel"' in line.payload:
                    terms["version"] = 2
                if match := re.search(rb'"book-(\d+)"|"depth": ?(\d+)', line.payload):
                    terms["depth"] = int(match[1] or match[2])
                    return terms
        return terms

    # --- rows ---

    def _rows(self) -> Iterator[RowArray]:
        replay = _Replay(self._venue, self._instruments, self._told)
        self._read = {}
        for n, line in enumerate(self._merged()):
            if n % 256 == 0:
                self.position = min(self.size, sum(self._read.get(file, 0) for file in self._files))
            if line.way == b"<->" or line.way == b"<-":
                continue
            yield from replay.take(line, self._symbol_of(line))
            for reason in replay.told():
                self._tell(line.offset, self._named(line.file, reason))
        for what, count in replay.notes().items():
            self._note(what, count)
        self.position = self.size

    def _symbol_of(self, line: _Line) -> str | None:
        """Return whose book snapshot a line is; None for a message, or an answer to another question."""
        if line.way == b"->":
            return _answered(line)
        return self._inline if binance_snapshot(line.payload) else None


class _Replay:
    """One connection, fed from a recording instead of a socket."""

    def __init__(self, venue: _Venue, instruments: Sequence[Instrument], told: dict[str, int]) -> None:
        self.connection = venue.connect(instruments, told)
        self._by_symbol = {i.symbol: i for i in instruments}
        self._out = new_rows(max(_OUT_ROWS, self.connection.rows_needed))
        self._at = address_of(self._out)  # rows are always written to its front
        self._bridges = venue.name == "binance"
        self._book = L2Book(_LEVELS, max(i.id for i in instruments) + 1)
        self._counts = {**self.connection.decoder.counts}
        self._reasons: list[str] = []
        self._is_open = False
        self._had: set[str] = set()  # symbols whose book has been in sync
        self._doubtful: dict[int, set[tuple[int, int]]] = {}  # of bridged books: (side, px) not told since

    def take(self, line: _Line, symbol: str | None) -> Iterator[RowArray]:
        """Yield the rows that one line leads to."""
        out, connection = self._out, self.connection
        if not self._is_open:
            connection.on_open(line.ts)
            self._is_open = True
        if symbol is not None:
            if symbol in self._by_symbol:
                n = connection.on_snapshot(symbol, line.payload, line.ts, out)
                self._had |= {symbol} if n else set()
                yield self._known(out[:n])
            return
        if line.way:
            return
        rows = self._known(out[: connection.on_frame(line.payload, line.ts, out)])
        yield rows
        if self._doubtful and len(rows):
            yield from self._uncrossed(rows)
        for wanted in connection.wants_snapshot():
            if self._bridges and wanted in self._had:
                yield from self._bridge(wanted, line.ts)

    def _known(self, rows: RowArray) -> RowArray:
        if self._bridges and len(rows):
            self._book.apply_at(self._at, len(rows))
        return rows

    def _bridge(self, symbol: str, ts: int) -> Iterator[RowArray]:
        """Let a book that lost messages go on from what it was."""
        instrument, decoder = self._by_symbol[symbol], self.connection.decoder
        self._reasons.append(f"{symbol}: messages are missing before this one; the book goes on from what was known")
        depth = self._book.depth(instrument.id, _LEVELS)
        sides = [
            [[format(instrument.px(p), "f"), format(instrument.qty(q), "f")] for p, q in zip(*side[:2], strict=True)]
            for side in (depth.bids, depth.asks)
        ]
        payload = msgspec.json.encode({"lastUpdateId": decoder.first - 1, "bids": sides[0], "asks": sides[1]})
        n = self.connection.on_snapshot(symbol, payload, ts, self._out)
        self._out["flags"][:n] |= _RECOVERED
        levels = zip((_BID, _ASK), (depth.bids, depth.asks), strict=True)
        self._doubtful[instrument.id] = {(flag, px) for flag, side in levels for px in side.px.tolist()}
        yield self._known(self._out[:n])

    def _uncrossed(self, rows: RowArray) -> Iterator[RowArray]:
        """Take out levels from before a gap that the levels told since then contradict."""
        last = rows[-1:]
        doubtful = self._doubtful.get(int(last["instrument"][0]))
        if not doubtful or rows["kind"][0] not in (_LEVEL, _CLEAR):
            return
        doubtful -= set(zip((rows["flags"] & 3).tolist(), rows["px"].tolist(), strict=True))
        best = self._book.best(int(last["instrument"][0]))
        if best.bid_px is None or best.ask_px is None or best.bid_px < best.ask_px:
            return
        sure = self._book.depth(int(last["instrument"][0]), _LEVELS)
        bid = next((px for px in sure.bids.px.tolist() if (_BID, px) not in doubtful), None)
        ask = next((px for px in sure.asks.px.tolist() if (_ASK, px) not in doubtful), None)
        gone = [(f, px) for f, px in doubtful if (f == _BID and ask is not None and px >= ask)]
        gone += [(f, px) for f, px in doubtful if (f == _ASK and bid is not None and px <= bid)]
        if gone:
            doubtful -= set(gone)
            mended = join_rows([last] * len(gone))
            mended["kind"], mended["qty"] = _LEVEL, 0
            mended["flags"], mended["px"] = [f | _RECOVERED for f, _ in gone], [px for _, px in gone]
            mended["flags"][-1] |= _LAST
            self._book.apply(mended)
            yield mended

    def told(self) -> list[str]:
        """Return what was wrong with the last line."""
        reasons, self._reasons = self._reasons, []
        counts = self.connection.decoder.counts
        if counts != self._counts:
            grown = [what for what, count in counts.items() if count > self._counts[what] and what not in _BENIGN]
            reasons += [what.replace("_", " ") for what in grown]
            self._counts = {**counts}
        return reasons

    def notes(self) -> dict[str, int]:
        """Return what the connection counted, and what its decoder passed over."""
        passed = {what: self._counts[what] for what in _BENIGN if what in self._counts}
        return {what.replace("_", " "): n for what, n in (self.connection.counts | passed).items() if n}


# --- files ------------------------------------------------------------------------------------------------------------


def binance_snapshot(payload: bytes) -> bool:
    """Return whether a captured message is a Binance REST book snapshot, which names no symbol."""
    return payload.startswith(b'{"lastUpdateId"')


def _answered(line: _Line) -> str | None:
    """Return the symbol whose book a REST answer is; None for other answers."""
    if line.way != b"->":
        return None
    address = urlsplit(line.address)
    symbols = parse_qs(address.query).get("symbol", [])
    return symbols[0] if address.path.endswith("/depth") and symbols else None


_PART = re.compile(r"(.+?)\.(?:0|ws\.\d+\.\d+|http\.\d+\.\d+)(?:\.gz|\.zst)?")


def _files_of(path: Path) -> tuple[list[Path], list[Path], Path | None]:
    """Return the message files, the files of REST answers, and the instrument list of the capture that `path` names."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path], [], None
    stem, folder = match[1], path.parent
    listing = folder / f"{stem}.0"
    answers = sorted(folder.glob(f"{stem}.http.*"))
    files = sorted(folder.glob(f"{stem}.ws.*")) if path == listing else [path]
    return files or [path], answers, listing if listing.is_file() else None


def _listing(path: Path | None) -> bytes | None:
    """Return the venue's list of instruments in a file: its only JSON, or the payload of its first line."""
    if path is None:
        return None
    file, _ = opened(path, lambda problem: None)
    with file:
        text = file.read()
    if text[:1] in (b"{", b"["):
        return text
    match = _ADDRESSED.fullmatch(text.splitlines()[0].strip()) if text else None
    return match[4] if match else None
