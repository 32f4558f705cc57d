"""Token sequences as arrays."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.tokens import as_array, common_length


def test_an_array_of_the_right_type_is_not_copied():
    tokens = array("i", [1, 2])
    assert as_array(tokens) is tokens


@pytest.mark.parametrize("tokens", [[1, 2], (1, 2), range(1, 3), array("q", [1, 2])])
def test_other_sequences_become_one(tokens):
    assert as_array(tokens) == array("i", [1, 2])
    assert as_array(tokens).typecode == "i"


@pytest.mark.parametrize(("tokens", "error"), [([2**31], OverflowError), (["a"], TypeError)])
def test_what_is_no_token_is_refused(tokens, error):
    with pytest.raises(error):
        as_array(tokens)


@given(st.data(), st.integers(1, 200), st.integers(1, 200), st.integers(0, 50))
def test_common_length_finds_the_first_difference(data, key_size, size, pos):
    key = array("i", [1]) * key_size
    tokens = array("i", [1]) * (pos + size)
    for position in data.draw(st.lists(st.integers(0, pos + size - 1), max_size=2)):
        tokens[position] = 2
    expected = next(
        (i for i in range(min(key_size, size)) if tokens[pos + i] != 1), min(key_size, size)
    )
    assert common_length(key, tokens, pos) == expected
