"""Tables people read, from rows machines wrote: orders, fills, P&L, the book.

Prices and quantities appear twice: exact integers (``px_ticks``, ``qty_lots``) to compute with, and floats (``px``,
``qty``) to look at. Times are UTC. A fill that a venue told twice is counted once, and a report of an order that is not
ours not at all, as the engine counts them.

`OrderLog` is fed while a journal grows, so that who follows a session reads each row once; a whole journal is one call.
Worst case accepted: it keeps the order and report rows in memory, 64 to 192 bytes an order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.core.definitions import Definitions
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import (
    CONT,
    NAT,
    REPORT_PAYLOAD,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    RowArray,
    Tif,
    join_rows,
    new_rows,
)
from hftlab.engine import Engine
from hftlab.strategy import MARKET

__all__ = ["OrderLog", "book_frame", "pnl_frame", "tick_to_order_ns"]

_TIF_NAMES = {int(tif): tif.name for tif in Tif}
_STATUS_NAMES = {int(status): status.name.lower() for status in OrdStatus}
_SETTLED = {
    int(ExecType.FILL): "filled",
    int(ExecType.REJECT): "rejected",
    int(ExecType.CANCELED): "canceled",
    int(ExecType.EXPIRED): "expired",
}
_SIDE = pl.when(pl.col("bid")).then(pl.lit("buy")).otherwise(pl.lit("sell")).alias("side")
_TIME = pl.col("ts").cast(pl.Datetime("ns", "UTC"))
_NO_SEQS = np.zeros(0, np.int64)


class OrderLog:
    """The orders of a journal and the reports about them, kept as they are read.

    Parameters
    ----------
    rows : array of ROW, optional
        The journal from its first row, as far as there is one.
    """

    def __init__(self, rows: RowArray | None = None) -> None:
        self._orders: list[RowArray] = []
        self._order_seqs: list[npt.NDArray[np.int64]] = []
        self._reports: list[RowArray] = []
        self._report_seqs: list[npt.NDArray[np.int64]] = []
        self._payloads: list[npt.NDArray[Any]] = []
        if rows is not None:
            self.add(rows, 0)

    def add(self, rows: RowArray, first_seq: int) -> None:
        """Keep what belongs here of whole atoms; `first_seq` is the sequence number of ``rows[0]``."""
        kind = rows["kind"]
        orders = np.flatnonzero((kind == Kind.SUBMIT) | (kind == Kind.REPLACE_ORDER))
        if len(orders):
            self._orders.append(rows[orders])
            self._order_seqs.append(first_seq + orders)
        reports = np.flatnonzero(kind == Kind.REPORT)
        if len(reports):
            payload = new_rows(len(reports))
            told = np.flatnonzero(rows["span"][reports] > 0)
            payload.view(np.uint8).reshape(-1, 64)[told] = rows[reports[told] + 1].view(np.uint8).reshape(-1, 64)
            payload["kind"][told] = CONT
            self._reports.append(rows[reports])
            self._report_seqs.append(first_seq + reports)
            self._payloads.append(payload.view(REPORT_PAYLOAD))

    def orders(self, engine: Engine) -> pl.DataFrame:
        """Return one line an order or replace, oldest first.

        Parameters
        ----------
        engine : Engine
            That has applied the same rows: what its table still holds, it knows best.

        Returns
        -------
        polars.DataFrame
            seq, ts (when decided), cl_ord_id, orig (null for an order that replaces none), symbol, side, px (null for a
            market order), qty, cum_qty, tif, status, px_ticks, qty_lots. Cancels are not orders: they show in status.
        """
        rows = join_rows(self._orders)
        frame = pl.DataFrame(
            {
                "seq": np.concatenate([*self._order_seqs, _NO_SEQS]),
                "ts": rows["ts_recv"],
                "cl_ord_id": rows["a"].astype(np.int64),
                "orig": rows["b"].astype(np.int64),
                "instrument": rows["instrument"].astype(np.int64),
                "bid": rows["flags"] & int(Flag.BID) != 0,
                "px_ticks": rows["px"],
                "qty_lots": rows["qty"],
                "tif": [_TIF_NAMES.get(int(code), str(code)) for code in rows["code"]],
            },
            schema_overrides={"tif": pl.String},
        )
        for more in (self._settled_orders(), _known_orders(engine)):
            frame = frame.join(more, "cl_ord_id", "left", maintain_order="left")
        units = {"qty_lots": "qty", "cum_lots": "cum_qty"}
        return _with_units(frame, engine.definitions.instruments, {"px_ticks": "px"}, units).select(
            "seq",
            _TIME,
            "cl_ord_id",
            pl.when(pl.col("orig") != 0).then("orig").alias("orig"),
            "symbol",
            _SIDE,
            pl.when(pl.col("px_ticks") != MARKET).then("px").alias("px"),
            "qty",
            pl.col("cum_qty").fill_null(0.0),
            "tif",
            pl.coalesce("status", "last", pl.lit("canceled")).alias("status"),
            "px_ticks",
            "qty_lots",
        )

    def fills(self, definitions: Definitions) -> pl.DataFrame:
        """Return one line an own fill, oldest first.

        Returns
        -------
        polars.DataFrame
            seq, ts (the venue's time, ours where it gives none), symbol, side, px, qty, fee (> 0 paid), fee_asset,
            maker, cl_ord_id, exec_id, px_ticks, qty_lots.
        """
        frame = self._report_frame().filter(pl.col("exec_type") == ExecType.FILL)
        frame = _with_units(frame, definitions.instruments, {"px_ticks": "px"}, {"qty_lots": "qty"})
        assets = dict(enumerate(definitions.assets))
        return frame.select(
            "seq",
            _TIME,
            "symbol",
            _SIDE,
            "px",
            "qty",
            "fee",
            pl.col("fee_asset").replace_strict(assets, default=None, return_dtype=pl.String),
            "maker",
            "cl_ord_id",
            "exec_id",
            "px_ticks",
            "qty_lots",
        )

    def _settled_orders(self) -> pl.DataFrame:
        """Return cl_ord_id, filled lots and the state that the last settling report leads to, from reports alone."""
        fills = pl.col("exec_type") == ExecType.FILL
        return (
            self._report_frame()
            .group_by("cl_ord_id")
            .agg(
                pl.col("qty_lots").filter(fills).sum().alias("cum_lots"),
                pl.col("exec_type")
                .filter(pl.col("exec_type").is_in(list(_SETTLED)))
                .last()
                .replace_strict(_SETTLED, default=None, return_dtype=pl.String)
                .alias("last"),
            )
        )

    def _report_frame(self) -> pl.DataFrame:
        """Return every report of a known order, an execution that was told twice once."""
        rows = join_rows(self._reports)
        payload = np.concatenate([*self._payloads, np.zeros(0, REPORT_PAYLOAD)])
        frame = pl.DataFrame(
            {
                "seq": np.concatenate([*self._report_seqs, _NO_SEQS]),
                "ts": np.where(rows["ts_event"] == NAT, rows["ts_recv"], rows["ts_event"]),
                "cl_ord_id": rows["a"].astype(np.int64),
                "exec_id": rows["b"],
                "instrument": rows["instrument"].astype(np.int64),
                "bid": rows["flags"] & int(Flag.BID) != 0,
                "maker": rows["flags"] & int(Flag.MAKER) != 0,
                "exec_type": (rows["code"] & 255).astype(np.int64),
                "px_ticks": rows["px"],
                "qty_lots": rows["qty"],
                "fee": payload["fee"] * float(MONEY_SCALE),
                "fee_asset": payload["fee_asset"].astype(np.int64),
            }
        )
        own = np.concatenate([*(part["a"].astype(np.int64) for part in self._orders), _NO_SEQS])
        frame = frame.filter(pl.col("cl_ord_id").is_in(own.tolist()))
        is_fill = pl.col("exec_type") == ExecType.FILL
        first = pl.struct("instrument", "cl_ord_id", "exec_id").is_first_distinct()
        told = frame.filter(is_fill).filter(first)
        return pl.concat([told, frame.filter(~is_fill)]).sort("seq")


def _known_orders(engine: Engine) -> pl.DataFrame:
    """Return cl_ord_id and state of the orders that the engine's table still holds: its word is the exact one."""
    table = engine.orders[engine.orders["cl_ord_id"] > 0]
    return pl.DataFrame(
        {"cl_ord_id": table["cl_ord_id"].copy(), "status": [_STATUS_NAMES[int(s)] for s in table["status"]]},
        schema={"cl_ord_id": pl.Int64, "status": pl.String},
    )


def _with_units(
    frame: pl.DataFrame, instruments: Sequence[Instrument], ticks: Mapping[str, str], lots: Mapping[str, str]
) -> pl.DataFrame:
    """Return `frame` with the symbol, and columns of ticks and lots as floats under the names given."""
    known = range(len(instruments))

    def steps(step: Callable[[Instrument], Decimal]) -> pl.Expr:
        return pl.col("instrument").replace_strict(
            {i: float(step(instruments[i])) for i in known}, default=None, return_dtype=pl.Float64
        )

    return frame.with_columns(
        pl.col("instrument")
        .replace_strict({i: instruments[i].symbol for i in known}, default=None, return_dtype=pl.String)
        .alias("symbol"),
        *((pl.col(count) * steps(lambda i: i.tick_size)).alias(name) for count, name in ticks.items()),
        *((pl.col(count) * steps(lambda i: i.lot_size)).alias(name) for count, name in lots.items()),
    )


def pnl_frame(engine: Engine) -> pl.DataFrame:
    """Return position and P&L, one line an instrument.

    Marked at the mid of the touch, without one at the last trade.

    Returns
    -------
    polars.DataFrame
        symbol, position, position_lots, realized, unrealized, fees and net in the quote asset, fee_base. ``net`` is
        after the fees paid in the quote asset; fees paid in the base asset stand apart, in that asset.
    """
    return pl.DataFrame([_pnl_row(one, engine.pnl(one.id)) for one in engine.definitions.instruments])


def _pnl_row(one: Instrument, units: Mapping[str, int]) -> dict[str, Any]:
    realized, unrealized = one.money(units["realized"]), one.money(units["unrealized_x2"]) / 2
    fees = units["fee_quote"] * MONEY_SCALE
    return {
        "symbol": one.symbol,
        "position": float(one.qty(units["position"])),
        "position_lots": units["position"],
        "realized": float(realized),
        "unrealized": float(unrealized),
        "fees": float(fees),
        "net": float(realized + unrealized - fees),
        "fee_base": float(units["fee_base"] * MONEY_SCALE),
    }


def book_frame(engine: Engine, instrument: int = 0, depth: int = 10) -> pl.DataFrame:
    """Return the best `depth` levels of each side: side, level (0 the best), px, qty, px_ticks, qty_lots."""
    one = engine.definitions.instruments[instrument]
    sides = zip(("bid", "ask"), engine.levels(instrument, depth), strict=True)
    parts = [
        pl.DataFrame(
            {"side": [side] * len(x), "level": np.arange(len(x)), "px_ticks": x[:, 0], "qty_lots": x[:, 1]},
            schema_overrides={"side": pl.String},
        )
        for side, x in sides
    ]
    return pl.concat(parts).select(
        "side",
        "level",
        (pl.col("px_ticks") * float(one.tick_size)).alias("px"),
        (pl.col("qty_lots") * float(one.lot_size)).alias("qty"),
        "px_ticks",
        "qty_lots",
    )


def tick_to_order_ns(rows: RowArray) -> npt.NDArray[np.int64]:
    """Return, for each input that led to an order, the time from its receipt to the first send it caused, ns.

    Taken from SENT rows: the send time less the receive time of the row whose atom holds the order.
    """
    sent = rows[rows["kind"] == Kind.SENT]
    orders = rows[((rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)) & (rows["kind"] != CONT)]
    received = dict(zip(orders["a"].tolist(), orders["ts_recv"].tolist(), strict=True))
    first: dict[int, int] = {}
    for cl_ord_id, at in zip(sent["a"].tolist(), sent["ts_event"].tolist(), strict=True):
        start = received.get(cl_ord_id)
        if start is not None and (start not in first or at < first[start]):
            first[start] = at
    return np.array([at - start for start, at in first.items()], np.int64)
