"""Keeping a run: heartbeats in a thread of their own, and a process that dies before its lease does.

Not here: what a lease is (`tutelage.jobs.queue`), killing (`guard.py`).
"""

import threading
from collections.abc import Callable

from tutelage.client.errors import ServerError
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import FencedError, NotFoundError, TutelageError
from tutelage.worker.guard import now
from tutelage.worker.guarded import GuardedProcess
from tutelage.worker.signals import RunSignals, Task

LARGEST_MARGIN_SECONDS = 3.0
MARGIN = 0.2
"""Part of a lease that is left for killing a process."""


class LeaseKeeper:
    """Renews the lease of a run until `stop`. asked_at: the moment of `guard.now` when the run was asked for.

    reached, missed: told when the server has answered, or has not.
    """

    def __init__(
        self,
        api: WorkerApi,
        run_id: str,
        signals: RunSignals,
        *,
        asked_at: float,
        lease_seconds: float,
        every: float,
        reached: Callable[[], None],
        missed: Callable[[TutelageError], None],
    ) -> None:
        self._api = api
        self._run_id = run_id
        self._signals = signals
        self._every = every
        self._patience = lease_seconds / 4
        self._reached = reached
        self._missed = missed
        self._deadline = asked_at + kept_for(lease_seconds)
        self._process: GuardedProcess | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    @property
    def deadline(self) -> float:
        """The moment of `guard.now` at which the process has to be dead unless the lease is renewed."""
        return self._deadline

    @property
    def is_held(self) -> bool:
        """A process may run."""
        return now() < self._deadline

    def watch(self, process: GuardedProcess) -> None:
        """From now on this process lives as long as the lease."""
        with self._lock:
            self._process = process
            process.extend(self._deadline)

    def stop(self) -> None:
        """No more heartbeats."""
        self._stopped.set()
        self._signals.tell()
        self._thread.join()

    def _run(self) -> None:
        # At once: a claim that waited for its job was asked for long before the lease began.
        while not self._stopped.is_set():
            # One that gets no answer, on a connection that is dead without knowing it, does not hold up the next.
            beat = Task(self._beat, name="heartbeat", told=self._signals.tell)
            self._signals.wait(lambda beat=beat: beat.done or self._stopped.is_set(), self._patience)
            self._stopped.wait(self._every)

    def _beat(self) -> None:
        asked_at = now()
        try:
            renewal = self._api.heartbeat(self._run_id, patience=0.0)
        except (FencedError, NotFoundError):
            self._stopped.set()
            self._signals.fence()
        except ServerError as error:
            self._missed(error)
        except TutelageError as error:
            self._stopped.set()
            self._signals.break_off(f"the lease cannot be renewed ({error})")
        else:
            self._reached()
            with self._lock:
                self._deadline = max(self._deadline, asked_at + kept_for(renewal.lease_seconds))
                if self._process is not None:
                    self._process.extend(self._deadline)
            self._signals.tell()
            if renewal.cancel and not self._signals.canceled:
                self._signals.cancel()


def kept_for(lease_seconds: float) -> float:
    """How long a process may run on a lease of so many seconds."""
    return lease_seconds - min(LARGEST_MARGIN_SECONDS, MARGIN * lease_seconds)
