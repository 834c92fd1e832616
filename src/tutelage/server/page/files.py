"""Downloads under the names that people know. Not here: uploading, deleting (OpenAI's endpoints)."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from tutelage.jobs.records import StoredFile
from tutelage.server.authentication import Parts, Reader
from tutelage.server.page.formats import part
from tutelage.server.store_work import file_response

router = APIRouter(include_in_schema=False)


@router.get("/files/{file_id}")
async def download(file_id: Annotated[str, Path(max_length=200)], parts: Parts, who: Reader) -> StreamingResponse:
    """The bytes of a file, to be saved under the name that it was uploaded with."""
    return await file_response(parts, who.organization, file_id, _headers)


def _headers(file: StoredFile) -> dict[str, str]:
    return {
        "Content-Disposition": f"attachment; filename*=UTF-8''{part(saved_as(file.filename, file.id))}",
        "Cache-Control": "no-store",
    }


def saved_as(filename: str, otherwise: str) -> str:
    """The last part of a name, without what no file system wants."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    clean = "".join(character for character in last if character.isprintable()).strip(". ")
    return clean or otherwise.replace(":", "-")
