"""Tables people read, from rows machines wrote.

Prices and quantities appear twice: exact integers (``px_ticks``, ``qty_lots``) to compute with, and floats (``px``,
``qty``) to look at. Times are UTC. A fill that a venue sent twice is counted once, as the engine counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, REPORT_PAYLOAD, ExecType, Flag, Kind, OrdStatus, RowArray
from hftlab.engine import Engine

__all__ = ["book_frame", "fills_frame", "orders_frame", "pnl_frame", "tick_to_order_ns"]

_STATUS = {int(s): s.name.lower() for s in OrdStatus}


def _steps(instruments: Sequence[Instrument]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[str]]:
    ticks = np.array([float(i.tick_size) for i in instruments])
    lots = np.array([float(i.lot_size) for i in instruments])
    return ticks, lots, [i.symbol for i in instruments]


def _side(flags: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    return np.where(flags & Flag.BID != 0, "buy", "sell")


def _full_seq(rows: RowArray, first_seq: int) -> npt.NDArray[np.int64]:
    return first_seq + np.arange(len(rows), dtype=np.int64)


def fills_frame(rows: RowArray, instruments: Sequence[Instrument], first_seq: int = 0) -> pl.DataFrame:
    """Return one line a fill.

    Parameters
    ----------
    rows : array of ROW
        Whole atoms of a journal.
    instruments : sequence of Instrument
    first_seq : int
        Sequence number of ``rows[0]``.

    Returns
    -------
    polars.DataFrame
        seq, ts, symbol, side, px, qty, fee (quote or base asset, as the venue charged), maker, cl_ord_id, exec_id,
        px_ticks, qty_lots.
    """
    at = np.nonzero((rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.FILL))[0]
    head = rows[at]
    _, first = np.unique(
        np.stack([head["a"], head["b"], head["instrument"].astype(np.uint64)], axis=1), axis=0, return_index=True
    )
    keep = np.sort(first)
    at, head = at[keep], head[keep]
    ticks, lots, symbols = _steps(instruments)
    fee = np.zeros(len(at))
    paid = np.nonzero(head["span"] > 0)[0]
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 64)
    if len(paid):
        fee[paid] = np.ascontiguousarray(raw[at[paid] + 1]).reshape(-1).view(REPORT_PAYLOAD)["fee"] * 1e-8
    which = head["instrument"]
    return pl.DataFrame(
        {
            "seq": _full_seq(rows, first_seq)[at],
            "ts": pl.Series(head["ts_recv"].copy()).cast(pl.Datetime("ns", "UTC")),
            "symbol": [symbols[i] for i in which],
            "side": _side(head["flags"]).tolist(),
            "px": head["px"] * ticks[which],
            "qty": head["qty"] * lots[which],
            "fee": fee,
            "maker": head["flags"] & Flag.MAKER != 0,
            "cl_ord_id": head["a"].astype(np.int64),
            "exec_id": head["b"].astype(np.int64),
            "px_ticks": head["px"].copy(),
            "qty_lots": head["qty"].copy(),
        },
        schema_overrides={"symbol": pl.String, "side": pl.String},
    )


def orders_frame(rows: RowArray, instruments: Sequence[Instrument], first_seq: int = 0) -> pl.DataFrame:
    """Return one line an order that left risk: where it was sent, and the state its last report gave it.

    Returns
    -------
    polars.DataFrame
        seq, ts, cl_ord_id, orig_cl_ord_id (a replace), symbol, side, px, qty, status, px_ticks, qty_lots. Status
        pending_new: no report yet.
    """
    at = np.nonzero((rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER))[0]
    head = rows[at]
    reports = rows[rows["kind"] == Kind.REPORT]
    last = dict(zip(reports["a"].tolist(), (reports["code"] >> 8).tolist(), strict=True))
    ticks, lots, symbols = _steps(instruments)
    which = head["instrument"]
    market = head["span"] > 0
    return pl.DataFrame(
        {
            "seq": _full_seq(rows, first_seq)[at],
            "ts": pl.Series(head["ts_recv"].copy()).cast(pl.Datetime("ns", "UTC")),
            "cl_ord_id": head["a"].astype(np.int64),
            "orig_cl_ord_id": head["b"].astype(np.int64),
            "symbol": [symbols[i] for i in which],
            "side": _side(head["flags"]).tolist(),
            "px": np.where(market, np.nan, head["px"] * ticks[which]),
            "qty": head["qty"] * lots[which],
            "status": [_STATUS.get(last.get(i, OrdStatus.PENDING_NEW), "?") for i in head["a"].tolist()],
            "px_ticks": head["px"].copy(),
            "qty_lots": head["qty"].copy(),
        },
        schema_overrides={"symbol": pl.String, "side": pl.String, "status": pl.String},
    )


def pnl_frame(engine: Engine) -> pl.DataFrame:
    """Return position and P&L of every instrument, marked at the mid of the touch, in units of the quote asset."""
    lines = []
    for instrument in engine.definitions.instruments:
        p = engine.pnl(instrument.id)
        base_fee = p["fee_base"] * 1e-8
        lines.append(
            {
                "symbol": instrument.symbol,
                "position": float(instrument.qty(p["position"])),
                "realized": float(instrument.money(p["realized"])),
                "unrealized": float(instrument.money(p["unrealized_x2"])) / 2,
                "fees_quote": p["fee_quote"] * 1e-8,
                "fees_base": base_fee,
                "net": float(instrument.money(p["total_x2"])) / 2 - p["fee_quote"] * 1e-8,
                "position_lots": p["position"],
            }
        )
    return pl.DataFrame(lines)


def book_frame(engine: Engine, instrument: int = 0, depth: int = 10) -> pl.DataFrame:
    """Return the best `depth` levels of each side, asks from the far one down, then bids: as a ladder is drawn."""
    of = engine.definitions.instruments[instrument]
    bids, asks = engine.levels(instrument, depth)
    px = np.concatenate([asks[::-1, 0], bids[:, 0]])
    qty = np.concatenate([asks[::-1, 1], bids[:, 1]])
    return pl.DataFrame(
        {
            "side": ["ask"] * len(asks) + ["bid"] * len(bids),
            "level": [*range(len(asks) - 1, -1, -1), *range(len(bids))],
            "px": px * float(of.tick_size),
            "qty": qty * float(of.lot_size),
            "px_ticks": px,
            "qty_lots": qty,
        },
        schema_overrides={"side": pl.String, "level": pl.Int64},
    )


def tick_to_order_ns(rows: RowArray) -> npt.NDArray[np.int64]:
    """Return, for each input that led to an order, the time from its receipt to the first send it caused, ns.

    Taken from SENT rows: the send time less the receive time of the row whose atom holds the order.
    """
    sent = rows[rows["kind"] == Kind.SENT]
    orders = rows[
        ((rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)) & (rows["kind"] != CONT)
    ]
    received = dict(zip(orders["a"].tolist(), orders["ts_recv"].tolist(), strict=True))
    first: dict[int, int] = {}
    for cl_ord_id, at in zip(sent["a"].tolist(), sent["ts_event"].tolist(), strict=True):
        start = received.get(cl_ord_id)
        if start is not None and (start not in first or at < first[start]):
            first[start] = at
    return np.array([at - start for start, at in first.items()], np.int64)
