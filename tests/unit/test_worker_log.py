"""What a process prints, on its way to the server."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.served import until
from tutelage.client.errors import ConnectionFailed
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import FencedError, TutelageError
from tutelage.jobs.run_logs import MAX_LOG_BYTES
from tutelage.worker import run_log
from tutelage.worker.run_log import LogSender, RunLog
from tutelage.worker.settings import LogLimits, WorkerSettings
from tutelage.worker.signals import RunSignals

AMPLE = LogLimits(10**6)


class Server:
    """Takes logs as the real one does, and fails as it is told: each fate is that of one call."""

    def __init__(self, *fates: str) -> None:
        self.content = bytearray()
        self.fates = list(fates)
        self.calls = 0

    def append_log(self, run_id: str, start: int, content: bytes, *, patience: float) -> int:
        self.calls += 1
        fate = self.fates.pop(0) if self.fates else "taken"
        if fate == "unreachable":
            raise ConnectionFailed("no server answers")
        if fate == "fenced":
            raise FencedError("the run is failed")
        if fate == "forgotten":
            del self.content[len(self.content) // 2 :]
        if start <= len(self.content):
            self.content += content[len(self.content) - start :]
        if fate == "answer lost":
            raise ConnectionFailed("the server stopped answering")
        return len(self.content)


class Printed:
    """A log with what a process prints into it, and its sender."""

    def __init__(
        self, folder: Path, server: Server, *, limits: LogLimits = AMPLE, secrets: tuple[str, ...] = ()
    ) -> None:
        self.signals = RunSignals()
        self.log = RunLog(folder / "output.log", secrets, limits, self.signals)
        self.missed: list[TutelageError] = []
        api = cast("WorkerApi", server)
        self.sender = LogSender(api, "run-1", self.log, self.signals, reached=lambda: None, missed=self.missed.append)
        self.pipe = self.log.open_pipe()

    def print(self, text: str) -> None:
        os.write(self.pipe, text.encode())

    def close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def sent(self) -> None:
        """The process has ended, and all was sent."""
        self.close_pipe()
        self.log.close()
        until(lambda: self.sender.ended, "the end of the log")

    def close(self) -> None:
        self.close_pipe()
        self.log.finish_reading()
        self.sender.stop()
        self.log.remove()


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[Any]:
    begun: list[Printed] = []

    def begin(server: Server, **options: Any) -> Printed:
        begun.append(Printed(tmp_path, server, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def test_a_line_is_sent_while_the_process_goes_on(printed: Any) -> None:
    server = Server()
    one = printed(server)
    one.print("step 1\n")
    until(lambda: server.content == b"step 1\n", "the first line")
    one.print("step 2")
    until(lambda: server.content == b"step 1\nstep 2", "half a line")
    one.print(" ends\n")
    until(lambda: server.content.endswith(b"ends\n"), "the rest of it")
    assert server.content == b"step 1\nstep 2 ends\n"


def test_many_lines_go_in_few_calls(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 lines within one interval of 0.2 s, which is made longer for a slow machine: one call at once, one after
    it, and the one of the end."""
    monkeypatch.setattr(run_log, "SEND_EVERY_SECONDS", 1.0)
    server = Server()
    one = printed(server)
    for number in range(10_000):
        one.print(f"{number}\n")
    one.sent()
    assert bytes(server.content).decode().split() == [str(number) for number in range(10_000)]
    assert server.calls <= 4


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_doubled_whatever_happens(printed: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Fates at random; `forgotten` is a server that was brought back from an older backup."""
    monkeypatch.setattr(run_log, "SEND_EVERY_SECONDS", 0.001)
    monkeypatch.setattr(run_log, "PART_BYTES", 100)
    chance = random.Random(seed)
    server = Server(*chance.choices(["taken", "unreachable", "answer lost", "forgotten"], k=40))
    one = printed(server)
    lines = [f"line {number}\n" for number in range(500)]
    for line in lines:
        one.print(line)
    one.sent()
    assert bytes(server.content).decode() == "".join(lines)


def test_a_server_that_is_away_gets_it_later(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "SEND_EVERY_SECONDS", 0.01)
    server = Server(*["unreachable"] * 5)
    one = printed(server)
    one.print("first\n")
    until(lambda: one.missed, "a call without an answer")
    one.print("second\n")
    one.sent()
    assert (bytes(server.content), len(one.missed)) == (b"first\nsecond\n", 5)


def test_a_run_that_was_given_up_sends_no_more(printed: Any) -> None:
    server = Server("taken", "fenced")
    one = printed(server)
    one.print("mine\n")
    until(lambda: server.content, "the first line")
    one.print("late\n")
    until(lambda: one.sender.ended, "the sender's end")
    assert (bytes(server.content), one.signals.fenced) == (b"mine\n", True)


def test_of_a_long_log_beginning_and_end_are_kept(printed: Any) -> None:
    """10 lines of 10 bytes: the first 35 bytes, the last 25, and how many are between them. What the worker says itself
    is a part of the log."""
    server = Server()
    one = printed(server, limits=LogLimits(35, 25))
    for number in range(10):
        one.print(f"line {number:04}\n")
    one.sent()
    assert bytes(server.content).decode().splitlines() == [
        "line 0000",
        "line 0001",
        "line 0002",
        "line ",
        "tutelage: … 40 bytes of the log are left out …",
        "0007",
        "line 0008",
        "line 0009",
    ]


@pytest.mark.parametrize("length", range(30, 75))
def test_a_log_at_its_limits(printed: Any, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Of up to 30 + 20 bytes everything is there; beyond that the first 30 and the last 20, however they came."""
    monkeypatch.setattr(run_log, "SEND_EVERY_SECONDS", 0.001)
    chance = random.Random(length)
    server = Server()
    one = printed(server, limits=LogLimits(30, 20))
    text = "".join(chance.choices("abcdefgh", k=length))
    begin = 0
    while begin < length:
        end = begin + chance.randint(1, 45)
        with one.log._lock:
            one.log._take(text[begin:end].encode())
        begin = end
    one.sent()
    left_out = f"\ntutelage: … {length - 50} bytes of the log are left out …\n" if length > 50 else ""
    expected = text if length <= 50 else text[:30] + left_out + text[-20:]
    assert bytes(server.content).decode() == expected


def test_the_last_words_of_the_worker_are_in_a_long_log(printed: Any) -> None:
    server = Server()
    one = printed(server, limits=LogLimits(30, 40))
    one.print("x" * 100)
    one.close_pipe()
    one.log.finish_reading()
    one.log.say("uploads/a is a link")
    one.sent()
    assert bytes(server.content).decode().endswith("xxx\ntutelage: uploads/a is a link\n")


def test_all_that_a_worker_sends_is_less_than_a_server_keeps() -> None:
    """With 1 MiB to spare for the line between the two: the server drops nothing, and so the beginning is kept."""
    limits = WorkerSettings().log_limits
    assert limits.beginning + limits.end + 1024 * 1024 < MAX_LOG_BYTES


def test_nothing_is_written_once_the_log_is_removed(printed: Any, tmp_path: Path) -> None:
    """An upload that nobody waits for may still have something to say; the number of the log's descriptor is that of
    another file by then."""
    one = printed(Server())
    one.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        one.log.say("uploads/a is a link")
        assert one.log.part(0) == b""
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)


def test_secrets_across_two_reads(printed: Any) -> None:
    """What is held back at the end comes out too: it was none."""
    server = Server()
    one = printed(server, secrets=("hf_abcdefgh",))
    one.print("token hf_abc")
    until(lambda: server.content == b"token ", "what is no secret")
    one.print("defgh and hf_ab")
    one.sent()
    assert server.content == b"token *** and hf_ab"


def test_a_pipe_in_the_hands_of_a_stranger(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is gone and its pipe stays open: the log ends all the same."""
    monkeypatch.setattr(run_log, "SILENT_SECONDS", 0.3)
    server = Server()
    one = printed(server)
    one.print("last words\n")
    one.log.close()
    until(lambda: one.sender.ended, "the end of the log")
    assert server.content == b"last words\n"


def test_a_full_disk_breaks_the_run_off(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is still read, so that the process does not hang in a write."""
    one = printed(Server())
    full = os.open("/dev/full", os.O_RDWR)
    mine, one.log._descriptor = one.log._descriptor, full
    threading.Thread(target=one.print, args=("x" * 1_000_000,), daemon=True).start()
    until(lambda: one.signals.broken, "the sentence")
    assert "the log cannot be written on the worker (No space left on device)" in one.signals.broken
    one.log._descriptor = mine
    os.close(full)
