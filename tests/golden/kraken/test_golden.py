"""Messages of Kraken's public feed, and the worked examples of its checksum guides, decoded every run.

Version 2 is proved by these few messages and the documented rule only: no recording of a whole v2 session was at hand.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from venues.kraken.reference import Reader

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.venues.kraken.market import BOOK, MarketDecoder

GOLDEN: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "v2.jsonl").read_text().splitlines()
]
ASKS = ["0.05005", "0.05010", "0.05015", "0.05020", "0.05025", "0.05030", "0.05035", "0.05040", "0.05045", "0.05050"]
BIDS = ["0.05000", "0.04995", "0.04990", "0.04980", "0.04975", "0.04970", "0.04965", "0.04960", "0.04955", "0.04950"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden["symbol"]))
def test_a_message_of_version_2_proves_its_book(golden: dict[str, Any]) -> None:
    tick, lot = (Decimal(1).scaleb(-decimals) for decimals in golden["decimals"])
    instrument = Instrument(0, "kraken", golden["symbol"], tick, lot)
    decoder, reader, out = MarketDecoder([instrument]), Reader([instrument], 2, 10), np.zeros(64, ROW)
    for frame in golden["frames"]:
        n = decoder.decode(frame.encode(), 1, out)
        assert decoder.kind == BOOK
        assert decoder.checksum == decoder.computed
        assert [int(px) for px in out["px"][:n]] == [row[5] for row in reader.rows(frame.encode(), 1)]
    assert not any(decoder.counts.values())


def test_the_worked_example_of_version_1_gives_its_checksum() -> None:
    """Kraken, guide Book checksum (WebSocket v1): ten levels a side of 0.00000500 each give 974947235."""
    pair = Instrument(0, "kraken", "BTC/USD", Decimal("0.00001"), Decimal("0.00000001"))
    decoder, out = MarketDecoder([pair], version=1), np.zeros(64, ROW)

    def levels(prices: list[str]) -> str:
        return json.dumps([[px, "0.00000500", "1582905487.439814"] for px in prices], separators=(",", ":"))

    decoder.decode(f'[0,{{"as":{levels(ASKS)},"bs":{levels(BIDS[1:])}}},"book-10","XBT/USD"]'.encode(), 0, out)
    decoder.decode(f'[0,{{"b":{levels(BIDS[:1])},"c":"974947235"}},"book-10","XBT/USD"]'.encode(), 0, out)
    assert (decoder.checksum, decoder.computed) == (974947235, 974947235)
