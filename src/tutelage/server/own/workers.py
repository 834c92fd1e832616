"""Workers: registering, reporting, claiming jobs; and the jobs that wait for one."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from tutelage.jobs.demand import demand
from tutelage.jobs.records import Claim, Demand, Scope, Worker
from tutelage.jobs.registry import Registration
from tutelage.jobs.requirements import Offer, cloud_type_of, hardware_of
from tutelage.server.authentication import Parts, Reader, WorkerPrincipal
from tutelage.server.disconnects import while_connected
from tutelage.server.notices import LOOK_AGAIN_SECONDS
from tutelage.server.own.bodies import Claimed, Identity, NewClaim, NewWorker, Page, Reason, WorkerReport
from tutelage.server.services import Services

router = APIRouter(prefix="/api", tags=["workers"])
WorkerId = Annotated[Identity, Path()]
ALONE_LOOK_AGAIN_SECONDS = 5.0
JOB_SCOPES = (Scope.READ, Scope.SUBMIT)


@router.post("/workers")
def register(body: NewWorker, request: Request, parts: Parts, who: WorkerPrincipal) -> Worker:
    """A worker begins."""
    offer = Offer(
        hardware=hardware_of(body.hardware),
        gpus=body.gpus,
        vram_gb=body.vram_gb,
        cloud_type=cloud_type_of(body.cloud_type, of_worker=True),
        images=tuple(body.images) if body.images is not None else None,
        cached_models=tuple(body.cached_models),
        ignore_vram=body.ignore_vram,
    )
    address = request.client.host if request.client else None
    return parts.registry.register(
        who.organization, Registration(body.name, offer, body.version, address, body.cost_per_hour)
    )


@router.get("/workers")
def list_workers(parts: Parts, who: Reader, limit: Annotated[int, Query(ge=1, le=5000)] = 100) -> Page[Worker]:
    """Workers, those last heard from first."""
    found = parts.registry.list(who.organization, limit=limit + 1)
    return Page(data=found[:limit], has_more=len(found) > limit)


@router.patch("/workers/{worker_id}")
def report(worker_id: WorkerId, body: WorkerReport, parts: Parts, who: WorkerPrincipal) -> Worker:
    """What a worker has now."""
    return parts.registry.report(
        who.organization, worker_id, cached_models=body.cached_models, disk_free_gb=body.disk_free_gb
    )


@router.post("/workers/{worker_id}/stop")
def stop(worker_id: WorkerId, body: Reason, parts: Parts, who: WorkerPrincipal) -> Worker:
    """A worker ends, or is to claim nothing more."""
    reason = parts.masking.masked(who.organization, body.reason)
    return parts.registry.stop(who.organization, worker_id, reason)


@router.get("/demand")
def waiting(parts: Parts, who: Reader, limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000) -> Demand:
    """Jobs that nobody has claimed, oldest first, and what they need."""
    return demand(parts.database, who.organization, limit=limit)


@router.post("/claims", response_model=Claimed, responses={204: {"description": "No pending job fits."}})
async def claim(body: NewClaim, request: Request, parts: Parts, who: WorkerPrincipal) -> Claimed | Response:
    """The next job for a worker, waiting for one if asked to."""
    # Before a job is handed out: where secrets cannot be read it would be nobody's, claim after claim.
    await run_in_threadpool(parts.access.environment, who.organization)
    # Who has left while waiting gets none, as a rule: it would be a job for nobody until its lease is over.
    found = await while_connected(request, _next_job(body, parts, who.organization))
    if found is None:
        return Response(status_code=204)
    token = await run_in_threadpool(
        lambda: parts.access.create_token(who.organization, f"of {found.run_id}", JOB_SCOPES, run_id=found.run_id)
    )
    environment = await run_in_threadpool(parts.access.environment, who.organization)
    return Claimed(
        job=found.job,
        run_id=found.run_id,
        attempt=found.attempt,
        lease_seconds=found.lease_seconds,
        heartbeat_seconds=min(parts.settings.heartbeat_seconds, found.lease_seconds / 4),
        token=token.secret,
        environment=environment,
    )


async def _next_job(body: NewClaim, parts: Services, organization: str) -> Claim | None:
    until = time.monotonic() + body.wait
    # What others put into the records, nobody here is told of.
    look_again = ALONE_LOOK_AGAIN_SECONDS if parts.settings.is_embedded else LOOK_AGAIN_SECONDS
    with parts.notices.listening("pending") as told:
        while True:
            told.forget()
            found = await run_in_threadpool(parts.queue.claim, organization, body.worker_id, body.run_id, body.job_id)
            left = until - time.monotonic()
            if found is not None or left <= 0 or parts.notices.closing:
                return found
            await told.wait(min(left, look_again))
