"""A store of files by its address. fsspec has no types, so the one place that knows it is here."""

from collections.abc import Callable
from typing import Any, cast

from fsspec.core import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    url_to_fs,  # pyright: ignore[reportUnknownVariableType] - it has no types
)
from fsspec.implementations.local import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    LocalFileSystem,  # pyright: ignore[reportUnknownVariableType] - it has no types
)

__all__ = ["LocalFileSystem", "open_store"]


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a folder or of an address such as `s3://bucket/path`, and the path in it.

    Raises ImportError where the package for this kind of address is missing, ValueError where there is none.
    """
    opened = cast("Callable[[str], tuple[Any, str]]", url_to_fs)
    store, path = opened(url)
    return store, str(path)
