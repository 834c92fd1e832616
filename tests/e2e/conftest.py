"""The command line as a fixture."""

import signal

import pytest

from tests.e2e.command_line import Terminal


@pytest.fixture
def terminal(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    """`terminal("train", config)` calls the command in this process, where ctrl-C arrives.

    A shell starts its background jobs with ctrl-C ignored, and a whole suite may be such a job.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    return Terminal(monkeypatch, capsys)
