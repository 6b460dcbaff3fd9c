"""The connection's rules: a book is believed while its checksum agrees, rebuilt from the stream when not."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from venues.kraken.reference import Book

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind
from hftlab.venues.kraken.capture import protocol_version, read_capture
from hftlab.venues.kraken.connection import RESUBSCRIBE_NS, MarketConnection
from hftlab.venues.kraken.messages import instruments_from_asset_pairs

BTC = Instrument(0, "kraken", "BTC/USD", Decimal("0.1"), Decimal("0.00000001"))
ETH = Instrument(1, "kraken", "ETH/USD", Decimal("0.01"), Decimal("0.00000001"))
SECOND = 1_000_000_000

Told = tuple[str, ...]


class Venue:
    """One symbol's book at the venue: writes snapshots and updates with the right checksum."""

    def __init__(self, instrument: Instrument, seed: int = 0, depth: int = 10) -> None:
        self.book, self.rng = Book(instrument, depth), random.Random(seed)
        self.instrument = instrument
        for n in range(12):
            for flag, px in ((1, 1000 - n), (2, 1001 + n)):
                self.set(flag, px, 10**8 + n)
        self.book.cut()

    def set(self, flag: int, px: int, qty: int) -> None:
        tick, lot = self.instrument.tick_size, self.instrument.lot_size
        self.book.set(flag, px, qty, (f"{px * tick:f}", f"{qty * lot:f}"))

    def _message(self, kind: str, bids: dict[int, int], asks: dict[int, int]) -> bytes:
        i, tick, lot = self.instrument, self.instrument.tick_size, self.instrument.lot_size

        def levels(side: dict[int, int]) -> str:
            return ",".join(f'{{"price":{px * tick:f},"qty":{qty * lot:f}}}' for px, qty in side.items())

        return (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{i.symbol}","bids":[{levels(bids)}],'
            f'"asks":[{levels(asks)}],"checksum":{self.book.checksum()},"timestamp":"2026-01-19T16:15:30.114195Z"}}]}}'
        ).encode()

    def snapshot(self) -> bytes:
        return self._message("snapshot", self.book.bids, self.book.asks)

    def update(self, px: int = 0) -> bytes:
        px, qty = px or self.rng.randint(991, 1000), self.rng.randint(1, 10**9)
        self.set(1, px, qty)
        self.book.cut()
        return self._message("update", {px: qty}, {})


class Client:
    """A connection with a clock; `told` are the rows of each call in words."""

    def __init__(self, *instruments: Instrument, **settings: Any) -> None:
        self.connection = MarketConnection(instruments or (BTC, ETH), **{"depth": 10, **settings})
        self.out = np.zeros(self.connection.rows_needed, ROW)
        self.now = SECOND
        self.connection.subscribe_requests(list(self.connection.books))
        self.connection.on_open(self.now)

    def _words(self, n: int) -> list[Told]:
        told = []
        for row in self.out[:n]:
            kind = Kind(int(row["kind"]))
            last = ("last",) if row["flags"] & Flag.LAST else ()
            if kind == Kind.BOOK_STATE:
                told.append((BookState(int(row["code"])).name, str(row["instrument"]), *last))
            else:
                told.append((kind.name, str(row["instrument"]), *last))
        return told

    def frame(self, frame: bytes) -> list[Told]:
        return self._words(self.connection.on_frame(frame, self.now, self.out))

    def poll(self, seconds: float = 0) -> list[Told]:
        self.now += int(seconds * SECOND)
        return self._words(self.connection.poll(self.now, self.out))

    def close(self) -> list[Told]:
        return self._words(self.connection.on_close(self.now, self.out))

    def sent(self) -> list[tuple[str, str, list[str]]]:
        requests = [json.loads(request) for request in self.connection.wants_send()]
        return [
            (r["method"], r.get("params", {}).get("channel", ""), r.get("params", {}).get("symbol", []))
            for r in requests
        ]


def test_subscriptions_name_book_depth_trades_and_best_prices() -> None:
    connection = MarketConnection([BTC, ETH], depth=25)
    requests = [json.loads(request) for request in connection.subscribe_requests([0, 1])]
    symbols = ["BTC/USD", "ETH/USD"]
    assert [r["params"] for r in requests] == [
        {"channel": "book", "symbol": symbols, "depth": 25, "snapshot": True},
        {"channel": "trade", "symbol": symbols, "snapshot": False},
        {"channel": "ticker", "symbol": symbols, "event_trigger": "bbo", "snapshot": False},
    ]
    assert [r["method"] for r in requests] == ["subscribe"] * 3
    assert len({r["req_id"] for r in requests}) == 3
    (book, trade, ticker) = (
        json.loads(request) for request in MarketConnection([BTC], depth=25, version=1).subscribe_requests([0])
    )
    assert (book["event"], book["pair"]) == ("subscribe", ["XBT/USD"])
    assert book["subscription"] == {"name": "book", "depth": 25}
    assert (trade["subscription"], ticker["subscription"]) == ({"name": "trade"}, {"name": "ticker"})


def test_a_book_is_live_from_its_snapshot_and_updates_pass_while_the_checksum_agrees() -> None:
    client, venue = Client(BTC), Venue(BTC)
    assert client.frame(venue.update()) == []
    told = client.frame(venue.snapshot())
    assert told[0] == ("CLEAR", "0") and told[-1] == ("LIVE", "0", "last")
    assert all(row == ("LEVEL", "0") for row in told[1:-1]) and len(told) == 22
    for _ in range(50):
        assert client.frame(venue.update())[-1] == ("LEVEL", "0", "last")
    assert client.connection.counts["gaps"] == 0 and client.connection.counts["dropped"] == 1


def test_a_lost_update_is_seen_by_the_next_one_and_the_book_is_rebuilt_from_the_stream() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH, 1)
    client.frame(bitcoin.snapshot())
    client.frame(ether.snapshot())
    client.now += 2 * RESUBSCRIBE_NS
    bitcoin.update(995)  # lost
    frame = bitcoin.update(997)
    assert client.frame(frame) == [("RESYNCING", "0", "last")]
    row = client.out[0]
    assert int(row["a"]) == json.loads(frame)["data"][0]["checksum"] != int(row["b"])
    assert client.sent() == [("unsubscribe", "book", ["BTC/USD"]), ("subscribe", "book", ["BTC/USD"])]
    assert client.sent() == [] and client.connection.wants_snapshot() == []
    assert client.frame(bitcoin.update()) == []
    assert client.frame(ether.update())[-1] == ("LEVEL", "1", "last")  # the other symbol does not notice
    assert client.frame(bitcoin.snapshot())[-1] == ("LIVE", "0", "last")
    assert client.frame(bitcoin.update()) == [("LEVEL", "0", "last")]
    assert client.connection.counts["gaps"] == 1 and client.connection.counts["resubscribed"] == 1


def test_a_snapshot_that_fails_its_own_checksum_is_asked_for_again_at_a_bounded_pace() -> None:
    client, venue = Client(BTC), Venue(BTC)
    bad = venue.snapshot().replace(b'"qty":1.', b'"qty":2.', 1)
    client.now += RESUBSCRIBE_NS
    assert client.frame(bad) == [("RESYNCING", "0", "last")]
    assert len(client.sent()) == 2
    for _ in range(20):
        assert client.frame(bad) == []
        assert client.sent() == []
    assert client.poll(0.5) == [] and client.sent() == []
    client.poll(0.6)
    assert [method for method, _, _ in client.sent()] == ["unsubscribe", "subscribe"]
    assert client.connection.counts["bad_snapshots"] == 21
    assert client.frame(venue.snapshot())[-1] == ("LIVE", "0", "last")


def test_a_subscription_without_a_snapshot_is_repeated() -> None:
    client = Client(BTC)
    for _ in range(4):
        client.frame(b'{"channel":"heartbeat"}')
        client.poll(1)
        assert client.sent() == []
    client.poll(2)
    assert len(client.sent()) == 2


def test_a_silent_connection_makes_books_stale_and_any_message_makes_them_live() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH)
    client.frame(bitcoin.snapshot())
    client.frame(ether.snapshot())
    for _ in range(10):  # the market is quiet, the connection is not
        assert client.poll(1) == []
        assert client.frame(b'{"channel":"heartbeat"}') == []
    assert client.poll(3.5) == [("STALE", "0", "last"), ("STALE", "1", "last")]
    assert client.poll(1) == []
    told = client.frame(bitcoin.update())
    assert told == [("LEVEL", "0"), ("LIVE", "0", "last"), ("LIVE", "1", "last")]
    assert client.poll(3.5) == [("STALE", "0", "last"), ("STALE", "1", "last")]
    assert client.frame(b'{"channel":"heartbeat"}') == [("LIVE", "0", "last"), ("LIVE", "1", "last")]


def test_a_message_that_cannot_be_read_gives_up_the_books_it_may_have_changed() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH)
    client.frame(bitcoin.snapshot())
    client.frame(ether.snapshot())
    off_grid = bitcoin.update().replace(b'"price":', b'"price":1.05, "old":')
    assert client.frame(off_grid) == [("RESYNCING", "0", "last")]
    client.frame(bitcoin.snapshot())
    assert client.frame(bitcoin.update()[:-5]) == [("RESYNCING", "0", "last"), ("RESYNCING", "1", "last")]
    assert client.connection.counts["broken"] == 3


def test_a_message_that_revives_books_ends_once_for_each_instrument() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH)
    client.frame(bitcoin.snapshot())
    client.frame(ether.snapshot())
    trade = (
        b'{"channel":"trade","type":"update","data":[{"symbol":"ETH/USD","side":"sell","price":51.17,"qty":40.0,'
        b'"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}'
    )
    assert client.frame(trade) == [("TRADE", "1", "last")]
    client.poll(3.5)
    assert client.frame(trade) == [("TRADE", "1"), ("LIVE", "0", "last"), ("LIVE", "1", "last")]


def test_an_unsubscribed_book_is_stale_and_nothing_on_its_way_makes_it_live() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH)
    client.frame(bitcoin.snapshot())
    client.frame(ether.snapshot())
    requests = [json.loads(request) for request in client.connection.unsubscribe_requests([0])]
    assert [r["params"]["symbol"] for r in requests] == [["BTC/USD"]] * 3
    assert client.frame(bitcoin.update()) == []
    assert client.poll() == [("STALE", "0", "last")]
    assert client.frame(bitcoin.snapshot()) == client.frame(bitcoin.update()) == client.poll() == []
    assert client.frame(ether.update()) == [("LEVEL", "1", "last")]
    client.poll(3.5)
    assert client.frame(b'{"channel":"heartbeat"}') == [("LIVE", "1", "last")]
    client.poll(2)
    assert not client.sent()  # nor is it subscribed to anew
    client.connection.subscribe_requests([0])
    assert client.frame(bitcoin.snapshot())[-1] == ("LIVE", "0", "last")


def test_a_book_unsubscribed_just_before_the_end_is_not_left_live() -> None:
    client, venue = Client(BTC), Venue(BTC)
    client.frame(venue.snapshot())
    client.connection.unsubscribe_requests([0])
    assert client.close() == [("STALE", "0", "last")]


def test_deep_books_of_all_symbols_fit_one_message() -> None:
    symbols = [Instrument(n, "kraken", f"C{n}/USD", Decimal("0.1"), Decimal("0.00000001")) for n in range(10)]
    client = Client(*symbols, depth=1000)
    entries = []
    for instrument in symbols:
        venue = Venue(instrument, depth=1000)
        for n in range(1000):
            venue.set(1, 20_000 - n, 1 + n)
            venue.set(2, 20_001 + n, 1 + n)
        venue.book.cut()
        entries.append(venue.snapshot().split(b'"data":[')[1][:-2])
    told = client.frame(b'{"channel":"book","type":"snapshot","data":[' + b",".join(entries) + b"]}")
    assert sum(row[0] == "LEVEL" for row in told) == 20_000 and sum(row[0] == "LIVE" for row in told) == 10
    assert client.connection.counts["broken"] == client.connection.decoder.counts["oversize"] == 0


def test_a_message_written_oddly_harms_no_book_after_its_own() -> None:
    client, venue = Client(BTC), Venue(BTC)
    client.frame(venue.snapshot())
    odd = venue.update(1000).replace(b'"price":100.0,', b'"price":100.0000000,')
    assert client.frame(odd) == [("RESYNCING", "0", "last")]
    assert client.frame(venue.snapshot())[-1] == ("LIVE", "0", "last")
    for _ in range(20):
        assert client.frame(venue.update())[-1] == ("LEVEL", "0", "last")
    assert client.connection.counts["gaps"] == 1


def test_several_symbols_in_one_message_are_each_proved() -> None:
    client, bitcoin, ether = Client(), Venue(BTC), Venue(ETH)
    joined = bitcoin.snapshot()[:-2] + b"," + ether.snapshot().split(b'"data":[')[1]
    told = client.frame(joined)
    assert told.count(("LIVE", "0", "last")) == told.count(("LIVE", "1", "last")) == 1
    assert client.frame(ether.update()) == [("LEVEL", "1", "last")]


def test_a_second_snapshot_replaces_a_live_book_without_a_word_of_belief() -> None:
    client, venue = Client(BTC), Venue(BTC)
    client.frame(venue.snapshot())
    venue.update()
    told = client.frame(venue.snapshot())
    assert told[0] == ("CLEAR", "0") and told[-1] == ("LEVEL", "0", "last")
    assert client.frame(venue.update())[-1] == ("LEVEL", "0", "last")


def test_a_closed_connection_leaves_no_book_believed() -> None:
    client, venue = Client(), Venue(BTC)
    client.frame(venue.snapshot())
    with pytest.raises(LocalError, match="on_close"):
        client.connection.on_open(client.now)
    assert client.close() == [("RESYNCING", "0", "last")]
    assert client.poll(60) == [] and client.sent() == []
    client.connection.on_open(client.now)
    assert client.frame(venue.update()) == []
    assert client.frame(venue.snapshot())[-1] == ("LIVE", "0", "last")


def test_the_connection_is_pinged_before_the_venue_closes_it() -> None:
    client = Client(BTC)
    client.poll(26)
    assert ("ping", "", []) in client.sent()


def test_error_answers_are_kept_and_maintenance_is_seen() -> None:
    client = Client(BTC)
    client.frame(b'{"error":"Subscription depth not supported","method":"subscribe","success":false}')
    client.frame(b'{"method":"subscribe","success":true,"result":{"channel":"book"}}')
    assert [error[:20] for error in client.connection.errors] == ['{"error":"Subscripti']
    client.frame(b'{"channel":"status","type":"update","data":[{"system":"maintenance","api_version":"v2"}]}')
    assert client.connection.shutdown


def test_a_rest_snapshot_is_not_taken() -> None:
    client = Client(BTC)
    assert client.connection.on_snapshot("BTC/USD", b"{}", 0, client.out) == 0
    with pytest.raises(ConfigError, match="XXX"):
        client.connection.on_snapshot("XXX/USD", b"{}", 0, client.out)
    assert client.connection.snapshot_path("BTC/USD") == "/0/public/Depth?pair=XBTUSD&count=10"


def test_the_recorded_session_of_version_1_is_live_throughout_and_a_lost_message_is_not(shared_data: Path) -> None:
    folder = shared_data / "kraken"
    payload = next(body for _, body in read_capture(folder / "KRAKEN.0") if b"pair_decimals" in body)
    names = ["WAVES/EUR", "XMR/USD", "KSM/XBT", "GRT/ETH", "SC/EUR", "ETH/CHF", "OCEAN/XBT", "OMG/USD", "XBT/CHF"]
    instruments = instruments_from_asset_pairs(payload, [*names, "ADA/XBT"])
    frames = [
        frame for _, frame in read_capture(folder / "KRAKEN.ws.50.0", on_broken=lambda at, why: None)
        if protocol_version(frame) == 1
    ]  # fmt: skip
    for lost in (None, 300):
        client = Client(*instruments, version=1, depth=1000)
        told = [row for n, frame in enumerate(frames) if n != lost for row in client.frame(frame)]
        states = [row[0] for row in told if row[0] in BookState.__members__]
        assert states == ["LIVE"] * 10 + ["RESYNCING"] * (lost is not None)
        assert client.connection.counts["gaps"] == (lost is not None)


@pytest.mark.parametrize("settings", [{"stale_ns": 0}, {"depth": 5}, {"version": 4}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"expected|has"):
        MarketConnection([BTC], **settings)
