"""Optimizer steps of this project's trainers and of TRL's: the same model, adapter and rows; time by part, peak memory.

Not here: which rows and options a case has (`cases`).
"""

import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from benchmarks.measure import PeakMemory
from benchmarks.settings import LORA_LAYERS, RANK

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class StepClock(TrainerCallback):
    """Times the steps of a trainer and their parts, by what all trainers of `transformers` have.

    rollout: the name of the trainer's method that samples. A step lasts from the end of the one before to its own end,
    rollouts, updates of the teacher and logging included.

    The layers are timed by a forward put onto the decoder, which is taken off while a rollout is sampled: ours reads
    the tensors of a model that nobody has changed.
    """

    def __init__(self, trainer: Any, rollout: str | None = None) -> None:
        self._parts: dict[str, float] = defaultdict(float)
        self._in_loss = False
        self.steps: list[dict[str, float]] = []
        self.peak_mib = 0.0
        if rollout:
            setattr(trainer, rollout, self._rollout(getattr(trainer, rollout)))
        trainer.compute_loss = self._loss(trainer.compute_loss)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        self._decoder_module = decoder_of(trainer.model)
        self._timed_forward = self._decoder(self._decoder_module.forward)
        self._decoder_module.forward = self._timed_forward
        trainer.add_callback(self)

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._parts[part] += time.perf_counter() - began

        return timed

    def _rollout(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def sampled(*args: Any, **kwargs: Any) -> Any:
            del self._decoder_module.forward
            try:
                return self._timed("rollout", work)(*args, **kwargs)
            finally:
                self._decoder_module.forward = self._timed_forward

        return sampled

    def _loss(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def loss(*args: Any, **kwargs: Any) -> Any:
            self._in_loss = True
            try:
                return self._timed("head and loss", work)(*args, **kwargs)
            finally:
                self._in_loss = False

        return loss

    def _decoder(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def forward(*args: Any, **kwargs: Any) -> Any:
            part = "student forward" if torch.is_grad_enabled() else "teacher"
            before = self._parts[part]
            result = self._timed(part, work)(*args, **kwargs)
            if self._in_loss:
                self._parts["head and loss"] -= self._parts[part] - before
            return result

        return forward

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        for parameter in kwargs["model"].parameters():
            parameter.detach().sum()  # a mapped file is in memory once it was read
        self._memory = PeakMemory()
        self._last = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer_began = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._parts["optimizer"] += time.perf_counter() - self._optimizer_began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        step = now - self._last
        self.steps.append({"step": step, **self._parts, "other": step - sum(self._parts.values())})
        self._parts.clear()
        self._last = now
        self.peak_mib = self._memory.mib()
        control.should_save = False

    def samples(self, warm_up: int) -> dict[str, list[float]]:
        """Seconds of each part of the steps after the first `warm_up`; the peak is that of all steps."""
        names = dict.fromkeys(name for step in self.steps[warm_up:] for name in step)
        measured = {name: [step.get(name, 0.0) for step in self.steps[warm_up:]] for name in names}
        return measured | {"peak_mib": [self.peak_mib]}


def decoder_of(model: Any) -> Any:
    """The layers below the head, below an adapter."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def run(trainer: Any, *, warm_up: int = 1, rollout: str | None = None) -> dict[str, list[float]]:
    """Train, and give what the steps after the first `warm_up` took: the first one takes up to half as long again."""
    clock = StepClock(trainer, rollout)
    trainer.train()
    return clock.samples(warm_up)


def our_config(rows: Sequence[dict[str, Any]], steps: int, **options: Any) -> Any:
    """A config for these rows, in a folder of its own."""
    from tutelage.config import TrainingConfig

    folder = Path(tempfile.mkdtemp())
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run").mkdir()
    defaults = {
        "model": "smollm2",
        "training_file": file,
        "output_dir": folder / "run",
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "r": RANK,
        "target_modules": LORA_LAYERS,
    }
    return TrainingConfig(**(defaults | options))


def our_trainer(config: Any) -> Any:
    """A trainer of this project, by the way that `tutelage train` takes."""
    from tutelage.events import EventLog
    from tutelage.models import load_model
    from tutelage.training.build import build_trainer
    from tutelage.training.inputs import prepare_inputs

    torch.set_flush_denormal(True)  # as `train` does
    inputs = prepare_inputs(config)
    torch.manual_seed(1)
    loaded = load_model(config, inputs.source)
    run = config.output_dir
    trainer = build_trainer(config, inputs, loaded, run, EventLog(run / "events.jsonl"))
    for callback in trainer.own_callbacks():  # sdft moves its teacher in one
        trainer.add_callback(callback)
    return trainer


def trl_arguments(steps: int) -> dict[str, Any]:
    """What every config of TRL's gets: the length of the run; no bfloat16, which this machine has no products for."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }


def plain_model(source: str) -> Any:
    """The model as TRL's users load it, in float32."""
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def plain_tokenizer(source: str) -> Any:
    """The tokenizer likewise."""
    return AutoTokenizer.from_pretrained(source)


def lora() -> Any:
    """The same adapter for TRL's trainers; rank-stabilised as ours is, which costs nothing."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=16, use_rslora=True, target_modules=list(LORA_LAYERS))


def large_vocabulary_model(vocabulary: int = 151_936) -> str:
    """A folder with a two-layer model of the width of Qwen2-0.5B, tied, with the tokenizer of SmolLM2; made once."""
    from tutelage.models import load_tokenizer, resolve_model
    from tutelage.models.loading import cache_folder

    folder = cache_folder() / "benchmarks" / f"two-layers-{vocabulary}"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = load_tokenizer(resolve_model("smollm2"))
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=2,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)
