"""The calls of a worker: claim, keep, report, finish; files by id. Not here: running anything (`tutelage.worker`)."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage.client.files import Files
from tutelage.client.http import Transport, path_of
from tutelage.client.results import ClaimedJob, Event, File, Me, NewEvent, decoded, decoded_list
from tutelage.errors import NotFoundError
from tutelage.jobs.records import Job, Renewal, Run, Worker
from tutelage.jobs.requirements import Offer
from tutelage.jobs.status import JobStatus

WORKER_PATIENCE_SECONDS = 600.0
"""How long what a worker has to say is kept and said again: a server may be moved meanwhile."""
HEARTBEAT_PATIENCE_SECONDS = 10.0
"""A heartbeat is soon followed by the next one."""
MAX_LOG_PART = 4 * 1024 * 1024
MAX_EVENTS = 1000
LONGEST_WAIT_SECONDS = 25.0


class WorkerApi:
    """base_url, token, sleep: see `Transport`. patience: seconds for which calls are tried again.

    Every call may be made again after a lost answer; nothing happens twice. All raise ConnectionFailed and ServerError
    once patience is over, AccessError for a token that may not, and FencedError where a run was given up: stop it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        patience: float = WORKER_PATIENCE_SECONDS,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.transport = Transport(base_url, token, patience=patience, sleep=sleep)
        self.files = Files(self.transport, lambda: self.organization_id)

    @cached_property
    def organization_id(self) -> str:
        """Of the token. Asked for once."""
        return self.me().organization.id

    def me(self) -> Me:
        """Whose token this is, its scopes, the server's version."""
        return decoded(Me, self.transport.request("GET", "/api/me"))

    def trained_as(self, name: str) -> str | None:
        """The reference of the newest model that was to be called so (`finetuned_model_id`); None where none was."""
        try:
            return str(self.transport.request("GET", path_of("v1", "models", name))["id"])
        except NotFoundError:
            return None

    def register(self, name: str, version: str, offer: Offer, *, cost_per_hour: float = 0.0) -> Worker:
        """Begin as a worker. cost_per_hour: US dollars."""
        body = {"name": name, "version": version, "cost_per_hour": cost_per_hour, **offer.as_json()}
        return decoded(Worker, self.transport.request("POST", "/api/workers", json=body))

    def report(self, worker_id: str, *, cached_models: Sequence[str], disk_free_gb: float | None) -> Worker:
        """What the worker has now."""
        body = {"cached_models": list(cached_models), "disk_free_gb": disk_free_gb}
        return decoded(Worker, self.transport.request("PATCH", path_of("api", "workers", worker_id), json=body))

    def stop(self, worker_id: str, reason: str, *, patience: float | None = None) -> Worker:
        """The worker ends: it claims nothing more."""
        path = path_of("api", "workers", worker_id, "stop")
        return decoded(Worker, self.transport.request("POST", path, json={"reason": reason}, patience=patience))

    def claim(
        self, worker_id: str, run_id: str, *, wait: float = LONGEST_WAIT_SECONDS, job_id: str | None = None
    ) -> ClaimedJob | None:
        """The next job, as a run with this id (`run-` and 32 hexadecimal digits); None where none came within `wait`
        seconds. The same run_id gets the same job again. job_id: the only one it may be."""
        body = {"worker_id": worker_id, "run_id": run_id, "wait": min(wait, LONGEST_WAIT_SECONDS), "job_id": job_id}
        answer = self.transport.request("POST", "/api/claims", json=body)
        return None if answer is None else decoded(ClaimedJob, answer)

    def heartbeat(self, run_id: str, *, patience: float = HEARTBEAT_PATIENCE_SECONDS) -> Renewal:
        """Keep the run for another lease, and hear whether it is to be canceled."""
        path = path_of("api", "runs", run_id, "heartbeat")
        return decoded(Renewal, self.transport.request("POST", path, json={}, patience=patience))

    def finish(
        self,
        run_id: str,
        status: JobStatus,
        *,
        exit_code: int | None = None,
        reason: str | None = None,
        patience: float | None = None,
    ) -> Job:
        """The run has ended; pending gives its job back."""
        body = {"status": status.value, "exit_code": exit_code, "reason": reason}
        path = path_of("api", "runs", run_id, "finish")
        return decoded(Job, self.transport.request("POST", path, json=body, patience=patience))

    def serving(self, run_id: str, port: int, models: Mapping[str, str]) -> Run:
        """The run answers chat completions on a port of this machine. models: name asked for to name served."""
        body = {"port": port, "models": dict(models)}
        return decoded(Run, self.transport.request("PUT", path_of("api", "runs", run_id, "serving"), json=body))

    def append_log(self, run_id: str, start: int, content: bytes, *, patience: float | None = None) -> int:
        """Send a part of the log that begins at the offset `start`; where the next one has to begin.

        An answer that is not `start + len(content)` says from where to send again.
        """
        end = start
        for at in range(0, len(content), MAX_LOG_PART):
            part = content[at : at + MAX_LOG_PART]
            answer: Any = self.transport.request(
                "POST",
                path_of("api", "logs", run_id),
                params={"start": start + at},
                content=part,
                patience=patience,
            )
            end = int(answer["end"])
            if end != start + at + len(part):
                break
        return end

    def append_events(self, run_id: str, events: Sequence[NewEvent], *, patience: float | None = None) -> int:
        """Report events; how many of them were new."""
        return report_events(self.transport, run_id, events, patience=patience)

    def job(self, job_id: str) -> Job:
        """Raises NotFoundError."""
        return decoded(Job, self.transport.request("GET", path_of("api", "jobs", job_id)))

    def runs(self, job_id: str, *, limit: int = 100) -> list[Run]:
        """The newest runs of a job, newest last."""
        return decoded_list(Run, self.transport.request("GET", "/api/runs", params={"job_id": job_id, "limit": limit}))

    def events(self, *, run_id: str | None = None, job_id: str | None = None) -> list[Event]:
        """All events of a run or of a job, oldest first."""
        return events_of(self.transport, run_id=run_id, job_id=job_id)

    def download(self, file_id: str, path: str | os.PathLike[str], *, patience: float | None = None) -> Path:
        """See `Files.download`: whole or not at all, checked by its id."""
        return self.files.download(file_id, path, patience=patience)

    def upload(self, path: str | os.PathLike[str], purpose: str, *, patience: float | None = None) -> File:
        """See `Files.upload`."""
        return self.files.upload(path, purpose, patience=patience)

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()


def events_of(transport: Transport, *, run_id: str | None, job_id: str | None) -> list[Event]:
    """All events, page by page, oldest first."""
    found: list[Event] = []
    while True:
        after = found[-1].id if found else 0
        asked = {"run_id": run_id, "job_id": job_id, "after": after, "limit": MAX_EVENTS}
        page = transport.request("GET", "/api/events", params=asked)
        found += decoded_list(Event, page)
        if not page.get("has_more") or not page["data"]:
            return found


def report_events(
    transport: Transport, run_id: str, events: Sequence[NewEvent], *, patience: float | None = None
) -> int:
    """Report events, at most MAX_EVENTS in a call; how many of them were new."""
    added = 0
    for at in range(0, len(events), MAX_EVENTS):
        body = {"run_id": run_id, "events": [asdict(event) for event in events[at : at + MAX_EVENTS]]}
        added += int(transport.request("POST", "/api/events", json=body, patience=patience)["added"])
    return added
