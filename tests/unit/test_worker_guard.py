"""Processes below a guard: nothing of them outlives what it should."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import until
from tests.workers import is_alive
from tutelage.errors import JobError
from tutelage.worker.guard import now
from tutelage.worker.guarded import GuardedProcess

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("daemon", "w").write(str(os.getpid()))
        print("ready", flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("daemon"):
    time.sleep(0.005)
"""
"""Forks a process that belongs to no group and no parent of the job's any more."""
FORKING = """
import os, time
print("ready", flush=True)
for number in range(100_000):
    if os.fork() == 0:
        os.setsid()
    else:
        time.sleep(0.003)
        os._exit(0)
"""
"""Never the same process for longer than 3 ms, nor the same group."""


class Started:
    """A guarded process in a folder, and what it prints."""

    def __init__(self, folder: Path, *command: str, seconds: float = 60.0, **environment: str) -> None:
        self.folder = folder
        self.heard = threading.Event()
        self._reading, writing = os.pipe()
        try:
            self.process = GuardedProcess(
                command,
                folder=folder,
                environment={**os.environ, **environment},
                output=writing,
                deadline=now() + seconds,
                changed=self.heard.set,
            )
        finally:
            os.close(writing)

    def line(self) -> str:
        """The next line it prints; nothing at the end of its output."""
        content = b""
        while not content.endswith(b"\n"):
            byte = os.read(self._reading, 1)
            if not byte:
                break
            content += byte
        return content.decode().rstrip("\n")

    def gone(self) -> GuardedProcess:
        until(lambda: self.process.ended, "the process' end")
        assert self.line() == ""
        return self.process

    def number(self, name: str) -> int:
        """A process' id that it wrote into a file."""
        return int(until(lambda: (self.folder / name).exists() and (self.folder / name).read_text(), name))

    def close(self) -> None:
        self.process.kill()
        until(lambda: self.process.ended, "the process' end")
        os.close(self._reading)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Started] = []

    def begin(*command: str, **options: Any) -> Started:
        started.append(Started(tmp_path, *command, **options))
        return started[-1]

    yield begin
    for one in started:
        one.close()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -11 $$", -11)])
def test_how_it_ended(start: Any, script: str, code: int) -> None:
    assert start("bash", "-c", script).gone().exit_code == code


def test_what_it_finds(start: Any, tmp_path: Path) -> None:
    """Its own group, no input, the folder, signals as they are for any process."""
    script = 'echo "$PWD"; cat; ps -o pgid= -p $$ | tr -d " "; echo $$; grep -E "SigIgn" /proc/self/status'
    one = start("bash", "-c", script)
    assert one.line() == str(tmp_path)
    assert one.line() == one.line()
    ignored = int(one.line().split()[1], 16)
    assert not ignored & (1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1))
    assert one.gone().exit_code == 0


def test_a_command_that_is_not_there(start: Any) -> None:
    assert start("no-such-command").gone().refusal == "No such file or directory"


@pytest.mark.parametrize("value", ["x" * 3_000_000, "a\0b"])
def test_an_environment_that_cannot_be(start: Any, value: str) -> None:
    with pytest.raises(JobError, match="command or environment cannot be used"):
        start("true", VALUE=value)


def test_stopping_lets_it_end_by_itself(start: Any) -> None:
    one = start("bash", "-c", "exec 2>&-; trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    assert one.line() == "ready"
    one.process.stop(60.0)
    assert one.gone().exit_code == 7


def test_one_that_ignores_the_signal_is_killed(start: Any) -> None:
    one = start("bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done")
    assert one.line() == "ready"
    one.process.stop(0.1)
    assert one.gone().exit_code == -9


def test_what_it_leaves_behind_ends_with_it(start: Any) -> None:
    """A child in its group and a daemon outside of it; the job's own code counts."""
    one = start("bash", "-c", f'sleep 600 & echo $! > child; {sys.executable} -c "$DAEMON"; exit 5', DAEMON=DAEMON)
    assert one.line() == "ready"
    assert one.gone().exit_code == 5
    assert not is_alive(one.number("child"))
    assert not is_alive(one.number("daemon"))


def test_killing_reaches_daemons(start: Any) -> None:
    one = start("bash", "-c", f'{sys.executable} -c "$DAEMON"; sleep 600', DAEMON=DAEMON)
    assert one.line() == "ready"
    one.process.kill()
    one.gone()
    assert not is_alive(one.number("daemon"))


def test_one_that_forks_faster_than_it_dies(start: Any) -> None:
    """Each process starts the next one, outside of every group, and ends."""
    one = start(sys.executable, "-c", FORKING)
    assert one.line() == "ready"
    one.process.kill()
    one.gone()


def test_it_dies_with_its_lease(start: Any) -> None:
    one = start("bash", "-c", "trap '' TERM; sleep 600", seconds=0.3)
    process = one.gone()
    assert (process.late, process.exit_code) == (True, -9)


def test_a_renewed_lease_keeps_it(start: Any, tmp_path: Path) -> None:
    """The first lease is over long before it ends."""
    one = start("bash", "-c", "while [ ! -e go ]; do sleep 0.01; done", seconds=0.4)
    over = now() + 0.8
    while now() < over:
        one.process.extend(now() + 0.4)
        one.heard.clear()
        one.heard.wait(0.05)
    (tmp_path / "go").touch()
    process = one.gone()
    assert (process.late, process.exit_code) == (False, 0)


def test_a_guard_that_is_killed_takes_it_along(start: Any) -> None:
    one = start("bash", "-c", "echo $$ > leader; sleep 600 & echo $! > child; echo ready; wait")
    assert one.line() == "ready"
    os.kill(one.process._guard.pid, signal.SIGKILL)
    assert one.gone().exit_code == -9
    until(lambda: not is_alive(one.number("leader")) and not is_alive(one.number("child")), "their end")
