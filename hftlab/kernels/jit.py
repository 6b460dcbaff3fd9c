"""The one decorator for kernels, and the few intrinsics they share.

Three numba facts shape this module.

*Reference counting is the enemy.* A helper that takes seven arrays increments and decrements seven counters a call.
``_nrt=False`` leaves the runtime out where nothing allocates; it is a private option of numba, so only this file names
it, falls back without it, and a test checks that the compiled IR holds no ``NRT_`` call.

*The cache watches one file only.* ``cache=True`` notices a change in the function's own file, not in a constant or
callee imported from another: the old answer comes back silently. So the cache directory is named by a hash of the
defining module and every hftlab module it imports, transitively.

*Addresses pass everywhere.* Kernels with fixed signatures refuse read-only arrays (a reader's mapping), and 64-bit
addresses are the cheapest thing to pass from Python. `record_at`, `load` and `store` read memory at an address; whoever
passes one promises that it is mapped, aligned and long enough.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "CallResult",
    "address_of",
    "call_at",
    "copy_bytes",
    "cycle_counter",
    "function_address",
    "kernel",
    "load",
    "load_acquire",
    "record_at",
    "source_hash",
    "store",
    "store_release",
    "user_code",
]

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parent.parent
_IMPORT = re.compile(
    r"^\s*(?:from\s+(hftlab[\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+(hftlab[\w.]*))", re.MULTILINE
)


def _module_files(name: str) -> list[Path]:
    base = _PACKAGE.joinpath(*name.split(".")[1:])
    return [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]


@functools.cache
def _closure(file: Path) -> frozenset[Path]:
    """The file and every hftlab source it imports, however indirectly."""
    seen: set[Path] = set()
    todo = [file]
    while todo:
        current = todo.pop()
        if current in seen or not current.is_file():
            continue
        seen.add(current)
        for package, names, plain in _IMPORT.findall(current.read_text()):
            module = package or plain
            todo += _module_files(module)
            for name in re.findall(r"\w+", names):
                todo += _module_files(f"{module}.{name}")
    return frozenset(seen)


@functools.cache
def source_hash(file: str) -> str:
    """Return 16 hex digits that change when `file` or any hftlab source it imports changes."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_closure(Path(file).resolve())):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_root() -> Path:
    chosen = os.environ.get("HFTLAB_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "hftlab" / "kernels"


def kernel(
    signature: Any = None, *, inline: bool = False, checked: bool = False, nogil: bool = True
) -> Callable[[F], F]:
    """Return a decorator that compiles a function as a kernel: no GIL, no reference counting, keyed disk cache.

    Parameters
    ----------
    signature : numba signature, optional
        Compiles (or loads from the cache) at import; without one, at the first call for its argument types.
    inline : bool
        Ask LLVM to inline the body into every caller: for the small helpers of a hot loop.
    checked : bool
        Bounds checks and Python's error model (ZeroDivisionError): for code that is not ours.
    nogil : bool
        Whether other threads may run meanwhile. A kernel of a microsecond on the hot path keeps the GIL: who gives it
        up may have to wait for it, and the journal's helper thread takes it whenever it can.

    Examples
    --------
    >>> @kernel()
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(21)
    42
    """
    options: dict[str, Any] = {"nogil": nogil, "cache": True, "boundscheck": checked}
    options["error_model"] = "python" if checked else "numpy"
    if inline:
        options["forceinline"] = True

    def decorate(function: F) -> F:
        file = function.__code__.co_filename
        before = numba.config.CACHE_DIR
        if os.path.isfile(file):
            numba.config.CACHE_DIR = str(_cache_root() / source_hash(file))
        else:
            options["cache"] = False  # a doctest, a REPL: nothing to key the cache by
        try:
            compile_ = njit if signature is None else functools.partial(njit, signature)
            try:
                return compile_(_nrt=False, **options)(function)  # type: ignore[no-any-return]
            except (TypeError, KeyError):  # a numba without the private option: slower, still right
                return compile_(**options)(function)  # type: ignore[no-any-return]
        finally:
            numba.config.CACHE_DIR = before

    return decorate


def user_code(function: Callable[..., Any]) -> Any:
    """Return a user's function compiled: checked like `kernel(checked=True)`, free to allocate, never from a cache.

    Examples
    --------
    >>> @user_code
    ... def total(n):
    ...     return sum([k for k in range(n)])
    >>> total(5)
    10
    """
    return njit(nogil=True, boundscheck=True, error_model="python")(function)


def function_address(compiled: Any) -> int:
    """Return the address of a kernel compiled with one explicit signature (numba's own calling convention)."""
    (result,) = compiled.overloads.values()
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def address_of(array: Any) -> int:
    """Return the address of a NumPy array's first byte, whether or not it is writable."""
    return int(array.ctypes.data)  # __array_interface__ lists the fields of a dtype: 8 us for a row's


_I64 = ir.IntType(64)


@intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """Return the int64 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the int64 `value` at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load_acquire(typingctx: Any, address: Any) -> Any:
    """Return the int64 at `address`; what its writer wrote before `store_release` is visible afterwards."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_release(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the int64 `value` at `address` after every earlier write: publication."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(typingctx: Any, destination: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes between addresses that do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder, builder.inttoptr(args[0], pointer), builder.inttoptr(args[1], pointer), args[2], 1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def cycle_counter(typingctx: Any) -> Any:
    """Return the CPU's cycle counter: 10 ns to read, for latency histograms only."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, []), "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), codegen


def record_at(record: Any) -> Any:
    """Return an intrinsic that views the memory at an address as `record`.

    Parameters
    ----------
    record : numpy.dtype or numba Record type
        Layout of the memory.

    Returns
    -------
    intrinsic
        ``view(address: int64) -> Record``; reading or setting a field touches that memory.
    """
    record_type = record if isinstance(record, types.Record) else numba.from_dtype(np.dtype(record))

    @intrinsic
    def view(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record_type))

        return record_type(types.int64), codegen

    return view


class CallResult:
    """What `call_at` returns when the callee raised; a callee returns 0 or more."""

    RAISED = -1


def call_at(arity: int) -> Any:
    """Return an intrinsic that calls a kernel by address with `arity` int64 arguments.

    The callee has signature ``int64(int64, ...)`` in numba's convention. An exception inside it does not propagate: the
    intrinsic returns ``CallResult.RAISED``, and the caller must look.
    """
    signature_args = (types.int64,) * arity

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = context.call_conv.get_function_type(types.int64, signature_args)
        pointer = builder.inttoptr(args[0], function_type.as_pointer())
        status, result = context.call_conv.call_function(
            builder, pointer, types.int64, signature_args, list(args[1:])
        )
        return builder.select(status.is_error, ir.Constant(_I64, CallResult.RAISED), result)

    names = ", ".join(f"a{i}" for i in range(arity))
    namespace: dict[str, Any] = {"types": types, "codegen": codegen, "signature_args": signature_args}
    source = (
        f"def call(typingctx, address, {names}):\n"
        f"    return types.int64(types.int64, *signature_args), codegen\n"
    )
    exec(source, namespace)  # numba reads an intrinsic's arity from its signature, so it must be spelled out
    return intrinsic(namespace["call"])
