"""The command line as a user meets it: in this process (fast) or in one of its own (real), and what it left."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.small_runs import small_config

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
COMMAND = [sys.executable, "-W", "error", "-m", "tutelage"]
"""Warnings are errors there too."""


@dataclass(frozen=True)
class Finished:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


class Terminal:
    """Calls `tutelage` in this process, with its own `main`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Finished:
        from tutelage.cli import main

        self._monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = self._capsys.readouterr()
        return Finished(int(exited.value.code or 0), captured.out, captured.err)


def in_a_process(*arguments: object) -> Finished:
    """Calls `tutelage` in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def running(*arguments: object, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """`tutelage` in a process of its own that is looked at meanwhile; it is gone afterwards, whatever happens."""
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
        # A shell starts its background jobs with ctrl-C ignored, and a whole suite may be such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(stream: IO[str] | None) -> str:
    """The next line that a process prints."""
    assert stream is not None
    return stream.readline()


def config_file(folder: Path, name: str = "run", **options: Any) -> Path:
    """A small run of the tiny model as a YAML file; its run folder is `folder / name`."""
    values = small_config(folder, name, **options).flat() | options
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def files_below(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content: what must be the same after a refusal."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
