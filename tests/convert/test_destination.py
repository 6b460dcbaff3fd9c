"""Destinations that cannot be written are told in words, with the path and what to do, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hftlab.codecs.itch import frame, message_bytes
from hftlab.convert.run import book, convert

_LIMITED = (
    "import resource, signal, sys\nfrom hftlab.convert.run import book, convert\n"
    "from hftlab.core.errors import ConfigError\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    "try:\n    convert(*sys.argv[2:]) if sys.argv[1] == 'convert' else book(*sys.argv[2:], depth=100)\n"
    "except ConfigError as error:\n    sys.exit(str(error))"
)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a million bytes of orders; it has been read, so that the kernels lie in their cache."""
    chance = np.random.default_rng(1)
    kinds = {"message_type": "A", "buy_sell_indicator": "B", "stock_locate": 1, "shares": 10}
    refs, prices = chance.integers(1, 1 << 50, 25_000), chance.integers(1, 400_000, 25_000)
    orders = zip(refs.tolist(), prices.tolist(), strict=True)
    path = tmp_path_factory.mktemp("day") / "01302019.NASDAQ_ITCH50"
    path.write_bytes(
        frame([message_bytes({**kinds, "order_reference_number": ref, "price": px}) for ref, px in orders])
    )
    for name in ("rows.npz", "journal"):
        convert(path, path.with_name(name))
    book(path, path.with_name("book.csv"))
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.npz", "journal"])
def test_a_file_that_cannot_grow_is_told_in_words_and_leaves_nothing(name: str, day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", _LIMITED, "convert", str(day), str(out / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{out / name} cannot be written: files may not grow any larger" in done.stderr
    assert "give another destination" in done.stderr and "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["book.parquet", "book.csv"])
def test_a_book_that_cannot_grow_is_told_in_words_and_leaves_nothing(name: str, day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", _LIMITED, "book", str(day), str(out / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "cannot be written: files may not grow any larger" in done.stderr and list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.npz", "journal"])
def test_a_folder_that_cannot_be_written_in_is_told_in_words(name: str, day: Path) -> None:
    command = [sys.executable, "-c", "from hftlab.cli import main; main()", "convert", str(day), f"/proc/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert f"/proc/{name} cannot be written" in done.stderr and "Expected a folder" in done.stderr
