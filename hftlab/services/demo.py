"""The whole path in one command: a simulated exchange, a trader with the example maker, a dashboard, a replay.

Three processes, all on loopback and all children of this one (they die with it), and afterwards a fourth that replays
the journal. Nothing is asked of the machine but this package: no key, no network, no service.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hftlab.core.errors import HftlabError
from hftlab.services.control import request
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, write_spec

__all__ = ["run"]

SYMBOL = "BTCUSDT"
START_S = 90.0
"""A cold machine compiles its kernels once; after that a start takes two seconds."""


@contextlib.contextmanager
def _child(name: str, *arguments: str, log: IO[bytes], ready: bool = True) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run a service module until the block ends; yield the process and its ready line."""
    command = [sys.executable, "-m", f"hftlab.services.{name}", *arguments, "--die-with-parent"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True)
    try:
        yield process, _ready_line(name, process, log) if ready else {}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready_line(name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_S):
            raise HftlabError(f"the {name} process said nothing for {START_S:g} s; its log is {log.name}")
    line = process.stdout.readline()
    if not line:
        raise HftlabError(f"the {name} process ended at once: {_last_line(log)}")
    return dict(json.loads(line))


def _last_line(log: IO[bytes]) -> str:
    lines = Path(log.name).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it left no message"


def _wait_trading(folder: Path, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise HftlabError(f"the trader ended with exit code {process.returncode}: {_last_line(log)}")
        with contextlib.suppress(HftlabError):
            if request(folder, "status")["state"] == "trading":
                return
        time.sleep(0.1)
    raise HftlabError(f"the trader does not trade after {START_S:g} s; its log is {log.name}")


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

    spec = SessionSpec(
        "demo", "sim", (SYMBOL,), {"name": "Maker", "source": source_of(Maker), "params": {"slack_ticks": 0}, "compiled": True},
        {SYMBOL: CAREFUL_LIMITS[SYMBOL]}, seed=seed,
    )  # fmt: skip
    folder = write_spec(spec)
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        logs = {
            name: stack.enter_context((root / f"{name}.log").open("wb")) for name in ("venue", "trader", "dashboard")
        }
        _say(
            as_json, "starting a simulated exchange, a trader and a dashboard; the first start compiles the kernels ..."
        )
        _, venue = stack.enter_context(_child("venue", "--seed", str(seed), "--symbol", SYMBOL, log=logs["venue"]))
        endpoints = json.dumps({k: venue[k] for k in ("rest", "stream", "ws_api")})
        trader, _ = stack.enter_context(
            _child("trader", str(folder), "--endpoints", endpoints, log=logs["trader"], ready=False)
        )
        _wait_trading(folder, trader, logs["trader"])
        _, dashboard = stack.enter_context(_child("dashboard", str(folder), "--port", str(port), log=logs["dashboard"]))
        _say(as_json, f"dashboard: {dashboard['url']}   (Ctrl-C stops everything)")
        _watch(folder, trader, logs["trader"], seconds, as_json)
        request(folder, "stop")
        trader.wait(20)
    _say(as_json, "stopped; replaying the journal in another process ...")
    replayed = subprocess.run(
        [sys.executable, "-m", "hftlab.services.replay", str(folder)], capture_output=True, text=True, check=False
    )
    if not replayed.stdout:
        raise HftlabError(f"the replay failed: {replayed.stderr.strip().splitlines()[-1:]}")
    told = json.loads(replayed.stdout)
    return {
        **{k: v for k, v in told.items() if k not in ("problems", "first_difference")},
        "dashboard_url": dashboard["url"],
    }


def _say(as_json: bool, text: str) -> None:
    if not as_json:
        print(text, file=sys.stderr, flush=True)


def _watch(folder: Path, trader: subprocess.Popen[bytes], log: IO[bytes], seconds: float, as_json: bool) -> None:
    """Show the session until the time is up, Ctrl-C, or the trader's end."""
    deadline = time.monotonic() + seconds if seconds else float("inf")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        live: Any = None
        if not as_json:
            from rich.live import Live

            live = stack.enter_context(Live(auto_refresh=False, screen=False))
        while time.monotonic() < deadline:
            if trader.poll() is not None:
                raise HftlabError(f"the trader ended with exit code {trader.returncode}: {_last_line(log)}")
            if live is not None:
                with contextlib.suppress(HftlabError):
                    live.update(_table(request(folder, "status")), refresh=True)
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))


def _table(status: dict[str, Any]) -> Any:
    """Return the status as a rich table."""
    from rich.table import Table

    table = Table(title=f"{status['name']}  {status['mode'].upper()}  {status['state']}", expand=False)
    for column in (
        "instrument",
        "book",
        "age",
        "position",
        "orders",
        "fills",
        "open",
        "refused",
        "tick to order p50 / p99",
    ):
        table.add_column(column, justify="right" if column not in ("instrument", "book") else "left")
    counters = status["counters"]
    hop = status["hops"].get("tick_to_order")
    latency = f"{hop['p50_us']:.0f} / {hop['p99_us']:.0f} us" if hop else "-"
    for symbol, feed in status["feed"].items():
        age = "-" if feed["age_ms"] is None else f"{feed['age_ms']:.0f} ms"
        table.add_row(
            symbol, feed["state"], age, f"{status['position'][symbol]:+d} lots",
            str(counters["submits"] + counters["replaces"]), str(counters["fills"]), str(counters["open_orders"]),
            str(counters["refusals"]), latency,
        )  # fmt: skip
    return table
