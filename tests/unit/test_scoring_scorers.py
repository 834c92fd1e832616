"""Scorers and traits: numbers worked out by hand, and the rules of tool calls one by one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import ConfigError, DataError
from tutelage.scoring import TRAIT_LANGUAGES, json_equal, rouge_l, tool_call_match, traits
from tutelage.scoring.common_words import COMMON_WORDS


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ('{"a": 1, "b": [true, null]}', ' {"b": [true, null], "a": 1.0}\n', 1.0),
        ("1", "1.0", 1.0),
        ("100000000000000000000", "1e20", 1.0),
        ("1", "true", 0.0),
        ("false", "0", 0.0),
        ("[1]", "[true]", 0.0),
        ('"1"', "1", 0.0),
        ("null", "0", 0.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1, 2]", "[1, 2, 3]", 0.0),
        ('{"a": 1}', '{"a": 1, "b": null}', 0.0),
        ('{"a": {"b": 1}}', '{"a": {"b": 2}}', 0.0),
        ("[]", "{}", 0.0),
        ('"a"', '"A"', 0.0),
        ("", "1", 0.0),
        ("The answer is 1", "1", 0.0),
        ("NaN", "1", 0.0),
        ("[" * 100_000, "1", 0.0),
        ("9" * 5000, "1", 0.0),
    ],
)
def test_json_equal(answer: str, target: str, score: float):
    assert json_equal(answer, target) == score


@pytest.mark.parametrize("target", ["", "{", "NaN", "[" * 100_000])
def test_targets_that_are_not_json(target: str):
    with pytest.raises(DataError, match=r"json_equal: the target '.* is not JSON \(.*\); mend the target"):
        json_equal("1", target)
    with pytest.raises(DataError, match=r"tool_call_match: the target '.* is not JSON"):
        tool_call_match("1", target)


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("the cat sat", "The CAT sat!", 1.0),
        ("the cat sat on the mat", "the dog sat on a mat", 2 * 4 / 12),  # the, sat, on, mat
        ("a b c d", "d c b a", 2 * 1 / 8),
        ("b", "a b c", 2 * 1 / 4),
        ("a a a", "a", 2 * 1 / 4),
        ("x y", "a b", 0.0),
        ("", "a", 0.0),
        ("a", " !? ", 0.0),
        ("", "", 0.0),
        ("Das große Übel", "das GROSSE übel", 1.0),
        ("Η Αθήνα", "η αθήνα είναι", 2 * 2 / 5),
    ],
)
def test_rouge_l(answer: str, target: str, score: float):
    assert rouge_l(answer, target) == pytest.approx(score, abs=1e-12)


def table_length(one: list[str], other: list[str]) -> int:
    """The longest common subsequence by the table of the textbook."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, word in enumerate(one, start=1):
        for column, known in enumerate(other, start=1):
            best = max(table[row - 1][column], table[row][column - 1])
            table[row][column] = table[row - 1][column - 1] + 1 if word == known else best
    return table[-1][-1]


@given(st.lists(st.sampled_from("abcd"), min_size=1), st.lists(st.sampled_from("abcd"), min_size=1))
def test_rouge_l_equals_the_table(one: list[str], other: list[str]):
    expected = 2 * table_length(one, other) / (len(one) + len(other))
    assert rouge_l(" ".join(one), " ".join(other)) == expected == rouge_l(" ".join(other), " ".join(one))


def call(name: str = "f", **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def accepted(**arguments: list[Any]) -> str:
    return json.dumps({"f": arguments})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (call(x=1), 1.0),
        (f"\n  {call(x=1)}\n", 1.0),
        (f"```json\n{call(x=1)}\n```", 1.0),
        (f"\n```\n{call(x=1)}\n```\n", 1.0),
        ('{"arguments": {"x": 1}, "name": "f"}', 1.0),
        (f"```json\n{call(x=1)}```", 1.0),
        (f"```json\n{call(x=1)}", 0.0),
        (f"``` {call(x=1)} ```", 0.0),
        (f"Here it is: {call(x=1)}", 0.0),
        (f"{call(x=1)} {call(x=1)}", 0.0),
        (f"```json\n{call(x=1)}\n```\n```json\n{call(x=1)}\n```", 0.0),
        (f"[{call(x=1)}]", 0.0),
        ('{"f": {"x": 1}}', 0.0),
        ('{"name": "f", "arguments": "{\\"x\\": 1}"}', 0.0),
        ('{"name": "f", "arguments": {"x": 1}, "id": 3}', 0.0),
        ('{"name": "f"}', 0.0),
        ('{"name": "f", "arguments": {"x": 1}', 0.0),
        (call("F", x=1), 0.0),
        (call(X=1), 0.0),
        (call(x=2), 0.0),
        (call(), 0.0),
        (call(x=1, y=1), 0.0),
        ("", 0.0),
        ("null", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_the_form_of_a_tool_call(answer: str, score: float):
    """The same against one call and against accepted values."""
    for target in (call(x=1), accepted(x=[1]), f"[{accepted(x=[1])}]"):
        assert tool_call_match(answer, target) == score


@pytest.mark.parametrize(
    ("given", "wanted", "score"),
    [
        ("san francisco CA", "San Francisco, CA", 1.0),
        ("April 1 2024", "April 1,2024", 1.0),
        ("a-b_c.d/e*f^g", "abcdefg", 1.0),
        ("it's", 'it"s', 1.0),
        ("a;b", "ab", 0.0),
        ("a\tb", "ab", 0.0),
        ("paris", "rome", 0.0),
        ("1", 1, 0.0),
        (1, "1", 0.0),
        (3, 3.0, 1.0),
        (3.0, 3, 0.0),
        (3.0, 3.0, 1.0),
        (0.5, 0.5, 1.0),
        (3, 3.5, 0.0),
        (True, True, 1.0),
        (True, False, 0.0),
        (True, 1, 0.0),
        (1, True, 0.0),
        (True, 1.0, 0.0),
        (None, None, 1.0),
        (None, 0, 0.0),
        ([1, 2], [1, 2], 1.0),
        ([1, 2], [1.0, 2.0], 1.0),
        ([2, 1], [1, 2], 0.0),
        ([1], [1, 2], 0.0),
        (["New York"], ["new-york"], 1.0),
        ("a", ["a"], 0.0),
        ([], {}, 0.0),
        ([[1, "A"]], [[1, "a"]], 1.0),
    ],
)
def test_values_of_a_tool_call(given: Any, wanted: Any, score: float):
    """The same as the value of one call, as the second of two accepted ones, and inside an object of either form."""
    answer = call(x=given)
    assert tool_call_match(answer, call(x=wanted)) == score
    assert tool_call_match(answer, accepted(x=["other", wanted])) == score
    assert tool_call_match(call(x={"k": given}), call(x={"k": wanted})) == score
    assert tool_call_match(call(x={"k": given}), accepted(x=[{"k": ["other", wanted]}])) == score
    assert tool_call_match(call(x=[{"k": given}]), accepted(x=[[{"k": ["other", wanted]}]])) == score


def test_arguments_that_may_be_left_out():
    target = accepted(x=[1], unit=["", "km"], limit=["", 10])
    assert tool_call_match(call(x=1), target) == 1.0
    assert tool_call_match(call(x=1, unit="KM", limit=10), target) == 1.0
    assert tool_call_match(call(x=1, unit=""), target) == 1.0, "every accepted unit is a text"
    assert tool_call_match(call(x=1, limit=""), target) == 0.0, "a limit is a number"
    assert tool_call_match(call(unit="km"), target) == 0.0
    inner = accepted(x=[{"a": [1], "b": ["", 2]}])
    assert [tool_call_match(call(x=value), inner) for value in ({"a": 1}, {"a": 1, "b": 2}, {"b": 2})] == [
        1.0,
        1.0,
        0.0,
    ]


def test_an_empty_text_in_one_call_must_be_given():
    """Only among accepted values does "" mean that the argument may be left out."""
    assert tool_call_match(call(x=""), call(x="")) == 1.0
    assert tool_call_match(call(), call(x="")) == 0.0
    assert tool_call_match(call(x={}), call(x={"k": ""})) == 0.0


def test_functions_without_arguments():
    assert tool_call_match(call(), call()) == tool_call_match(call(), accepted()) == 1.0
    assert tool_call_match(call(x=1), accepted()) == 0.0


@pytest.mark.parametrize(
    "target",
    [
        "1",
        "[]",
        "{}",
        '{"f": {"x": 1}}',
        '{"f": 1}',
        '{"f": {"x": [{"k": 1}]}}',
        '{"f": {}, "g": {}}',
        '[{"f": {}}, {}]',
    ],
)
def test_targets_that_are_no_call(target: str):
    with pytest.raises(DataError, match=r"^tool_call_match: the target '.*' is no call; give \{\"name\": …"):
        tool_call_match(call(), target)


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        ("", "spanish", 0.0),
        ("123 !?", "spanish", 0.0),
        ("ABCD", "spanish", 1.0),
        ("ABcd", "spanish", 0.5),
        ("el perro come pan", "spanish", 1.0),  # 1 of 4 words, times 4
        ("el gato negro duerme ahora aquí mismo hoy", "spanish", 1.0),  # 2 of 8
        ("gato el negro duerme ahora mismo hoy bien", "spanish", 0.5),  # 1 of 8
        ("el de la que", "spanish", 1.0),  # all of them count as a quarter
        ("EL PERRO COME PAN", "spanish", 2.0),
        ("Él x", "spanish", 1 / 3 + 1.0),
        ("E\u0301l x", "spanish", 1 / 3 + 1.0),  # the same in two characters
        ("ich x x x x x x x", "german", 0.5),
        ("le chat x x x x x x", "french", 0.5),
        ("il gatto x x x x x x", "italian", 0.5),
        ("não x x x x x x x", "portuguese", 0.5),
    ],
)
def test_traits(text: str, language: str, value: float):
    assert traits(text, language) == pytest.approx(value, abs=1e-12)


COMMON_IN_ENGLISH = """
    a about after again all also always am an and any are as at back be because been before being but by call can
    car come could day did die do does done down each even every few find first for from get give go good had has
    hat have he her here him his how i if in into is it its just know last less like long look made make man many
    may me mine more most much must my never new no not now of off old on once one only or other our out over own
    part per plus put read said same see she should sin so some son still such sun take ten than that the their them
    then there these they thing think this those time to too two under up us use very want war was way we well went
    were what when where which while who why will with without work would year yes you your
"""


@pytest.mark.parametrize("language", TRAIT_LANGUAGES)
def test_words_of_a_language_are_not_english_and_are_lower_case(language: str):
    words = COMMON_WORDS[language]
    assert words & set(COMMON_IN_ENGLISH.split()) == set()
    assert {word for word in words if word != word.lower()} == set()
    assert 50 <= len(words) <= 90


def test_a_language_that_is_unknown():
    assert TRAIT_LANGUAGES == ("french", "german", "italian", "portuguese", "spanish")
    with pytest.raises(ConfigError, match=r"language 'spanisch' .*; did you mean 'spanish'\?; choose one of french, "):
        traits("a", "spanisch")
