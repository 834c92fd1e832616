"""Fine-tuning jobs, checkpoints and models by the unmodified `openai` package."""

import asyncio
import contextlib
import io
import json
import re
from typing import Any, cast

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.served import PATIENCE, Api, Served, conversation, jsonl, preference


@pytest.fixture
def client(closed_server: Served, team: Api) -> OpenAI:
    """Of an organisation of this test alone."""
    assert team.token is not None
    return closed_server.openai(team.token)


def upload(client: OpenAI, content: bytes, purpose: str = "fine-tune", name: str = "rows.jsonl") -> Any:
    return client.files.create(file=(name, content), purpose=cast("Any", purpose))


def training_file(client: OpenAI, number: int = 0) -> str:
    return upload(client, jsonl([conversation(number)])).id


def preference_file(client: OpenAI) -> str:
    return upload(client, jsonl([preference()])).id


METHODS = {
    "supervised": ("sft", {}),
    "dpo": ("dpo", {"beta": 0.3}),
    "reinforcement": ("grpo", {"num_generations": 4}),
    "dft": ("dft", {}),
    "sdft": ("sdft", {"ema_alpha": 0.5}),
    "grpo": ("grpo", {"epsilon": 0.1}),
    "orpo": ("orpo", {"beta": 0.2}),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method(team: Api, client: OpenAI, method: str) -> None:
    """Section 6: method={"type": T, T: {"hyperparameters": …}}. The method comes back as it was given."""
    loss, own = METHODS[method]
    file = preference_file(client) if loss in ("dpo", "orpo") else training_file(client)
    hyperparameters = {"n_epochs": 2, "batch_size": 12, "learning_rate_multiplier": 0.5} | own
    given = {"type": method, method: {"hyperparameters": hyperparameters}}
    job = client.fine_tuning.jobs.create(model="smollm2", training_file=file, method=cast("Any", given))
    assert re.fullmatch(r"ftjob-[0-9a-f]{12}", job.id)
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "queued", "smollm2", file)
    params = team.ok("GET", f"/api/jobs/{job.id}")["params"]
    assert (params["loss"], params["epochs"]) == (loss, 2)
    assert params["per_device_train_batch_size"] * params["gradient_accumulation_steps"] == 12
    # OpenAI's multiplier is of a rate that nobody is told; here it is of 1e-4.
    assert params["learning_rate"] == pytest.approx(5e-5)
    for name, value in own.items():
        assert value in (params.get(f"{loss}_{name}"), params.get(name))
    assert job.method is not None
    told = job.method.model_dump()
    # Two names of one objective: what is stored is the objective.
    kind = told["type"]
    assert kind == method or {kind, method} == {"grpo", "reinforcement"}
    assert told[kind]["hyperparameters"].items() >= hyperparameters.items()
    assert job.hyperparameters.n_epochs == 2
    again = client.fine_tuning.jobs.create(model="smollm2", training_file=file, method=cast("Any", given))
    assert again.id == job.id


def test_auto_is_the_default(team: Api, client: OpenAI) -> None:
    file = training_file(client)
    auto: Any = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    plain = client.fine_tuning.jobs.create(model="smollm2", training_file=file)
    by_method = client.fine_tuning.jobs.create(
        model="smollm2",
        training_file=file,
        method={"type": "supervised", "supervised": {"hyperparameters": auto}},
    )
    old_way = client.fine_tuning.jobs.create(model="smollm2", training_file=file, hyperparameters=auto)
    assert plain.id == by_method.id == old_way.id
    assert plain.method is not None
    assert plain.method.type == "supervised"
    params = team.ok("GET", f"/api/jobs/{plain.id}")["params"]
    assert (params["loss"], params["epochs"]) == ("sft", 1.0)


def test_what_else_openai_lets_one_say(team: Api, client: OpenAI) -> None:
    """suffix, seed, metadata, validation_file; where it runs, and options of our own, by extra_body."""
    file, validation = training_file(client), training_file(client, 1)
    job = client.fine_tuning.jobs.create(
        model="smollm2",
        training_file=file,
        validation_file=validation,
        suffix="mine",
        seed=7,
        metadata={"who": "Ada", "why": "tests"},
        method=cast("Any", {"type": "sdft"}),
        extra_body={
            "requires_vram_gb": 3,
            "allowed_hardware": ["1x A100", "2 H100"],
            "cloud_type": "all",
            "docker_image": "an/image",
            "r": 32,
            "sdft_temperature": 0.7,
        },
    )
    assert job.id.endswith("-mine")
    assert (job.seed, job.validation_file) == (7, validation)
    assert cast("Any", job).user_provided_suffix == "mine"
    assert job.metadata == {"who": "Ada", "why": "tests"}
    ours = team.ok("GET", f"/api/jobs/{job.id}")
    assert (ours["requires_vram_gb"], ours["cloud_type"], ours["image"]) == (3, "ALL", "an/image")
    assert ours["allowed_hardware"] == ["1x A100", "2x H100"]
    params = ours["params"]
    assert (params["r"], params["sdft_temperature"], params["test_file"]) == (32, 0.7, validation)
    # Where it runs is not part of what it is, and is updated while it waits.
    changed = client.fine_tuning.jobs.create(
        model="smollm2",
        training_file=file,
        validation_file=validation,
        suffix="mine",
        seed=7,
        metadata={"who": "Ada", "why": "tests"},
        method=cast("Any", {"type": "sdft"}),
        extra_body={"cloud_type": "COMMUNITY", "docker_image": "an/image", "r": 32, "sdft_temperature": 0.7},
    )
    assert changed.id == job.id
    assert team.ok("GET", f"/api/jobs/{job.id}")["cloud_type"] == "COMMUNITY"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"method": {"type": "sdtf"}}, "method.type: 'sdtf'.*sdft"),
        ({"method": {"type": None}}, "method.type"),
        ({"method": {"type": ["dft"]}}, "method.type"),
        ({"method": {}}, "method.type"),
        ({"method": {"type": "dft", "dft": []}}, "method.dft"),
        ({"method": {"type": "dft", "dft": {"hyperparameters": [1]}}}, "hyperparameters"),
        ({"method": {"type": "dft", "dft": {"hyperparameter": {}}}}, "hyperparameter"),
        ({"method": {"type": "dft", "dft": {"hyperparameters": {"n_epoch": 2}}}}, "n_epoch"),
        ({"method": {"type": "sdft", "sdft": {"hyperparameters": {"ema_alpha": 2}}}}, "ema_alpha"),
        ({"method": {"type": "dpo"}}, "preference"),
        ({"hyperparameters": {"n_epochs": 0}}, "epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "epochs"),
        ({"hyperparameters": {"n_epochs": 1e400}}, "epochs"),
        ({"hyperparameters": {"batch_size": 0}}, "batch_size"),
        ({"hyperparameters": {"batch_size": True}}, "batch_size"),
        ({"hyperparameters": {"batch_size": 2.5}}, "batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, "learning_rate_multiplier"),
        ({"training_file": "conversations:file-000000000000"}, None),
        ({"training_file": "file-abc"}, "training_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"validation_file": "rows.jsonl"}, "test_file|validation_file"),
        ({"suffix": "a/b"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"suffix": "newline\n"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"cloud_type": "SECURED"}, "cloud_type: 'SECURED'.*SECURE"),
        ({"allowed_hardware": ["0x A100"]}, "allowed_hardware"),
        ({"requires_vram_gb": -1}, "requires_vram_gb"),
        ({"lerning_rate": 1}, "lerning_rate.*learning_rate"),
        ({"loss": "sfd"}, "loss"),
        ({"output_dir": "/etc"}, None),
        ({"model": None}, "model"),
        ({"model": ["a"]}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_requests_that_are_wrong_say_what_and_where(
    closed_server: Served, client: OpenAI, body: dict[str, Any], words: str | None
) -> None:
    """BadRequestError with OpenAI's shape of body; NotFoundError for a file that is not there."""
    values = {"model": "smollm2", "training_file": training_file(client)} | body
    if "output_dir" in body:
        # A job may not choose where it writes: the option is left out.
        job = client.fine_tuning.jobs.create(
            model="smollm2", training_file=str(values["training_file"]), extra_body=body
        )
        assert "/etc" not in json.dumps(job.model_dump())
        return
    kind = openai.NotFoundError if words is None else openai.BadRequestError
    raw = json.dumps(values).replace("Infinity", "1e400")
    with pytest.raises(kind) as refused:
        client.post("/fine_tuning/jobs", cast_to=cast("Any", object), content=raw.encode(), options={"headers": JSON})
    error = cast("dict[str, Any]", refused.value.body)
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["type"] == ("not_found_error" if words is None else "invalid_request_error")
    assert re.search(words or "file", error["message"]), error["message"]
    assert client.fine_tuning.jobs.list().data == []


JSON = {"Content-Type": "application/json"}


def test_jobs_are_paged_through_by_cursor(client: OpenAI, team: Api) -> None:
    """60 jobs: by twenty, by seven, and by hand; newest first; jobs of other kinds are not among them."""
    file = training_file(client)
    ids: list[str] = []
    for seed in range(60):
        ids.append(client.fine_tuning.jobs.create(model="smollm2", training_file=file, seed=seed).id)
        if seed % 20 == 0:
            team.submit()
    assert [job.id for job in client.fine_tuning.jobs.list()] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=7)] == ids[::-1]
    page = client.fine_tuning.jobs.list(limit=50, after=ids[55])
    assert ([job.id for job in page.data], page.has_more) == (ids[54:4:-1], True)
    rest = page.get_next_page()
    assert ([job.id for job in rest.data], rest.has_more) == (ids[4::-1], False)
    assert client.fine_tuning.jobs.list(after=ids[0]).data == []
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after="ftjob-000000000000")


def test_the_life_of_a_job(client: OpenAI, team: Api) -> None:
    """Section 3: queued, running, succeeded, failed, cancelled."""
    file = training_file(client)

    def create(seed: int) -> Any:
        return client.fine_tuning.jobs.create(model="smollm2", training_file=file, seed=seed)

    first = create(1)
    assert (first.status, first.finished_at, first.fine_tuned_model, first.error) == ("queued", None, None, None)
    worker = team.worker()
    running = team.running({"id": first.id}, worker)
    assert client.fine_tuning.jobs.retrieve(first.id).status == "running"
    model, samples = team.upload(b"model", "result")["id"], team.upload(b"samples", "result")["id"]
    team.report(running.run_id, {"model": first.id}, {"tag": "train", "step": 1, "num_input_tokens_seen": 1234})
    team.report(running.run_id, {"path": "model/config.json"}, file=model)
    team.report(running.run_id, {"path": "samples.jsonl"}, file=samples)
    team.report(running.run_id, {"path": "samples.jsonl"}, file=samples)  # the same content twice
    team.report(running.run_id, {"tag": "end"}, file=file)  # told of, but no result
    running_still = client.fine_tuning.jobs.retrieve(first.id)
    assert (running_still.trained_tokens, running_still.result_files) == (None, [])
    team.finish(running.run_id)
    done = client.fine_tuning.jobs.retrieve(first.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", first.id)
    assert (done.trained_tokens, done.result_files) == (1234, [model, samples])
    assert client.fine_tuning.jobs.list().data[0].result_files == [model, samples]
    assert done.finished_at is not None
    assert done.created_at <= done.finished_at
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.fine_tuning.jobs.cancel(first.id)
    assert create(1).status == "succeeded"

    second = create(2)
    failing = team.running({"id": second.id}, worker)
    team.finish(failing.run_id, "failed", exit_code=1, reason="out of memory at step 3")
    failed = client.fine_tuning.jobs.retrieve(second.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.message == "out of memory at step 3"
    assert failed.error.code
    assert create(2).status == "queued"
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"

    third = create(3)
    stopping = team.running({"id": third.id}, worker)
    cancelled = client.fine_tuning.jobs.cancel(third.id)
    assert cancelled.status == "cancelled"
    assert team.ok("POST", f"/api/runs/{stopping.run_id}/heartbeat")["cancel"] is True
    for call in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError):
            call("ftjob-000000000000")
        with pytest.raises(openai.NotFoundError):
            call(team.submit()["id"])  # is a job, but not of fine-tuning


def test_events_newest_first_with_pages(client: OpenAI, team: Api) -> None:
    job = client.fine_tuning.jobs.create(model="smollm2", training_file=training_file(client))
    running = team.running({"id": job.id})
    steps = [{"tag": "train", "step": step, "loss": 1.0 / step} for step in range(1, 46)]
    team.report(running.run_id, *steps, {"tag": "warning", "message": "two rows were dropped"})
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
    assert len(events) == 46
    assert (events[0].level, events[0].message) == ("warn", "two rows were dropped")
    assert [cast("Any", event.data)["step"] for event in events[1:]] == list(range(45, 0, -1))
    last = events[1]
    assert (last.object, last.type, last.level) == ("fine_tuning.job.event", "metrics", "info")
    assert "step 45" in last.message
    assert "0.0222222" in last.message  # 1/45
    page = client.fine_tuning.jobs.list_events(job.id, limit=5, after=events[40].id)
    assert ([event.id for event in page.data], page.has_more) == ([event.id for event in events[41:]], False)
    for after in ("ftevent-x", "ftevent-" + "9" * 30, "../x"):
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.list_events(job.id, after=after)


def test_checkpoints(client: OpenAI, team: Api) -> None:
    job = client.fine_tuning.jobs.create(model="smollm2", training_file=training_file(client))
    running = team.running({"id": job.id})
    for step in (10, 20, 30):
        team.report(
            running.run_id,
            {"tag": "train", "step": step, "loss": 0.5},
            {"tag": "checkpoint", "step": step, "checkpoint": f"{job.id}:step-{step}", "loss": step / 100},
        )
    team.report(running.run_id, {"tag": "checkpoint", "step": 35, "path": "only on its disk"})
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [checkpoint.step_number for checkpoint in found] == [30, 20, 10]
    assert [checkpoint.fine_tuned_model_checkpoint for checkpoint in found] == [
        f"{job.id}:step-{step}" for step in (30, 20, 10)
    ]
    assert found[0].fine_tuning_job_id == job.id
    assert found[0].object == "fine_tuning.job.checkpoint"
    assert cast("Any", found[0].metrics).loss == 0.3
    assert found[0].metrics.step == 30


def test_events_of_any_content_can_be_listed(client: OpenAI, team: Api) -> None:
    """A job reports what it likes; OpenAI's lists hold it all the same."""
    job = client.fine_tuning.jobs.create(model="smollm2", training_file=training_file(client))
    running = team.running({"id": job.id})
    odd: list[Any] = [None, "seven", [1], {"a": 1}, True, 1.5, -1, 2**70, ""]
    for value in odd:
        team.report(
            running.run_id,
            {"tag": "checkpoint", "checkpoint": f"c{value}", "step": value},
            {"tag": value, "message": value, "step": value, "loss": value},
            {"checkpoint": value, "tag": "checkpoint", "model": value},
        )
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    assert len(events) == 3 * len(odd)
    assert all(isinstance(event.message, str) and event.message for event in events)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=100))
    assert {f"c{value}" for value in odd} <= {one.fine_tuned_model_checkpoint for one in checkpoints}
    assert all(isinstance(one.step_number, int) for one in checkpoints)
    team.finish(running.run_id)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    assert isinstance(client.models.list().data[0].id, str)


def test_models_are_what_jobs_left_and_what_answers_now(client: OpenAI, team: Api) -> None:
    """Ids may hold slashes and colons."""
    assert list(client.models.list()) == []
    job = client.fine_tuning.jobs.create(model="smollm2", training_file=training_file(client))
    running = team.running({"id": job.id})
    team.report(running.run_id, {"model": "a team/its model:v1"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a team/its model:v1")
    team.finish(running.run_id)
    api = team.running(team.ok("POST", "/api/jobs", {"kind": "api", "params": {"model": "base/model"}}))
    names = {"base/model": "m", "with?query#and%2F": "n", "../../etc/passwd": "o"}
    team.ok("PUT", f"/api/runs/{api.run_id}/serving", {"port": 9, "models": names})
    listed = {model.id: model for model in client.models.list()}
    assert listed.keys() == {"a team/its model:v1", *names}
    for name in listed:
        assert client.models.retrieve(name) == listed[name]
        assert listed[name].object == "model"
    for name in ("no/such", "base", "base/model/", "a team/its model"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
    team.finish(api.run_id)
    assert [model.id for model in client.models.list()] == ["a team/its model:v1"]


def test_a_model_is_found_by_the_name_that_was_chosen_for_it(client: OpenAI, team: Api) -> None:
    """The newest completed job of that `finetuned_model_id`; its id is what other jobs call the model."""
    ids: list[str] = []
    for seed in (1, 2):
        job = client.fine_tuning.jobs.create(
            model="smollm2",
            training_file=training_file(client),
            seed=seed,
            extra_body={"finetuned_model_id": "me/mine"},
        )
        with pytest.raises(openai.NotFoundError) if seed == 1 else contextlib.nullcontext():
            client.models.retrieve("me/mine")
        running = team.running({"id": job.id})
        team.report(running.run_id, {"model": job.id})
        team.finish(running.run_id)
        ids.append(client.models.retrieve("me/mine").id)
        assert ids[-1] == job.id
    assert len(set(ids)) == 2
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("me/min")


def test_errors_are_those_of_the_client(closed_server: Served, team: Api) -> None:
    """BadRequestError, AuthenticationError, PermissionDeniedError, NotFoundError, each with OpenAI's body."""
    from tutelage.jobs.records import Scope

    organization = team.ok("GET", "/api/me")["organization"]["id"]
    reader = closed_server.openai(closed_server.token(Scope.READ, organization=organization))
    for call, kind, name, status in [
        (lambda: reader.files.list(limit=0), openai.BadRequestError, "invalid_request_error", 400),
        (lambda: closed_server.openai("no").models.list(), openai.AuthenticationError, "authentication_error", 401),
        (lambda: reader.files.delete("batch:file-0"), openai.PermissionDeniedError, "permission_error", 403),
        (lambda: upload(reader, b"x", "batch"), openai.PermissionDeniedError, "permission_error", 403),
        (lambda: reader.files.retrieve("batch:file-0"), openai.NotFoundError, "not_found_error", 404),
        (lambda: reader.get("/no/such", cast_to=cast("Any", object)), openai.NotFoundError, "not_found_error", 404),
        (lambda: reader.delete("/models", cast_to=cast("Any", object)), openai.APIStatusError, None, 405),
    ]:
        with pytest.raises(kind) as refused:
            cast("Any", call)()
        assert refused.value.status_code == status
        body = cast("dict[str, Any]", refused.value.body)
        assert body.keys() == {"message", "type", "code", "param"}
        assert name in (None, refused.value.type)
        assert body["message"]
    with pytest.raises(openai.BadRequestError) as refused:
        reader.files.list(limit=0)
    assert refused.value.param == "limit"


def test_the_client_that_does_not_wait(closed_server: Served, team: Api) -> None:
    """AsyncOpenAI: upload, create, page through, events, cancel, delete, many at once."""

    async def go() -> None:
        assert team.token is not None
        async with AsyncOpenAI(
            base_url=f"{closed_server.url}/v1", api_key=team.token, max_retries=0, timeout=PATIENCE
        ) as client:
            file = await client.files.create(file=io.BytesIO(jsonl([conversation()])), purpose="fine-tune")
            assert (await client.files.content(file.id)).content == jsonl([conversation()])
            jobs = await asyncio.gather(
                *(
                    client.fine_tuning.jobs.create(model="smollm2", training_file=file.id, seed=seed)
                    for seed in range(20)
                )
            )
            listed = [job.id async for job in client.fine_tuning.jobs.list(limit=6)]
            assert len(listed) == 20
            assert set(listed) == {job.id for job in jobs}
            assert (await client.fine_tuning.jobs.cancel(jobs[0].id)).status == "cancelled"
            with pytest.raises(openai.BadRequestError, match="needs it"):
                await client.files.delete(file.id)
            await asyncio.gather(*(client.fine_tuning.jobs.cancel(job.id) for job in jobs))
            assert (await client.files.delete(file.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("x/y")

    asyncio.run(go())
