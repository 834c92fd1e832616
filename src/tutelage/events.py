"""The vocabulary of metrics and events, and the append-only files they are written to.

One line of `events.jsonl` is one `Event`. Lines are appended and flushed one by one, so a killed run
leaves a readable file; at worst its last line is torn, and readers drop it.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from tutelage.errors import OutputError


class Tag(str, Enum):
    """What an event line is about."""

    START = "start"  # the run begins or continues; values hold `from_step`
    TRAIN = "train"  # metrics of one or more optimizer steps
    EVAL = "eval"  # metrics over the test file
    MONITORING = "monitoring"  # drift, KL to base, directions
    LOGPROB = "logprob"  # mean log-probability of named data sets
    CHECK = "check"  # what the check before step 1 found
    CHECKPOINT = "checkpoint"  # a complete checkpoint is on disk
    WARNING = "warning"  # something failed that training survives
    END = "end"  # the run ended; values hold `reason`


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`.

    step: optimizer steps done when it was written. time: seconds since the epoch.
    values: metric name to number or text; NaN and infinities are stored as null.
    """

    step: int
    tag: Tag
    values: Mapping[str, Any]
    time: float


class JsonLinesFile:
    """An append-only file of JSON objects, one a line, flushed after each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Raises OutputError where the disk refuses."""
        line = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            torn = self.path.exists() and self.path.stat().st_size > 0 and not _ends_with_newline(self.path)
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write("\n" + line if torn else line)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot append ({error.strerror}); free space or choose another output_dir, "
                "then continue the run with --resume"
            ) from error

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far; a torn line (the process was killed while writing) is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


class EventLog:
    """Writes and reads the `events.jsonl` of one run."""

    def __init__(self, path: Path) -> None:
        self._file = JsonLinesFile(path)

    @property
    def path(self) -> Path:
        return self._file.path

    def write(self, step: int, tag: Tag, values: Mapping[str, Any]) -> None:
        self._file.append({"step": step, "tag": tag.value, "time": time.time(), "values": values})

    def read(self, *tags: Tag) -> list[Event]:
        """Events in order, of the given tags or all.

        A run that was killed after its last checkpoint repeats some steps when it is continued; the lines of
        the abandoned steps stay in the file and are left out here.
        """
        events: list[Event] = []
        for row in self._file.rows():
            event = Event(step=row["step"], tag=Tag(row["tag"]), values=row["values"], time=row["time"])
            if event.tag is Tag.START:
                events = [kept for kept in events if kept.step <= event.step]
            events.append(event)
        return [event for event in events if not tags or event.tag in tags]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value
