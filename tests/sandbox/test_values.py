"""Plain values cross the border unchanged, and agree only in type and value."""

import math
from collections import Counter, deque
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_workbench.sandbox.values import decode, encode, same

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary()
    | st.text(st.characters(exclude_categories=())) | st.decimals(allow_nan=False) | st.fractions() | st.datetimes()
    | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    | st.sets(st.integers() | st.text(), max_size=4)
    | st.lists(inner, max_size=3).map(deque),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_there_and_back(value) -> None:
    line = encode(value)
    assert line.isascii() and "\n" not in line
    back = decode(line)
    assert type(back) is type(value) and same(value, back)


@pytest.mark.parametrize(
    "value",
    [Counter("aab"), frozenset([1, "a"]), {1: 2, (1, 2): [3]}, time(1, 2),
     date(2024, 2, 29), datetime(2024, 1, 1, 12), Decimal("1.50"), Fraction(1, 3), -(10**500), math.nan, -math.inf],
)  # fmt: skip
def test_library_types(value) -> None:
    back = decode(encode(value))
    assert type(back) is type(value) and same(value, back)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), ([1], (1,)), ([1], [1.0]), ({1: 2}, {True: 2}), ({1}, {True}), (1.0, 1.0001), (0.0, 1e-9),
     (math.inf, 1e308), (math.nan, 0.0), ("a", b"a"), ({"a": 1}, {"a": 1, "b": 2}), ([1, 2], [1]), ({1, 2}, frozenset({1, 2})),
     (Counter("a"), {"a": 1}), (math.inf, -math.inf)],
)  # fmt: skip
def test_what_does_not_agree(one, other) -> None:
    assert not same(one, other) and not same(other, one)


def test_floats_agree_within_rounding() -> None:
    assert same(0.1 + 0.2, 0.3) and same(1e300 * 3, 3e300) and same([0.1 * 3], [0.3]) and not same(1e10, 1e10 + 100)
