"""Weights of the parts of an answer: which token has which, and what the loss makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.collators import packed_batch, pad_batch
from tutelage.data.conversations import Conversation, parse_conversation
from tutelage.data.messages import Message
from tutelage.data.preferences import parse_preference
from tutelage.data.rows import TokenRow
from tutelage.errors import DataError
from tutelage.training.token_loss import token_loss_sum

TOKENIZER = tiny_tokenizer()
CHAT = ChatTemplate(TOKENIZER)
QUESTION = {"role": "user", "content": "q"}


def part(text: str, weight: float | None = None) -> dict[str, Any]:
    return {"type": "text", "text": text} | ({} if weight is None else {"weight": weight})


def row_of(content: Any, **turn: Any) -> Conversation:
    return parse_conversation({"messages": [QUESTION, {"role": "assistant", "content": content, **turn}]}, "x:1")


def weighed(row: TokenRow) -> list[tuple[str, float]]:
    """Text and weight of each trained token."""
    kept = zip(row.input_ids, row.labels, row.weights, strict=True)
    return [(TOKENIZER.decode([token]), weight) for token, label, weight in kept if label != -100]


def test_each_token_has_the_weight_of_its_part() -> None:
    """Digits are single tokens of the tiny tokenizer; the end of the turn counts as the last part does."""
    row = CHAT.encode(row_of([part("12", 0.5), part("3"), part("45", -2.0)]))
    assert weighed(row) == [("1", 0.5), ("2", 0.5), ("3", 1.0), ("4", -2.0), ("5", -2.0), ("<|im_end|>", -2.0)]


def test_a_part_of_weight_0_is_not_trained() -> None:
    row = CHAT.encode(row_of([part("12", 0), part("34")]))
    assert weighed(row) == [("3", 1.0), ("4", 1.0), ("<|im_end|>", 1.0)]
    assert row.num_trained == 3


def test_the_tokens_are_those_of_the_whole_text() -> None:
    """'France' is one or more tokens that a cut between its letters would change; its first letter decides."""
    whole = CHAT.encode(row_of("The capital of France is Paris."))
    parts = [part("The capital of Fr", 0.25), part("ance is Paris.")]
    row = CHAT.encode(row_of(parts))
    assert row.input_ids == whole.input_ids
    assert row.labels == whole.labels
    text = ""
    for piece, weight in weighed(row)[:-1]:
        first = len(text) + len(piece) - len(piece.lstrip())
        assert weight == (0.25 if first < len("The capital of Fr") else 1.0), piece
        text += piece
    assert text == "The capital of France is Paris."


def test_a_space_before_a_word_goes_with_the_word() -> None:
    row = CHAT.encode(row_of([part("The", 0.0), part(" capital", 3.0)]))
    assert {weight for _, weight in weighed(row)} == {3.0}
    assert "".join(piece for piece, _ in weighed(row)) == " capital<|im_end|>"


def test_the_weight_of_a_turn_is_that_of_parts_without_one() -> None:
    row = CHAT.encode(row_of([part("1"), part("2", 0.5)], weight=3))
    assert weighed(row) == [("1", 3.0), ("2", 0.5), ("<|im_end|>", 0.5)]
    assert row_of("12", weight=0).messages[1] == Message("assistant", "12", train=False)
    assert row_of([part("1", 1), part("2")], weight=None).messages[1] == Message("assistant", "12")


def test_the_weight_of_the_row_is_a_factor_beside_it() -> None:
    raw = {"messages": [QUESTION, {"role": "assistant", "content": [part("1", 0.5), part("2")]}], "weight": 4}
    assert weighed(CHAT.encode(parse_conversation(raw, "x:1"))) == [("1", 2.0), ("2", 4.0), ("<|im_end|>", 4.0)]


def test_turns_before_and_after_keep_theirs() -> None:
    turns = [QUESTION, {"role": "assistant", "content": "1", "weight": 2.0}]
    turns += [QUESTION, {"role": "assistant", "content": "2"}]
    row = CHAT.encode(parse_conversation({"messages": turns}, "x:1"))
    assert weighed(row) == [("1", 2.0), ("<|im_end|>", 2.0), ("2", 1.0), ("<|im_end|>", 1.0)]


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message['content']", "message['content']|trim"),
        CHATML.replace(
            "message['content']", "('<think></think>' if message.role == 'assistant' else '')+message.content"
        ),
    ],
)
def test_a_template_may_strip_an_answer_or_put_something_before_it(template: str) -> None:
    row = ChatTemplate(TOKENIZER, template).encode(row_of([part(" 1", 0.5), part("2 ", 7.0)]))
    weights = dict(weighed(row))
    assert (weights["2"], weights["<|im_end|>"]) == (7.0, 7.0)
    assert {weight for piece, weight in weights.items() if piece.strip() not in ("2", "<|im_end|>", "")} == {0.5}


def test_a_tokenizer_that_prepends_a_space() -> None:
    """As in test_data_chat_template: pieces are tokenised behind a line break that is taken off again."""
    vocabulary = ["<s>", "</s>", "<unk>", "\n", "▁", "U", ":", "n", "o", "no", "▁no", "A"]
    pieces = {piece: index for index, piece in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[("n", "o"), ("▁", "no")], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>"])
    template = (
        "{% for m in messages %}{{ m['role'][0]|upper + ':\n' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    row = ChatTemplate(tokenizer, template).encode(row_of([part("no", 0.5), part(" no", 2.0)]))
    trained = [(label, weight) for label, weight in zip(row.labels, row.weights, strict=True) if label != -100]
    assert trained == [(9, 0.5), (10, 2.0), (1, 2.0)]


def test_an_answer_that_the_template_changes_is_refused() -> None:
    shouting = ChatTemplate(TOKENIZER, CHATML.replace("message['content']", "message['content']|replace('a', 'A')"))
    with pytest.raises(DataError, match=r"x:1: the template given .* changes the text of an answer"):
        shouting.encode(row_of([part("ab", 0.5), part("c")]))


def test_one_weight_needs_no_place() -> None:
    shouting = ChatTemplate(TOKENIZER, CHATML.replace("message['content']", "message['content']|replace('a', 'A')"))
    row = shouting.encode(row_of("ab", weight=0.5))
    assert {weight for _, weight in weighed(row)} == {0.5}


def test_objectives_that_take_answers_whole_need_none_either() -> None:
    """`encode_response` is what sdft, grpo and pairs of answers read."""
    shouting = ChatTemplate(TOKENIZER, CHATML.replace("message['content']", "message['content']|replace('a', 'A')"))
    weighted = row_of([part("ab", 0.5), part("c")])
    assert shouting.encode_response(weighted.messages) == shouting.encode_response(row_of("abc").messages)


def test_weights_of_a_turn_that_cannot_be_located_are_refused() -> None:
    """Where every token is trained such a turn is no error by itself."""
    hiding = ChatTemplate(TOKENIZER, CHATML.replace("message['content']", "(message['content'] if loop.last else '…')"))
    answers = ([part("1", 0.5), part("2")], "3")
    turns = [turn for answer in answers for turn in (QUESTION, {"role": "assistant", "content": answer})]
    with pytest.raises(DataError, match="renders message 2 such that it cannot be located, so its weights have no"):
        hiding.encode(parse_conversation({"messages": turns}, "x:1"), responses_only=False)


def test_batches_carry_them() -> None:
    """Weights stand at the token itself; padding has 0."""
    first = TokenRow([5, 6, 7], [-100, 6, 7], 2.0, 0, "x:1", [1.0, 0.5, -1.0])
    second = TokenRow([8], [-100], 1.0, 1, "x:2")
    assert pad_batch([first, second], 0)["weights"].tolist() == [[2.0, 1.0, -2.0], [1.0, 0.0, 0.0]]
    assert packed_batch([[first, second]])["weights"].tolist() == [[2.0, 1.0, -2.0, 1.0]]


@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_the_loss_is_the_weighted_sum(objective: Any) -> None:
    """Σ w · nll, or Σ w · p · nll, from plain log-probabilities of the same model."""
    model = tiny_model(TOKENIZER)
    row = CHAT.encode(row_of([part("12", 0.5), part("3", 0), part("45", -2.0)]))
    got, stats = token_loss_sum(model, pad_batch([row], 2), objective)
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0].double()
    each = -logp if objective == "nll" else -logp * logp.exp()
    expected = sum(
        weight * each[place].item()
        for place, (label, weight) in enumerate(zip(row.labels[1:], row.weights[1:], strict=True))
        if label != -100
    )
    assert_close(got.item(), expected, rtol=1e-5, atol=1e-6)
    assert len(stats.nll) == 5


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            {"role": "assistant", "content": [part("a", 1), part("b")], "weight": "2"},
            "weight is '2'; give a finite number",
        ),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "a", "weight": True}]},
            "weight is True; give a finite",
        ),
        ({"role": "assistant", "content": [part("a", float("nan"))]}, "weight is nan; give a finite number"),
    ],
)
def test_weights_that_are_none(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_conversation({"messages": [QUESTION, message]}, "x:1")


def test_only_answers_have_weights() -> None:
    answer = {"role": "assistant", "content": "a"}
    free = {"role": "user", "content": [part("q", 0)]}
    assert weighed(CHAT.encode(parse_conversation({"messages": [free, answer]}, "x:1")))[0] == ("a", 1.0)
    with pytest.raises(DataError, match="weight other than 0, but only assistant turns are trained"):
        parse_conversation({"messages": [{"role": "user", "content": [part("q", 1)]}, answer]}, "x:1")
    with pytest.raises(DataError, match=r"x:1: message 1 \(user\) is not to be trained, but train_on_responses_only"):
        CHAT.encode(parse_conversation({"messages": [free, answer]}, "x:1"), responses_only=False)
    with pytest.raises(DataError, match="a 'weight', which means nothing there; remove it"):
        parse_conversation({"instruction": "q", "output": [part("a", 0.5)]}, "x:1")


def test_pairs_of_answers_have_none() -> None:
    chosen = {"role": "assistant", "content": [part("a", 0.5), part("b")]}
    raw = {"prompt": "q", "chosen": [chosen], "rejected": "c"}
    with pytest.raises(DataError, match="'chosen' has a 'train' or 'weight', but dpo and orpo learn from both whole"):
        parse_preference(raw, "x:1")


def test_from_a_file_to_a_row(tmp_path: Path) -> None:
    """`completion` may be parts as well."""
    row = CHAT.encode(parse_conversation({"prompt": "q", "completion": [part("1", 0.5), part("2")]}, "x:1"))
    assert weighed(row) == [("1", 0.5), ("2", 1.0), ("<|im_end|>", 1.0)]
