"""System calls from kernels: for those made while somebody else wants the interpreter, or in every turn of a loop.

A call from Python gives the interpreter's lock away and has to win it back, and tells a refusal by an exception. One
from a kernel does neither, unless the kernel was made to release the lock.

Numbers differ by machine; `LINUX` is whether this one's are known, and where it is False nothing here may be called.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["FDATASYNC", "FUTEX", "LINUX", "MADVISE", "MEMBARRIER", "PWRITE", "RECVFROM", "SENDTO", "system_call"]

_X86_64 = (18, 28, 44, 45, 75, 202, 324)
_AARCH64 = (68, 233, 206, 207, 83, 98, 283)
_NUMBERS = {"x86_64": _X86_64, "aarch64": _AARCH64} if sys.platform == "linux" else {}
LINUX = platform.machine() in _NUMBERS
PWRITE, MADVISE, SENDTO, RECVFROM, FDATASYNC, FUTEX, MEMBARRIER = _NUMBERS.get(platform.machine(), (0,) * 7)

_I64 = ir.IntType(64)
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types


@_intrinsic
def system_call(typingctx: Any, number: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Return what the C library's ``syscall`` answers: -1 for any error."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        called = ir.FunctionType(_I64, [_I64], var_arg=True)
        return builder.call(cgutils.get_or_insert_function(builder.module, called, "syscall"), args)

    return types.int64(*[types.int64] * 7), codegen
