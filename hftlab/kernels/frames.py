"""WebSocket frames where they were read: spans of whole messages, found by address, and the one frame a client sends.

Model. A read of a socket leaves bytes in one buffer, most often some hundred server frames of one kind: a whole,
unmasked text or binary message behind a header of 2, 4 or 10 bytes. `scan_frames` walks those and notes where each
message lies; nothing is copied and nothing is allocated. It stops in front of everything else and says what that is:
a frame of another kind (ping, pong, close, a fragment) with its extent, so that a complete implementation of the
protocol can be given exactly those bytes; a frame that no peer may send, or one too long; or one not here to its end.

Promise. No byte outside ``[at, end)`` is read. A span never leaves it. What a frame means is decided by its header
alone, so scanning again from where it stopped, with more bytes, gives what scanning all at once gives.

Worst case accepted. Text is not checked for UTF-8: who decodes it has to look at every byte anyhow. A length may be
written longer than it needs to be.

References
----------
RFC 6455, 5.2 (base framing), 5.3 (masking), 5.5 (control frames are 125 bytes at most).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.kernels.jit import kernel, load, store
from hftlab.kernels.system import LINUX, RECVFROM, SENDTO, system_call
from hftlab.kernels.words import byte_at, word_at

__all__ = [
    "BAD", "FACTS", "FULL", "HEADER_MAX", "MASKED_HEADER_MAX", "MORE", "OTHER", "read_any", "scan_frames", "send_bytes",
    "write_frame",
]  # fmt: skip

MORE, OTHER, BAD, FULL = range(4)
"""Why a scan stopped: the next frame is not whole yet; it is whole, and of another kind; it is not allowed; no room."""
FACTS = 3
"""What a scan tells, int64: where it stopped, why, and the extent in bytes of the frame there (0 = not known yet)."""
HEADER_MAX, MASKED_HEADER_MAX = 10, 14

_TEXT, _BINARY, _CLOSE, _PONG, _CONTINUATION = 1, 2, 8, 10, 0
_CONTROL_MAX = 125
_DONT_WAIT, _NO_SIGNAL = 0x40, 0x4000  # of <sys/socket.h>, on Linux
_READ_MAX = 2**31 - 1

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_U32 = np.uint64(32)


@_intrinsic
def _put_word(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the uint64 `value` at `address`, any alignment."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


@_intrinsic
def _put_byte(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the lowest byte of the int64 `value` at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _I8), builder.inttoptr(args[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@kernel(inline=True)
def _big_endian(at: int, size: int) -> int:
    """Return the `size` bytes at `at` as an integer, the first the highest; 8 bytes from 2**63 on come out negative."""
    value = 0
    for k in range(size):
        value = value << 8 | byte_at(at + k)
    return value


@kernel("int64(int64, int64, int64, int64, int64, int64)", nogil=False)
def scan_frames(at: int, end: int, spans: int, room: int, most: int, facts: int) -> int:
    """Note the whole messages from address `at` on, and return how many; `facts` says where and why that ended.

    Parameters
    ----------
    at, end : int
        Addresses of the bytes that were read; a frame begins at `at`.
    spans : int
        Address of `room` pairs of int64, overwritten: address and length of each message.
    room : int
        Messages to note at most; 0 looks at the next frame only, and calls it `OTHER` whatever it carries.
    most : int
        Bytes a message may have.
    facts : int
        Address of `FACTS` int64, overwritten: the address of the frame that was not taken, one of the module's reasons,
        the bytes of that frame with its header, or 0 while those are not known.
    """
    n = 0
    extent = 0
    why = MORE
    while at + 2 <= end:
        first, second = byte_at(at), byte_at(at + 1)
        kind, length, header = first & 15, second & 127, 2
        if first & 112 or second & 128 or (kind > _BINARY and kind < _CLOSE) or kind > _PONG:
            why = BAD
            break
        if kind >= _CLOSE and (length > _CONTROL_MAX or first < 128):
            why = BAD
            break
        if length > _CONTROL_MAX:
            header = 4 if length == 126 else 10
            if at + header > end:
                break
            length = _big_endian(at + 2, header - 2)
            if length < 0 or length > most:
                why = BAD
                break
        extent = header + length
        if at + extent > end:
            break
        if kind == _CONTINUATION or kind >= _CLOSE or first < 128 or room == 0:
            why = OTHER
            break
        if n == room:
            why = FULL
            break
        store(spans + 16 * n, at + header)
        store(spans + 16 * n + 8, length)
        n += 1
        at += extent
        extent = 0
    store(facts, at)
    store(facts + 8, why)
    store(facts + 16, extent)
    return n


@kernel("int64(int64, int64, int64, int64)", nogil=False)
def write_frame(text: int, size: int, key: int, out: int) -> int:
    """Write one whole, masked text frame, and return its bytes.

    Parameters
    ----------
    text, size : int
        Address and length of the message.
    key : int
        The mask, 32 bits, unpredictable.
    out : int
        Address of ``size + MASKED_HEADER_MAX`` bytes or more.
    """
    _put_byte(out, 128 | _TEXT)
    header = 2
    if size <= _CONTROL_MAX:
        _put_byte(out + 1, 128 | size)
    elif size < 65536:
        _put_byte(out + 1, 128 | 126)
        _put_byte(out + 2, size >> 8)
        _put_byte(out + 3, size)
        header = 4
    else:
        _put_byte(out + 1, 128 | 127)
        for k in range(8):
            _put_byte(out + 2 + k, size >> (56 - 8 * k))
        header = 10
    for k in range(4):
        _put_byte(out + header + k, key >> (8 * k))
    at = out + header + 4
    mask = np.uint64(key & 0xFFFFFFFF)
    mask |= mask << _U32
    done = 0
    while done + 8 <= size:
        _put_word(at + done, word_at(text + done) ^ mask)
        done += 8
    while done < size:
        _put_byte(at + done, byte_at(text + done) ^ (key >> (8 * (done & 3)) & 255))
        done += 1
    return header + 4 + size


@kernel("int64(int64, int64, int64)", nogil=False)
def read_any(sockets: int, n: int, turns: int) -> int:
    """Read from the first of some sockets that has bytes, asking each `turns` times without sleep.

    Parameters
    ----------
    sockets : int
        Address of three int64 a socket: its descriptor, the address to read to, and the room there.

    Returns
    -------
    int
        The socket's index times 2**32, plus the bytes read; 0 when nothing came. An end or an error is nothing: it
        stays, for whoever asks in a way that can tell.
    """
    if not LINUX:
        return 0
    for _ in range(turns):
        for k in range(n):
            at = sockets + 24 * k
            got = system_call(RECVFROM, load(at), load(at + 8), min(load(at + 16), _READ_MAX), _DONT_WAIT, 0, 0)
            if got > 0:
                return k << 32 | got  # type: ignore[no-any-return]  # numba's intrinsics have no types
    return 0


@kernel("int64(int64, int64, int64)", nogil=False)
def send_bytes(fd: int, at: int, size: int) -> int:
    """Send bytes by a socket, as many as it takes at once; return how many, or -1 if none (full, or broken)."""
    if not LINUX:
        return -1
    return system_call(SENDTO, fd, at, size, _DONT_WAIT | _NO_SIGNAL, 0, 0)  # type: ignore[no-any-return]  # as above
