"""Submitting a job from a form, empty or filled with what another job was. Not here: checking it (`jobs.kinds`)."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tutelage.errors import JobError, TutelageError
from tutelage.jobs.kinds import KINDS, JobRequest
from tutelage.jobs.records import Job
from tutelage.jobs.requirements import CloudType
from tutelage.jobs.status import JobStatus
from tutelage.server.authentication import Parts, Submitter
from tutelage.server.own.bodies import Moment
from tutelage.server.page.formats import part, pretty
from tutelage.server.page.rendering import render, see
from tutelage.server.problems import status_of
from tutelage.server.submitting import submit

router = APIRouter(include_in_schema=False)
Line = Annotated[str, Field(max_length=2000)]
Text = Annotated[str, Field(max_length=1_000_000)]
_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
EXAMPLE = JobRequest(
    kind="custom", params={}, prefix="hello", entrypoint="echo hello", requires_vram_gb=0, cloud_type="SECURE"
)


class JobForm(BaseModel):
    """What stands in the fields, as text."""

    kind: Line = ""
    params: Text = "{}"
    prefix: Line = ""
    entrypoint: Text = ""
    mounted_files: Text = "{}"
    image: Line = ""
    requires_vram_gb: Line = ""
    allowed_hardware: Line = ""
    cloud_type: Line = CloudType.SECURE.value
    timeout: Line = ""

    def request(self) -> JobRequest:
        """Raises JobError for what is no JSON, no number or no time."""
        hardware = [one.strip() for one in self.allowed_hardware.split(",") if one.strip()]
        return JobRequest(
            kind=self.kind,
            params=_json_object("params", self.params),
            prefix=self.prefix.strip() or None if self.kind == "custom" else None,
            mounted_files=_texts(_json_object("mounted_files", self.mounted_files)),
            image=self.image.strip() or None,
            entrypoint=self.entrypoint.replace("\r\n", "\n") or None,
            requires_vram_gb=_number("requires_vram_gb", self.requires_vram_gb),
            allowed_hardware=hardware or None,
            cloud_type=self.cloud_type or None,
            timeout_at=_moment(self.timeout),
        )


@router.get("/jobs/new")
def new_job(request: Request, who: Submitter) -> Response:
    """An empty form."""
    return _form(request, who, _of_request(EXAMPLE), None)


@router.get("/jobs/{job_id}/clone")
def clone(request: Request, job_id: Annotated[str, Path(max_length=200)], parts: Parts, who: Submitter) -> Response:
    """A form with what a job was."""
    job = parts.listing.job(who.organization, job_id)
    return _form(request, who, _of_job(job), job)


@router.post("/jobs")
def create(
    request: Request,
    parts: Parts,
    who: Submitter,
    form: Annotated[JobForm, Form()],
) -> Response:
    """Submit what the form says; where it cannot be, the form again with the reason."""
    try:
        wanted = form.request()
        before = datetime.now(timezone.utc)
        job = submit(parts, who, wanted)
    except TutelageError as error:
        if status_of(error) >= 500:
            raise
        return _form(request, who, form, None, fault=str(error))
    note = ""
    if job.created_at < before:
        note = "?note=again" if job.status is JobStatus.PENDING and job.updated_at >= before else "?note=same"
    return see(f"/jobs/{part(job.id)}{note}")


def _form(request: Request, who: Submitter, form: JobForm, source: Job | None, fault: str | None = None) -> Response:
    return render(
        request,
        who,
        "job_form.html",
        status=400 if fault else 200,
        form=form,
        source=source,
        fault=fault,
        kinds=list(KINDS),
        cloud_types=[one.value for one in CloudType],
    )


def _of_request(wanted: JobRequest) -> JobForm:
    return JobForm(
        kind=wanted.kind,
        params=pretty(dict(wanted.params)),
        prefix=wanted.prefix or "",
        entrypoint=wanted.entrypoint or "",
        requires_vram_gb=f"{wanted.requires_vram_gb:g}" if wanted.requires_vram_gb is not None else "",
    )


def _of_job(job: Job) -> JobForm:
    return JobForm(
        kind=job.kind,
        params=pretty(_told(job)),
        prefix=job.id.partition("-")[0] if job.kind == "custom" else "",
        entrypoint=job.entrypoint or "",
        mounted_files=pretty(job.mounted_files),
        image=job.image or "",
        requires_vram_gb=f"{job.requires_vram_gb:g}",
        allowed_hardware=", ".join(job.allowed_hardware or []),
        cloud_type=job.cloud_type.value,
    )


def _told(job: Job) -> dict[str, Any]:
    """The params without null, which of the kinds that are known here means the default."""
    if job.kind == "custom":
        return job.params
    return {name: value for name, value in job.params.items() if value is not None}


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text.strip() or "{}")
    except ValueError as error:
        raise JobError(f"{name}: no JSON ({error}); correct it there") from error
    except RecursionError as error:
        raise JobError(f"{name}: nested too deep; store it as a file") from error
    if not isinstance(value, dict):
        raise JobError(f'{name}: not an object; write {{"name": value}}')
    return value


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    wrong = next((name for name, value in values.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise JobError(f"mounted_files: '{wrong[:80]}' is no id of a file; write path: id, such as purpose:file-…")
    return dict(values)


def _number(name: str, text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError as error:
        raise JobError(f"{name}: '{text[:80]}' is no number; give gigabytes, 0 for none") from error


def _moment(text: str) -> float | None:
    """`2026-03-01T12:00`, as browsers send it, in UTC."""
    if not text.strip():
        return None
    try:
        return _MOMENT.validate_python(text.strip()).timestamp()
    except ValidationError as error:
        raise JobError(f"timeout: '{text[:80]}' is no time; write 2026-03-01T12:00, in UTC") from error
