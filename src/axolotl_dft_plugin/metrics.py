"""Logs token means beside the loss, corrects the perplexity, and stops a run whose trainer never asks for the loss.

A callback of `transformers`. Not here: the sums themselves, which `trainer.py` collects batch by batch.
"""

import math
import os
from typing import Any

import torch
from transformers import TrainerCallback

from axolotl_dft_plugin.loss import exact_dtype
from axolotl_dft_plugin.trainer import DFTTraining


class LogTokenMeans(TrainerCallback):
    """Has to be the first callback, so that all others see what it adds.

    Training: `nll` and `mean_token_probability` over the tokens since the last log, and `ppl` = exp(nll). Evaluation:
    the same with the prefix `eval_` over the tokens of the whole evaluation, and `eval_loss` as such a mean too.
    """

    def __init__(self, training: DFTTraining) -> None:
        self._training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.require_own_loss_function()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.require_that_loss_was_asked_for()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.require_that_loss_was_asked_for()  # trainers with a loop of their own skip the hook above

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        phase, prefix = _phase(logs := {} if logs is None else logs)
        # Processes meet in the means: only for what all of them log.
        means = self._means(phase) if phase else {}
        if not means:
            return
        digits = int(os.environ.get("AXOLOTL_METRIC_NDIGITS", "5"))  # how Axolotl rounds the metrics it adds
        logs[f"{prefix}nll"] = round(means["nll"], digits)
        logs[f"{prefix}mean_token_probability"] = round(means["probability"], digits)
        logs[f"{prefix}ppl"] = round(_exp(means["nll"]), digits)
        if phase == "eval":
            logs[f"{prefix}loss"] = means["dft_loss"]
        state.log_history[-1].update(logs)

    def _means(self, phase: str) -> dict[str, float]:
        """Means over the tokens of all processes; empty where there was none."""
        sums = self._training.pop_sums(phase)
        accelerator = self._training.trainer.accelerator
        names = ("dft_loss", "nll", "probability", "tokens")
        # A process may have had no batch at all, but all of them have to meet in the reduction.
        local = torch.tensor(
            [float(sums.get(name, 0.0)) for name in names],
            dtype=exact_dtype(accelerator.device),
            device=accelerator.device,
        )
        total = dict(zip(names, accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        return {name: value / total["tokens"] for name, value in total.items()} if total["tokens"] else {}


def _phase(logs: dict[str, Any]) -> tuple[str, str]:
    """What a trainer logs, `train` or `eval`, with the prefix of its names; empty for anything else.

    Others log too, and not on every process: only what comes with the run time of an evaluation is one.
    """
    if "loss" in logs:
        return "train", ""
    prefixes = (key.removesuffix("runtime") for key in logs if key.endswith("_runtime") and key != "train_runtime")
    return next((("eval", prefix) for prefix in prefixes if f"{prefix}loss" in logs), ("", ""))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
