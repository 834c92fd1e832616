"""Conversations as token ids, and which of the tokens are the assistant's, by the model's chat template.

No lengths are checked and no rows collected here (see prepare.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateSyntaxError

from tutelage.data.conversations import Conversation, Message
from tutelage.data.rendering import REFUSALS, Rendered, locate, renderer
from tutelage.data.rows import DistillationRow, EncodedRow, TokenRow
from tutelage.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "DistillationRow", "TokenRow"]

_PROBE = (Message("user", "question"), Message("assistant", "answer"))


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    runs: list[tuple[int, int | None]]  # how many ids in turn belong to which assistant message, if to any
    part_weights: list[float] | None  # per id, where a message has parts of several weights


class ChatTemplate:
    """Renders conversations with a Jinja chat template and finds the assistant's tokens in them.

    template: `default` for the tokenizer's own, the path of a Jinja file, or the text of a template.
    `source` is the template's text. Nothing of the tokenizer is changed.

    Text is tokenised in pieces that are cut where an answer starts and where its content ends, so that the
    trained tokens begin exactly where generation will begin; no BOS is added to what the template renders.

    Raises ModelError where the tokenizer has no (usable) template, ConfigError where the given one is wrong.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str = "default") -> None:
        self.tokenizer = tokenizer
        self.source, self.name = _source(tokenizer, template)
        self._rendered = renderer(tokenizer, self.source)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special_ids = frozenset(added) | frozenset(tokenizer.all_special_ids)
        self._eos = cast("int | None", tokenizer.eos_token_id)
        own = template == "default"
        try:
            self._rendered(_PROBE)
        except TemplateSyntaxError as error:
            kind = ModelError if own else ConfigError
            raise kind(
                f"{self.name} is not valid Jinja (line {error.lineno}: {error.message}); "
                "mend it or set chat_template to another"
            ) from error
        except REFUSALS as error:
            kind = ModelError if own else ConfigError
            raise kind(
                f"{self.name} cannot render a user and an assistant turn ({error}); set chat_template to one that can"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rendered"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rendered = renderer(self.tokenizer, self.source)

    def encode(self, conversation: Conversation, responses_only: bool = True) -> TokenRow:
        """The whole conversation with labels; `row` is 0 (prepare.py numbers the rows).

        responses_only: True trains the assistant turns, each from the end of its generation prompt up to and
        including its end-of-turn token, and nothing else; False trains every token but the first. Turns with
        `train: false` are trained in neither case, nor parts of weight 0. A row of weight 0 trains nothing.

        Raises DataError if the template refuses the conversation, or changes a turn whose parts have weights,
        ModelError if a turn cannot be located.
        """
        try:
            rendered = locate(conversation.messages, self._rendered)
        except REFUSALS as error:
            raise self.refusal(conversation.messages, conversation.place, error) from error
        ids = [self.text_ids(text, continues) for text, continues in rendered.pieces()]
        row = self.encoded(conversation, rendered, ids, responses_only)
        return TokenRow(row.ids, row.labels, conversation.weight, 0, conversation.place, row.part_weights)

    def encoded(
        self, conversation: Conversation, rendered: Rendered, piece_ids: Sequence[list[int]], responses_only: bool
    ) -> EncodedRow:
        """`encode`, once it is rendered and its pieces are tokenised. Raises like it."""
        messages, place = conversation.messages, conversation.place
        tokens = self._tokens(messages, rendered, piece_ids, place)
        for index in sorted(rendered.unlocated):
            if messages[index].train is responses_only:
                raise self._unlocated(index, place)
            if messages[index].train and messages[index].part_weights:
                raise DataError(
                    f"{place}: {self.name} renders message {index + 1} such that it cannot be located, so its weights "
                    "have no place; remove them, or set another chat_template"
                )
        for index, message in () if responses_only else enumerate(messages):
            if message.role != "assistant" and not message.train:
                raise DataError(
                    f"{place}: message {index + 1} ({message.role}) is not to be trained, but train_on_responses_only: "
                    "false trains all turns of others; set it to true, or remove 'train' and 'weight' there"
                )
        if conversation.weight == 0:
            runs = [(len(tokens.ids), False)]
        else:
            runs = [
                (length, not responses_only if turn is None else messages[turn].train) for length, turn in tokens.runs
            ]
        if tokens.part_weights is not None:  # parts of weight 0 are not trained
            trained = [trained for length, trained in runs for _ in range(length)]
            kept = [one and weight != 0 for one, weight in zip(trained, tokens.part_weights, strict=True)]
            runs = [(len(list(run)), one) for one, run in groupby(kept)]
        runs = [run for run in runs if run[0]]
        if runs and runs[0][1]:  # nothing predicts the first token
            runs[:1] = [(1, False), (runs[0][0] - 1, True)]
        return EncodedRow(tokens.ids, runs, tokens.part_weights)

    def encode_prompt(self, messages: Sequence[Message], place: str = "prompt") -> list[int]:
        """The ids of the messages with the generation prompt at the end: what generation starts from."""
        try:
            return self.text_ids(self._rendered(messages, generation_prompt=True))
        except REFUSALS as error:
            raise self.refusal(messages, place, error) from error

    def encode_response(self, messages: Sequence[Message], place: str = "conversation") -> list[int]:
        """The ids of the last message, an assistant's, up to and including its end-of-turn token.

        The same ids that `encode` trains for that turn. Raises like `encode`.
        """
        last = len(messages) - 1
        messages = [replace(message, part_weights=None) for message in messages]
        try:
            rendered = locate(messages, self._rendered)
        except REFUSALS as error:
            raise self.refusal(messages, place, error) from error
        if last in rendered.unlocated:
            raise self._unlocated(last, place)
        ids = [self.text_ids(text, continues) for text, continues in rendered.pieces()]
        tokens = self._tokens(messages, rendered, ids, place)
        response: list[int] = []
        start = 0
        for length, turn in tokens.runs:
            response += tokens.ids[start : start + length] if turn == last else []
            start += length
        return response

    @cached_property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids that end a generated answer: the template's end-of-turn token, and the tokenizer's eos."""
        closing = self.encode_response(_PROBE)[-1]
        return (closing,) if self._eos in (None, closing) else (closing, self._eos)

    def refusal(self, messages: Sequence[Message], place: str, error: Exception) -> DataError:
        """The template's own error, with the turns it is about."""
        roles = ", ".join(message.role for message in messages)
        return DataError(
            f"{place}: {self.name} refuses the turns {roles} ({error}); reorder or merge them, "
            "or set another chat_template"
        )

    def text_ids(self, text: str, continues: bool = False) -> list[int]:
        """Ids of a piece of text; `continues`: other text stands before it."""
        anchor = self.anchor_ids if continues and text else []
        ids = self._plain_ids("\n" + text) if anchor else self._plain_ids(text)
        if ids[: len(anchor)] != anchor:  # the line break merged with the text
            return self._plain_ids(text)
        return ids[len(anchor) :]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def anchor_ids(self) -> list[int]:
        """Ids of a line break, for tokenizers that put a space before the first word of a text; else empty.

        Such a tokenizer (SentencePiece's way) would give every answer a space that generation doesn't have.
        """
        line_break = self._plain_ids("\n")
        neutral = self._plain_ids("\nanswer") == line_break + self._plain_ids("answer")
        return [] if neutral else line_break

    def _tokens(
        self, messages: Sequence[Message], rendered: Rendered, piece_ids: Sequence[list[int]], place: str
    ) -> _Tokens:
        text = rendered.text
        weighted = any(message.part_weights for message in messages)
        ids = [*piece_ids[0]]
        runs: list[tuple[int, int | None]] = [(len(ids), None)]
        weights = [1.0] * len(ids) if weighted else []
        for number, span in enumerate(rendered.spans):
            answer, rest = piece_ids[2 * number + 1], piece_ids[2 * number + 2]
            closing = self._closing_length(rest)
            if closing == 0 and span.message == len(messages) - 1:
                rest, closing = [self._eos_id(place)], 1
            ids += answer
            ids += rest
            runs += [(len(answer) + closing, span.message), (len(rest) - closing, None)]
            if weighted:
                message = messages[span.message]
                weights += self._part_weights(message, text[span.start : span.end], answer, place)
                weights += [message.weight_at(len(text))] * closing + [1.0] * (len(rest) - closing)
        return _Tokens(ids, runs, weights if weighted else None)

    def _part_weights(self, message: Message, rendered: str, ids: list[int], place: str) -> list[float]:
        """Of each token of an answer: the weight of the part in which its first character that is no space lies."""
        if message.part_weights is None or not message.train:
            return [1.0] * len(ids)
        if len(factors := {weight for _, weight in message.part_weights}) == 1:
            return [*factors] * len(ids)
        content = message.content.strip()
        at = rendered.rfind(content)
        starts = self._starts(rendered, ids)
        if at < 0 or starts is None:
            raise DataError(
                f"{place}: {self.name} changes the text of an answer, or the tokenizer does not say where tokens "
                "begin, so its weights have no place there; give that answer one weight, or set another chat_template"
            )
        lead = at - message.content.index(content)
        return [message.weight_at(start - lead) for start in starts]

    def _starts(self, text: str, ids: list[int]) -> list[int] | None:
        """Where in the text each token begins, after its leading white space; None where that cannot be told."""
        if not self.tokenizer.is_fast:
            return None
        for before in ("", "\n"):  # as `text_ids` tokenises
            found = self.tokenizer(before + text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
            skipped = len(found["input_ids"]) - len(ids)
            if skipped >= 0 and list(found["input_ids"])[skipped:] == ids:
                spans = [(start - len(before), end - len(before)) for start, end in found["offset_mapping"][skipped:]]
                blanks = [len(text[start:end]) - len(text[start:end].lstrip()) for start, end in spans]
                return [
                    start + blank if start + blank < end else start
                    for (start, end), blank in zip(spans, blanks, strict=True)
                ]
        return None

    def _closing_length(self, ids: list[int]) -> int:
        """How many ids lead up to and include the end-of-turn token; white space may stand before it."""
        for position, token in enumerate(ids):
            if token in self._special_ids:
                return position + 1
            if str(self.tokenizer.decode([token])).strip():
                return 0
        return 0

    def _eos_id(self, place: str) -> int:
        """For a template that leaves the last answer open: without an end, nothing would teach it to stop."""
        if self._eos is None:
            raise ModelError(
                f"{place}: {self.name} ends the answer with no special token and the tokenizer has no eos "
                "token, so nothing would teach the model to stop; give the tokenizer an eos_token"
            )
        return self._eos

    def _unlocated(self, index: int, place: str) -> ModelError:
        return ModelError(
            f"{place}: {self.name} renders the assistant turn in message {index + 1} such that it cannot be "
            "located in the text; set chat_template to one that keeps every turn, "
            "or give that turn 'train: false'"
        )


def _source(tokenizer: "PreTrainedTokenizerBase", template: str) -> tuple[str, str]:
    """The template's text and how errors call it."""
    if template == "default":
        name = f"the chat template of tokenizer '{tokenizer.name_or_path}'"
        try:
            return str(tokenizer.get_chat_template()), name
        except ValueError as error:
            raise ModelError(
                f"tokenizer '{tokenizer.name_or_path}' has no default chat template; set chat_template to a "
                ".jinja file, or train the instruct version of the model"
            ) from error
    if "{{" in template or "{%" in template:
        return template, "the template given as chat_template"
    path = Path(template)
    try:
        return path.read_text(encoding="utf-8"), f"the chat template '{template}'"
    except UnicodeDecodeError as error:
        raise ConfigError(f"chat_template '{template}' is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template '{template}' is neither 'default', nor a readable file "
            f"({getattr(error, 'strerror', None) or error}), nor the text of a Jinja template; "
            "use one of the three"
        ) from error
