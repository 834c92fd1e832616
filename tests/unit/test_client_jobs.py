"""Jobs of a client: finding, waiting, logs, downloads, custom ones. Against a real server and a worker that pretends."""

import io
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.fake_job_server import JobServer, job_server
from tests.served import PATIENCE, conversation, jsonl, until
from tutelage.client import Jobs, OpenWeights, register
from tutelage.client.errors import JobFailed
from tutelage.client.job import WaitTimeout
from tutelage.errors import ConfigError, JobError, NotFoundError
from tutelage.jobs.status import JobStatus

ZEROS = "0" * 12


class CountParams(BaseModel):
    to: int
    words: list[str] = ["one"]


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture
def counting(tmp_path: Path) -> type[Jobs]:
    """A custom job as OpenWeights' documentation has them."""
    (tmp_path / "script.py").write_text("print(1)")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "deep" / "b.txt").write_text("b")
    (folder / "__pycache__" / "c.pyc").write_text("c")

    @register("counting")
    class Counting(Jobs):
        mount = {str(tmp_path / "script.py"): "script.py", str(folder) + "/": "folder/"}  # noqa: RUF012 - as there
        params = CountParams
        requires_vram_gb = 8

        def get_entrypoint(self, validated_params: CountParams) -> str:
            return f"python script.py {validated_params.to}"

    return Counting


def test_a_custom_job_is_what_it_mounts_runs_and_was_given(server: JobServer, counting: type[Jobs]) -> None:
    client = server.client
    job = client.counting.create(to=3, cloud_type="all", allowed_hardware=["2 a100"], docker_image="image:1")
    assert job.id.startswith("counting-")
    assert (job.type, job["status"], job.script, job.docker_image) == (
        "custom",
        "pending",
        "python script.py 3",
        "image:1",
    )
    assert (job.requires_vram_gb, job.allowed_hardware, job.cloud_type) == (8, ["2x A100"], "ALL")
    assert job.params["cloud_type"] == "ALL"
    assert job.params["validated_params"]["to"] == 3
    assert job.params["validated_params"]["words"] == ["one"]
    mounted = job.params["mounted_files"]
    assert sorted(mounted) == ["folder/a.txt", "folder/deep/b.txt", "script.py"]
    assert client.files.content(mounted["folder/deep/b.txt"]) == b"b"
    assert client.counting.create(to=3, docker_image="image:1").id == job.id
    assert client.counting.create(to=4, docker_image="image:1").id != job.id
    assert client.counting.create(to=3).id != job.id  # another image is another job


def test_registered_jobs_are_on_clients_made_before_and_after(server: JobServer, counting: type[Jobs]) -> None:
    later = OpenWeights(base_url=server.url)
    assert type(later.counting) is type(server.client.counting) is counting
    for name in ("jobs", "files", "no name", "_private", "run"):
        with pytest.raises(ConfigError, match=f"register: '{name}' cannot be"):
            register(name)
    with pytest.raises(AttributeError, match="no 'never_registered'.*imported first"):
        _ = later.never_registered


def test_scheduling_options_may_be_params_of_the_job_too(server: JobServer) -> None:
    class Vram(BaseModel):
        requires_vram_gb: int = 60

    @register("needy")
    class Needy(Jobs):
        params = Vram
        requires_vram_gb = None

        def get_entrypoint(self, validated_params: Vram) -> str:
            return f"echo {validated_params.requires_vram_gb}"

    job = server.client.needy.create(requires_vram_gb=7)
    assert (job.requires_vram_gb, job.script) == (7, "echo 7")
    assert server.client.needy.create().requires_vram_gb == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "to is missing; add it to create"),
        ({"to": "many"}, "to: 'many' does not fit"),
        ({"to": 1, "cloud_type": "PRIVATE"}, "cloud_type: 'PRIVATE' is none"),
        ({"to": 1, "allowed_hardware": ["0x A100"]}, "allowed_hardware: '0x A100' is no number"),
        ({"to": 1, "requires_vram_gb": -1}, "requires_vram_gb: -1 is none"),
    ],
)
def test_wrong_options_are_said_before_anything_is_uploaded(
    server: JobServer, counting: type[Jobs], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ConfigError, JobError), match=sentence):
        server.client.counting.create(**options)
    assert server.faults.seen == {}


@pytest.mark.parametrize("target", ["../out", "/etc/passwd", "~/x", "a\\b"])
def test_mounts_stay_in_the_folder_of_the_job(server: JobServer, tmp_path: Path, target: str) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(JobError, match="mount target"):
        server.client.exec("true", mount={str(tmp_path / "x"): target})
    with pytest.raises(ConfigError, match=r"mount: '.*nowhere' is not there"):
        server.client.exec("true", mount={str(tmp_path / "nowhere"): "x"})
    assert server.faults.seen["POST /v1/files"] == 0


def test_a_file_mounted_on_a_folder_keeps_its_name(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    for target, expected in ((".", "x.txt"), ("in/", "in/x.txt"), ("./y.txt", "y.txt")):
        assert list(server.client.exec("ls", mount={str(tmp_path / "x.txt"): target}).mounted_files) == [expected]


def test_exec_runs_a_command(server: JobServer) -> None:
    job = server.client.exec(["echo", "two words", "$HOME"], cloud_type="COMMUNITY", requires_vram_gb=2)
    assert job.id.startswith("execjob-")
    assert (job.kind, job.script) == ("custom", "echo 'two words' '$HOME'")
    assert (job.cloud_type, job.requires_vram_gb) == ("COMMUNITY", 2)
    assert server.client.exec("echo 'two words' '$HOME'").id == job.id
    with pytest.raises(JobError, match="entrypoint: a custom job has none"):
        server.client.exec("")


def test_ids_can_be_told_beforehand(server: JobServer, counting: type[Jobs], tmp_path: Path) -> None:
    """What the server makes of it, for a custom job and for training, with a suffix too."""
    client = server.client
    job = client.counting.create(to=3)
    data = {
        "type": "custom",
        "docker_image": None,
        "script": job.script,
        "params": {
            "validated_params": {"to": 3, "words": ["one"]},
            "mounted_files": job.params["mounted_files"],
        },
    }
    assert client.counting.compute_id(data) == job.id
    assert client.counting.get_or_create_or_reset(data).id == job.id
    assert client.counting.compute_id(data, docker_image="image:1") != job.id
    file = client.files.create(io.BytesIO(jsonl([conversation()])), "conversations")
    options = {"model": "smollm2", "training_file": file.id, "loss": "dft", "job_id_suffix": "mine"}
    training = client.fine_tuning.create(**options)
    assert training.id.endswith("-mine")
    for form in ({"type": "fine-tuning", "params": {"validated_params": options}}, {"validated_params": options}):
        assert client.fine_tuning.compute_id({"type": "fine-tuning", **form}) == training.id


def test_the_dict_of_openweights_is_submitted(server: JobServer) -> None:
    data = {
        "id": f"mycount-{ZEROS}",
        "type": "custom",
        "docker_image": "image:1",
        "requires_vram_gb": 12,
        "script": "echo 1",
        "allowed_hardware": ["A100"],
        "params": {"validated_params": {"a": 1}, "mounted_files": {}, "cloud_type": "ALL"},
    }
    job = server.client.jobs.get_or_create_or_reset(data)
    assert job.id.startswith("mycount-")
    assert job.params == {
        "validated_params": {"a": 1, "job_id_suffix": None, "meta": {}},
        "mounted_files": {},
        "cloud_type": "ALL",
    }
    assert (job.allowed_hardware, job.requires_vram_gb, job.docker_image) == (["1x A100"], 12, "image:1")
    job.cancel()
    assert server.client.jobs.get_or_create_or_reset(data).status == "pending"
    with pytest.raises(JobError, match="type: 'magic' is none"):
        server.client.jobs.get_or_create_or_reset({"type": "magic"})


def test_jobs_are_found_by_what_they_do(server: JobServer) -> None:
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
    assert job.finished_at is not None and job.finished_at.tzinfo is not None
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
    with pytest.raises(JobFailed, match=rf"^{job.id}: failed: exit code 1; see: tutelage jobs logs {job.id}$") as caught:
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
    end, heard = 0, list[str]()
    follows = f"GET /api/logs/{claimed.run_id}"
    for part in job.logs(follow=True) if end == 0 and _say(worker, claimed.run_id, 0, "line 0\n") else ():
        heard.append(part)
        said = "".join(heard)
        if said.count("\n") == 6:
            break
        if said.count("\n") % 2 == 0:
            server.cable.pull_out()
            server.cable.plug_in()
        _say(worker, claimed.run_id, len(said), f"line {said.count(chr(10))}\n")
    assert "".join(heard) == "".join(f"line {number}\n" for number in range(6))
    assert server.faults.seen[follows] >= 3


def _say(worker: Any, run_id: str, start: int, text: str) -> bool:
    return worker.api.append_log(run_id, start, text.encode()) == start + len(text)


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
    with pytest.raises(ConfigError, match="organization_id: the token is of org-.*, not of org-other"):
        _ = wrong.organization_id


def test_a_client_is_made_without_network() -> None:
    with pytest.warns(UserWarning, match="supabase_url and supabase_key are of OpenWeights' server") as warned:
        client = OpenWeights(base_url="http://127.0.0.1:1", supabase_url="https://x", supabase_key="y", use_async=True)
    assert len(warned) == 1
    assert client.chat is client.async_chat
    assert OpenWeights(base_url="http://127.0.0.1:1").chat is not client.async_chat
    with pytest.raises(TypeError):
        OpenWeights(magic=1)  # pyright: ignore[reportCallIssue] - the mistake
