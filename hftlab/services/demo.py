"""The whole path in one command: a simulated exchange, a trader with the example maker, a dashboard, a replay.

Three processes, all on loopback and all children of this one (they die with it), and afterwards a fourth that replays
the journal. Nothing is asked of the machine but this package: no key, no network, no service.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hftlab.core.errors import HftlabError
from hftlab.services.control import request
from hftlab.services.process import await_ready, last_words, service, spawn
from hftlab.services.spec import CAREFUL_LIMITS, ENDPOINTS, SessionSpec, write_spec
from hftlab.services.status import watch

__all__ = ["run"]

SYMBOL = "BTCUSDT"
START_S = 90.0
"""A cold machine compiles its kernels once; after that a start takes two seconds."""


@contextlib.contextmanager
def _child(name: str, root: Path, *arguments: str, answers: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service until the block ends."""
    command = [*service(name), *arguments, "--die-with-parent"]
    process = spawn(command, root / f"{name}.log", answers=answers)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _refuse_dead(trader: subprocess.Popen[bytes], log: Path) -> None:
    if trader.poll() is not None:
        raise HftlabError(f"the trader ended with exit code {trader.returncode}: {last_words(log)} ({log})")


def _await_trading(folder: Path, trader: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        _refuse_dead(trader, log)
        with contextlib.suppress(HftlabError):
            if request(folder, "status")["state"] == "trading":
                return
        time.sleep(0.1)
    raise HftlabError(f"the trader does not trade after {START_S:g} s; its log is {log}")


def run(
    *, seconds: float = 0.0, as_json: bool = False, seed: int = 1, port: int = 0, keep: Path | None = None
) -> dict[str, Any]:
    """Run the demo and return its report, the one that ``--json`` prints.

    Parameters
    ----------
    seconds : float
        How long to trade; 0 until Ctrl-C.
    as_json : bool
        No status table on the terminal.
    seed : int
        Of the synthetic flow.
    port : int
        Of the dashboard; 0 takes a free one.
    keep : Path, optional
        Where the session's folder is left; by default it is removed at the end.

    Raises
    ------
    HftlabError
        If a process does not start; the message names its log.
    """
    root = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="hftlab-"))
    before = os.environ.get("HFTLAB_HOME")
    os.environ["HFTLAB_HOME"] = str(root)
    try:
        return _run(root, seconds, as_json, seed, port)
    finally:
        if before is None:
            del os.environ["HFTLAB_HOME"]
        else:
            os.environ["HFTLAB_HOME"] = before
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def _run(root: Path, seconds: float, as_json: bool, seed: int, port: int) -> dict[str, Any]:
    from hftlab.strategies.maker import Maker
    from hftlab.strategy import source_of

    plan = {"name": "Maker", "source": source_of(Maker), "params": {"slack_ticks": 0}, "compiled": True}
    spec = SessionSpec("demo", "sim", (SYMBOL,), plan, {SYMBOL: CAREFUL_LIMITS[SYMBOL]}, seed=seed)
    folder = write_spec(spec)
    log = root / "trader.log"
    with contextlib.ExitStack() as stack:
        _say(as_json, "starting exchange, trader and dashboard; the first start on a machine compiles the kernels ...")
        venue = stack.enter_context(_child("venue", root, "--seed", str(seed), "--symbol", SYMBOL))
        ready = await_ready(venue, root / "venue.log", "the simulated exchange", START_S)
        endpoints = json.dumps({name: ready[name] for name in ENDPOINTS})
        trader = stack.enter_context(_child("trader", root, str(folder), "--endpoints", endpoints, answers=False))
        _await_trading(folder, trader, log)
        dashboard = stack.enter_context(_child("dashboard", root, str(folder), "--port", str(port)))
        url = await_ready(dashboard, root / "dashboard.log", "the dashboard", START_S)["url"]
        _say(as_json, f"dashboard: {url}   (Ctrl-C stops everything)")
        _trade(folder, trader, seconds or float("inf"), as_json)
        _refuse_dead(trader, log)
        request(folder, "stop")
        trader.wait(20)
    _say(as_json, "stopped; replaying the journal in another process ...")
    replayed = subprocess.run([*service("replay"), str(folder)], capture_output=True, text=True, check=False)
    if not replayed.stdout:
        raise HftlabError(f"the replay failed: {replayed.stderr.strip().splitlines()[-1:]}")
    return {**json.loads(replayed.stdout), "dashboard_url": url}


def _say(as_json: bool, text: str) -> None:
    if not as_json:
        print(text, file=sys.stderr, flush=True)


def _trade(folder: Path, trader: subprocess.Popen[bytes], seconds: float, as_json: bool) -> None:
    """Let the session trade until the time is up, Ctrl-C, or its end."""
    if not as_json:
        watch(folder, seconds)
        return
    deadline = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        while trader.poll() is None and time.monotonic() < deadline:
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
