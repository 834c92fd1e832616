"""Secrets of an organisation do not come back in what its jobs report. Not here: logs, which the worker masks."""

import time
from typing import Any, cast

from tutelage.jobs.access import Access
from tutelage.jobs.masks import MASK, maskable

REMEMBERED_SECONDS = 5.0


class Masking:
    """Masks the secrets of jobs in events."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._known: dict[str, tuple[float, list[str]]] = {}

    def masked(self, organization: str, value: Any) -> Any:
        """The JSON value with every secret of the organisation replaced, in texts and in names of fields."""
        secrets = self._secrets(organization)
        return _masked(value, secrets) if secrets else value

    def _secrets(self, organization: str) -> list[str]:
        when, secrets = self._known.get(organization, (0.0, []))
        if time.monotonic() - when > REMEMBERED_SECONDS:
            secrets = maskable(self._access.environment(organization).values())
            self._known[organization] = (time.monotonic(), secrets)
        return secrets


def _masked(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {_masked(key, secrets): _masked(item, secrets) for key, item in pairs}
    if isinstance(value, list):
        return [_masked(item, secrets) for item in cast("list[Any]", value)]
    return value
