"""json: a venue's messages from bytes to rows and to a book, in a batch and by one call from Python.

Binance: 5,000 depthUpdates of 20 levels (735 bytes), ten a side, best first as the venue sends them, up to 400 ticks
from a mid that wanders; three levels in ten are removals. Prices and quantities have eight decimals.

Figures, microseconds a message: ``depth20_batch_us`` decodes and applies them through `MarketDecoder.decode_batch` into
`Ladders`, all by one call; ``depth20_call_us`` is one `decode_to_book` a message; ``depth20_rows_us`` one
`decode` a message, rows only, as a feed does it; ``trade_us``, ``agg_trade_us`` and ``book_ticker_us`` the same for
small messages. ``depth20_sorted_us`` applies the rows (already decoded) to `L2Book`, whose sorted arrays are what the
engine trades on: what the window of ticks saves.

All of it is computing that never waits, so what is taken is the process's CPU time, ours and the peers' alike: on a
machine that does other work as well, a wall clock measures the neighbours.

The check keeps the book with ``json`` and ``decimal`` and compares every level. Peers: msgspec and orjson with a book
in dicts of floats, cryptofeed's message handler.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio
from hftlab.books import L2Book
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.kernels.ladder import Ladders
from hftlab.venues.binance.market import MarketDecoder

__all__ = ["BTC", "GOALS", "binance_depth", "plain_book", "prepare"]

GOALS = {
    "depth20_batch_vs_msgspec": (20.0, 24.0),
    "depth20_call_vs_msgspec": (10.0, 12.0),
    "depth20_call_vs_cryptofeed": (30.0, 40.0),
    "depth20_batch_us": (0.54, 0.45),
    "depth20_call_us": (1.09, 0.9),
}

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00000001"))
MESSAGES = 5_000
_ROWS = 1_024
_FIRST_ID = 10**10
_FIRST_MS = 1_700_000_000_000

Levels = dict[Decimal, Decimal]


def binance_depth(n: int, seed: int = 1, levels: int = 10) -> list[bytes]:
    """Return `n` depthUpdates of `levels` a side, contiguous by their ids.

    Examples
    --------
    >>> binance_depth(1, levels=1)[0][:60]
    b'{"e":"depthUpdate","E":1700000000000,"s":"BTCUSDT","U":10000'
    """
    chance = random.Random(seed)
    mid, frames = 6_543_210, []
    for k in range(n):
        mid += chance.randint(-5, 5)
        sides = []
        for sign in (-1, 1):
            prices = sorted((mid + sign * d for d in chance.sample(range(1, 401), levels)), reverse=sign < 0)
            sides.append([[f"{px / 100:.8f}", _quantity(chance)] for px in prices])
        first = _FIRST_ID + 21 * k
        event = {
            "e": "depthUpdate", "E": _FIRST_MS + 100 * k, "s": "BTCUSDT", "U": first, "u": first + 20,
            "b": sides[0], "a": sides[1],
        }  # fmt: skip
        frames.append(_text(event))
    return frames


def _quantity(chance: random.Random) -> str:
    return f"{0 if chance.random() < 0.3 else chance.random() * 3:.8f}"


def _text(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _small(n: int) -> dict[str, list[bytes]]:
    """Return `n` each of the small messages."""
    chance = random.Random(2)
    found: dict[str, list[bytes]] = {"trade": [], "agg_trade": [], "book_ticker": []}
    for k in range(n):
        px, qty, ms = f"{65432.1 + chance.random():.2f}000000", f"{chance.random():.8f}", _FIRST_MS + k
        trade = {"E": ms, "s": "BTCUSDT"}
        told = {"p": px, "q": qty}
        end = {"T": ms, "m": bool(k & 1), "M": True}
        found["trade"].append(_text({"e": "trade", **trade, "t": 5_933_014 + k, **told, **end}))
        found["agg_trade"].append(
            _text({"e": "aggTrade", **trade, "a": 5_933_014 + k, **told, "f": 100 + k, "l": 105 + k, **end})
        )
        quote = {"u": _FIRST_ID + k, "s": "BTCUSDT", "b": px, "B": qty, "a": px, "A": _quantity(chance)}
        found["book_ticker"].append(_text(quote))
    return found


def plain_book(frames: Sequence[bytes]) -> tuple[Levels, Levels]:
    """Return the book after `frames`, kept with the standard library alone."""
    sides: tuple[Levels, Levels] = ({}, {})
    for frame in frames:
        event = json.loads(frame)
        for side, key in zip(sides, "ba", strict=True):
            for px_text, qty_text in event[key]:
                px, qty = Decimal(px_text), Decimal(qty_text)
                if qty:
                    side[px] = qty
                else:
                    side.pop(px, None)
    return sides


def _check(what: str, books: Ladders, plain: tuple[Levels, Levels]) -> None:
    for side, levels in zip(books.depth(0, 10**6), plain, strict=True):
        found = {Decimal(px) * BTC.tick_size: Decimal(qty) * BTC.lot_size for px, qty in side.tolist()}
        if found != levels:
            raise CheckFailed(f"json: {what} gives {len(found)} levels, not the {len(levels)} of the reference")


def _check_peer(name: str, told: dict[str, Any], plain: tuple[Levels, Levels]) -> None:
    for key, levels in zip(("bids", "asks"), plain, strict=True):
        if [tuple(level) for level in told[key]] != sorted((float(px), float(qty)) for px, qty in levels.items()):
            raise CheckFailed(f"json: {name}'s {key} are not the reference's")


class _Batch:
    """Messages as one text, and the calls that decode them."""

    def __init__(self, frames: Sequence[bytes], decoder: MarketDecoder) -> None:
        self.frames, self.decoder, self.n = frames, decoder, len(frames)
        self.text = b"".join(frames)
        self.ends = np.cumsum([0] + [len(frame) for frame in frames]).astype(np.int64)
        self.stamps = np.zeros(self.n, np.int64)
        self.facts = np.zeros((self.n, 5), np.int64)
        self.out = np.zeros(_ROWS, ROW)

    def to_book(self, books: Ladders) -> None:
        """Decode all of it by one call."""
        self.decoder.decode_batch(self.text, self.ends, self.stamps, self.out, facts=self.facts, books=books)

    def to_book_by_calls(self, books: Ladders) -> None:
        """Decode message by message."""
        call, out = self.decoder.decode_to_book, self.out
        for frame in self.frames:
            call(frame, 0, out, books)

    def to_rows_by_calls(self) -> None:
        """Decode message by message, rows only."""
        call, out = self.decoder.decode, self.out
        for frame in self.frames:
            call(frame, 0, out)


def _timed(what: Callable[[], None], n: int, times: int = 1) -> Callable[[], float]:
    """Return a round: microseconds a message of `what`, which takes `n` messages, done `times` times."""

    def run() -> float:
        started = time.process_time_ns()
        for _ in range(times):
            what()
        return (time.process_time_ns() - started) / 1000 / n / times

    return run


def _asked(peer: PeerProcess, what: str, n: int) -> Callable[[], float]:
    return lambda: float(peer.ask(op="round", what=what)["value"]) / n * 1e6


def _sorted_book(batch: _Batch) -> Callable[[], float]:
    """Return a round: microseconds a message to apply its rows to `L2Book`."""
    out = np.zeros(24 * batch.n, ROW)
    _, n = batch.decoder.decode_batch(batch.text, batch.ends, batch.stamps, out)
    rows, book = out[:n], L2Book()
    return _timed(lambda: book.apply(rows), batch.n)


def _binance(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    frames, small = binance_depth(plan.sized(MESSAGES, 50)), _small(plan.sized(MESSAGES, 50))
    decoder = MarketDecoder([BTC], agg=True)
    batch, plain = _Batch(frames, decoder), plain_book(frames)
    books = {"a batch": Ladders([BTC]), "one call": Ladders([BTC])}
    batch.to_book(books["a batch"])
    batch.to_book_by_calls(books["one call"])
    for what, book in books.items():
        _check(what, book, plain)
    cases = [
        Case("depth20_batch_us", _timed(lambda: batch.to_book(books["a batch"]), batch.n, 5)),
        Case("depth20_call_us", _timed(lambda: batch.to_book_by_calls(books["one call"]), batch.n, 3)),
        Case("depth20_rows_us", _timed(batch.to_rows_by_calls, batch.n, 3)),
        Case("depth20_sorted_us", _sorted_book(batch)),
    ]
    for kind, messages in small.items():
        cases.append(Case(f"{kind}_us", _timed(_Batch(messages, decoder).to_rows_by_calls, batch.n, 3)))
    if any(decoder.counts.values()):
        raise CheckFailed(f"json: {decoder.counts}; expected every message to be read by the first reader")
    peers, ratios = _peers(plan, {"depth": frames, **small}, plain)
    return cases + peers, ratios


def _peers(
    plan: Plan, messages: dict[str, list[bytes]], plain: tuple[Levels, Levels]
) -> tuple[list[Case], list[Ratio]]:
    """Return the peers' cases, and ours over theirs; msgspec needs no environment and is always there."""
    paths = {kind: _write(plan.folder / f"binance.{kind}", frames) for kind, frames in messages.items()}
    started = {"msgspec": plan.peer("dict_book", [], "msgspec")}
    if plan.peers:
        started["orjson"] = plan.peer("dict_book", ["orjson==3.11.7"], "orjson")
        started["cryptofeed"] = plan.peer("cryptofeed_handler", ["cryptofeed==2.4.1"])
    cases, ratios, n = [], [], len(messages["depth"])
    for name, peer in started.items():
        _check_peer(name, peer.ask(op="prepare", paths=paths), plain)
        for kind in messages:
            if name == "cryptofeed" and kind not in ("depth", "agg_trade"):
                continue
            figure = "depth20" if kind == "depth" else kind
            cases.append(Case(f"{figure}_us", _asked(peer, kind, n), peer=name))
            for ours in ("depth20_batch", "depth20_call") if kind == "depth" else (kind,):
                ratios.append(Ratio(f"{ours}_vs_{name}", f"{ours}_us", f"{name}_{figure}_us"))
    return cases, ratios


def _write(path: Path, frames: Sequence[bytes]) -> str:
    path.write_bytes(b"\n".join(frames))
    return str(path)


_VENUES = (_binance,)


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases of every venue."""
    cases: list[Case] = []
    ratios: list[Ratio] = []
    for venue in _VENUES:
        more, over = venue(plan)
        cases += more
        ratios += over
    return cases, ratios
