"""Files by the unmodified `openai` package: content, purposes, bad rows, pages."""

import gzip
import re
from typing import Any, cast

import openai
import pytest
from openai import OpenAI

from tests.served import Api, Served, conversation, jsonl, preference


@pytest.fixture
def client(closed_server: Served, team: Api) -> OpenAI:
    """Of an organisation of this test alone."""
    assert team.token is not None
    return closed_server.openai(team.token)


def upload(client: OpenAI, content: bytes, purpose: str = "fine-tune", name: str = "rows.jsonl") -> Any:
    return client.files.create(file=(name, content), purpose=cast("Any", purpose))


def test_a_file_goes_in_and_comes_out(client: OpenAI) -> None:
    rows = jsonl([conversation(1), conversation(2)])
    file = client.files.create(file=("train.jsonl", rows), purpose="fine-tune")
    assert re.fullmatch(r"conversations:file-[0-9a-f]{12}", file.id)
    assert (file.object, file.bytes, file.filename) == ("file", len(rows), "train.jsonl")
    assert (file.purpose, file.status) == ("fine-tune", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == rows
    assert [found.id for found in client.files.list()] == [file.id]
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(file.id)
    assert list(client.files.list()) == []


def test_the_same_bytes_are_one_file_of_each_purpose(client: OpenAI) -> None:
    """Section 3: {purpose}:file-{hash}; the same bytes uploaded twice are one file."""
    first = upload(client, b"anything", "batch", "a")
    again = upload(client, b"anything", "batch", "b")
    other = upload(client, b"anything", "user_data", "c")
    assert first.id == again.id
    assert first.filename == again.filename == "a"
    assert other.id == first.id.replace("batch", "user_data")
    client.files.delete(first.id)
    assert client.files.content(other.id).read() == b"anything"


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([conversation()], "conversations"),
        ([{"prompt": "2+2?", "completion": "4"}], "conversations"),
        ([preference()], "preference"),
        (
            [
                {
                    "prompt": [{"role": "user", "content": "Hi"}],
                    "chosen": [{"role": "assistant", "content": "Hello."}],
                    "rejected": [{"role": "assistant", "content": "Go away."}],
                }
            ],
            "preference",
        ),
    ],
)
def test_fine_tune_is_sorted_by_content(client: OpenAI, rows: list[Any], kind: str) -> None:
    """Section 6: the purpose fine-tune is sorted into conversations or preference by its content; gzip too."""
    plain = upload(client, jsonl(rows))
    packed = gzip.compress(jsonl(rows), mtime=0)
    zipped = upload(client, packed, name="rows.jsonl.gz")
    assert plain.id.startswith(f"{kind}:file-")
    assert zipped.id.startswith(f"{kind}:file-")
    assert zipped.id != plain.id
    assert client.files.content(zipped.id).read() == packed
    assert {file.id for file in client.files.list(purpose="fine-tune")} == {plain.id, zipped.id}
    assert list(client.files.list(purpose="batch")) == []


def test_bad_rows_are_listed_with_their_lines_and_the_name_the_user_gave(client: OpenAI) -> None:
    """Section 7: JSONL is validated with line numbers. Lines 2, 3 and 5 are bad; the blank one counts as a line."""
    user_alone = {"messages": [{"role": "user", "content": "Hi"}]}
    bad = (
        jsonl([conversation()]) + b'{"messages": \n' + jsonl([user_alone]) + b"\n" + b"[1]\n" + jsonl([conversation(1)])
    )
    with pytest.raises(openai.BadRequestError) as refused:
        upload(client, bad, name="my rows.jsonl")
    message = cast("dict[str, Any]", refused.value.body)["message"]
    places = re.findall(r"^ *(.*?):(\d+): ", message, re.MULTILINE)
    assert places == [("my rows.jsonl", "2"), ("my rows.jsonl", "3"), ("my rows.jsonl", "5")]
    assert "3 of 5 rows cannot be used" in message
    assert "upload-" not in message
    for content, purpose, expected in [
        (jsonl([preference()]), "conversations", "purpose 'preference'"),
        (jsonl([conversation()]), "preference", "purpose 'conversations'"),
        (jsonl([preference(), conversation()]), "fine-tune", "rows.jsonl:2: "),
        (jsonl([conversation(), preference()]), "fine-tune", "rows.jsonl:2: "),
        (b"", "fine-tune", "no rows"),
        (b"\n\n", "fine-tune", "no rows"),
        (b"\xff\xfe\n", "fine-tune", "rows.jsonl:1: "),
        (gzip.compress(jsonl([conversation()])), "fine-tune", "rows.jsonl"),
    ]:
        with pytest.raises(openai.BadRequestError, match=re.escape(expected)) as refused:
            upload(client, content, purpose)
        assert "/" not in str(refused.value).replace("0x", "").replace("jq -c", "")[:200] or expected in str(
            refused.value
        )
    with pytest.raises(openai.BadRequestError, match=r"rows\.jsonl\.gz: not a readable gzip"):
        upload(client, jsonl([conversation()]), name="rows.jsonl.gz")
    with pytest.raises(openai.BadRequestError, match=r"rows\.jsonl\.gz: not a readable gzip"):
        upload(client, gzip.compress(jsonl([conversation()]))[:-9], name="rows.jsonl.gz")
    assert list(client.files.list()) == []


def test_purposes_that_are_not_for_training_take_any_bytes(client: OpenAI) -> None:
    content = bytes(range(256)) * 100
    file = upload(client, content, "result", "weights.bin")
    assert client.files.content(file.id).read() == content
    for purpose in ("", "Batch", "a b", "../x", "x" * 65, "1x", "batch\n", "é", "a:b"):
        with pytest.raises(openai.BadRequestError, match="purpose"):
            upload(client, content, purpose)


def test_a_form_needs_a_file_and_a_purpose(team: Api) -> None:
    for options, word in [
        ({"data": {"purpose": "batch"}}, "multipart"),
        ({"files": {"file": ("x", b"1")}}, "purpose"),
        ({"files": {"document": ("x", b"1")}, "data": {"purpose": "batch"}}, "file"),
        ({"files": [("file", ("x", b"1")), ("file", ("y", b"2"))], "data": {"purpose": "batch"}}, "one at a time"),
        ({"files": {"purpose": (None, b"batch")}}, "file"),
        ({"json": {"file": "x"}}, "multipart"),
    ]:
        assert word in team.refused(400, "POST", "/v1/files", **options)["message"]


def test_lists_of_files_have_pages_in_both_orders(client: OpenAI) -> None:
    ids = [upload(client, f"{number}".encode(), "batch", f"{number}.txt").id for number in range(7)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == ids
    page = client.files.list(limit=3)
    assert ([file.id for file in page.data], page.has_more) == (ids[:3:-1], True)
    assert [file.id for file in client.files.list(after=ids[1])] == ids[:1]
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="batch:file-000000000000")
    for limit in (0, -1, 10_001):
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.files.list(limit=limit)
