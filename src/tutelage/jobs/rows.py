"""From rows of the database to records, and statements that several modules use. Not here: transactions."""

import time
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import Unpack

from tutelage.errors import FencedError, NotFoundError
from tutelage.jobs.newest_values import merged
from tutelage.jobs.records import Event, Job, Run, StoredFile, Worker, moment
from tutelage.jobs.requirements import Offer, Requirement
from tutelage.jobs.status import JobStatus, require_transition
from tutelage.jobs.tables import files, jobs, requirements, runs

AnyRow = Row[Unpack[tuple[Any, ...]]]
# SQLite gives back columns without the names of their tables: `requirements` must have none called requirement_id.
_CONDITIONS = (
    select(requirements.c.conditions)
    .where(requirements.c.id == jobs.c.requirement_id)
    .correlate(jobs)
    .scalar_subquery()
    .label("conditions")
)


def job_columns() -> Select[Any]:
    """A job with the conditions it has."""
    return select(jobs, requirements.c.conditions).join(requirements, jobs.c.requirement_id == requirements.c.id)


def job_of(row: AnyRow) -> Job:
    """From a row of `job_columns`."""
    requirement = Requirement.from_json(row.conditions)
    created, updated = moment(row.created_at), moment(row.updated_at)
    assert created is not None  # the column is not null
    assert updated is not None
    return Job(
        id=row.id,
        kind=row.kind,
        status=JobStatus(row.status),
        model=row.model,
        params=row.params,
        mounted_files=row.mounted_files,
        image=row.image,
        entrypoint=row.entrypoint,
        requires_vram_gb=requirement.requires_vram_gb,
        allowed_hardware=list(requirement.allowed_hardware) if requirement.allowed_hardware is not None else None,
        cloud_type=requirement.cloud_type,
        organization_id=row.organization_id,
        run_id=row.run_id,
        worker_id=row.worker_id,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        reason=row.reason,
        outputs=row.outputs,
        submitted_by=row.submitted_by,
        timeout=moment(row.timeout_at),
        created_at=created,
        updated_at=updated,
        started_at=moment(row.started_at),
        finished_at=moment(row.finished_at),
    )


def run_of(row: AnyRow) -> Run:
    """From a row of `runs`."""
    created = moment(row.created_at)
    assert created is not None
    return Run(
        id=row.id,
        job_id=row.job_id,
        worker_id=row.worker_id,
        attempt=row.attempt,
        status=JobStatus(row.status),
        reason=row.reason,
        exit_code=row.exit_code,
        created_at=created,
        finished_at=moment(row.finished_at),
        log_bytes=row.log_bytes,
        latest=row.latest,
    )


def event_of(row: AnyRow) -> Event:
    """From a row of `events`."""
    created = moment(row.created_at)
    assert created is not None
    return Event(id=row.id, run_id=row.run_id, created_at=created, data=row.data, file=row.file_id)


def file_of(row: AnyRow) -> StoredFile:
    """From a row of `files`."""
    created = moment(row.created_at)
    assert created is not None
    return StoredFile(id=row.id, purpose=row.purpose, filename=row.filename, bytes=row.bytes, created_at=created)


def worker_of(row: AnyRow) -> Worker:
    """From a row of `workers`."""
    offer = offer_of(row)
    registered, seen = moment(row.registered_at), moment(row.last_seen_at)
    assert registered is not None
    assert seen is not None
    return Worker(
        id=row.id,
        name=row.name,
        status=row.status,
        hardware=offer.hardware,
        gpus=offer.gpus,
        vram_gb=offer.vram_gb,
        cloud_type=offer.cloud_type,
        images=list(offer.images) if offer.images is not None else None,
        cached_models=list(offer.cached_models),
        disk_free_gb=row.disk_free_gb,
        cost_per_hour=row.cost_per_hour,
        version=row.version,
        run_id=row.run_id,
        reason=row.reason,
        registered_at=registered,
        last_seen_at=seen,
        stopped_at=moment(row.stopped_at),
    )


def offer_of(row: AnyRow) -> Offer:
    """What the worker in a row of `workers` has."""
    return Offer.from_json(row.offer)


def require_job(connection: Connection, organization: str, job_id: str, *, to_change: bool = False) -> AnyRow:
    """The row of a job, kept from others until the transaction ends if `to_change`. Raises NotFoundError."""
    query = job_columns().where(jobs.c.id == job_id, jobs.c.organization_id == organization)
    row = locked_job(connection, query) if to_change else connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"{job_id}: there is no such job; list them with: tutelage jobs ls")
    return row


def locked_job(connection: Connection, query: Select[Any]) -> AnyRow | None:
    """The row of a query of `job_columns` for one job, kept from others until the transaction ends; None, if none is.

    Where its conditions change while PostgreSQL waits for the row, it joins the new row with the old conditions, and
    finds none: asked again, it sees both as they are.
    """
    locking = query.with_for_update(of=jobs)
    return connection.execute(locking).one_or_none() or connection.execute(locking).one_or_none()


def require_files(connection: Connection, organization: str, file_ids: Collection[str]) -> None:
    """Nobody deletes these until the transaction ends. Raises NotFoundError for the first that is not there."""
    query = select(files.c.id).where(files.c.organization_id == organization, files.c.id.in_(sorted(file_ids)))
    there = set(connection.execute(query.with_for_update(read=True)).scalars()) if file_ids else set[str]()
    missing = next((file_id for file_id in sorted(file_ids) if file_id not in there), None)
    if missing is not None:
        raise _no_file(missing)


def require_file(connection: Connection, organization: str, file_id: str, *, to_change: bool = False) -> AnyRow:
    """The row of a file, kept from others until the transaction ends if `to_change`. Raises NotFoundError."""
    query = select(files).where(files.c.id == file_id, files.c.organization_id == organization)
    row = connection.execute(query.with_for_update() if to_change else query).one_or_none()
    if row is None:
        raise _no_file(file_id)
    return row


def require_run(connection: Connection, organization: str, run_id: str, *, to_change: bool = False) -> AnyRow:
    """The row of a run, kept from others until the transaction ends if `to_change`. Raises NotFoundError."""
    query = select(runs).where(runs.c.id == run_id, runs.c.organization_id == organization)
    row = connection.execute(query.with_for_update() if to_change else query).one_or_none()
    if row is None:
        raise NotFoundError(f"{run_id}: there is no such run; list those of a job with: tutelage jobs show JOB")
    return row


def require_live_run(connection: Connection, organization: str, run_id: str) -> AnyRow:
    """The row of a run that may still write, kept from others until the transaction ends.

    Raises NotFoundError, and FencedError where it has ended or was given up.
    """
    return require_live(require_run(connection, organization, run_id, to_change=True))


def require_live(run: AnyRow) -> AnyRow:
    """The row of a run, if it may still write. Raises FencedError."""
    if run.status != JobStatus.IN_PROGRESS.value:
        raise FencedError(f"{run.id}: the run is {run.status} ({run.reason or 'it ended'}); stop it, nothing is taken")
    return run


def outputs_of(connection: Connection, job: AnyRow) -> dict[str, Any]:
    """The newest value of each field that the runs of a job reported since it was last submitted or restarted."""
    query = select(runs.c.latest).where(runs.c.job_id == job.id, runs.c.created_at >= job.queued_at)
    return merged({}, connection.execute(query.order_by(runs.c.created_at, runs.c.attempt)).scalars())


def change(connection: Connection, job: AnyRow, *, status: JobStatus | None = None, **values: Any) -> AnyRow:
    """Change a job whose row is locked; the row as it is now, as of `job_columns`.

    Raises JobError for a status that the table does not allow from where it is.
    """
    if status is not None:
        require_transition(job.id, JobStatus(job.status), status)
        values["status"] = status.value
    statement = update(jobs).where(jobs.c.id == job.id).values(updated_at=time.time(), **values)
    return connection.execute(statement.returning(jobs, _CONDITIONS)).one()


def insert_new(connection: Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """An insert that leaves alone what has the same key already."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def _no_file(file_id: str) -> NotFoundError:
    return NotFoundError(f"{file_id[:80]}: there is no such file; list them with: tutelage files ls")
