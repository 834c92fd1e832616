"""Which files the last runs of jobs left. Not here: what a file is (`jobs.stored_files`)."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import Connection, func, select

from tutelage.jobs.database import Database
from tutelage.jobs.records import Job
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import events, files, runs

PURPOSE = "result"
AT_ONCE = 100
"""Jobs asked for with one query: databases take only so many values in one."""


def result_files(database: Database, jobs: Iterable[Job]) -> dict[str, list[str]]:
    """Ids of the files of purpose `result` that the newest run of each completed job told of, in their order."""
    ids = [job.id for job in jobs if job.status is JobStatus.COMPLETED]
    found: dict[str, dict[str, None]] = defaultdict(dict)
    with database.reading() as connection:
        for begin in range(0, len(ids), AT_ONCE):
            _add(found, connection, ids[begin : begin + AT_ONCE])
    return {job_id: list(file_ids) for job_id, file_ids in found.items()}


def _add(found: dict[str, dict[str, None]], connection: Connection, ids: list[str]) -> None:
    newest = (
        select(runs.c.job_id, func.max(runs.c.created_at).label("created_at"))
        .where(runs.c.job_id.in_(ids))
        .group_by(runs.c.job_id)
        .subquery()
    )
    query = (
        select(runs.c.job_id, events.c.file_id)
        .join(newest, (newest.c.job_id == runs.c.job_id) & (newest.c.created_at == runs.c.created_at))
        .join(events, events.c.run_id == runs.c.id)
        .join(files, (files.c.id == events.c.file_id) & (files.c.organization_id == runs.c.organization_id))
        .where(files.c.purpose == PURPOSE)
        .order_by(events.c.id)
    )
    for row in connection.execute(query):
        found[row.job_id][row.file_id] = None
