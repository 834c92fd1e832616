"""What both outside harnesses need: to be installed, to be quiet, answers that end at a text.

Not here: either of them.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tutelage.errors import ConfigError


def require_package(module: str, package: str, extra: str) -> None:
    """Raises ConfigError where `module` is not installed, with the command that installs it."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{extra}: the package {package} is not installed; pip install 'tutelage[{extra}]'")


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Nothing is written to the terminal inside: no progress bars, prints and log lines of the named loggers.

    Errors are raised, not printed, so nothing is lost with them.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: BaseException) -> str:
    """What an outside error says, in a length that fits into a sentence."""
    text = str(error).strip()
    return (text.splitlines()[0][:200] if text else "no message").rstrip(".") + f", {type(error).__name__}"


def cut_at(text: str, until: Sequence[str]) -> str:
    """What stands before the first of the texts."""
    for stop in until:
        text = text.partition(stop)[0]
    return text


def ends_with_one_of(tokenizer: Any, until: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """For `generate`'s `stop_when`. Saves time and changes no answer, which is cut at such a text anyway (`cut_at`).

    So looking at the last tokens is enough, and a text that is noticed late costs a token.
    """
    if not until:
        return None
    tail = max(len(text.encode()) for text in until) + 1

    def is_done(response: list[int]) -> bool:
        text = str(tokenizer.decode(response[-tail:]))
        return any(stop in text for stop in until)

    return is_done
