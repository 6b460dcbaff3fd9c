"""json: a venue's messages from bytes to rows and to a book, in a batch and by one call from Python.

Binance: 5,000 depthUpdates of 20 levels (735 bytes), ten a side, best first as the venue sends them, up to 400 ticks
from a mid that wanders; three levels in ten are removals. Prices and quantities have eight decimals.

Figures, microseconds a message: ``depth20_batch_us`` decodes and applies them through `MarketDecoder.decode_batch` into
`Ladders`, all by one call; ``depth20_call_us`` is one `decode_to_book` a message; ``depth20_rows_us`` one
`decode` a message, rows only, as a feed does it; ``trade_us``, ``agg_trade_us`` and ``book_ticker_us`` the same for
small messages. ``depth20_sorted_us`` applies the rows (already decoded) to `L2Book`, whose sorted arrays are what the
engine trades on: what the window of ticks saves.

Coinbase: ``coinbase_l2_us`` are l2updates of twenty changes (as level2_batch sends them) to a book of `Ladders`,
``coinbase_advanced_us`` the same as l2_data of Advanced Trade, ``coinbase_match_us`` matches to rows. Kraken:
``kraken_v2_us`` and ``kraken_v1_us`` are updates of a few levels to the book of ten levels a side that proves itself:
after each message our CRC32 has to be the venue's. ``kraken_trade_us`` are trades to rows.

All of it is computing that never waits, so what is taken is the process's CPU time, ours and the peers' alike: on a
machine that does other work as well, a wall clock measures the neighbours.

The check keeps the books with ``json`` and ``decimal`` and compares every level, and Kraken's checksums with ``zlib``
over the text. Peers: msgspec and orjson with a book in dicts of floats (of texts for Kraken, whose checksum is over
them), cryptofeed's message handlers (it knows Advanced Trade and Kraken's version 1).
"""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio
from hftlab.books import L2Book
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.kernels.ladder import Ladders
from hftlab.venues.binance.market import MarketDecoder
from hftlab.venues.coinbase import market as coinbase
from hftlab.venues.kraken import market as kraken

__all__ = [
    "BTC", "GOALS", "binance_depth", "coinbase_advanced", "coinbase_changes", "kraken_books", "plain_book", "prepare",
]  # fmt: skip

GOALS = {
    "depth20_batch_vs_msgspec": (20.0, 24.0),
    "depth20_call_vs_msgspec": (10.0, 12.0),
    "depth20_call_vs_cryptofeed": (30.0, 40.0),
    "depth20_batch_us": (0.54, 0.45),
    "depth20_call_us": (1.09, 0.9),
}

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00000001"))
PRODUCT = Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))
PAIR = Instrument(0, "kraken", "BTC/USD", Decimal("0.1"), Decimal("0.00000001"))
MESSAGES = 5_000
_KRAKEN_DEPTH = 10
_ROWS = 1_024
_FIRST_ID = 10**10
_FIRST_MS = 1_700_000_000_000

Levels = dict[Decimal, Decimal]


def binance_depth(n: int, seed: int = 1, levels: int = 10) -> list[bytes]:
    """Return `n` depthUpdates of `levels` a side, contiguous by their ids.

    Examples
    --------
    >>> binance_depth(1, levels=1)[0][:60]
    b'{"e":"depthUpdate","E":1700000000000,"s":"BTCUSDT","U":10000'
    """
    chance = random.Random(seed)
    mid, frames = 6_543_210, []
    for k in range(n):
        mid += chance.randint(-5, 5)
        sides = []
        for sign in (-1, 1):
            prices = sorted((mid + sign * d for d in chance.sample(range(1, 401), levels)), reverse=sign < 0)
            sides.append([[f"{px / 100:.8f}", _quantity(chance)] for px in prices])
        first = _FIRST_ID + 21 * k
        event = {
            "e": "depthUpdate", "E": _FIRST_MS + 100 * k, "s": "BTCUSDT", "U": first, "u": first + 20,
            "b": sides[0], "a": sides[1],
        }  # fmt: skip
        frames.append(_text(event))
    return frames


def _quantity(chance: random.Random) -> str:
    return f"{0 if chance.random() < 0.3 else chance.random() * 3:.8f}"


def _text(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def _small(n: int) -> dict[str, list[bytes]]:
    """Return `n` each of the small messages."""
    chance = random.Random(2)
    found: dict[str, list[bytes]] = {"trade": [], "agg_trade": [], "book_ticker": []}
    for k in range(n):
        px, qty, ms = f"{65432.1 + chance.random():.2f}000000", f"{chance.random():.8f}", _FIRST_MS + k
        trade = {"E": ms, "s": "BTCUSDT"}
        told = {"p": px, "q": qty}
        end = {"T": ms, "m": bool(k & 1), "M": True}
        found["trade"].append(_text({"e": "trade", **trade, "t": 5_933_014 + k, **told, **end}))
        found["agg_trade"].append(
            _text({"e": "aggTrade", **trade, "a": 5_933_014 + k, **told, "f": 100 + k, "l": 105 + k, **end})
        )
        quote = {"u": _FIRST_ID + k, "s": "BTCUSDT", "b": px, "B": qty, "a": px, "A": _quantity(chance)}
        found["book_ticker"].append(_text(quote))
    return found


def plain_book(frames: Sequence[bytes]) -> tuple[Levels, Levels]:
    """Return the book after `frames`, kept with the standard library alone."""
    sides: tuple[Levels, Levels] = ({}, {})
    for frame in frames:
        event = json.loads(frame)
        for side, key in zip(sides, "ba", strict=True):
            for px_text, qty_text in event[key]:
                px, qty = Decimal(px_text), Decimal(qty_text)
                if qty:
                    side[px] = qty
                else:
                    side.pop(px, None)
    return sides


def _check(what: str, books: Ladders, plain: tuple[Levels, Levels], of: Instrument = BTC) -> None:
    for side, levels in zip(books.depth(0, 10**6), plain, strict=True):
        found = {of.px(px): of.qty(qty) for px, qty in side.tolist()}
        if found != levels:
            raise CheckFailed(f"json: {what} gives {len(found)} levels, not the {len(levels)} of the reference")


def _check_peer(name: str, told: dict[str, Any], plain: tuple[Levels, Levels]) -> None:
    for key, levels in zip(("bids", "asks"), plain, strict=True):
        if [tuple(level) for level in told[key]] != sorted((float(px), float(qty)) for px, qty in levels.items()):
            raise CheckFailed(f"json: {name}'s {key} are not the reference's")


class _Batch:
    """Messages as one text, and the calls that decode them."""

    def __init__(self, frames: Sequence[bytes], decoder: MarketDecoder) -> None:
        self.frames, self.decoder, self.n = frames, decoder, len(frames)
        self.text = b"".join(frames)
        self.ends = np.cumsum([0] + [len(frame) for frame in frames]).astype(np.int64)
        self.stamps = np.zeros(self.n, np.int64)
        self.facts = np.zeros((self.n, 5), np.int64)
        self.out = np.zeros(_ROWS, ROW)

    def to_book(self, books: Ladders) -> None:
        """Decode all of it by one call."""
        self.decoder.decode_batch(self.text, self.ends, self.stamps, self.out, facts=self.facts, books=books)

    def to_book_by_calls(self, books: Ladders) -> None:
        """Decode message by message."""
        call, out = self.decoder.decode_to_book, self.out
        for frame in self.frames:
            call(frame, 0, out, books)

    def to_rows_by_calls(self) -> None:
        """Decode message by message, rows only."""
        call, out = self.decoder.decode, self.out
        for frame in self.frames:
            call(frame, 0, out)


def _timed(what: Callable[[], None], n: int, times: int = 1) -> Callable[[], float]:
    """Return a round: microseconds a message of `what`, which takes `n` messages, done `times` times."""

    def run() -> float:
        started = time.process_time_ns()
        for _ in range(times):
            what()
        return (time.process_time_ns() - started) / 1000 / n / times

    return run


def _asked(peer: PeerProcess, what: str, n: int) -> Callable[[], float]:
    return lambda: float(peer.ask(op="round", what=what)["value"]) / n * 1e6


def _sorted_book(batch: _Batch) -> Callable[[], float]:
    """Return a round: microseconds a message to apply its rows to `L2Book`."""
    out = np.zeros(24 * batch.n, ROW)
    _, n = batch.decoder.decode_batch(batch.text, batch.ends, batch.stamps, out)
    rows, book = out[:n], L2Book()
    return _timed(lambda: book.apply(rows), batch.n)


def _binance(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    frames, small = binance_depth(plan.sized(MESSAGES, 50)), _small(plan.sized(MESSAGES, 50))
    decoder = MarketDecoder([BTC], agg=True)
    batch, plain = _Batch(frames, decoder), plain_book(frames)
    books = {"a batch": Ladders([BTC]), "one call": Ladders([BTC])}
    batch.to_book(books["a batch"])
    batch.to_book_by_calls(books["one call"])
    for what, book in books.items():
        _check(what, book, plain)
    cases = [
        Case("depth20_batch_us", _timed(lambda: batch.to_book(books["a batch"]), batch.n, 5)),
        Case("depth20_call_us", _timed(lambda: batch.to_book_by_calls(books["one call"]), batch.n, 3)),
        Case("depth20_rows_us", _timed(batch.to_rows_by_calls, batch.n, 3)),
        Case("depth20_sorted_us", _sorted_book(batch)),
    ]
    for kind, messages in small.items():
        cases.append(Case(f"{kind}_us", _timed(_Batch(messages, decoder).to_rows_by_calls, batch.n, 3)))
    if any(decoder.counts.values()):
        raise CheckFailed(f"json: {decoder.counts}; expected every message to be read by the first reader")
    peers, ratios = _peers(plan, {"depth": frames, **small}, plain)
    return cases + peers, ratios


def _peers(
    plan: Plan, messages: dict[str, list[bytes]], plain: tuple[Levels, Levels]
) -> tuple[list[Case], list[Ratio]]:
    """Return the peers' cases, and ours over theirs; msgspec needs no environment and is always there."""
    paths = {kind: _write(plan.folder / f"binance.{kind}", frames) for kind, frames in messages.items()}
    started = {"msgspec": plan.peer("dict_book", [], "msgspec")}
    if plan.peers:
        started["orjson"] = plan.peer("dict_book", ["orjson==3.11.7"], "orjson")
        started["cryptofeed"] = plan.peer("cryptofeed_handler", ["cryptofeed==2.4.1"])
    cases, ratios, n = [], [], len(messages["depth"])
    for name, peer in started.items():
        _check_peer(name, peer.ask(op="prepare", paths=paths), plain)
        for kind in messages:
            if name == "cryptofeed" and kind not in ("depth", "agg_trade"):
                continue
            figure = "depth20" if kind == "depth" else kind
            cases.append(Case(f"{figure}_us", _asked(peer, kind, n), peer=name))
            for ours in ("depth20_batch", "depth20_call") if kind == "depth" else (kind,):
                ratios.append(Ratio(f"{ours}_vs_{name}", f"{ours}_us", f"{name}_{figure}_us"))
    return cases, ratios


def _write(path: Path, frames: Sequence[bytes]) -> str:
    path.write_bytes(b"\n".join(frames))
    return str(path)


# ---- Coinbase


Change = tuple[str, str, str]  # buy or sell, price, quantity


def coinbase_changes(n: int, seed: int = 3, each: int = 20) -> list[list[Change]]:
    """Return the changes of `n` messages, `each` in one: levels around a mid that wanders, three in ten removed.

    Examples
    --------
    >>> coinbase_changes(1, each=1)[0][0][0] in ("buy", "sell")
    True
    """
    chance = random.Random(seed)
    mid, messages = 6_543_210, []
    for _ in range(n):
        mid += chance.randint(-5, 5)
        changes = []
        for side, sign in (("buy", -1), ("sell", 1)):
            for distance in chance.sample(range(1, 401), each):
                changes.append((side, f"{(mid + sign * distance) / 100:.2f}", _quantity(chance)))
        chance.shuffle(changes)
        messages.append(changes[:each])
    return messages


def _coinbase_time(k: int) -> str:
    return f"2024-01-01T{k // 3600 % 24:02d}:{k // 60 % 60:02d}:{k % 60:02d}.{k % 1000:03d}000Z"


def _coinbase_l2(messages: Sequence[list[Change]]) -> list[bytes]:
    return [
        _text({"type": "l2update", "product_id": "BTC-USD", "changes": changes, "time": _coinbase_time(k)})
        for k, changes in enumerate(messages)
    ]


def coinbase_advanced(messages: Sequence[list[Change]]) -> list[bytes]:
    """Return the same changes as Advanced Trade sends them."""
    frames = []
    for k, changes in enumerate(messages):
        at = _coinbase_time(k)
        updates = [
            {"side": "bid" if side == "buy" else "offer", "event_time": at, "price_level": px, "new_quantity": qty}
            for side, px, qty in changes
        ]
        event = {"type": "update", "product_id": "BTC-USD", "updates": updates}
        frames.append(
            _text({"channel": "l2_data", "client_id": "", "timestamp": at, "sequence_num": k, "events": [event]})
        )
    return frames


def _coinbase_matches(n: int) -> list[bytes]:
    chance = random.Random(4)
    order = "ac928c66-ca53-498f-9c13-a110027a60e8"
    return [
        _text({
            "type": "match", "trade_id": 10 + k, "maker_order_id": order, "taker_order_id": order,
            "side": "sell" if k & 1 else "buy", "size": f"{chance.random():.8f}",
            "price": f"{65432.1 + chance.random():.2f}", "product_id": "BTC-USD", "sequence": 50 + k,
            "time": _coinbase_time(k),
        })
        for k in range(n)
    ]  # fmt: skip


def _plain_changes(messages: Sequence[list[Change]]) -> tuple[Levels, Levels]:
    """Return the book after `messages`, kept with the standard library alone."""
    sides: tuple[Levels, Levels] = ({}, {})
    for changes in messages:
        for side, px_text, qty_text in changes:
            levels, px, qty = sides[side == "sell"], Decimal(px_text), Decimal(qty_text)
            if qty:
                levels[px] = qty
            else:
                levels.pop(px, None)
    return sides


def _to_rows(decode: Callable[[bytes, int, Any], int], frames: Sequence[bytes]) -> Callable[[], None]:
    out = np.zeros(_ROWS, ROW)

    def run() -> None:
        for frame in frames:
            decode(frame, 0, out)

    return run


def _to_ladders(
    decode: Callable[[bytes, int, Any], int], frames: Sequence[bytes], books: Ladders
) -> Callable[[], None]:
    out = np.zeros(_ROWS, ROW)

    def run() -> None:
        for frame in frames:
            books.apply(out[: decode(frame, 0, out)])

    return run


def _coinbase(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    n = plan.sized(MESSAGES, 50)
    messages = coinbase_changes(n)
    plain = _plain_changes(messages)
    frames = {"l2": _coinbase_l2(messages), "advanced": coinbase_advanced(messages), "match": _coinbase_matches(n)}
    decoder = coinbase.MarketDecoder([PRODUCT])
    cases = []
    for kind in ("l2", "advanced"):
        books = Ladders([PRODUCT])
        run = _to_ladders(decoder.decode, frames[kind], books)
        run()
        _check(f"Coinbase's {kind}", books, plain, PRODUCT)
        cases.append(Case(f"coinbase_{kind}_us", _timed(run, n, 2)))
    out = np.zeros(4, ROW)
    for frame in frames["match"]:
        told = json.loads(frame)
        rows = out[: decoder.decode(frame, 0, out)]
        px, qty = Decimal(int(rows[0]["px"])) * PRODUCT.tick_size, Decimal(int(rows[0]["qty"])) * PRODUCT.lot_size
        if len(rows) != 1 or (px, qty) != (Decimal(told["price"]), Decimal(told["size"])):
            raise CheckFailed(f"json: {len(rows)} rows, {qty} at {px}, for {frame!r}")
    cases.append(Case("coinbase_match_us", _timed(_to_rows(decoder.decode, frames["match"]), n, 3)))
    if any(decoder.counts.values()):
        raise CheckFailed(f"json: {decoder.counts}; expected every message of Coinbase to be read by the first reader")
    floats = tuple({float(px): float(qty) for px, qty in side.items()} for side in plain)
    return _with_peers(plan, "coinbase", cases, frames, {"l2": floats, "advanced": floats}, ("advanced",))


# ---- Kraken


def _kraken_crc(asks: dict[int, int], bids: dict[int, int], px_decimals: int) -> int:
    """Return the CRC32 over the text of the ten best levels; prices in tenths, quantities in 1e-8."""
    zeros = "0" * (px_decimals - 1)
    best = [(px, asks[px]) for px in sorted(asks)[:10]] + [(px, bids[px]) for px in sorted(bids, reverse=True)[:10]]
    return zlib.crc32("".join(f"{px}{zeros}{qty}" for px, qty in best).encode())


def kraken_books(n: int, version: int, seed: int = 5) -> tuple[list[bytes], list[int], tuple[Levels, Levels]]:
    """Return a snapshot and `n` - 1 updates of one side each, the checksums after them, and the book at the end.

    The venue's book has 60 levels a side, of which ten are published: what a level leaves behind is filled from below,
    and what is pushed out is not told.

    Examples
    --------
    >>> frames, sums, book = kraken_books(2, 2)
    >>> len(frames), len(sums), len(book[0])
    (2, 2, 10)
    """
    chance, mid = random.Random(seed), 654_321
    whole = [{mid - k: chance.randint(1, 10**10) for k in range(1, 61)},
             {mid + k: chance.randint(1, 10**10) for k in range(1, 61)}]  # fmt: skip
    told = [_best(whole[0], 0), _best(whole[1], 1)]
    decimals = 1 if version == 2 else 5
    sums = [_kraken_crc(told[1], told[0], decimals)]
    frames = [_kraken_text(version, [list(told[0].items()), list(told[1].items())], sums[0], 0)]
    for k in range(1, n):
        side = chance.randint(0, 1)
        levels = whole[side]
        for px in chance.sample(sorted(levels, reverse=side == 0)[:12], chance.randint(1, 3)):
            if chance.random() < 0.3:
                del levels[px]
                if chance.random() < 0.5:
                    levels[px + (1 if side else -1)] = chance.randint(1, 10**10)
            else:
                levels[px] = chance.randint(1, 10**10)
        while len(levels) < 60:
            levels[min(levels) - 1 if side == 0 else max(levels) + 1] = chance.randint(1, 10**10)
        now = _best(levels, side)
        gone = [(px, 0) for px in told[side] if px not in levels]
        new = [(px, qty) for px, qty in now.items() if told[side].get(px) != qty]
        told[side] = now
        changes: list[list[tuple[int, int]]] = [[], []]
        changes[side] = gone + new
        sums.append(_kraken_crc(told[1], told[0], decimals))
        frames.append(_kraken_text(version, changes, sums[-1], k))
    bids, asks = ({PAIR.px(px): PAIR.qty(qty) for px, qty in side.items()} for side in told)
    return frames, sums, (bids, asks)


def _best(levels: dict[int, int], side: int) -> dict[int, int]:
    return {px: levels[px] for px in sorted(levels, reverse=side == 0)[:_KRAKEN_DEPTH]}


def _kraken_text(version: int, changes: list[list[tuple[int, int]]], crc: int, k: int) -> bytes:
    if version == 2:
        bids, asks = (
            ",".join(f'{{"price":{px // 10}.{px % 10},"qty":{qty // 10**8}.{qty % 10**8:08d}}}' for px, qty in side)
            for side in changes
        )
        kind = "update" if k else "snapshot"
        entry = (
            f'{{"symbol":"BTC/USD","bids":[{bids}],"asks":[{asks}],"checksum":{crc},"timestamp":"{_coinbase_time(k)}"}}'
        )
        return f'{{"channel":"book","type":"{kind}","data":[{entry}]}}'.encode()
    bids, asks = (
        ",".join(
            f'["{px // 10}.{px % 10}0000","{qty // 10**8}.{qty % 10**8:08d}","{1_600_000_000 + k}.{k % 10**6:06d}"]'
            for px, qty in side
        )
        for side in changes
    )
    if k == 0:
        return f'[336,{{"as":[{asks}],"bs":[{bids}]}},"book-10","XBT/USD"]'.encode()
    side = f'"a":[{asks}]' if asks else f'"b":[{bids}]'
    return f'[336,{{{side},"c":"{crc}"}},"book-10","XBT/USD"]'.encode()


def _kraken_trades(n: int) -> list[bytes]:
    chance = random.Random(6)
    return [
        (
            f'{{"channel":"trade","type":"update","data":[{{"symbol":"BTC/USD","side":"{"buy" if k & 1 else "sell"}",'
            f'"price":{65432 + chance.randint(0, 9)}.{chance.randint(0, 9)},"qty":{chance.random():.8f},'
            f'"ord_type":"market","trade_id":{4_665_906 + k},"timestamp":"{_coinbase_time(k)}"}}]}}'
        ).encode()
        for k in range(n)
    ]


def _proved(decoder: kraken.MarketDecoder, frames: Sequence[bytes], out: Any) -> Callable[[], None]:
    """Return a run: every message into the decoder's book, and its checksum compared with the venue's."""
    decode, facts = decoder.decode, decoder.facts

    def run() -> None:
        for frame in frames:
            decode(frame, 0, out)
            if facts[kraken.CHECKSUM] != facts[kraken.COMPUTED] and facts[kraken.CHECKSUM] >= 0:
                raise CheckFailed(f"json: Kraken's checksum {facts[kraken.CHECKSUM]} is not ours")

    return run


def _kraken(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    n = plan.sized(MESSAGES, 50)
    cases, frames, floats = [], {}, {}
    for version in (2, 1):
        kind = f"v{version}"
        frames[kind], sums, plain = kraken_books(n, version)
        decoder, out = kraken.MarketDecoder([PAIR], version=version, depth=_KRAKEN_DEPTH), np.zeros(_ROWS, ROW)
        books = Ladders([PAIR])
        for frame, crc in zip(frames[kind], sums, strict=True):
            books.apply(out[: decoder.decode(frame, 0, out)])
            if decoder.computed != crc:
                raise CheckFailed(f"json: the CRC32 of Kraken's book is {decoder.computed}, of the reference {crc}")
        _check(f"Kraken's {kind}", books, plain, PAIR)
        if any(decoder.counts.values()):
            raise CheckFailed(f"json: {decoder.counts}; expected every message to be read by the first reader")
        cases.append(Case(f"kraken_{kind}_us", _timed(_proved(decoder, frames[kind], out), n, 3)))
        bids, asks = ({float(px): float(qty) for px, qty in side.items()} for side in plain)
        floats[kind] = bids, asks
    frames["trade"] = _kraken_trades(n)
    trades, out = kraken.MarketDecoder([PAIR]), np.zeros(4, ROW)
    for frame in frames["trade"]:
        told = json.loads(frame, parse_float=Decimal)["data"][0]
        if trades.decode(frame, 0, out) != 1 or PAIR.px(out[0]["px"]) != told["price"] or (
            PAIR.qty(out[0]["qty"]) != told["qty"]
        ):
            raise CheckFailed(f"json: {PAIR.qty(out[0]['qty'])} at {PAIR.px(out[0]['px'])} for {frame!r}")
    cases.append(Case("kraken_trade_us", _timed(_to_rows(trades.decode, frames["trade"]), n, 3)))
    return _with_peers(plan, "kraken", cases, frames, floats, ("v1",))


def _with_peers(
    plan: Plan, venue: str, cases: list[Case], frames: dict[str, list[bytes]], books: dict[str, Any],
    known: tuple[str, ...],
) -> tuple[list[Case], list[Ratio]]:  # fmt: skip
    """Return `cases` with those of msgspec, and of cryptofeed for the kinds it has `known`; their books are checked."""
    paths = {kind: _write(plan.folder / f"{venue}.{kind}", messages) for kind, messages in frames.items()}
    started = {"msgspec": (plan.peer("venue_books", [], venue), tuple(frames))}
    if plan.peers:
        started["cryptofeed"] = (plan.peer("cryptofeed_books", ["cryptofeed==2.4.1"], venue), known)
    every, ratios, n = list(cases), [], len(next(iter(frames.values())))
    for name, (peer, kinds) in started.items():
        told = peer.ask(op="prepare", paths={kind: paths[kind] for kind in kinds})
        for kind, book in books.items():
            for key, levels in zip(("bids", "asks"), book, strict=True) if kind in kinds else ():
                if [tuple(level) for level in told[kind][key]] != sorted(levels.items()):
                    raise CheckFailed(f"json: {name}'s {key} of {venue} {kind} are not the reference's")
        for kind in kinds:
            figure = f"{venue}_{kind}"
            every.append(Case(f"{figure}_us", _asked(peer, kind, n), peer=name))
            ratios.append(Ratio(f"{figure}_vs_{name}", f"{figure}_us", f"{name}_{figure}_us"))
    return every, ratios


_VENUES = (_binance, _coinbase, _kraken)


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases of every venue."""
    cases: list[Case] = []
    ratios: list[Ratio] = []
    for venue in _VENUES:
        more, over = venue(plan)
        cases += more
        ratios += over
    return cases, ratios
