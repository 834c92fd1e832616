"""Server-sent events: what a run prints and reports, as it comes, until it has ended."""

import codecs
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

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
    return _response(_sent(parts, who, run_id, "log", _Log(parts, who, run_id, start).more))


async def event_stream(parts: Services, who: Principal, run_id: str, after: int) -> StreamingResponse:
    """The events of a run behind one. Raises NotFoundError before anything is sent."""
    await run_in_threadpool(parts.listing.run, who.organization, run_id)
    return _response(_sent(parts, who, run_id, "events", _Events(parts, who, run_id, after).more))


def continued(last_event_id: str | None, otherwise: int) -> int:
    """Where somebody who lost the connection goes on: behind the last thing they have."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return min(int(last_event_id), 2**62)
    return otherwise


def _response(content: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(content, media_type="text/event-stream", headers=headers)


async def _sent(
    parts: Services, who: Principal, run_id: str, topic: str, more: Callable[[bool], list[bytes]]
) -> AsyncIterator[bytes]:
    """What `more` finds, again and again, until the run has ended and it finds nothing; it is told whether it has."""
    with parts.notices.listening(f"{topic} {run_id}") as told:
        heard = time.monotonic()
        while not parts.notices.closing:
            told.forget()
            ended = (await run_in_threadpool(parts.listing.run, who.organization, run_id)).status.is_final
            if found := await run_in_threadpool(more, ended):
                heard = time.monotonic()
                for message in found:
                    yield message
                continue
            if ended:
                yield format_sse_event(event="end", data_str="null")
                return
            if time.monotonic() - heard > PING_SECONDS:
                heard = time.monotonic()
                yield format_sse_event(comment="ping")
            await told.wait()


class _Log:
    """Reads a log on and on."""

    def __init__(self, parts: Services, who: Principal, run_id: str, start: int) -> None:
        self._read = partial(parts.logs.read, who.organization, run_id)
        self._start = start
        # A character may lie across two parts.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self, ended: bool) -> list[bytes]:
        """The next part as an event. One may be read without one: a character whose rest is not there yet."""
        while True:
            part = self._read(self._start, PART_BYTES)
            self._start = part.end
            text = f"[{part.dropped} bytes of the log are not kept any more]\n" if part.dropped else ""
            text += self._decoder.decode(part.content, final=ended and not part.content)
            if text:
                # What the decoder holds back was not sent: whoever resumes here needs it again.
                held = len(self._decoder.getstate()[0])
                return [format_sse_event(event="log", id=str(self._start - held), data_str=to_json(text).decode())]
            if not part.content:
                return []


class _Events:
    """Reads events on and on."""

    def __init__(self, parts: Services, who: Principal, run_id: str, after: int) -> None:
        self._read = partial(parts.events.of_run, who.organization, run_id, limit=EVENTS_AT_ONCE)
        self._after = after

    def more(self, ended: bool) -> list[bytes]:
        """The next events."""
        found = self._read(after=self._after)
        self._after = found[-1].id if found else self._after
        return [
            format_sse_event(event="event", id=str(event.id), data_str=_EVENT.dump_json(event).decode())
            for event in found
        ]
