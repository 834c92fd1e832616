"""A store of files by its address. fsspec has no types, so the one place that knows it is here."""

from collections.abc import Callable
from typing import Any, cast

from fsspec.core import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    url_to_fs,  # pyright: ignore[reportUnknownVariableType] - it has no types
)
from fsspec.implementations.local import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    LocalFileSystem,  # pyright: ignore[reportUnknownVariableType] - it has no types
)

from tutelage.errors import ConfigError
from tutelage.jobs.addresses import shown

__all__ = ["LocalFileSystem", "cannot_open", "open_store"]


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a folder or of an address such as `s3://bucket/path`, and the path in it.

    Raises ConfigError where it cannot be opened, or the package for this kind of address is missing.
    """
    opened = cast("Callable[[str], tuple[Any, str]]", url_to_fs)
    try:
        store, path = opened(url)
    except (ImportError, ValueError, OSError) as error:
        raise cannot_open(url, error) from error
    return store, str(path)


def cannot_open(url: str, error: Exception) -> ConfigError:
    """The error of a store that cannot be opened, without a password in its address."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).replace(url, shown(url))
    return ConfigError(f"files: '{shown(url)}' cannot be opened ({reason}); give a folder or a store fsspec knows")
