"""What runs report: events and the newest value of each of their fields. Appending twice is appending once.

Not here: the text a process prints (`run_logs.py`).
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update

from tutelage.errors import JobError
from tutelage.jobs.database import Database
from tutelage.jobs.newest_values import merged
from tutelage.jobs.plain_json import cleaned, cleaned_text
from tutelage.jobs.records import Event, Series
from tutelage.jobs.rows import AnyRow, event_of, insert_new, require_job, require_live_run, require_run
from tutelage.jobs.tables import events, runs

MAX_EVENT_BYTES = 256 * 1024
MAX_CLIENT_ID = 200


@dataclass(frozen=True)
class NewEvent:
    """An event as it is reported. client_id: chosen by whoever reports it, unique in the run."""

    client_id: str
    data: Mapping[str, Any]
    file: str | None = None


class EventLog:
    """The events of all runs."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def append(self, organization: str, run_id: str, new: Sequence[NewEvent]) -> int:
        """Take events of a run in; how many of them were new.

        Raises NotFoundError, FencedError, and JobError for one that is too large.
        """
        rows: dict[str, dict[str, Any]] = {}
        for event in new:
            row = _row(run_id, event)
            rows.setdefault(row["client_id"], row)
        with self.database.writing() as connection:
            run = require_live_run(connection, organization, run_id)
            added: list[dict[str, Any]] = []
            if rows:
                # Not looked for before: without statistics PostgreSQL would read all events of the run for that.
                insertion = insert_new(connection, events).returning(events.c.client_id)
                fresh = set(connection.execute(insertion, list(rows.values())).scalars())
                added = [row for client_id, row in rows.items() if client_id in fresh]
            if added:
                latest = merged(run.latest, (row["data"] for row in added))
                connection.execute(update(runs).where(runs.c.id == run_id).values(latest=latest))
            return len(added)

    def of_run(self, organization: str, run_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events of a run behind the one with id `after`, oldest first. Raises NotFoundError."""
        with self.database.reading() as connection:
            require_run(connection, organization, run_id)
            return _page(connection, [run_id], after, limit)

    def of_job(self, organization: str, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events of all runs of a job, oldest first. Raises NotFoundError."""
        with self.database.reading() as connection:
            require_job(connection, organization, job_id)
            return _page(connection, list(_runs_of(connection, job_id)), after, limit)

    def newest_of_job(
        self, organization: str, job_id: str, *, before: int | None = None, limit: int = 20
    ) -> list[Event]:
        """Events of all runs of a job in front of the one with id `before`, newest first. Raises NotFoundError."""
        return self._newest(organization, job_id, [], before, limit)

    def checkpoints_of_job(
        self, organization: str, job_id: str, *, before: int | None = None, limit: int = 20
    ) -> list[Event]:
        """Those that tell of a checkpoint that can be used as a model, newest first. Raises NotFoundError."""
        usable = [events.c.tag == "checkpoint", events.c.data["checkpoint"].as_string().is_not(None)]
        return self._newest(organization, job_id, usable, before, limit)

    def _newest(
        self, organization: str, job_id: str, conditions: list[ColumnElement[bool]], before: int | None, limit: int
    ) -> list[Event]:
        with self.database.reading() as connection:
            require_job(connection, organization, job_id)
            query = select(events).where(events.c.run_id.in_(list(_runs_of(connection, job_id))), *conditions)
            if before is not None:
                query = query.where(events.c.id < before)
            return [event_of(row) for row in connection.execute(query.order_by(events.c.id.desc()).limit(limit))]

    def latest(self, organization: str, *, job_id: str | None = None, run_id: str | None = None) -> dict[str, Any]:
        """The newest value of each field that is not null, of a run or of all runs of a job. Raises NotFoundError."""
        with self.database.reading() as connection:
            if run_id is not None:
                return dict(require_run(connection, organization, run_id).latest)
            require_job(connection, organization, job_id or "")
            query = select(runs.c.latest).where(runs.c.job_id == job_id).order_by(runs.c.created_at, runs.c.attempt)
            return merged({}, connection.execute(query).scalars())

    def series(self, organization: str, run_id: str, *, points: int = 500) -> list[Series]:
        """Every numeric field over `step`, thinned to about `points` events a tag. Raises NotFoundError.

        The last event of each tag is always among them.
        """
        with self.database.reading() as connection:
            require_run(connection, organization, run_id)
            numbered = (
                select(
                    events.c.id,
                    func.row_number().over(partition_by=events.c.tag, order_by=events.c.id).label("number"),
                    func.count().over(partition_by=events.c.tag).label("count"),
                )
                .where(events.c.run_id == run_id)
                .subquery()
            )
            stride = (numbered.c.count - 1) // points + 1
            rows = connection.execute(
                select(events.c.tag, events.c.step, events.c.data, numbered.c.number)
                .join(numbered, numbered.c.id == events.c.id)
                .where((numbered.c.count - numbered.c.number) % stride == 0)
                .order_by(events.c.id)
            ).all()
        return _series_of(rows)


def _row(run_id: str, event: NewEvent) -> dict[str, Any]:
    data: dict[str, Any] = cleaned(event.data, "event")
    size = len(json.dumps(data))
    if size > MAX_EVENT_BYTES:
        raise JobError(
            f"event of {size} bytes: more than {MAX_EVENT_BYTES} are not taken; log a file: run.log(data, file=…)"
        )
    client_id = cleaned_text(event.client_id)
    if len(client_id) > MAX_CLIENT_ID:
        raise JobError(f"event '{client_id[:40]}…': its id is longer than {MAX_CLIENT_ID} characters; use a UUID")
    step, tag = data.get("step"), data.get("tag")
    return {
        "run_id": run_id,
        "client_id": client_id,
        "created_at": time.time(),
        "tag": tag[:100] if isinstance(tag, str) else "",
        "step": _whole(step),
        "data": data,
        "file_id": cleaned_text(event.file) if event.file is not None else None,
    }


def _whole(step: Any) -> int | None:
    """A step as a whole number; JSON from elsewhere may write 3 as 3.0."""
    if isinstance(step, bool):
        return None
    if isinstance(step, float) and step.is_integer() and abs(step) < 2**53:
        return int(step)
    return step if isinstance(step, int) else None


def _runs_of(connection: Connection, job_id: str) -> Iterable[str]:
    return connection.execute(select(runs.c.id).where(runs.c.job_id == job_id)).scalars()


def _page(connection: Connection, run_ids: list[str], after: int, limit: int) -> list[Event]:
    rows = connection.execute(
        select(events).where(events.c.run_id.in_(run_ids), events.c.id > after).order_by(events.c.id).limit(limit)
    )
    return [event_of(row) for row in rows]


def _series_of(rows: Sequence[AnyRow]) -> list[Series]:
    found: dict[tuple[str, str], Series] = {}
    for row in rows:
        # Without a step, its place among the events of its tag.
        step = row.step if row.step is not None else row.number - 1
        for name, value in row.data.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                series = found.setdefault((row.tag, name), Series(row.tag, name, [], []))
                series.steps.append(float(step))
                series.values.append(float(value))
    return list(found.values())
