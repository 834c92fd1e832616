"""What only the page looks up, on both databases: each view with records of two organisations."""

from pathlib import Path
from typing import Any

import pytest

from tests.databases import Scene
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.records import Claim
from tutelage.jobs.status import JobStatus
from tutelage.jobs.stored_files import FileStore
from tutelage.server.page.records import PageRecords


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


@pytest.fixture
def records(database: Database) -> PageRecords:
    return PageRecords(database)


def report(scene: Scene, claim: Claim, *data: dict[str, Any], file: str | None = None) -> None:
    log = EventLog(scene.database)
    before = len(log.of_run(scene.organization, claim.run_id))
    log.append(scene.organization, claim.run_id, [NewEvent(str(before + at), one, file) for at, one in enumerate(data)])


def kept(scene: Scene, folder: Path, content: bytes, purpose: str, name: str) -> str:
    store = FileStore(scene.database, str(folder / "files"), folder / "incoming", max_bytes=1000)
    with store.upload(scene.organization) as upload:
        upload.write(content)
        return store.keep(scene.organization, upload, purpose=purpose, filename=name).id


def test_files_of_runs_are_the_newest_of_each_path(
    scene: Scene, records: PageRecords, database: Database, tmp_path: Path
) -> None:
    """Reported twice at `a.bin`: the second counts. One that was deleted has no size; one without a path, its name."""
    claim = scene.running()
    old = kept(scene, tmp_path, b"old", "result", "a.bin")
    new = kept(scene, tmp_path, b"newer", "result", "a.bin")
    sample = kept(scene, tmp_path, b"{}", "samples", "samples_1.jsonl")
    report(scene, claim, {"file": old, "path": "a.bin"}, file=old)
    report(scene, claim, {"file": new, "path": "a.bin"}, file=new)
    report(scene, claim, {"type": "samples", "step": 7, "tag": "everyday"}, file=sample)
    report(scene, claim, {"path": "gone.bin"}, file="result:file-000000000000")
    report(scene, claim, {"loss": 1.0})
    files = records.files_of(scene.organization, [claim.run_id])
    assert [(file.path, file.file_id, file.bytes, file.purpose, file.step, file.tag) for file in files] == [
        ("gone.bin", "result:file-000000000000", None, None, None, ""),
        ("samples_1.jsonl", sample, 2, "samples", 7, "everyday"),
        ("a.bin", new, 5, "result", None, ""),
    ]
    assert records.files_of(scene.organization, []) == []
    assert records.files_of(Scene(database).organization, [claim.run_id]) == []


def test_events_of_a_tag_come_newest_first(scene: Scene, records: PageRecords) -> None:
    """And the id of the newest event of a run is where its stream goes on: 0 before the first."""
    claim, other = scene.running(1), scene.running(2)
    assert records.newest_event(claim.run_id) == 0
    report(scene, claim, *({"tag": "warning", "step": step} for step in range(4)), {"tag": "train", "step": 9})
    report(scene, other, {"tag": "warning", "step": 100})
    assert [data["step"] for data in records.tagged(claim.run_id, "warning", limit=3)] == [3, 2, 1]
    newest = EventLog(scene.database).of_run(scene.organization, claim.run_id)[-1]
    assert records.newest_event(claim.run_id) == newest.id


def test_runs_come_newest_first_or_as_they_were_asked_for(
    scene: Scene, records: PageRecords, database: Database
) -> None:
    """Of one job two runs, the second of which is its newest."""
    first, other = scene.running(1), scene.running(2)
    scene.queue.finish(scene.organization, first.run_id, JobStatus.FAILED)
    scene.queue.restart(scene.organization, first.job.id)
    second = scene.claim()
    assert second.job.id == first.job.id
    organization = scene.organization
    assert [run.id for run in records.runs(organization)] == [second.run_id, other.run_id, first.run_id]
    wanted = [other.run_id, first.run_id, "run-unknown"]
    found = records.runs(organization, ids=wanted)
    assert [run.id for run in found] == wanted[:2]
    assert [(run.job_id, run.kind, run.status, run.params["number"]) for run in found] == [
        (other.job.id, "custom", JobStatus.IN_PROGRESS, 2),
        (first.job.id, "custom", JobStatus.FAILED, 1),
    ]
    assert records.runs(organization, kind="inference") == []
    jobs = [other.job.id, first.job.id, "custom-unknown", other.job.id]
    assert records.newest_runs(organization, jobs) == [other.run_id, second.run_id]
    stranger = Scene(database).organization
    assert records.runs(stranger) == records.runs(stranger, ids=wanted) == records.newest_runs(stranger, jobs) == []


def test_evaluations_are_completed_jobs_that_asked_a_model(
    scene: Scene, records: PageRecords, database: Database, tmp_path: Path
) -> None:
    """With the name of the file they asked; those that go on, failed, or asked another model are left out."""
    dataset = kept(scene, tmp_path, b"rows", "mc_eval", "task.jsonl")
    ends = {"mine": "done", "theirs": "done", "unfinished": None, "broken": JobStatus.FAILED}
    for name, end in ends.items():
        claim = scene.running(
            name,
            kind="multiple_choice",
            model="ftjob-other" if name == "theirs" else "ftjob-mine",
            params={"number": name, "dataset": dataset},
        )
        report(scene, claim, {"accuracy": 0.5})
        if end is not None:
            status = JobStatus.COMPLETED if end == "done" else JobStatus.FAILED
            scene.queue.finish(scene.organization, claim.run_id, status)
    (found,) = records.evaluations(scene.organization, ["ftjob-mine"])
    assert (found.kind, found.model, found.dataset, found.outputs) == (
        "multiple_choice",
        "ftjob-mine",
        "task.jsonl",
        {"accuracy": 0.5},
    )
    assert records.evaluations(Scene(database).organization, ["ftjob-mine"]) == []


def test_workers_have_names(scene: Scene, records: PageRecords, database: Database) -> None:
    """By id; none for those of others and for none at all."""
    assert records.worker_names(scene.organization, [scene.worker, None, "worker-x"]) == {scene.worker: "worker"}
    assert records.worker_names(scene.organization, [None]) == {}
    assert records.worker_names(Scene(database).organization, [scene.worker]) == {}
