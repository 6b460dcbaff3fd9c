"""itchfeed: its ``MessageParser.parse_stream`` over bytes in memory, one Python object a message.

Measured: parsing a piece of the stream to message objects, each of which is dropped at once. No book is kept, because
the library has none. With the package ``itchcpp`` beside it the same call runs that C++ library's parser.

Answers one JSON object a line. ``prepare``: reads the file, parses it once and returns how many messages of each type
there are and the sums of some fields, to be checked. ``round``: the seconds of parsing all of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

from itch.parser import MessageParser

__all__ = ["Peer"]


class Peer:
    """The library, and the bytes it parses."""

    def __init__(self) -> None:
        self.data = b""

    def prepare(self, path: str, n_bytes: int, cpp: bool) -> dict[str, object]:
        """Parse the first `n_bytes` of a file once; return counts by type and sums over the adds."""
        if MessageParser.__module__.startswith("itchcpp") != cpp:
            return {"error": f"expected the parser {'of itchcpp' if cpp else 'in Python'}: {MessageParser.__module__}"}
        with open(path, "rb") as file:
            self.data = file.read(n_bytes)
        kinds: Counter[str] = Counter()
        sums = {"reference": 0, "shares": 0, "price": 0}
        for message in MessageParser().parse_stream(self.data):
            kind = message.message_type.decode()
            kinds[kind] += 1
            if kind in "AF":
                sums["reference"] += message.order_reference_number
                sums["shares"] += message.shares
                sums["price"] += message.price
        return {"kinds": dict(kinds), "sums": sums}

    def round(self) -> float:
        """Return the seconds of parsing everything once."""
        parse = MessageParser().parse_stream
        started = time.perf_counter()
        for _ in parse(self.data):
            pass
        return time.perf_counter() - started


if __name__ == "__main__":
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prepare":
            answer = peer.prepare(request["path"], request["n_bytes"], request["cpp"])
        else:
            answer = {"value": peer.round()}
        print(json.dumps(answer), flush=True)
