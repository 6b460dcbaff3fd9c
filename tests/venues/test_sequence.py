"""The sequencing policies against their rules in plain Python, on streams with losses, repeats and reordering."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from hftlab.venues.sequence import UNKNOWN, Chain, Checksum, PlusOne, Range, Sequencing, Unnumbered, Verdict

Message = tuple[int, int, int]

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=30)
ORDER = st.lists(st.integers(0, 29), max_size=40)


def venue_messages(sizes: list[int], start: int = 1) -> list[Message]:
    """Messages as a venue numbers them: (first, last, last of the one before)."""
    messages, known = [], start - 1
    for size in sizes:
        messages.append((known + 1, known + size, known))
        known += size
    return messages


def delivered(sizes: list[int], order: list[int], start: int = 1) -> list[Message]:
    """The same messages in any order, some missing, some twice."""
    messages = venue_messages(sizes, start)
    return [messages[i % len(messages)] for i in order]


@given(SIZES, ORDER, st.integers(0, 40))
def test_range_applies_exactly_the_messages_that_leave_no_id_out(sizes: list[int], order: list[int], at: int) -> None:
    policy, seen = Range(at), set(range(at + 1))
    for first, last, _ in delivered(sizes, order):
        ids = set(range(first, last + 1))
        verdict = policy.check(first, last)
        if ids <= seen:
            assert verdict == Verdict.OLD
        elif min(ids - seen) == max(seen) + 1:
            assert verdict == Verdict.APPLY
            seen |= ids
        else:
            assert verdict == Verdict.GAP
            assert (policy.expected, policy.got) == (max(seen) + 1, first)
        assert policy.last == max(seen)


@given(SIZES, ORDER, st.integers(1, 40))
def test_chain_follows_the_ids_that_messages_name(sizes: list[int], order: list[int], at: int) -> None:
    policy, known, joined = Chain(at), at, False
    for first, last, previous in delivered(sizes, order):
        verdict = policy.check(first, last, previous)
        if not joined:
            expected = Verdict.OLD if last < at else Verdict.APPLY if previous <= at <= last else Verdict.GAP
        else:
            expected = Verdict.OLD if last <= known else Verdict.APPLY if previous == known else Verdict.GAP
        assert verdict == expected
        if verdict == Verdict.APPLY:
            known, joined = last, True
        if verdict == Verdict.GAP:
            assert (policy.expected, policy.got) == (known, previous if joined else first)
        assert policy.last == known


def test_chain_joins_a_snapshot_that_lies_before_the_first_id_of_a_message_but_not_before_the_one_before() -> None:
    for at, first, last, previous, verdict in (
        (100, 104, 105, 99, Verdict.APPLY), (100, 104, 105, 100, Verdict.APPLY), (100, 104, 105, 101, Verdict.GAP),
        (100, 98, 105, 101, Verdict.APPLY), (100, 104, 105, UNKNOWN, Verdict.GAP), (100, 90, 99, 89, Verdict.OLD),
    ):  # fmt: skip
        assert Chain(at).check(first, last, previous) == verdict


@given(st.integers(0, 1000), st.lists(st.integers(-3, 3), max_size=60))
def test_plus_one_applies_each_number_once_and_in_order(at: int, steps: list[int]) -> None:
    policy, known = PlusOne(at), at
    for step in steps:
        number = known + 1 + step
        verdict = policy.check(number)
        assert verdict == (Verdict.APPLY if step == 0 else Verdict.OLD if step < 0 else Verdict.GAP)
        assert (policy.expected, policy.got) == (known + 1, number)
        known += step == 0
        assert policy.last == known


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), max_size=30))
def test_checksum_believes_equal_sums_only(sums: list[tuple[int, bool]]) -> None:
    policy, agreed = Checksum(), UNKNOWN
    for said, right in sums:
        got = said if right else said ^ 1
        assert policy.check(UNKNOWN) == Verdict.APPLY
        assert policy.verify(said, got) == (Verdict.APPLY if right else Verdict.GAP)
        assert (policy.expected, policy.got) == (said, got)
        agreed = said if right else agreed
        assert policy.last == agreed


@given(SIZES, ORDER)
def test_unnumbered_applies_whatever_comes(sizes: list[int], order: list[int]) -> None:
    policy = Unnumbered()
    assert all(policy.check(*message) == Verdict.APPLY for message in delivered(sizes, order))
    assert policy.verify(1, 2) == Verdict.APPLY


@given(st.sampled_from([Range, Chain, PlusOne]), st.integers(1, 10**12))
def test_with_nothing_known_the_next_message_is_the_first(kind: type[Sequencing], start: int) -> None:
    policy = kind()
    assert policy.last == UNKNOWN
    messages = venue_messages([1, 1, 1], start)
    assert [policy.check(*message) for message in messages] == [Verdict.APPLY] * 3
    assert policy.last == messages[-1][1]


@given(st.sampled_from([Range, Chain, PlusOne]), st.integers(2, 20))
def test_a_gap_stays_a_gap_until_the_policy_is_reset(kind: type[Sequencing], missed: int) -> None:
    messages = venue_messages([1] * (missed + 3))
    policy = kind()
    policy.check(*messages[0])
    assert policy.check(*messages[missed]) == Verdict.GAP
    assert policy.check(*messages[missed + 1]) == Verdict.GAP
    assert policy.last == 1
    policy.reset()
    assert policy.check(*messages[missed + 2]) == Verdict.APPLY
