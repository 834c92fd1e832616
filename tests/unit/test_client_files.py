"""Files up and down: one for the same bytes, whole or not at all, never all of it in memory. Against a real server."""

import io
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_job_server import JobServer, job_server
from tests.served import conversation, jsonl, preference
from tutelage.client.errors import ConnectionFailed, ServerError
from tutelage.errors import DataError, JobError, NotFoundError, OutputError
from tutelage.jobs.identity import FileHash

UPLOADS = "POST /v1/files"
LARGE = 3 * 1024 * 1024


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


def expected_id(server: JobServer, content: bytes, purpose: str) -> str:
    seen = FileHash(server.client.organization_id)
    seen.update(content)
    return seen.id(purpose)


def test_a_file_is_found_by_what_is_in_it(server: JobServer, tmp_path: Path) -> None:
    content = jsonl([conversation(1), conversation(2)])
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    files = server.client.files
    file = files.upload(path, "conversations")
    assert file.id == expected_id(server, content, "conversations")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "train.jsonl", "conversations")
    with path.open("rb") as opened:
        assert files.create(opened, "conversations") == file
    assert files.create(path, purpose="conversations") == file
    assert files.get_by_id(file.id) == file
    assert files.content(file.id) == content
    other = files.create(io.BytesIO(b"x"), purpose="result")
    assert other.filename == "file"
    assert [one.id for one in files.list()] == [other.id, file.id]
    assert [one.id for one in files.list(purpose="result")] == [other.id]
    files.delete(other.id)
    with pytest.raises(NotFoundError, match=other.id):
        files.get_by_id(other.id)


def test_results_are_read_as_openweights_scripts_do(server: JobServer) -> None:
    file = server.client.files.create(io.BytesIO(b"abc"), "result")
    assert file["id"] == file.id
    assert (file["object"], file.get("status"), file.get("magic", 1)) == ("file", "processed", 1)
    assert dict(file)["bytes"] == 3
    assert "filename" in file
    assert "keys" not in file
    with pytest.raises(KeyError):
        file["keys"]


def test_fine_tune_becomes_what_the_rows_are(server: JobServer) -> None:
    """The server calls both `fine-tune` for OpenAI's client; here they have the purpose that their id has."""
    file = server.client.files.create(io.BytesIO(jsonl([preference()])), "fine-tune")
    assert (file.purpose, file.id.partition(":")[0]) == ("preference", "preference")


def test_a_large_file_is_not_sent_twice(server: JobServer, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(LARGE))
    first = server.client.files.upload(path, "result")
    assert server.client.files.upload(path, "result") == first
    assert server.faults.seen[UPLOADS] == 1
    server.client.files.upload(path, "samples")  # the same bytes for something else
    assert server.faults.seen[UPLOADS] == 2


def test_a_large_file_whose_content_is_gone_is_sent_again(server: JobServer, tmp_path: Path) -> None:
    """The server has it on record; whoever has the bytes brings them back."""
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(LARGE))
    kept = server.client.files.upload(path, "result")
    (content,) = [one for one in (tmp_path / "home" / "files").rglob("*") if one.is_file()]
    content.unlink()
    with pytest.raises(JobError, match="upload the file again"):
        server.client.files.content(kept.id)
    assert server.client.files.upload(path, "result") == kept
    assert server.faults.seen[UPLOADS] == 2
    assert server.client.files.content(kept.id) == path.read_bytes()


def test_files_go_by_in_parts(server: JobServer, tmp_path: Path) -> None:
    """Up and down, client and server in this process: 60 MB go by and less than a third is ever in memory."""
    path, size = tmp_path / "weights.bin", 60 * 1024 * 1024
    with path.open("wb") as file:
        for _ in range(60):
            file.write(os.urandom(1024 * 1024))
    tracemalloc.start()
    try:
        kept = server.client.files.upload(path, "result")
        copy = server.client.files.download(kept.id, tmp_path / "copy.bin")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert copy.read_bytes() == path.read_bytes()
    assert peak < size / 3


def test_an_upload_survives_errors_and_lost_answers(server: JobServer) -> None:
    content = os.urandom(LARGE)
    server.faults.answers[UPLOADS] = [500]
    server.cable.lose_answers = 1
    file = server.client.files.create(io.BytesIO(content), "result")
    assert server.client.files.content(file.id) == content
    assert len(server.client.files.list()) == 1


def test_a_file_may_stand_anywhere_and_come_from_a_pipe(server: JobServer) -> None:
    standing = io.BytesIO(b"abcdef")
    standing.read(4)
    expected = expected_id(server, b"abcdef", "result")
    assert server.client.files.create(standing, "result").id == expected
    out, into = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(into, b"abcdef"), os.close(into)))
    writer.start()
    with open(out, "rb") as pipe:  # noqa: PTH123 - a descriptor is no path
        assert server.client.files.create(pipe, "result").id == expected
    writer.join()


def test_what_cannot_be_uploaded_is_said_before_anything_is_sent(server: JobServer, tmp_path: Path) -> None:
    files = server.client.files
    with pytest.raises(DataError, match=r"nowhere.jsonl: cannot be read \(No such file"):
        files.upload(tmp_path / "nowhere.jsonl", "result")
    (tmp_path / "text.jsonl").write_text("{}")
    with (
        (tmp_path / "text.jsonl").open(encoding="utf-8") as text,
        pytest.raises(DataError, match=r"^text.jsonl: the file is open as text"),
    ):
        files.create(text, "result")  # pyright: ignore[reportArgumentType] - the mistake
    assert server.faults.seen[UPLOADS] == 0


def test_bad_rows_come_back_with_their_lines(server: JobServer, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(jsonl([conversation(), {"rows": 1}]))
    with pytest.raises(JobError, match=r"train\.jsonl:2: the row has none of the known formats"):
        server.client.files.upload(path, "conversations")
    assert server.faults.seen[UPLOADS] == 1


@pytest.mark.parametrize("gzipped", [False, True])
def test_rows_are_checked_here_too(server: JobServer, tmp_path: Path, gzipped: bool) -> None:
    import gzip

    def packed(content: bytes) -> bytes:
        return gzip.compress(content) if gzipped else content

    files, path = server.client.files, tmp_path / ("t.jsonl.gz" if gzipped else "t.jsonl")
    path.write_bytes(packed(jsonl([conversation()])))
    assert files.validate(path, "conversations")
    assert not files.validate(path, "preference")
    assert files.validate(path, "anything")
    with path.open("rb") as opened:
        assert files.validate(opened, "conversations")
    path.write_bytes(packed(jsonl([conversation(), {"messages": [{"role": "judge", "content": "x"}]}])))
    with path.open("rb") as opened, pytest.raises(DataError, match=rf"{path.name}:2: ") as caught:
        files.check(opened, "conversations")
    assert str(tmp_path) not in str(caught.value)
    # What has no answer is a prompt for inference; for a preference both answers have to be there.
    assert files.validate(io.BytesIO(jsonl([{"messages": conversation()["messages"][:1]}])), "conversations")
    assert not files.validate(io.BytesIO(jsonl([{"prompt": "x", "chosen": "y"}])), "preference")
    assert server.faults.seen[UPLOADS] == 0


def test_a_download_begins_again_where_the_connection_tore(server: JobServer, tmp_path: Path) -> None:
    content = os.urandom(LARGE)
    file = server.client.files.create(io.BytesIO(content), "result")
    server.cable.tear_after = [1_000_000]
    path = server.client.files.download(file.id, tmp_path / "new" / "folder" / "copy.bin")
    assert path.read_bytes() == content
    assert server.faults.seen[f"GET /v1/files/{file.id}/content"] == 2


def test_a_download_is_whole_or_not_there(server: JobServer, tmp_path: Path) -> None:
    file = server.client.files.create(io.BytesIO(os.urandom(LARGE)), "result")
    target = tmp_path / "down" / "copy.bin"
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.cable.tear_after = [1_000_000]
    with pytest.raises(ConnectionFailed):
        server.client.files.download(file.id, target, patience=0)
    with pytest.raises(NotFoundError):
        server.client.files.download("result:file-000000000000", target)
    assert [path.name for path in target.parent.iterdir()] == ["copy.bin"]
    assert target.read_bytes() == b"old"
    with pytest.raises(OutputError, match=r"copy.bin/deeper: cannot be written"):
        server.client.files.download(file.id, target / "deeper")


def test_other_bytes_than_those_of_the_id_are_refused(server: JobServer, tmp_path: Path) -> None:
    """The store's disk went bad: as many bytes, one of them another."""
    file = server.client.files.create(io.BytesIO(b"a" * 1000), "result")
    stored = [path for path in (tmp_path / "home" / "files").rglob("*") if path.is_file()]
    assert len(stored) == 1
    stored[0].write_bytes(b"b" + b"a" * 999)
    with pytest.raises(ServerError, match=rf"^{file.id}: other bytes came than the id stands for"):
        server.client.files.download(file.id, tmp_path / "copy.bin")
    assert not (tmp_path / "copy.bin").exists()
