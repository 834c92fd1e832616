"""A store of files by its address. fsspec has no types, so the one place that knows it is here."""

from collections.abc import Callable
from typing import Any, cast

from fsspec.config import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    conf,  # pyright: ignore[reportUnknownVariableType] - it has no types
)
from fsspec.core import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    split_protocol,  # pyright: ignore[reportUnknownVariableType] - it has no types
    url_to_fs,  # pyright: ignore[reportUnknownVariableType] - it has no types
)
from fsspec.implementations.local import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    LocalFileSystem,  # pyright: ignore[reportUnknownVariableType] - it has no types
)

from tutelage.errors import ConfigError
from tutelage.jobs.addresses import shown

__all__ = ["LocalFileSystem", "cannot_open", "has_objects", "open_store", "put_options", "reason_of"]

S3_OPTIONS: dict[str, Any] = {
    # A store that is silent makes a request fail within two minutes, not within half an hour.
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 2}},
    "max_concurrency": 2,
}
"""What `FSSPEC_S3_…` in the environment does not set."""
S3_TRIES = 2
"""Of each request, on top of those of the library below."""
S3_PART_BYTES = 8 * 1024 * 1024
"""Of a file that is sent; `max_concurrency` of them are in memory."""
_OF_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_OF_S3 = frozenset({"s3", "s3a"})
_PACKAGES = {
    "s3": "tutelage[s3]",
    "s3a": "tutelage[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a folder or of an address such as `s3://bucket/path`, and the path in it.

    Raises ConfigError where it cannot be opened, or the package for this kind of address is missing.
    """
    opened = cast("Callable[..., tuple[Any, str]]", url_to_fs)
    given = conf.get("s3", {})
    of_s3 = {name: value for name, value in S3_OPTIONS.items() if name not in given}
    try:
        # Listings that are kept would not show what other processes did.
        store, path = opened(url, use_listings_cache=False, **(of_s3 if _protocol(url) in _OF_S3 else {}))
    except ImportError as error:
        package = _PACKAGES.get(_protocol(url))
        remedy = f"pip install '{package}'" if package else "install what fsspec needs for it"
        raise ConfigError(f"files: '{shown(url)}' cannot be opened ({error}); {remedy}") from error
    except (ValueError, OSError) as error:
        raise cannot_open(url, error) from error
    if _protocol(url) in _OF_S3:
        store.retries = S3_TRIES
    return store, str(path).rstrip("/")


def has_objects(url: str) -> bool:
    """Whether a file appears there whole or not at all, under a name in a bucket and in no folder."""
    return _protocol(url) in _OF_OBJECTS


def put_options(url: str) -> dict[str, Any]:
    """How a file is to be sent there without having much of it in memory."""
    return {"chunksize": S3_PART_BYTES} if _protocol(url) in _OF_S3 else {}


def cannot_open(url: str, error: Exception) -> ConfigError:
    """The error of a store that cannot be opened, without a password in its address."""
    reason = reason_of(error).replace(url, shown(url))
    return ConfigError(f"files: '{shown(url)}' cannot be opened ({reason}); give a folder or a store fsspec knows")


def reason_of(error: BaseException) -> str:
    """What an error of a store says, on one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(said.split()).rstrip(".")


def _protocol(url: str) -> str:
    split = cast("Callable[[str], tuple[str | None, str]]", split_protocol)
    return split(url)[0] or "file"
