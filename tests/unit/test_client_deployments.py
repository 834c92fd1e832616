"""Deployments and chat completions, through a real server to one that pretends to be a model."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fake_job_server import JobServer, ModelServer, job_server, model_server
from tests.served import conversation, jsonl, until
from tutelage.client import AsyncClient, deployments, http
from tutelage.client.errors import JobFailed
from tutelage.client.job import WaitTimeout
from tutelage.client.results import ClaimedJob
from tutelage.errors import ConfigError, JobError, NotFoundError
from tutelage.jobs.status import JobStatus


class Ahead(datetime):
    """The clock of a machine that is an hour ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


HELLO: list[Any] = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
def server(model: ModelServer, tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "POLL_SECONDS", 0.01)


@pytest.fixture
def serving(server: JobServer, model: ModelServer) -> Iterator[Callable[[], Future[ClaimedJob]]]:
    """Let a worker serve the next deployment, from a thread."""
    with ThreadPoolExecutor(2) as pool:
        yield lambda: pool.submit(server.worker().serve, model.server_port)


def test_a_model_answers_while_it_is_deployed(
    server: JobServer, model: ModelServer, serving: Callable[[], Future[ClaimedJob]]
) -> None:
    """The greeting of one token comes first: it may load the model."""
    claimed = serving()
    with server.client.api.deploy("org/model-1b", max_model_len=512) as client:
        job = server.client.jobs.retrieve(claimed.result().job.id)
        assert (job.type, job.status) == ("api", "in_progress")
        assert job.record.params["max_model_len"] == 512
        assert job.timeout is not None
        ahead = job.timeout - datetime.now(timezone.utc)
        assert timedelta(minutes=14) < ahead <= timedelta(minutes=15)
        answer = client.chat.completions.create(model="org/model-1b", messages=HELLO)
        assert answer.choices[0].message.content == "said one two three"
        answer = server.client.chat.completions.create(model="org/model-1b", messages=HELLO, temperature=0.5)
        assert isinstance(answer, openai.types.chat.ChatCompletion)
        stream = server.client.chat.completions.create(model="org/model-1b", messages=HELLO, stream=True)
        assert [part.choices[0].delta.content for part in stream] == ["one", "two", "three"]
    assert job.refresh().status == "canceled"
    assert [(asked.get("max_tokens"), asked.get("temperature")) for asked in model.asked] == [
        (1, None),
        (None, None),
        (None, 0.5),
        (None, None),
    ]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="tut-wrong", max_retries=0).models.list()


def test_a_model_that_still_loads_is_waited_for(
    server: JobServer, model: ModelServer, serving: Callable[[], Future[ClaimedJob]]
) -> None:
    model.refuses = 3
    serving()
    api = server.client.api.deploy("org/model-1b")
    api.up()
    assert len(model.asked) == 4
    api.down()
    api.down()


def test_a_deployment_that_fails_says_why(server: JobServer) -> None:
    api = server.client.api.deploy("org/model-1b")
    worker = server.worker()
    looked = f"GET /api/jobs/{api.job_id}"

    def fail() -> None:
        claimed = worker.claim(wait=20)
        until(lambda: server.faults.seen[looked] >= 2, "being waited for")
        worker.api.finish(claimed.run_id, JobStatus.FAILED, reason="out of memory")

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(JobFailed, match=rf"^{api.job_id}: failed: out of memory"):
        api.up()
    thread.join()
    assert not any(thread.name == f"keep {api.job_id}" for thread in threading.enumerate())


def test_a_deployment_that_nobody_takes_up_ends(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of an hour from now by the server's clock, whatever the clock of this machine says."""
    monkeypatch.setattr(http, "datetime", Ahead)
    apis = server.client.api.multi_deploy(["org/model-1b", "org/model-2b"], 512)
    for api in apis.values():
        job = server.client.jobs.retrieve(api.job_id)
        assert job.record.params["max_model_len"] == 512
        assert job.timeout is not None
        assert timedelta(minutes=14) < job.timeout - datetime.now(timezone.utc) <= timedelta(minutes=15)


def test_waiting_for_a_deployment_may_be_canceled(server: JobServer) -> None:
    """While the call is under way that would begin it: what it begins ends, and nothing keeps it up behind that."""
    api = server.client.api.deploy("org/model-1b")
    looked = f"GET /api/jobs/{api.job_id}"
    server.faults.answers[looked] = [503] * 3

    async def give_up() -> None:
        waiting = asyncio.create_task(api.async_up())
        await asyncio.to_thread(until, lambda: server.faults.seen[looked] > 0, "a look at the job")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    assert server.client.jobs.retrieve(api.job_id).status == "canceled"
    assert not any(thread.name == f"keep {api.job_id}" for thread in threading.enumerate())


def test_taking_a_deployment_down_stops_no_event_loop(server: JobServer) -> None:
    """The server takes its time with the cancellation; meanwhile other tasks go on."""
    api = server.client.api.deploy("org/model-1b")
    canceled = f"POST /api/jobs/{api.job_id}/cancel"
    looked = f"GET /api/jobs/{api.job_id}"
    server.faults.answers[canceled] = [503] * 3
    during: list[str] = []

    async def give_up() -> None:
        waiting = asyncio.create_task(api.async_up())
        await asyncio.to_thread(until, lambda: server.faults.seen[looked] > 1, "being waited for")
        waiting.cancel()
        while not waiting.done():
            during.append(threading.current_thread().name)
            await asyncio.sleep(0.001)

    asyncio.run(give_up())
    # 503 three times is 0.05 + 0.1 + 0.2 s of pauses at least: hundreds of turns of the loop.
    assert len(during) > 20
    assert server.client.jobs.retrieve(api.job_id).status == "canceled"


def test_what_is_taken_down_before_it_began_does_not_begin(server: JobServer) -> None:
    api = server.client.api.deploy("org/model-1b")
    steps = api._until_ready(None, api._downs)
    api.down()
    with pytest.raises(JobError, match=rf"^{api.job_id}: the deployment was taken down before it began"):
        next(steps)
    assert server.client.jobs.retrieve(api.job_id).status == "canceled"


def test_a_deployment_that_takes_too_long_is_taken_down(server: JobServer) -> None:
    api = server.client.api.deploy("org/model-1b")
    with pytest.raises(WaitTimeout, match=rf"{api.job_id}: still pending after 0.05 s"):
        api.up(timeout=0.05)
    assert server.client.jobs.retrieve(api.job_id).status == "canceled"


def test_a_deployment_begins_again_where_it_ended(server: JobServer, serving: Callable[[], Future[ClaimedJob]]) -> None:
    api = server.client.api.deploy("org/model-1b")
    for _ in range(2):
        claimed = serving()
        with api:
            assert server.client.jobs.retrieve(api.job_id).status == "in_progress"
        server.worker().api.finish(claimed.result().run_id, JobStatus.CANCELED)
    server.client.jobs.restart(api.job_id)
    worker = server.worker()
    worker.complete(worker.claim().run_id)
    claimed = serving()
    api.up()
    assert claimed.result().job.id == api.job_id
    api.down()


def test_a_deployment_is_kept_as_long_as_it_is_up(
    server: JobServer, serving: Callable[[], Future[ClaimedJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over errors of the server; and not any longer."""
    monkeypatch.setattr(deployments, "RENEW_SECONDS", 0.01)
    serving()
    api = server.client.api.deploy("org/model-1b")
    renewed = f"PATCH /api/jobs/{api.job_id}"
    server.faults.answers[renewed] = [500]
    with api:
        until(lambda: server.faults.seen[renewed] > 5, "renewals")
    assert not any(thread.name == f"keep {api.job_id}" for thread in threading.enumerate())


def test_a_model_that_is_not_deployed_is_with_the_first_question(
    server: JobServer, serving: Callable[[], Future[ClaimedJob]]
) -> None:
    """With `deploy_kwargs`; and it stays until somebody ends it."""
    claimed = serving()
    answer = server.client.chat.completions.create(model="org/model-1b", messages=HELLO)
    assert answer.choices[0].message.content == "said one two three"
    job = server.client.jobs.retrieve(claimed.result().job.id)
    assert job.record.params["max_model_len"] == 2048
    server.client.chat.completions.create(model="org/model-1b", messages=HELLO)
    assert len(server.client.jobs.list(kind="api")) == 1
    server.client.chat.kill("org/model-1b")
    assert job.refresh().status == "canceled"
    with pytest.raises(NotFoundError, match="org/model-1b: no such model is deployed"):
        server.client.chat.kill("org/model-1b")
    other = server.client.api.create(model="org/model-2b", lora_adapters=["org/adapter"])
    server.client.chat.kill("org/adapter")  # whoever deployed it
    assert other.refresh().status == "canceled"


def test_many_questions_at_once_deploy_a_model_once(
    server: JobServer, serving: Callable[[], Future[ClaimedJob]]
) -> None:
    claimed = serving()

    async def ask() -> list[str | None]:
        async with AsyncClient(base_url=server.url) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create("org/model-1b", messages=HELLO) for _ in range(10))
            )
            stream = await client.chat.completions.create("org/model-1b", messages=HELLO, stream=True)
            parts = [part.choices[0].delta.content async for part in stream]
            await asyncio.to_thread(client.chat.kill, "org/model-1b")
            return [*(answer.choices[0].message.content for answer in answers), *parts]

    assert asyncio.run(ask()) == ["said one two three"] * 10 + ["one", "two", "three"]
    assert [job.id for job in server.client.jobs.list(kind="api")] == [claimed.result().job.id]


def test_a_deployment_may_be_awaited(server: JobServer, serving: Callable[[], Future[ClaimedJob]]) -> None:
    serving()

    async def ask() -> tuple[str, str | None]:
        async with AsyncClient(base_url=server.url) as client:
            api = await client.api.deploy("org/model-1b")
            async with api as model:
                answer = await model.chat.completions.create(model="org/model-1b", messages=HELLO)
            return api.job_id, answer.choices[0].message.content

    job_id, said = asyncio.run(ask())
    assert said == "said one two three"
    assert server.client.jobs.retrieve(job_id).status == "canceled"


def test_models_of_openai_are_asked_there(
    server: JobServer, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenWeights does for names that begin with gpt, o1 and o3. Nothing is deployed for them."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set, and no job serves"):
        server.client.chat.completions.create(model="gpt-4o", messages=HELLO)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-their-own")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{model.server_port}/v1")

    async def ask() -> str | None:
        async with AsyncClient(base_url=server.url) as client:
            answer = await client.chat.completions.create("o3", messages=HELLO)
        return answer.choices[0].message.content

    answer = server.client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert answer.choices[0].message.content == asyncio.run(ask()) == "said one two three"
    assert server.client.openai.of_openai.api_key == "sk-their-own"
    assert [asked["model"] for asked in model.asked] == ["gpt-4o", "o3"]
    assert server.client.jobs.list() == []


def test_adapters_of_one_base_model_share_a_deployment(server: JobServer, tmp_path: Path) -> None:
    """What jobs left as adapters goes onto the model they were trained on, with room for the largest rank."""
    (tmp_path / "a.jsonl").write_bytes(jsonl([conversation()]))
    create = server.client.fine_tuning.create
    shared: dict[str, Any] = {"model": "org/base-1b", "training_file": tmp_path / "a.jsonl"}
    small = create(merge_before_push=False, r=8, **shared).id
    large = create(merge_before_push=False, r=64, **shared).id
    merged = create(**shared).id
    apis = server.client.api.multi_deploy([small, f"{large}:step-5", merged, "org/other-1b"])
    assert set(apis) == {"org/base-1b", small, f"{large}:step-5", merged, "org/other-1b"}
    assert apis[small] is apis[f"{large}:step-5"] is apis["org/base-1b"]
    assert len({api.job_id for api in apis.values()}) == 3
    params = server.client.jobs.retrieve(apis[small].job_id).record.params
    assert (params["model"], params["lora_adapters"]) == ("org/base-1b", [small, f"{large}:step-5"])
    assert params["max_lora_rank"] == 64
    override = server.client.api.multi_deploy([small], base_model_override="org/new-1b", max_model_len=64)
    assert server.client.jobs.retrieve(override[small].job_id).model == "org/new-1b"
    with pytest.raises(JobError, match="models: 'org/x' is one name"):
        server.client.api.multi_deploy("org/x")
