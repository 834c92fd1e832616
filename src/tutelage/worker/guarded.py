"""A job's process as its worker holds it: started below a guard, watched, stopped. Not here: the guard (`guard.py`)."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tutelage.errors import JobError, OutputError
from tutelage.worker import guard


class GuardedProcess:
    """A command in a session of its own, which dies with the worker and with its lease.

    output: descriptor that it prints to. deadline: moment of `guard.now` at which it is killed unless `extend` moves
    it. changed: called, in another thread, whenever something was heard of it. Raises OutputError where no process can
    be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        output: int,
        deadline: float,
        changed: Callable[[], None],
    ) -> None:
        self.exit_code: int | None = None
        """Of the command itself; negative for a signal, None while it runs."""
        self.ended = False
        """Nothing of it is left."""
        self.late = False
        """It was killed because the lease had run out."""
        self.refusal: str | None = None
        """Why it could not be started."""
        self._changed = changed
        self._lock = threading.Lock()
        commands, self._commands = os.pipe()
        self._reports, reports = os.pipe()
        guarding = [sys.executable, "-I", "-S", guard.__file__, str(commands), str(reports), repr(deadline)]
        try:
            self._guard = subprocess.Popen(
                [*guarding, *command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(commands, reports),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            for descriptor in (self._commands, self._reports):
                os.close(descriptor)
            why = getattr(error, "strerror", None) or error
            if isinstance(error, ValueError) or why == os.strerror(7):
                raise JobError(
                    f"the job's command or environment cannot be used ({why}); give a shorter one, put it into a script"
                ) from error
            raise OutputError(f"no process can be started ({why}); see the worker's machine") from error
        finally:
            os.close(commands)
            os.close(reports)
        threading.Thread(target=self._listen, name="job-process", daemon=True).start()

    def extend(self, deadline: float) -> None:
        """The lease was renewed: the process is killed at this moment of `guard.now` in place of the one before."""
        self._tell(f"lease {deadline!r}\n")

    def stop(self, grace: float) -> None:
        """SIGTERM to its group, and SIGKILL after `grace` seconds to what is left."""
        self._tell(f"stop {grace!r}\n")

    def kill(self) -> None:
        """SIGKILL to everything of it, at once."""
        with self._lock:
            if self._commands >= 0:
                os.close(self._commands)
                self._commands = -1

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._commands >= 0:
                with contextlib.suppress(BrokenPipeError):  # it has just ended
                    os.write(self._commands, line.encode())

    def _listen(self) -> None:
        started: int | None = None
        with os.fdopen(self._reports, "rb") as reports:
            for line in reports:
                word, _, value = line.decode(errors="replace").rstrip("\n").partition(" ")
                if word == "started":
                    started = int(value)
                elif word == "exited":
                    self.exit_code = int(value)
                elif word == "late":
                    self.late = True
                elif word == "refused":
                    self.refusal = value
                self._changed()
        self._guard.wait()
        if self.exit_code is None and self.refusal is None:
            # The guard itself was killed. The process went with it (see `guard`); its group may not have.
            if started is not None:
                with contextlib.suppress(OSError):
                    os.killpg(started, 9)
            self.exit_code = -9
        self.kill()
        self.ended = True
        self._changed()
