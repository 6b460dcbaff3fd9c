"""msgspec, and books in dicts: what one writes in Python to keep the books of Coinbase and of Kraken.

Measured: decoding each message to a typed struct that holds only what is needed, then, of Coinbase, turning the texts
into floats and setting or removing them in a dict a side. Kraken's book is kept as texts, since its checksum is over
them: set, remove, cut to ten levels a side, and the CRC32 over the ten best, compared with the message's. Matches and
trades: decoding, time included, and two floats.

Takes the venue's name as its argument. Answers one JSON object a line. ``prepare``: reads files of one message a line
and returns each kind's book after them. ``round``: the CPU seconds of taking all messages of a kind once.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

__all__ = ["Peer"]

Take = Callable[[bytes], None]


class Update(msgspec.Struct, gc=False):
    """Coinbase Exchange's l2update."""

    changes: list[tuple[str, str, str]]


class Match(msgspec.Struct, gc=False):
    """Coinbase Exchange's match."""

    trade_id: int
    side: str
    size: str
    price: str
    time: datetime


class AdvancedLevel(msgspec.Struct, gc=False):
    """One level of Advanced Trade."""

    side: str
    price_level: str
    new_quantity: str


class AdvancedEvent(msgspec.Struct, gc=False):
    """One event of Advanced Trade's l2_data."""

    type: str
    product_id: str
    updates: list[AdvancedLevel]


class Advanced(msgspec.Struct, gc=False):
    """Advanced Trade's l2_data."""

    sequence_num: int
    events: list[AdvancedEvent]


class Level(msgspec.Struct, gc=False):
    """One level of Kraken's version 2: numbers as they were written."""

    price: msgspec.Raw
    qty: msgspec.Raw


class Book(msgspec.Struct, gc=False):
    """One entry of Kraken's version 2."""

    symbol: str
    bids: list[Level]
    asks: list[Level]
    checksum: int


class BookMessage(msgspec.Struct, gc=False):
    """A book message of Kraken's version 2."""

    type: str
    data: list[Book]


class Trade(msgspec.Struct, gc=False):
    """A trade of Kraken's version 2."""

    trade_id: int
    side: str
    price: float
    qty: float
    timestamp: datetime


class TradeMessage(msgspec.Struct, gc=False):
    """A trade message of Kraken's version 2."""

    data: list[Trade]


class OldBook(msgspec.Struct, gc=False):
    """The object of a book message of Kraken's version 1."""

    a: list[tuple[str, str, str]] = []
    b: list[tuple[str, str, str]] = []
    c: str = ""
    bids: list[tuple[str, str, str]] | None = msgspec.field(default=None, name="bs")
    asks: list[tuple[str, str, str]] | None = msgspec.field(default=None, name="as")


class Peer:
    """The messages of one venue and its books."""

    def __init__(self, venue: str) -> None:
        self.messages: dict[str, list[bytes]] = {}
        self.bids: dict[float, Any] = {}
        self.asks: dict[float, Any] = {}
        self.last = (0.0, 0.0)
        self.take: dict[str, Take] = self.coinbase() if venue == "coinbase" else self.kraken()

    def coinbase(self) -> dict[str, Take]:
        """Return what to do with a message of each kind."""
        bids, asks = self.bids, self.asks
        update = msgspec.json.Decoder(Update).decode
        match = msgspec.json.Decoder(Match).decode
        advanced = msgspec.json.Decoder(Advanced).decode

        def change(side: dict[float, float], px_text: str, qty_text: str) -> None:
            px, qty = float(px_text), float(qty_text)
            if qty == 0:
                side.pop(px, None)
            else:
                side[px] = qty

        def on_update(message: bytes) -> None:
            for side, px, qty in update(message).changes:
                change(bids if side == "buy" else asks, px, qty)

        def on_advanced(message: bytes) -> None:
            for event in advanced(message).events:
                for level in event.updates:
                    change(bids if level.side == "bid" else asks, level.price_level, level.new_quantity)

        def on_match(message: bytes) -> None:
            trade = match(message)
            self.last = float(trade.price), float(trade.size)

        return {"l2": on_update, "advanced": on_advanced, "match": on_match}

    def kraken(self) -> dict[str, Take]:
        """Return what to do with a message of each kind."""
        bids, asks = self.bids, self.asks
        book = msgspec.json.Decoder(BookMessage).decode
        trade = msgspec.json.Decoder(TradeMessage).decode
        old = msgspec.json.Decoder(tuple[int, OldBook, str, str]).decode

        def change(side: dict[float, tuple[str, str]], px_text: str, qty_text: str) -> None:
            px = float(px_text)
            if float(qty_text) == 0:
                side.pop(px, None)
            else:
                side[px] = px_text, qty_text

        def cut_and_prove(checksum: int | None) -> None:
            for px in sorted(bids)[:-10]:
                del bids[px]
            for px in sorted(asks)[10:]:
                del asks[px]
            text = ""
            for side, best in ((asks, sorted(asks)), (bids, sorted(bids, reverse=True))):
                for px in best:
                    for part in side[px]:
                        text += part.replace(".", "").lstrip("0")
            if checksum is not None and zlib.crc32(text.encode()) != checksum:
                raise ValueError(f"checksum {zlib.crc32(text.encode())}; expected {checksum}")

        def on_book(message: bytes) -> None:
            told = book(message)
            entry = told.data[0]
            if told.type == "snapshot":
                bids.clear()
                asks.clear()
            for side, levels in ((bids, entry.bids), (asks, entry.asks)):
                for level in levels:
                    change(side, bytes(level.price).decode(), bytes(level.qty).decode())
            cut_and_prove(entry.checksum)

        def on_old_book(message: bytes) -> None:
            told = old(message)[1]
            if told.asks is not None:
                bids.clear()
                asks.clear()
            for side, levels in ((bids, told.bids or told.b), (asks, told.asks or told.a)):
                for px, qty, _ in levels:
                    change(side, px, qty)
            cut_and_prove(int(told.c) if told.c else None)

        def on_trade(message: bytes) -> None:
            for one in trade(message).data:
                self.last = one.price, one.qty

        return {"v2": on_book, "v1": on_old_book, "trade": on_trade}

    def prepare(self, paths: dict[str, str]) -> dict[str, object]:
        """Read the messages of each kind; return the levels after all of them."""
        told: dict[str, object] = {}
        for kind, path in paths.items():
            with open(path, "rb") as file:
                self.messages[kind] = file.read().splitlines()
            self.round(kind)
            told[kind] = {
                name: sorted((px, float(qty if isinstance(qty, float) else qty[1])) for px, qty in side.items())
                for name, side in (("bids", self.bids), ("asks", self.asks))
            }
        return told

    def round(self, kind: str) -> float:
        """Return the CPU seconds of taking every message of a kind once."""
        self.bids.clear()
        self.asks.clear()
        take = self.take[kind]
        started = time.process_time()
        for message in self.messages[kind]:
            take(message)
        return time.process_time() - started


if __name__ == "__main__":
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prepare":
            answer: dict[str, object] = peer.prepare(request["paths"])
        else:
            answer = {"value": peer.round(request["what"])}
        print(json.dumps(answer), flush=True)
