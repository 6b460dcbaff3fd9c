"""``hftlab convert`` and ``hftlab book``: results, what is said about them, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from hftlab.cli import app
from hftlab.core.errors import ConfigError

runner = CliRunner()


def test_convert_prints_what_was_done_and_what_was_broken(shared_data: Path, tmp_path: Path) -> None:
    source = str(shared_data / "itch" / "day_start_cut.itch")
    told = runner.invoke(app, ["convert", source, str(tmp_path / "day.parquet"), "--date", "2019-01-30"])
    assert told.exit_code == 0
    assert "202 rows of A, AA" in told.stdout and "at byte 4081: the file is cut" in told.stdout
    assert pl.read_parquet(tmp_path / "day.parquet")["kind"].unique().to_list() == ["STATUS"]


def test_strict_exits_9_when_a_record_was_broken(shared_data: Path, tmp_path: Path) -> None:
    source = str(shared_data / "itch" / "day_start_cut.itch")
    arguments = ["convert", source, str(tmp_path / "day"), "--date", "2019-01-30", "--strict", "--json"]
    told = runner.invoke(app, arguments)
    assert told.exit_code == 9
    plain = json.loads(told.stdout)
    assert (plain["schema"], plain["rows"], plain["broken"], plain["problems"][0]["offset"]) == (1, 202, 1, 4081)
    assert (tmp_path / "day" / "000000.seg").exists(), "what could be used is there"


def test_book_writes_columns_in_the_order_that_is_documented(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "book.csv"
    source = str(shared_data / "itch" / "synthetic_8009.itch")
    arguments = ["book", source, "--depth", "2", "--out", str(out), "--date", "2024-01-02", "--symbol", "MSFT"]
    told = runner.invoke(app, arguments)
    assert told.exit_code == 0, told.output
    frame = pl.read_csv(out)
    levels = [f"{side}_{what}_{k}" for k in (1, 2) for side in ("bid", "ask") for what in ("px", "qty")]
    assert frame.columns == ["ts_event", "ts_recv", "instrument", "seq", *levels]
    assert frame["instrument"].unique().to_list() == ["MSFT"] and frame["seq"].is_sorted()


def test_a_source_that_is_not_there_exits_3(tmp_path: Path, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hftlab.cli", "convert", str(tmp_path / "absent"), str(tmp_path / "x.csv")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "there is no file or folder" in done.stderr and "Known are: journal" in done.stderr


def test_a_destination_that_stands_there_is_a_configuration_error(shared_data: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(shared_data / "itch" / "synthetic_8009.itch"), str(tmp_path), "--date", "2024-01-02"]
    told = runner.invoke(app, arguments)
    assert isinstance(told.exception, ConfigError) and "--overwrite" in str(told.exception)
    told = runner.invoke(app, [*arguments[:2], str(tmp_path / "x"), "--date", "yesterday"])
    assert isinstance(told.exception, ConfigError) and "2024-08-08" in str(told.exception)


@pytest.mark.parametrize("before", ["", "import hftlab.convert.run", "import hftlab.convert.source"])
def test_convert_and_book_are_names_of_hftlab_whatever_was_imported_first(before: str) -> None:
    code = (
        f"{before}\nimport hftlab as hl\nfor call in (hl.convert, hl.book):\n    try:\n"
        "        call('absent', 'x.csv')\n"
        "    except Exception as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = [line.split(".")[0] for line in done.stdout.splitlines()]
    assert told == ["there is no file or folder absent"] * 2, done.stderr
