"""Names that follow from contents: the same bytes are one file, the same work is one job."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

HEX_DIGITS = 12
FILE_ID = re.compile(rf"^[a-z][a-z0-9_-]{{0,63}}:file-[0-9a-f]{{{HEX_DIGITS}}}$")
"""What `FileHash.id` gives."""


class FileHash:
    """The id of a file while its bytes go by. organization: files of two organisations are never the same one."""

    def __init__(self, organization: str) -> None:
        self._organization = organization
        self._sha256 = hashlib.sha256()

    def update(self, content: bytes) -> None:
        """The next bytes."""
        self._sha256.update(content)

    def id(self, purpose: str) -> str:
        """`{purpose}:file-{12 hexadecimal digits of SHA-256(bytes, organization)}` of what has gone by."""
        sha256 = self._sha256.copy()
        sha256.update(self._organization.encode())
        return f"{purpose}:file-{sha256.hexdigest()[:HEX_DIGITS]}"

    @property
    def content_hash(self) -> str:
        """SHA-256 of the bytes alone, 64 hexadecimal digits: where they are stored, whoever owns them."""
        return self._sha256.hexdigest()


def job_id(
    prefix: str,
    *,
    kind: str,
    params: Mapping[str, Any],
    mounted_files: Mapping[str, str],
    image: str,
    organization: str,
    suffix: str | None = None,
) -> str:
    """`{prefix}-{12 hexadecimal digits}[-suffix]` of what a job does.

    params: as they were validated, with all defaults, and nothing in them about where or when it runs. mounted_files:
    path in the job's folder to file id. Equal content in another order is the same job.
    """
    content = {"kind": kind, "params": params, "mounted_files": mounted_files, "image": image, "org": organization}
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:HEX_DIGITS]
    return f"{prefix}-{digest}-{suffix}" if suffix else f"{prefix}-{digest}"


def file_ids_in(value: Any) -> set[str]:
    """All ids of files anywhere in a JSON value."""
    if isinstance(value, str):
        return {value} if FILE_ID.fullmatch(value) else set()
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).values()
    elif isinstance(value, list | tuple):
        items = cast("list[Any]", value)
    found: set[str] = set()
    for item in items:
        found |= file_ids_in(item)
    return found


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces, numbers that are equal written alike (1.0 as 1).

    Raises ValueError for what JSON has no form for, such as NaN.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    # A client may send 1 where another sends 1.0; both validate to the same option.
    return int(value) if isinstance(value, float) and value.is_integer() else value
