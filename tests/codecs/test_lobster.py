"""LOBSTER: lines to rows, proven by the book files that come with the messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hftlab.codecs.lobster import MADE_UP, LobsterDecoder, read_levels
from hftlab.core.rows import Flag, Kind, RowArray, new_rows
from hftlab.core.status import Status
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_convert import TARGETS

FUZZ_INPUTS = 100_000


def _apply(orders: dict[int, list[int]], rows: RowArray) -> None:
    """The slowest book there is: order reference to [side, px, qty]."""
    for row in rows:
        kind, reference = int(row["kind"]), int(row["a"])
        if kind == Kind.CLEAR:
            orders.clear()
        elif kind == Kind.ADD:
            orders[reference] = [int(row["flags"]) & 3, int(row["px"]), int(row["qty"])]
        elif kind == Kind.DELETE:
            orders.pop(reference, None)
        elif kind in (Kind.REDUCE, Kind.EXECUTE) and reference in orders:
            orders[reference][2] -= int(row["qty"])
            if orders[reference][2] <= 0:
                del orders[reference]


def _levels(orders: dict[int, list[int]], side: int, n: int) -> list[tuple[int, int]]:
    found: dict[int, int] = {}
    for flag, px, qty in orders.values():
        if flag == side:
            found[px] = found.get(px, 0) + qty
    return sorted(found.items(), reverse=side == Flag.BID)[:n]


def _lines(shared_data: Path) -> tuple[list[bytes], list[bytes]]:
    (messages,) = (shared_data / "l3").glob("AAPL*_message_10.csv")
    (books,) = (shared_data / "l3").glob("AAPL*_orderbook_10.csv")
    return messages.read_bytes().splitlines(), books.read_bytes().splitlines()


def test_each_recorded_message_of_aapl_leads_from_its_book_to_the_next(shared_data: Path) -> None:
    """998 of 998 tops; at ten levels all but 14, where a level comes into sight that no message told of."""
    messages, books = _lines(shared_data)
    decoder, out, orders = LobsterDecoder(), new_rows(64), {}
    _apply(orders, out[: decoder.seed(books[0], messages[0], out)])
    tops = depths = 0
    for line, told in zip(messages, books, strict=True):
        _apply(orders, out[: decoder.decode(line, out)])
        sides = read_levels(told)
        assert sides is not None
        ours = [_levels(orders, int(flag), 10) for flag in (Flag.BID, Flag.ASK)]
        tops += [side[:1] for side in sides] == [side[:1] for side in ours]
        depths += list(sides) == ours
        n = decoder.reveal(told, out)
        _apply(orders, out[:n])
        assert list(sides) == [_levels(orders, int(flag), 10) for flag in (Flag.BID, Flag.ASK)]
        assert not n or out["flags"][n - 1] & (Flag.LAST | Flag.RECOVERED) == Flag.LAST | Flag.RECOVERED
    assert (tops, depths, decoder.counts["revealed"]) == (999, 985, 14)
    assert decoder.counts["malformed"] == decoder.counts["unknown"] == 0


def test_a_level_that_shrank_while_out_of_sight_is_made_up_anew() -> None:
    decoder, out, orders = LobsterDecoder(), new_rows(16), {}
    for line in (b"1.0,1,1,10,100,1", b"1.0,1,2,20,100,1", b"1.0,1,3,5,99,1"):
        _apply(orders, out[: decoder.decode(line, out)])
    n = decoder.reveal(b"9999999999,0,100,15,9999999999,0,98,4", out)
    _apply(orders, out[:n])
    assert _levels(orders, int(Flag.BID), 5) == [(100, 15), (98, 4)]
    assert out["kind"][:n].tolist() == [Kind.DELETE] * 3 + [Kind.ADD] * 2
    assert decoder.reveal(b"9999999999,0,100,15,9999999999,0,98,4", out) == 0


def test_each_message_type_becomes_its_row() -> None:
    lines = {
        b"1.5,1,7,100,5853300,1": (Kind.ADD, Flag.BID | Flag.LAST, 5853300, 100, 7),
        b"1.5,2,7,30,5853300,1": (Kind.REDUCE, Flag.BID | Flag.LAST, 5853300, 30, 7),
        b"1.5,4,7,20,5853300,1": (Kind.EXECUTE, Flag.BID | Flag.LAST, 5853300, 20, 7),
        b"1.5,3,7,50,5853300,1": (Kind.DELETE, Flag.BID | Flag.LAST, 5853300, 50, 7),
        b"1.5,5,0,10,5853301,-1": (Kind.TRADE, Flag.BID | Flag.LAST, 5853301, 10, 0),
        b"1.5,6,-1,10,5853301,1": None,
        b"1.5,6,0,900,5853301,-1": (Kind.TRADE, Flag.CROSS | Flag.LAST, 5853301, 900, 0),
    }
    decoder, out = LobsterDecoder(3, midnight_ns=10, source=2), new_rows(1)
    for line, wanted in lines.items():
        assert decoder.decode(line, out) == (wanted is not None), line
        if wanted is not None:
            row = out[0]
            assert (row["kind"], row["flags"], row["px"], row["qty"], row["a"]) == wanted
            assert (row["instrument"], row["source"], row["ts_event"]) == (3, 2, 1_500_000_010)
    assert decoder.counts == {"malformed": 1, "unknown": 0, "revealed": 0}


def test_a_halt_and_its_end_are_status_rows() -> None:
    decoder, out = LobsterDecoder(), new_rows(3)
    codes = []
    for px in (-1, 0, 1):
        assert decoder.decode(b"36000.1,7,0,0,%d,-1" % px, out) == 1
        codes.append(int(out["code"][0]))
    assert codes == [Status.HALTED, Status.QUOTING, Status.TRADING]
    assert out["kind"][0] == Kind.STATUS


def test_an_order_older_than_the_file_is_taken_from_the_level_seeded_for_it() -> None:
    decoder, out = LobsterDecoder(), new_rows(8)
    n = decoder.seed(b"200,5,100,40,300,7,90,3", b"1.0,1,55,15,100,1", out)
    assert out["kind"][:n].tolist() == [Kind.CLEAR, Kind.ADD, Kind.ADD, Kind.ADD, Kind.ADD]
    assert out["qty"][1:n].tolist() == [25, 3, 5, 7], "what the first message added is not counted twice"
    assert out["flags"][n - 1] & Flag.LAST and not out["flags"][n - 2] & Flag.LAST
    decoder.decode(b"1.0,3,12,10,100,1", out)
    assert (out["kind"][0], out["a"][0], out["qty"][0]) == (Kind.REDUCE, MADE_UP, 10), "a part of the level, not all"
    decoder.decode(b"1.0,4,12,15,100,1", out)
    assert (out["kind"][0], out["a"][0]) == (Kind.EXECUTE, MADE_UP)
    decoder.decode(b"1.0,3,13,5,100,1", out)
    assert (out["kind"][0], out["a"][0], decoder.counts["unknown"]) == (Kind.DELETE, 13, 1)


def test_a_line_that_is_no_message_is_counted_and_gives_no_row() -> None:
    decoder, out = LobsterDecoder(), new_rows(1)
    before = out.copy()
    for line in (b"", b"1,2", b"1.0,8,1,1,1,1", b"1.0,1,1,1,1,2", b"1.0,1,1,0,1,1", b"x", b"1e5,1,1,1,1,1"):
        assert decoder.decode(line, out) == 0
    assert decoder.counts["malformed"] == 7
    assert np.array_equal(before.view(np.uint8), out.view(np.uint8))


def test_no_input_breaks_the_lobster_decoder() -> None:
    feed, seeds = TARGETS["lobster"]()
    fuzz(feed, seeds, FUZZ_INPUTS)
