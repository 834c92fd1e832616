"""Ids of files and jobs: equal content, equal id, and nothing else."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.jobs.identity import FileHash, canonical_json, file_ids_in, job_id

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
JOB: dict[str, Any] = {
    "kind": "fine_tuning",
    "params": {"loss": "sdft", "r": 16},
    "mounted_files": {"train.jsonl": "conversations:file-0"},
    "image": "tutelage",
    "organization": "org",
}


def test_a_file_is_its_bytes_and_its_organisation() -> None:
    whole, parts = FileHash("org"), FileHash("org")
    whole.update(b"abc")
    for part in (b"a", b"", b"bc"):
        parts.update(part)
    expected = hashlib.sha256(b"abcorg").hexdigest()[:12]
    assert whole.id("conversations") == parts.id("conversations") == f"conversations:file-{expected}"
    assert whole.content_hash == hashlib.sha256(b"abc").hexdigest()
    assert whole.id("result") == f"result:file-{expected}"  # asked twice, and under another purpose
    other = FileHash("other")
    other.update(b"abc")
    assert other.id("conversations") != whole.id("conversations")
    assert other.content_hash == whole.content_hash


def test_a_job_is_what_it_does() -> None:
    first = job_id("ftjob", **JOB)
    assert (
        first
        == "ftjob-"
        + hashlib.sha256(
            b'{"image":"tutelage","kind":"fine_tuning","mounted_files":{"train.jsonl":"conversations:file-0"},"org":"org",'
            b'"params":{"loss":"sdft","r":16}}'
        ).hexdigest()[:12]
    )
    reordered: dict[str, Any] = {"r": 16.0, "loss": "sdft"}
    assert job_id("ftjob", **{**JOB, "params": reordered}) == first
    assert job_id("ftjob", **JOB, suffix="mine") == f"{first}-mine"
    changes: list[dict[str, Any]] = [
        {"kind": "inference"},
        {"params": {"loss": "sft", "r": 16}},
        {"mounted_files": {}},
        {"image": "other"},
        {"organization": "other"},
    ]
    assert len({first, *(job_id("ftjob", **JOB | change) for change in changes)}) == 1 + len(changes)


@given(JSON)
def test_canonical_json_is_one_text_for_one_value(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(list(value))}
        return tuple(map(turned, value)) if isinstance(value, list) else value

    assert canonical_json(value) == canonical_json(turned(value))


@given(JSON, JSON)
def test_different_values_have_different_texts(one: Any, other: Any) -> None:
    """True and 1 are not the same option; 1 and 1.0 are."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, bool) or isinstance(other, bool):
            return one is other
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        return one == other and (type(one) is type(other) or _numbers(one, other))

    assert (canonical_json(one) == canonical_json(other)) == same(one, other)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def test_what_json_has_no_form_for() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": value})


def test_ids_of_files_anywhere_in_a_value() -> None:
    """Whole texts only: an id in the middle of a sentence, or with a newline behind it, names no file."""
    one, other = "conversations:file-0123456789ab", "my_files-2:file-ba9876543210"
    value = {"a": [one, {"b": (other, 1, None)}], one: "key", "c": f"see {one}", "d": f"{one}\n", "e": one[:-1]}
    assert file_ids_in(value) == {one, other}


def test_numbers_of_json_that_are_equal_are_written_alike() -> None:
    """1.0 and 1, -0.0 and 0, 1e3 and 1000 are the same number; true is none."""
    assert canonical_json([1.0, -0.0, 1e3, 1.5]) == canonical_json([1, 0, 1000, 1.5]) == "[1,0,1000,1.5]"
    assert canonical_json([True]) != canonical_json([1])
