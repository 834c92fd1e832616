"""The list of jobs, one job, and what can be done with it there. Not here: the form for a new one (`job_form.py`)."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, HTTPException, Path, Query, Request
from fastapi.responses import Response

from tutelage.errors import TutelageError
from tutelage.jobs.kinds import KINDS
from tutelage.jobs.listing import JobFilter
from tutelage.jobs.records import Job, Run
from tutelage.jobs.status import JobStatus
from tutelage.server.authentication import Parts, Reader, Submitter
from tutelage.server.page.formats import part
from tutelage.server.page.records import PageRecords
from tutelage.server.page.rendering import local, render, see

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50
MAX_RUNS = 50
MAX_FILES = 300
IN_PLOTS = ("samples", "logp")
"""Purposes of files that come while a run goes on, many of them; its own page has them."""
JobId = Annotated[str, Path(max_length=200)]
Next = Annotated[str | None, Form(max_length=2000)]
NEEDED = ("model", "loss", "training_file", "dataset", "input_file_id", "eval_name", "reward", "judge")
"""Params without which the defaults of the others cannot be known; those that a kind does not have are left out."""
NOTES = {
    "same": "This work is a job already, and here it is. To run it once more, restart it; to make it another job, "
    "change a param or set job_id_suffix.",
    "again": "This work was a job already; it waits for a worker again.",
}
"""What a form has to say on the page that it leads to, by a word in the link."""


@router.get("/")
def start(who: Reader) -> Response:
    """There is nothing before the jobs."""
    return see("/jobs")


@router.get("/jobs")
def list_jobs(
    request: Request,
    parts: Parts,
    who: Reader,
    status: Annotated[str, Query(max_length=200)] = "",
    kind: Annotated[str, Query(max_length=200)] = "",
    search: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Jobs, newest first, fifty at a time."""
    if status and status not in [known.value for known in JobStatus]:
        raise HTTPException(400, f"status: '{status}' is none; one of {', '.join(known.value for known in JobStatus)}")
    wanted = JobFilter(
        status=JobStatus(status) if status else None, kinds=[kind] if kind else None, search=search.strip() or None
    )
    found = parts.listing.jobs(who.organization, wanted, limit=PAGE_SIZE + 1, after=after or None)
    shown = found[:PAGE_SIZE]
    counts = parts.listing.counts(who.organization)
    chosen = {"status": status, "kind": kind, "search": search.strip()}
    return render(
        request,
        who,
        "jobs_list.html" if request.headers.get("hx-request") == "true" else "jobs.html",
        jobs=shown,
        workers=PageRecords(parts.database).worker_names(who.organization, [job.worker_id for job in shown]),
        counts=counts,
        total=sum(counts.values()),
        kinds=list(KINDS),
        chosen=chosen,
        after=after,
        tabs=[("", _link(chosen, status=""))]
        + [(known.value, _link(chosen, status=known.value)) for known in JobStatus],
        older=_link(chosen, after=shown[-1].id) if len(found) > PAGE_SIZE else None,
        newest=_link(chosen) if after else None,
        here_again=_link(chosen, after=after),
        objective=objective,
    )


@router.get("/jobs/{job_id}")
def show_job(
    request: Request, job_id: JobId, parts: Parts, who: Reader, note: Annotated[str, Query(max_length=50)] = ""
) -> Response:
    """One job: where it stands and why, its runs, what came out, how it was asked for."""
    job = parts.listing.job(who.organization, job_id)
    runs = parts.listing.runs(who.organization, job_id=job_id, limit=MAX_RUNS)[::-1]
    records = PageRecords(parts.database)
    files = records.files_of(who.organization, [run.id for run in runs])
    return render(
        request,
        who,
        "job.html",
        job=job,
        runs=runs,
        run=runs[0] if runs else None,
        explanation=parts.listing.explain(who.organization, job_id) if job.status is JobStatus.PENDING else None,
        workers=records.worker_names(who.organization, [job.worker_id, *(run.worker_id for run in runs)]),
        files=_of_newest(runs, [file for file in files if file.purpose not in IN_PLOTS]),
        params=_params(job),
        outputs=sorted(_outputs(job, runs).items()),
        objective=objective,
        note=NOTES.get(note),
    )


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: JobId, parts: Parts, who: Submitter, next: Next = None) -> Response:
    """Cancel a job; if it runs, its process is stopped within seconds."""
    parts.queue.cancel(who.organization, job_id)
    return see(local(next, f"/jobs/{part(job_id)}"))


@router.post("/jobs/{job_id}/restart")
def restart(job_id: JobId, parts: Parts, who: Submitter, next: Next = None) -> Response:
    """Let a job that has ended wait again."""
    parts.queue.restart(who.organization, job_id)
    parts.notices.tell("pending")
    return see(local(next, f"/jobs/{part(job_id)}"))


def objective(params: dict[str, Any]) -> str | None:
    """What a training job learns by, such as `sdft`."""
    loss = params.get("loss")
    return loss if isinstance(loss, str) else None


def _link(chosen: dict[str, str], **changes: str) -> str:
    values = {name: value for name, value in {**chosen, **changes}.items() if value}
    return f"/jobs?{urlencode(values)}" if values else "/jobs"


def _params(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """What somebody chose, and what is as it is by itself."""
    needed = {name: job.params[name] for name in NEEDED if name in job.params}
    try:
        defaults = KINDS[job.kind].params(needed)
    except (KeyError, TutelageError):
        defaults = {}
    given = {name: value for name, value in job.params.items() if value is not None}
    chosen = {name: value for name, value in given.items() if name in needed or defaults.get(name, ...) != value}
    return chosen, {name: value for name, value in given.items() if name not in chosen}


def _outputs(job: Job, runs: list[Run]) -> dict[str, Any]:
    """What came out; of a job that has not ended, what its newest run has reported up to now."""
    if job.outputs is not None:
        return job.outputs
    return runs[0].latest if runs else {}


def _of_newest(runs: list[Run], files: list[Any]) -> list[Any]:
    """The files of the newest run that has any, by path."""
    for run in runs:
        own = sorted((file for file in files if file.run_id == run.id), key=lambda file: file.path)
        if own:
            return own[:MAX_FILES]
    return []
