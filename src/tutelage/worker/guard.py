"""The parent of a job's process: when its worker dies, or the lease runs out, everything the job started dies too.

Run as a file of its own with nothing but the standard library, so that it is there in milliseconds and needs nothing
that a job could break. Not here: the worker's side of the two pipes (`guarded.py`).

It reads lines from the first pipe: `lease T` (kill everything at the moment T of `now`) and `stop S` (SIGTERM to the
group, SIGKILL to everything S seconds later); the end of the pipe means SIGKILL at once. It writes lines to the second:
`started PID`, `refused WHY`, `exited CODE` (negative for a signal), `late`; the end of that pipe means that nothing of
the job is left.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

LEFTOVER_SECONDS = 2.0
"""Between SIGTERM and SIGKILL for what a job leaves running behind it."""
LOOK_EVERY_SECONDS = 1.0
KILL_EVERY_SECONDS = 0.02
SIGNALS_TO_OUTLIVE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
SERVER_HERE = "TUTELAGE_SERVER_HERE"
"""Set by `tutelage serve` for the worker beside it, whose server and records are all on this machine."""


def now() -> float:
    """Seconds on a clock that all processes of this machine share.

    It goes on while the machine is suspended, since the server's does; unless the server is on this machine, and sleeps
    when it does: then closing the lid ends no run.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None or os.environ.get(SERVER_HERE) else time.clock_gettime(boot)


class Guard:
    """One job's process and what it starts. Ends when nothing of them is left."""

    def __init__(self, commands: int, reports: int, deadline: float) -> None:
        self._commands = commands
        self._reports = reports
        self._deadline = deadline
        self._leader = 0
        self._has_leader = False
        self._kill_at: float | None = None
        self._killing = False
        self._worker_is_there = True
        self._unread = b""

    def run(self, command: list[str]) -> None:
        """Start the command and stay until it and its descendants are gone."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        # Handlers, since a job would inherit that a signal is ignored.
        for number in (*SIGNALS_TO_OUTLIVE, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: None)
        if sys.platform.startswith("linux"):
            # Descendants whose parents are gone become ours: none is lost from sight, whatever session it is in.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if not self._start(command):
            return
        while self._reap():
            self._keep_time()
            watched = [self._commands, wake] if self._worker_is_there else [wake]
            ready = select.select(watched, [], [], self._pause())[0]
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            if self._commands in ready:
                self._obey()

    def _start(self, command: list[str]) -> bool:
        guard = os.getpid()
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

        def begin() -> None:
            # Said by the process itself: if the guard is killed now, the worker knows whom to kill.
            self._report(f"started {os.getpid()}")
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != guard:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            process = subprocess.Popen(command, start_new_session=True, preexec_fn=begin)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._report(f"refused {getattr(error, 'strerror', None) or error}")
            return False
        self._leader, self._has_leader = process.pid, True
        process.returncode = 0  # it is waited for below, with all others
        # The job alone holds the pipe it prints to, so that its end is seen.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        return True

    def _reap(self) -> bool:
        """Take in what has ended; whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._leader and self._has_leader:
                self._has_leader = False
                self._report(f"exited {os.waitstatus_to_exitcode(status)}")
                self._signal(signal.SIGTERM)
                self._kill_within(LEFTOVER_SECONDS)

    def _keep_time(self) -> None:
        if now() >= self._deadline and not self._killing:
            self._report("late")
            self._killing = True
        if self._kill_at is not None and now() >= self._kill_at:
            self._killing = True
        if self._killing:
            self._signal(signal.SIGKILL)

    def _pause(self) -> float:
        if self._killing:
            return KILL_EVERY_SECONDS
        # Short, since the machine may have been suspended meanwhile.
        next_moment = min(self._deadline, self._kill_at if self._kill_at is not None else self._deadline)
        return min(LOOK_EVERY_SECONDS, max(0.0, next_moment - now()))

    def _obey(self) -> None:
        content = os.read(self._commands, 4096)
        if not content:
            self._worker_is_there = False
            self._killing = True
            return
        *lines, self._unread = (self._unread + content).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"lease":
                self._deadline = float(value)
            elif word == b"stop":
                self._signal(signal.SIGTERM)
                self._kill_within(float(value))

    def _kill_within(self, seconds: float) -> None:
        moment = now() + seconds
        self._kill_at = moment if self._kill_at is None else min(self._kill_at, moment)

    def _signal(self, number: int) -> None:
        """To the job's group; where that has lost its leader, or to kill, to every descendant in whatever group."""
        if self._has_leader:
            with contextlib.suppress(OSError):
                os.killpg(self._leader, number)
        if not self._has_leader or number == signal.SIGKILL:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    def _report(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the worker is gone
            os.write(self._reports, line.replace("\n", " ").encode(errors="replace") + b"\n")


def descendants(ancestor: int) -> list[int]:
    """Processes below one, by what /proc says; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names alone
    except OSError:
        return []
    for pid in numbers:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib takes longer to import
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    unseen = [ancestor]
    while unseen:
        below = children.pop(unseen.pop(), [])
        found += below
        unseen += below
    return found


if __name__ == "__main__":
    Guard(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).run(sys.argv[4:])
