"""A chat template's text for messages, and where in it the assistant's turns lie. No tokens here (chat_template.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError

from tutelage.data.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Render = Callable[..., str]
"""`render(messages, generation_prompt=False)`: the template's text. Raises jinja2's TemplateError, or TypeError."""

REFUSALS = (TemplateError, TypeError)
"""What a template raises for messages it cannot render."""

PROBE = "probe"  # what an answer is changed to, with as many x behind it as it takes to be new


@dataclass(frozen=True)
class Span:
    """Where the text of an assistant turn lies in the rendered conversation; offsets in characters."""

    message: int
    start: int  # the end of the generation prompt
    end: int  # the end of the content, before the end-of-turn token


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation. unlocated: assistant turns that could not be found in it."""

    text: str
    spans: Sequence[Span]
    unlocated: frozenset[int] = frozenset()

    def pieces(self) -> list[tuple[str, bool]]:
        """The text, cut where an answer starts and where its content ends, and whether other text stands before it:
        what comes before the first answer, then of each answer its content and what comes up to the next one."""
        text, spans = self.text, self.spans
        pieces = [(text[: spans[0].start] if spans else text, False)]
        for number, span in enumerate(spans):
            until = spans[number + 1].start if number + 1 < len(spans) else len(text)
            pieces += [(text[span.start : span.end], span.start > 0), (text[span.end : until], True)]
        return pieces


def locate(messages: Sequence[Message], render: Render) -> Rendered:
    """Render, and find each assistant turn by rendering again. Raises what `render` raises for the whole."""
    text = render(messages)
    spans: list[Span] = []
    unlocated: set[int] = set()
    for index, message in enumerate(messages):
        if message.role == "assistant":
            span = _span(messages, index, text, render)
            if span is None or (spans and span.start < spans[-1].end):
                unlocated.add(index)
            else:
                spans.append(span)
    return Rendered(text, spans, frozenset(unlocated))


def _span(messages: Sequence[Message], index: int, text: str, render: Render) -> Span | None:
    """Find the turn by rendering: the turns before it with a generation prompt, and the turn changed.

    Where the first is no prefix of the whole (templates that rewrite history, or whose generation prompt
    opens a thought), the turn starts where the changed rendering starts to differ.
    """
    probe = PROBE
    while probe in text:
        probe += "x"
    changed = [*messages[:index], Message("assistant", probe), *messages[index + 1 :]]
    try:
        before, found, rest = render(changed).partition(probe)
    except REFUSALS:
        return None
    after = rest.rpartition(probe)[2]
    end = len(text) - len(after)
    if not found or not text.endswith(after):
        return None
    try:
        prompt = render(messages[:index], generation_prompt=True)
    except (*REFUSALS, IndexError):  # some templates look at messages[0] unasked
        prompt = None
    for prefix in (prompt, before):
        if prefix is not None and text.startswith(prefix) and len(prefix) <= end:
            return Span(index, len(prefix), end)
    return None


def renderer(tokenizer: "PreTrainedTokenizerBase", source: str) -> Render:
    """Renders with the tokenizer's `apply_chat_template`: the reference."""

    def render(messages: Sequence[Message], generation_prompt: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        texts: Any = tokenizer.apply_chat_template(  # a batch of one: a bare empty list is refused
            [turns], chat_template=source, add_generation_prompt=generation_prompt, tokenize=False
        )
        return str(texts[0])

    return render


def quick_renderer(tokenizer: "PreTrainedTokenizerBase", source: str) -> tuple[Render, Environment | None]:
    """What `renderer` renders, in half the time, and Jinja's environment; the same without one where a tokenizer
    renders in its own way, or transformers keeps its compiled templates elsewhere.

    `apply_chat_template` copies messages, finds options and special tokens anew for each conversation.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import chat_template_utils

    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    if own or compile_template is None:
        return renderer(tokenizer, source), None
    template: Any = compile_template(source)
    special: Any = tokenizer.special_tokens_map
    always = {"tools": None, "documents": None, **special}
    handle_error = template.environment.handle_exception

    def render(messages: Sequence[Message], generation_prompt: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        context = template.new_context(always | {"messages": turns, "add_generation_prompt": generation_prompt})
        try:
            return "".join(template.root_render_func(context))
        except Exception:
            return handle_error()  # raises it, as `template.render` does

    return render, template.environment
