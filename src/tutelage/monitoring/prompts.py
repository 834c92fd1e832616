"""Prompt files as checked messages and token ids. Not here: files with answers to learn from (`data`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.data.jsonl import read_rows
from tutelage.errors import DataError
from tutelage.monitoring.everyday import EVERYDAY_PROMPTS

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: all turns up to the answer, and where they stand, such as `prompts.jsonl:3`."""

    messages: tuple[Message, ...]
    place: str


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its ids, generation prompt included."""

    prompt: Prompt
    ids: list[int]


def everyday_prompts() -> list[Prompt]:
    """The built-in prompts, one user turn each."""
    return [
        Prompt((Message("user", text),), f"built-in prompt {number}")
        for number, text in enumerate(EVERYDAY_PROMPTS, start=1)
    ]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a `.jsonl` or `.jsonl.gz` file; a row has `messages` or `prompt`.

    Raises one DataError that lists the bad rows, or says that the file is missing, empty or unreadable.
    """
    return read_rows(path, lambda row, place: Prompt(prompt_messages(row, place), place), "prompts")


def prompt_messages(row: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    """The turns of a row's `messages` or `prompt` (text or messages); an assistant turn at the end is left out.

    Raises DataError naming the place.
    """
    value = row.get("messages", row.get("prompt"))
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: the row has neither 'messages' nor 'prompt'; give a text or a list of messages")
    messages = [_message(turn, place) for turn in value]
    if messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role == "assistant":
        raise DataError(f"{place}: no turn is left to answer; let a user turn stand before the assistant's")
    if not messages[-1].content.strip():
        raise DataError(f"{place}: the last turn before the answer is empty; write the question or remove the row")
    return tuple(messages)


def encode_prompts(
    prompts: Sequence[Prompt], template: ChatTemplate, model: nn.Module, max_new_tokens: int = 0
) -> list[EncodedPrompt]:
    """Token ids of the prompts. Raises DataError for one that leaves no room for `max_new_tokens` in the model."""
    encoded = [EncodedPrompt(prompt, template.encode_prompt(prompt.messages, prompt.place)) for prompt in prompts]
    for item in encoded:
        check_fits(model, len(item.ids) + max_new_tokens, item.prompt.place)
    return encoded


def check_fits(model: nn.Module, tokens: int, place: str) -> None:
    """Raises DataError if `tokens` are more than the model has positions for."""
    limit = positions_of(model)
    if limit is not None and tokens > limit:
        raise DataError(f"{place}: {tokens} tokens, but the model has {limit} positions; shorten the row or its answer")


def positions_of(model: nn.Module) -> int | None:
    """How many positions the model was made for, if it says so."""
    config: Any = getattr(getattr(model, "module", model), "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text_config, "max_position_embeddings", None)


def padding_id(template: ChatTemplate) -> int:
    """The tokenizer's pad token, or an end-of-turn token where it has none; padding is masked either way."""
    pad: Any = template.tokenizer.pad_token_id
    return template.end_of_turn_ids[0] if pad is None else int(pad)


def answer_text(template: ChatTemplate, ids: Sequence[int]) -> str:
    """A generated answer as text, without its end-of-turn token and other special tokens."""
    content = ids[:-1] if ids and ids[-1] in template.end_of_turn_ids else ids
    return str(template.tokenizer.decode(list(content), skip_special_tokens=True)).strip()


def _message(turn: Any, place: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        raise DataError(
            f"{place}: {str(turn)[:60]!r} is not a message; give an object with a text 'content' and a 'role' "
            f"that is one of {', '.join(ROLES)}"
        )
    return Message(role, content)
