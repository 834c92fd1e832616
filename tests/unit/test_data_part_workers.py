"""A file that several processes prepare is what one pass makes of it: rows, counts and errors."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_tokenizer
from tutelage.data import batch_encoding, part_workers
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import ConversationFile
from tutelage.data.jsonl import FilePart, cut_file
from tutelage.data.part_workers import _joined, prepare_in_parts
from tutelage.data.prepare import prepare_token_rows
from tutelage.data.rendering import quick_renderer
from tutelage.data.token_parts import OnePassNeededError, PartPreparer, PreparedPart, Task, prepare_in_one_pass
from tutelage.data.token_rows import RowFiles
from tutelage.errors import DataError

TASK = Task(ChatTemplate(tiny_tokenizer()), 60, responses_only=True)
ROWS = [
    '{"prompt": "a", "completion": "b"}\n',
    '{"prompt": "Größe? 日本 \u2028 \x85", "completion": "🙂 é"}\r\n',
    "\n",
    " \r\n",
    '{"weight": 0, "prompt": "c", "completion": "d"}\n',
    '{"weight": 2.5, "prompt": "c", "completion": [{"type": "text", "text": "e ", "weight": 0.5}, '
    '{"type": "text", "text": "f"}]}\n',
    '{"prompt": "long", "completion": "' + "z" * 70 + '"}\n',
]
REFUSED = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "train": false}]}\n'
BAD = '{"prompt": "no answer"}\n'


def several(monkeypatch: pytest.MonkeyPatch, part_bytes: int = 100) -> None:
    """Two processes for a file of any size."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(part_workers, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(part_workers, "PART_BYTES", part_bytes)
    monkeypatch.setattr(part_workers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started from now on."""
    processes: list[subprocess.Popen[bytes]] = []
    popen: Any = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(part_workers.subprocess, "Popen", start)
    return processes


def others_first(monkeypatch: pytest.MonkeyPatch) -> list[FilePart]:
    """This process waits in its first part until the other one has answered all the rest. Returns what that one did."""
    answered: list[FilePart] = []
    is_done = threading.Event()
    prepare_all = part_workers._prepare_all

    class Waiting(PartPreparer):
        def prepare(self, path: Path, part: FilePart) -> PreparedPart:
            assert is_done.wait(60)
            return super().prepare(path, part)

    def noted(parts: Any, prepare: Callable[[FilePart], PreparedPart]) -> Any:
        if threading.current_thread() is threading.main_thread():
            return prepare_all(parts, prepare)

        def one(part: FilePart) -> PreparedPart:
            answered.append(part)
            return prepare(part)

        try:
            return prepare_all(parts, one)
        finally:
            is_done.set()

    monkeypatch.setattr(part_workers, "PartPreparer", Waiting)
    monkeypatch.setattr(part_workers, "_prepare_all", noted)
    return answered


@given(
    lines=st.lists(st.sampled_from([*ROWS * 3, REFUSED, BAD]), max_size=12).map("".join),
    start=st.sampled_from(["", "\ufeff"]),
    end=st.sampled_from(["", '{"prompt": "the end", "completion": "of a file"}']),
    part_bytes=st.integers(1, 400),
    owners=st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_parts_joined_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: str, start: str, end: str, part_bytes: int, owners: list[int]
) -> None:
    """Whoever of three has which part. Parts of one byte are single lines."""
    path = tmp_path_factory.getbasetemp() / "parts.jsonl"
    path.write_bytes((start + lines + end).encode())
    parts = list(cut_file(path, part_bytes))
    assert [part.start for part in parts[1:]] == [part.start + part.num_bytes for part in parts[:-1]]
    assert sum(part.num_bytes for part in parts) == path.stat().st_size
    with RowFiles() as first, RowFiles() as second, RowFiles() as third:
        stores = first, second, third
        preparers = [PartPreparer(TASK, files) for files in stores]
        done: list[list[tuple[int, PreparedPart]]] = [[], [], []]
        try:
            for number, part in enumerate(parts):
                owner = owners[number % len(owners)]
                done[owner].append((number, preparers[owner].prepare(path, part)))
            found = _joined(TASK, stores, done)
        except OnePassNeededError:
            found = None
    try:
        expected = prepare_in_one_pass(TASK, ConversationFile(path))
    except DataError:
        assert found is None
        return
    assert found is not None
    assert found[0] == expected[0]
    assert list(found[1]) == list(expected[1])
    assert found[1].lengths.tolist() == expected[1].lengths.tolist()
    assert found[1].num_tokens == expected[1].num_tokens


def test_a_line_that_is_cut_is_of_the_part_it_begins_in(tmp_path: Path) -> None:
    """Lines of 3, 1, 7 and 2 bytes, the last one open; parts of 4 bytes: 3 + 1, 7, 2."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"aa\n\nbbbbbb\ncc")
    assert list(cut_file(path, 4)) == [FilePart(0, 4, 1), FilePart(4, 7, 3), FilePart(11, 2, 4)]


def test_the_rows_that_are_rendered_for_a_check_are_those_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 rows the 64th, 128th and 192nd, whoever comes to them when, and the first that each process meets."""
    rendered: list[str] = []

    def noting(*arguments: Any) -> tuple[Any, Any]:
        render, environment = quick_renderer(*arguments)

        def noted(messages: Any, generation_prompt: bool = False) -> str:
            rendered.extend(message.content for message in messages[:1] if message.content.startswith("row"))
            return render(messages, generation_prompt)

        return noted, environment

    monkeypatch.setattr(batch_encoding, "quick_renderer", noting)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "row {line}", "completion": "b"}}\n' for line in range(1, 201)))
    with RowFiles() as files:
        PartPreparer(TASK, files).prepare_rows(ConversationFile(path))
        assert rendered == ["row 1", "row 64", "row 128", "row 192"]
        rendered.clear()
        preparer = PartPreparer(TASK, files)
        parts = list(cut_file(path, 500))
        for part in reversed(parts):
            preparer.prepare(path, part)
    assert rendered == [f"row {parts[-1].first_line}", "row 192", "row 128", "row 64"]


_SCRIPT = """
print("started")
import os, sys
from pathlib import Path
import pytest
from tests.unit.test_data_part_workers import TASK, others_first, several, started
from tutelage.data.conversations import ConversationFile
from tutelage.data.part_workers import prepare_in_parts
from tutelage.data.token_parts import prepare_in_one_pass

path = Path(sys.argv[1])
expected = prepare_in_one_pass(TASK, ConversationFile(path))
with pytest.MonkeyPatch.context() as patch:
    several(patch)
    answered, processes = others_first(patch), started(patch)
    before = len(os.listdir("/dev/fd"))
    tally, rows = prepare_in_parts(TASK, path)
same = tally == expected[0], list(rows) == list(expected[1])
print(len(answered), len(rows), *same)
del rows  # which hold their files
assert len(os.listdir("/dev/fd")) == before
assert len(processes) == 1 and processes[0].returncode is not None
assert "TOKENIZERS_PARALLELISM" not in os.environ
"""


def test_another_process_prepares_the_same_rows(tmp_path: Path) -> None:
    """A script without a guard for `__main__` runs once; no process, no file and no descriptor is left.

    70 lines, of which 50 are rows, 10 of weight 0 and 10 too long: 30 are kept.
    """
    path, temporary = tmp_path / "rows.jsonl", tmp_path / "temporary"
    temporary.mkdir()
    path.write_bytes("".join(ROWS * 10).encode())
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
    }
    environment.pop("TOKENIZERS_PARALLELISM", None)
    done = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    said, results = done.stdout.splitlines()
    assert said == "started"
    num_parts, num_rows, *same = results.split()
    assert int(num_parts) == sum(1 for _ in cut_file(path, 100)) - 1
    assert (num_rows, same) == ("30", ["True", "True"])
    assert list(temporary.iterdir()) == []


def test_a_bad_row_in_another_process_is_the_error_of_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9 + BAD + ROWS[0] * 9)
    with pytest.raises(DataError) as expected:
        prepare_token_rows(ConversationFile(path), TASK.template, max_seq_length=60)
    assert str(expected.value).startswith(f"{path}:10: the row has none of the known formats")
    several(monkeypatch)
    answered, processes = others_first(monkeypatch), started(monkeypatch)
    with pytest.raises(DataError) as found:
        prepare_token_rows(ConversationFile(path), TASK.template, max_seq_length=60)
    assert str(found.value) == str(expected.value)
    assert answered[-1].first_line == 10  # parts of three rows of 35 bytes
    assert [process.returncode for process in processes] == [-9]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            r"was ended by signal 9, as happens where memory runs out; free ",
        ),
        ("raise SystemExit('no disk')", r"ended with exit code 1; free .* does it all\nIt said:\nno disk$"),
    ],
)
def test_a_process_that_dies_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    several(monkeypatch)
    others_first(monkeypatch)
    monkeypatch.setattr(part_workers, "_PROGRAM", program)
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9)
    with pytest.raises(DataError, match=r"rows.jsonl: a process that tokenised rows of it " + message):
        prepare_in_parts(TASK, path)


def test_a_part_of_a_file_is_prepared_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three parts of three rows."""
    several(monkeypatch)
    processes = started(monkeypatch)
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9)
    part = list(cut_file(path, 100))[1]
    found = prepare_token_rows(ConversationFile(path, part), TASK.template, max_seq_length=60)
    assert [row.place for row in found.rows] == [f"{path}:{line}" for line in (4, 5, 6)]
    assert processes == []


def of_the_script() -> None:
    """Stands for a function that only the user's script has."""


def test_a_task_that_means_nothing_elsewhere_is_done_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer has a function of `__main__`, which goes by its name: it is pickled here and not found there."""
    monkeypatch.setattr(sys.modules["__main__"], "of_the_script", of_the_script, raising=False)
    monkeypatch.setattr(of_the_script, "__module__", "__main__")
    tokenizer: Any = tiny_tokenizer()
    tokenizer.noted = of_the_script
    template = ChatTemplate(tokenizer)
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9)
    expected = list(prepare_token_rows(ConversationFile(path), template, max_seq_length=60).rows)
    several(monkeypatch)
    processes = started(monkeypatch)
    with monkeypatch.context() as patch:
        answered = others_first(patch)
        assert prepare_in_parts(Task(template, 60, responses_only=True), path) is None
    assert [len(processes), len(answered)] == [1, 1]
    found = prepare_token_rows(ConversationFile(path), template, max_seq_length=60)
    assert list(found.rows) == expected
    assert len(expected) == 9


def test_where_no_process_can_be_started_one_pass_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, the first starts and the second does not: the first has ended, and the rows are there."""
    processes: list[subprocess.Popen[bytes]] = []
    popen: Any = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        processes.append(popen(*arguments, **options))
        return processes[-1]

    several(monkeypatch)
    monkeypatch.setattr(part_workers.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(part_workers.subprocess, "Popen", start)
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9)
    assert len(prepare_token_rows(ConversationFile(path), TASK.template, max_seq_length=60).rows) == 9
    assert [process.returncode for process in processes] == [-9]


def test_whoever_stops_the_run_stops_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process never answers."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    several(monkeypatch)
    processes = started(monkeypatch)
    monkeypatch.setattr(part_workers, "_PROGRAM", "import sys; sys.stdin.buffer.read()")
    monkeypatch.setattr(PartPreparer, "prepare", interrupted)
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0] * 9)
    with pytest.raises(KeyboardInterrupt):
        prepare_in_parts(TASK, path)
    assert [process.returncode for process in processes] == [-9]


def test_when_one_process_does_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file, one core, one of several processes of a run, a packed file, a tokenizer of the user's own."""
    several(monkeypatch)
    processes = started(monkeypatch)
    path, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    for one in (path, packed):
        one.write_text(ROWS[0] * 9)
    assert prepare_in_parts(TASK, packed) is None
    assert prepare_in_parts(TASK, tmp_path / "missing.jsonl") is None
    own = type("Own", (type(TASK.template.tokenizer),), {})
    tokenizer = own(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, chat_template=TASK.template.source, eos_token="<|im_end|>"
    )
    assert prepare_in_parts(Task(ChatTemplate(tokenizer), 60, responses_only=True), path) is None
    for name, value in (("BYTES_PER_PROCESS", 200), ("MAX_PROCESSES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(part_workers, name, value)
            assert prepare_in_parts(TASK, path) is None
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert prepare_in_parts(TASK, path) is None
    monkeypatch.setattr(part_workers.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert prepare_in_parts(TASK, path) is None
    assert processes == []
