"""sft and dft: a loss on the tokens of the demonstrations themselves."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tutelage.training.base_trainer import BaseTrainer


class TokenTrainer(BaseTrainer):
    """Mean NLL (`sft`), or Dynamic Fine-Tuning's −sg(p)·log p (`dft`), over the response tokens.

    `nll`, mean token probability and token accuracy are logged for both, so that curves can be compared.
    """

    def loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        loss_sum, stats = self.token_loss_sum(model, inputs)
        self.record_tokens(stats)
        return loss_sum
