"""ITCH: a full market's messages to rows, and to the market-by-order books of 8,000 symbols.

The stream is drawn from a seed by a kernel: first the directory, then 10 million messages. Symbols are as unequal as
they are (the k-th gets a share of k**-0.9), prices lie some ticks from a mid that drifts, sizes are round lots or odd.
Of the messages 46 % add, 44 % delete, 5 % execute, 3 % replace, 2 % cancel in part or trade hidden; about 330,000
orders rest. An order that is named is most often a recent one, as in a real feed: three in four by a heavy-tailed
number of orders back, one in four any.

Figures: ``decode_ns`` a message to rows in a reused buffer of 2,048 rows; ``books_ns`` a message to rows and into the
books of all symbols. Both go through the public calls, a block at a time from Python. The check decodes a prefix with
``struct`` and keeps its books in dicts, compares every level of every symbol, and is also the peer ``python``.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio
from hftlab.books import L3Book
from hftlab.codecs.itch import ItchDecoder
from hftlab.core.rows import Flag, Kind
from hftlab.kernels.jit import address_of, kernel

__all__ = ["GOALS", "prepare"]

GOALS = {"decode_vs_itchfeed": (100.0, 200.0), "books_ns": (90.0, 65.0)}

MESSAGES, SYMBOLS = 10_000_000, 8_000
_DAY = date(2023, 8, 22)
_CHECKED = 300_000  # messages
_PEER_BYTES = 6_000_000
_BLOCK = 2048  # rows
_LONGEST = 50  # bytes of a frame
_REF, _QTY, _PX, _SIDE, _SYMBOL = range(5)

Bytes = npt.NDArray[np.uint8]


@kernel(inline=True)
def _put(out: Any, at: int, value: int, size: int) -> int:
    for k in range(size):
        out[at + k] = (value >> (8 * (size - 1 - k))) & 0xFF
    return at + size


@kernel(inline=True)
def _head(out: Any, at: int, size: int, kind: int, symbol: int, now: int) -> int:
    at = _put(out, at, size, 2)
    at = _put(out, at, kind, 1)
    at = _put(out, at, symbol, 2)
    at = _put(out, at, 0, 2)
    return _put(out, at, now, 6)


@kernel(inline=True)
def _stock(out: Any, at: int, symbol: int) -> int:
    for _ in range(4):
        out[at] = 65 + symbol % 26
        symbol //= 26
        at += 1
    return _put(out, at, 0x20202020, 4)


@kernel(inline=True)
def _near(mid: int, side: int) -> int:
    """Draw a price some cents from `mid`, rarely far from it."""
    cents = 1 + int(np.random.exponential(5.0 if np.random.random() < 0.93 else 60.0))
    return max(100, mid - 100 * cents) if side == 0 else mid + 100 * cents


@kernel(inline=True)
def _lots() -> int:
    if np.random.random() < 0.7:
        return 100 * (1 + int(np.random.exponential(2.0)))
    return np.random.randint(1, 500)


@kernel()
def _draw(out: Any, n: int, shares: Any, mids: Any, orders: Any, live: Any, seed: int) -> int:
    """Write the directory and `n` messages to `out`; return the bytes written."""
    np.random.seed(seed)
    symbols = len(mids) - 1
    at, now, n_orders, n_live, ref = 0, 34_200 * 10**9, 0, 0, 1_000
    for symbol in range(1, symbols + 1):
        mids[symbol] = 100 * np.random.randint(1_000, 50_000)
        at = _stock(out, _head(out, at, 39, 82, symbol, now), symbol)
        at = _put(out, at, 0x514E, 2)  # market category Q, status N
        at = _put(out, at, 100, 4)
        for k in range(14):
            out[at + k] = 0 if 8 < k < 13 else 78
        out[at + 3], out[at + 4] = 32, 80  # an issue sub-type of one letter, in production
        at += 14
    wanted = n // 30
    for number in range(n):
        now += 1 + int(np.random.exponential(2_000.0))
        what = np.random.random()
        adds = 0.85 if n_live < wanted // 2 else 0.49 if n_live < wanted else 0.43
        if what < adds or n_live < 100:
            symbol = min(symbols, 1 + int(np.searchsorted(shares, np.random.random())))
            if np.random.random() < 0.02:
                mids[symbol] = max(20_000, mids[symbol] + 100 * np.random.randint(-1, 2))
            side, attributed = np.random.randint(0, 2), np.random.random() < 0.05
            ref += 1 + int(np.random.exponential(1.2))
            px, qty = _near(mids[symbol], side), _lots()
            order = orders[n_orders]
            order[_REF], order[_QTY], order[_PX], order[_SIDE], order[_SYMBOL] = ref, qty, px, side, symbol
            live[n_live] = n_orders
            n_orders += 1
            n_live += 1
            at = _head(out, at, 40 if attributed else 36, 70 if attributed else 65, symbol, now)
            at = _put(out, _put(out, at, ref, 8), 83 if side else 66, 1)
            at = _put(out, _stock(out, _put(out, at, qty, 4), symbol), px, 4)
            at = _put(out, at, 0x4E534451, 4) if attributed else at
            continue
        back = int(np.exp(np.random.random() * np.log(float(min(n_live, 200_000)))))
        k = n_live - back if np.random.random() < 0.75 else np.random.randint(0, n_live)
        order = orders[live[k]]
        symbol = order[_SYMBOL]
        is_gone = False
        if what < 0.895:
            at = _put(out, _head(out, at, 19, 68, symbol, now), order[_REF], 8)
            is_gone = True
        elif what < 0.945:
            qty = order[_QTY] if np.random.random() < 0.6 else max(1, order[_QTY] // 2)
            priced = np.random.random() < 0.03
            at = _head(out, at, 36 if priced else 31, 67 if priced else 69, symbol, now)
            at = _put(out, _put(out, _put(out, at, order[_REF], 8), qty, 4), number, 8)
            at = _put(out, _put(out, at, 89, 1), order[_PX], 4) if priced else at
            order[_QTY] -= qty
            is_gone = order[_QTY] == 0
        elif what < 0.975:
            ref += 1 + int(np.random.exponential(1.2))
            px, qty = _near(mids[symbol], order[_SIDE]), _lots()
            at = _put(out, _put(out, _head(out, at, 35, 85, symbol, now), order[_REF], 8), ref, 8)
            at = _put(out, _put(out, at, qty, 4), px, 4)
            order[_REF], order[_QTY], order[_PX] = ref, qty, px
        elif order[_QTY] > 1:
            qty = max(1, order[_QTY] // 3)
            at = _put(out, _put(out, _head(out, at, 23, 88, symbol, now), order[_REF], 8), qty, 4)
            order[_QTY] -= qty
        else:
            at = _put(out, _put(out, _head(out, at, 44, 80, symbol, now), 0, 8), 66, 1)
            at = _put(out, _stock(out, _put(out, at, 100, 4), symbol), order[_PX], 4)
            at = _put(out, at, number, 8)
        if is_gone:
            n_live -= 1
            live[k] = live[n_live]
    return at


def _stream(n: int, symbols: int, seed: int) -> Bytes:
    shares = 1.0 / np.arange(1, symbols + 1) ** 0.9
    out = np.empty(_LONGEST * (n + symbols), np.uint8)
    size = _draw(
        out, n, np.cumsum(shares / shares.sum()), np.zeros(symbols + 1, np.int64), np.zeros((n, 5), np.int64),
        np.zeros(n, np.int64), seed,
    )  # fmt: skip
    return out[:size].copy()


class _PlainBooks:
    """The same by struct and dicts: the reference of the check, and the peer ``python``."""

    def __init__(self) -> None:
        self.orders: dict[int, list[int]] = {}
        self.levels: dict[tuple[int, int], dict[int, int]] = {}
        self.kinds: Counter[str] = Counter()

    def feed(self, data: bytes, at: int, end: int) -> int:
        """Apply the messages from `at` to `end`; return how many."""
        before = self.kinds.total()
        while at < end:
            size = data[at] << 8 | data[at + 1]
            kind = chr(data[at + 2])
            self.kinds[kind] += 1
            (locate,) = struct.unpack_from(">H", data, at + 3)
            body = at + 13
            if kind == "A" or kind == "F":
                ref, side, qty, _, px = struct.unpack_from(">QBI8sI", data, body)
                self._add(ref, locate, 0 if side == 66 else 1, px, qty)
            elif kind == "D":
                (ref,) = struct.unpack_from(">Q", data, body)
                self._take(ref, self.orders[ref][3])
            elif kind in "ECX":
                ref, qty = struct.unpack_from(">QI", data, body)
                self._take(ref, qty)
            elif kind == "U":
                old, ref, qty, px = struct.unpack_from(">QQII", data, body)
                locate, side, _, left = self.orders[old]
                self._take(old, left)
                self._add(ref, locate, side, px, qty)
            at += 2 + size
        return self.kinds.total() - before

    def _add(self, ref: int, locate: int, side: int, px: int, qty: int) -> None:
        self.orders[ref] = [locate, side, px, qty]
        levels = self.levels.setdefault((locate, side), {})
        levels[px] = levels.get(px, 0) + qty

    def _take(self, ref: int, qty: int) -> None:
        order = self.orders[ref]
        locate, side, px, left = order
        levels = self.levels[locate, side]
        levels[px] -= qty
        if not levels[px]:
            del levels[px]
        if left == qty:
            del self.orders[ref]
        else:
            order[3] = left - qty

    def depth(self, locate: int, side: int) -> list[tuple[int, int]]:
        return sorted(self.levels.get((locate, side), {}).items(), reverse=side == 0)


def _prefix(data: Bytes, messages: int) -> tuple[int, int]:
    """Return bytes and number of the first `messages` messages, or of all."""
    at = n = 0
    while at < len(data) and n < messages:
        at += 2 + (int(data[at]) << 8 | int(data[at + 1]))
        n += 1
    return at, n


def _decode(decoder: ItchDecoder, data: Bytes, book: L3Book | None = None) -> None:
    """Decode all of `data`, block by block; into the book if there is one."""
    address, left, rows = address_of(data), len(data), address_of(decoder.rows)
    while left:
        used, n = decoder.decode_at(address, left)
        if not used:
            raise CheckFailed(f"itch: the stream ends {left} bytes before its end, in the middle of a message")
        if book is not None:
            book.apply_at(rows, n)
        address += used
        left -= used


def _check(data: Bytes, symbols: int) -> None:
    plain, book, decoder = _PlainBooks(), L3Book(), ItchDecoder(_DAY, capacity=_BLOCK)
    plain.feed(data.tobytes(), 0, len(data))
    _decode(decoder, data, book)
    if decoder.messages != plain.kinds.total() or any(decoder.skipped.values()):
        told = f"{decoder.messages} messages decoded, skipped {decoder.skipped}"
        raise CheckFailed(f"itch: {told}; expected {plain.kinds.total()} and none skipped")
    wrong = {name: n for name, n in book.counts.items() if n and name not in ("locked", "crossed")}
    if wrong or len(book) != len(plain.orders):
        raise CheckFailed(f"itch: {len(book)} orders live, {wrong}; expected {len(plain.orders)} and nothing counted")
    for locate in range(1, symbols + 1):
        depth = book.depth(locate, 1 << 20)
        for side, levels in enumerate((depth.bids, depth.asks)):
            ours = list(zip(levels.px.tolist(), levels.qty.tolist(), strict=True))
            if ours != plain.depth(locate, side):
                raise CheckFailed(f"itch: the book of symbol {locate} differs from the plain one, side {side}")


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: ``decode_ns`` and ``books_ns`` a message; plain Python, itchfeed and itchcpp as peers."""
    symbols = plan.sized(SYMBOLS, 100)
    data = _stream(plan.sized(MESSAGES, 20_000), symbols, 7)
    end, _ = _prefix(data, _CHECKED)
    _check(data[:end], symbols)
    n_plain = plan.sized(1_000_000, 5_000)
    cases = [
        Case("decode_ns", _decoding(data)),
        Case("books_ns", _booking(data)),
        Case("books_ns", _plainly(data[: _prefix(data, n_plain)[0]].tobytes()), peer="python"),
    ]
    ratios = [Ratio("books_vs_python", "books_ns", "python_books_ns")]
    if plan.peers:
        piece = data[: _prefix(data, plan.sized(_PEER_BYTES // 30, 2_000))[0]]
        path = plan.folder / "stream.itch"
        piece.tofile(path)
        for name, packages in (("itchfeed", ["itchfeed==1.6.4"]), ("itchcpp", ["itchfeed==1.6.4", "itchcpp==1.6.4"])):
            peer = plan.peer("itchfeed", packages)
            cases.append(Case("parse_ns", _peer(peer, path, piece, name == "itchcpp"), peer=name))
            ratios.append(Ratio(f"decode_vs_{name}", "decode_ns", f"{name}_parse_ns"))
    return cases, ratios


def _decoding(data: Bytes) -> Callable[[], float]:
    decoder = ItchDecoder(_DAY, capacity=_BLOCK)

    def run() -> float:
        before, started = decoder.messages, time.perf_counter_ns()
        _decode(decoder, data)
        return (time.perf_counter_ns() - started) / (decoder.messages - before)

    return run


def _booking(data: Bytes) -> Callable[[], float]:
    def run() -> float:
        decoder, book = ItchDecoder(_DAY, capacity=_BLOCK), L3Book(orders=1 << 19, instruments=1 << 13)
        started = time.perf_counter_ns()
        _decode(decoder, data, book)
        return (time.perf_counter_ns() - started) / decoder.messages

    return run


def _plainly(data: bytes) -> Callable[[], float]:
    def run() -> float:
        plain, started = _PlainBooks(), time.perf_counter_ns()
        n = plain.feed(data, 0, len(data))
        return (time.perf_counter_ns() - started) / n

    return run


def _peer(peer: PeerProcess, path: Path, piece: Bytes, cpp: bool) -> Callable[[], float]:
    """Check that the peer parses what we parse, and return its round."""
    told = peer.ask(op="prepare", path=str(path), n_bytes=len(piece), cpp=cpp)
    decoder, kinds, sums = ItchDecoder(_DAY, capacity=1 << 16), 0, Counter[str]()
    at = 0
    while at < len(piece):
        rows, at = decoder.decode(piece, at)
        added = rows[rows["kind"] == Kind.ADD]
        kinds += int(((rows["flags"] & Flag.LAST) != 0)[rows["kind"] != Kind.CONT].sum())
        for name, word in (("reference", "a"), ("shares", "qty"), ("price", "px")):
            sums[name] += int(added[word].sum())
    if sum(told["kinds"].values()) != kinds or told["sums"] != dict(sums):
        raise CheckFailed(f"itch: the peer parsed {told}; we {kinds} messages with {dict(sums)}")
    n = decoder.messages

    def run() -> float:
        return float(peer.ask(op="round")["value"]) / n * 1e9

    return run
