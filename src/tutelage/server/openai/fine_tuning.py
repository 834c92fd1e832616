"""Fine-tuning jobs as OpenAI's endpoints have them: `method` names the objective, `extra_body` says where it runs."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tutelage.config import OBJECTIVES
from tutelage.errors import JobError, NotFoundError, nearest
from tutelage.jobs.kinds import JobRequest
from tutelage.jobs.listing import TRAINING_KINDS, JobFilter
from tutelage.jobs.records import Job
from tutelage.server.authentication import Json, Parts, Reader, Submitter
from tutelage.server.openai.objects import checkpoint_object, event_object, job_object
from tutelage.server.openai.results import result_files
from tutelage.server.own.bodies import Identity
from tutelage.server.services import Services
from tutelage.server.submitting import submit

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning (OpenAI)"])
JobId = Annotated[Identity, Path()]
Limit = Annotated[int, Query(ge=1, le=1000)]

METHODS = {"supervised": "sft", "reinforcement": "grpo"}
"""OpenAI's names of two objectives; the others have their own."""
LARGEST_ID = 2**62


class NewFineTuning(BaseModel):
    """OpenAI's body; everything else in it is an option of `TrainingConfig`, as `extra_body` sends them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: Annotated[Identity, Field(min_length=1)]
    training_file: Identity
    validation_file: Identity | None = None
    suffix: Identity | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    method: dict[str, JsonValue] | None = None
    hyperparameters: dict[str, JsonValue] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, JsonValue]] | None = None
    requires_vram_gb: Annotated[float, Field(ge=0, le=1e6)] | None = None
    allowed_hardware: list[Identity] | None = None
    cloud_type: Identity | None = None
    docker_image: Identity | None = None


@router.post("")
def create(body: NewFineTuning, parts: Parts, who: Submitter) -> Json:
    """Submit a fine-tuning job."""
    request = JobRequest(
        kind="fine_tuning",
        params=_options(body),
        image=body.docker_image,
        requires_vram_gb=body.requires_vram_gb,
        allowed_hardware=body.allowed_hardware,
        cloud_type=body.cloud_type,
    )
    return _objects(parts, [submit(parts, who, request)])[0]


@router.get("")
def list_jobs(parts: Parts, who: Reader, limit: Limit = 20, after: Identity | None = None) -> Json:
    """Fine-tuning jobs, newest first."""
    wanted = JobFilter(kinds=TRAINING_KINDS)
    found = parts.listing.jobs(who.organization, wanted, limit=limit + 1, after=after)
    return _page(_objects(parts, found[:limit]), len(found) > limit)


@router.get("/{job_id}")
def retrieve(job_id: JobId, parts: Parts, who: Reader) -> Json:
    """One fine-tuning job."""
    return _objects(parts, [_training_job(parts, who.organization, job_id)])[0]


@router.post("/{job_id}/cancel")
def cancel(job_id: JobId, parts: Parts, who: Submitter) -> Json:
    """Cancel a fine-tuning job."""
    _training_job(parts, who.organization, job_id)
    return _objects(parts, [parts.queue.cancel(who.organization, job_id)])[0]


@router.get("/{job_id}/events")
def list_events(job_id: JobId, parts: Parts, who: Reader, limit: Limit = 20, after: Identity | None = None) -> Json:
    """What the job reported, newest first."""
    _training_job(parts, who.organization, job_id)
    found = parts.events.newest_of_job(who.organization, job_id, before=_number(after, "ftevent-"), limit=limit + 1)
    return _page([event_object(event) for event in found[:limit]], len(found) > limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: JobId, parts: Parts, who: Reader, limit: Limit = 10, after: Identity | None = None
) -> Json:
    """Checkpoints that can be used as models, newest first."""
    _training_job(parts, who.organization, job_id)
    before = _number(after, "ftckpt-")
    found = parts.events.checkpoints_of_job(who.organization, job_id, before=before, limit=limit + 1)
    data = [checkpoint_object(event, job_id) for event in found[:limit]]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return _page(data, len(found) > limit) | ends


def _training_job(parts: Services, organization: str, job_id: str) -> Job:
    job = parts.listing.job(organization, job_id)
    if job.kind not in TRAINING_KINDS:
        raise NotFoundError(f"{job_id}: is a job of kind {job.kind}, not a fine-tuning job; it is under /api/jobs")
    return job


def _objects(parts: Services, jobs: Sequence[Job]) -> list[Json]:
    results = result_files(parts.database, jobs)
    return [job_object(job, results.get(job.id, ())) for job in jobs]


def _page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": has_more}


def _number(identity: str | None, prefix: str) -> int | None:
    if identity is None:
        return None
    digits = identity.removeprefix(prefix)
    if not (digits.isascii() and digits.isdigit()) or int(digits) > LARGEST_ID:
        raise NotFoundError(f"after: '{identity[:80]}' is none of this list")
    return int(digits)


def _options(body: NewFineTuning) -> dict[str, Any]:
    """The options of the run. Raises JobError."""
    if body.integrations:
        raise JobError("integrations: none is known here; metrics are in the job's events, leave this out")
    options: dict[str, Any] = dict(body.model_extra or {})
    loss, own = _method(body)
    options |= _flat(loss, own)
    options |= _flat(loss, body.hyperparameters or {})
    options |= {"model": body.model, "training_file": body.training_file, "loss": loss}
    optional = {
        "test_file": body.validation_file,
        "job_id_suffix": body.suffix,
        "seed": body.seed,
        "meta": body.metadata,
    }
    return options | {name: value for name, value in optional.items() if value is not None}


def _method(body: NewFineTuning) -> tuple[str, dict[str, Any]]:
    """The objective, and what the method says of it."""
    if body.method is None:
        return str((body.model_extra or {}).get("loss", "sft")), {}
    kind = body.method.get("type")
    known = [*METHODS, *OBJECTIVES]
    if not isinstance(kind, str) or METHODS.get(kind, kind) not in OBJECTIVES:
        raise JobError(f"method.type: '{str(kind)[:80]}' is none{nearest(str(kind), known)}; one of {', '.join(known)}")
    told = body.method.get(kind)
    told = {} if told is None else told
    if not isinstance(told, dict):
        raise JobError(f"method.{kind}: give an object with 'hyperparameters'")
    unknown = next((name for name in told if name != "hyperparameters"), None)
    if unknown is not None:
        raise JobError(f"method.{kind}.{unknown[:80]}: is not known here; give 'hyperparameters'")
    hyperparameters = told.get("hyperparameters")
    hyperparameters = {} if hyperparameters is None else hyperparameters
    if not isinstance(hyperparameters, dict):
        raise JobError(f"method.{kind}.hyperparameters: give an object")
    return METHODS.get(kind, kind), cast("dict[str, Any]", hyperparameters)


def _flat(loss: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters under the names of `TrainingConfig`; `auto` is the default."""
    options: dict[str, Any] = {}
    fields = OBJECTIVES[loss].model_fields if loss in OBJECTIVES else {}
    for name, value in hyperparameters.items():
        if value == "auto" or value is None:
            continue
        if name == "n_epochs":
            options["epochs"] = value
        elif name == "batch_size":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise JobError(f"batch_size: '{str(value)[:80]}' is none; give a whole number from 1 on, or 'auto'")
            at_once = 2 if value % 2 == 0 else 1
            options |= {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": value // at_once}
        elif name == "learning_rate_multiplier":
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
                raise JobError(f"learning_rate_multiplier: '{str(value)[:80]}' is none; give a positive number")
            options["learning_rate"] = value * 1e-4
        else:
            options[f"{loss}_{name}" if name in fields else name] = value
    return options
