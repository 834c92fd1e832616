"""sft and dft against TRL's `SFTTrainer` on the same batch: the loss, and the gradient of every parameter.

TRL 1.16's `dft` is the paper's −sg(p)·log p as ours is: the probability detached, shifted by one token, summed and
divided by `num_items_in_batch`, the trained tokens of the whole step (without that number: of the batch). What
differs is outside the formula: rows cannot be weighted there, so all weights are 1 here, and its fused head always
computes in float32, so that the models are in float64 but agreement is to float32's precision.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from tests.parity.loaded import inputs_and_model
from tests.small_runs import small_config
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.config import TrainingConfig
from tutelage.data.collators import pad_batch
from tutelage.data.rows import TokenRow
from tutelage.events import EventLog
from tutelage.losses import dft_loss, nll_loss
from tutelage.training.build import build_trainer

FLOAT32 = 2e-6

LOSS_TYPE = {"sft": "nll", "dft": "dft"}
DENSE: dict[str, Callable[..., Tensor]] = {"sft": nll_loss, "dft": dft_loss}

# As PEFT 0.21 does in `tutelage.models.loading`: it asks models for an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def unequal_rows() -> list[TokenRow]:
    """Lengths 6, 19 and 11; two turns are trained in the second row, the first row's last token is not."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in (6, 19, 11)]
    trained = [range(2, 5), [*range(3, 7), *range(12, 19)], range(5, 11)]
    return [
        TokenRow(ids, [token if index in spans else -100 for index, token in enumerate(ids)], 1.0, row, f"r:{row}")
        for row, (ids, spans) in enumerate(zip(rows, trained, strict=True))
    ]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], trls: dict[str, Tensor], relative: float = FLOAT32) -> None:
    """Of the same parameters, none of them 0, to a share of each parameter's largest entry."""
    assert ours.keys() == trls.keys()
    for name, expected in trls.items():
        largest = float(expected.abs().max())
        assert largest > 1e-9, name
        assert float((ours[name] - expected).abs().max()) < relative * largest, name


def ours_and_trls(folder: Path, config: TrainingConfig) -> tuple[Any, Any]:
    """Both trainers on float64 models of the same weights. The adapter's B is not 0, so that A has a gradient too."""
    inputs, loaded = inputs_and_model(config)
    loaded.model.double()
    ours = build_trainer(config, inputs, loaded, folder, EventLog(folder / "events.jsonl"))

    twin: Any = tiny_model(tiny_tokenizer())
    if config.is_peft:
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.r,
            lora_alpha=config.lora_alpha,
            use_rslora=config.use_rslora,
            target_modules=list(config.target_modules),
        )
        twin = get_peft_model(twin, lora)
    twin.double().load_state_dict(loaded.model.state_dict())
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        loss_type=LOSS_TYPE[config.loss],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in unequal_rows()])
    trls = SFTTrainer(model=twin, args=arguments, train_dataset=data, processing_class=tiny_tokenizer())
    return ours, trls


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["sft", "dft"])
def test_loss_and_every_gradient(tmp_path: Path, loss: str, is_peft: bool) -> None:
    ours, trls = ours_and_trls(tmp_path, small_config(tmp_path, "run", loss=loss, is_peft=is_peft))
    batch = pad_batch(unequal_rows(), ours.processing_class.pad_token_id)
    theirs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    # The step has more tokens than this micro-batch, as in gradient accumulation.
    for num_items in (20, 57):
        loss_ours = ours.compute_loss(ours.model, dict(batch), num_items_in_batch=num_items)
        loss_trl = trls.compute_loss(trls.model, dict(theirs), num_items_in_batch=torch.tensor(num_items))
        assert float(loss_ours.detach()) == pytest.approx(float(loss_trl.detach()), rel=FLOAT32)
        assert_same_gradients(gradients(ours.model, loss_ours), gradients(trls.model, loss_trl))


@pytest.mark.parametrize("loss", ["sft", "dft"])
def test_dense_reference(tmp_path: Path, loss: str) -> None:
    """`nll_loss` and `dft_loss` of plain logits, with the number of the step's tokens and without."""
    _, trls = ours_and_trls(tmp_path, small_config(tmp_path, "run", loss=loss, is_peft=False))
    model = tiny_model(tiny_tokenizer()).double()
    batch = pad_batch(unequal_rows(), 2)
    labels = batch["labels"]
    theirs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    for num_items in (None, 57):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        dense = DENSE[loss](logits, labels, num_items)
        trl = trls.compute_loss(trls.model, dict(theirs), num_items_in_batch=num_items)
        assert float(dense.detach()) == pytest.approx(float(trl.detach()), rel=FLOAT32)
        assert_same_gradients(gradients(model, dense), gradients(trls.model, trl))
