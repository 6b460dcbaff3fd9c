"""The served dashboard in headless Chromium, over the journal of a session that lives in another process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev', not installed")

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LIVE_SESSION = Path(__file__).resolve().parent.parent / "dash" / "live_session.py"
TIMEOUT_MS = 30_000  # turns a hang into a failure, nothing more

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser at {CHROMIUM}")


def start(*command: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture
def session(home: Path) -> Iterator[Callable[..., tuple[Path, subprocess.Popen[str]]]]:
    """Return the starter of a session and what ends it."""
    started: list[subprocess.Popen[str]] = []

    def run(*options: object) -> tuple[Path, subprocess.Popen[str]]:
        folder = home / "sessions" / "sim" / "desk"
        process = start(LIVE_SESSION, folder, *options)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return folder, process

    yield run
    for process in started:
        process.communicate(timeout=30)


@dataclass
class Visit:
    """An open page and what it asked for and received."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    received: int = 0

    def wait_for(self, script: str) -> Any:
        """Return the value of `script` once it is truthy."""
        return self.page.wait_for_function(script, timeout=TIMEOUT_MS).json_value()


@pytest.fixture
def visit() -> Iterator[Callable[[Path], Visit]]:
    """Return the opener of a served dashboard."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        served: list[subprocess.Popen[str]] = []

        def run(folder: Path) -> Visit:
            process = start("-m", "hftlab.services.dashboard", folder)
            served.append(process)
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            visit = Visit(browser.new_page(viewport={"width": 1280, "height": 720}))

            def count(payload: Any) -> None:
                visit.received += len(payload)

            def follow(connection: Any) -> None:
                visit.requests.append(connection.url)
                connection.on("framereceived", count)

            visit.page.on("request", lambda request: visit.requests.append(request.url))
            visit.page.on("websocket", follow)
            visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
            visit.page.on(
                "console", lambda m: visit.problems.append(m.text) if m.type in ("error", "warning") else None
            )
            visit.page.goto(url)
            return visit

        yield run
        browser.close()
        for process in served:
            process.terminate()
            process.communicate(timeout=30)


def text_of(visit: Visit, pattern: str) -> Any:
    return visit.page.get_by_text(re.compile(pattern)).first


# The document's own models: what stands on a canvas cannot be read as text
TITLES = "() => [...Bokeh.documents[0]._all_models.values()].filter(m => m.type === 'Title').map(m => m.text)"
POINTS = (
    "() => Math.max(...[...Bokeh.documents[0]._all_models.values()]"
    ".filter(m => m.type === 'ColumnDataSource' && m.data.mid).map(m => m.data.t.length))"
)


def test_the_page_lives_halts_and_asks_nobody_else(
    session: Callable[..., Any], visit: Callable[[Path], Visit], tmp_path: Path
) -> None:
    folder, _ = session("--before", "20")
    seen = visit(folder)
    text_of(seen, "TRADING").wait_for(timeout=TIMEOUT_MS)
    first = seen.wait_for(f"() => {{ const n = ({POINTS})(); return n > 20 ? n : 0 }}")
    titles = seen.page.evaluate(TITLES)
    seen.wait_for(f"() => ({POINTS})() > {first + 10}")
    rows = seen.page.locator("h4 i", has_text="rows").inner_text()
    seen.wait_for(f"() => JSON.stringify(({TITLES})()) !== {json.dumps(json.dumps(titles, separators=(',', ':')))}")
    for start_of_title in ("Book BTCUSDT", "Price USDT · mid", "Position", "P&L net of fees", "Tick to order · p50"):
        assert any(title.startswith(start_of_title) for title in seen.page.evaluate(TITLES)), start_of_title
    for panel in ("Limits used", "Counts", "Feed", "Faults and notes"):
        assert seen.page.locator("h4", has_text=panel).count() == 1
    size = seen.page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size == [1280, 720]
    seen.page.screenshot(path=tmp_path / "trading.png")

    seen.page.get_by_role("button", name="HALT").click()
    text_of(seen, r"halted until resumed: \d+ orders? canceled, 0 still open").wait_for(timeout=TIMEOUT_MS)
    text_of(seen, "^HALTED$").wait_for(timeout=TIMEOUT_MS)
    seen.page.screenshot(path=tmp_path / "halted.png")
    assert seen.page.locator("h4 i", has_text="rows").inner_text() != rows

    hosts = {urlsplit(url).hostname for url in seen.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert any(url.startswith("ws://") for url in seen.requests)
    assert seen.received > 10_000
    assert seen.problems == []
    assert (tmp_path / "halted.png").stat().st_size > 20_000


def test_silence_is_shown_as_silence_and_data_as_stale(
    session: Callable[..., Any], visit: Callable[[Path], Visit], tmp_path: Path
) -> None:
    folder, _ = session("--before", "2", "--quiet-after", "8")
    seen = visit(folder)
    text_of(seen, r"SILENT \d").wait_for(timeout=TIMEOUT_MS)
    text_of(seen, r"stale \d+\.\d s").wait_for(timeout=TIMEOUT_MS)
    hatched = (
        "() => [...Bokeh.documents[0]._all_models.values()].filter(m => m.type === 'BoxAnnotation' && m.visible).length"
    )
    assert seen.wait_for(f"() => ({hatched})() === 4")
    seen.page.screenshot(path=tmp_path / "stale.png")


def test_a_fault_shows_the_strategys_traceback(session: Callable[..., Any], visit: Callable[[Path], Visit]) -> None:
    folder, _ = session("--before", "2", "--fault-after", "2.5")
    seen = visit(folder)
    text_of(seen, "FAULTED").wait_for(timeout=TIMEOUT_MS)
    text_of(seen, "IndexError: list index out of range").wait_for(timeout=TIMEOUT_MS)


def test_a_page_opened_before_its_session_waits_and_then_shows_it(
    session: Callable[..., Any], visit: Callable[[Path], Visit], home: Path
) -> None:
    seen = visit(home / "sessions" / "sim" / "desk")
    text_of(seen, "WAITING").wait_for(timeout=TIMEOUT_MS)
    seen.page.get_by_role("button", name="HALT").click()
    text_of(seen, "not halted by this page").wait_for(timeout=TIMEOUT_MS)
    session("--before", "2")
    text_of(seen, "TRADING").wait_for(timeout=TIMEOUT_MS)
    seen.wait_for(f"() => ({POINTS})() > 20")
