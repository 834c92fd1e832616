"""Where assistant turns lie, from one rendering: the same as from several, and what is proven of which template."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CHATML, tiny_tokenizer
from tests.unit.test_data_chat_template import THINKING
from tutelage.data.conversations import Message
from tutelage.data.rendering import locate, quick_renderer, renderer
from tutelage.data.template_flow import plain_texts
from tutelage.data.template_shapes import ROWS_PER_RENDERING, Shapes
from tutelage.errors import ModelError

TOKENIZER = tiny_tokenizer()
TOKENIZER.bos_token = "<|endoftext|>"  # some templates name it


def trl_templates() -> dict[str, str]:
    """Templates of real models, which TRL has as files; importing it would take seconds."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.jinja"))}


TRL_TEMPLATES = trl_templates()


def assert_located_alike(source: str, turns: Sequence[Message], shapes: Shapes | None = None) -> None:
    """Same text, same places, same refusals."""
    shapes = shapes or Shapes(*quick_renderer(TOKENIZER, source), source)
    reference = renderer(TOKENIZER, source)
    found = []
    for find in (lambda: locate(turns, reference), lambda: shapes.locate(turns)):
        try:
            rendered = find()
            found.append((rendered.text, tuple(rendered.spans), rendered.unlocated))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_the_quick_rendering_and_the_shapes_are_the_references(name: str) -> None:
    """For every template that TRL has, proven or not: same text, same places, same refusals."""
    source = TRL_TEMPLATES[name]
    shapes = Shapes(*quick_renderer(TOKENIZER, source), source)
    answers = ("one", " two\n", "<think>\nhm\n</think>\n\nthree", "", '{"name": "f"}')
    for answer in answers:
        for roles in ("ua", "sua", "uaua", "suaua", "uauaua", "uatatua", "sa", "au"):
            names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
            turns = [
                Message(names[role], f"{answer}{i}" if role == "a" else f"text {i}") for i, role in enumerate(roles)
            ]
            assert_located_alike(source, turns, shapes)


@pytest.mark.parametrize(
    ("template", "marks", "strips"),
    [
        (CHATML, (), False),
        (THINKING, ("</think>",), True),
        (TRL_TEMPLATES["qwen3"], ("</think>", "</tool_response>", "<think>", "<tool_response>"), True),
        ("{% for m in messages %}{{ m.get('content') ~ '\n' }}{% endfor %}", (), False),
        (
            "{% set x = messages[0].content %}{% if x == 'zz' or x.startswith('yy') %}c{% endif %}{{ x }}",
            ("yy", "zz"),
            False,
        ),
    ],
)
def test_what_is_proven_of_a_template(template: str, marks: tuple[str, ...], strips: bool) -> None:
    _, environment = quick_renderer(TOKENIZER, template)
    assert environment is not None
    plain = plain_texts(environment, template)
    assert plain is not None
    assert (plain.marks, plain.strips) == (marks, strips)
    assert plain.hold(["some text", "another"])
    assert not plain.hold(["some text", ""])
    assert plain.hold([" edges "]) is not strips
    assert not any(plain.hold([f"x{mark}y"]) for mark in marks)


@pytest.mark.parametrize(
    "use",
    [
        "{{ m.content|upper }}",
        "{{ m.content[:3] }}",
        "{{ m.content|length }}",
        "{{ '%s' % m.content }}",
        "{{ m|tojson }}",
        "{{ messages }}",
        "{% if m.content|length > 3 %}x{% endif %}",
        "{% if m.content in 'abc' %}x{% endif %}",
        "{% if m.content == messages[0].content %}x{% endif %}",
        "{% if 'x' in ('a' + m.content) %}x{% endif %}",
        "{% if loop.previtem is defined and loop.previtem.content %}x{% endif %}",
        "{% for c in m.content %}{{ c }}{% endfor %}",
        "{% for key, value in m.items() %}{{ value }}{% endfor %}",
        "{% set ns = namespace(x=m.content) %}{{ ns.x }}",
        "{% set ns = namespace() %}{% set ns.x = m.content %}{{ ns.x }}",
        "{% macro say(x) %}{{ x }}{% endmacro %}{{ say(m.content) }}",
        "{{ messages|map(attribute='content')|join }}",
        "{{ [m.content]|join('x') }}",
        "{{ m.content.replace('a', 'b') }}",
        "{{ m.content.split()[0] }}",
        "{{ m.content.strip('x') }}",
        "{{ m['con' + 'tent'] }}",
        "{% set m = 'x' %}{{ m }}",
        "{{ m.content|safe }}",
        "{{ m.content|trim(chars='.') }}",
        "{{ m.content|trim(*['.']) }}",
        "{{ m.content.strip(*['.']) }}",
        "{% for x in loop %}{{ x[0].content|length }}{% endfor %}",
        "{% if loop['prev' ~ 'item'].content|length %}x{% endif %}",
        "{{ [1, 2]|random }}",
        "{{ lipsum() }}",
    ],
)
def test_what_ends_the_proof(use: str) -> None:
    template = "{% for m in messages %}" + use + "{% endfor %}"
    _, environment = quick_renderer(TOKENIZER, template)
    assert environment is not None
    assert plain_texts(environment, template) is None


def test_a_shape_that_has_changed_since_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date is rendered: after the shape was learnt, it is another day."""
    template = "{{ strftime_now('%d') }}" + CHATML
    render, environment = quick_renderer(TOKENIZER, template)
    assert environment is not None
    monkeypatch.setitem(environment.globals, "strftime_now", lambda form: "Monday")
    shapes = Shapes(render, environment, template)
    turns = [Message("user", "question"), Message("assistant", "answer")]
    assert shapes.locate(turns).text.startswith("Monday<|im_start|>")
    monkeypatch.setitem(environment.globals, "strftime_now", lambda form: "Tue")
    rendered = shapes.locate(turns)
    (span,) = rendered.spans
    assert rendered.text.startswith("Tue<|im_start|>")
    assert rendered.text[span.start : span.end] == "answer"


def test_a_shape_saves_renderings() -> None:
    """Two to learn it and one to check it, then one in 64; where the proof does not hold, three for one answer."""
    render, environment = quick_renderer(TOKENIZER, THINKING)
    calls: list[bool] = []

    def counted(messages: Sequence[Message], generation_prompt: bool = False) -> str:
        calls.append(generation_prompt)
        return render(messages, generation_prompt)

    shapes = Shapes(counted, environment, THINKING)
    for number in range(130):
        shapes.locate([Message("user", "question"), Message("assistant", f"answer {number}")])
    assert len(calls) == 3 + 2
    shapes.locate([Message("user", "question"), Message("assistant", "<think>x</think>answer")])
    assert len(calls) == 3 + 2 + 3


def test_a_proof_that_is_wrong_is_noticed() -> None:
    """A renderer that does what no template can: after some rows it shouts."""
    render, environment = quick_renderer(TOKENIZER, CHATML)
    turns = [Message("user", "question"), Message("assistant", "answer")]
    shouting = False

    def changing(messages: Sequence[Message], generation_prompt: bool = False) -> str:
        text = render(messages, generation_prompt)
        return text.upper() if shouting else text

    shapes = Shapes(changing, environment, CHATML)
    for _ in range(ROWS_PER_RENDERING - 1):
        shapes.locate(turns)
    shouting = True
    with pytest.raises(ModelError, match=r"renders 2 turns that begin with user, assistant otherwise .* report this"):
        shapes.locate(turns)


SNIPPETS = [
    "{{ m.content }}",
    "{{ m['role'] + '\\n' + m['content'] + '<|im_end|>' }}",
    "{{ m.content|trim }}",
    "{% set c = m.content.strip() %}{{ c }}",
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}",
    "{% if m.role == 'user' %}U:{{ m.content }}{% elif loop.last %}L{{ m.content }}{% endif %}",
    "{% if m.content.startswith('a') %}A{% endif %}",
    "{% if m.content %}full{% else %}empty{% endif %}",
    "{% if m.content == 'probe' %}P{% endif %}",
    "{% if m.content is string and not m.content.endswith('b') %}{{ m.content }}{% endif %}",
    "{% set before = m.content %}",
    "{{ before }}",
    "{{ messages[0].content ~ messages|length }}",
    "{{ m.content|upper }}",
    "{% if m.content|length > 3 %}long{% endif %}",
    "{% if messages[loop.index0 - 1].content < m.content %}less{% endif %}",
    "{% if loop.index == 3 %}{% break %}{% endif %}",
]


@settings(max_examples=300)
@given(
    uses=st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4),
    opening=st.sampled_from(["", "A:", "A:{{ messages[0].content }}", "<think>"]),
    texts=st.lists(
        st.sampled_from(["a", "b", "probe", "ab\n", " a", "", "aaaa", "x</think>y", "question", "<think>"]),
        min_size=2,
        max_size=4,
    ),
)
def test_templates_made_of_every_kind_of_use(uses: list[str], opening: str, texts: list[str]) -> None:
    """Whatever is put together, proven or not, and whatever the messages are."""
    source = "{% for m in messages %}" + "".join(uses) + "{% endfor %}"
    source += "{% if add_generation_prompt %}" + opening + "{% endif %}"
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    assert_located_alike(source, turns)
