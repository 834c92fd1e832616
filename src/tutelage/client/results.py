"""What calls give back: the records of `tutelage.jobs`, readable as `file.id` and as `file["id"]`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from tutelage.client.errors import ServerError
from tutelage.jobs import records

Result = TypeVar("Result")


class Item:
    """Attributes as items too: `dict(item)`, `item["id"]`, `item.get("id")`."""

    def __getitem__(self, name: str) -> Any:
        if name in self.keys():
            return getattr(self, name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of that name, or `default` where there is none."""
        return self[name] if name in self.keys() else default

    def keys(self) -> list[str]:
        """Names of all values."""
        return [one.name for one in fields(cast("Any", self))]


@dataclass(frozen=True)
class File(Item, records.StoredFile):
    """A file on the server. purpose: the one in its id, which a server for OpenAI's client calls `fine-tune`."""

    object: str = "file"
    status: str = "processed"


@dataclass(frozen=True)
class Event(Item, records.Event):
    """What a run reported at one moment."""


@dataclass(frozen=True)
class Worker(Item, records.Worker):
    """A worker, and when it was last heard from."""


@dataclass(frozen=True)
class WorkerFit(Item, records.WorkerFit):
    """Whether a worker may run a job. reasons: the conditions that fail."""


@dataclass(frozen=True)
class Explanation(Item, records.Explanation):
    """Why a job is where it is. ahead: pending jobs that are before it in the queue."""

    workers: list[WorkerFit]


@dataclass(frozen=True)
class Cost(Item, records.Cost):
    """What the runs of a job took. dollars: hours times the worker's price."""


@dataclass(frozen=True)
class Series(Item, records.Series):
    """Points of one field over steps. tag: of the events that hold it."""


@dataclass(frozen=True)
class Token(Item, records.Token):
    """A token as it can be shown."""


@dataclass(frozen=True)
class NewToken(Item):
    """A token just made. secret: shown this once, and in no repr."""

    token: Token
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Organization(Item):
    """An organisation."""

    id: str
    name: str


@dataclass(frozen=True)
class Me(Item):
    """Who asks. version: of the server. run_id: where the token is that of a job."""

    organization: Organization
    scopes: list[str]
    version: str
    run_id: str | None


@dataclass(frozen=True)
class NewEvent:
    """An event to report. id: unique in the run; sending it twice reports it once. file: the id of one."""

    id: str
    data: dict[str, Any]
    file: str | None = None


@dataclass(frozen=True)
class ClaimedJob(records.Claim):
    """A claim, and what its process needs. heartbeat_seconds: how often to renew the lease. token: for the job itself.
    environment: its secrets by name."""

    heartbeat_seconds: float
    token: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)


def decoded(kind: type[Result], content: Any) -> Result:
    """A JSON value as what it stands for; what this version does not know is left out. Raises ServerError."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ServerError(
            f"the server's answer is no {kind.__name__} ({place}: {first['msg']}); update tutelage here or there"
        ) from None


def decoded_list(kind: type[Result], page: Any) -> list[Result]:
    """The items of `{"data": [...]}`. Raises ServerError."""
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise ServerError(f"the server's answer is no list of {kind.__name__}; update tutelage here or there")
    return [decoded(kind, item) for item in page["data"]]


@lru_cache(maxsize=64)
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
