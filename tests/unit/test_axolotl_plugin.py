"""The Axolotl plugin's loss, and what it makes of a `transformers.Trainer`. In a real Axolotl: `tests/real_axolotl`."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

import axolotl_dft_plugin
from axolotl_dft_plugin.config import Refused
from axolotl_dft_plugin.loss import dense_sums, per_token, sums_in_forward
from axolotl_dft_plugin.trainer import install
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.losses import Head, dft_loss, nll_loss

LENGTHS = (5, 9, 60, 7, 12, 31, 5, 40)
"""Very unequal, so that a mean of means differs from a mean over tokens."""


def rows(prompt: int = 3) -> list[dict[str, list[int]]]:
    """Random token ids; the first three of each row are a prompt, unless told otherwise."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row in ids]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])

    inputs = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
    return {**inputs, "attention_mask": torch.tensor(mask)}


def llama() -> LlamaForCausalLM:
    return tiny_model(tiny_tokenizer())


def make_trainer(folder: Path, cls: type[Trainer] = Trainer, model: Any = None, **arguments: Any) -> Trainer:
    """Plain SGD without clipping on all eight rows a step: the change of the weights is the gradient."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return cls(
        model=model or llama(),
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=rows(),  # pyright: ignore[reportArgumentType]
        eval_dataset=rows(),  # pyright: ignore[reportArgumentType]
        data_collator=collate,
    )


def trained(trainer: Trainer, cfg: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """The change of every weight in one step with the plugin."""
    model: Any = trainer.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    install(cfg or {}, trainer)
    trainer.train()
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


def first_log(trainer: Trainer) -> dict[str, float]:
    return trainer.state.log_history[0]


DENSE = {"torch_compile": True}
"""A config of Axolotl with which the chunked head is not used; nothing here compiles anything."""


# --- the loss -------------------------------------------------------------------------------------------------------


def hand_made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two predictions over a vocabulary of 2: p = (¼, ¾) both times, the labels are 0, then 1; two left out."""
    logits_BTV = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 0.0], [0.0, 9.0]]], dtype=dtype)
    return logits_BTV.requires_grad_(), torch.tensor([[1, 0, 1, -100]])


def test_dense_sums_by_hand() -> None:
    """−¼·ln ¼ − ¾·ln ¾ = 0.346574 + 0.215762; −ln ¼ − ln ¾ = 1.386294 + 0.287682; ¼ + ¾.

    The gradient to the logits is p_t·(softmax − onehot): ¼·(−¾, ¾), then ¾·(¼, −¼).
    """
    logits, labels = hand_made()
    sums = dense_sums(logits, labels)
    sums["dft_loss"].backward()
    assert {name: round(value.item(), 6) for name, value in sums.items()} == {
        "dft_loss": 0.562335,
        "nll": 1.673976,
        "probability": 1.0,
        "tokens": 2.0,
    }
    expected = torch.tensor([[[-0.1875, 0.1875], [0.1875, -0.1875], [0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert_close(logits.grad, expected)


@pytest.mark.parametrize("bias", [False, True])
def test_both_ways_give_the_same_sums_and_gradients(bias: bool) -> None:
    """Two implementations of one loss, and `tutelage`'s dense reference as the third."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    hidden, weight, bias_V = random(2, 6, 5), random(11, 5), random(11) if bias else None
    labels = torch.tensor([[1, 10, -100, 3, 0, 2], [-100, -100, 4, -100, 7, -100]])
    inputs = [tensor for tensor in (hidden, weight, bias_V) if tensor is not None]
    head = Head(weight, bias_V)
    dense = dense_sums(head.logits(hidden.flatten(0, 1)).view(2, 6, 11), labels)
    chunked = sums_in_forward(labels)(hidden, head)
    logits = head.logits(hidden.flatten(0, 1)).view(2, 6, 11)
    assert_close(chunked, dense)
    assert_close(dense["dft_loss"] / 6, dft_loss(logits, labels))
    assert_close(dense["nll"] / 6, nll_loss(logits, labels))
    gradients = [torch.autograd.grad(sums["dft_loss"], inputs) for sums in (dense, chunked)]
    assert_close(gradients[0], gradients[1])


def test_a_target_of_probability_zero_is_no_nan() -> None:
    logits = torch.tensor([[[0.0, -math.inf], [0.0, 0.0]]], requires_grad=True)
    sums = dense_sums(logits, torch.tensor([[0, 1]]))
    sums["dft_loss"].backward()
    assert sums["dft_loss"].item() == 0.0
    assert_close(logits.grad, torch.zeros_like(logits))


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits, labels = hand_made(torch.bfloat16)
    exact = dense_sums(logits.detach().float(), labels)
    assert_close(dense_sums(logits, labels)["dft_loss"], exact["dft_loss"].float())


@pytest.mark.parametrize("tokens", [0, torch.tensor(0), torch.tensor(0.0)])
def test_an_all_masked_batch_gives_zero_and_a_zero_gradient(tokens: Any) -> None:
    logits = torch.randn(1, 4, 3, requires_grad=True)
    loss = per_token(dense_sums(logits, torch.full((1, 4), -100))["dft_loss"], tokens)
    loss.backward()
    assert loss.item() == 0.0
    assert_close(logits.grad, torch.zeros_like(logits))


# --- a trainer ------------------------------------------------------------------------------------------------------


def expected_means(model: Any, data: list[dict[str, list[int]]]) -> dict[str, float]:
    """Token means by `tutelage`'s dense reference, row by row."""
    sums = {"loss": 0.0, "nll": 0.0, "tokens": 0}
    for row in data:
        labels = torch.tensor([row["labels"]])
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        sums["loss"] += float(dft_loss(logits, labels)) * count
        sums["nll"] += float(nll_loss(logits, labels)) * count
        sums["tokens"] += count
    return {"loss": sums["loss"] / sums["tokens"], "nll": sums["nll"] / sums["tokens"]}


@pytest.mark.parametrize("cfg", [{}, DENSE], ids=["chunked", "dense"])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (1, 8)])
def test_any_split_of_a_step_gives_the_same_loss_and_gradient(
    tmp_path: Path, cfg: dict[str, Any], batch: int, accumulation: int
) -> None:
    whole = trained(make_trainer(tmp_path))
    trainer = make_trainer(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    change = trained(trainer, cfg)
    expected = expected_means(llama(), rows())
    assert first_log(trainer)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert first_log(trainer)["nll"] == pytest.approx(expected["nll"], abs=1e-5)
    assert_close(change, whole, rtol=1e-4, atol=1e-7)


def test_the_first_token_of_a_row_is_not_counted(tmp_path: Path) -> None:
    """Nothing predicts it. `transformers` counts it where it does not know a loss, and Axolotl patches some."""
    trainer = make_trainer(tmp_path)
    trainer._loss_shifts_labels = False
    trainer.train_dataset = rows(prompt=0)  # pyright: ignore[reportAttributeAccessIssue]
    trained(trainer)
    assert first_log(trainer)["loss"] == pytest.approx(expected_means(llama(), rows(prompt=0))["loss"], rel=1e-5)


def test_perplexity_is_that_of_the_nll(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trained(trainer)
    log = first_log(trainer)
    assert log["ppl"] == pytest.approx(math.exp(log["nll"]), rel=1e-4)
    assert 0.0 < log["mean_token_probability"] < 1.0


@pytest.mark.parametrize("cfg", [{}, DENSE], ids=["chunked", "dense"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_evaluation_gives_token_means_whatever_the_batch(tmp_path: Path, cfg: dict[str, Any], batch: int) -> None:
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=batch)
    install(cfg, trainer)
    expected = expected_means(llama(), rows())
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert metrics["eval_nll"] == pytest.approx(expected["nll"], abs=1e-5)
    assert metrics["eval_ppl"] == pytest.approx(math.exp(expected["nll"]), rel=1e-4)
    assert trainer.state.log_history[-1]["eval_nll"] == metrics["eval_nll"]


def test_single_prediction_steps_do_not_count_in_an_evaluation(tmp_path: Path) -> None:
    """Callbacks of Axolotl take some, for benchmarks and tables of predictions."""
    trainer = make_trainer(tmp_path)
    install({}, trainer)
    trainer.model.eval()  # pyright: ignore[reportOptionalMemberAccess]
    _, logits, _ = trainer.prediction_step(trainer.model, collate(rows()[:1]), prediction_loss_only=False)  # pyright: ignore[reportArgumentType]
    assert logits.shape == (1, 5, 320)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert trainer.evaluate()["eval_nll"] == pytest.approx(expected_means(llama(), rows())["nll"], abs=1e-5)


def test_an_all_masked_step_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = [{**row, "labels": [-100] * len(row["labels"])} for row in rows()]  # pyright: ignore[reportAttributeAccessIssue]
    change = trained(trainer)
    assert first_log(trainer)["loss"] == 0.0
    assert "nll" not in first_log(trainer)
    assert all(torch.count_nonzero(weight) == 0 for weight in change.values())


@pytest.mark.parametrize("process", [0, 1, 2])
def test_rows_that_fill_the_last_batches_are_not_evaluated_again(tmp_path: Path, process: int) -> None:
    """Five rows on three processes with batches of two, as accelerate lays them out: the last process repeats one."""
    trainer = make_trainer(tmp_path)
    install({}, trainer)
    trainer.model.eval()  # pyright: ignore[reportOptionalMemberAccess]
    batches = [rows()[0:2], rows()[2:4], [rows()[4], rows()[0]]]
    new = [batches[0], batches[1], batches[2][:1]][process]
    trainer.accelerator = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        even_batches=True,
        process_index=process,
        gradient_state=SimpleNamespace(end_of_dataloader=True, remainder=5),
        unwrap_model=trainer.accelerator.unwrap_model,
    )
    trainer.prediction_step(trainer.model, collate(batches[process]), prediction_loss_only=True)  # pyright: ignore[reportArgumentType]
    sums: Any = trainer.compute_loss_func.__self__.pop_sums("eval")  # pyright: ignore
    assert sums["nll"] / sums["tokens"] == pytest.approx(expected_means(llama(), new)["nll"], rel=1e-5)


def test_a_prediction_step_waits_for_no_other_process(tmp_path: Path) -> None:
    """Callbacks take some on the first process only, and a count over all of them would wait for ever."""
    trainer = make_trainer(tmp_path)
    asked: list[bool] = []
    original = trainer._get_num_items_in_batch
    trainer._get_num_items_in_batch = lambda *arguments: (  # pyright: ignore[reportAttributeAccessIssue]
        asked.append(trainer.args.average_tokens_across_devices) or original(*arguments)
    )
    install({}, trainer)
    trainer.prediction_step(trainer.model, collate(rows()), prediction_loss_only=False)  # pyright: ignore[reportArgumentType]
    assert asked == [False]
    assert trainer.args.average_tokens_across_devices is True


class LossOfItsOwn(LlamaForCausalLM):
    """Gives a loss without labels, as some models do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs: Any = super().forward(*args, **kwargs)
        return {"loss": outputs.logits.square().mean()} if "labels" not in kwargs else outputs


@pytest.mark.parametrize("accumulation", [1, 8])
def test_batches_without_labels_train_as_if_there_were_no_plugin(tmp_path: Path, accumulation: int) -> None:
    def without_labels() -> Trainer:
        model: Any = LossOfItsOwn(llama().config)
        model.load_state_dict(llama().state_dict())
        batch = 8 // accumulation
        trainer = make_trainer(
            tmp_path, model=model, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        trainer.data_collator = lambda batch: {"input_ids": collate(batch)["input_ids"]}
        trainer.model_accepts_loss_kwargs = False  # as Axolotl sets it
        return trainer

    plain = without_labels()
    model: Any = plain.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain.train()
    expected = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    trainer = without_labels()
    assert_close(trained(trainer), expected)
    assert first_log(trainer)["loss"] == pytest.approx(first_log(plain)["loss"])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_of_a_router_is_kept(tmp_path: Path, accumulation: int) -> None:
    """A mixture of experts with output_router_logits: DFT's loss, and the mean of its router's loss over micro-batches.

    The model's own loss is NLL + coefficient · router loss, so the router's part is that minus the NLL.
    """
    config = MixtralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        initializer_range=0.2,
        dtype="float32",
    )
    torch.manual_seed(0)
    model: Any = MixtralForCausalLM(config).train()
    trainer = make_trainer(
        tmp_path,
        model=model,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
    )
    size = 8 // accumulation
    parts = [rows()[start : start + size] for start in range(0, 8, size)]
    router_losses = []
    with torch.no_grad():
        for part in parts:
            batch = collate(part)
            logits_and_loss = model(**batch)
            router_losses.append(float(logits_and_loss.loss) - float(nll_loss(logits_and_loss.logits, batch["labels"])))
    expected = expected_means(model, rows())["loss"] + sum(router_losses) / accumulation
    trained(trainer)
    assert first_log(trainer)["loss"] == pytest.approx(expected, rel=1e-4)
    assert min(router_losses) > 0.1, "the test would not see a router loss that is left out"


# --- refusals -------------------------------------------------------------------------------------------------------


class OwnLossTrainer(Trainer):
    """Never asks for a `compute_loss_func`."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return model(**inputs).loss


def test_a_trainer_with_a_loss_of_its_own_is_stopped_before_its_first_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, OwnLossTrainer)
    install({}, trainer)
    with pytest.raises(Refused, match="OwnLossTrainer computes its own loss and never asked for dft's"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert_close(dict(trainer.model.named_parameters()), dict(llama().named_parameters()))  # pyright: ignore[reportOptionalMemberAccess]


class OwnLoopTrainer(Trainer):
    """Trains somewhere else, and tells its callbacks about steps only."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        handler = self.callback_handler
        handler.on_train_begin(self.args, self.state, self.control)
        handler.on_step_begin(self.args, self.state, self.control)
        return handler.on_step_end(self.args, self.state, self.control)


def test_a_trainer_with_a_loop_of_its_own_is_stopped_at_its_first_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, OwnLoopTrainer)
    install({}, trainer)
    with pytest.raises(Refused, match="OwnLoopTrainer computes its own loss"):
        trainer.train()


def test_a_router_whose_loss_has_no_known_weight_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.model.config.output_router_logits = True  # pyright: ignore
    with pytest.raises(Refused, match="LlamaConfig has no router_aux_loss_coef or aux_loss_coef"):
        install({}, trainer)


@pytest.mark.parametrize(
    ("cfg", "change", "reason"),
    [
        ({"fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}, {}, "FSDP shards the head"),
        ({"tensor_parallel_size": 2}, {}, "tensor parallelism shards the head"),
        ({"torch_compile": True}, {}, "would be compiled anew for each batch"),
        ({"is_multimodal": True}, {}, "takes more than text"),
        ({}, {"fp16": True}, "in float16 the gradients"),
    ],
)
def test_where_the_logits_are_whole_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cfg: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    trainer = make_trainer(tmp_path)
    for name, value in change.items():
        setattr(trainer.args, name, value)
    install(cfg, trainer)
    (record,) = [record for record in caplog.records if record.name == "axolotl.dft"]
    assert record.levelname == "WARNING"
    assert reason in record.getMessage()
    inputs = collate(rows())
    assert trainer.compute_loss(trainer.model, inputs, return_outputs=True)[1].logits.shape == (8, 60, 320)  # pyright: ignore


def test_a_loss_function_that_replaces_dft_is_found_before_the_first_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    install({}, trainer)
    trainer.compute_loss_func = dense_sums
    with pytest.raises(Refused, match=r"another compute_loss_func already \(dense_sums\)"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1 does not go with dft"),
        ({"n_gpu": 2}, "one process drives 2 GPUs"),
    ],
)
def test_arguments_that_do_not_go_with_it_are_refused(change: dict[str, Any], sentence: str) -> None:
    trainer = SimpleNamespace(compute_loss_func=None, args=SimpleNamespace(**{"n_gpu": 1} | change))
    with pytest.raises(Refused, match=sentence):
        install({}, trainer)


def test_a_trainer_too_old_for_loss_functions_is_refused() -> None:
    with pytest.raises(Refused, match=r"use Axolotl 0\.9\.1 or newer"):
        install({}, SimpleNamespace(args=SimpleNamespace()))


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    misspelled = "DFTPlugn"
    with pytest.raises(AttributeError, match="has no attribute 'DFTPlugn'"):
        getattr(axolotl_dft_plugin, misspelled)
