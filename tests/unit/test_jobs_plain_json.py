"""JSON from outside, as every database keeps it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import JobError
from tutelage.jobs.plain_json import LARGEST_INTEGER, MAX_DEPTH, cleaned, cleaned_text

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(ANYTHING)
def test_what_comes_out_is_json_that_every_database_takes_and_stays_as_it_is(value: Any) -> None:
    once = cleaned(value, "x")
    text = json.dumps(once, allow_nan=False, ensure_ascii=False)
    assert "\0" not in text
    text.encode()
    assert cleaned(once, "x") == once
    assert json.loads(text) == once


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (math.nan, None),
        (10**400, None),
        (-(10**400), None),
        (LARGEST_INTEGER, LARGEST_INTEGER),
        (LARGEST_INTEGER + 1, 2.0**63),
        (True, True),
        ((1, 2), [1, 2]),
        ({1: "a\0"}, {"1": "a\ufffd"}),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_values(given_: Any, kept: Any) -> None:
    found = cleaned(given_, "x")
    assert found == kept
    assert type(found) is type(kept)


def test_texts() -> None:
    """U+FFFD for each unit that has no place in UTF-8 or PostgreSQL; everything else as it is."""
    assert cleaned_text("a\0\ud800b\udfff\U0001f600\uffff\ufffe") == "a\ufffd\ufffdb\ufffd\U0001f600\uffff\ufffe"


def test_depth_and_kinds() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert cleaned(value, "x") == value
    with pytest.raises(JobError, match="event: nested more than 64 levels deep; store it as a file"):
        cleaned({"a": value}, "event")
    with pytest.raises(JobError, match="event: bytes has no form in JSON; give numbers, texts, lists and objects"):
        cleaned([b"x"], "event")
