"""A worker: registers, asks for jobs, runs one after the other, ends when told to. Not here: a run (`job_run.py`)."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TypeVar

from tutelage import __version__
from tutelage.client.errors import ServerError
from tutelage.client.results import ClaimedJob
from tutelage.client.worker_api import LONGEST_WAIT_SECONDS, WORKER_PATIENCE_SECONDS, WorkerApi
from tutelage.errors import FencedError, NotFoundError, TutelageError, WorkerStoppedError
from tutelage.files import make_folder
from tutelage.jobs.requirements import Offer
from tutelage.jobs.status import JobStatus
from tutelage.worker.endings import Ending
from tutelage.worker.guard import now
from tutelage.worker.hardware import Gpus, disk_free_gb, find_gpus, hub_models, require_same
from tutelage.worker.job_folder import remove_left_behind
from tutelage.worker.job_run import LAST_WORDS_SECONDS, JobRun, Surroundings
from tutelage.worker.settings import WorkerSettings
from tutelage.worker.signals import RunSignals, Task

MOST_FAILURES = 5
"""In a row, of the worker itself: then it ends."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
STOPPED_ITSELF = 1
ANSWERED_EARLY_SECONDS = 0.5
"""A claim that is answered without a job sooner than it was to wait: by a server that is about to stop."""

Result = TypeVar("Result")


class Reachability:
    """Says once that the server is away, and once that it is back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._away_since: float | None = None
        self._lock = threading.Lock()

    def missed(self, error: TutelageError) -> None:
        """A call got no answer."""
        with self._lock:
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._say(f"{error}; trying again until it is back")

    def reached(self) -> None:
        """A call was answered."""
        with self._lock:
            if self._away_since is not None:
                self._say(f"the server is back after {time.monotonic() - self._away_since:.0f} s")
                self._away_since = None


class Worker:
    """Runs jobs of the server at `base_url`; unset, and `token` too, as for every client.

    say: gets what people are told, a sentence at a time.
    """

    def __init__(
        self,
        settings: WorkerSettings | None = None,
        *,
        base_url: str | None = None,
        token: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or WorkerSettings()
        self.id: str | None = None
        """As the server calls it, once it has registered."""
        self._say = say or partial(print, flush=True)
        self._api = WorkerApi(base_url, token, patience=0.0)
        self._patient_api = lambda sleep: WorkerApi(base_url, token, patience=WORKER_PATIENCE_SECONDS, sleep=sleep)
        self._reach = Reachability(self._say)
        self._changed = RunSignals()
        self._of_run: RunSignals | None = None
        self._stopping: str | None = None
        self._last_job: str | None = None
        self._gpus = Gpus()
        self._failures = 0
        self._first_run_id = self.settings.run_id
        self._idle_since = time.monotonic()

    def run(self) -> int:
        """Work until told to stop; the exit code, 1 where the worker found itself unfit.

        SIGTERM and SIGINT end it in order if this is the main thread, a second one ends it at once. Raises OutputError
        for its folder, HardwareError for GPUs that do not answer, AccessError for a token that may not.
        """
        make_folder(self.settings.folder, "--folder")
        remove_left_behind(self.settings.folder)
        self._gpus = find_gpus()
        with self._handling_signals():
            try:
                return self._work()
            except TutelageError as error:
                self._end(str(error))
                raise
            finally:
                self._api.close()

    def stop(self, reason: str = "told to stop") -> None:
        """Claim nothing more; stop the job that runs and give it back. From any thread."""
        self._stopping = self._stopping or reason
        self._changed.tell()
        if (of_run := self._of_run) is not None:
            of_run.stop()

    def _follow_input(self) -> None:
        while os.read(0, 1024):
            pass
        self._last_job = "the process that started it has ended"
        if self._of_run is None:
            self.stop(self._last_job)

    def _work(self) -> int:
        if self.settings.while_input_open:
            threading.Thread(target=self._follow_input, name="input", daemon=True).start()
        self._register()
        self._idle_since = time.monotonic()
        while self._stopping is None:
            if self._failures >= MOST_FAILURES:
                self._end(f"it failed {self._failures} times in a row; look at its machine, then start it again")
                return STOPPED_ITSELF
            if self._failures and not self._sleep(min(2.0 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)):
                break
            claimed = self._claim()
            if claimed is None:
                break
            self._do(*claimed)
            if self.settings.once:
                self._stopping = self._stopping or "it was started for one job"
            if self._last_job is not None:
                self._stopping = self._stopping or self._last_job
        self._end(self._stopping or "it had no job for longer than --max-idle")
        return 0

    def _do(self, claim: ClaimedJob, asked_at: float) -> None:
        """Run a job, and count whether it was the worker that failed."""
        self._say(f"{claim.job.id}: begins, attempt {claim.attempt} ({claim.run_id})")
        around = Surroundings(
            api=self._api,
            patient_api=self._patient_api,
            settings=self.settings,
            gpus=len(self._gpus.names),
            check_health=self._check_health,
            reached=self._reach.reached,
            missed=self._reach.missed,
            say=self._say,
        )
        signals = self._of_run = RunSignals()
        if self._stopping is not None:  # told while the job was being claimed
            signals.stop()
        ending = JobRun(claim, asked_at, around, signals).execute()
        self._of_run = None
        self._say(f"{claim.job.id}: {_in_words(ending)}")
        remove_left_behind(self.settings.folder)  # what other workers left, and downloads that came late
        self._failures = self._failures + 1 if ending.worker_failed else 0
        if self._stopping is None:
            self._report()
        self._idle_since = time.monotonic()

    def _check_health(self) -> None:
        if self._gpus.names:
            require_same(self._gpus)

    def _register(self) -> None:
        """Raises AccessError. Returns early where the worker is to stop."""
        settings, gpus = self.settings, self._gpus
        offer = Offer(
            hardware=gpus.hardware,
            gpus=len(gpus.names),
            vram_gb=gpus.vram_gb,
            cloud_type=settings.cloud_type,
            images=settings.images,
            cached_models=tuple(self._cached_models()),
            ignore_vram=settings.ignore_vram,
        )
        worker = self._persist(
            lambda: self._api.register(settings.name, __version__, offer, cost_per_hour=settings.cost_per_hour)
        )
        if worker is None:
            return
        self.id = worker.id
        self._say(f"{worker.id} '{settings.name}' with {gpus.hardware} takes jobs of {self._api.transport.address}")
        self._report()

    def _report(self) -> None:
        """Tell what there is now, if the server listens: it is only for choosing among workers."""
        with suppress(ServerError, NotFoundError):
            self._api.report(
                self.id or "", cached_models=self._cached_models(), disk_free_gb=disk_free_gb(self.settings.folder)
            )

    def _cached_models(self) -> list[str]:
        from tutelage.worker.models import ModelCache

        return [*ModelCache(self._api, self.settings.folder / "models").cached(), *hub_models()]

    def _claim(self) -> tuple[ClaimedJob, float] | None:
        """The next job, and when it was asked for; None where the worker is to end. Raises AccessError."""
        run_id, self._first_run_id = self._first_run_id or _new_run_id(), None
        pause = FIRST_PAUSE_SECONDS
        while self._stopping is None:
            wait = min(LONGEST_WAIT_SECONDS, self._idle_left())
            if wait < 0:
                return None
            try:
                asked = self._persist(partial(self._ask, run_id, wait))
            except FencedError:  # an answer was lost, and the run with it
                run_id = _new_run_id()
            except NotFoundError:
                self._say("the server does not know this worker any more; it registers again")
                run_id = _new_run_id()
                self._register()
                # A server that takes registrations and knows no claims, as one of another version, is not flooded.
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except WorkerStoppedError as error:
                self.id = None  # the server knows it
                self._stopping = self._stopping or f"it was stopped on the server ({error})"
                self._say(f"the worker ends: {self._stopping}")
            else:
                if asked is None:
                    self._return_unseen(run_id)
                elif asked[0] is not None:
                    return asked[0], asked[1]
                elif now() - asked[1] < min(wait, ANSWERED_EARLY_SECONDS):
                    self._sleep(ANSWERED_EARLY_SECONDS)
        return None

    def _ask(self, run_id: str, wait: float) -> tuple[ClaimedJob | None, float]:
        asked_at = now()
        return self._api.claim(self.id or "", run_id, wait=wait, job_id=self.settings.job_id), asked_at

    def _return_unseen(self, run_id: str) -> None:
        """The worker is to end while a claim is under way: whatever it got is given back."""
        self._end(self._stopping or "")
        # Once the worker is stopped no job is handed out; one that was has this run. As a rule there is none.
        with suppress(TutelageError):
            self._api.finish(run_id, JobStatus.PENDING, reason="its worker was stopped", patience=LAST_WORDS_SECONDS)

    def _persist(self, call: Callable[[], Result]) -> Result | None:
        """The answer to a call that is made again until there is one; None where the worker is to stop first."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            task = Task(call, name="asking", told=self._changed.tell)
            self._changed.wait(lambda task=task: task.done or self._stopping is not None)
            if not task.done:
                return None
            try:
                answer = task.result()
            except ServerError as error:
                self._reach.missed(error)
            else:
                self._reach.reached()
                return answer
            if self._idle_left() < 0:  # a machine that costs money must not wait for a server that is gone
                self._stopping = self._stopping or "it reached no server for longer than --max-idle"
                if self.id is None:
                    self._say(f"the worker ends: {self._stopping}")
                return None
            if not self._sleep(min(pause, max(self._idle_left(), 0.01))):
                return None
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _idle_left(self) -> float:
        """Seconds until the worker has been without a job for too long."""
        most = self.settings.max_idle
        return float("inf") if most is None else self._idle_since + most - time.monotonic()

    def _sleep(self, seconds: float) -> bool:
        """Whether the worker may go on after it."""
        return not self._changed.wait(lambda: self._stopping is not None, seconds)

    def _end(self, reason: str) -> None:
        """Say goodbye, once."""
        worker_id, self.id = self.id, None
        if worker_id is None:
            return
        self._say(f"the worker ends: {reason}")
        # Whoever looks at the workers sees it go silent, too.
        with suppress(TutelageError):
            self._api.stop(worker_id, reason, patience=LAST_WORDS_SECONDS)

    @contextmanager
    def _handling_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._stopping is not None:
            # At once: what runs is killed by its guard, and the server hands the job out when the lease has run out.
            os.write(2, f"{name} again: killed; the job waits until its lease has run out\n".encode())
            os._exit(128 + number)
        self.stop(f"it was sent {name}")


def _in_words(ending: Ending) -> str:
    status = "given up, since the server gave it up" if ending.status is None else ending.status.value
    if ending.status is JobStatus.PENDING:
        status = "given back"
    return f"{status}: {ending.reason}" if ending.status is not None and ending.reason else status


def _new_run_id() -> str:
    return f"run-{uuid.uuid4().hex}"
