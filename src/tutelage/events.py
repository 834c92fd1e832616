"""The vocabulary of metrics and events: one line of a run's `events.jsonl` is one `Event`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tutelage.files import JsonLinesFile


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
