"""What a job prints: read as it comes, masked, kept on disk, sent to the server from there.

What is not sent yet waits on disk, not in memory, for as long as the server is away. Not here: offsets on the server's
side (`tutelage.jobs.run_logs`).
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from tutelage.client.errors import AccessError, ServerError
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import FencedError, NotFoundError, OutputError, TutelageError
from tutelage.worker.masking import StreamMasker
from tutelage.worker.settings import LogLimits
from tutelage.worker.signals import RunSignals

SEND_EVERY_SECONDS = 0.2
PART_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
SILENT_SECONDS = 2.0
"""After the job is gone: how long its pipe may stay open without a word, in the hands of a process that is not ours."""
LONGEST_PAUSE_SECONDS = 5.0
STOP_SECONDS = 1.0


class RunLog:
    """The log of one run, in a file: its beginning, and of what is beyond that the newest bytes, which are sent last.

    size: of what may be sent. Raises OutputError.
    """

    def __init__(self, path: Path, secrets: Iterable[str], limits: LogLimits, signals: RunSignals) -> None:
        self.size = 0
        self.complete = False
        """Nothing comes any more."""
        self._limits = limits
        self._beyond = 0
        """Bytes that came after the beginning; the newest of them are in a ring behind it in the file."""
        self._ends_line = True
        self._masker = StreamMasker(secrets)
        self._signals = signals
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._gone = threading.Event()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); free space on the worker") from error

    def open_pipe(self) -> int:
        """The descriptor a process prints to; whoever asks closes it once the process has it."""
        reading, writing = os.pipe()
        self._reading = threading.Thread(target=self._read, args=(reading,), name="job-output", daemon=True)
        self._reading.start()
        return writing

    def say(self, text: str) -> None:
        """A line of the worker's own."""
        with self._lock:
            self._take(self._own_line(text))

    def finish_reading(self) -> None:
        """The process is gone: take in the rest of what it printed."""
        self._gone.set()
        if self._reading is not None:
            self._reading.join()
            self._reading = None

    def close(self) -> None:
        """Nothing comes any more."""
        self.finish_reading()
        with self._lock:
            self._append_end()
            self.complete = True
        self._signals.tell()

    def part(self, start: int) -> bytes:
        """Up to PART_BYTES from an offset on; nothing once it is removed."""
        with self._lock:
            if self._descriptor < 0:
                return b""
            return os.pread(self._descriptor, min(PART_BYTES, self.size - start), start)

    def remove(self) -> None:
        """Give the file back; whoever still has something to say, such as an upload, says it to nobody."""
        with self._lock, contextlib.suppress(OSError):
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _read(self, pipe: int) -> None:
        silent = 0.0
        try:
            while silent < SILENT_SECONDS:
                if not select.select([pipe], [], [], 0.1)[0]:
                    silent = silent + 0.1 if self._gone.is_set() else 0.0
                    continue
                silent = 0.0
                content = os.read(pipe, READ_BYTES)
                if not content:
                    break
                self._take_locked(self._masker.feed(content))
            self._take_locked(self._masker.end())
        finally:
            os.close(pipe)

    def _take_locked(self, content: bytes) -> None:
        with self._lock:
            self._take(content)

    def _take(self, content: bytes) -> None:
        if not content or self.complete or self._descriptor < 0:
            return
        self._ends_line = content.endswith(b"\n")
        beginning = content[: self._limits.beginning - self.size]
        self.size += self._write(self.size, beginning)
        beyond = content[len(beginning) :]
        while beyond:
            at = self._beyond % self._limits.end
            piece = beyond[: self._limits.end - at]
            self._write(self._limits.beginning + at, piece)
            self._beyond += len(piece)
            beyond = beyond[len(piece) :]
        self._signals.tell()

    def _append_end(self) -> None:
        """Bring the ring into order behind the beginning, and say what is missing between the two."""
        if not self._beyond or self._descriptor < 0:
            return
        kept = min(self._beyond, self._limits.end)
        try:
            ring = os.pread(self._descriptor, kept, self._limits.beginning)
            if self._beyond > kept:
                oldest = self._beyond % self._limits.end
                self._ends_line = os.pread(self._descriptor, 1, self._limits.beginning - 1) in (b"\n", b"")
                left_out = self._own_line(f"… {self._beyond - kept} bytes of the log are left out …")
                ring = left_out + ring[oldest:] + ring[:oldest]
        except OSError as error:
            self._signals.break_off(f"the log cannot be read on the worker ({error.strerror}); see its machine")
            return
        self.size += self._write(self._limits.beginning, ring)

    def _own_line(self, text: str) -> bytes:
        return ("" if self._ends_line else "\n").encode() + f"tutelage: {text}\n".encode(errors="replace")

    def _write(self, at: int, content: bytes) -> int:
        """How many bytes the disk has taken: all, or the run is broken off."""
        written = 0
        try:
            while written < len(content):
                written += os.pwrite(self._descriptor, content[written:], at + written)
        except OSError as error:
            self._signals.break_off(f"the log cannot be written on the worker ({error.strerror}); free space there")
        return written


class LogSender:
    """A thread that sends a log, each part as soon as it is there, by offset: nothing is lost or sent as new twice.

    reached, missed: told when the server has answered, or has not.
    """

    def __init__(
        self,
        api: WorkerApi,
        run_id: str,
        log: RunLog,
        signals: RunSignals,
        *,
        reached: Callable[[], None],
        missed: Callable[[TutelageError], None],
    ) -> None:
        self.ended = False
        """All was sent, or nobody wants it any more."""
        self._api = api
        self._run_id = run_id
        self._log = log
        self._signals = signals
        self._reached = reached
        self._missed = missed
        self._stopped = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name="log-sender", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more; a part that waits for an answer does not hold the worker up."""
        self._stopped.set()
        self._signals.tell()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        pause = SEND_EVERY_SECONDS
        while True:
            self._signals.wait(lambda: self._log.size > self._sent or self._log.complete or self._stopped.is_set())
            if self._stopped.is_set() or (self._log.complete and self._log.size <= self._sent):
                break
            try:
                self._sent = self._api.append_log(self._run_id, self._sent, self._log.part(self._sent), patience=0.0)
            except (FencedError, NotFoundError):
                self._signals.fence()
                break
            except ServerError as error:
                self._missed(error)
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            except (TutelageError, OSError) as error:
                what = "the token is not taken any more" if isinstance(error, AccessError) else "it cannot be sent"
                self._signals.break_off(f"the log: {what} ({error})")
                break
            self._reached()
            pause = SEND_EVERY_SECONDS
            if not self._log.complete:
                self._stopped.wait(SEND_EVERY_SECONDS)
        self.ended = True
        self._signals.tell()
