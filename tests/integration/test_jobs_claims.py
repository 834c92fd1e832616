"""Claims on SQLite and on PostgreSQL: what fits, in which order, asked twice, by workers that were stopped.

Expected values come from section 4 of the specification of jobs, and from the docstrings of `Queue`.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from tests.databases import (
    Scene,
    new_organization,
    new_run_id,
    new_worker,
    submission,
)
from tutelage.errors import FencedError, NotFoundError, WorkerStoppedError
from tutelage.jobs.database import Database
from tutelage.jobs.listing import Listing
from tutelage.jobs.queue import Queue
from tutelage.jobs.registry import Registry
from tutelage.jobs.requirements import CloudType, Offer, Requirement, misfits
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import jobs

PENDING, RUNNING = JobStatus.PENDING, JobStatus.IN_PROGRESS
COMPLETED = JobStatus.COMPLETED


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_a_claim_that_is_asked_again(scene: Scene) -> None:
    """The same run id is the same claim; somebody else's, or one that has ended, is refused."""
    other = new_worker(scene.database, scene.organization)
    scene.submit(1)
    scene.submit(2)
    run = new_run_id()
    first = scene.queue.claim(scene.organization, scene.worker, run)
    scene.seconds += 20
    assert scene.queue.claim(scene.organization, scene.worker, run) == first
    scene.seconds += 20
    assert scene.queue.expire() == []  # asking renews
    with pytest.raises(FencedError, match=run):
        scene.queue.claim(scene.organization, other, run)
    scene.queue.finish(scene.organization, run, COMPLETED)
    with pytest.raises(FencedError, match=f"{run}: this run is completed; claim with a new id"):
        scene.queue.claim(scene.organization, scene.worker, run)
    assert Listing(scene.database).counts(scene.organization)[PENDING] == 1
    with pytest.raises(NotFoundError, match="register again"):
        scene.queue.claim(scene.organization, "worker-0", new_run_id())
    Registry(scene.database).stop(scene.organization, other, "enough")
    with pytest.raises(WorkerStoppedError, match=rf"{other}: was stopped \(enough\); it gets no more jobs"):
        scene.queue.claim(scene.organization, other, new_run_id())
    with pytest.raises(NotFoundError):  # another organisation's worker
        scene.queue.claim(new_organization(scene.database), scene.worker, new_run_id())


TEXTS = st.sampled_from(["a", "b"])
REQUIREMENTS = st.builds(
    Requirement,
    image=st.none() | TEXTS,
    allowed_hardware=st.none() | st.lists(st.sampled_from(["cpu", "1x A100", "2x A100"]), max_size=2).map(tuple),
    requires_vram_gb=st.sampled_from([0, 24, 24.5, 80]),
    cloud_type=st.sampled_from(CloudType),
)
OFFERS = st.builds(
    Offer,
    hardware=st.sampled_from(["cpu", "1x A100", "2x A100"]),
    gpus=st.just(1),
    vram_gb=st.sampled_from([0.0, 24.0, 80.0]),
    cloud_type=st.sampled_from([CloudType.SECURE, CloudType.COMMUNITY]),
    images=st.none() | st.lists(TEXTS, max_size=2, unique=True).map(tuple),
    cached_models=st.just(()) | st.just(("x",)),
    ignore_vram=st.booleans(),
)


def may_run(requirement: Requirement, offer: Offer) -> bool:
    """The four conditions of section 4, said once more."""
    return (
        (requirement.image is None or offer.images is None or requirement.image in offer.images)
        and (requirement.allowed_hardware is None or offer.hardware in requirement.allowed_hardware)
        and (requirement.requires_vram_gb <= offer.vram_gb or offer.ignore_vram)
        and (requirement.cloud_type is CloudType.ALL or requirement.cloud_type is offer.cloud_type)
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(REQUIREMENTS, min_size=1, max_size=6), offer=OFFERS)
def test_a_worker_gets_all_that_fits_it_and_nothing_else(
    database: Database, wanted: list[Requirement], offer: Offer
) -> None:
    organization = new_organization(database)
    queue, worker = Queue(database), new_worker(database, organization, offer)
    submitted = {
        queue.submit(organization, submission(number, requirement=one)).id: one for number, one in enumerate(wanted)
    }
    got: list[str] = []
    while (claim := queue.claim(organization, worker, new_run_id())) is not None:
        got.append(claim.job.id)
    assert got == [job for job, one in submitted.items() if may_run(one, offer)]
    assert all(may_run(one, offer) == (misfits(one, offer) == []) for one in wanted)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), max_skip=st.integers(0, 3))
def test_no_job_is_passed_over_more_often_than_that(database: Database, data: st.DataObject, max_skip: int) -> None:
    """Jobs of three models, workers that have one or none of them cached; some jobs fit only some workers."""
    organization = new_organization(database)
    queue = Queue(database, max_skip=max_skip)
    hardware = ("cpu", "1x A100")
    workers = {
        (kind, model): new_worker(database, organization, Offer(kind, cached_models=(model,) if model else ()))
        for kind in hardware
        for model in (None, "x", "y")
    }
    waiting: dict[str, tuple[str | None, tuple[str, ...] | None, list[int]]] = {}
    number = 0
    for _ in range(data.draw(st.integers(5, 25))):
        if data.draw(st.booleans()) or not waiting:
            allowed = data.draw(st.sampled_from([None, ("cpu",), ("1x A100",)]))
            model = data.draw(st.sampled_from([None, "x", "y"]))
            number += 1
            job = queue.submit(
                organization, submission(number, model=model, requirement=Requirement(allowed_hardware=allowed))
            )
            waiting[job.id] = (model, allowed, [0])
            continue
        (kind, cached), worker = data.draw(st.sampled_from(list(workers.items())))
        claim = queue.claim(organization, worker, new_run_id())
        fitting = [job for job, (_, allowed, _) in waiting.items() if allowed is None or kind in allowed]
        assert (claim is not None) == bool(fitting)
        if claim is None:
            continue
        older = fitting[: fitting.index(claim.job.id)]
        if older:  # out of turn: because it was passed over so often itself, or for a model the worker has
            assert waiting[claim.job.id][2][0] >= max_skip or waiting[claim.job.id][0] == cached
        for job in older:
            waiting[job][2][0] += 1
            assert waiting[job][2][0] <= max_skip
        del waiting[claim.job.id]


def test_a_worker_prefers_the_model_it_has_and_otherwise_the_oldest(scene: Scene) -> None:
    """Jobs x y x y, oldest first; the worker has y: y y, then what is left in order."""
    worker = new_worker(scene.database, scene.organization, Offer(cached_models=("y",)))
    ids = [scene.submit(number, model=model).id for number, model in enumerate("xyxy")]
    got = [scene.claim(worker).job.id for _ in ids]
    assert got == [ids[1], ids[3], ids[0], ids[2]]
    restarted = scene.submit(4).id
    with scene.database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == ids[0]).values(status="failed", run_id=None))
    scene.queue.restart(scene.organization, ids[0])
    assert [scene.claim().job.id for _ in range(2)] == [restarted, ids[0]]  # a restarted one goes to the end
    assert scene.lose_leases() != []
    assert scene.claim().job.id == ids[1]  # one whose worker was lost keeps its place
