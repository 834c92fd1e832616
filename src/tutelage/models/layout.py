"""Token sequences made into one batch of a model's inputs, and where each of their tokens went.

Sequences that begin alike (one system prompt, several answers to one question) are laid out as a tree of their
tokens: what they share is computed once. A token sees its own ancestors and no other branch, by a mask and position
ids of its own, so its hidden state is the one it has in a row of its own; a gradient that arrives from several
branches adds up. Eight chat prompts of 36 tokens, 23 of them the same system turn, with answers of 13 are 231
positions in place of 392, and none of them is padding. Otherwise rows are padded.

Not here: the head and the loss on top (`head.py`, `losses`).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.inference import inference_mode_of
from tutelage.models.wrappers import unwrapped

LARGEST_TREE = 4096
"""Tokens; the mask holds the square of it."""
MASKABLE_ATTENTION = ("sdpa", "eager")
"""Implementations that take a mask of each position over each other."""
PROBE = [[1, 2, 3, 4, 5], [1, 2, 6], [1, 2, 3, 7, 8, 9]]
"""Sequences on which a tree is compared with rows of their own."""


@dataclass(frozen=True)
class Layout:
    """`inputs`: what a decoder takes. `places`: for each sequence, int64 [length], the rows of its tokens in the
    hidden states `[B, T, D].flatten(0, 1)`."""

    inputs: dict[str, Tensor]
    places: list[Tensor]

    @property
    def all_places(self) -> Tensor:
        """The places of all tokens, sequence after sequence."""
        return torch.cat(self.places)

    def to(self, device: torch.device | str) -> "Layout":
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Layout(inputs, [place.to(device) for place in self.places])


def lay_out(model: nn.Module, sequences: Sequence[Sequence[int]], otherwise: Layout | None = None) -> Layout:
    """A tree where the model takes one and it is the cheaper way, else `otherwise`, which is padded rows unless given.

    On the model's device.
    """
    inner = unwrapped(model)
    otherwise = padded(sequences) if otherwise is None else otherwise
    tree = _Tree.of(sequences) if takes_trees(model) else None
    if tree is not None and _tree_is_cheaper(model, tree, otherwise):
        return tree.layout(inner.dtype).to(inner.device)
    return otherwise.to(inner.device)


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


def takes_trees(model: nn.Module) -> bool:
    """Whether a tree gives this model the hidden states of rows of their own; found out once, by trying.

    Not for attention that takes no mask, for windows (the mask would replace them), or for layers that carry a
    state along the row, through which one branch would see another. In float32 on a CPU only: elsewhere rounding
    hides what the trial looks for, and nothing of it has been run.
    """
    inner = unwrapped(model)
    if inner.device.type != "cpu" or inner.dtype not in (torch.float32, torch.float64):
        return False
    if getattr(inner.config, "_attn_implementation", None) not in MASKABLE_ATTENTION:
        return False
    if not hasattr(inner, "_tutelage_takes_trees"):
        inner._tutelage_takes_trees = _found_to_take_trees(inner)
    return inner._tutelage_takes_trees


def _found_to_take_trees(inner: Any) -> bool:
    config = inner.config.get_text_config()
    # A window is longer than any trial, so it has to be known by its name.
    windowed = any(value for name, value in config.to_dict().items() if _names_a_window(name))
    takes_positions = "position_ids" in inspect.signature(inner.base_model.forward).parameters
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if windowed or not takes_positions or set(kinds) != {"full_attention"} or config.vocab_size <= max(map(max, PROBE)):
        return False
    tree = _Tree.of(PROBE)
    assert tree is not None
    layouts = padded(PROBE).to(inner.device), tree.layout(inner.dtype).to(inner.device)
    try:
        with inference_mode_of(inner):
            expected_ND, found_ND = (
                inner.base_model(**layout.inputs, use_cache=False).last_hidden_state.flatten(0, 1)[layout.all_places]
                for layout in layouts
            )
    except Exception:  # whatever an architecture says to inputs it does not know
        return False
    return float((expected_ND - found_ND).abs().max()) <= 1e-4 * float(expected_ND.abs().max())


def _names_a_window(option: str) -> bool:
    return option != "max_window_layers" and any(
        part in option for part in ("window", "attention_types", "attention_chunk")
    )


@dataclass(frozen=True)
class _Tree:
    """Every token once for every different past. A parent stands before its children."""

    tokens: list[int]
    depths: list[int]
    paths: list[list[int]]
    """For each sequence, the nodes of its tokens."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "_Tree | None":
        """None where it would be too large."""
        tree = cls([], [], [])
        node_after: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node, path = -1, []
            for depth, token in enumerate(sequence):
                following = node_after.get((node, token))
                if following is None:
                    following = node_after[node, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.depths.append(depth)
                node = following
                path.append(node)
            tree.paths.append(path)
            if len(tree.tokens) > LARGEST_TREE:
                return None
        return tree

    def layout(self, dtype: torch.dtype) -> Layout:
        places = [torch.tensor(path, dtype=torch.long) for path in self.paths]
        size = len(self.tokens)
        sees_TT = torch.zeros(size, size, dtype=torch.bool)
        for place in places:
            sees_TT[place[:, None], place] = torch.ones(len(place), len(place), dtype=torch.bool).tril()
        mask_TT = torch.zeros(size, size, dtype=dtype).masked_fill(~sees_TT, torch.finfo(dtype).min)
        inputs = {
            "input_ids": torch.tensor([self.tokens]),
            "position_ids": torch.tensor([self.depths]),
            "attention_mask": mask_TT[None, None],
        }
        return Layout(inputs, places)


def _tree_is_cheaper(model: nn.Module, tree: _Tree, otherwise: Layout) -> bool:
    """By multiplications: a token meets every weight of the layers once, and each token it attends to twice.

    A masked attention computes all of its square, a causal one about half.
    """
    config = unwrapped(model).config.get_text_config()
    per_pair = 2 * config.hidden_size * config.num_hidden_layers
    per_token = 12 * config.hidden_size**2 * config.num_hidden_layers
    size = len(tree.tokens)
    rows, length = otherwise.inputs["input_ids"].shape
    return size * per_token + size**2 * per_pair < rows * (length * per_token + length**2 * per_pair / 2)
