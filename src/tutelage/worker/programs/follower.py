"""Reports a training run while it goes: each line of its `events.jsonl`, and samples as OpenWeights' events.

Not here: delivery (`outbox.py`), what the lines mean (`tutelage.events`).
"""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.data.conversations import read_conversations
from tutelage.errors import FencedError, TutelageError
from tutelage.events import Tag
from tutelage.files import write_json, write_json_lines
from tutelage.worker.programs.outbox import Outbox, Undelivered
from tutelage.worker.programs.program import made

LOOK_EVERY = 1.0
"""Seconds between two looks at the files."""


class LineTail:
    """The complete lines of a file that grows, each once. A line that is no JSON object counts and is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0

    def new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Index in the file and content of the lines since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.split(b"\n")[:-1]:
            number, self._number = self._number, self._number + 1
            try:
                row: Any = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield number, row


class RunFollower:
    """A thread that reports what a run writes into its folder, until `finish`.

    tags: of the sampling callbacks, whose answers become events with a file each. scratch: where those files go.
    """

    def __init__(self, run: Path, outbox: Outbox, *, tags: Collection[str], scratch: Path) -> None:
        self._outbox = outbox
        self._events = LineTail(run / "events.jsonl")
        self._samples = LineTail(run / "samples.jsonl")
        self._groups = _Groups(tags)
        self._scratch = scratch
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)
        self._failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self, patience: float) -> None:
        """Report the rest and stop; for `patience` seconds where the server is away.

        Raises Undelivered, and FencedError where the run was given up.
        """
        self._ended.set()
        self._thread.join(patience)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise Undelivered(f"the server did not take the run's events within {patience:g} s; start the job again")
        self.collect(last=True)
        self._outbox.drain(patience)

    def collect(self, last: bool = False) -> None:
        """Put what is new in the files into the outbox. last: no line will follow."""
        # Samples of a step are written before the events that close it, so they are read after them.
        events = list(self._events.new())
        for number, row in self._samples.new():
            self._groups.add(number, row)
        for number, row in events:
            step, tag, values = row["step"], row["tag"], row["values"]
            for name in self._groups.samples_before(step):
                self._report_samples(name)
            self._outbox.add(f"event-{number}", {**values, "tag": tag, "step": step})
            if tag == Tag.LOGPROB.value:
                self._report_log_probs(number, step, values)
        for name in self._groups.samples_done(last):
            self._report_samples(name)

    def _follow(self) -> None:
        try:
            while not self._ended.wait(LOOK_EVERY):
                self.collect()
                self._outbox.deliver()
        except FencedError as error:
            self._failure = error
            print(f"error: {error}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)  # somebody else may have the job by now
        except Exception as error:  # the disk is full, or a bug: training goes on, and `finish` says so
            self._failure = error

    def _report_samples(self, name: "_Group") -> None:
        step, tag = name
        first, rows = self._groups.take(name)
        answers = [{"messages": row["prompt"], "completion": row["answer"], **row} for row in rows]
        path = self._written(f"samples_{tag}_{step}.jsonl", lambda path: write_json_lines(path, answers))
        data = {"type": "samples", "step": step, "tag": tag}
        self._outbox.add(f"samples-{first}", data, file=path, purpose="samples")

    def _report_log_probs(self, number: int, step: int, values: Mapping[str, Any]) -> None:
        """An event for each measured file: its mean loss, and the log-probability of every token as a file."""
        for metric, value in values.items():
            if not metric.startswith("logp/"):
                continue
            name = metric.removeprefix("logp/")
            data: dict[str, Any] = {"type": "logprobs", "step": step, "tag": name}
            data[name] = None if value is None else -value
            rows = self._groups.take_log_probs(step, name)
            path = None
            if rows:
                path = self._written(f"logp_{name}_{step}.json", partial(_write_tokens, rows))
            self._outbox.add(f"logprobs-{number}-{name}", data, file=path, purpose="logp")

    def _written(self, name: str, write: Callable[[Path], None]) -> Path | None:
        """The file, or None and a line in the log: an answer less to look at is not worth the run."""
        path = self._scratch / re.sub(r"[^A-Za-z0-9._-]", "_", name)[-120:]
        try:
            write(made(self._scratch) / path.name)
        except TutelageError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
            return None
        return path


_Group = tuple[int, str]
"""Step and name: of a sampling callback, or of a file of answers."""


class _Groups:
    """Rows of `samples.jsonl` that belong together, until they are reported. Rollouts are left out."""

    def __init__(self, tags: Collection[str]) -> None:
        self._tags = frozenset(tags)
        self._samples: dict[_Group, tuple[int, list[dict[str, Any]]]] = {}
        self._log_probs: dict[_Group, list[dict[str, Any]]] = {}

    def add(self, number: int, row: dict[str, Any]) -> None:
        step, tag = row.get("step"), row.get("tag")
        if not isinstance(step, int):
            return
        if "log_probs" in row:
            self._log_probs.setdefault((step, str(row["dataset"])), []).append(row)
        elif tag in self._tags and "answer" in row:
            self._samples.setdefault((step, str(tag)), (number, []))[1].append(row)

    def samples_before(self, step: int) -> list[_Group]:
        """Groups of earlier steps: they are complete."""
        return [name for name in self._samples if name[0] < step]

    def samples_done(self, last: bool) -> list[_Group]:
        """Groups behind which another one began, or, with `last`, all."""
        names = list(self._samples)
        newest = max((step for step, _ in names), default=0)
        return names if last else [name for name in names if name[0] < newest]

    def take(self, name: _Group) -> tuple[int, list[dict[str, Any]]]:
        """The index of the first row, and the rows."""
        return self._samples.pop(name)

    def take_log_probs(self, step: int, name: str) -> list[dict[str, Any]]:
        return self._log_probs.pop((step, name), [])


def _write_tokens(rows: list[dict[str, Any]], path: Path) -> None:
    """What scripts written for OpenWeights read: a list of rows with `messages` and `tokens`. Raises OutputError."""
    messages = _Messages()
    scored = [
        {
            "messages": messages.at(str(row["place"])),
            "tokens": [
                {"token": token, "logp": logp} for token, logp in zip(row["tokens"], row["log_probs"], strict=True)
            ],
        }
        for row in rows
    ]
    write_json(path, scored)


class _Messages:
    """The turns of the rows of a data file, found by their place, such as `rows.jsonl:17`."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, list[dict[str, str]]]] = {}

    def at(self, place: str) -> list[dict[str, str]]:
        path = place.rpartition(":")[0]
        if path not in self._files:
            self._files[path] = {
                row.place: [{"role": turn.role, "content": turn.content} for turn in row.messages]
                for row in read_conversations(Path(path))
            }
        return self._files[path][place]
