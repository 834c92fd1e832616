"""Which pending job a worker gets: what fits it, oldest first, and a little out of turn where it has the model.

Not here: what a claim writes, and why it is atomic (`queue.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select, update

from tutelage.jobs.requirements import Offer, Requirement, misfits
from tutelage.jobs.rows import AnyRow, insert_new
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import jobs, requirements

WINDOW = 64
"""Jobs, oldest first, among which a worker looks for one whose model it has."""
PENDING = literal(JobStatus.PENDING.value, literal_execute=True)
"""In the text of a query: with a parameter in its place, a plan that PostgreSQL keeps cannot use the index of what
waits."""


@dataclass(frozen=True)
class Candidate:
    """A pending job that fits. skipped: how often it was passed over for a younger one."""

    id: str
    model: str | None
    skipped: int


def in_order_of_preference(oldest_first: Sequence[Candidate], offer: Offer, max_skip: int) -> list[Candidate]:
    """Jobs that were passed over `max_skip` times, then those whose model the worker has, then the others."""
    due = [job for job in oldest_first if job.skipped >= max_skip]
    cached = [job for job in oldest_first if job.skipped < max_skip and job.model in offer.cached_models]
    others = [job for job in oldest_first if job.skipped < max_skip and job.model not in offer.cached_models]
    return due + cached + others


def choose(
    connection: Connection, organization: str, offer: Offer, max_skip: int, job_id: str | None = None
) -> AnyRow | None:
    """The row of the job that a worker gets, locked; None where no pending one fits. job_id: none but this one."""
    fitting = fitting_requirements(connection, organization, offer)
    if not fitting:
        return None
    waits = _waits(organization, fitting)
    if job_id is not None:
        waits = and_(waits, jobs.c.id == job_id)
    oldest_first = (jobs.c.queue_number, jobs.c.id)
    if not offer.cached_models or job_id is not None:
        return connection.execute(
            select(jobs).where(waits).order_by(*oldest_first).limit(1).with_for_update(skip_locked=True)
        ).one_or_none()
    window = connection.execute(
        select(jobs.c.id, jobs.c.model, jobs.c.skipped).where(waits).order_by(*oldest_first).limit(WINDOW)
    ).all()
    preferred = in_order_of_preference([Candidate(*row) for row in window], offer, max_skip)
    if not preferred:
        return None
    place = case({job.id: number for number, job in enumerate(preferred)}, value=jobs.c.id)
    chosen = connection.execute(
        select(jobs)
        .where(waits, jobs.c.id.in_([job.id for job in preferred]))
        .order_by(place)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if chosen is not None:
        _count_skipped(connection, waits, chosen)
    return chosen


def fitting_requirements(connection: Connection, organization: str, offer: Offer) -> list[str]:
    """Ids of the conditions of pending jobs that a worker meets."""
    # LIMIT keeps PostgreSQL from counting all pending jobs where its statistics are old.
    one_pending = (
        select(jobs.c.id)
        .where(
            jobs.c.organization_id == organization,
            jobs.c.requirement_id == requirements.c.id,
            jobs.c.status == PENDING,
        )
        .limit(1)
        .scalar_subquery()
    )
    query = select(requirements.c.id, requirements.c.conditions).where(one_pending.is_not(None))
    rows = connection.execute(query).all()
    return [row.id for row in rows if not misfits(Requirement.from_json(row.conditions), offer)]


def kept_requirement(connection: Connection, requirement: Requirement) -> str:
    """The id of these conditions, which are written down if they were not yet."""
    connection.execute(insert_new(connection, requirements).values(id=requirement.id, conditions=requirement.as_json()))
    return requirement.id


def end_of_queue(connection: Connection, organization: str) -> int:
    """The number behind all others. Two that are submitted at once may share one; their ids decide."""
    last = select(func.max(jobs.c.queue_number)).where(jobs.c.organization_id == organization)
    return int(connection.execute(last).scalar() or 0) + 1


def _waits(organization: str, fitting: Sequence[str]) -> ColumnElement[bool]:
    return and_(
        jobs.c.organization_id == organization,
        jobs.c.status == PENDING,
        jobs.c.requirement_id.in_(fitting),
        # Restarted while its canceled process is still there: not yet.
        jobs.c.run_id.is_(None),
    )


def _count_skipped(connection: Connection, waits: ColumnElement[bool], chosen: AnyRow) -> None:
    """Count, for those older than the chosen one, that they were passed over; not for those being claimed now."""
    older = or_(
        jobs.c.queue_number < chosen.queue_number,
        and_(jobs.c.queue_number == chosen.queue_number, jobs.c.id < chosen.id),
    )
    passed = select(jobs.c.id).where(waits, older).limit(WINDOW).with_for_update(skip_locked=True)
    ids: list[Any] = list(connection.execute(passed).scalars())
    if ids:
        connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(skipped=jobs.c.skipped + 1))
