"""Measuring never changes training: weights after n steps are bit-equal with monitoring on and off."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.small_runs import assert_same_bits, run_small, trained_weights
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.events import EventLog, Tag
from tutelage.files import JsonLinesFile
from tutelage.monitoring import Monitor, Sinks

# PEFT 0.21 asks for an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

STEPS = 4


class Drawing(TrainerCallback):
    """A sink that draws random numbers, as those do that give a run a random name."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)


def new_model(is_peft: bool) -> nn.Module:
    model = tiny_model(tiny_tokenizer())
    if not is_peft:
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        return model
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "down_proj"]))


def everything_measured(folder: Path) -> dict[str, Any]:
    prompts, rows = folder / "prompts.jsonl", folder / "rows.jsonl"
    prompts.write_text(json.dumps({"prompt": "hello"}) + "\n" + json.dumps({"prompt": "what is two and two?"}) + "\n")
    (folder / "b.jsonl").write_text(json.dumps({"prompt": "no"}) + "\n")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    return {
        "monitoring_eval_steps": 1,
        "monitoring_prompts": prompts,
        "monitoring_max_new_tokens": 2,
        "monitoring_directions": {"d": {"a": prompts, "b": folder / "b.jsonl"}},
        "logp_callback_datasets": {"rows": rows},
        "logp_per_token": True,
        "eval_every_n_steps": 1,
        "sampling_callbacks": [{"file": prompts, "every_n_steps": 1, "max_new_tokens": 2}],
    }


def train(folder: Path, is_peft: bool, options: dict[str, Any]) -> tuple[dict[str, Tensor], EventLog]:
    events = EventLog(folder / "events.jsonl")
    config = TrainingConfig(model="m", training_file=folder / "rows.jsonl", **options)
    sinks = Sinks(["drawing"] if options else [], events)
    samples = JsonLinesFile(folder / "samples.jsonl")
    monitor = Monitor(config, ChatTemplate(tiny_tokenizer()), events, samples, sinks)
    model = new_model(is_peft)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 320, (2 * STEPS, 12), generator=generator).tolist()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        learning_rate=0.05,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows: Any = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[sinks, monitor])
    monitor.setup(model)
    trainer.train()
    return {name: value.clone() for name, value in model.state_dict().items()}, events


@pytest.mark.parametrize("is_peft", [True, False])
def test_weights_are_bit_equal_with_monitoring_on_and_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_peft: bool
):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "drawing", Drawing)
    for name in ("off", "on"):
        (tmp_path / name).mkdir()
    plain, _ = train(tmp_path / "off", is_peft, {})
    monitored, events = train(tmp_path / "on", is_peft, everything_measured(tmp_path / "on"))
    assert [event.step for event in events.read(Tag.MONITORING)] == list(range(STEPS + 1))
    assert [event.step for event in events.read(Tag.LOGPROB)] == list(range(STEPS + 1))
    assert events.read(Tag.WARNING) == []
    assert all("loss" in event.values and "grad_norm" in event.values for event in events.read(Tag.MONITORING)[1:])
    assert events.read(Tag.MONITORING)[-1].values["weight_diff_norm"] > 0.1
    assert plain.keys() == monitored.keys()
    assert [name for name in plain if not torch.equal(plain[name], monitored[name])] == []


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["sft", "dft", "sdft"])
def test_a_run_is_bit_equal_with_monitoring_on_and_off(tmp_path: Path, loss: str, is_peft: bool):
    options: dict[str, Any] = {"loss": loss, "is_peft": is_peft, "optim": "adamw_torch", "learning_rate": 0.01}
    options |= {"lora_dropout": 0.3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    (tmp_path / "measured").mkdir()
    off = run_small(tmp_path, "off", max_steps=3, **options)
    on = run_small(tmp_path, "on", max_steps=3, **options, **everything_measured(tmp_path / "measured"))
    assert [event.step for event in on.events(Tag.MONITORING)] == [0, 1, 2, 3]
    warnings = [[event.values["message"] for event in run.events(Tag.WARNING)] for run in (on, off)]
    assert warnings[0] == warnings[1]
    assert_same_bits(trained_weights(on), trained_weights(off))
    losses = [[event.values["loss"] for event in run.events(Tag.TRAIN)] for run in (on, off)]
    assert losses[0] == losses[1]


def test_every_measurement_leaves_modes_gradients_and_random_states(tmp_path: Path):
    config = TrainingConfig(model="m", training_file=tmp_path / "rows.jsonl", **everything_measured(tmp_path))
    events = EventLog(tmp_path / "events.jsonl")
    monitor: Any = Monitor(config, ChatTemplate(tiny_tokenizer()), events, JsonLinesFile(tmp_path / "samples.jsonl"))
    model = new_model(is_peft=True)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    frozen.eval()  # a mode of its own
    monitor.setup(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
            parameter.data += 0.1

    def observe() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [None if p.grad is None else float(p.grad.sum()) for p in model.parameters()],
            [value.tolist() for value in model.state_dict().values()],
            model.config.use_cache,  # pyright: ignore[reportAttributeAccessIssue]
            torch.is_grad_enabled(),
        ]

    before = observe()
    assert [measurement.name for measurement in monitor._measurements] == [
        "weight drift",
        "kl_vs_base",
        "cos_sim",
        "logp_callback_datasets.rows",
        "sampling_callbacks[0]",
    ]
    for measurement in monitor._measurements:
        measurement.measure(model, 1)
        assert observe() == before, measurement.name
