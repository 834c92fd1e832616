"""What a worker does with jobs of a real server when nothing goes wrong but the jobs."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from tests.served import Api, Served, served, until
from tests.workers import Working, api, ended, events, log, runs, server, status, word, working
from tutelage.client.errors import ConnectionFailed
from tutelage.client.results import ClaimedJob
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import NotFoundError
from tutelage.jobs.records import Renewal
from tutelage.jobs.requirements import CloudType
from tutelage.jobs.tables import workers as workers_table
from tutelage.worker import job_run, worker
from tutelage.worker.hardware import Gpus, HardwareError
from tutelage.worker.settings import LogLimits

__all__ = ["api", "server"]


@pytest.fixture
def at_work(server: Served, tmp_path: Path) -> Iterator[Working]:
    with working(server.url, tmp_path / "worker") as running:
        yield running


def done(api: Api, entrypoint: str, **job: Any) -> tuple[dict[str, Any], str]:
    """The job when it has ended, and its log."""
    submitted = api.submit(entrypoint=entrypoint, **job)
    return ended(api, submitted), log(api, submitted)


def test_a_log_is_there_while_the_job_runs(api: Api, at_work: Working, tmp_path: Path) -> None:
    job = api.submit(entrypoint=f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo two >&2")
    until(lambda: log(api, job) == "one\n", "the first line")
    assert status(api, job) == "in_progress"
    (tmp_path / "go").touch()
    assert ended(api, job)["status"] == "completed"
    assert log(api, job) == "one\ntwo\n"
    assert runs(api, job)[0]["exit_code"] == 0


def test_what_a_job_finds(api: Api, at_work: Working) -> None:
    """Its environment and folder as the contract has them; its token may report events of its own run."""
    rows = api.upload(b'{"a": 1}\n', name="rows.jsonl")["id"]
    script = api.upload(b"import sys; print('mounted', *sys.argv[1:])", name="main.py")["id"]
    entrypoint = (
        "python data/main.py $TUTELAGE_JOB_ID $N_GPUS; ls; cat params.json; cat $(python -c "
        '\'import json; print(json.load(open("params.json"))["deep"][0]["file"])\'); '
        """python -c '
import json, os, urllib.request
body = {"run_id": os.environ["TUTELAGE_RUN_ID"], "events": [{"id": "1", "data": {"tag": "train", "loss": 2.5}}]}
headers = {"Authorization": "Bearer " + os.environ["TUTELAGE_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["TUTELAGE_URL"] + "/api/events", json.dumps(body).encode(), headers)
print(urllib.request.urlopen(request).read().decode())'"""
    )
    job, printed = done(api, entrypoint, params={"deep": [{"file": rows}]}, mounted_files={"data/main.py": script})
    assert job["status"] == "completed", (job, printed)
    path = re.search(r'"file": "(.*)"', printed)
    assert path is not None
    assert path[1].endswith(f"/job/files/{rows.replace(':', '-')}.jsonl")
    assert printed.startswith(f"mounted {job['id']} 0\ndata\nfiles\njob.json\nparams.json\nuploads\n")
    assert printed.endswith('{"a": 1}\n{"added":1}\n')
    assert job["outputs"] == {"tag": "train", "loss": 2.5}


def test_uploads_become_files_and_events(api: Api, at_work: Working, tmp_path: Path) -> None:
    """Also of a job that failed; a link leads nothing out, and nothing is left on the worker."""
    entrypoint = (
        "mkdir -p uploads/model; echo weights > uploads/model/w.bin; echo 1 > uploads/a.txt; "
        "ln -s /etc/passwd uploads/passwd; ln -s /etc uploads/etc; exit 3"
    )
    job, printed = done(api, entrypoint)
    assert (job["status"], job["reason"]) == ("failed", "exit code 3")
    reported = events(api, job)
    assert [event["path"] for event in reported] == ["a.txt", "model/w.bin"]
    assert api("GET", f"/v1/files/{reported[1]['file']}/content").content == b"weights\n"
    assert all(event["file"].startswith("result:file-") for event in reported)
    assert "uploads/passwd is a link" in printed
    assert "root:" not in printed
    assert list((tmp_path / "worker/runs").iterdir()) == []


@pytest.mark.parametrize(
    ("entrypoint", "code", "reason"),
    [
        ("kill -9 $$", -9, "killed by signal 9 (SIGKILL; out of memory?)"),
        ("echo 'the answer is unknown' > error.txt; exit 2", 2, "the answer is unknown"),
        ("no-such-command", 127, "exit code 127"),
    ],
)
def test_why_a_job_failed(api: Api, at_work: Working, entrypoint: str, code: int, reason: str) -> None:
    job, _ = done(api, entrypoint)
    assert (job["status"], job["reason"]) == ("failed", reason)
    assert runs(api, job)[0]["exit_code"] == code


def test_secrets_do_not_come_back(api: Api, at_work: Working) -> None:
    """In one piece, in two pieces, in the sentence at the end. A short one is named, not masked."""
    api.ok("PUT", "/api/secrets/HF_TOKEN", {"value": "hf_0123456789"})
    api.ok("PUT", "/api/secrets/PIN", {"value": "4711"})
    job, printed = done(
        api,
        "echo whole $HF_TOKEN; echo -n hf_0123; sleep 0.3; echo 456789; echo pin $PIN; echo key $TUTELAGE_API_KEY; "
        "echo it was $HF_TOKEN > error.txt; exit 1",
    )
    api.ok("DELETE", "/api/secrets/HF_TOKEN")
    api.ok("DELETE", "/api/secrets/PIN")
    assert printed == (
        "tutelage: shorter than 6 characters, and so not masked here: the secrets PIN\n"
        "whole ***\n***\npin 4711\nkey ***\n"
    )
    assert job["reason"] == "it was ***"


def test_a_log_without_end(server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB, and both limits in their proportion a thousand times smaller: begin and end are there, on the server too,
    and what is missing is counted. 10,000,022 bytes - (48,000 + 8,000)."""
    monkeypatch.setattr(server.services.logs, "max_bytes", 64_000)
    job = api.submit(
        entrypoint="echo options; head -c 10000000 /dev/zero | tr '\\0' x; echo; echo ' the error'; exit 3"
    )
    with working(server.url, tmp_path / "worker", log_limits=LogLimits(48_000, 8_000)):
        assert ended(api, job)["status"] == "failed"
    beginning = "options\n" + "x" * 47_992
    end = "x" * 7_988 + "\n the error\n"
    assert log(api, job) == f"{beginning}\ntutelage: … 9944020 bytes of the log are left out …\n{end}"


def test_a_job_that_cannot_be_does_not_stop_the_next(api: Api, at_work: Working) -> None:
    """Its options name a model of a job that never was; the reason says so."""
    rows = api.upload(b'{"messages": []}\n')["id"]
    params = {"model": "ftjob-0123456789ab", "input_file_id": rows}
    bad = api.ok("POST", "/api/jobs", {"kind": "inference", "params": params, "requires_vram_gb": 0})
    assert "ftjob-0123456789ab" in ended(api, bad)["reason"]
    job, _ = done(api, "true")
    assert job["status"] == "completed"
    assert at_work.worker._failures == 0


def test_once(server: Served, api: Api, tmp_path: Path) -> None:
    first, second = api.submit(entrypoint="echo 1"), api.submit(entrypoint="echo 2")
    with working(server.url, tmp_path / "worker", once=True) as running:
        assert running.ended() == 0
    assert (status(api, first), status(api, second)) == ("completed", "pending")
    api.ok("POST", f"/api/jobs/{second['id']}/cancel")


def test_max_idle(server: Served, api: Api, tmp_path: Path) -> None:
    """Counted from the end of its last job, not from its start."""
    job = api.submit(entrypoint="sleep 0.6")
    with working(server.url, tmp_path / "worker", max_idle=0.4) as running:
        assert running.ended() == 0
    assert status(api, job) == "completed"
    assert "no job for longer than --max-idle" in running.said[-1]
    stopped = api.ok("GET", "/api/workers")["data"]
    assert next(one for one in stopped if one["id"] in running.said[0])["status"] == "stopped"


def test_max_idle_counts_while_nobody_answers(migrated_sqlite: Path, tmp_path: Path) -> None:
    """Before it registered, and after. A machine that costs money must not wait for a server that is gone."""
    with ExitStack() as stack:
        with served(tmp_path / "server", migrated=migrated_sqlite) as there:
            url = there.url
            running = stack.enter_context(working(url, tmp_path / "first", max_idle=1.5))
            until(lambda: running.worker.id)
        assert running.ended() == 0
    assert running.said[-1] == "the worker ends: it reached no server for longer than --max-idle"
    with working(url, tmp_path / "second", max_idle=0.3) as running:
        assert running.ended() == 0
    assert running.said[-1] == "the worker ends: it reached no server for longer than --max-idle"


def test_a_run_that_is_kept(server: Served, api: Api, tmp_path: Path) -> None:
    job = api.submit(entrypoint="echo 42 > answer")
    with working(server.url, tmp_path / "worker", keep_runs=True, once=True) as running:
        running.ended()
    assert (tmp_path / "worker/kept" / runs(api, job)[0]["id"] / "job/answer").read_text() == "42\n"


def test_a_worker_that_the_server_forgot_registers_again(server: Served, api: Api, at_work: Working) -> None:
    until(lambda: at_work.worker.id, "its registration")
    first = at_work.worker.id
    with server.services.database.writing() as connection:
        connection.execute(delete(workers_table).where(workers_table.c.id == first))
    server.services.notices.tell("pending")
    until(lambda: at_work.worker.id not in (None, first), "another registration")
    job, _ = done(api, "true")
    assert (job["status"], job["worker_id"]) == ("completed", at_work.worker.id)


def test_a_worker_that_was_stopped_on_the_server_ends(server: Served, api: Api, tmp_path: Path) -> None:
    """With 0, and says why; what it runs when it is stopped it does to the end, and the next job stays."""
    job = api.submit(entrypoint=f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    with working(server.url, tmp_path / "worker") as running:
        until(lambda: status(api, job) == "in_progress", "the job's beginning")
        api.ok("POST", f"/api/workers/{running.worker.id}/stop", {"reason": "maintenance at noon"})
        following = api.submit(entrypoint="true")
        (tmp_path / "go").touch()
        assert running.ended() == 0
    assert (status(api, job), status(api, following)) == ("completed", "pending")
    assert "it was stopped on the server" in running.said[-1]
    assert "maintenance at noon" in running.said[-1]
    assert len([line for line in running.said if "takes jobs of" in line]) == 1
    api.ok("POST", f"/api/jobs/{following['id']}/cancel")


def test_a_server_that_knows_no_claims_is_not_flooded(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another version, as it were: every claim is not found. Pauses of 0.1, 0.2, 0.4 s and so on."""
    began = time.monotonic()
    asked: list[float] = []

    def unknown(self: WorkerApi, *_: Any, **__: Any) -> ClaimedJob | None:
        asked.append(time.monotonic() - began)
        raise NotFoundError("Not Found")

    monkeypatch.setattr(WorkerApi, "claim", unknown)
    with working(server.url, tmp_path / "worker"):
        until(lambda: len(asked) == 4, "the fourth claim")
    assert asked[3] >= 0.7


def test_what_it_reports_of_itself(server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs, models of jobs and of the hub, free disk."""
    monkeypatch.setattr(worker, "find_gpus", lambda: Gpus(("A100", "A100"), 160.0))
    monkeypatch.setattr(worker, "hub_models", lambda: ["Qwen/Qwen2.5-0.5B"])
    cached = tmp_path / "worker/models/ftjob-0123456789ab-step-40"
    cached.mkdir(parents=True)
    (cached / ".contents").write_text("{}", encoding="utf-8")
    with working(
        server.url, tmp_path / "worker", cloud_type=CloudType.COMMUNITY, cost_per_hour=1.5, name="big"
    ) as running:
        until(lambda: running.worker.id, "its registration")

        def reported() -> dict[str, Any] | None:
            found = api.ok("GET", "/api/workers")["data"]
            mine = (one for one in found if one["id"] == running.worker.id and one["disk_free_gb"])
            return next(mine, None)

        found = until(reported, "its report")
    assert (found["hardware"], found["gpus"], found["vram_gb"]) == ("2x A100", 2, 160.0)
    assert (found["name"], found["cloud_type"], found["cost_per_hour"]) == ("big", "COMMUNITY", 1.5)
    assert found["cached_models"] == ["ftjob-0123456789ab:step-40", "Qwen/Qwen2.5-0.5B"]


def test_after_five_failures_of_its_own_it_stops(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is lost: each time the job goes back as it was, and is there for another worker."""

    def lost(before: Gpus) -> None:
        raise HardwareError("2x A100 became 1x A100")

    monkeypatch.setattr(worker, "LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(worker, "find_gpus", lambda: Gpus(("A100", "A100"), 160.0))
    monkeypatch.setattr(worker, "require_same", lost)
    job = api.submit(entrypoint="true")
    with working(server.url, tmp_path / "worker") as running:
        assert running.ended() == 1
    assert "failed 5 times in a row" in running.said[-1]
    waiting = api.ok("GET", f"/api/jobs/{job['id']}")
    assert (waiting["status"], waiting["attempts"]) == ("pending", 0)
    assert len(runs(api, job)) == 5
    assert {run["reason"] for run in runs(api, job)} == {"2x A100 became 1x A100"}
    stopped = next(one for one in api.ok("GET", "/api/workers")["data"] if one["id"] in running.said[0])
    assert (stopped["status"], "failed 5 times" in stopped["reason"]) == ("stopped", True)
    monkeypatch.undo()
    with working(server.url, tmp_path / "worker", once=True) as running:
        running.ended()
    assert status(api, job) == "completed"


def test_a_worker_without_a_place_to_work(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is full, as it were: jobs fail with the sentence, and the fifth is the last."""
    monkeypatch.setattr(worker, "LONGEST_PAUSE_SECONDS", 0.01)
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "runs").write_text("no folder", encoding="utf-8")
    jobs = [api.submit(entrypoint="true") for _ in range(6)]
    with working(server.url, folder) as running:
        assert running.ended() == 1
    assert [status(api, job) for job in jobs] == ["failed"] * 5 + ["pending"]
    assert "cannot be made" in api.ok("GET", f"/api/jobs/{jobs[0]['id']}")["reason"]
    api.ok("POST", f"/api/jobs/{jobs[5]['id']}/cancel")


def test_an_error_of_the_worker_itself(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job fails with a sentence, and the traceback is in the worker's output."""

    def broken(claim: object) -> list[str]:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(job_run, "command_of", broken)
    job = api.submit(entrypoint="true")
    with working(server.url, tmp_path / "worker", once=True) as running:
        running.ended()
    assert "error of its own (ZeroDivisionError: division by zero)" in ended(api, job)["reason"]
    assert "Traceback" in capsys.readouterr().err


def test_a_file_whose_name_is_no_text(api: Api, at_work: Working) -> None:
    """The other files are taken in; the worker is not to blame."""
    job, _ = done(api, "echo 1 > uploads/a; echo 2 > $'uploads/b\\xff'; echo 3 > uploads/c")
    assert (job["status"], job["reason"]) == (
        "failed",
        "what the job left cannot be uploaded: uploads/'b\\udcff': the name is no UTF-8; give the file another one",
    )
    assert [event["path"] for event in events(api, job)] == ["a", "c"]
    assert at_work.worker._failures == 0


def test_a_claim_whose_answer_is_lost(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again under the same id: the job runs once."""
    claim, lost = WorkerApi.claim, threading.Event()

    def lose_the_first(self: WorkerApi, *given: Any, **options: Any) -> ClaimedJob | None:
        claimed = claim(self, *given, **options)
        if claimed is not None and not lost.is_set():
            lost.set()
            raise ConnectionFailed("the server stopped answering")
        return claimed

    monkeypatch.setattr(WorkerApi, "claim", lose_the_first)
    job = api.submit(entrypoint="echo once")
    with working(server.url, tmp_path / "worker", once=True) as running:
        running.ended()
    assert lost.is_set()
    assert [run["attempt"] for run in runs(api, job)] == [1]
    assert log(api, job) == "once\n"


def test_a_job_that_is_claimed_while_the_worker_stops(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has handed it out, and the answer is still on its way: it goes back at once."""
    claim, handed_out, arrive = WorkerApi.claim, threading.Event(), threading.Event()

    def answer_slowly(self: WorkerApi, *given: Any, **options: Any) -> ClaimedJob | None:
        claimed = claim(self, *given, **options)
        if claimed is not None:
            handed_out.set()
            arrive.wait(30)
        return claimed

    monkeypatch.setattr(WorkerApi, "claim", answer_slowly)
    job = api.submit(entrypoint="true")
    with working(server.url, tmp_path / "worker") as running:
        assert handed_out.wait(30)
        running.worker.stop("the test wants it")
        assert running.ended() == 0
    arrive.set()
    waiting = api.ok("GET", f"/api/jobs/{job['id']}")
    assert (waiting["status"], waiting["attempts"], waiting["run_id"]) == ("pending", 0, None)
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")


def test_a_job_whose_lease_is_gone_before_it_begins(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files come while no heartbeat gets through, for longer than the lease: no process is started."""
    unreachable = threading.Event()
    heartbeat = WorkerApi.heartbeat

    def beat(self: WorkerApi, run_id: str, **options: Any) -> Renewal:
        if unreachable.is_set():
            raise ConnectionFailed("no server answers")
        return heartbeat(self, run_id, **options)

    def fill_slowly(*_: Any) -> None:
        unreachable.set()
        until(lambda: status(api, job) == "pending", "the end of the lease")

    monkeypatch.setattr(WorkerApi, "heartbeat", beat)
    job = api.submit(entrypoint=f"echo $TUTELAGE_RUN_ID >> {tmp_path}/began")
    with monkeypatch.context() as patched, working(server.url, tmp_path / "worker", once=True) as running:
        patched.setattr(job_run, "fill", fill_slowly)
        until(lambda: status(api, job) == "in_progress", "the first run")
        until(lambda: status(api, job) == "pending", "the end of the lease")
        unreachable.clear()
        running.ended()
    with working(server.url, tmp_path / "worker", once=True) as running:
        running.ended()
    assert (tmp_path / "began").read_text().split() == [runs(api, job)[1]["id"]]


def test_json_of_the_job(api: Api, at_work: Working) -> None:
    job = api.submit(entrypoint="echo job=$(cat job.json | tr -d '\\n')")
    assert json.loads(word(api, job, "job"))["id"] == job["id"]
