"""Responses token by token, in a batch whose rows come and go. Not here: what a step computes (`decoder.py`).

A row is a response in the making and has a place in the cache. It leaves when it is done, and the next prompt takes its
place: no step is spent on padding. Prompts wait in lexical order, so that those which begin alike come one after the
other. What a prompt has in common with the one before it (all of it where both are the same) is not computed again: its
keys and values are copied. One prefill computes all the prompts that are admitted together.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.models import shared_tokens
from tutelage.rollouts.decoder import LONGEST_PREFILL, Decoder, Piece
from tutelage.rollouts.drawing import Drawing, uniforms

logger = logging.getLogger(__name__)

CACHE_BYTES = 4 * 2**30
"""What keys and values may take, on whatever device: 33 rows of 2800 tokens of a 135M Llama in float32."""


def generate_by_decoder(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    seeds: Sequence[int] | None,
    drawing: Drawing,
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_when: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    """See `generate`. All prompts at once, unless `CACHE_BYTES` are too few for `batch_size` rows of the longest."""
    responses: list[list[int]] = [[] for _ in prompts]
    token_bytes = 2 * len(decoder.layers) * decoder.key_heads * decoder.head_width * decoder.embedding.element_size()
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for group in _alike(lengths, batch_size, CACHE_BYTES // token_bytes):
        if group.rows < min(batch_size, len(group.indices)):
            _say_that_rows_are_few(group.rows, batch_size)
        engine = Engine(
            decoder,
            [prompts[index] for index in group.indices],
            None if seeds is None else [seeds[index] for index in group.indices],
            drawing,
            max_new_tokens,
            group.rows,
            stop_when,
        )
        for index, response in zip(group.indices, engine.run(), strict=True):
            responses[index] = response
    return responses


@cache
def _say_that_rows_are_few(rows: int, batch_size: int) -> None:
    """Once: a training samples in every step."""
    logger.info(
        "responses are sampled %d at a time and not %d: keys and values of more such rows would take over %.0f GiB",
        rows,
        batch_size,
        CACHE_BYTES / 2**30,
    )


class _Group(NamedTuple):
    """Prompts that are sampled together, `rows` at a time."""

    indices: list[int]
    rows: int


def _alike(lengths: Sequence[int], batch_size: int, cached_tokens: int) -> list[_Group]:
    """Groups for which `cached_tokens` suffice, the longest first; a single row is never too long.

    Every row of a group has room for the longest one. Where that leaves less than `batch_size` rows, only those join
    that are more than half as long; the next group then has room for twice as many.
    """
    waiting = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    groups: list[_Group] = []
    while waiting:
        longest = lengths[waiting[0]]
        rows, count = min(batch_size, len(waiting)), len(waiting)
        if _places(rows, count) * longest > cached_tokens:
            count = sum(2 * lengths[index] > longest for index in waiting)
            rows = min(rows, count)
            if _places(rows, count) * longest > cached_tokens:
                rows = max(1, cached_tokens // longest - 1)
        groups.append(_Group(sorted(waiting[:count]), rows))
        waiting = waiting[count:]
    return groups


def _places(rows: int, prompts: int) -> int:
    """In the cache: one for each row, and one for the prompt taken last where others follow."""
    return rows + (prompts > rows)


@dataclass
class _Row:
    index: int
    prompt: list[int]
    seed: int | None
    uniforms: list[float] = field(default_factory=list[float])
    """Drawn once the row is admitted: a list for all prompts would be the largest thing here."""
    response: list[int] = field(default_factory=list[int])
    is_spoiled: bool = False
    """Whether something in it is no number any more: what is masked counts 0 times that, which is none either."""

    @property
    def cached(self) -> int:
        """How many tokens have keys and values: all but the newest, which the next step computes."""
        return len(self.prompt) + len(self.response) - 1


class Engine:
    """Room for `batch_size` rows of the longest prompt and `max_new_tokens`, and one for the prompt taken last.

    Made for one `run`. Prompts have a token at least, and max_new_tokens is 1 at least.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[list[int]],
        seeds: Sequence[int] | None,
        drawing: Drawing,
        max_new_tokens: int,
        batch_size: int,
        stop_when: Callable[[list[int]], bool] | None,
    ) -> None:
        self._decoder, self._drawing = decoder, drawing
        self._max_new_tokens, self._stop_when = max_new_tokens, stop_when
        rows = [
            _Row(index, list(prompt), None if seeds is None else seeds[index]) for index, prompt in enumerate(prompts)
        ]
        self._waiting = sorted(rows, key=lambda row: row.prompt, reverse=True)  # taken from the end
        self._active: list[_Row] = []
        self._most_rows = min(batch_size, len(rows))
        self._last_prompt: list[int] = []
        length = max(len(row.prompt) for row in rows) + max_new_tokens
        self._rotations = decoder.rotations(length)
        self._cache = decoder.cache(_places(self._most_rows, len(rows)), length)
        self._logits_NV = torch.empty(
            self._most_rows, len(decoder.head.weight), dtype=torch.float32, device=decoder.device
        )
        self._responses: list[list[int]] = [[] for _ in rows]

    def run(self) -> list[list[int]]:
        """The responses, in the order of the prompts."""
        while self._waiting or self._active:
            # A prefill of one prompt costs as much as a step of all rows, so that places are filled several at a time.
            free = self._most_rows - len(self._active)
            if self._waiting and (free >= min(len(self._waiting), max(1, self._most_rows // 4))):
                self._admit([self._waiting.pop() for _ in range(min(free, len(self._waiting)))])
            if self._active:
                lengths = [row.cached for row in self._active]
                tokens_N = torch.tensor([row.response[-1] for row in self._active], device=self._decoder.device)
                self._advance(0, self._decoder.step(tokens_N, lengths, self._cache, self._rotations))
        return self._responses

    def _admit(self, rows: list[_Row]) -> None:
        """Compute the prompts of `rows` into the free places, and draw their first tokens."""
        first = len(self._active)
        self._active += rows
        for row in rows:
            if row.seed is not None:
                row.uniforms = uniforms(row.seed, self._max_new_tokens).tolist()
        hidden_NH = self._prompt_states(rows, first, self._last_prompt)
        if not hidden_NH.isfinite().all():
            # What is no number in one prompt would be none in those that take over its keys and values.
            hidden_NH = torch.cat([self._prompt_states([row], first + place, []) for place, row in enumerate(rows)])
        if self._waiting:
            self._last_prompt = rows[-1].prompt if hidden_NH[-1].isfinite().all() else []
            self._cache.move(len(self._active) - 1, self._most_rows, len(self._last_prompt))
        self._advance(first, hidden_NH)

    def _prompt_states(self, rows: list[_Row], first: int, before: list[int]) -> Tensor:
        """The hidden states that the first new tokens come from, [rows, H]. before: the prompt taken last, if any."""
        pieces: list[Piece] = []
        source = self._most_rows
        for place, row in enumerate(rows, start=first):
            shared = shared_tokens(before, row.prompt)
            if place == first:
                shared = min(shared, len(row.prompt) - 1)  # the state of the last token is not kept, so it is computed
            start = shared
            while True:
                end = min(start + LONGEST_PREFILL, len(row.prompt))
                pieces.append(Piece(place, row.prompt, start, end, source, shared if start == shared else 0))
                start = end
                if end == len(row.prompt):
                    break
            before, source = row.prompt, place
        last: list[Tensor] = []
        for group in _prefills(pieces):
            hidden_NH = self._decoder.prefill(group, self._cache, self._rotations)
            end = 0
            for piece in group:
                end += piece.end - piece.start
                if piece.end == len(piece.tokens):
                    last.append(hidden_NH[end - 1] if piece.end > piece.start else last[-1])
        return torch.stack(last)

    def _advance(self, first: int, hidden_NH: Tensor) -> None:
        """Draw the next token of all rows from `first` on, and let go of those that are done."""
        rows = self._active[first:]
        for row, is_finite in zip(rows, hidden_NH.isfinite().all(dim=-1).tolist(), strict=True):
            row.is_spoiled |= not is_finite
        logits_NV = self._decoder.logits(hidden_NH, self._logits_NV)
        uniform_N = None
        if not self._drawing.is_greedy:
            draws = [row.uniforms[len(row.response)] for row in rows]
            uniform_N = torch.tensor(draws, dtype=torch.float64, device=self._decoder.device)
        tokens = self._drawing(logits_NV, uniform_N, [len(row.response) for row in rows]).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.response.append(token)
        for place in reversed(range(first, len(self._active))):
            if self._is_done(self._active[place]):
                self._release(place)

    def _is_done(self, row: _Row) -> bool:
        if len(row.response) >= self._max_new_tokens or row.response[-1] in self._drawing.stop_ids:
            return True
        return self._stop_when is not None and self._stop_when(list(row.response))

    def _release(self, place: int) -> None:
        """The last row takes the place of one that is done."""
        done = self._active[place]
        self._responses[done.index] = done.response
        if done.is_spoiled:
            self._cache.clear_row(place)
        last = self._active.pop()
        if last is not done:
            self._active[place] = last
            self._cache.move(len(self._active), place, last.cached)
            if last.is_spoiled:
                self._cache.clear_row(len(self._active))


def _prefills(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces in their order, `LONGEST_PREFILL` tokens at most in one prefill."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        size = piece.end - piece.start
        if not groups or size > room:
            groups.append([])
            room = LONGEST_PREFILL
        groups[-1].append(piece)
        room -= size
    return groups
