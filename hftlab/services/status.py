"""What a session says of itself, for people: labelled lines, and a picture of them that redraws itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hftlab.services import supervisor

__all__ = ["status_lines", "watch"]

_REDRAW_S = 0.25


def status_lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a status as (label, text), what it does not hold left out.

    Parameters
    ----------
    told : dict
        As `hftlab.services.supervisor.status` returns it.

    Examples
    --------
    >>> status_lines({"name": "lab", "mode": "sim", "state": "stopped", "pid": 0, "position": {"BTCUSDT": -3}})
    [('session', 'lab  sim  stopped'), ('position', 'BTCUSDT -3 lots')]
    >>> status_lines({"name": "lab", "mode": "sim", "state": "trading", "pid": 7, "feed_processes": [
    ...     {"source": 1, "symbols": ["BTCUSDT"], "pid": 8, "restarts": 0, "blocked": 0},
    ...     {"source": 2, "symbols": ["ETHUSDT"], "pid": 0, "restarts": 1, "blocked": 0}]})[2]
    ('feeds', '1: BTCUSDT process 8  2: ETHUSDT starting, restarted 1 x')
    """
    count, hops = told.get("counters", {}), told.get("hops", {})
    reason = told.get("halt_reason") or told.get("reason")
    process = f"{told['pid']}" if told["pid"] else ""
    lines = [
        ("session", f"{told['name']}  {told['mode']}  {told['state']}" + (f"  ({reason})" if reason else "")),
        ("process", process + (f"  up {told['uptime_s']:.0f} s  row {told['seq']}" if "seq" in told else "")),
        ("feed", "  ".join(_feed(symbol, one) for symbol, one in told.get("feed", {}).items())),
        ("feeds", "  ".join(_feed_process(one) for one in told.get("feed_processes", []))),
        ("position", "  ".join(f"{symbol} {lots:+d} lots" for symbol, lots in told.get("position", {}).items())),
        ("orders", "  ".join(f"{count[k]} {k.replace('_', ' ')}" for k in _COUNTED if k in count)),
        ("p50 / p99", "  ".join(_hop(name, hops[name]) for name in _HOPS_SHOWN if name in hops)),
    ]
    lines += [
        ("fault", f"{one['callback']}: {one['traceback'].strip().splitlines()[-1]}") for one in told.get("faults", [])
    ]
    return [(label, text) for label, text in lines if text]


_HOPS_SHOWN = ("decode", "engine", "encode", "send", "tick_to_order")
_COUNTED = ("open_orders", "submits", "replaces", "fills", "refusals")


def _feed(symbol: str, one: dict[str, Any]) -> str:
    return f"{symbol} {one['state']}" + ("" if one.get("age_ms") is None else f" {one['age_ms']:.0f} ms")


def _feed_process(one: dict[str, Any]) -> str:
    restarts = f", restarted {one['restarts']} x" if one["restarts"] else ""
    running = f"process {one['pid']}" if one["pid"] else "starting"
    return f"{one['source']}: {','.join(one['symbols'])} {running}{restarts}"


def _hop(name: str, one: dict[str, Any]) -> str:
    return f"{name.replace('_', ' ')} {one['p50_us']:.3g} / {one['p99_us']:.3g} us"


def watch(folder: Path, seconds: float = float("inf")) -> dict[str, Any]:
    """Show a session on the terminal until it ends, time is up, or Ctrl-C; return its last status.

    Parameters
    ----------
    folder : Path
        The session's folder.
    seconds : float
        How long at most.
    """
    from rich.live import Live
    from rich.table import Table

    def picture() -> Table:
        table = Table.grid(padding=(0, 2))
        for label, text in status_lines(told):
            table.add_row(label, text)
        return table

    deadline = time.monotonic() + seconds
    told = supervisor.status(folder)
    with Live(picture(), auto_refresh=False) as live:
        try:
            while told["state"] in supervisor.OPEN_STATES and time.monotonic() < deadline:
                time.sleep(min(_REDRAW_S, max(0.0, deadline - time.monotonic())))
                told = supervisor.status(folder)
                live.update(picture(), refresh=True)
        except KeyboardInterrupt:
            pass  # leaving is what Ctrl-C means here
    return told
