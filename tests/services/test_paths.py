"""Where sessions live, and how one is found by its name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from hftlab.core.errors import ConfigError
from hftlab.journal import JournalWriter
from hftlab.services.paths import (
    SessionNotFound,
    archive_session,
    check_socket_path,
    find_session,
    home,
    journal_holder,
    list_sessions,
    session_folder,
)


def lay(mode: str, name: str, at_ns: int) -> Path:
    folder = session_folder(mode, name)
    folder.mkdir(parents=True)
    (folder / "session.json").write_text("{}")
    os.utime(folder / "session.json", ns=(at_ns, at_ns))
    return folder


def test_home_is_what_the_environment_says_or_a_dot_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hftlab.services import paths

    assert paths.home() == home
    monkeypatch.delenv("HFTLAB_HOME")
    assert paths.home() == Path.home() / ".hftlab"


def test_a_relative_home_means_the_same_folder_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFTLAB_HOME", "here")
    assert home() == tmp_path / "here"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "-x", "a b", "x" * 41, "naïve", "a\n"])
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 40 letters"):
        session_folder("sim", name)


def test_an_unknown_mode_is_refused_with_the_modes_there_are() -> None:
    with pytest.raises(ConfigError, match="expected one of sim, paper, live, backtest"):
        session_folder("demo", "x")


def test_sessions_are_listed_newest_first_and_found_in_any_mode(home: Path) -> None:
    old, new, other = lay("sim", "a", 10), lay("paper", "a", 30), lay("sim", "b", 20)
    (home / "sessions" / "sim" / "empty").mkdir()
    assert list_sessions() == [new, other, old]
    assert find_session("a") == new


def test_a_session_that_does_not_exist_is_named_with_those_that_do(home: Path) -> None:
    with pytest.raises(SessionNotFound, match="none yet"):
        find_session("maker")
    lay("sim", "taker", 1)
    with pytest.raises(SessionNotFound, match=r"'maker' under .*; sessions: taker"):
        find_session("maker")


def test_an_archived_session_keeps_its_files_and_leaves_its_name_free(home: Path) -> None:
    moved = []
    for n in range(2):
        folder = lay("sim", "a", 1 + n)
        (folder / "trader.log").write_text(str(n))
        moved.append(archive_session(folder))
        assert not folder.exists() and list_sessions() == []
    assert [path is not None and (path / "trader.log").read_text() for path in moved] == ["0", "1"]
    assert archive_session(session_folder("sim", "a")) is None


def test_a_socket_path_that_the_system_cannot_bind_is_refused_with_the_way_out() -> None:
    assert check_socket_path(Path("/" + "x" * 106)) == "/" + "x" * 106
    with pytest.raises(ConfigError, match=r"108 bytes; .* set HFTLAB_HOME to a shorter folder"):
        check_socket_path(Path("/" + "x" * 107))


def test_the_holder_of_a_journal_is_known_without_its_answer_and_looking_does_not_take_the_lock(home: Path) -> None:
    folder = home / "maker"
    assert journal_holder(folder) == 0, "there is no journal"
    with JournalWriter(folder / "journal", {}, segment_rows=64, fsync_ms=None):
        assert journal_holder(folder) == os.getpid()
    assert journal_holder(folder) == 0
    JournalWriter(folder / "journal", {}, segment_rows=64, fsync_ms=None).close()
    lock = os.open(folder / "journal" / "lock", os.O_RDWR)
    os.ftruncate(lock, 0)
    fcntl.flock(lock, fcntl.LOCK_EX)  # taken, and its number not yet written
    assert journal_holder(folder) == -1
    os.close(lock)
