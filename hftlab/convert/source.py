"""What can be converted, behind one interface: a source is iterated for blocks of rows.

Model. A source knows its instruments and its size, and gives its rows block by block in the order of the recording. A
block is some ten thousand rows long, whatever the size of the recording, and is overwritten or dropped when the next
is asked for: that bounds the memory. A block ends where an atom ends. In a journal the atoms are the journal's own; in
a recording each message is one, so ``Flag.COMMIT`` stands beside ``Flag.LAST``. Therefore a journal made from a source
does not depend on how the source was cut into blocks.

Promise. A broken record is told (`Source.problems`, with its byte offset) and the rest goes on. Iterating again begins
anew and gives the same rows.

Grids. A recording without definitions does not say in which steps its prices are counted. Steps so fine that they fit
anything (1e-9) would make ticks times lots overflow. So a source that needs it reads the recording once before it gives
the first row, and takes for each instrument the largest power of ten that divides every price, and every quantity.

Worst case accepted: a message longer than `_LONGEST` rows is cut into atoms.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date as Date
from decimal import Decimal
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from hftlab.codecs import Problem, Unpacked
from hftlab.codecs.dbn import DbnDecoder, DbnMetadata, read_metadata
from hftlab.codecs.itch import TICK as ITCH_TICK
from hftlab.codecs.itch import ItchDecoder, ItchFile, session_date, session_day, session_midnight_ns
from hftlab.codecs.lobster import TICK as LOBSTER_TICK
from hftlab.codecs.lobster import LobsterDecoder
from hftlab.codecs.moldudp import Data, Lost, MoldEvent, MoldUDPClient, is_packet
from hftlab.codecs.pcap import Datagram, PcapFile
from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, NO_PX, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.journal import SalvagedSegment, salvage

__all__ = [
    "DbnSource",
    "Grid",
    "ItchSource",
    "JournalSource",
    "LobsterSource",
    "PcapSource",
    "Source",
    "opened",
    "read_definitions",
]

BLOCK_ROWS = 1 << 15
_LONGEST = 1 << 17
_MAX_PROBLEMS = 10_000
_READ = 1 << 20
_COMMIT, _LAST = np.uint16(Flag.COMMIT), int(Flag.LAST)
_PRICED = (Kind.ADD, Kind.REDUCE, Kind.EXECUTE, Kind.REPLACE, Kind.LEVEL, Kind.QUOTE, Kind.TRADE)
_DATED = re.compile(r"(\d{4})-(\d{2})-(\d{2})")


class Source(ABC):
    """A recording: iterate it for blocks of rows.

    Parameters
    ----------
    path : Path
        The recording.

    Attributes
    ----------
    format : str
        What it is, such as ``"itch"``.
    size, position : int
        Bytes it has, and bytes read in the present iteration.
    problems : list of Problem
        Broken records of the present iteration, the first 10,000; `broken` counts all. Offsets are bytes of the
        recording; where it is packed, of what was packed.
    notes : dict[str, int]
        What else is worth knowing: gaps, lost messages, records of kinds that have no rows.
    first_seq : int
        Full number of the first row.
    seq : int or None
        Full number of the first row of the block given last, where the source knows it; else rows are counted.
    definitions : dict
        A journal's definitions; empty for a recording.
    only_quotes : bool
        Its books have one level, told by QUOTE rows.
    """

    format = ""
    only_quotes = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.is_file() else 0
        self.position = 0
        self.problems: list[Problem] = []
        self.broken = 0
        self.notes: dict[str, int] = {}
        self.first_seq = 0
        self.seq: int | None = None
        self.definitions: dict[str, Any] = {}

    @property
    @abstractmethod
    def instruments(self) -> list[Instrument]:
        """Return the instruments known so far, by ascending id; all of them after an iteration."""

    @abstractmethod
    def _rows(self) -> Iterator[RowArray]:
        """Yield rows as they come, in pieces of any size, which may overwrite each other."""

    def __iter__(self) -> Iterator[RowArray]:
        self.position, self.problems, self.broken, self.notes = 0, [], 0, {}
        yield from _atoms(self._rows())

    def _tell(self, offset: int, reason: str) -> None:
        self.broken += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(offset, reason))

    def _damaged(self, problem: Problem) -> None:
        """Tell where an archive is cut or damaged."""
        self._tell(problem.offset, problem.reason)

    def _note(self, what: str, count: int = 1) -> None:
        if count:
            self.notes[what] = self.notes.get(what, 0) + count


def _atoms(pieces: Iterable[RowArray]) -> Iterator[RowArray]:
    """Yield blocks that end with a message, each message an atom."""
    held: list[RowArray] = []
    n, enough = 0, BLOCK_ROWS
    for piece in pieces:
        held.append(piece.copy())
        n += len(piece)
        if n < enough:
            continue
        rows = join_rows(held)
        end = _commit(rows, n >= _LONGEST)
        if end:
            yield rows[:end]
        held, n = [rows[end:]] if end < n else [], n - end
        enough = BLOCK_ROWS if end else min(2 * n, _LONGEST)
    if n:
        rows = join_rows(held)
        _commit(rows, True)
        yield rows


def _commit(rows: RowArray, whole: bool) -> int:
    """Mark the atoms of `rows`; return where the last one ends, the end itself if `whole`."""
    heads = np.flatnonzero(rows["kind"] != CONT)
    ends = heads[rows["flags"][heads] & _LAST != 0]
    if whole and len(heads):
        ends = np.union1d(ends, heads[-1:])
    rows["flags"][ends] |= _COMMIT
    return int(ends[-1]) + 1 + int(rows["span"][ends[-1]]) if len(ends) else 0


def whole_atoms(rows: RowArray) -> int:
    """Return where the last whole atom of `rows` ends; 0 if there is none."""
    ends = np.flatnonzero((rows["kind"] != CONT) & (rows["flags"] & _COMMIT != 0))
    for last in ends[::-1].tolist():
        after = int(last) + 1 + int(rows["span"][last])
        if after <= len(rows):
            return after
    return 0


class Grid:
    """Finds the steps of prices and quantities that rows in finest steps turn out to have."""

    def __init__(self) -> None:
        self._px: dict[int, int] = {}
        self._qty: dict[int, int] = {}

    def add(self, rows: RowArray) -> None:
        """Take the prices and quantities of `rows` into account."""
        rows = rows[np.isin(rows["kind"], _PRICED)]
        for instrument in np.unique(rows["instrument"]).tolist():
            own = rows[rows["instrument"] == instrument]
            px = own["px"][own["px"] != NO_PX]
            for steps, values in ((self._px, px), (self._qty, own["qty"])):
                steps[instrument] = gcd(steps.get(instrument, 0), int(np.gcd.reduce(values)) if len(values) else 0)

    def refine(self, instrument: Instrument) -> Instrument:
        """Return `instrument` in the coarsest steps, powers of ten times its own, that hold all that was added."""
        plain = instrument.to_dict()
        for name, steps in (("tick_size", self._px), ("lot_size", self._qty)):
            step, power = steps.get(instrument.id, 0), 0
            while step and step % 10 == 0:
                step, power = step // 10, power + 1
            plain[name] = format(Decimal(plain[name]).scaleb(power).normalize(), "f")
        return Instrument.from_dict(plain)


def opened(path: Path, tell: Callable[[Problem], None]) -> tuple[BinaryIO, io.FileIO]:
    """Return a file to read from, unpacked if it is packed, and the raw file whose `tell` shows how far that is.

    Both are to be closed. Where the archive is cut or damaged the file ends, and `tell` is told.
    """
    raw = io.FileIO(path)
    return io.BufferedReader(Unpacked(cast(BinaryIO, raw), tell), _READ), raw


def _day(path: Path, day: Date | None) -> Date:
    """Return the day of a session, given or told by the name of its file."""
    found = day or session_date(path.name)
    if found is None and (match := _DATED.search(path.name)):
        try:
            found = Date(*map(int, match.groups()))
        except ValueError:
            found = None
    if found is None:
        raise ConfigError(f"the name {path.name} does not tell the session's date; give it with --date YYYY-MM-DD")
    return found


# --- journals ---------------------------------------------------------------------------------------------------------


class JournalSource(Source):
    """A journal's folder: its rows from the oldest that is left to the end that it has when it is read.

    Each segment is held to its seal. A damaged one gives what stands before the damage, which is told with its offset
    in the segment's file; the rest goes on, and rows keep their numbers.
    """

    format = "journal"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = sum(segment.stat().st_size for segment in path.glob("*.seg"))
        self._instruments: dict[int, Instrument] = {}
        for part in salvage(path):
            if part.definitions:
                self._learn(part)
                self.first_seq = part.first
                break

    @property
    def instruments(self) -> list[Instrument]:
        """Return those that the segments read so far define."""
        return [self._instruments[n] for n in sorted(self._instruments)]

    def _learn(self, part: SalvagedSegment) -> None:
        self.definitions = part.definitions
        for plain in self.definitions.get("instruments", []):
            self._instruments.setdefault(int(plain["id"]), Instrument.from_dict(plain))

    def _rows(self) -> Iterator[RowArray]:
        done = 0
        for part in salvage(self.path):
            if part.definitions:
                self._learn(part)
            at = 0
            while at < len(part.rows):
                end = min(len(part.rows), at + BLOCK_ROWS)
                end = at + whole_atoms(part.rows[at:end]) if end < len(part.rows) else end
                end = end if end > at else len(part.rows)
                self.seq = part.first + at
                self.position = done + 64 * end
                yield part.rows[at:end].copy()
                at = end
            if part.damage:
                self._tell(part.offset or 0, part.damage)
            done += part.path.stat().st_size if part.path.is_file() else 0
        self.position = self.size

    def __iter__(self) -> Iterator[RowArray]:
        self.position, self.problems, self.broken, self.notes = 0, [], 0, {}
        yield from self._rows()


# --- ITCH -------------------------------------------------------------------------------------------------------------


class _Nasdaq(Source):
    """What ITCH files and captured ITCH packets have in common: stock locates that the stream itself names."""

    def __init__(self, path: Path, day: Date | None) -> None:
        super().__init__(path)
        self.day = _day(path, day)
        self._names: dict[int, Instrument] = {}
        self._seen = np.zeros(1 << 16, np.bool_)
        self._listed: list[Instrument] = []
        self._has_news = True

    @property
    def instruments(self) -> list[Instrument]:
        """Return what the directory lists, and locates met without it under their number."""
        if self._has_news:
            found = dict(self._names)
            for locate in np.flatnonzero(self._seen).tolist():
                if locate and locate not in found:
                    found[locate] = Instrument(locate, "nasdaq", str(locate), ITCH_TICK, Decimal(1), "", "USD")
            self._listed, self._has_news = [found[n] for n in sorted(found)], False
        return self._listed

    def _met(self, rows: RowArray, decoder: ItchDecoder) -> None:
        met = rows["instrument"][rows["kind"] != CONT]
        if not self._seen[met].all():
            self._seen[met] = self._has_news = True
        if len(decoder.stocks) > len(self._names):
            self._names, self._has_news = decoder.instruments, True


class ItchSource(_Nasdaq):
    """A length-framed TotalView-ITCH 5.0 file, plain, gzip or Zstandard.

    Parameters
    ----------
    path : Path
    day : datetime.date, optional
        The session's date in New York; by default what the file's name tells.
    """

    format = "itch"

    def __init__(self, path: Path, day: Date | None = None) -> None:
        super().__init__(path, day)
        self._list_ahead()

    def _list_ahead(self) -> None:
        """Read on until the directory, which stands at the front of a day, has been read."""
        file, listed = ItchFile(self.path, self.day, capacity=1 << 14), -1
        for n, rows in enumerate(file):
            self._met(rows, file.decoder)
            if n > 1 and len(self._names) == listed:
                break
            listed = len(self._names)

    def _rows(self) -> Iterator[RowArray]:
        file = ItchFile(self.path, self.day, capacity=1 << 13)
        told = 0
        for rows in file:
            self.position = file.position
            self._met(rows, file.decoder)
            told = self._pass_on(file, told)
            yield rows
        self._pass_on(file, told)
        self.broken = max(self.broken, sum(file.decoder.skipped.values()))
        if file.cut is not None:
            self._tell(file.cut, "the file is cut within the message that begins here")
        self.position = self.size

    def _pass_on(self, file: ItchFile, told: int) -> int:
        for problem in file.decoder.problems[told:]:
            self._tell(problem.offset, problem.reason)
        return len(file.decoder.problems)


_LINE_BEHIND_NS, _MOST_HELD = 50_000_000, 1 << 16
"""How long, of the capture's own time, a gap waits for the other line, and how many packets may wait behind it: more
than a full market sends in that time."""
_MOST_STREAMS, _MOST_LINES = 64, 256
_REMEMBERED, _PROBATION = 1 << 12, 64  # packets


class _Stream:
    """One numbered stream of messages, which several lines may bring."""

    def __init__(self) -> None:
        self.client = MoldUDPClient(max_requests=0, wait_ns=_LINE_BEHIND_NS, max_held=_MOST_HELD)
        self.doubted_at = 0  # where the packet stands that the client doubts
        self._seen: dict[bytes, int] = {}  # first number: hash of the packet's messages

    def differs(self, payload: bytes) -> bool:
        """Return whether a packet has the number of a recent one and other messages; remember it."""
        number, told = payload[10:18], hash(payload[18:])
        before = self._seen.setdefault(number, told)
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return before != told


@dataclass(slots=True)
class _Line:
    """Packets of one session to one address."""

    stream: _Stream
    is_first: bool
    packets: int = 0
    differing: int = 0


class PcapSource(_Nasdaq):
    """Captured packets of TotalView-ITCH 5.0 over MoldUDP64: every session of every group, in the order captured.

    Lines are told apart by session and destination address. Lines of one session are taken for one stream, so that what
    two lines bring twice is taken once, unless their first packets have other messages under the same numbers: then
    each is a stream. A gap that no line closes is told as a problem, and its messages are noted as ``lost``. Datagrams
    that are no MoldUDP64 at all are counted; at most 64 streams are followed, and one begins with a packet that has
    messages, so foreign traffic takes no memory.

    Parameters
    ----------
    path : Path
        libpcap or pcapng, plain, gzip or Zstandard.
    day : datetime.date, optional
        The session's date in New York; by default that of the first packet.
    """

    format = "pcap"

    def __init__(self, path: Path, day: Date | None = None) -> None:
        first = next(iter(PcapFile(path)), None)
        if day is None:
            try:
                day = _day(path, None)
            except ConfigError:
                day = None if first is None else session_day(max(0, first.ts_ns))
        super().__init__(path, day)

    def _rows(self) -> Iterator[RowArray]:
        file, decoder = PcapFile(self.path), ItchDecoder(self.day, capacity=1 << 13)
        self._lines: dict[tuple[bytes, tuple[str, int]], _Line] = {}
        self._early: dict[bytes, bytes] = {}  # by session: a packet without messages from before its first message
        told, last_ns = 0, 0
        for packet in file:
            last_ns = packet.ts_ns
            self.position = min(self.size, file.position)
            line = self._line(packet)
            if line is not None:
                yield from self._received(line.stream, decoder, packet)
            told = self._pass_on(file, told)
        self._pass_on(file, told)
        streams = {id(line.stream): line.stream for line in self._lines.values()}.values()
        for stream in streams:  # what stands behind a gap that nothing has closed
            later_ns = last_ns
            while stream.client.missing and not stream.client.is_ended:
                later_ns += 2 * _LINE_BEHIND_NS
                yield from self._led_to(stream.client.poll(later_ns), decoder, last_ns, self.size)
            if stream.client.doubted_sequence is not None:
                self._doubt(stream, stream.client.doubted_sequence)
        self._note("not UDP", file.skipped)
        self._note("twice", sum(stream.client.duplicates for stream in streams))
        self.position = self.size

    def _pass_on(self, file: PcapFile, told: int) -> int:
        for problem in file.problems[told:]:
            self._tell(problem.offset, problem.reason)
        return len(file.problems)

    def _line(self, packet: Datagram) -> _Line | None:
        """Return whose a datagram is; None, counted or told, if it is to be passed over."""
        payload = packet.payload
        session, key = payload[:10], (payload[:10], packet.destination)
        line = self._lines.get(key)
        if not is_packet(payload):
            if line is None:
                self._note("other datagrams")
            else:
                self._tell(packet.offset, "the packet is no whole MoldUDP64 packet")
            return None
        has_messages = len(payload) > 20
        if line is None and not has_messages:
            self._early[session] = payload
            if len(self._early) > _MOST_STREAMS:
                del self._early[next(iter(self._early))]
            return None
        if line is None:
            line = self._first_seen(session, key[1])
        if line is not None and has_messages and line.packets < _PROBATION:
            line.packets += 1
            line.differing += line.stream.differs(payload)
            if line.differing > 1 and not line.is_first:
                self._tell(packet.offset, f"{_addressed(key[1])} has a stream of its own under another's session name")
                line = self._lines[key] = _Line(_Stream(), True)
        elif line is not None and has_messages:
            line.stream.differs(payload)
        return line

    def _first_seen(self, session: bytes, destination: tuple[str, int]) -> _Line | None:
        streams = {id(line.stream): line.stream for line in self._lines.values()}
        shared = next((line.stream for (name, _), line in self._lines.items() if name == session), None)
        if (shared is None and len(streams) >= _MOST_STREAMS) or len(self._lines) >= _MOST_LINES:
            self._note("datagrams of further sessions")
            return None
        line = self._lines[session, destination] = _Line(shared or _Stream(), shared is None)
        if shared is None and session in self._early:
            line.stream.client.receive(self._early.pop(session), 0)
        return line

    def _received(self, stream: _Stream, decoder: ItchDecoder, packet: Datagram) -> Iterator[RowArray]:
        client = stream.client
        doubted, dropped = client.doubted_sequence, client.doubted
        events = client.receive(packet.payload, packet.ts_ns)
        if doubted is not None and client.doubted > dropped:
            self._doubt(stream, doubted)
        if client.doubted_sequence is not None and client.doubted_sequence != doubted:
            stream.doubted_at = packet.offset
        yield from self._led_to(events, decoder, packet.ts_ns, packet.offset)

    def _doubt(self, stream: _Stream, sequence: int) -> None:
        self._tell(stream.doubted_at, f"no other packet agrees with this one's number, {sequence}, far from the stream")

    def _led_to(
        self, events: Iterable[MoldEvent], decoder: ItchDecoder, ts_recv: int, offset: int
    ) -> Iterator[RowArray]:
        for event in events:
            if isinstance(event, Data):
                yield from self._decoded(decoder, event.blocks, ts_recv, offset)
            elif isinstance(event, Lost):
                self._note("lost", event.count)
                last = event.sequence + event.count - 1
                self._tell(offset, f"before this, messages {event.sequence} to {last} are missing: no packet has them")

    def _decoded(self, decoder: ItchDecoder, blocks: bytes, ts_recv: int, offset: int) -> Iterator[RowArray]:
        at, told = 0, len(decoder.problems)
        while at < len(blocks):
            rows, after = decoder.decode(blocks, at, ts_recv)
            if after == at:
                self._tell(offset, f"a message in the packet is cut after {len(blocks) - at} bytes")
                break
            at = after
            self._met(rows, decoder)
            yield rows
        for problem in decoder.problems[told:]:
            self._tell(offset, problem.reason)


def _addressed(destination: tuple[str, int]) -> str:
    return f"{destination[0]}:{destination[1]}"


# --- LOBSTER ----------------------------------------------------------------------------------------------------------


class LobsterSource(Source):
    """LOBSTER's message file, packed or not; the book file beside it, where it is there, shows what came into sight.

    Parameters
    ----------
    path : Path
        The message file: ``AAPL_2012-06-21_34200000_57600000_message_10.csv``.
    day : datetime.date, optional
        The session's date in New York; by default what the file's name tells.
    """

    format = "lobster"

    def __init__(self, path: Path, day: Date | None = None) -> None:
        super().__init__(path)
        self.day = _day(path, day)
        name = path.name.replace("message", "orderbook").removesuffix(".gz").removesuffix(".zst")
        beside = [path.with_name(name + packed) for packed in ("", ".gz", ".zst")] if "message" in path.name else []
        self.book = next((one for one in beside if one.is_file()), None)
        symbol = path.name.split("_")[0]
        self._instrument = Instrument(0, "lobster", symbol, LOBSTER_TICK, Decimal(1), symbol, "USD")

    @property
    def instruments(self) -> list[Instrument]:
        """Return the one stock."""
        return [self._instrument]

    def _rows(self) -> Iterator[RowArray]:
        decoder = LobsterDecoder(midnight_ns=session_midnight_ns(self.day))
        out = new_rows(1 << 12)
        with ExitStack() as files:
            file, raw = opened(self.path, self._damaged)
            files.enter_context(file)
            book = files.enter_context(opened(self.book, self._book_damaged)[0]) if self.book else None
            offset, n = 0, 0
            while line := file.readline(_READ):
                text, told = line.strip(), book.readline(_READ).strip() if book else b""
                if offset == 0 and told:
                    n = decoder.seed(told, text, out)
                    yield out[:n]
                n = decoder.decode(text, out) if text else 0
                if not n and text:
                    self._tell(offset, f"expected 'seconds,type,order,size,price,direction', got {text[:60]!r}")
                if told and n:
                    n += decoder.reveal(told, out, n)
                yield out[:n]
                offset += len(line)
                self.position = raw.tell()
        self._note("levels come into sight", decoder.counts["revealed"])
        self._note("unknown orders", decoder.counts["unknown"])
        self.position = self.size

    def _book_damaged(self, problem: Problem) -> None:
        assert self.book is not None
        reason = f"{self.book.name}: {problem.reason}; levels that come into sight later are missing"
        self._tell(problem.offset, reason)


# --- Databento --------------------------------------------------------------------------------------------------------


class _DbnPieces:
    """Reads a DBN file piece by piece: `held` is what is read and not yet taken."""

    def __init__(self, path: Path, tell: Callable[[Problem], None]) -> None:
        self.file, self.raw = opened(path, tell)
        self.held = b""

    def __enter__(self) -> _DbnPieces:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.raw.close()

    def more(self) -> bool:
        piece = self.file.read(_READ)
        self.held += piece
        return bool(piece)

    def metadata(self) -> DbnMetadata:
        while (found := read_metadata(self.held)) is None:
            if not self.more():
                raise ProtocolError(f"the DBN metadata is cut after {len(self.held)} bytes")
        self.held = self.held[found.length :]
        return found


class DbnSource(Source):
    """A Databento file, plain, Zstandard or gzip.

    Parameters
    ----------
    path : Path
    instruments : sequence of Instrument, optional
        Those of a definition file; without them the grid is found by reading the file once more.
    """

    format = "dbn"

    def __init__(self, path: Path, instruments: Sequence[Instrument] = ()) -> None:
        super().__init__(path)
        self._given = list(instruments)
        self._known = self._given
        if not self._given:
            grid = Grid()
            for rows in self._rows():
                grid.add(rows)
            self._given = [grid.refine(i) if i.tick_size == Decimal("1e-9") else i for i in self._known]
            self._known = self._given

    @property
    def instruments(self) -> list[Instrument]:
        """Return those defined, and those met."""
        return sorted(self._known, key=lambda i: i.id)

    def _rows(self) -> Iterator[RowArray]:
        with _DbnPieces(self.path, self._damaged) as pieces:
            yield from self._decoded(pieces)

    def _decoded(self, pieces: _DbnPieces) -> Iterator[RowArray]:
        metadata = pieces.metadata()
        self.only_quotes = metadata.schema in ("mbp-1", "tbbo", "bbo-1s", "bbo-1m")
        decoder = DbnDecoder(metadata, self._given, on_broken=self._tell)
        self._known = decoder.instruments
        out = new_rows(1 << 14)
        while True:
            taken, n = decoder.decode(pieces.held, out)
            pieces.held = pieces.held[taken:]
            self.position = pieces.raw.tell()
            yield out[:n]
            if not n and not pieces.more():
                break
        if pieces.held:
            self._tell(decoder.position, f"cut after {len(pieces.held)} bytes of a record")
        for what in ("ignored", "bars"):
            self._note(what, decoder.counts[what])
        self.position = self.size


def read_definitions(path: Path) -> list[Instrument]:
    """Return the instruments of a DBN definition file.

    Raises
    ------
    ConfigError
        If it defines none.
    """
    with _DbnPieces(path, lambda problem: None) as pieces:
        decoder = DbnDecoder(pieces.metadata())
        out = new_rows(1 << 12)
        while True:
            taken, n = decoder.decode(pieces.held, out)
            pieces.held = pieces.held[taken:]
            if not n and not pieces.more():
                break
    if not decoder.counts["definitions"]:
        raise ConfigError(f"{path} defines no instrument; expected a DBN file of schema definition")
    return decoder.instruments
