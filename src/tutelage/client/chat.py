"""Chat completions of deployed models, through the `openai` package: `client.chat.completions.create(…)`.

What comes back are that package's objects. Not here: deploying (`deployments.py`).
"""

import asyncio
import os
import re
import threading
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from tutelage.client.http import Transport
from tutelage.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from tutelage.client.deployments import TemporaryApi
    from tutelage.client.openweights import OpenWeights

NOT_SERVED = "model_not_served"
"""The code of the error that a server gives for a model no job serves; others come from the model's own server."""
OF_OPENAI = re.compile(r"^(chatgpt|gpt|o[1-9])(-|$)", re.IGNORECASE)
"""Models that nobody here serves and OpenAI does: whoever asks for one means that."""
OPENAI_KEY = "OPENAI_API_KEY"
MAX_RETRIES = 6
"""Of a completion, by the openai package: about a minute with its pauses."""


class OpenAiClients:
    """Clients of the openai package for one server. Both raise ConfigError where that is not installed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @cached_property
    def sync(self) -> "OpenAI":
        """The one that waits."""
        openai = _openai()
        http_client = openai.DefaultHttpxClient(trust_env=not self._transport.is_loopback)
        return openai.OpenAI(http_client=http_client, **self._options)

    @cached_property
    def awaited(self) -> "AsyncOpenAI":
        """The one that is awaited."""
        openai = _openai()
        http_client = openai.DefaultAsyncHttpxClient(trust_env=not self._transport.is_loopback)
        return openai.AsyncOpenAI(http_client=http_client, **self._options)

    @cached_property
    def of_openai(self) -> "OpenAI":
        """The one that waits, for OpenAI's own models."""
        return _openai().OpenAI(api_key=_own_key())

    @cached_property
    def awaited_of_openai(self) -> "AsyncOpenAI":
        """The one that is awaited, for OpenAI's own models."""
        return _openai().AsyncOpenAI(api_key=_own_key())

    def close(self) -> None:
        """Close the connections of those that wait."""
        for name in vars(self).keys() & {"sync", "of_openai"}:
            getattr(self, name).close()

    async def aclose(self) -> None:
        """Close the connections of those that are awaited."""
        for name in vars(self).keys() & {"awaited", "awaited_of_openai"}:
            await getattr(self, name).close()

    @property
    def _options(self) -> dict[str, Any]:
        # The package insists on a key, also where the server needs none.
        key = self._transport.token or "none"
        return {"base_url": f"{self._transport.address}/v1", "api_key": key, "max_retries": MAX_RETRIES}


class _Chat:
    """A model that is not deployed is deployed with the first question, and stays until `kill`.

    What is called as OpenAI calls its models (`gpt-…`, `o3`), and is not deployed, is asked there.
    """

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
        completions = self._ow.openai.sync.chat.completions
        try:
            return completions.create(model=model, **options)
        except _openai().NotFoundError as error:
            if error.code != NOT_SERVED:
                raise
            if OF_OPENAI.match(model):
                completions = self._ow.openai.of_openai.chat.completions
            else:
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
        completions = self._ow.openai.awaited.chat.completions
        try:
            return await completions.create(model=model, **options)
        except _openai().NotFoundError as error:
            if error.code != NOT_SERVED:
                raise
            if OF_OPENAI.match(model):
                completions = self._ow.openai.awaited_of_openai.chat.completions
            else:
                await asyncio.to_thread(self._deploy, model)
        return await completions.create(model=model, **options)


def _own_key() -> str:
    key = os.environ.get(OPENAI_KEY)
    if not key:
        raise ConfigError(
            f"{OPENAI_KEY} is not set, and no job serves a model of that name, which is one of OpenAI's; "
            "set it to ask there, or deploy a model of your own"
        )
    return key


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError("chat completions go through the openai package; pip install openai") from error
    return openai
