"""What a session's specification accepts, and that the file gives back what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hftlab.core.errors import ConfigError
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, read_spec, write_spec
from hftlab.services.supervisor import _Held, _needs_venue
from hftlab.services.trader import _urls
from hftlab.venues.binance.spec import PRODUCTION


def make(**changed: Any) -> SessionSpec:
    plan = {"name": "Maker", "source": "x = 1\n", "params": {}, "compiled": True, "version": ""}
    given: dict[str, Any] = {"name": "m", "mode": "sim", "symbols": ("BTCUSDT",), "strategy": plan}
    given["limits"] = {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]}
    return SessionSpec(**{**given, **changed})


def test_a_specification_is_read_back_as_it_was_written_and_private(home: Path) -> None:
    spec = make(endpoints={"rest": "a", "stream": "b", "ws_api": "c"}, venue_args={"rate": 500})
    folder = write_spec(spec)
    assert read_spec(folder) == spec
    assert (folder / "strategy.py").read_text() == "x = 1\n"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "session.json": 0o600,
        "strategy.py": 0o600,
    }
    assert folder.stat().st_mode & 0o777 == 0o700


def test_paper_without_addresses_means_the_venues_production_and_starts_no_venue(home: Path) -> None:
    spec = read_spec(write_spec(make(mode="paper")))
    assert spec.endpoints is None
    assert _urls(spec, None) == PRODUCTION
    assert not _needs_venue(_Held(spec.folder, spec, dash=False))
    with pytest.raises(ConfigError, match="a sim session needs a running"):
        _urls(make(), None)


def test_addresses_that_are_given_are_used_in_either_mode() -> None:
    given = {"rest": "http://h:1/", "stream": "ws://h:2", "ws_api": "ws://h:3/ws-api/v3"}
    for mode in ("sim", "paper"):
        urls = _urls(make(mode=mode, endpoints=given), None)
        assert (urls.rest, urls.stream, urls.ws_api) == ("http://h:1", "ws://h:2/stream", "ws://h:3/ws-api/v3")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "live"}, "mode: 'live'; expected one of sim, paper"),
        ({"feeds": "thread"}, "feeds: .thread.; expected inline or process"),
        ({"feeds": "process", "feed_processes": 2}, "feed_processes: 2; expected 1 to 1"),
        ({"feeds": "process", "feed_processes": 0}, "feed_processes: 0; expected 1 to 1"),
        ({"feeds": "process", "feed_processes": True}, "feed_processes: True; expected 1 to 1"),
        ({"feed_processes": 2}, "only with feeds = .process."),
        ({"core": -1}, "core: -1; expected the number of a core"),
        ({"core": True}, "core: True; expected the number of a core"),
        ({"symbols": ()}, "expected at least one"),
        ({"symbols": ("BTCUSDT", "BTCUSDT")}, "each once"),
        ({"symbols": ("BTCUSDT", "ETHUSDT")}, "limits: none for ETHUSDT"),
        ({"limits": {**CAREFUL_LIMITS}}, "limits: 'ETHUSDT' is not a symbol of the session"),
        ({"endpoints": {"rest": "a"}}, "expected rest, stream, ws_api"),
        ({"policy": {"on_start": "keep", "on_stop": "cancel"}}, "on_start is 'keep'; expected cancel or adopt"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_expected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changed)


def test_a_name_that_cannot_be_a_folder_is_refused_before_anything_is_written(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"name: '\.\./x'"):
        write_spec(make(name="../x"))
    assert list(home.iterdir()) == []


def test_a_damaged_or_foreign_file_is_refused_with_its_path(home: Path) -> None:
    folder = write_spec(make())
    path = folder / "session.json"
    plain = json.loads(path.read_text())
    for text, message in (
        ("{", "is not JSON"),
        (json.dumps({**plain, "schema": 2}), "another schema than 1"),
        ("[]", "another schema than 1"),
        (json.dumps({**plain, "colour": 1}), "unexpected keyword argument 'colour'"),
        (json.dumps({k: v for k, v in plain.items() if k != "limits"}), r"missing 1 required .* 'limits'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            read_spec(folder)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match="there is no"):
        read_spec(folder)
