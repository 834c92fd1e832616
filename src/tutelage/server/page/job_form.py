"""Submitting a job from a form, with an example or what another job was, and the file that was chosen there.

Not here: checking the job (`jobs.kinds`) and the rows of the file (`file_rows`), taking the file in (`multipart`).
"""

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from tutelage.config.faults import sentence_of
from tutelage.errors import JobError, TutelageError
from tutelage.jobs.access import Principal
from tutelage.jobs.identity import FILE_ID
from tutelage.jobs.kinds import JobRequest
from tutelage.jobs.records import Job
from tutelage.jobs.requirements import CloudType
from tutelage.jobs.status import JobStatus
from tutelage.jobs.stored_files import Upload
from tutelage.server.authentication import Parts, Submitter
from tutelage.server.file_rows import checked_purpose
from tutelage.server.multipart import MAX_FIELD_BYTES, read_file_form
from tutelage.server.own.bodies import Moment
from tutelage.server.page.examples import EXAMPLES
from tutelage.server.page.files import saved_as
from tutelage.server.page.formats import part, pretty
from tutelage.server.page.rendering import render, see
from tutelage.server.problems import status_of
from tutelage.server.services import Services
from tutelage.server.store_work import with_store
from tutelage.server.submitting import submit

router = APIRouter(include_in_schema=False)
Line = Annotated[str, Field(max_length=2000)]
Text = Annotated[str, Field(max_length=1_000_000)]
_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
FIRST_KIND = "fine_tuning"
SUGGESTED_FILES = 30


class JobForm(BaseModel):
    """What stands in the fields, as text. source: the job that it is a clone of."""

    source: Line = ""
    kind: Line = ""
    params: Text = "{}"
    file_id: Line = ""
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
        params, file_id = _json_object("params", self.params), self.file_id.strip()
        example = EXAMPLES.get(self.kind)
        if file_id and example is not None and example.file is not None:
            if not FILE_ID.fullmatch(file_id):
                raise JobError(
                    f"file: '{file_id[:80]}' is not the id of an uploaded file; choose the file itself above"
                )
            params[example.file] = file_id
        return JobRequest(
            kind=self.kind,
            params=params,
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
def new_job(
    request: Request, parts: Parts, who: Submitter, kind: Annotated[str, Query(max_length=200)] = FIRST_KIND
) -> Response:
    """A form with params that work; only the file is missing."""
    kind = kind if kind in EXAMPLES else FIRST_KIND
    example = EXAMPLES[kind]
    begun = JobForm(
        kind=kind,
        params=pretty(dict(example.params)),
        prefix=example.prefix,
        entrypoint=example.entrypoint,
        # What stands here runs anywhere; larger models need more.
        requires_vram_gb="0",
    )
    return _form(request, parts, who, begun)


@router.get("/jobs/{job_id}/clone")
def clone(request: Request, job_id: Annotated[str, Path(max_length=200)], parts: Parts, who: Submitter) -> Response:
    """A form with what a job was."""
    job = parts.listing.job(who.organization, job_id)
    if job.kind not in EXAMPLES:
        raise JobError(f"{job.id}: a script runs where it was started; start it there again")
    return _form(request, parts, who, _of_job(job))


@router.post("/jobs")
async def create(request: Request, parts: Parts, who: Submitter) -> Response:
    """Keep the file, submit what the form says; where one of them cannot be, the form again with the reason."""
    async with AsyncExitStack() as stack:
        fields, upload, filename = await _read(request, parts, who, stack)
        form = _form_of(fields)
        try:
            if upload is not None:
                form = await _with_file(parts, who, form, upload, filename)
            return await run_in_threadpool(_submitted, parts, who, form)
        except TutelageError as error:
            if status_of(error) >= 500:
                raise
            return await run_in_threadpool(_form, request, parts, who, form, str(error))


def _submitted(parts: Services, who: Principal, form: JobForm) -> Response:
    before = datetime.now(timezone.utc)
    job = submit(parts, who, form.request())
    note = ""
    if job.created_at < before:
        note = "?note=again" if job.status is JobStatus.PENDING and job.updated_at >= before else "?note=same"
    return see(f"/jobs/{part(job.id)}{note}")


async def _read(
    request: Request, parts: Services, who: Principal, stack: AsyncExitStack
) -> tuple[Mapping[str, str], Upload | None, str]:
    """Fields, and the file if one was chosen with its name. Raises DataError for what is no form."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        form = await read_file_form(request, parts.files, who.organization, stack)
        return form.fields, form.upload if form.filename else None, form.filename
    plain = await request.form()
    return {name: value for name, value in plain.items() if isinstance(value, str)}, None, ""


def _form_of(fields: Mapping[str, str]) -> JobForm:
    try:
        return JobForm.model_validate(dict(fields))
    except ValidationError as error:
        raise JobError(sentence_of(error)) from error


async def _with_file(parts: Services, who: Principal, form: JobForm, upload: Upload, filename: str) -> JobForm:
    """The form with the id of the file, which is kept once its rows are what the kind reads: whatever else is wrong,
    it need not be chosen again. Raises DataError that lists the bad rows, and JobError."""
    example = EXAMPLES.get(form.kind)
    if example is None or (example.file is None and form.kind != "custom"):
        raise JobError(f"file: {form.kind[:80]} jobs read none; leave it out")
    mounted = _texts(_json_object("mounted_files", form.mounted_files))
    purpose = await run_in_threadpool(checked_purpose, upload, example.purpose, filename)
    kept = await with_store(
        parts, lambda: parts.files.keep(who.organization, upload, purpose=purpose, filename=filename)
    )
    if form.kind != "custom":
        return form.model_copy(update={"file_id": kept.id})
    return form.model_copy(update={"mounted_files": pretty(mounted | {saved_as(filename, kept.id): kept.id})})


def _form(request: Request, parts: Services, who: Principal, form: JobForm, fault: str | None = None) -> Response:
    kind = form.kind if form.kind in EXAMPLES else FIRST_KIND
    example = EXAMPLES[kind]
    purposes = ["conversations", "preference"] if example.purpose == "fine-tune" else [example.purpose]
    known = parts.files.list(who.organization, purposes=purposes, limit=SUGGESTED_FILES) if example.file else []
    return render(
        request,
        who,
        "job_form.html",
        status=400 if fault else 200,
        form=form,
        fault=fault,
        kind=kind,
        example=example,
        examples=EXAMPLES,
        # A form with a file holds less text than one without.
        takes_file=(example.file is not None or kind == "custom") and _fits(form),
        known_files=known,
        file=next((file for file in known if file.id == form.file_id.strip()), None),
        cloud_types=[one.value for one in CloudType],
    )


def _fits(form: JobForm) -> bool:
    return all(len(value.encode()) < MAX_FIELD_BYTES // 2 for value in form.model_dump().values())


def _of_job(job: Job) -> JobForm:
    return JobForm(
        source=job.id,
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
