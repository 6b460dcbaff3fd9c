"""A slow reference of what Coinbase's market messages mean: json, Decimal and datetime, no table and no kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, NO_PX, Flag, Kind, RowArray

Row = tuple[int, ...]  # kind, ts_event, instrument, flags, px, qty, a, b
COLUMNS = ("kind", "ts_event", "instrument", "flags", "px", "qty", "a", "b")
BID, ASK, LAST, SNAP = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
SIDES = {"buy": BID, "bid": BID, "BUY": BID, "sell": ASK, "offer": ASK, "SELL": ASK}


def told(rows: RowArray) -> list[Row]:
    """Return `rows` as the reference writes them."""
    return [tuple(int(row[name]) for name in COLUMNS) for row in rows]


def nanoseconds(text: str) -> int:
    """Return an RFC 3339 time in ns, by datetime and the digits of the fraction."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z", text)
    assert match is not None, text
    seconds = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int((match[2] or "0").ljust(9, "0"))


class Reference:
    """Rows of messages, and the orders alive of the full channel."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = {i.symbol: i for i in instruments}
        self.orders: dict[str, list[int]] | None = None  # id -> side, px, left; None: not followed

    def rows(self, frame: bytes) -> list[Row]:
        message = json.loads(frame, parse_float=Decimal)
        rows = self._advanced(message) if "channel" in message else self._exchange(message)
        if rows:
            rows[-1] = (*rows[-1][:3], rows[-1][3] | LAST, *rows[-1][4:])
        return rows

    def _level(self, symbol: str, flags: int, px: str, qty: str, at: int) -> Row:
        i = self.instruments[symbol]
        return (Kind.LEVEL, at, i.id, flags, i.px_ticks(px), i.qty_lots(qty), 0, 0)

    def _exchange(self, m: dict[str, Any]) -> list[Row]:
        kind = m["type"]
        if kind == "snapshot":
            at = nanoseconds(m["time"]) if "time" in m else NAT
            clear = (Kind.CLEAR, at, self.instruments[m["product_id"]].id, SNAP, 0, 0, 0, 0)
            sides = [name for name in m if name in ("bids", "asks")]  # as the message orders them
            return [clear] + [
                self._level(m["product_id"], SNAP | (BID if side == "bids" else ASK), px, qty, at)
                for side in sides
                for px, qty in m[side]
            ]
        if kind == "l2update":
            at = nanoseconds(m["time"])
            return [self._level(m["product_id"], SIDES[side], px, qty, at) for side, px, qty in m["changes"]]
        if kind in ("match", "last_match"):
            return self._match(m, SNAP if kind == "last_match" else 0)
        if kind == "ticker" and "best_bid_size" in m:
            i, at = self.instruments[m["product_id"]], nanoseconds(m["time"])
            return [
                (
                    Kind.QUOTE, at, i.id, flag, i.px_ticks(m[f"best_{name}"]), i.qty_lots(m[f"best_{name}_size"]),
                    m["sequence"], 0,
                )
                for flag, name in ((BID, "bid"), (ASK, "ask"))
            ]  # fmt: skip
        if kind in ("open", "done", "change") and self.orders is not None:
            return self._order(m, kind)
        return []

    def _match(self, m: dict[str, Any], flags: int) -> list[Row]:
        i, at = self.instruments[m["product_id"]], nanoseconds(m["time"])
        side, px, qty = SIDES[m["side"]], i.px_ticks(m["price"]), i.qty_lots(m["size"])
        rows: list[Row] = []
        order = (self.orders or {}).get(m["maker_order_id"])
        if order is not None and not flags:
            off = min(qty, order[2])
            order[2] -= off
            ref = int(m["maker_order_id"].replace("-", "")[:16], 16)
            rows.append((Kind.EXECUTE, at, i.id, side, NO_PX, off, ref, m["trade_id"]))
            if order[2] == 0:
                assert self.orders is not None
                del self.orders[m["maker_order_id"]]
        taker = BID + ASK - side
        return [*rows, (Kind.TRADE, at, i.id, flags | taker, px, qty, m["trade_id"], m["sequence"])]

    def _order(self, m: dict[str, Any], kind: str) -> list[Row]:
        i, at, name = self.instruments[m["product_id"]], nanoseconds(m["time"]), m["order_id"]
        ref, side = int(name.replace("-", "")[:16], 16), SIDES[m["side"]]
        assert self.orders is not None
        if kind == "open":
            px, left = i.px_ticks(m["price"]), i.qty_lots(m["remaining_size"])
            self.orders[name] = [side, px, left]
            return [(Kind.ADD, at, i.id, side, px, left, ref, 0)]
        if name not in self.orders:
            return []
        _, px, left = self.orders[name]
        gone = (Kind.DELETE, at, i.id, side, px, left, ref, 0)
        new = i.qty_lots(m["new_size"]) if kind == "change" else 0
        if new == 0:
            del self.orders[name]
            return [gone]
        new_px = i.px_ticks(m.get("new_price") or m.get("price") or str(i.px(px)))
        self.orders[name] = [side, new_px, new]
        if new_px == px and new <= left:
            return [(Kind.REDUCE, at, i.id, side, px, left - new, ref, 0)] if new < left else []
        return [gone, (Kind.ADD, at, i.id, side, new_px, new, ref, 0)]

    def _advanced(self, m: dict[str, Any]) -> list[Row]:
        rows: list[Row] = []
        for event in m["events"]:
            flags = SNAP if event.get("type") == "snapshot" else 0
            if m["channel"] == "l2_data":
                symbol = event["product_id"]
                if flags:
                    clear_at = nanoseconds(m["timestamp"])
                    rows.append((Kind.CLEAR, clear_at, self.instruments[symbol].id, SNAP, 0, 0, 0, 0))
                rows += [
                    self._level(
                        symbol, flags | SIDES[u["side"]], u["price_level"], u["new_quantity"],
                        nanoseconds(u["event_time"]),
                    )
                    for u in event["updates"]
                ]  # fmt: skip
            elif m["channel"] == "market_trades":
                for t in reversed(event["trades"]):
                    i = self.instruments[t["product_id"]]
                    taker = BID + ASK - SIDES[t["side"]]
                    values = (i.px_ticks(t["price"]), i.qty_lots(t["size"]), int(t["trade_id"]), 0)
                    rows.append((Kind.TRADE, nanoseconds(t["time"]), i.id, flags | taker, *values))
            elif m["channel"] == "ticker":
                for t in event["tickers"]:
                    i = self.instruments[t["product_id"]]
                    for flag, name in ((BID, "bid"), (ASK, "ask")):
                        px, qty = i.px_ticks(t[f"best_{name}"]), i.qty_lots(t[f"best_{name}_quantity"])
                        rows.append(
                            (Kind.QUOTE, nanoseconds(m["timestamp"]), i.id, flag, px, qty, m["sequence_num"], 0)
                        )
        return rows
