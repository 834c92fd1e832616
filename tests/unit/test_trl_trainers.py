"""grpo, dpo and orpo: what a step of TRL's trainers does to our rows, in numbers computed here."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import set_seed

from tests.invariant.test_batch_split import assert_same_steps
from tests.small_runs import ROWS, assert_same_bits, largest_difference, run_small, trained_weights, write_rows
from tests.trl_runs import PAIRS, any_run, grpo_run, preference_run, rewarded, write_pairs
from tutelage import Run, train
from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.messages import Message
from tutelage.events import Tag
from tutelage.models import LoadedModel, load_model, response_log_probs
from tutelage.models.scoring import Pair
from tutelage.training import run as training_run
from tutelage.training.order import GroupSampler


def pairs_of(config: TrainingConfig, template: ChatTemplate, answers: int) -> list[Pair]:
    """Prompt and answer ids of the chosen (1) or the rejected answers (2)."""
    pairs: list[Pair] = []
    for row in PAIRS:
        prompt = [Message("user", row[0])]
        response = template.encode_response([*prompt, Message("assistant", row[answers])])
        pairs.append((template.encode_prompt(prompt), response))
    return pairs


def answer_log_probs(run: Run, adapter: Path | None) -> tuple[list[Tensor], list[Tensor]]:
    """Per-token log-probabilities of chosen and rejected answers; `adapter` None is the base model."""
    config = run.config if adapter else run.config.model_copy(update={"is_peft": False})
    loaded = load_model(config, str(adapter) if adapter else None)
    template = ChatTemplate(loaded.tokenizer)
    chosen, rejected = (response_log_probs(loaded.model, pairs_of(config, template, index)) for index in (1, 2))
    return list(chosen), list(rejected)


# --- dpo ------------------------------------------------------------------------------------------------------------


def test_dpo_is_minus_log_sigmoid_of_beta_times_the_margin_over_the_base(tmp_path: Path) -> None:
    run = preference_run(tmp_path, "run", "dpo", beta=0.3, max_steps=2, save_steps=1)
    first, second = run.events(Tag.TRAIN)
    assert first.values["loss"] == pytest.approx(math.log(2), rel=1e-6)  # the adapter is the base model still
    assert first.values["rewards/margins"] == pytest.approx(0.0, abs=1e-6)

    base, tuned = answer_log_probs(run, None), answer_log_probs(run, run.path / "checkpoint-1")
    chosen, rejected = (
        torch.stack([new.double().sum() - old.double().sum() for new, old in zip(*sides, strict=True)])
        for sides in zip(tuned, base, strict=True)
    )
    margin_N = 0.3 * (chosen - rejected)
    assert second.values["rewards/margins"] == pytest.approx(float(margin_N.mean()), rel=1e-4)
    expected = float(-torch.nn.functional.logsigmoid(margin_N).mean())
    assert second.values["loss"] == pytest.approx(expected, rel=1e-4)
    assert float(margin_N.mean()) > 0.05


def test_dpo_raises_the_margin_on_a_test_file(tmp_path: Path) -> None:
    run = preference_run(
        tmp_path,
        "run",
        "dpo",
        max_steps=6,
        test_file=tmp_path / "pairs.jsonl",
        test_file_eval_strategy="steps",
        test_file_eval_steps=2,
    )
    margins = [event.values["eval_rewards/margins"] for event in run.events(Tag.EVAL)]
    assert len(margins) == 3
    assert margins[0] > 0.2
    assert margins[2] > margins[1] > margins[0]
    assert not any(name.endswith(("_runtime", "_per_second")) for name in run.events(Tag.EVAL)[0].values)


# --- orpo -----------------------------------------------------------------------------------------------------------


def test_orpo_is_the_nll_of_the_chosen_texts_and_the_log_odds_ratio(tmp_path: Path) -> None:
    run = preference_run(tmp_path, "run", "orpo", beta=0.4, max_steps=1)
    chosen, rejected = (torch.stack([row.double().mean() for row in side]) for side in answer_log_probs(run, None))
    log_odds_N = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    values = run.events(Tag.TRAIN)[0].values
    assert values["log_odds_chosen"] == pytest.approx(float(log_odds_N.mean()), rel=1e-4)
    ratio = torch.nn.functional.logsigmoid(log_odds_N).mean()
    assert values["log_odds_ratio"] == pytest.approx(float(ratio), rel=1e-4)
    assert values["loss"] == pytest.approx(values["nll_loss"] - 0.4 * float(ratio), rel=1e-4)


def test_orpo_raises_the_log_odds_of_the_chosen_answers(tmp_path: Path) -> None:
    run = preference_run(tmp_path, "run", "orpo", max_steps=8, beta=1.0)
    odds = [event.values["log_odds_chosen"] for event in run.events(Tag.TRAIN)]
    assert odds[-1] > odds[0] + 0.5


# --- grpo -----------------------------------------------------------------------------------------------------------


def test_a_step_of_grpo_is_the_policy_gradient_of_its_rollouts(tmp_path: Path) -> None:
    """At the first step the ratio is 1: the gradient is that of −Σ A·log p / tokens, A = (r − mean) / (std + 1e-4)."""
    run = grpo_run(tmp_path, "run", beta=0.0, max_steps=1, learning_rate=0.5)
    seen = rewarded(tmp_path, "run")
    assert len(seen) == 8

    set_seed(run.config.seed)
    loaded = load_model(run.config)
    template = ChatTemplate(loaded.tokenizer)
    scores_GN = torch.tensor([score for *_, score in seen]).view(-1, 4)
    advantages_GN = (scores_GN - scores_GN.mean(dim=1, keepdim=True)) / (scores_GN.std(dim=1, keepdim=True) + 1e-4)
    loss = torch.zeros(())
    for (turns, ids, *_), advantage in zip(seen, advantages_GN.flatten(), strict=True):
        prompt = template.encode_prompt([Message(**turn) for turn in turns])
        logits_TV = loaded.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log_probs_T = torch.log_softmax(logits_TV, dim=-1)[range(len(ids)), ids]
        loss = loss - advantage * log_probs_T.sum() / sum(len(ids) for _, ids, *_ in seen)
    loss.backward()
    moved = trained_weights(run)
    trained = {name: value for name, value in loaded.model.named_parameters() if value.requires_grad}
    assert max(float(value.grad.abs().max()) for value in trained.values() if value.grad is not None) > 0.01
    for name, value in trained.items():
        assert value.grad is not None
        torch.testing.assert_close(
            moved[name.replace(".default.", ".")], value.detach() - 0.5 * value.grad, rtol=1e-4, atol=1e-6
        )


def test_a_reward_is_given_the_rows_and_the_rollouts(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "completion": "Me.", "points": 3}, {"prompt": "a", "completion": "b"}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reward = tmp_path / "points.py"
    reward.write_text(
        "def points(prompts, completions, completion_ids, points, gold_response, trainer_state, log_metric, **_):\n"
        "    assert [turn['role'] for turns in completions for turn in turns] == ['assistant'] * len(prompts)\n"
        "    log_metric('steps_done', trainer_state.global_step)\n"
        "    assert all(completion_ids)\n"
        "    return [float(point or 0) + (gold == 'Me.') for point, gold in zip(points, gold_response)]\n",
        encoding="utf-8",
    )
    run = grpo_run(tmp_path, "run", training_file=data, grpo_reward_function=f"{reward}:points", max_steps=2)
    first, second = run.events(Tag.TRAIN)
    assert first.values["reward"] == pytest.approx(2.0)  # 4 for one row, 0 for the other
    assert first.values["frac_reward_zero_std"] == 1.0
    assert first.values["grad_norm"] == pytest.approx(0.0, abs=1e-5)
    assert second.values["steps_done"] == 1.0
    assert run.events(Tag.CHECK)[0].values == {"gold_reward": pytest.approx(2.0), "rows": 2}


def test_the_weight_of_a_row_is_a_factor_of_its_advantages(tmp_path: Path) -> None:
    """All rows twice as heavy: twice the step."""
    heavy = tmp_path / "heavy.jsonl"
    rows = [{"prompt": question, "completion": answer, "weight": 2.0} for question, answer in ROWS]
    heavy.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    double = grpo_run(tmp_path, "double", beta=0.0, max_steps=1, training_file=heavy, learning_rate=0.25)
    once = grpo_run(tmp_path, "once", beta=0.0, max_steps=1, learning_rate=0.5)
    assert largest_difference(trained_weights(double), trained_weights(once)) < 1e-6


def test_scores_that_are_missing_become_the_mean_of_the_others_and_are_counted(tmp_path: Path) -> None:
    reward = tmp_path / "half.py"
    reward.write_text(
        "def half(*, completions, **columns):\n"
        "    return [[None, float('inf'), 1, 2][number % 4] for number in range(len(completions))]\n",
        encoding="utf-8",
    )
    test = write_rows(tmp_path / "test.jsonl", ROWS[:3])
    options: dict[str, Any] = {"test_file": test, "test_file_eval_strategy": "steps", "test_file_eval_steps": 2}
    run = grpo_run(
        tmp_path,
        "run",
        grpo_reward_function=f"{reward}:half",
        max_steps=2,
        logging_steps=2,
        eval_batch_size=2,
        **options,
    )
    values = run.events(Tag.TRAIN)[0].values
    assert values["unscored"] == 8.0  # of both steps
    assert values["reward"] == pytest.approx(1.5)  # 1.5, 1.5, 1, 2 in each group
    tested = run.events(Tag.EVAL)[0].values
    assert (tested["eval_unscored"], tested["eval_reward"]) == (2.0, 1.0)  # None, infinite, 1


def test_test_prompts_are_rewarded_too(tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.jsonl", ROWS[:3])
    options: dict[str, Any] = {"test_file": test, "test_file_eval_strategy": "steps", "test_file_eval_steps": 1}
    run = grpo_run(tmp_path, "run", max_steps=1, logging_steps=2, **options)
    (event,) = run.events(Tag.EVAL)
    assert 0.0 < event.values["eval_reward"] < 1.0
    assert event.values["eval_nll"] == event.values["eval_loss"]
    assert not any(name.startswith("completions") for name in event.values)  # metrics of training stay where they are


def test_groups_come_in_an_order_of_seed_and_epoch_alone() -> None:
    def order(epoch: int) -> list[int]:
        sampler = GroupSampler(range(5), seed=1, group=3, rows_per_step=2, repeats=2)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    first = order(0)
    assert order(0) == first != order(1)
    assert first[:6] == first[6:12]  # a step's rows once for each micro-batch
    assert first[0:3] == [first[0]] * 3
    assert first[3:6] == [first[3]] * 3
    assert len(set(first)) == 4  # the fifth row fills no step


# --- what all three share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_batch_times_accumulation_is_all_that_counts(tmp_path: Path, loss: str, is_peft: bool) -> None:
    """Not so orpo: TRL averages its NLL over the tokens of each micro-batch."""
    options: dict[str, Any] = {"is_peft": is_peft, "learning_rate": 0.05}
    whole, split = (
        trained_weights(
            any_run(
                tmp_path,
                f"{batch}",
                loss,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=8 // batch,
                **options,
            )
        )
        for batch in (8, 2)
    )
    one_step_less = trained_weights(any_run(tmp_path, "one-step", loss, max_steps=1, **options))
    assert_same_steps(whole, split, one_step_less)


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_a_short_micro_batch_weighs_no_more_than_its_rows(tmp_path: Path, loss: str) -> None:
    """Eight pairs as 3 + 3 + 2: the same gradient, and the same means over pairs, in training and on a test file.

    Of orpo the first step's metrics alone: TRL averages its NLL over the tokens of each micro-batch.
    """
    options: dict[str, Any] = {
        "test_file": write_pairs(tmp_path / "pairs.jsonl"),
        "test_file_eval_strategy": "steps",
        "test_file_eval_steps": 1,
    }
    whole, split = (
        preference_run(
            tmp_path,
            f"{batch}",
            loss,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=math.ceil(8 / batch),
            eval_batch_size=batch,
            **options,
        )
        for batch in (8, 3)
    )
    if loss == "orpo":
        (first, *_), (reference, *_) = split.events(Tag.TRAIN), whole.events(Tag.TRAIN)
        for name in ("rewards/margins", "log_odds_ratio", "logps/chosen"):
            assert first.values[name] == pytest.approx(reference.values[name], rel=1e-4), name
        return
    one_step_less = trained_weights(preference_run(tmp_path, "one-step", loss, max_steps=1, **options))
    assert_same_steps(trained_weights(whole), trained_weights(split), one_step_less)
    for tag in (Tag.TRAIN, Tag.EVAL):
        for event, reference in zip(split.events(tag), whole.events(tag), strict=True):
            for name in [name for name in reference.values if name.endswith(("loss", "margins", "accuracies"))]:
                assert event.values[name] == pytest.approx(reference.values[name], rel=1e-4, abs=1e-6), name
    assert whole.events(Tag.EVAL)[-1].values["eval_rewards/margins"] > 0.05


@pytest.mark.parametrize("loss", ["grpo", "dpo", "orpo"])
def test_the_adapter_of_a_quantised_model_stays_in_full_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """TRL casts it to bfloat16. Four bits need a GPU: the model here only says that it has them.

    The adapter was trained before, so that rounding it would show, in the step and in what it is compared with.
    """
    first = any_run(tmp_path, "first", loss, max_steps=1)
    again: dict[str, Any] = {"model": str(first.model_path), "max_steps": 2}
    plain_run = any_run(tmp_path, "plain", loss, **again)

    def quantised(*arguments: Any) -> LoadedModel:
        loaded = load_model(*arguments)
        loaded.model.is_loaded_in_4bit = True
        return loaded

    monkeypatch.setattr(training_run, "load_model", quantised)
    quantised_run = any_run(tmp_path, "quantised", loss, **again)
    assert_same_bits(trained_weights(quantised_run), trained_weights(plain_run))


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["grpo", "dpo", "orpo"])
def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, loss: str, is_peft: bool) -> None:
    """Into the second epoch, with dropout's random states and Adam's moments where the objective has them."""
    options: dict[str, Any] = {
        "is_peft": is_peft,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 10 if loss == "grpo" else 4,
        "save_steps": 1,
    }
    run = any_run(tmp_path, "run", loss, **options)
    whole, last = trained_weights(run), options["max_steps"]
    metrics = run.events(Tag.TRAIN)[-1].values
    shutil.rmtree(run.model_path)
    shutil.rmtree(run.path / f"checkpoint-{last}")
    resumed = train(run.config, resume=run.path, console=Console(quiet=True))
    assert_same_bits(trained_weights(resumed), whole)
    again = resumed.events(Tag.TRAIN)[-1].values
    for name in metrics.keys() - {"tokens_per_second", "step_time"}:
        assert again[name] == metrics[name], name


@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_the_reference_of_a_trained_adapter_is_that_adapter(tmp_path: Path, loss: str) -> None:
    before = run_small(tmp_path, "before", loss="sft", max_steps=3)
    run = any_run(tmp_path, "run", loss, model=str(before.model_path), max_steps=2, save_steps=1, beta=0.5)
    first = run.events(Tag.TRAIN)[0].values
    if loss == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    else:
        assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    exported = {path.relative_to(run.model_path).as_posix() for path in run.model_path.rglob("*")}
    assert not any("ref" in name for name in exported)
    assert run.model_path.name == "adapter"
    whole = trained_weights(run)
    shutil.rmtree(run.model_path)
    shutil.rmtree(run.path / "checkpoint-2")
    assert_same_bits(trained_weights(train(run.config, resume=run.path, console=Console(quiet=True))), whole)


@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_the_reference_of_full_fine_tuning_is_the_model_as_it_was_loaded(tmp_path: Path, loss: str) -> None:
    """An adapter is merged in memory; where its base lies on disk there is another model."""
    before = run_small(tmp_path, "before", loss="sft", max_steps=3)
    run = any_run(tmp_path, "run", loss, model=str(before.model_path), is_peft=False, max_steps=1, learning_rate=1e-3)
    first = run.events(Tag.TRAIN)[0].values
    if loss == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    else:
        assert first["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # this adapter is never merged
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")  # as it should
def test_an_adapter_of_embeddings_is_a_trained_adapter_too(tmp_path: Path) -> None:
    before = run_small(tmp_path, "before", loss="sft", max_steps=3, target_modules=["embed_tokens"])
    run = preference_run(tmp_path, "run", "dpo", model=str(before.model_path), max_steps=1)
    assert run.events(Tag.TRAIN)[0].values["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_a_column_that_few_rows_have_is_there_in_every_batch(tmp_path: Path) -> None:
    rows = [{"prompt": question, "completion": answer} for question, answer in ROWS]
    data, reward = tmp_path / "data.jsonl", tmp_path / "points.py"
    data.write_text("".join(json.dumps(row) + "\n" for row in [{**rows[0], "points": 3}, *rows[1:]]), encoding="utf-8")
    reward.write_text("def points(*, points, **columns): return [point or 0 for point in points]\n", encoding="utf-8")
    run = grpo_run(tmp_path, "run", training_file=data, grpo_reward_function=f"{reward}:points", max_steps=4)
    assert len(run.events(Tag.TRAIN)) == 4


@pytest.mark.parametrize("loss", ["grpo", "dpo", "orpo"])
def test_a_run_leaves_what_other_objectives_leave(tmp_path: Path, loss: str) -> None:
    options: dict[str, Any] = {"monitoring_eval_steps": 1, "monitoring_max_new_tokens": 4, "merge_before_push": True}
    run = any_run(tmp_path, "run", loss, save_steps=2, **options)
    assert {path.name for path in run.path.iterdir()} == {
        *("run.json", "events.jsonl", "log.txt", "samples.jsonl", "checkpoint-2", "model"),
    } - ({"samples.jsonl"} if loss != "grpo" else set())
    monitored = run.events(Tag.MONITORING)
    assert [event.step for event in monitored] == [0, 1, 2]
    assert monitored[0].values["weight_diff_norm"] == 0.0
    assert monitored[2].values["weight_diff_norm"] > monitored[1].values["weight_diff_norm"] > 0.0
    assert monitored[2].values["kl_vs_base"] > 0.0
    assert run.load().model.config.vocab_size > 0


@pytest.mark.parametrize("loss", ["grpo", "dpo", "orpo"])
def test_measuring_changes_no_weight(tmp_path: Path, loss: str) -> None:
    options: dict[str, Any] = {"lora_dropout": 0.1, "max_steps": 3}
    measured = {"monitoring_eval_steps": 1, "monitoring_max_new_tokens": 4}
    plain = any_run(tmp_path, "plain", loss, **options)
    watched = any_run(tmp_path, "watched", loss, **options, **measured)
    assert_same_bits(trained_weights(plain), trained_weights(watched))
