"""Downloads under the names that people know. Not here: uploading, deleting (OpenAI's endpoints)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tutelage.server.authentication import Parts, Reader
from tutelage.server.page.formats import part

router = APIRouter(include_in_schema=False)


@router.get("/files/{file_id}")
async def download(file_id: Annotated[str, Path(max_length=200)], parts: Parts, who: Reader) -> StreamingResponse:
    """The bytes of a file, to be saved under the name that it was uploaded with."""
    stack = AsyncExitStack()
    file, chunks = await run_in_threadpool(stack.enter_context, parts.files.open(who.organization, file_id))

    async def stream() -> AsyncIterator[bytes]:
        async with stack:
            while piece := await run_in_threadpool(next, chunks, b""):
                yield piece

    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{part(saved_as(file.filename, file.id))}",
        "Cache-Control": "no-store",
    }
    return StreamingResponse(stream(), media_type="application/octet-stream", headers=headers)


def saved_as(filename: str, otherwise: str) -> str:
    """The last part of a name, without what no file system wants."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    clean = "".join(character for character in last if character.isprintable()).strip(". ")
    return clean or otherwise.replace(":", "-")
