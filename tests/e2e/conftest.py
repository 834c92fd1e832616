"""The command line as a fixture."""

import pytest

from tests.e2e.command_line import Terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """`terminal("train", config)` calls the command in this process."""
    return Terminal(monkeypatch, capsys)
