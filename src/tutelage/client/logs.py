"""What runs printed: a part, all of it, or as it comes."""

import codecs
import json
from collections.abc import Iterator

from tutelage.client.http import Transport, path_of


def log_parts(transport: Transport, run_id: str, start: int = 0) -> Iterator[bytes]:
    """The log that is there, part by part, from a byte offset on; a negative one counts from the end."""
    while True:
        content, headers = transport.part(path_of("api", "logs", run_id), {"start": start})
        if not content:
            return
        yield content
        start = int(headers["Tutelage-Log-End"])


def log_text(transport: Transport, run_id: str, start: int = 0) -> str:
    """The same as text; bytes that are no UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = [decoder.decode(part) for part in log_parts(transport, run_id, start)]
    return "".join([*text, decoder.decode(b"", final=True)])


def followed_log(transport: Transport, run_id: str, start: int = 0) -> Iterator[str]:
    """Parts of the log as they are printed, until the run has ended. A lost connection loses and repeats nothing."""
    for event in transport.follow(path_of("api", "logs", run_id), {"follow": "true"}, "start", start):
        if event.name == "log":
            yield json.loads(event.data)
