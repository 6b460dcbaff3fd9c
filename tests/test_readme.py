"""What README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def run(home: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run Python beside a module that holds README's strategy."""
    (tmp_path / "bid.py").write_text(BLOCKS[0])

    def script(code: str) -> str:
        (tmp_path / "script.py").write_text("import hftlab as hl\nfrom bid import Bid\n" + code)
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield script
    subprocess.run(
        [sys.executable, "-c", "from hftlab.services import supervisor; supervisor.shutdown()"], timeout=60, check=False
    )


def test_readme_has_one_strategy_in_three_contexts() -> None:
    strategy, notebook, script, application = BLOCKS
    assert "class Bid" in strategy and "hl.sim(Bid" in notebook
    assert "hl.backtest(Bid" in script and "asyncio.run" in application


def test_readme_script_backtests_the_strategy(run) -> None:  # type: ignore[no-untyped-def]
    told = run(BLOCKS[2])
    assert re.search(r"[1-9]\d* orders, [1-9]\d* fills", told), told


def test_readme_notebook_and_application_share_a_session(run) -> None:  # type: ignore[no-untyped-def]
    first, stop = BLOCKS[1].split("session.stop()")
    cell = textwrap.indent(first + "print('fills', session.fills.height)", "    ")
    told = run(f"import asyncio\nasync def cell():\n{cell}\nasyncio.run(cell())\n{BLOCKS[3]}\nhl.attach('bid').stop()")
    assert int(re.search(r"fills (\d+)", told).group(1)) >= 3, told  # type: ignore[union-attr]
    assert "cancels, confirms" in stop


def test_readme_names_the_two_commands_that_the_makefile_has() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


def test_readme_screenshot_is_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
