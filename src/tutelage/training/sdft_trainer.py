"""sdft: the student samples, the teacher (itself, having seen the demonstration) grades every token.

    L(θ) = (1/K) Σ_{t ∈ response} D( π_θ(·|y_<t, x) , π_φ(·|y_<t, x, c) ),   y ~ π_θ(·|x)      arXiv:2601.19897

All rollouts of an optimizer step are sampled before its first backward pass: K has to be known, and one large
batch samples faster than many small ones. Not here: sampling and the teacher's weights (`rollouts`).
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tutelage.config import SdftConfig
from tutelage.data.prepare import DistillationRow
from tutelage.files import JsonLinesFile
from tutelage.losses import AnyHead, Divergence, Head, divergence_objective
from tutelage.models import head_forward, inference_mode_of, lay_out, response_scores
from tutelage.models.scoring import predicting_places
from tutelage.rollouts import Teacher, TemplatePhrases, generate, rollout_seed
from tutelage.rollouts.vllm_sampler import Sampler, VllmSampler
from tutelage.training.base_trainer import BaseTrainer
from tutelage.training.inputs import TrainingInputs
from tutelage.training.run_trainer import SHOWN_ROLLOUTS
from tutelage.training.teacher_check import check_demonstrations

TEACHER_FILE = "teacher.safetensors"


@dataclass(frozen=True)
class Rollout:
    """A response to one row's prompt. Off policy, it is the gold answer."""

    row: DistillationRow
    response: list[int]
    on_policy: bool


class SdftTrainer(BaseTrainer):
    """Self-distillation fine-tuning. `samples` receives a few rollouts every `logging_steps`."""

    def __init__(self, *, samples: JsonLinesFile, stop_ids: Sequence[int], **arguments: Any) -> None:
        super().__init__(**arguments)
        objective = self.config.objective
        assert isinstance(objective, SdftConfig)
        self.sdft = objective
        self.samples = samples
        self.stop_ids = set(stop_ids)
        self.tokenizer: Any = self.processing_class
        self.teacher = Teacher(self.model, objective)
        self.generate: Sampler = generate
        if self.config.rollout_backend == "vllm":
            self.generate = VllmSampler(self.model, self.config.max_seq_length)
        self.phrases = TemplatePhrases(objective.demo_template)
        self.divergence = Divergence(
            kind=objective.divergence,
            beta=objective.jsd_beta,
            estimator=objective.estimator,
            top_k=objective.topk,
            temperature=objective.loss_temperature,
        )

    @classmethod
    def own_arguments(cls, inputs: TrainingInputs, run: Path) -> dict[str, Any]:
        return {"samples": JsonLinesFile(run / "samples.jsonl"), "stop_ids": inputs.template.end_of_turn_ids}

    def own_callbacks(self) -> list[TrainerCallback]:
        return [MoveTeacher(self)]

    def check_first(self, rows: Sequence[DistillationRow], console: Console) -> None:
        check_demonstrations(self, rows, console)

    # --- before the step: rollouts and the teacher's view of them -------------------------------------------------

    def prepare_step(self, batches: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        rows_of_batches: list[list[DistillationRow]] = [batch["rows"] for batch in batches]
        started = time.perf_counter()
        rollouts = self.sample([row for rows in rows_of_batches for row in rows])
        sampled = sum(len(rollout.response) for rollout in rollouts if rollout.on_policy)
        self.metrics.add("rollout_tokens_per_second", sampled, time.perf_counter() - started)
        self._record_rollouts(rollouts)
        prepared: list[dict[str, Any]] = []
        taken = 0
        per_row = self.sdft.num_generations
        with self.teacher.applied(self.model), inference_mode_of(self.model):
            for rows in rows_of_batches:
                share = rollouts[taken : taken + len(rows) * per_row]
                taken += len(share)
                prepared.append(self._batch_for_student(share))
        self._record_gold_gain([row for rows in rows_of_batches for row in rows if row.weight > 0])
        self.metrics.add("teacher_distance", self.teacher.distance(self.model), 1)
        if self.sdft.normalization == "token":
            return prepared, sum(int(batch["mask_N"].sum()) for batch in prepared)
        return prepared, sum(batch["sequences"] for batch in prepared)

    def sample(self, rows: Sequence[DistillationRow]) -> list[Rollout]:
        """`num_generations` responses per row from the present student; gold answers for the off-policy share, and
        for rows of weight 0, which nothing is learnt from."""
        step = self.state.global_step
        requests = [(row, index) for row in rows for index in range(self.sdft.num_generations)]
        seeds = [rollout_seed(self.config.seed, step, row.row, index) for row, index in requests]
        on_policy = [
            row.weight > 0 and random.Random(seed).random() >= self.sdft.off_policy_fraction
            for (row, _), seed in zip(requests, seeds, strict=True)
        ]
        wanted = [index for index, sampled in enumerate(on_policy) if sampled]
        responses = self.generate(
            self.model,
            [requests[index][0].prompt_ids for index in wanted],
            pad_token_id=self.tokenizer.pad_token_id,
            stop_ids=self.stop_ids,
            max_new_tokens=self.sdft.max_new_tokens,
            temperature=self.sdft.temperature,
            top_p=self.sdft.top_p,
            seeds=[seeds[index] for index in wanted],
        )
        sampled = dict(zip(wanted, responses, strict=True))
        return [
            Rollout(row, sampled[index], True) if index in sampled else Rollout(row, list(row.gold_ids), False)
            for index, (row, _) in enumerate(requests)
        ]

    def _batch_for_student(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """The student's inputs, and hidden states of the teacher at the same response tokens.

        Called while the teacher's weights are in place. Both sides hold the same response ids, so position n of
        one is position n of the other.
        """
        device = self.args.device
        pairs = [(rollout.row.prompt_ids, rollout.response) for rollout in rollouts]
        views = [(rollout.row.teacher_prompt_ids, rollout.response) for rollout in rollouts]
        layout, teacher_layout = (
            lay_out(self.model, [[*prompt, *response] for prompt, response in side]) for side in (pairs, views)
        )
        teacher_place_N = predicting_places(teacher_layout, views)

        def hidden(hidden_ND: Tensor, head: AnyHead) -> tuple[Tensor, AnyHead]:
            return hidden_ND, self._own_copy(head)

        teacher_hidden_ND, teacher_head = head_forward(
            self.accelerator.unwrap_model(self.model), teacher_layout.inputs, hidden, teacher_place_N
        )
        lengths = [len(rollout.response) for rollout in rollouts]
        trained = [max(length - self.sdft.skip_tokens, 0) for length in lengths]
        mask_N = torch.cat([torch.arange(length) >= self.sdft.skip_tokens for length in lengths]).to(device)
        weight_of_row = [
            rollout.row.weight / (count if self.sdft.normalization == "sequence" else 1) if count else 0.0
            for rollout, count in zip(rollouts, trained, strict=True)
        ]
        weights_N = torch.tensor(weight_of_row).repeat_interleave(torch.tensor(lengths)).to(device) * mask_N
        return {
            "layout": layout,
            "place_N": predicting_places(layout, pairs),
            "tokens_N": torch.tensor([token for rollout in rollouts for token in rollout.response], device=device),
            "mask_N": mask_N & (weights_N > 0),
            "weights_N": weights_N,
            "teacher_hidden_ND": teacher_hidden_ND,
            "teacher_head": teacher_head,
            "sequences": sum(weight > 0 for weight in weight_of_row),
            "tokens": sum(len(place) for place, weight in zip(layout.places, weight_of_row, strict=True) if weight > 0),
            "places": [rollout.row.place for rollout in rollouts],
        }

    @staticmethod
    def _own_copy(head: AnyHead) -> AnyHead:
        """The teacher's head: the student's own where that is frozen, else a copy made while φ is in place."""
        if not isinstance(head, Head) or not head.weight.requires_grad:
            return head
        bias = None if head.bias is None else head.bias.detach().clone()
        return Head(head.weight.detach().clone(), bias, head.softcap, head.scale)

    def num_tokens(self, inputs: Mapping[str, Any]) -> int:
        return inputs["tokens"]

    # --- the loss -------------------------------------------------------------------------------------------------

    def loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        mask_N = inputs["mask_N"]

        def through_head(hidden_ND: Tensor, head: AnyHead) -> Any:
            return divergence_objective(
                hidden_ND,
                head,
                inputs["teacher_hidden_ND"][mask_N],
                inputs["teacher_head"],
                inputs["tokens_N"][mask_N],
                inputs["weights_N"][mask_N],
                self.divergence,
            )

        result = head_forward(model, inputs["layout"].inputs, through_head, inputs["place_N"][mask_N])
        stats, count = result.stats, int(mask_N.sum())
        self.metrics.add("reverse_kl", stats.reverse_kl.sum(), count)
        self.metrics.add("forward_kl", stats.forward_kl.sum(), count)
        self.metrics.add("student_entropy", stats.student_entropy.sum(), count)
        self.metrics.add("teacher_entropy", stats.teacher_entropy.sum(), count)
        self.metrics.add("rollout_gain", (stats.teacher_logp - stats.student_logp).sum(), count)
        self.metrics.add("nll", -stats.student_logp.sum(), count)
        return result.loss_sum

    # --- what is logged -------------------------------------------------------------------------------------------

    def _record_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        sampled = [rollout for rollout in rollouts if rollout.on_policy]
        truncated = [rollout for rollout in sampled if rollout.response[-1] not in self.stop_ids]
        texts = [self.tokenizer.decode(rollout.response, skip_special_tokens=True) for rollout in sampled]
        leaks = [
            self.phrases.leaked(text, rollout.row.question, rollout.row.demonstration_text)
            for text, rollout in zip(texts, sampled, strict=True)
        ]
        self.metrics.add("response_length", sum(len(rollout.response) for rollout in sampled), len(sampled))
        self.metrics.add("truncated_share", len(truncated), len(sampled))
        self.metrics.add("template_leak_share", sum(leaks), len(sampled))
        step = self.state.global_step + 1
        if self.is_world_process_zero() and step % self.config.logging_steps == 0:
            for text, leak, rollout in list(zip(texts, leaks, sampled, strict=True))[:SHOWN_ROLLOUTS]:
                self.samples.append(
                    {
                        "step": step,
                        "tag": "rollout",
                        "place": rollout.row.place,
                        "question": rollout.row.question,
                        "demonstration": rollout.row.demonstration_text,
                        "response": text,
                        "template_leak": leak,
                    }
                )

    def _record_gold_gain(self, rows: Sequence[DistillationRow]) -> None:
        gain = self.demonstration_gain(rows[: self.sdft.gold_gain_rows])
        self.metrics.add("gold_gain", gain.with_demonstration - gain.without, gain.tokens)

    def demonstration_gain(self, rows: Sequence[DistillationRow]) -> "Gain":
        """Σ log p of the gold answers: the teacher's with the demonstration, and the student's without it."""
        plain = response_scores(self.model, [(row.prompt_ids, row.gold_ids) for row in rows])
        with self.teacher.applied(self.model):
            shown = response_scores(self.model, [(row.teacher_prompt_ids, row.gold_ids) for row in rows])
        return Gain(
            with_demonstration=float(sum(score.log_probs.sum() for score in shown)),
            without=float(sum(score.log_probs.sum() for score in plain)),
            tokens=sum(len(row.gold_ids) for row in rows),
            greedy_with=[score.greedy for score in shown],
            greedy_without=[score.greedy for score in plain],
        )

    # --- state ----------------------------------------------------------------------------------------------------

    def save_extra_state(self, folder: Path) -> None:
        self.teacher.save(folder / TEACHER_FILE)

    def load_extra_state(self, folder: Path) -> None:
        self.teacher.load(folder / TEACHER_FILE)


@dataclass(frozen=True)
class Gain:
    """Gold answers with and without the demonstration: their summed log-probabilities in nats over `tokens` tokens, and
    for each row whether greedy decoding would give the answer, token for token."""

    with_demonstration: float
    without: float
    tokens: int
    greedy_with: list[bool]
    greedy_without: list[bool]


class MoveTeacher(TrainerCallback):
    """φ follows θ after each optimizer step, before a checkpoint of that step is written."""

    def __init__(self, trainer: SdftTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.teacher.after_step(self._trainer.model, state.global_step)
