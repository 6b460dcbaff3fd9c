"""A link against raw frames on a socket: what one read brings is taken together, and nothing is lost or reordered."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest

from hftlab.feeds.transport import connect

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _frame(text: bytes, opcode: int = 1, fin: bool = True) -> bytes:
    assert len(text) < 126
    return bytes([opcode | (128 if fin else 0), len(text)]) + text


async def _received(wire: list[bytes], *, together: bool = True, transport: str = "picows") -> list[object]:
    """Serve `wire`, one write each, then close; return what the link was given: messages, lists, "closed"."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (key,) = (line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        await writer.drain()
        await reader.read(1)  # the client is ready
        for piece in wire:
            before = len(given)
            writer.write(piece)
            while len(given) == before:  # each piece is read by itself
                await asyncio.sleep(0.001)
        writer.close()

    given: list[object] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def on_close() -> None:
        given.append("closed")
        closed.set()

    link = await connect(
        f"ws://127.0.0.1:{port}/", given.append, on_close, on_messages=given.append if together else None,
        transport=transport,
    )  # fmt: skip
    link.send(b"go")
    await asyncio.wait_for(closed.wait(), 5)
    server.close()
    return given


def test_messages_of_one_read_come_as_one_list_and_a_single_one_alone() -> None:
    given = asyncio.run(_received([_frame(b"a"), _frame(b"b") + _frame(b"c") + _frame(b"d"), _frame(b"e")]))
    assert given == [b"a", [b"b", b"c", b"d"], b"e", "closed"]


def test_what_was_read_before_a_ping_a_fragment_or_the_close_is_not_held_back() -> None:
    half = _frame(b"ha", fin=False)
    given = asyncio.run(
        _received(
            [
                _frame(b"a") + _frame(b"b") + _frame(b"", opcode=9),
                _frame(b"c") + half,
                _frame(b"lf", opcode=0) + _frame(b"d"),
                _frame(b"e") + _frame(b"\x03\xe8", opcode=8),
            ]
        )
    )
    assert given == [[b"a", b"b"], [b"c"], [b"half", b"d"], [b"e"], "closed"]


@pytest.mark.parametrize("transport", ["picows", "websockets"])
def test_who_does_not_ask_for_lists_gets_messages(transport: str) -> None:
    given = asyncio.run(_received([_frame(b"a") + _frame(b"b")], together=False, transport=transport))
    assert given == [b"a", b"b", "closed"]
