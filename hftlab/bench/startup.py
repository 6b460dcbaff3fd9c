"""How long until one can trade: a trader from process start to trading, and an edited strategy until it runs.

Both are for `hftlab bench import`. The kernels are in the cache when it counts: whoever calls takes the second figure.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import HftlabError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, new_rows
from hftlab.engine import Engine, RowBuffer, control_row
from hftlab.services.control import request
from hftlab.services.process import service
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, write_spec
from hftlab.strategies.maker import Maker
from hftlab.strategy import load_strategy, source_of

__all__ = ["strategy_edit_s", "warm_trader_s"]

_PATIENCE_S = 60.0
_numbers = itertools.count(1)


@functools.cache
def _venue() -> dict[str, str]:
    """Start a simulated venue for the life of this process; return its addresses."""
    process = subprocess.Popen(
        [*service("venue"), "--die-with-parent"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
    )

    def end() -> None:
        process.terminate()
        process.wait()

    atexit.register(end)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise HftlabError("the simulated venue did not start; `hftlab venue` says why")
    told = json.loads(line)
    return {name: told[name] for name in ("rest", "stream", "ws_api")}


def _environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}, **more}


def warm_trader_s() -> float:
    """Return the seconds from the start of a trader's process until its session trades, against a running venue.

    The session is a new one: instruments are asked for, the strategy is compiled, the journal is made.

    Raises
    ------
    HftlabError
        If it does not come to trading; the message ends with its last words.
    """
    endpoints = _venue()
    home = tempfile.mkdtemp(prefix="hft")
    before = os.environ.get("HFTLAB_HOME")
    os.environ["HFTLAB_HOME"] = home
    try:
        plan = {"name": "Maker", "source": source_of(Maker), "params": {}, "compiled": True, "version": ""}
        folder = write_spec(
            SessionSpec(f"m{next(_numbers)}", "sim", ("BTCUSDT",), plan, {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]})
        )
        return _start_and_stop(folder, endpoints)
    finally:
        if before is None:
            del os.environ["HFTLAB_HOME"]
        else:
            os.environ["HFTLAB_HOME"] = before
        shutil.rmtree(home, ignore_errors=True)


def _start_and_stop(folder: Path, endpoints: dict[str, str]) -> float:
    log = folder / "trader.log"
    started = time.perf_counter()
    with log.open("ab") as said:
        process = subprocess.Popen(
            [*service("trader"), str(folder), "--endpoints", json.dumps(endpoints), "--die-with-parent"],
            stderr=said, env=_environment(),
        )  # fmt: skip
    try:
        while time.perf_counter() - started < _PATIENCE_S:
            with contextlib.suppress(HftlabError):
                if request(folder, "status")["state"] == "trading":
                    return time.perf_counter() - started
            if process.poll() is not None:
                break
            time.sleep(0.005)
        raise HftlabError(f"the trader did not come to trading: {log.read_text()[-500:]}")
    finally:
        process.terminate()
        process.wait()


def strategy_edit_s() -> float:
    """Return the seconds from a strategy's changed source to its first decision by compiled code, in this process.

    That is what running an edited cell again costs: the class is loaded, its callback compiled, an engine takes it, and
    one book update is decided on.

    Raises
    ------
    HftlabError
        If the edited strategy does not quote as edited.
    """
    edge = next(_numbers)
    source = source_of(Maker).replace("edge_ticks=0", f"edge_ticks={edge}").replace("k == 0", f"k + {edge} == {edge}")
    instrument = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), base="BTC", quote="USDT")
    limits = Limits(1000, 2**50, 10_000, 10_000)
    definitions = Definitions("edit", "sim", (instrument,), (limits,), StrategyRef("Maker", source, {}), 1)
    rows = _one_book(10_000)
    started = time.perf_counter()
    engine = Engine(definitions, load_strategy(source, "Maker", {}, compiled=True))
    engine.process(control_row("start", 1), RowBuffer())
    engine.process(rows, RowBuffer())
    seconds = time.perf_counter() - started
    quoted: list[Any] = sorted(engine.commands()["px"].tolist())
    if quoted != [9_999 - edge, 10_001 + edge]:
        raise HftlabError(f"the strategy with edge_ticks={edge} quoted {quoted}")
    return seconds


def _one_book(mid: int) -> Any:
    rows = new_rows(3)
    rows["kind"], rows["ts_recv"], rows["a"], rows["qty"] = Kind.LEVEL, 2, 1, 500
    rows["flags"], rows["px"] = [Flag.BID, Flag.ASK, Flag.LAST], [mid - 1, mid + 1, 0]
    rows[2]["kind"], rows[2]["code"] = Kind.BOOK_STATE, BookState.LIVE
    return rows
