"""The newest value of each field that runs reported, which is what a job's outputs are. Not here: the events.

They are read with every job and run, and written with every event: there is a limit to them, on the whole.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

MAX_FIELDS = 2000
MAX_BYTES = 1024 * 1024
"""Of all newest values together, as JSON. An event alone may be a quarter of it."""


def merged(latest: Mapping[str, Any], data: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest value of each field: those of later events win, null never does.

    A value for which there is no room is replaced by a sentence that says so: an older one is not the newest. Where
    there is no room for that either, the field is left out; its events have it.
    """
    newest, fresh = dict(latest), dict[str, Any]()
    for fields in data:
        fresh |= {name: value for name, value in fields.items() if value is not None}
    size = sum(_size(name, value) for name, value in newest.items())
    for name, value in fresh.items():
        if name in newest:
            size -= _size(name, newest.pop(name))
        elif len(newest) >= MAX_FIELDS:
            continue
        own = _size(name, value)
        for kept in (value, f"left out here for its {own} bytes; look at the events"):
            own = _size(name, kept)
            if size + own <= MAX_BYTES:
                newest[name] = kept
                size += own
                break
    return newest


def _size(name: str, value: Any) -> int:
    return len(json.dumps({name: value}))
