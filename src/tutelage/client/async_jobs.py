"""Jobs and runs whose calls are awaited, and the threads that the calls run in. Not here: `AsyncClient`."""

import asyncio
import codecs
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from tutelage.client.http import path_of
from tutelage.client.job import FIRST_POLL_SECONDS, POLL_SECONDS, WAIT_PATIENCE_SECONDS, Job, JobFields
from tutelage.client.results import Event, Explanation, Series
from tutelage.client.runs import Run, RunFields

if TYPE_CHECKING:
    from tutelage.client.async_client import AsyncClient

MAX_CALLS = 32
LOG_POLL_SECONDS = 0.5
"""Between two looks at a log that is followed."""

Result = TypeVar("Result")


class Threads:
    """Where calls of a client run."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="tutelage")

    async def run(self, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """The result of a call made in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, functools.partial(call, *args, **options))


class AsyncJob(JobFields):
    """See `Job`. What asks the server is awaited: `await job.runs()`, `await job.wait()`."""

    def __init__(self, client: "AsyncClient", job: Job) -> None:
        super().__init__(job.record)
        self._client = client
        self._job = job

    async def _after(self, call: Callable[[], Job]) -> "AsyncJob":
        self._take((await self._client.threads.run(call)).record)
        return self

    async def refresh(self) -> "AsyncJob":
        """This job as it is now."""
        return await self._after(self._job.refresh)

    async def cancel(self) -> "AsyncJob":
        """See `Job.cancel`."""
        return await self._after(self._job.cancel)

    async def restart(self) -> "AsyncJob":
        """See `Job.restart`."""
        return await self._after(self._job.restart)

    async def explain(self) -> Explanation:
        """See `Job.explain`."""
        return await self._client.threads.run(self._job.explain)

    async def runs(self) -> list["AsyncRun"]:
        """All runs, newest last."""
        return [AsyncRun(self._client, run) for run in await self._client.threads.run(lambda: self._job.runs)]

    async def events(self) -> list[Event]:
        """What its runs reported, oldest first."""
        return await self._client.threads.run(lambda: self._job.events)

    async def wait(self, timeout: float | None = None, poll: float = POLL_SECONDS) -> "AsyncJob":
        """See `Job.wait`. May be canceled."""
        begun, pause = time.monotonic(), min(FIRST_POLL_SECONDS, poll)
        jobs = self._client.sync.jobs
        while True:
            self._take(await self._client.threads.run(jobs.record, self.id, patience=WAIT_PATIENCE_SECONDS))
            if self.is_final:
                return self
            if timeout is not None and time.monotonic() - begun + pause > timeout:
                raise self.timed_out(timeout)
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, poll)

    async def logs(self) -> str:
        """What the newest run printed."""
        return await self._client.threads.run(self._job.logs)

    async def download(self, target_dir: str | os.PathLike[str], only_last_run: bool = True) -> list[Path]:
        """See `Job.download`."""
        return await self._client.threads.run(self._job.download, target_dir, only_last_run)


class AsyncRun(RunFields):
    """See `Run`. What asks the server is awaited."""

    def __init__(self, client: "AsyncClient", run: Run) -> None:
        super().__init__(run.record)
        self._client = client
        self._run = run

    async def refresh(self) -> "AsyncRun":
        """This run as it is now."""
        self._take((await self._client.threads.run(self._run.refresh)).record)
        return self

    async def log(self, data: Mapping[str, Any], file: BinaryIO | str | os.PathLike[str] | None = None) -> None:
        """See `Run.log`."""
        await self._client.threads.run(self._run.log, data, file)

    async def update(self, status: str | None = None) -> None:
        """See `Run.update`."""
        await self._client.threads.run(self._run.update, status)
        self._take(self._run.record)

    async def events(self) -> list[Event]:
        """What it reported, oldest first."""
        return await self._client.threads.run(lambda: self._run.events)

    async def logs(self) -> str:
        """What it printed so far."""
        return await self._client.threads.run(self._run.logs)

    async def follow(self) -> AsyncIterator[str]:
        """What it prints, as it comes, until it has ended."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        path, start = path_of("api", "logs", self.id), 0
        while True:
            ended = (await self.refresh()).record.status.is_final
            content, headers = await self._client.threads.run(self._client.sync.http.part, path, {"start": start})
            if text := decoder.decode(content):
                yield text
            if content:
                start = int(headers["Tutelage-Log-End"])
            elif ended:
                return
            else:
                await asyncio.sleep(LOG_POLL_SECONDS)

    async def series(self, points: int = 500) -> list[Series]:
        """See `Run.series`."""
        return await self._client.threads.run(self._run.series, points)

    async def download(self, target_dir: str | os.PathLike[str]) -> list[Path]:
        """See `Run.download`."""
        return await self._client.threads.run(self._run.download, target_dir)
