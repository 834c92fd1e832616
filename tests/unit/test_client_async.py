"""`AsyncClient`: the calls of `Client`, awaited; what lasts can be canceled. Against a real server."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.fake_job_server import JobServer, job_server
from tests.served import conversation, jsonl, until
from tutelage.client import AsyncClient, Client, Jobs, register
from tutelage.client.async_jobs import AsyncJob, AsyncRun
from tutelage.client.job import Job, WaitTimeout
from tutelage.client.runs import Run
from tutelage.errors import NotFoundError

NOT_AWAITED = {
    "Jobs": {"submit", "record", "get_entrypoint"},
    "Runs": {"record"},
    "FineTuning": {"submit", "record", "get_entrypoint"},
    "Api": {"submit", "record", "get_entrypoint"},
}
"""Calls that are for subclasses and for the awaited ones themselves."""


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


def calls_of(thing: Any) -> set[str]:
    return {name for name, _ in inspect.getmembers(type(thing), inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["files", "jobs", "runs", "events", "costs", "workers", "tokens", "secrets"])
def test_every_call_of_the_client_is_there(name: str) -> None:
    sync, awaited = getattr(Client(), name), getattr(AsyncClient(), name)
    missing = calls_of(sync) - calls_of(awaited) - NOT_AWAITED.get(type(sync).__name__, set())
    assert missing == set()


@pytest.mark.parametrize(("sync", "awaited"), [(Job, AsyncJob), (Run, AsyncRun)])
def test_every_call_of_jobs_and_runs_is_there(sync: type, awaited: type) -> None:
    names = {name for name in vars(sync) if not name.startswith("_")}
    assert names - set(dir(awaited)) == set()


def test_a_job_from_upload_to_download(server: JobServer, tmp_path: Path) -> None:
    worker = server.worker()
    (tmp_path / "a.jsonl").write_bytes(jsonl([conversation()]))

    async def go() -> None:
        async with AsyncClient(base_url=server.url) as client:
            file = await client.files.upload(tmp_path / "a.jsonl", purpose="conversations")
            assert await client.files.content(file["id"]) == (tmp_path / "a.jsonl").read_bytes()
            job = await client.fine_tuning.create(model="smollm2", training_file=file.id, loss="sft", max_steps=1)
            assert (job["status"], job.type) == ("pending", "fine-tuning")
            assert (await job.explain()).summary
            claimed = await asyncio.to_thread(worker.claim)
            await asyncio.to_thread(worker.api.append_log, claimed.run_id, 0, "é1\n".encode())
            worker.leave(claimed.run_id, tmp_path, "model/w.bin", b"w")
            run = (await job.runs())[0]
            heard: list[str] = []

            async def listen() -> None:
                async for part in run.follow():
                    heard.append(part)

            listening = asyncio.create_task(listen())
            await asyncio.to_thread(until, lambda: heard, "the first line")
            await asyncio.to_thread(worker.api.append_log, claimed.run_id, 4, b"2\n")
            await asyncio.to_thread(worker.complete, claimed.run_id)
            assert (await job.wait(poll=0.01)).status == "completed"
            await listening
            assert "".join(heard) == await job.logs() == await run.logs() == "é1\n2\n"
            assert [event.data["path"] for event in await job.events()] == ["model/w.bin"]
            assert await client.events.latest(["path"], job_id=job.id) == {"path": "model/w.bin"}
            assert (tmp_path / "to" / "model" / "w.bin") in await job.download(tmp_path / "to")
            assert [one.id for one in await client.jobs.list()] == [job.id]
            assert isinstance((await client.jobs.find(model="smollm2"))[0], AsyncJob)
            assert (await (await client.jobs.retrieve(job.id)).restart()).status == "pending"
            assert (await job.refresh()).status == "pending"
            assert (await job.cancel()).status == job.status == "canceled"
            with pytest.raises(NotFoundError):
                await client.runs.retrieve("run-1")

    asyncio.run(go())


def test_custom_jobs_are_there_under_their_names(server: JobServer) -> None:
    class Number(BaseModel):
        number: int

    @register("numbered")
    class Numbered(Jobs):
        params = Number

        def get_entrypoint(self, validated_params: Number) -> str:
            return f"echo {validated_params.number}"

    async def go() -> tuple[AsyncJob, AsyncJob]:
        async with AsyncClient(base_url=server.url) as client:
            with pytest.raises(AttributeError, match="has no 'never_registered'"):
                _ = client.never_registered
            return await client.numbered.create(number=3, cloud_type="ALL"), await client.exec(["echo", "a b"])

    custom, command = asyncio.run(go())
    assert (custom.script, custom.cloud_type) == ("echo 3", "ALL")
    assert command.script == "echo 'a b'"


def test_a_run_of_its_own_reports(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUTELAGE_RUN_ID", "OPENWEIGHTS_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    async def go() -> list[dict[str, Any]]:
        async with AsyncClient(base_url=server.url) as client:
            run = await client.run()
            await run.log({"step": 1})
            assert (await run.refresh()).latest == {"step": 1}
            assert (await client.me()).organization.name == "default"
            return [event.data for event in await run.events()]

    assert asyncio.run(go()) == [{"step": 1}]


def test_waiting_can_be_canceled_and_holds_no_thread(server: JobServer) -> None:
    """More jobs are waited for than calls can be under way at once."""

    async def go() -> None:
        async with AsyncClient(base_url=server.url) as client:
            jobs = await asyncio.gather(*(client.exec(f"echo {number}") for number in range(50)))
            with pytest.raises(WaitTimeout):
                await jobs[0].wait(timeout=0.02, poll=0.01)
            waiting = [asyncio.create_task(job.wait()) for job in jobs]
            seen = server.faults.seen
            await asyncio.to_thread(until, lambda: all(seen[f"GET /api/jobs/{job.id}"] for job in jobs))
            assert (await client.jobs.retrieve(jobs[3].id)).status == "pending"
            for task in waiting:
                task.cancel()
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)

    asyncio.run(go())
    assert not any(thread.name.startswith("tutelage_") for thread in threading.enumerate())


def test_calls_keep_the_signatures_of_the_client() -> None:
    client = AsyncClient()
    for name, of in (("upload", client.files), ("retrieve", client.jobs), ("create", client.fine_tuning)):
        awaited, sync = getattr(type(of), name), getattr(type(of._sync), name)
        assert inspect.signature(awaited).parameters == inspect.signature(sync).parameters
        assert inspect.iscoroutinefunction(awaited)
