"""`OpenWeights`, which is `Client` too: everything a server offers, as attributes; and `register` for custom jobs.

Source-compatible with OpenWeights 0.14. Not here: the awaitable one (`async_client.py`).
"""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakSet

from tutelage.client.administration import Costs, Secrets, Tokens, Workers
from tutelage.client.builtin_jobs import FineTuning, Inference, InspectAi, LogProb, MultipleChoice, WeightedSft
from tutelage.client.chat import AsyncChatCompletions, ChatCompletions, OpenAiClients
from tutelage.client.deployments import Api
from tutelage.client.files import Files
from tutelage.client.http import Transport
from tutelage.client.job import Job
from tutelage.client.jobs import Jobs
from tutelage.client.mounting import upload_mounts
from tutelage.client.results import Me, decoded
from tutelage.client.runs import Events, Run, Runs, current_run_id
from tutelage.errors import ConfigError
from tutelage.jobs.kinds import JobRequest, checked

EXEC_PREFIX = "execjob"
NOT_REPLACEABLE = frozenset(
    {"files", "jobs", "runs", "run", "events", "costs", "workers", "tokens", "secrets", "chat", "async_chat"}
    | {"sync_chat", "openai", "http", "me", "auth_token", "organization_id", "org_name", "hf_org", "exec", "close"}
)
"""Attributes of a client that no custom job may be registered as."""

CustomJobs = TypeVar("CustomJobs", bound=type[Jobs])

_registered: dict[str, type[Jobs]] = {}
_clients: "WeakSet[OpenWeights]" = WeakSet()


class OpenWeights:
    """A client. It talks to the server when something needs it, not before.

    auth_token: unset, `TUTELAGE_API_KEY` or `OPENWEIGHTS_API_KEY`; on the server's own machine none is needed.
    base_url: unset, `TUTELAGE_URL` or http://127.0.0.1:8000. organization_id: the one that the token is expected to be
    of. use_async: `chat` is awaited. deploy_kwargs: for models that `chat` has to deploy. supabase_url, supabase_key:
    OpenWeights' own server; left aside with a warning.
    """

    def __init__(
        self,
        supabase_url: str | None = None,
        supabase_key: str | None = None,
        auth_token: str | None = None,
        organization_id: str | None = None,
        use_async: bool = False,
        deploy_kwargs: Mapping[str, Any] | None = None,
        *,
        base_url: str | None = None,
    ) -> None:
        if supabase_url is not None or supabase_key is not None:
            warnings.warn(
                "supabase_url and supabase_key are of OpenWeights' server and left aside; base_url names Tutelage's",
                stacklevel=2,
            )
        self.http = Transport(base_url, auth_token)
        self._expected_organization = organization_id
        self.deploy_kwargs = {"max_model_len": 2048} if deploy_kwargs is None else dict(deploy_kwargs)
        self.files = Files(self.http, lambda: self.organization_id)
        self.jobs = Jobs(self)
        self.runs = Runs(self)
        self.events = Events(self)
        self.costs = Costs(self.http)
        self.workers = Workers(self.http)
        self.tokens = Tokens(self.http)
        self.secrets = Secrets(self.http)
        self.openai = OpenAiClients(self.http)
        self.async_chat = AsyncChatCompletions(self, self.deploy_kwargs)
        self.sync_chat = ChatCompletions(self, self.deploy_kwargs)
        # Whoever asks for the awaitable one knows it; everybody else is to see the types of the other.
        self.chat: ChatCompletions = self.async_chat if use_async else self.sync_chat  # pyright: ignore[reportAttributeAccessIssue]
        self.fine_tuning = FineTuning(self)
        self.inference = Inference(self)
        self.logprob = LogProb(self)
        self.multiple_choice = MultipleChoice(self)
        self.inspect_ai = InspectAi(self)
        self.weighted_sft = WeightedSft(self)
        self.api = Api(self)
        for name, kind in _registered.items():
            setattr(self, name, kind(self))
        _clients.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.http.address!r})"

    def __getattr__(self, name: str) -> Any:
        """Only for type checkers, which cannot know custom jobs: what is registered is an attribute already."""
        raise AttributeError(
            f"a client has no '{name}'; of custom jobs, the module that registers them has to be imported first"
        )

    @cached_property
    def me(self) -> Me:
        """Whose token this is; asked for once. Raises ConfigError where it is of another organisation than expected."""
        me = decoded(Me, self.http.request("GET", "/api/me"))
        if self._expected_organization not in (None, me.organization.id):
            raise ConfigError(
                f"organization_id: the token is of {me.organization.id}, not of {self._expected_organization}; "
                "use a token of that organisation, or leave organization_id out"
            )
        return me

    @property
    def auth_token(self) -> str | None:
        return self.http.token

    @property
    def organization_id(self) -> str:
        return self.me.organization.id

    @property
    def org_name(self) -> str:
        return self.me.organization.name

    @property
    def hf_org(self) -> str | None:
        """Whose name models on the Hub get: `HF_ORG` or `HF_USER`."""
        return os.environ.get("HF_ORG") or os.environ.get("HF_USER")

    @cached_property
    def run(self) -> Run:
        """In a job, the run that this process is; elsewhere a new one, under which this script reports."""
        run_id = current_run_id()
        return self.runs.retrieve(run_id) if run_id else self.runs.begin_script(shlex.join(sys.argv))

    def exec(
        self,
        command: str | Sequence[str],
        mount: Mapping[str, str] | None = None,
        cloud_type: str = "SECURE",
        requires_vram_gb: float = 0,
        allowed_hardware: list[str] | None = None,
        docker_image: str | None = None,
    ) -> Job:
        """Run a command as a job; the same command on the same files is the same job.

        command: for the shell, or as words. mount: file or folder here to its path in the job's folder. Raises
        ConfigError and JobError before anything is uploaded.
        """
        request = JobRequest(
            kind="custom",
            params={},
            prefix=EXEC_PREFIX,
            image=docker_image,
            entrypoint=command if isinstance(command, str) else shlex.join(command),
            requires_vram_gb=requires_vram_gb,
            allowed_hardware=allowed_hardware,
            cloud_type=cloud_type,
        )
        checked(request)
        mounted = upload_mounts(self.files, mount or {})
        return self.jobs.submit(replace(request, mounted_files=mounted))

    def close(self) -> None:
        """Close the connections."""
        self.openai.close()
        self.http.close()

    def __enter__(self) -> "OpenWeights":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Client = OpenWeights


def register(name: str) -> Callable[[CustomJobs], CustomJobs]:
    """Make a subclass of `Jobs` an attribute of that name on all clients, made before and after.

    Raises ConfigError for a name that is none, or that a client has already for something else.
    """
    if not name.isidentifier() or name.startswith("_") or name in NOT_REPLACEABLE:
        raise ConfigError(f"register: '{name}' cannot be an attribute for jobs; choose another name")

    def register_jobs(kind: CustomJobs) -> CustomJobs:
        _registered[name] = kind
        for client in list(_clients):
            setattr(client, name, kind(client))
        return kind

    return register_jobs
