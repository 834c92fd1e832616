"""Models that answer chat completions for as long as somebody wants them: `client.api`.

Not here: asking them (`chat.py`).
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from tutelage.client.builtin_jobs import GUESS, BuiltInJobs, Vram
from tutelage.client.errors import ServerError
from tutelage.client.job import Job
from tutelage.client.openweights_form import TRAINED
from tutelage.errors import JobError, NotFoundError, TutelageError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from tutelage.client.openweights import OpenWeights

logger = logging.getLogger(__name__)

KEPT_FOR = timedelta(minutes=15)
"""A deployment whose process here is gone ends after this."""
RENEW_SECONDS = 60.0
POLL_SECONDS = 1.0
"""Between two looks whether the model answers."""
DEFAULT_LORA_RANK = 16


class Api(BuiltInJobs):
    """`client.api`: deploying models."""

    kind = "api"
    extra_gb = 5.0

    def create(
        self,
        requires_vram_gb: Vram = GUESS,
        allowed_hardware: list[str] | None = None,
        docker_image: str | None = None,
        cloud_type: str = "SECURE",
        **options: Any,
    ) -> Job:
        """Submit the job of a deployment; `deploy` keeps it alive too. options: those of `ApiParams`."""
        return self._create(options, requires_vram_gb, allowed_hardware, docker_image, cloud_type)

    def deploy(
        self,
        model: str,
        lora_adapters: Sequence[str] | None = None,
        max_lora_rank: int | Literal["guess"] = GUESS,
        max_model_len: int = 2048,
        requires_vram_gb: Vram = GUESS,
        max_num_seqs: int = 100,
        quantization: str | None = None,
        kv_cache_dtype: str | None = None,
        allowed_hardware: list[str] | None = None,
        cloud_type: str = "SECURE",
        **options: Any,
    ) -> "TemporaryApi":
        """A deployment, submitted now and kept for 15 minutes. `with`, `async with` and `up()` keep it until they or
        `down()` end it.

        model, lora_adapters: Hub ids, or ids of training jobs. max_lora_rank: guessed, the largest of the adapters'
        jobs. Raises ConfigError and JobError for what cannot be deployed.
        """
        adapters = list(lora_adapters or [])
        rank = max((self._rank(one) for one in adapters), default=DEFAULT_LORA_RANK)
        job = self.create(
            requires_vram_gb,
            allowed_hardware,
            cloud_type=cloud_type,
            model=model,
            lora_adapters=adapters,
            max_lora_rank=rank if isinstance(max_lora_rank, str) else max_lora_rank,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            **options,
        )
        api = TemporaryApi(self._ow, job.id, [model, *adapters])
        api.renew()  # whoever ends before `up` leaves nothing behind that runs for ever
        return api

    def multi_deploy(
        self,
        models: Sequence[str],
        max_model_len: int = 2048,
        requires_vram_gb: Vram = GUESS,
        max_num_seqs: int = 100,
        base_model_override: str | None = None,
        **options: Any,
    ) -> dict[str, "TemporaryApi"]:
        """Deployments of several models by name; adapters that jobs trained on one base model share one.

        base_model_override: deploy all of them as adapters of this model. The other options are those of `deploy`.
        """
        if isinstance(models, str):
            raise JobError(f"models: '{models}' is one name; give a list of them")
        options |= {
            "max_model_len": max_model_len,
            "requires_vram_gb": requires_vram_gb,
            "max_num_seqs": max_num_seqs,
        }
        groups: dict[str, list[str]] = {}
        for model in models:
            base = base_model_override or self._base_of_adapter(model)
            groups.setdefault(base or model, []).extend([model] if base else [])
        found: dict[str, TemporaryApi] = {}
        for base, adapters in groups.items():
            api = self.deploy(base, lora_adapters=adapters, **options)
            found |= dict.fromkeys([base, *adapters], api)
        return found

    def _rank(self, adapter: str) -> int:
        trained = TRAINED.match(adapter)
        return int(self._ow.jobs.record(trained[0]).params["r"]) if trained else DEFAULT_LORA_RANK

    def _base_of_adapter(self, model: str) -> str | None:
        """The base model of a job that left an adapter and no merged model."""
        trained = TRAINED.match(model)
        if trained is None:
            return None
        params = self._ow.jobs.record(trained[0]).params
        return str(params["model"]) if params["is_peft"] and not params["merge_before_push"] else None


class TemporaryApi:
    """A deployment. While it is up, a thread moves the time at which the job would end 15 minutes ahead, every minute.

    base_url, api_key: for any client of OpenAI's interface.
    """

    def __init__(self, client: "OpenWeights", job_id: str, models: Sequence[str]) -> None:
        self._ow = client
        self.job_id = job_id
        self.models = list(models)
        self.base_url = f"{client.http.address}/v1"
        self._stopped = threading.Event()
        self._keeper: threading.Thread | None = None
        self._downs = 0
        self._changing = threading.RLock()  # a handler of signals may come in the middle of `up`
        """Held while it begins or ends, so that what began before `down` does not begin behind it."""

    def __repr__(self) -> str:
        return f"TemporaryApi({self.job_id!r}, models={self.models})"

    @property
    def api_key(self) -> str:
        return self._ow.http.token or "none"

    @property
    def sync_client(self) -> "OpenAI":
        return self._ow.openai.sync

    @property
    def async_client(self) -> "AsyncOpenAI":
        return self._ow.openai.awaited

    def up(self, timeout: float | None = None) -> "OpenAI":
        """Wait until the model answers; an OpenAI client for it.

        timeout: seconds after which WaitTimeout is raised; None waits for a worker as long as it takes. Raises
        JobFailed with the reason where the job fails. Whatever is raised, the deployment is taken down.
        """
        try:
            for pause in self._until_ready(timeout, self._downs):
                time.sleep(pause)
        except BaseException:
            self._down_after_failure()
            raise
        return self.sync_client

    async def async_up(self, timeout: float | None = None) -> "AsyncOpenAI":
        """See `up`."""
        try:
            steps = self._until_ready(timeout, self._downs)
            while (pause := await asyncio.to_thread(next, steps, None)) is not None:
                await asyncio.sleep(pause)
        except BaseException:
            # In a thread, since the server may be slow; to its end, also where this is canceled once more.
            await asyncio.shield(asyncio.to_thread(self._down_after_failure))
            raise
        return self.async_client

    def down(self) -> None:
        """End the deployment. Nothing happens where it has ended."""
        with self._changing:
            self._downs += 1
            self._stopped.set()
            if self._keeper is not None and self._keeper is not threading.current_thread():
                self._keeper.join(timeout=1.0)
            with contextlib.suppress(NotFoundError, JobError):
                self._ow.jobs.cancel(self.job_id)

    def renew(self) -> None:
        """Keep it for 15 minutes from now on, by the server's clock."""
        self._ow.jobs.set_timeout(self.job_id, self._ow.http.now() + KEPT_FOR)

    def __enter__(self) -> "OpenAI":
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    async def __aenter__(self) -> "AsyncOpenAI":
        return await self.async_up()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.down)

    def _until_ready(self, timeout: float | None, downs: int) -> Iterator[float]:
        """Look again and again; what is given are the pauses between. Raises JobFailed and WaitTimeout.

        downs: how often it was taken down when it was asked for.
        """
        begun = time.monotonic()
        with self._changing:
            if downs != self._downs:
                raise JobError(f"{self.job_id}: the deployment was taken down before it began; call up() again")
            job = self._ow.jobs.retrieve(self.job_id)
            if job.is_final:
                job.restart()
            self._keep_alive()
        while True:
            job.refresh()
            if job.status == "completed":
                raise JobError(f"{self.job_id}: the deployment ended before it answered; see: tutelage jobs logs")
            job.raise_for_status()
            if job.status == "in_progress" and self._answers():
                return
            if timeout is not None and time.monotonic() - begun > timeout:
                raise job.timed_out(timeout)
            yield POLL_SECONDS

    def _answers(self) -> bool:
        """Whether the server knows who answers, and whoever it is does; the first answer may load the model."""
        try:
            page = self._ow.http.request("GET", "/v1/models")
            served = {item["id"] for item in page["data"] if item.get("deployed_by")}
            if not served.issuperset(self.models):
                return False
            question = {"model": self.models[0], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            self._ow.http.request("POST", "/v1/chat/completions", json=question, patience=0)
        except (NotFoundError, ServerError):
            return False
        except JobError as error:
            logger.warning("%s: answers, but refused a greeting: %s", self.models[0], error)
        return True

    def _keep_alive(self) -> None:
        self.renew()
        self._stopped.clear()
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(target=self._renew_often, name=f"keep {self.job_id}", daemon=True)
            self._keeper.start()

    def _renew_often(self) -> None:
        while not self._stopped.wait(RENEW_SECONDS):
            try:
                self.renew()
            except TutelageError as error:  # the server may be back before the time is over
                logger.warning("%s: could not be kept for longer: %s", self.job_id, error)

    def _down_after_failure(self) -> None:
        with contextlib.suppress(TutelageError):
            self.down()
