"""Shares a large file of rows for sft and dft out among processes, each of which takes part after part.

This process is one of them. The others are of Tutelage alone (part_process.py): the user's script is not run again.
Only parts and counts go between them; token rows lie in files without names, which this process makes for all.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from tutelage.data.jsonl import FilePart, cut_file
from tutelage.data.tally import Tally
from tutelage.data.token_parts import OnePassNeededError, PartPreparer, PreparedPart, Task, old_objects_left_alone
from tutelage.data.token_rows import RowFiles, RowSegment, TokenRows
from tutelage.errors import DataError

BYTES_PER_PROCESS = 8 * 1024 * 1024  # 3 s of work, about as long as a process takes to start
MAX_PROCESSES = 16  # each takes some 110 MB, more with a large vocabulary
PART_BYTES = 2 * 1024 * 1024  # less than a second of work: at the end one process waits for another no longer
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from tutelage.data.part_process import main; main()"
_STDERR_SHOWN = 2000  # characters
_REMEDY = "free memory, or give the run a single core (taskset -c 0), on which one process does it all"

Numbered = tuple[int, PreparedPart]


def prepare_in_parts(task: Task, path: Path) -> tuple[Tally, TokenRows] | None:
    """What `prepare_in_one_pass` makes of the file, by several processes.

    None where that is not worth it, cannot be done, or meets a row that ends the preparation: then the one pass does
    it, or says what there is to say. Raises DataError where a process dies, OutputError where the disk is full.
    """
    processes = num_processes(path)
    pickled = _pickled(task) if processes > 1 else None
    if pickled is None:
        return None
    try:
        return _prepare(task, pickled, path, processes)
    except OnePassNeededError:
        return None


def _prepare(task: Task, pickled: bytes, path: Path, processes: int) -> tuple[Tally, TokenRows] | None:
    """Raises OnePassNeededError, and what `prepare_in_parts` does."""
    # In this order: the others are ended before the pool waits for the threads that listen to them.
    with ExitStack() as stack:
        stack.enter_context(old_objects_left_alone())
        stack.enter_context(_tokenizer_in_one_thread())
        own_files = stack.enter_context(RowFiles())
        pool = stack.enter_context(ThreadPoolExecutor(processes - 1))
        workers = [stack.enter_context(_Worker(path, pickled)) for _ in range(processes - 1)]
        parts = _Parts(path)
        listening = [pool.submit(_prepare_all, parts, worker.prepare) for worker in workers]
        try:
            own = PartPreparer(task, own_files)
            done = [_prepare_all(parts, lambda part: own.prepare(path, part))]
            done += [one.result() for one in listening]
        finally:
            parts.stop()
        return _joined(task, [own_files, *(worker.files for worker in workers)], done)


def num_processes(path: Path) -> int:
    """How many processes the file is worth, this one among them."""
    of_a_distributed_run = os.environ.get("WORLD_SIZE", "1") != "1"  # each has its neighbours on the other cores
    if os.name != "posix" or not sys.executable or of_a_distributed_run or path.name.endswith(".gz"):
        return 1
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # the reader says why
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MAX_PROCESSES, size // BYTES_PER_PROCESS))


def _pickled(task: Task) -> bytes | None:
    """For another process; None where the tokenizer cannot go there. Classes that are not of transformers may be of the
    user's script or the model's folder, which another process does not know."""
    if not type(task.template.tokenizer).__module__.startswith("transformers."):
        return None
    try:
        return pickle.dumps(task)
    except Exception:  # of many kinds: a part in Python, a function put in place of a method
        return None


@contextmanager
def _tokenizer_in_one_thread() -> Iterator[None]:
    """The Rust tokenizer, which looks at the environment in every call, leaves the other cores to their processes."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class _Parts:
    """The numbered parts of a file, for whoever is free; may be asked from several threads."""

    def __init__(self, path: Path) -> None:
        self._cut = cut_file(path, PART_BYTES)
        self._number = 0
        self._lock = Lock()

    def take(self) -> tuple[int, FilePart] | None:
        with self._lock:
            part = next(self._cut, None)
            self._number += 1
            return None if part is None else (self._number, part)

    def stop(self) -> None:
        """None is given out any more."""
        with self._lock:
            self._cut.close()


def _prepare_all(parts: _Parts, prepare: Callable[[FilePart], PreparedPart]) -> list[Numbered]:
    """Part after part, as long as there are any and nobody has failed."""
    done: list[Numbered] = []
    try:
        while (taken := parts.take()) is not None:
            number, part = taken
            done.append((number, prepare(part)))
    except BaseException:
        parts.stop()
        raise
    return done


def _joined(
    task: Task, stores: Sequence[RowFiles], done: Sequence[Sequence[Numbered]]
) -> tuple[Tally, TokenRows] | None:
    """The rows in the order of the file; None where it has none. done: of each store, the parts in it."""
    found: list[tuple[int, Tally, RowSegment]] = []
    for files, parts in zip(stores, done, strict=True):
        segments = files.read([prepared.extent for _, prepared in parts])
        found += [
            (number, prepared.tally, segment) for (number, prepared), segment in zip(parts, segments, strict=True)
        ]
    tally = Tally(task.max_seq_length)
    in_order: list[RowSegment] = []
    for _, of_part, segment in sorted(found, key=lambda one: one[0]):
        in_order.append(replace(segment, first_row=tally.num_seen))
        tally.add(of_part)
    return (tally, TokenRows(in_order)) if tally.num_seen else None


class _Worker:
    """Another process and the files of its rows: a context, at whose end it has ended, whatever it was at.

    Raises OnePassNeededError where a process cannot be started.
    """

    def __init__(self, path: Path, task: bytes) -> None:
        self._path = path
        with ExitStack() as closing:
            self.files = closing.enter_context(RowFiles())
            self._errors = closing.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    pass_fds=self.files.descriptors,
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others
                    env=os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
                )
            except OSError as error:
                raise OnePassNeededError(str(error)) from error
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._requests, self._answers = self._process.stdin, self._process.stdout
            closing.callback(self._end)
            self._closing = closing.pop_all()
        self._unsent = [pickle.dumps((path, self.files.descriptors, task))]

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def prepare(self, part: FilePart) -> PreparedPart:
        """Raises DataError where the process has died, and what `PartPreparer.prepare` raises there."""
        try:
            self._requests.write(b"".join([*self._unsent, pickle.dumps(part)]))
            self._requests.flush()
            self._unsent.clear()
            answer = pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _death(self) -> DataError:
        code = self._process.wait()
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        if code == -signal.SIGKILL:
            how += ", as happens where memory runs out"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-_STDERR_SHOWN:]
        words = f"\nIt said:\n{said}" if said else ""
        return DataError(f"{self._path}: a process that tokenised rows of it {how}; {_REMEDY}{words}")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what was still to be sent
                pipe.close()
