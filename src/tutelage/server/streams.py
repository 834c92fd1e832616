"""Server-sent events: what a run prints and reports, as it comes, until it has ended."""

import codecs
import time
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from tutelage.jobs.access import Principal
from tutelage.jobs.records import Event
from tutelage.server.services import Services

PING_SECONDS = 15.0
"""A stream in which nothing happens says so this often, so that nobody on the way closes it."""
PART_BYTES = 256 * 1024
EVENTS_AT_ONCE = 500

_EVENT = TypeAdapter(Event)


async def log_stream(parts: Services, who: Principal, run_id: str, start: int) -> StreamingResponse:
    """The log of a run from an offset on. Raises NotFoundError before anything is sent."""
    await run_in_threadpool(parts.listing.run, who.organization, run_id)
    return _response(_log(parts, who, run_id, start))


async def event_stream(parts: Services, who: Principal, run_id: str, after: int) -> StreamingResponse:
    """The events of a run behind one. Raises NotFoundError before anything is sent."""
    await run_in_threadpool(parts.listing.run, who.organization, run_id)
    return _response(_events(parts, who, run_id, after))


def continued(last_event_id: str | None, otherwise: int) -> int:
    """Where somebody who lost the connection goes on: behind the last thing they have."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return min(int(last_event_id), 2**62)
    return otherwise


def _response(content: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(content, media_type="text/event-stream", headers=headers)


async def _log(parts: Services, who: Principal, run_id: str, start: int) -> AsyncIterator[bytes]:
    # A character may lie across two parts.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with parts.notices.listening(f"log {run_id}") as told:
        heard = time.monotonic()
        while not parts.notices.closing:
            told.forget()
            ended = (await run_in_threadpool(parts.listing.run, who.organization, run_id)).status.is_final
            part = await run_in_threadpool(parts.logs.read, who.organization, run_id, start, PART_BYTES)
            start = part.end
            text = f"[{part.dropped} bytes of the log are not kept any more]\n" if part.dropped else ""
            text += decoder.decode(part.content, final=ended and not part.content)
            if text:
                heard = time.monotonic()
                # What the decoder holds back was not sent: whoever resumes here needs it again.
                held = len(decoder.getstate()[0])
                yield format_sse_event(event="log", id=str(start - held), data_str=to_json(text).decode())
            if part.content:
                continue
            if ended:
                yield format_sse_event(event="end", data_str="null")
                return
            if time.monotonic() - heard > PING_SECONDS:
                heard = time.monotonic()
                yield format_sse_event(comment="ping")
            await told.wait()


async def _events(parts: Services, who: Principal, run_id: str, after: int) -> AsyncIterator[bytes]:
    with parts.notices.listening(f"events {run_id}") as told:
        heard = time.monotonic()
        while not parts.notices.closing:
            told.forget()
            ended = (await run_in_threadpool(parts.listing.run, who.organization, run_id)).status.is_final
            found = await run_in_threadpool(_behind, parts, who.organization, run_id, after)
            for event in found:
                after = event.id
                heard = time.monotonic()
                yield format_sse_event(event="event", id=str(after), data_str=_EVENT.dump_json(event).decode())
            if found:
                continue
            if ended:
                yield format_sse_event(event="end", data_str="null")
                return
            if time.monotonic() - heard > PING_SECONDS:
                heard = time.monotonic()
                yield format_sse_event(comment="ping")
            await told.wait()


def _behind(parts: Services, organization: str, run_id: str, after: int) -> list[Event]:
    return parts.events.of_run(organization, run_id, after=after, limit=EVENTS_AT_ONCE)
