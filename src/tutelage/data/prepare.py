"""Turns checked conversations into the rows of a trainer, and finds every row that doesn't fit.

Nothing is ever cut. Batches are formed elsewhere (collators.py, packing.py).
"""

from collections.abc import Callable, Iterable, Sequence

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, ConversationFile, Message
from tutelage.data.part_workers import prepare_in_parts
from tutelage.data.placeholders import fill_placeholders
from tutelage.data.preferences import Preference
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.data.tally import OnTooLong, Prepared, Row, Source, Tally
from tutelage.data.token_parts import Task, prepare_in_one_pass
from tutelage.errors import ConfigError, DataError

PLACEHOLDERS = ("question", "demonstration")


def prepare_token_rows(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    responses_only: bool = True,
    on_too_long: OnTooLong = None,
) -> Prepared[TokenRow]:
    """Rows for sft and dft; rows of weight 0 are left out. They lie on disk, however many there are (token_rows.py).

    A row is too long if it has more than max_seq_length tokens. A large file is shared out among processes
    (part_workers.py), which changes nothing but the time.

    on_too_long: `drop`, `error`, or None: drop up to 5 % of the rows, more is an error.
    Raises DataError, always for all rows together: rows the template refuses, rows without a trained token,
    too many long rows, no row left.
    """
    task = Task(template, max_seq_length, responses_only)
    in_parts = None
    if isinstance(conversations, ConversationFile) and conversations.part is None:
        in_parts = prepare_in_parts(task, conversations.path)
    tally, rows = in_parts or prepare_in_one_pass(task, conversations)
    return tally.prepared(rows, on_too_long)


def prepare_distillation_rows(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    *,
    demo_template: str,
    max_seq_length: int,
    max_new_tokens: int,
    on_too_long: OnTooLong = None,
) -> Prepared[DistillationRow]:
    """Rows for sdft; rows of weight 0 are left out.

    The teacher's prompt has `demo_template`, filled with question and demonstration, as its last user turn; the
    other turns stay. Without a `demonstration` the last answer is the demonstration. A row is too long if the
    longer of both prompts and max(max_new_tokens, gold answer) exceed max_seq_length together.
    Raises ConfigError if demo_template lacks a placeholder, DataError as `prepare_token_rows` does.
    """
    check_demo_template(demo_template)

    def encode(index: int, conversation: Conversation) -> tuple[DistillationRow, int]:
        prompt, place = conversation.prompt, conversation.place
        asked = max(i for i, message in enumerate(prompt) if message.role == "user")
        question = prompt[asked].content
        demonstration = conversation.answer if conversation.demonstration is None else conversation.demonstration
        filled = fill_demo_template(demo_template, question, demonstration)
        shown = (*prompt[:asked], Message("user", filled), *prompt[asked + 1 :])
        row = DistillationRow(
            prompt_ids=template.encode_prompt(prompt, place),
            teacher_prompt_ids=template.encode_prompt(shown, place),
            gold=conversation.answer,
            gold_ids=template.encode_response(conversation.messages, place),
            demonstration_text=demonstration,
            question=question,
            weight=conversation.weight,
            row=index,
            place=place,
        )
        prompt_length = max(len(row.prompt_ids), len(row.teacher_prompt_ids))
        return row, prompt_length + max(max_new_tokens, len(row.gold_ids))

    return _prepare(conversations, encode, max_seq_length, on_too_long)


def prepare_prompt_rows(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    max_new_tokens: int,
    columns: Iterable[str] = (),
    on_too_long: OnTooLong = None,
) -> Prepared[PromptRow]:
    """Rows for grpo: the last answer is taken off the prompt and kept for the reward; rows of weight 0 are left out.

    columns: the fields that every row has, with None where it holds nothing.

    A row is too long if prompt and max_new_tokens exceed max_seq_length together. Raises DataError as
    `prepare_token_rows` does.
    """

    def encode(index: int, conversation: Conversation) -> tuple[PromptRow, int]:
        ids = template.encode_prompt(conversation.prompt, conversation.place)
        row = PromptRow(
            prompt=conversation.prompt,
            prompt_ids=ids,
            gold=conversation.answer,
            gold_ids=template.encode_response(conversation.messages, conversation.place),
            fields={name: conversation.fields.get(name) for name in columns},
            weight=conversation.weight,
            row=index,
            place=conversation.place,
        )
        return row, len(ids) + max_new_tokens

    return _prepare(conversations, encode, max_seq_length, on_too_long)


def prepare_preference_rows(
    preferences: Sequence[Preference],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    on_too_long: OnTooLong = None,
) -> Prepared[PreferenceRow]:
    """Rows for dpo and orpo. A row is too long if its prompt and the longer answer exceed max_seq_length together.

    Raises DataError as `prepare_token_rows` does.
    """

    def encode(index: int, preference: Preference) -> tuple[PreferenceRow, int]:
        place = preference.place
        chosen, rejected = (
            template.encode_response([*preference.prompt, Message("assistant", answer)], place)
            for answer in (preference.chosen, preference.rejected)
        )
        row = PreferenceRow(template.encode_prompt(preference.prompt, place), chosen, rejected, index, place)
        return row, len(row.prompt_ids) + max(len(chosen), len(rejected))

    return _prepare(preferences, encode, max_seq_length, on_too_long)


def check_demo_template(demo_template: str) -> None:
    """Raises ConfigError unless both `{question}` and `{demonstration}` occur."""
    for placeholder in PLACEHOLDERS:
        if f"{{{placeholder}}}" not in demo_template:
            raise ConfigError(
                f"sdft_demo_template lacks {{{placeholder}}}; it needs both {{question}} and {{demonstration}}"
            )


def fill_demo_template(demo_template: str, question: str, demonstration: str) -> str:
    """The template with both texts in place, in one pass: braces in the texts and in the template are safe."""
    return fill_placeholders(demo_template, {"question": question, "demonstration": demonstration})


def _prepare(
    conversations: Iterable[Source],
    encode: Callable[[int, Source], tuple[Row, int]],
    max_seq_length: int,
    on_too_long: OnTooLong,
) -> Prepared[Row]:
    rows: list[Row] = []
    tally = Tally(max_seq_length)
    for index, conversation in enumerate(tally.seen(conversations)):
        if conversation.weight == 0:
            continue
        try:
            row, num_tokens = encode(index, conversation)
        except DataError as error:
            tally.refuse(str(error))
            continue
        if tally.fits(conversation.place, num_tokens):
            rows.append(row)
    return tally.prepared(rows, on_too_long)
