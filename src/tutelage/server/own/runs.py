"""Runs: looking up, keeping them alive, ending them, the curves of what they report."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query

from tutelage.jobs.records import Job, Renewal, Run, Series
from tutelage.jobs.status import JobStatus
from tutelage.server.authentication import AnyPrincipal, Parts, Reader, Submitter, WorkerPrincipal, require_writer
from tutelage.server.own.bodies import Identity, NewScriptRun, Page, RunEnd, Serving

router = APIRouter(prefix="/api/runs", tags=["runs"])
RunPath = Annotated[Identity, Path()]


@router.get("")
def list_runs(
    parts: Parts,
    who: Reader,
    job_id: Identity | None = None,
    worker_id: Identity | None = None,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[Run]:
    """The newest runs, newest last."""
    found = parts.listing.runs(who.organization, job_id=job_id, worker_id=worker_id, status=status, limit=limit + 1)
    return Page(data=found[-limit:], has_more=len(found) > limit)


@router.post("")
def begin_script(body: NewScriptRun, parts: Parts, who: Submitter) -> Run:
    """A script outside any worker begins to report about itself."""
    script = parts.masking.masked(who.organization, body.script)
    return parts.queue.begin_script(who.organization, script, who.token_id)


@router.get("/{run_id}")
def retrieve(run_id: RunPath, parts: Parts, who: Reader) -> Run:
    """One run."""
    return parts.listing.run(who.organization, run_id)


@router.get("/{run_id}/series")
def series(
    run_id: RunPath, parts: Parts, who: Reader, points: Annotated[int, Query(ge=10, le=5000)] = 500
) -> Page[Series]:
    """Every number the run reported, over its steps, thinned to about so many events of each tag."""
    return Page(data=parts.events.series(who.organization, run_id, points=points))


@router.post("/{run_id}/heartbeat")
def heartbeat(run_id: RunPath, parts: Parts, who: WorkerPrincipal) -> Renewal:
    """The worker is there: keep its run for another lease. 409 where it was given up."""
    return parts.queue.renew(who.organization, run_id)


@router.post("/{run_id}/finish")
def finish(run_id: RunPath, body: RunEnd, parts: Parts, who: AnyPrincipal) -> Job:
    """The run has ended. 409 where it was given up before."""
    if who.run_id is not None:
        raise HTTPException(403, f"{run_id}: its worker says how it ended, when its process has")
    require_writer(parts, who, run_id)
    reason = parts.masking.masked(who.organization, body.reason)
    job = parts.queue.finish(who.organization, run_id, JobStatus(body.status), exit_code=body.exit_code, reason=reason)
    for topic in (f"log {run_id}", f"events {run_id}", "pending"):
        parts.notices.tell(topic)
    return job


@router.put("/{run_id}/serving")
def serving(run_id: RunPath, body: Serving, parts: Parts, who: AnyPrincipal) -> Run:
    """The run answers chat completions on a port of its worker's machine."""
    require_writer(parts, who, run_id)
    return parts.queue.set_serving(who.organization, run_id, body.port, body.models)
