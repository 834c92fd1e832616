"""Rewards of grpo: what there is, what they are given, what stops a run, before step 1 where that can be known."""

import asyncio
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.judge_server import judge_server, refused_url
from tests.small_runs import run_small, small_config
from tests.trl_runs import grpo_run
from tutelage import train
from tutelage.config import GrpoConfig
from tutelage.data.messages import Message
from tutelage.data.rows import PromptRow
from tutelage.errors import ConfigError, TrainingError, TutelageError
from tutelage.events import Tag
from tutelage.training.reward_check import reward_columns
from tutelage.training.rewards import REWARDS, JudgeReward, Scores, load_reward


def rows_of(*pairs: tuple[str, str]) -> list[PromptRow]:
    return [
        PromptRow((Message("user", question),), [1, 2], gold, [3], {}, 1.0, number, f"rows.jsonl:{number + 1}")
        for number, (question, gold) in enumerate(pairs)
    ]


def scored(options: GrpoConfig, answers: Sequence[str], golds: Sequence[str]) -> list[float]:
    rows = rows_of(*(("Q?", gold) for gold in golds))
    return Scores(options).raw(reward_columns(rows, answers, [[7]] * len(answers))).tolist()


def own(folder: Path, body: str, name: str = "reward") -> GrpoConfig:
    file = folder / "own.py"
    file.write_text(body, encoding="utf-8")
    return GrpoConfig(reward_function=f"{file}:{name}")


# --- built-in rewards -----------------------------------------------------------------------------------------------


def test_built_in_rewards_compare_with_the_gold_response() -> None:
    golds = ["the cat sat", "the cat sat", "4"]
    answers = ["The cat sat", "a cat", "4"]
    rouge = scored(GrpoConfig(reward_function="rouge_l"), answers, golds)
    assert rouge == pytest.approx([1.0, 2 * 1 / (2 + 3), 1.0])
    assert scored(GrpoConfig(reward_function="exact_match"), answers, golds) == [0.0, 0.0, 1.0]
    call = '{"name": "add", "arguments": {"a": 1}}'
    assert scored(GrpoConfig(reward_function="tool_call_match"), [call, "no"], [call, call]) == [1.0, 0.0]


def test_traits_are_upper_case_letters_and_words_of_a_language() -> None:
    """Four words, of which `la` and `de` are common Spanish ones: min(1, 4 · 2/4) = 1; 3 of 13 letters upper case."""
    answers = ["LA casa de Pedro", "xyz"]
    spanish = scored(GrpoConfig(reward_function="traits"), answers, ["", ""])
    assert spanish == pytest.approx([3 / 13 + 1.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reward_function": "rogue_l"},
            "grpo_reward_function: 'rogue_l' is not a reward; did you mean 'rouge_l'?, or your own as "
            "path/to/file.py:function",
        ),
        (
            {"reward_function": "traits", "traits_language": "spanisch"},
            "grpo_traits_language: 'spanisch' has no list of words; did you mean 'spanish'?",
        ),
    ],
)
def test_unknown_rewards_and_languages_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_reward(GrpoConfig(**options))
    assert str(caught.value) == message


def test_every_built_in_reward_loads() -> None:
    for name in REWARDS:
        assert callable(load_reward(GrpoConfig(reward_function=name, judge_model="m")))


# --- own rewards ----------------------------------------------------------------------------------------------------


def test_an_own_reward_may_be_a_coroutine_or_return_a_tensor(tmp_path: Path) -> None:
    options = own(
        tmp_path,
        "import asyncio, torch\n"
        "async def reward(*, completions, **columns):\n"
        "    await asyncio.sleep(0)\n"
        "    return torch.tensor([float(len(turns[-1]['content'])) for turns in completions])\n",
    )
    assert scored(options, ["abc", ""], ["", ""]) == [3.0, 0.0]

    async def in_a_notebook() -> list[float]:
        return scored(options, ["abcd"], [""])

    assert asyncio.run(in_a_notebook()) == [4.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "returned 1 scores for 2 answers; return a list with one number an answer"),
        ("return None", "returned None for 2 answers; return a list with one number an answer"),
        ("return ['good', 'bad']", "returned 'good' as a score; return a number, or None"),
        ("raise SystemExit(3)", "raised SystemExit: 3 (own.py:2)"),
        ("raise KeyError('points')", "raised KeyError: 'points' (own.py:2); mend it, or return None"),
    ],
)
def test_an_own_reward_that_is_wrong_says_what_to_return(tmp_path: Path, body: str, message: str) -> None:
    options = own(tmp_path, f"def reward(**columns):\n    {body}\n")
    with pytest.raises(TrainingError) as caught:
        scored(options, ["a", "b"], ["", ""])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"grpo_reward_function '{options.reward_function}'")


def test_a_reward_may_be_wrapped(tmp_path: Path) -> None:
    """What is called is the wrapper, whatever it was made of."""
    options = own(
        tmp_path,
        "from functools import wraps\n"
        "def per_answer(score):\n"
        "    @wraps(score)\n"
        "    def reward(*, completions, gold_response, **columns):\n"
        "        return [score(turns[-1]['content'], gold) for turns, gold in zip(completions, gold_response)]\n"
        "    return reward\n"
        "@per_answer\n"
        "def reward(answer, gold):\n"
        "    return float(answer == gold)\n",
    )
    assert scored(options, ["a", "b"], ["a", "a"]) == [1.0, 0.0]


def test_a_reward_with_other_parameters_is_told_what_there_is(tmp_path: Path) -> None:
    options = own(tmp_path, "def reward(*, prompts, completions, answers, **columns):\n    return []\n")
    with pytest.raises(TrainingError) as caught:
        scored(options, ["a"], [""])
    there = "prompts, completions, completion_ids, gold_response"
    assert f"cannot be called with what there is: {there} (missing a required" in str(caught.value)
    assert "'answers'" in str(caught.value)
    assert "name its parameters after these, and end with **columns" in str(caught.value)


def test_missing_scores_are_filled_with_the_mean_of_the_finite_ones(tmp_path: Path) -> None:
    scores = Scores(own(tmp_path, "def reward(**columns): pass"))
    filled_N, missing = scores.filled(torch.tensor([1.0, math.nan, 4.0, math.inf, -math.inf]))
    assert filled_N.tolist() == [1.0, 2.5, 4.0, 2.5, 2.5]
    assert missing == 3
    filled_N, missing = scores.filled(torch.tensor([math.nan, math.nan]))
    assert (filled_N.tolist(), missing) == ([0.0, 0.0], 2)


def test_batches_without_a_finite_score_are_counted_in_a_row(tmp_path: Path) -> None:
    scores = Scores(own(tmp_path, "def reward(**columns): pass"))
    nothing, something = torch.tensor([math.nan]), torch.tensor([1.0])
    for batch in (nothing, nothing, something, nothing, nothing):
        scores.filled(batch)
    with pytest.raises(TrainingError, match="gave no finite score in 3 batches in a row; nothing can be learned"):
        scores.filled(nothing)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "raised ValueError: no"),
        ("return []", "returned 0 scores for 4 answers"),
        ("return [float('nan')] * len(columns['completions'])", "has no finite score for any of the gold answers"),
    ],
)
def test_a_reward_that_cannot_work_stops_the_run_before_step_1(tmp_path: Path, body: str, message: str) -> None:
    options = own(tmp_path, f"def reward(**columns):\n    {body}\n")
    with pytest.raises(TrainingError, match=message.split("(")[0]):
        run_small(tmp_path, "run", loss="grpo", grpo_reward_function=options.reward_function, grpo_num_generations=4)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grpo_num_generations": 3}, "grpo_num_generations: 3 does not divide the 8 answers of a step"),
        ({"grpo_num_generations": 2, "gradient_accumulation_steps": 4}, "8 rows fill no step of 16 prompts"),
        ({"grpo_reward_function": "no_file.py:reward"}, "no_file.py"),
    ],
)
def test_what_is_wrong_with_a_config_is_found_before_the_model_is_loaded(
    tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, "run", **({"loss": "grpo", "grpo_num_generations": 4} | options))
    monkeypatch.setattr("tutelage.training.run.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=message):
        train(config, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_reward_that_fails_later_ends_the_run_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    reward = tmp_path / "late.py"
    reward.write_text(
        "def late(*, completions, trainer_state=None, **columns):\n"
        "    if trainer_state and trainer_state.global_step == 2: raise RuntimeError('out of coffee')\n"
        "    return [float(len(turns[-1]['content'])) for turns in completions]\n",
        encoding="utf-8",
    )
    with pytest.raises(TrainingError, match="raised RuntimeError: out of coffee"):
        grpo_run(tmp_path, "run", grpo_reward_function=f"{reward}:late", max_steps=4, save_steps=1)
    assert (tmp_path / "run" / "checkpoint-2" / "complete").exists()


# --- judges ---------------------------------------------------------------------------------------------------------


def judged(url: str, model: str, **options: Any) -> dict[str, Any]:
    return {
        "grpo_reward_function": "llm_judge",
        "grpo_judge_model": model,
        "grpo_judge_base_url": url,
        "grpo_judge_timeout": 5.0,
    } | options


@pytest.mark.parametrize("name", ["llm_judge", "similarity_judge"])
def test_a_judge_scores_from_0_to_1(name: str) -> None:
    with judge_server() as server:
        options = GrpoConfig(reward_function=name, judge_model="eighty", judge_base_url=server.url)
        assert scored(options, ["An answer.", "Another."], ["gold", "gold"]) == pytest.approx([0.8, 0.8])
        asked = [request["messages"][-1]["content"] for request in server.requests]
    assert all(("gold" in text) == (name == "similarity_judge") for text in asked)
    assert sorted("Another." in text for text in asked) == [False, True]


@pytest.mark.parametrize("model", ["busy", "broken", "not json", "resets", "chats", "hangs"])
def test_a_call_that_fails_has_no_score_and_is_not_repeated(model: str) -> None:
    with judge_server() as server:
        options = GrpoConfig(
            reward_function="llm_judge", judge_model=model, judge_base_url=server.url, judge_timeout=0.5
        )
        reward = load_reward(options)
        assert isinstance(reward, JudgeReward)
        rows = rows_of(("Q?", "gold"))
        assert list(reward(**reward_columns(rows, ["A."], [[7]]))) == [None]
        assert len(server.requests) == 1
    assert reward.last_error


def test_a_run_is_judged_to_its_end(tmp_path: Path) -> None:
    with judge_server() as server:
        run = grpo_run(tmp_path, "run", **judged(server.url, "eighty"), max_steps=1)
        assert len(server.requests) == 1 + 4 + 8  # the check's call, four gold answers, the step's answers
    assert run.events(Tag.TRAIN)[0].values["reward"] == pytest.approx(0.8)
    assert run.events(Tag.CHECK)[0].values["gold_reward"] == pytest.approx(0.8)


def test_a_run_whose_judge_dies_stops_and_says_why(tmp_path: Path) -> None:
    with judge_server() as server:
        server.stamina = 1 + 4 + 8
        with pytest.raises(TrainingError) as caught:
            grpo_run(tmp_path, "run", **judged(server.url, "tires", grpo_max_unscored_batches=2), max_steps=9)
        assert len(server.requests) == 1 + 4 + 8 + 2 * 8
    assert "gave no finite score in 2 batches in a row (the judge: " in str(caught.value)
    assert "tired" in str(caught.value)


@pytest.mark.parametrize(("model", "message"), [("eigthy", "did you mean 'eighty'"), ("refused", "refuses the key")])
def test_a_judge_that_cannot_work_stops_the_run_before_step_1(tmp_path: Path, model: str, message: str) -> None:
    with judge_server() as server, pytest.raises(TutelageError, match=message):
        grpo_run(tmp_path, "run", **judged(server.url, model))
    assert not (tmp_path / "run").exists()


def test_a_judge_that_is_not_there_stops_the_run_before_step_1(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        grpo_run(tmp_path, "run", **judged(refused_url(), "eighty"))
    assert not (tmp_path / "run").exists()


def test_a_busy_judge_is_warned_about_and_the_run_decides(tmp_path: Path) -> None:
    console = Console(record=True, file=io.StringIO(), width=1000)
    with judge_server() as server:
        server.stamina = 1  # the check's call
        options = judged(server.url, "tires", grpo_max_unscored_batches=2)
        config = small_config(tmp_path, "run", loss="grpo", grpo_num_generations=4, max_steps=1, **options)
        run = train(config, console=console)
    warning = "the judge scored none of 4 gold answers (the judge: status 500: tired)"
    assert f"warning: {warning}" in console.export_text()
    assert [event.values["message"] for event in run.events(Tag.WARNING)] == [warning]
    assert run.events(Tag.CHECK)[0].values == {"rows": 4}
    assert run.events(Tag.TRAIN)[0].values["unscored"] == 8.0


def test_a_judge_names_the_options_of_the_run() -> None:
    options = GrpoConfig(reward_function="llm_judge", judge_model="m", judge_base_url=refused_url())
    reward = load_reward(options)
    assert isinstance(reward, JudgeReward)
    with pytest.raises(ConfigError, match="start the server or mend grpo_judge_base_url"):
        reward.judge.check()


def test_a_judge_is_asked_with_the_options_of_the_run() -> None:
    options = {"judge_temperature": None, "judge_max_tokens": 4096}
    with judge_server() as server:
        scored(
            GrpoConfig(reward_function="llm_judge", judge_model="eighty", judge_base_url=server.url, **options),
            ["A"],
            ["g"],
        )
        scored(GrpoConfig(reward_function="llm_judge", judge_model="eighty", judge_base_url=server.url), ["A"], ["g"])
        free, own = server.requests
    assert ("temperature" in free, free["max_tokens"]) == (False, 4096)
    assert (own["temperature"], own["max_tokens"]) == (0.0, 256)


def test_a_judge_sees_all_turns_that_an_answer_may_hang_on() -> None:
    turns = [
        ("system", "Answer in French."),
        ("user", "Capital of Peru?"),
        ("assistant", "Lima"),
        ("user", "Of Chile?"),
    ]
    prompt = [{"role": role, "content": content} for role, content in turns]
    columns = {"completions": [[{"role": "assistant", "content": "Santiago"}]], "gold_response": ["Santiago"]}
    with judge_server() as server:
        reward = load_reward(GrpoConfig(reward_function="llm_judge", judge_model="eighty", judge_base_url=server.url))
        reward(prompts=[prompt], **columns)
        reward(prompts=[prompt[-1:]], **columns)
        whole, alone = (request["messages"][-1]["content"] for request in server.requests)
    assert (
        "[system]\nAnswer in French.\n\n[user]\nCapital of Peru?\n\n[assistant]\nLima\n\n[user]\nOf Chile?\n" in whole
    )
    assert "Of Chile?" in alone
    assert "[user]" not in alone
