"""Preparing rows: nothing is cut, what doesn't fit is named, the teacher sees question and demonstration."""

import pytest

from tests.tiny import tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, Message
from tutelage.data.prepare import (
    fill_demo_template,
    prepare_distillation_rows,
    prepare_token_rows,
)
from tutelage.data.tally import DroppedRow
from tutelage.errors import ConfigError, DataError

TOKENIZER = tiny_tokenizer()
CHAT = ChatTemplate(TOKENIZER)
DEMO = "{question}\nExample: {demonstration}"


def talk(
    question: str = "a", answer: str = "b", line: int = 1, weight: float = 1.0, demonstration: str | None = None
) -> Conversation:
    turns = Message("user", question), Message("assistant", answer)
    return Conversation(turns, demonstration, weight, f"rows.jsonl:{line}")


def distill(*conversations: Conversation, max_seq_length: int = 100, max_new_tokens: int = 1, **options: object):
    return prepare_distillation_rows(
        conversations,
        CHAT,
        demo_template=str(options.pop("demo_template", DEMO)),
        max_seq_length=max_seq_length,
        max_new_tokens=max_new_tokens,
        **options,
    )


def test_rows_keep_order_number_weight_and_place() -> None:
    conversations = [talk(line=1), talk("c", "d", line=3, weight=2.5)]
    prepared = prepare_token_rows(conversations, CHAT, max_seq_length=100)
    assert len(prepared) == 2
    assert [(row.row, row.weight, row.place) for row in prepared] == [
        (0, 1.0, "rows.jsonl:1"),
        (1, 2.5, "rows.jsonl:3"),
    ]
    assert prepared[1].labels == CHAT.encode(conversations[1]).labels
    assert (prepared.dropped, prepared.warning) == ([], None)


def test_a_row_of_exactly_the_limit_fits() -> None:
    length = len(CHAT.encode(talk()).input_ids)
    assert len(prepare_token_rows([talk()], CHAT, max_seq_length=length)) == 1
    with pytest.raises(DataError) as caught:
        prepare_token_rows([talk()], CHAT, max_seq_length=length - 1)
    assert str(caught.value) == (
        f"1 of 1 rows (100 %) refused: longer than max_seq_length {length - 1}; set max_seq_length to {length}, "
        f"or shorten the rows:\n  rows.jsonl:1: needs {length} tokens"
    )


@pytest.mark.parametrize(
    ("total", "long", "option", "kept"),
    [
        (20, 1, None, 19),
        (40, 2, None, 38),
        (19, 1, None, None),
        (40, 3, None, None),
        (20, 1, "error", None),
        (4, 3, "drop", 1),
        (3, 3, "drop", None),
        (20, 0, "error", 20),
    ],
)
def test_up_to_five_percent_is_dropped_unless_told_otherwise(
    total: int, long: int, option: str | None, kept: int | None
) -> None:
    """1 of 20 and 2 of 40 are 5 %, 1 of 19 and 3 of 40 are more. The needed length is that of the longest row."""
    answers = ["z" * 50] * long + ["b"] * (total - long)
    conversations = [talk(answer=answer, line=line) for line, answer in enumerate(answers, start=1)]
    needed = len(CHAT.encode(talk(answer="z" * 50)).input_ids)
    if kept is None:
        with pytest.raises(DataError, match=f"{long} of {total} rows .* set max_seq_length to {needed}"):
            prepare_token_rows(conversations, CHAT, max_seq_length=40, on_too_long=option)
        return
    prepared = prepare_token_rows(conversations, CHAT, max_seq_length=40, on_too_long=option)
    assert [row.row for row in prepared] == list(range(long, total))
    assert len(prepared) == kept
    assert prepared.dropped == [DroppedRow(f"rows.jsonl:{line}", needed) for line in range(1, long + 1)]


def test_the_warning_lists_twenty_places_and_counts_the_rest() -> None:
    conversations = [talk(answer="z" * 50, line=line) for line in range(1, 25)] + [talk()]
    warning = prepare_token_rows(conversations, CHAT, max_seq_length=40, on_too_long="drop").warning
    assert warning is not None
    lines = warning.split("\n  ")
    assert lines[0] == "24 of 25 rows (96 %) left out: longer than max_seq_length 40:"
    assert lines[1].startswith("rows.jsonl:1: needs ")
    assert lines[20].startswith("rows.jsonl:20: needs ")
    assert lines[21:] == ["and 4 more rows"]


def test_weightless_rows_are_absent_and_never_too_long() -> None:
    conversations = [talk(answer="z" * 90, weight=0.0), talk(line=2)]
    for prepared in (
        prepare_token_rows(conversations, CHAT, max_seq_length=40, on_too_long="error"),
        distill(*conversations, max_seq_length=60, on_too_long="error"),
    ):
        assert [(row.row, row.place) for row in prepared] == [(1, "rows.jsonl:2")]
    with pytest.raises(DataError, match="every row has weight 0"):
        distill(talk(weight=0.0))
    with pytest.raises(DataError, match=r"^rows.jsonl: every row has weight 0; give at least one"):
        prepare_token_rows([talk(weight=0.0)], CHAT, max_seq_length=40)
    with pytest.raises(DataError, match="no rows to train on"):
        prepare_token_rows([], CHAT, max_seq_length=40)


def test_rows_without_a_trained_token_and_refused_rows_are_reported_together() -> None:
    untrained = Message("user", "a"), Message("assistant", "b", train=False)
    strict = "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    chat = ChatTemplate(TOKENIZER, strict + str(TOKENIZER.chat_template))
    conversations = [talk(), Conversation(untrained, None, 1.0, "rows.jsonl:2"), talk("bad", line=3)]
    with pytest.raises(DataError) as caught:
        prepare_token_rows(conversations, chat, max_seq_length=100)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == "2 of 3 rows cannot be used:"
    assert lines[1].startswith("rows.jsonl:2: no token of the row is trained; remove the row or set 'train'")
    assert lines[2].startswith("rows.jsonl:3: the template given as chat_template refuses the turns")


def test_the_teacher_sees_the_demonstration_in_the_last_user_turn() -> None:
    turns = (
        Message("system", "S"),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "two {demonstration}"),
        Message("assistant", "gold"),
    )
    (row,) = distill(Conversation(turns, "see {question} {x}", 0.5, "rows.jsonl:9"))
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(row.prompt_ids) == head + "<|im_start|>user\ntwo {demonstration}" + tail
    assert TOKENIZER.decode(row.teacher_prompt_ids) == (
        head + "<|im_start|>user\ntwo {demonstration}\nExample: see {question} {x}" + tail
    )
    assert TOKENIZER.decode(row.gold_ids) == "gold<|im_end|>"
    assert (row.question, row.demonstration_text) == ("two {demonstration}", "see {question} {x}")
    assert (row.weight, row.row, row.place) == (0.5, 0, "rows.jsonl:9")


def test_a_tool_turn_after_the_question_stays() -> None:
    turns = (
        Message("user", "q"),
        Message("assistant", "call"),
        Message("tool", "result"),
        Message("assistant", "gold", train=False),
    )
    (row,) = distill(Conversation(turns, "d", 1.0, "x"))
    assert TOKENIZER.decode(row.teacher_prompt_ids) == (
        "<|im_start|>user\nq\nExample: d<|im_end|>\n<|im_start|>assistant\ncall<|im_end|>\n"
        "<|im_start|>tool\nresult<|im_end|>\n<|im_start|>assistant\n"
    )
    assert TOKENIZER.decode(row.gold_ids) == "gold<|im_end|>"


def test_without_a_demonstration_the_answer_is_shown() -> None:
    (row,) = distill(talk(answer="because"))
    assert row.demonstration_text == "because"
    assert "Example: because<|im_end|>" in TOKENIZER.decode(row.teacher_prompt_ids)


@pytest.mark.parametrize(("max_new_tokens", "room"), [(1, 4), (4, 4), (9, 9)])
def test_distillation_needs_room_for_the_longer_of_rollout_and_gold(max_new_tokens: int, room: int) -> None:
    """The gold answer 'zqx' has 3 tokens and its end, so 4; the teacher's prompt is the longer one."""
    conversation = talk(answer="zqx")
    (row,) = distill(conversation)
    assert len(row.gold_ids) == 4
    needed = len(row.teacher_prompt_ids) + room
    assert len(distill(conversation, max_seq_length=needed, max_new_tokens=max_new_tokens)) == 1
    with pytest.raises(DataError, match=f"set max_seq_length to {needed}"):
        distill(conversation, max_seq_length=needed - 1, max_new_tokens=max_new_tokens)


def test_the_students_prompt_counts_where_it_is_the_longer_one() -> None:
    """A template that shows 9 characters of a turn: 9 tokens of 'qqqqqqqqq', fewer of 'the answer'."""
    shortening = str(TOKENIZER.chat_template).replace("message['content']", "message['content'][:9]")
    conversation = talk("q" * 9, "b")
    rows = prepare_distillation_rows(
        [conversation],
        ChatTemplate(TOKENIZER, shortening),
        demo_template="the answer is {demonstration}{question}",
        max_seq_length=100,
        max_new_tokens=1,
    )
    student, teacher = len(rows[0].prompt_ids), len(rows[0].teacher_prompt_ids)
    assert student > teacher
    with pytest.raises(DataError, match=f"set max_seq_length to {student + 2}"):
        prepare_distillation_rows(
            [conversation],
            ChatTemplate(TOKENIZER, shortening),
            demo_template="the answer is {demonstration}{question}",
            max_seq_length=student + 1,
            max_new_tokens=1,
        )


@pytest.mark.parametrize(("template", "lacks"), [("{question}", "{demonstration}"), ("{demonstration}", "{question}")])
def test_both_placeholders_are_required(template: str, lacks: str) -> None:
    with pytest.raises(ConfigError) as caught:
        distill(talk(), demo_template=template)
    assert str(caught.value) == (f"sdft_demo_template lacks {lacks}; it needs both {{question}} and {{demonstration}}")


def test_filling_is_one_pass_and_leaves_other_braces() -> None:
    filled = fill_demo_template(
        '{"q": "{question}"} {0} {demonstration} {question}', r"{demonstration}\1", "{question}"
    )
    assert filled == r'{"q": "{demonstration}\1"} {0} {question} {demonstration}\1'
