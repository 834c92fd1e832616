"""Where assistant turns lie in a rendered conversation, known from others with the same roles.

`rendering.locate` renders a conversation several times. Where it is proven (template_flow.py) that a template copies
plain texts and decides by roles alone, one rendering with marked texts says where the texts go: the shape. Every other
conversation with these roles is then put together from it. A template that tells the time is rendered all the same, and
others now and then, so that a proof that is wrong is noticed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from jinja2 import Environment, TemplateSyntaxError

from tutelage.data.messages import Message
from tutelage.data.rendering import PROBE, REFUSALS, Render, Rendered, Span, locate
from tutelage.data.template_flow import PlainTexts, plain_texts
from tutelage.errors import ModelError

ROWS_PER_RENDERING = 64  # where the proof is trusted, one row in so many is rendered all the same
MAX_PIECES = 1_000_000  # of all shapes: some 100 MB; conversations of ever other roles are then located one by one
_OPEN, _CLOSE = "\ue000", "\ue001"  # for private use: no template has them
_MARKED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class _Shape:
    """A rendering in pieces: text of the template's, a message's text, text of the template's, and so on."""

    literals: tuple[str, ...]
    messages: tuple[int, ...]  # one less: whose text stands between them

    def pieces(self, texts: Sequence[str]) -> list[str]:
        pieces = [""] * (2 * len(self.messages) + 1)
        pieces[0::2] = self.literals
        pieces[1::2] = [texts[index] for index in self.messages]
        return pieces


@dataclass(frozen=True)
class _Answer:
    """Of an assistant turn: the first and the last piece that are its text, and its prompt's shape, if it has one."""

    message: int
    first: int | None
    last: int
    prompt: _Shape | None


class Shapes:
    """Locates what `locate` would, with fewer renderings. environment: None where nothing is known of the template."""

    def __init__(self, render: Render, environment: Environment | None, source: str) -> None:
        self._render = render
        self._tells_time = "strftime_now" in source
        self._count = self._num_pieces = 0
        self._known: dict[tuple[str, ...], tuple[_Shape, list[_Answer]] | None] = {}
        self._plain = _plain_texts(environment, source)

    def count_from(self, count: int) -> None:
        """`count` rows come before the next one: which rows are rendered all the same is counted from there."""
        self._count = count

    def locate(self, messages: Sequence[Message]) -> Rendered:
        """The rendered conversation and its assistant turns.

        Raises what a template raises for messages it refuses, and ModelError where it does what it was proven not to.
        """
        texts = [message.content for message in messages]
        if self._plain is not None and self._plain.hold(texts):
            roles = tuple([message.role for message in messages])
            is_new = roles not in self._known and self._num_pieces < MAX_PIECES
            if is_new:
                self._known[roles] = self._learn(roles)
            known = self._known.get(roles)
            if known is not None:
                pieces = known[0].pieces(texts)
                text = "".join(pieces)
                self._count += 1
                is_checked = self._tells_time or is_new or self._count % ROWS_PER_RENDERING == 0
                if not is_checked or text == self._render(messages):
                    return _located(text, pieces, known[1], texts)
                if not self._tells_time:
                    raise ModelError(
                        f"the chat template renders {len(roles)} turns that begin with {', '.join(roles[:4])} "
                        "otherwise than its source was understood; please report this with the template, and set "
                        "chat_template to another one"
                    )
        return locate(messages, self._render)

    def _learn(self, roles: Sequence[str]) -> tuple[_Shape, list[_Answer]] | None:
        marked = [Message(role, f"{_OPEN}{index}{_CLOSE}") for index, role in enumerate(roles)]
        self._num_pieces += len(roles)
        if self._plain is None or not self._plain.hold([message.content for message in marked]):
            return None  # a template that looks for a digit finds the numbers of the marks
        shape = self._shape(marked)
        if shape is None:
            return None
        answers: list[_Answer] = []
        for index, role in enumerate(roles):
            if role == "assistant":
                places = [2 * number + 1 for number, message in enumerate(shape.messages) if message == index]
                prompt = self._shape(marked[:index], generation_prompt=True)
                self._num_pieces += 0 if prompt is None else len(prompt.literals)
                answers.append(_Answer(index, places[0] if places else None, places[-1] if places else 0, prompt))
        return shape, answers

    def _shape(self, marked: Sequence[Message], generation_prompt: bool = False) -> _Shape | None:
        try:
            parts = _MARKED.split(self._render(marked, generation_prompt=generation_prompt))
        except (*REFUSALS, IndexError):
            return None
        return _Shape(tuple(parts[0::2]), tuple(map(int, parts[1::2])))


def _plain_texts(environment: Environment | None, source: str) -> PlainTexts | None:
    try:
        plain = None if environment is None or _OPEN in source else plain_texts(environment, source)
    except TemplateSyntaxError:  # `ChatTemplate` says so when it is made
        return None
    return plain if plain is not None and plain.hold([f"{_OPEN}0{_CLOSE}", PROBE + "x"]) else None


def _located(text: str, pieces: Sequence[str], answers: Sequence[_Answer], texts: Sequence[str]) -> Rendered:
    """The spans that `locate` finds: a changed answer changes the pieces that are its text, and no others."""
    ends = list(accumulate(map(len, pieces)))
    spans: list[Span] = []
    unlocated: list[int] = []
    for answer in answers:
        start, end = None, ends[answer.last]
        if answer.first is not None:
            if answer.prompt is not None:
                prompt = "".join(answer.prompt.pieces(texts))
                start = len(prompt) if len(prompt) <= end and text.startswith(prompt) else None
            start = ends[answer.first - 1] if start is None else start
        if start is None or (spans and start < spans[-1].end):
            unlocated.append(answer.message)
        else:
            spans.append(Span(answer.message, start, end))
    return Rendered(text, spans, frozenset(unlocated))
