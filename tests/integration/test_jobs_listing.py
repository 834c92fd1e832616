"""Looking jobs up: pages, finding by params, why a job waits, what was spent."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from tests.databases import Scene, in_threads, new_organization, new_worker, submission
from tutelage.errors import NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.listing import JobFilter, Listing, contains
from tutelage.jobs.queue import Queue
from tutelage.jobs.registry import SILENT_AFTER_SECONDS, Registration, Registry
from tutelage.jobs.requirements import Offer, Requirement
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import runs, workers

KEYS = st.sampled_from(["a", "b", "ä", "50%", "x_y", 'q"'])
LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, "a", "A", "ä", "%", "_", 'q"', "\\", ""])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=4
)
PARAMS = st.dictionaries(KEYS, VALUES, max_size=3)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARAMS, min_size=1, max_size=5), PARAMS)
def test_finding_is_containment(database: Database, stored: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    """What the database leaves out beforehand never leaves out a job that has what is wanted."""
    organization = new_organization(database)
    ids = {
        Queue(database).submit(organization, submission(params={**params, "n": number})).id: params
        for number, params in enumerate(stored)
    }
    found = {job.id for job in Listing(database).jobs(organization, JobFilter(params=wanted))}
    assert found == {job for job, params in ids.items() if contains(params, wanted)}


@pytest.mark.parametrize(
    ("there", "wanted", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": [1, {"x": 2, "y": 3}]}, {"a": [{"x": 2}]}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
        ({"a": "text"}, {"a": "tex"}, False),
    ],
)
def test_what_contains_what(there: Any, wanted: Any, expected: bool) -> None:
    assert contains(there, wanted) is expected


def test_a_model_is_found_by_the_name_that_was_chosen_for_it(scene: Scene) -> None:
    """The newest that is there: one that still trains, or failed, has left none; a default is the name of all."""
    queue, organization, listing = scene.queue, scene.organization, Listing(scene.database)

    def trained(number: int, name: str, status: JobStatus | None, kind: str = "fine_tuning") -> str:
        params = {"finetuned_model_id": name, "number": number}
        claim = scene.running(kind=kind, params=params)
        if status is not None:
            queue.finish(organization, claim.run_id, status)
        return claim.job.id

    trained(1, "me/mine", JobStatus.COMPLETED)
    newest = trained(2, "me/mine", JobStatus.COMPLETED, "weighted_sft")
    trained(3, "me/mine", JobStatus.FAILED)
    trained(4, "me/mine", None)
    trained(5, "me/mine", JobStatus.COMPLETED, "custom")
    other = trained(6, "me/other", JobStatus.COMPLETED)
    default = "{org_id}/{model_name}-{job_id}"
    trained(7, default, JobStatus.COMPLETED)
    assert [job.id for name in ("me/mine", "me/other") if (job := listing.trained_as(organization, name))] == [
        newest,
        other,
    ]
    for name in ("me/min", "ME/mine", "", default):
        assert listing.trained_as(organization, name) is None
    assert listing.trained_as(new_organization(scene.database), "me/mine") is None


def test_finding_stops_at_its_limit(scene: Scene) -> None:
    """The newest first; what is left unread does not stay open."""
    ids = [scene.submit(number, params={"same": 1, "number": number}).id for number in range(5)]
    found = Listing(scene.database).jobs(scene.organization, JobFilter(params={"same": 1}), limit=2)
    assert [job.id for job in found] == ids[:2:-1]


def test_pages_and_filters(scene: Scene) -> None:
    """Each job once, newest first; `%` and `_` in a search are themselves."""
    ids = [scene.submit(number, params={"note": note}, model=note).id for number, note in enumerate(["a%", "ab", "a_"])]
    listing = Listing(scene.database)
    assert [job.id for job in listing.jobs(scene.organization)] == ids[::-1]
    pages, after = [], None
    while page := listing.jobs(scene.organization, limit=2, after=after):
        after = page[-1].id
        pages += page
    assert [job.id for job in pages] == ids[::-1]
    for search, expected in (("A%", [ids[0]]), ("_", [ids[2]]), (ids[1], [ids[1]]), ("none", [])):
        assert [job.id for job in listing.jobs(scene.organization, JobFilter(search=search))] == expected
    with pytest.raises(NotFoundError):
        listing.jobs(new_organization(scene.database), after=ids[0])
    assert listing.jobs(new_organization(scene.database)) == []


def test_why_a_job_waits(scene: Scene) -> None:
    """No worker; one that does not fit; busy ones; free ones; those not heard from do not count."""
    listing = Listing(scene.database)
    Registry(scene.database).stop(scene.organization, scene.worker, "away")
    ahead = scene.submit(0)
    job = scene.submit(1, requirement=Requirement(requires_vram_gb=24)).id
    explained = listing.explain(scene.organization, job)
    assert explained.summary == "no worker is connected; start one with: tutelage worker"
    assert (explained.ahead, explained.workers) == (1, [])
    scene.worker = new_worker(scene.database, scene.organization, name="small")
    assert listing.explain(scene.organization, job).summary == (
        "no worker fits: small: it needs 24 GB of GPU memory, the worker has 0 GB"
    )
    large = new_worker(scene.database, scene.organization, Offer("1x A100", 1, 80), name="large")
    assert "a worker that fits is free" in listing.explain(scene.organization, job).summary
    assert scene.claim(large).job.id == ahead.id
    assert listing.explain(scene.organization, job).summary == (
        "1 of 2 workers fit and all are busy; 0 pending jobs are ahead"
    )
    with scene.database.writing() as connection:
        silent = time.time() - SILENT_AFTER_SECONDS - 1
        connection.execute(update(workers).where(workers.c.id == large).values(last_seen_at=silent))
    assert "no worker fits: small" in listing.explain(scene.organization, job).summary
    assert listing.explain(scene.organization, ahead.id).summary.startswith("it runs as run-")


def test_costs_are_hours_times_price(scene: Scene) -> None:
    """Two attempts of an hour and a half and of half an hour at 2 dollars an hour: 4 dollars, 2 hours."""
    registry = Registry(scene.database)
    scene.worker = registry.register(scene.organization, Registration("dear", Offer(), "1.0", cost_per_hour=2.0)).id
    claim = scene.running()
    scene.lose_leases()
    again = scene.claim()
    scene.queue.finish(scene.organization, again.run_id, JobStatus.COMPLETED)
    with scene.database.writing() as connection:
        for run, seconds in ((claim.run_id, 5400.0), (again.run_id, 1800.0)):
            connection.execute(update(runs).where(runs.c.id == run).values(created_at=1e9, finished_at=1e9 + seconds))
    (cost,) = Listing(scene.database).costs(scene.organization)
    assert (cost.job_id, cost.runs, cost.hours, cost.dollars) == (claim.job.id, 2, 2.0, 4.0)


def test_reports_of_a_worker_at_once(scene: Scene) -> None:
    registry = Registry(scene.database)

    def report(number: int) -> Any:
        return registry.report(
            scene.organization, scene.worker, cached_models=[f"m{number}", "x\0"], disk_free_gb=float(number)
        )

    answers = in_threads([lambda number=number: report(number) for number in range(4)])
    (worker,) = registry.list(scene.organization)
    assert worker.cached_models[0] == f"m{worker.disk_free_gb:.0f}"
    assert worker.cached_models[1] == "x\ufffd"
    assert all(answer.id == worker.id for answer in answers)
    with pytest.raises(NotFoundError):
        registry.report(new_organization(scene.database), worker.id, cached_models=[], disk_free_gb=None)
