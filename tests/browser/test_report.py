"""A report's file in headless Chromium: the pointer on a fill shows the book of that moment, and nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hftlab.analysis.plots import LEVELS
from hftlab.analysis.report import report
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.engine import Replica
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategies.maker import Maker

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev', not installed")

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TIMEOUT_MS = 30_000  # turns a hang into a failure, nothing more
BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser at {CHROMIUM}")

DRAWN = "() => window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"
# Where fill k is on the page: the price figure is the one whose renderers hold the source of the fills
PLACE = """k => {
  const models = [...Bokeh.documents[0]._all_models.values()]
  const fig = models.find(m => m.type === 'Figure' && m.renderers.some(r => r.data_source?.name === 'fills'))
  const {t, px} = fig.renderers.find(r => r.data_source?.name === 'fills').data_source.data
  const view = Bokeh.index.find_one(fig), box = view.canvas_view.el.getBoundingClientRect()
  return [box.x + view.frame.x_scale.compute(t[k]), box.y + view.frame.y_scale.compute(px[k])]
}"""
# [x from, x to, y from, y to] of each figure over time, that with the fills first
RANGES = """() => [...Bokeh.documents[0]._all_models.values()]
  .filter(m => m.type === 'Figure' && m.window_axis === 'x' && m.y_range.type === 'DataRange1d')
  .map(m => [m.renderers.some(r => r.data_source?.name === 'fills') ? 0 : 1, m]).sort((a, b) => a[0] - b[0])
  .map(pair => pair[1])
  .map(m => [m.x_range.start, m.x_range.end, m.y_range.start, m.y_range.end])"""
LADDER = """() => {
  const source = [...Bokeh.documents[0]._all_models.values()].find(m => m.name === 'levels')
  return [source.tags[0] ?? -1, source.data.bid_px, source.data.bid_qty, source.data.ask_px, source.data.ask_qty]
}"""


@dataclass
class Seen:
    """An open report and what went wrong in it or was asked of others."""

    page: Any
    result: Result
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def book_of(self, shown: list[Any]) -> list[list[str]]:
        """Return the texts that the ladder must show for the fill it says it shows."""
        replica = Replica(self.result.definitions)
        replica.apply(self.result.rows[: int(self.result.fills["seq"][shown[0]])])
        texts = []
        for levels in replica.levels(0, LEVELS):
            for column, step, places in ((0, 0.01, 2), (1, 0.00001, 5)):
                told = [f"{value * step:.{places}f}" for value in levels[:, column].tolist()]
                texts.append(told + [""] * (LEVELS - len(told)))
        return texts

    def point_at(self, fill: int) -> list[Any]:
        """Move the pointer onto a fill and return the ladder once it shows one of those under the pointer."""
        before = self.page.evaluate(LADDER)[0]
        x, y = self.page.evaluate(PLACE, fill)
        self.page.mouse.move(x + 60, y + 60)
        self.page.mouse.move(x, y, steps=4)
        self.page.wait_for_function(f"before => ({LADDER})()[0] !== before", arg=before, timeout=TIMEOUT_MS)
        shown: list[Any] = self.page.evaluate(LADDER)
        return shown


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    limits = Limits.from_decimals(BTC, CAREFUL_LIMITS["BTCUSDT"])
    result = backtest(Maker(), MatchingExchange([BTC], seed=3), instruments=[BTC], limits=limits, seconds=8)
    report(result.rows, result.definitions, tmp_path / "run.html", assumptions=result.assumptions)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        seen = Seen(browser.new_page(viewport={"width": 1440, "height": 3000}), result)
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("pageerror", lambda error: seen.problems.append(str(error)))
        seen.page.on("console", lambda m: seen.problems.append(m.text) if m.type in ("error", "warning") else None)
        seen.page.goto((tmp_path / "run.html").as_uri())
        seen.page.wait_for_function(DRAWN, timeout=TIMEOUT_MS)
        yield seen
        browser.close()


def test_the_pointer_on_a_fill_shows_the_book_just_before_it(seen: Seen) -> None:
    fills = seen.result.fills.height
    assert fills > 10
    shown = seen.point_at(1)
    assert shown[1:] == seen.book_of(shown)
    again = seen.point_at(fills - 2)
    assert again[0] > shown[0] and again[1:] == seen.book_of(again)


def test_a_fill_that_was_tapped_stays_when_the_pointer_leaves(seen: Seen) -> None:
    x, y = seen.page.evaluate(PLACE, 5)
    seen.page.mouse.click(x, y)
    seen.page.mouse.move(5, 5)
    shown = seen.page.evaluate(LADDER)
    assert shown[0] >= 0 and shown[1:] == seen.book_of(shown)


def test_zooming_into_one_figure_moves_all_and_fits_each_to_what_it_shows(seen: Seen) -> None:
    before = seen.page.evaluate(RANGES)
    (x, y), (end, _) = seen.page.evaluate(PLACE, 4), seen.page.evaluate(PLACE, seen.result.fills.height // 2)
    seen.page.mouse.move(x, y + 20)
    seen.page.mouse.down()
    seen.page.mouse.move(end, y + 60, steps=5)
    seen.page.mouse.up()
    moved = f"before => ({RANGES})().every((now, k) => now[1] < before[k][1])"
    seen.page.wait_for_function(moved, arg=before, timeout=TIMEOUT_MS)
    fitted = f"before => ({RANGES})()[0][2] > before[0][2] || ({RANGES})()[0][3] < before[0][3]"
    seen.page.wait_for_function(fitted, arg=before, timeout=TIMEOUT_MS)
    after = seen.page.evaluate(RANGES)
    assert len(after) >= 4 and len({(low, high) for low, high, *_ in after}) == 1


def test_a_report_asks_nobody_and_complains_of_nothing(seen: Seen, tmp_path: Path) -> None:
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.problems == []
    width = seen.page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 1440, "nothing hangs over the right edge"
    seen.page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000
