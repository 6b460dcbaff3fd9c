"""The benchmarks of the hot path run, check themselves, and can fail; no figure is judged here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from hftlab.bench import tick_to_order, wire
from hftlab.bench.run import CheckFailed, run_bench
from hftlab.bench.startup import strategy_edit_s
from hftlab.core.rows import RowArray
from hftlab.venues.binance.orders import OrderCodec


@pytest.mark.parametrize(("name", "module"), [("tick-to-order", tick_to_order), ("wire", wire)])
def test_a_small_run_gives_every_figure(name: str, module: object) -> None:
    told = run_bench(name, scale=0.01, rounds=1)
    assert told["ours"].keys() >= vars(module)["GOALS"].keys()
    assert all(value > 0 for value in told["ours"].values())


def test_a_wrong_price_is_noticed_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OrderCodec.request

    def off_by_one(self: OrderCodec, commands: RowArray, i: int, now_ms: int) -> bytes:
        commands["px"][i] += 1
        return real(self, commands, i, now_ms)

    monkeypatch.setattr(OrderCodec, "request", off_by_one)
    with pytest.raises(CheckFailed, match="with the mid at"):
        tick_to_order._Bench(tmp_path).check(1)


def test_frames_walk_and_leave_no_crossed_level() -> None:
    market = tick_to_order.Market(3)
    mids = []
    for _ in range(50):
        market.frame()
        mids.append(market.mid)
    assert len(set(mids)) > 3 and {abs(a - b) for a, b in itertools.pairwise(mids)} == {3}


def test_answers_cancel_the_old_order_before_they_take_the_new_one() -> None:
    request = b'{"cancelOrigClientOrderId":"h0123abcd-7","newClientOrderId":"h0123abcd-9"}'
    first, second = tick_to_order.answers(request)
    assert b'"x":"CANCELED"' in first and b"h0123abcd-7" in first
    assert b'"x":"NEW"' in second and b"h0123abcd-9" in second


def test_an_edited_strategy_decides_as_edited() -> None:
    assert strategy_edit_s() > 0
