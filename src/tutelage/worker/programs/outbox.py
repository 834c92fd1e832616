"""What a program has to report, in order, until the server has it: a server that is away loses nothing.

Every event carries an id that follows from what it is, so sending it twice is sending it once. Not here: HTTP
(`report.py`).
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import FencedError, TutelageError

BATCH = 200
"""Events in one request."""
PATIENCE = 600.0
"""Seconds that the end of a job waits for a server that is away."""
PAUSE = 2.0
"""Seconds between two tries while the server is away."""


class Unreachable(Exception):
    """The server does not answer, or has trouble of its own: later it may."""


class Undelivered(TutelageError):
    """A server that stayed away has not got all that the run had to say."""

    exit_code = 1


@dataclass(frozen=True)
class ReportedEvent:
    """id: unique in the run. file: the id of a file that belongs to it."""

    id: str
    data: Mapping[str, Any]
    file: str | None = None


class Report(Protocol):
    """Where a run's events and files go.

    Both raise Unreachable where a later try may succeed, FencedError when the run was given up, and another
    TutelageError for what will be refused again.
    """

    def upload(self, path: Path, purpose: str) -> str:
        """The id of the file; the same bytes have the same id."""
        ...

    def send(self, events: Sequence[ReportedEvent]) -> None: ...


@dataclass
class _Item:
    id: str
    data: dict[str, Any]
    path: Path | None
    purpose: str
    required: bool
    file: str | None = None

    @property
    def event(self) -> ReportedEvent:
        data = self.data if self.file is None else {**self.data, "file": self.file}
        return ReportedEvent(self.id, data, self.file)


class Outbox:
    """Events and files on their way. One thread at a time uses it."""

    def __init__(
        self,
        report: Report,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._report = report
        self._clock = clock
        self._sleep = sleep
        self._waiting: deque[_Item] = deque()
        self._trouble = ""

    def add(
        self,
        id: str,
        data: Mapping[str, Any],
        *,
        file: Path | None = None,
        purpose: str = "result",
        required: bool = False,
    ) -> None:
        """Put an event behind the others. file: uploaded before it, its id becomes the event's `file`.

        required: that the server refuses it is an error of the run; otherwise a line in its log.
        """
        self._waiting.append(_Item(id, dict(data), file, purpose, required))

    def deliver(self) -> bool:
        """Send what waits; whether nothing is left. Raises FencedError, and what a required event was refused for."""
        try:
            while self._waiting:
                batch = list(islice(self._waiting, BATCH))
                refused = [item for item in batch if not self._uploaded(item)]
                self._send([item for item in batch if item not in refused])
                for _ in batch:
                    self._waiting.popleft()
        except Unreachable as error:
            self._trouble = str(error)
            return False
        return True

    def drain(self, patience: float) -> None:
        """Deliver all, trying again for `patience` seconds. Raises Undelivered after them, and like `deliver`."""
        end = self._clock() + patience
        while not self.deliver():
            if self._clock() >= end:
                raise Undelivered(
                    f"{len(self._waiting)} events of the run could not be reported within {patience:g} s "
                    f"({self._trouble}); start the job again when the server is back"
                )
            self._sleep(PAUSE)

    def _uploaded(self, item: _Item) -> bool:
        if item.path is None or item.file is not None:
            return True
        try:
            item.file = self._report.upload(item.path, item.purpose)
        except FencedError:
            raise
        except TutelageError as error:
            return self._refused(item, error)
        return True

    def _send(self, batch: Sequence[_Item]) -> None:
        """One request; where it is refused, one for each, so that the others get through."""
        if not batch:
            return
        try:
            self._report.send([item.event for item in batch])
        except FencedError:
            raise
        except TutelageError as error:
            if len(batch) == 1:
                self._refused(batch[0], error)
                return
            for item in batch:
                self._send([item])

    def _refused(self, item: _Item, error: TutelageError) -> bool:
        if item.required:
            raise error
        print(f"warning: the server does not take event {item.id} ({error})", file=sys.stderr, flush=True)
        return False
