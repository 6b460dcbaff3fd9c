"""Where the time goes: a histogram of durations for each hop of the hot path, always on.

**Model.** A duration in ns falls into a bucket of a log-linear scale: exact up to 63 ns, then 32 buckets for each
doubling, up to 18 minutes. A bucket is at most 1/32 of its value wide and is reported by its middle, so a percentile is
wrong by at most 1.6 %. Buckets are plain counters: two histograms merge by addition, and what happened since a moment
is a difference. One hop takes 9 KB, of which a steady stream touches a few cache lines; nothing grows.

**Two clocks.** Inside a kernel a hop is measured by the cycle counter (10 ns to read), outside by the host's clock.
Whoever makes the memory says how long a cycle is; 0 switches the kernel hops off, as where there is no counter to read.
A hop outside costs one store: the next entry into the engine's loop adds what was stored. Only the last duration of
each hop between two entries is kept, and entries follow each tick.

**Promise.** The memory is no part of any state: the engine's kernels write it and never read a duration back, so a
replay gives the same rows with it, without it, or on a slower machine. It may be a mapped file; then any process reads
it without a word to the writer. A reader may see a count that is one ahead of its sum: nothing is locked.

References
----------
G. Tene, HdrHistogram (the log-linear scale).
"""

from __future__ import annotations

import mmap
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.core.errors import ConfigError
from hftlab.kernels.jit import address_of, cycle_counter, kernel, load, store

__all__ = [
    "APPLY",
    "BUCKETS",
    "DECODE",
    "ENCODE",
    "ENGINE_CALL",
    "HAS_COUNTER",
    "HOPS",
    "HOP_TEXTS",
    "Histogram",
    "LATENCY_FILE",
    "Latency",
    "ORDER_ROWS",
    "RISK",
    "SEND",
    "STRATEGY",
    "TICK_TO_ORDER",
    "WORDS",
    "add_cycles",
    "add_ns",
    "bucket_middles",
    "bucket_of",
    "fold_noted",
    "mark",
    "record_ns",
    "since_mark",
    "spend",
    "spent",
    "summarised",
    "ticks",
]

HOPS = ("decode", "apply", "strategy", "risk", "order_rows", "engine", "encode", "send", "tick_to_order")
"""Names of the hops, in the order in which a tick passes them."""

DECODE, APPLY, STRATEGY, RISK, ORDER_ROWS, ENGINE_CALL, ENCODE, SEND, TICK_TO_ORDER = range(9)

HOP_TEXTS = {
    "decode": "frame received to its rows in hand",
    "apply": "rows applied before a callback",
    "strategy": "the callback, without risk and order rows",
    "risk": "the checks of a callback's orders",
    "order_rows": "a callback's orders laid into state and journal",
    "engine": "rows in hand to everything published (of ticks with an order)",
    "encode": "order rows to signed requests",
    "send": "the calls of send of a tick's requests",
    "tick_to_order": "frame received to the last of its orders sent",
}
"""What each hop spans."""

LATENCY_FILE = "latency"
"""Name of the file in a session's folder."""

HAS_COUNTER = platform.machine() in ("x86_64", "AMD64")
"""Whether a user process may read the cycle counter; elsewhere the kernel hops stay empty."""

SUB_BITS = 5
BUCKETS = ((40 - SUB_BITS - 1) << SUB_BITS) + (2 << SUB_BITS)
_LIMIT = (1 << 40) - 1
_SCALE_BITS = 24

_MAGIC = 0x31595441464C5448  # "HTLFATY1": a file of another layout is refused
_AT_MAGIC, _AT_HOPS, _AT_SCALE, _AT_MARK, _AT_SPENT = 0, 1, 2, 3, 4  # _AT_SPENT: two words, risk and order rows
_NOTED = 8
_HEAD = 32
_HOP_WORDS = 8 + BUCKETS  # count, sum, largest, five free, buckets
_COUNT, _SUM, _LARGEST, _FIRST = 0, 1, 2, 8
WORDS = _HEAD + len(HOPS) * _HOP_WORDS
"""Size of the memory, in int64 words."""

_N_HOPS = len(HOPS)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _leading_zeros(typingctx: Any, value: Any) -> Any:
    """Return how many zero bits stand before the first one of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@kernel(inline=True)
def ticks() -> int:
    """Return the cycle counter as int64; 0 where it may not be read."""
    if HAS_COUNTER:
        return cycle_counter()  # type: ignore[no-any-return]
    return 0


@kernel(inline=True)
def bucket_of(ns: int) -> int:
    """Return the bucket of a duration; negative ones count as 0, ones beyond 18 minutes as the longest.

    Examples
    --------
    >>> bucket_of(5), bucket_of(63), bucket_of(64), bucket_of(65), bucket_of(1 << 50) == BUCKETS - 1
    (5, 63, 64, 64, True)
    """
    value = min(max(ns, 0), _LIMIT)
    shift = max(0, 63 - int(_leading_zeros(value | 1)) - SUB_BITS)
    return (shift << SUB_BITS) + (value >> shift)


@kernel(inline=True)
def add_ns(latency: int, hop: int, ns: int) -> None:
    """Count one duration of `hop` in the memory at `latency`."""
    at = latency + 8 * (_HEAD + hop * _HOP_WORDS)
    bucket = at + 8 * (_FIRST + bucket_of(ns))
    store(bucket, load(bucket) + 1)
    store(at + 8 * _COUNT, load(at + 8 * _COUNT) + 1)
    store(at + 8 * _SUM, load(at + 8 * _SUM) + ns)
    if ns > load(at + 8 * _LARGEST):
        store(at + 8 * _LARGEST, ns)


@kernel(inline=True)
def add_cycles(latency: int, hop: int, cycles: int) -> None:
    """Count one duration given in cycles; nothing where a cycle's length is not known."""
    scale = load(latency + 8 * _AT_SCALE)
    if scale != 0:
        add_ns(latency, hop, (max(0, cycles) * scale) >> _SCALE_BITS)


@kernel(inline=True)
def mark(latency: int, now: int) -> None:
    """Keep a moment (cycles) from which `since_mark` counts, and forget what was spent."""
    store(latency + 8 * _AT_MARK, now)
    store(latency + 8 * _AT_SPENT, 0)
    store(latency + 8 * _AT_SPENT + 8, 0)


@kernel(inline=True)
def since_mark(latency: int, now: int) -> int:
    """Return the cycles since `mark`."""
    return now - load(latency + 8 * _AT_MARK)  # type: ignore[no-any-return]  # an intrinsic is untyped


@kernel(inline=True)
def spend(latency: int, which: int, cycles: int) -> None:
    """Add to what was spent since the mark: 0 on risk, 1 on order rows."""
    at = latency + 8 * (_AT_SPENT + which)
    store(at, load(at) + cycles)


@kernel(inline=True)
def spent(latency: int, which: int) -> int:
    """Return what was spent since the mark, cycles."""
    return load(latency + 8 * (_AT_SPENT + which))  # type: ignore[no-any-return]


@kernel(inline=True)
def fold_noted(latency: int) -> None:
    """Count the durations that the host has noted since the last time."""
    for hop in range(_N_HOPS):
        at = latency + 8 * (_NOTED + hop)
        ns = load(at)
        if ns != 0:
            store(at, 0)
            add_ns(latency, hop, ns)


@kernel("int64(int64, int64, int64)")
def record_ns(latency: int, hop: int, ns: int) -> int:
    """Count one duration of `hop`: for who is not on the hot path. The caller has checked `hop`."""
    add_ns(latency, hop, ns)
    return 0


@kernel("int64(int64)")
def _fold(latency: int) -> int:
    fold_noted(latency)
    return 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations of one hop.

    Parameters
    ----------
    counts : int64 array, shape (BUCKETS,)
    total_ns : int
        Their sum.
    largest_ns : int
        The longest since the memory was made; a difference keeps it.

    Examples
    --------
    >>> latency = Latency()
    >>> for ns in (900, 1000, 1100, 50_000):
    ...     _ = record_ns(latency.address, RISK, ns)
    >>> told = latency.histogram("risk")
    >>> told.n, round(told.percentile(50) / 1000, 2), told.largest_ns, (told + told).n
    (4, 1.0, 50000, 8)
    """

    counts: npt.NDArray[np.int64]
    total_ns: int
    largest_ns: int

    @property
    def n(self) -> int:
        """How many durations there are."""
        return int(self.counts.sum())

    @property
    def mean_ns(self) -> float:
        """Their mean, ns; NaN without any."""
        n = self.n
        return self.total_ns / n if n else float("nan")

    def percentile(self, q: float) -> float:
        """Return the duration that `q` percent do not exceed, ns, within 1.6 %; NaN without any.

        Raises
        ------
        ValueError
            If `q` is outside 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"q={q}; expected 0 to 100")
        upto = np.cumsum(self.counts)
        if not upto[-1]:
            return float("nan")
        bucket = int(np.searchsorted(upto, max(1.0, upto[-1] * q / 100.0), side="left"))
        return float(_MIDDLES[bucket])

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            self.counts + other.counts, self.total_ns + other.total_ns, max(self.largest_ns, other.largest_ns)
        )

    def __sub__(self, earlier: Histogram) -> Histogram:
        return Histogram(self.counts - earlier.counts, self.total_ns - earlier.total_ns, self.largest_ns)


def _middles() -> npt.NDArray[np.float64]:
    index = np.arange(BUCKETS, dtype=np.int64)
    shift = np.maximum(0, (index >> SUB_BITS) - 1)
    lower = (index - (shift << SUB_BITS)) << shift
    middles: npt.NDArray[np.float64] = lower + ((1 << shift) - 1) / 2.0
    return middles


_MIDDLES = _middles()


def bucket_middles() -> npt.NDArray[np.float64]:
    """Return the duration that stands for each bucket, ns, ascending."""
    return _MIDDLES.copy()


class Latency:
    """The histograms of one process, in memory of its own or in a mapped file.

    Parameters
    ----------
    ns_per_cycle : float
        Length of one step of the cycle counter, ns; 0 leaves the kernel hops out.

    Attributes
    ----------
    address : int
        Of the memory, for the engine.
    noted : memoryview of int64
        ``noted[hop] = ns`` hands a duration (above 0) to the next entry into the loop.

    Examples
    --------
    >>> latency = Latency()
    >>> latency.noted[SEND] = 2_500
    >>> latency.fold()
    >>> latency.summary()["send"]["n"]
    1
    """

    def __init__(self, ns_per_cycle: float = 0.0, *, _words: npt.NDArray[np.int64] | None = None) -> None:
        self._words = np.zeros(WORDS, np.int64) if _words is None else _words
        if _words is None:
            self._lay(ns_per_cycle)
        self.address = address_of(self._words)
        if self._words.flags.writeable:
            self.noted: memoryview[int] = self._words[_NOTED : _NOTED + len(HOPS)].data

    def _lay(self, ns_per_cycle: float) -> None:
        scale = round(ns_per_cycle * (1 << _SCALE_BITS))
        if not 0 <= scale < 1 << 30:
            raise ConfigError(f"ns_per_cycle={ns_per_cycle}; expected 0 to 64")
        self._words[_AT_HOPS], self._words[_AT_SCALE] = len(HOPS), scale if HAS_COUNTER else 0
        self._words[_AT_MAGIC] = _MAGIC

    @classmethod
    def create(cls, path: Path, ns_per_cycle: float = 0.0) -> Latency:
        """Return empty histograms in a new file at `path`, readable by the user alone; one that was there is replaced.

        The file lies on a disk but is never flushed by us: it is worth nothing after a power cut.

        Raises
        ------
        OSError
            If there is no room for it.
        """
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        beside.touch(mode=0o600)
        with beside.open("r+b") as file:
            try:
                file.write(bytes(8 * WORDS))  # every block now: a store into a hole of a full disk ends the process
                file.flush()
            except OSError:
                beside.unlink()
                raise
            words = np.frombuffer(mmap.mmap(file.fileno(), 8 * WORDS), np.int64)
        latency = cls(_words=words)
        latency._lay(ns_per_cycle)
        beside.replace(path)  # whoever has the old one mapped keeps it
        return latency

    @classmethod
    def open(cls, path: Path) -> Latency:
        """Return the histograms in the file at `path`, for reading; they change as their writer works.

        Raises
        ------
        ConfigError
            If there is none, or it is of another layout.
        """
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"there are no latency histograms at {path}") from error
        words = np.frombuffer(mapped[: len(mapped) // 8 * 8] if len(mapped) % 8 else mapped, np.int64)
        if len(words) != WORDS or words[_AT_MAGIC] != _MAGIC or words[_AT_HOPS] != len(HOPS):
            raise ConfigError(f"{path} holds no latency histograms of this version of hftlab")
        return cls(_words=words)

    def fold(self) -> None:
        """Count what was noted since the engine's loop was entered last."""
        _fold(self.address)

    def histogram(self, hop: str) -> Histogram:
        """Return a copy of one hop's histogram; raises ValueError for no name of `HOPS`."""
        at = _HEAD + HOPS.index(hop) * _HOP_WORDS
        buckets = self._words[at + _FIRST : at + _FIRST + BUCKETS].copy()
        return Histogram(buckets, int(self._words[at + _SUM]), int(self._words[at + _LARGEST]))

    def histograms(self) -> dict[str, Histogram]:
        """Return copies of all hops' histograms."""
        return {hop: self.histogram(hop) for hop in HOPS}

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the percentiles (us) and the count of every hop that has happened."""
        return {hop: told for hop, h in self.histograms().items() if (told := summarised(h))["n"]}


def summarised(histogram: Histogram) -> dict[str, float]:
    """Return ``p50_us, p99_us, p999_us, max_us`` and ``n`` of a histogram; only ``n``, 0, if it is empty."""
    if not histogram.n:
        return {"n": 0}
    return {
        "p50_us": round(histogram.percentile(50) / 1e3, 2),
        "p99_us": round(histogram.percentile(99) / 1e3, 2),
        "p999_us": round(histogram.percentile(99.9) / 1e3, 2),
        "max_us": round(histogram.largest_ns / 1e3, 2),
        "n": histogram.n,
    }
