"""The frame scanner against a plain reading of the RFC and against websockets' own parser; frames written likewise."""

from __future__ import annotations

import numpy as np
import pytest
from guarded_text import GuardedText
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol

from hftlab.kernels.frames import BAD, FACTS, FULL, MASKED_HEADER_MAX, MORE, OTHER, scan_frames, write_frame
from hftlab.kernels.jit import address_of
from hftlab.kernels.words import BYTES_AT
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_frames import TARGETS, plain_scan, server_frame

MOST = 70_000
_lengths = st.one_of(st.integers(100, 300), st.sampled_from([65535, 65536]))
_payloads = st.one_of(st.binary(max_size=20), _lengths.map(bytes))
_frames = st.builds(
    server_frame, _payloads, st.sampled_from([1, 1, 1, 1, 2, 0, 8, 9, 10, 3]), fin=st.sampled_from([True, True, False]),
    form=st.sampled_from([0, 0, 0, 126, 127]),
).filter(lambda frame: len(frame) < MOST)  # fmt: skip


def scan(at: int, size: int, room: int = 8, most: int = MOST) -> tuple[list[tuple[int, int]], int, int, int]:
    spans, facts = np.zeros((max(room, 1), 2), np.int64), np.zeros(FACTS, np.int64)
    n = scan_frames(at, at + size, address_of(spans), room, most, address_of(facts))
    stop, why, extent = facts.tolist()
    return [(place - at, length) for place, length in spans[:n].tolist()], stop - at, why, extent


@settings(deadline=None, max_examples=300)
@given(st.lists(_frames, max_size=12), st.integers(0, 12), st.data())
def test_what_is_found_is_what_the_rfc_says_however_the_bytes_are_cut(
    frames: list[bytes], room: int, data: st.DataObject
) -> None:
    wire = b"".join(frames)
    wire = wire[: data.draw(st.integers(0, len(wire)))]
    expected = plain_scan(wire, room, MOST)
    assert scan(id(wire) + BYTES_AT, len(wire), room) == expected


def test_no_byte_behind_what_was_read_is_looked_at() -> None:
    memory = GuardedText()
    wire = b"".join(
        server_frame(b"x" * size, opcode) for size in (0, 1, 125, 126, 200) for opcode in (1, 9 if size < 126 else 2)
    )
    for size in range(len(wire) + 1):
        piece = wire[:size]
        assert scan(address_of(memory.lay(piece)), size, room=99) == plain_scan(piece, 99, MOST)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"", ([], 0, MORE, 0)),
        (b"\x81", ([], 0, MORE, 0)),
        (b"\x81\x7e\x01", ([], 0, MORE, 0)),
        (b"\x81\x05abc", ([], 0, MORE, 7)),
        (b"\x81\x01a\x82\x02bc", ([(2, 1), (5, 2)], 7, MORE, 0)),
        (b"\x81\x01a\x89\x00", ([(2, 1)], 3, OTHER, 2)),  # ping
        (b"\x01\x01a", ([], 0, OTHER, 3)),  # a first fragment
        (b"\x80\x01a", ([], 0, OTHER, 3)),  # a last one
        (b"\x81\x81abcde", ([], 0, BAD, 0)),  # masked
        (b"\xc1\x01a", ([], 0, BAD, 0)),  # reserved bit
        (b"\x83\x01a", ([], 0, BAD, 0)),  # reserved opcode
        (b"\x8b\x00", ([], 0, BAD, 0)),
        (b"\x09\x00", ([], 0, BAD, 0)),  # a ping in fragments
        (b"\x89\x7e\x00\x7e", ([], 0, BAD, 0)),  # a long ping
        (b"\x81\x7f" + (MOST + 1).to_bytes(8, "big"), ([], 0, BAD, 0)),
        (b"\x81\x7f" + b"\xff" * 8, ([], 0, BAD, 0)),
        (b"\x81\x7f" + MOST.to_bytes(8, "big"), ([], 0, MORE, MOST + 10)),
        (b"\x81\x01a" * 9, ([(3 * k + 2, 1) for k in range(8)], 24, FULL, 3)),
    ],
)
def test_each_reason_to_stop_is_told_with_its_place(
    wire: bytes, expected: tuple[list[tuple[int, int]], int, int, int]
) -> None:
    assert scan(id(wire) + BYTES_AT, len(wire)) == expected


def test_a_hundred_thousand_mutated_streams_give_what_a_plain_reading_gives() -> None:
    fuzz(*TARGETS["frames"](), 100_000)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.binary(max_size=140), st.integers(65530, 65540).map(bytes)), st.integers(0, 2**32 - 1))
def test_a_written_frame_is_read_by_a_server(message: bytes, key: int) -> None:
    out = np.full(len(message) + MASKED_HEADER_MAX + 1, 0xAA, np.uint8)
    n = write_frame(id(message) + BYTES_AT, len(message), key, address_of(out))
    server = ServerProtocol(state=State.OPEN)
    server.receive_data(out[:n].tobytes())
    (event,) = server.events_received()
    assert isinstance(event, Frame) and event.opcode == 1 and event.fin and event.data == message
    mask_at = n - len(message) - 4
    assert (out[n:] == 0xAA).all() and out[mask_at : mask_at + 4].tobytes() == key.to_bytes(4, "little")
