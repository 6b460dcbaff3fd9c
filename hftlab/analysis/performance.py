"""What a session earned, sampled at even intervals, and how sure one can be of it.

**Model.** The journal is replayed by an engine without a strategy, which stops at the end of each interval and reads
position, cash and fees as the live engine has them; positions are marked at the mid of the touch. Equity is what was
earned since the start: realized and unrealized P&L less fees, in the quote asset. Statistics are of its changes per
interval, in money: a desk that trades on margin has no capital to divide by, so there is no return in percent.

**Annualisation** multiplies a ratio by the square root of the intervals of a year of 365 days, which says that the next
interval knows nothing of the last one. Intraday P&L often does: then a Sharpe ratio of one-second changes is too high,
and one of a longer interval is the honester figure. Both interval and factor are stated with each ratio.

**What there is not enough of is NaN, with a sentence** in `Performance.notes`: no trade, one interval, flat equity.
Never an infinity.

References
----------
Sharpe, W. (1994), The Sharpe Ratio. Sortino, F., Price, L. (1994), Performance Measurement in a Downside Risk
Framework. Bailey, D., López de Prado, M. (2012), The Sharpe Ratio Efficient Frontier (probabilistic Sharpe ratio);
(2014), The Deflated Sharpe Ratio. Politis, D., Romano, J. (1994), The Stationary Bootstrap.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.analysis.frames import OrderLog
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import MONEY_SCALE
from hftlab.core.rows import CONT, Flag, Kind, RowArray
from hftlab.engine import Replica

__all__ = [
    "CAPACITY_SHARE",
    "Performance",
    "deflated_sharpe",
    "drawdown",
    "equity_frame",
    "interval_cuts",
    "interval_ns",
    "performance",
    "positions_frame",
    "probabilistic_sharpe",
    "sharpe",
    "sortino",
]

Floats = npt.NDArray[np.float64]

YEAR_NS = 365 * 86_400 * 10**9
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_MOST_SAMPLES = 1_000_000
_RESAMPLES = 1000
CAPACITY_SHARE = 0.1
"""Share of the market's volume beyond which nobody believes that a strategy leaves the market as it was."""
_EULER = 0.5772156649015329


def interval_ns(text: str | int) -> int:
    """Return an interval such as ``"1s"``, ``"500ms"`` or ``"5m"`` in ns.

    Raises
    ------
    ConfigError
        If it is none.

    Examples
    --------
    >>> interval_ns("250ms"), interval_ns(10)
    (250000000, 10)
    """
    if isinstance(text, int) and text > 0:
        return text
    found = re.fullmatch(r"(\d+)(ns|us|ms|s|m|h|d)", str(text))
    if found is None or not int(found[1]):
        raise ConfigError(f"interval: {text!r}; expected a whole number and one of {', '.join(_UNITS)}, such as '1s'")
    return int(found[1]) * _UNITS[found[2]]


# --- equity ----------------------------------------------------------------------------------------------------------


def interval_cuts(rows: RowArray, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ends of the intervals of `step` ns, and the row before which each ends; payloads stay with heads.

    Raises
    ------
    ConfigError
        If there would be more than 1,000,000.
    """
    received = rows["ts_recv"].copy()
    heads = np.maximum.accumulate(np.where(rows["kind"] == CONT, 0, np.arange(len(rows))))
    received = np.maximum.accumulate(received[heads])
    dated = received[received > 0]
    first, last = (int(dated[0]), int(dated[-1])) if len(dated) else (0, 0)
    n = -(-(last - first) // step) if last > first else 1
    if n > _MOST_SAMPLES:
        raise ConfigError(f"interval: {step} ns gives {n:,} samples; at most {_MOST_SAMPLES:,}: take a longer one")
    ends = first + step * np.arange(1, n + 1, dtype=np.int64)
    return ends, np.searchsorted(received, ends, "right")


def equity_frame(rows: RowArray, definitions: Definitions, interval: str | int = "1s") -> pl.DataFrame:
    """Return P&L at the end of each interval, one line an interval and instrument.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
    interval : str or int
        Such as ``"1s"``; see `interval_ns`.

    Returns
    -------
    polars.DataFrame
        ts (UTC), symbol, asset (of all money), position (base), mark (price; null without any), gross (P&L before
        fees), fees (paid), equity (gross less fees). Fees in the base asset are marked at the mid.
    """
    lines: dict[str, list[Any]] = {name: [] for name in ("ts", "instrument", "position", "mark_x2", "total_x2", "fees")}
    if len(rows):
        replica, done = Replica(definitions), 0
        for end, cut in zip(*(part.tolist() for part in interval_cuts(rows, interval_ns(interval))), strict=True):
            replica.apply(rows[done:cut])
            done = cut
            for one in definitions.instruments:
                told = replica.pnl(one.id)
                mark_x2 = replica.mark_x2(one.id)
                base = told["fee_base"] * MONEY_SCALE * (one.px(mark_x2) / 2 if mark_x2 else 0)
                for name, value in (
                    ("ts", end), ("instrument", one.id), ("position", told["position"]), ("mark_x2", mark_x2),
                    ("total_x2", told["total_x2"]), ("fees", float(told["fee_quote"] * MONEY_SCALE + base)),
                ):  # fmt: skip
                    lines[name].append(value)
    frame = pl.DataFrame(lines, schema=dict.fromkeys(lines, pl.Int64) | {"fees": pl.Float64})
    parts = []
    for one in definitions.instruments:
        money, lot, tick = float(one.money(1)), float(one.qty(1)), float(one.px(1))
        mine = frame.filter(pl.col("instrument") == one.id)
        parts.append(
            mine.select(
                pl.col("ts").cast(pl.Datetime("ns", "UTC")),
                pl.lit(one.symbol).alias("symbol"),
                pl.lit(one.quote).alias("asset"),
                (pl.col("position") * lot).alias("position"),
                pl.when(pl.col("mark_x2") != 0).then(pl.col("mark_x2") * (tick / 2)).alias("mark"),
                (pl.col("total_x2") * (money / 2)).alias("gross"),
                pl.col("fees"),
                (pl.col("total_x2") * (money / 2) - pl.col("fees")).alias("equity"),
            )
        )
    return pl.concat(parts) if parts else pl.DataFrame()


def positions_frame(rows: RowArray, definitions: Definitions) -> pl.DataFrame:
    """Return the position after each fill: ts, symbol, position (base), side and qty of the fill."""
    fills = OrderLog(rows).fills(definitions)
    signed = pl.when(pl.col("side") == "buy").then(pl.col("qty")).otherwise(-pl.col("qty"))
    return fills.select("ts", "symbol", signed.cum_sum().over("symbol").alias("position"), "side", "qty")


# --- statistics ------------------------------------------------------------------------------------------------------


def _changes(equity: npt.ArrayLike) -> Floats:
    return np.diff(np.concatenate([[0.0], np.asarray(equity, np.float64)]))


def sharpe(changes: npt.ArrayLike, per_year: float = 1.0) -> float:
    """Return mean over standard deviation (ddof 1) of `changes`, times the root of `per_year`; NaN without spread.

    Examples
    --------
    >>> round(sharpe([1.0, 2.0, 3.0]), 3), sharpe([1.0, 1.0])
    (2.0, nan)
    """
    x = np.asarray(changes, np.float64)
    spread = x.std(ddof=1) if len(x) > 1 else 0.0
    tiny = 1e-12 * float(np.abs(x).max()) if len(x) else 0.0
    return float(x.mean() / spread * math.sqrt(per_year)) if spread > tiny else math.nan


def sortino(changes: npt.ArrayLike, per_year: float = 1.0) -> float:
    """Return mean over the root mean square of the losses among `changes`, annualised; NaN without a loss.

    Examples
    --------
    >>> round(sortino([3.0, -1.0]), 4), sortino([1.0, 2.0])
    (1.4142, nan)
    """
    x = np.asarray(changes, np.float64)
    below = math.sqrt(float(np.mean(np.minimum(x, 0.0) ** 2))) if len(x) else 0.0
    return float(x.mean() / below * math.sqrt(per_year)) if below > 0.0 else math.nan


def drawdown(equity: npt.ArrayLike) -> tuple[float, int]:
    """Return the deepest fall of `equity` below its highest before (<= 0; the start counts as 0), and its samples.

    The samples are those from the last high before the longest stay below one until it was reached again, or the end.

    Examples
    --------
    >>> drawdown([1.0, 3.0, 2.0, 1.0, 4.0])
    (-2.0, 2)
    """
    x = np.concatenate([[0.0], np.asarray(equity, np.float64)])
    below = x - np.maximum.accumulate(x)
    longest = run = 0
    for under in (below < 0).tolist():
        run = run + 1 if under else 0
        longest = max(longest, run)
    return float(below.min()), longest


def probabilistic_sharpe(changes: npt.ArrayLike, benchmark: float = 0.0) -> float:
    """Return the probability that the true Sharpe ratio (per interval) is above `benchmark`, given skew and kurtosis.

    Bailey and López de Prado (2012), equation 9.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> round(probabilistic_sharpe(rng.normal(0.1, 1.0, 1000)), 2)
    0.93
    """
    from scipy import stats

    x = np.asarray(changes, np.float64)
    found = sharpe(x)
    if not math.isfinite(found):
        return math.nan
    skew, kurtosis = float(stats.skew(x)), float(stats.kurtosis(x, fisher=False))
    variance = 1.0 - skew * found + (kurtosis - 1.0) / 4.0 * found**2
    if variance <= 0.0:
        return math.nan
    return float(stats.norm.cdf((found - benchmark) * math.sqrt(len(x) - 1) / math.sqrt(variance)))


def deflated_sharpe(changes: npt.ArrayLike, trials: int, spread: float | None = None) -> float:
    """Return the probability that the best of `trials` has a true Sharpe ratio above what chance alone would give.

    Parameters
    ----------
    changes : array of float
        Of the best trial, per interval.
    trials : int
        How many independent ones were tried.
    spread : float, optional
        Standard deviation of the trials' Sharpe ratios (per interval); without it, what trials that know nothing would
        have: one over the root of the number of intervals.

    Examples
    --------
    >>> x = np.random.default_rng(1).normal(0.1, 1.0, 1000)
    >>> deflated_sharpe(x, 1, 0.05) == probabilistic_sharpe(x), round(deflated_sharpe(x, 100, 0.05), 2)
    (True, 0.01)
    """
    from scipy import stats

    x = np.asarray(changes, np.float64)
    if spread is None:
        spread = 1.0 / math.sqrt(max(1, len(x) - 1))
    if trials < 1 or not spread >= 0.0:
        raise ConfigError(f"deflated_sharpe: trials={trials}, spread={spread}; expected 1 or more, and 0 or more")
    luck = 0.0
    if trials > 1:
        first = stats.norm.ppf(1.0 - 1.0 / trials)
        second = stats.norm.ppf(1.0 - 1.0 / (trials * math.e))
        luck = spread * ((1.0 - _EULER) * first + _EULER * second)
    return probabilistic_sharpe(x, luck)


def _interval(changes: Floats, statistic: Any, seed: int = 1) -> tuple[float, float]:
    """Return a 95 % interval of a statistic by the stationary bootstrap, blocks of n ** (1/3) on average."""
    n = len(changes)
    if n < 10:
        return math.nan, math.nan
    chance = np.random.default_rng(seed)
    resamples = min(_RESAMPLES, max(100, 20_000_000 // n))
    found = []
    for _ in range(resamples):
        begins = chance.random(n) < n ** (-1 / 3)
        begins[0] = True
        starts = chance.integers(0, n, n)
        block = np.maximum.accumulate(np.where(begins, np.arange(n), 0))
        found.append(statistic(changes[(starts[block] + np.arange(n) - block) % n]))
    kept = np.array(found)[np.isfinite(found)]
    if len(kept) < resamples // 2:
        return math.nan, math.nan
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Performance:
    """Figures of a session in one quote asset; ``print`` shows them.

    Parameters
    ----------
    asset : str
    interval_ns : int
        Of the samples.
    samples : int
    per_year : float
        Intervals of a year: ratios are multiplied by its root.
    gross, fees, net : float
    sharpe, sortino : float
        Annualised. `sharpe_low`, `sharpe_high`: a 95 % interval (stationary bootstrap).
    probabilistic_sharpe, deflated_sharpe : float
        Probability that the true ratio is above 0, and above what the best of so many trials gets by chance.
    drawdown : float
        <= 0; `drawdown_s` the longest time below a high.
    turnover : float
        Notional traded; `cost_share` is fees over it.
    fills, hit_rate
        Number of fills; share of closed round trips (position back at 0 or turned) that earned, before fees.
    inventory, inventory_most : float
        Mean and largest absolute position value.
    holding_s : float
        Mean time from a position's opening to its end.
    capacity : float
        How many times as much it could trade until it were `CAPACITY_SHARE` of what the market traded meanwhile. Its
        own impact is not in it, so it is a bound from above. Of a synthetic market own trades are part.
    by_instrument, by_role : dict
        Net P&L by symbol; by maker and taker: each fill's quantity times the way from its price to the last mark, less
        its fee. Both sum to `net`, as far as there was a last mark.
    notes : tuple of str
        Why a figure is NaN.
    """

    asset: str
    interval_ns: int
    samples: int
    per_year: float
    gross: float
    fees: float
    net: float
    sharpe: float
    sharpe_low: float
    sharpe_high: float
    sortino: float
    probabilistic_sharpe: float
    deflated_sharpe: float
    drawdown: float
    drawdown_s: float
    turnover: float
    cost_share: float
    fills: int
    hit_rate: float
    inventory: float
    inventory_most: float
    holding_s: float
    capacity: float
    by_instrument: dict[str, float] = field(default_factory=dict)
    by_role: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)

    def __str__(self) -> str:
        every = f"samples of {self.interval_ns / 1e9:g} s, times the root of {self.per_year:,.0f} a year"
        lines = [
            f"net {self.net:+,.6g} {self.asset} (gross {self.gross:+,.6g}, fees {self.fees:,.6g})",
            f"{self.fills:,} fills",
            f"Sharpe {self.sharpe:.2f} (95 % {self.sharpe_low:.2f} to {self.sharpe_high:.2f}), Sortino "
            f"{self.sortino:.2f}: {every}",
            f"probability of a true Sharpe above 0: {self.probabilistic_sharpe:.3f}; above luck: "
            f"{self.deflated_sharpe:.3f}",
            f"drawdown {self.drawdown:,.6g}, {self.drawdown_s:g} s at the longest",
            f"turnover {self.turnover:,.6g}, cost {self.cost_share:.4%} of it; hit rate {self.hit_rate:.1%}",
            f"inventory {self.inventory:,.6g} on average, {self.inventory_most:,.6g} at most; held "
            f"{self.holding_s:.3g} s",
            f"capacity: {self.capacity:,.3g} times as much is {CAPACITY_SHARE:.0%} of the market's volume",
        ]
        return "\n".join([*lines, *self.notes])


def performance(
    rows: RowArray,
    definitions: Definitions,
    interval: str | int = "1s",
    *,
    trials: int = 1,
    spread: float | None = None,
    equity: pl.DataFrame | None = None,
) -> Performance:
    """Return the figures of a session.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
        All instruments quoted in one asset.
    interval : str or int
        Of the samples; see `interval_ns`.
    trials, spread : int, float
        How many were tried, and the standard deviation of their Sharpe ratios (per interval); see `deflated_sharpe`.
    equity : polars.DataFrame, optional
        `equity_frame` of the same rows and interval, if it is there already.

    Raises
    ------
    ConfigError
        If the instruments are quoted in several assets, or the interval is none.
    """
    assets = sorted({one.quote for one in definitions.instruments})
    if len(assets) != 1:
        raise ConfigError(f"instruments are quoted in {', '.join(assets)}; expected one asset: amounts must add up")
    step, notes = interval_ns(interval), []
    frame = equity_frame(rows, definitions, step) if equity is None else equity
    total = frame.group_by("ts", maintain_order=True).agg(
        pl.col("gross", "fees", "equity").sum(), (pl.col("position") * pl.col("mark")).abs().sum().alias("inventory")
    )
    curve = total["equity"].to_numpy()
    changes, per_year = _changes(curve), YEAR_NS / step
    fills = OrderLog(rows).fills(definitions)
    if not fills.height:
        notes.append("There was no fill: ratios, cost and holding time are not defined.")
    ratio = sharpe(changes, per_year)
    if math.isnan(ratio):
        notes.append("Equity did not change, or there is one sample: no Sharpe ratio.")
    loss = sortino(changes, per_year)
    if math.isnan(loss) and fills.height:
        notes.append("No interval lost: no Sortino ratio.")
    low, high = _interval(changes, lambda x: sharpe(x, per_year))
    deepest, longest = drawdown(curve) if len(curve) else (0.0, 0)
    trips = _round_trips(fills)
    if fills.height and not len(trips):
        notes.append("No position was closed: no hit rate and no holding time.")
    turnover = float((fills["px"] * fills["qty"]).sum()) if fills.height else 0.0
    fees = float(total["fees"][-1]) if len(total) else 0.0
    last = frame.group_by("symbol", maintain_order=True).last()
    around = _market_notional(rows, definitions)
    if fills.height and not around:
        notes.append("The market told no trade: no capacity.")
    return Performance(
        assets[0], step, len(total), per_year, float(total["gross"][-1]) if len(total) else 0.0, fees,
        float(curve[-1]) if len(curve) else 0.0, ratio, low, high, loss, probabilistic_sharpe(changes),
        deflated_sharpe(changes, trials, spread), deepest, longest * step / 1e9, turnover,
        fees / turnover if turnover else math.nan, fills.height,
        float(np.mean([earned > 0 for earned, _ in trips])) if trips else math.nan,
        float(total["inventory"].mean() or 0.0) if len(total) else 0.0,  # type: ignore[arg-type]  # of floats
        float(total["inventory"].max() or 0.0) if len(total) else 0.0,  # type: ignore[arg-type]
        float(np.mean([held for _, held in trips])) if trips else math.nan,
        CAPACITY_SHARE * around / turnover if turnover and around else math.nan,
        dict(zip(last["symbol"].to_list(), last["equity"].to_list(), strict=True)) if len(last) else {},
        _by_role(fills, last, definitions), tuple(notes),
    )  # fmt: skip


def _market_notional(rows: RowArray, definitions: Definitions) -> float:
    """Return what the market traded, in the quote asset."""
    counts = rows["flags"] & int(Flag.NON_PRINTABLE | Flag.SNAPSHOT) == 0
    trades = rows[(rows["kind"] == Kind.TRADE) & counts]
    total = 0.0
    for one in definitions.instruments:
        mine = trades[trades["instrument"] == one.id]
        total += float(mine["px"].astype(np.float64) @ mine["qty"].astype(np.float64)) * float(one.money(1))
    return total


def _by_role(fills: pl.DataFrame, last: pl.DataFrame, definitions: Definitions) -> dict[str, float]:
    """Return net P&L of the fills as maker and as taker, from each fill's price to the last mark."""
    if not fills.height:
        return {}
    bases = {one.symbol: one.base for one in definitions.instruments}
    signed = pl.when(pl.col("side") == "buy").then(pl.col("qty")).otherwise(-pl.col("qty"))
    in_base = pl.col("fee_asset") == pl.col("symbol").replace_strict(bases, return_dtype=pl.String)
    fee = pl.col("fee") * pl.when(in_base).then(pl.col("mark").fill_null(0.0)).otherwise(1.0)
    earned = signed * (pl.col("mark").fill_null(pl.col("px")) - pl.col("px")) - fee
    role = pl.when("maker").then(pl.lit("maker")).otherwise(pl.lit("taker")).alias("role")
    marked = fills.join(last.select("symbol", "mark"), "symbol", "left", maintain_order="left")
    return dict(marked.group_by(role).agg(earned.sum()).sort("role").iter_rows())


def _round_trips(fills: pl.DataFrame) -> list[tuple[float, float]]:
    """Return (earned before fees, seconds held) of each position that was closed; one that turned is closed first."""
    trips = []
    for _, mine in fills.group_by("symbol", maintain_order=True):
        position, cash, opened = 0, 0.0, 0
        columns = (mine["ts"].dt.epoch("ns"), mine["side"], mine["qty_lots"], mine["px"], mine["qty"])
        for at, side, lots, px, qty in zip(*(column.to_list() for column in columns), strict=True):
            signed, lot = (lots if side == "buy" else -lots), qty / lots
            if position == 0:
                cash, opened = 0.0, at
            closing = position and (position > 0) != (signed > 0)
            part = max(-abs(position), min(abs(position), signed)) if closing else signed
            cash -= part * lot * px
            position += part
            if closing and position == 0:
                trips.append((cash, (at - opened) / 1e9))
                rest = signed - part
                position, cash, opened = rest, -rest * lot * px, at
    return trips

