"""Strategies and limits as they are written on a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hftlab.core.errors import ConfigError, StrategyError
from hftlab.notebook.launch import read_endpoints, read_limits, read_params, read_strategy
from hftlab.strategies import maker


def test_a_module_and_a_file_name_the_same_source() -> None:
    path = str(maker.__file__)
    by_module, by_file = (read_strategy(f"{p}:Maker", {"edge_ticks": 2}) for p in ("hftlab.strategies.maker", path))
    assert by_module == by_file
    assert by_module.strategy == {
        "name": "Maker", "source": Path(path).read_text(), "params": {"edge_ticks": 2}, "compiled": True, "version": "",
    }  # fmt: skip


def test_a_strategy_in_free_python_is_not_marked_compiled(tmp_path: Path) -> None:
    path = tmp_path / "free.py"
    path.write_text(
        "import hftlab as hl\nclass Free(hl.PythonStrategy):\n    def on_book(self, ctx, event):\n        return\n"
    )
    assert read_strategy(f"{path}:Free", {}).strategy["compiled"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Maker", "expected path.py:Class, module:Class, or NAME@ALIAS"),
        ("hftlab.strategies.maker:", "expected path.py:Class"),
        ("none.py:Maker", "there is no file none.py"),
        ("no.such.module:Maker", "module 'no.such.module' cannot be found"),
        ("hftlab.none:Maker", "there is no Python module 'hftlab.none'"),
        ("sys:Maker", "there is no Python module 'sys'"),
    ],
)
def test_a_strategy_that_is_not_there_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_strategy(text, {})


def test_a_class_or_a_parameter_that_is_not_there_is_refused_before_anything_starts() -> None:
    with pytest.raises(StrategyError, match="Taker: the source defines no strategy of that name"):
        read_strategy("hftlab.strategies.maker:Taker", {})
    with pytest.raises(ConfigError, match="no parameter 'edge'; there are edge_ticks"):
        read_strategy("hftlab.strategies.maker:Maker", {"edge": 2})


@pytest.mark.parametrize("text", ["edge", "edge=", "=2", "edge=two", "a b=1"])
def test_a_parameter_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected name=number"):
        read_params([text])


def test_limits_come_from_files_and_inline_and_the_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text('[BTCUSDT]\nmax_order = "0.01"\ncollar = 50\norders_per_s = 20\n')
    assert read_limits([str(path), "BTCUSDT:max_order=0.02,max_open_orders=7"]) == {
        "BTCUSDT": {"max_order": "0.02", "collar": "50", "orders_per_s": 20, "max_open_orders": 7}
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[BTCUSDT]\nmax_order = 0.01\n", r'BTCUSDT.max_order is a float; write it as text: max_order = "0.01"'),
        ("max_order = 1\n", "'max_order' is not a table"),
        ("[BTCUSDT]\nmax_order = true\n", "expected decimal text"),
        ("[BTCUSDT\n", "is not TOML"),
    ],
)
def test_a_limits_file_that_is_wrong_says_where(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_limits([str(path)])


@pytest.mark.parametrize("text", ["BTCUSDT", "BTCUSDT:", "BTCUSDT:max_order", ":max_order=1", "BTCUSDT:orders_per_s=x"])
def test_inline_limits_that_are_wrong_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="limits: "):
        read_limits([text])


def test_a_limits_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read \(No such file or directory\)"):
        read_limits(["none.toml"])


def test_addresses_are_read_from_pairs_and_from_the_line_of_a_venue() -> None:
    expected = {"rest": "http://h:1", "stream": "wss://h:2/stream", "ws_api": "ws://h:3?a=b"}
    pairs = ",".join(f"{name}={address}" for name, address in expected.items())
    assert read_endpoints(pairs) == read_endpoints(json.dumps({**expected, "pid": 7})) == expected
    assert read_endpoints(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "endpoints: ''; expected rest=ADDRESS,stream=ADDRESS,ws_api=ADDRESS, or JSON"),
        ("rest=http://h", "expected rest=ADDRESS"),
        ("{", "expected rest=ADDRESS"),
        ('{"rest": "http://h"}', "expected rest=ADDRESS"),
        ("rest=ftp://h,stream=ws://h,ws_api=ws://h", "rest=ftp://h; expected http:// or its TLS form"),
        ("rest=http://h,stream=http://h,ws_api=ws://h", "stream=http://h; expected ws:// or its TLS form"),
    ],
)
def test_addresses_that_are_incomplete_or_of_another_kind_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_endpoints(text)
