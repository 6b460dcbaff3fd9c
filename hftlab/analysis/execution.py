"""How well orders were executed: what the spread gave, what the market took back, what waiting cost.

**Model.** Every figure is a difference of prices, signed so that a buy and a sell read alike (+1 buy, -1 sell). With
``m(t)`` the mid as we saw it at t, ``d`` the time of the decision, ``f`` that of the fill as the venue dates it, and
``r`` when we heard of it:

- ``slippage = sign (px - m(d))``: > 0 is cost. What deciding and getting differ by.
- ``half_spread = sign (m(f-) - px)``: > 0 earned, the distance to the mid just before the fill; the effective spread is
  twice it.
- ``markout_<h> = sign (m(r + h) - px)``: > 0 is good for us; the realised spread is twice it.
- ``adverse_<h> = half_spread - markout_<h>``: > 0 is what the market took back, adverse selection.
- ``shortfall`` of an order (Perold): slippage of what was filled, plus the way of the mid from decision to end for what
  was not, plus fees. Orders that replaced each other are one intention, decided when the first was.

A fill's own trade must not be in the mid before it, so that mid is the last one *received* before the venue's own time
of the fill; where the venue's clock runs ahead of ours by more than the feed's latency, it may be. A mid that the
journal does not reach, or that had no two sides, is null and in no average.

**Intervals** are Student's, 95 %, over fills. Fills of one burst share their future, so they are too narrow where
horizons are longer than the time between fills.

References
----------
Perold, A. (1988), The Implementation Shortfall. Huang, R., Stoll, H. (1996), Dealer versus Auction Markets (effective
and realised spread). Kaplan, E., Meier, P. (1958), Nonparametric Estimation from Incomplete Observations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.analysis.frames import OrderLog
from hftlab.analysis.market import touches
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, ExecType, Flag, Kind, RowArray
from hftlab.engine import Replica
from hftlab.strategy import MARKET

__all__ = [
    "Execution",
    "HORIZONS_NS",
    "execution",
    "fills_frame",
    "horizon_name",
    "markouts_frame",
    "mean_interval",
    "orders_frame",
    "survival_frame",
]

Floats = npt.NDArray[np.float64]

HORIZONS_NS = (10**6, 10**7, 10**8, 10**9, 10**10, 6 * 10**10)
"""1 ms, 10 ms, 100 ms, 1 s, 10 s, 60 s."""

_ORDERS = np.array([Kind.SUBMIT, Kind.REPLACE_ORDER], np.uint8)
_SETTLING = (ExecType.REJECT, ExecType.REPLACED, ExecType.CANCELED, ExecType.EXPIRED)


def horizon_name(ns: int) -> str:
    """Return a horizon as columns spell it.

    Examples
    --------
    >>> [horizon_name(ns) for ns in (10**6, 250 * 10**6, 10**9, 6 * 10**10, 1500)]
    ['1ms', '250ms', '1s', '60s', '1500ns']
    """
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns % size == 0:
            return f"{ns // size}{unit}"
    return f"{ns}ns"


# --- fills -----------------------------------------------------------------------------------------------------------


def fills_frame(rows: RowArray, definitions: Definitions, horizons: Sequence[int] = HORIZONS_NS) -> pl.DataFrame:
    """Return every own fill with what it cost and what followed, oldest first.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
    horizons : sequence of int
        ns, above 0.

    Returns
    -------
    polars.DataFrame
        The columns of `OrderLog.fills`, then told (when we heard of it) and decided (UTC), notional and cost (the fee)
        in the quote asset, tick (the instrument's); and per unit of the base asset, in the quote asset: mid_decided,
        mid_before, slippage, half_spread, and markout_<h> and adverse_<h> for each horizon, such as ``markout_100ms``.

    Raises
    ------
    ConfigError
        If a horizon is not above 0.
    """
    if any(not isinstance(h, int) or h <= 0 for h in horizons):
        raise ConfigError(f"horizons: {list(horizons)}; expected whole ns above 0")
    fills = OrderLog(rows).fills(definitions)
    ends = int(rows["ts_recv"].max()) if len(rows) else 0
    sent = rows[np.isin(rows["kind"], _ORDERS)]
    orders = pl.DataFrame({"cl_ord_id": sent["a"].astype(np.int64), "decided": sent["ts_recv"]}).unique(
        "cl_ord_id", keep="first"
    )
    fills = fills.with_columns(pl.Series("told", rows["ts_recv"][fills["seq"].to_numpy()], pl.Int64))
    fills = fills.join(orders, "cl_ord_id", "left", maintain_order="left")
    parts = [_with_prices(fills.clear(), np.zeros(0), np.zeros(0), np.zeros((len(horizons), 0)), 0.0, "", horizons)]
    for one in definitions.instruments:
        mine = fills.filter(pl.col("symbol") == one.symbol)
        if not mine.height:
            continue
        line, told = touches(rows, one.id), mine["told"].to_numpy()
        after = np.array([np.where(told + h <= ends, line.mid_at(told + h), np.nan) for h in horizons])
        tick = float(one.px(1))
        before = line.mid_at(mine["ts"].dt.epoch("ns").to_numpy(), before=True)
        decided = line.mid_at(mine["decided"].to_numpy())
        mids = (decided * tick, before * tick, after.reshape(len(horizons), mine.height) * tick)
        parts.append(_with_prices(mine, *mids, tick, one.base, horizons))
    times = pl.col("told", "decided").cast(pl.Datetime("ns", "UTC"))
    return pl.concat(parts).with_columns(times).sort("seq")


def _with_prices(
    fills: pl.DataFrame, decided: Floats, before: Floats, after: Floats, tick: float, base: str, horizons: Sequence[int]
) -> pl.DataFrame:
    """Return fills of one instrument with what `fills_frame` adds; `after` has a line of mids a horizon."""
    sign = np.where(fills["side"] == "buy", 1.0, -1.0)
    px = fills["px"].to_numpy().astype(np.float64)
    half = sign * (before - px)
    columns = {"mid_decided": decided, "mid_before": before, "slippage": sign * (px - decided), "half_spread": half}
    for h, mids in zip(horizons, after, strict=True):
        markout = sign * (mids - px)
        columns |= {f"markout_{horizon_name(h)}": markout, f"adverse_{horizon_name(h)}": half - markout}
    fee = pl.when(pl.col("fee_asset") == base).then(pl.col("fee") * pl.col("px")).otherwise(pl.col("fee"))
    return fills.with_columns(
        (pl.col("px") * pl.col("qty")).alias("notional"),
        fee.alias("cost"),
        pl.lit(tick).alias("tick"),
        *(pl.Series(name, values, pl.Float64).fill_nan(None) for name, values in columns.items()),
    )


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float, int]:
    """Return mean, its 95 % interval by Student's t, and how many finite `values` there were; NaN with too few.

    Examples
    --------
    >>> [round(x, 2) for x in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48, 3]
    >>> mean_interval([1.0])
    (1.0, nan, nan, 1)
    """
    from scipy import stats

    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    if not len(x):
        return math.nan, math.nan, math.nan, 0
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan, 1
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half, len(x)


def markouts_frame(fills: pl.DataFrame) -> pl.DataFrame:
    """Return the mean markout by symbol, role and horizon.

    Parameters
    ----------
    fills : polars.DataFrame
        Of `fills_frame`.

    Returns
    -------
    polars.DataFrame
        symbol, role ("all", "maker", "taker"), horizon_ns, n (fills whose future is known), mean, low, high (ticks, a
        fill counts once whatever its size), bps (mean, of the price). ``low`` and ``high`` are null with one fill.
    """
    names = [name for name in fills.columns if name.startswith("markout_")]
    lines: list[tuple[Any, ...]] = []
    for (symbol,), mine in fills.group_by("symbol", maintain_order=True):
        roles = {"all": mine, "maker": mine.filter("maker"), "taker": mine.filter(~pl.col("maker"))}
        for role, some in roles.items():
            for name in names:
                ticks = (some[name] / some["tick"]).to_numpy()
                mean, low, high, n = mean_interval(ticks)
                bps = mean_interval((some[name] / some["px"] * 1e4).to_numpy())[0]
                if n:
                    lines.append((symbol, role, _horizon_ns(name), n, mean, low, high, bps))
    schema = {"symbol": pl.String, "role": pl.String, "horizon_ns": pl.Int64, "n": pl.Int64}
    floats = ("mean", "low", "high", "bps")
    frame = pl.DataFrame(lines, schema=schema | dict.fromkeys(floats, pl.Float64), orient="row")
    return frame.with_columns(pl.col(floats).fill_nan(None))


def _horizon_ns(name: str) -> int:
    text = name.removeprefix("markout_")
    for unit, size in (("ms", 10**6), ("us", 10**3), ("ns", 1), ("s", 10**9)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * size
    raise ConfigError(f"column {name}: expected markout_ and a horizon")


# --- orders ----------------------------------------------------------------------------------------------------------


def orders_frame(rows: RowArray, definitions: Definitions) -> pl.DataFrame:
    """Return one line an intention: an order with those that replaced it, oldest first.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions

    Returns
    -------
    polars.DataFrame
        cl_ord_id (of the first), decided and ended (UTC; the journal's end while it works), symbol, side, qty and
        cum_qty (base asset; what was wanted at last, what was filled in all), marketable (whether the first met the
        touch as it was decided, and was not post-only), accepted, status (of the last), wait_ns (to the first fill;
        null without one), notional (filled), and in the quote asset, > 0 cost: slippage, opportunity, fees, and their
        sum shortfall; null where a mid is missing.
    """
    log, replica = OrderLog(rows), Replica(definitions)
    replica.apply(rows)
    orders = log.orders(replica)
    end_ns = int(rows["ts_recv"].max()) if len(rows) else 0
    ids = orders["cl_ord_id"].to_list()
    root: dict[int, int] = {}
    for one, orig in zip(ids, orders["orig"].to_list(), strict=True):
        root[one] = root.get(orig, orig) if orig is not None else one
    roots = pl.Series("root", [root[one] for one in ids], pl.Int64)
    seq = orders["seq"].to_numpy()
    passive = pl.Series("post_only", rows["flags"][seq] & int(Flag.POST_ONLY) != 0)
    orders = orders.with_columns(roots, passive).join(_ended(rows), "cl_ord_id", "left", maintain_order="left")
    is_rejected = pl.col("status") == "rejected"
    alive = orders.filter(~is_rejected | (pl.col("cl_ord_id") == pl.col("root")))
    chains = alive.group_by("root", maintain_order=True).agg(
        pl.col("seq", "ts", "symbol", "side", "px_ticks", "post_only").first(),
        pl.col("status", "qty").last(),
        (pl.col("cum_qty").sum() - pl.col("cum_qty").last()).alias("earlier"),
        pl.col("cum_qty").sum(),
        pl.col("ended").last().fill_null(end_ns),
        (~is_rejected).any().alias("accepted"),
    )
    chains = chains.with_columns((pl.col("earlier") + pl.col("qty")).alias("qty"))
    fills = fills_frame(rows, definitions, ())
    if fills.height:
        fills = fills.with_columns(pl.Series("root", [root[one] for one in fills["cl_ord_id"]], pl.Int64))
    else:
        fills = fills.with_columns(pl.lit(0, pl.Int64).alias("root"))
    per = fills.group_by("root").agg(
        pl.col("told").first(), pl.col("notional").sum(), pl.col("cost").sum().alias("fees")
    )
    chains = chains.join(per, "root", "left", maintain_order="left")
    chains = chains.with_columns(pl.col("notional", "fees").fill_null(0.0))
    parts = [_with_shortfall(chains.clear(), *(np.zeros(0),) * 2, np.zeros(0, bool))]
    for instrument in definitions.instruments:
        mine = chains.filter(pl.col("symbol") == instrument.symbol)
        if mine.height:
            line, tick = touches(rows, instrument.id), float(instrument.px(1))
            decided, ended = mine["ts"].dt.epoch("ns").to_numpy(), mine["ended"].to_numpy()
            at, is_buy = line.at(decided), mine["side"].to_numpy() == "buy"
            bid, ask = (np.append(side, NO_PX)[at] for side in (line.bid_px, line.ask_px))
            px, there = mine["px_ticks"].to_numpy(), np.where(is_buy, ask, bid) != NO_PX
            meets = (px == MARKET) | (there & np.where(is_buy, px >= ask, px <= bid))
            meets &= ~mine["post_only"].to_numpy()
            parts.append(_with_shortfall(mine, line.mid_at(decided) * tick, line.mid_at(ended) * tick, meets))
    return pl.concat(parts).sort("seq").drop("seq")


def _ended(rows: RowArray) -> pl.DataFrame:
    """Return cl_ord_id and when (ns) each order ended: filled, rejected, replaced, canceled or expired."""
    told = rows[rows["kind"] == Kind.REPORT]
    sent = rows[rows["kind"] == Kind.REPLACE_ORDER]
    what = told["code"] & 255
    settles = np.isin(what, np.array(_SETTLING, np.uint16)) | (what == ExecType.FILL)
    reports = pl.DataFrame(
        {"id": told["a"].astype(np.int64), "ended": told["ts_recv"], "replaced": what == ExecType.REPLACED}
    ).filter(pl.Series(settles))
    replaces = pl.DataFrame({"id": sent["a"].astype(np.int64), "orig": sent["b"].astype(np.int64)})
    joined = reports.join(replaces, "id", "left", maintain_order="left")
    return (
        joined.with_columns(pl.when("replaced").then("orig").otherwise("id").alias("cl_ord_id"))
        .drop_nulls("cl_ord_id")
        .group_by("cl_ord_id")
        .agg(pl.col("ended").max())
    )


def _with_shortfall(chains: pl.DataFrame, decided: Floats, ended: Floats, meets: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """Return intentions of one instrument as `orders_frame` tells them; mids in the quote asset."""
    sign = np.where(chains["side"] == "buy", 1.0, -1.0)
    filled, rest = chains["cum_qty"].to_numpy(), (chains["qty"] - chains["cum_qty"]).to_numpy().clip(0.0)
    slippage = np.where(filled > 0, sign * (chains["notional"].to_numpy() - filled * decided), 0.0)
    opportunity = np.where(rest > 0, sign * rest * (ended - decided), 0.0)
    fees = chains["fees"].to_numpy()
    costs = {"slippage": slippage, "opportunity": opportunity, "fees": fees, "shortfall": slippage + opportunity + fees}
    utc = pl.Datetime("ns", "UTC")
    return chains.select(
        "seq",
        pl.col("root").alias("cl_ord_id"),
        pl.col("ts").alias("decided"),
        pl.col("ended").cast(utc),
        "symbol",
        "side",
        "qty",
        "cum_qty",
        pl.Series("marketable", meets, pl.Boolean),
        "accepted",
        "status",
        (pl.col("told") - pl.col("ts")).dt.total_nanoseconds().alias("wait_ns"),
        "notional",
        *(pl.Series(name, values, pl.Float64).fill_nan(None) for name, values in costs.items()),
    )


def survival_frame(orders: pl.DataFrame) -> pl.DataFrame:
    """Return which share of passive orders still waits for its first fill after a time, by Kaplan and Meier.

    An order that ended unfilled counts as long as it waited. That is wrong where just those are canceled that were
    about to be filled, as a good strategy does: then orders would be filled faster than this says.

    Parameters
    ----------
    orders : polars.DataFrame
        Of `orders_frame`.

    Returns
    -------
    polars.DataFrame
        wait_ns (ascending), share (1 to 0), low, high (95 %, Greenwood; null where nobody waits any more). Empty if no
        passive order was filled.
    """
    from scipy.stats import CensoredData, ecdf

    schema = {"wait_ns": pl.Int64, "share": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    some = orders.filter(pl.col("accepted") & ~pl.col("marketable"))
    filled = some["wait_ns"].is_not_null().to_numpy()
    if not filled.any():
        return pl.DataFrame(schema=schema)
    lived = (some["ended"] - some["decided"]).dt.total_nanoseconds()
    waits = pl.select(pl.coalesce(some["wait_ns"], lived)).to_series().to_numpy()
    curve = ecdf(CensoredData.right_censored(np.maximum(waits, 1).astype(np.float64), ~filled)).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nobody waits any more there is no interval: NaN
        band = curve.confidence_interval()
    frame = pl.DataFrame(
        {"wait_ns": curve.quantiles.astype(np.int64), "share": curve.probabilities, "low": band.low.probabilities,
         "high": band.high.probabilities}, schema=schema,
    )  # fmt: skip
    return frame.with_columns(pl.col("low", "high").fill_nan(None))


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Execution:
    """Figures of execution; ``print`` shows them. Shares are 0 to 1, basis points are of the price or the notional.

    Parameters
    ----------
    orders, fills : int
        Intentions (an order with those that replaced it) and fills.
    fill_rate_passive, fill_rate_marketable : float
        Mean over intentions of the share that was filled; rejected ones count as unfilled.
    slippage_bps, shortfall_bps : float
        > 0 is cost. Slippage of what was filled, weighted by notional; shortfall of all intentions over what was
        filled.
    effective_spread_bps : float
        Twice the half spread, weighted by notional: > 0 earned.
    realised_spread_bps, adverse_bps, markout_bps : dict of str to float
        By horizon such as ``"1s"``; of the fills whose future is known, weighted by notional.
    cost_share : float
        Slippage of marketable fills, where above 0 in sum, and all fees, over notional.
    half_life_s : float
        Time until half of the passive orders have a fill; NaN if never.
    notes : tuple of str
        Why a figure is NaN.
    """

    orders: int
    fills: int
    fill_rate_passive: float
    fill_rate_marketable: float
    slippage_bps: float
    shortfall_bps: float
    effective_spread_bps: float
    realised_spread_bps: dict[str, float]
    adverse_bps: dict[str, float]
    markout_bps: dict[str, float]
    cost_share: float
    half_life_s: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.orders:,} orders, {self.fills:,} fills; filled {self.fill_rate_passive:.1%} of passive, "
            f"{self.fill_rate_marketable:.1%} of marketable ones; half of the passive within {self.half_life_s:.3g} s",
            f"slippage {self.slippage_bps:+.3f} bp, shortfall {self.shortfall_bps:+.3f} bp, cost {self.cost_share:.4%}",
            f"effective spread {self.effective_spread_bps:+.3f} bp",
            "markout " + ", ".join(f"{h} {bps:+.3f} bp" for h, bps in self.markout_bps.items()),
        ]
        return "\n".join([*lines, *self.notes])


def execution(rows: RowArray, definitions: Definitions, horizons: Sequence[int] = HORIZONS_NS) -> Execution:
    """Return the figures of execution of a session.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
        All instruments quoted in one asset.
    horizons : sequence of int
        ns, above 0.

    Raises
    ------
    ConfigError
        If the instruments are quoted in several assets, or a horizon is not above 0.
    """
    assets = sorted({one.quote for one in definitions.instruments})
    if len(assets) != 1:
        raise ConfigError(f"instruments are quoted in {', '.join(assets)}; expected one asset: amounts must add up")
    fills, orders = fills_frame(rows, definitions, horizons), orders_frame(rows, definitions)
    passive, marketable = orders.filter(~pl.col("marketable")), orders.filter("marketable")
    notes = [] if orders.height else ["There was no order: nothing was executed."]
    if orders.height and not marketable.height:
        notes.append("No order was marketable: their fill rate is not defined.")
    if orders.height and not fills.height:
        notes.append("There was no fill: slippage, shortfall, spreads and markouts are not defined.")
    names = [horizon_name(h) for h in horizons]
    unknown = [name for name in names if fills.height and fills[f"markout_{name}"].is_null().all()]
    if unknown:
        notes.append(f"The journal ends before the horizon {', '.join(unknown)} of any fill: no markout there.")
    markouts = {name: _weighted_bps(fills, f"markout_{name}") for name in names}
    total = float(fills["notional"].sum())
    survival = survival_frame(orders)
    half = survival.filter(pl.col("share") <= 0.5)["wait_ns"]
    return Execution(
        orders.height, fills.height, _filled(passive), _filled(marketable), _weighted_bps(fills, "slippage"),
        float(orders["shortfall"].sum()) / total * 1e4 if total else math.nan, 2 * _weighted_bps(fills, "half_spread"),
        {name: 2 * bps for name, bps in markouts.items()},
        {name: _weighted_bps(fills, f"adverse_{name}") for name in names}, markouts,
        _cost(fills, marketable) / total if total else math.nan, half[0] / 1e9 if len(half) else math.nan, tuple(notes),
    )  # fmt: skip


def _filled(orders: pl.DataFrame) -> float:
    """Return the mean share filled; NaN without orders."""
    return float(np.mean((orders["cum_qty"] / orders["qty"]).to_numpy())) if orders.height else math.nan


def _weighted_bps(fills: pl.DataFrame, name: str) -> float:
    """Return a column's mean over fills, weighted by quantity, in 1e-4 of their notional; NaN if none is known."""
    known = fills.filter(pl.col(name).is_not_null())
    notional = float(known["notional"].sum())
    return float((known[name] * known["qty"]).sum()) / notional * 1e4 if notional else math.nan


def _cost(fills: pl.DataFrame, marketable: pl.DataFrame) -> float:
    """Return fees and what crossing cost beside the mid, in the quote asset."""
    return float(fills["cost"].sum()) + max(0.0, float(marketable["slippage"].sum()))
