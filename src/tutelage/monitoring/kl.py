"""How far the outputs have moved: KL between the model now and the model before training, on fixed prompts.

Not here: the divergence itself (`models.scoring`), distances between weights (`drift.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.models import ResponseKl, WeightCopy, response_kl
from tutelage.models.scoring import Pair
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import Prompt, encode_prompts, padding_id
from tutelage.rollouts import generate


@dataclass(frozen=True)
class KlToBase:
    """Measures `kl_vs_base`. The base is the model with the weights `base`: θ_0, before training.

    For a fresh LoRA adapter that is the model with its adapter switched off, since B starts at 0; for an adapter
    that came trained it is the adapter as it came. Prompts are answered greedily, so two measurements differ only
    where the weights do.
    """

    base: WeightCopy
    base_pairs: Sequence[Pair]
    """Prompt ids and the base model's answer."""
    template: ChatTemplate
    max_new_tokens: int
    batch_size: int = 16

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        base: WeightCopy,
        prompts: Sequence[Prompt],
        template: ChatTemplate,
        max_new_tokens: int,
        batch_size: int = 16,
    ) -> "KlToBase":
        """Let the base answer the prompts, whatever weights `model` has now.

        Raises DataError for a prompt that does not fit the model.
        """
        encoded = encode_prompts(prompts, template, model, max_new_tokens)
        kl = cls(base, [(item.ids, []) for item in encoded], template, max_new_tokens, batch_size)
        with leaving_no_trace(model), base.applied(model):
            return cls(base, kl._answered(model), template, max_new_tokens, batch_size)

    def measure(self, model: nn.Module, own_answers: bool = True) -> dict[str, float]:
        """Token-averaged divergences in nats, each exact over the vocabulary at every position of the answers.

        kl_vs_base: KL(model ‖ base) on the base's answers; kl_vs_base_own: the same on the model's own answers of
        now. kl_base_vs_model, kl_base_vs_model_own: KL(base ‖ model) on the same two. All are 0 for unchanged
        weights. Without `own_answers` the second and fourth are left out, and nothing is generated.
        """
        names = ["kl_vs_base", "kl_base_vs_model"]
        if own_answers:
            names += ["kl_vs_base_own", "kl_base_vs_model_own"]
        if self.base.distance(model) == 0.0:
            return dict.fromkeys(names, 0.0)
        with leaving_no_trace(model):
            values = list(_per_token(response_kl(model, self.base, self.base_pairs, self.batch_size)))
            if own_answers:
                values += _per_token(response_kl(model, self.base, self._answered(model), self.batch_size))
        return dict(zip(names, values, strict=True))

    def _answered(self, model: nn.Module) -> list[Pair]:
        prompts = [prompt for prompt, _ in self.base_pairs]
        answers = generate(
            model,
            prompts,
            pad_token_id=padding_id(self.template),
            stop_ids=self.template.end_of_turn_ids,
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            batch_size=self.batch_size,
        )
        return list(zip(prompts, answers, strict=True))


def _per_token(parts: Sequence[ResponseKl]) -> tuple[float, float]:
    """KL(model ‖ base) and KL(base ‖ model) over all tokens, each token counting the same."""
    tokens = max(sum(part.tokens for part in parts), 1)
    return sum(part.reverse for part in parts) / tokens, sum(part.forward for part in parts) / tokens
