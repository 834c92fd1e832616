"""Jobs of a client: finding, waiting, logs, downloads. Against a real server and a worker that pretends."""

import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.fake_job_server import JobServer, PretendWorker, job_server
from tests.served import PATIENCE, until
from tutelage.client import OpenWeights, jobs
from tutelage.client.errors import JobFailed
from tutelage.client.job import WaitTimeout
from tutelage.errors import ConfigError, JobError, NotFoundError
from tutelage.jobs.status import JobStatus


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


def test_jobs_are_found_by_what_they_do(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.client
    made = [
        client.jobs.get_or_create_or_reset(
            {
                "type": "custom",
                "script": "true",
                "params": {"validated_params": {"n": n, "meta": {"group": "a" if n else "b", "n": n}, "done": n == 1}},
            }
        )
        for n in range(3)
    ]
    ids = [job.id for job in made]
    assert [job.id for job in client.jobs.list(limit=2)] == [ids[2], ids[1]]
    assert [job.id for job in client.jobs.list(after=ids[1])] == [ids[0]]
    assert [job.id for job in client.jobs.find(n=0)] == [ids[0]]
    assert [job.id for job in client.jobs.find(meta={"group": "a"})] == [ids[2], ids[1]]
    assert [job.id for job in client.jobs.find(validated_params={"done": True})] == [ids[1]]
    assert client.jobs.find(meta={"group": "c"}) == []
    monkeypatch.setattr(jobs, "MAX_PAGE", 1)
    assert [job.id for job in client.jobs.find(meta={"group": "a"})] == [ids[2], ids[1]]
    assert [job.id for job in client.jobs.find()] == ids[::-1]
    made[0].cancel()
    assert [job.id for job in client.jobs.list(status="canceled")] == [ids[0]]
    assert client.jobs.list(kind="api") == []
    assert client.jobs.retrieve(ids[2]).record == made[2].record
    with pytest.raises(NotFoundError, match=r"^job-1: there is no such job"):
        client.jobs.retrieve("job-1")


def test_lists_go_over_pages(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.client import jobs

    monkeypatch.setattr(jobs, "MAX_PAGE", 2)
    ids = [server.client.exec(f"echo {number}").id for number in range(5)]
    assert [job.id for job in server.client.jobs.list(limit=4)] == ids[:0:-1]
    assert len(server.client.jobs.list(limit=100)) == 5


def test_a_job_is_waited_for_and_its_outputs_are_there(server: JobServer) -> None:
    job = server.client.exec("true")
    worker = server.worker()
    looked = f"GET /api/jobs/{job.id}"

    def work() -> None:
        claimed = worker.claim()
        worker.report(claimed.run_id, {"file": "a"}, {"file": None, "accuracy": 0.5})
        until(lambda: server.faults.seen[looked] >= 2, "the wait's second look")
        worker.complete(claimed.run_id)

    thread = threading.Thread(target=work)
    thread.start()
    assert job.wait(poll=0.01) is job
    thread.join()
    assert job.raise_for_status() is job
    assert (job.status, f"{job.status}") == ("completed", "completed")
    assert job.status == JobStatus.COMPLETED
    assert job["outputs"]["file"] == "a"
    assert job.outputs == {"file": "a", "accuracy": 0.5}
    assert job.finished_at is not None
    assert job.finished_at.tzinfo is not None
    with pytest.raises(KeyError):
        job["magic"]


def test_a_wait_has_an_end_where_one_is_asked_for(server: JobServer) -> None:
    job = server.client.exec("true")
    with pytest.raises(WaitTimeout, match=rf"^{job.id}: still pending after 0.05 s; .*tutelage jobs explain"):
        job.wait(timeout=0.05, poll=0.01)
    assert issubclass(WaitTimeout, TimeoutError)


def test_a_wait_outlives_a_restart_of_the_server(server: JobServer) -> None:
    job = server.client.exec("true").cancel()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            server.cable.plug_in()

    server.client.http._sleep = pause
    server.cable.pull_out()
    assert job.wait().status == "canceled"
    assert len(pauses) == 3


def test_a_failure_is_an_error_for_who_asks(server: JobServer) -> None:
    job = server.client.exec("false")
    worker = server.worker()
    claimed = worker.claim()
    worker.api.finish(claimed.run_id, JobStatus.FAILED, exit_code=1, reason="exit code 1")
    assert job.wait().status == "failed"
    with pytest.raises(
        JobFailed, match=rf"^{job.id}: failed: exit code 1; see: tutelage jobs logs {job.id}$"
    ) as caught:
        job.raise_for_status()
    assert caught.value.exit_code == 1
    assert (job.restart().status, job.reason) == ("pending", None)
    assert job.raise_for_status() is job
    assert job.restart().status == "pending"


def test_why_a_job_waits(server: JobServer) -> None:
    job = server.client.exec("true", requires_vram_gb=40)
    assert "no worker is connected" in job.explain().summary
    worker = server.worker(ignore_vram=False, vram_gb=24.0)
    explained = server.client.jobs.explain(job.id)
    assert [(fit.worker_id, fit.fits, fit.reasons) for fit in explained.workers] == [
        (worker.worker.id, False, ["it needs 40 GB of GPU memory, the worker has 24 GB"])
    ]
    assert explained["workers"][0]["name"] == "pretend"
    assert [one.id for one in server.client.workers.list()] == [worker.worker.id]
    assert server.client.workers.stop(worker.worker.id).status == "stopped"


def test_a_job_is_canceled_at_its_time(server: JobServer) -> None:
    when = datetime(2999, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    job = server.client.exec("true")
    assert server.client.jobs.set_timeout(job.id, when).timeout == when
    assert server.client.jobs.set_timeout(job.id, None).timeout is None


def test_logs_are_those_of_the_newest_run(server: JobServer) -> None:
    job = server.client.exec("true")
    assert job.logs() == ""
    with pytest.raises(JobError, match="no run has begun, so there is nothing to download"):
        job.download("anywhere")
    worker = server.worker()
    for text in ("first\n", "sécond\n"):
        claimed = worker.claim()
        worker.api.append_log(claimed.run_id, 0, text.encode())
        worker.complete(claimed.run_id)
        assert job.logs() == text
        job.restart()
    assert [run.attempt for run in job.runs] == [1, 1]
    assert server.client.files.content(job.runs[0].log_file or "") == b"first\n"


def test_a_followed_log_goes_on_through_new_attempts(server: JobServer) -> None:
    """From before the first attempt to the end of the second, which is there because the first was given back."""
    job = server.client.exec("true")
    worker = server.worker()
    heard: list[str] = []

    def listen() -> None:
        heard.extend(job.logs(follow=True))

    listener = threading.Thread(target=listen)
    listener.start()
    first = worker.claim()
    worker.api.append_log(first.run_id, 0, b"one\n")
    follows = f"GET /api/logs/{first.run_id}"
    until(lambda: server.faults.seen[follows] >= 1, "following the first attempt")
    worker.api.finish(first.run_id, JobStatus.PENDING, reason="stopping")
    second = worker.claim()
    worker.api.append_log(second.run_id, 0, b"two\n")
    worker.complete(second.run_id)
    listener.join(PATIENCE)
    assert "".join(heard) == "one\ntwo\n"


def test_a_followed_log_survives_cuts(server: JobServer) -> None:
    """The connection is cut between lines; nothing is lost and nothing said twice."""
    job = server.client.exec("true")
    worker = server.worker()
    claimed = worker.claim()
    follows, heard = f"GET /api/logs/{claimed.run_id}", list[str]()
    say(worker, claimed.run_id, 0, "line 0\n")
    for part in job.logs(follow=True):
        heard.append(part)
        said = "".join(heard)
        lines = said.count("\n")
        if lines == 6:
            break
        if lines % 2 == 0:
            server.cable.pull_out()
            server.cable.plug_in()
        say(worker, claimed.run_id, len(said), f"line {lines}\n")
    assert "".join(heard) == "".join(f"line {number}\n" for number in range(6))
    assert server.faults.seen[follows] >= 3


def say(worker: PretendWorker, run_id: str, start: int, text: str) -> None:
    assert worker.api.append_log(run_id, start, text.encode()) == start + len(text)


def test_downloads_are_of_the_last_run_or_of_all(server: JobServer, tmp_path: Path) -> None:
    job = server.client.exec("true")
    worker = server.worker()
    for content in (b"one", b"two"):
        claimed = worker.claim()
        worker.leave(claimed.run_id, tmp_path, "model/weights.bin", content)
        worker.complete(claimed.run_id)
        job.restart()
    job.download(tmp_path / "last")
    assert (tmp_path / "last" / "model" / "weights.bin").read_bytes() == b"two"
    job.download(tmp_path / "all", only_last_run=False)
    found = [(tmp_path / "all" / run.id / "model" / "weights.bin").read_bytes() for run in job.runs]
    assert found == [b"one", b"two"]


def test_costs_are_told_by_job(server: JobServer) -> None:
    job = server.client.exec("true")
    worker = server.worker()
    worker.complete(worker.claim().run_id)
    report = server.client.costs.report()
    assert [(cost.job_id, cost.kind, cost.runs, cost["dollars"]) for cost in report] == [(job.id, "custom", 1, 0)]
    assert server.client.costs.report(offset=1) == []


def test_the_organisation_is_the_tokens(server: JobServer) -> None:
    client = OpenWeights(base_url=server.url, organization_id=server.client.organization_id)
    assert (client.organization_id, client.org_name) == (server.client.organization_id, "default")
    wrong = OpenWeights(base_url=server.url, organization_id="org-other")
    with pytest.raises(ConfigError, match=r"organization_id: the token is of org-.*, not of org-other"):
        _ = wrong.organization_id


def test_a_client_is_made_without_network() -> None:
    with pytest.warns(UserWarning, match="supabase_url and supabase_key are of OpenWeights' server") as warned:
        client = OpenWeights(base_url="http://127.0.0.1:1", supabase_url="https://x", supabase_key="y", use_async=True)
    assert len(warned) == 1
    assert client.chat is client.async_chat
    assert OpenWeights(base_url="http://127.0.0.1:1").chat is not client.async_chat
    with pytest.raises(TypeError):
        OpenWeights(magic=1)  # pyright: ignore[reportCallIssue] - the mistake
