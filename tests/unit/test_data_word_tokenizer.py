"""Texts tokenised word by word, against the tokenizers themselves."""

import random
import re
import string
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.piece_tokenizer import PieceTokenizer
from tutelage.data.word_tokenizer import _SPLITS, word_tokenizer

CHARACTERS = "  \n\n\r\tabzAZ'sStTlLrReEvVmMdD0123459.,!?-_\x00\x0b\x0c\x1c\x1f\x7fÀéößøž×÷«»“”‘’–—…•€™→≤"
TEMPLATE = "{% for message in messages %}<|a|>{{ message['role'] }}\n{{ message['content'] }}<|b|>\n{% endfor %}"


def tokenizer_of(pre_tokenizer: Any, *added: AddedToken, normalizer: Any = None) -> Tokenizer:
    """Byte-level BPE with merges learned from random texts of the characters above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(random.Random(1), 300), trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(list(added))
    return tokenizer


def texts(chance: random.Random, number: int) -> list[str]:
    return ["".join(chance.choices(CHARACTERS, k=chance.randint(0, 24))) for _ in range(number)]


def byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_by(expression: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), byte_level(False)])


KNOWN = {
    "gpt2": lambda: byte_level(),
    "digits": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level()]),
    **{f"split {number}": lambda split=split: split_by(split) for number, split in enumerate(_SPLITS)},
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_text_has_the_ids_that_the_tokenizer_gives_it(name: str) -> None:
    """4000 texts of everything that the expressions tell apart; one that is not answered would show nothing."""
    tokenizer = tokenizer_of(KNOWN[name](), normalizer=normalizers.NFC())
    words = word_tokenizer(tokenizer, ())
    assert words is not None
    for text in texts(random.Random(2), 4000):
        assert words.ids(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    "text", ["日本", "a\u00a0b", "x²", "e\u0301", "ſ", "a\u2028b", "\U0001f600", "½", "see <|a|> there"]
)
def test_other_texts_are_left_to_the_tokenizer(text: str) -> None:
    """Scripts of many versions, white space and numbers beyond ASCII, what NFC changes, and added tokens."""
    words = word_tokenizer(tokenizer_of(byte_level(), AddedToken("<|a|>")), ["<|a|>"])
    assert words is not None
    assert words.ids(text) is None


class Theirs:
    """A part of a tokenizer in Python, as the bindings take it."""

    def normalize(self, normalized: Any) -> None:
        """Leave it as it is."""

    def pre_tokenize(self, text: Any) -> None:
        """Leave it whole."""


def in_python(kind: str) -> Tokenizer:
    """A byte-level tokenizer with one part in Python."""
    tokenizer = tokenizer_of(byte_level())
    if kind == "normalizer":
        tokenizer.normalizer = normalizers.Normalizer.custom(Theirs())
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Theirs())
    return tokenizer


@pytest.mark.parametrize(
    "other",
    [
        lambda: tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: tokenizer_of(byte_level(), normalizer=normalizers.Lowercase()),
        lambda: tokenizer_of(byte_level(), normalizer=normalizers.NFKC()),
        lambda: tokenizer_of(split_by("a+")),
        lambda: tokenizer_of(pre_tokenizers.Metaspace()),
        lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        lambda: Tokenizer(models.BPE()),
        lambda: tokenizer_of(pre_tokenizers.Sequence([])),
        lambda: in_python("normalizer"),
        lambda: in_python("pre-tokenizer"),
    ],
)
def test_other_tokenizers_are_not_taken_apart(other: Any) -> None:
    """Not even where they cannot be described, as parts in Python; and their pieces have the ids that they give."""
    tokenizer = other()
    assert word_tokenizer(tokenizer, ()) is None
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(byte_level()), eos_token="a")
    backend = fast.backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    template = ChatTemplate(fast, TEMPLATE)
    assert PieceTokenizer(template).ids([("a b", False)]) == [template.text_ids("a b")]


def test_words_that_never_come_again_are_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 200 words of trial, one new word of sixteen is too many; and no more than 40 words are held."""
    monkeypatch.setattr("tutelage.data.word_tokenizer._TRIAL", 200)
    monkeypatch.setattr("tutelage.data.word_tokenizer._MAX_WORDS", 40)
    tokenizer = tokenizer_of(byte_level())
    words = word_tokenizer(tokenizer, ())
    assert words is not None
    chance = random.Random(3)
    new = [" ".join("".join(chance.choices(string.ascii_letters, k=9)) for _ in range(10)) for _ in range(40)]
    answers = [words.ids(text) for text in new]
    assert answers[0] == tokenizer.encode(new[0], add_special_tokens=False).ids
    assert len(words._words) <= 40
    assert answers[-1] is None


def test_long_words_are_not_kept() -> None:
    """One of 48 letters is, one of 49 is not, and is learned as often as it comes."""
    tokenizer = tokenizer_of(byte_level())
    words = word_tokenizer(tokenizer, ())
    assert words is not None
    known, learned = set(words._words), words._words.num_learned
    texts = ["x" * 48, "y" * 49, "z" * 2000, "y" * 49]
    assert [words.ids(text) for text in texts] == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]
    assert set(words._words) - known == {"x" * 48}
    assert words._words.num_learned - learned == 4


@pytest.mark.parametrize(
    ("added", "is_quick"),
    [
        ([AddedToken("<|a|>", special=True), AddedToken("<|b|>", special=True)], True),
        ([AddedToken("<|a|>", special=True), AddedToken("<|b|>", special=True, rstrip=True)], False),
        ([AddedToken("<|a|>", special=True), AddedToken("<|b|>", special=True), AddedToken("<|b|>\n")], True),
    ],
)
def test_pieces_with_special_tokens(added: list[AddedToken], is_quick: bool) -> None:
    """What follows a special token is looked up only where the token takes nothing of it along; of two that begin alike
    the longer one counts."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(byte_level(), *added), eos_token="<|b|>")
    template = ChatTemplate(tokenizer, TEMPLATE)
    pieces = [("<|a|>user\nWhat is it?<|b|>\n<|a|>assistant\n", False), ("It's 12.", True), ("<|b|>\n", True)]
    tokenized = PieceTokenizer(template)
    expected = [template.text_ids(*piece) for piece in pieces]
    assert tokenized.ids(pieces) == expected
    quick = tokenized.quick(pieces)
    assert quick == (expected if is_quick else [None, expected[1], None])


def test_nothing_is_cut_where_a_token_must_be_a_word_of_its_own() -> None:
    """`foo` is a token in front of a space, not in front of `END`: cut there, `fooEND` would have it."""
    added = [AddedToken("foo", single_word=True), AddedToken("END", special=True)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(byte_level(), *added), eos_token="END")
    template = ChatTemplate(tokenizer, re.sub(r"<\|.\|>", "END", TEMPLATE))
    pieces = [("fooEND", False), ("foo END", True)]
    assert PieceTokenizer(template).ids(pieces) == [template.text_ids(*piece) for piece in pieces]
