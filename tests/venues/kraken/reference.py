"""A slow reader of Kraken's messages that shares nothing with the decoder: json, Decimal, dictionaries, zlib."""

from __future__ import annotations

import json
import re
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT

Row = tuple[int, ...]
"""kind, ts_recv, ts_event, instrument, flags, px, qty, a"""

V1_NAMES = {"BTC": "XBT", "DOGE": "XDG"}


class Rejected(Exception):
    """The message is not what the venue documents."""


class Text(str):
    """A JSON number, as it was written."""


def _no_constant(text: str) -> float:
    raise Rejected(text)


def _count(text: Any, step: Decimal, kind: type) -> int:
    if kind is Text and type(text) is int:
        text = Text(text)
    if type(text) is not kind:
        raise Rejected(text)
    exact = Decimal(text)
    plain = kind is Text or re.fullmatch(r"[0-9]+([.][0-9]+)?", text, re.A) is not None
    if not exact.is_finite() or exact.is_signed() or not plain or abs(exact.adjusted()) > 40:
        raise Rejected(text)
    top, bottom = exact.as_integer_ratio()
    step_top, step_bottom = step.as_integer_ratio()
    if top * step_bottom % (bottom * step_top) or top * step_bottom // (bottom * step_top) >= 2**63:
        raise Rejected(text)
    return top * step_bottom // (bottom * step_top)


def _rfc3339(text: Any) -> int:
    if type(text) is not str:
        raise Rejected(text)
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.](\d{1,9}))?Z", text, re.A)
    if match is None:
        raise Rejected(text)
    past = datetime.fromisoformat(match[1]).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    ns = int(Decimal(past.days * 86400 + past.seconds) * 10**9 + Decimal("0." + (match[2] or "0")) * 10**9)
    if not 0 <= ns < 2**63:
        raise Rejected(text)
    return ns


def _epoch(text: Any) -> int:
    if type(text) is not str or re.fullmatch(r"\d{1,10}([.]\d{1,9})?", text, re.A) is None:
        raise Rejected(text)
    ns = int(Decimal(text) * 10**9)
    if ns >= 2**63:
        raise Rejected(text)
    return ns


def _listed(value: Any) -> list[Any]:
    if type(value) is not list:
        raise Rejected(value)
    return value


def _plain(text: str, decimals: int = 0) -> str:
    """A number as the checksum's text has it, with `decimals` at least: no exponent, no point, no leading zeros."""
    written = f"{Decimal(text):f}" if "e" in text.lower() else text
    whole, _, fraction = written.partition(".")
    return (whole + fraction.ljust(decimals, "0")).lstrip("0")


class Book:
    """One symbol's book: dictionaries of price to quantity, in ticks and lots, and the texts they came in."""

    def __init__(self, instrument: Instrument, depth: int, version: int = 2) -> None:
        self.instrument, self.depth = instrument, depth
        self.started = False
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.texts: dict[tuple[int, int], str] = {}
        steps = (instrument.tick_size, instrument.lot_size)
        precision = [max(0, -int(step.normalize().as_tuple().exponent)) for step in steps]
        self.precision = precision if version == 2 else [0, 0]  # version 1 takes the text as it was sent

    def set(self, flag: int, px: int, qty: int, texts: tuple[str, str]) -> None:
        """Set a level, or remove it; `texts` are price and quantity as they were written."""
        side = self.bids if flag & 1 else self.asks
        side[px] = qty
        self.texts[flag & 3, px] = "".join(_plain(*pair) for pair in zip(texts, self.precision, strict=True))
        if qty == 0:
            del side[px]

    def cut(self) -> list[tuple[int, int]]:
        """Cut both sides to the depth: (flag, px) of the levels cut off, worst first."""
        gone = []
        while len(self.bids) > self.depth:
            gone.append((1, min(self.bids)))
            del self.bids[min(self.bids)]
        while len(self.asks) > self.depth:
            gone.append((2, max(self.asks)))
            del self.asks[max(self.asks)]
        return gone

    def checksum(self) -> int:
        """CRC32 of the text the guide describes."""
        best = [(2, px) for px in sorted(self.asks)[:10]] + [(1, px) for px in sorted(self.bids, reverse=True)[:10]]
        return zlib.crc32("".join(self.texts[level] for level in best).encode())


class Reader:
    """Messages of one version to rows; after a book message `checksum` and `computed`."""

    def __init__(self, instruments: list[Instrument], version: int, depth: int) -> None:
        self.version = version
        self.names = {
            i.symbol if version == 2 else "/".join(V1_NAMES.get(part, part) for part in i.symbol.split("/")): i
            for i in instruments
        }
        self.books = {i.id: Book(i, depth, version) for i in instruments}
        self.checksum = self.computed = -1

    def rows(self, frame: bytes, ts_recv: int) -> list[Row]:
        """Rows of a message; empty for one without rows, and for one rejected."""
        self.checksum = self.computed = -1
        try:
            message = json.loads(frame.decode(), parse_float=Text, parse_constant=_no_constant)
            rows = self._v2(message) if self.version == 2 else self._v1(message)
        except (ValueError, Rejected, KeyError, RecursionError, ArithmeticError, TypeError, IndexError, AttributeError):
            return []
        if rows:
            rows[-1] = (*rows[-1][:3], rows[-1][3] | 4, *rows[-1][4:])
        return [(kind, ts_recv, ts, who, flags, px, qty, a) for kind, ts, who, flags, px, qty, a in rows]

    def _apply(
        self, instrument: Instrument, snapshot: bool, rows: list[Row], texts: list[tuple[str, str]]
    ) -> list[Row]:
        book = self.books[instrument.id]
        if snapshot:
            book.bids, book.asks, book.started = {}, {}, True
        if not book.started:
            return rows
        levels = [row for row in rows if row[0] == 20]
        for (_, _, _, flags, px, qty, _), written in zip(levels, texts, strict=True):
            book.set(flags, px, qty, written)
        ts = rows[-1][1] if rows else NAT
        rows = rows + [(20, ts, instrument.id, flag | 32 * snapshot, px, 0, 0) for flag, px in book.cut()]
        self.computed = book.checksum()
        return rows

    def _v2(self, message: Any) -> list[Row]:
        channel, data = message["channel"], _listed(message["data"])
        snapshot = message.get("type") == "snapshot"
        rows: list[Row] = []
        if channel == "book":
            (entry,) = data
            if message.get("type") not in ("snapshot", "update"):
                raise Rejected(message)
            instrument = self.names[entry["symbol"]]
            if type(entry["checksum"]) is not int or not 0 <= entry["checksum"] < 2**32:
                raise Rejected(entry)
            ts = _rfc3339(entry["timestamp"]) if "timestamp" in entry else NAT
            texts = []
            if snapshot:
                rows.append((22, ts, instrument.id, 32, 0, 0, 0))
            for key, flag in (("bids", 1), ("asks", 2)):
                for level in _listed(entry[key]):
                    px, qty = level["price"], level["qty"]
                    texts.append((str(px), str(qty)))
                    counts = _count(px, instrument.tick_size, Text), _count(qty, instrument.lot_size, Text)
                    rows.append((20, ts, instrument.id, flag | 32 * snapshot, *counts, 0))
            self.checksum = entry["checksum"]
            return self._apply(instrument, snapshot, rows, texts)
        if channel == "trade":
            for trade in data:
                instrument = self.names[trade["symbol"]]
                flag = {"buy": 1, "sell": 2}[trade["side"]]
                if type(trade["trade_id"]) is not int or not 0 <= trade["trade_id"] < 2**63:
                    raise Rejected(trade)
                px = _count(trade["price"], instrument.tick_size, Text)
                qty, ts = _count(trade["qty"], instrument.lot_size, Text), _rfc3339(trade["timestamp"])
                rows.append((23, ts, instrument.id, flag | 32 * snapshot, px, qty, trade["trade_id"]))
        if channel == "ticker":
            for entry in data:
                instrument = self.names[entry["symbol"]]
                ts = _rfc3339(entry["timestamp"]) if "timestamp" in entry else NAT
                for key, flag in (("bid", 1), ("ask", 2)):
                    px = _count(entry[key], instrument.tick_size, Text)
                    qty = _count(entry[f"{key}_qty"], instrument.lot_size, Text)
                    rows.append((21, ts, instrument.id, flag, px, qty, 0))
        return rows

    def _v1(self, message: Any) -> list[Row]:
        *parts, name, pair = message[1:]
        instrument = self.names[pair]
        tick, lot = instrument.tick_size, instrument.lot_size
        rows: list[Row] = []
        if name.startswith("book-"):
            merged = {key: value for part in parts for key, value in part.items()}
            if len(merged) != sum(map(len, parts)):
                raise Rejected(message)
            snapshot = "as" in merged or "bs" in merged
            sides = {"as": 2, "bs": 1} if snapshot else {"a": 2, "b": 1}
            if sides.keys().isdisjoint(merged):
                raise Rejected(message)
            texts = []
            if snapshot:
                rows.append((22, NAT, instrument.id, 32, 0, 0, 0))
            for key in merged:
                if key not in sides:
                    continue
                for level in merged[key]:
                    px, qty, stamp = _listed(level)[:3]
                    texts.append((px, qty))
                    counts = _count(px, tick, str), _count(qty, lot, str)
                    rows.append((20, _epoch(stamp), instrument.id, sides[key] | 32 * snapshot, *counts, 0))
            if not snapshot:
                if re.fullmatch("[0-9]{1,10}", merged["c"], re.A) is None or int(merged["c"]) >= 2**32:
                    raise Rejected(message)
                self.checksum = int(merged["c"])
            return self._apply(instrument, snapshot, rows, texts)
        if name not in ("trade", "ticker", "spread"):
            return []
        (part,) = parts
        if name == "trade":
            for trade in _listed(part):
                px, qty, stamp, side = _listed(trade)[:4]
                flag = {"b": 1, "s": 2}[side]
                rows.append((23, _epoch(stamp), instrument.id, flag, _count(px, tick, str), _count(qty, lot, str), 0))
            return rows
        if name == "ticker":
            quotes = [(flag, _listed(part[key])[0], part[key][2]) for key, flag in (("b", 1), ("a", 2))]
            ts = NAT
        else:
            bid, ask, stamp, bid_qty, ask_qty = _listed(part)[:5]
            ts, quotes = _epoch(stamp), [(1, bid, bid_qty), (2, ask, ask_qty)]
        return [
            (21, ts, instrument.id, flag, _count(px, tick, str), _count(qty, lot, str), 0) for flag, px, qty in quotes
        ]
