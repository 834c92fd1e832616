"""Judges: models behind OpenAI's HTTP interface that are asked how good an answer is.

A call that fails is a Reply that says why; it is never tried again in secret, and never raises. Not here: what they are
asked and how their answers are read (`judge_prompts.py`).
"""

import asyncio
import importlib
import json
import os
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tutelage.errors import ConfigError, nearest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent where there is no key: the client refuses to send nothing, and a local server doesn't look."""
MODELS_NAMED = 10
"""Of a server's models, at most so many in a message."""
PASSING = {408, 409, 425, 429}
"""Refusals that say "later", not "never"."""

CHECK = [{"role": "system", "content": "You are a judge."}, {"role": "user", "content": "Reply with: OK"}]
"""The question of `Judge.check`; some chat templates refuse a system turn, which judges are given."""
NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError)

Messages = list[dict[str, str]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """What came of one call: a text, or the reason why there is none. seconds: how long the call took."""

    text: str | None
    error: str | None
    seconds: float


class _OtherShape(Exception):
    """The server answered, but not as OpenAI's does. `str(error)` says what is missing."""


class _NoText(_OtherShape):
    """As OpenAI's server does it, but without a text: all of `max_tokens` went into thinking, or a filter refused."""


@dataclass(frozen=True)
class Judge:
    """A model at an OpenAI-compatible server.

    base_url: None is the environment's OPENAI_BASE_URL, else OpenAI's own. api_key: None is OPENAI_API_KEY, else a
    placeholder. timeout: seconds for one whole call. parallelism: calls at the same time. temperature, max_tokens: None
    leaves them out of the request, for models that refuse them. options: what the user's names of these begin with, for
    messages. Raises ConfigError for values that cannot work.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    parallelism: int = 8
    temperature: float | None = 0.0
    max_tokens: int | None = 256
    options: str = field(default="judge_", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("judge: the model's name is empty; give the name the server knows it by")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"judge: {self.options}base_url is '{self.url}'; begin it with http:// or https://")
        if not self.timeout > 0:
            raise ConfigError(f"judge: {self.options}timeout is {self.timeout}; give a number of seconds above 0")
        if self.parallelism < 1:
            raise ConfigError(f"judge: {self.options}parallelism is {self.parallelism}; give 1 or more")

    @property
    def url(self) -> str:
        """Where calls go."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    def ask(self, conversations: Sequence[Messages]) -> list[Reply]:
        """One call for each conversation, replies in the same order. Also works inside a running event loop.

        Raises ConfigError where the package `openai` is missing, and nothing else.
        """
        _require_openai()
        return run_to_end(self._ask(conversations))

    def check(self) -> None:
        """One small call. Raises ConfigError, with the remedy, for what would fail every call of a run.

        That is an unknown model, a refused key or request, nothing that listens, or an answer in another shape. A slow
        or busy server and one that has an error of its own may have recovered by the time it is needed.
        """
        _require_openai()
        run_to_end(self._check())

    def _client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        key = self.api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY
        return AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=self.timeout)

    async def _ask(self, conversations: Sequence[Messages]) -> list[Reply]:
        places = asyncio.Semaphore(self.parallelism)
        async with self._client() as client:

            async def reply(messages: Messages) -> Reply:
                async with places:
                    start = time.monotonic()
                    try:
                        text, error = await self._call(client, messages), None
                    except Exception as failure:  # whatever the package raises: one call must not end a run
                        text, error = None, self._reason(failure)
                    return Reply(text, error, time.monotonic() - start)

            return await asyncio.gather(*map(reply, conversations))

    async def _call(self, client: "AsyncOpenAI", messages: Messages) -> str:
        chosen = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        request = client.chat.completions.create(
            model=self.model,
            messages=cast("Any", messages),
            **cast("Any", {name: value for name, value in chosen.items() if value is not None}),
        )
        # The client's own limit is for each read: a server that sends a byte now and then would never exceed it.
        return _text_of(await asyncio.wait_for(request, self.timeout))

    async def _check(self) -> None:
        from openai import APIConnectionError, APIStatusError

        if self.url == OPENAI_URL and not (self.api_key or os.environ.get("OPENAI_API_KEY")):
            raise ConfigError(
                f"judge: {self.url} needs a key; set OPENAI_API_KEY, or {self.options}base_url to another server's "
                "address"
            )
        async with self._client() as client:
            try:
                await self._call(client, CHECK)
            except APIStatusError as error:
                status = error.status_code
                if status >= 500 or (status in PASSING and error.code != "model_not_found"):
                    return
                raise ConfigError(await self._refusal(client, error)) from error
            except APIConnectionError as error:
                if _never_connected(error):
                    raise ConfigError(
                        f"judge: nothing answers at {self.url} ({_root(error)}); start the server or mend "
                        f"{self.options}base_url"
                    ) from error
            except (asyncio.TimeoutError, _NoText):
                return
            except (_OtherShape, *NOT_JSON) as error:
                raise ConfigError(
                    f"judge: {self.url} does not answer as OpenAI's API does: {self._reason(error)}; mend "
                    f"{self.options}base_url, which mostly ends in /v1"
                ) from error
            except Exception as error:
                raise ConfigError(
                    f"judge: {self.url} cannot be asked ({self._reason(error)}); mend {self.options}base_url, "
                    f"{self.options}model or OPENAI_API_KEY"
                ) from error

    async def _refusal(self, client: "AsyncOpenAI", error: Any) -> str:
        """The sentence for a status that will not pass."""
        reason = self._reason(error)
        if error.status_code == 404 or error.code == "model_not_found":
            models = await self._models(client)
            if models and self.model not in models:
                named = ", ".join(models[:MODELS_NAMED]) + (", …" if len(models) > MODELS_NAMED else "")
                return (
                    f"judge: {self.url} has no model '{self.model}'{nearest(self.model, models)}; choose one of {named}"
                )
            return (
                f"judge: {self.url} does not find the model '{self.model}' ({reason}); choose another model, or mend "
                f"{self.options}base_url, which mostly ends in /v1"
            )
        if error.status_code in (401, 403):
            return f"judge: {self.url} refuses the key ({reason}); set OPENAI_API_KEY to a valid one"
        return (
            f"judge: {self.url} refuses the request ({reason}); choose another model, or set "
            f"{self.options}temperature or {self.options}max_tokens to what it takes"
        )

    async def _models(self, client: "AsyncOpenAI") -> list[str]:
        """What the server lists; empty where it lists nothing that can be read, which is no second error."""
        try:
            page = await asyncio.wait_for(client.models.list(), self.timeout)
            return [str(model.id) for model in page.data]
        except Exception:
            return []

    def _reason(self, error: Exception) -> str:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, (asyncio.TimeoutError, APITimeoutError)):
            return f"no answer within {self.timeout:g} s"
        if isinstance(error, APIStatusError):
            body = cast("dict[str, Any]", error.body) if isinstance(error.body, dict) else {}
            return self._short(f"status {error.status_code}: {body.get('message') or error.response.text}")
        if isinstance(error, APIConnectionError):
            what = "no connection" if _never_connected(error) else "the connection broke"
            return self._short(f"{what}: {_root(error)}")
        if isinstance(error, _OtherShape):
            return str(error)
        if isinstance(error, NOT_JSON):
            return self._short(f"the answer is not JSON: {error}")
        return self._short(f"{type(error).__name__}: {error}")

    def _short(self, text: str, limit: int = 200) -> str:
        """One line of at most `limit` characters, without the key, which some servers repeat."""
        key = self.api_key or os.environ.get("OPENAI_API_KEY")
        line = " ".join((text.replace(key, "…") if key else text).split())
        return line if len(line) <= limit else line[: limit - 1] + "…"


def _require_openai() -> None:
    try:
        importlib.import_module("openai")
    except ImportError as error:
        raise ConfigError(f"judges need the package openai ({error}); pip install 'tutelage[judge]'") from error


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine; in a thread of its own where this one already runs an event loop (notebooks do)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()


def _text_of(completion: Any) -> str:
    """The client checks no shape: an answer may be text, or lack anything."""
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise _OtherShape("no choices[0].message.content in the answer") from error
    if not isinstance(text, str):
        raise _NoText("no text in the answer")
    return text


def _never_connected(error: BaseException) -> bool:
    """Whether no connection came about; by name, as the class is httpx's or httpx2's, depending on the client."""
    cause = error.__cause__
    return type(cause).__name__ in ("ConnectError", "UnsupportedProtocol")


def _root(error: BaseException) -> str:
    """What the system said, such as "connection refused"; the exceptions around it only say that something failed."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    told = next((one for one in reversed(chain) if isinstance(one, OSError)), error.__cause__ or error)
    return str(told) or type(told).__name__
