"""grpo: TRL's trainer with our rollouts, scores and log-probabilities.

Not here: what becomes of missing scores (`rewards.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import gather
from rich.console import Console
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from tutelage.config import GrpoConfig, TrainingConfig
from tutelage.data.rows import PromptRow
from tutelage.events import EventLog, Tag
from tutelage.files import JsonLinesFile
from tutelage.losses import AnyHead, TokenLogProbs, token_log_probs
from tutelage.models import LoadedModel, head_forward, lay_out, unwrapped
from tutelage.models.scoring import Pair, predicting_places
from tutelage.rollouts import generate, rollout_seed
from tutelage.training.arguments import build_arguments
from tutelage.training.gold_evaluation import GoldAnswerTrainer
from tutelage.training.inputs import TrainingInputs
from tutelage.training.metrics import MetricSums
from tutelage.training.order import GroupSampler
from tutelage.training.reward_check import check_reward, gold_text, messages_of, outside_training, reward_columns
from tutelage.training.rewards import Scores
from tutelage.training.run_trainer import SHOWN_ROLLOUTS
from tutelage.training.trl_trainers.shared import TrlTrainer


class GrpoTrainer(GoldAnswerTrainer, TrlTrainer, GRPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Group relative policy optimisation. `samples` receives a few rollouts every `logging_steps`."""

    token_masks = ("prompt_mask", "completion_mask")

    def __init__(
        self,
        *,
        rows: Sequence[PromptRow],
        test_prompts: Sequence[PromptRow],
        scores: Scores,
        samples: JsonLinesFile,
        stop_ids: Sequence[int],
        **arguments: Any,
    ) -> None:
        self.rows, self.test_prompts = rows, test_prompts
        self.scores, self.samples = scores, samples
        self.sampled_rows: list[PromptRow] = []
        """The rows of the batch that is being sampled, one an answer."""
        dataset = datasets.Dataset.from_list([{"prompt": messages_of(row), "index": i} for i, row in enumerate(rows)])
        inner = unwrapped(arguments["model"])
        forward = inner.__dict__.get("forward")
        super().__init__(train_dataset=dataset, reward_funcs=[_scored_elsewhere], **arguments)
        if not self.aux_loss_enabled:
            _put_back(inner, forward)
        objective = self.config.objective
        assert isinstance(objective, GrpoConfig)
        self.grpo = objective
        self.eos_token_ids = list(stop_ids)

    @classmethod
    def build(
        cls, config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, run: Path, events: EventLog
    ) -> "GrpoTrainer":
        grpo = config.objective
        assert isinstance(grpo, GrpoConfig)
        assert inputs.scores is not None
        arguments = build_arguments(
            GRPOConfig,
            config,
            run,
            inputs.eval_rows is not None,
            num_generations=grpo.num_generations,
            num_generations_eval=1,
            max_completion_length=grpo.max_completion_length,
            temperature=grpo.temperature,
            top_p=grpo.top_p,
            epsilon=grpo.epsilon,
            loss_type=grpo.loss_type,
            beta=config.beta,
            gradient_checkpointing=None,  # the loader switches it on, with the arguments this project wants
        )
        return cls.accepted(
            config,
            inputs,
            loaded,
            events,
            args=arguments,
            eval_dataset=inputs.eval_rows,
            eval_collate=inputs.collate_eval,
            rows=inputs.train_items,
            test_prompts=inputs.test_prompts,
            scores=inputs.scores,
            samples=JsonLinesFile(run / "samples.jsonl"),
            stop_ids=inputs.template.end_of_turn_ids,
        )

    def check_first(self, rows: Sequence[Any], console: Console) -> None:
        values = self.scores.of_gold or check_reward(self.scores, rows)
        if self.is_world_process_zero():
            self.events.write(0, Tag.CHECK, values)
        if "gold_reward" in values:
            text = gold_text(values)
        else:
            text = f"the judge scored none of {values['rows']} gold answers{self.scores.reason()}"
            self.warn(text)
            text = f"warning: {text}"
        console.print(text, highlight=False)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An order that depends on seed and epoch alone; TRL's own is another one after a run is continued."""
        return GroupSampler(
            self.rows,
            self.config.seed,
            group=self.grpo.num_generations,
            rows_per_step=self.args.generation_batch_size // self.grpo.num_generations,
            repeats=self.num_iterations * self.args.steps_per_generation,
        )

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """TRL's, with the rows' weights as factors of the advantages."""
        self.sampled_rows = [self.rows[item["index"]] for item in inputs]
        output = super()._generate_and_score_completions(inputs)
        weights_N = torch.tensor([row.weight for row in self.sampled_rows]).to(output["advantages"])
        output["advantages"] = output["advantages"] * weights_N
        return output

    def _tokenize_prompts(self, prompts: Any) -> Any:
        """The ids of the rows: text is never tokenised a second time."""
        return [row.prompt_ids for row in self.sampled_rows], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """This project's rollouts, which depend on nothing but seed, step, row, and number within the group."""
        group, here = self.grpo.num_generations, len(self.sampled_rows)
        first = self.accelerator.process_index * here
        identities = [(row.row, (first + place) % group) for place, row in enumerate(self.sampled_rows)]
        return self._sample(self.sampled_rows, identities), None

    def _sample(self, rows: Sequence[PromptRow], identities: Sequence[tuple[int, int]]) -> list[list[int]]:
        step, pad_token_id = self.state.global_step, self._tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        return generate(
            self.model,
            [row.prompt_ids for row in rows],
            pad_token_id=pad_token_id,
            stop_ids=self.eos_token_ids,
            max_new_tokens=self.grpo.max_completion_length,
            temperature=self.grpo.temperature,
            top_p=self.grpo.top_p,
            seeds=[rollout_seed(self.config.seed, step, *identity) for identity in identities],
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Of the answers' tokens [B, `logits_to_keep`], 0 where there is none; entropies are constants.

        TRL computes a prompt once for each answer, and logits of prompts and padding too: here prompts are shared
        (`models/layout.py`), and only answers go through the head. TRL's own where a loss of experts is asked for.
        """
        if compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss
            )
        keep_BT = attention_mask.bool()
        kept_BC, ids_BC = keep_BT[:, -logits_to_keep:], input_ids[:, -logits_to_keep:]
        prompts, answers = (
            [ids_T[keep_T].tolist() for ids_T, keep_T in zip(*side, strict=True)]
            for side in ((input_ids[:, :-logits_to_keep], keep_BT[:, :-logits_to_keep]), (ids_BC, kept_BC))
        )
        pairs = list(zip(prompts, answers, strict=True))
        size = batch_size or len(pairs)
        parts = [
            self._log_probs(model, batch, with_entropy=compute_entropy)
            for batch in [pairs[start : start + size] for start in range(0, len(pairs), size)]
        ]
        log_prob_N, entropy_N = map(torch.cat, zip(*parts, strict=True))
        log_prob_BC = log_prob_N.new_zeros(kept_BC.shape).masked_scatter(kept_BC, log_prob_N)
        entropy_BC = entropy_N.new_zeros(kept_BC.shape).masked_scatter(kept_BC, entropy_N) if compute_entropy else None
        return log_prob_BC, entropy_BC, None

    def _log_probs(self, model: Any, pairs: Sequence[Pair], *, with_entropy: bool) -> TokenLogProbs:
        """Of the answers of these pairs, one after the other, at the temperature of the rollouts."""
        layout = lay_out(model, [[*prompt, *answer] for prompt, answer in pairs])
        place_N = predicting_places(layout, pairs)
        tokens_N = torch.tensor([token for _, answer in pairs for token in answer], device=place_N.device)

        def through_head(hidden_ND: Tensor, head: AnyHead) -> TokenLogProbs:
            return token_log_probs(hidden_ND, head, tokens_N, temperature=self.temperature, with_entropy=with_entropy)

        with self.accelerator.autocast():
            return head_forward(model, layout.inputs, through_head, place_N)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Scores of all processes' answers, shape [N, 1], all finite: see `Scores`."""
        answers = [turns[-1]["content"] for turns in completions]
        columns = reward_columns(self.sampled_rows, answers, completion_ids_list)
        loggers = {"log_extra": self._log_completion_extra, "log_metric": self._log_metric}
        found_N = self.scores.raw(columns | {"trainer_state": self.state} | loggers)
        gathered: Any = gather(found_N.to(self.accelerator.device))
        scores_N, missing = self.scores.filled(gathered)
        self._metrics["train"]["unscored"].append(float(missing))
        self._write_samples(answers, found_N.tolist())
        return scores_N[:, None]

    def _write_samples(self, answers: Sequence[str], scores: Sequence[float]) -> None:
        step = self.state.global_step + 1
        if not self.is_world_process_zero() or step % self.config.logging_steps:
            return
        for row, answer, score in list(zip(self.sampled_rows, answers, scores, strict=True))[:SHOWN_ROLLOUTS]:
            self.samples.append(
                {
                    "step": step,
                    "tag": "rollout",
                    "place": row.place,
                    "question": row.prompt[-1].content,
                    "response": answer,
                    "reward": score,
                }
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, without the mean and deviation of each reward: there is one, and they are `reward`, `reward_std`.

        `unscored` is a count: of all steps since the last log, where TRL takes means.
        """
        for metrics in self._metrics.values():
            if metrics.get("unscored"):
                metrics["unscored"] = [sum(metrics["unscored"])]
            for name in [name for name in metrics if name.startswith("rewards/")]:
                del metrics[name]
        super().log(logs, start_time)

    def evaluate_own(self, metrics: MetricSums, prefix: str) -> None:
        """`eval_reward`: of one answer a test row, sampled as in training; `eval_unscored` rows are left out."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        rows = self.test_prompts[rank::processes]
        total, count, missing = 0.0, 0, 0
        if rows:
            ids = self._sample(rows, [(row.row, self.grpo.num_generations) for row in rows])
            answers = [str(text) for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]
            found_N = self.scores.raw(reward_columns(rows, answers, ids) | outside_training(self.state))
            finite_N = found_N[torch.isfinite(found_N)]
            total, count, missing = float(finite_N.sum()), len(finite_N), len(rows) - len(finite_N)
        metrics.add(f"{prefix}_reward", total, count)
        metrics.add(f"{prefix}_unscored", missing, 1 if rank == 0 else 0)  # the sum over processes, no mean


def _put_back(model: Any, forward: Any) -> None:
    """The forward that the model had before TRL put one with a head of its own in its place.

    Nothing calls TRL's, and a model with another's forward is not sampled by our decoder.
    """
    if forward is None:
        model.__dict__.pop("forward", None)
    else:
        model.forward = forward


def _scored_elsewhere(**columns: Any) -> list[float]:
    raise TypeError("GrpoTrainer._calculate_rewards calls the reward")
