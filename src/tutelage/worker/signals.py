"""What the parts of a run tell each other: it is to be canceled, given up, given back. Not here: acting on it."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Abandoned(Exception):
    """Raised in a task whose run does not wait for it any more."""


class RunSignals:
    """Set by any thread; the thread of the run waits for them."""

    def __init__(self) -> None:
        self.canceled = False
        """A user wants it stopped."""
        self.fenced = False
        """The server gave the run up: nothing of it counts any more."""
        self.broken: str | None = None
        """Why the worker itself cannot go on with it."""
        self.stopping_since: float | None = None
        """The moment of `time.monotonic` from which on the worker is to end."""
        self._abandoned = False
        self._changed = threading.Condition()

    def cancel(self) -> None:
        self.canceled = True
        self.tell()

    def fence(self) -> None:
        self.fenced = True
        self.tell()

    def stop(self) -> None:
        self.stopping_since = self.stopping_since or time.monotonic()
        self.tell()

    def break_off(self, why: str) -> None:
        self.broken = self.broken or why
        self.tell()

    @property
    def interrupted(self) -> bool:
        """The process is to be stopped, for whatever reason."""
        return self.canceled or self.fenced or self.broken is not None or self.stopping_since is not None

    def stopped_for(self, seconds: float) -> bool:
        """The worker is to end, and so many seconds have gone by since."""
        return self.stopping_since is not None and time.monotonic() - self.stopping_since >= seconds

    def tell(self) -> None:
        """Something changed: those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Until the condition holds, at most so long; whether it does."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = 0.5 if until is None else min(0.5, until - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def abandon(self) -> None:
        """Tasks that are still under way end at their next pause."""
        self._abandoned = True
        self.tell()

    def pause(self, seconds: float) -> None:
        """Sleep in a task, between two tries of a call. Raises Abandoned."""
        self.wait(lambda: self._abandoned, seconds)
        self.check()

    def check(self) -> None:
        """Raises Abandoned where nobody waits for the task any more."""
        if self._abandoned:
            raise Abandoned

    def check_wanted(self) -> None:
        """Raises Abandoned, too, where no process will be started any more."""
        if self._abandoned or self.interrupted:
            raise Abandoned


class Task(Generic[Result]):
    """A function in a thread of its own, so that who waits for it can stop waiting, and the process can end.

    told: called when it has ended.
    """

    def __init__(self, function: Callable[[], Result], *, name: str, told: Callable[[], None] | None = None) -> None:
        self._function = function
        self._told = told
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self.done = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """What the function returned, when it has. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # raised again where the result is asked for
            self._error = error
        self.done = True
        if self._told is not None:
            self._told()
