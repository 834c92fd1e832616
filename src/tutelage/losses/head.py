"""The last layer of a model: hidden states to logits, and gradients of logits back to before its scaling.

Where a model keeps its head, and whether it is tied, is found elsewhere.
"""

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from tutelage.errors import ConfigError, ShapeError
from tutelage.losses.per_position import compute_dtype
from tutelage.losses.positions import require_shape


@dataclass(frozen=True)
class Head:
    """logits = cap(scale · (h Wᵀ + b)), with cap(z) = softcap · tanh(z / softcap) if there is a soft-cap.

    `scale` multiplies, as Cohere's `logit_scale` does; for Granite pass 1 / `logits_scaling`. The soft-cap comes
    last, as in Gemma 2. Raises ShapeError if bias and weight disagree, ConfigError unless softcap > 0.
    """

    weight: Tensor
    """[V, D]; trained if it requires grad."""
    bias: Tensor | None = None
    """[V]."""
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ShapeError(
                f"the head's weight has shape {list(self.weight.shape)}, expected [vocabulary, hidden]; "
                "pass lm_head.weight"
            )
        if self.bias is not None:
            require_shape("the head's bias", self.bias, (self.weight.shape[0],), "the head's weight")
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError(f"a head's softcap must be positive, got {self.softcap}; pass None for no soft-cap")

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.weight.shape[0]

    def shares_logits(self, other: "Head") -> bool:
        """Whether the other makes the same logits of the same hidden states, out of the same memory."""
        return (
            self.weight is other.weight
            and self.bias is other.bias
            and self.scale == other.scale
            and self.softcap == other.softcap
        )

    def at_temperature(self, temperature: float) -> "Head":
        """The head whose logits are these divided by `temperature`, after the soft-cap."""
        softcap = None if self.softcap is None else self.softcap / temperature
        return replace(self, softcap=softcap, scale=self.scale / temperature)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, V] in float32 (float64 for a float64 weight); the product itself is in the weight's dtype."""
        raw_NV = functional.linear(hidden_ND.to(self.weight.dtype), self.weight, self.bias)
        logits_NV = raw_NV.to(compute_dtype(raw_NV.dtype))
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = (logits_NV / self.softcap).tanh() * self.softcap
        return logits_NV

    def gradient_before_scaling(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """The gradient to h Wᵀ + b [N, V] from the one to the logits, which is overwritten."""
        if self.softcap is not None:
            gradient_NV.mul_(1.0 - (logits_NV / self.softcap).square_())
        if self.scale != 1.0:
            gradient_NV.mul_(self.scale)
        return gradient_NV


@dataclass(frozen=True)
class IdentityHead:
    """Stands in for a head where the hidden states are the logits already: models whose head is not found."""

    vocabulary: int

    def logits(self, logits_NV: Tensor) -> Tensor:
        """[N, V] in float32, or float64 if given."""
        return logits_NV.to(compute_dtype(logits_NV.dtype))


AnyHead = Head | IdentityHead
