"""The queue on SQLite and on PostgreSQL: the table of a job's life, submitting again, giving up, scripts.

Expected values come from section 3 and 4 of the specification of jobs, and from the docstrings of `Queue`.
Not here: who gets which job (`test_jobs_claims.py`), steps at the same time (`test_jobs_races.py`).
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.databases import (
    Scene,
    new_organization,
    new_run_id,
    new_worker,
    submission,
)
from tutelage.errors import FencedError, JobError, NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.listing import Listing
from tutelage.jobs.queue import Queue
from tutelage.jobs.records import Claim
from tutelage.jobs.requirements import CloudType, Offer, Requirement
from tutelage.jobs.run_logs import RunLogs
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import jobs, metadata, runs

PENDING, RUNNING = JobStatus.PENDING, JobStatus.IN_PROGRESS
COMPLETED, FAILED, CANCELED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED
ENDINGS = (COMPLETED, FAILED, CANCELED)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def brought_to(scene: Scene, status: JobStatus) -> tuple[str, Claim | None]:
    """A job with this status, and the claim it had."""
    if status is PENDING:
        return scene.submit(status.value).id, None
    claim = scene.running(status.value)
    if status is not RUNNING:
        scene.queue.finish(scene.organization, claim.run_id, status)
    return claim.job.id, claim


def test_every_step_of_the_table(scene: Scene) -> None:
    """Each row: where the job is, what is done, where it is then; from section 3, and what the queue offers."""
    queue, organization = scene.queue, scene.organization

    def ended(status: JobStatus) -> Callable[[str, Claim | None], object]:
        return lambda _, claim: claim and queue.finish(organization, claim.run_id, status)

    def claimed(job: str, _: Claim | None) -> None:
        assert scene.claim().job.id == job

    def submitted(job: str, _: Claim | None) -> None:
        status = Listing(scene.database).job(organization, job).params["number"]
        assert scene.submit(status).id == job

    def restarted(job: str, _: Claim | None) -> None:
        queue.restart(organization, job)

    def canceled(job: str, _: Claim | None) -> None:
        queue.cancel(organization, job)

    def lost(job: str, _: Claim | None) -> None:
        assert scene.lose_leases() == [job]

    table: list[tuple[JobStatus, Callable[[str, Claim | None], object], JobStatus]] = [
        (PENDING, claimed, RUNNING),
        (PENDING, canceled, CANCELED),
        (PENDING, submitted, PENDING),
        (PENDING, restarted, PENDING),
        (RUNNING, ended(COMPLETED), COMPLETED),
        (RUNNING, ended(FAILED), FAILED),
        (RUNNING, ended(CANCELED), CANCELED),
        (RUNNING, ended(PENDING), PENDING),
        (RUNNING, canceled, CANCELED),
        (RUNNING, submitted, RUNNING),
        (RUNNING, restarted, RUNNING),
        (RUNNING, lost, PENDING),
        (COMPLETED, submitted, COMPLETED),
        (COMPLETED, restarted, PENDING),
        (FAILED, submitted, PENDING),
        (FAILED, restarted, PENDING),
        (CANCELED, submitted, PENDING),
        (CANCELED, restarted, PENDING),
        (CANCELED, canceled, CANCELED),
    ]
    for before, step, after in table:
        job, claim = brought_to(scene, before)
        step(job, claim)
        assert Listing(scene.database).job(organization, job).status is after, (before, step)
        with scene.database.writing() as connection:  # out of the way of the next row
            for name in ("runs", "jobs"):
                connection.execute(metadata.tables[name].delete())
    for before in (COMPLETED, FAILED):
        job, _ = brought_to(scene, before)
        with pytest.raises(JobError, match=f"{job}: a job that is {before.value} cannot become canceled; it may"):
            queue.cancel(organization, job)
    running = brought_to(scene, RUNNING)[1]
    assert running is not None
    with pytest.raises(JobError):
        queue.finish(organization, running.run_id, RUNNING)


def test_what_a_lost_a_given_back_and_an_ended_job_remember(scene: Scene) -> None:
    """Attempts count workers that were lost, up to three; a worker that was asked to stop is no attempt."""
    job = scene.submit().id
    given_back = scene.claim()
    back = scene.queue.finish(scene.organization, given_back.run_id, PENDING, reason="the worker stops")
    assert (back.attempts, back.reason, back.run_id) == (0, "the worker stops", None)
    for attempt in (1, 2, 3):
        claim = scene.claim()
        assert (claim.attempt, claim.job.attempts, claim.job.status) == (attempt, attempt, RUNNING)
        assert scene.lose_leases() == [job]
    lost = Listing(scene.database).job(scene.organization, job)
    assert (lost.status, lost.attempts) == (FAILED, 3)
    assert lost.reason is not None
    assert lost.reason.startswith("attempt 3: worker worker-")
    assert "30 s" in lost.reason
    assert lost.finished_at is not None
    endings = [run.status for run in Listing(scene.database).runs(scene.organization, job_id=job)]
    assert endings == [CANCELED, FAILED, FAILED, FAILED]
    again = scene.queue.restart(scene.organization, job)
    assert (again.status, again.attempts, again.reason, again.outputs) == (PENDING, 0, None, None)
    assert (again.started_at, again.finished_at) == (None, None)  # of this life: it has not begun


def test_submitting_again(scene: Scene) -> None:
    """The same work is the same job; conditions on the worker are no part of it, and change while it waits."""
    first = scene.submit(1, params={"rate": 1.0, "list": [1, 2.5]})
    wider = Requirement(allowed_hardware=("1x A100",), requires_vram_gb=80, cloud_type=CloudType.ALL)
    again = scene.submit(1, params={"list": [1.0, 2.5], "rate": 1}, requirement=wider)
    assert again.id == first.id
    assert (again.allowed_hardware, again.requires_vram_gb, again.cloud_type) == (["1x A100"], 80, CloudType.ALL)
    changes: list[dict[str, Any]] = [
        {"params": {"rate": True, "list": [1, 2.5]}},
        {"entrypoint": "false"},
        {"suffix": "mine"},
        {"mounted_files": {"a": "result:file-0123456789ab"}},
        {"requirement": Requirement(image="other")},
    ]
    others = {scene.submit(1, **{"params": {"rate": 1.0, "list": [1, 2.5]}, **change}).id for change in changes}
    elsewhere = scene.queue.submit(
        new_organization(scene.database), submission(1, params={"rate": 1.0, "list": [1, 2.5]})
    )
    assert len({first.id, elsewhere.id, *others}) == len(changes) + 2
    with pytest.raises(NotFoundError):
        scene.queue.cancel(scene.organization, elsewhere.id)

    with scene.database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id != first.id).values(status="canceled"))
    scene.worker = new_worker(scene.database, scene.organization, Offer("1x A100", 1, 80))
    claim = scene.claim()
    assert claim.job.id == first.id
    kept = scene.submit(1, params={"rate": 1.0, "list": [1, 2.5]}, requirement=Requirement(requires_vram_gb=8))
    assert (kept.status, kept.requires_vram_gb) == (RUNNING, 80)  # too late for the conditions to change
    scene.queue.finish(scene.organization, claim.run_id, FAILED, reason="boom", exit_code=1)
    reset = scene.submit(1, params={"rate": 1.0, "list": [1, 2.5]}, requirement=Requirement(requires_vram_gb=8))
    assert (reset.id, reset.status, reset.requires_vram_gb, reset.reason) == (first.id, PENDING, 8, None)


def test_params_named_as_parts_of_a_job_are_part_of_its_identity(scene: Scene) -> None:
    """A custom job's params are anything, an `entrypoint` among them: two of two values are two jobs."""
    ids = {scene.submit(params={"entrypoint": value}).id for value in ("a", "b")}
    assert len(ids) == 2


def test_outputs_are_the_newest_values_of_all_events_of_the_job(scene: Scene) -> None:
    """Section 5: newest value of every event field; null is none, and an earlier attempt's fields count too."""
    log = EventLog(scene.database)
    first = scene.running()
    log.append(scene.organization, first.run_id, [NewEvent("1", {"early": 1, "loss": 3.0})])
    scene.lose_leases()
    second = scene.claim()
    log.append(
        scene.organization,
        second.run_id,
        [NewEvent("1", {"loss": 2.0, "file": "a"}), NewEvent("2", {"loss": 1.5, "file": None})],
    )
    job = scene.queue.finish(scene.organization, second.run_id, COMPLETED)
    expected = {"early": 1, "loss": 1.5, "file": "a"}
    assert log.latest(scene.organization, job_id=job.id) == expected
    assert job.outputs == expected


def test_a_canceled_job_waits_for_its_process_before_it_begins_again(scene: Scene) -> None:
    claim = scene.running()
    scene.queue.cancel(scene.organization, claim.job.id)
    assert scene.queue.renew(scene.organization, claim.run_id).cancel
    assert scene.submit().status is PENDING
    assert scene.queue.renew(scene.organization, claim.run_id).cancel  # still: the process is of the old life
    nobody = scene.queue.claim(scene.organization, scene.worker, new_run_id())
    assert nobody is None
    summary = Listing(scene.database).explain(scene.organization, claim.job.id).summary
    assert claim.run_id in summary
    after = scene.queue.finish(scene.organization, claim.run_id, COMPLETED)  # it had just ended by itself
    assert (after.status, after.outputs) == (PENDING, None)
    assert Listing(scene.database).run(scene.organization, claim.run_id).status is CANCELED
    again = scene.claim()
    assert again.job.id == claim.job.id
    assert not scene.queue.renew(scene.organization, again.run_id).cancel
    assert scene.queue.finish(scene.organization, again.run_id, COMPLETED).status is COMPLETED


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_canceled_job_stays_canceled_however_its_process_ends(scene: Scene, ending: JobStatus) -> None:
    claim = scene.running()
    EventLog(scene.database).append(scene.organization, claim.run_id, [NewEvent("1", {"loss": 1.0})])
    scene.queue.cancel(scene.organization, claim.job.id)
    job = scene.queue.finish(scene.organization, claim.run_id, ending, exit_code=0)
    assert (job.status, job.reason, job.outputs) == (CANCELED, "canceled by a user", {"loss": 1.0})
    assert scene.queue.finish(scene.organization, claim.run_id, ending, exit_code=0) == job  # its answer was lost


def test_a_run_that_was_given_up_writes_nothing(scene: Scene) -> None:
    claim = scene.running()
    scene.lose_leases()
    log, logs = EventLog(scene.database), RunLogs(scene.database)
    for write in (
        lambda: scene.queue.renew(scene.organization, claim.run_id),
        lambda: scene.queue.finish(scene.organization, claim.run_id, COMPLETED),
        lambda: scene.queue.finish(scene.organization, claim.run_id, PENDING),
        lambda: log.append(scene.organization, claim.run_id, [NewEvent("1", {"loss": 1.0})]),
        lambda: logs.append(scene.organization, claim.run_id, 0, b"late"),
    ):
        with pytest.raises(FencedError, match=f"{claim.run_id}: the run is failed .*not heard from.*; stop it"):
            write()
    assert log.of_run(scene.organization, claim.run_id) == []
    assert logs.read(scene.organization, claim.run_id).content == b""
    assert Listing(scene.database).job(scene.organization, claim.job.id).status is PENDING


def test_timeouts(scene: Scene) -> None:
    """When its time is over a job in progress is canceled; one that waits is left, one without a timeout too."""
    late = scene.running(1, timeout_at=time.time() - 1)
    in_time = scene.running(2, timeout_at=time.time() + 1000)
    scene.submit(3, timeout_at=time.time() - 1)
    assert scene.queue.expire() == [late.job.id]
    canceled = Listing(scene.database).job(scene.organization, late.job.id)
    assert (canceled.status, canceled.reason) == (CANCELED, "its timeout has passed")
    assert scene.queue.renew(scene.organization, late.run_id).cancel
    assert not scene.queue.renew(scene.organization, in_time.run_id).cancel
    assert scene.queue.set_timeout(scene.organization, in_time.job.id, None).timeout is None


def test_leases_after_a_time_in_which_nobody_could_renew(scene: Scene) -> None:
    claim = scene.running()
    scene.seconds += 1000
    scene.queue.extend_leases()
    assert scene.queue.expire() == []
    scene.seconds += scene.queue.lease_seconds + 1
    assert scene.queue.expire() == [claim.job.id]


@pytest.mark.parametrize("text_value", ["a\0b", "a\ud800b"])
def test_names_that_no_database_can_hold_are_not_found(database: Database, text_value: str) -> None:
    """An id from an address on the web may hold anything; that is an error of whoever asks, no fault of the storage."""
    organization = new_organization(database)
    for look in (
        lambda: Listing(database).job(organization, text_value),
        lambda: Listing(database).run(organization, text_value),
        lambda: Queue(database).cancel(organization, text_value),
        lambda: Queue(database).claim(organization, text_value, new_run_id()),
    ):
        with pytest.raises(JobError):
            look()
    assert Queue(database).expire() == []


def test_a_script_that_reports_about_itself(scene: Scene) -> None:
    """Its job is in progress at once and no worker gets it; without a lease it ends by being ended or canceled."""
    run = scene.queue.begin_script(scene.organization, "train.py")
    job = Listing(scene.database).job(scene.organization, run.job_id)
    assert (job.status, job.run_id, job.entrypoint, job.attempts) == (RUNNING, run.id, "train.py", 1)
    assert job.id.startswith("sjob-")
    assert scene.lose_leases() == []
    assert scene.queue.claim(scene.organization, scene.worker, new_run_id()) is None
    EventLog(scene.database).append(scene.organization, run.id, [NewEvent("1", {"loss": 1.0})])
    ended = scene.queue.finish(scene.organization, run.id, COMPLETED)
    assert (ended.status, ended.outputs) == (COMPLETED, {"loss": 1.0})
    other = scene.queue.begin_script(scene.organization, "train.py")
    assert other.job_id != run.job_id
    assert scene.queue.cancel(scene.organization, other.job_id).status is CANCELED
    assert Listing(scene.database).run(scene.organization, other.id).status is CANCELED  # nobody else would end it
    with pytest.raises(FencedError):
        scene.queue.renew(scene.organization, other.id)


def test_what_a_run_serves_is_known_while_it_lives(scene: Scene) -> None:
    claim = scene.running()
    scene.queue.set_serving(scene.organization, claim.run_id, 8001, {"asked": "upstream"})
    (serving,) = Listing(scene.database).serving(scene.organization)
    assert (serving.run_id, serving.job_id, serving.port) == (claim.run_id, claim.job.id, 8001)
    assert serving.models == {"asked": "upstream"}
    assert Listing(scene.database).serving(new_organization(scene.database)) == []
    scene.queue.finish(scene.organization, claim.run_id, COMPLETED)
    assert Listing(scene.database).serving(scene.organization) == []
    with pytest.raises(FencedError):
        scene.queue.set_serving(scene.organization, claim.run_id, 8001, {})


def test_columns_of_a_run_that_ended(scene: Scene) -> None:
    claim = scene.running()
    scene.queue.finish(scene.organization, claim.run_id, FAILED, exit_code=7, reason="out of memory")
    run = Listing(scene.database).run(scene.organization, claim.run_id)
    assert (run.status, run.exit_code, run.reason) == (FAILED, 7, "out of memory")
    job = Listing(scene.database).job(scene.organization, claim.job.id)
    assert (job.status, job.reason, job.worker_id) == (FAILED, "out of memory", scene.worker)
    assert job.run_id is None  # nobody has it now; its runs are listed
    with scene.database.reading() as connection:
        assert connection.execute(select(runs.c.lease_until)).scalar() is None
