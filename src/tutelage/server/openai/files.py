"""Files: uploading, looking up, contents. What is uploaded for training is checked row by row."""

from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tutelage.errors import JobError
from tutelage.jobs.records import Scope
from tutelage.jobs.stored_files import PURPOSE
from tutelage.server.authentication import AnyPrincipal, Json, Parts, Reader, Submitter
from tutelage.server.file_rows import checked_purpose
from tutelage.server.multipart import read_file_form
from tutelage.server.openai.objects import file_object
from tutelage.server.own.bodies import Identity
from tutelage.server.store_work import file_response, with_store

router = APIRouter(prefix="/v1/files", tags=["files (OpenAI)"])
FileId = Annotated[Identity, Path()]
BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "pattern": PURPOSE.pattern},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=FORM)
async def create(request: Request, parts: Parts, who: AnyPrincipal) -> Json:
    """Upload a file. purpose: `fine-tune`, `conversations`, `preference`, whose rows are checked, or any other word."""
    if not who.may(Scope.SUBMIT) and not who.may(Scope.WORKER):
        raise HTTPException(403, "the token has neither the scope 'submit' nor 'worker'; use one that has")
    async with AsyncExitStack() as stack:
        form = await read_file_form(request, parts.files, who.organization, stack)
        assert form.upload is not None  # or there had been an error
        purpose = form.fields.get("purpose")
        if purpose is None:
            raise JobError("the form has no purpose; add the field 'purpose', such as fine-tune")
        upload, filename = form.upload, form.filename or "file"
        purpose = await run_in_threadpool(checked_purpose, upload, purpose, filename)
        kept = await with_store(
            parts, lambda: parts.files.keep(who.organization, upload, purpose=purpose, filename=filename)
        )
    return file_object(kept)


@router.get("")
def list_files(
    parts: Parts,
    who: Reader,
    purpose: Identity | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    after: Identity | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Json:
    """Files, newest first."""
    purposes = ["conversations", "preference"] if purpose == "fine-tune" else [purpose] if purpose else None
    found = parts.files.list(
        who.organization, purposes=purposes, limit=limit + 1, after=after, ascending=order == "asc"
    )
    data = [file_object(file) for file in found[:limit]]
    return {
        "object": "list",
        "data": data,
        "has_more": len(found) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


@router.get("/{file_id}")
def retrieve(file_id: FileId, parts: Parts, who: Reader) -> Json:
    """One file."""
    return file_object(parts.files.get(who.organization, file_id))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=BYTES)
async def content(file_id: FileId, parts: Parts, who: Reader) -> StreamingResponse:
    """The bytes of a file."""
    # A browser is to save it, under a name that is none of its path's making.
    saved_as = {"Content-Disposition": f'attachment; filename="{file_id.replace(":", "-")}"'}
    return await file_response(parts, who.organization, file_id, lambda _: saved_as)


@router.delete("/{file_id}")
async def delete(file_id: FileId, parts: Parts, who: Submitter) -> Json:
    """Remove a file that no unfinished job needs."""
    await with_store(parts, lambda: parts.files.delete(who.organization, file_id))
    return {"id": file_id, "object": "file", "deleted": True}
