"""Reading data files: every format, every way a row can be wrong, and no other exception whatever the bytes."""

import gzip
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config.objectives import Purpose
from tutelage.data.conversations import Conversation, Message, data_hash, read_conversations
from tutelage.errors import DataError

QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
PARTS = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
ROW = {"messages": [QUESTION, ANSWER]}
MESSAGES = (Message("user", "2+2?"), Message("assistant", "4"))


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    return str(caught.value)


def row_error(folder: Path, row: Any) -> str:
    """The reason given for `row` as line 2 of a file, without the place."""
    path = write(folder, ROW, row)
    place, _, reason = read_error(path).partition(":2: ")
    assert place == str(path)
    return reason


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"messages": [{"role": "user", "content": PARTS}, ANSWER]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]},
        {"conversations": [QUESTION, ANSWER]},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": " ", "output": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [QUESTION], "completion": "4"},
        {"prompt": "2+2?", "completion": [ANSWER]},
        {"prompt": PARTS, "completion": [ANSWER]},
        {**ROW, "prompt": None, "weight": None, "demonstration": None, "source": {"any": "key"}},
        {**ROW, "chosen": "a", "rejected": "b"},
    ],
)  # fmt: skip
def test_all_formats_of_one_conversation_read_alike(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path, row)
    (read,) = read_conversations(path)
    assert replace(read, fields={}) == Conversation(MESSAGES, None, 1.0, f"{path}:1")


def test_what_else_a_row_holds_is_kept_for_reward_functions(tmp_path: Path) -> None:
    path = write(tmp_path, {**ROW, "weight": 1, "demonstration": "2+2 is 4", "difficulty": 3, "tags": ["sum"]})
    (read,) = read_conversations(path)
    assert read.fields == {"difficulty": 3, "tags": ["sum"]}


def test_alpaca_joins_instruction_and_input(tmp_path: Path) -> None:
    path = write(tmp_path, {"instruction": "Add.", "input": "2 and 2", "output": "4"})
    assert read_conversations(path)[0].messages[0] == Message("user", "Add.\n\n2 and 2")


def test_options_of_a_row_and_a_message(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be short."}, QUESTION, {**ANSWER, "train": False}, QUESTION, ANSWER]
    path = write(tmp_path, {"messages": turns, "weight": 2, "demonstration": "Count."})
    (row,) = read_conversations(path)
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.train for message in row.messages] == [True, True, False, True, True]
    assert (row.weight, row.demonstration, row.answer, len(row.prompt)) == (2.0, "Count.", "4", 4)


def test_assistant_turns_of_a_prompt_are_context(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": [QUESTION, ANSWER, QUESTION], "completion": "5"})
    assert [turn.train for turn in read_conversations(path)[0].messages] == [True, False, True, True]


def test_places_count_blank_lines_and_only_newlines_end_a_line(tmp_path: Path) -> None:
    odd = {"messages": [QUESTION, {"role": "assistant", "content": "a\u2028b\x85c"}]}
    path = tmp_path / "rows.jsonl"
    lines = json.dumps(ROW), "", json.dumps(odd, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    first, second = read_conversations(path)
    assert (first.place, second.place) == (f"{path}:1", f"{path}:3")
    assert second.answer == "a\u2028b\x85c"


def test_gzip_and_hash(tmp_path: Path) -> None:
    plain = write(tmp_path, ROW, ROW)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row.messages for row in read_conversations(packed)] == [MESSAGES, MESSAGES]
    assert read_conversations(packed)[1].place == f"{packed}:2"
    assert data_hash(packed) == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert data_hash(plain) != data_hash(packed)


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(json.dumps(ROW).encode() * 50)
    for data in (b"not gzip", whole[:-9], whole[:12] + b"\xff" * 20):
        path.write_bytes(data)
        assert "not a readable gzip file" in read_error(path)
        assert "take .gz off the name" in read_error(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, ROW)
    assert read_error(tmp_path / "row.jsonl") == (f"{tmp_path}/row.jsonl: no such file; did you mean 'rows.jsonl'?")
    assert "no such file; check the path" in read_error(tmp_path / "no" / "x")
    assert read_error(tmp_path) == f"{tmp_path}: is a folder; name one .jsonl or .jsonl.gz file in it"
    assert "cannot be opened" in read_error(Path("a\0b"))
    path.write_text("\n \n")
    assert read_error(path) == f"{path}: the file has no rows; write one JSON object a line"
    with pytest.raises(DataError, match="is a folder"):
        data_hash(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [}', "not valid JSON at column 15 (Expecting value); write one JSON object a line"),
        (b'{"a": "\xff"}', "byte 8 of the line (0xff) is not UTF-8; save the file as UTF-8"),
        (b"3", "a JSON number, not an object; write one JSON object a line"),
        (b"null", "a JSON null, not an object; write one JSON object a line"),
        (b"[{}]", "a JSON list, not an object; write one object a line (`jq -c '.[]' list.json > rows.jsonl`"
         " turns a JSON list into that)"),
        (b"[" * 200_000, "JSON nested too deeply to read; flatten the row"),
        (b'{"weight": ' + b"9" * 5000 + b"}", "shorten the number"),
    ],
)  # fmt: skip
def test_lines_that_are_no_object(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n")
    assert read_error(path).startswith(f"{path}:1: ")
    assert read_error(path).endswith(reason)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([QUESTION], "the last message is from 'user'; end the row with the assistant turn to learn from"),
        ([ANSWER], "no message is from 'user'; add the turn that the assistant answers"),
        ([], "'messages' is an empty list; give at least a user and an assistant turn"),
        ("hello", "'messages' is 'hello'; give a list of messages"),
        ([QUESTION, "hello"], "messages[1] is 'hello'; give an object with 'role' and 'content'"),
        ([{"role": "usr", "content": ""}], "messages[0] has the unknown role 'usr'; did you mean 'user'?"),
        ([{"role": "zz", "content": ""}],
         "messages[0] has the unknown role 'zz'; use one of system, user, assistant, tool"),
        ([{"role": 3, "content": ""}], "messages[0] has the role 3; use one of system, user, assistant, tool"),
        ([{"from": "humn", "value": ""}], "messages[0] has the unknown from 'humn'; did you mean 'human'?"),
        ([{"role": "user"}], "messages[0] has no 'content'; give 'role' and 'content'"),
        ([{"content": "a"}], "messages[0] has no 'role'; give 'role' and 'content'"),
        ([QUESTION, {"role": "assistant", "content": " \n"}],
         "the assistant turn (message 2 of 2) is empty; write the answer or remove the row"),
        ([QUESTION, {"role": "assistant", "content": None, "tool_calls": [{}]}],
         "messages[1] has 'tool_calls', which are not read; write the call as text into 'content'"),
        ([QUESTION, {"role": "assistant", "content": 4}],
         'messages[1].content is 4; give a string or a list of {"type": "text", "text": …} parts'),
        ([{"role": "user", "content": [{"type": "image"}]}],
         "messages[0].content is [{'type': 'image'}]; "
         'give a string or a list of {"type": "text", "text": …} parts'),
        ([QUESTION, {**ANSWER, "train": 1}], "messages[1] has train 1; use true or false"),
        ([QUESTION, {**ANSWER, "content": "a\ud83d"}],
         "messages[1].content holds half a surrogate pair ('\\ud83d' at character 2); write the whole character"),
    ],
)  # fmt: skip
def test_bad_messages(tmp_path: Path, turns: Any, reason: str) -> None:
    assert row_error(tmp_path, {"messages": turns}) == reason


def test_an_empty_untrained_turn_is_allowed_before_the_end_only(tmp_path: Path) -> None:
    empty = {"role": "assistant", "content": "", "train": False}
    assert len(read_conversations(write(tmp_path, {"messages": [QUESTION, empty, QUESTION, ANSWER]}))) == 1
    assert "message 2 of 2) is empty" in row_error(tmp_path, {"messages": [QUESTION, empty]})


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "2", True, [1], 10**400])
def test_bad_weights(tmp_path: Path, weight: Any) -> None:
    reason = row_error(tmp_path, {**ROW, "weight": weight})
    assert reason.startswith("'weight' is ")
    assert reason.endswith("; give a finite number that is 0 or more")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "demonstration": 3}, "'demonstration' is 3; give a string or leave it out"),
        ({**ROW, "demonstration": " "},
         "'demonstration' is empty; leave it out to use the last answer, or write one"),
        ({"instruction": "a"}, "'instruction' comes without 'output'; add the answer as 'output'"),
        ({"completion": "a"}, "'completion' comes without 'prompt'; add the question as 'prompt'"),
        ({"text": "a"}, "the row has none of the known formats (its keys: 'text'); give 'messages', "
         "'conversations', 'instruction' with 'output', or 'prompt' with 'completion'"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path: Path, row: Any, reason: str) -> None:
    assert row_error(tmp_path, row) == reason


def test_a_preference_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write(tmp_path, row, row, row)
    assert read_error(path) == (
        f"{path}:1: a row with 'chosen' and 'rejected' has the purpose 'preference', but this loss needs the "
        "purpose 'conversations'; set loss to dpo or orpo, or give rows with 'messages'"
    )
    assert [purpose.value for purpose in Purpose] == ["conversations", "preference"]
    assert "'preference'" in row_error(tmp_path, row)


def test_all_bad_rows_are_reported_together(tmp_path: Path) -> None:
    """27 bad rows (every line but each tenth, of 30): a headline, the first 20, a count of the other 7."""
    rows = [ROW if number % 10 == 0 else {"messages": [QUESTION]} for number in range(1, 31)]
    path = write(tmp_path, *rows)
    lines = read_error(path).split("\n  ")
    assert lines[0] == f"{path}: 27 of 30 rows cannot be used:"
    assert lines[1].startswith(f"{path}:1: the last message is from 'user'")
    assert lines[20].startswith(f"{path}:22: ")
    assert lines[21:] == ["and 7 more rows"]


def test_other_rows_of_a_file_with_a_bad_line_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n" + json.dumps(ROW).encode() + b"\n\xff\n" + b"[]")
    message = read_error(path)
    assert message.startswith(f"{path}: 3 of 4 rows cannot be used:")
    assert [f"{path}:{line}: " in message for line in (1, 2, 3, 4)] == [True, False, True, True]


KEYS = st.sampled_from(
    ["messages", "conversations", "role", "content", "from", "value", "train", "weight", "demonstration",
     "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "type", "text"]
)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool", "text", ""])
    | st.text(alphabet=st.characters(), max_size=5)
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "usr"]) | JSON, "content": st.text(max_size=5) | JSON},
    optional={"train": st.booleans() | JSON},
)
ALMOST_ROW = st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=4) | JSON}, optional={"weight": JSON, "demonstration": JSON}
)


def read_bytes(data: bytes) -> list[Conversation] | None:
    """What the file of these bytes reads as; None for a DataError, which must name the file and be printable."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        message = None
        try:
            return read_conversations(path)
        except DataError as error:
            message = str(error)
        assert str(path) in message
        assert message.encode("utf-8").decode("utf-8") == message
        return None


def assert_valid(conversation: Conversation) -> None:
    assert conversation.messages[-1].role == "assistant"
    assert conversation.answer.strip()
    assert any(message.role == "user" for message in conversation.messages)
    assert math.isfinite(conversation.weight)
    assert conversation.weight >= 0
    assert conversation.demonstration is None or conversation.demonstration.strip()
    for message in conversation.messages:
        assert message.role in {"system", "user", "assistant", "tool"}
        assert isinstance(message.train, bool)
        assert message.content.encode("utf-8") is not None


@given(st.lists(JSON | st.dictionaries(KEYS, JSON) | ALMOST_ROW, max_size=3))
def test_any_json_gives_conversations_or_a_data_error(rows: list[Any]) -> None:
    conversations = read_bytes("\n".join(json.dumps(row) for row in rows).encode())
    if conversations is not None:
        assert len(conversations) == len(rows)
        for conversation in conversations:
            assert_valid(conversation)


@given(st.binary(max_size=60))
def test_any_bytes_give_conversations_or_a_data_error(data: bytes) -> None:
    assert read_bytes(data) is None  # 60 bytes are too few for a valid row


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
FILLED = TEXT.filter(lambda text: bool(text.strip()))


@given(
    context=st.lists(st.builds(Message, st.sampled_from(["system", "user", "tool"]), TEXT, st.booleans())),
    earlier=st.lists(st.builds(Message, st.just("assistant"), FILLED, st.booleans()), max_size=2),
    question=TEXT,
    answer=FILLED,
    weight=st.floats(0, 1e6),
    demonstration=st.none() | FILLED,
    style=st.sampled_from(["messages", "conversations"]),
)
def test_round_trip(
    context: list[Message],
    earlier: list[Message],
    question: str,
    answer: str,
    weight: float,
    demonstration: str | None,
    style: str,
) -> None:
    messages = (*context, *earlier, Message("user", question), Message("assistant", answer))
    role, content = ("from", "value") if style == "conversations" else ("role", "content")
    row = {
        style: [{role: turn.role, content: turn.content, "train": turn.train} for turn in messages],
        "weight": weight,
        "demonstration": demonstration,
    }
    conversations = read_bytes(json.dumps(row, ensure_ascii=False).encode())
    assert conversations is not None
    (read,) = conversations
    assert (read.messages, read.weight, read.demonstration) == (messages, weight, demonstration)
