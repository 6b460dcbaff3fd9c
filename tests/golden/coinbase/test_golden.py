"""Raw messages of both Coinbase APIs, from the venue's public documentation, decoded every run.

``exchange.jsonl``: docs.cdp.coinbase.com/exchange/websocket-feed/channels; ``advanced.jsonl``: .../advanced-trade-apis/
websocket/websocket-channels; lists shortened. The ids of the documentation's orders are kept. The expected rows were
written by hand: kind, flags, px, qty, a, b.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind
from hftlab.venues.coinbase.market import MarketDecoder

HERE = Path(__file__).parent
BTC = Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))
ETH = Instrument(1, "coinbase", "ETH-USD", Decimal("0.01"), Decimal("0.00000001"))
BID, ASK, LAST, SNAP = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
E8 = 10**8

EXCHANGE = [
    [],  # heartbeat
    [
        (Kind.CLEAR, SNAP, 0, 0, 0, 0),
        (Kind.LEVEL, SNAP | BID, 1_010_110, 45_054_140, 0, 0),
        (Kind.LEVEL, SNAP | ASK | LAST, 1_010_255, 57_753_524, 0, 0),
    ],
    [(Kind.LEVEL, BID | LAST, 1_010_180, 16_256_700, 0, 0)],
    [
        (Kind.QUOTE, BID, 128_504, 46_688_654, 37_475_248_783, 0),
        (Kind.QUOTE, ASK | LAST, 128_527, 156_637_040, 37_475_248_783, 0),
    ],
    [], [], [], [],  # received, received, open, done: no orders are followed
    [(Kind.TRADE, BID | LAST, 40_023, 523_512_000, 10, 50)],  # the maker sold
    [], [], [], [], [],  # change, change, activate, subscriptions, error
]  # fmt: skip
ADVANCED = [
    [
        (Kind.CLEAR, SNAP, 0, 0, 0, 0),
        (Kind.LEVEL, SNAP | BID, 2_192_173, 6_317_902, 0, 0),
        (Kind.LEVEL, SNAP | BID | LAST, 2_192_130, 2_000_000, 0, 0),
    ],
    [(Kind.LEVEL, ASK | LAST, 2_192_174, 0, 0, 0)],
    [(Kind.TRADE, SNAP | ASK | LAST, 126_001, 30_000_000, 0, 0)],  # the maker bought
    [
        (Kind.QUOTE, BID, 2_193_198, 8_000_21 * E8 // 100, 3, 0),
        (Kind.QUOTE, ASK | LAST, 2_193_398, 803_807_770_938, 3, 0),
    ],
    [],
    [],
]


@pytest.mark.parametrize(("name", "expected"), [("exchange.jsonl", EXCHANGE), ("advanced.jsonl", ADVANCED)])
def test_documented_messages_give_the_rows_written_by_hand(name: str, expected: list[list[tuple[int, ...]]]) -> None:
    decoder, out = MarketDecoder([BTC, ETH]), np.zeros(16, ROW)
    frames = (HERE / name).read_bytes().splitlines()
    told = []
    for frame in frames:
        n = decoder.decode(frame, 1, out)
        told.append([tuple(int(row[f]) for f in ("kind", "flags", "px", "qty", "a", "b")) for row in out[:n]])
    assert told == [[tuple(map(int, row)) for row in rows] for rows in expected]
    assert not any(decoder.counts[reason] for reason in ("malformed", "truncated", "off_grid", "unknown_symbol"))


def test_documented_orders_are_followed_through_their_lives() -> None:
    frames = (HERE / "exchange.jsonl").read_bytes().splitlines()
    opened, done, match, change = frames[6], frames[7], frames[8], frames[9]
    maker = b"ac928c66-ca53-498f-9c13-a110027a60e8"
    book = b'{"sequence":79,"bids":[],"asks":[["400.23","12.234412","%b"]]}' % maker
    decoder, out = MarketDecoder([BTC]), np.zeros(16, ROW)
    kinds = []
    assert decoder.decode_snapshot(book, 0, 1, out) == 2
    for number, frame in ((80, change), (81, match), (82, opened), (83, done)):
        at = frame.index(b'"sequence":')
        digits = len(frame[at + 11 :]) - len(frame[at + 11 :].lstrip(b"0123456789"))
        numbered = frame[: at + 11] + str(number).encode() + frame[at + 11 + digits :]
        kinds.append([Kind(int(row["kind"])).name for row in out[: decoder.decode(numbered, 1, out)]])
    assert kinds == [["REDUCE"], ["EXECUTE", "TRADE"], ["ADD"], ["DELETE"]]
    assert decoder.orders_alive == 0
