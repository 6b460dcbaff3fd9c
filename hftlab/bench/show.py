"""How a benchmark's report reads in a terminal: one table, progress while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hftlab.bench.run import goals, higher_is_better, title

__all__ = ["progress", "table"]

_UNITS = {"_ns": "ns", "_us": "us", "_ms": "ms", "_s": "s", "_mb": "MB"}


@contextmanager
def progress(name: str, rounds: int) -> Iterator[Callable[[int, str], None]]:
    """Show on stderr which round of benchmark `name` runs; yields what `run_bench` tells it to."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=rounds)
        yield lambda i, what: bar.update(task, completed=max(0, i), description=f"{name}: {what}")


def table(report: dict[str, Any]) -> Table:
    """Return a report as a table: ours first, then the peers, then how many times better ours is.

    The verdict compares with the published goals: ``aim`` reached, ``must`` reached, or ``missed``.
    """
    name = report["bench"]
    wanted = goals(name)
    told = Table(title=title(name), title_justify="left")
    told.add_column("figure")
    for column in ("median", "quartiles", "must", "aim"):
        told.add_column(column, justify="right")
    told.add_column("verdict")
    for group in ("ours", "peers", "ratio"):
        for figure, value in report[group].items():
            low, high = report["spread"][figure]
            must, aim = wanted.get(figure, (None, None))
            told.add_row(
                figure,
                _amount(figure, value),
                f"{_amount(figure, low)} to {_amount(figure, high)}",
                "" if must is None else _amount(figure, must),
                "" if aim is None else _amount(figure, aim),
                "" if must is None or aim is None else _verdict(figure, value, must, aim),
            )
        told.add_section()
    told.caption = "  ".join(f"{key} {value}" for key, value in report["machine"].items())
    return told


def _verdict(figure: str, value: float, must: float, aim: float) -> str:
    sign = 1 if higher_is_better(figure) else -1
    if sign * value >= sign * aim:
        return "aim"
    return "must" if sign * value >= sign * must else "missed"


def _amount(figure: str, value: float) -> str:
    """Return a figure with its unit.

    Examples
    --------
    >>> _amount("rows_per_s", 12_340_000.0), _amount("decode_ns", 6.2), _amount("decode_vs_itchfeed", 212.0)
    ('12.3 M/s', '6.2 ns', '212 x')
    """
    if figure.endswith("_per_s"):
        for scale, prefix in ((1e6, "M"), (1e3, "k")):
            if value >= scale:
                return f"{value / scale:.3g} {prefix}/s"
        return f"{value:.3g} /s"
    if "_vs_" in figure:
        return f"{value:.3g} x"
    return f"{value:.4g} {next(unit for end, unit in _UNITS.items() if figure.endswith(end))}"
