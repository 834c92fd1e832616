"""The newest values of fields: which win, and what there is no room for."""

import json

from tutelage.jobs.newest_values import MAX_BYTES, MAX_FIELDS, merged


def test_later_values_win_and_null_never_does() -> None:
    assert merged({"a": 1, "b": 2}, [{"a": 3, "c": None}, {"b": None, "a": 4}]) == {"a": 4, "b": 2}
    many = merged({}, [{f"field {number}": number} for number in range(MAX_FIELDS + 5)])
    assert len(many) == MAX_FIELDS
    assert f"field {MAX_FIELDS}" not in many


def test_a_value_without_room_is_named_and_not_an_older_one() -> None:
    """Four texts of a quarter of the limit each: the fourth has no room, for the names and quotes around the others."""
    quarter = MAX_BYTES // 4
    kept = merged({"d": "old"}, [{name: "x" * quarter} for name in "abcd"])
    assert {name: len(kept[name]) for name in "abc"} == dict.fromkeys("abc", quarter)
    # {"d": "x…"} is eight characters and two quotes around the text
    assert kept["d"] == f"left out here for its {quarter + 9} bytes; look at the events"
    assert merged(kept, [{"a": 1}, {"d": "y" * quarter}])["d"] == "y" * quarter  # room again
    assert merged(kept, [{"d": 5}])["d"] == 5


def test_there_is_a_limit_whatever_is_reported() -> None:
    """Long names and long values, one event after another."""
    latest: dict[str, object] = {}
    for number in range(40):
        latest = merged(latest, [{f"{number}" + "n" * 100_000: "x" * 100_000, f"short {number}": number}])
        assert len(json.dumps(latest)) <= MAX_BYTES
    assert latest["short 3"] == 3
