"""What runs report: events and logs, taken in and given out, at once or as they come."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from tutelage.jobs.event_log import NewEvent
from tutelage.jobs.plain_json import cleaned
from tutelage.jobs.records import Event
from tutelage.server.authentication import AnyPrincipal, Json, Parts, Reader, require_writer
from tutelage.server.own.bodies import Added, Identity, LogEnd, NewEvents, Page
from tutelage.server.streams import continued, event_stream, log_stream

router = APIRouter(prefix="/api", tags=["events and logs"])

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
TEXT_OR_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}
MAX_LOG_PART = 4 * 1024 * 1024
LARGEST = 2**62
RunPath = Annotated[Identity, Path()]
Offset = Annotated[int, Query(ge=-LARGEST, le=LARGEST)]
EventId = Annotated[int, Query(ge=0, le=LARGEST)]


@router.post("/events")
def append_events(body: NewEvents, parts: Parts, who: AnyPrincipal) -> Added:
    """Take events of a run in; one whose id was taken before is left out."""
    require_writer(parts, who, body.run_id)
    organization = who.organization
    new = [
        NewEvent(event.id, parts.masking.masked(organization, cleaned(event.data, "event")), event.file)
        for event in body.events
    ]
    added = parts.events.append(who.organization, body.run_id, new)
    parts.notices.tell(f"events {body.run_id}")
    return Added(added=added)


@router.get("/events")
def list_events(
    parts: Parts,
    who: Reader,
    run_id: Identity | None = None,
    job_id: Identity | None = None,
    after: EventId = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Page[Event]:
    """Events of a run, or of all runs of a job, oldest first."""
    if run_id is not None:
        found = parts.events.of_run(who.organization, run_id, after=after, limit=limit + 1)
    elif job_id is not None:
        found = parts.events.of_job(who.organization, job_id, after=after, limit=limit + 1)
    else:
        raise HTTPException(400, "whose events? give run_id or job_id")
    return Page(data=found[:limit], has_more=len(found) > limit)


@router.get("/events/latest")
def latest(parts: Parts, who: Reader, run_id: Identity | None = None, job_id: Identity | None = None) -> Json:
    """The newest value of each field."""
    if (run_id is None) == (job_id is None):
        raise HTTPException(400, "whose events? give either run_id or job_id")
    return parts.events.latest(who.organization, run_id=run_id, job_id=job_id)


@router.get("/events/stream", response_class=StreamingResponse, responses=STREAM)
async def stream_events(
    parts: Parts,
    who: Reader,
    run_id: Annotated[Identity, Query()],
    after: EventId = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Server-sent events: `event` for each event of a run as it comes, `end` when it has ended."""
    return await event_stream(parts, who, run_id, continued(last_event_id, after))


@router.post("/logs/{run_id}")
async def append_log(
    run_id: RunPath,
    request: Request,
    parts: Parts,
    who: AnyPrincipal,
    start: Annotated[int, Query(ge=0, le=LARGEST)],
) -> LogEnd:
    """Take a part of a log in. Behind a gap nothing is taken, and the answer says where to go on."""
    if who.run_id is not None:  # a job has secrets that only its worker masks, which sees all of its log
        raise HTTPException(403, f"{run_id}: its worker sends the log; print what belongs there, or report events")
    await run_in_threadpool(require_writer, parts, who, run_id)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_LOG_PART:
            raise HTTPException(413, f"more than {MAX_LOG_PART} bytes of a log at once; send it in parts")
    end = await run_in_threadpool(parts.logs.append, who.organization, run_id, start, bytes(content))
    parts.notices.tell(f"log {run_id}")
    return LogEnd(end=end)


@router.get("/logs/{run_id}", response_class=Response, responses=TEXT_OR_STREAM)
async def read_log(
    run_id: RunPath,
    parts: Parts,
    who: Reader,
    start: Offset = 0,
    follow: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """A part of a log, from an offset on; a negative one counts from the end.

    The header Tutelage-Log-End says where the next part begins. follow: server-sent events, `log` as it is printed
    and `end` when the run has ended and all was sent.
    """
    if follow:
        return await log_stream(parts, who, run_id, continued(last_event_id, start))
    part = await run_in_threadpool(parts.logs.read, who.organization, run_id, start)
    headers = {"Tutelage-Log-End": str(part.end), "Tutelage-Log-Dropped": str(part.dropped)}
    return Response(part.content, media_type="text/plain; charset=utf-8", headers=headers)
