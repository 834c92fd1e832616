"""The one place where programs speak to the server: events, files, what is served. Not here: what they have to say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tutelage.client.errors import ServerError
from tutelage.client.results import NewEvent
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import JobError
from tutelage.worker.programs.outbox import ReportedEvent, Unreachable

TRY_SECONDS = 10.0
"""How long one call is tried again before the outbox hears that the server is away."""


class ClientReport:
    """A `Report` over HTTP, with the address and the token that the worker gave this process.

    Raises JobError without a run.
    """

    def __init__(self, run_id: str, api: WorkerApi | None = None) -> None:
        if not run_id:
            raise JobError("TUTELAGE_RUN_ID is not set; programs are started by a worker")
        self._run_id = run_id
        self._api = api or WorkerApi(patience=TRY_SECONDS)

    def upload(self, path: Path, purpose: str) -> str:
        try:
            return self._api.upload(path, purpose).id
        except ServerError as error:
            raise Unreachable(str(error)) from error

    def send(self, events: Sequence[ReportedEvent]) -> None:
        try:
            self._api.append_events(self._run_id, [NewEvent(one.id, dict(one.data), one.file) for one in events])
        except ServerError as error:
            raise Unreachable(str(error)) from error

    def serve(self, port: int, models: Mapping[str, str]) -> None:
        """Say that this run serves models. models: name asked for to name upstream. Raises like `send`."""
        try:
            self._api.serving(self._run_id, port, models)
        except ServerError as error:
            raise Unreachable(str(error)) from error

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return self._api.transport.is_loopback
