"""The SDK: what talks to a server over HTTP. Not here: the server, what a job does, storage.

Loaded on first use, since workers need a part of it only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.client.async_client import AsyncClient
    from tutelage.client.job import Job
    from tutelage.client.jobs import Jobs
    from tutelage.client.openweights import Client, OpenWeights, register
    from tutelage.client.runs import Run

__all__ = ["AsyncClient", "Client", "Job", "Jobs", "OpenWeights", "Run", "register"]

_HOMES = {
    "AsyncClient": "async_client",
    "Client": "openweights",
    "Job": "job",
    "Jobs": "jobs",
    "OpenWeights": "openweights",
    "Run": "runs",
    "register": "openweights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage.client' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"tutelage.client.{_HOMES[name]}"), name)
