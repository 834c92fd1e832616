"""Bodies of requests, and lists as answers. What is in an answer is a record of `tutelage.jobs`."""

from datetime import datetime, timezone
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StrictBool

from tutelage.jobs.kinds import JobRequest
from tutelage.jobs.records import Job, Scope, Token

Item = TypeVar("Item")
Identity = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
RunId = Annotated[str, Field(pattern=r"^run-[0-9a-f]{32}$")]


def _text(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise ValueError("give a time as text, such as 2027-01-31T12:00:00Z")
    return value


def _moment(value: datetime) -> datetime:
    """In UTC; a time without a zone is one. Far from the ends of the calendar, which other zones would cross."""
    if not 1970 <= value.year <= 9000:
        raise ValueError("give a time between the years 1970 and 9000")
    aware = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
    return aware.astimezone(timezone.utc)


Moment = Annotated[datetime, BeforeValidator(_text), AfterValidator(_moment)]
Amount = Annotated[float, Field(ge=0, le=1e9, strict=True)]


class Body(BaseModel):
    """Base of the bodies: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Page(BaseModel, Generic[Item]):
    """A part of a list."""

    data: list[Item]
    has_more: bool = False


class NewJob(Body):
    """See `tutelage.jobs.kinds.JobRequest`."""

    kind: Identity
    params: dict[str, JsonValue] = {}
    prefix: Identity | None = None
    mounted_files: dict[str, str] = {}
    image: Identity | None = None
    entrypoint: Annotated[str, Field(max_length=200_000)] | None = None
    requires_vram_gb: Amount | None = None
    allowed_hardware: Annotated[list[Identity], Field(max_length=100)] | None = None
    cloud_type: Identity | None = None
    timeout: Moment | None = None

    def request(self) -> JobRequest:
        """As `checked` takes it."""
        return JobRequest(
            kind=self.kind,
            params=self.params,
            prefix=self.prefix,
            mounted_files=self.mounted_files,
            image=self.image,
            entrypoint=self.entrypoint,
            requires_vram_gb=self.requires_vram_gb,
            allowed_hardware=self.allowed_hardware,
            cloud_type=self.cloud_type,
            timeout_at=self.timeout.timestamp() if self.timeout is not None else None,
        )


class FindJobs(Body):
    """Values that the params of a job contain."""

    params: dict[str, JsonValue]
    limit: Annotated[int, Field(ge=1, le=1000, strict=True)] = 100
    after: Identity | None = None


class JobChange(Body):
    """What may be changed of a job: when it is canceled if it still runs."""

    timeout: Moment | None


class NewScriptRun(Body):
    """A script that reports about itself. script: its command, for people."""

    script: Text = ""


class RunEnd(Body):
    """How a run ended; pending gives its job back."""

    status: Annotated[str, Field(pattern="^(completed|failed|canceled|pending)$")]
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31, strict=True)] | None = None
    reason: Text | None = None


class Serving(Body):
    """A run answers chat completions. models: by the name people ask for, the name the server behind the port knows."""

    port: Annotated[int, Field(ge=1, le=65535, strict=True)]
    models: Annotated[dict[str, str], Field(min_length=1, max_length=1000)]


class OneEvent(Body):
    """id: chosen by whoever reports, unique in the run."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    data: dict[str, Any]
    file: Identity | None = None


class NewEvents(Body):
    """Events of a run."""

    run_id: Identity
    events: Annotated[list[OneEvent], Field(max_length=1000)]


class Added(BaseModel):
    """How many were new."""

    added: int


class LogEnd(BaseModel):
    """Bytes of the log that are there: where the next part begins."""

    end: int


class NewWorker(Body):
    """See `tutelage.jobs.requirements.Offer`."""

    name: Identity
    version: Identity
    hardware: Identity = "cpu"
    gpus: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 0
    vram_gb: Amount = 0.0
    cloud_type: Identity = "SECURE"
    images: Annotated[list[str], Field(max_length=1000)] | None = None
    cached_models: Annotated[list[str], Field(max_length=10_000)] = []
    ignore_vram: StrictBool = False
    cost_per_hour: Amount = 0.0


class WorkerReport(Body):
    """What changes while a worker works."""

    cached_models: Annotated[list[str], Field(max_length=10_000)] = []
    disk_free_gb: Amount | None = None


class Reason(Body):
    """Why."""

    reason: Text = ""


class NewClaim(Body):
    """wait: seconds to wait for a job. run_id: chosen by the worker; with the same one the same job comes again.
    job_id: the only job it may be."""

    worker_id: Identity
    run_id: RunId
    job_id: Identity | None = None
    wait: Annotated[float, Field(ge=0, le=25, strict=True)] = 0.0


class Claimed(BaseModel):
    """A job to run. token: for the job itself, good for as long as its run goes on. environment: its secrets."""

    job: Job
    run_id: str
    attempt: int
    lease_seconds: float
    heartbeat_seconds: float
    token: str
    environment: dict[str, str]


class NewTokenBody(Body):
    """A token to be made."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    expires_at: Moment | None = None


class CreatedToken(BaseModel):
    """secret: shown this once."""

    token: Token
    secret: str


class SecretValue(Body):
    """A secret for the environment of jobs."""

    value: Annotated[str, Field(max_length=100_000)]


class Organization(BaseModel):
    """An organisation."""

    id: str
    name: str


class Me(BaseModel):
    """Who is asking. run_id: where the token is that of a job."""

    organization: Organization
    scopes: list[Scope]
    version: str
    run_id: str | None
