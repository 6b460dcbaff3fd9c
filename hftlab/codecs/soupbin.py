"""SoupBinTCP 3.0: a numbered stream of messages over TCP that a client can take up again where it broke off.

**Model.** A packet is a 2-byte length, a type character and a payload. Sequenced data has no numbers on the wire: login
tells the first one, and both sides count. A client that reconnects asks for the number after the last it had, so
nothing is lost and nothing comes twice. A server that accepts the login from another number than the one asked for has
lost messages, or gives some again: `Gap` tells it, and what has come before is not delivered again. Each side sends a
heartbeat when it was silent for a second, and gives the other up for dead after `timeout_ns` of silence.

**Shape.** Both ends are machines without sockets: `receive` takes bytes as they come, in any pieces, and returns
events; `to_send` hands over the bytes to be written; `poll` is called at `deadline_ns` at the latest, makes the
heartbeats and notices the silence. A breach of the protocol is an event, `Closed`, with its reason and whose doing it
was; after it the machine ignores what comes: the caller closes the socket and, as a client, calls `connect` for the
next one.

**Bounds.** The server keeps the session's messages once, for all connections, and makes a connection's packets from
them only when they are asked for (``to_send``): a slow client costs no memory and delays nobody. Unsequenced data and
debug text wait in a buffer of at most 1 MiB a connection; beyond it `send` raises. A packet is at most 65,537 bytes by
its format, so what `receive` holds back is bounded too.

Worst case accepted: unsequenced data may be lost with a connection (the protocol says so).

References
----------
Nasdaq SoupBinTCP Specification 3.00.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hftlab.core.errors import ConfigError, LocalError

__all__ = [
    "Closed",
    "Debug",
    "EndOfSession",
    "Gap",
    "LoginAccepted",
    "LoginRejected",
    "LoginRequest",
    "Sequenced",
    "SoupBinClient",
    "SoupBinConnection",
    "SoupBinServer",
    "SoupEvent",
    "Unsequenced",
]

HEARTBEAT_NS = 1_000_000_000
TIMEOUT_NS = 15_000_000_000
LOGIN_NS = 30_000_000_000
_MAX_WAITING = 1 << 20
_LONGEST = 0xFFFF - 1  # bytes of a payload


@dataclass(frozen=True, slots=True)
class LoginAccepted:
    """The client is logged in to `session`; the next sequenced message has number `sequence`."""

    session: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The server begins at number `accepted`, not at `asked`.

    If it is higher, the messages between are missing, and books built from the stream are in doubt. If it is lower, the
    server does not know of all that was asked for: it has begun anew, or is not there yet.
    """

    asked: int
    accepted: int


@dataclass(frozen=True, slots=True)
class LoginRejected:
    """The server refused: code ``A`` not authorized, ``S`` no such session."""

    code: str

    @property
    def reason(self) -> str:
        """Return the code in words."""
        return {"A": "not authorized: user or password", "S": "the session is not available"}.get(self.code, self.code)


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """A client asked for `session` (blank: the present one) from `sequence` on (0: from now on)."""

    user: str
    session: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A message of the stream, by its number."""

    sequence: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Unsequenced:
    """A message without a number: it may get lost with the connection."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Debug:
    """Text for people."""

    text: str


@dataclass(frozen=True, slots=True)
class EndOfSession:
    """No more messages follow in this session; `sequence` is the number the next would have had."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is of no more use. `by_remote` tells whose doing it was; `is_breach` a breach of the protocol."""

    reason: str
    by_remote: bool = True
    is_breach: bool = False


SoupEvent = (
    LoginAccepted | Gap | LoginRejected | LoginRequest | Sequenced | Unsequenced | Debug | EndOfSession | Closed
)


def _packet(kind: bytes, payload: bytes = b"") -> bytes:
    return (1 + len(payload)).to_bytes(2, "big") + kind + payload


def _text(value: str, size: int, what: str) -> bytes:
    raw = value.encode("ascii", "replace")
    if len(raw) > size:
        raise ConfigError(f"{what}={value!r} is {len(raw)} characters; expected at most {size}")
    return raw.ljust(size)


def _number(raw: bytes) -> int:
    """Return the decimal number in `raw`, padded on the left with spaces; -1 if it is none."""
    text = raw.strip(b" ")
    return int(text) if text.isdigit() else -1


class _End:
    """What the two ends share: packets out of pieces, heartbeats, silence, the bytes that wait to be sent."""

    _heartbeat: ClassVar[bytes] = b""
    _known: ClassVar[Mapping[int, tuple[int, int]]] = {}  # packet type: fewest and most bytes of payload

    def __init__(self, heartbeat_ns: int, timeout_ns: int) -> None:
        if not 0 < heartbeat_ns < timeout_ns:
            raise ConfigError(f"heartbeat_ns={heartbeat_ns}, timeout_ns={timeout_ns}; expected 0 < heartbeat < timeout")
        self.heartbeat_ns, self.timeout_ns = heartbeat_ns, timeout_ns
        self.is_open = False
        self._piece = bytearray()
        self._out = bytearray()
        self._heard_ns = self._sent_ns = 0

    def _begin(self, now_ns: int) -> None:
        self._piece, self._out, self.is_open = bytearray(), bytearray(), True
        self._heard_ns = self._sent_ns = now_ns

    def _close(self, reason: str, *, by_remote: bool = True, is_breach: bool = False) -> list[SoupEvent]:
        self.is_open = False
        self._piece.clear()
        return [Closed(reason, by_remote, is_breach)]

    def _breach(self, reason: str) -> list[SoupEvent]:
        return self._close(reason, is_breach=True)

    def _write(self, packet: bytes) -> None:
        self._out += packet

    def _write_bounded(self, packet: bytes) -> None:
        if not self.is_open:
            raise LocalError("the connection is not open; connect first")
        if len(self._out) + len(packet) > _MAX_WAITING:
            raise LocalError(f"{len(self._out)} bytes wait to be sent; at most {_MAX_WAITING} may")
        self._write(packet)

    def receive(self, data: bytes, now_ns: int) -> list[SoupEvent]:
        """Return what `data`, the next bytes of the connection in any pieces, leads to."""
        if not self.is_open:
            return []
        self._heard_ns = now_ns
        self._piece += data
        events: list[SoupEvent] = []
        at, piece = 0, bytes(self._piece)
        while self.is_open and len(piece) - at >= 2:
            size = piece[at] << 8 | piece[at + 1]
            if size == 0:
                return events + self._breach("a packet of length 0, which has no type")
            if len(piece) - at - 2 < size:
                break
            kind = piece[at + 2]
            fewest, most = self._known.get(kind, (1, 0))
            if not fewest <= size - 1 <= most:
                return events + self._breach(
                    f"packet type {chr(kind)!r} with {size - 1} bytes; expected "
                    + (f"{fewest} to {most}" if kind in self._known else f"one of {bytes(self._known).decode()}")
                )
            events += self._packet_of(chr(kind), piece[at + 3 : at + 2 + size], now_ns)
            at += 2 + size
        del self._piece[:at]
        return events

    def poll(self, now_ns: int) -> list[SoupEvent]:
        """Return `Closed` if the other side is silent for too long; make a heartbeat if this one is."""
        if not self.is_open:
            return []
        if now_ns - self._heard_ns >= self.timeout_ns:
            silence = (now_ns - self._heard_ns) / 1e9
            return self._close(f"nothing heard for {silence:.1f} s; expected a heartbeat each second")
        if now_ns - self._sent_ns >= self.heartbeat_ns:
            self._write(self._heartbeat)
            self._sent_ns = now_ns
        return []

    @property
    def deadline_ns(self) -> int | None:
        """Return when `poll` has something to do; None on a closed connection."""
        if not self.is_open:
            return None
        return min(self._sent_ns + self.heartbeat_ns, self._heard_ns + self.timeout_ns)

    def _packet_of(self, kind: str, payload: bytes, now_ns: int) -> list[SoupEvent]:
        raise NotImplementedError


class SoupBinClient(_End):
    """The client's end, over as many connections as it takes.

    Parameters
    ----------
    user, password : str
        At most 6 and 10 characters.
    session : str
        Which session to join, at most 10 characters; blank is the present one.
    next_sequence : int
        Number of the first message wanted; 1 is the start, 0 is from now on. Counted on with each message.
    heartbeat_ns, timeout_ns : int
        Silence after which a heartbeat is sent, and after which the server is given up for dead.

    Attributes
    ----------
    repeated : int
        Messages that came again after a `Gap` backwards, and were dropped.

    Raises
    ------
    ConfigError
        If a text is too long, or the times do not make sense.

    Examples
    --------
    >>> server = SoupBinServer("S1", {"user": "word"})
    >>> _ = server.append(b"hello")
    >>> client, there = SoupBinClient("user", "word"), server.connection(now_ns=0)
    >>> client.connect(now_ns=0)
    >>> there.receive(client.to_send(0), 0)
    [LoginRequest(user='user', session='', sequence=1)]
    >>> client.receive(there.to_send(0), 0)
    [LoginAccepted(session='S1', sequence=1), Sequenced(sequence=1, message=b'hello')]
    """

    _heartbeat = _packet(b"R")
    _known: ClassVar[Mapping[int, tuple[int, int]]] = {
        ord("+"): (0, _LONGEST), ord("A"): (30, 30), ord("J"): (1, 1), ord("S"): (0, _LONGEST), ord("U"): (0, _LONGEST),
        ord("H"): (0, 0), ord("Z"): (0, 0),
    }  # fmt: skip

    def __init__(
        self,
        user: str,
        password: str,
        *,
        session: str = "",
        next_sequence: int = 1,
        heartbeat_ns: int = HEARTBEAT_NS,
        timeout_ns: int = TIMEOUT_NS,
    ) -> None:
        super().__init__(heartbeat_ns, timeout_ns)
        self._login = _text(user, 6, "user") + _text(password, 10, "password")
        _text(session, 10, "session")
        if next_sequence < 0:
            raise ConfigError(f"next_sequence={next_sequence}; expected 0 or more")
        self.session = session
        self.next_sequence = next_sequence
        self.is_logged_in = False
        self.is_ended = False
        self.repeated = 0
        self._asked = next_sequence
        self._had = 0  # number after the last message delivered

    def connect(self, now_ns: int) -> None:
        """Begin a new connection: asks for the session from the next message on."""
        self._begin(now_ns)
        self.is_logged_in = False
        self._asked = self.next_sequence = max(self.next_sequence, self._had)
        asked = str(self._asked).rjust(20).encode()
        self._write(_packet(b"L", self._login + self.session.rjust(10).encode() + asked))

    def to_send(self, now_ns: int) -> bytes:
        """Return the bytes to be written now, and forget them."""
        out = bytes(self._out)
        if out:
            self._sent_ns = now_ns
            self._out.clear()
        return out

    def send(self, message: bytes) -> None:
        """Send unsequenced data.

        Raises
        ------
        LocalError
            If not logged in, if `message` does not fit a packet, or if too much waits to be sent.
        """
        if not self.is_logged_in or len(message) > _LONGEST:
            raise LocalError(f"logged in: {self.is_logged_in}; {len(message)} bytes, at most {_LONGEST} fit a packet")
        self._write_bounded(_packet(b"U", message))

    def logout(self) -> None:
        """Ask the server to end the connection; send what `to_send` gives, then close."""
        self._write_bounded(_packet(b"O"))

    def _close(self, reason: str, *, by_remote: bool = True, is_breach: bool = False) -> list[SoupEvent]:
        self.is_logged_in = False
        return super()._close(reason, by_remote=by_remote, is_breach=is_breach)

    def _packet_of(self, kind: str, payload: bytes, now_ns: int) -> list[SoupEvent]:
        if kind == "H":
            return []
        if kind == "+":
            return [Debug(payload.decode("latin-1"))]
        if kind in "AJ":
            return self._answered(kind, payload)
        if not self.is_logged_in:
            return self._breach(f"packet type {kind!r} before the login was accepted")
        if kind == "S":
            number = self.next_sequence
            self.next_sequence += 1
            if number < self._had:
                self.repeated += 1
                return []
            self._had = number + 1
            return [Sequenced(number, payload)]
        if kind == "U":
            return [Unsequenced(payload)]
        self.is_ended = True
        return [EndOfSession(self.next_sequence), *self._close("the session has ended")]

    def _answered(self, kind: str, payload: bytes) -> list[SoupEvent]:
        if self.is_logged_in:
            return self._breach(f"packet type {kind!r} after the login was accepted")
        if kind == "J":
            rejected = LoginRejected(payload.decode("latin-1"))
            return [rejected, *self._close(f"login refused: {rejected.reason}")]
        session, sequence = payload[:10].decode("latin-1").strip(), _number(payload[10:])
        if sequence < 1:
            return self._breach(f"login accepted from sequence {payload[10:]!r}, which is no number")
        if self.session and session != self.session:
            return self._breach(f"asked for session {self.session!r}, logged in to {session!r}")
        self.session, self.next_sequence, self.is_logged_in = session, sequence, True
        accepted: list[SoupEvent] = [LoginAccepted(session, sequence)]
        return [*accepted, Gap(self._asked, sequence)] if self._asked and sequence != self._asked else accepted


class SoupBinConnection(_End):
    """The server's end of one connection; made by `SoupBinServer.connection`."""

    _heartbeat = _packet(b"H")
    _known: ClassVar[Mapping[int, tuple[int, int]]] = {
        ord("+"): (0, _LONGEST), ord("L"): (46, 46), ord("U"): (0, _LONGEST), ord("R"): (0, 0), ord("O"): (0, 0),
    }  # fmt: skip

    def __init__(self, server: SoupBinServer, now_ns: int, login_ns: int, heartbeat_ns: int, timeout_ns: int) -> None:
        super().__init__(heartbeat_ns, timeout_ns)
        self._server = server
        self._login_by_ns = now_ns + login_ns
        self.next_sequence = 0  # 0: not logged in
        self._has_ended = False
        self._begin(now_ns)

    def to_send(self, now_ns: int, limit: int = 1 << 16) -> bytes:
        """Return bytes to be written now, about `limit` at most; call again when they have been taken."""
        out = bytes(self._out)
        self._out.clear()
        parts = [out]
        size = len(out)
        if self.next_sequence and self.is_open:
            while size < limit and self.next_sequence < self._server.next_sequence:
                parts.append(_packet(b"S", self._server.message(self.next_sequence)))
                size += len(parts[-1])
                self.next_sequence += 1
            if self._server.is_ended and self.next_sequence == self._server.next_sequence and not self._has_ended:
                parts.append(_packet(b"Z"))
                self._has_ended = True
        if any(parts):
            self._sent_ns = now_ns
        return b"".join(parts)

    def send(self, message: bytes) -> None:
        """Send unsequenced data; raises LocalError if it does not fit a packet or too much waits to be sent."""
        if len(message) > _LONGEST:
            raise LocalError(f"{len(message)} bytes; at most {_LONGEST} fit a packet")
        self._write_bounded(_packet(b"U", message))

    def debug(self, text: str) -> None:
        """Send text for people; raises LocalError if too much waits to be sent."""
        self._write_bounded(_packet(b"+", text.encode("ascii", "replace")[:_LONGEST]))

    def poll(self, now_ns: int) -> list[SoupEvent]:
        """Return `Closed` if the client is silent or does not log in; make a heartbeat if this end is silent."""
        if self.is_open and not self.next_sequence and now_ns >= self._login_by_ns:
            return self._close("no login in time")
        return super().poll(now_ns)

    @property
    def deadline_ns(self) -> int | None:
        """Return when `poll` has something to do; None on a closed connection."""
        soonest = super().deadline_ns
        return soonest if soonest is None or self.next_sequence else min(soonest, self._login_by_ns)

    def _packet_of(self, kind: str, payload: bytes, now_ns: int) -> list[SoupEvent]:
        if kind == "R":
            return []
        if kind == "+":
            return [Debug(payload.decode("latin-1"))]
        if kind == "O":
            return self._close("the client logged out")
        if (kind == "L") == (self.next_sequence > 0):
            return self._breach("a second login" if kind == "L" else f"packet type {kind!r} before login")
        return self._log_in(payload) if kind == "L" else [Unsequenced(payload)]

    def _log_in(self, payload: bytes) -> list[SoupEvent]:
        user, password, session = (payload[a:b].decode("latin-1").strip() for a, b in ((0, 6), (6, 16), (16, 26)))
        sequence = _number(payload[26:])
        asked = LoginRequest(user, session, sequence)
        if self._server.accounts.get(user) != password:
            return [asked, *self._refuse("A")]
        if session not in ("", self._server.session) or sequence < 0:
            return [asked, *self._refuse("S")]
        ahead = self._server.next_sequence
        self.next_sequence = min(sequence, ahead) if sequence else ahead
        accepted = self._server.session.rjust(10) + str(self.next_sequence).rjust(20)
        self._write(_packet(b"A", accepted.encode()))
        return [asked]

    def _refuse(self, code: str) -> list[SoupEvent]:
        self._write(_packet(b"J", code.encode()))
        return self._close(f"login refused: {LoginRejected(code).reason}", by_remote=False)


class SoupBinServer:
    """One session: its messages, kept once, and the connections to it.

    Parameters
    ----------
    session : str
        Its name, 1 to 10 characters.
    accounts : mapping
        Password by user.
    heartbeat_ns, timeout_ns, login_ns : int
        Silence after which a heartbeat is sent, after which a client is given up, and the time it has to log in.

    Raises
    ------
    ConfigError
        If `session` is empty or too long.
    """

    def __init__(
        self,
        session: str,
        accounts: Mapping[str, str],
        *,
        heartbeat_ns: int = HEARTBEAT_NS,
        timeout_ns: int = TIMEOUT_NS,
        login_ns: int = LOGIN_NS,
    ) -> None:
        _text(session, 10, "session")
        if not session.strip():
            raise ConfigError("session is blank; expected a name, because a blank one asks for the present session")
        self.session = session
        self.accounts = dict(accounts)
        self.is_ended = False
        self._messages: list[bytes] = []
        self._times = login_ns, heartbeat_ns, timeout_ns

    @property
    def next_sequence(self) -> int:
        """Return the number that the next message will have."""
        return 1 + len(self._messages)

    def append(self, message: bytes) -> int:
        """Add a message to the session and return its number.

        Raises
        ------
        LocalError
            If the session has ended or `message` does not fit a packet.
        """
        if self.is_ended or len(message) > _LONGEST:
            raise LocalError(f"ended: {self.is_ended}; {len(message)} bytes, at most {_LONGEST} fit a packet")
        self._messages.append(message)
        return len(self._messages)

    def end(self) -> None:
        """End the session: each client is told after its last message."""
        self.is_ended = True

    def message(self, sequence: int) -> bytes:
        """Return the message of that number, which must be below `next_sequence`."""
        return self._messages[sequence - 1]

    def connection(self, now_ns: int) -> SoupBinConnection:
        """Return this end of a connection that was just opened."""
        return SoupBinConnection(self, now_ns, *self._times)
