"""Secrets of an organisation do not come back in what its jobs report. Not here: logs, which the worker masks."""

import threading
from collections import defaultdict
from typing import Any, cast

from tutelage.jobs.access import Access
from tutelage.jobs.masks import MASK, maskable


class Masking:
    """Masks the secrets of jobs in events and reasons.

    A secret that was changed or deleted stays masked while this process lives: jobs that began before still have it.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._known: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def masked(self, organization: str, value: Any) -> Any:
        """The JSON value with every secret of the organisation replaced, in texts and in names of fields."""
        with self._lock:
            known = self._known[organization]
            # Asked for each time: a job that prints a secret may have begun just after it was set.
            known.update(self._access.environment(organization).values())
            secrets = maskable(known)
        return _masked(value, secrets) if secrets else value


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
