"""Not a peer but the venue of the websocket benchmark: sends prepared messages as fast as they are read.

A client shakes hands, sends one message (answered like a subscription) and then ``go``: from there on all messages
come, as unmasked text frames in one stream of bytes. Sends are the kernel's work alone, so that the client's core is
what is measured. Runs on the last core there is.

Answers one JSON object a line. ``prepare``: reads a file of one message a line, listens on loopback, returns the port.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import sys
import threading

__all__ = ["Sender"]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def text_frame(text: bytes) -> bytes:
    """Return one whole text frame of a server."""
    if len(text) < 126:
        return bytes([0x81, len(text)]) + text
    return struct.pack(">BBH", 0x81, 126, len(text)) + text


def read_frame(connection: socket.socket) -> bytes:
    """Return the text of a client's short frame; empty when it has gone."""
    head = connection.recv(2, socket.MSG_WAITALL)
    if len(head) < 2 or head[0] & 0x0F == 8:
        return b""
    size = head[1] & 0x7F
    if size == 126:
        (size,) = struct.unpack(">H", connection.recv(2, socket.MSG_WAITALL))
    mask = connection.recv(4, socket.MSG_WAITALL)
    masked = connection.recv(size, socket.MSG_WAITALL)
    return bytes(byte ^ mask[k & 3] for k, byte in enumerate(masked))


class Sender:
    """A listening socket and what it sends."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.wire = b"".join(text_frame(line) for line in file.read().splitlines())
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Serve one client after the other."""
        while True:
            connection, _ = self.listening.accept()
            try:
                self.stream(connection)
            except OSError:
                pass  # the client has what it wanted
            finally:
                connection.close()

    def stream(self, connection: socket.socket) -> None:
        """Shake hands, wait for ``go``, send everything, wait for the close."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")]
        key = lines[0].split(b":")[1].strip()
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        read_frame(connection)
        connection.sendall(text_frame(b'{"result":null,"id":1}'))
        while True:
            said = read_frame(connection)
            if not said:
                return
            if said == b"go":
                connection.sendall(self.wire)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for line in sys.stdin:
        sender = Sender(json.loads(line)["path"])
        print(json.dumps({"port": sender.listening.getsockname()[1]}), flush=True)
