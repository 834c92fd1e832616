"""The calls of a worker, each made again after a lost answer. Against a real server."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_job_server import JobServer, job_server
from tests.served import new_run_id
from tutelage.client.errors import AccessError, ConnectionFailed
from tutelage.client.results import NewEvent
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import FencedError, WorkerStoppedError
from tutelage.jobs.requirements import CloudType, Offer
from tutelage.jobs.status import JobStatus


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture
def api(server: JobServer) -> WorkerApi:
    return WorkerApi(server.url, sleep=lambda _: None)


def test_a_worker_says_what_it_has(server: JobServer, api: WorkerApi) -> None:
    offer = Offer("2x A100", 2, 160.0, CloudType.COMMUNITY, ("image:1",), ("smollm2",))
    worker = api.register("big", "1.2", offer, cost_per_hour=2.5)
    assert (worker.hardware, worker.gpus, worker.vram_gb, worker.images) == ("2x A100", 2, 160.0, ["image:1"])
    assert (worker.cloud_type, worker.cached_models, worker.cost_per_hour) == ("COMMUNITY", ["smollm2"], 2.5)
    changed = api.report(worker.id, cached_models=["a", "b"], disk_free_gb=12.5)
    assert (changed.cached_models, changed.disk_free_gb) == (["a", "b"], 12.5)
    stopped = api.stop(worker.id, "no more work")
    assert (stopped.status, stopped.reason) == ("stopped", "no more work")
    with pytest.raises(WorkerStoppedError, match=rf"^{worker.id}: was stopped \(no more work\)"):
        api.claim(worker.id, new_run_id(), wait=0)
    assert api.me().organization.id == api.organization_id == server.client.organization_id


def test_a_claim_has_all_that_its_process_needs(server: JobServer, api: WorkerApi) -> None:
    server.client.secrets.set("JUDGE_KEY", "very secret")
    assert server.client.secrets.list() == ["JUDGE_KEY"]
    job = server.client.exec("true")
    worker = api.register("w", "1", Offer())
    claimed = api.claim(worker.id, new_run_id(), wait=0)
    assert claimed is not None
    assert (claimed.job.id, claimed.attempt, claimed.environment) == (job.id, 1, {"JUDGE_KEY": "very secret"})
    assert 0 < claimed.heartbeat_seconds < claimed.lease_seconds
    assert claimed.token not in repr(claimed)
    assert "very secret" not in repr(claimed)
    assert WorkerApi(server.url, claimed.token).me().run_id == claimed.run_id
    assert api.claim(worker.id, new_run_id(), wait=0) is None
    server.client.secrets.delete("JUDGE_KEY")
    assert server.client.secrets.list() == []


def test_a_claim_whose_answer_was_lost_is_the_same_claim(server: JobServer, api: WorkerApi) -> None:
    jobs = {server.client.exec(f"echo {number}").id for number in range(3)}
    worker = api.register("w", "1", Offer())
    run_id = new_run_id()
    server.cable.lose_answers = 2
    first = api.claim(worker.id, run_id, wait=0)
    again = api.claim(worker.id, run_id, wait=0)
    assert first is not None
    assert again is not None
    assert (first.job.id, first.run_id) == (again.job.id, again.run_id)
    assert first.job.id in jobs
    assert len(server.client.jobs.list(status="pending")) == 2


def test_log_and_events_that_are_sent_twice_are_there_once(server: JobServer, api: WorkerApi) -> None:
    server.client.exec("true")
    worker = api.register("w", "1", Offer())
    claimed = api.claim(worker.id, new_run_id(), wait=0)
    assert claimed is not None
    run = claimed.run_id
    server.cable.lose_answers = 1
    assert api.append_log(run, 0, b"one\n") == 4
    assert api.append_log(run, 2, b"e\ntwo\n") == 8  # overlaps with what is there
    assert api.append_log(run, 100, b"lost") == 8  # behind a gap: send from 8 on
    assert api.append_log(run, 8, b"") == 8
    server.cable.lose_answers = 1
    assert api.append_events(run, [NewEvent("a", {"n": 1}), NewEvent("b", {"n": 2})]) == 0  # the second time
    assert api.append_events(run, [NewEvent("b", {"n": 2}), NewEvent("c", {"n": 3})]) == 1
    assert server.client.runs.retrieve(run).logs() == "one\ntwo\n"
    assert [event.data["n"] for event in api.events(run_id=run)] == [1, 2, 3]
    assert api.append_events(run, []) == 0


def test_a_long_part_of_a_log_goes_in_pieces(server: JobServer, api: WorkerApi) -> None:
    """The server takes 4 MiB at once."""
    server.client.exec("true")
    worker = api.register("w", "1", Offer())
    claimed = api.claim(worker.id, new_run_id(), wait=0)
    assert claimed is not None
    content = secrets.token_bytes(9 * 1024 * 1024)
    assert api.append_log(claimed.run_id, 0, content) == len(content)
    assert server.faults.seen[f"POST /api/logs/{claimed.run_id}"] == 3
    assert server.client.files.content(f"log:{claimed.run_id}") == content


def test_an_end_whose_answer_was_lost_is_no_error(server: JobServer, api: WorkerApi) -> None:
    job = server.client.exec("true")
    worker = api.register("w", "1", Offer())
    claimed = api.claim(worker.id, new_run_id(), wait=0)
    assert claimed is not None
    assert not api.heartbeat(claimed.run_id).cancel
    job.cancel()
    assert api.heartbeat(claimed.run_id).cancel
    server.cable.lose_answers = 1
    assert api.finish(claimed.run_id, JobStatus.CANCELED, reason="asked to").status is JobStatus.CANCELED
    with pytest.raises(FencedError):
        api.append_log(claimed.run_id, 0, b"late")
    assert [run.status for run in api.runs(job.id)] == [JobStatus.CANCELED]
    assert api.job(job.id).status is JobStatus.CANCELED


def test_a_heartbeat_does_not_wait_for_long(server: JobServer, api: WorkerApi) -> None:
    """The lease goes on; the next heartbeat is due soon."""
    server.client.exec("true")
    worker = api.register("w", "1", Offer())
    claimed = api.claim(worker.id, new_run_id(), wait=0)
    assert claimed is not None
    server.cable.pull_out()
    with pytest.raises(ConnectionFailed):
        api.heartbeat(claimed.run_id, patience=0)


def test_a_pause_may_be_broken_off(server: JobServer) -> None:
    """A worker that is told to stop does not sit out its patience."""

    class Stopping(Exception):
        pass

    def stop(_: float) -> None:
        raise Stopping

    api = WorkerApi(server.url, sleep=stop)
    server.faults.answers["GET /api/me"] = [500]
    with pytest.raises(Stopping):
        api.me()


def test_files_go_both_ways(server: JobServer, api: WorkerApi, tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"result")
    file = api.upload(tmp_path / "out.bin", "result")
    assert api.download(file.id, tmp_path / "cache" / "in.bin").read_bytes() == b"result"


def test_a_worker_needs_the_scope_of_one(tmp_path: Path, migrated_sqlite: Path) -> None:
    with job_server(tmp_path / "closed", migrated_sqlite, require_tokens=True) as server:
        submitter = server.client.tokens.create("s", ["submit"]).secret
        with pytest.raises(AccessError, match="scope 'worker'"):
            WorkerApi(server.url, submitter).register("w", "1", Offer())
        of_worker = server.client.tokens.create("w", ["worker"]).secret
        api = WorkerApi(server.url, of_worker)
        assert api.register("w", "1", Offer()).name == "w"
        # It may not read files, so it cannot ask whether a large one is there; it sends it.
        (tmp_path / "large.bin").write_bytes(secrets.token_bytes(2 * 1024 * 1024))
        assert api.upload(tmp_path / "large.bin", "result").id == api.upload(tmp_path / "large.bin", "result").id
