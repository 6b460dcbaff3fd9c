"""pyzmq: messages of 64 bytes over ipc, PUSH in one process and PULL in another, one send and one receive each.

Measured: the receiver's seconds from its first message to its last. The sender is started for each round and is not
timed until its first message has come. No message is dropped: a full queue makes the sender wait.

Answers one JSON object a line. ``prepare``: passes some messages and returns how many came, each with its number
checked. ``round``: the seconds of passing `n` of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import zmq

SEND = """
import struct, sys, zmq
context = zmq.Context()
socket = context.socket(zmq.PUSH)
socket.connect(sys.argv[1])
tail = b"x" * 56
for i in range(int(sys.argv[2])):
    socket.send(struct.pack("<q", i) + tail)
socket.close()
context.term()
"""


def _passed(context: Any, n: int) -> tuple[int, float]:
    """Pass `n` messages; return how many came in order, and the seconds from the first to the last."""
    folder = tempfile.mkdtemp()
    address = f"ipc://{folder}/s"
    socket = context.socket(zmq.PULL)
    socket.bind(address)
    sender = subprocess.Popen([sys.executable, "-c", SEND, address, str(n)])
    good, started = 0, 0.0
    socket.rcvtimeo = 20_000  # ms: a message that never comes is told, not waited for
    for i in range(n):
        message = socket.recv()
        if i == 0:
            started = time.perf_counter()
        good += len(message) == 64 and int.from_bytes(message[:8], "little") == i
    took = time.perf_counter() - started
    sender.wait()
    socket.close()
    return good, took


if __name__ == "__main__":
    context = zmq.Context()
    for line in sys.stdin:
        request = json.loads(line)
        good, took = _passed(context, request["n"])
        answer = {"received": good} if request["op"] == "prepare" else {"value": took}
        print(json.dumps(answer), flush=True)
