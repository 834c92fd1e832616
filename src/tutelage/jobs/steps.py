"""The steps of a job's life, each inside a transaction that holds the job's row. Not here: when they are taken."""

import time
from typing import Any

from sqlalchemy import Connection, delete, select, update

from tutelage.jobs.choosing import end_of_queue, kept_requirement
from tutelage.jobs.newest_values import merged
from tutelage.jobs.records import Submission
from tutelage.jobs.rows import AnyRow, change, outputs_of
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import runs, tokens, workers


def values_of_job(
    connection: Connection, organization: str, submission: Submission, max_attempts: int, submitted_by: str | None
) -> dict[str, Any]:
    """The columns of a new job but its id: it waits at the end of the queue."""
    now = time.time()
    return {
        "organization_id": organization,
        "kind": submission.kind,
        "status": JobStatus.PENDING.value,
        "model": submission.model,
        "params": dict(submission.params),
        "mounted_files": dict(submission.mounted_files),
        "image": submission.requirement.image,
        "entrypoint": submission.entrypoint,
        "requirement_id": kept_requirement(connection, submission.requirement),
        "queue_number": end_of_queue(connection, organization),
        "skipped": 0,
        "attempts": 0,
        "max_attempts": max_attempts,
        "cancel_requested": False,
        "timeout_at": submission.timeout_at,
        "submitted_by": submitted_by,
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
    }


def values_of_run(run_id: str, organization: str, job_identity: str, attempt: int) -> dict[str, Any]:
    """The columns of a new run that nobody holds a lease on."""
    return {
        "id": run_id,
        "organization_id": organization,
        "job_id": job_identity,
        "attempt": attempt,
        "status": JobStatus.IN_PROGRESS.value,
        "created_at": time.time(),
        "log_bytes": 0,
        "log_start": 0,
        "latest": {},
    }


def queue_again(connection: Connection, job: AnyRow, **changes: Any) -> AnyRow:
    """Let a job that has ended wait at the end of the queue; its row as it is now."""
    # run_id stays: while a canceled process is still there, nobody else may begin.
    return change(
        connection,
        job,
        status=JobStatus.PENDING,
        queue_number=end_of_queue(connection, job.organization_id),
        skipped=0,
        attempts=0,
        outputs=None,
        reason=None,
        queued_at=time.time(),
        started_at=None,
        finished_at=None,
        **{"timeout_at": None, **changes},
    )


def cancel_job(connection: Connection, job: AnyRow, reason: str) -> AnyRow:
    """Cancel a job that waits or runs; its row as it is now.

    Its worker hears of it; a run that nobody holds a lease on ends at once.
    """
    now = time.time()
    canceled = change(
        connection,
        job,
        status=JobStatus.CANCELED,
        reason=reason,
        finished_at=now,
        cancel_requested=job.run_id is not None,
    )
    run = connection.execute(select(runs).where(runs.c.id == job.run_id).with_for_update()).one_or_none()
    if run is None or run.lease_until is not None:
        return canceled
    return end_run(connection, canceled, run, JobStatus.CANCELED, exit_code=None, reason=reason)


def end_run(
    connection: Connection,
    job: AnyRow,
    run: AnyRow,
    status: JobStatus,
    *,
    exit_code: int | None,
    reason: str | None,
    lost: bool = False,
) -> AnyRow:
    """End a run in progress; the row of its job as it is then.

    status: of the job, pending where it is to be tried again. lost: its worker was.
    """
    now = time.time()
    wanted = job.status == JobStatus.IN_PROGRESS.value  # not canceled meanwhile
    given_back = status is JobStatus.PENDING and not lost
    if not wanted or given_back:
        ended_as = JobStatus.CANCELED
    else:
        ended_as = JobStatus.FAILED if status is JobStatus.PENDING else status
    connection.execute(
        update(runs)
        .where(runs.c.id == run.id)
        .values(
            status=ended_as.value,
            exit_code=exit_code,
            reason=reason if wanted else job.reason or "canceled by a user",
            finished_at=now,
            lease_until=None,
        )
    )
    # Those its job was given, one with every answer to the claim: nobody gets in with them any more.
    connection.execute(delete(tokens).where(tokens.c.run_id == run.id))
    connection.execute(
        update(workers).where(workers.c.id == run.worker_id, workers.c.run_id == run.id).values(run_id=None)
    )
    changes: dict[str, Any] = {"run_id": None, "cancel_requested": False}
    if wanted:
        changes |= {"status": status, "reason": reason}
    if given_back and wanted:
        changes["attempts"] = job.attempts - 1  # its worker was asked to stop: that was no attempt
    if job.status == JobStatus.CANCELED.value or (wanted and status.is_final):
        changes |= {"outputs": merged(outputs_of(connection, job), [run.latest]), "finished_at": now}
    return change(connection, job, **changes)
