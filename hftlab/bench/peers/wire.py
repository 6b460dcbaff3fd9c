"""A venue's two sockets and nothing else: sends market frames, takes orders, and times what lies in between.

Measured: from the moment a frame is handed to the socket of the stream until the bytes of the first order that it
caused have been read from the order socket. Both ends of the time are taken by this one process, so no two clocks are
compared. It waits for the order by asking the socket without rest: its own wake-up is not part of the figure.

Answers one JSON object a line. ``bare``: opens a port; ``echo``: takes a
connection there and sends back so many bytes, without rest. ``sink``: opens a port whose one connection is read and
forgotten. ``listen``: opens both WebSocket ports and answers their handshakes and
opening requests. ``round``: sends frames, one each `pause_s`, and returns the times, ns.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time

__all__ = ["main"]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PATIENCE_S = 10.0
AWAKE_S = 0.0003
ORDER = re.compile(rb'"id":"[pcr][0-3]')
IDS = re.compile(rb'"(newClientOrderId|cancelOrigClientOrderId)":"([^"]*)"')


def listener() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)
    return server


def drain(server: socket.socket) -> None:
    connection, _ = server.accept()
    while connection.recv(65536):
        pass


def echo(server: socket.socket, left: int) -> None:
    """Take a connection and send back `left` bytes of it, without rest."""
    connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        while left:
            with contextlib.suppress(BlockingIOError):
                left -= connection.send(connection.recv(65536))


def pack(payload: bytes) -> bytes:
    """Return a server's text frame."""
    n = len(payload)
    if n < 126:
        return bytes((0x81, n)) + payload
    return bytes((0x81, 126)) + n.to_bytes(2, "big") + payload


class WebSocket:
    """A server's end, blocking or asked without rest."""

    def __init__(self, server: socket.socket) -> None:
        self.socket, _ = server.accept()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE_S)
        self.rest, self.pongs = b"", 0
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(65536)
        key = re.search(rb"(?i)sec-websocket-key: *([^\r]+)\r\n", head)
        assert key is not None, head
        accept = base64.b64encode(hashlib.sha1(key.group(1).strip() + GUID).digest())
        self.socket.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def send(self, payload: bytes) -> None:
        self.socket.sendall(pack(payload))

    def messages(self) -> list[bytes]:
        """Return the whole messages among what has come, unmasked."""
        found = []
        while len(self.rest) >= 6:
            n, at = self.rest[1] & 127, 2
            if n == 126:
                n, at = int.from_bytes(self.rest[2:4], "big"), 4
            if len(self.rest) < at + 4 + n:
                break
            mask, body = self.rest[at : at + 4], self.rest[at + 4 : at + 4 + n]
            self.pongs += self.rest[0] & 15 == 10
            if self.rest[0] & 15 in (1, 2):
                found.append(bytes(b ^ mask[i & 3] for i, b in enumerate(body)))
            self.rest = self.rest[at + 4 + n :]
        return found

    def wait(self) -> list[bytes]:
        while not (found := self.messages()):
            self.rest += self.socket.recv(65536)
        return found

    def flush(self) -> list[bytes]:
        """Wait until the other side has taken all that was sent to it; return what came meanwhile."""
        found, before = self.messages(), self.pongs
        self.socket.sendall(bytes((0x89, 0)))
        while self.pongs == before:
            self.rest += self.socket.recv(65536)
            found += self.messages()
        return found

    def ask_until(self, until: float) -> None:
        """Ask for bytes without sleeping until `until`: a venue's gateway does not fall asleep between two events."""
        self.socket.setblocking(False)
        while time.perf_counter() < until:
            with contextlib.suppress(BlockingIOError):
                self.rest += self.socket.recv(65536)
        self.socket.settimeout(PATIENCE_S)

    def poll(self) -> int:
        """Wait for bytes without sleeping; return when they had been read, ns."""
        self.socket.setblocking(False)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while True:
                try:
                    self.rest += self.socket.recv(65536)
                    return time.perf_counter_ns()
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError("no order came within 10 s") from None
        finally:
            self.socket.settimeout(PATIENCE_S)


class Venue:
    def __init__(self) -> None:
        self.servers = [listener(), listener()]
        self.frames: list[bytes] = []
        self.stream: WebSocket
        self.orders: WebSocket
        self.ready = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Take the order connection with its three opening requests, then the stream with its subscription."""
        self.orders = WebSocket(self.servers[1])
        answered = 0
        while answered < 3:
            for request in self.orders.wait():
                self.orders.send(self.opening(json.loads(request)))
                answered += 1
        self.stream = WebSocket(self.servers[0])
        for request in self.stream.wait():
            self.stream.send(json.dumps({"result": None, "id": json.loads(request)["id"]}).encode())
        self.stream.socket.settimeout(None)  # with a time limit each send first asks whether it may
        self.ready.set()

    @staticmethod
    def opening(request: dict) -> bytes:  # type: ignore[type-arg]
        result: object = []
        if request["method"] == "userDataStream.subscribe.signature":
            result = {"subscriptionId": 0}
        elif request["method"] == "account.status":
            result = {"balances": [], "canTrade": True, "accountType": "SPOT", "permissions": []}
        return json.dumps({"id": request["id"], "status": 200, "result": result}).encode()

    def answer(self, messages: list[bytes]) -> int:
        """Answer orders by the venue's events; return how many orders there were."""
        orders = 0
        for message in messages:
            if ORDER.search(message) is None:
                self.orders.send(b'{"id":"ping","status":200,"result":{}}')
                continue
            orders += 1
            for name, client in sorted(IDS.findall(message)):
                gone = name != b"newClientOrderId"
                event = {
                    "e": "executionReport", "E": 1, "s": "BTCUSDT", "c": "x" if gone else client.decode(),
                    "S": "BUY", "o": "LIMIT", "f": "GTC", "q": "0.00100000", "p": "60000.00000000",
                    "C": client.decode() if gone else "", "x": "CANCELED" if gone else "NEW",
                    "X": "CANCELED" if gone else "NEW", "r": "NONE", "i": int(client.rsplit(b"-", 1)[1]),
                    "l": "0.00000000", "z": "0.00000000", "L": "0.00000000", "n": "0", "N": None,
                    "T": 1499405658657, "t": -1, "w": True, "m": False, "M": False,
                }  # fmt: skip
                self.orders.send(json.dumps({"subscriptionId": 0, "event": event}).encode())
        return orders

    def take(self, n: int) -> None:
        """Answer `n` orders."""
        taken = self.answer(self.orders.messages())
        while taken < n:
            taken += self.answer(self.orders.wait())

    def round(self, frames: list[str], pause_s: float, orders_each: int) -> list[int]:
        times = []
        packed = [pack(frame.encode()) for frame in frames]
        for frame in packed:
            until = time.perf_counter() + pause_s
            time.sleep(max(0.0, pause_s - AWAKE_S))
            self.orders.ask_until(until)
            started = time.perf_counter_ns()
            self.stream.socket.sendall(frame)
            times.append(self.orders.poll() - started)
            self.take(orders_each)
            self.answer(self.orders.flush())  # what the answers cost is not the next tick's
        return times


def main() -> None:
    """Answer requests until there are no more; with an argument, from the first core alone."""
    if sys.argv[1:] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    venue: Venue | None = None
    mirror: socket.socket | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {"ok": True}
        if request["op"] == "sink":
            server = listener()
            threading.Thread(target=drain, args=(server,), daemon=True).start()
            answer["port"] = server.getsockname()[1]
        elif request["op"] == "bare":
            mirror = listener()
            answer["port"] = mirror.getsockname()[1]
        elif request["op"] == "echo":
            assert mirror is not None
            echo(mirror, request["bytes"])
        elif request["op"] == "listen":
            venue = Venue()
            answer["stream"], answer["orders"] = (s.getsockname()[1] for s in venue.servers)
        elif request["op"] == "ready":
            assert venue is not None
            answer["ok"] = venue.ready.wait(PATIENCE_S)
            venue.take(request["orders"])
        elif request["op"] == "round":
            assert venue is not None
            try:
                answer["times"] = venue.round(request["frames"], request["pause_s"], request["orders_each"])
            except (OSError, TimeoutError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
