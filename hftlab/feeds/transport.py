"""A WebSocket client whose messages are read where the socket left them.

Model. Two halves, by how often they are needed. Whole messages, nearly all that a venue sends, are found by a kernel in
the buffer that the socket was read into, and handed over as addresses and lengths: no copy, no object a message, one
call a read. Everything else (the handshake, pings, fragments, the close, a peer that breaks the rules) is given byte by
byte to the sans-I/O protocol of ``websockets``, which decides what it means and what is answered. The kernel stops in
front of a frame that is not for it, so that each byte goes to one of the two, and in order.

`connect` calls ``on_messages(messages)`` with what one read brought, in the loop turn that read it, and ``on_close()``
once, whatever ended the link. `Messages` is valid during that call only: the next read overwrites it. Where a frame of
another kind stands between messages, those before it are handed over first.

A message is sent in one call of the system, not at the end of the loop's turn, and without the transport's own way
there; what the socket does not take, and everything over TLS, goes by the transport. A host that never sleeps reads so
too, by `Poller`: the event loop's own way from ready to read takes some 10 us, and gives the interpreter's lock away
twice. What cannot be read so (over TLS, before the handshake is done, on another system than Linux) comes by the
loop, as do ends and errors.

Bounds. A message has 16 MiB at most, and so has the buffer, a header more; it begins with 256 KiB, is used from the
front again as soon as all of it was taken, and keeps the size of the largest message seen. One MiB may wait for a peer
that does not read. Worst case accepted: text is not checked for UTF-8 here, its decoder looks at every byte anyhow.

References
----------
RFC 6455, The WebSocket Protocol.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from array import array
from collections.abc import Callable, Iterator
from ctypes import string_at
from typing import cast

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI, parse_uri

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.journal.format import entry
from hftlab.kernels.frames import (
    BAD,
    FACTS,
    MASKED_HEADER_MAX,
    MORE,
    OTHER,
    read_any,
    scan_frames,
    send_bytes,
    write_frame,
)
from hftlab.kernels.jit import address_of
from hftlab.kernels.words import BYTES_AT

__all__ = ["Link", "Messages", "Poller", "SPAN_BYTES", "connect"]

MAX_MESSAGE = 16 * 2**20
MAX_UNSENT = 2**20
"""Bytes that may wait for a peer that does not read; beyond it the link is cut, which tells everybody."""
SPAN_BYTES = 16
_BUFFER = 256 * 1024
_SPANS = 1024
_HEAD_MAX = 64 * 1024
_CLOSE_S = 1.0
_END_OF_HEAD = b"\r\n\r\n"
_TURNS, _MOST_POLLED = 16, 64

_read_any, _send_bytes = entry(read_any), entry(send_bytes)
_open: list[Link] = []


class Messages:
    """Whole messages in the order they came; iterate for their bytes, or read them where they lie.

    Attributes
    ----------
    address : int
        Of pairs of int64: the address and the length of each message.
    count : int
        How many there are.
    """

    __slots__ = ("_spans", "_whole", "address", "count")

    def __init__(self, room: int) -> None:
        self._spans = np.zeros((room, 2), np.int64)
        self._whole = b""
        self.address = address_of(self._spans)
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return (string_at(address, size) for address, size in self._spans[: self.count].tolist())

    def put(self, message: bytes) -> None:
        """Be this one message."""
        self._whole = message  # which has to live as long as its address is used
        self._spans[0] = id(message) + BYTES_AT, len(message)
        self.count = 1


OnMessages = Callable[[Messages], None]


class Link(asyncio.BufferedProtocol):
    """An open connection; `connect` makes it.

    Attributes
    ----------
    failure : str
        What the peer did wrong, or what broke; empty while nothing has, and after a close that either side asked for.
    opened : Future
        Done when the handshake is; holds what prevented it.
    """

    def __init__(self, uri: WebSocketURI, on_messages: OnMessages, on_close: Callable[[], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.failure = ""
        self.opened: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._on_messages, self._on_close = on_messages, on_close
        self._rules = ClientProtocol(uri, max_size=MAX_MESSAGE)
        self._reads = self._head  # then frames; then, once nothing more is to be handed over, whatever comes
        self._messages = Messages(_SPANS)
        self._spans, self._room = self._messages.address, _SPANS
        self._facts = array("q", bytes(8 * FACTS))
        self._facts_at = self._facts.buffer_info()[0]
        self._parts: list[bytes | bytearray | memoryview] = []
        self._use(bytearray(_BUFFER))
        self._end = 0
        self._make_room(4096)
        self._keys = _mask_keys()
        self._fd = -1  # the socket's, while it may be used here: not over TLS, not once it is being closed

    # --- bytes in ----------------------------------------------------------------------------------------------------

    def _use(self, buffer: bytearray) -> None:
        self._view = memoryview(buffer)
        self._base = address_of(np.frombuffer(buffer, np.uint8))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to."""
        return self._view[self._end :] if self._end else self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self._end += nbytes
        self._reads()

    def _head(self) -> None:
        """Give the answer to the handshake to the protocol; what follows it is frames, or the body of a refusal."""
        data = bytes(self._view[: self._end])
        size = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if size < len(_END_OF_HEAD):
            if len(data) > _HEAD_MAX:
                self._fail(f"the answer to the handshake has no end in {len(data)} bytes")
            return
        self._obey(data[:size])
        self._reads = self._frames if self._rules.state is OPEN else self._rest
        self._view[: len(data) - size] = data[size:]
        self._end = len(data) - size
        if not self.opened.done() and self._rules.state is OPEN:
            self.opened.set_result(None)
        if self._end:
            self._reads()

    def _frames(self) -> None:
        """Hand messages over, and every other frame to the protocol."""
        base, end, messages, facts = self._base, self._end, self._messages, self._facts
        at = 0
        while True:
            n = scan_frames(base + at, base + end, self._spans, self._room, MAX_MESSAGE, self._facts_at)
            at, why, extent = facts[0] - base, facts[1], facts[2]
            if n:
                messages.count = n
                self._on_messages(messages)
            if why == MORE:
                self._keep(at, extent)
                return
            if why == OTHER:
                self._obey(bytes(self._view[at : at + extent]))
                at += extent
            elif why == BAD:
                self._reads = self._rest
            if self._reads != self._frames:
                self._keep(at, 0)
                self._rest()
                return

    def _rest(self) -> None:
        """Give everything to the protocol: it says what is wrong, or waits for the end."""
        data = bytes(self._view[: self._end])
        self._end = 0
        self._obey(data)

    def _keep(self, at: int, extent: int) -> None:
        """Let the next read begin behind the piece that stands from `at` on, the beginning of `extent` bytes."""
        left = self._end - at
        if extent > len(self._view):
            before = self._view
            self._use(bytearray(extent + _BUFFER))
            self._view[:left] = before[at : at + left]
        elif left and at:
            self._view[:left] = self._view[at : at + left]
        self._end = left

    def _obey(self, data: bytes) -> None:
        """Let the protocol take `data`, and do what it wants."""
        rules = self._rules
        rules.receive_data(data)
        for event in rules.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._join(event)
        self._room = _SPANS if rules.current_size is None else 0  # a fragment may be followed by its kind only
        self._flush()
        if rules.handshake_exc is not None:
            self._fail(f"the WebSocket handshake failed: {rules.handshake_exc}")
        elif rules.parser_exc is not None:
            self._fail(f"the peer broke the protocol: {rules.parser_exc}")
        elif rules.close_rcvd is not None:
            self._reads = self._rest
            self._fd = -1
            self._transport.close()

    def _join(self, frame: Frame) -> None:
        """Collect a fragment; hand the message over with its last."""
        self._parts.append(frame.data)
        if not frame.fin:
            return
        whole = b"".join(self._parts)
        self._parts.clear()
        self._messages.put(whole)
        self._on_messages(self._messages)

    # --- bytes out ---------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send one text message; silently nothing once closed (``on_close`` tells)."""
        if self._rules.state is not OPEN:
            return
        size = len(message)
        if size + MASKED_HEADER_MAX > len(self._sending):
            self._make_room(2 * size + MASKED_HEADER_MAX)
        message = bytes(message)  # as it is, if it is bytes
        n = write_frame(id(message) + BYTES_AT, size, next(self._keys), self._sending_at)
        sent = 0
        if self._fd >= 0 and not self._transport.get_write_buffer_size():
            sent = max(0, _send_bytes(self._fd, self._sending_at, n))
            if sent == n:
                return  # full, or broken: the transport sees it too, and knows what to do
        self._transport.write(bytes(self._sending[sent:n]))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._fail(f"the peer has not read {MAX_UNSENT} bytes")

    def _make_room(self, size: int) -> None:
        room = bytearray(size)
        self._sending, self._sending_at = memoryview(room), address_of(np.frombuffer(room, np.uint8))

    def _flush(self) -> None:
        """Send what the protocol wants sent; an empty piece ends the connection."""
        for piece in self._rules.data_to_send():
            if piece:
                self._transport.write(piece)
            else:
                self._transport.close()

    # --- beginning and end -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        socket = transport.get_extra_info("socket")
        if os.name == "posix" and socket is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = socket.fileno()
            _open.append(self)
        request = self._rules.connect()
        request.headers["User-Agent"] = "hftlab"
        self._rules.send_request(request)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits, once."""
        self._fd = -1
        if self in _open:
            _open.remove(self)
        if exc is not None and not self.failure:
            self.failure = f"{type(exc).__name__}: {exc}"
        self._lost.set_result(None)
        if self.opened.done():
            if not self.opened.cancelled() and self.opened.exception() is None:
                self._on_close()
        else:
            self.opened.set_exception(ProtocolError(self.failure or "the peer closed during the WebSocket handshake"))

    def _fail(self, failure: str) -> None:
        """Say what went wrong and end the connection, once what the protocol had to say was written."""
        self.failure = self.failure or failure
        self._reads = self._rest
        self._fd = -1
        if not self.opened.done():
            self.opened.set_exception(ProtocolError(failure))
        self._transport.close()
        if self._transport.get_write_buffer_size() > 0:
            self._transport.abort()

    def abort(self) -> None:
        """Close it at once."""
        self._fd = -1
        self._transport.abort()

    async def close(self) -> None:
        """Say goodbye and close it; ``on_close`` is called."""
        self._fd = -1
        if self._rules.state is OPEN:
            self._rules.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        self._transport.close()
        done, _ = await asyncio.wait([self._lost], timeout=_CLOSE_S)
        if not done:
            self._transport.abort()
            await self._lost


class Poller:
    """Reads what comes on the open links of one event loop, for a host that does not sleep.

    Called in each turn of that loop. Its own reading goes on beside it: whoever comes first has the bytes.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = array("q", bytes(24 * _MOST_POLLED))
        self._at = self._sockets.buffer_info()[0]

    def turn(self) -> None:
        """Ask every socket for bytes, without sleep, for some 10 us; hand over the first that come."""
        links = [link for link in _open if link._fd >= 0 and link._loop is self._loop][:_MOST_POLLED]
        sockets, k = self._sockets, 0
        for link in links:
            sockets[k], sockets[k + 1], sockets[k + 2] = link._fd, link._base + link._end, len(link._view) - link._end
            k += 3
        if got := _read_any(self._at, len(links), _TURNS):
            link = links[got >> 32]
            try:
                link.buffer_updated(got & 0xFFFFFFFF)
            except Exception as error:  # as the event loop does for what it reads
                link.failure = link.failure or f"{type(error).__name__}: {error}"
                link.abort()
                self._loop.call_exception_handler({"message": "messages were not taken", "exception": error})


def _mask_keys() -> Iterator[int]:
    """Yield 32 bits that nobody can know before, without asking the system each time."""
    while True:
        yield from array("I", os.urandom(4096))


async def connect(
    url: str, on_messages: OnMessages, on_close: Callable[[], None], *, timeout_s: float = 5.0
) -> Link:
    """Return an open link to `url`.

    Parameters
    ----------
    url : str
        ws:// or wss://.
    on_messages, on_close : callable
        Called on the event loop.
    timeout_s : float
        For the connection and the handshake.

    Raises
    ------
    ConfigError
        If `url` is none.
    OSError, TimeoutError, ProtocolError
        If the connection cannot be made.
    """
    try:
        uri = parse_uri(url)
    except InvalidURI as error:
        raise ConfigError(f"url={url!r}; expected ws://host or wss://host: {error}") from error
    loop = asyncio.get_running_loop()
    secure = await asyncio.to_thread(ssl.create_default_context) if uri.secure else None
    link: Link | None = None
    try:
        async with asyncio.timeout(timeout_s):
            _, link = await loop.create_connection(
                lambda: Link(uri, on_messages, on_close), uri.host, uri.port, ssl=secure
            )
            await link.opened
    except BaseException as error:
        if link is not None:
            link.abort()
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{url}: no WebSocket handshake within {timeout_s:g} s") from None
        if isinstance(error, ProtocolError):
            raise ProtocolError(f"{url}: {error}") from None
        raise
    return link
