"""Submitting, claiming, keeping and ending jobs. Every step is one transaction that goes by the table of statuses.

A claim makes a run, whose id is the fencing token: while the run is in progress its worker may write, and after it
was given up nobody may. Rows are locked in one order: job, run, worker. Not here: which job a worker gets
(`choosing.py`), what a step changes (`steps.py`), listing (`listing.py`), events and logs, HTTP.

A claim is several statements in one transaction, as atomic as one: SQLite has no other writer from its beginning on
(BEGIN IMMEDIATE), PostgreSQL gives the row of a job to one transaction (FOR UPDATE SKIP LOCKED) and looks at it anew.
"""

import math
import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tutelage.errors import FencedError, JobError, NotFoundError, WorkerStoppedError
from tutelage.jobs.choosing import choose
from tutelage.jobs.database import Database
from tutelage.jobs.identity import file_ids_in
from tutelage.jobs.plain_json import cleaned, cleaned_text
from tutelage.jobs.records import Claim, Job, Renewal, Run, Submission
from tutelage.jobs.requirements import Requirement
from tutelage.jobs.rows import (
    AnyRow,
    change,
    insert_new,
    job_columns,
    job_of,
    locked_job,
    offer_of,
    require_files,
    require_job,
    require_live,
    require_live_run,
    require_run,
    run_of,
)
from tutelage.jobs.status import JobStatus
from tutelage.jobs.steps import cancel_job, end_run, queue_again, values_of_job, values_of_run
from tutelage.jobs.tables import jobs, runs, workers

SCRIPT = "script"
"""The kind of jobs that no worker runs: they report about themselves."""
LEASE_SECONDS = 30.0
MAX_ATTEMPTS = 3
MAX_SKIP = 10


class Queue:
    """The queue of a database.

    lease_seconds: how long a worker may be silent. max_attempts: of a job whose workers get lost. max_skip: how often
    a job is passed over for a younger one whose model the worker has.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
        max_skip: int = MAX_SKIP,
    ) -> None:
        self.database = database
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self.max_skip = max_skip

    def submit(
        self,
        organization: str,
        submission: Submission,
        submitted_by: str | None = None,
        files: Collection[str] = (),
    ) -> Job:
        """The job of this submission: a new one, or the one there is.

        One that failed or was canceled waits again; of a pending one the conditions on the worker are updated. files:
        ids of those it reads, which have to be there. Raises NotFoundError.
        """
        identity = submission.id(organization)
        with self.database.writing() as connection:
            require_files(connection, organization, files)
            values = values_of_job(connection, organization, submission, self.max_attempts, submitted_by)
            insert_it = insert_new(connection, jobs).values(id=identity, **values).returning(jobs.c.id)
            is_new = connection.execute(insert_it).first() is not None
            row = require_job(connection, organization, identity, to_change=True)
            status = JobStatus(row.status)
            if not is_new and status in (JobStatus.FAILED, JobStatus.CANCELED):
                row = queue_again(
                    connection, row, requirement_id=values["requirement_id"], timeout_at=submission.timeout_at
                )
            elif not is_new and status is JobStatus.PENDING:
                row = change(connection, row, requirement_id=values["requirement_id"])
            return job_of(row)

    def claim(self, organization: str, worker_id: str, run_id: str, job_id: str | None = None) -> Claim | None:
        """The next job for a worker, as a run with this id; None where none fits.

        run_id: chosen by the worker, so that asking again after a lost answer gets the same job. job_id: the only one
        it may be, for a worker that was started for it. Raises
        NotFoundError for a worker that is not registered, WorkerStoppedError for one that was stopped, FencedError
        where the run is not the worker's or has ended.
        """
        with self.database.writing() as connection:
            now = time.time()
            worker = connection.execute(
                select(workers).where(workers.c.id == worker_id, workers.c.organization_id == organization)
            ).one_or_none()
            if worker is None:
                raise NotFoundError(f"{worker_id}: there is no such worker; register again")
            if worker.stopped_at is not None:
                raise _stopped(worker)
            # Locked: nobody gives it up between this look and the renewal.
            again = connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one_or_none()
            if again is not None:
                if again.worker_id != worker_id or again.status != JobStatus.IN_PROGRESS.value:
                    raise FencedError(f"{run_id}: this run is {again.status}; claim with a new id")
                self._renew(connection, run_id)
                return self._claim(require_job(connection, organization, again.job_id), again.id, again.attempt)
            chosen = choose(connection, organization, offer_of(worker), self.max_skip, job_id)
            values: dict[str, Any] = {"last_seen_at": now}
            if chosen is not None:
                values["run_id"] = run_id
            going_on = connection.execute(
                update(workers).where(workers.c.id == worker_id, workers.c.stopped_at.is_(None)).values(values)
            )
            if going_on.rowcount == 0:  # stopped since it was read; whoever did that gives back what it had then
                raise _stopped(connection.execute(select(workers).where(workers.c.id == worker_id)).one())
            if chosen is None:
                return None
            job = change(
                connection,
                chosen,
                status=JobStatus.IN_PROGRESS,
                run_id=run_id,
                worker_id=worker_id,
                attempts=chosen.attempts + 1,
                skipped=0,
                started_at=now,
                finished_at=None,
            )
            run_values = values_of_run(run_id, organization, job.id, job.attempts)
            lease_until = self.database.lease_clock_now() + self.lease_seconds
            connection.execute(insert(runs).values(run_values | {"worker_id": worker_id, "lease_until": lease_until}))
            return self._claim(job, run_id, job.attempts)

    def renew(self, organization: str, run_id: str) -> Renewal:
        """Keep a run for another lease. Raises NotFoundError, FencedError."""
        with self.database.writing() as connection:
            run = require_live_run(connection, organization, run_id)
            self._renew(connection, run_id)
            if run.worker_id is not None:
                connection.execute(
                    update(workers).where(workers.c.id == run.worker_id).values(last_seen_at=time.time())
                )
            job = connection.execute(select(jobs).where(jobs.c.id == run.job_id)).one()
            return Renewal(job.cancel_requested, self.lease_seconds)

    def finish(
        self,
        organization: str,
        run_id: str,
        status: JobStatus,
        *,
        exit_code: int | None = None,
        reason: str | None = None,
    ) -> Job:
        """End a run, and with it its job: completed, failed or canceled; pending gives the job back as it was.

        A job that was canceled meanwhile is canceled, whatever its process did. Raises NotFoundError, FencedError, and
        JobError for a status that is no end.
        """
        if status is JobStatus.IN_PROGRESS:
            raise JobError(f"{run_id}: a run ends as completed, failed or canceled, or gives its job back as pending")
        with self.database.writing() as connection:
            of_run = select(runs.c.job_id).where(runs.c.id == run_id, runs.c.organization_id == organization)
            its_job = job_columns().where(jobs.c.id == of_run.scalar_subquery())
            job = locked_job(connection, its_job)
            if job is None:
                raise NotFoundError(f"{run_id}: there is no such run")
            run = require_run(connection, organization, run_id, to_change=True)
            if run.status in (status.value, JobStatus.CANCELED.value):
                return job_of(job)  # the answer to the first call was lost
            return job_of(end_run(connection, job, require_live(run), status, exit_code=exit_code, reason=reason))

    def cancel(self, organization: str, job_identity: str) -> Job:
        """Cancel a job; its process, if it has one, is stopped by its worker at the next heartbeat.

        Raises NotFoundError, and JobError for one that completed or failed.
        """
        with self.database.writing() as connection:
            job = require_job(connection, organization, job_identity, to_change=True)
            if job.status != JobStatus.CANCELED.value:
                job = cancel_job(connection, job, "canceled by a user")
            return job_of(job)

    def restart(self, organization: str, job_identity: str) -> Job:
        """Let a job that has ended wait again, at the end of the queue; one that waits or runs is left as it is.

        Raises NotFoundError, also for a file that it reads and that was deleted; JobError for a script.
        """
        with self.database.writing() as connection:
            job = require_job(connection, organization, job_identity, to_change=True)
            if job.kind == SCRIPT:
                raise JobError(f"{job_identity}: a script runs where it was started; start it there again")
            if JobStatus(job.status).is_final:
                require_files(connection, organization, file_ids_in(job.params) | set(job.mounted_files.values()))
                job = queue_again(connection, job)
            return job_of(job)

    def set_timeout(self, organization: str, job_identity: str, timeout_at: float | None) -> Job:
        """When a job is canceled if it still runs, in seconds since the epoch. Raises NotFoundError."""
        with self.database.writing() as connection:
            job = require_job(connection, organization, job_identity, to_change=True)
            return job_of(change(connection, job, timeout_at=timeout_at))

    def begin_script(self, organization: str, script: str, submitted_by: str | None = None) -> Run:
        """A script outside any worker reports about itself: a job that is in progress at once, and its run.

        Nobody holds a lease on it; it ends when somebody ends or cancels it.
        """
        run_id, now = f"run-{secrets.token_hex(16)}", time.time()
        submission = Submission(SCRIPT, "sjob", {}, Requirement(), entrypoint=cleaned_text(script))
        with self.database.writing() as connection:
            values = values_of_job(connection, organization, submission, self.max_attempts, submitted_by)
            identity = f"sjob-{secrets.token_hex(6)}"
            began = {"status": JobStatus.IN_PROGRESS.value, "run_id": run_id, "attempts": 1, "started_at": now}
            connection.execute(insert(jobs).values(id=identity, **values | began))
            connection.execute(insert(runs).values(values_of_run(run_id, organization, identity, 1)))
            return run_of(require_run(connection, organization, run_id))

    def set_serving(self, organization: str, run_id: str, port: int, models: Mapping[str, str]) -> Run:
        """A run answers chat completions on a port of its worker's machine.

        models: by the name people ask for, the name the server behind the port knows. Raises NotFoundError,
        FencedError.
        """
        with self.database.writing() as connection:
            require_live_run(connection, organization, run_id)
            serving = cleaned({"port": port, "models": dict(models)}, "models")
            connection.execute(update(runs).where(runs.c.id == run_id).values(serving=serving))
            return run_of(require_run(connection, organization, run_id))

    def expire(self) -> list[str]:
        """Give up runs whose lease has run out, cancel jobs whose time is over; the ids of the jobs that changed."""
        with self.database.reading() as connection:
            now = self.database.lease_clock(connection)
            lost = connection.execute(
                select(runs.c.id, runs.c.job_id, runs.c.organization_id).where(
                    runs.c.status == JobStatus.IN_PROGRESS.value, runs.c.lease_until < now
                )
            ).all()
            late = connection.execute(
                select(jobs.c.id, jobs.c.organization_id).where(
                    jobs.c.status == JobStatus.IN_PROGRESS.value, jobs.c.timeout_at < time.time()
                )
            ).all()
        changed = [row.job_id for row in lost if self._expire_run(row)]
        for row in late:
            with self.database.writing() as connection:
                job = require_job(connection, row.organization_id, row.id, to_change=True)
                if job.status == JobStatus.IN_PROGRESS.value and (job.timeout_at or math.inf) < time.time():
                    cancel_job(connection, job, "its timeout has passed")
                    changed.append(row.id)
        return changed

    def extend_leases(self) -> None:
        """Give every live run a whole lease from now on: after a time in which no heartbeat could be taken in."""
        with self.database.writing() as connection:
            connection.execute(
                update(runs)
                .where(runs.c.status == JobStatus.IN_PROGRESS.value, runs.c.lease_until.is_not(None))
                .values(lease_until=self.database.lease_clock_now() + self.lease_seconds)
            )

    def _expire_run(self, lost: AnyRow) -> bool:
        with self.database.writing() as connection:
            job = require_job(connection, lost.organization_id, lost.job_id, to_change=True)
            run = connection.execute(select(runs).where(runs.c.id == lost.id).with_for_update()).one()
            now = self.database.lease_clock(connection)
            if run.status != JobStatus.IN_PROGRESS.value or run.lease_until is None or run.lease_until >= now:
                return False
            what = f"attempt {run.attempt}: worker {run.worker_id} was not heard from for {self.lease_seconds:g} s"
            again = job.attempts < job.max_attempts
            status = JobStatus.PENDING if again else JobStatus.FAILED
            end_run(
                connection,
                job,
                run,
                status,
                exit_code=None,
                reason=what if again else f"{what}; it was the last",
                lost=True,
            )
            return True

    def _renew(self, connection: Connection, run_id: str) -> None:
        until = self.database.lease_clock_now() + self.lease_seconds
        connection.execute(update(runs).where(runs.c.id == run_id).values(lease_until=until))

    def _claim(self, job: AnyRow, run_id: str, attempt: int) -> Claim:
        return Claim(job=job_of(job), run_id=run_id, attempt=attempt, lease_seconds=self.lease_seconds)


def _stopped(worker: AnyRow) -> WorkerStoppedError:
    return WorkerStoppedError(f"{worker.id}: was stopped ({worker.reason}); it gets no more jobs, start another worker")
