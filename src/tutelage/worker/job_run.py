"""One run from claim to end: folder, process, log, uploads, how it ended. Not here: asking for it (`worker.py`)."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tutelage.client.results import ClaimedJob
from tutelage.client.worker_api import WORKER_PATIENCE_SECONDS, WorkerApi
from tutelage.errors import FencedError, NotFoundError, OutputError, TutelageError
from tutelage.jobs.masks import SHORTEST
from tutelage.jobs.status import JobStatus
from tutelage.worker.endings import (
    GONE,
    Ending,
    canceled,
    ending_of_process,
    given_back,
    worker_failure,
)
from tutelage.worker.guarded import GuardedProcess
from tutelage.worker.hardware import HardwareError
from tutelage.worker.job_folder import RunFolder, command_of, environment_of, fill
from tutelage.worker.lease import LeaseKeeper
from tutelage.worker.left_files import upload_left
from tutelage.worker.masking import StreamMasker
from tutelage.worker.run_log import LogSender, RunLog
from tutelage.worker.settings import WorkerSettings
from tutelage.worker.signals import Abandoned, RunSignals, Task

KILL_SECONDS = 30.0
"""A process that is still there so long after SIGKILL hangs in the kernel."""
LAST_WORDS_SECONDS = 2.0
"""How long a worker that is to end waits for the server to take the rest of a log, and the end of a run."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Surroundings:
    """What a run needs of its worker.

    api: makes each call once. patient_api: one that tries again, and pauses with the function it is given.
    check_health: raises HardwareError. reached, missed: told when the server has answered, or has not. say: to the
    worker's people.
    """

    api: WorkerApi
    patient_api: Callable[[Callable[[float], object]], WorkerApi]
    settings: WorkerSettings
    gpus: int
    check_health: Callable[[], None]
    reached: Callable[[], None]
    missed: Callable[[TutelageError], None]
    say: Callable[[str], None]


class JobRun:
    """A claimed job. asked_at: the moment of `guard.now` when it was asked for. `signals` may be set at any time."""

    def __init__(self, claim: ClaimedJob, asked_at: float, around: Surroundings, signals: RunSignals) -> None:
        self.claim = claim
        self.signals = signals
        self._around = around
        self._settings = around.settings
        self._secrets = [*claim.environment.values(), claim.token]
        self._api = around.patient_api(signals.pause)
        self._keeper = LeaseKeeper(
            around.api,
            claim.run_id,
            signals,
            asked_at=asked_at,
            lease_seconds=claim.lease_seconds,
            every=claim.heartbeat_seconds,
            reached=around.reached,
            missed=around.missed,
        )

    def execute(self) -> Ending:
        """Do all of it and tell the server; how it ended."""
        try:
            return self._told(self._guarded(self._in_folder))
        finally:
            self.signals.abandon()
            self._keeper.stop()
            self._api.close()

    def _guarded(self, step: Callable[[], Ending]) -> Ending:
        """What the step says, or what its error means."""
        try:
            return step()
        except (FencedError, Abandoned):
            self.signals.fence()
            return GONE
        except HardwareError as error:
            return given_back(str(error), worker_failed=True)
        except OutputError as error:
            return worker_failure(str(error))
        except TutelageError as error:
            return Ending(JobStatus.FAILED, str(error))
        except OSError as error:
            return worker_failure(f"the worker's system refuses ({error}); see its machine")
        except Exception as error:  # ours: the worker goes on, and ends if it happens again and again
            traceback.print_exc()
            return worker_failure(f"the worker met an error of its own ({type(error).__name__}: {error})")

    def _in_folder(self) -> Ending:
        folder = RunFolder(self._settings.folder, self.claim.run_id)
        try:
            log = RunLog(folder.log, self._secrets, self._settings.log_limits, self.signals)
            sender = LogSender(
                self._around.api,
                self.claim.run_id,
                log,
                self.signals,
                reached=self._around.reached,
                missed=self._around.missed,
            )
            try:
                self._say_what_is_not_masked(log)
                ending = self._guarded(lambda: self._steps(folder.job, log))
                log.close()
                if ending.status is not None:
                    self._wait_for_server(lambda: sender.ended)
                return ending
            finally:
                sender.stop()
                log.remove()
        finally:
            folder.close(keep=self._settings.keep_runs)

    def _steps(self, folder: Path, log: RunLog) -> Ending:
        self._around.check_health()
        command = command_of(self.claim)
        filling = self._task(
            lambda: fill(folder, self.claim, self._api, self._settings.folder, self.signals.check_wanted), "fill-folder"
        )
        # A lease that is not held, since the server is away, may be given to somebody else.
        self.signals.wait(lambda: (filling.done and self._keeper.is_held) or self._is_interrupted)
        if self._is_interrupted:
            return self._interruption()
        filling.result()
        ending = self._run(command, folder, log)
        if ending.status in (None, JobStatus.PENDING):
            return ending
        return self._with_uploads(ending, folder / "uploads", log)

    def _run(self, command: Sequence[str], folder: Path, log: RunLog) -> Ending:
        """The process, from its start until nothing of it is left."""
        signals, grace = self.signals, self._settings.grace
        output = log.open_pipe()
        try:
            process = GuardedProcess(
                command,
                folder=folder,
                environment=environment_of(self.claim, self._around.api.transport.address, self._around.gpus),
                output=output,
                deadline=self._keeper.deadline,
                changed=signals.tell,
            )
        finally:
            os.close(output)
        self._keeper.watch(process)
        try:
            signals.wait(lambda: process.ended or signals.interrupted)
            was_interrupted = not process.ended
            if was_interrupted and not signals.fenced:
                if signals.stopping_since is not None:
                    self._around.say(f"waiting up to {grace:g} s for the process of {self.claim.job.id} to end")
                process.stop(grace)
                signals.wait(lambda: process.ended or signals.fenced, grace + 1.0)
        finally:
            process.kill()
            is_gone = signals.wait(lambda: process.ended, KILL_SECONDS)
        log.finish_reading()
        if not is_gone:
            return worker_failure(f"a process of the job outlives SIGKILL by {KILL_SECONDS:g} s; restart the machine")
        if was_interrupted and not process.late:
            return self._interruption(process.exit_code)
        return ending_of_process(process, folder, StreamMasker(self._secrets))

    def _with_uploads(self, ending: Ending, uploads: Path, log: RunLog) -> Ending:
        """The same ending once all that was left is uploaded; another one where that cannot be."""
        signals = self.signals
        uploading = self._task(
            lambda: upload_left(self._api, self.claim.run_id, uploads, log.say, signals.check), "upload"
        )
        signals.wait(lambda: uploading.done or signals.fenced or signals.stopped_for(self._settings.grace))
        if signals.fenced:
            return GONE
        if not uploading.done:
            return given_back("its worker is stopping, and what the job left was not uploaded in time")
        try:
            uploading.result()
        except FencedError:
            return GONE
        except TutelageError as error:
            if ending.status is JobStatus.COMPLETED:
                return Ending(JobStatus.FAILED, f"what the job left cannot be uploaded: {error}", ending.exit_code)
            log.say(f"what the job left cannot be uploaded: {error}")
        return ending

    def _told(self, ending: Ending) -> Ending:
        """Tell the server; GONE where it does not want to hear it."""
        status = ending.status
        if status is None or self.signals.fenced:
            return GONE
        run_id = self.claim.run_id
        telling = self._task(
            lambda: self._api.finish(run_id, status, exit_code=ending.exit_code, reason=ending.reason), "finish"
        )
        if not self._wait_for_server(lambda: telling.done):
            self._around.say(f"{self.claim.job.id}: the server could not be told that it is {status.value}")
            return ending
        try:
            telling.result()
        except (FencedError, NotFoundError):
            return GONE
        except TutelageError as error:
            self._around.say(f"{self.claim.job.id}: the server was not told that it is {status.value} ({error})")
        return ending

    @property
    def _is_interrupted(self) -> bool:
        return self.signals.interrupted

    def _interruption(self, exit_code: int | None = None) -> Ending:
        """What it means that the run was interrupted."""
        if self.signals.fenced:
            return GONE
        if self.signals.canceled:
            return canceled(exit_code)
        if self.signals.broken is not None:
            return worker_failure(self.signals.broken)
        return given_back("its worker was stopped")

    def _task(self, function: Callable[[], Result], name: str) -> Task[Result]:
        return Task(function, name=name, told=self.signals.tell)

    def _wait_for_server(self, condition: Callable[[], bool]) -> bool:
        """Until it holds; only for a moment once the worker is to end. Whether it does."""
        began = time.monotonic()

        def is_over() -> bool:
            since = self.signals.stopping_since
            return since is not None and time.monotonic() - max(began, since) > LAST_WORDS_SECONDS

        self.signals.wait(lambda: condition() or is_over(), WORKER_PATIENCE_SECONDS)
        return condition()

    def _say_what_is_not_masked(self, log: RunLog) -> None:
        short = sorted(name for name, value in self.claim.environment.items() if len(value) < SHORTEST)
        if short:
            log.say(f"shorter than {SHORTEST} characters, and so not masked here: the secrets {', '.join(short)}")
