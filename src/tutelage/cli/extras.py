"""What a plain `pip install tutelage` does not bring, and how to get it."""

import contextlib
from collections.abc import Generator

from tutelage.errors import ConfigError


@contextlib.contextmanager
def needs(extra: str) -> Generator[None, None, None]:
    """Turns a package that is missing into the one sentence that helps. Raises ConfigError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tutelage":
            raise
        raise ConfigError(f"the package {error.name} is missing; pip install 'tutelage[{extra}]'") from error
