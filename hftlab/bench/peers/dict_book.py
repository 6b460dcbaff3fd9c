"""msgspec, or orjson, and a book in two dicts: what one writes in Python to keep a book of Binance's depth stream.

Measured: decoding each message (msgspec: to a typed struct that holds only what is needed), turning the texts of prices
and quantities into floats, setting or removing them in a dict a side. Small messages: decoding, and two or four floats.

Takes the library's name as its argument. Answers one JSON object a line. ``prepare``: reads files of one message a line
and returns the book after them. ``round``: the CPU seconds of decoding all messages of a kind once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Peer"]

Side = dict[float, float]


def set_levels(side: Side, levels: list[Any]) -> None:
    """Apply one side of a message."""
    for px_text, qty_text in levels:
        px, qty = float(px_text), float(qty_text)
        if qty == 0:
            side.pop(px, None)
        else:
            side[px] = qty


class Peer:
    """The library, its messages and its book."""

    def __init__(self, library: str) -> None:
        self.messages: dict[str, list[bytes]] = {}
        self.bids: Side = {}
        self.asks: Side = {}
        self.last = (0.0, 0.0)
        self.top = (0.0, 0.0, 0.0, 0.0)
        self.take = self.with_msgspec() if library == "msgspec" else self.with_orjson()

    def with_msgspec(self) -> dict[str, Callable[[bytes], None]]:
        """Return what to do with a message of each kind."""
        import msgspec

        class Depth(msgspec.Struct, gc=False):
            U: int
            u: int
            b: list[tuple[str, str]]
            a: list[tuple[str, str]]

        class Trade(msgspec.Struct, gc=False):
            T: int
            p: str
            q: str
            m: bool

        class Ticker(msgspec.Struct, gc=False):
            u: int
            b: str
            B: str
            a: str
            A: str

        depth = msgspec.json.Decoder(Depth).decode
        trade = msgspec.json.Decoder(Trade).decode
        ticker = msgspec.json.Decoder(Ticker).decode

        def on_depth(message: bytes) -> None:
            event = depth(message)
            set_levels(self.bids, event.b)
            set_levels(self.asks, event.a)

        def on_trade(message: bytes) -> None:
            event = trade(message)
            self.last = float(event.p), float(event.q)

        def on_ticker(message: bytes) -> None:
            event = ticker(message)
            self.top = float(event.b), float(event.B), float(event.a), float(event.A)

        return {"depth": on_depth, "trade": on_trade, "agg_trade": on_trade, "book_ticker": on_ticker}

    def with_orjson(self) -> dict[str, Callable[[bytes], None]]:
        """Return what to do with a message of each kind."""
        import orjson

        loads = orjson.loads

        def on_depth(message: bytes) -> None:
            event = loads(message)
            set_levels(self.bids, event["b"])
            set_levels(self.asks, event["a"])

        def on_trade(message: bytes) -> None:
            event = loads(message)
            self.last = float(event["p"]), float(event["q"])

        def on_ticker(message: bytes) -> None:
            event = loads(message)
            self.top = float(event["b"]), float(event["B"]), float(event["a"]), float(event["A"])

        return {"depth": on_depth, "trade": on_trade, "agg_trade": on_trade, "book_ticker": on_ticker}

    def prepare(self, paths: dict[str, str]) -> dict[str, object]:
        """Read the messages of each kind; return the levels after all depth messages."""
        for kind, path in paths.items():
            with open(path, "rb") as file:
                self.messages[kind] = file.read().splitlines()
            self.round(kind)
        self.round("depth")
        return {"bids": sorted(self.bids.items()), "asks": sorted(self.asks.items())}

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
