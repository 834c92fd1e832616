"""Looking jobs and runs up: pages, filters, why a job waits, what was spent. Nothing here changes anything."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection, Select, String, and_, func, or_, select
from sqlalchemy import cast as sql_cast

from tutelage.jobs.database import Database
from tutelage.jobs.records import Cost, Explanation, Job, Run, WorkerFit
from tutelage.jobs.registry import SILENT_AFTER_SECONDS
from tutelage.jobs.requirements import Requirement, misfits
from tutelage.jobs.rows import AnyRow, job_columns, job_of, offer_of, require_job, require_run, run_of
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import jobs, runs, workers

TRAINING_KINDS = ("fine_tuning", "weighted_sft")
"""Of jobs that leave a model."""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs. search: a part of the id, the model or the params. params: values that the params contain."""

    status: JobStatus | None = None
    kinds: Sequence[str] | None = None
    search: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Serving:
    """A run that answers chat completions. models: by the name people ask for, the name the run knows. since: seconds
    since the epoch."""

    run_id: str
    job_id: str
    address: str | None
    port: int
    models: dict[str, str]
    since: float


class Listing:
    """Read-only views of the records of a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def jobs(
        self, organization: str, wanted: JobFilter | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[Job]:
        """Jobs, newest first, those behind the job `after`. Raises NotFoundError for an `after` that is none."""
        wanted = wanted or JobFilter()
        query = self._filtered(job_columns().where(jobs.c.organization_id == organization), wanted)
        with self.database.reading() as connection:
            if after is not None:
                last = require_job(connection, organization, after)
                query = query.where(
                    or_(
                        jobs.c.created_at < last.created_at,
                        and_(jobs.c.created_at == last.created_at, jobs.c.id < last.id),
                    )
                )
            query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
            if not wanted.params:
                return [job_of(row) for row in connection.execute(query.limit(limit))]
            rows = connection.execute(query.execution_options(yield_per=500))
            found: list[Job] = []
            with rows:  # PostgreSQL keeps the rest for us until it is closed
                for row in rows:
                    if contains(row.params, wanted.params):
                        found.append(job_of(row))
                    if len(found) == limit:
                        break
            return found

    def job(self, organization: str, job_id: str) -> Job:
        """One job. Raises NotFoundError."""
        with self.database.reading() as connection:
            return job_of(require_job(connection, organization, job_id))

    def counts(self, organization: str) -> dict[JobStatus, int]:
        """How many jobs there are of each status."""
        query = (
            select(jobs.c.status, func.count()).where(jobs.c.organization_id == organization).group_by(jobs.c.status)
        )
        with self.database.reading() as connection:
            found = {JobStatus(status): int(count) for status, count in connection.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def run(self, organization: str, run_id: str) -> Run:
        """One run. Raises NotFoundError."""
        with self.database.reading() as connection:
            return run_of(require_run(connection, organization, run_id))

    def trained_as(self, organization: str, name: str) -> Job | None:
        """The newest completed job whose model was to be called so (`finetuned_model_id`); None where none is.

        Only names that were given whole: the places of others, such as `{job_id}`, are filled in by the run, and what
        came of them is not known here.
        """
        if "{" in name:
            return None
        query = job_columns().where(
            jobs.c.organization_id == organization,
            jobs.c.status == JobStatus.COMPLETED.value,
            jobs.c.kind.in_(TRAINING_KINDS),
            jobs.c.params["finetuned_model_id"].as_string() == name,
        )
        with self.database.reading() as connection:
            newest = query.order_by(jobs.c.finished_at.desc(), jobs.c.id).limit(1)
            row = connection.execute(newest).one_or_none()
            return None if row is None else job_of(row)

    def runs(
        self,
        organization: str,
        *,
        job_id: str | None = None,
        worker_id: str | None = None,
        status: JobStatus | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """The newest runs, newest last."""
        query = select(runs).where(runs.c.organization_id == organization)
        if job_id is not None:
            query = query.where(runs.c.job_id == job_id)
        if worker_id is not None:
            query = query.where(runs.c.worker_id == worker_id)
        if status is not None:
            query = query.where(runs.c.status == status.value)
        query = query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
        with self.database.reading() as connection:
            return [run_of(row) for row in connection.execute(query)][::-1]

    def serving(self, organization: str) -> list[Serving]:
        """What live runs answer chat completions, those that began first first."""
        query = (
            select(runs.c.id, runs.c.job_id, runs.c.serving, runs.c.created_at, workers.c.address)
            .join(workers, runs.c.worker_id == workers.c.id)
            .where(
                runs.c.organization_id == organization,
                runs.c.status == JobStatus.IN_PROGRESS.value,
                runs.c.serving.is_not(None),
            )
            .order_by(runs.c.created_at)
        )
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            Serving(row.id, row.job_id, row.address, row.serving["port"], row.serving["models"], row.created_at)
            for row in rows
        ]

    def explain(self, organization: str, job_id: str) -> Explanation:
        """Why a job waits, and for each worker which conditions fail. Raises NotFoundError."""
        with self.database.reading() as connection:
            job = require_job(connection, organization, job_id)
            status = JobStatus(job.status)
            if status is not JobStatus.PENDING:
                return Explanation(job_id, status, _why_not_pending(job), 0, [])
            requirement = Requirement.from_json(job.conditions)
            active = connection.execute(
                select(workers).where(
                    workers.c.organization_id == organization,
                    workers.c.stopped_at.is_(None),
                    workers.c.last_seen_at > time.time() - SILENT_AFTER_SECONDS,
                )
            ).all()
            fits = [_fit(row, requirement) for row in active]
            ahead = _ahead(connection, job)
        return Explanation(job_id, status, _why_pending(job, fits, ahead), ahead, fits)

    def costs(self, organization: str, *, limit: int = 100, offset: int = 0) -> list[Cost]:
        """What jobs took, the dearest first; runs that go on count until now."""
        end = func.coalesce(runs.c.finished_at, time.time())
        hours = (end - runs.c.created_at) / 3600.0
        dollars = hours * func.coalesce(workers.c.cost_per_hour, 0.0)
        query = (
            select(jobs.c.id, jobs.c.kind, func.count().label("runs"), func.sum(hours), func.sum(dollars))
            .select_from(runs)
            .join(jobs, runs.c.job_id == jobs.c.id)
            .outerjoin(workers, runs.c.worker_id == workers.c.id)
            .where(runs.c.organization_id == organization)
            .group_by(jobs.c.id, jobs.c.kind)
            .order_by(func.sum(dollars).desc(), func.sum(hours).desc(), jobs.c.id)
            .limit(limit)
            .offset(offset)
        )
        with self.database.reading() as connection:
            return [
                Cost(row[0], row[1], int(row[2]), float(row[3]), float(row[4])) for row in connection.execute(query)
            ]

    def _filtered(self, query: Select[Any], wanted: JobFilter) -> Select[Any]:
        if wanted.status is not None:
            query = query.where(jobs.c.status == wanted.status.value)
        if wanted.kinds is not None:
            query = query.where(jobs.c.kind.in_(wanted.kinds))
        texts = [*_texts(wanted.params), *([wanted.search] if wanted.search else [])]
        for text in texts:
            # What the params contain is looked at closely afterwards; this leaves most jobs out before that.
            within = sql_cast(jobs.c.params, String).icontains(text, autoescape=True)
            if text == wanted.search:
                within = or_(
                    within,
                    jobs.c.id.icontains(text, autoescape=True),
                    jobs.c.model.icontains(text, autoescape=True),
                )
            query = query.where(within)
        return query


def contains(there: Any, wanted: Any) -> bool:
    """Whether a value has what is wanted: objects at least those keys, with values that contain theirs; lists at
    least those items; numbers, texts and null equal."""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return False
        values = cast("Mapping[Any, Any]", there)
        return all(
            key in values and contains(values[key], item) for key, item in cast("Mapping[Any, Any]", wanted).items()
        )
    if isinstance(wanted, list) and isinstance(there, list):
        items = cast("list[Any]", there)
        return all(any(contains(item, one) for item in items) for one in cast("list[Any]", wanted))
    same = cast("bool", there == wanted)
    return same and isinstance(there, bool) == isinstance(wanted, bool)  # 1 is not true


def _texts(params: Mapping[str, Any]) -> list[str]:
    """Keys and plain ASCII texts of a filter: those stand in the stored JSON as they are."""
    texts: list[str] = []
    for key, value in params.items():
        texts += [text for text in (key, value) if isinstance(text, str) and text and _plain(text)]
        if isinstance(value, Mapping):
            texts += _texts(cast("Mapping[str, Any]", value))
    return texts


def _plain(text: str) -> bool:
    return json.dumps(text) == f'"{text}"'


def _fit(worker: AnyRow, requirement: Requirement) -> WorkerFit:
    reasons = misfits(requirement, offer_of(worker))
    return WorkerFit(worker.id, worker.name, not reasons, reasons, worker.run_id)


def _ahead(connection: Connection, job: AnyRow) -> int:
    before = or_(
        jobs.c.queue_number < job.queue_number, and_(jobs.c.queue_number == job.queue_number, jobs.c.id < job.id)
    )
    return int(
        connection.execute(
            select(func.count())
            .select_from(jobs)
            .where(
                jobs.c.organization_id == job.organization_id,
                jobs.c.status == JobStatus.PENDING.value,
                before,
            )
        ).scalar_one()
    )


def _why_pending(job: AnyRow, fits: Sequence[WorkerFit], ahead: int) -> str:
    before = f"; {job.reason}" if job.reason else ""
    if job.run_id is not None:
        return f"the process of its canceled run {job.run_id} is still ending; the job begins after that"
    if not fits:
        return f"no worker is connected; start one with: tutelage worker{before}"
    able = [fit for fit in fits if fit.fits]
    if not able:
        nearest = min(fits, key=lambda fit: len(fit.reasons))
        others = f"; {len(fits) - 1} more do not fit either" if len(fits) > 1 else ""
        return f"no worker fits: {nearest.name}: {'; '.join(nearest.reasons)}{others}{before}"
    if all(fit.busy_with for fit in able):
        return f"{len(able)} of {len(fits)} workers fit and all are busy; {ahead} pending jobs are ahead{before}"
    return f"a worker that fits is free and takes it with its next claim; {ahead} pending jobs are ahead{before}"


def _why_not_pending(job: AnyRow) -> str:
    if job.status == JobStatus.IN_PROGRESS.value:
        return f"it runs as {job.run_id} on {job.worker_id}"
    return f"it is {job.status}" + (f": {job.reason}" if job.reason else "")
