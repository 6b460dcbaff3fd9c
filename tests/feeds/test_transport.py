"""A link against raw frames, against websockets' own parser, and against other people's servers."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from websockets.utils import accept_key

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.feeds.transport import MAX_MESSAGE, MAX_UNSENT, Link, Messages, Poller, connect
from hftlab.kernels.system import LINUX
from hftlab.testing.targets_frames import server_frame

WAIT_S = 20


def accepted(head: bytes) -> bytes:
    """Return the answer to a handshake."""
    (key,) = (line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
    )


class Wire(asyncio.Transport):
    """A transport without a socket: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


class Driven:
    """A link that is given its bytes by hand."""

    def __init__(self) -> None:
        self.reads: list[list[bytes]] = []
        self.link = Link(
            parse_uri("ws://venue/"), lambda messages: self.reads.append(list(messages)), lambda: None
        )
        self.wire = Wire()
        self.link.connection_made(self.wire)
        self.answer = accepted(self.wire.written)
        self.wire.written = b""

    def give(self, data: bytes) -> None:
        while data and not self.wire.closed:
            room = self.link.get_buffer(-1)
            n = min(len(room), len(data))
            room[:n] = data[:n]
            self.link.buffer_updated(n)
            data = data[n:]


def whole_messages(frames: list[Frame]) -> list[bytes]:
    """Return the messages that frames make."""
    found, parts = [], b""
    for frame in frames:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            parts += frame.data
            if frame.fin:
                found.append(parts)
                parts = b""
    return found


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Return opcodes and texts of a client's frames."""
    server = ServerProtocol(state=State.OPEN)
    server.receive_data(written)
    return [(int(event.opcode), bytes(event.data)) for event in server.events_received() if isinstance(event, Frame)]


_frames = st.builds(
    server_frame,
    st.one_of(st.binary(max_size=12), st.sampled_from([125, 126, 700, 65536, 300_000]).map(bytes)),
    st.sampled_from([1, 1, 1, 1, 1, 2, 0, 9, 10]),
    fin=st.sampled_from([True, True, True, False]),
).filter(lambda frame: frame[0] & 8 == 0 or (frame[0] > 127 and frame[1] < 126))
_fragmented = st.lists(st.binary(max_size=6), min_size=2, max_size=4).map(
    lambda parts: b"".join(
        server_frame(part, 1 if k == 0 else 0, fin=k == len(parts) - 1) + (server_frame(b"p", 9) if k == 0 else b"")
        for k, part in enumerate(parts)
    )
)
_ends = st.sampled_from([b"", b"", server_frame(b"\x03\xe8", 8), b"\xf1\x00", b"\x81\x81abcde", b"\x83\x00"])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(_frames, _fragmented), max_size=10), _ends, st.data())
def test_a_stream_cut_anywhere_gives_the_messages_and_answers_of_websockets_own_parser(
    frames: list[bytes], end: bytes, data: st.DataObject
) -> None:
    wire = b"".join(frames) + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))

    async def drive() -> Driven:
        driven = Driven()
        whole = driven.answer + wire
        places = [0, *(len(driven.answer) + cut for cut in cuts), len(whole)]
        for start, stop in pairwise(places):
            driven.give(whole[start:stop])
        return driven

    driven = asyncio.run(drive())
    theirs = ClientProtocol(parse_uri("ws://venue/"), state=State.OPEN, max_size=MAX_MESSAGE)
    theirs.receive_data(wire)
    events = [event for event in theirs.events_received() if isinstance(event, Frame)]
    assert [message for read in driven.reads for message in read] == whole_messages(events)
    assert answers(driven.wire.written) == answers(b"".join(theirs.data_to_send()))
    assert bool(driven.link.failure) == (theirs.parser_exc is not None)
    assert driven.wire.closed == (theirs.parser_exc is not None or theirs.close_rcvd is not None)


def test_what_was_read_with_the_answer_to_the_handshake_is_not_lost() -> None:
    async def drive(cut: int) -> Driven:
        driven = Driven()
        whole = driven.answer + server_frame(b"hello") + server_frame(b"again")
        driven.give(whole[:cut])
        driven.give(whole[cut:])
        assert driven.link.opened.done()
        return driven

    for cut in (1, 100, 129, 135, 140):
        driven = asyncio.run(drive(cut))
        assert [message for read in driven.reads for message in read] == [b"hello", b"again"]


def test_a_read_of_more_messages_than_there_are_spans_loses_none() -> None:
    async def drive() -> Driven:
        driven = Driven()
        driven.give(driven.answer)
        driven.give(server_frame(b"x") * 5000)
        return driven

    reads = asyncio.run(drive()).reads
    assert sum(map(len, reads)) == 5000 and len(reads) == 5


# ---- raw frames on a socket


async def _received(wire: list[bytes], then: bytes = b"") -> tuple[list[object], Link]:
    """Serve `wire`, one write each, then close; return what the link was given, read by read, and the link."""
    closed = asyncio.Event()

    async def serve_wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accepted(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        await reader.read(1)  # the client is ready
        for piece in wire:
            before = len(given)
            writer.write(piece)
            while len(given) == before:  # each piece is read by itself
                await asyncio.sleep(0.001)
        writer.write(then)
        if not then:
            writer.close()

    given: list[object] = []
    server = await asyncio.start_server(serve_wire, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def on_close() -> None:
        given.append("closed")
        closed.set()

    link = await connect(f"ws://127.0.0.1:{port}/", lambda messages: given.append(list(messages)), on_close)
    link.send(b"go")
    await asyncio.wait_for(closed.wait(), WAIT_S)
    link.send(b"nobody hears this")
    await link.close()
    server.close()
    return given, link


def test_messages_of_one_read_come_in_one_call() -> None:
    frame = server_frame
    given, link = asyncio.run(_received([frame(b"a"), frame(b"b") + frame(b"c") + frame(b"d"), frame(b"e")]))
    assert given == [[b"a"], [b"b", b"c", b"d"], [b"e"], "closed"]
    assert link.failure == ""


def test_what_was_read_before_a_ping_a_fragment_or_the_close_is_not_held_back() -> None:
    frame = server_frame
    wire = [
        frame(b"a") + frame(b"b") + frame(b"", 9),
        frame(b"c") + frame(b"ha", fin=False),
        frame(b"lf", 0) + frame(b"d"),
        frame(b"e") + frame(b"\x03\xe8", 8),
    ]
    given, _ = asyncio.run(_received(wire))
    assert given == [[b"a", b"b"], [b"c"], [b"half"], [b"d"], [b"e"], "closed"]


@pytest.mark.parametrize(
    ("garbage", "word"),
    [
        (b"\xff\xff\xff\xff\xff\xff", "opcode"),
        (b"\x81\x85abcdefghi", "masking"),
        (server_frame(b"part", 0), "continuation"),
        (b"\x82\x7f" + (MAX_MESSAGE + 1).to_bytes(8, "big"), "16777217"),
        (server_frame(b"a", fin=False) + server_frame(b"b"), "continuation"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_named_and_left(garbage: bytes, word: str) -> None:
    given, link = asyncio.run(_received([server_frame(b"a")], then=garbage))
    assert given == [[b"a"], "closed"]
    assert link.failure.startswith("the peer broke the protocol") and word in link.failure


def test_a_peer_that_does_not_read_is_cut() -> None:
    async def scenario() -> Link:
        closed, release = asyncio.Event(), asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(accepted(await reader.readuntil(b"\r\n\r\n")))
            cast(asyncio.Transport, writer.transport).pause_reading()
            await release.wait()
            writer.transport.abort()

        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = await connect(f"ws://127.0.0.1:{port}/", lambda messages: None, closed.set)
        for _ in range(200):
            link.send(bytes(65536))
        await asyncio.wait_for(closed.wait(), WAIT_S)
        release.set()
        server.close()
        return link

    assert asyncio.run(scenario()).failure == f"the peer has not read {MAX_UNSENT} bytes"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_messages_that_the_socket_takes_in_pieces_arrive_whole_and_in_order(loop: str) -> None:
    sent = [bytes([65 + k]) * (30_000 + k) for k in range(20)]
    came: list[bytes] = []

    async def slow(socket: ServerConnection) -> None:
        await asyncio.sleep(0.1)
        async for message in socket:
            assert isinstance(message, str)
            came.append(message.encode())

    async def scenario() -> None:
        async with serve(slow, "127.0.0.1", 0, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            link = await connect(f"ws://127.0.0.1:{port}/", lambda messages: None, lambda: None)
            socket = link._transport.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 8192)
            for message in sent:
                link.send(message)
            assert link._transport.get_write_buffer_size() > 0
            while len(came) < len(sent):
                await asyncio.sleep(0.001)
            await link.close()

    _run(scenario, loop)
    assert came == sent


# ---- a host that does not sleep


async def _polled(wire: bytes, on_messages: Callable[[Messages], None], seen: list[str]) -> Link:
    """Return a link whose bytes `wire` were read by a poller alone: the event loop had no turn meanwhile."""
    closed, send = asyncio.Event(), asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve_wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accepted(await reader.readuntil(b"\r\n\r\n")))
        writers.append(writer)
        await send.wait()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: seen.append(str(context["exception"])))
    server = await asyncio.start_server(serve_wire, "127.0.0.1", 0)
    link = await connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", on_messages, closed.set)
    poller = Poller()
    poller.turn()  # nothing has come
    writers[0].write(wire)
    for _ in range(1000):
        poller.turn()
    writers[0].close()
    send.set()
    poller.turn()  # the end is not for it
    await asyncio.wait_for(closed.wait(), WAIT_S)
    poller.turn()  # nobody is left to ask
    server.close()
    return link


@pytest.mark.skipif(not LINUX, reason="sockets are read by kernels on Linux only")
def test_a_poller_reads_whole_messages_and_leaves_the_end_to_the_loop() -> None:
    came: list[bytes] = []
    frames = [server_frame(bytes([k]) * (10 * k)) for k in range(1, 60)]
    link = asyncio.run(_polled(b"".join(frames), lambda messages: came.extend(messages), []))
    assert came == [bytes([k]) * (10 * k) for k in range(1, 60)]
    assert link.failure == ""


@pytest.mark.skipif(not LINUX, reason="sockets are read by kernels on Linux only")
def test_who_fails_to_take_what_a_poller_read_loses_the_link_and_it_is_told() -> None:
    def fail(messages: Messages) -> None:
        raise ValueError("no room")

    seen: list[str] = []
    link = asyncio.run(_polled(server_frame(b"a"), fail, seen))
    assert link.failure == "ValueError: no room" and seen == ["no room"]


# ---- connecting


async def _answering(answer: bytes | None, url: str = "ws://127.0.0.1:{}/", timeout_s: float = 5.0) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    try:
        await connect(
            url.format(server.sockets[0].getsockname()[1]),
            lambda messages: pytest.fail("a message"), lambda: pytest.fail("closed, but never open"),
            timeout_s=timeout_s,
        )  # fmt: skip
    finally:
        server.close()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "error", "word"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", ProtocolError, "403"),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\nwait", ProtocolError, "closed during|429"),
        (b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", ProtocolError, "Accept"),
        (b"SSH-2.0-server\r\n\r\n", ProtocolError, "HTTP"),
        (b"x" * 70_000, ProtocolError, "no end"),
        (b"", ProtocolError, "closed during"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_handshake_is_an_error_that_says_so(
    answer: bytes, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        asyncio.run(_answering(answer))


def test_silence_a_wrong_address_and_a_closed_port_are_told() -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        asyncio.run(_answering(None, timeout_s=0.05))
    with pytest.raises(ConfigError, match="http://"):
        asyncio.run(_answering(b"", "http://127.0.0.1:{}/"))
    with pytest.raises(OSError, match=r"refused|Connect"):
        asyncio.run(connect("ws://127.0.0.1:1/", lambda messages: None, lambda: None))


# ---- other people's servers


class Collected:
    """What came, and a way to wait for it."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.closed = asyncio.Event()

    def take(self, messages: Messages) -> None:
        self.messages += messages

    async def until(self, n: int) -> None:
        while len(self.messages) < n and not self.closed.is_set():
            await asyncio.sleep(0.001)


def _run(scenario: Callable[[], Awaitable[None]], loop: str) -> None:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(scenario(), WAIT_S))  # type: ignore[arg-type]  # a coroutine, as all awaitables here


BIG = bytes(range(256)) * 20_480  # 5 MiB


async def _websockets_handler(socket: ServerConnection) -> None:
    async for message in socket:
        assert isinstance(message, str)
        if message == "fragments":
            await socket.send(["one ", "and ", "two"])
        elif message == "ping":
            await (await socket.ping(b"payload"))
            await socket.send("ponged")
        elif message == "big":
            await socket.send(BIG)
        elif message == "many":
            for k in range(3000):
                await socket.send(str(k))
        elif message == "bye":
            await socket.close(4000, "enough")
        else:
            await socket.send(message)


async def _talk(port: int, scheme: str = "ws") -> None:
    got = Collected()
    link = await connect(f"{scheme}://localhost:{port}/", got.take, got.closed.set)
    asked = [b"fragments", b"ping", b"big", "what about ütf".encode(), b"e" * 70_000]
    for n, message in enumerate(asked, 1):
        link.send(message)
        await got.until(n)
    assert got.messages == [b"one and two", b"ponged", BIG, *asked[3:]]
    link.send(b"many")
    await got.until(3005)
    assert got.messages[5:] == [str(k).encode() for k in range(3000)]
    link.send(b"bye")
    await got.closed.wait()
    assert link.failure == ""
    await link.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_websockets_server_with_fragments_pings_and_large_messages(loop: str) -> None:
    async def scenario() -> None:
        async with serve(_websockets_handler, "localhost", 0, compression=None) as server:
            await _talk(next(iter(server.sockets)).getsockname()[1])

    _run(scenario, loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_same_over_tls_with_a_certificate_of_our_own(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def scenario() -> None:
        async with serve(_websockets_handler, "localhost", 0, ssl=context, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(f"wss://localhost:{port}/", lambda messages: None, lambda: None)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            await _talk(port, "wss")

    _run(scenario, loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_aiohttp_server_and_a_close_from_our_side(loop: str) -> None:
    ended: list[int | None] = []

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=0.05)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        ended.append(socket.close_code)
        return socket

    async def scenario() -> None:
        app = web.Application()
        app.router.add_get("/stream", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        got = Collected()
        link = await connect(f"ws://127.0.0.1:{port}/stream?a=b", got.take, got.closed.set)
        for k in range(10):
            link.send(b"message %d" % k)
            await asyncio.sleep(0.03)  # the server's pings are answered meanwhile, or it would leave
        await got.until(10)
        assert got.messages == [b"message %d" % k for k in range(10)]
        await link.close()
        assert got.closed.is_set() and link.failure == ""
        await runner.cleanup()

    _run(scenario, loop)
    assert ended == [1000]
