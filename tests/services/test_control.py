"""The control socket's client against servers that answer well, badly and not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hftlab.core.errors import ConfigError, ProtocolError, Refused
from hftlab.services import control
from hftlab.services.control import NotRunning, TimedOut

Serve = Callable[[Callable[[socket.socket, bytes], None]], Path]


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Return a function that serves one connection at a session's control socket by the function given."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = home / "maker"
    folder.mkdir()

    def start(answer: Callable[[socket.socket, bytes], None]) -> Path:
        server.bind(str(folder / "control.sock"))
        server.listen()

        def once() -> None:
            connection = server.accept()[0]
            with connection:
                answer(connection, connection.recv(65536))

        threading.Thread(target=once, daemon=True).start()
        return folder

    yield start
    server.close()


def test_a_request_carries_its_fields_and_returns_the_reply(serve: Serve) -> None:
    asked = []

    def answer(connection: socket.socket, line: bytes) -> None:
        asked.append(line)
        for part in (b'{"ok": true, "open"', b": 2}\n"):  # a reply may come in pieces
            connection.sendall(part)

    assert control.request(serve(answer), "halt", reason="news") == {"ok": True, "open": 2}
    assert asked == [b'{"do": "halt", "reason": "news"}\n']


def test_a_refusal_raises_the_traders_own_sentence(serve: Serve) -> None:
    folder = serve(lambda connection, _: connection.sendall(b'{"ok": false, "error": "still starting"}\n'))
    with pytest.raises(Refused, match="resume: still starting"):
        control.request(folder, "resume")


@pytest.mark.parametrize("reply", [b"hello\n", b"[1]\n"])
def test_an_answer_that_is_no_object_is_a_protocol_error(serve: Serve, reply: bytes) -> None:
    with pytest.raises(ProtocolError, match="the answer from"):
        control.request(serve(lambda connection, _: connection.sendall(reply)), "status")


def test_silence_is_timed_out_and_says_what_was_asked(serve: Serve) -> None:
    forever = threading.Event()
    folder = serve(lambda *_: (forever.wait(5), None)[1])
    with pytest.raises(TimedOut, match=r"no answer to 'status' from .* within 0.1 s"):
        control.request(folder, "status", 0.1)
    forever.set()


def test_a_process_with_a_full_queue_is_there_and_does_not_answer(home: Path) -> None:
    folder = home / "maker"
    folder.mkdir()
    hung = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hung.bind(str(folder / "control.sock"))
    hung.listen(1)
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
    for one in waiting:
        one.connect(str(folder / "control.sock"))
    with pytest.raises(TimedOut, match="no answer to 'halt'"):
        control.request(folder, "halt", 0.1)
    threading.Timer(0.1, hung.accept).start()  # one place gets free: the next request is let in, and waits
    with pytest.raises(TimedOut) as caught:
        control.request(folder, "halt", 1.0)
    assert not isinstance(caught.value.__cause__, BlockingIOError)
    for one in (*waiting, hung):
        one.close()


def test_a_session_without_a_process_is_not_running(home: Path) -> None:
    folder = home / "maker"
    folder.mkdir()
    with pytest.raises(NotRunning, match=r"session maker is not running, so it cannot stop; .*trader.log"):
        control.request(folder, "stop")
    left_over = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left_over.bind(str(folder / "control.sock"))
    left_over.close()  # what a killed trader leaves: a file that nobody listens at
    with pytest.raises(NotRunning):
        control.request(folder, "stop")


def test_a_process_that_ends_before_it_answers_is_not_running(serve: Serve) -> None:
    with pytest.raises(NotRunning) as caught:
        control.request(serve(lambda *_: None), "status")
    assert "ended before it answered" in str(caught.value.__cause__)


def test_errors_of_the_socket_belong_to_the_tree_of_errors() -> None:
    assert issubclass(NotRunning, ConfigError)
    assert issubclass(TimedOut, TimeoutError)
