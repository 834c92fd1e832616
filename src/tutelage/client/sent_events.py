"""Server-sent events of a response. httpx has no reader of them, and its lines end where texts may go on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tutelage.client.errors import ServerError

LARGEST_SENT_EVENT = 64 * 1024 * 1024


@dataclass(frozen=True)
class SentEvent:
    """An event of a stream. id: where to go on behind it."""

    name: str
    id: str
    data: str


def sent_events(parts: Iterable[bytes]) -> Iterator[SentEvent]:
    """The events in the bytes of a stream; one that was cut off is left out. Raises ServerError for one without end.

    As WHATWG's HTML standard has it, section 9.2, with lines that end with LF or CRLF.
    """
    waiting = bytearray()
    fields: dict[str, list[str]] = {}
    for part in parts:
        waiting += part
        if len(waiting) > LARGEST_SENT_EVENT:
            raise ServerError(f"the server sent an event of more than {LARGEST_SENT_EVENT} bytes; update tutelage")
        *lines, rest = waiting.split(b"\n")
        waiting = bytearray(rest)
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", errors="replace")
            if text:
                name, _, value = text.partition(":")
                fields.setdefault(name, []).append(value.removeprefix(" "))
            elif fields:
                if "data" in fields or "event" in fields:
                    name = fields.get("event", ["message"])[-1]
                    yield SentEvent(name, fields.get("id", [""])[-1], "\n".join(fields.get("data", [])))
                fields = {}
