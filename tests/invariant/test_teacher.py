"""The teacher of sdft: what its weights are after every step, and that nothing of it reaches optimizer or export."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from tests.small_runs import assert_same_bits, largest_difference, run_small, small_config, trained_weights
from tutelage.config import SdftConfig, TrainingConfig
from tutelage.events import EventLog, Tag
from tutelage.models import load_model
from tutelage.models.weight_copy import WeightCopy, trainable_parameters
from tutelage.rollouts import Teacher
from tutelage.training.build import build_trainer
from tutelage.training.inputs import prepare_inputs
from tutelage.training.sdft_trainer import MoveTeacher, SdftTrainer


class EachStep(TrainerCallback):
    """Calls `look(trainer)` after every optimizer step."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._look()


def sdft_trainer(config: TrainingConfig) -> SdftTrainer:
    inputs = prepare_inputs(config)
    torch.manual_seed(config.seed)
    loaded = load_model(config, inputs.source)
    folder = config.output_dir
    assert folder is not None
    folder.mkdir(exist_ok=True)
    trainer = build_trainer(config, inputs, loaded, folder, EventLog(folder / "events.jsonl"))
    assert isinstance(trainer, SdftTrainer)
    trainer.add_callback(MoveTeacher(trainer))
    return trainer


def test_alpha_one_is_the_student_bit_for_bit_and_trains_like_a_live_teacher(tmp_path: Path) -> None:
    config = small_config(tmp_path, "one", loss="sdft", sdft_ema_alpha=1.0, max_steps=3)
    trainer = sdft_trainer(config)
    before = WeightCopy.of(trainer.model).tensors
    steps: list[bool] = []

    def look() -> None:
        student = {name: value.detach() for name, value in trainable_parameters(trainer.model).items()}
        assert_same_bits(trainer.teacher.tensors, student)
        steps.append(any(not torch.equal(student[name], before[name]) for name in before))

    trainer.add_callback(EachStep(look))
    trainer.train()
    assert steps == [True, True, True]

    ema = run_small(tmp_path, "ema", loss="sdft", sdft_ema_alpha=1.0, max_steps=3)
    live = run_small(tmp_path, "live", loss="sdft", sdft_teacher="live", max_steps=3)
    assert_same_bits(trained_weights(ema), trained_weights(live))
    losses = [event.values["loss"] for event in ema.events(Tag.TRAIN)]
    assert losses == [event.values["loss"] for event in live.events(Tag.TRAIN)]
    assert min(losses) > 0  # the demonstration still tells the teacher something


def test_alpha_zero_is_the_base_teacher(tmp_path: Path) -> None:
    zero = run_small(tmp_path, "zero", loss="sdft", sdft_ema_alpha=0.0, max_steps=3)
    base = run_small(tmp_path, "base", loss="sdft", sdft_teacher="base", max_steps=3)
    moving = run_small(tmp_path, "moving", loss="sdft", sdft_ema_alpha=0.5, max_steps=3)
    assert_same_bits(trained_weights(zero), trained_weights(base))
    assert largest_difference(trained_weights(zero), trained_weights(moving)) > 1e-6


def test_a_model_that_came_with_a_trained_adapter_is_its_own_first_teacher(tmp_path: Path) -> None:
    """Not the model without the adapter: φ₀ is the trained adapter, and with α = 0 it stays."""
    trained = run_small(tmp_path, "trained", loss="sft", max_steps=3)
    config = small_config(
        tmp_path, "continued", loss="sdft", model=str(trained.model_path), sdft_ema_alpha=0.0, max_steps=2
    )
    trainer = sdft_trainer(config)
    adapter = trained_weights(trained)
    start = {name.replace(".default", ""): value for name, value in trainer.teacher.tensors.items()}
    assert_same_bits(start, adapter)
    assert any(name.endswith("lora_B.weight") and bool(value.any()) for name, value in start.items())
    trainer.train()
    end = {name.replace(".default", ""): value for name, value in trainer.teacher.tensors.items()}
    assert_same_bits(end, adapter)
    base = run_small(tmp_path, "base", loss="sdft", model=str(trained.model_path), sdft_teacher="base", max_steps=2)
    student = {name: value.detach() for name, value in trainable_parameters(trainer.model).items()}
    assert_same_bits({name.replace(".default", ""): value for name, value in student.items()}, trained_weights(base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sync_steps", [1, 3])
def test_constant_student_is_approached_geometrically(dtype: torch.dtype, sync_steps: int) -> None:
    """φₙ − θ = (1−α)ⁿ (φ₀ − θ) with n the number of updates, here (0.98)^100 = 0.13262 or (0.98)^33 = 0.51341.

    An EMA kept in bfloat16 would not move at all: 2 % of a gap of 1 beside a weight of 1 rounds to nothing.
    """
    model = nn.Linear(8, 8, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(2.0)
    teacher = Teacher(model, SdftConfig(ema_alpha=0.02, teacher_sync_steps=sync_steps))
    with torch.no_grad():
        model.weight.fill_(3.0)
    for step in range(1, 101):
        teacher.after_step(model, step)
    expected = 3.0 - 0.98 ** (100 // sync_steps)
    torch.testing.assert_close(teacher.tensors["weight"], torch.full((8, 8), expected), atol=2e-5, rtol=0)


def test_teacher_on_the_cpu_in_float32_for_a_bf16_model_is_cast_only_while_applied() -> None:
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    own = model.weight.detach().clone()
    teacher = Teacher(model, SdftConfig(teacher_device="cpu"))
    teacher.tensors["weight"].fill_(1.0 + 2**-12)
    with teacher.applied(model):
        assert torch.equal(model.weight, torch.ones(4, 4, dtype=torch.bfloat16))
    assert torch.equal(model.weight, own)
    assert teacher.tensors["weight"].dtype == torch.float32
    assert float(teacher.tensors["weight"][0, 0]) == 1.0 + 2**-12


def test_teacher_is_in_neither_optimizer_nor_export(tmp_path: Path) -> None:
    config = small_config(tmp_path, "run", loss="sdft", optim="adamw_torch", learning_rate=1e-2, max_steps=2)
    trainer = sdft_trainer(config)
    trainer.train()
    optimizer: Any = trainer.optimizer
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in trainable_parameters(trainer.model).values()}
    assert not any(value.requires_grad or id(value) in held for value in trainer.teacher.tensors.values())
    run = run_small(tmp_path, "exported", loss="sdft", sdft_ema_alpha=0.3)
    exported = trained_weights(run)
    student = load_file(run.path / "checkpoint-2" / "adapter_model.safetensors")
    assert_same_bits(exported, student)
    teacher = load_file(run.path / "checkpoint-2" / "teacher.safetensors")
    assert len(exported) == len(teacher)
    assert not any(torch.equal(exported[name.replace(".default", "")], value) for name, value in teacher.items())


def test_model_is_as_before_after_teacher_and_rollouts_also_when_they_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, "run", loss="sdft", gradient_checkpointing=True)
    trainer = sdft_trainer(config)
    trainer.model.train()
    frozen = next(module for module in trainer.model.modules() if isinstance(module, nn.Embedding))
    frozen.eval()  # a mode of its own, which a plain .train() afterwards would lose
    batch = [trainer.data_collator(list(trainer.train_dataset))]

    def state() -> Any:
        return (
            {name: module.training for name, module in trainer.model.named_modules()},
            {name: p.requires_grad for name, p in trainer.model.named_parameters()},
            [
                (module.gradient_checkpointing, module._gradient_checkpointing_func)
                for module in trainer.model.modules()
                if getattr(module, "gradient_checkpointing", False)
            ],
            trainer.model.config.use_cache,
            list(trainer.model.active_adapters),
            torch.get_rng_state().tolist(),
        )

    before, weights = state(), WeightCopy.of(trainer.model).tensors
    assert before[2]
    trainer.teacher.tensors[next(iter(trainer.teacher.tensors))].add_(1.0)
    trainer.prepare_step(batch)
    assert state() == before
    assert_same_bits(WeightCopy.of(trainer.model).tensors, weights)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    causal_lm = trainer.model.get_base_model()
    monkeypatch.setattr(causal_lm.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.prepare_step(batch)
    assert state() == before
    assert_same_bits(WeightCopy.of(trainer.model).tensors, weights)


def test_weight_copy_of_a_model_is_the_model_before_training(tmp_path: Path) -> None:
    model = load_model(small_config(tmp_path, "unused", r=2)).model
    copy = WeightCopy.of(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    model.eval()
    with torch.no_grad():
        at_start = model(input_ids=ids).logits
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.5)
        moved = model(input_ids=ids).logits
        with copy.applied(model):
            torch.testing.assert_close(model(input_ids=ids).logits, at_start, atol=0, rtol=0)
        torch.testing.assert_close(model(input_ids=ids).logits, moved, atol=0, rtol=0)
    assert not torch.allclose(at_start, moved)
    count = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    assert copy.distance(model) == pytest.approx(0.5 * count**0.5, rel=1e-6)
