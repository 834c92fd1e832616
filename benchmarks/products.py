"""The large products of one sdft step and nothing else, of the same shapes, as fast as PyTorch makes them here.

Below what anybody can reach with PyTorch: no attention, no norm, no adapter, no softmax, nothing between two products.
Above the limit of `limits.py`, which takes the rate of one large product for all of them and the reading of weights for
sampling. Each layer has matrices of its own: those of a model do not stay in a cache either.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.limits import Decoder, Predictions, PrefixTree
from benchmarks.measure import seconds


def products_alone(
    decoder: Decoder, prompts: Sequence[Sequence[int]], teacher_prompts: Sequence[Sequence[int]], new_tokens: int
) -> dict[str, list[float]]:
    """Seconds of each part and of all, after one pass to warm up. Responses are all different."""
    import torch

    students, teachers = (Predictions.of_responses(each, new_tokens) for each in (prompts, teacher_prompts))
    key_values = 2 * decoder.kv_heads * decoder.head_size
    queries = decoder.heads * decoder.head_size
    shapes = [
        (queries + key_values, decoder.hidden),
        (decoder.hidden, queries),
        (2 * decoder.intermediate, decoder.hidden),
        (decoder.hidden, decoder.intermediate),
    ]
    layers = [[torch.randn(shape) for shape in shapes] for _ in range(decoder.layers)]
    head_VD = torch.randn(decoder.vocabulary, decoder.hidden)

    def through_layers(tokens: int) -> Any:
        """Outputs of all layers: x Wᵀ."""
        given = [torch.randn(tokens, weight.shape[1]) for weight in layers[0]]
        given = [(x, torch.empty(tokens, len(weight))) for x, weight in zip(given, layers[0], strict=True)]
        return lambda: [
            torch.mm(x, weight.T, out=out)
            for weights in layers
            for (x, out), weight in zip(given, weights, strict=True)
        ]

    def backward(tokens: int) -> Any:
        """Gradients of all inputs: y' W."""
        given = [torch.randn(tokens, len(weight)) for weight in layers[0]]
        given = [(y, torch.empty(tokens, weight.shape[1])) for y, weight in zip(given, layers[0], strict=True)]
        return lambda: [
            torch.mm(y, weight, out=out) for weights in layers for (y, out), weight in zip(given, weights, strict=True)
        ]

    def head(positions: int, others: int) -> Any:
        """Logits of both sides, and the gradient of one side's hidden states."""
        both = torch.randn(positions + others, decoder.hidden)
        logits, gradient = torch.empty(len(both), decoder.vocabulary), torch.empty(positions, decoder.hidden)

        def work() -> None:
            torch.mm(both, head_VD.T, out=logits)
            torch.mm(logits[:positions], head_VD, out=gradient)

        return work

    def steps(rows: int, count: int) -> Any:
        """Steps of decoding, by blocks of the weights, which is the fastest way for few rows."""
        blocked = [
            [_blocks(weight, 16 if len(weight) == decoder.hidden else 64, rows) for weight in weights]
            for weights in layers
        ]
        every = [*(each for weights in blocked for each in weights), _blocks(head_VD, 512, rows)]
        return lambda: [torch.bmm(x, weight, out=out) for _ in range(count) for x, weight, out in every]

    works: dict[str, list[Callable[[], Any]]] = {
        "rollout": [through_layers(PrefixTree.of(prompts).tokens), steps(len(prompts), new_tokens - 1)],
        "teacher": [through_layers(teachers.tree.tokens)],
        "student forward": [through_layers(students.tree.tokens)],
        "head and loss": [head(students.used, teachers.used)],
        "backward": [backward(students.tree.tokens)],
    }
    found: dict[str, list[float]] = {}
    for name, parts in works.items():
        for work in parts:
            work()
        found[name] = [sum(map(seconds, parts))]
    return found | {"step": [sum(value for (value,) in found.values())]}


def _blocks(weight_NK: Any, width: int, rows: int) -> tuple[Any, Any, Any]:
    """Factors and result of x Wᵀ as a batch of products with `width` rows of W each."""
    import torch

    count = len(weight_NK) // width
    x_BMK = torch.randn(rows, weight_NK.shape[1]).expand(count, rows, -1)
    return x_BMK, weight_NK[: count * width].view(count, width, -1).transpose(1, 2), torch.empty(count, rows, width)
