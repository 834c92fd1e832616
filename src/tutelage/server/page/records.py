"""Looking up what only the page asks for: files, samples, checkpoints and warnings that runs reported, runs to compare
with, measures of models. Nothing here changes anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select

from tutelage.jobs.database import Database
from tutelage.jobs.records import moment
from tutelage.jobs.rows import AnyRow
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import events, files, jobs, runs, workers

MAX_FILES = 2000
MAX_TAGGED = 50
EVALUATIONS = ("multiple_choice", "logprob", "inspect_ai", "inference")


@dataclass(frozen=True)
class ReportedFile:
    """A file that a run reported. path: in its `uploads/`, or what it was called. bytes: None where it was deleted."""

    file_id: str
    run_id: str
    path: str
    bytes: int | None
    purpose: str | None
    step: int | None
    tag: str
    created_at: datetime | None


@dataclass(frozen=True)
class RunChoice:
    """A run that may be drawn beside others."""

    id: str
    job_id: str
    kind: str
    status: JobStatus
    model: str | None
    params: Mapping[str, Any]
    created_at: datetime | None


@dataclass(frozen=True)
class Evaluation:
    """A completed job that asked the model of another one. dataset: the file of its rows."""

    job_id: str
    kind: str
    model: str
    dataset: str | None
    outputs: Mapping[str, Any]


class PageRecords:
    """Read-only views for the page."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def files_of(self, organization: str, run_ids: Sequence[str], *, limit: int = MAX_FILES) -> list[ReportedFile]:
        """Files that runs reported, newest first, of each path the newest; answers that were sampled among them."""
        query = (
            select(events, files.c.bytes, files.c.filename, files.c.purpose)
            .join(runs, runs.c.id == events.c.run_id)
            .outerjoin(files, and_(files.c.id == events.c.file_id, files.c.organization_id == organization))
            .where(
                runs.c.organization_id == organization,
                events.c.run_id.in_(run_ids),
                events.c.file_id.is_not(None),
            )
        )
        newest: dict[tuple[str, str], ReportedFile] = {}
        with self.database.reading() as connection:
            for row in connection.execute(query.order_by(events.c.id.desc()).limit(limit)):
                file = _file_of(row)
                newest.setdefault((file.run_id, file.path), file)
        return list(newest.values())

    def tagged(self, run_id: str, tag: str, *, limit: int = MAX_TAGGED) -> list[dict[str, Any]]:
        """What the newest events with a tag hold, newest first. The run has to be the organisation's."""
        query = select(events.c.data).where(events.c.run_id == run_id, events.c.tag == tag)
        with self.database.reading() as connection:
            return list(connection.execute(query.order_by(events.c.id.desc()).limit(limit)).scalars())

    def newest_event(self, run_id: str) -> int:
        """The id of the newest event of a run, 0 where there is none."""
        with self.database.reading() as connection:
            return int(
                connection.execute(
                    select(func.coalesce(func.max(events.c.id), 0)).where(events.c.run_id == run_id)
                ).scalar_one()
            )

    def runs(
        self, organization: str, *, ids: Sequence[str] | None = None, kind: str | None = None, limit: int = 100
    ) -> list[RunChoice]:
        """Runs with what tells them apart, newest first; those with these ids in the order of the ids."""
        query = (
            select(runs.c.id, runs.c.job_id, runs.c.status, runs.c.created_at, jobs.c.kind, jobs.c.model, jobs.c.params)
            .join(jobs, runs.c.job_id == jobs.c.id)
            .where(runs.c.organization_id == organization)
        )
        if ids is not None:
            query = query.where(runs.c.id.in_(ids))
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)).all()
        found = [
            RunChoice(
                row.id, row.job_id, row.kind, JobStatus(row.status), row.model, row.params, moment(row.created_at)
            )
            for row in rows
        ]
        return found if ids is None else sorted(found, key=lambda run: ids.index(run.id))

    def newest_runs(self, organization: str, job_ids: Sequence[str]) -> list[str]:
        """The newest run of each of these jobs that has one, in the order of the jobs."""
        query = select(runs.c.job_id, runs.c.id).where(
            runs.c.organization_id == organization, runs.c.job_id.in_(job_ids)
        )
        with self.database.reading() as connection:
            newest = {row.job_id: row.id for row in connection.execute(query.order_by(runs.c.created_at))}
        return [newest[job_id] for job_id in dict.fromkeys(job_ids) if job_id in newest]

    def evaluations(self, organization: str, models: Sequence[str]) -> list[Evaluation]:
        """Completed jobs that asked these models, oldest first."""
        query = (
            select(jobs.c.id, jobs.c.kind, jobs.c.model, jobs.c.params, jobs.c.outputs)
            .where(
                jobs.c.organization_id == organization,
                jobs.c.status == JobStatus.COMPLETED.value,
                jobs.c.model.in_(models),
                jobs.c.kind.in_(EVALUATIONS),
            )
            .order_by(jobs.c.created_at, jobs.c.id)
        )
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
            names = _filenames(connection, organization, [str(row.params.get("dataset")) for row in rows])
        return [
            Evaluation(row.id, row.kind, row.model, names.get(str(row.params.get("dataset"))), row.outputs or {})
            for row in rows
        ]

    def worker_names(self, organization: str, worker_ids: Sequence[str | None]) -> dict[str, str]:
        """What workers are called, by id."""
        wanted = {worker_id for worker_id in worker_ids if worker_id is not None}
        query = select(workers.c.id, workers.c.name).where(
            workers.c.organization_id == organization, workers.c.id.in_(wanted)
        )
        with self.database.reading() as connection:
            return {row.id: row.name for row in connection.execute(query)} if wanted else {}


def _file_of(row: AnyRow) -> ReportedFile:
    path = row.data.get("path")
    return ReportedFile(
        file_id=row.file_id,
        run_id=row.run_id,
        path=path if isinstance(path, str) and path else row.filename or row.file_id,
        bytes=row.bytes,
        purpose=row.purpose,
        step=row.step,
        tag=row.tag,
        created_at=moment(row.created_at),
    )


def _filenames(connection: Connection, organization: str, file_ids: Sequence[str]) -> dict[str, str]:
    query = select(files.c.id, files.c.filename).where(
        files.c.organization_id == organization, files.c.id.in_(file_ids)
    )
    return {row.id: row.filename for row in connection.execute(query)}
