"""Real processes on one database: eight that claim at once, and some that are killed between any two statements.

What has to be true afterwards follows from section 4 of the specification: each job once, nothing lost, nothing half.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import and_, event, func, insert, or_, select

from tests.databases import (
    Scene,
    ending_of,
    in_process,
    new_organization,
    new_run_id,
    new_worker,
    submission,
)
from tutelage.errors import NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.listing import Listing
from tutelage.jobs.queue import Queue
from tutelage.jobs.requirements import Offer
from tutelage.jobs.run_logs import RunLogs
from tutelage.jobs.status import JobStatus
from tutelage.jobs.stored_files import FileStore
from tutelage.jobs.tables import files, jobs, runs, workers

JOBS, SUBMITTED, PROCESSES = 2000, 400, 8
CLAIM_SECONDS = 60.0
RUNNING = JobStatus.IN_PROGRESS


def test_eight_processes_claim_two_thousand_jobs_each_once(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They submit some too, the rest are copies. Two workers prefer a model, which takes the other way through SQL."""
    database = Database(url)
    organization = new_organization(database)
    offers = [Offer(cached_models=("m",) if number < 2 else ()) for number in range(PROCESSES)]
    ids = [new_worker(database, organization, offer) for offer in offers]
    database.close()

    def all_at_once(step: Callable[[Database, int], None]) -> float:
        def start(number: int) -> Callable[[], None]:
            def run() -> None:
                own = Database(url)
                step(own, number)
                own.close()

            return run

        begin = time.monotonic()
        started = [in_process(start(number)) for number in range(PROCESSES)]
        assert [ending_of(pid) for pid in started] == [0] * PROCESSES
        return time.monotonic() - begin

    def submit(own: Database, number: int) -> None:
        queue = Queue(own)
        for at in range(number, SUBMITTED, PROCESSES):
            queue.submit(organization, submission(at, model="m" if at % 3 else None))

    def work(own: Database, number: int) -> None:
        queue, listing = Queue(own), Listing(own)
        with (tmp_path / f"{number}.txt").open("w") as claimed:
            while True:
                claim = queue.claim(organization, ids[number], new_run_id())
                if claim is not None:
                    claimed.write(f"{claim.job.id}\n")
                    queue.finish(organization, claim.run_id, JobStatus.COMPLETED)
                elif listing.counts(organization)[JobStatus.PENDING] == 0:
                    return

    submitting = all_at_once(submit)
    database = Database(url)
    with database.writing() as connection:
        rows = [row._asdict() for row in connection.execute(select(jobs))]
        assert len(rows) == SUBMITTED
        for copy in range(1, JOBS // SUBMITTED):
            connection.execute(
                insert(jobs),
                [
                    {**row, "id": f"{row['id']}-{copy}", "queue_number": row["queue_number"] + copy * SUBMITTED}
                    for row in rows
                ],
            )
    database.close()
    working = all_at_once(work)
    with capsys.disabled():
        name = url.partition(":")[0]
        print(
            f"\n{name}: {PROCESSES} processes submit {SUBMITTED} in {submitting:.1f} s, run {JOBS} in {working:.1f} s"
        )
    claimed = [(tmp_path / f"{number}.txt").read_text().split() for number in range(PROCESSES)]
    everything = [job for some in claimed for job in some]
    assert len(everything) == len(set(everything)) == JOBS
    assert all(claimed)
    database = Database(url)
    stored = Listing(database).jobs(organization, limit=JOBS + 1)
    assert {job.id for job in stored} == set(everything)
    assert {(job.status, job.attempts) for job in stored} == {(JobStatus.COMPLETED, 1)}
    assert_consistent(database)
    database.close()
    assert working < CLAIM_SECONDS


def assert_consistent(database: Database) -> None:
    """No row contradicts another, whoever was killed when."""
    broken = {
        "a live run is not that of its job": select(runs.c.id)
        .join(jobs, runs.c.job_id == jobs.c.id)
        .where(runs.c.status == RUNNING.value, or_(jobs.c.run_id.is_(None), jobs.c.run_id != runs.c.id)),
        "a job in progress has no live run": select(jobs.c.id)
        .outerjoin(runs, and_(runs.c.id == jobs.c.run_id, runs.c.status == RUNNING.value))
        .where(jobs.c.status == RUNNING.value, runs.c.id.is_(None)),
        "a worker is busy with a run that has ended": select(workers.c.id)
        .outerjoin(runs, and_(runs.c.id == workers.c.run_id, runs.c.status == RUNNING.value))
        .where(workers.c.run_id.is_not(None), runs.c.id.is_(None)),
        "a job has two live runs": select(runs.c.job_id)
        .where(runs.c.status == RUNNING.value)
        .group_by(runs.c.job_id)
        .having(func.count() > 1),
    }
    with database.reading() as connection:
        assert {what: rows for what, query in broken.items() if (rows := connection.execute(query).all())} == {}


@dataclass(frozen=True)
class Killed:
    """What a process did that was killed at one point after another, and what is there when it is done again."""

    name: str
    prepare: Callable[[Scene], dict[str, Any]]
    act: Callable[[Scene, dict[str, Any]], Any]
    expect: Callable[[Scene, dict[str, Any], Any], None]


def running(scene: Scene) -> dict[str, Any]:
    claim = scene.running(new_run_id())
    return {"run": claim.run_id, "job": claim.job.id}


def lost(scene: Scene) -> dict[str, Any]:
    ids = running(scene)
    scene.seconds += scene.queue.lease_seconds + 1
    return ids


def waiting(scene: Scene) -> dict[str, Any]:
    return {"run": new_run_id(), "job": scene.submit(new_run_id()).id}


def job_of(scene: Scene, ids: dict[str, Any]) -> tuple[JobStatus, int]:
    job = Listing(scene.database).job(scene.organization, ids["job"])
    return job.status, job.attempts


def stands_at(status: JobStatus, attempts: int) -> Callable[[Scene, dict[str, Any], Any], None]:
    def check(scene: Scene, ids: dict[str, Any], _: Any) -> None:
        assert job_of(scene, ids) == (status, attempts)

    return check


def claimed_once(scene: Scene, ids: dict[str, Any], claim: Any) -> None:
    assert (claim.job.id, claim.attempt, job_of(scene, ids)) == (ids["job"], 1, (RUNNING, 1))
    assert scene.lose_leases() == [ids["job"]]


def events_once(scene: Scene, ids: dict[str, Any], _: Any) -> None:
    got = EventLog(scene.database).of_run(scene.organization, ids["run"])
    assert [one.data for one in got] == [{"step": 1}, {"step": 2}]
    assert EventLog(scene.database).latest(scene.organization, run_id=ids["run"]) == {"step": 2}


def log_once(scene: Scene, ids: dict[str, Any], end: int) -> None:
    assert (end, RunLogs(scene.database).read(scene.organization, ids["run"]).content) == (9, b"some text")


def kept(scene: Scene, ids: dict[str, Any], stored: Any) -> None:
    with ids["files"](scene).open(scene.organization, stored.id) as (_, parts):
        assert b"".join(parts) == ids["content"]


def keep(scene: Scene, ids: dict[str, Any]) -> Any:
    store: FileStore = ids["files"](scene)
    with store.upload(scene.organization) as upload:
        upload.write(ids["content"])
        return store.keep(scene.organization, upload, purpose="result", filename="a")


def delete(scene: Scene, ids: dict[str, Any]) -> None:
    try:
        ids["files"](scene).delete(scene.organization, ids["id"])
    except NotFoundError:
        assert ids.get("again")  # the first call had done it


STEPS = [
    Killed(
        "submit",
        lambda _: {"number": new_run_id()},
        lambda scene, ids: scene.submit(ids["number"]),
        lambda scene, _, job: stands_at(JobStatus.PENDING, 0)(scene, {"job": job.id}, job),
    ),
    Killed(
        "claim",
        waiting,
        lambda scene, ids: scene.queue.claim(scene.organization, scene.worker, ids["run"]),
        claimed_once,
    ),
    Killed(
        "finish",
        running,
        lambda scene, ids: scene.queue.finish(scene.organization, ids["run"], JobStatus.COMPLETED),
        stands_at(JobStatus.COMPLETED, 1),
    ),
    Killed(
        "give back",
        running,
        lambda scene, ids: scene.queue.finish(scene.organization, ids["run"], JobStatus.PENDING),
        stands_at(JobStatus.PENDING, 0),
    ),
    Killed(
        "cancel",
        running,
        lambda scene, ids: scene.queue.cancel(scene.organization, ids["job"]),
        stands_at(JobStatus.CANCELED, 1),
    ),
    Killed(
        "expire",
        lost,
        lambda scene, _: scene.queue.expire(),
        stands_at(JobStatus.PENDING, 1),
    ),
    Killed(
        "events",
        running,
        lambda scene, ids: EventLog(scene.database).append(
            scene.organization, ids["run"], [NewEvent("a", {"step": 1}), NewEvent("b", {"step": 2})]
        ),
        events_once,
    ),
    Killed(
        "log",
        running,
        lambda scene, ids: RunLogs(scene.database).append(scene.organization, ids["run"], 0, b"some text"),
        log_once,
    ),
]


def killed_at(scene: Scene, point: int, act: Callable[[], object]) -> bool:
    """Do it in a process that kills itself before its statement number `point`, or before or after its last commit.

    False where it has fewer.
    """
    scene.database.close()  # SQLite must not be carried into a fork while it is open

    def run() -> None:
        seen = 0

        def count(*_: Any) -> None:
            nonlocal seen
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        scene.database.engine.dispose(close=False)
        event.listen(scene.database.engine, "before_cursor_execute", count)
        event.listen(scene.database.engine, "commit", count)
        act()
        count()  # all is done, and nobody was told

    ending = ending_of(in_process(run))
    assert ending in (0, -signal.SIGKILL)
    return ending != 0


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_killed_between_any_two_statements_and_done_again(scene: Scene, step: Killed) -> None:
    """Whoever did not hear the answer asks again, and finds what one whole call would have left."""
    point = 0
    while True:
        ids = step.prepare(scene)
        was_killed = killed_at(scene, point, lambda ids=ids: step.act(scene, ids))
        assert_consistent(scene.database)
        if was_killed:
            step.expect(scene, ids, step.act(scene, ids))
            assert_consistent(scene.database)
        else:
            assert point > 2
            return
        _out_of_the_way(scene)
        point += 1


def watched(call: Callable[..., Any], stop: Callable[[], None]) -> Callable[..., Any]:
    """The same call, with a point before and one after it."""

    def around(*arguments: Any, **named: Any) -> Any:
        stop()
        result = call(*arguments, **named)
        stop()
        return result

    return around


@pytest.mark.parametrize("step", ["keep", "delete"])
def test_killed_while_a_file_comes_or_goes(scene: Scene, tmp_path: Path, step: str) -> None:
    """Killed also before and after each change in the store: never a record without content."""

    def store(of: Scene, stop: Callable[[], None] = lambda: None) -> FileStore:
        opened = FileStore(of.database, str(tmp_path / "store"), tmp_path / "uploads", max_bytes=1000)
        own: Any = opened.contents._store  # pyright: ignore[reportPrivateUsage] - the points between its calls
        for name in ("put_file", "mv", "rm_file"):
            setattr(own, name, watched(getattr(type(own), name).__get__(own), stop))
        return opened

    point = 0
    while True:
        ids: dict[str, Any] = {"content": os.urandom(100), "files": store}
        if step == "delete":
            ids["id"] = keep(scene, ids).id
        act = keep if step == "keep" else delete

        def acting(ids: dict[str, Any] = ids, act: Any = act, point: int = point) -> None:
            seen = 0

            def count(*_: Any) -> None:
                nonlocal seen
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

            event.listen(scene.database.engine, "before_cursor_execute", count)
            event.listen(scene.database.engine, "commit", count)
            act(scene, {**ids, "files": lambda of: store(of, count)})
            count()

        was_killed = killed_at(scene, -1, acting)
        with scene.database.reading() as connection:
            hashes = set(connection.execute(select(files.c.content_hash)).scalars())
        there = {path.name for path in (tmp_path / "store").glob("??/*")}
        assert hashes <= there, f"{step}, point {point}"
        if not was_killed:
            assert point > 4
            return
        if step == "keep":
            kept(scene, ids, keep(scene, ids))
        else:
            delete(scene, {**ids, "again": True})
        point += 1


def _out_of_the_way(scene: Scene) -> None:
    with scene.database.writing() as connection:
        for name in ("log_chunks", "events", "runs", "jobs"):
            connection.execute(jobs.metadata.tables[name].delete())
        connection.execute(workers.update().values(run_id=None))
