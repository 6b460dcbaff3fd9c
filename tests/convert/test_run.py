"""Conversions end to end: what comes out is what went in, whatever the way, and the recorded oracles agree."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pytest

from hftlab.books import L2Book
from hftlab.codecs.dbn import bars, read_metadata
from hftlab.codecs.itch import frame, message_bytes
from hftlab.codecs.lobster import read_levels
from hftlab.codecs.moldudp import MoldUDPServer
from hftlab.convert.formats import open_source
from hftlab.convert.run import Conversion, book, convert, time_ns
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, NO_PX, Flag, Kind, new_rows
from hftlab.journal import JournalReader, JournalWriter, read_all, run_hash, verify
from hftlab.testing.targets_convert import dbn_mbo, dbn_metadata

DAY = date(2024, 1, 2)
NANO = 1_000_000_000
_PRICES = ("open", "high", "low", "close")


def _depth(frame: pl.DataFrame, depth: int, scale: int) -> npt.NDArray[np.int64]:
    """Return the levels of a book file as integers, bid_px_1, bid_qty_1, ask_px_1, ...; -1 where there is none."""
    names = [f"{side}_{what}_{k}" for k in range(1, depth + 1) for side in ("bid", "ask") for what in ("px", "qty")]
    columns = []
    for name in names:
        factor = scale if "_px_" in name else 1
        columns.append(np.rint(frame[name].fill_null(-1 / factor).to_numpy() * factor).astype(np.int64))
    return np.stack(columns, axis=1)


def _told(line: bytes) -> list[int]:
    """Return one line of a LOBSTER-like book file in the order of ours."""
    sides = read_levels(line)
    assert sides is not None
    padded = [side + [(-1, -1)] * (10 - len(side)) for side in sides]
    return [value for levels in zip(*padded, strict=True) for level in levels for value in level]


def _without_repeats(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    keep = np.append(True, (values[1:] != values[:-1]).any(axis=1))
    return values[keep]


# --- oracles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT", "GOOGL"])
def test_the_books_of_the_synthetic_itch_file_are_the_published_ones(
    symbol: str, shared_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "book.parquet"
    book(shared_data / "itch" / "synthetic_8009.itch", out, date=DAY, symbols=[symbol])
    ours = _depth(pl.read_parquet(out), 10, 10_000)
    (path,) = (shared_data / "itch").glob(f"{symbol}_*_orderbook_10.csv.gz")
    told = np.array([_told(line) for line in gzip.decompress(path.read_bytes()).splitlines()], np.int64)
    assert len(told) > 2000
    assert np.array_equal(ours, told)


def test_the_books_of_the_lobster_messages_are_the_book_file(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "l3").glob("AAPL*_message_10.csv")
    out = tmp_path / "book.csv"
    done = book(path, out)
    ours = _depth(pl.read_csv(out), 10, 10_000)[1:]  # the first is the book before the first message
    lines = path.with_name(path.name.replace("message", "orderbook")).read_bytes().splitlines()
    told = np.array([_told(line) for line in lines], np.int64)
    assert np.array_equal(_without_repeats(ours), _without_repeats(told))
    assert (done.broken, done.instruments) == (0, ["AAPL"])


def test_book_tickers_equal_the_tops_of_a_converted_binance_journal(shared_data: Path, tmp_path: Path) -> None:
    convert(shared_data / "binance" / "btcusdt_20240808.gz", tmp_path / "journal")
    rows = read_all(tmp_path / "journal")
    quotes: dict[int, dict[int, tuple[int, int]]] = {}
    for row in rows[rows["kind"] == Kind.QUOTE]:
        quotes.setdefault(int(row["a"]), {})[int(row["flags"]) & 3] = int(row["px"]), int(row["qty"])
    levels = rows[rows["kind"] != Kind.QUOTE]
    trace = L2Book(5000).trace(levels, 1)
    compared = equal = 0
    for n, place in enumerate(trace.row.tolist()):
        quote = quotes.get(int(levels["a"][place]) if levels["kind"][place] == Kind.LEVEL else -1)
        if quote is not None:
            compared += 1
            bid = int(trace.bid_px[n, 0]), int(trace.bid_qty[n, 0])
            ask = int(trace.ask_px[n, 0]), int(trace.ask_qty[n, 0])
            equal += (quote[int(Flag.BID)], quote[int(Flag.ASK)]) == (bid, ask)
    assert (compared, equal) == (564, 564)


def test_the_snapshot_of_es_orders_becomes_the_documented_book(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "l3").glob("orderbooks_mbo*")
    out = tmp_path / "book.parquet"
    book(path, out, definitions=shared_data / "l3" / "orderbooks_definition.dbn.zst", depth=1)
    last = pl.read_parquet(out).row(-1, named=True)
    touch = [last[f"{side}_{what}_1"] for side in ("bid", "ask") for what in ("px", "qty")]
    assert touch == [5214.0, 28.0, 5214.25, 17.0]
    without = tmp_path / "found.parquet"
    book(path, without, depth=1)
    assert pl.read_parquet(without).equals(pl.read_parquet(out)), "the grid that was found gives the same prices"


def test_quotes_alone_make_books_of_one_level(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "bars").glob("futures_mbp-1*")
    out = tmp_path / "book.parquet"
    done = book(path, out, depth=2)
    frame = pl.read_parquet(out)
    assert done.rows == len(frame) > 2000
    assert (frame["bid_px_1"] < frame["ask_px_1"]).all() and frame["bid_px_2"].null_count() == len(frame)


def test_trades_in_a_parquet_file_resample_to_the_recorded_bars(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "bars").glob("futures_trades*")
    out = tmp_path / "trades.parquet"
    convert(path, out, definitions=shared_data / "bars" / "futures_definition.dbn.zst")
    frame = pl.read_parquet(out).filter(pl.col("kind") == "TRADE").sort("seq")
    px, qty = pl.col("px_ticks") * 0.25, pl.col("qty_lots")
    made = frame.group_by_dynamic("ts_event", every="1m").agg(
        px.first().alias("open"), px.max().alias("high"), px.min().alias("low"), px.last().alias("close"), qty.sum()
    )
    (told,) = (shared_data / "bars").glob("futures_ohlcv*")
    with pa.OSFile(str(told)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
        data = bytes(stream.read())
    metadata = read_metadata(data)
    assert metadata is not None
    known = {
        (metadata.symbols[int(b["instrument"])], int(b["ts_event"])): (*(b[n] / NANO for n in _PRICES), b["volume"])
        for b in bars(data, metadata)
    }
    ours = [(ts, *rest) for ts, *rest in made.with_columns(pl.col("ts_event").cast(pl.Int64)).rows()]
    assert [tuple(rest) == known["ESU4", ts] for ts, *rest in ours] == [True] * 4
    assert frame["symbol"].unique().to_list() == ["ESU4"]


@pytest.mark.parametrize(("name", "books"), [("coinbase/COINBASE.0", 10), ("kraken/KRAKEN.0", 10)])
def test_the_books_of_cryptofeed_captures_never_cross(
    name: str, books: int, shared_data: Path, tmp_path: Path
) -> None:
    book(shared_data / name, tmp_path / "book.parquet", depth=1)
    frame = pl.read_parquet(tmp_path / "book.parquet")
    assert frame["instrument"].n_unique() == books and len(frame) > 4000
    assert (frame["bid_px_1"] < frame["ask_px_1"]).all()


# --- round trips ------------------------------------------------------------------------------------------------------

_RECORDINGS = {
    "capture": ("binance/btcusdt_20240808.gz", 191_912),
    "coinbase": ("coinbase/COINBASE.0", 18_208),
    "kraken": ("kraken/KRAKEN.0", 11_811),
    "itch": ("itch/synthetic_8009.itch", 8_018),
}


@pytest.mark.parametrize("name", sorted(_RECORDINGS))
def test_rows_survive_the_way_over_a_journal_and_parquet(name: str, shared_data: Path, tmp_path: Path) -> None:
    path, n = _RECORDINGS[name]
    first = convert(shared_data / path, tmp_path / "one", date=DAY)
    convert(tmp_path / "one", tmp_path / "rows.parquet")
    convert(tmp_path / "rows.parquet", tmp_path / "two")
    assert (first.rows, first.broken) == (n, 0)
    assert len(read_all(tmp_path / "two")) == n
    assert run_hash(tmp_path / "one") == run_hash(tmp_path / "two")
    assert verify(tmp_path / "two").ok
    ours, theirs = (JournalReader(tmp_path / f).definitions["instruments"] for f in ("one", "two"))
    assert ours == theirs and len(ours) == len(first.instruments)


def test_every_message_of_a_recording_is_an_atom_however_it_was_cut_into_blocks(tmp_path: Path) -> None:
    px = 5214 * NANO
    orders = [dbn_mbo(b"A", b"B", n + 1, px, 1, flags=128 if n % 3 == 2 else 0) for n in range(90_000)]
    path = tmp_path / "orders.dbn"
    path.write_bytes(dbn_metadata(3, 0, {5602: "ESM4"}) + b"".join(orders))
    flags = np.concatenate([block["flags"].copy() for block in open_source(path)])
    assert len(flags) == 90_000
    assert ((flags & Flag.COMMIT != 0) == (flags & Flag.LAST != 0)).all()
    convert(path, tmp_path / "journal")
    assert np.array_equal(read_all(tmp_path / "journal")["flags"], flags)


def test_payload_rows_survive_a_csv_file_as_text(shared_data: Path, tmp_path: Path) -> None:
    convert(shared_data / "itch" / "day_start_cut.itch", tmp_path / "day.csv", date=date(2019, 1, 30))
    lines = pl.read_csv(tmp_path / "day.csv", schema_overrides={"payload": pl.String})
    source = open_source(shared_data / "itch" / "day_start_cut.itch", date=date(2019, 1, 30))
    rows = np.concatenate([block.copy().view(np.uint8) for block in source]).reshape(-1, 64)
    payload = rows[rows[:, 6] == CONT][:, 8:]
    assert lines["payload"].to_list() == [one.tobytes().hex() for one in payload]
    assert lines["kind"].unique().to_list() == ["STATUS"]


def test_decimals_of_a_csv_file_are_exact(shared_data: Path, tmp_path: Path) -> None:
    convert(shared_data / "binance" / "BINANCE.0", tmp_path / "rows.csv", symbols=["BLZETH"])
    lines = pl.read_csv(tmp_path / "rows.csv", schema_overrides={"px": pl.String, "qty": pl.String})
    told = lines.filter(pl.col("kind") == "LEVEL").row(0, named=True)
    assert told["px"] == "0.00006547" and told["px_ticks"] == 6547
    assert set(lines["symbol"].unique()) == {"BLZETH"}


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_times_choose_rows_and_whole_atoms_remain(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"
    whole = convert(source, tmp_path / "whole")
    part = convert(source, tmp_path / "part", start="2024-08-08T23:56:00Z", end="2024-08-08T23:57:00")
    rows, some = read_all(tmp_path / "whole"), read_all(tmp_path / "part")
    begin = time_ns("2024-08-08T23:56:00Z")
    assert begin is not None
    wanted = rows[(rows["ts_recv"] >= begin) & (rows["ts_recv"] < begin + 60 * NANO)]
    assert 0 < part.rows == len(wanted) < whole.rows
    assert some["a"].tolist() == wanted["a"].tolist()
    assert some["flags"][-1] & Flag.COMMIT


def test_a_book_from_a_time_on_knows_what_came_before(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"
    book(source, tmp_path / "whole.parquet", depth=5)
    book(source, tmp_path / "part.parquet", depth=5, start="2024-08-08T23:58:00Z")
    whole, part = pl.read_parquet(tmp_path / "whole.parquet"), pl.read_parquet(tmp_path / "part.parquet")
    assert 0 < len(part) < len(whole)
    assert part.equals(whole.tail(len(part)))


def test_a_symbol_that_is_not_there_is_named_with_those_that_are(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no instrument 'ETHUSDT'; it has BTCUSDT"):
        convert(shared_data / "binance" / "btcusdt_20240808.gz", tmp_path / "x.csv", symbols=["ETHUSDT"])


# --- damage -----------------------------------------------------------------------------------------------------------


def test_damaged_records_are_told_by_their_offsets_and_all_others_are_there(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    head = dbn_metadata(3, 0, {5602: "ESM4"})
    records = [bytearray(dbn_mbo(b"A", b"B", n + 1, 5214 * NANO, 1)) for n in range(5000)]
    broken = sorted(chance.choice(5000, 40, replace=False).tolist())
    for k, n in enumerate(broken):
        records[n][0 if k % 2 else 38] = 3 if k % 2 else 0  # an impossible length, or an impossible action
    path = tmp_path / "orders.dbn"
    path.write_bytes(head + b"".join(records))
    done = convert(path, tmp_path / "rows.parquet")
    assert [p.offset for p in done.problems] == [len(head) + 56 * n for n in broken]
    assert done.broken == 40
    told = pl.read_parquet(tmp_path / "rows.parquet")["a"].to_list()
    assert told == [n + 1 for n in range(5000) if n not in set(broken)]


def test_damaged_lines_of_a_capture_are_told_and_the_book_goes_on(shared_data: Path, tmp_path: Path) -> None:
    """A delta that cannot be read is a gap: the book goes on from what was known, flagged, and comes right again."""
    packed = (shared_data / "binance" / "btcusdt_20240808.gz").read_bytes()
    lines = gzip.decompress(packed).splitlines(keepends=True)
    deltas = [n for n, line in enumerate(lines) if b'"depthUpdate"' in line]
    broken = [deltas[500], deltas[1500]]
    offsets = [sum(map(len, lines[:n])) for n in broken]
    lines[broken[0]] = lines[broken[0]].replace(b'"U"', b'"V"')
    lines[broken[1]] = b"\xff" * (len(lines[broken[1]]) - 1) + b"\n"
    path = tmp_path / "capture"
    path.write_bytes(b"".join(lines))
    done = convert(path, tmp_path / "journal")
    assert set(offsets) <= {p.offset for p in done.problems}
    assert done.broken == 4 and sum("messages are missing" in p.reason for p in done.problems) == 2
    rows = read_all(tmp_path / "journal")
    states = rows["code"][rows["kind"] == Kind.BOOK_STATE].tolist()
    assert states == [1, 3, 1, 3, 1], "live, resyncing, live, resyncing, live"
    whole = convert(shared_data / "binance" / "btcusdt_20240808.gz", tmp_path / "whole")
    assert (rows["kind"] == Kind.TRADE).sum() == (read_all(tmp_path / "whole")["kind"] == Kind.TRADE).sum()
    ours, theirs = L2Book(5000), L2Book(5000)
    ours.apply(rows)
    theirs.apply(read_all(tmp_path / "whole"))
    assert ours.best() == theirs.best() and ours.state() == theirs.state()
    mine, their = ours.depth(n=1000), theirs.depth(n=1000)
    same = np.isin(mine.bids.px, their.bids.px).mean(), np.isin(mine.asks.px, their.asks.px).mean()
    assert min(same) > 0.95 and whole.broken == 0


def test_a_cut_itch_file_gives_what_came_before_and_the_offset_of_the_cut(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data / "itch" / "day_start_cut.itch", tmp_path / "j", date=date(2019, 1, 30))
    assert (done.rows, [p.offset for p in done.problems]) == (202, [4081])
    assert "cut" in done.problems[0].reason


def test_damaged_itch_messages_are_told_by_their_offsets(tmp_path: Path) -> None:
    good = message_bytes({"message_type": "D", "stock_locate": 5, "order_reference_number": 9})
    messages = [good] * 2000
    for n in (7, 1500):
        messages[n] = b"?" + good[1:]
    path = tmp_path / "01302019.NASDAQ_ITCH50"
    path.write_bytes(frame(messages))
    done = convert(path, tmp_path / "rows.parquet")
    assert [p.offset for p in done.problems] == [7 * 21, 1500 * 21]
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 1998


def test_damaged_lobster_lines_are_told_by_their_offsets(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "l3").glob("AAPL*_message_10.csv")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[10] = b"nonsense\n"
    copy = tmp_path / path.name
    copy.write_bytes(b"".join(lines))
    done = convert(copy, tmp_path / "rows.parquet")
    assert [p.offset for p in done.problems] == [sum(map(len, lines[:10]))]
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 998, "no book file beside it: nothing was seeded"


# --- destinations -----------------------------------------------------------------------------------------------------


def test_what_is_not_finished_leaves_nothing(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"

    class Stop(Exception):
        pass

    def stop(done: int, size: int, rows: int) -> None:
        if rows > 60_000:
            raise Stop

    for name in ("journal", "rows.parquet", "rows.csv", "rows.npz"):
        with pytest.raises(Stop):
            convert(source, tmp_path / name, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_nothing_that_looks_whole(shared_data: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom hftlab.convert.run import convert\n"
        "convert(sys.argv[1], sys.argv[2], on_progress=lambda done, size, n: n > 60_000 and os.kill(os.getpid(), 9))"
    )
    source, out = shared_data / "binance" / "btcusdt_20240808.gz", tmp_path / "rows.parquet"
    done = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False)
    assert done.returncode == -9
    assert [p.name for p in tmp_path.iterdir()] == [".rows.parquet.part"]
    assert convert(source, out).rows == 191_912
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_what_stands_there_is_replaced_only_when_asked(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "itch" / "synthetic_8009.itch"
    for name in ("journal", "rows.parquet"):
        convert(source, tmp_path / name, date=DAY)
        with pytest.raises(ConfigError, match="exists"):
            convert(source, tmp_path / name, date=DAY)
        assert convert(source, tmp_path / name, date=DAY, overwrite=True).rows == 8_018


def test_a_folder_that_is_not_a_journal_is_never_replaced(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="not a journal; --overwrite does not remove it"):
        convert(shared_data / "itch" / "synthetic_8009.itch", folder, date=DAY, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years"


def test_a_suffix_without_a_format_is_refused_with_those_there_are(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "itch" / "synthetic_8009.itch"
    with pytest.raises(ConfigError, match=r"\.xlsx names no format .*parquet \(\.parquet\)"):
        convert(source, tmp_path / "rows.xlsx", date=DAY)
    with pytest.raises(ConfigError, match=r"expected \.parquet or \.csv"):
        book(source, tmp_path / "rows.npz", date=DAY)
    with pytest.raises(ConfigError, match="there is no folder"):
        convert(source, tmp_path / "absent" / "rows.csv", date=DAY)


def test_a_source_without_book_changes_makes_no_book(shared_data: Path, tmp_path: Path) -> None:
    (path,) = (shared_data / "bars").glob("futures_trades*")
    with pytest.raises(ConfigError, match="changes a book"):
        book(path, tmp_path / "book.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_journal_names_instruments_that_were_met_late_in_a_later_segment(tmp_path: Path) -> None:
    orders = [dbn_mbo(b"A", b"B", n + 1, 5214 * NANO, 1, instrument=5602) for n in range(70_000)]
    orders += [dbn_mbo(b"A", b"B", n + 1, 5214 * NANO, 1, instrument=7) for n in range(70_000)]
    path = tmp_path / "orders.dbn"
    path.write_bytes(dbn_metadata(3, 0, {}) + b"".join(orders))
    source = open_source(path)
    done = convert(source, tmp_path / "journal")
    assert (done.rows, done.instruments) == (140_000, ["5602", "7"])
    again = convert(tmp_path / "journal", tmp_path / "rows.parquet")
    assert again.instruments == ["5602", "7"]
    assert pl.read_parquet(tmp_path / "rows.parquet")["symbol"].unique().sort().to_list() == ["5602", "7"]


def test_a_summary_can_be_read_by_people_and_by_programs(shared_data: Path, tmp_path: Path) -> None:
    done = convert(shared_data / "itch" / "day_start_cut.itch", tmp_path / "j", date=date(2019, 1, 30))
    assert isinstance(done, Conversion)
    assert "1 broken record\n  at byte 4081: the file is cut" in str(done)
    assert done.to_dict()["problems"] == [{"offset": 4081, "reason": done.problems[0].reason}]


def test_prices_that_are_not_there_are_null_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "orders.dbn"
    path.write_bytes(
        dbn_metadata(3, 0, {5602: "ESM4"}) + dbn_mbo(b"A", b"A", 0, (1 << 63) - 1, 0, flags=128 | 64)
    )
    convert(path, tmp_path / "rows.parquet")
    assert pl.read_parquet(tmp_path / "rows.parquet")["px_ticks"].to_list() == [None]
    convert(tmp_path / "rows.parquet", tmp_path / "journal")
    assert read_all(tmp_path / "journal")["px"].tolist() == [NO_PX]


_PEAK = (
    "import resource, sys\nfrom datetime import date\nfrom hftlab.convert.run import book, convert\n"
    "convert(sys.argv[1], sys.argv[2], date=date(2024, 1, 2))\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


@pytest.mark.parametrize("name", ["rows.parquet", "journal"])
def test_memory_does_not_grow_with_the_recording(name: str, shared_data: Path, tmp_path: Path) -> None:
    """100 MB of ITCH, 3 million rows (197 MB), cost less than 130 MB more than 260 KB; 1 GB costs the same."""
    small = shared_data / "itch" / "synthetic_8009.itch"
    large = tmp_path / "large.itch"
    large.write_bytes(small.read_bytes() * 400)
    peaks = []
    for n, source in enumerate((small, large)):
        command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / f"{n}{name}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 130


_PEAK_OF_A_BOOK = _PEAK.replace("convert(sys.argv[1], sys.argv[2], date", "book(sys.argv[1], sys.argv[2], date")


def test_memory_of_a_book_does_not_grow_with_the_recording(shared_data: Path, tmp_path: Path) -> None:
    """Three times as many lines, 230 MB more as numbers, cost less than 40 MB more."""
    small, peaks = shared_data / "itch" / "synthetic_8009.itch", []
    for times in (50, 150):
        large = tmp_path / f"{times}.itch"
        large.write_bytes(small.read_bytes() * times)
        command = [sys.executable, "-c", _PEAK_OF_A_BOOK, str(large), str(tmp_path / f"{times}.parquet")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    lines = [len(pl.read_parquet(tmp_path / f"{times}.parquet", columns=["seq"])) for times in (50, 150)]
    assert lines[1] - lines[0] > 230e6 / 8 / 44 and peaks[1] - peaks[0] < 40


def test_a_recording_is_never_replaced_by_its_own_conversion(tmp_path: Path) -> None:
    source = tmp_path / "day.itch"
    source.write_bytes(frame([message_bytes({"message_type": "D", "order_reference_number": 1})]))
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="is the source itself"):
        convert(source, source, to="csv", date=date(2024, 1, 2), overwrite=True)
    assert source.read_bytes() == before


def _pcap(tmp_path: Path, packets: list[tuple[int, bytes]]) -> Path:
    """Write packets (ns, UDP payload) as a capture of raw IPv4."""
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 101)
    for ns, payload in packets:
        datagram = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload
        addresses = b"\x0a\0\0\x01\x0a\0\0\x02"
        raw = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + addresses + datagram
        out += struct.pack("<IIII", ns // 10**9, ns % 10**9, len(raw), len(raw)) + raw
    path = tmp_path / "day.pcap"
    path.write_bytes(out)
    return path


def test_what_stands_behind_the_last_gap_of_a_packet_capture_is_kept_and_the_gap_told(tmp_path: Path) -> None:
    at = 1_704_205_800 * 10**9
    server = MoldUDPServer("S", keep=100)
    packets = []
    for k in range(20):
        message = message_bytes({"message_type": "D", "stock_locate": 1, "order_reference_number": k})
        packets += [(at + 1000 * k, packet) for packet in server.publish([message], at + 1000 * k)]
    del packets[10]
    done = convert(_pcap(tmp_path, packets), tmp_path / "rows.parquet")
    assert done.rows == 19
    assert done.notes["lost"] == 1


def test_a_line_five_milliseconds_behind_closes_the_gaps_of_the_other(tmp_path: Path) -> None:
    at = 1_704_205_800 * 10**9
    server = MoldUDPServer("S", keep=1000)
    first, second = [], []
    for k in range(100):
        message = message_bytes({"message_type": "D", "stock_locate": 1, "order_reference_number": k})
        for packet in server.publish([message], at + 100_000 * k):
            first.append((at + 100_000 * k, packet))
            second.append((at + 100_000 * k + 5_000_000, packet))
    del first[40]
    done = convert(_pcap(tmp_path, sorted(first + second)), tmp_path / "rows.parquet")
    assert done.rows == 100 and "lost" not in done.notes


def test_a_gap_that_nothing_closes_costs_no_packet_behind_it(tmp_path: Path) -> None:
    at = 1_704_205_800 * 10**9
    server = MoldUDPServer("S", keep=10)
    packets = []
    for k in range(20_000):
        message = message_bytes({"message_type": "D", "stock_locate": 1, "order_reference_number": k})
        packets += [(at + 50_000 * k, packet) for packet in server.publish([message], at + 50_000 * k)]
    del packets[1_000]
    done = convert(_pcap(tmp_path, packets), tmp_path / "rows.parquet")
    assert (done.rows, done.notes["lost"]) == (19_999, 1)


def test_a_capture_of_best_prices_alone_makes_books_of_one_level(tmp_path: Path) -> None:
    path = tmp_path / "quotes.txt"
    line = '{} {{"u":{},"s":"BTCUSDT","b":"610{:02d}.5","B":"1.5","a":"61200.25","A":"2.5"}}\n'
    path.write_text("".join(line.format(1_723_161_253 * NANO + n, n, n) for n in range(50)))
    done = book(path, tmp_path / "book.parquet", depth=2)
    frame = pl.read_parquet(tmp_path / "book.parquet")
    assert done.rows == len(frame) == 50 and frame["bid_px_2"].null_count() == 50
    assert frame["bid_px_1"].to_list() == [61000.5 + n for n in range(50)]
    assert (frame["ask_px_1"] == 61200.25).all() and (frame["ask_qty_1"] == 2.5).all()


def _calls_of_a_book(symbols: int, tmp_path: Path) -> int:
    """Return how many Python functions the book of 8,000 adds, one symbol after another, calls."""
    path = tmp_path / f"{symbols}.itch"
    path.write_bytes(
        frame(
            message_bytes(
                {"message_type": "A", "buy_sell_indicator": "B", "stock_locate": 1 + n % symbols, "shares": 10,
                 "price": 100, "order_reference_number": n}
            )
            for n in range(8_000)
        )
    )  # fmt: skip
    source, calls = open_source(path, date=DAY), 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event.endswith("call")

    sys.setprofile(count)
    try:
        done = book(source, tmp_path / "book.parquet", overwrite=True)
    finally:
        sys.setprofile(None)
    assert done.rows == 8_000 and len(done.instruments) == symbols
    return calls


def test_a_further_symbol_costs_a_book_no_work_in_each_column(tmp_path: Path) -> None:
    _calls_of_a_book(10, tmp_path)  # what is imported and compiled at first
    few, many = (_calls_of_a_book(n, tmp_path) for n in (10, 4_000))
    assert (many - few) / 3_990 < 300, "211 to name it and to write its definition; 40 columns cost 330 more"


def test_symbols_of_two_venues_are_told_apart_and_each_has_its_own_decimals(tmp_path: Path) -> None:
    ticks = [("east", "ABC", "0.25"), ("west", "ABC", "0.001"), ("west", "XYZ", "10")]
    plain = [Instrument(n, v, s, Decimal(t), Decimal("0.1")).to_dict() for n, (v, s, t) in enumerate(ticks)]
    rows = new_rows(4)
    rows["kind"], rows["px"], rows["qty"], rows["instrument"] = Kind.LEVEL, 12345, 7, [0, 1, 2, 9]
    rows["flags"] = int(Flag.BID) | int(Flag.LAST) | int(Flag.COMMIT)
    with JournalWriter(tmp_path / "journal", {"instruments": plain}, fsync_ms=None) as writer:
        writer.append(rows)
    book(tmp_path / "journal", tmp_path / "book.parquet", depth=1)
    told = pl.read_parquet(tmp_path / "book.parquet").select("instrument", "bid_px_1", "bid_qty_1").rows()
    assert told == [("east:ABC", 3086.25, 0.7), ("west:ABC", 12.345, 0.7), ("XYZ", 123450.0, 0.7), ("9", 12345.0, 7.0)]
