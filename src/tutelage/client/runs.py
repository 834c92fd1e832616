"""Runs: what an attempt at a job reported, printed and left; and the run that this process is.

Not here: jobs (`jobs.py`).
"""

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

from tutelage.client.files import LOG
from tutelage.client.http import path_of
from tutelage.client.logs import followed_log, log_text
from tutelage.client.results import Event, NewEvent, Series, decoded, decoded_list
from tutelage.client.worker_api import events_of, report_events
from tutelage.errors import JobError, NotFoundError
from tutelage.jobs import records
from tutelage.jobs.identity import FILE_ID
from tutelage.jobs.mounts import place_in

if TYPE_CHECKING:
    from tutelage.client.openweights import OpenWeights

logger = logging.getLogger(__name__)

RUN_VARIABLES = ("TUTELAGE_RUN_ID", "OPENWEIGHTS_RUN_ID")
LOG_PATIENCE_SECONDS = 3600.0
"""How long `Run.log` waits for a server that is away: training is not to stop because of a restart."""
EVENT_PURPOSE = "event"


class RunFields:
    """What is known of a run. status: `in_progress`, `completed`, `failed` or `canceled`. latest: the newest value of
    every field it reported. log_file: what `files.content` takes for its log; None while it printed nothing."""

    id: str
    job_id: str
    worker_id: str | None
    attempt: int
    status: str
    reason: str | None
    exit_code: int | None
    created_at: datetime
    finished_at: datetime | None
    log_bytes: int
    latest: dict[str, Any]

    def __init__(self, record: records.Run) -> None:
        self._take(record)

    def _take(self, record: records.Run) -> None:
        self.record = record
        self.__dict__.update(vars(record))
        self.status = record.status.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, status={self.status!r})"

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    @property
    def log_file(self) -> str | None:
        return f"{LOG}{self.id}" if self.log_bytes else None


class Run(RunFields):
    """A run as it was when it was last asked for."""

    def __init__(self, client: "OpenWeights", record: records.Run) -> None:
        super().__init__(record)
        self._client = client

    def refresh(self) -> "Run":
        """This run as it is now."""
        self._take(self._client.runs.record(self.id))
        return self

    def log(self, data: Mapping[str, Any], file: BinaryIO | str | os.PathLike[str] | None = None) -> None:
        """Report values, and a file with them. When this returns the server has them, once.

        A server that is away is waited for, for LOG_PATIENCE_SECONDS. Raises FencedError where the run was given up or
        has ended: stop. JobError for what is too large or no JSON.
        """
        file_id = None
        if file is not None:
            file_id = self._client.files.create(file, EVENT_PURPOSE, patience=LOG_PATIENCE_SECONDS).id
        event = NewEvent(uuid.uuid4().hex, dict(data), file_id)
        report_events(self._client.http, self.id, [event], patience=LOG_PATIENCE_SECONDS)

    def update(self, status: str | None = None) -> None:
        """End it with this status, as a script may that no worker started. Raises FencedError where it has ended."""
        if status is not None and status != self.status:
            body = {"status": status, "exit_code": None, "reason": None}
            self._client.http.request("POST", path_of("api", "runs", self.id, "finish"), json=body)
            self.refresh()

    @property
    def events(self) -> list[Event]:
        """What it reported, oldest first."""
        return self._client.events.list(run_id=self.id)

    @overload
    def logs(self, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, follow: Literal[True]) -> Iterator[str]: ...
    def logs(self, follow: bool = False) -> str | Iterator[str]:
        """What it printed; with `follow` parts as they come, until it has ended."""
        return followed_log(self._client.http, self.id) if follow else log_text(self._client.http, self.id)

    def series(self, points: int = 500) -> list[Series]:
        """Every number it reported over its steps, thinned to about so many points."""
        path = path_of("api", "runs", self.id, "series")
        return decoded_list(Series, self._client.http.request("GET", path, params={"points": points}))

    def download(self, target_dir: str | os.PathLike[str]) -> list[Path]:
        """Write `RUN_ID.log` and every file it reported, at the path it reported it with; where they are.

        Of two files with one path the newer one counts; a file without a path gets its id as name. A file that was
        deleted on the server is left out with a warning in the log. Raises JobError for a path that leads out of the
        folder, before anything is written, and OutputError.
        """
        folder = Path(target_dir)
        places = {place_in(folder, name): file_id for name, file_id in _files_in(self.events).items()}
        written: list[Path] = []
        if self.refresh().log_file is not None:
            places = {folder / f"{self.id}.log": f"{LOG}{self.id}", **places}
        for path, file_id in places.items():
            try:
                written.append(self._client.files.download(file_id, path))
            except NotFoundError as error:
                logger.warning("%s: left out: %s", path, error)
        return written


class Runs:
    """Calls about runs."""

    def __init__(self, client: "OpenWeights") -> None:
        self._ow = client

    def list(
        self, job_id: str | None = None, worker_id: str | None = None, limit: int = 10, status: str | None = None
    ) -> list[Run]:
        """The newest runs, newest last."""
        asked = {"job_id": job_id, "worker_id": worker_id, "limit": limit, "status": status}
        page = self._ow.http.request("GET", "/api/runs", params=asked)
        return [Run(self._ow, record) for record in decoded_list(records.Run, page)]

    def retrieve(self, run_id: str) -> Run:
        """Raises NotFoundError."""
        return Run(self._ow, self.record(run_id))

    def record(self, run_id: str) -> records.Run:
        """The bare record of a run."""
        return decoded(records.Run, self._ow.http.request("GET", path_of("api", "runs", run_id)))

    def begin_script(self, script: str) -> Run:
        """A run for a script that no worker started, and a job for it. script: its command, for people to see."""
        answer = self._ow.http.request("POST", "/api/runs", json={"script": script}, once=True)
        return Run(self._ow, decoded(records.Run, answer))


class Events:
    """Calls about what runs reported."""

    def __init__(self, client: "OpenWeights") -> None:
        self._ow = client

    def list(self, job_id: str | None = None, run_id: str | None = None) -> list[Event]:
        """All events of a run, or of all runs of a job, oldest first. Raises JobError where neither is given."""
        return events_of(self._ow.http, **_whose(job_id, run_id))

    def latest(
        self, fields: "Sequence[str] | str" = "*", job_id: str | None = None, run_id: str | None = None
    ) -> dict[str, Any]:
        """The newest value of each of these fields, of all with `*`. Those that were never reported are left out."""
        found: dict[str, Any] = self._ow.http.request("GET", "/api/events/latest", params=_whose(job_id, run_id))
        if fields == "*":
            return found
        names = [fields] if isinstance(fields, str) else fields
        return {name: found[name] for name in names if name in found}


def current_run_id() -> str | None:
    """The run that this process belongs to, where a worker started it."""
    return next((os.environ[name] for name in RUN_VARIABLES if os.environ.get(name)), None)


def _whose(job_id: str | None, run_id: str | None) -> dict[str, str | None]:
    if run_id is not None:
        return {"job_id": None, "run_id": run_id}
    if job_id is None:
        raise JobError("whose events? give job_id or run_id")
    return {"job_id": job_id, "run_id": None}


def _files_in(events: Sequence[Event]) -> dict[str, str]:
    """Path to file id; later events win."""
    found: dict[str, str] = {}
    for event in events:
        for file_id in (event.file, event.data.get("file")):
            if isinstance(file_id, str) and FILE_ID.match(file_id):
                path = event.data.get("path")
                found[path if isinstance(path, str) and path else file_id] = file_id
    return found
