"""Runs of a comparison as jobs of a server that fail, wait, or whose server goes away. Nothing is trained here.

That the numbers are those of this machine is in `integration/test_experiments_on_a_server.py`.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from tests.fake_job_server import JobServer, job_server
from tests.judge_server import refused_url
from tests.served import until
from tests.small_experiments import written
from tests.small_runs import small_config
from tutelage import TrainingConfig
from tutelage.client import http
from tutelage.client import job as waiting
from tutelage.client.errors import ConnectionFailed, JobFailed
from tutelage.errors import Interrupted, OutputError
from tutelage.experiments import load_experiment, remote, run_experiment
from tutelage.experiments.remote import RemoteRuns
from tutelage.experiments.specification import Scheduling
from tutelage.jobs.status import JobStatus


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.01)
    for name in ("TUTELAGE_API_KEY", "OPENWEIGHTS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        monkeypatch.setenv("TUTELAGE_URL", running.url)
        yield running


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    return small_config(tmp_path, "sft")


@pytest.fixture
def failing(server: JobServer) -> Iterator[Callable[[Callable[[], object]], "Future[str]"]]:
    """Let a worker claim the next job once that holds, and fail it; the id of its job."""

    def work(when: Callable[[], object]) -> str:
        until(when, "what the worker waits for")
        worker = server.worker()
        claimed = worker.claim(wait=20)
        worker.api.finish(claimed.run_id, JobStatus.FAILED, reason="no space on the worker")
        return claimed.job.id

    with ThreadPoolExecutor(1) as pool:
        yield lambda when: pool.submit(work, when)


def test_jobs_that_fail_are_runs_that_failed(
    server: JobServer, tmp_path: Path, failing: Callable[[Callable[[], object]], "Future[str]"]
) -> None:
    """Tried once, though it failed before it was waited for; a command that runs jobs ends with 1 where they fail."""
    job_id = failing(lambda: server.faults.seen["POST /api/jobs"] > 0)
    experiment = load_experiment(written(tmp_path, runs={"sft": {"loss": "sft"}}, seeds=[4], run_on="server"))
    with pytest.raises(JobFailed) as caught:
        run_experiment(experiment, tmp_path / "out", Console(file=io.StringIO(), width=200))
    assert f"sft (seed 4): {job_id.result()}: failed: no space on the worker" in str(caught.value)
    assert caught.value.exit_code == 1
    assert [run.status for run in server.client.runs.list()] == ["failed"]
    assert server.faults.seen["POST /api/jobs"] == 1


def test_why_a_job_waits_and_that_its_server_is_away_is_said(
    server: JobServer,
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each once, though it is looked at often; and the run goes on when the server is back."""
    monkeypatch.setattr(remote, "EXPLAIN_SECONDS", 0.0)
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.0)
    said: list[str] = []
    scheduling = Scheduling(requires_vram_gb=48, allowed_hardware=("2x A100",), cloud_type="ALL")
    with contextlib.closing(RemoteRuns(said.append, scheduling)) as runs:
        job = runs._submit(config)
        assert (job.requires_vram_gb, job.allowed_hardware, job.cloud_type) == (48, ["2x A100"], "ALL")
        summary = job.explain().summary
        looked = f"GET /api/jobs/{job.id}"
        server.faults.answers[looked] = [503]
        with ThreadPoolExecutor(1) as pool:
            trained = pool.submit(runs.train, config, tmp_path / "run", "sft, seed 4")
            until(lambda: server.faults.seen[looked] > 5, "many looks")
            job.cancel()
            with pytest.raises(JobFailed, match=rf"^{job.id}: canceled"):
                trained.result()
    assert said == [
        f"waiting for sft, seed 4: job {job.id}",
        f"sft, seed 4: {server.url}: out of order; waiting for the server",
        "sft, seed 4: the server is back",
        f"sft, seed 4: {job.id} waits: {summary}",
        "sft, seed 4: canceled",
    ]


def test_a_server_that_is_gone_is_no_run_that_failed(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison stops in place of leaving runs out; begun again it finds the job it submitted."""
    monkeypatch.setattr(waiting, "WAIT_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(remote, "EXPLAIN_SECONDS", 0.0)
    experiment = load_experiment(written(tmp_path, runs={"sft": {"loss": "sft"}}, seeds=[4], run_on="server"))
    output = tmp_path / "out"

    def gone(runs: RemoteRuns, job: object, label: str) -> None:
        server.cable.pull_out()

    monkeypatch.setattr(RemoteRuns, "_say_why", gone)
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match="no server answers there") as caught:
            run_experiment(experiment, output, Console(file=io.StringIO(), width=200))
        assert str(caught.value).endswith(
            f"; what is done stays in {output}: the same command goes on from there; no report was written"
        )
        assert caught.value.exit_code == 3
        server.cable.plug_in()
    (job,) = server.client.jobs.list()
    assert job.status == "pending"


def test_no_server_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_URL", refused_url().removesuffix("/v1"))
    monkeypatch.setattr(http, "FIRST_CONTACT_SECONDS", 0.1)
    experiment = load_experiment(written(tmp_path, runs={"sft": {"loss": "sft"}}, seeds=[4], run_on="server"))
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(ConnectionFailed, match="no server answers there") as caught:
        run_experiment(experiment, tmp_path / "out", console)
    assert caught.value.exit_code == 3
    assert isinstance(console.file, io.StringIO)
    assert "evaluating" not in console.file.getvalue()


def test_ctrl_c_leaves_the_job_on_the_server(
    server: JobServer, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.closing(RemoteRuns(lambda text: None)) as runs:
        runs.submit_all([config])
        patched.setattr(time, "sleep", stop)
        with pytest.raises(Interrupted, match=r"^ftjob-\w+: goes on on the server$") as caught:
            runs.train(config, tmp_path / "run", "sft")
    (job,) = server.client.jobs.list()
    assert str(caught.value).startswith(job.id)
    assert job.status == "pending"
    with contextlib.closing(RemoteRuns(lambda text: None)) as again:
        assert again._submit(config).id == job.id


def test_a_place_that_is_taken_is_said(server: JobServer, config: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with contextlib.closing(RemoteRuns(lambda text: None)) as runs:
        job = runs._submit(config)
        worker = server.worker()
        claimed = worker.claim()
        worker.leave(claimed.run_id, tmp_path, "run.json", b'{"config": {}}')
        worker.complete(claimed.run_id)
        with pytest.raises(OutputError, match=rf"run: the run of {job.id} cannot be put there \(.+\); free the place"):
            runs.train(config, tmp_path / "run", "sft")
