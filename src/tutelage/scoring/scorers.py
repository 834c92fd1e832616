"""Scores of an answer against a target: functions of two texts, 0 to 1.

Not here: getting the answer, a user's own scorers (`functions.py`), scores that need a model (`judges.py`).
"""

import json
import re
from collections.abc import Callable
from typing import Any, cast

from tutelage.errors import ConfigError, DataError

Scorer = Callable[[str, str], float]
"""(answer, target) to a score from 0 to 1."""


def exact_match(answer: str, target: str) -> float:
    """1 if both are the same text, white space around them aside; else 0."""
    return float(answer.strip() == target.strip())


def regex(pattern: str) -> Scorer:
    """A scorer: 1 if the first match of `pattern` in the answer is the target.

    Where the pattern has a group, its first group is compared, else the whole match; white space around both sides
    is left out. No match scores 0. Raises ConfigError for a pattern that is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"regex: {pattern!r} is not a regular expression ({error}); mend the pattern") from error

    def score(answer: str, target: str) -> float:
        match = compiled.search(answer)
        found = match and (match.group(1) if compiled.groups else match.group())
        return float(found is not None and found.strip() == target.strip())

    return score


def json_equal(answer: str, target: str) -> float:
    """1 if both texts are the same JSON value, else 0; an answer that is not JSON scores 0.

    The order of keys doesn't matter, the order of a list does. Numbers are compared by value (1 equals 1.0); true and
    false equal no number. NaN and Infinity, which JSON lacks, are not read. Raises DataError for a target that is not
    JSON.
    """
    expected = parse_target(target, "json_equal")
    try:
        return float(_equal(parse_json(answer), expected))
    except (ValueError, RecursionError):
        return 0.0


def rouge_l(answer: str, target: str) -> float:
    """F-measure of the longest common subsequence of words, 2·LCS / (words of answer + words of target).

    A word is a run of letters, digits and underscores of any script; upper and lower case are the same. 0 where
    either side has no word. ROUGE-L of Lin (2004) with precision and recall weighted alike, no stemming.
    """
    words, expected = _words(answer), _words(target)
    if not words or not expected:
        return 0.0
    return 2 * _common_subsequence(words, expected) / (len(words) + len(expected))


def parse_json(text: str) -> Any:
    """The JSON value of a text. Raises ValueError for other text, NaN and Infinity; RecursionError for deep nests."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def parse_target(target: str, scorer: str) -> Any:
    """The JSON value of a target. Raises DataError, which names the scorer, for a target that is not JSON."""
    try:
        return parse_json(target)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{scorer}: the target {shortened(target)} is not JSON ({error}); mend the target") from error


def unfenced(text: str) -> str:
    """The text without white space around it and without one fence of three backticks, where it is all in one."""
    text = text.strip()
    opening, _, body = text.partition("\n")
    if re.fullmatch(r"```[\w-]*\s*", opening) and body.endswith("```"):
        return body.removesuffix("```").strip()
    return text


def shortened(value: object, limit: int = 80) -> str:
    """The value as Python writes it, cut where that is longer than `limit`: for a sentence that names it."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        ours, theirs = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(one, list) and isinstance(other, list):
        items, others = cast("list[Any]", one), cast("list[Any]", other)
        return len(items) == len(others) and all(map(_equal, items, others))
    # Python's True equals 1.
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _common_subsequence(words: list[str], expected: list[str]) -> int:
    """Length of the longest common subsequence.

    One row of the usual table is one integer, whose zero bits are the columns where the length grows; a word then
    costs four operations on it in place of a loop over `expected` (Hyyrö 2004). Long answers are scored each step.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(expected):
        places[word] = places.get(word, 0) | 1 << place
    all_ones = row = (1 << len(expected)) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & all_ones
    return len(expected) - row.bit_count()
