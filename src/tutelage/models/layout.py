"""Token sequences made into one batch of a model's inputs, and where each of their tokens went.

Sequences are laid end to end, without padding, as a tree: what several of them begin with (one system prompt, several
answers to one question) is computed once, and each goes on as a branch that sees its own ancestors and no other branch
(`branch_attention.py`). With position ids of its own a token has the hidden state it has in a row of its own; a
gradient that arrives from several branches adds up. Eight chat prompts of 36 tokens, 23 of them the same system turn,
with answers of 13 are 231 positions in place of 392. Where a model does not take that, rows are padded.

Not here: the head and the loss on top (`head.py`, `losses`).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.models.branch_attention import BRANCHES, Branches
from tutelage.models.inference import inference_mode_of
from tutelage.models.sharding import is_sharded
from tutelage.models.wrappers import unwrapped

SHORTEST_SHARED = 8
"""Tokens. A shorter beginning is computed once for each: a branch more costs more than so few positions."""
PROBE = [[*range(1, 10), 10, 11], [*range(1, 10), 12], [*range(1, 10), 13, 3, 1, 14, 7], [15, 2, 3], [*range(1, 10)]]
"""Sequences on which a tree is compared with rows of their own."""


@dataclass(frozen=True)
class Layout:
    """`inputs`: what a decoder takes. `places`: for each sequence, int64 [length], the rows of its tokens in the
    hidden states `[B, T, D].flatten(0, 1)`."""

    inputs: dict[str, Any]
    places: list[Tensor]

    @property
    def all_places(self) -> Tensor:
        """The places of all tokens, sequence after sequence."""
        return torch.cat(self.places)

    def to(self, device: torch.device | str) -> "Layout":
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return Layout(inputs, [place.to(device) for place in self.places])


def lay_out(model: nn.Module, sequences: Sequence[Sequence[int]], otherwise: Layout | None = None) -> Layout:
    """A tree where the model takes one, else `otherwise`, which is padded rows unless given. On the model's device."""
    inner = unwrapped(model)
    if takes_trees(model):
        return _Tree.of(sequences).layout(inner.dtype).to(inner.device)
    return (padded(sequences) if otherwise is None else otherwise).to(inner.device)


def padded(sequences: Sequence[Sequence[int]]) -> Layout:
    """A row for each sequence, padded on the right with token 0, which the attention mask leaves out."""
    length = max(map(len, sequences))
    ids_BT = torch.zeros((len(sequences), length), dtype=torch.long)
    attention_BT = torch.zeros((len(sequences), length), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        attention_BT[row, : len(sequence)] = 1
    places = [torch.arange(len(sequence)) + row * length for row, sequence in enumerate(sequences)]
    return Layout({"input_ids": ids_BT, "attention_mask": attention_BT}, places)


def shared_tokens(one: Sequence[int], other: Sequence[int], known: int = 0) -> int:
    """How many tokens both begin with; `known` of them are known to be the same."""
    longest = min(len(one), len(other))
    return next((at for at in range(known, longest) if one[at] != other[at]), longest)


def takes_trees(model: nn.Module) -> bool:
    """Whether a tree gives this model the hidden states of rows of their own; found out once, by trying.

    A model that does has the attention of `branch_attention` from then on. Not for attention of another kind, for
    windows (positions lie elsewhere than in a row), or for layers that carry a state along the row, through which one
    branch would see another. In float32 on a CPU only: elsewhere rounding hides what the trial looks for, and nothing
    of it has been run.
    """
    inner = unwrapped(model)
    if is_sharded(model):  # the trial asks the decoder alone
        return False
    if inner.device.type != "cpu" or inner.dtype not in (torch.float32, torch.float64):
        return False
    if getattr(inner.config, "_attn_implementation", None) not in ("sdpa", BRANCHES):
        return False
    if not hasattr(inner, "_tutelage_takes_trees"):
        inner._tutelage_takes_trees = _found_to_take_trees(inner)
    if inner._tutelage_takes_trees:  # a model that shares its configuration may have been tried since
        _replace_sdpa(inner.config, BRANCHES)
    return inner._tutelage_takes_trees


def _found_to_take_trees(inner: Any) -> bool:
    config = inner.config.get_text_config()
    takes_positions = "position_ids" in inspect.signature(inner.base_model.forward).parameters
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if (
        has_window(config)
        or not takes_positions
        or set(kinds) != {"full_attention"}
        or config.vocab_size <= max(map(max, PROBE))
    ):
        return False
    layouts = padded(PROBE).to(inner.device), _Tree.of(PROBE).layout(inner.dtype).to(inner.device)
    kept = _attention_of(inner.config)
    found = False
    try:
        with inference_mode_of(inner):
            expected_ND, found_ND = (
                _hidden(inner, layout, attention) for layout, attention in zip(layouts, ("sdpa", BRANCHES), strict=True)
            )
        found = float((expected_ND - found_ND).abs().max()) <= 1e-4 * float(expected_ND.abs().max())
    except Exception:  # whatever an architecture says to inputs it does not know
        found = False
    finally:
        _set_attention(kept)
    return found


def _hidden(inner: Any, layout: Layout, attention: str) -> Tensor:
    _replace_sdpa(inner.config, attention)
    hidden_BTD = inner.base_model(**layout.inputs, use_cache=False).last_hidden_state
    return hidden_BTD.flatten(0, 1)[layout.all_places]


def _attention_of(config: Any) -> list[tuple[Any, str | None]]:
    """Configurations and the attention each names: a model's, then those of its parts, at any depth."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    inside = [pair for part in parts if part is not None for pair in _attention_of(part)]
    return [(config, config._attn_implementation), *inside]


def _set_attention(attention: list[tuple[Any, str | None]]) -> None:
    """In this order: to set it for a model sets it for all of its parts."""
    for config, name in attention:
        config._attn_implementation = name


def _replace_sdpa(config: Any, name: str) -> None:
    """Attention of another kind, which a part such as an image encoder may have, stays."""
    ours = "sdpa", BRANCHES
    _set_attention([(one, name if present in ours else present) for one, present in _attention_of(config)])


def has_window(config: Any) -> bool:
    """Whether tokens see only so many before them, by the names of options: a window is longer than any trial."""
    return any(
        value and name != "max_window_layers"
        for name, value in config.to_dict().items()
        if any(part in name for part in ("window", "attention_types", "attention_chunk"))
    )


class _Group(NamedTuple):
    """Sequences in lexical order that have the first `depth` tokens in common, which lie at `path`."""

    members: list[int]
    depth: int
    ancestors: list[int]
    path: list[int]


@dataclass(frozen=True)
class _Tree:
    """Sequences as branches: what sequences share stands once, before what they go on with."""

    tokens: list[int] = field(default_factory=list[int])
    depths: list[int] = field(default_factory=list[int])
    """Of each token: how many stand before it in its sequence."""
    lengths: list[int] = field(default_factory=list[int])
    """Of each branch."""
    ancestors: list[list[int]] = field(default_factory=list[list[int]])
    """Of each branch, from the first on."""
    paths: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Of each sequence, where its tokens lie."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "_Tree":
        tree = cls()
        order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
        waiting: list[_Group] = [_Group(order, 0, [], [])]
        while waiting:
            waiting += reversed(tree._grown(waiting.pop(), sequences))
        return tree

    def _grown(self, group: "_Group", sequences: Sequence[Sequence[int]]) -> "list[_Group]":
        """Add the branch that the group shares, if it is long enough, and give the groups that go on differently."""
        members, depth, ancestors, path = group
        first, last = sequences[members[0]], sequences[members[-1]]  # in lexical order these two differ first
        shared = shared_tokens(first, last, depth)
        if len(members) == 1 or len(first) == len(last) == shared or shared - depth >= SHORTEST_SHARED:
            place = len(self.tokens)
            path = [*path, *range(place, place + shared - depth)]
            if shared > depth:
                ancestors = [*ancestors, len(self.lengths)]
                self.tokens.extend(first[depth:shared])
                self.depths.extend(range(depth, shared))
                self.lengths.append(shared - depth)
                self.ancestors.append(ancestors[:-1])
            depth = shared
        done = [index for index in members if len(sequences[index]) == depth]
        self.paths.update((index, path) for index in done)
        following = groupby(members[len(done) :], key=lambda index: sequences[index][shared : shared + 1])
        return [_Group([*part], depth, ancestors, path) for _, part in following]

    def layout(self, dtype: torch.dtype) -> Layout:
        inputs = {
            "input_ids": torch.tensor([self.tokens]),
            "position_ids": torch.tensor([self.depths]),
            # Of four dimensions, so that no model makes one of its own; empty, so that attention which does not know of
            # branches fails.
            "attention_mask": torch.zeros(1, 1, 0, 0, dtype=dtype),
            "branches": Branches(self.lengths, self.ancestors),
        }
        return Layout(inputs, [torch.tensor(self.paths[index], dtype=torch.long) for index in range(len(self.paths))])
