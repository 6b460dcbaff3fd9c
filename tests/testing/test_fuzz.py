"""Mutated input: repeatable, varied, and a failure that says which bytes."""

from __future__ import annotations

import pytest

from hftlab.testing.fuzz import fuzz, inputs, targets


def test_equal_seeds_give_equal_inputs_and_others_differ() -> None:
    messages = [b'{"e":"trade","p":"1.5"}', b"\0\x11binary"]
    once = list(inputs(messages, 500, seed=3))
    assert once == list(inputs(messages, 500, seed=3))
    assert once != list(inputs(messages, 500, seed=4))


def test_inputs_are_mostly_near_misses() -> None:
    message = b"0123456789" * 8
    made = list(inputs([message], 2000))
    assert len(set(made)) > 1500
    assert sum(data[:4] == message[:4] for data in made) > 1000
    assert any(len(data) < 40 for data in made)
    assert any(len(data) > 90 for data in made)


def test_a_decoder_that_raises_is_told_with_its_input() -> None:
    def feed(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("no")

    with pytest.raises(AssertionError, match=r"input \d+ of seed 0: KeyError: 'no'; the bytes are b'"):
        fuzz(feed, [b"abc"], 10_000)


def test_without_seeds_nothing_can_be_mutated() -> None:
    with pytest.raises(ValueError, match="seeds is empty"):
        next(inputs([], 1))


def test_targets_have_seeds_that_their_decoders_take() -> None:
    for make in targets().values():
        feed, seeds = make()
        fuzz(feed, seeds, 10)
