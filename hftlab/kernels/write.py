"""Numbers to text, at an address: what `scan` reads, written.

Model. A writer takes an address and returns the one after what it wrote, so that writers follow each other. The caller
promises room: at most 20 bytes a number. Counts of steps become the shortest fixed-point text of their grid by integer
arithmetic, digit for digit what `DecimalGrid.text` gives; numbers are 0 or more, and a count times its unit fits int64:
whoever calls has looked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.kernels.jit import kernel, load, store

__all__ = ["put_byte", "put_bytes", "put_decimal", "put_hex", "put_uint"]

_BYTE = ir.IntType(8)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def put_byte(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the low byte of `value` at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _BYTE), builder.inttoptr(args[0], _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@kernel(inline=True)
def put_bytes(out: int, source: int, n: int) -> int:
    """Copy `n` bytes in steps of 8, writing (and reading) up to 7 beyond: faster than a call for some 20 bytes."""
    for k in range(0, n, 8):
        store(out + k, load(source + k))
    return out + n


@kernel(inline=True)
def put_uint(out: int, value: int) -> int:
    """Write `value` in decimal digits."""
    n = 1
    rest = value
    while rest >= 10:
        rest //= 10
        n += 1
    for k in range(n - 1, -1, -1):
        put_byte(out + k, 48 + value % 10)
        value //= 10
    return out + n


@kernel(inline=True)
def put_hex(out: int, value: int) -> int:
    """Write `value` in lower-case hex digits."""
    n = 1
    while n < 16 and value >> (4 * n) != 0:
        n += 1
    for k in range(n):
        digit = (value >> (4 * (n - 1 - k))) & 15
        put_byte(out + k, 48 + digit if digit < 10 else 87 + digit)
    return out + n


@kernel(inline=True)
def put_decimal(out: int, count: int, unit: int, decimals: int) -> int:
    """Write `count` steps of ``unit x 10**-decimals`` with exactly `decimals` digits after the point."""
    value = count * unit
    if decimals == 0:
        return put_uint(out, value)
    power = 1
    for _ in range(decimals):
        power *= 10
    out = put_uint(out, value // power)
    put_byte(out, 46)
    rest = value % power
    for k in range(decimals, 0, -1):
        put_byte(out + k, 48 + rest % 10)
        rest //= 10
    return out + 1 + decimals
