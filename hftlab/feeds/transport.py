"""One small interface over two WebSocket libraries.

The hot path takes picows: its callbacks are synchronous, so a frame's bytes reach the decoder in the same loop turn
that read them (0.4 us a frame), and an order leaves before the loop turns. ``websockets`` serves everything else and
every platform picows has no wheel for; the interface is the same, one task a connection and some 5 us a frame.

A link calls ``on_message(bytes)`` for each whole message and ``on_close()`` once, whatever ended it. Who gives
``on_messages(list)`` as well gets messages that one read of the socket brought together (picows) as one list, in the
same loop turn and not later: what arrived at once is cheaper to take at once. Pings are answered by both libraries.
Message sizes are bounded at 16 MiB, and so is a list by the size of a read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from hftlab.core.errors import ConfigError, ProtocolError

__all__ = ["Link", "connect"]

MAX_MESSAGE = 16 * 2**20
MAX_UNSENT = 2**20
"""Bytes that may wait for a peer that does not read; beyond it the link is cut, which tells everybody."""
OnMessage = Callable[[bytes], None]
OnMessages = Callable[[list[bytes]], None]


class Link(Protocol):
    """An open connection."""

    def send(self, message: bytes) -> None:
        """Send one text message; silently nothing once closed (``on_close`` tells)."""
        ...

    async def close(self) -> None:
        """Close it; ``on_close`` is called."""
        ...


async def connect(
    url: str,
    on_message: OnMessage,
    on_close: Callable[[], None],
    *,
    on_messages: OnMessages | None = None,
    transport: str = "picows",
    timeout_s: float = 5.0,
) -> Link:
    """Return an open link to `url`.

    Parameters
    ----------
    url : str
        ws:// or wss://.
    on_message, on_close : callable
        Called on the event loop.
    on_messages : callable, optional
        Called, on the event loop, instead of `on_message` with two or more messages that were read together.
    transport : str
        picows or websockets.
    timeout_s : float
        For the handshake.

    Raises
    ------
    ConfigError
        If `transport` is neither.
    OSError, TimeoutError, ProtocolError
        If the connection cannot be made.
    """
    if transport == "picows":
        return await _connect_picows(url, on_message, on_messages, on_close, timeout_s)
    if transport == "websockets":
        return await _connect_websockets(url, on_message, on_close, timeout_s)
    raise ConfigError(f"transport={transport!r}; expected picows or websockets")


async def _connect_picows(
    url: str, on_message: OnMessage, on_messages: OnMessages | None, on_close: Callable[[], None], timeout_s: float
) -> Link:
    import picows

    text, binary, continuation, close = (
        picows.WSMsgType.TEXT, picows.WSMsgType.BINARY, picows.WSMsgType.CONTINUATION, picows.WSMsgType.CLOSE,
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    class Listener(picows.WSListener):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[bytes] = []
            self.held = 0
            self.read: list[bytes] = []

        def take(self, message: bytes, is_last: bool) -> None:
            if on_messages is None or (is_last and not self.read):
                on_message(message)
                return
            if not self.read:
                loop.call_soon(self.flush)  # if the last is a ping, picows answers it and does not tell
            self.read.append(message)
            if is_last:
                self.flush()

        def flush(self) -> None:
            if self.read:
                read, self.read = self.read, []
                on_messages(read)  # type: ignore[misc]  # nothing is read together without it

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            kind = frame.msg_type
            if kind == text or kind == binary or kind == continuation:
                payload = frame.get_payload_as_bytes()
                if frame.fin and not self.parts:
                    self.take(payload, frame.last_in_buffer)
                    return
                self.parts.append(payload)
                self.held += len(payload)
                if self.held > MAX_MESSAGE:
                    transport.disconnect()
                    return
                if frame.fin:
                    whole, self.parts, self.held = b"".join(self.parts), [], 0
                    self.take(whole, frame.last_in_buffer)
                elif frame.last_in_buffer:
                    self.flush()
                return
            if frame.last_in_buffer:
                self.flush()
            if kind == close:
                transport.disconnect()

        def on_ws_disconnected(self, transport: Any) -> None:
            self.flush()
            on_close()

    try:
        transport, _ = await picows.ws_connect(
            Listener, url, websocket_handshake_timeout=timeout_s, max_frame_size=MAX_MESSAGE
        )
    except picows.WSError as error:
        raise ProtocolError(f"{url}: the WebSocket handshake failed: {error}") from error

    class PicowsLink:
        def send(self, message: bytes) -> None:
            transport.send(text, message)
            if transport.underlying_transport.get_write_buffer_size() > MAX_UNSENT:
                transport.disconnect(False)

        async def close(self) -> None:
            transport.disconnect()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(transport.wait_disconnected(), timeout_s)

    return PicowsLink()


async def _connect_websockets(url: str, on_message: OnMessage, on_close: Callable[[], None], timeout_s: float) -> Link:
    from websockets.asyncio.client import connect as ws_connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    try:
        socket = await ws_connect(
            url,
            open_timeout=timeout_s,
            close_timeout=timeout_s,
            max_size=MAX_MESSAGE,
            ping_interval=None,
            compression=None,
        )
    except InvalidHandshake as error:
        raise ProtocolError(f"{url}: the WebSocket handshake failed: {error}") from error
    outgoing: asyncio.Queue[bytes] = asyncio.Queue(1024)

    async def read() -> None:
        try:
            while True:
                on_message(await socket.recv(decode=False))
        except ConnectionClosed:
            pass
        finally:
            writer.cancel()
            on_close()

    async def write() -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send((await outgoing.get()).decode())

    writer = asyncio.create_task(write())
    reader = asyncio.create_task(read())

    class WebsocketsLink:
        def send(self, message: bytes) -> None:
            if reader.done():
                return
            if outgoing.full():
                socket.transport.abort()
            else:
                outgoing.put_nowait(message)

        async def close(self) -> None:
            await socket.close()
            await reader

    return WebsocketsLink()
