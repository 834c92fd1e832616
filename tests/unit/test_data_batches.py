"""Many rows at once are what `ChatTemplate.encode` makes of each: ids, labels, weights, places and errors."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_tokenizer
from tests.unit.test_data_chat_template import THINKING
from tests.unit.test_data_template_shapes import TRL_TEMPLATES
from tutelage.data.batch_encoding import RowEncoder
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, Message
from tutelage.data.piece_tokenizer import PieceTokenizer
from tutelage.errors import DataError, ModelError

TOKENIZER = tiny_tokenizer()
TOKENIZER.bos_token = "<|endoftext|>"  # some templates name it


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
        for result in RowEncoder(chat).encode(conversations, responses_only):
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
    (result,) = RowEncoder(chat).encode([conversation])
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
    """<|endoftext|> is no part of the template; 'x<|im_' may be found where it covers another's beginning."""
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
