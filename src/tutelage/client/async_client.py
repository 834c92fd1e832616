"""`AsyncClient`: every call of `Client`, awaitable.

Each runs the call of `Client` in one of a few threads. The other way, a second transport below the same calls, would
not be more asynchronous: most calls hash, read and write files, and custom jobs run functions of their authors, all of
which would stop the event loop. The price is that at most MAX_CALLS calls are under way at once; the rest wait their
turn. What lasts holds no thread: waiting for jobs and following logs looks again and again, and chat completions go
through the openai package's own asynchronous client. Types and signatures are those of `Client`, taken over by
`ParamSpec`.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from tutelage.client.administration import Costs, Secrets, Tokens, Workers
from tutelage.client.async_jobs import AsyncJob, AsyncRun, Threads
from tutelage.client.builtin_jobs import AsksModel, BuiltInJobs, FineTuning, WeightedSft
from tutelage.client.deployments import Api, TemporaryApi
from tutelage.client.files import Files
from tutelage.client.job import Job
from tutelage.client.jobs import Jobs
from tutelage.client.openweights import OpenWeights
from tutelage.client.results import Me
from tutelage.client.runs import Events, Run, Runs

Given = ParamSpec("Given")
Result = TypeVar("Result")
Call = Callable[Concatenate[Any, Given], Coroutine[Any, Any, Result]]


class _Calls:
    """Base of what has awaitable calls. sync: whose calls they are."""

    def __init__(self, client: "AsyncClient", sync: Any) -> None:
        self._client = client
        self._sync = sync


def _named(method: Callable[..., Any], change: Callable[["AsyncClient", Any], Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def call(self: _Calls, *args: Any, **options: Any) -> Any:
        # By name: subclasses have calls of their own.
        result = await self._client.threads.run(getattr(self._sync, method.__name__), *args, **options)
        return change(self._client, result)

    return call


def _awaited(method: Callable[Concatenate[Any, Given], Result]) -> "Call[Given, Result]":
    return _named(method, lambda client, result: result)


def _giving_job(method: Callable[Concatenate[Any, Given], Job]) -> "Call[Given, AsyncJob]":
    return _named(method, AsyncJob)


def _giving_jobs(method: Callable[Concatenate[Any, Given], list[Job]]) -> "Call[Given, list[AsyncJob]]":
    return _named(method, lambda client, jobs: [AsyncJob(client, job) for job in jobs])


def _giving_run(method: Callable[Concatenate[Any, Given], Run]) -> "Call[Given, AsyncRun]":
    return _named(method, AsyncRun)


def _giving_runs(method: Callable[Concatenate[Any, Given], list[Run]]) -> "Call[Given, list[AsyncRun]]":
    return _named(method, lambda client, runs: [AsyncRun(client, run) for run in runs])


class AsyncFiles(_Calls):
    """See `Files`."""

    upload = _awaited(Files.upload)
    create = _awaited(Files.create)
    content = _awaited(Files.content)
    download = _awaited(Files.download)
    get_by_id = _awaited(Files.get_by_id)
    validate = _awaited(Files.validate)
    check = _awaited(Files.check)
    list = _awaited(Files.list)
    delete = _awaited(Files.delete)


class AsyncJobs(_Calls):
    """See `Jobs`; a registered class is one of them under its name."""

    create = _giving_job(Jobs.create)
    get_or_create_or_reset = _giving_job(Jobs.get_or_create_or_reset)
    compute_id = _awaited(Jobs.compute_id)
    retrieve = _giving_job(Jobs.retrieve)
    cancel = _giving_job(Jobs.cancel)
    restart = _giving_job(Jobs.restart)
    set_timeout = _giving_job(Jobs.set_timeout)
    explain = _awaited(Jobs.explain)
    list = _giving_jobs(Jobs.list)
    find = _giving_jobs(Jobs.find)


class AsyncFineTuning(_Calls):
    """See `FineTuning`."""

    create = _giving_job(FineTuning.create)


class AsyncWeightedSft(_Calls):
    """See `WeightedSft`."""

    create = _giving_job(WeightedSft.create)


class AsyncAsksModel(_Calls):
    """See `Inference`, `LogProb`, `MultipleChoice` and `InspectAi`."""

    create = _giving_job(AsksModel.create)


class AsyncApi(_Calls):
    """See `Api`. Deployments are for `async with`, or `await api.async_up()`."""

    create = _giving_job(Api.create)
    deploy = _awaited(Api.deploy)
    multi_deploy = _awaited(Api.multi_deploy)

    async def down(self, api: TemporaryApi) -> None:
        """End a deployment that no `async with` ends."""
        await self._client.threads.run(api.down)


class AsyncRuns(_Calls):
    """See `Runs`."""

    list = _giving_runs(Runs.list)
    retrieve = _giving_run(Runs.retrieve)
    begin_script = _giving_run(Runs.begin_script)


class AsyncEvents(_Calls):
    """See `Events`."""

    list = _awaited(Events.list)
    latest = _awaited(Events.latest)


class AsyncCosts(_Calls):
    """See `Costs`."""

    report = _awaited(Costs.report)


class AsyncWorkers(_Calls):
    """See `Workers`."""

    list = _awaited(Workers.list)
    demand = _awaited(Workers.demand)
    stop = _awaited(Workers.stop)


class AsyncTokens(_Calls):
    """See `Tokens`."""

    create = _awaited(Tokens.create)
    list = _awaited(Tokens.list)
    revoke = _awaited(Tokens.revoke)


class AsyncSecrets(_Calls):
    """See `Secrets`."""

    set = _awaited(Secrets.set)
    list = _awaited(Secrets.list)
    delete = _awaited(Secrets.delete)


class AsyncClient(_Calls):
    """`Client` with awaitable calls: the same attributes, the same options, the same errors. Made without network.

    `await client.run()` and `await client.me()` are calls here, since they ask the server.
    """

    def __init__(
        self,
        *,
        auth_token: str | None = None,
        organization_id: str | None = None,
        deploy_kwargs: Mapping[str, Any] | None = None,
        base_url: str | None = None,
    ) -> None:
        sync = OpenWeights(
            auth_token=auth_token, organization_id=organization_id, deploy_kwargs=deploy_kwargs, base_url=base_url
        )
        super().__init__(self, sync)
        self.sync = sync
        self.threads = Threads()
        self.files = AsyncFiles(self, sync.files)
        self.jobs = AsyncJobs(self, sync.jobs)
        self.runs = AsyncRuns(self, sync.runs)
        self.events = AsyncEvents(self, sync.events)
        self.costs = AsyncCosts(self, sync.costs)
        self.workers = AsyncWorkers(self, sync.workers)
        self.tokens = AsyncTokens(self, sync.tokens)
        self.secrets = AsyncSecrets(self, sync.secrets)
        self.chat = sync.async_chat
        self.fine_tuning = AsyncFineTuning(self, sync.fine_tuning)
        self.weighted_sft = AsyncWeightedSft(self, sync.weighted_sft)
        self.inference = AsyncAsksModel(self, sync.inference)
        self.logprob = AsyncAsksModel(self, sync.logprob)
        self.multiple_choice = AsyncAsksModel(self, sync.multiple_choice)
        self.inspect_ai = AsyncAsksModel(self, sync.inspect_ai)
        self.api = AsyncApi(self, sync.api)

    def __repr__(self) -> str:
        return f"AsyncClient({self.sync.http.address!r})"

    def __getattr__(self, name: str) -> AsyncJobs:
        """Jobs that were registered under this name."""
        jobs = None if name.startswith("_") or name == "sync" else getattr(self.sync, name)
        if not isinstance(jobs, Jobs) or isinstance(jobs, BuiltInJobs):
            raise AttributeError(f"an AsyncClient has no '{name}'; what is awaited is named as in Client")
        return AsyncJobs(self, jobs)

    async def me(self) -> Me:
        """Whose token this is."""
        return await self.threads.run(lambda: self.sync.me)

    async def run(self) -> AsyncRun:
        """See `OpenWeights.run`."""
        return AsyncRun(self, await self.threads.run(lambda: self.sync.run))

    exec = _giving_job(OpenWeights.exec)

    async def close(self) -> None:
        """Close the connections, once the calls under way are done."""
        await asyncio.to_thread(self.threads.pool.shutdown)
        await self.sync.openai.aclose()
        self.sync.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
