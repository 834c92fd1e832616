"""All jobs that wait for a worker, in few words: what machines are planned from. Not here: the plan (`cluster`)."""

from sqlalchemy import select

from tutelage.jobs.choosing import PENDING
from tutelage.jobs.database import Database
from tutelage.jobs.records import Demand, WaitingJob
from tutelage.jobs.tables import jobs, requirements


def demand(database: Database, organization: str, *, limit: int) -> Demand:
    """The oldest pending jobs of an organisation; not those whose canceled process is still there."""
    oldest = (
        select(jobs.c.id, jobs.c.requirement_id, jobs.c.queued_at)
        .where(jobs.c.organization_id == organization, jobs.c.status == PENDING, jobs.c.run_id.is_(None))
        .order_by(jobs.c.queue_number, jobs.c.id)
        .limit(limit)
    )
    with database.reading() as connection:
        waiting = [WaitingJob(*row) for row in connection.execute(oldest)]
        ids = {job.requirement for job in waiting}
        query = select(requirements.c.id, requirements.c.conditions).where(requirements.c.id.in_(ids))
        conditions = {row.id: row.conditions for row in connection.execute(query)} if ids else {}
    return Demand(conditions, waiting)
