"""Tokenised rows on disk, and that memory does not grow with them."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_tokenizer
from tests.unit.test_data_batches import talk
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, ConversationFile, Message, parse_conversation
from tutelage.data.packing import pack_rows
from tutelage.data.prepare import prepare_token_rows
from tutelage.data.rows import TokenRow
from tutelage.data.token_rows import RowFiles, TokenRows, TokenRowWriter
from tutelage.errors import DataError, OutputError

TOKENIZER = tiny_tokenizer()


def test_rows_on_disk_are_the_rows() -> None:
    """As a list would be: length, index from both ends, slices, iteration, and what another process gets."""
    chat = ChatTemplate(TOKENIZER)
    weighted = Message("assistant", "12", part_weights=((1, 0.5), (2, 2.0)))
    conversations = [
        talk("a", "b", place="rows.jsonl:1"),
        talk("a", "b", weight=0.0, place="rows.jsonl:2"),
        Conversation((Message("user", "q"), weighted), None, 2.5, "rows.jsonl:4"),
        talk("cc", "dd", "e", "ffff", place="others.jsonl:0017"),
        talk("x", "y", place="no line"),
    ]
    expected = [
        TokenRow(row.input_ids, row.labels, row.weight, index, row.place, row.part_weights)
        for index, row in enumerate(map(chat.encode, conversations))
        if conversations[index].weight
    ]
    prepared = prepare_token_rows(conversations, chat, max_seq_length=100)
    rows = prepared.rows
    assert isinstance(rows, TokenRows)
    for these in (rows, pickle.loads(pickle.dumps(rows))):
        assert list(these) == expected
        assert [these[-1], these[1:3], these[::-2], these[9:]] == [expected[-1], expected[1:3], expected[::-2], []]
        assert list(these.lengths) == [len(row.input_ids) for row in expected]
        assert these.num_tokens == sum(len(row.input_ids) for row in expected)
    with pytest.raises(IndexError):
        rows[4]
    assert type(rows[0].input_ids[0]) is type(rows[0].row) is int
    with RowFiles() as files:
        none = TokenRows(files.read([TokenRowWriter(files).end_extent()]))
        assert (len(none), none.num_tokens, none.lengths.tolist()) == (0, 0, [])


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tutelage.data.token_rows.tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match=r"rows cannot be written \(No space left on device\); free .* set TMPDIR"):
        RowFiles()


def test_more_rows_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    """1,500 rows are twelve batches of 128; every seventh row has weight 0, every row has a length of its own kind."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(1500):
            weight = '"weight": 0, ' if number % 7 == 0 else ""
            turns = f'{{"role": "user", "content": "q{number}"}}, {{"role": "assistant", "content": "{number}"}}'
            file.write(f'{{{weight}"messages": [{turns}]}}\n')
    chat = ChatTemplate(TOKENIZER)
    rows = prepare_token_rows(ConversationFile(path), chat, max_seq_length=100)
    kept = [number for number in range(1500) if number % 7]
    assert [row.row for row in rows] == kept
    assert [row.place for row in rows] == [f"{path}:{number + 1}" for number in kept]
    assert [TOKENIZER.decode([one for one in row.labels if one != -100]) for row in rows] == [
        f"{number}<|im_end|>" for number in kept
    ]


def test_bad_rows_of_a_file_are_said_before_rows_that_do_not_fit(tmp_path: Path) -> None:
    """As when all rows were read first: row 1 is too long, row 3 is no conversation."""
    path = tmp_path / "rows.jsonl"
    good = '{"prompt": "a", "completion": "' + "z" * 200 + '"}\n'
    path.write_text(good * 2 + '{"prompt": "a"}\n' + good)
    with pytest.raises(DataError, match=r"rows.jsonl:3: the row has none of the known formats"):
        prepare_token_rows(ConversationFile(path), ChatTemplate(TOKENIZER), max_seq_length=10)


_PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from tests.tiny import tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import ConversationFile
from tutelage.data.packing import pack_rows
from tutelage.data.prepare import prepare_token_rows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

chat = ChatTemplate(tiny_tokenizer())
path, few = Path(sys.argv[1]), Path(sys.argv[2])
prepare_token_rows(ConversationFile(few), chat, max_seq_length=100)
before = peak()
rows = prepare_token_rows(ConversationFile(path), chat, max_seq_length=100)
print(len(rows), peak() - before, len(pack_rows(rows.rows, 100)))
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """60,000 rows beside 3,000: less than 20 MB more at the peak: 350 bytes a row are not kept."""
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    lines = [f'{{"prompt": "What is {n}?", "completion": "It is {n} and {n}."}}\n' for n in range(3000)]
    few.write_text("".join(lines))
    many.write_text("".join(lines) * 20)
    command = [sys.executable, "-c", _PEAK_MEMORY, str(many), str(few)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    count, grown, packs = map(int, done.stdout.split())
    assert count == 60_000
    assert packs < 60_000
    assert grown < 20


@given(lengths=st.lists(st.integers(1, 20), max_size=60), limit=st.integers(20, 40))
def test_packs_are_those_of_the_plain_algorithm(lengths: list[int], limit: int) -> None:
    """Best fit, longest first, by looking at every pack: of those with the least space the first."""
    packs: list[list[int]] = []
    space: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = [pack for pack, left in enumerate(space) if left >= lengths[row]]
        if fitting:
            pack = min(fitting, key=lambda pack: space[pack])
        else:
            pack = len(packs)
            packs.append([])
            space.append(limit)
        packs[pack].append(row)
        space[pack] -= lengths[row]
    rows = [TokenRow([7] * length, [-100] * length, 1.0, row, "x") for row, length in enumerate(lengths)]
    found = pack_rows(rows, limit)
    assert [[row.row for row in pack] for pack in found] == packs
    assert (found.num_rows, found.num_tokens) == (len(lengths), sum(lengths))


def test_a_plain_turn_and_one_with_weights_of_1_are_the_same_message() -> None:
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}]}
    parts = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "é", "weight": 1}]}
    assert parse_conversation(plain, "x").messages == parse_conversation(parts, "x").messages
