"""A trader that trades nothing: it keeps a journal growing and answers its control socket, as the supervisor expects.

Its strategy's parameters say how it misbehaves: ``exit_code`` ends it at once with a last word, ``rows`` ends it with 1
after that many rows, ``starting`` keeps it starting that many seconds, ``hangs`` makes its second and later lives stand
still after two rows, as long as no halt is latched (1), or even then (2), ``deaf`` leaves its socket unanswered that
many seconds and then tells in a file how many asked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from hftlab.core.rows import Kind, new_rows
from hftlab.journal import JournalWriter
from hftlab.services.spec import read_spec


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    server.bind(str(path))
    os.umask(before)
    server.listen()
    return server


class StandIn:
    def __init__(self, folder: Path) -> None:
        spec = read_spec(folder)
        self.name, self.mode, self.how = spec.name, spec.mode, spec.strategy["params"]
        if "exit_code" in self.how:
            print("collar is missing", file=sys.stderr)
            sys.exit(self.how["exit_code"])
        self.folder, self.latch, self.born = folder, folder / "halt", time.monotonic()
        self.state, self.halt_reason, self.stopping = "starting", None, False
        self.server = listen(folder / "control.sock")
        if "deaf" in self.how:
            time.sleep(self.how["deaf"])
            waiting = 0
            while select.select([self.server], [], [], 0)[0]:
                self.server.accept()
                waiting += 1
            (folder / "asked").write_text(str(waiting))
        self.writer = JournalWriter(folder / "journal", {}, segment_rows=4096, fsync_ms=None)
        latched = self.latch.exists()
        self.hangs = self.writer.seq > 0 and self.how.get("hangs", 0) > latched
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopping = True

    def run(self) -> int:
        rows = 0
        while not self.stopping:
            if self.state == "starting" and time.monotonic() - self.born >= self.how.get("starting", 0):
                self.state = "trading"
                if self.latch.exists():
                    self.state, self.halt_reason = "halted", self.latch.read_text().strip()
            row = new_rows(1)
            row["kind"], row["ts_recv"] = Kind.CLOCK, time.time_ns()
            self.writer.append(row)
            rows += 1
            if self.hangs:
                time.sleep(0.6)  # so that the growth of each row is seen
                if rows == 2:
                    os.kill(os.getpid(), signal.SIGSTOP)
                continue
            if rows == self.how.get("rows"):
                print("out of luck", file=sys.stderr)
                return 1
            if select.select([self.server], [], [], 0.05)[0]:
                self.answer()
        self.writer.close()
        return 0

    def answer(self) -> None:
        connection = self.server.accept()[0]
        with connection:
            line = connection.makefile().readline()
            do = json.loads(line) if line else {}
            if self.state == "starting" and do.get("do") != "status":
                connection.sendall(b'{"ok": false, "error": "still starting"}\n')
                return
            if do.get("do") == "resume":
                self.latch.unlink(missing_ok=True)
                self.state, self.halt_reason = "trading", None
            if do.get("do") == "halt":
                self.state, self.halt_reason = "halted", do["reason"]
            self.stopping |= do.get("do") == "stop"
            told = {"ok": True, "pid": os.getpid(), "name": self.name, "mode": self.mode, "state": self.state}
            told |= {"halt_reason": self.halt_reason, "canceled": [], "open": 0}
            connection.sendall(json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(StandIn(Path(sys.argv[1])).run())
