"""Whether the rows of an upload are what its purpose says: in what words, and in how much memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import conversation, jsonl
from tutelage.errors import DataError
from tutelage.jobs.stored_files import Upload
from tutelage.server.file_rows import checked_purpose

MEGABYTE = 1024**2


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Upload]:
    upload = Upload(tmp_path, "org", 100 * MEGABYTE, ".jsonl")
    yield upload
    upload.close()


def peak_of(upload: Upload, content: bytes) -> tuple[float, str]:
    """Mebibytes that checking takes, and what it says."""
    upload.write(content)
    tracemalloc.start()
    try:
        said = checked_purpose(upload, "fine-tune", "mine.jsonl")
    except DataError as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak / MEGABYTE, said


def test_bad_rows_beyond_those_that_are_told_take_no_memory(upload: Upload) -> None:
    """50,000 bad rows: 20 are told, the others counted. A sentence for each would be 5 MiB and more."""
    peak, said = peak_of(upload, b"x\n" * 50_000)
    assert said.startswith("mine.jsonl: 50000 of 50000 rows cannot be used:\n  mine.jsonl:1: not valid JSON")
    assert said.endswith("and 49980 more rows")
    assert peak < 2


def test_good_rows_are_looked_at_and_let_go(upload: Upload) -> None:
    """20,000 rows of 100 bytes: 2 MiB of text, and several times that as messages."""
    peak, said = peak_of(upload, jsonl([conversation(number) for number in range(20_000)]))
    assert said == "conversations"
    assert peak < 1


def test_a_name_of_this_machine_is_in_no_sentence(upload: Upload) -> None:
    """The file is called here otherwise than the user calls it, in another folder."""
    _, said = peak_of(upload, b"[1]\n" + b'{"messages": 1}\n')
    assert str(upload.path.parent) not in said
    assert upload.path.name not in said
    assert "mine.jsonl:1: a JSON list, not an object" in said
    assert "mine.jsonl:2: " in said
