"""A bell: how a reader sleeps until a writer has published, at no cost to the writer while nobody sleeps.

**Model.** Two words of shared memory: a *flag* that a reader raises before it sleeps, and a *count* of rings, which is
the futex it sleeps on. The reader raises the flag, looks for rows once more, and sleeps only if there are none and the
count is as it was before. The writer publishes, then reads the flag: down, it goes on; up, it takes the flag down, adds
to the count and wakes all who sleep.

**Promise: no ring is lost.** The danger is the old one: the writer reads the flag while its publication is still in its
core's store buffer, and the reader misses the rows while its flag is still in its own. A fence in the writer would cost
5 ns a publication (measured), twenty times the publication itself. So the cost lies with who sleeps: the reader makes
the kernel run a barrier on the writer's core (membarrier, 0.8 us). After it the writer has seen the flag, or the reader
sees the rows. Whoever takes a flag down rings afterwards, always, so one ring answers every flag raised before it.

A reader that dies leaves a flag up: one ring for nothing takes it down. A writer that dies rings no more: every sleep
has an end. A writer whose kernel knows no such barrier says so beside the bell, and its readers sleep 1 ms at a time.

**Why not ring for every publication.** A ring is a system call, 0.3 to 2 us and more when it wakes somebody: a host
rings after it has sent its orders, not before.

**Worst case accepted.** A writer that publishes while one reader after another goes to sleep rings each time. Where
there are no futexes (macOS; untested there) readers sleep 1 ms at a time and nobody rings.

References
----------
futex(2), membarrier(2): MEMBARRIER_CMD_GLOBAL_EXPEDITED.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.core.errors import JournalError
from hftlab.kernels.jit import address_of, kernel, load, load_acquire, store, store_release
from hftlab.kernels.system import FUTEX, LINUX, MEMBARRIER, system_call

__all__ = ["BELL_BYTES", "BELL_FILE", "Bell", "raise_flag", "register_ringer", "take_flag"]

BELL_BYTES = 4096
BELL_FILE = "bell"
"""Name of a journal's bell in its folder."""
_COUNT_AT, _FLAG_AT, _BARRIER_AT = 0, 64, 128
_NAP_S = 0.001

# of <linux/membarrier.h> and <linux/futex.h>
_GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 1 << 1, 1 << 2
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1
_I64 = ir.IntType(64)
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types


@_intrinsic
def _compiler_barrier(typingctx: Any) -> Any:
    """Keep the compiler from moving loads above stores: no instruction, the barrier of `raise_flag` does the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst", targetscope="singlethread")
        return context.get_dummy_value()

    return types.void(), codegen


@_intrinsic
def _exchange(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@_intrinsic
def _add(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@kernel(inline=True)
def take_flag(flag: int) -> int:
    """Return whether a flag was up, and take it down: to be asked after a publication, by who then rings."""
    _compiler_barrier()
    if load(flag) == 0:
        return 0
    return _exchange(flag, 0)  # type: ignore[no-any-return]  # an intrinsic


@kernel("int64(int64)")
def raise_flag(flag: int) -> int:
    """Raise a flag and return once its writer sees it, or the caller sees what the writer published: look once more."""
    store_release(flag, 1)
    _compiler_barrier()
    done = system_call(MEMBARRIER, _GLOBAL_EXPEDITED, 0, 0, 0, 0, 0) if LINUX else 0
    _compiler_barrier()
    return done


@kernel("int64()")
def _register() -> int:
    return system_call(MEMBARRIER, _REGISTER_GLOBAL_EXPEDITED, 0, 0, 0, 0, 0) if LINUX else -1


@kernel("int64(int64)", nogil=False)
def _ring(bell: int) -> int:
    if take_flag(bell + _FLAG_AT) == 0:
        return 0
    _add(bell + _COUNT_AT, 1)
    if LINUX:
        system_call(FUTEX, bell + _COUNT_AT, _FUTEX_WAKE, _EVERYBODY, 0, 0, 0)
    return 1


@kernel("int64(int64, int64, int64, int64)")
def _sleep(bell: int, count: int, timespec: int, ns: int) -> int:
    """Sleep until the count moves from `count`, at most `ns` (below 1 s); return whether it has."""
    store(timespec, 0)
    store(timespec + 8, ns)
    system_call(FUTEX, bell + _COUNT_AT, _FUTEX_WAIT, count & 0xFFFFFFFF, timespec, 0, 0)
    return 1 if load_acquire(bell + _COUNT_AT) != count else 0


@kernel("int64(int64)")
def _count(bell: int) -> int:
    return load_acquire(bell + _COUNT_AT)  # type: ignore[no-any-return]  # an intrinsic


def register_ringer() -> bool:
    """Make this process one on whose cores `raise_flag` of others runs its barrier; return whether the kernel can."""
    return int(_register()) == 0


class Bell:
    """A bell in a file, for one writer and any number of readers.

    Parameters
    ----------
    path : Path
        The file; all who share it map it writable.
    writer : bool
        Create it if absent, and register this process as the one who rings.

    Raises
    ------
    JournalError
        If the file cannot be opened for writing, or is no bell.

    Examples
    --------
    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "bell"
    >>> writer, reader = Bell(path, writer=True), Bell(path)
    >>> writer.ring(), reader.arm(), writer.ring(), writer.ring()
    (False, 0, True, False)
    >>> reader.sleep(0, 1.0)  # rung since: returns at once
    True
    """

    LONGEST_S = 0.05
    """The longest sleep in one piece: a signal is answered within it, whatever the system restarts."""

    def __init__(self, path: Path, *, writer: bool = False) -> None:
        try:
            fd = os.open(path, os.O_RDWR | (os.O_CREAT if writer else 0) | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            if writer and os.fstat(fd).st_size < BELL_BYTES:
                os.pwrite(fd, bytes(BELL_BYTES), 0)  # written, not only sized: a full disk says so here, not by SIGBUS
            if os.fstat(fd).st_size != BELL_BYTES:
                raise JournalError(f"{path} is {os.fstat(fd).st_size} bytes; expected a bell of {BELL_BYTES}")
            self._memory = np.frombuffer(mmap.mmap(fd, BELL_BYTES), np.int64)
        finally:
            os.close(fd)
        self.address = address_of(self._memory)
        self._flag = self._memory[_FLAG_AT // 8 :].data  # a memoryview: 30 ns to read, no numpy scalar
        self._barrier = self._memory[_BARRIER_AT // 8 :].data
        self._timespec = np.zeros(2, np.int64)
        self._nap = threading.Event()  # never set: its wait is a sleep
        if writer:
            self._barrier[0] = int(register_ringer())

    def ring(self) -> bool:
        """Wake who sleeps; return whether anybody had raised the flag. To be called after a publication."""
        return bool(self._flag[0]) and bool(_ring(self.address))

    def arm(self) -> int:
        """Announce that the caller is about to sleep, and return what `sleep` wants to know. Look for rows after it."""
        count = int(_count(self.address))
        raise_flag(self.address + _FLAG_AT)
        return count

    def sleep(self, count: int, most_s: float) -> bool:
        """Sleep until the bell has rung since `arm` returned `count`; at most `most_s` seconds, in one piece of 50 ms.

        Returns
        -------
        bool
            Whether it has rung.
        """
        most_s = min(most_s, self.LONGEST_S)
        if not (LINUX and self._barrier[0]):
            self._nap.wait(min(most_s, _NAP_S))
            return bool(_count(self.address) != count)
        return bool(_sleep(self.address, count, address_of(self._timespec), int(most_s * 1e9)))
