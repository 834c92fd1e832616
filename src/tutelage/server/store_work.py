"""What waits for the store of files, in threads of its own: a store that is slow keeps nobody else waiting.

Not here: addresses and names of files.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from anyio.to_thread import run_sync
from fastapi.responses import StreamingResponse

from tutelage.jobs.records import StoredFile
from tutelage.server.services import Services

Result = TypeVar("Result")


async def with_store(parts: Services, work: Callable[[], Result]) -> Result:
    """What the work gives, which calls the store. Raises what it raises."""
    return await run_sync(work, limiter=parts.store_threads)


async def file_response(
    parts: Services, organization: str, file_id: str, headers_of: Callable[[StoredFile], dict[str, str]]
) -> StreamingResponse:
    """The bytes of a file. Raises NotFoundError, StorageError before anything is sent; later, the connection is cut."""
    stack = AsyncExitStack()
    file, chunks = await with_store(parts, lambda: stack.enter_context(parts.files.open(organization, file_id)))
    try:
        first = await with_store(parts, lambda: next(chunks, b""))
    except BaseException:
        await stack.aclose()
        raise

    async def stream() -> AsyncIterator[bytes]:
        async with stack:
            part = first
            while part:
                yield part
                part = await with_store(parts, lambda: next(chunks, b""))

    headers = {"Content-Length": str(file.bytes), **headers_of(file)}
    return StreamingResponse(stream(), media_type="application/octet-stream", headers=headers)
