"""The command line from outside: what it prints where, and the exit code it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import hftlab
from hftlab.cli import ExitCode
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind, payload_rows
from hftlab.journal import JournalWriter

HEAVY = ("numpy", "numba", "polars", "pandas", "aiohttp", "websockets", "picows", "mlflow", "panel", "rich", "asyncio")
RAISING = """
from hftlab.cli import app, main
from hftlab.core.errors import *
@app.command()
def fail() -> None:
    raise {error}
main()
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("from hftlab.cli import main; main()", *arguments)


def test_importing_hftlab_loads_nothing_heavy() -> None:
    done = python(f"import sys, hftlab; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_public_names_are_imported_when_first_used() -> None:
    code = "import sys, hftlab as hl; a = 'numpy' in sys.modules; hl.ROW; print(a, 'numpy' in sys.modules)"
    assert python(code).stdout == "False True\n"


def test_every_public_name_is_there_listed_and_typed() -> None:
    source = Path(hftlab.__file__).read_text()
    typed = source[source.index("if TYPE_CHECKING:") : source.index("__all__")]
    assert sorted(hftlab._HOME_OF) == hftlab.__all__
    for name in hftlab.__all__:
        assert getattr(hftlab, name) is not None
        assert name in dir(hftlab)
        assert f" {name}" in typed, f"{name} is missing from the imports for type checkers"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hftlab' has no attribute 'Sides'"):
        _ = hftlab.Sides


def test_help_loads_nothing_heavy() -> None:
    code = "import atexit, sys; from hftlab.cli import main\n"
    code += f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)); main()"
    done = python(code, "--help")
    assert done.stderr == "[]\n"
    assert done.returncode == ExitCode.DONE


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout_and_lists_every_exit_code(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    listed = " ".join(done.stdout.split()).partition("Exit codes: ")[2]
    assert [int(part.split()[0]) for part in listed.split("; ")] == [int(code) for code in ExitCode]


def test_version_is_the_packages() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (ExitCode.DONE, f"hftlab {hftlab.__version__}\n")


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-flag"]])
def test_wrong_usage_exits_2_and_says_so_on_stderr(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert arguments[0] in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("ConfigError('tick is 0; expected a Decimal above 0')", 4, "tick is 0; expected a Decimal above 0"),
        ("Refused('kill_switch', 'latched; hftlab resume maker')", 7, "kill_switch: latched; hftlab resume maker"),
        ("VenueError(-2010, 'insufficient balance')", 6, "venue error -2010: insufficient balance"),
        ("JournalError('a.hft: row 7 is torn')", 9, "a.hft: row 7 is torn"),
    ],
)
def test_error_raised_on_purpose_is_one_line_and_its_exit_code(error: str, code: int, line: str) -> None:
    done = python(RAISING.format(error=error), "fail")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"hftlab: {line}\n")


def test_defect_exits_1_and_keeps_its_traceback_in_a_file(home: Path) -> None:
    done = python(RAISING.format(error="KeyError('x')"), "fail")
    assert done.returncode == ExitCode.DEFECT
    (kept,) = (home / "defects").iterdir()
    assert done.stderr == f"hftlab: a defect of ours, KeyError: 'x'; traceback in {kept}\n"
    assert "Traceback" in kept.read_text() and "in fail" in kept.read_text()


def test_defect_whose_traceback_cannot_be_kept_still_exits_1(home: Path) -> None:
    (home / "defects").write_text("a file where the folder should be")
    done = python(RAISING.format(error="KeyError('x')"), "fail")
    assert done.returncode == ExitCode.DEFECT
    assert "its traceback could not be kept" in done.stderr


def test_interrupt_exits_130_without_a_traceback() -> None:
    done = python(RAISING.format(error="KeyboardInterrupt"), "fail")
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return a journal of 30 trades and one TEXT row with a payload, in four sealed segments."""
    rows = np.zeros(30, ROW)
    rows["kind"], rows["px"], rows["qty"], rows["a"] = Kind.TRADE, np.arange(100, 130), 3, np.arange(30)
    rows["flags"] = Flag.BID | Flag.LAST | Flag.COMMIT
    payload = payload_rows(b"hello")
    text = np.concatenate([np.zeros(64, np.uint8), payload.view(np.uint8)]).view(ROW)
    text["kind"][0], text["span"][0], text["flags"][0] = Kind.TEXT, len(payload), Flag.COMMIT
    instrument = Instrument(0, "sim", "A/B", Decimal("0.5"), Decimal(1))
    folder = tmp_path / "journal"
    with JournalWriter(folder, {"instruments": [instrument.to_dict()]}, segment_rows=10, fsync_ms=None) as writer:
        for row in range(30):
            writer.append(rows[row : row + 1])
        writer.append(text)
    return folder


def test_journal_show_prints_every_row_once_with_prices_and_payloads(journal: Path) -> None:
    lines = run("journal", "show", str(journal)).stdout.splitlines()
    assert len(lines) == 31, "the payload row stands on the line of its TEXT"
    assert "px=52.0 " in lines[4] and "A/B" in lines[4]
    assert "TEXT" in lines[30] and "hello" in lines[30]


def test_journal_show_starts_and_stops_where_it_is_told(journal: Path) -> None:
    lines = run("journal", "show", str(journal), "--from", "8", "-n", "5").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["8", "9", "10", "11", "12"]


def test_journal_tail_prints_the_last_rows(journal: Path) -> None:
    lines = run("journal", "tail", str(journal), "-n", "4").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["28", "29", "30"]


def test_journal_tail_follows_a_running_writer(journal: Path) -> None:
    code = "from hftlab.cli import main; main()"
    command = [sys.executable, "-c", code, "journal", "tail", str(journal), "-n0", "-f"]
    row = np.zeros(1, ROW)
    row["kind"], row["flags"] = Kind.CLOCK, Flag.COMMIT
    with JournalWriter(journal, {}, segment_rows=10, fsync_ms=None) as writer:
        done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert done.stdout is not None
            for _ in range(300):  # rows written before the tail had attached are not its to print
                writer.append(row)
                if _readable(done, 0.2):
                    break
            else:
                pytest.fail("the tail printed nothing")
            assert "CLOCK" in done.stdout.readline()
        finally:
            done.kill()
            done.wait()


def _readable(process: subprocess.Popen[str], timeout_s: float) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], timeout_s)[0])


def test_journal_verify_passes_a_whole_journal_and_fails_one_flipped_byte(journal: Path) -> None:
    whole = run("journal", "verify", str(journal), "--json")
    assert whole.returncode == ExitCode.DONE
    assert json.loads(whole.stdout)["ok"] is True
    segment = sorted(journal.glob("*.seg"))[1]
    raw = bytearray(segment.read_bytes())
    raw[raw.index((105 + 10).to_bytes(8, "little"))] ^= 1  # the price of row 15
    segment.write_bytes(raw)
    broken = run("journal", "verify", str(journal))
    assert broken.returncode == ExitCode.CHECK_FAILED
    assert segment.stem in broken.stdout


@pytest.mark.parametrize("command", ["show", "tail", "verify"])
def test_journal_that_does_not_exist_exits_3_and_an_empty_folder_9(command: str, tmp_path: Path) -> None:
    absent = run("journal", command, str(tmp_path / "none"))
    assert (absent.returncode, absent.stdout) == (ExitCode.NOT_FOUND, "")
    assert absent.stderr == f"hftlab: there is no folder {tmp_path / 'none'}\n"
    empty = run("journal", command, str(tmp_path))
    assert empty.returncode == ExitCode.CHECK_FAILED
    assert "is not a journal" in empty.stderr
