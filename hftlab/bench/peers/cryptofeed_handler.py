"""cryptofeed: what its Binance feed does with a message, from text to its callback.

Measured: ``Binance.message_handler`` on depthUpdate (JSON to Decimals, sequence check, its sorted-dict book, one
callback) and aggTrade (a Trade object, one callback), without a socket. The book starts empty in each round.

Answers one JSON object a line. ``prepare``: reads files of one message a line and returns the book after them.
``round``: the CPU seconds of handling all messages of a kind once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

from cryptofeed.defines import L2_BOOK, TRADES
from cryptofeed.exchanges import Binance
from cryptofeed.symbols import Symbols
from cryptofeed.types import OrderBook

__all__ = ["Peer"]

PAIR = "BTC-USDT"


class Peer:
    """The feed, and the messages it is given."""

    def __init__(self) -> None:
        Symbols.set(
            "BINANCE", {PAIR: "BTCUSDT"}, {"tick_size": {PAIR: "0.01"}, "instrument_type": {PAIR: "spot"}}
        )
        self.called = 0
        self.messages: dict[str, list[str]] = {}
        self.first = 0
        self.feed = Binance(symbols=[PAIR], channels=[L2_BOOK, TRADES], callbacks={L2_BOOK: self.on, TRADES: self.on})

    async def on(self, *_: Any) -> None:
        """Be called back."""
        self.called += 1

    def prepare(self, paths: dict[str, str]) -> dict[str, object]:
        """Read the messages of each kind; return the levels after all depth messages."""
        for kind, name in (("depth", "depth@100ms"), ("agg_trade", "aggTrade")):
            with open(paths[kind], encoding="ascii") as file:
                self.messages[kind] = [f'{{"stream":"btcusdt@{name}","data":{line}}}' for line in file.read().split()]
        self.first = json.loads(self.messages["depth"][0])["data"]["U"]
        asyncio.run(self.round("agg_trade"))
        asyncio.run(self.round("depth"))
        book = self.feed._l2_book[PAIR].book
        if self.called != sum(map(len, self.messages.values())):
            return {"error": f"{self.called} callbacks for {self.messages.keys()}"}
        sides = {"bids": book.bids, "asks": book.asks}
        return {name: sorted((float(px), float(side[px])) for px in side) for name, side in sides.items()}

    async def round(self, kind: str) -> float:
        """Return the CPU seconds of handling every message of a kind once."""
        feed = self.feed
        feed._l2_book[PAIR] = OrderBook("BINANCE", PAIR, bids={}, asks={})
        feed._l2_book[PAIR].delta = {}
        feed.last_update_id = defaultdict(lambda: -1, {PAIR: self.first - 1})
        started = time.process_time()
        for message in self.messages[kind]:
            await feed.message_handler(message, None, 0.0)
        return time.process_time() - started


if __name__ == "__main__":
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prepare":
            answer: dict[str, object] = peer.prepare(request["paths"])
        else:
            answer = {"value": asyncio.run(peer.round(request["what"]))}
        print(json.dumps(answer), flush=True)
