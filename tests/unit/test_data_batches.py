"""Many rows at once are what `ChatTemplate.encode` makes of each: ids, labels, weights, places and errors."""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_tokenizer
from tests.unit.test_data_chat_template import THINKING
from tutelage.data.batch_encoding import encode_rows
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, ConversationFile, Message, parse_conversation
from tutelage.data.packing import pack_rows
from tutelage.data.piece_tokenizer import PieceTokenizer
from tutelage.data.prepare import prepare_token_rows
from tutelage.data.rendering import locate, quick_renderer, renderer
from tutelage.data.rows import TokenRow
from tutelage.data.template_flow import plain_texts
from tutelage.data.template_shapes import Shapes
from tutelage.data.token_rows import TokenRows, TokenRowWriter
from tutelage.errors import DataError, ModelError, OutputError

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
TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "trims": CHATML.replace("message['content']", "message['content']|trim"),
    "keeps two turns": CHATML.replace("in messages", "in messages[-2:]"),
    "repeats": CHATML + "{{ messages[-1].content }}",
    "hides": CHATML.replace("message['content']", "(message['content'] if loop.last else '…')"),
    "asks for length": CHATML.replace("message['content']", "message['content'][: messages[0].content|length]"),
    "refuses": "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + CHATML,
    "refuses roles": "{% if messages|length > 5 %}{{ raise_exception('too many') }}{% endif %}" + CHATML,
    "generation": CHATML.replace("{{ '<|im_start|>'", "{% generation %}{{ '<|im_start|>'").replace(
        "<|im_end|>\n' }}{% endfor", "<|im_end|>\n' }}{% endgeneration %}{% endfor"
    ),
    "leaves the answer open": (
        "{% for m in messages %}{{ ('A: ' if m['role'] == 'assistant' else 'Q: ') + m['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    ),
    **{name: TRL_TEMPLATES[name] for name in ("qwen3", "qwen2_5", "llama3", "gemma3", "phi3", "llama3_1", "cohere")},
}

TEXT = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        ["", " ", "bad", "a question", "answer\n", "\n x", "probe", "probex", "'s", "1 2", "\ue0000\ue001"]
    ),
    st.sampled_from(["<think>", "<think>a</think>b", "x</think>", "<|im_end|>", "<|im_start|>assistant\n"]),
    st.just("<tool_response>x</tool_response>"),
)
WEIGHTS = st.sampled_from([None, None, None, ((1, 0.5), (99, 2.0)), ((0, 0.0), (2, 1.0), (99, 0.0)), ((99, 3.0),)])
ASSISTANT = st.builds(Message, st.just("assistant"), TEXT, st.booleans(), WEIGHTS)
OTHER = st.builds(Message, st.sampled_from(["user", "user", "tool"]), TEXT)
TURNS = st.tuples(
    st.lists(st.builds(Message, st.just("system"), TEXT), max_size=1),
    st.lists(st.tuples(OTHER, ASSISTANT), min_size=1, max_size=3),
).map(lambda parts: (*parts[0], *(turn for pair in parts[1] for turn in pair)))


def talk(*texts: str, weight: float = 1.0, place: str = "rows.jsonl:1") -> Conversation:
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Conversation(tuple(turns), None, weight, place)


def one_by_one(chat: ChatTemplate, conversation: Conversation, responses_only: bool) -> tuple[object, ...] | str:
    try:
        row = chat.encode(conversation, responses_only)
    except (DataError, ModelError) as error:
        return f"{type(error).__name__}: {error}"
    return row.input_ids, row.labels, row.part_weights, row.num_trained


def together(chat: ChatTemplate, conversations: Sequence[Conversation], responses_only: bool) -> list[object]:
    found: list[object] = []
    try:
        for result in encode_rows(chat, conversations, responses_only):
            assert result.conversation is conversations[result.index]
            row = result.row
            if isinstance(row, DataError):
                found.append(f"DataError: {row}")
            else:
                found.append((row.ids, row.labels, row.part_weights, row.num_trained))
    except ModelError as error:
        found.append(f"ModelError: {error}")
    return found


def assert_alike(chat: ChatTemplate, conversations: Sequence[Conversation], responses_only: bool = True) -> None:
    expected: list[object] = []
    for conversation in conversations:
        expected.append(one_by_one(chat, conversation, responses_only))
        if str(expected[-1]).startswith("ModelError"):
            break
    assert together(chat, conversations, responses_only) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(rows=st.lists(TURNS, min_size=1, max_size=3), responses_only=st.booleans())
def test_a_batch_is_its_rows(name: str, rows: list[tuple[Message, ...]], responses_only: bool) -> None:
    conversations = [Conversation(turns, None, 1.0, f"x:{line}") for line, turns in enumerate(rows)]
    assert_alike(ChatTemplate(TOKENIZER, TEMPLATES[name]), conversations, responses_only)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Alone 'no' becomes '▁no', behind other text it stays 'no'; some pieces merge with a line break before them."""
    vocabulary = ["<s>", "</s>", "<unk>", "\n", "▁", "U", ":", "n", "o", "no", "▁no", "A", "\nn", "S", "T"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        merges=[("n", "o"), ("▁", "no"), ("\n", "n")],
        unk_token="<unk>",
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@settings(max_examples=60)
@given(texts=st.lists(st.text(alphabet="no \nUA:", min_size=1, max_size=6), min_size=2, max_size=6))
def test_a_tokenizer_that_prepends_a_space(texts: list[str]) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'][0]|upper + ':\n' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
    )
    chat = ChatTemplate(metaspace_tokenizer(), template)
    assert chat.anchor_ids == [4, 3]
    assert_alike(chat, [talk(*texts[: len(texts) // 2 * 2])])


def test_a_tokenizer_of_its_own_kind_is_asked_itself() -> None:
    """Its class adds something to the Rust tokenizer, which the batch must not miss: every text ends in id 0."""

    class Ending(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *arguments, **options):
            encoded = super()._encode_plus(text, *arguments, **options)
            encoded["input_ids"] = [*encoded["input_ids"], 0]
            return encoded

    own = Ending(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<|im_end|>", chat_template=CHATML)
    chat = ChatTemplate(own)
    conversation = talk("yy", "zz")
    (result,) = encode_rows(chat, [conversation])
    assert not isinstance(result.row, DataError)
    assert result.row.ids == chat.encode(conversation).input_ids
    assert result.row.ids.count(0) == 3  # one a piece


SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im",
    "<|im_end",
    "x<|im_",
    " ",
    "\n",
    "\n\n",
    "a",
    " b",
    "é",
]


@pytest.mark.parametrize("added", [[], [AddedToken("x<|im_", special=False)], [AddedToken("<|im_start|>\n")]])
@given(parts=st.lists(st.lists(st.sampled_from(SPECIALS), max_size=8).map("".join), min_size=1, max_size=4))
def test_cuts_before_special_tokens_change_nothing(added: list[AddedToken], parts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(added)
    chat = ChatTemplate(tokenizer)
    pieces = [(text, index > 0) for index, text in enumerate(parts)] * 2
    assert PieceTokenizer(chat).ids(pieces) == [chat.text_ids(*piece) for piece in pieces]


def test_which_tokens_a_text_is_cut_before() -> None:
    """<|endoftext|> is neither in the template nor an end; 'x<|im_' may be found where it covers another's beginning."""
    pattern = PieceTokenizer(ChatTemplate(tiny_tokenizer()))._special
    assert pattern is not None
    assert [found.start() for found in pattern.finditer("a<|im_start|>b<|im_end|><|endoftext|>")] == [1, 14]
    overlapping = tiny_tokenizer()
    overlapping.add_tokens([AddedToken("x<|im_", special=False)])
    assert PieceTokenizer(ChatTemplate(overlapping))._special is None
    stripping = tiny_tokenizer()
    stripping.add_tokens([AddedToken("<|im_end|>", lstrip=True, special=True)], special_tokens=True)
    pattern = PieceTokenizer(ChatTemplate(stripping))._special
    assert pattern is None or pattern.search("<|im_end|>") is None


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_the_quick_rendering_and_the_shapes_are_the_references(name: str) -> None:
    """For every template that TRL has, proven or not: same text, same places, same refusals."""
    source = TRL_TEMPLATES[name]
    reference = renderer(TOKENIZER, source)
    shapes = Shapes(*quick_renderer(TOKENIZER, source), source)
    answers = ("one", " two\n", "<think>\nhm\n</think>\n\nthree", "", '{"name": "f"}')
    for answer in answers:
        for roles in ("ua", "sua", "uaua", "suaua", "uauaua", "uatatua", "sa", "au"):
            names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
            turns = [
                Message(names[role], f"{answer}{i}" if role == "a" else f"text {i}") for i, role in enumerate(roles)
            ]
            found = []
            for find in (lambda turns=turns: locate(turns, reference), lambda turns=turns: shapes.locate(turns)):
                try:
                    rendered = find()
                    found.append((rendered.text, tuple(rendered.spans), rendered.unlocated))
                except Exception as error:
                    found.append((type(error).__name__, str(error)))
            assert found[0] == found[1], (roles, answer)


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
    conversation = talk("question", "answer")
    assert shapes.locate(conversation.messages).text.startswith("Monday<|im_start|>")
    monkeypatch.setitem(environment.globals, "strftime_now", lambda form: "Tue")
    rendered = shapes.locate(conversation.messages)
    (span,) = rendered.spans
    assert rendered.text.startswith("Tue<|im_start|>")
    assert rendered.text[span.start : span.end] == "answer"


def test_a_shape_needs_one_rendering() -> None:
    """Two to learn, then one a conversation; where the proof does not hold, three for one answer."""
    render, environment = quick_renderer(TOKENIZER, THINKING)
    calls = []

    def counted(messages: Sequence[Message], generation_prompt: bool = False) -> str:
        calls.append(generation_prompt)
        return render(messages, generation_prompt)

    shapes = Shapes(counted, environment, THINKING)
    for _ in range(5):
        shapes.locate(talk("question", "answer").messages)
    assert len(calls) == 2 + 5
    shapes.locate(talk("question", "<think>x</think>answer").messages)
    assert len(calls) == 2 + 5 + 3


# --- rows on disk ------------------------------------------------------------------------------------------------


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
    with TokenRowWriter() as writer:
        assert len(writer.rows()) == 0


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tutelage.data.token_rows.tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match=r"rows cannot be written \(No space left on device\); free .* set TMPDIR"):
        TokenRowWriter()


def test_more_rows_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    """1,500 rows are three batches of 512; every seventh row has weight 0, every row has a length of its own kind."""
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
    """60,000 rows beside 3,000: less than 20 MB more. As lists of ids, labels and messages they took 180 MB."""
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
