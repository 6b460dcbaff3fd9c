"""The page without a browser: what is drawn, what is sent, what the button does, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("panel", reason="the dashboard needs panel, of the extra 'lab', which is not installed")

from bokeh.document import Document
from bokeh.document.events import ColumnsStreamedEvent, DocumentPatchedEvent

from hftlab.core.errors import ConfigError
from hftlab.dash import make_dashboard, serve
from hftlab.dash.app import _Board
from hftlab.dash.feed import SessionFeed
from hftlab.journal import JournalWriter

START_NS = 1_800_000_000_000_000_000
S = 1_000_000_000


class Page:
    """A board in a document that notes what it would send."""

    def __init__(self, folder: Path) -> None:
        self.board = _Board(SessionFeed(folder), controls=True)
        self.document = Document()
        self.root = self.board.layout.get_root(self.document)
        self.document.add_root(self.root)
        self.sent: list[Any] = []
        self.document.on_change_dispatch_to(self)

    def _document_patched(self, event: DocumentPatchedEvent) -> None:
        self.sent.append(event)

    def tick(self, times: int = 1) -> list[Any]:
        self.sent = []
        for _ in range(times):
            self.board.update()
        return self.sent


@pytest.fixture
def session(make_session: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    """A session under virtual time with 10 s in its journal, in the folder `session.folder`."""
    live = make_session(None)
    with JournalWriter(tmp_path / "journal", live.engine.definitions.to_dict(), fsync_ms=None) as writer:
        live.sink, live.folder = writer, tmp_path
        live.run_synthetic(START_NS + 10 * S)
        yield live


def test_the_ladder_shows_twenty_levels_a_side_and_marks_own_orders(session: Any) -> None:
    page = Page(session.folder)
    page.tick(10)
    data = page.board.ladder._source.data
    bids, asks = session.engine.levels(0, 20)
    instrument = session.engine.definitions.instruments[0]
    assert data["bid_px"] == [f"{instrument.px(int(px)):.2f}" for px in bids[:, 0]]
    assert data["ask_qty"] == [f"{instrument.qty(int(qty)):.5f}" for qty in asks[:, 1]]
    own = {int(o["px"]): int(o["order_qty"] - o["cum_qty"]) for o in session.engine.open_orders()}
    marked = [text for text in [*data["bid_own"], *data["ask_own"]] if text]
    shown = [px for px in own if px in bids[:, 0] or px in asks[:, 0]]
    assert len(marked) == len(shown) > 0
    assert np.isfinite(data["bid_box"] + data["ask_box"]).sum() == len(marked)


def test_an_update_without_news_sends_only_text_and_time(session: Any) -> None:
    page = Page(session.folder)
    page.tick(20)
    events = page.tick(10)
    assert not [e for e in events if type(e).__name__ in ("ColumnDataChangedEvent", "ColumnsStreamedEvent")]


def test_history_is_streamed_and_not_sent_again(session: Any) -> None:
    page = Page(session.folder)
    page.tick(10)
    session.run_synthetic(START_NS + 11 * S)
    events = page.tick(2)
    streamed = [e for e in events if isinstance(e, ColumnsStreamedEvent)]
    lengths = {len(np.asarray(next(iter(e.data.values())))) for e in streamed if "mid" in e.data}
    assert lengths == {10}
    assert len(page.board.price.source.data["t"]) == page.board.feed.samples[0].n


def test_a_hidden_page_is_sent_nothing_and_redrawn_when_it_appears(session: Any) -> None:
    page = Page(session.folder)
    page.tick(10)
    page.board.shown.active = True
    page.board.shown.active = False
    session.run_synthetic(START_NS + 12 * S)
    assert page.tick(10) == []
    page.board.shown.active = True
    page.tick(2)
    assert len(page.board.price.source.data["t"]) == page.board.feed.samples[0].n > 110


def test_every_fill_is_a_mark_up_or_down(session: Any) -> None:
    page = Page(session.folder)
    page.tick(10)
    counts = [len(marks.data_source.data["t"]) for marks in page.board.marks]
    sides = page.board.feed.fills[0].since(0)["side"]
    assert counts == [int((sides == 1).sum()), int((sides == 2).sum())]
    assert [marks.glyph.marker for marks in page.board.marks] == ["triangle", "inverted_triangle"]
    assert sum(counts) == session.engine.counters()["fills"] > 10


def test_history_in_the_browser_is_bounded(session: Any) -> None:
    page = Page(session.folder)
    page.tick(4)
    track = page.board.feed.samples[0]
    for k in range(track.capacity + 500):
        track.append(START_NS + (20 + k) * S // 10, *[1] * 8)
        if k % 1000 == 0:
            page.tick(2)
    page.tick(2)
    assert len(page.board.price.source.data["t"]) == track.capacity


def test_an_axis_stays_while_what_is_drawn_fits_it(session: Any) -> None:
    page = Page(session.folder)
    page.tick(10)
    before = page.board.price.fig.y_range.start, page.board.price.fig.y_range.end
    page.tick(10)
    assert (page.board.price.fig.y_range.start, page.board.price.fig.y_range.end) == before
    assert before[1] - before[0] < 50


def test_halt_without_a_trader_says_that_none_runs(session: Any) -> None:
    page = Page(session.folder)
    asyncio.run(page.board._halt(None))
    page.tick(10)
    assert "not halted by this page" in page.board.line.model.text
    assert "not running" in page.board.line.model.text


def test_a_dashboard_of_nothing_says_what_it_waits_for(tmp_path: Path) -> None:
    layout, update = make_dashboard(tmp_path / "no" / "session", controls=False)
    update()
    assert layout is not None
    board = _Board(SessionFeed(tmp_path / "no" / "session"), controls=False)
    for _ in range(10):
        board.update()
    texts = [board.header.model.text, board.line.model.text, board.price.fig.title.text]
    assert "WAITING" in texts[0] and "it appears when the session starts" in texts[1] and "waiting" in texts[2]
    assert not hasattr(board, "button")


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "example.com"])
def test_only_loopback_is_served(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        serve([tmp_path], address=address)


# --- the process -----------------------------------------------------------------------------------------------------


def dashboard(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hftlab.services.dashboard", *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_process_says_where_it_is_and_ends_on_sigterm(tmp_path: Path) -> None:
    process = dashboard(tmp_path)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    host, port = ready["url"].removeprefix("http://").rstrip("/").split(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    assert ready["pid"] == process.pid and host == "127.0.0.1"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in errors


def test_a_port_in_use_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = dashboard(tmp_path, "--port", taken.getsockname()[1])
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert len(errors.strip().splitlines()) == 1 and "cannot be used" in errors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG, which is Linux's")
def test_a_dashboard_can_be_told_to_end_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'hftlab.services.dashboard', sys.argv[1], "
        "'--die-with-parent'], stdout=subprocess.PIPE); print(p.stdout.readline().decode(), end='', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = json.loads(parent.stdout.readline())["pid"]
    parent.kill()
    parent.communicate(timeout=10)
    for _ in range(400):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        asyncio.run(asyncio.sleep(0.05))
    pytest.fail(f"the dashboard {pid} outlived its parent by 20 s")
