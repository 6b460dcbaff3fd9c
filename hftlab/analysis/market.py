"""What the market was like: spread, depth, imbalance, volatility and volume, interval by interval.

**Model.** One pass over the rows of an instrument keeps its book (`hftlab.kernels.l2`: the newer of levels and
quotes is the touch) and writes down the touch after each message that changed it. Everything else is arithmetic on
that line of steps. Averages are weighted by time: a spread that stood for a microsecond counts for a microsecond. While
a book is stale or resyncing there is no touch, and such time is in no average.

**Clock.** Times are receive times, as the strategy lived them; of the venue they tell late, by the feed's latency.

**Worst case accepted.** 72 bytes for each change of the touch or of the depth; the book knows its best 16,384 levels a
side.

References
----------
Andersen, T., Bollerslev, T., Diebold, F., Labys, P. (2003), Modeling and Forecasting Realized Volatility. With the mid
sampled at every change, noise of the bounce between ticks is in it: an upper figure for short intervals.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.analysis.performance import interval_cuts, interval_ns
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, ROW, BookState, Flag, Kind, RowArray
from hftlab.kernels.jit import address_of, kernel, load, record_at, store
from hftlab.kernels.l2 import L2_HEAD, L2_INSTRUMENT, LevelTables, apply_levels

__all__ = ["Touches", "bad_rows", "market_frame", "touches", "trace_touches", "volume_profile"]

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LEVELS = 1 << 14
_BLOCK = 1 << 17
_KINDS = np.array([Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.BOOK_STATE], np.uint8)
_LAST, _STALE, _RESYNCING, _NO_PX = int(Flag.LAST), int(BookState.STALE), int(BookState.RESYNCING), NO_PX
_FIELDS = 7

_head_at = record_at(L2_HEAD)
_instrument_at = record_at(L2_INSTRUMENT)
_row_at = record_at(ROW)


class Touches(NamedTuple):
    """The touch after each message that changed it, and the lots on the best levels of each side.

    Parameters
    ----------
    ts : int64 array, shape (n,)
        Receive time, ns, ascending.
    bid_px, bid_qty, ask_px, ask_qty : int64 arrays, shape (n,)
        Ticks and lots; NO_PX and 0 where a side is empty or the book not to be believed.
    bid_depth, ask_depth : int64 arrays, shape (n,)
        Lots on as many levels as were asked for.
    """

    ts: Int64s
    bid_px: Int64s
    bid_qty: Int64s
    ask_px: Int64s
    ask_qty: Int64s
    bid_depth: Int64s
    ask_depth: Int64s

    def mid(self) -> Floats:
        """Return the mid after each change, ticks; NaN without two sides."""
        both = (self.bid_px != NO_PX) & (self.ask_px != NO_PX)
        return np.where(both, (self.bid_px + self.ask_px) / 2, np.nan)

    def at(self, ns: npt.ArrayLike, *, before: bool = False) -> Int64s:
        """Return the index of the touch at each time, strictly before it on request; -1 where there was none yet."""
        side: Literal["left", "right"] = "left" if before else "right"
        return np.asarray(np.searchsorted(self.ts, np.asarray(ns, np.int64), side) - 1, np.int64)

    def mid_at(self, ns: npt.ArrayLike, *, before: bool = False) -> Floats:
        """Return the mid at each time, ticks, as `at` finds it; NaN where there was none."""
        return np.append(self.mid(), np.nan)[self.at(ns, before=before)]


@kernel(inline=True)
def _sum_best(side: int, n: int, depth: int) -> int:
    """Return the lots on the best `depth` of a side's `n` levels, the best of which is last."""
    total = 0
    for k in range(max(0, n - depth), n):
        total += load(side + 16 * k + 8)
    return total


@kernel()
def trace_touches(book: int, rows: int, n: int, depth: int, last: int, out: int) -> int:
    """Apply `n` rows of instrument 0, and write its touch whenever a message changed it; return how often that was.

    Parameters
    ----------
    book : int64
        Address of an `L2_HEAD` with one instrument.
    rows, n : int64
        Address of the rows, and how many.
    depth : int64
        Levels a side to sum.
    last : int64
        Address of 7 int64: what was written last, kept from one block to the next.
    out : int64
        Address of room for ``n`` times 7 int64: receive time, bid, lots, ask, lots, lots on `depth` levels of each.
    """
    written = 0
    for i in range(n):
        at = rows + 64 * i
        apply_levels(book, at, 1)
        row = _row_at(at)
        if (np.int64(row.flags) & _LAST) == 0:
            continue
        head = _head_at(book)
        of = _instrument_at(head.at)
        bids, asks = head.levels, head.levels + 16 * head.level_cap
        bid_px, bid_qty, ask_px, ask_qty, bid_depth, ask_depth = _NO_PX, 0, _NO_PX, 0, 0, 0
        if of.state != _STALE and of.state != _RESYNCING:
            if of.n_bids > 0:
                bid_px, bid_qty = load(bids + 16 * (of.n_bids - 1)), load(bids + 16 * (of.n_bids - 1) + 8)
                bid_depth = _sum_best(bids, of.n_bids, depth)
            if of.n_asks > 0:
                ask_px, ask_qty = load(asks + 16 * (of.n_asks - 1)), load(asks + 16 * (of.n_asks - 1) + 8)
                ask_depth = _sum_best(asks, of.n_asks, depth)
            if of.quoted != 0:
                bid_px, bid_qty = of.quote_bid_px, of.quote_bid_qty
                ask_px, ask_qty = of.quote_ask_px, of.quote_ask_qty
                bid_depth = bid_qty if of.n_bids == 0 else bid_depth
                ask_depth = ask_qty if of.n_asks == 0 else ask_depth
        same = (
            load(last + 8) == bid_px and load(last + 16) == bid_qty and load(last + 24) == ask_px
            and load(last + 32) == ask_qty and load(last + 40) == bid_depth and load(last + 48) == ask_depth
        )  # fmt: skip
        if same:
            continue
        ts = max(load(last), row.ts_recv)
        for where in (last, out + 56 * written):
            store(where, ts)
            store(where + 8, bid_px)
            store(where + 16, bid_qty)
            store(where + 24, ask_px)
            store(where + 32, ask_qty)
            store(where + 40, bid_depth)
            store(where + 48, ask_depth)
        written += 1
    return written


def touches(rows: RowArray, instrument: int = 0, depth: int = 1) -> Touches:
    """Return the touch of an instrument after each message that changed it.

    Parameters
    ----------
    rows : array of ROW
        A journal from its first row.
    instrument : int
    depth : int
        Levels a side whose lots are summed, from 1.

    Raises
    ------
    ConfigError
        If `depth` is below 1.

    Examples
    --------
    >>> from hftlab.core.rows import new_rows
    >>> rows = new_rows(2)
    >>> rows["kind"], rows["px"], rows["qty"] = Kind.LEVEL, [99, 102], [5, 4]
    >>> rows["flags"] = [Flag.BID, Flag.ASK | Flag.LAST]
    >>> touches(rows).mid().tolist()
    [100.5]
    """
    if depth < 1:
        raise ConfigError(f"depth: {depth}; expected 1 or more levels")
    tables = LevelTables(_LEVELS, 1)
    last = np.zeros(_FIELDS, np.int64)
    last[1] = last[3] = NO_PX
    parts = [np.zeros((0, _FIELDS), np.int64)]
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        mine = np.ascontiguousarray(block[(block["instrument"] == instrument) & np.isin(block["kind"], _KINDS)])
        if not len(mine):
            continue
        mine["instrument"] = 0
        out = np.empty((len(mine), _FIELDS), np.int64)
        n = trace_touches(tables.address, address_of(mine), len(mine), depth, address_of(last), address_of(out))
        parts.append(out[:n].copy())
    return Touches(*np.concatenate(parts).T.copy())


def _held_means(ts: Int64s, values: Floats, edges: Int64s) -> Floats:
    """Return the mean, weighted by time, of a line of steps between each two edges; NaN where it has no value."""
    if not len(ts):
        return np.full(len(edges) - 1, np.nan)
    start = min(int(ts[0]), int(edges[0]))
    knots = np.append(ts, max(int(edges[-1]), int(ts[-1]))) - start
    lasted = np.diff(knots).astype(np.float64)
    known = np.isfinite(values)
    area = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0) * lasted)])
    time = np.concatenate([[0.0], np.cumsum(known * lasted)])
    at = (edges - start).astype(np.float64)
    areas, times = (np.diff(np.interp(at, knots.astype(np.float64), one)) for one in (area, time))
    means: Floats = np.divide(areas, times, out=np.full(len(areas), np.nan), where=times > 0)
    return means


def market_frame(
    rows: RowArray, definitions: Definitions, interval: str | int = "1s", depth: int = 5
) -> pl.DataFrame:
    """Return what each instrument's market was like, one line an interval.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
    interval : str or int
        Such as ``"1s"``; see `hftlab.analysis.performance.interval_ns`.
    depth : int
        Levels a side that count as depth.

    Returns
    -------
    polars.DataFrame
        ts (UTC, the interval's end), symbol, mid (at its end), spread (quote asset) and spread_bps, bid_depth and
        ask_depth (base asset on `depth` levels), imbalance (bid depth over both, 0 to 1), all four weighted by time;
        volatility (root of the sum of squared log changes of the mid, not annualised), volume, buy_volume, sell_volume
        (base asset, by the aggressor; a trade without one is in volume only), trades, vwap. Null where there was none.
    """
    columns: list[pl.DataFrame] = []
    if not len(rows):
        return pl.DataFrame(schema=_MARKET_SCHEMA)
    step = interval_ns(interval)
    ends, _ = interval_cuts(rows, step)
    edges = np.append(ends[0] - step, ends)
    for one in definitions.instruments:
        tick, lot = float(one.px(1)), float(one.qty(1))
        line = touches(rows, one.id, depth)
        mid = line.mid()
        spread = np.where(np.isfinite(mid), (line.ask_px - line.bid_px).astype(np.float64), np.nan)
        both = (line.bid_depth + line.ask_depth).astype(np.float64)
        imbalance = np.divide(line.bid_depth, both, out=np.full(len(mid), np.nan), where=both > 0)
        known = np.isfinite(mid)
        changes = np.diff(np.log(mid[known]))
        place = np.searchsorted(ends, line.ts[known][1:], "left")
        squares = np.bincount(place.clip(0, len(ends) - 1), changes**2, len(ends))
        traded = _traded(rows, one.id, ends)
        columns.append(
            pl.DataFrame(
                {
                    "ts": ends,
                    "symbol": [one.symbol] * len(ends),
                    "mid": line.mid_at(ends) * tick,
                    "spread": _held_means(line.ts, spread, edges) * tick,
                    "spread_bps": _held_means(line.ts, spread / mid, edges) * 1e4,
                    "bid_depth": _held_means(line.ts, line.bid_depth.astype(np.float64), edges) * lot,
                    "ask_depth": _held_means(line.ts, line.ask_depth.astype(np.float64), edges) * lot,
                    "imbalance": _held_means(line.ts, imbalance, edges),
                    "volatility": np.where(np.isfinite(line.mid_at(ends)), np.sqrt(squares), np.nan),
                    "volume": traded[0] * lot,
                    "buy_volume": traded[1] * lot,
                    "sell_volume": traded[2] * lot,
                    "trades": traded[3].astype(np.int64),
                    "vwap": np.divide(traded[4], traded[0], out=np.full(len(ends), np.nan), where=traded[0] > 0) * tick,
                }
            )
        )
    floats = [name for name, kind in _MARKET_SCHEMA.items() if kind == pl.Float64]
    frame = pl.concat(columns).with_columns(pl.col("ts").cast(pl.Datetime("ns", "UTC")), pl.col(floats).fill_nan(None))
    return frame.select(list(_MARKET_SCHEMA))


_MARKET_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "ts": pl.Datetime("ns", "UTC"), "symbol": pl.String,
    **dict.fromkeys(
        ("mid", "spread", "spread_bps", "bid_depth", "ask_depth", "imbalance", "volatility", "volume", "buy_volume",
         "sell_volume"), pl.Float64,
    ),
    "trades": pl.Int64, "vwap": pl.Float64,
}  # fmt: skip


def _trades(rows: RowArray, instrument: int) -> RowArray:
    """Return the trades of an instrument whose volume counts."""
    printed = rows["flags"] & int(Flag.NON_PRINTABLE | Flag.SNAPSHOT) == 0
    mine = (rows["kind"] == Kind.TRADE) & (rows["instrument"] == instrument)
    some: RowArray = rows[mine & printed & (rows["qty"] > 0)]
    return some


def _traded(rows: RowArray, instrument: int, ends: Int64s) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return lots, lots bought and sold by aggressors, trades, and ticks x lots, per interval."""
    some = _trades(rows, instrument)
    place, qty = np.searchsorted(ends, some["ts_recv"], "left").clip(0, len(ends) - 1), some["qty"].astype(np.float64)
    parts = (
        qty, qty * (some["flags"] & int(Flag.BID) != 0), qty * (some["flags"] & int(Flag.ASK) != 0),
        np.ones(len(some)), qty * some["px"],
    )  # fmt: skip
    lots, bought, sold, trades, notional = (np.bincount(place, part, len(ends)).astype(np.float64) for part in parts)
    return lots, bought, sold, trades, notional


def volume_profile(rows: RowArray, definitions: Definitions, instrument: int = 0, step_ticks: int = 1) -> pl.DataFrame:
    """Return what was traded at each price, lowest first.

    Parameters
    ----------
    rows : array of ROW
    definitions : Definitions
    instrument : int
    step_ticks : int
        Prices of so many ticks are one line, named by its lowest.

    Returns
    -------
    polars.DataFrame
        px_ticks, px, volume, buy_volume, sell_volume (base asset, by the aggressor), share (of all volume).

    Raises
    ------
    ConfigError
        If `step_ticks` is below 1.
    """
    if step_ticks < 1:
        raise ConfigError(f"step_ticks: {step_ticks}; expected 1 or more")
    some, one = _trades(rows, instrument), definitions.instruments[instrument]
    lots, flags = some["qty"].astype(np.int64), some["flags"]
    frame = pl.DataFrame(
        {
            "px_ticks": some["px"] // step_ticks * step_ticks,
            "volume": lots,
            "buy_volume": np.where(flags & int(Flag.BID) != 0, lots, 0),
            "sell_volume": np.where(flags & int(Flag.ASK) != 0, lots, 0),
        }
    )
    amounts = ["volume", "buy_volume", "sell_volume"]
    return (
        frame.group_by("px_ticks")
        .sum()
        .sort("px_ticks")
        .with_columns(pl.col(amounts) * float(one.qty(1)), (pl.col("px_ticks") * float(one.px(1))).alias("px"))
        .with_columns((pl.col("volume") / pl.col("volume").sum()).alias("share"))
        .select("px_ticks", "px", *amounts, "share")
    )


def bad_rows(rows: RowArray) -> tuple[int, int]:
    """Return how many market rows cannot be true or tell of a loss, and how many market rows there are.

    Counted are levels and quotes without one side or with a quantity below 0, a price of 0 or less where there is a
    quantity, trades without a price or a quantity, rows received before an earlier row of the market, and books that
    resync after a gap or turn crossed.
    """
    kind = rows["kind"]
    told = (kind >= int(Kind.LEVEL)) & (kind <= int(Kind.BOOK_STATE)) & (kind != int(Kind.STATUS))
    some = rows[told]
    kind, qty, px = some["kind"], some["qty"], some["px"]
    booked, traded = (kind == Kind.LEVEL) | (kind == Kind.QUOTE), kind == Kind.TRADE
    side = some["flags"] & int(Flag.BID | Flag.ASK)
    wrong = booked & ((side == 0) | (side == int(Flag.BID | Flag.ASK)) | (qty < 0) | ((qty > 0) & (px <= 0)))
    wrong |= traded & ((qty <= 0) | (px <= 0))
    lost = ((some["code"] == BookState.RESYNCING) & (some["b"] != 0)) | (some["code"] == BookState.CROSSED)
    wrong |= (kind == Kind.BOOK_STATE) & lost
    received = some["ts_recv"]
    wrong[1:] |= received[1:] < np.maximum.accumulate(received)[:-1]
    return int(wrong.sum()), len(some)
