"""pipe: messages of 64 bytes through multiprocessing.Pipe, one ``send_bytes`` and one ``recv_bytes`` each.

Measured: the receiver's seconds from its first message to its last. The sender is a process of its own, started for
each round and not timed until its first message has come.

Answers one JSON object a line. ``prepare``: passes some messages and returns how many came, each with its number
checked. ``round``: the seconds of passing `n` of them.
"""

from __future__ import annotations

import json
import multiprocessing
import struct
import sys
import time
from typing import Any


def _send(end: Any, n: int) -> None:
    """Send `n` numbered messages."""
    tail = b"x" * 56
    for i in range(n):
        end.send_bytes(struct.pack("<q", i) + tail)


def _passed(n: int) -> tuple[int, float]:
    """Pass `n` messages; return how many came in order, and the seconds from the first to the last."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(False)
    sender = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs, n))
    sender.start()
    theirs.close()
    good, started = 0, 0.0
    for i in range(n):
        message = ours.recv_bytes()
        if i == 0:
            started = time.perf_counter()
        good += len(message) == 64 and int.from_bytes(message[:8], "little") == i
    took = time.perf_counter() - started
    sender.join()
    ours.close()
    return good, took


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        good, took = _passed(request["n"])
        answer = {"received": good} if request["op"] == "prepare" else {"value": took}
        print(json.dumps(answer), flush=True)
