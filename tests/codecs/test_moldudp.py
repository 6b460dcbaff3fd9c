"""MoldUDP64: gaps, two lines, requests and their limits, and a real loopback socket with packets lost on purpose."""

from __future__ import annotations

import random
import socket
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.codecs.moldudp import (
    Data,
    EndOfSession,
    Lost,
    MoldEvent,
    MoldUDPClient,
    MoldUDPServer,
    Request,
    split_blocks,
)
from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_itch import TARGETS

MS = 1_000_000


def server_of(n: int, **settings_: int) -> tuple[MoldUDPServer, list[bytes]]:
    server = MoldUDPServer("S1", **settings_)
    return server, [server.publish([b"%d" % k])[0] for k in range(1, n + 1)]


def said(events: list[MoldEvent]) -> list[bytes]:
    return [message for event in events if isinstance(event, Data) for message in split_blocks(event.blocks)]


def test_a_packet_is_laid_out_as_documented() -> None:
    packet, = MoldUDPServer("NASDAQ").publish([b"ab", b""])  # fmt: skip
    assert packet == b"NASDAQ    " + struct.pack(">QH", 1, 2) + b"\0\2ab" + b"\0\0"


def test_messages_in_order_pass_at_once() -> None:
    _, packets = server_of(3)
    client = MoldUDPClient(next_sequence=1)
    assert [said(client.receive(packet, 0)) for packet in packets] == [[b"1"], [b"2"], [b"3"]]
    assert client.deadline_ns is None and client.next_sequence == 4


def test_a_client_without_a_start_begins_with_the_first_packet() -> None:
    _, packets = server_of(5)
    client = MoldUDPClient()
    assert said(client.receive(packets[3], 0)) == [b"4"] and client.session == b"S1        "


def test_a_gap_is_asked_for_after_the_wait_and_filled_in_order() -> None:
    server, packets = server_of(5)
    client = MoldUDPClient(next_sequence=1, wait_ns=MS, retry_ns=10 * MS)
    assert client.receive(packets[3], 0) == [] and client.missing == 3
    assert client.deadline_ns == MS and client.poll(MS - 1) == []
    (asked,) = client.poll(MS)
    assert asked == Request(1, 3, b"S1        " + struct.pack(">QH", 1, 3))
    answer = server.answer(asked.packet) if isinstance(asked, Request) else None
    assert answer is not None
    assert said(client.receive(answer, 2 * MS)) == [b"1", b"2", b"3", b"4"]
    assert client.deadline_ns is None and client.poll(10**12) == []


def test_the_other_line_fills_a_gap_before_anything_is_asked() -> None:
    _, packets = server_of(4)
    client = MoldUDPClient(next_sequence=1)
    events: list[MoldEvent] = []
    for packet, line in zip(packets, (0, 1, 0, 0), strict=True):
        events += client.receive(packet, 0, line)
    assert said(events) == [b"1", b"2", b"3", b"4"]
    for packet in packets:
        assert client.receive(packet, 1, 1) == []
    assert (client.duplicates, client.packets, client.first_from) == (4, {0: 3, 1: 5}, {0: 3, 1: 1})


def test_lines_that_packetise_differently_make_one_stream() -> None:
    a, b = MoldUDPServer("S1"), MoldUDPServer("S1")
    (first,), (second,) = a.publish([b"1", b"2", b"3"]), a.publish([b"4"])
    (other,) = b.publish([b"1", b"2"])
    (late,) = b.publish([b"3", b"4", b"5"])
    client = MoldUDPClient(next_sequence=1)
    assert said(client.receive(other, 0, 1) + client.receive(first, 0, 0)) == [b"1", b"2", b"3"]
    assert said(client.receive(late, 0, 1)) == [b"4", b"5"] and client.receive(second, 0, 0) == []


def test_a_heartbeat_shows_the_loss_of_the_last_message() -> None:
    server, packets = server_of(2)
    client = MoldUDPClient(next_sequence=1, wait_ns=0)
    client.receive(packets[0], 0)
    (heartbeat,) = server.poll(2 * 10**9)
    assert heartbeat[10:] == struct.pack(">QH", 3, 0)
    assert [type(event) for event in client.receive(heartbeat, 1)] == [Request]
    assert server.poll(2 * 10**9) == [], "one a second"


def test_requests_are_repeated_then_given_up_and_the_stream_goes_on() -> None:
    _, packets = server_of(4)
    client = MoldUDPClient(next_sequence=1, wait_ns=MS, retry_ns=10 * MS, max_requests=3)
    client.receive(packets[2], 0)
    times = [now for now in range(0, 60 * MS, MS) if any(isinstance(e, Request) for e in client.poll(now))]
    assert times == [MS, 11 * MS, 21 * MS]
    assert client.lost == 2 and client.next_sequence == 4
    assert said(client.receive(packets[3], 61 * MS)) == [b"4"]


def test_what_is_given_up_is_named() -> None:
    _, packets = server_of(4)
    client = MoldUDPClient(next_sequence=1, wait_ns=0, max_requests=0)
    assert client.receive(packets[3], 5) == [Lost(1, 3), Data(4, 1, b"\0\x014")]


def test_an_answer_that_holds_only_a_part_starts_the_count_of_requests_anew() -> None:
    server, packets = server_of(10, max_packet=29)  # 29 bytes hold three messages of one digit
    client = MoldUDPClient(next_sequence=1, wait_ns=0, retry_ns=MS, max_requests=1)
    heard, todo, now = [], [packets[9]], 0
    while todo:
        for event in client.receive(todo.pop(), now):
            heard += said([event])
            assert not isinstance(event, Lost)
            if isinstance(event, Request) and (answer := server.answer(event.packet)):
                todo.append(answer)
        now += 1
    assert heard == [b"%d" % k for k in range(1, 11)]


def test_packets_beyond_the_bound_are_dropped_counted_and_asked_for_again() -> None:
    server, packets = server_of(6)
    client = MoldUDPClient(next_sequence=1, max_held=2, wait_ns=0)
    heard: list[bytes] = []
    todo = packets[1:]
    while todo:
        for event in client.receive(todo.pop(0), 0):
            heard += said([event])
            if isinstance(event, Request) and (answer := server.answer(event.packet)):
                todo.append(answer)
    assert client.dropped == 3 and heard == [b"%d" % k for k in range(1, 7)]


def test_the_end_of_a_session_comes_after_its_last_message() -> None:
    server, packets = server_of(2)
    client = MoldUDPClient(next_sequence=1, wait_ns=10**9)
    client.receive(packets[1], 0)
    assert client.receive(server.end(), 0) == [] and not client.is_ended
    assert client.receive(packets[0], 1) == [Data(1, 1, b"\0\x011"), Data(2, 1, b"\0\x012"), EndOfSession(3)]
    assert client.is_ended and client.receive(server.end(), 2) == [] and client.deadline_ns is None


def test_an_end_whose_last_messages_stay_lost_still_ends() -> None:
    server, _ = server_of(2)
    client = MoldUDPClient(next_sequence=1, wait_ns=0, max_requests=0)
    assert client.receive(server.end(), 0) == [Lost(1, 2), EndOfSession(3)]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"S1",
        b"S1        " + struct.pack(">QH", 1, 2) + b"\0\1a",
        b"S1        " + struct.pack(">QH", 1, 1) + b"\0\2ab!",
        b"S1        " + struct.pack(">QH", (1 << 64) - 1, 1) + b"\0\0",
        b"S1        " + struct.pack(">QH", 1, 0) + b"x",
    ],
)
def test_malformed_packets_change_nothing(packet: bytes) -> None:
    client = MoldUDPClient(next_sequence=1)
    assert client.receive(packet, 0) == [] and client.malformed == 1
    assert client.next_sequence == 1 and client.session is None and client.missing == 0


def _renumbered(packet: bytes, sequence: int) -> bytes:
    return packet[:10] + sequence.to_bytes(8, "big") + packet[18:]


@pytest.mark.parametrize("wrong", [1 << 20, 1 << 62, 5000])
@pytest.mark.parametrize("what", ["data", "heartbeat", "end"])
def test_one_packet_with_a_wrong_number_costs_nothing_but_itself(what: str, wrong: int) -> None:
    server, packets = server_of(20)
    client = MoldUDPClient(next_sequence=1, wait_ns=MS, max_requests=0)
    header = packets[0][:18]
    bad = {"data": packets[9], "heartbeat": header + b"\0\0", "end": header + b"\xff\xff"}[what]
    packets.insert(9, _renumbered(bad, wrong))
    events = [event for k, packet in enumerate(packets) for event in client.receive(packet, 10 * MS * k)]
    assert said(events) == [b"%d" % k for k in range(1, 21)]
    assert not [event for event in events if isinstance(event, Lost | EndOfSession)]
    assert client.doubted_sequence == wrong and client.deadline_ns is None
    assert said(client.receive(server.publish([b"21"])[0], 10**9)) == [b"21"]


def test_a_second_packet_from_far_away_confirms_the_first_and_none_is_lost() -> None:
    server, packets = server_of(3)
    server.publish([b"outage"] * 9_000)
    later = [server.publish([text])[0] for text in (b"a", b"b")]
    client = MoldUDPClient(next_sequence=1, wait_ns=MS, max_requests=0)
    events = [event for k, packet in enumerate([*packets, *later]) for event in client.receive(packet, k)]
    assert said(events) == [b"1", b"2", b"3"] and client.missing == 9_000
    events = client.poll(10 * MS)
    assert events[0] == Lost(4, 9_000) and said(events) == [b"a", b"b"] and client.doubted == 0


def test_the_same_packet_twice_does_not_confirm_itself_but_another_line_and_a_repeated_end_do() -> None:
    _, packets = server_of(3)
    far = _renumbered(packets[2], 1 << 40)
    client = MoldUDPClient(next_sequence=1)
    assert client.receive(far, 0) == client.receive(far, 0) == [] and client.missing == 0
    assert client.receive(far, 0, line=1) == [] and client.missing == (1 << 40) - 1
    client, end = MoldUDPClient(next_sequence=1), _renumbered(packets[0][:18] + b"\xff\xff", 1 << 40)
    client.receive(end, 0)
    assert client.missing == 0
    client.receive(end, 10**9)
    assert client.missing == (1 << 40) - 1


def test_a_stream_whose_first_packet_had_a_wrong_number_begins_with_the_next_two() -> None:
    _, packets = server_of(8)
    client = MoldUDPClient()
    events = [event for p in (_renumbered(packets[0], 1 << 50), *packets[3:]) for event in client.receive(p, 0)]
    assert said(events) == [b"1", b"4", b"5", b"6", b"7", b"8"]
    assert [event.sequence for event in events if isinstance(event, Data)] == [1 << 50, 4, 5, 6, 7, 8]


def test_doubtful_packets_that_do_not_agree_are_counted() -> None:
    _, packets = server_of(2)
    client = MoldUDPClient(next_sequence=1)
    for number in (1 << 20, 1 << 30, 1 << 40):
        assert client.receive(_renumbered(packets[0], number), 0) == []
    assert client.doubted == 2 and client.doubted_sequence == 1 << 40
    assert said(client.receive(packets[0], 0)) == [b"1"]


def test_another_session_is_counted_and_ignored() -> None:
    _, packets = server_of(1)
    client = MoldUDPClient(next_sequence=1, session="S2")
    assert client.receive(packets[0], 0) == [] and client.foreign == 1


def test_the_server_splits_what_does_not_fit_one_packet_and_keeps_a_bounded_past() -> None:
    server = MoldUDPServer("S1", keep=3, max_packet=100)
    packets = server.publish([bytes(60), bytes(10), bytes(10), bytes(500), b"x"])
    assert [struct.unpack(">QH", packet[10:20]) for packet in packets] == [(1, 2), (3, 1), (4, 1), (5, 1)]
    assert all(len(packet) <= 100 for packet in packets if len(packet) < 500)
    ask = b"S1        "
    assert server.answer(ask + struct.pack(">QH", 2, 1)) is None, "gone"
    assert server.answer(ask + struct.pack(">QH", 6, 1)) is None, "not yet"
    assert server.answer(ask + struct.pack(">QH", 3, 0)) is None, "nothing"
    assert server.answer(b"S2        " + struct.pack(">QH", 3, 1)) is None, "of another session"
    assert server.refused == 4
    answer = server.answer(ask + struct.pack(">QH", 3, 60_000))
    assert answer is not None and struct.unpack(">QH", answer[10:20]) == (3, 1)


def test_bad_settings_are_refused() -> None:
    for wrong in ({"wait_ns": -1}, {"max_held": 0}, {"next_sequence": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MoldUDPClient(**wrong)  # type: ignore[arg-type]  # one int by name
    with pytest.raises(ConfigError, match="expected at most 10"):
        MoldUDPServer("A SESSION TOO LONG")
    with pytest.raises(ConfigError, match="does not fit a UDP packet"):
        MoldUDPServer("S1").publish([bytes(65_500)])
    with pytest.raises(ProtocolError, match="runs over the end"):
        split_blocks(b"\0\5ab")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 60), st.integers(1, 3))
def test_whatever_is_lost_doubled_or_late_each_message_comes_once_and_in_order(
    seed: int, n: int, loss: int, lines: int
) -> None:
    chance = random.Random(seed)
    server = MoldUDPServer("S1", max_packet=60)
    client = MoldUDPClient(next_sequence=1, wait_ns=3, retry_ns=10, max_requests=100, max_held=5)
    flying: list[tuple[int, bytes, int]] = []
    heard: list[bytes] = []
    due, now = 1, 0

    def send(packet: bytes, line: int) -> None:
        for _ in range(1 + (chance.random() < 0.1)):
            if chance.randrange(100) >= loss:
                flying.append((now + chance.randrange(1, 9), packet, line))

    def take(events: list[MoldEvent]) -> None:
        nonlocal due
        for event in events:
            assert not isinstance(event, Lost)
            if isinstance(event, Data):
                assert event.sequence == due
                due += event.count
                heard.extend(split_blocks(event.blocks))
            elif isinstance(event, Request) and (answer := server.answer(event.packet)):
                send(answer, 9)

    while not client.is_ended and now < 20_000:
        now += 1
        if now <= n:
            for packet in server.publish([b"%d" % (4 * now + k) for k in range(chance.randrange(1, 5))]):
                for line in range(lines):
                    send(packet, line)
        elif now % 20 == 0:
            send(server.end(), 0)
        for packet, line in [(p, at_line) for at, p, at_line in flying if at <= now]:
            take(client.receive(packet, now, line))
        flying = [entry for entry in flying if entry[0] > now]
        take(client.poll(now))
    assert client.is_ended and len(heard) == server.next_sequence - 1 == due - 1
    assert heard == sorted(heard, key=int)


def test_a_stream_over_real_sockets_survives_the_loss_of_a_fifth_of_its_packets() -> None:
    chance = random.Random(7)
    server, client = MoldUDPServer("S1", max_packet=200), MoldUDPClient(next_sequence=1, retry_ns=20 * MS)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as into,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as requests,
    ):
        for one in (into, requests):
            one.bind(("127.0.0.1", 0))
        into.setblocking(False)
        requests.setblocking(False)
        heard: list[bytes] = []
        messages = [b"message %d" % k for k in range(2000)]
        sent, give_up = 0, time.monotonic() + 30
        dropped = 0

        def send(packet: bytes, to: object) -> None:
            nonlocal dropped
            if chance.random() < 0.2:
                dropped += 1
            else:
                out.sendto(packet, to)  # type: ignore[arg-type]  # an address as the socket gave it

        while not client.is_ended:
            assert time.monotonic() < give_up, f"{len(heard)} of {len(messages)} after 30 s"
            if sent < len(messages):
                for packet in server.publish(messages[sent : sent + 50]):
                    send(packet, into.getsockname())
                sent += 50
            else:
                send(server.end(), into.getsockname())
            events: list[MoldEvent] = []
            try:
                while True:
                    events += client.receive(into.recv(65_536), time.monotonic_ns())
            except BlockingIOError:
                events += client.poll(time.monotonic_ns())
            heard += said(events)
            for event in events:
                if isinstance(event, Request):
                    into.sendto(event.packet, requests.getsockname())
            try:
                while True:
                    request, asker = requests.recvfrom(64)
                    if answer := server.answer(request):
                        send(answer, asker)
            except BlockingIOError:
                pass
        assert heard == messages and client.lost == 0 and dropped > 20


def test_a_hundred_thousand_mutated_packets_are_survived() -> None:
    feed, seeds = TARGETS["moldudp"]()
    fuzz(feed, seeds, 100_000)
