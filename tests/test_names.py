"""The names of ``import hftlab as hl``."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("before", ["", "import hftlab.sim.exchange", "import hftlab.notebook.session"])
def test_sim_is_a_room_and_starts_sessions_whatever_was_imported_first(before: str) -> None:
    code = (
        f"{before}\nimport hftlab as hl\nfrom hftlab.core.errors import ConfigError\n"
        "try:\n    hl.sim('Maker')\nexcept ConfigError as error:\n    print(error)\n"
        "from hftlab.sim.models import Fees\nimport hftlab.sim.flow as flow\nprint(flow.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "strategy: 'Maker'; expected an instance such as Maker(edge_ticks=2)",
        "hftlab.sim.flow",
    ], done.stderr


@pytest.mark.parametrize("before", ["", "import hftlab.backtest.runner"])
def test_backtest_is_a_room_and_runs_backtests_whatever_was_imported_first(before: str) -> None:
    code = (
        f"{before}\nimport hftlab as hl\ntry:\n    hl.backtest(None, 'absent', instruments=[], limits=[])\n"
        "except Exception as error:\n    print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["ConfigError"], done.stderr
