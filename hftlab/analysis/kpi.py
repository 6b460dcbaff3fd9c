"""The few figures that decide whether a strategy may go on, each with its goal and a verdict.

A figure that could not be computed is *unknown*, and unknown is not a pass: a session without a trade has no Sharpe
ratio to be proud of. Goals are strict: what equals its goal has not passed it.

Drawdown is a share of capital. Where none is named it is the largest position that the limits allow, at the last mark
and over all instruments: what the session could at most have held without borrowing. Bad data are market rows that
cannot be true or tell of a loss (`hftlab.analysis.market.bad_rows`).
"""

from __future__ import annotations

import math

import polars as pl

from hftlab.analysis.execution import Execution, execution
from hftlab.analysis.market import bad_rows
from hftlab.analysis.performance import Performance, equity_frame, performance
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import RowArray

__all__ = ["GOALS", "kpi_frame", "kpi_verdict"]

GOALS = {
    "sharpe": (">", 2.0),
    "drawdown": ("<", 0.05),
    "fill_rate_marketable": (">", 0.95),
    "cost_share": ("<", 0.001),
    "bad_data": ("<", 0.0001),
}
"""Which side of which value each figure must lie on."""


def kpi_verdict(name: str, value: float) -> str:
    """Return ``"pass"``, ``"fail"`` or, of NaN, ``"unknown"``.

    Examples
    --------
    >>> [kpi_verdict("sharpe", value) for value in (2.1, 2.0, float("nan"))]
    ['pass', 'fail', 'unknown']
    """
    if math.isnan(value):
        return "unknown"
    sense, goal = GOALS[name]
    return "pass" if (value > goal if sense == ">" else value < goal) else "fail"


def kpi_frame(
    rows: RowArray,
    definitions: Definitions,
    interval: str | int = "1s",
    *,
    capital: float | None = None,
    earned: Performance | None = None,
    executed: Execution | None = None,
) -> pl.DataFrame:
    """Return the panel of key figures of a session.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
        All instruments quoted in one asset.
    interval : str or int
        Between samples of equity; see `hftlab.analysis.performance.interval_ns`.
    capital : float, optional
        What drawdown is a share of, quote asset, above 0; see the module for what it is otherwise.
    earned, executed : Performance, Execution, optional
        Of the same rows, if they are there already.

    Returns
    -------
    polars.DataFrame
        name, value (null if unknown; drawdown as a share above 0), goal (such as ``"> 2"``), verdict ("pass", "fail" or
        "unknown"), why (a sentence).

    Raises
    ------
    ConfigError
        If `capital` is not above 0, or the instruments are quoted in several assets.
    """
    if capital is not None and not 0.0 < capital < math.inf:
        raise ConfigError(f"capital: {capital}; expected an amount above 0")
    equity = equity_frame(rows, definitions, interval)
    earned = performance(rows, definitions, interval, equity=equity) if earned is None else earned
    executed = execution(rows, definitions) if executed is None else executed
    bad, told = bad_rows(rows)
    base = _allowed(equity, definitions) if capital is None else capital
    what = "the capital named" if capital is not None else "the largest position that the limits allow"
    every, asset = f"{earned.interval_ns / 1e9:g} s", earned.asset
    values = {
        "sharpe": (
            earned.sharpe,
            f"Annualised from {earned.samples:,} samples of {every}; 95 % between {earned.sharpe_low:.2f} and "
            f"{earned.sharpe_high:.2f}.",
            "Without two samples, or while equity does not change, there is no Sharpe ratio.",
        ),
        "drawdown": (
            -earned.drawdown / base if base and earned.samples else math.nan,
            f"{-earned.drawdown:,.6g} {asset} of {base:,.6g} {asset}, {what}.",
            "There was no price to value the largest position by.",
        ),
        "fill_rate_marketable": (
            executed.fill_rate_marketable,
            f"Of {executed.orders:,} orders, those that met the touch as they were decided; the mean share filled.",
            "No order was marketable.",
        ),
        "cost_share": (
            executed.cost_share,
            f"Fees and the way from mid to price of marketable orders, over {earned.turnover:,.6g} {asset} traded.",
            "Nothing was traded.",
        ),
        "bad_data": (
            bad / told if told else math.nan,
            f"{bad:,} of {told:,} market rows cannot be true or tell of a loss.",
            "The journal has no market rows.",
        ),
    }
    lines = []
    for name, (value, known, unknown) in values.items():
        sense, goal = GOALS[name]
        missing = math.isnan(value)
        why = unknown if missing else known
        lines.append((name, None if missing else value, f"{sense} {goal:g}", kpi_verdict(name, value), why))
    schema = {"name": pl.String, "value": pl.Float64, "goal": pl.String, "verdict": pl.String, "why": pl.String}
    return pl.DataFrame(lines, schema=schema, orient="row")


def _allowed(equity: pl.DataFrame, definitions: Definitions) -> float:
    """Return the value of the largest positions that the limits allow, at the last marks; 0 without a mark."""
    if not equity.height:
        return 0.0
    marks = dict(equity.drop_nulls("mark").group_by("symbol").agg(pl.col("mark").last()).iter_rows())
    pairs = zip(definitions.instruments, definitions.limits, strict=True)
    return float(sum(float(one.qty(limit.max_position)) * marks.get(one.symbol, 0.0) for one, limit in pairs))
