"""The report of a journal: what is whole and comes out again, what does not, and what cannot."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from hftlab.backtest.runner import backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.services.replay import is_good, report
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategies.maker import Maker

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")


def test_a_journal_without_its_strategys_source_is_not_called_different(tmp_path: Path) -> None:
    limits = Limits.from_decimals(BTC, CAREFUL_LIMITS["BTCUSDT"])
    backtest(Maker(), MatchingExchange([BTC]), instruments=[BTC], limits=limits, seconds=1, folder=tmp_path / "journal")
    with pytest.raises(ConfigError, match="does not hold the source of its strategy 'Maker'"):
        report(tmp_path)


@pytest.mark.parametrize(("whole", "identical"), [(True, True), (True, False), (False, True)])
def test_a_report_is_good_if_the_journal_is_whole_and_comes_out_again(whole: bool, identical: bool) -> None:
    assert is_good({"journal_verified": whole, "replay_identical": identical}) == (whole and identical)
