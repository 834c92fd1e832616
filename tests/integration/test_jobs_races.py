"""Two steps at the same time. Most happen between two transactions, which SQLite has one after the other.

Each test holds one of the two where it matters; nothing here goes by chance.
"""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.databases import (
    WAITING_SECONDS,
    Scene,
    before_statement,
    in_threads,
    new_run_id,
    submission,
    waits_for_lock,
)
from tutelage.errors import FencedError, JobError, StorageError, WorkerStoppedError
from tutelage.jobs import event_log
from tutelage.jobs.choosing import kept_requirement
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.listing import Listing
from tutelage.jobs.registry import Registry
from tutelage.jobs.requirements import Requirement
from tutelage.jobs.rows import change, require_job
from tutelage.jobs.status import JobStatus
from tutelage.jobs.stored_files import FileStore
from tutelage.jobs.tables import jobs

PENDING, RUNNING = JobStatus.PENDING, JobStatus.IN_PROGRESS
COMPLETED = JobStatus.COMPLETED


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_an_event_that_was_taken_in_before_the_end_is_in_the_outputs(
    postgresql_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's row is read again once nobody else has it: appending is held while the job is being finished."""
    scene = postgresql_scene
    claim = scene.running()
    merged, held, release = event_log.merged, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> dict[str, Any]:
        held.set()
        assert release.wait(WAITING_SECONDS)
        return merged(*arguments)

    monkeypatch.setattr(event_log, "merged", slow)
    log = EventLog(scene.database)

    def append() -> int:
        return log.append(scene.organization, claim.run_id, [NewEvent("1", {"loss": 1.0})])

    def finish() -> Any:
        assert held.wait(WAITING_SECONDS)
        return scene.queue.finish(scene.organization, claim.run_id, COMPLETED)

    def let_go() -> None:
        deadline = time.monotonic() + WAITING_SECONDS
        while not waits_for_lock(scene.database) and time.monotonic() < deadline:
            pass
        release.set()

    added, job, _ = in_threads([append, finish, let_go])
    assert added == 1
    assert job.outputs == {"loss": 1.0}


def test_a_job_whose_conditions_change_while_one_waits_for_it_is_still_there(postgresql_scene: Scene) -> None:
    """PostgreSQL looks at a row anew once it has it, but not at the one it is joined with."""
    scene = postgresql_scene
    job = scene.submit(1)
    held = threading.Event()

    def submit_again() -> None:
        with scene.database.writing() as connection:
            row = require_job(connection, scene.organization, job.id, to_change=True)
            change(connection, row, requirement_id=kept_requirement(connection, Requirement(requires_vram_gb=7.0)))
            held.set()
            deadline = time.monotonic() + WAITING_SECONDS
            while not waits_for_lock(scene.database) and time.monotonic() < deadline:
                pass

    def cancel() -> Any:
        assert held.wait(WAITING_SECONDS)
        return scene.queue.cancel(scene.organization, job.id)

    _, canceled = in_threads([submit_again, cancel])
    assert (canceled.status, canceled.requires_vram_gb) == (JobStatus.CANCELED, 7.0)


def test_a_heartbeat_that_was_answered_keeps_the_run(postgresql_scene: Scene) -> None:
    """It came between reading a lost run and giving it up: either it waits and is refused, or the run goes on."""
    scene = postgresql_scene
    claim = scene.running()
    answer = before_statement(scene.database, "UPDATE", lambda: scene.queue.renew(scene.organization, claim.run_id))
    assert scene.lose_leases() == [claim.job.id]
    assert isinstance(answer(), FencedError)
    assert Listing(scene.database).run(scene.organization, claim.run_id).status is JobStatus.FAILED


def test_a_claim_that_is_asked_again_while_its_run_is_given_up(postgresql_scene: Scene) -> None:
    """It is refused: a run that was given up is nobody's, and the job may run elsewhere already."""
    scene = postgresql_scene
    run_id = scene.running().run_id
    answer = before_statement(
        scene.database, "UPDATE", lambda: scene.queue.claim(scene.organization, scene.worker, run_id)
    )
    scene.lose_leases()
    assert isinstance(answer(), FencedError), answer()


def test_a_worker_that_is_stopped_while_it_claims_gets_nothing(postgresql_scene: Scene) -> None:
    """Whoever stopped it looks for runs of it and gives them back: none may come after that."""
    scene = postgresql_scene
    job = scene.submit().id
    stopped = before_statement(
        scene.database,
        "UPDATE workers",
        lambda: Registry(scene.database).stop(scene.organization, scene.worker, "the machine is needed"),
    )
    with pytest.raises(WorkerStoppedError, match=rf"{scene.worker}: was stopped \(the machine is needed\)"):
        scene.queue.claim(scene.organization, scene.worker, new_run_id())
    assert stopped().status == "stopped"
    after = Listing(scene.database).job(scene.organization, job)
    assert (after.status, after.attempts, after.run_id) == (PENDING, 0, None)


def test_a_file_is_deleted_while_a_job_that_reads_it_is_submitted(postgresql_scene: Scene, tmp_path: Path) -> None:
    """Whichever comes first: the job has its file, or there is no such job."""
    scene = postgresql_scene
    store = FileStore(scene.database, str(tmp_path / "store"), tmp_path / "uploads", max_bytes=100)
    with store.upload(scene.organization) as upload:
        upload.write(b"rows")
        file = store.keep(scene.organization, upload, purpose="result", filename="a").id
    needing = submission(mounted_files={"a": file})
    deleted = before_statement(scene.database, "INSERT INTO jobs", lambda: store.delete(scene.organization, file))
    job = scene.queue.submit(scene.organization, needing, files={file})
    error = deleted()
    assert isinstance(error, JobError), error
    assert f"job {job.id} needs it" in str(error)
    with store.open(scene.organization, file) as (_, parts):
        assert b"".join(parts) == b"rows"


def test_the_same_claim_from_four_threads_at_once(scene: Scene) -> None:
    """Whoever asks twice because an answer is late gets one job; an answer may be an error that is tried again."""
    for number in range(4):
        scene.submit(number)
    run = new_run_id()
    answers = in_threads([lambda: scene.queue.claim(scene.organization, scene.worker, run)] * 4)
    got = [answer for answer in answers if not isinstance(answer, StorageError)]
    assert got
    assert {answer.job.id for answer in got} == {got[0].job.id}
    counts = Listing(scene.database).counts(scene.organization)
    assert (counts[RUNNING], counts[PENDING]) == (1, 3)


def test_a_timeout_that_is_lifted_while_late_jobs_are_looked_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = scene.running(1, timeout_at=time.time() - 1)
    writing = scene.database.writing

    def lifted_before() -> Any:
        monkeypatch.setattr(scene.database, "writing", writing)
        scene.queue.set_timeout(scene.organization, claim.job.id, None)
        return writing()

    monkeypatch.setattr(scene.database, "writing", lifted_before)
    assert scene.queue.expire() == []
    assert Listing(scene.database).job(scene.organization, claim.job.id).status is RUNNING


def test_a_transaction_that_only_reads_sees_one_state(database: Database) -> None:
    """As its docstring says; with two statements a log would be read with a hole in it."""
    scene = Scene(database)
    with database.reading() as connection:
        before = connection.execute(select(jobs.c.id)).all()
        in_threads([scene.submit])
        assert connection.execute(select(jobs.c.id)).all() == before == []
