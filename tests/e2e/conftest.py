"""The command line as a fixture."""

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.command_line import Terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    """`terminal("train", config)` calls the command in this process, where ctrl-C arrives.

    A shell starts its background jobs with ctrl-C ignored, and a whole suite may be such a job.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Terminal(monkeypatch, capsys)
    signal.signal(signal.SIGINT, before)
