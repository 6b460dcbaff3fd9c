"""cryptofeed: what its Coinbase and its Kraken feed do with a message, from text to its callback.

Measured: ``Coinbase.message_handler`` on Advanced Trade's l2_data, and ``Kraken.message_handler`` on version 1's book
with its checksum validated (JSON to Decimals, its sorted-dict book, one callback), without a socket.

Takes the venue's name as its argument. Answers one JSON object a line. ``prepare``: reads files of one message a line
and returns each kind's book after them. ``round``: the CPU seconds of handling all messages of a kind once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from cryptofeed.defines import L2_BOOK
from cryptofeed.exchanges import Coinbase, Kraken
from cryptofeed.symbols import Symbols
from cryptofeed.types import OrderBook

__all__ = ["Peer"]

PAIR = "BTC-USD"


class Peer:
    """The feed, and the messages it is given."""

    def __init__(self, venue: str) -> None:
        name = {"coinbase": PAIR, "kraken": "XBT/USD"}[venue]
        Symbols.set(
            venue.upper(), {PAIR: name}, {"tick_size": {PAIR: "0.01"}, "instrument_type": {PAIR: "spot"}}
        )
        self.called = 0
        self.venue = venue
        self.messages: dict[str, list[str]] = {}
        settings: dict[str, Any] = {"symbols": [PAIR], "channels": [L2_BOOK], "callbacks": {L2_BOOK: self.on}}
        if venue == "coinbase":
            self.feed: Any = Coinbase(**settings)
        else:
            self.feed = Kraken(max_depth=10, checksum_validation=True, **settings)

    async def on(self, *_: Any) -> None:
        """Be called back."""
        self.called += 1

    def prepare(self, paths: dict[str, str]) -> dict[str, object]:
        """Read the messages of each kind; return the levels after all of them."""
        told: dict[str, object] = {}
        for kind, path in paths.items():
            with open(path, encoding="ascii") as file:
                self.messages[kind] = file.read().splitlines()
            self.called = 0
            asyncio.run(self.round(kind))
            if self.called != len(self.messages[kind]):
                return {"error": f"{self.called} callbacks for {len(self.messages[kind])} messages of {kind}"}
            book = self.feed._l2_book[PAIR].book
            sides = {"bids": book.bids, "asks": book.asks}
            told[kind] = {name: sorted((float(px), float(side[px])) for px in side) for name, side in sides.items()}
        return told

    async def round(self, kind: str) -> float:
        """Return the CPU seconds of handling every message of a kind once."""
        feed = self.feed
        feed._l2_book[PAIR] = OrderBook(self.venue.upper(), PAIR, bids={}, asks={})
        feed._l2_book[PAIR].delta = {}
        started = time.process_time()
        for message in self.messages[kind]:
            await feed.message_handler(message, None, 0.0)
        return time.process_time() - started


if __name__ == "__main__":
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prepare":
            answer: dict[str, object] = peer.prepare(request["paths"])
        else:
            answer = {"value": asyncio.run(peer.round(request["what"]))}
        print(json.dumps(answer), flush=True)
