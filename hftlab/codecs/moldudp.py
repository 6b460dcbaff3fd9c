"""MoldUDP64: a numbered stream of messages over UDP, from several lines at once, with what was lost asked for again.

**Model.** A packet is a session, the sequence number of its first message, a count, and so many messages, each behind
its length. Numbers go up by one a message, so a receiver knows at each packet what it missed. The sender keeps recent
messages and answers a request (the same 20-byte header) with as many of them as fit one packet.

**Arbitration.** Exchanges send the stream over two lines, A and B, that may be packetised differently. Here a line is
only a label for counting: every packet, of whatever line or answer, goes through the same gate, which passes the
messages that are next and drops those that have passed. Two lines make one stream, and a request is sent only for what
neither brought in time.

**Gaps.** A packet from beyond the next message is held (at most `max_held` packets; beyond that it is dropped, counted,
and asked for later like any gap). After `wait_ns`, in which the other line may bring what is missing, it is asked for;
a request that is not answered within `retry_ns` is repeated, `max_requests` times for a gap that does not move, and
then the missing messages are given up: `Lost` says which, and the stream goes on behind them. Progress of any kind
starts the count anew, because an answer holds only what fits one packet.

**Doubt.** One damaged number must not end the stream. A packet whose number lies farther than `far` messages from the
stream, ahead or, at the very beginning, behind, is held apart until another packet from there agrees with it; only
then both are taken. While none does, `doubted_sequence` says so; when another doubtful packet takes its place, the
first is dropped and counted. A true jump (an outage) costs no message by that, and one packet of delay.

**Promise.** The messages of the `Data` events have consecutive numbers (unless the very first packet turns out to have
had a wrong one), each number is delivered at most once, and what
is not delivered is named by a `Lost`. No packet raises: one that is malformed or of another session is counted and
changes nothing. Time is the caller's: each call is given ``now_ns``, and `MoldUDPClient.deadline_ns` says when to call
`poll` next. Worst case accepted: a receiver so far behind that `max_held` is full asks again for what it has seen; a
sender that announces, twice or within `far`, numbers it never sends is believed, so that after the last request they
count as lost; and a lone packet from beyond a long outage is never believed.

References
----------
Nasdaq MoldUDP64 Protocol Specification 1.00.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from hftlab.core.errors import ConfigError, ProtocolError

__all__ = [
    "Data",
    "EndOfSession",
    "FAR",
    "Lost",
    "MAX_PACKET",
    "MoldEvent",
    "MoldUDPClient",
    "MoldUDPServer",
    "Request",
    "is_packet",
    "split_blocks",
]

_HEADER = 20
_END = 0xFFFF
_MAX_COUNT = 0xFFFE
MAX_PACKET = 1400
"""Bytes of a packet that our server makes, at most, unless a single message is longer; it avoids IP fragments."""
_UDP_LIMIT = 65_507
HEARTBEAT_NS = 1_000_000_000
FAR = 1 << 12
"""Messages between a packet and the stream beyond which it has to be confirmed: a full packet holds 100 of them."""


@dataclass(frozen=True, slots=True)
class Data:
    """Messages that are next in the stream.

    Parameters
    ----------
    sequence : int
        Number of the first.
    count : int
        How many.
    blocks : bytes
        Each behind its length, 2 bytes, big-endian: what ``hftlab.codecs.itch.decode`` reads. `split_blocks` splits it.
    """

    sequence: int
    count: int
    blocks: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A packet to send to the request server: `count` messages from `sequence` on are missing."""

    sequence: int
    count: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages that were asked for in vain; the stream goes on behind them, and books built from it are in doubt."""

    sequence: int
    count: int


@dataclass(frozen=True, slots=True)
class EndOfSession:
    """The sender has said that no more messages follow; `sequence` is the number the next would have had."""

    sequence: int


MoldEvent = Data | Request | Lost | EndOfSession


def split_blocks(blocks: bytes) -> list[bytes]:
    """Return the messages in `blocks`.

    Raises
    ------
    ProtocolError
        If a length runs over the end.

    Examples
    --------
    >>> split_blocks(b"\\x00\\x01a\\x00\\x02bc")
    [b'a', b'bc']
    """
    found, at = [], 0
    while at < len(blocks):
        end = at + 2 + int.from_bytes(blocks[at : at + 2], "big")
        if end > len(blocks) or at + 2 > len(blocks):
            raise ProtocolError(f"a message of {end - at - 2} bytes at {at} runs over the end at {len(blocks)}")
        found.append(blocks[at + 2 : end])
        at = end
    return found


def _header(session: bytes, sequence: int, count: int) -> bytes:
    return session + sequence.to_bytes(8, "big") + count.to_bytes(2, "big")


def _session(name: str) -> bytes:
    raw = name.encode("ascii", "replace")
    if len(raw) > 10:
        raise ConfigError(f"session={name!r} is {len(raw)} characters; expected at most 10")
    return raw.ljust(10)


def _offset_of(blocks: bytes, n: int) -> int:
    """Return where message `n` of `blocks` begins; the blocks have been checked."""
    at = 0
    for _ in range(n):
        at += 2 + int.from_bytes(blocks[at : at + 2], "big")
    return at


def _is_whole(blocks: bytes, count: int) -> bool:
    """Return whether `blocks` are `count` messages and nothing else."""
    at, size = 0, len(blocks)
    for _ in range(count):
        if at + 2 > size:
            return False
        at += 2 + (blocks[at] << 8 | blocks[at + 1])
    return at == size


def is_packet(payload: bytes) -> bool:
    """Return whether `payload` is one whole packet: its messages fill it exactly.

    Examples
    --------
    >>> is_packet(MoldUDPServer("S1").publish([b"a"])[0]), is_packet(bytes(20)), is_packet(bytes(21))
    (True, True, False)
    """
    count = int.from_bytes(payload[18:20], "big")
    n_blocks = 0 if count == _END else count
    fits = len(payload) >= _HEADER and int.from_bytes(payload[10:18], "big") + n_blocks < 1 << 63
    return fits and _is_whole(payload[_HEADER:], n_blocks)


@dataclass(slots=True)
class _Gap:
    """What is missing is waited for until `due_ns`; so many requests have been made."""

    due_ns: int
    requests: int = 0


@dataclass(frozen=True, slots=True)
class _Packet:
    sequence: int
    count: int  # as it stands in the header
    line: int
    blocks: bytes

    @property
    def n_blocks(self) -> int:
        return 0 if self.count == _END else self.count

    @property
    def end(self) -> int:
        """Return the number behind its last message."""
        return self.sequence + self.n_blocks

    def agrees(self, other: _Packet, far: int) -> bool:
        """Return whether `other` stands near it, and is not merely the same packet seen once more.

        Packets without messages may be the same: heartbeats and the end are repeated for as long as nothing follows.
        """
        is_other = self.line != other.line or (self.sequence, self.count) != (other.sequence, other.count)
        return abs(self.end - other.sequence) <= far and (is_other or not self.n_blocks)


class MoldUDPClient:
    """Receives one session from any number of lines: packets in, consecutive messages out.

    Parameters
    ----------
    next_sequence : int, optional
        Number of the first message wanted; 1 is the start of the session. None takes the first packet as the start.
    session : str, optional
        Which session; None takes that of the first packet.
    wait_ns : int
        How long the other line may take before a gap is asked for.
    retry_ns : int
        How long an answer may take.
    max_requests : int
        Requests for one gap before it is given up; 0 never asks (where there is no request server).
    max_held : int
        Packets from beyond a gap that are kept.
    far : int
        Messages from the stream beyond which a packet needs another to agree with it.

    Attributes
    ----------
    next_sequence : int or None
        Number of the next message to be delivered.
    duplicates, malformed, foreign, dropped, doubted : int
        Packets that brought nothing new, were damaged, of another session, beyond `max_held`, or far away and alone.
    lost : int
        Messages given up.
    packets, first_from : dict[int, int]
        Packets by line, and those of them that brought something new.

    Raises
    ------
    ConfigError
        If a bound is negative or `max_held` is 0.

    Examples
    --------
    >>> server = MoldUDPServer("S1")
    >>> first, second = server.publish([b"a"]), server.publish([b"b"])
    >>> client = MoldUDPClient(next_sequence=1)
    >>> client.receive(second[0], now_ns=0)
    []
    >>> [event.sequence for event in client.receive(first[0], now_ns=1)]
    [1, 2]
    """

    def __init__(
        self,
        *,
        next_sequence: int | None = None,
        session: str | None = None,
        wait_ns: int = 1_000_000,
        retry_ns: int = 50_000_000,
        max_requests: int = 5,
        max_held: int = 4096,
        far: int = FAR,
    ) -> None:
        bounds = {"wait_ns": wait_ns, "retry_ns": retry_ns, "max_requests": max_requests, "far": far}
        for name, value in {**bounds, "next_sequence": next_sequence or 0}.items():
            if value < 0:
                raise ConfigError(f"{name}={value}; expected 0 or more")
        if max_held < 1:
            raise ConfigError(f"max_held={max_held}; expected 1 or more")
        self.next_sequence = next_sequence
        self.session = None if session is None else _session(session)
        self.is_ended = False
        self.wait_ns, self.retry_ns, self.max_requests, self.max_held = wait_ns, retry_ns, max_requests, max_held
        self.packets: dict[int, int] = {}
        self.first_from: dict[int, int] = {}
        self.far = far
        self.duplicates = self.malformed = self.foreign = self.dropped = self.doubted = self.lost = 0
        self._is_sure = next_sequence is not None  # the stream's place is known by more than one packet
        self._doubtful: _Packet | None = None
        self._held: list[tuple[int, int, int, bytes]] = []  # a heap: sequence, -count, line, blocks
        self._held_at: set[tuple[int, int]] = set()
        self._known = 0  # number behind the last message that the sender is known to have sent
        self._end: int | None = None
        self._gap: _Gap | None = None

    @property
    def deadline_ns(self) -> int | None:
        """Return when `poll` has something to do, None while nothing is missing."""
        return None if self._gap is None else self._gap.due_ns

    @property
    def missing(self) -> int:
        """Return how many messages are missing before the first that is held, or before the end as announced."""
        if self.next_sequence is None:
            return 0
        ahead = self._held[0][0] if self._held else self._known
        return max(0, ahead - self.next_sequence)

    def receive(self, packet: bytes, now_ns: int, line: int = 0) -> list[MoldEvent]:
        """Return what `packet` leads to.

        Parameters
        ----------
        packet : bytes
            One UDP payload, of a line or of the request server.
        now_ns : int
            The caller's time; it must not go back.
        line : int
            Which line it came by, for the counts `packets` and `first_from` (packets that brought something new).
        """
        self.packets[line] = self.packets.get(line, 0) + 1
        if not is_packet(packet):
            self.malformed += 1
            return []
        session, count = packet[:10], int.from_bytes(packet[18:20], "big")
        one = _Packet(int.from_bytes(packet[10:18], "big"), count, line, packet[_HEADER:])
        if self.session is None:
            self.session = session
        if session != self.session:
            self.foreign += 1
            return []
        if self.is_ended:
            self.duplicates += 1
            return []
        for believed in self._believed(one):
            self._take(believed)
        return [*self._passed(), *self._waited(now_ns)]

    @property
    def doubted_sequence(self) -> int | None:
        """Return the number of a packet from far away that no other has agreed with yet; None if there is none."""
        return None if self._doubtful is None else self._doubtful.sequence

    def _believed(self, one: _Packet) -> Sequence[_Packet]:
        """Return the packets that may be taken now that `one` has come: none, it, or the doubtful one before it."""
        if self.next_sequence is None:
            self.next_sequence = one.sequence
            return (one,)
        near = max(self.next_sequence, self._known)
        is_near = one.sequence <= near + self.far and (self._is_sure or one.sequence >= self.next_sequence - self.far)
        if is_near:
            self._is_sure = self._is_sure or one.end > self.next_sequence
            return (one,)
        other, self._doubtful = self._doubtful, one
        if other is None:
            return ()
        if not other.agrees(one, self.far):
            self.doubted += 1
            return ()
        self._doubtful = None
        if not self._is_sure:  # the only packet so far was the one with the wrong number
            self.next_sequence = min(one.sequence, other.sequence)
            self._known, self._end, self._gap = 0, None, None
            self._held, self._held_at = [], set()
            self._is_sure = True
        return (other, one)

    def _take(self, one: _Packet) -> None:
        """Hold a packet for its turn, if it brings something new."""
        assert self.next_sequence is not None
        sequence, n_blocks = one.sequence, one.n_blocks
        self._known = max(self._known, one.end)
        if one.count == _END:
            self._end = sequence if self._end is None else max(self._end, sequence)
        elif n_blocks and (one.end <= self.next_sequence or (sequence, n_blocks) in self._held_at):
            self.duplicates += 1
        elif n_blocks and sequence > self.next_sequence and len(self._held) >= self.max_held:
            self.dropped += 1
        elif n_blocks:
            heappush(self._held, (sequence, -n_blocks, one.line, one.blocks))
            self._held_at.add((sequence, n_blocks))

    def poll(self, now_ns: int) -> list[MoldEvent]:
        """Return what is due at `now_ns`: a request, or the news that messages are lost."""
        return self._waited(now_ns)

    def _passed(self) -> list[MoldEvent]:
        """Take what is next from the held packets."""
        assert self.next_sequence is not None
        events: list[MoldEvent] = []
        before = self.next_sequence
        while self._held and self._held[0][0] <= self.next_sequence:
            sequence, negative, line, blocks = heappop(self._held)
            old, count = self.next_sequence - sequence, -negative
            self._held_at.remove((sequence, count))
            if old >= count:
                self.duplicates += 1
                continue
            events.append(Data(self.next_sequence, count - old, blocks[_offset_of(blocks, old) :]))
            self.first_from[line] = self.first_from.get(line, 0) + 1
            self.next_sequence += count - old
        if self.next_sequence > before:
            self._gap = None
        if self._end is not None and self.next_sequence >= self._end and not self.is_ended:
            self.is_ended = True
            events.append(EndOfSession(self.next_sequence))
        return events

    def _waited(self, now_ns: int) -> list[MoldEvent]:
        events: list[MoldEvent] = []
        while self.missing and not self.is_ended:
            if self._gap is None:
                self._gap = _Gap(now_ns + self.wait_ns)
            if now_ns < self._gap.due_ns:
                return events
            assert self.next_sequence is not None and self.session is not None
            if self._gap.requests < self.max_requests:
                count = min(self.missing, _MAX_COUNT)
                events.append(Request(self.next_sequence, count, _header(self.session, self.next_sequence, count)))
                self._gap.requests += 1
                self._gap.due_ns = now_ns + self.retry_ns
                return events
            events.append(Lost(self.next_sequence, self.missing))
            self.lost += self.missing
            self.next_sequence += self.missing
            self._gap = None
            events += self._passed()
        self._gap = None
        return events


@dataclass(slots=True)
class MoldUDPServer:
    """Sends one session and answers requests: messages in, packets out.

    Parameters
    ----------
    session : str
        Its name, at most 10 characters.
    keep : int
        Messages kept to answer requests from; older ones are gone, and a request for them is counted and not answered.
    max_packet : int
        Bytes a packet, at most; a longer message gets a packet of its own.

    Raises
    ------
    ConfigError
        If `session` is too long or a bound is below 1.

    Examples
    --------
    >>> server = MoldUDPServer("S1")
    >>> packet, = server.publish([b"a", b"b"])
    >>> packet[10:20], server.answer(packet[:18] + b"\\0\\1")[20:]
    (b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x00\\x02', b'\\x00\\x01a')
    """

    session: str
    keep: int = 1_000_000
    max_packet: int = MAX_PACKET
    next_sequence: int = field(default=1, init=False)
    refused: int = field(default=0, init=False)
    _name: bytes = field(default=b"", init=False, repr=False)
    _kept: deque[bytes] = field(default_factory=deque, init=False, repr=False)
    _sent_ns: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._name = _session(self.session)
        if self.keep < 1 or self.max_packet < _HEADER + 3:
            raise ConfigError(f"keep={self.keep}, max_packet={self.max_packet}; expected 1 or more, 23 or more")

    def publish(self, messages: Iterable[bytes], now_ns: int = 0) -> list[bytes]:
        """Return the packets that carry `messages`, numbered and kept.

        Raises
        ------
        ConfigError
            If a message does not fit a UDP packet.
        """
        new = list(messages)
        for message in new:
            if len(message) > _UDP_LIMIT - _HEADER - 2:
                raise ConfigError(f"a message of {len(message)} bytes does not fit a UDP packet")
        packets, first = [], 0
        while first < len(new):
            taken = self._fitting(new[first : first + _MAX_COUNT])
            packets.append(self._packet(self.next_sequence, new[first : first + taken]))
            self.next_sequence += taken
            first += taken
        self._kept.extend(new)
        while len(self._kept) > self.keep:
            self._kept.popleft()
        if packets:
            self._sent_ns = now_ns
        return packets

    def poll(self, now_ns: int) -> list[bytes]:
        """Return a heartbeat if nothing was sent for a second."""
        if now_ns - self._sent_ns < HEARTBEAT_NS:
            return []
        self._sent_ns = now_ns
        return [_header(self._name, self.next_sequence, 0)]

    def end(self) -> bytes:
        """Return the packet that ends the session; send it each second for as long as requests are served."""
        return _header(self._name, self.next_sequence, _END)

    def answer(self, request: bytes) -> bytes | None:
        """Return the packet for a request, with as many messages as fit; None for one that cannot be answered."""
        first, count = int.from_bytes(request[10:18], "big"), int.from_bytes(request[18:20], "big")
        oldest = self.next_sequence - len(self._kept)
        is_ours = len(request) == _HEADER and request[:10] == self._name
        if not is_ours or not count or not oldest <= first < self.next_sequence:
            self.refused += 1
            return None
        at = first - oldest
        messages = [self._kept[k] for k in range(at, min(at + count, len(self._kept), at + self.max_packet // 2))]
        return self._packet(first, messages[: self._fitting(messages)])

    def _fitting(self, messages: Sequence[bytes]) -> int:
        room, n = self.max_packet - _HEADER, 0
        for message in messages:
            room -= 2 + len(message)
            if room < 0 and n:
                break
            n += 1
        return n

    def _packet(self, first: int, messages: Sequence[bytes]) -> bytes:
        blocks = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
        return _header(self._name, first, len(messages)) + blocks
