"""The API in several processes, where one cannot be started. Not here: real ones (`test_team_processes.py`)."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.server import several_processes
from tutelage.server.settings import ServerSettings
from tutelage.server.several_processes import SeveralProcesses


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no room for it at the moment; what else runs goes on, and all of it ends in order."""

    class NoRoom:
        def start(self) -> None:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    spawning = SimpleNamespace(Process=lambda **_: NoRoom(), RawValue=lambda *_: SimpleNamespace(value=False))
    monkeypatch.setattr(several_processes, "_spawning", spawning)
    monkeypatch.setattr(several_processes, "BEGIN_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(several_processes, "LOOK_EVERY_SECONDS", 0.01)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 4:
            processes.stop()

    def prepare() -> Any:
        raise AssertionError("no process was started")

    settings = ServerSettings(tmp_path, database="postgresql://db/x", processes=2)
    processes = SeveralProcesses(settings, prepare, say)
    with socket.socket() as listening:
        processes.run(listening)
    why = "cannot be started (Resource temporarily unavailable); it is tried again"
    assert set(said) == {f"API process 1 {why}", f"API process 2 {why}"}
    assert not processes.started
