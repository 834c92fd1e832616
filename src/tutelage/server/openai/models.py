"""Models: what completed jobs left, and what answers now."""

from typing import Annotated

from fastapi import APIRouter, Path

from tutelage.errors import NotFoundError
from tutelage.jobs.listing import TRAINING_KINDS, JobFilter
from tutelage.jobs.status import JobStatus
from tutelage.server.authentication import Json, Parts, Reader
from tutelage.server.openai.objects import served_model, trained_model
from tutelage.server.own.bodies import Identity
from tutelage.server.services import Services

router = APIRouter(prefix="/v1/models", tags=["models (OpenAI)"])
MOST = 1000


@router.get("")
def list_models(parts: Parts, who: Reader) -> Json:
    """Models of completed jobs, the newest first, and those that answer now."""
    return {"object": "list", "data": list(_models(parts, who.organization).values())}


@router.get("/{model:path}")
def retrieve(model: Annotated[Identity, Path()], parts: Parts, who: Reader) -> Json:
    """One model, by its id or the name that was chosen for it; `deployed_by` names the job that answers for it now."""
    found = _models(parts, who.organization).get(model)
    named = parts.listing.trained_as(who.organization, model)
    if named is not None:
        return {**(found or {}), **trained_model(named)}
    if found is None:
        raise NotFoundError(f"{model}: no completed job left it and none serves it; list models with GET /v1/models")
    return found


def _models(parts: Services, organization: str) -> dict[str, Json]:
    completed = JobFilter(status=JobStatus.COMPLETED, kinds=TRAINING_KINDS)
    models = {
        model["id"]: model for model in map(trained_model, parts.listing.jobs(organization, completed, limit=MOST))
    }
    for serving in parts.listing.serving(organization):
        for name in serving.models:
            created = models[name]["created"] if name in models else int(serving.since)
            models[name] = served_model(name, serving, created)
    return models
