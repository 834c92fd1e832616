"""JSON from outside as every database keeps it: finite numbers, no NUL, no half surrogate pairs, not too deep."""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from tutelage.errors import JobError

_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
MAX_DEPTH = 64
LARGEST_INTEGER = 2**63 - 1


def require_finite(value: Any, what: str) -> None:
    """Raises JobError for NaN and infinities anywhere in a value: null would mean a default."""
    if isinstance(value, float) and not math.isfinite(value):
        raise JobError(f"{what}: {value} is no finite number; give one")
    if isinstance(value, Mapping):
        for name, item in cast("Mapping[Any, Any]", value).items():
            require_finite(item, f"{what}.{name}"[:200])
    if isinstance(value, list | tuple):
        for number, item in enumerate(cast("list[Any]", value)):
            require_finite(item, f"{what}[{number}]"[:200])


def cleaned(value: Any, what: str, depth: int = 0) -> Any:
    """The value with NaN and infinities as null and unstorable characters as U+FFFD; integers beyond 64 bits as
    floats.

    what: what errors call it. Raises JobError for nesting beyond 64 levels and for what JSON has no form for.
    """
    if depth > MAX_DEPTH:
        raise JobError(f"{what}: nested more than {MAX_DEPTH} levels deep; store it as a file")
    if isinstance(value, str):
        return cleaned_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_INTEGER else cleaned(_as_float(value), what, depth)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        return {cleaned_text(str(key)): cleaned(item, what, depth + 1) for key, item in pairs}
    if isinstance(value, list | tuple):
        return [cleaned(item, what, depth + 1) for item in cast("list[Any]", value)]
    raise JobError(f"{what}: {type(value).__name__} has no form in JSON; give numbers, texts, lists and objects")


def cleaned_text(text: str) -> str:
    """The text without what PostgreSQL or UTF-8 have no place for."""
    return _UNSTORABLE.sub("\ufffd", text)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
