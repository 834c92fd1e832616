"""Whether a decoder read from a model is that model: a few tokens through both. Not here: the reading.

Adapters begin with a B of zeros and add nothing, so that a trial of the model as it is would see nothing of them. B
therefore has noise on it while both are tried, in place of the model's own tensors and not in them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tutelage.models import inference_mode_of
from tutelage.rollouts.decoder import Decoder, Piece

PROBE = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 9, 8, 7, 6, 5, 12])
PREFILLED = 7
"""Tokens of each probe that are a prompt; the others follow one at a time."""
FINE_ERRORS, COARSE_ERRORS = (1e-4, 1e-2), (0.06, 0.3)
"""Relative errors of the logits, at the median place and at the worst. A model's own float32 logits differ from its
float64 ones, and with the size of the batch, by 1e-5 at most places of a 135M Llama and by 1e-3 at an odd one. In
bfloat16 small random models of two layers come to 0.012 to 0.023 at the median, and to 0.4 and more if the adapter of
one kind of layer is left out."""
NOISE = 0.3
"""‖s·E·A‖ / ‖W‖ in Frobenius norm for noise E on the B of an adapter with scaling s: not lost in the rounding of a
coarse type, and less than the layer itself."""


def gives_the_same(inner: nn.Module, read: Callable[[Any], Decoder]) -> bool | None:
    """Whether the decoder that `read` makes of the model has its logits, at prompts and at the steps after them.

    None where that was not found out: the model's logits are not finite. Nothing of the model is written to.
    """
    with inference_mode_of(inner):
        error_N, is_coarse = functional_call(
            _Comparison(inner), {f"inner.{name}": b_NR for name, b_NR in _noisy_adapters(inner)}, (read,)
        )
    if error_N is None:
        return None
    usual, largest = COARSE_ERRORS if is_coarse else FINE_ERRORS
    return float(error_N.median()) <= usual and float(error_N.max()) <= largest


class _Comparison(nn.Module):
    """A module, because `functional_call` puts tensors in place for a module's call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, read: Callable[[Any], Decoder]) -> tuple[Tensor | None, bool]:
        """Relative errors of the logits, [N] (none where they are not finite), and whether the type is a coarse one."""
        decoder = read(self.inner)
        is_coarse = decoder.embedding.dtype in (torch.bfloat16, torch.float16)
        length = min(map(len, PROBE))
        ids_RT = torch.tensor([tokens[:length] for tokens in PROBE], device=decoder.device)
        expected_RTV = self.inner(input_ids=ids_RT, use_cache=False).logits[:, PREFILLED - 1 :].float()
        if not expected_RTV.isfinite().all():
            return None, is_coarse
        gap_RT = (expected_RTV - _logits(decoder, ids_RT)).norm(dim=-1)
        error_RT = torch.where(gap_RT == 0, 0.0, gap_RT / expected_RTV.norm(dim=-1))  # all may be 0
        return error_RT.flatten(), is_coarse


def _logits(decoder: Decoder, ids_RT: Tensor) -> Tensor:
    """From the last token of the prompts on, float32 [R, T − PREFILLED + 1, V]."""
    rows, length = ids_RT.shape
    longest = max(map(len, PROBE))
    rotations, cache = decoder.rotations(longest), decoder.cache(rows, longest)
    pieces = [Piece(row, tokens, 0, PREFILLED) for row, tokens in enumerate(PROBE)]
    states = [decoder.prefill(pieces, cache, rotations)[PREFILLED - 1 :: PREFILLED]]
    for place in range(PREFILLED, length):
        states.append(decoder.step(ids_RT[:, place], [place] * rows, cache, rotations))
    hidden_NH = torch.stack(states, dim=1).flatten(0, 1)
    room_NV = hidden_NH.new_empty(len(hidden_NH), len(decoder.head.weight), dtype=torch.float32)
    return decoder.logits(hidden_NH, room_NV).unflatten(0, (rows, -1))


def _noisy_adapters(inner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The B of every LoRA layer with noise on it, by the parameter's name."""
    generator = torch.Generator().manual_seed(0)
    for path, module in inner.named_modules():
        layer: Any = module
        for name, b in getattr(layer, "lora_B", {}).items():
            noise_NR = torch.randn(b.weight.shape, generator=generator).to(b.weight)
            a, weight = layer.lora_A[name].weight, layer.base_layer.weight
            # For noise of standard deviation 1, ‖s·E·A‖ is s·√N·‖A‖ on average.
            reach = abs(layer.scaling[name]) * len(noise_NR) ** 0.5 * _norm(a)
            size = NOISE * _norm(weight) / reach if reach > 0 else 0.0
            yield f"{path}.lora_B.{name}.weight", b.weight.detach() + noise_NR * size


def _norm(tensor: Tensor) -> float:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=wide))
