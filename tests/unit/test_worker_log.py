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
from tutelage.worker import run_log
from tutelage.worker.run_log import LogSender, RunLog
from tutelage.worker.signals import RunSignals


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

    def __init__(self, folder: Path, server: Server, *, limit: int = 10**6, secrets: tuple[str, ...] = ()) -> None:
        self.signals = RunSignals()
        self.log = RunLog(folder / "output.log", secrets, limit, self.signals)
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


def test_beyond_the_limit_it_is_dropped_and_one_line_says_how_much(printed: Any) -> None:
    """3 of 10 lines of 10 bytes fit into 35 bytes, and half of the fourth: 65 bytes are dropped."""
    server = Server()
    one = printed(server, limit=35)
    for number in range(10):
        one.print(f"line {number:04}\n")
    one.sent()
    assert bytes(server.content).decode().splitlines() == [
        "line 0000",
        "line 0001",
        "line 0002",
        "line ",
        "tutelage: the log has reached its limit of 35 bytes",
        "tutelage: 65 more bytes were printed and dropped: the log had reached its limit",
    ]


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
