"""Whether an answer is the wanted function call: the rules of the Berkeley Function-Calling Leaderboard in small.

Written here because the leaderboard's own checker needs the schema of each function, which a question file lacks.
Not here: calls in Python's or Java's syntax, several calls in one answer.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

from tutelage.errors import DataError
from tutelage.scoring.scorers import parse_json, parse_target, shortened, unfenced

IGNORED = re.compile(r"[ ,./\-_*^]")
"""Left out of texts before they are compared: "April 1, 2024" is "April 1 2024"."""
LEFT_OUT = ""
"""Among accepted values: the argument may be left out."""


@dataclass(frozen=True)
class _Argument:
    """What may be given. An object among `values`, or in a list among them, is a `dict[str, _Argument]`."""

    values: tuple[Any, ...]
    optional: bool = False


def tool_call_match(answer: str, target: str) -> float:
    """1 if the answer is the wanted call, else 0.

    The answer is one JSON object `{"name": …, "arguments": {…}}` and nothing else; white space around it and one
    fence, a line of three backticks before it and three behind it, are allowed. The target is JSON of one of two forms:

    - one call of the same form: every argument must be given with its value;
    - accepted values, as the leaderboard has them: `{"function": {"argument": [accepted value, …]}}`, also as the only
      item of a list. One of the values must be given; an argument that has `""` among them may be left out. An
      accepted object again has a list of accepted values for each key, also where it is an item of a list.

    The name must be the same to the letter, and so must the names of arguments; one more or one less scores 0.
    Texts are compared without upper case, without spaces and `, . / - _ * ^`, and with `'` as `"`. Where a number with
    a fraction part is wanted (`2.0` too) a whole one of its value will do, never the reverse; true and false are
    no numbers. Lists are compared in order. An empty text is a value only where `""` is accepted and every other
    accepted value is a text. (The leaderboard also has the function's schema, and takes the types from there.)

    Raises DataError for a target of another form.
    """
    name, arguments = _wanted(target)
    try:
        call = parse_json(unfenced(answer))
        return float(_is_call(call) and call["name"] == name and _matches(call["arguments"], arguments))
    except (ValueError, RecursionError):
        return 0.0


def _wanted(target: str) -> tuple[str, dict[str, _Argument]]:
    """Name and arguments of a target of either form."""
    wanted = parse_target(target, "tool_call_match")
    if _is_call(wanted):
        return wanted["name"], _plain_values(wanted["arguments"])
    if isinstance(wanted, list) and len(cast("list[Any]", wanted)) == 1:
        wanted = cast("list[Any]", wanted)[0]
    if isinstance(wanted, dict) and len(cast("dict[str, Any]", wanted)) == 1:
        ((name, arguments),) = cast("dict[str, Any]", wanted).items()
        if isinstance(arguments, dict) and _has_lists(arguments):
            return name, _accepted_values(arguments)
    raise DataError(
        f"tool_call_match: the target {shortened(target)} is no call; give "
        '{"name": …, "arguments": {…}} or {"function": {"argument": [accepted value, …]}}'
    )


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and cast("dict[str, Any]", value).keys() == {"name", "arguments"}
        and isinstance(value["name"], str)
        and isinstance(value["arguments"], dict)
    )


def _plain_values(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _Argument((_plain_values(item),)) for key, item in items}
    return [_plain_values(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def _has_lists(value: Any) -> bool:
    """Whether every object in here has a list of accepted values for each key."""
    if isinstance(value, dict):
        lists = list(cast("dict[str, Any]", value).values())
        return all(isinstance(values, list) and _has_lists(values) for values in lists)
    return all(map(_has_lists, cast("list[Any]", value))) if isinstance(value, list) else True


def _accepted_values(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, list[Any]]", value).items()
        return {key: _argument(values) for key, values in items}
    return [_accepted_values(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def _argument(accepted: list[Any]) -> _Argument:
    texts_only = all(isinstance(value, str) for value in accepted)
    values = tuple(_accepted_values(value) for value in accepted if value != LEFT_OUT or texts_only)
    return _Argument(values, optional=LEFT_OUT in accepted)


def _matches(given: Any, wanted: Any) -> bool:
    """Whether a JSON value is the wanted one; `wanted` is one of the values of an `_Argument`."""
    if isinstance(wanted, dict):
        return isinstance(given, dict) and _match_arguments(
            cast("dict[str, Any]", given), cast("dict[str, _Argument]", wanted)
        )
    if isinstance(wanted, list):
        if not isinstance(given, list):
            return False
        items, values = cast("list[Any]", given), cast("list[Any]", wanted)
        return len(items) == len(values) and all(map(_matches, items, values))
    if isinstance(wanted, str):
        return isinstance(given, str) and _comparable(given) == _comparable(wanted)
    whole_for_fraction = type(given) is int and type(wanted) is float
    return (type(given) is type(wanted) or whole_for_fraction) and given == wanted


def _match_arguments(given: dict[str, Any], wanted: dict[str, _Argument]) -> bool:
    return (
        given.keys() <= wanted.keys()
        and all(wanted[name].optional for name in wanted.keys() - given.keys())
        and all(any(_matches(value, one) for one in wanted[name].values) for name, value in given.items())
    )


def _comparable(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
