"""A venue process and traders for tests: real processes, real sockets, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hftlab.core.definitions import Definitions
from hftlab.core.rows import RowArray
from hftlab.journal import JournalReader, read_all
from hftlab.services.control import request
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, write_spec
from hftlab.services.trader import client_prefix
from hftlab.strategies.maker import Maker
from hftlab.strategy import source_of

PATIENCE_S = 60.0


def environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}, **more}


def until(true: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true value; fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = true()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")


class Venue:
    """A running ``hftlab venue``."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hftlab.services.venue", "--die-with-parent", *arguments],
            stdout=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the venue did not start"
        told = json.loads(line)
        self.endpoints = {k: told[k] for k in ("rest", "stream", "ws_api")}

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.endpoints["rest"] + "/hftlab/status", timeout=10) as answer:
            return dict(json.loads(answer.read()))

    def fault(self, kind: str, **how: Any) -> None:
        body = json.dumps({"kind": kind, **how}).encode()
        call = urllib.request.Request(
            self.endpoints["rest"] + "/hftlab/fault", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=10) as answer:
            assert answer.status == 200

    def open_orders(self, name: str) -> list[dict[str, Any]]:
        """Return what the venue holds of session `name`."""
        import hashlib
        import hmac

        query = f"timestamp={time.time_ns() // 1_000_000}"
        signature = hmac.new(b"hftlab-sim-secret", query.encode(), hashlib.sha256).hexdigest()
        call = urllib.request.Request(
            f"{self.endpoints['rest']}/api/v3/openOrders?{query}&signature={signature}",
            headers={"X-MBX-APIKEY": "hftlab-sim-key"},
        )
        with urllib.request.urlopen(call, timeout=10) as answer:
            orders = list(json.loads(answer.read()))
        return [o for o in orders if o["clientOrderId"].startswith(client_prefix("sim", name))]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextmanager
def venue(*arguments: str) -> Iterator[Venue]:
    running = Venue(*arguments)
    try:
        yield running
    finally:
        running.close()


def maker_spec(name: str = "m", *, source: str | None = None, strategy: str = "Maker", **params: Any) -> SessionSpec:
    return SessionSpec(
        name, "sim", ("BTCUSDT",),
        {"name": strategy, "source": source or source_of(Maker), "params": params, "compiled": True, "version": ""},
        {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]},
    )  # fmt: skip


class Trader:
    """A running trader process of a session."""

    def __init__(self, spec: SessionSpec, endpoints: dict[str, str], **env: str) -> None:
        self.folder = write_spec(spec)
        self.journal = self.folder / "journal"
        self.log = self.folder / "trader.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hftlab.services.trader", str(self.folder), "--endpoints", json.dumps(endpoints),
                 "--die-with-parent"],
                stderr=log, env=environment(**env),
            )  # fmt: skip

    def status(self) -> dict[str, Any]:
        return request(self.folder, "status")

    def wait(
        self, true: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Return the first status that satisfies `true`."""
        from hftlab.core.errors import HftlabError

        def look() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise AssertionError(f"the trader ended with {self.process.returncode}: {self.log.read_text()[-2000:]}")
            try:
                told = self.status()
            except HftlabError:
                return None
            return told if true(told) else None

        return dict(until(look, what, timeout_s))

    def fills(self, n: int) -> dict[str, Any]:
        return self.wait(lambda told: told["counters"].get("fills", 0) >= n, f"{n} fills")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def rows(self) -> RowArray:
        return read_all(self.journal)

    def definitions(self) -> Definitions:
        reader = JournalReader(self.journal)
        try:
            return Definitions.from_dict(reader.definitions)
        finally:
            reader.close()


@contextmanager
def trader(spec: SessionSpec, endpoints: dict[str, str], **env: str) -> Iterator[Trader]:
    running = Trader(spec, endpoints, **env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def replayed(folder: Path) -> dict[str, Any]:
    """Return the report of a replay in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "hftlab.services.replay", str(folder)], capture_output=True, text=True,
        env=environment(), check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))
