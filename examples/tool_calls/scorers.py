"""A scorer of this example's own: whether an answer is a call at all."""

import json


def is_call(answer: str, target: str) -> float:
    """1 for one JSON object with a name and arguments, whatever these are."""
    try:
        call = json.loads(answer)
    except ValueError:
        return 0.0
    return float(
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and isinstance(call["name"], str)
        and isinstance(call["arguments"], dict)
    )
