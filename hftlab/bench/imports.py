"""Start-up: the command's help, the import, a warm trader, and a strategy edited in the notebook.

Help and import are timed as whole processes of this interpreter, beside an empty one (``python_s``). ``warm_trader_s``
is from the start of a trader's process to the state ``trading`` against a running simulated venue, with the kernels in
the cache; ``strategy_edit_s`` is a changed callback until it can be attached.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.bench.startup import strategy_edit_s, warm_trader_s

__all__ = ["GOALS", "prepare"]

GOALS = {"help_s": (0.3, 0.1), "import_s": (0.15, 0.05), "warm_trader_s": (2.0, 1.0), "strategy_edit_s": (1.0, 0.5)}


def _process(*arguments: str) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return time.perf_counter() - started

    return run


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases; the command's help is looked at first."""
    shown = subprocess.run([sys.executable, "-m", "hftlab.cli", "--help"], check=True, capture_output=True, text=True)
    if "Usage" not in shown.stdout:
        raise CheckFailed(f"import: hftlab --help shows no usage: {shown.stdout[:200]!r}")
    warm_trader_s()  # the first may compile
    return [
        Case("help_s", _process("-m", "hftlab.cli", "--help")),
        Case("import_s", _process("-c", "import hftlab")),
        Case("python_s", _process("-c", "")),
        Case("warm_trader_s", warm_trader_s),
        Case("strategy_edit_s", strategy_edit_s),
    ], []
