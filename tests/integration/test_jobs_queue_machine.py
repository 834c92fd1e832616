"""The queue against a model of it, whatever workers, users and clocks do in whatever order.

The model is sections 3 and 4 of the specification: what a job may become, who may write, how often it is tried.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.databases import Scene, new_run_id, new_worker
from tutelage.errors import FencedError, JobError, NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.listing import Listing
from tutelage.jobs.run_logs import RunLogs
from tutelage.jobs.status import TRANSITIONS, JobStatus
from tutelage.jobs.tables import metadata

PENDING, RUNNING = JobStatus.PENDING, JobStatus.IN_PROGRESS
COMPLETED, FAILED, CANCELED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED
MAX_ATTEMPTS = 3
LEASE_SECONDS = 30.0


@dataclass
class KnownJob:
    status: JobStatus = PENDING
    attempts: int = 0
    run: str | None = None
    """The one whose process may still be there."""
    cancel: bool = False


@dataclass
class KnownRun:
    job: str
    lease_until: float
    live: bool = True
    events: int = 0
    log: bytes = b""


class QueueMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    runs = Bundle("runs")

    def __init__(self, database: Database) -> None:
        super().__init__()
        with database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.scene = Scene(database, max_attempts=MAX_ATTEMPTS, lease_seconds=LEASE_SECONDS)
        self.queue, self.organization = self.scene.queue, self.scene.organization
        self.workers = [self.scene.worker, new_worker(database, self.organization)]
        self.listing, self.log, self.logs = Listing(database), EventLog(database), RunLogs(database)
        self.known: dict[str, KnownJob] = {}
        self.known_runs: dict[str, KnownRun] = {}
        self.history: dict[str, JobStatus] = {}

    @rule(target=jobs, number=st.integers(0, 3))
    def submit(self, number: int) -> str:
        job = self.scene.submit(number)
        known = self.known.setdefault(job.id, KnownJob())
        if known.status in (FAILED, CANCELED):
            self._wait_again(known)
        return job.id

    @rule(target=runs, worker=st.integers(0, 1))
    def claim(self, worker: int) -> str:
        run = new_run_id()
        claim = self.queue.claim(self.organization, self.workers[worker], run)
        free = {job for job, known in self.known.items() if known.status is PENDING and known.run is None}
        assert (claim is not None) == bool(free)
        if claim is not None:
            assert claim.job.id in free
            known = self.known[claim.job.id]
            known.status, known.run, known.attempts, known.cancel = RUNNING, run, known.attempts + 1, False
            assert claim.attempt == known.attempts
            self.known_runs[run] = KnownRun(claim.job.id, self.scene.seconds + LEASE_SECONDS)
        return run

    @rule(run=runs)
    def renew(self, run: str) -> None:
        known = self.known_runs.get(run)
        if known is None or not known.live:
            self._refused(known, lambda: self.queue.renew(self.organization, run))
            return
        assert self.queue.renew(self.organization, run).cancel == self.known[known.job].cancel
        known.lease_until = self.scene.seconds + LEASE_SECONDS

    @rule(run=runs, status=st.sampled_from([COMPLETED, FAILED, CANCELED, PENDING]))
    def finish(self, run: str, status: JobStatus) -> None:
        known = self.known_runs.get(run)
        if known is None or not known.live:
            # Refused, or answered once more where it was this that ended the run; either way nothing changes.
            with contextlib.suppress(JobError):
                self.queue.finish(self.organization, run, status)
            return
        self.queue.finish(self.organization, run, status)
        job = self.known[known.job]
        if job.status is RUNNING:
            job.status = status
            job.attempts -= status is PENDING
        known.live, job.run, job.cancel = False, None, False

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        known = self.known[job]
        if known.status in (COMPLETED, FAILED):
            with pytest.raises(JobError, match="cannot become canceled"):
                self.queue.cancel(self.organization, job)
            return
        self.queue.cancel(self.organization, job)
        known.status, known.cancel = CANCELED, known.run is not None

    @rule(job=jobs)
    def restart(self, job: str) -> None:
        self.queue.restart(self.organization, job)
        if self.known[job].status.is_final:
            self._wait_again(self.known[job])

    @rule(seconds=st.sampled_from([1.0, 20.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.seconds += seconds

    @rule()
    def expire(self) -> None:
        lost = [known for known in self.known_runs.values() if known.live and known.lease_until < self.scene.seconds]
        assert sorted(self.queue.expire()) == sorted(known.job for known in lost)
        for known in lost:
            job = self.known[known.job]
            if job.status is RUNNING:
                job.status = PENDING if job.attempts < MAX_ATTEMPTS else FAILED
            known.live, job.run, job.cancel = False, None, False

    @rule(run=runs)
    def write(self, run: str) -> None:
        known = self.known_runs.get(run)
        event = NewEvent(str(known.events if known else 0), {"step": 1})
        if known is None or not known.live:
            self._refused(known, lambda: self.log.append(self.organization, run, [event]))
            self._refused(known, lambda: self.logs.append(self.organization, run, 0, b"late"))
            return
        known.events += self.log.append(self.organization, run, [event])
        assert self.logs.append(self.organization, run, len(known.log), b"line\n") == len(known.log) + 5
        known.log += b"line\n"

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        stored = {job.id: job for job in self.listing.jobs(self.organization)}
        assert {job: (one.status, one.attempts) for job, one in stored.items()} == {
            job: (known.status, known.attempts) for job, known in self.known.items()
        }
        counts = self.listing.counts(self.organization)
        assert sum(counts.values()) == len(self.known)  # each in exactly one status
        live = [run.job_id for run in self.listing.runs(self.organization, status=RUNNING)]
        assert len(set(live)) == len(live)
        assert sorted(live) == sorted(known.job for known in self.known_runs.values() if known.live)
        for job, one in stored.items():
            before, after = self.history.get(job, PENDING), one.status
            assert before is after or after in TRANSITIONS[before]
            assert one.attempts <= MAX_ATTEMPTS
            self.history[job] = after

    def teardown(self) -> None:
        for run, known in self.known_runs.items():
            assert len(self.log.of_run(self.organization, run)) == known.events
            assert self.logs.read(self.organization, run).content == known.log

    def _wait_again(self, known: KnownJob) -> None:
        known.status, known.attempts = PENDING, 0

    def _refused(self, known: object, call: Callable[[], object]) -> None:
        """A run that was there is fenced; where a claim gave none there is nothing of that id."""
        with pytest.raises(FencedError if known else NotFoundError):
            call()


def test_the_queue_is_its_model(database: Database) -> None:
    """The assertions are in the machine's invariants and rules."""
    factory: Any = lambda: QueueMachine(database)  # noqa: E731 - Hypothesis takes any callable, its types only classes
    run_state_machine_as_test(factory, settings=settings(max_examples=25, stateful_step_count=40, deadline=None))
