"""Fuzz: a million random and mutated inputs for every decoder, once more with bounds checks in the kernels.

Nothing is compared for speed: a figure is how many inputs a second a decoder took, and that it took them all. An input
that made a decoder raise, hang on to more than its share or write outside its rows ends the run with the bytes of that
input. The second pass runs in a process with ``NUMBA_BOUNDSCHECK=1`` and a kernel cache of its own, where an index
outside an array raises instead of reading on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.testing.fuzz import fuzz, targets

__all__ = ["main", "prepare"]

INPUTS = 1_000_000
CHECKED_INPUTS = 1_000_000


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return two cases a decoder: inputs a second as usual, and with bounds checks."""
    cases = []
    for name, make in targets().items():
        feed, seeds = make()
        fuzz(feed, seeds, 10)
        figure = f"{name.replace('-', '_')}_inputs_per_s"
        cases.append(Case(figure, _rate(name, plan.sized(INPUTS, 1_000)), once=True))
        cases.append(Case(f"checked_{figure}", _checked(name, plan.sized(CHECKED_INPUTS, 200), plan.folder), once=True))
    return cases, []


def _rate(name: str, n: int) -> Callable[[], float]:
    def run() -> float:
        feed, seeds = targets()[name]()
        started = time.perf_counter()
        try:
            fuzz(feed, seeds, n, seed=1)
        except AssertionError as error:
            raise CheckFailed(f"fuzz: {name}: {error}") from error
        return n / (time.perf_counter() - started)

    return run


def _checked(name: str, n: int, folder: Path) -> Callable[[], float]:
    def run() -> float:
        done = subprocess.run(
            [sys.executable, "-m", "hftlab.bench.fuzz", name, str(n)],
            capture_output=True,
            text=True,
            env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "HFTLAB_CACHE": str(folder / "checked")},
            check=False,
        )
        if done.returncode:
            raise CheckFailed(f"fuzz with bounds checks: {name}: {done.stderr.strip().splitlines()[-1]}")
        return float(json.loads(done.stdout)["inputs_per_s"])

    return run


def main(name: str, n: str) -> None:
    """Fuzz one decoder in this process and print the rate as JSON."""
    sys.stdout.write(json.dumps({"inputs_per_s": _rate(name, int(n))()}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
