"""Formats are recognised by content, and what is not recognised is answered with what there is."""

from __future__ import annotations

import gzip
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from hftlab.codecs.itch import message_bytes
from hftlab.codecs.moldudp import MoldUDPServer
from hftlab.convert.formats import SOURCE_FORMATS, open_source, recognise
from hftlab.convert.run import convert
from hftlab.core.errors import ConfigError
from hftlab.core.rows import Kind
from hftlab.journal import read_all
from hftlab.testing.targets_convert import dbn_metadata

RECORDED = {
    "binance/btcusdt_20240808.gz": "capture",
    "binance/BINANCE.0": "capture",
    "binance/BINANCE_US.ws.1.0": "capture",
    "coinbase/COINBASE.ws.28.0": "capture",
    "kraken/KRAKEN.ws.50.0": "capture",
    "itch/synthetic_8009.itch": "itch",
    "itch/day_start_cut.itch": "itch",
    "l3/AAPL_2012-06-21_34200000_57600000_message_10.csv": "lobster",
    "l3/orderbooks_definition.dbn.zst": "dbn",
    "bars/futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst": "dbn",
}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recording_is_recognised_whatever_its_name_is(name: str, shared_data: Path, tmp_path: Path) -> None:
    assert recognise(shared_data / name) == RECORDED[name]
    shutil.copyfile(shared_data / name, tmp_path / "nameless")
    assert recognise(tmp_path / "nameless") == RECORDED[name]
    packed = tmp_path / "packed"
    if not (shared_data / name).read_bytes().startswith((b"\x1f\x8b", b"\x28\xb5")):
        packed.write_bytes(gzip.compress((shared_data / name).read_bytes()))
        assert recognise(packed) == RECORDED[name]


def test_packets_are_recognised_and_decoded(shared_data: Path) -> None:
    for path in sorted((shared_data / "itch" / "packets").glob("*.pcap")):
        source = open_source(path)
        rows = [block.copy() for block in source]
        assert source.format == "pcap" and sum(map(len, rows)) >= 1 and source.broken == 0


def test_what_is_no_recording_is_answered_with_what_was_seen_and_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError) as error:
        open_source(path)
    assert "begins with b'\\x89PNG" in str(error.value)
    assert all(name in str(error.value) for name in SOURCE_FORMATS)
    with pytest.raises(ConfigError, match="folder without journal segments"):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match="format='xls' is not known"):
        open_source(path, "xls")


def test_the_book_file_of_lobster_is_answered_with_the_message_file(shared_data: Path) -> None:
    (path,) = (shared_data / "l3").glob("AAPL*_orderbook_10.csv")
    with pytest.raises(ConfigError, match="give the message file"):
        open_source(path)


def test_a_file_whose_name_has_no_date_asks_for_it(shared_data: Path) -> None:
    with pytest.raises(ConfigError, match="--date"):
        open_source(shared_data / "itch" / "synthetic_8009.itch")


def test_a_capture_without_a_known_venue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('1723161253937085768 {"hello": 1}\n')
    with pytest.raises(ConfigError, match="no message of a known venue"):
        open_source(tmp_path / "c")


def test_the_grid_of_a_capture_is_told_beside_it_or_found(shared_data: Path, tmp_path: Path) -> None:
    told = open_source(shared_data / "binance" / "BINANCE.ws.1.0").instruments
    assert {i.symbol: i.tick_size for i in told}["RUNEEUR"] == Decimal("0.001")
    alone = tmp_path / "capture"
    shutil.copyfile(shared_data / "binance" / "BINANCE.ws.1.0", alone)
    found = open_source(alone).instruments
    assert sorted(i.symbol for i in found) == sorted(i.symbol for i in told)
    (btc,) = open_source(shared_data / "binance" / "btcusdt_20240808.gz").instruments
    assert (btc.symbol, btc.tick_size) == ("BTCUSDT", Decimal("0.01"))
    given = open_source(alone, definitions=shared_data / "binance" / "BINANCE.0").instruments
    assert {(i.symbol, i.tick_size) for i in given} >= {("RUNEEUR", Decimal("0.001"))}


@pytest.mark.parametrize(
    ("name", "books", "trades"),
    [("coinbase/COINBASE.0", 10, 107), ("kraken/KRAKEN.0", 10, 10), ("binance/BINANCE_US.0", 4, 0)],
)
def test_every_book_of_a_cryptofeed_capture_comes_to_live(
    name: str, books: int, trades: int, shared_data: Path, tmp_path: Path
) -> None:
    done = convert(shared_data / name, tmp_path / "journal")
    rows = read_all(tmp_path / "journal")
    states = rows[rows["kind"] == Kind.BOOK_STATE]
    assert states["code"].tolist() == [1] * books and len(set(states["instrument"].tolist())) == books
    assert (rows["kind"] == Kind.TRADE).sum() == trades
    assert done.broken == 0 and len(done.instruments) == books


def test_one_session_over_two_lines_gives_each_message_once(tmp_path: Path) -> None:
    """A pcap made by hand: both lines of a MoldUDP64 feed, one packet lost on both."""
    server = MoldUDPServer("DAY")
    packets = [
        packet
        for n in range(6)
        for packet in server.publish([message_bytes({"message_type": "D", "order_reference_number": n})])
    ]
    path = tmp_path / "both.pcap"
    path.write_bytes(_pcap([p for n, packet in enumerate(packets) if n != 3 for p in (packet, packet)]))
    source = open_source(path, date=date(2024, 1, 2))
    refs = [int(r) for block in source for r in block["a"]]
    assert refs == [0, 1, 2, 4, 5]
    assert source.notes["lost"] == 1 and source.notes["twice"] >= 4


def _pcap(payloads: list[bytes]) -> bytes:
    found = b"\xd4\xc3\xb2\xa1" + (2).to_bytes(2, "little") + (4).to_bytes(2, "little") + bytes(8)
    found += (65535).to_bytes(4, "little") + (1).to_bytes(4, "little")
    for n, payload in enumerate(payloads):
        udp = bytes([0x30, 0x39, 0x30, 0x39]) + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
        ip = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, 17]) + bytes(10) + udp
        frame = bytes(12) + b"\x08\x00" + ip
        when = (1_700_000_000 + n).to_bytes(4, "little") + bytes(4)
        found += when + len(frame).to_bytes(4, "little") * 2 + frame
    return found


def test_a_recording_that_is_not_what_it_is_said_to_be_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(b"34200.1,1,2,3,4,1\n")
    with pytest.raises(ConfigError, match="recording cannot be read as pcap: the file begins with b'3420'"):
        open_source(path, "pcap", date=date(2024, 1, 2))
    path.write_bytes(dbn_metadata(3, 0, {5602: "ESM4"})[:50])
    with pytest.raises(ConfigError, match="recording cannot be read as dbn: the DBN metadata is cut after 50 bytes"):
        open_source(path)
