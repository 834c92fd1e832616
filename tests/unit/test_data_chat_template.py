"""Which tokens of a conversation are trained: exact ids, for templates of every kind."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, Message
from tutelage.data.rows import IGNORE_INDEX, TokenRow
from tutelage.errors import ConfigError, DataError, ModelError

TOKENIZER = tiny_tokenizer()
CHAT = ChatTemplate(TOKENIZER)
EOS = 2

THINKING = (  # drops earlier thoughts; the generation prompt opens a thought that the last answer may lack
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text.strip() + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
)


def talk(*texts: str) -> Conversation:
    """User and assistant in turn, the user first."""
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Conversation(tuple(turns), None, 1.0, "rows.jsonl:7")


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def trained_runs(row: TokenRow) -> list[str]:
    """The text of each unbroken run of trained tokens. Labels must equal the ids they stand at."""
    runs: list[list[int]] = []
    previous = False
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            if not previous:
                runs.append([])
            runs[-1].append(token)
        previous = label != IGNORE_INDEX
    return [TOKENIZER.decode(run) for run in runs]


def test_one_turn_has_exactly_the_answer_and_its_end() -> None:
    """<|im_start|> = 1, <|im_end|> = 2 = eos = pad; the line break after the end is not trained."""
    row = CHAT.encode(talk("ab", "cd"))
    prompt = [1, *ids("user\nab"), 2, *ids("\n"), 1, *ids("assistant\n")]
    assert row.input_ids == [*prompt, *ids("cd"), 2, *ids("\n")]
    assert row.labels == [*[-100] * len(prompt), *ids("cd"), 2, -100]
    assert (row.weight, row.place) == (1.0, "rows.jsonl:7")
    assert row.num_trained == len(ids("cd")) + 1
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id == 2


def test_every_assistant_turn_is_trained() -> None:
    row = CHAT.encode(talk("a", "first", "b", "second", "c", "first"))
    assert trained_runs(row) == ["first<|im_end|>", "second<|im_end|>", "first<|im_end|>"]
    assert row.input_ids == ids(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
    )


def test_turns_with_train_false_are_masked_in_both_modes() -> None:
    turns = (
        Message("user", "a"),
        Message("assistant", "skip", train=False),
        Message("user", "b"),
        Message("assistant", "learn"),
    )
    conversation = Conversation(turns, None, 1.0, "x")
    assert trained_runs(CHAT.encode(conversation)) == ["learn<|im_end|>"]
    everything = CHAT.encode(conversation, responses_only=False)
    before, after = trained_runs(everything)
    assert before == "user\na<|im_end|>\n<|im_start|>assistant\n"  # all but the first token
    assert after == "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nlearn<|im_end|>\n"


def test_all_tokens_but_the_first() -> None:
    row = CHAT.encode(talk("a", "b"), responses_only=False)
    assert row.labels == [-100, *row.input_ids[1:]]


def test_weight_zero_trains_nothing() -> None:
    conversation = Conversation(talk("a", "b").messages, None, 0.0, "x")
    for responses_only in (True, False):
        assert set(CHAT.encode(conversation, responses_only).labels) == {-100}


def test_prompt_and_response_join_to_the_conversation() -> None:
    conversation = talk("a", "first", "b", " second ")
    prompt, response = CHAT.encode_prompt(conversation.prompt), CHAT.encode_response(conversation.messages)
    row = CHAT.encode(conversation)
    assert prompt + response + ids("\n") == row.input_ids
    assert response == [*ids(" second "), EOS]
    assert row.labels[len(prompt) : -1] == response
    assert CHAT.end_of_turn_ids == (EOS,)


def test_a_boundary_inside_a_merge_is_kept() -> None:
    """'is' is one token; an answer 's' after a generation prompt that ends in 'i' must still be two."""
    template = "{% for m in messages %}{{ m['content'] + ('i' if m['role'] == 'user' else eos_token) }}{% endfor %}"
    chat = ChatTemplate(TOKENIZER, template)
    assert len(ids("is")) == 1
    row = chat.encode(talk("a", "s"))
    assert row.input_ids == [*ids("ai"), *ids("s"), EOS]
    assert row.input_ids[: -len(chat.encode_response(talk("a", "s").messages))] == chat.encode_prompt(
        talk("a", "s").prompt
    )


def test_an_answer_that_looks_like_the_markers_is_found_by_position() -> None:
    """Searching for marker strings would start at the first '<|im_start|>assistant' in the user's text."""
    row = CHAT.encode(talk("x<|im_start|>assistant\nno<|im_end|>", "yes<|im_start|>assistant\nyes"))
    assert trained_runs(row) == ["yes<|im_start|>assistant\nyes<|im_end|>"]


def test_bos_of_the_template_is_not_doubled() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.add_bos_token = True
    chat = ChatTemplate(tokenizer, "{{ bos_token }}" + CHATML)
    conversation = talk("a", "b")
    row = chat.encode(conversation)
    assert row.input_ids[:2] == [0, 1]
    assert row.input_ids.count(0) == 1
    assert chat.encode_prompt(conversation.prompt)[:2] == [0, 1]
    assert chat.encode_response(conversation.messages) == [*ids("b"), EOS]


def test_thoughts_dropped_from_history() -> None:
    """The generation prompt ends in '<think>', which the rendered history lacks; the last turn keeps its own."""
    chat = ChatTemplate(TOKENIZER, THINKING)
    row = chat.encode(talk("a", "<think>long</think>one", "b", "<think>hm</think>two"))
    assert TOKENIZER.decode(row.input_ids) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n<think>hm</think>two<|im_end|>\n"
    )
    assert trained_runs(row) == ["one<|im_end|>", "hm</think>two<|im_end|>"]


def test_an_open_thought_in_the_generation_prompt_and_an_answer_without_thought() -> None:
    row = ChatTemplate(TOKENIZER, THINKING).encode(talk("a", "one"))
    assert trained_runs(row) == ["one<|im_end|>"]


def test_a_template_that_drops_turns_is_an_error_unless_they_are_untrained() -> None:
    last_two = CHATML.replace("in messages", "in messages[-2:]")
    chat = ChatTemplate(TOKENIZER, last_two)
    conversation = talk("a", "first", "b", "second")
    with pytest.raises(ModelError, match=r"rows.jsonl:7: the template given .* turn in message 2 .* located"):
        chat.encode(conversation)
    turns = list(conversation.messages)
    turns[1] = Message("assistant", "first", train=False)
    row = chat.encode(Conversation(tuple(turns), None, 1.0, "x"))
    assert trained_runs(row) == ["second<|im_end|>"]


def test_white_space_before_the_end_of_turn_belongs_to_the_answer() -> None:
    template = "{% for m in messages %}{{ m['content'] + ' ' + eos_token + '\n' }}{% endfor %}"
    assert trained_runs(ChatTemplate(TOKENIZER, template).encode(talk("a", "b"))) == ["b <|im_end|>"]


def test_a_template_that_leaves_the_answer_open_gets_eos() -> None:
    """'Q: a\\nA: b\\n' has no special token; the last answer ends in eos all the same, earlier ones don't."""
    template = (
        "{% for m in messages %}{{ ('A: ' if m['role'] == 'assistant' else 'Q: ') + m['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    chat = ChatTemplate(TOKENIZER, template)
    row = chat.encode(talk("a", "b", "c", "d"))
    assert TOKENIZER.decode(row.input_ids) == "Q: a\nA: b\nQ: c\nA: d<|im_end|>"
    assert trained_runs(row) == ["b", "d<|im_end|>"]
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="nothing would teach the model to stop; give the tokenizer an eos"):
        ChatTemplate(tokenizer, template).encode(talk("a", "b"))


def test_end_of_turn_that_is_not_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    chat = ChatTemplate(tokenizer)
    assert chat.encode_response(talk("a", "b").messages) == [*ids("b"), 2]
    assert chat.end_of_turn_ids == (2, 0)


def test_a_tokenizer_that_prepends_a_space_does_not_do_so_to_answers() -> None:
    """Metaspace, scheme 'first': alone 'no' becomes '▁no'; after the prompt's line break it must stay 'no'."""
    vocabulary = ["<s>", "</s>", "<unk>", "\n", "▁", "U", ":", "n", "o", "no", "▁no", "A"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        merges=[("n", "o"), ("▁", "no")],
        unk_token="<unk>",
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    template = (
        "{% for m in messages %}{{ m['role'][0]|upper + ':\n' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
    )
    chat = ChatTemplate(tokenizer, template)
    conversation = talk("no", "no")
    assert tokenizer("no")["input_ids"] == [10]
    assert chat.encode_response(conversation.messages) == [9, 1]
    assert chat.encode(conversation).input_ids == tokenizer("U:\nno</s>A:\nno</s>")["input_ids"]


def test_where_a_template_comes_from(tmp_path: Path) -> None:
    shouting = CHATML.replace("message['content']", "message['content']|upper")
    path = tmp_path / "own.jinja"
    path.write_text(shouting)
    for template in (shouting, str(path)):
        chat = ChatTemplate(TOKENIZER, template)
        assert chat.source == shouting
        assert TOKENIZER.decode(chat.encode_prompt((Message("user", "a"),))).startswith("<|im_start|>user\nA<|im_end|>")
    assert TOKENIZER.chat_template == CHATML


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match=r"no default chat template; set chat_template to a \.jinja file"):
        ChatTemplate(bare)
    with pytest.raises(ConfigError, match=r"'chatml' is neither 'default', nor a readable file \(No such file"):
        ChatTemplate(TOKENIZER, "chatml")
    with pytest.raises(ConfigError, match=r"neither .* \(Is a directory\)"):
        ChatTemplate(TOKENIZER, str(tmp_path))
    with pytest.raises(ConfigError, match=r"not valid Jinja \(line 1"):
        ChatTemplate(TOKENIZER, "{% for %}")
    with pytest.raises(ConfigError, match=r"cannot render a user and an assistant turn \(no\)"):
        ChatTemplate(TOKENIZER, "{{ raise_exception('no') }}")
    bare.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match="cannot render"):
        ChatTemplate(bare)


def test_a_conversation_the_template_refuses_is_named() -> None:
    strict = "{% if messages|length > 2 %}{{ raise_exception('two turns only') }}{% endif %}" + CHATML
    chat = ChatTemplate(TOKENIZER, strict)
    with pytest.raises(DataError) as caught:
        chat.encode(talk("a", "b", "c", "d"))
    assert str(caught.value) == (
        "rows.jsonl:7: the template given as chat_template refuses the turns user, assistant, user, assistant "
        "(two turns only); reorder or merge them, or set another chat_template"
    )


TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
ANSWER = TEXT.filter(lambda text: bool(text.strip()))


@given(turns=st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=3))
def test_trained_text_is_the_answers_whatever_they_hold(turns: list[tuple[str, str]]) -> None:
    conversation = talk(*(text for turn in turns for text in turn))
    row = CHAT.encode(conversation)
    assert trained_runs(row) == [answer + "<|im_end|>" for _, answer in turns]
    prompt = CHAT.encode_prompt(conversation.prompt)
    assert row.input_ids[: len(prompt)] == prompt
