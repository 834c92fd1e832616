"""What is wrong with options, as a sentence that a user can act on. Not here: the options themselves."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tutelage.errors import ConfigError, nearest

Options = TypeVar("Options", bound=BaseModel)


def checked(model: type[Options], options: Mapping[str, Any], place: str) -> Options:
    """The options as a model. Raises ConfigError: the place, every fault, the known key nearest to a wrong one."""
    try:
        return model.model_validate({str(key): value for key, value in options.items()})
    except ValidationError as error:
        raise ConfigError(f"{place}: {sentence_of(error, known=model.model_fields, if_missing='add it')}") from error


def sentence_of(
    error: ValidationError,
    prefix: str = "",
    known: Iterable[str] = (),
    if_missing: str = "add it to the config or pass --set {key}=…",
) -> str:
    """Every fault of a pydantic error in one sentence: key, value, what is wrong.

    prefix: of every key. known: the keys there are. if_missing: the remedy for a key that must be there.
    """
    parts: list[str] = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if not key:
            parts.append(message)
        elif fault["type"] == "missing":
            # Only options that stand alone can be set from the command line.
            remedy = if_missing.format(key=key) if len(fault["loc"]) == 1 else "add it"
            parts.append(f"{prefix}{key} is missing; {remedy}")
        elif fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1 and known:
            names = list(known)
            parts.append(f"'{prefix}{key}' is not an option{nearest(key, names) or '; one of ' + ', '.join(names)}")
        else:
            parts.append(f"{prefix}{key}: {fault['input']!r:.100} does not fit; {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
