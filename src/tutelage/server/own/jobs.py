"""Jobs: submitting, looking up, canceling, restarting, why one waits."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from tutelage.jobs.listing import JobFilter
from tutelage.jobs.plain_json import cleaned_text
from tutelage.jobs.records import Explanation, Job
from tutelage.jobs.status import JobStatus
from tutelage.server.authentication import Parts, Reader, Submitter
from tutelage.server.own.bodies import FindJobs, Identity, JobChange, NewJob, Page
from tutelage.server.submitting import submit

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
JobId = Annotated[Identity, Path()]


@router.post("")
def create(body: NewJob, parts: Parts, who: Submitter) -> Job:
    """Submit a job; the same one again is the one there is, and waits again if it failed or was canceled."""
    return submit(parts, who, body.request())


@router.get("")
def list_jobs(
    parts: Parts,
    who: Reader,
    status: JobStatus | None = None,
    kind: Identity | None = None,
    search: Identity | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Identity | None = None,
) -> Page[Job]:
    """Jobs, newest first. after: the id of the last job of the page before. search: in id, model and params."""
    search = cleaned_text(search) if search else None
    wanted = JobFilter(status=status, kinds=[kind] if kind is not None else None, search=search)
    found = parts.listing.jobs(who.organization, wanted, limit=limit + 1, after=after)
    return Page(data=found[:limit], has_more=len(found) > limit)


@router.post("/find")
def find(body: FindJobs, parts: Parts, who: Reader) -> Page[Job]:
    """Jobs whose params contain these values, newest first. after: the id of the last job of the page before."""
    wanted = JobFilter(params=body.params)
    found = parts.listing.jobs(who.organization, wanted, limit=body.limit + 1, after=body.after)
    return Page(data=found[: body.limit], has_more=len(found) > body.limit)


@router.get("/{job_id}")
def retrieve(job_id: JobId, parts: Parts, who: Reader) -> Job:
    """One job."""
    return parts.listing.job(who.organization, job_id)


@router.patch("/{job_id}")
def change(job_id: JobId, body: JobChange, parts: Parts, who: Submitter) -> Job:
    """Set or take away the time at which a job is canceled if it still runs."""
    timeout = body.timeout.timestamp() if body.timeout is not None else None
    return parts.queue.set_timeout(who.organization, job_id, timeout)


@router.post("/{job_id}/cancel")
def cancel(job_id: JobId, parts: Parts, who: Submitter) -> Job:
    """Cancel a job; if it runs, its process is stopped within seconds."""
    return parts.queue.cancel(who.organization, job_id)


@router.post("/{job_id}/restart")
def restart(job_id: JobId, parts: Parts, who: Submitter) -> Job:
    """Let a job that has ended wait again."""
    job = parts.queue.restart(who.organization, job_id)
    parts.notices.tell("pending")
    return job


@router.get("/{job_id}/explain")
def explain(job_id: JobId, parts: Parts, who: Reader) -> Explanation:
    """Why a job waits: for each worker, the conditions that fail."""
    return parts.listing.explain(who.organization, job_id)
