"""The API in several processes that share one listening socket: begun, begun again when one is lost, ended in order.

Each is what a server of one process is, without the worker. They meet in the records, which must be PostgreSQL. Not
here: listening, and the worker (`serve`).
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError
from tutelage.server.one_process import CONNECTIONS_GRACE_SECONDS, OneProcess
from tutelage.server.services import open_services
from tutelage.server.settings import ServerSettings

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

# Threads and open connections of this process are of no use in a fork.
_spawning = multiprocessing.get_context("spawn")
logger = logging.getLogger(__name__)
BEGIN_AGAIN_SECONDS = 1.0
"""Between two starts in one place, however soon the first process ended."""
LOOK_EVERY_SECONDS = 0.1
END_SECONDS = CONNECTIONS_GRACE_SECONDS + 5.0
"""How long a process may take to end when it is asked to."""


class SeveralProcesses:
    """As many as the settings say. prepare: is called in each of them first. say: tells of one that was lost."""

    def __init__(self, settings: ServerSettings, prepare: Callable[[], object], say: Callable[[str], None]) -> None:
        self._settings = settings
        self._prepare = prepare
        self._say = say
        self._places = [_Place(number) for number in range(1, settings.processes + 1)]
        self._stopping = threading.Event()
        self._at_once = threading.Event()

    @property
    def started(self) -> bool:
        """Whether requests are answered."""
        return any(place.started for place in self._places)

    def run(self, listening: socket.socket) -> None:
        """Until they are stopped; only in the main thread. Nothing is left of them."""
        try:
            while not self._stopping.is_set():
                for place in self._places:
                    self._see_to(place, listening)
                wait([place.process.sentinel for place in self._places if place.process], LOOK_EVERY_SECONDS)
            self._end()
        finally:
            for place in self._places:
                place.end(signal.SIGKILL)

    def stop(self) -> None:
        """Let open connections end, for some seconds."""
        self._stopping.set()

    def stop_at_once(self) -> None:
        """Wait for nobody."""
        self._at_once.set()
        self._stopping.set()

    def _see_to(self, place: "_Place", listening: socket.socket) -> None:
        if place.process is not None and not place.process.is_alive():
            self._say(f"API process {place.number} ended with exit code {place.process.exitcode}; another one begins")
            place.process.close()
            place.process = None
        if place.process is None and time.monotonic() - place.began >= BEGIN_AGAIN_SECONDS:
            try:
                place.begin(self._settings, listening, self._prepare)
            except OSError as error:  # no memory, too many processes: the others go on
                self._say(f"API process {place.number} cannot be started ({error.strerror}); it is tried again")

    def _end(self) -> None:
        processes = [place.process for place in self._places if place.process]
        for place in self._places:
            place.end(signal.SIGTERM)
        until = time.monotonic() + END_SECONDS
        while any(one.is_alive() for one in processes) and time.monotonic() < until and not self._at_once.is_set():
            wait([one.sentinel for one in processes if one.is_alive()], LOOK_EVERY_SECONDS)


class _Place:
    """One of the processes, and those that come after it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = -BEGIN_AGAIN_SECONDS
        self.process: SpawnProcess | None = None
        # Memory that they share, without a lock that one of them could be killed with.
        self._answers = _spawning.RawValue(ctypes.c_bool, False)

    @property
    def started(self) -> bool:
        """Whether one of them has been ready for requests."""
        return self._answers.value

    def begin(self, settings: ServerSettings, listening: socket.socket, prepare: Callable[[], object]) -> None:
        """Another one. Raises OSError where the system has no room for it."""
        process = _spawning.Process(target=_serve, args=(settings, listening, prepare, self._answers), daemon=True)
        self.began = time.monotonic()
        # It inherits what is blocked: ctrl-C, which all of a terminal get, is for this process alone. What
        # `multiprocessing` begins beside the first process would unblock it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.process = process

    def end(self, number: int) -> None:
        """Send it a signal, if it is there; after SIGKILL it is not."""
        if self.process is None:
            return
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join()
            self.process.close()
            self.process = None


def _serve(
    settings: ServerSettings, listening: socket.socket, prepare: Callable[[], object], answers: ctypes.c_bool
) -> None:
    """One of the processes, from begin to end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    try:
        services = open_services(settings, begins=False)
    except TutelageError as error:
        logger.error("an API process cannot begin: %s", error)
        sys.exit(1)
    api = OneProcess(services)
    signal.signal(signal.SIGTERM, lambda *_: api.stop())
    threading.Thread(target=_tell_when_started, args=(api, answers), daemon=True).start()
    try:
        api.run(listening)
    finally:
        services.close()


def _tell_when_started(api: OneProcess, answers: ctypes.c_bool) -> None:
    while not api.started:
        time.sleep(0.01)
    answers.value = True


def _end_with_parent() -> None:
    """As if it were killed with it: who starts a server again finds the address free."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # it was spawned
    parent.join()
    os._exit(1)
