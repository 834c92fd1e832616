"""The products that cannot be avoided, in FLOPs, and the weights that have to be read: what the machine allows.

A multiplication and an addition are 2. Norms, activations, softmax and everything else that is no product count
nothing, so the limit is below what anybody can reach. What sequences begin with in common counts once, padding never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rates:
    """What this machine does: FLOP/s and bytes/s."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class PrefixTree:
    """Distinct tokens of some sequences, each with all that stands before it; pairs: of a token and one it may see."""

    tokens: int
    pairs: int

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "PrefixTree":
        """What the sequences begin with in common is there once."""
        children: dict[tuple[int, int], int] = {}
        pairs = 0
        for sequence in sequences:
            node = 0
            for depth, token in enumerate(sequence, start=1):
                known = len(children)
                node = children.setdefault((node, token), known + 1)
                if len(children) > known:
                    pairs += depth
        return cls(len(children), pairs)


@dataclass(frozen=True)
class Predictions:
    """What has to be computed to predict some tokens: all tokens before them. used: distinct places to predict from."""

    tree: PrefixTree
    used: int

    @classmethod
    def of_labels(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Predictions":
        """Token ids and labels of each row, of which -100 is not trained. What stands from the last label on is not
        needed; rows are taken to differ from where training begins."""
        read: list[Sequence[int]] = []
        used = 0
        for ids, labels in rows:
            trained = [place for place, label in enumerate(labels) if place and label != -100]
            read.append(ids[: max(trained, default=0)])
            used += len(trained)
        return cls(PrefixTree.of(read), used)

    @classmethod
    def of_responses(cls, prompts: Sequence[Sequence[int]], length: int) -> "Predictions":
        """Responses of this length, all different from the first token on. Equal prompts predict the first one once."""
        read = [[*prompt, *[-1 - index, *range(length)][: length - 1]] for index, prompt in enumerate(prompts)]
        return cls(PrefixTree.of(read), len({tuple(prompt) for prompt in prompts}) + len(prompts) * (length - 1))


@dataclass(frozen=True)
class Decoder:
    """The sizes of a Llama-like decoder: grouped-query attention, a gated MLP, a head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Decoder":
        """Of a `transformers` config."""
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def qkv_weights(self) -> int:
        """Of the query, key and value projections of one layer."""
        return self.hidden * self.head_size * (self.heads + 2 * self.kv_heads)

    @property
    def kv_weights(self) -> int:
        """Of the key and value projections of one layer."""
        return self.hidden * self.head_size * 2 * self.kv_heads

    @property
    def layer_weights(self) -> int:
        """Of all linear layers of one layer."""
        return self.qkv_weights + self.hidden * self.head_size * self.heads + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Of all linear layers and the head: what is read for each token that is sampled."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden

    def forward(self, tree: PrefixTree, used: int) -> float:
        """FLOPs of the layers. used: positions whose last hidden state is needed; the others end in the last layer's
        keys and values."""
        unused = tree.tokens - used
        linear = 2.0 * (
            tree.tokens * self.layers * self.layer_weights - unused * (self.layer_weights - self.kv_weights)
        )
        return linear + self._attention(tree)

    def _attention(self, tree: PrefixTree) -> float:
        """Scores and weighted values: two products of `head_size` for each pair and head, in all layers but the last,
        which depends on what is used."""
        return 4.0 * (self.layers - 1) * self.heads * self.head_size * tree.pairs

    def backward(self, tree: PrefixTree, used: int, *, rank: int | None = None) -> float:
        """FLOPs of the gradients: with an adapter of this rank on every linear layer, or (None) of all weights.

        Inputs of the first projections need no gradient: the embedding is frozen, or takes it by a look-up.
        """
        unused = tree.tokens - used
        linear = 2.0 * (
            tree.tokens * self.layers * self.layer_weights - unused * (self.layer_weights - self.kv_weights)
        )
        inputs = linear - 2.0 * tree.tokens * self.qkv_weights + 2 * self._attention(tree)
        if rank is None:
            return inputs + linear
        # For each adapter B·A: x·A and y'·B, and from them the gradients of B and A.
        return inputs + 4.0 * tree.tokens * (self.layers - 1) * rank * self._in_and_out

    @property
    def _in_and_out(self) -> int:
        """Σ (inputs + outputs) of the seven linear layers of one layer."""
        queries, keys = self.head_size * self.heads, self.head_size * self.kv_heads
        attention = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return attention + 3 * (self.hidden + self.intermediate)

    def head(self, positions: int, products: int) -> float:
        """FLOPs of so many products with the head: logits, gradient of the hidden states, gradient of the weights."""
        return 2.0 * positions * self.hidden * self.vocabulary * products

    def training(self, predictions: "Predictions", *, rank: int | None = None) -> dict[str, list[float]]:
        """What a worker says of a step that trains these predictions, for `part_limits`. rank: see `backward`; with
        all weights trained the head takes a third product."""
        tree, used = predictions.tree, predictions.used
        return {
            "flops student forward": [self.forward(tree, used)],
            "flops head and loss": [self.head(used, 2 if rank else 3)],
            "flops backward": [self.backward(tree, used, rank=rank)],
        }

    def prompts(self, prompts: Sequence[Sequence[int]]) -> float:
        """FLOPs up to the first token of each response."""
        distinct = len({tuple(prompt) for prompt in prompts})
        return self.forward(PrefixTree.of(prompts), distinct) + self.head(distinct, 1)

    def decoding(self, lengths: Sequence[int]) -> tuple[float, float]:
        """FLOPs and bytes of sampling responses of these lengths together; their first tokens come of the prompts.

        Each step multiplies all weights with the rows that go on, and reads them once, whatever their number.
        """
        return 2.0 * self.weights * sum(length - 1 for length in lengths), 4.0 * self.weights * (max(lengths) - 1)


def rollout_work(decoder: Decoder, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[str, list[float]]:
    """What a worker says of its rollouts, for `rollout_limit`."""
    flops, read = decoder.decoding(lengths)
    return {"flops prompts": [decoder.prompts(prompts)], "flops decoding": [flops], "bytes decoding": [read]}


def rollout_limit(work: Mapping[str, Sequence[float]], rates: Rates) -> float:
    """Seconds: the prompts' products, then the products or the reading of the decoding, which goes on at once."""
    decoding = max(work["flops decoding"][0] / rates.flops, work["bytes decoding"][0] / rates.bytes)
    return work["flops prompts"][0] / rates.flops + decoding
