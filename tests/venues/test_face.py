"""What every face reads from its clients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hftlab.testing import targets_binance, targets_coinbase, targets_kraken
from hftlab.testing.fuzz import Feed
from hftlab.venues.face import read_json

Make = Callable[[], tuple[Feed, list[bytes]]]
FACES: list[Make] = [
    targets_binance.TARGETS["binance-face"], targets_coinbase.TARGETS["coinbase_face"],
    targets_kraken.TARGETS["kraken-face"],
]  # fmt: skip


@pytest.mark.parametrize("text", ['{"id":"\\ud800"}', b'{"id":"\\ud800"}', b'{"id":"\xed\xa0\x80"}', b"{", "", b"\xff"])
def test_half_a_surrogate_pair_is_as_little_json_as_noise(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)


def test_whole_characters_pass_in_every_spelling() -> None:
    plain = '{"id":"\U0001f600 \u00e9"}'
    for text in ('{"id":"\\ud83d\\ude00 \\u00e9"}', plain, plain.encode()):
        assert read_json(text) == {"id": "\U0001f600 \u00e9"}


@pytest.mark.parametrize("make", FACES)
@pytest.mark.parametrize("half", [b"\\ud800", b"\xed\xa0\x80"])
def test_no_face_falls_over_half_a_surrogate_pair(make: Make, half: bytes) -> None:
    feed, seeds = make()
    for seed in seeds:
        for quoted in {part for part in seed.split(b'"')[1::2] if part}:
            feed(seed.replace(b'"' + quoted + b'"', b'"' + half + quoted + b'"'))
