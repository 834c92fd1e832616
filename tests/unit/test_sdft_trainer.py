"""The self-distillation loss on the tiny model, against a reference written out here token by token."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.invariant.test_teacher import sdft_trainer
from tests.small_runs import small_config
from tutelage.config.objectives import BUILT_IN_DEMO_TEMPLATE
from tutelage.errors import TrainingError
from tutelage.events import Tag
from tutelage.training.sdft_trainer import Gain, Rollout, SdftTrainer
from tutelage.training.teacher_check import check_demonstrations

OWN_TEMPLATE = "{question}\n\n(Answer: {demonstration})"


def trainer_of(folder: Path, **options: Any) -> SdftTrainer:
    options = {"loss": "sdft", "sdft_gold_gain_rows": 0} | options
    return sdft_trainer(small_config(folder, "run", **options))


def loss_and_gradient(trainer: SdftTrainer, rows: Any) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    batches, count = trainer.prepare_step([trainer.data_collator(list(rows))])
    loss = sum(trainer.loss_sum(trainer.model, batch) for batch in batches) / max(count, 1)
    loss.backward()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def test_no_demonstration_and_a_live_teacher_learn_exactly_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, sdft_teacher="live", is_peft=False)
    trainer.model.double()
    shown = list(trainer.train_dataset)
    unshown = [dataclasses.replace(row, teacher_prompt_ids=row.prompt_ids) for row in shown]
    for kind, estimator in (
        ("reverse_kl", "full"),
        ("forward_kl", "full"),
        ("jsd", "full"),
        ("reverse_kl", "topk"),
        ("forward_kl", "topk"),
        ("jsd", "topk"),
        ("reverse_kl", "sampled"),
    ):
        trainer.divergence = dataclasses.replace(trainer.divergence, kind=kind, estimator=estimator, top_k=5)
        loss, gradient = loss_and_gradient(trainer, unshown)
        assert loss == 0.0
        assert not gradient.any()
        loss, gradient = loss_and_gradient(trainer, shown)
        assert gradient.abs().max() > 1e-6
        assert loss > 0 or estimator == "sampled"  # one sample of a KL may be negative


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_loss_is_the_kl_written_out(tmp_path: Path, skip: int, normalization: str) -> None:
    trainer = trainer_of(
        tmp_path, sdft_teacher="base", is_peft=False, sdft_skip_tokens=skip, sdft_normalization=normalization
    )
    model = trainer.model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    rows = list(trainer.train_dataset)[:4]
    rollouts = trainer.sample(rows)
    loss, _ = loss_and_gradient(trainer, rows)

    def logp(prompt: list[int], response: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt + response])).logits[0]
        return logits_TV[len(prompt) - 1 : -1].log_softmax(-1)

    terms: list[torch.Tensor] = []
    for rollout in rollouts:
        student = logp(rollout.row.prompt_ids, rollout.response)
        with trainer.teacher.applied(model):
            teacher = logp(rollout.row.teacher_prompt_ids, rollout.response)
        terms.append((student.exp() * (student - teacher)).sum(-1)[skip:])
    if normalization == "token":
        expected = torch.cat(terms).mean()
    else:
        expected = torch.stack([term.mean() for term in terms if len(term)]).mean()
    assert loss == pytest.approx(float(expected), rel=1e-7)  # weights 1/length are float32


def test_rollouts_are_joined_as_ids_and_end_with_the_end_of_turn(tmp_path: Path) -> None:
    """pad equals eos here: the end of turn is trained, nothing after it is."""
    trainer = trainer_of(tmp_path)
    eos = trainer.tokenizer.eos_token_id
    assert eos == trainer.tokenizer.pad_token_id
    row, other = trainer.train_dataset[0], trainer.train_dataset[1]
    rollouts = [Rollout(row, [40, 41, eos], True), Rollout(other, [50, 51, 52, 53, 54, eos], True)]
    batch = trainer._batch_for_student(rollouts)
    ids_N = batch["layout"].inputs["input_ids"].flatten()
    place, other_place = batch["layout"].places
    assert ids_N[place].tolist() == [*row.prompt_ids, 40, 41, eos]
    length, other_length = len(row.prompt_ids), len(other.prompt_ids)
    assert batch["place_N"].tolist() == [*place[length - 1 : -1].tolist(), *other_place[other_length - 1 : -1].tolist()]
    assert batch["tokens_N"].tolist() == [40, 41, eos, 50, 51, 52, 53, 54, eos]
    assert batch["mask_N"].all()
    assert batch["teacher_hidden_ND"].shape[0] == 9


def test_skipping_more_tokens_than_there_are_is_zero_and_then_an_error_that_names_the_rows(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, sdft_skip_tokens=50)
    batches, count = trainer.prepare_step([trainer.data_collator(list(trainer.train_dataset))])
    assert count == 0
    loss = trainer.loss_sum(trainer.model, batches[0])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    with pytest.raises(TrainingError, match=r"step 1: no token of .*rows\.jsonl:\d.* is trained"):
        trainer.train()


def test_off_policy_share_uses_the_gold_answer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, sdft_off_policy_fraction=1.0)
    rows = list(trainer.train_dataset)
    assert [rollout.response for rollout in trainer.sample(rows)] == [row.gold_ids for row in rows]
    half = trainer_of(tmp_path, sdft_off_policy_fraction=0.5, sdft_num_generations=40, sdft_max_new_tokens=1)
    share = sum(not rollout.on_policy for rollout in half.sample(rows)) / (40 * len(rows))
    assert share == pytest.approx(0.5, abs=4 * (0.25 / (40 * len(rows))) ** 0.5)


def test_row_weights_scale_their_tokens(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, sdft_teacher="base", is_peft=False)
    trainer.model.double()
    rows = list(trainer.train_dataset)[:2]
    doubled = [rows[0], dataclasses.replace(rows[1], weight=2.0)]
    one, first = (loss_and_gradient(trainer, part)[1] for part in (rows, rows[:1]))
    tokens = [len(rollout.response) for rollout in trainer.sample(rows)]
    _, weighted = loss_and_gradient(trainer, doubled)
    second = one * sum(tokens) - first * tokens[0]
    torch.testing.assert_close(weighted * sum(tokens), first * tokens[0] + 2 * second, atol=1e-9, rtol=1e-9)


def test_gain_of_the_demonstration_is_measured_on_gold_answers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    rows = list(trainer.train_dataset)[:3]
    gain = trainer.demonstration_gain(rows)
    model = trainer.model.eval()

    def logp(prompt: list[int], response: list[int]) -> float:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(scores.gather(1, torch.tensor(response)[:, None]).sum())

    assert gain.without == pytest.approx(sum(logp(row.prompt_ids, row.gold_ids) for row in rows), rel=1e-5)
    shown = sum(logp(row.teacher_prompt_ids, row.gold_ids) for row in rows)
    assert gain.with_demonstration == pytest.approx(shown, rel=1e-5)
    assert gain.tokens == sum(len(row.gold_ids) for row in rows)

    def greedy(prompt: list[int], response: list[int]) -> bool:
        with torch.no_grad():
            given = model.generate(torch.tensor([prompt]), max_new_tokens=len(response), do_sample=False)
        return given[0, len(prompt) :].tolist() == response

    best = model.generate(torch.tensor([rows[0].prompt_ids]), max_new_tokens=3, do_sample=False)
    rows[0] = dataclasses.replace(rows[0], gold_ids=best[0, len(rows[0].prompt_ids) :].tolist())
    gain = trainer.demonstration_gain(rows)
    assert gain.greedy_without == [greedy(row.prompt_ids, row.gold_ids) for row in rows] == [True, False, False]
    assert gain.greedy_with == [greedy(row.teacher_prompt_ids, row.gold_ids) for row in rows]


@pytest.mark.parametrize(
    ("with_demonstration", "repeated", "holds_answer", "template", "warning"),
    [
        (-2.0, 0, True, OWN_TEMPLATE, "the demonstration does not help this model"),
        (-1.0, 0, True, OWN_TEMPLATE, "shown the answer itself, this model gives it word for word in 0 of 4 rows"),
        (-1.0, 1, True, OWN_TEMPLATE, None),
        (-1.0, 0, False, OWN_TEMPLATE, None),  # a worked demonstration
        (-1.0, 0, True, BUILT_IN_DEMO_TEMPLATE, None),  # which asks for other words
    ],
)
def test_the_check_before_step_1_says_when_there_is_no_teacher(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_demonstration: float,
    repeated: int,
    holds_answer: bool,
    template: str,
    warning: str | None,
) -> None:
    trainer = trainer_of(tmp_path, sdft_check_rows=4, sdft_demo_template=template)
    rows = [row if holds_answer else dataclasses.replace(row, demonstration_text="-") for row in trainer.train_dataset]
    gains = [index < repeated for index in range(4)]
    gain = Gain(10 * with_demonstration, -20.0, 10, greedy_with=gains, greedy_without=[False] * 4)
    monkeypatch.setattr(trainer, "demonstration_gain", lambda chosen: gain if len(chosen) == 4 else None)
    console = Console(record=True, width=1000)
    check_demonstrations(trainer, rows[:4], console)
    text = console.export_text()
    figures = (
        f"log-prob per token -2.00 without the demonstration, {with_demonstration:.2f} with it; greedy decoding gives"
    )
    assert f"{figures} 0 and {repeated} of 4" in text
    assert ("warning" in text) is (warning is not None)
    assert (warning or "") in text
    [event] = trainer.events.read(Tag.CHECK)
    assert event.values["greedy_with_demonstration"] == repeated
    assert len(trainer.events.read(Tag.WARNING)) == (warning is not None)
