"""What both outside harnesses need: to be installed, and to be quiet. Not here: either of them."""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator

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
