"""grpo's log-probabilities and loss against TRL's own on the same batch: values, entropies, every gradient.

Ours share prompts and send nothing but answers through the head; TRL's model computes padded rows.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.parity.loaded import inputs_and_model
from tests.small_runs import small_config
from tests.trl_runs import REWARD
from tutelage.events import EventLog
from tutelage.models import takes_trees, unwrapped
from tutelage.models.loading import without_peft_deprecations
from tutelage.rollouts.supported_models import read_decoder
from tutelage.training.build import build_trainer

PAD = 2
PROMPTS = [[*range(20, 34)]] * 3 + [[*range(20, 30), 99]] * 3
ANSWERS = [[40, 41, 42, 43], [40, 41, 50], [60], [40, 41, 42, 43], [70, 71], [70, 72]]


def grpo_trainer(folder: Path, **options: Any) -> Any:
    """Ready to train; the adapter is not 0, so that all of it has a gradient."""
    reward = folder / "reward.py"
    reward.write_text(REWARD, encoding="utf-8")
    defaults: dict[str, Any] = {"loss": "grpo", "grpo_reward_function": f"{reward}:share_of_vowels"}
    config = small_config(folder, "run", **(defaults | options))
    inputs, loaded = inputs_and_model(config)
    return build_trainer(config, inputs, loaded, folder, EventLog(folder / "events.jsonl"))


def batch() -> dict[str, Tensor]:
    """As TRL makes it: prompts padded on the left, answers on the right."""
    longest, most = max(map(len, PROMPTS)), max(map(len, ANSWERS))
    prompts = [[PAD] * (longest - len(prompt)) + prompt for prompt in PROMPTS]
    answers = [answer + [PAD] * (most - len(answer)) for answer in ANSWERS]
    return {
        "prompt_ids": torch.tensor(prompts),
        "prompt_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in PROMPTS]),
        "completion_ids": torch.tensor(answers),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (most - len(ids)) for ids in ANSWERS]),
        "advantages": torch.tensor([1.0, -0.5, 0.25, -1.0, 0.5, 0.75]),
        "num_items_in_batch": torch.tensor(sum(map(len, ANSWERS))),
    }


def log_probs(method: Any, trainer: Any, **options: Any) -> Any:
    inputs = batch()
    ids_BT, mask_BT = (
        torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
    )
    count = inputs["completion_ids"].shape[1]
    return method(trainer, trainer.model, ids_BT, mask_BT, count, compute_entropy=True, **options)


def gradients(trainer: Any, loss: Tensor) -> dict[str, Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    named = trainer.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def use_trls(trainer: Any) -> None:
    add_fused_lm_head(unwrapped(trainer.model), temperature=trainer.temperature, outputs=("log_probs", "entropy"))


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("is_peft", [True, False])
def test_log_probs_are_trls(tmp_path: Path, is_peft: bool, trees: bool) -> None:
    trainer = grpo_trainer(tmp_path, is_peft=is_peft, grpo_temperature=0.7)
    assert takes_trees(trainer.model)
    unwrapped(trainer.model)._tutelage_takes_trees = trees
    weights = torch.randn(len(ANSWERS), 4, generator=torch.Generator().manual_seed(1))
    found, entropy, _ = log_probs(type(trainer)._get_per_token_logps_and_entropies, trainer)
    ours = gradients(trainer, (found * weights).sum())
    use_trls(trainer)
    expected, expected_entropy, _ = log_probs(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
    trls = gradients(trainer, (expected * weights).sum())
    mask = batch()["completion_mask"].bool()
    assert bool((found[~mask] == 0).all())
    assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert_close(entropy[mask], expected_entropy[mask].detach(), rtol=1e-5, atol=1e-5)
    assert len(trls) > 10
    assert_close(ours, trls, rtol=1e-3, atol=1e-5 * max(float(value.abs().max()) for value in trls.values()))


def test_batches_are_those_of_one(tmp_path: Path) -> None:
    trainer = grpo_trainer(tmp_path)
    with torch.no_grad():
        whole, split = (
            log_probs(type(trainer)._get_per_token_logps_and_entropies, trainer, batch_size=size) for size in (None, 4)
        )
    assert float(whole[0].abs().max()) > 1.0
    assert_close(split[0], whole[0], rtol=1e-5, atol=1e-5)
    assert_close(split[1], whole[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_is_trls(tmp_path: Path, loss_type: str) -> None:
    """With old log-probabilities that are others, so that some ratios are clipped, and with a KL."""
    trainer = grpo_trainer(tmp_path, grpo_loss_type=loss_type, beta=0.1)
    trainer.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        present, *_ = log_probs(type(trainer)._get_per_token_logps_and_entropies, trainer)
    inputs = batch() | {
        "old_per_token_logps": present + 0.3 * torch.randn(present.shape, generator=generator),
        "ref_per_token_logps": present + 0.3 * torch.randn(present.shape, generator=generator),
    }
    found = trainer._compute_loss(trainer.model, inputs)
    ours = gradients(trainer, found)
    trainer._get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies.__get__(trainer)
    use_trls(trainer)
    expected = trainer._compute_loss(trainer.model, inputs)
    trls = gradients(trainer, expected)
    clipped = trainer._metrics["train"]["clip_ratio/region_mean"]
    assert clipped[0] == pytest.approx(clipped[1])
    assert 0.0 < clipped[0] < 1.0
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert_close(ours, trls, rtol=1e-3, atol=1e-5 * max(float(value.abs().max()) for value in trls.values()))


@pytest.mark.parametrize("is_peft", [True, False])
def test_rollouts_are_by_our_own_decoder(tmp_path: Path, is_peft: bool) -> None:
    """TRL puts a forward onto the model, with which it would be sampled by transformers."""
    trainer = grpo_trainer(tmp_path, is_peft=is_peft)
    with without_peft_deprecations():
        assert read_decoder(trainer.model) is not None
        use_trls(trainer)
        assert read_decoder(trainer.model) is None
