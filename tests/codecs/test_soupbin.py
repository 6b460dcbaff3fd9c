"""SoupBinTCP: login, data, heartbeats, every breach, reconnecting, and real loopback sockets that are cut."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.codecs.soupbin import (
    Closed,
    Debug,
    EndOfSession,
    Gap,
    LoginAccepted,
    LoginRejected,
    LoginRequest,
    Sequenced,
    SoupBinClient,
    SoupBinConnection,
    SoupBinServer,
    SoupEvent,
    Unsequenced,
)
from hftlab.core.errors import ConfigError, LocalError
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_itch import TARGETS

S = 1_000_000_000
ACCEPTED = b"\0\x1fA" + b"S1".rjust(10) + b"1".rjust(20)


def server_of(n: int, **times: int) -> SoupBinServer:
    server = SoupBinServer("S1", {"user": "word"}, **times)
    for k in range(1, n + 1):
        assert server.append(b"%d" % k) == k
    return server


def logged_in(server: SoupBinServer, client: SoupBinClient) -> tuple[SoupBinConnection, list[SoupEvent]]:
    there = server.connection(0)
    client.connect(0)
    there.receive(client.to_send(0), 0)
    return there, client.receive(there.to_send(0), 0)


def test_login_is_laid_out_as_documented() -> None:
    client = SoupBinClient("user", "word", session="S1", next_sequence=42)
    client.connect(0)
    assert client.to_send(0) == b"\0\x2fL" + b"user  word      " + b"S1".rjust(10) + b"42".rjust(20)
    assert client.to_send(0) == b""


def test_a_client_gets_the_stream_from_the_number_it_asks_for() -> None:
    _, events = logged_in(server_of(5), SoupBinClient("user", "word", next_sequence=4))
    assert events == [LoginAccepted("S1", 4), Sequenced(4, b"4"), Sequenced(5, b"5")]


@pytest.mark.parametrize(("asked", "first"), [(0, 4), (1, 1), (4, 4), (99, 4)])
def test_login_sequence_zero_is_from_now_on_and_never_beyond_what_comes_next(asked: int, first: int) -> None:
    client = SoupBinClient("user", "word", next_sequence=asked)
    server = server_of(3)
    there, events = logged_in(server, client)
    assert events[0] == LoginAccepted("S1", first)
    server.append(b"new")
    assert client.receive(there.to_send(0), 0) == [Sequenced(4, b"new")] and client.next_sequence == 5


@pytest.mark.parametrize(
    ("user", "password", "session", "code"),
    [("user", "none", "", "A"), ("else", "word", "", "A"), ("user", "word", "S9", "S")],
)
def test_a_refused_login_says_why_and_ends_both_sides(user: str, password: str, session: str, code: str) -> None:
    client = SoupBinClient(user, password, session=session)
    there, events = logged_in(server_of(1), client)
    assert events[0] == LoginRejected(code) and isinstance(events[1], Closed) and not events[1].is_breach
    assert not client.is_open and not there.is_open and not client.is_logged_in


def test_reconnecting_takes_the_stream_up_where_it_broke_off() -> None:
    server, client = server_of(3), SoupBinClient("user", "word")
    logged_in(server, client)
    server.append(b"4")
    _, events = logged_in(server, client)
    assert events == [LoginAccepted("S1", 4), Sequenced(4, b"4")]
    assert client.session == "S1"


def test_a_server_that_begins_behind_what_was_asked_for_tells_a_gap() -> None:
    client = SoupBinClient("user", "word", next_sequence=4)
    client.connect(0)
    events = client.receive(ACCEPTED[:-1] + b"9" + b"\0\2Sx", 0)
    assert events == [LoginAccepted("S1", 9), Gap(4, 9), Sequenced(9, b"x")]


def test_a_server_that_goes_back_tells_a_gap_and_nothing_comes_twice() -> None:
    client = SoupBinClient("user", "word")
    logged_in(server_of(3), client)
    client.connect(0)
    assert client.to_send(0)[-20:] == b"4".rjust(20)
    events = client.receive(ACCEPTED[:-1] + b"2" + b"\0\2S2\0\2S3\0\2S4", 0)
    assert events == [LoginAccepted("S1", 2), Gap(4, 2), Sequenced(4, b"4")]
    assert client.repeated == 2 and client.next_sequence == 5


def test_who_asks_for_what_comes_next_has_no_gap() -> None:
    _, events = logged_in(server_of(3), SoupBinClient("user", "word", next_sequence=0))
    assert events == [LoginAccepted("S1", 4)]


def test_bytes_may_come_in_any_pieces() -> None:
    client, whole = SoupBinClient("user", "word"), ACCEPTED + b"\0\3Sab\0\1H\0\1S\0\4+hey\0\3Uup"
    client.connect(0)
    events = [event for k in range(len(whole)) for event in client.receive(whole[k : k + 1], 0)]
    assert events == [
        LoginAccepted("S1", 1), Sequenced(1, b"ab"), Sequenced(2, b""), Debug("hey"), Unsequenced(b"up")
    ]  # fmt: skip


def test_data_flows_up_unsequenced_and_debug_text_down() -> None:
    client = SoupBinClient("user", "word")
    there, _ = logged_in(server_of(0), client)
    client.send(b"order")
    assert there.receive(client.to_send(0), 0) == [Unsequenced(b"order")]
    there.debug("slow down")
    there.send(b"direct")
    assert client.receive(there.to_send(0), 0) == [Debug("slow down"), Unsequenced(b"direct")]
    client.logout()
    assert there.receive(client.to_send(0), 0) == [Closed("the client logged out")]


def test_each_side_sends_a_heartbeat_after_a_second_of_its_own_silence() -> None:
    client = SoupBinClient("user", "word")
    there, _ = logged_in(server_of(0), client)
    for end, heartbeat in ((client, b"\0\1R"), (there, b"\0\1H")):
        assert end.poll(S - 1) == [] and end.to_send(S - 1) == b""
        assert end.deadline_ns == S
        assert end.poll(S) == [] and end.to_send(S) == heartbeat
        assert end.deadline_ns == 2 * S


def test_sending_data_puts_the_heartbeat_off() -> None:
    client, server = SoupBinClient("user", "word"), server_of(0)
    there, _ = logged_in(server, client)
    server.append(b"x")
    there.to_send(S // 2)
    there.poll(S)
    assert there.to_send(S) == b"" and there.deadline_ns == S // 2 + S


def test_a_silent_peer_is_given_up_after_the_timeout() -> None:
    client = SoupBinClient("user", "word", timeout_ns=15 * S)
    there, _ = logged_in(server_of(0), client)
    client.receive(b"\0\1H", 2 * S)
    assert client.poll(17 * S - 1) == []
    assert client.poll(17 * S) == [Closed("nothing heard for 15.0 s; expected a heartbeat each second")]
    assert isinstance(there.poll(15 * S)[0], Closed) and there.deadline_ns is None
    assert client.receive(b"\0\1H", 18 * S) == [] and client.poll(99 * S) == []


def test_a_client_that_does_not_log_in_is_closed() -> None:
    there = server_of(0, timeout_ns=60 * S).connection(5)
    assert there.poll(5 + 30 * S - 1) == [] and there.deadline_ns is not None
    assert there.poll(5 + 30 * S) == [Closed("no login in time")]


def test_the_end_of_a_session_is_told_after_its_last_message() -> None:
    client, server = SoupBinClient("user", "word"), server_of(2)
    server.end()
    there, events = logged_in(server, client)
    assert events[1:] == [Sequenced(1, b"1"), Sequenced(2, b"2"), EndOfSession(3), Closed("the session has ended")]
    assert there.to_send(0) == b"" and client.is_ended
    with pytest.raises(LocalError, match="ended: True"):
        server.append(b"late")


def test_a_slow_client_costs_no_memory_and_gets_everything_piece_by_piece() -> None:
    client, server = SoupBinClient("user", "word"), server_of(1000)
    there = server.connection(0)
    client.connect(0)
    there.receive(client.to_send(0), 0)
    pieces, heard = [], 0
    while piece := there.to_send(0, limit=100):
        pieces.append(len(piece))
        heard += sum(isinstance(event, Sequenced) for event in client.receive(piece, 0))
    assert heard == 1000 and max(pieces) < 110


CLIENT_BREACHES = {
    "a packet of length 0": b"\0\0",
    "packet type 'X' with 0 bytes": b"\0\1X",
    "packet type 'A' with 3 bytes; expected 30 to 30": b"\0\4A123",
    "packet type 'H' with 2 bytes; expected 0 to 0": b"\0\3Hxx",
    "packet type 'S' before the login": b"\0\2Sx",
    "packet type 'Z' before the login": b"\0\1Z",
    "which is no number": ACCEPTED[:-1] + b"x",
    "packet type 'A' after the login": ACCEPTED * 2,
    "logged in to 'S2'": ACCEPTED.replace(b"S1", b"S2"),
}


@pytest.mark.parametrize("reason", CLIENT_BREACHES)
def test_a_breach_by_the_server_closes_and_says_what(reason: str) -> None:
    client = SoupBinClient("user", "word", session="S1")
    client.connect(0)
    events = client.receive(CLIENT_BREACHES[reason] + b"\0\2Sx", 0)
    last = events[-1]
    assert isinstance(last, Closed) and last.is_breach and last.by_remote and reason in last.reason
    assert not client.is_open and client.next_sequence == 1


LOGIN = b"\0\x2fL" + b"user  word      " + b" " * 10 + b"1".rjust(20)
SERVER_BREACHES = {
    "packet type 'U' before login": b"\0\2Ux",
    "a second login": LOGIN * 2,
    "packet type 'S' with 1 bytes": LOGIN + b"\0\2Sx",
    "packet type 'L' with 5 bytes; expected 46 to 46": b"\0\6Luser ",
}


@pytest.mark.parametrize("reason", SERVER_BREACHES)
def test_a_breach_by_the_client_closes_and_says_what(reason: str) -> None:
    there = server_of(1).connection(0)
    last = there.receive(SERVER_BREACHES[reason], 0)[-1]
    assert isinstance(last, Closed) and last.is_breach and reason in last.reason


def test_a_login_with_a_number_that_is_none_is_refused() -> None:
    there = server_of(1).connection(0)
    events = there.receive(LOGIN[:-1] + b"x", 0)
    assert events[0] == LoginRequest("user", "", -1) and there.to_send(0) == b"\0\2JS"


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    client = SoupBinClient("user", "word")
    with pytest.raises(LocalError, match="logged in: False"):
        client.send(b"x")
    with pytest.raises(LocalError, match="connect first"):
        client.logout()
    there, _ = logged_in(server_of(0), client)
    with pytest.raises(LocalError, match="at most 65534 fit"):
        there.send(bytes(65_535))
    with pytest.raises(LocalError, match="bytes wait to be sent"):
        for _ in range(100):
            client.send(bytes(60_000))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="user='a long user'"):
        SoupBinClient("a long user", "word")
    with pytest.raises(ConfigError, match="next_sequence=-1"):
        SoupBinClient("user", "word", next_sequence=-1)
    with pytest.raises(ConfigError, match="expected 0 < heartbeat < timeout"):
        SoupBinClient("user", "word", heartbeat_ns=S, timeout_ns=S)
    with pytest.raises(ConfigError, match="session is blank"):
        SoupBinServer(" ", {})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_a_stream_that_breaks_at_any_byte_comes_through_once_and_in_order(seed: int, n: int) -> None:
    chance = random.Random(seed)
    server, client = server_of(0), SoupBinClient("user", "word")
    expected = [chance.randbytes(chance.randrange(6)) for _ in range(n)]
    heard: list[bytes] = []
    given_ = 0
    while not client.is_ended:
        there = server.connection(0)
        client.connect(0)
        for _ in range(chance.randrange(1, 30)):
            if given_ < n:
                server.append(expected[given_])
                given_ += 1
            elif not server.is_ended:
                server.end()
            there.receive(client.to_send(0), 0)
            flow = there.to_send(0, limit=chance.randrange(1, 40))
            breaks = chance.random() < 0.1
            for event in client.receive(flow[: chance.randrange(len(flow) + 1)] if breaks else flow, 0):
                if isinstance(event, Sequenced):
                    assert event.sequence == len(heard) + 1
                    heard.append(event.message)
                assert not (isinstance(event, Closed) and event.is_breach)
            if breaks or client.is_ended:
                break
    assert heard == expected


def test_a_session_over_real_sockets_survives_being_cut_many_times() -> None:
    n, chance = 5000, random.Random(3)
    server = server_of(n)
    server.end()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    there = server.connection(time.monotonic_ns())
                    room = chance.randrange(2_000, 12_000)  # bytes until the line breaks
                    try:
                        while there.is_open and room > 0:
                            data = connection.recv(4096)
                            if not data:
                                break
                            there.receive(data, time.monotonic_ns())
                            while room > 0 and (out := there.to_send(time.monotonic_ns(), limit=1000)):
                                connection.sendall(out[:room])
                                room -= len(out)
                    except OSError:
                        pass
                if room > 0:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client, heard, logins = SoupBinClient("user", "word"), [], 0
        while not client.is_ended:
            with socket.create_connection(listener.getsockname(), timeout=10) as line:
                client.connect(time.monotonic_ns())
                logins += 1
                line.sendall(client.to_send(time.monotonic_ns()))
                while not client.is_ended and (data := line.recv(777)):
                    events = client.receive(data, time.monotonic_ns())
                    heard += [event for event in events if isinstance(event, Sequenced)]
                    assert not any(isinstance(event, Closed) and event.is_breach for event in events)
        thread.join(10)
    assert [event.sequence for event in heard] == list(range(1, n + 1))
    assert [event.message for event in heard] == [b"%d" % k for k in range(1, n + 1)] and logins > 3


def test_a_hundred_thousand_mutated_streams_are_survived() -> None:
    feed, seeds = TARGETS["soupbin"]()
    fuzz(feed, seeds, 100_000)
