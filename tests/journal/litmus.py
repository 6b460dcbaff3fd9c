"""One side of the bell's litmus test, in a process of its own: ``litmus.py ring|wait BELL WORDS ROUNDS SEED``.

Each round the waiter raises the flag, looks for the publication and sleeps if there is none, while the ringer
publishes and rings. The waiter comes a little later after each sleep and a little earlier after each round without,
and both are delayed by a few random turns, so that the two stores and the two loads meet within the few nanoseconds of
the store buffers again and again. A lost ring leaves the waiter asleep to its sleep's end.
Words: 0 the publication, 64 the waiter's answer, both round numbers. Prints the rounds done and the sleeps.
Not collected as a test: see ``collect_ignore``.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from pathlib import Path

import numpy as np

from hftlab.journal.bell import Bell, _count, _ring, _sleep, raise_flag
from hftlab.kernels.jit import address_of, kernel, load_acquire, store, store_release
from hftlab.kernels.ring import relax
from hftlab.kernels.system import system_call

_FLAG_AT = 64
_YIELD = {"x86_64": 24, "aarch64": 124}.get(platform.machine(), 24)
_SLEEP_NS = 999_000_000
_TURNS = 8
_LATEST, _RINGERS_TURNS = 4096, 1000


@kernel("int64(int64)")
def _delay(seed: int) -> int:
    """Wait a random number of turns, and return the next seed."""
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    for _ in range((seed >> 8) % _TURNS):
        relax()
    return seed


@kernel("int64(int64, int64)")
def _until(word: int, value: int) -> int:
    turns = 0
    while load_acquire(word) < value:
        relax()
        turns += 1
        if turns % 4096 == 0:
            system_call(_YIELD, 0, 0, 0, 0, 0, 0)  # where two processes have one core
    return turns


@kernel("int64(int64, int64, int64, int64)")
def ring(bell: int, words: int, rounds: int, seed: int) -> int:
    for i in range(1, rounds + 1):
        for _ in range(_RINGERS_TURNS):  # the waiter has a system call to make before it looks
            relax()
        seed = _delay(seed)
        store_release(words, i)
        _ring(bell)
        _until(words + 64, i)
    return rounds


@kernel("int64(int64, int64, int64, int64, int64, int64)")
def wait(bell: int, words: int, rounds: int, seed: int, timespec: int, sleeps: int) -> int:
    """Return the rounds until a ring was lost: `rounds` if none was."""
    slept = late = 0
    for i in range(1, rounds + 1):
        for _ in range(late):
            relax()
        seed = _delay(seed)
        count = _count(bell)
        raise_flag(bell + _FLAG_AT)
        if load_acquire(words) < i:
            slept += 1
            late = min(late + 1, _LATEST)
            rung = 0
            for _ in range(5):  # a ringer without a core for seconds has not lost its ring
                if rung == 0:
                    rung = _sleep(bell, count, timespec, _SLEEP_NS)
            if rung == 0 and load_acquire(words) >= i:
                store_release(words + 64, rounds)  # the ringer need not wait any longer
                return i - 1
            _until(words, i)
        else:
            late = max(late - 1, 0)
        store(sleeps, slept)
        store_release(words + 64, i)
    return rounds


if __name__ == "__main__":
    role, path = sys.argv[1], Path(sys.argv[2])
    rounds, seed = int(sys.argv[4]), int(sys.argv[5])
    with open(sys.argv[3], "r+b") as file:
        words = np.frombuffer(mmap.mmap(file.fileno(), 4096), np.int64)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[0 if role == "ring" else -1]})
    bell = Bell(path, writer=role == "ring")
    print("ready", flush=True)
    sys.stdin.readline()
    if role == "ring":
        print(ring(bell.address, address_of(words), rounds, seed), 0, flush=True)
    else:
        timespec, sleeps = np.zeros(2, np.int64), np.zeros(1, np.int64)
        done = wait(bell.address, address_of(words), rounds, seed, address_of(timespec), address_of(sleeps))
        print(done, int(sleeps[0]), flush=True)
