"""Where the hidden states point: the cosine between their mean and named directions.

A direction is d = normalise(mean h(a) − mean h(b)) from two sets of contrasting prompts, taken once from the model
before training, so that a curve shows the model moving and not the direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.config.training import Direction
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError
from tutelage.models import lay_out, unwrapped
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import encode_prompts, read_prompts


@dataclass(frozen=True)
class HiddenDirection:
    """A unit vector in the residual stream, and where the hidden states it is compared with are read."""

    name: str
    unit: Tensor
    """d, shape [D], of length 1."""
    layer: int
    position: str

    @classmethod
    def prepare(
        cls, name: str, config: Direction, model: nn.Module, template: ChatTemplate, batch_size: int = 16
    ) -> "HiddenDirection":
        """Take the direction from the model as it is now.

        Raises DataError for prompt files that cannot be used or that do not differ, ConfigError for a layer the
        model does not have.
        """
        option = f"monitoring_directions.{name}"
        means: list[Tensor] = []
        for path in (config.a, config.b):
            encoded = encode_prompts(read_prompts(path), template, model)
            prompts = [item.ids for item in encoded]
            try:
                means.append(mean_hidden(model, prompts, config.layer, config.position, batch_size))
            except IndexError as error:
                raise ConfigError(f"{option}.layer: {config.layer} does not exist; {error}") from error
        difference_D = means[0] - means[1]
        if not float(difference_D.norm()) > 0.0:
            raise DataError(
                f"{option}: the prompts of {config.a} and {config.b} have the same mean hidden state at position "
                f"'{config.position}'; give prompts that contrast, or another position"
            )
        return cls(name, difference_D / difference_D.norm(), config.layer, config.position)

    def cosine(self, mean_D: Tensor) -> float:
        """cos(mean, d) in [−1, 1]; 0 for a zero vector."""
        norm = float(mean_D.norm())
        return float(mean_D @ self.unit) / norm if norm > 0.0 else 0.0

    def measure(self, model: nn.Module, prompts: Sequence[list[int]], batch_size: int = 16) -> dict[str, float]:
        """`cos_sim/<name>`: cosine between d and the mean hidden state over `prompts`, which are token ids."""
        mean_D = mean_hidden(model, prompts, self.layer, self.position, batch_size)
        return {f"cos_sim/{self.name}": self.cosine(mean_D)}


def mean_hidden(
    model: nn.Module,
    prompts: Sequence[list[int]],
    layer: int = -1,
    position: str = "last",
    batch_size: int = 16,
) -> Tensor:
    """The mean over prompts of h, shape [D], float64 on the CPU.

    h is the hidden state after `layer` (0 is the embedding, -1 the last, normalised one) at the prompt's last token
    (`last`), or averaged over its tokens (`mean`). Raises IndexError, saying which layers there are.
    """
    decoder = unwrapped(model).base_model
    total_D: Tensor | None = None
    order = sorted(prompts)
    with leaving_no_trace(model):
        for start in range(0, len(order), batch_size):
            layout = lay_out(model, order[start : start + batch_size])
            layers = decoder(**layout.inputs, output_hidden_states=True, use_cache=False).hidden_states
            if not -len(layers) <= layer < len(layers):
                raise IndexError(f"the model has the layers 0 to {len(layers) - 1}, and -1 is the last")
            hidden_ND = layers[layer].flatten(0, 1).double()
            parts = [hidden_ND[place[-1] if position == "last" else place] for place in layout.places]
            part_D = torch.stack([part.reshape(-1, part.shape[-1]).mean(dim=0) for part in parts]).sum(dim=0).cpu()
            total_D = part_D if total_D is None else total_D + part_D
    if total_D is None:
        raise ValueError("mean_hidden needs at least one prompt")
    return total_D / len(order)
