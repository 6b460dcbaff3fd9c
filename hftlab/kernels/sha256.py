"""SHA-256 and HMAC-SHA256 of short messages, from where a kernel stands.

**Model.** An order is signed between two stores, so what counts is one message of some 300 bytes from a cold start, not
throughput. Python's ``hmac`` costs a microsecond in objects alone. Here a key is two states, kept ready (the padded key
is absorbed once), and whatever begins every message is absorbed once too: `absorb` gives the state after it. What is
left of an order is three or four blocks.

**Two rounds.** Where the CPU has the SHA extensions, LLVM's intrinsics for them are used (a block takes some 40 ns);
elsewhere plain 32-bit arithmetic (some 300 ns). The choice is made when the kernel is compiled, and its code is kept
apart by CPU, as numba keys its cache by CPU features. Both give FIPS 180-4, and the tests hold them against hashlib.

**Worst case accepted.** Not constant-time against an observer on the same core: the data are order parameters, and the
secret enters only through additions and rotations, which have no secret-dependent branch or address.

References
----------
FIPS 180-4, section 6.2; RFC 2104.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hftlab.kernels.jit import address_of, copy_bytes, kernel, load, store
from hftlab.kernels.write import put_byte

__all__ = ["HAS_SHA", "HmacKey", "SCRATCH_BYTES", "absorb", "compress", "finish", "sha256", "sign_hex"]

_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)


def _primes(n: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < n:
        if all(candidate % p for p in found):
            found.append(candidate)
        candidate += 1
    return found


def _cube_root_bits(p: int) -> int:
    """Return the first 32 bits of the fraction of the cube root of `p`, by integer arithmetic."""
    scaled, low, high = p << 96, 0, 1 << 36
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**3 <= scaled else (low, middle)
    return low & 0xFFFFFFFF


_K = tuple(_cube_root_bits(p) for p in _primes(64))


def _cpu_has_sha() -> bool:
    """Return whether the code that numba will make may use the SHA extensions."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:  # somebody asked for another CPU than this one
        return "+sha" in str(numba.config.CPU_FEATURES or "").split(",")
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("sha"))
    except RuntimeError:  # LLVM does not know this system
        return False


HAS_SHA = _cpu_has_sha()
"""Whether blocks are compressed by the CPU's own instructions."""

_MASK = 0xFFFFFFFF
_K_WORDS = np.array(_K, np.int64)
SCRATCH_BYTES = 256 + 64 * 8
"""What `sign_hex` needs: the result, a state, a block with its padding, and the words of a schedule."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_V4 = ir.VectorType(_I32, 4)


def _vector(values: Any) -> Any:
    return ir.Constant(_V4, [ir.Constant(_I32, int(v)) for v in values])


def _shuffle(builder: Any, a: Any, b: Any, lanes: tuple[int, int, int, int]) -> Any:
    return builder.shuffle_vector(a, b, _vector(lanes))


def _pointer(builder: Any, address: Any, offset: int) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), _V4.as_pointer())


def _function(builder: Any, name: str, arguments: int) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(_V4, [_V4] * arguments), name)


def _emit_sha_rounds(builder: Any, state: Any, block: Any) -> None:
    """Write the code of one block; the instructions want the state's halves as ABEF and CDGH."""
    rounds = _function(builder, "llvm.x86.sha256rnds2", 3)
    first, second = _function(builder, "llvm.x86.sha256msg1", 2), _function(builder, "llvm.x86.sha256msg2", 2)
    swap = _function(builder, "llvm.bswap.v4i32", 1)

    def read(address: Any, offset: int) -> Any:
        return builder.load(_pointer(builder, address, offset), align=4)

    dcba, hgfe = read(state, 0), read(state, 16)  # lanes 0..3: a b c d, e f g h
    abef = _shuffle(builder, hgfe, dcba, (1, 0, 5, 4))  # f e b a, lowest lane first
    cdgh = _shuffle(builder, hgfe, dcba, (3, 2, 7, 6))
    start_abef, start_cdgh = abef, cdgh
    words = [builder.call(swap, [builder.load(_pointer(builder, block, 16 * i), align=1)]) for i in range(4)]
    for i in range(16):
        mixed = builder.add(words[i % 4], _vector(_K[4 * i : 4 * i + 4]))
        cdgh = builder.call(rounds, [cdgh, abef, mixed])
        high = _shuffle(builder, mixed, mixed, (2, 3, 2, 3))
        abef = builder.call(rounds, [abef, cdgh, high])
        if i < 12:
            w0, w1, w2, w3 = (words[(i + k) % 4] for k in range(4))
            tail = _shuffle(builder, w2, w3, (1, 2, 3, 4))
            words[i % 4] = builder.call(second, [builder.add(builder.call(first, [w0, w1]), tail), w3])
    abef, cdgh = builder.add(abef, start_abef), builder.add(cdgh, start_cdgh)
    builder.store(_shuffle(builder, abef, cdgh, (3, 2, 7, 6)), _pointer(builder, state, 0), align=4)
    builder.store(_shuffle(builder, abef, cdgh, (1, 0, 5, 4)), _pointer(builder, state, 16), align=4)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _sha_block(typingctx: Any, state: Any, block: Any) -> Any:
    """Compress the 64 bytes at `block` into the state at `state` by the CPU's instructions."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_sha_rounds(builder, args[0], args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _load32(typingctx: Any, address: Any) -> Any:
    """Return the unsigned 32-bit word at `address` as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], _I32.as_pointer()), align=1), _I64)

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _store32(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the low 32 bits of `value` at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _I32), builder.inttoptr(args[0], _I32.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@kernel(inline=True)
def _swapped(word: int) -> int:
    return (word >> 24) | ((word >> 8) & 0xFF00) | ((word << 8) & 0xFF0000) | ((word << 24) & 0xFF000000)


@kernel(inline=True)
def _rotated(word: int, n: int) -> int:
    return ((word >> n) | (word << (32 - n))) & _MASK


@kernel("int64(int64, int64, int64)")
def _plain_block(state: int, block: int, scratch: int) -> int:
    """Compress one block by plain arithmetic; `scratch` holds the 64 words of the schedule."""
    for i in range(16):
        store(scratch + 8 * i, _swapped(_load32(block + 4 * i)))
    for i in range(16, 64):
        w15, w2 = load(scratch + 8 * (i - 15)), load(scratch + 8 * (i - 2))
        s0 = _rotated(w15, 7) ^ _rotated(w15, 18) ^ (w15 >> 3)
        s1 = _rotated(w2, 17) ^ _rotated(w2, 19) ^ (w2 >> 10)
        store(scratch + 8 * i, (load(scratch + 8 * (i - 16)) + s0 + load(scratch + 8 * (i - 7)) + s1) & _MASK)
    a, b, c, d = _load32(state), _load32(state + 4), _load32(state + 8), _load32(state + 12)
    e, f, g, h = _load32(state + 16), _load32(state + 20), _load32(state + 24), _load32(state + 28)
    for i in range(64):
        s1 = _rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25)
        t1 = h + s1 + ((e & f) ^ (~e & g)) + _K_WORDS[i] + load(scratch + 8 * i)
        s0 = _rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22)
        t2 = s0 + ((a & b) ^ (a & c) ^ (b & c))
        h, g, f, e, d, c, b, a = g, f, e, (d + t1) & _MASK, c, b, a, (t1 + t2) & _MASK
    _store32(state, _load32(state) + a)
    _store32(state + 4, _load32(state + 4) + b)
    _store32(state + 8, _load32(state + 8) + c)
    _store32(state + 12, _load32(state + 12) + d)
    _store32(state + 16, _load32(state + 16) + e)
    _store32(state + 20, _load32(state + 20) + f)
    _store32(state + 24, _load32(state + 24) + g)
    _store32(state + 28, _load32(state + 28) + h)
    return 0


if HAS_SHA:

    @kernel("int64(int64, int64, int64)")
    def compress(state: int, block: int, scratch: int) -> int:
        """Compress the 64 bytes at `block` into the 32-byte state at `state`."""
        _sha_block(state, block)
        return 0

else:

    compress = _plain_block


@kernel("int64(int64, int64, int64, int64)")
def absorb(state: int, data: int, blocks: int, scratch: int) -> int:
    """Compress `blocks` whole blocks of 64 bytes from `data` on."""
    for k in range(blocks):
        compress(state, data + 64 * k, scratch)
    return 0


@kernel("int64(int64, int64, int64, int64, int64)")
def finish(state: int, data: int, n: int, total: int, scratch: int) -> int:
    """Compress the last `n` bytes, at `data`, of a message of `total` bytes, and its padding: the state is the digest.

    The padding is written behind the data: 72 bytes there are overwritten.
    """
    blocks = (n + 72) // 64
    put_byte(data + n, 128)
    for k in range(n + 1, 64 * blocks):
        put_byte(data + k, 0)
    for k in range(8):
        put_byte(data + 64 * blocks - 1 - k, (8 * total >> (8 * k)) & 255)
    return absorb(state, data, blocks, scratch)


@kernel(inline=True)
def _put_hex(out: int, state: int) -> None:
    """Write the digest in the state at `state` as 64 hex digits."""
    for i in range(8):
        word = _load32(state + 4 * i)
        for k in range(8):
            digit = (word >> (28 - 4 * k)) & 15
            put_byte(out + 8 * i + k, digit + 48 if digit < 10 else digit + 87)


@kernel("int64(int64, int64, int64, int64, int64, int64)")
def sign_hex(inner: int, outer: int, tail: int, n: int, total: int, scratch: int) -> int:
    """Leave the HMAC of a message, as 64 hex digits, at the start of `scratch`.

    Parameters
    ----------
    inner, outer : int64
        Addresses of states: of the key and the first ``total - n`` bytes of the message (whole blocks), and of the
        outer key. They are not changed.
    tail, n, total : int64
        Address and length of the rest of the message, of which 72 bytes behind it are overwritten; length of the whole.
    scratch : int64
        Address of `SCRATCH_BYTES`.
    """
    state, block, words = scratch + 64, scratch + 128, scratch + 256
    copy_bytes(state, inner, 32)
    finish(state, tail, n, total + 64, words)
    for i in range(8):
        _store32(block + 4 * i, _swapped(_load32(state + 4 * i)))
    copy_bytes(state, outer, 32)
    finish(state, block, 32, 96, words)
    _put_hex(scratch, state)
    return 64


class HmacKey:
    """A secret, ready to sign: its two states, and those of messages that all begin alike.

    Parameters
    ----------
    secret : bytes

    Attributes
    ----------
    outer : int
        Address of the outer state.

    Examples
    --------
    >>> import hashlib, hmac
    >>> HmacKey(b"secret").sign(b"query") == hmac.new(b"secret", b"query", hashlib.sha256).hexdigest()
    True
    """

    def __init__(self, secret: bytes) -> None:
        key = sha256(secret) if len(secret) > 64 else secret
        self._states = [_state_after(bytes(b ^ pad for b in key.ljust(64, b"\0"))) for pad in (0x36, 0x5C)]
        self.outer = address_of(self._states[1])

    def after(self, head: bytes) -> tuple[npt.NDArray[np.uint32], int]:
        """Return the inner state after the whole blocks that `head` begins with, and how many bytes those are."""
        state, n = self._states[0].copy(), len(head) // 64 * 64
        block = np.frombuffer(head[:n] + bytes(64), np.uint8)
        words = np.zeros(64, np.int64)  # held until the kernel is done: an address holds nothing
        absorb(address_of(state), address_of(block), n // 64, address_of(words))
        return state, n

    def sign(self, message: bytes) -> str:
        """Return the HMAC-SHA256 of `message`, hex."""
        room = np.frombuffer(bytearray(message + bytes(72)), np.uint8)
        scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        at = address_of(scratch)
        sign_hex(address_of(self._states[0]), self.outer, address_of(room), len(message), len(message), at)
        return bytes(scratch[:64]).decode()


def _state_after(block: bytes) -> npt.NDArray[np.uint32]:
    state, words = np.array(_IV, np.uint32), np.zeros(64, np.int64)
    data = np.frombuffer(block, np.uint8)
    compress(address_of(state), address_of(data), address_of(words))
    return state


def sha256(message: bytes) -> bytes:
    """Return the SHA-256 digest of `message`: for keys and tests; hashlib is as fast from Python.

    Examples
    --------
    >>> sha256(b"abc").hex()[:16]
    'ba7816bf8f01cfea'
    """
    state, room = np.array(_IV, np.uint32), np.frombuffer(bytearray(message + bytes(72)), np.uint8)
    words = np.zeros(64, np.int64)
    finish(address_of(state), address_of(room), len(message), len(message), address_of(words))
    return state.byteswap().tobytes()
