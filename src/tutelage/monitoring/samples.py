"""Answers sampled while training, one row each for `samples.jsonl`. Not here: the rollouts a loss learns from."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tutelage.config.training import SamplingCallback
from tutelage.data.chat_template import ChatTemplate
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import EncodedPrompt, answer_text, encode_prompts, padding_id, read_prompts
from tutelage.rollouts import generate, rollout_seed


@dataclass(frozen=True)
class AnswerSampler:
    """Samples an answer to every prompt of one sampling callback's file."""

    config: SamplingCallback
    prompts: Sequence[EncodedPrompt]
    template: ChatTemplate
    seed: int
    """Answers depend on this, the step and the row, and on nothing else that is random."""

    @classmethod
    def prepare(cls, config: SamplingCallback, model: nn.Module, template: ChatTemplate, seed: int) -> "AnswerSampler":
        """Raises DataError for a prompt file that cannot be used."""
        prompts = encode_prompts(read_prompts(config.file), template, model, config.max_new_tokens)
        return cls(config, prompts, template, seed)

    def sample(self, model: nn.Module, step: int, batch_size: int = 32) -> list[dict[str, object]]:
        """Rows with step, tag, prompt (messages), answer, its number of tokens, and whether it hit the limit."""
        stop_ids = self.template.end_of_turn_ids
        with leaving_no_trace(model):
            answers = generate(
                model,
                [item.ids for item in self.prompts],
                pad_token_id=padding_id(self.template),
                stop_ids=stop_ids,
                max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature,
                seeds=[rollout_seed(self.seed, step, row) for row in range(len(self.prompts))],
                batch_size=batch_size,
            )
        return [
            {
                "step": step,
                "tag": self.config.tag,
                "prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt.messages],
                "answer": answer_text(self.template, ids),
                "tokens": len(ids),
                "truncated": ids[-1] not in stop_ids,
            }
            for item, ids in zip(self.prompts, answers, strict=True)
        ]
