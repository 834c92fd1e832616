"""Scores of an answer against a target: functions of two texts, 0 to 1. Not here: getting the answer."""

import re
from collections.abc import Callable

from tutelage.errors import ConfigError

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
