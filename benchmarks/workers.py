"""Processes that measure, one at a time, each in a session of its own. Not here: what they measure (`cases`)."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600.0
"""Seconds after which a side has failed; the longest take two minutes."""
GRACE = 15.0
"""Seconds in which a process that is stopped may end its own servers, before it and they are killed."""
TAIL = 4
"""Lines of what a process said that a failure repeats."""


class SideFailedError(RuntimeError):
    """A worker ended without samples; the text says how, and the last lines of what it said."""


def worker(module: str, *arguments: str, timeout: float | None = None) -> dict[str, Any]:
    """What a module prints as its last JSON object. timeout: seconds; unset, `TIMEOUT`. Raises SideFailedError.

    However this ends, nothing that the module started in its session goes on.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder, "stdout"), Path(folder, "stderr")
        with printed.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, cwd=ROOT, env=environment, start_new_session=True
            )
            limit = TIMEOUT if timeout is None else timeout
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                _interrupt(process)
                code = None
            except BaseException:  # ctrl-C does not reach another session
                _interrupt(process)
                raise
            finally:
                _signal(process, signal.SIGKILL)
                process.wait()
        lines = [_lines(path) for path in (printed, errors)]
    if code is None:
        raise SideFailedError(_with_tail(f"no end after {limit:g} s", lines))
    if code:
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        raise SideFailedError(_with_tail(how, lines))
    for line in reversed(lines[0]):
        with suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    raise SideFailedError(_with_tail("printed no JSON object", lines))


def samples_of(module: str, *arguments: str, timeout: float | None = None) -> dict[str, list[float]]:
    """What a side measured: at least one number a measure. Raises SideFailedError."""
    found = worker(module, *arguments, timeout=timeout)
    for name, values in found.items():
        if not isinstance(values, list) or not values or not all(_is_number(value) for value in values):
            raise SideFailedError(f"'{name}' is {values!r}, which is no list of finite numbers")
    if not found:
        raise SideFailedError("measured nothing")
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As ctrl-C in its own terminal, which lets `finally` run."""
    _signal(process, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and all that it has started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _with_tail(how: str, lines: Sequence[Sequence[str]]) -> str:
    """Errors if there are any, else what was printed."""
    said = next((part for part in reversed(lines) if part), None)
    return f"{how}, having said nothing" if said is None else "\n  ".join([f"{how}; last it said:", *said[-TAIL:]])


class Progress:
    """Lines with the time since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self._began) / 60

    def say(self, what: str) -> None:
        """One line, at once."""
        print(f"{int(self.minutes):3d}:{int(60 * self.minutes) % 60:02d}  {what}", flush=True)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
