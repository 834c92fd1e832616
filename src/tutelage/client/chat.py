"""Chat completions of deployed models, through the `openai` package: `client.chat.completions.create(…)`.

What comes back are that package's objects. Not here: deploying (`deployments.py`).
"""

import asyncio
import threading
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload

from tutelage.client.http import Transport
from tutelage.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from tutelage.client.deployments import TemporaryApi
    from tutelage.client.openweights import OpenWeights

MAX_RETRIES = 6
"""Of a completion, by the openai package: about a minute with its pauses."""


@lru_cache(maxsize=32)
def openai_client(transport: Transport) -> "OpenAI":
    """The client of the openai package for this server. Raises ConfigError where that is not installed."""
    openai = _openai()
    return openai.OpenAI(
        base_url=f"{transport.address}/v1",
        api_key=transport.token or "none",
        max_retries=MAX_RETRIES,
        http_client=openai.DefaultHttpxClient(trust_env=not transport.is_loopback),
    )


@lru_cache(maxsize=32)
def openai_async_client(transport: Transport) -> "AsyncOpenAI":
    """See `openai_client`."""
    openai = _openai()
    return openai.AsyncOpenAI(
        base_url=f"{transport.address}/v1",
        api_key=transport.token or "none",
        max_retries=MAX_RETRIES,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not transport.is_loopback),
    )


class _Chat:
    """A model that is not deployed is deployed with the first question, and stays until `kill`."""

    def __init__(self, client: "OpenWeights", deploy_kwargs: dict[str, Any]) -> None:
        self._ow = client
        self._deploy_kwargs = deploy_kwargs
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._up: dict[str, TemporaryApi] = {}

    def kill(self, model: str) -> None:
        """End the deployments of a model, whoever began them. Raises NotFoundError where there is none."""
        api = self._up.pop(model, None)
        if api is not None:
            api.down()
            return
        deployed = [
            job
            for status in ("pending", "in_progress")
            for job in self._ow.jobs.list(limit=1000, kind="api", status=status)
            if model in (job.model, *job.record.params.get("lora_adapters", ()))
        ]
        if not deployed:
            raise NotFoundError(f"{model}: no such model is deployed; list jobs with: tutelage jobs ls")
        for job in deployed:
            job.cancel()

    def _deploy(self, model: str) -> None:
        """Returns once the model answers; of several callers one deploys it."""
        with self._locks[model]:
            api = self._up.get(model)
            if api is None or self._ow.jobs.record(api.job_id).status.is_final:
                api = self._ow.api.deploy(model, **self._deploy_kwargs)
                api.up()
                self._up[model] = api


class ChatCompletions(_Chat):
    """`client.chat.completions` of a client that waits."""

    @property
    def completions(self) -> "ChatCompletions":
        return self

    @overload
    def create(self, *, model: str, stream: Literal[True], **options: Any) -> "Stream[ChatCompletionChunk]": ...
    @overload
    def create(self, *, model: str, stream: Literal[False] | None = None, **options: Any) -> "ChatCompletion": ...
    def create(self, *, model: str, **options: Any) -> Any:
        """A completion, or with `stream=True` its parts. options: those of the openai package, whose errors are raised.

        Raises JobFailed where the model had to be deployed and its job failed.
        """
        completions = openai_client(self._ow.http).chat.completions
        try:
            return completions.create(model=model, **options)
        except _openai().NotFoundError:
            self._deploy(model)
        return completions.create(model=model, **options)


class AsyncChatCompletions(_Chat):
    """`client.chat.completions` of a client that is awaited."""

    @property
    def completions(self) -> "AsyncChatCompletions":
        return self

    @overload
    async def create(
        self, model: str, *, stream: Literal[True], **options: Any
    ) -> "AsyncStream[ChatCompletionChunk]": ...
    @overload
    async def create(self, model: str, *, stream: Literal[False] | None = None, **options: Any) -> "ChatCompletion": ...
    async def create(self, model: str, **options: Any) -> Any:
        """See `ChatCompletions.create`."""
        completions = openai_async_client(self._ow.http).chat.completions
        try:
            return await completions.create(model=model, **options)
        except _openai().NotFoundError:
            await asyncio.to_thread(self._deploy, model)
        return await completions.create(model=model, **options)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError("chat completions go through the openai package; pip install openai") from error
    return openai
