"""Token ids of plain text, word by word. Not here: which texts those are of (piece_tokenizer.py).

Byte-level BPE cuts a text into words by a regular expression and tokenises each word by itself. Most words come again
and again, so that looking them up takes a fifth of the time of the Rust tokenizer, which makes an object of each token.
By hand, since no library hands out ids of known words. Only for texts of Latin letters and common marks, of which every
version of Unicode says the same, and for the four expressions below, which many models' tokenizers share; all else
stays with the tokenizer.
"""

import json
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

_LETTERS = "A-Za-zÀ-ÖØ-öø-ž"
_MARKS = "¡¢£¥§©«®°±·»¿×÷‐-‧€™←-↓≠≤≥"  # neither letters nor numbers nor white space
_OTHERS = re.compile(f"[^\x00-\x7f{_LETTERS}{_MARKS}]")

_GPT2 = r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
# Digits are cut off first, so that white space before one is at the end of its text.
_GPT2_DIGITS = r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?=[0-9])|\s+(?!\S)|\s+"
_LATER = r"'(?i:[stmd]|re|ve|ll)|[^\r\nA-Za-z0-9]?[A-Za-z]+|{digits}| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+": _LATER.replace("{digits}", "[0-9]{1,3}"),  # Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+": _LATER.replace("{digits}", "[0-9]"),  # Qwen 2 and 3
}
"""By the expression of a tokenizer, what it comes to for such texts."""

_MAX_WORDS = 20_000  # some 6 MB, 20 MB if all are long; then they are learned anew
_LONGEST_KEPT = 48  # characters; longer ones seldom come again, and one of 2,000 letters takes 26 kB
_TRIAL = 20_000  # so many words may be learned before it is asked whether words come again
_PROBE = (
    "It's  what THEY'LL  say,\n\n\tof 12345 (or 6) things ...\r\n  we've  \n x=[1, 22]; y_z == 'REd' \x1c\x1d a\x0b"
    "\x0cb  7\n  don'T  ?!\n?\r  $9.99 -- “end” … Übergrößen, l’été·ž5×€7  "
)


class _Words(dict[str, tuple[int, ...]]):
    """Ids of words; a new one is learned when it is asked for, and kept if it is not long."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.num_learned = 0

    def __missing__(self, word: str) -> tuple[int, ...]:
        # Alone, a word is cut as it was in its text: only white space is looked at from outside, by `(?!\S)`, and a
        # word of white space is whole at the end of a text too.
        ids = tuple(self._backend.encode(word, add_special_tokens=False).ids)
        self.num_learned += 1
        if len(word) <= _LONGEST_KEPT:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordTokenizer:
    """The ids that `backend` gives a text, which has none of the `added` tokens in it."""

    def __init__(self, backend: Any, expression: str, added: Iterable[str]) -> None:
        self._words = _Words(backend)
        self._find = re.compile(expression.replace("A-Za-z", _LETTERS), re.ASCII).findall
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._num_words = 0

    def ids(self, text: str) -> list[int] | None:
        """None for a text that the tokenizer itself must be asked about."""
        if (not text.isascii() and _OTHERS.search(text)) or self._added.search(text):
            return None
        words = self._words
        if words.num_learned > _TRIAL + self._num_words // 16:  # they don't come again: hashes, or the like
            return None
        found = self._find(text)
        self._num_words += len(found)
        return list(chain.from_iterable(map(words.__getitem__, found)))


def word_tokenizer(backend: Any, added: Iterable[str]) -> WordTokenizer | None:
    """For a tokenizer that is known to cut into words; else None. added: texts of its added tokens, special or not."""
    expression = _expression(backend)
    if expression is None:
        return None
    added = list(added)
    tokenizer = WordTokenizer(backend, expression, added)
    probe = tokenizer.ids(_PROBE)
    is_same = probe == backend.encode(_PROBE, add_special_tokens=False).ids
    return tokenizer if is_same else None


def _expression(backend: Any) -> str | None:
    """By which a text falls into words, each of which is tokenised by itself and always the same way."""
    from tokenizers.models import BPE

    if not isinstance(backend.model, BPE) or backend.model.dropout:
        return None
    if backend.normalizer is not None:
        normalizer = _described(backend.normalizer)
        if normalizer is None or normalizer["type"] != "NFC":  # which leaves such texts alone
            return None
    parts = _described(backend.pre_tokenizer)
    if parts is None:
        return None
    steps: list[dict[str, Any]] = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    if not 1 <= len(steps) <= 2:
        return None
    first, last = steps[0], steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return _GPT2 if last["use_regex"] else None
    if first["type"] == "Digits" and first["individual_digits"] and last["use_regex"]:
        return _GPT2_DIGITS
    if first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"] and not last["use_regex"]:
        return _SPLITS.get(first["pattern"].get("Regex"))
    return None


def _described(part: Any) -> dict[str, Any] | None:
    """A part of a Rust tokenizer as its JSON; None if there is none, or it has none: it is somebody's Python."""
    try:
        return None if part is None else json.loads(part.__getstate__())
    except Exception:  # the bindings raise nothing narrower
        return None
