"""Pieces of rendered text as token ids: word by word where that is known to be the same, else many in one call of the
Rust tokenizer. Not here: where a text is cut into pieces."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.word_tokenizer import WordTokenizer, word_tokenizer

_SHORT_PIECE = 256  # characters; system turns and what a template puts between turns come again in every row
_MAX_KEPT_PIECES = 4096  # the first that come: those of the template are in every row, so they are among them
_PROBE = "A probe,\n 1 + 2.  || in\tthe  middle |  |\n\nends. |"

Piece = tuple[str, bool]
"""A text, and whether other text stands before it."""


class PieceTokenizer:
    """`ChatTemplate.text_ids` of many pieces at once; may be asked from several threads.

    Ids of short texts are kept. To make more texts short, pieces are cut before special tokens, where a tokenizer cuts
    them itself: it looks for special tokens first and then tokenises what is between them by itself.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._anchor = template.anchor_ids
        self._kept: dict[Piece, list[int]] = {}
        # A first call ends truncation and padding that somebody left on; after that, threads change nothing in it.
        template.text_ids("probe")
        self._backend: Any = _backend(template.tokenizer)
        if self._backend is not None and self._plain([_PROBE]) != [template.text_ids(_PROBE)]:
            self._backend = None
        cutting = [] if self._backend is None else [one for one in _cutting(template) if self._is_cut_at(one)]
        self._special = re.compile("|".join(map(re.escape, cutting))) if cutting else None
        self._words: WordTokenizer | None = None
        if self._backend is not None and not self._anchor:
            added = {token.content: (id_, token) for id_, token in _added_tokens(template).items()}
            self._words = word_tokenizer(self._backend, added)
            self._alone = {one: [added[one][0]] for one in cutting if _ends_alone(one, added)}
            self._between = re.compile("({})".format("|".join(map(re.escape, self._alone)) or "(?!)"))

    def quick(self, pieces: Sequence[Piece]) -> list[list[int] | None]:
        """Of each piece what `ids` says, or None where that takes the Rust tokenizer."""
        words = self._words
        return [None if words is None else self._by_words(text, words) for text, _ in pieces]

    def _by_words(self, text: str, words: WordTokenizer) -> list[int] | None:
        ids: list[int] = []
        parts = self._between.split(text)
        for number, part in enumerate(parts):
            found = self._alone[part] if number % 2 else words.ids(part)
            if found is None:
                return None
            ids += found
        return ids

    def ids(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Of each piece, its ids."""
        if self._special is None:
            return self._ids(pieces)
        cut: list[Piece] = []
        ends: list[int] = []
        for text, continues in pieces:
            start = 0
            for found in self._special.finditer(text):
                if (until := found.start()) > start:
                    cut.append((text[start:until], continues))
                    start, continues = until, False  # a special token is what it is wherever it stands
            cut.append((text[start:], continues))
            ends.append(len(cut))
        ids = self._ids(cut)
        joined: list[list[int]] = []
        start = 0
        for end in ends:
            joined.append(ids[start] if end == start + 1 else list(chain.from_iterable(ids[start:end])))
            start = end
        return joined

    def _ids(self, pieces: Sequence[Piece]) -> list[list[int]]:
        kept = self._kept
        found = [kept.get(piece) for piece in pieces]
        missing = [piece for piece, ids in zip(pieces, found, strict=True) if ids is None]
        fresh = self._fresh(missing)
        for piece, ids in zip(missing, fresh, strict=True):
            if len(piece[0]) <= _SHORT_PIECE and len(kept) < _MAX_KEPT_PIECES:
                kept[piece] = ids
        following = iter(fresh)
        return [next(following) if ids is None else ids for ids in found]

    def _fresh(self, pieces: Sequence[Piece]) -> list[list[int]]:
        if self._backend is None:
            return [self._template.text_ids(text, continues) for text, continues in pieces]
        if not self._anchor:
            return self._plain([text for text, _ in pieces])
        anchored = [bool(continues and text) for text, continues in pieces]
        ids = self._plain(["\n" + text if anchor else text for (text, _), anchor in zip(pieces, anchored, strict=True)])
        length = len(self._anchor)
        merged = [i for i, anchor in enumerate(anchored) if anchor and ids[i][:length] != self._anchor]
        whole = dict(zip(merged, self._plain([pieces[i][0] for i in merged]), strict=True))
        return [whole[i] if i in whole else ids[i][length:] if anchor else ids[i] for i, anchor in enumerate(anchored)]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _is_cut_at(self, special: str) -> bool:
        """Whether a text with this special token comes out the same, cut before it or not."""
        parts = _PROBE.split("|")
        pieces = [parts[0], *(special + part for part in parts[1:])]
        return [one for ids in self._plain(pieces) for one in ids] == self._template.text_ids("".join(pieces))


def _backend(tokenizer: Any) -> Any:
    """The Rust tokenizer, where the tokenizer's own class adds nothing to it; else None."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    for name in ("__call__", "_encode_plus"):
        if getattr(type(tokenizer), name, None) is not getattr(PreTrainedTokenizerFast, name, None):
            return None
    return tokenizer.backend_tokenizer


def _added_tokens(template: ChatTemplate) -> dict[int, Any]:
    """The added tokens of the template's tokenizer, special or not, by their ids."""
    tokenizer: Any = template.tokenizer
    return dict(tokenizer.added_tokens_decoder)


def _ends_alone(token: str, added: Mapping[str, tuple[int, Any]]) -> bool:
    """Whether what follows a cutting token is tokenised as if it stood alone: the token takes no white space along, and
    no longer one begins with it."""
    return not added[token][1].rstrip and not any(one != token and one.startswith(token) for one in added)


def _cutting(template: ChatTemplate) -> list[str]:
    """Special tokens of the template before which the tokenizer itself cuts every text: they take no white space before
    them along, are looked for in the text as it is, and no other added token overlaps their beginning. None where a
    token must be a word of its own: whether it is, may depend on the token behind it."""
    tokenizer: Any = template.tokenizer
    added = list(_added_tokens(template).values())
    if any(token.single_word for token in added):
        return []

    def is_overlapped(token: str) -> bool:
        ends = (other.content[start:] for other in added for start in range(1, len(other.content)))
        return any(token.startswith(end) or end.startswith(token) for end in ends)

    return [
        token.content
        for token in added
        if token.special
        and not tokenizer.split_special_tokens
        and (token.content in template.source or token.content in (tokenizer.bos_token, tokenizer.eos_token))
        and not (token.lstrip or token.normalized or token.content[:1].isspace())
        and not is_overlapped(token.content)
    ]
