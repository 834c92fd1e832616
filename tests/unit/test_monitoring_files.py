"""What monitoring reads and writes: prompts, answers to score, sampled answers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.known_model import known_model
from tests.small_runs import save_tiny_model
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage import TrainingConfig
from tutelage.config.training import SamplingCallback
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import DataError, TutelageError
from tutelage.monitoring import AnswerScores, AnswerSet, everyday_prompts, read_prompts
from tutelage.monitoring.checks import check_monitoring
from tutelage.monitoring.prompts import answer_text
from tutelage.monitoring.samples import AnswerSampler

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_monitoring_is_given_is_checked_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = save_tiny_model(tmp_path / "tiny")
    a, b = (write_rows(tmp_path / f"{name}.jsonl", {"prompt": name}) for name in "ab")
    bad = write_rows(tmp_path / "bad.jsonl", {"prompt": "fine"}, {"text": "?"})

    def refusal(**options: object) -> str:
        config = TrainingConfig(model=str(model), training_file=a, monitoring_eval_steps=1, **options)
        with pytest.raises(TutelageError) as caught:
            check_monitoring(config, TEMPLATE, str(model))
        return str(caught.value)

    direction = {"a": a, "b": b}
    assert "bad.jsonl:2: the row has neither" in refusal(monitoring_prompts=bad)
    assert "bad.jsonl:2: the row has neither" in refusal(monitoring_directions={"d": {"a": a, "b": bad}})
    assert "bad.jsonl:2: the row has neither" in refusal(sampling_callbacks=[{"file": bad, "every_n_steps": 1}])
    assert "a.jsonl" in refusal(logp_callback_datasets={"rows": a})
    assert "monitoring_directions.d: a and b are both" in refusal(monitoring_directions={"d": {"a": a, "b": a}})
    for layer in (3, -4):
        message = refusal(monitoring_directions={"d": direction | {"layer": layer}})
        assert f"monitoring_directions.d.layer: {layer} does not exist; the model has the layers 0 to 2" in message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "report_to: wandb cannot be used (its package is not installed)" in refusal(report_to=["wandb"])
    monkeypatch.undo()
    fine = {"d": direction | {"layer": 2}, "e": direction | {"layer": -3}}
    config = TrainingConfig(model=str(model), training_file=a, monitoring_eval_steps=1, monitoring_directions=fine)
    check_monitoring(config, TEMPLATE, str(model))


def test_everyday_prompts_are_different_questions():
    texts = [prompt.messages[0].content for prompt in everyday_prompts()]
    assert len(set(texts)) == 16


def test_prompts_may_be_text_messages_or_whole_conversations(tmp_path: Path):
    user = {"role": "user", "content": "hi"}
    path = write_rows(
        tmp_path / "p.jsonl",
        {"prompt": "hi"},
        {"prompt": [{"role": "system", "content": "be brief"}, user]},
        {"messages": [user, {"role": "assistant", "content": "the answer is not asked"}]},
    )
    asked = [prompt.messages for prompt in read_prompts(path)]
    assert asked == [
        (Message("user", "hi"),),
        (Message("system", "be brief"), Message("user", "hi")),
        (Message("user", "hi"),),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "hi"}, "neither 'messages' nor 'prompt'"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "no turn is left to answer"),
        ({"prompt": "  "}, "is empty"),
        ({"messages": [{"role": "human", "content": "hi"}]}, "is not a message"),
        ({"messages": [{"role": "user", "content": 3}]}, "is not a message"),
        ({"messages": ["hi"]}, "is not a message"),
        ([1], "not an object"),
    ],
)
def test_prompts_that_cannot_be_asked_are_named_by_line(tmp_path: Path, row: object, reason: str):
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=rf"p\.jsonl:2: .*{reason}"):
        read_prompts(path)


def test_an_empty_prompt_file_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"p\.jsonl: the file has no prompts"):
        read_prompts(write_rows(tmp_path / "p.jsonl"))


def test_means_per_token_and_per_answer_by_hand():
    """Answers of log-probability (−1, −2) and (−6): −9 over 3 tokens, −9 over 2 answers."""
    answers = AnswerSet("x", [([1], [2, 3]), ([1], [4])], ["f:1", "f:2"], TEMPLATE)
    scores = AnswerScores(answers, [torch.tensor([-1.0, -2.0]), torch.tensor([-6.0])])
    assert scores.values() == {"logp/x": -3.0, "logp_per_answer/x": -4.5}


def test_the_answer_and_its_end_are_scored_given_the_prompt(tmp_path: Path):
    """p(a | prompt) = ½, p(end | a) = ¼: −0.693147 and −1.386294."""
    prompt = TEMPLATE.encode_prompt([Message("user", "q")])
    letter = TOKENIZER("a", add_special_tokens=False)["input_ids"][0]
    model = known_model(TOKENIZER, {prompt[-1]: {letter: 0.5, END: 0.5}, letter: {END: 0.25, letter: 0.75}})
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    path = write_rows(tmp_path / "d.jsonl", row)
    scores = AnswerSet.read("d", path, TEMPLATE, model).score(model)
    assert scores.rows() == [
        {
            "dataset": "d",
            "place": f"{path}:1",
            "tokens": ["a", "<|im_end|>"],
            "log_probs": pytest.approx([-0.693147, -1.386294], abs=1e-5),
        }
    ]
    assert scores.per_answer == pytest.approx(-2.079442, abs=1e-5)

    row["messages"][1]["content"] = "a" * 300
    with pytest.raises(DataError, match=r"d\.jsonl:1: \d+ tokens, but the model has 256 positions"):
        AnswerSet.read("d", write_rows(path, row), TEMPLATE, model)


def test_an_answer_is_text_without_its_end():
    ids = TOKENIZER(" Paris. ", add_special_tokens=False)["input_ids"]
    assert answer_text(TEMPLATE, [*ids, END]) == answer_text(TEMPLATE, ids) == "Paris."
    assert answer_text(TEMPLATE, [END]) == ""


def test_sampled_answers_depend_on_seed_step_and_row_alone(tmp_path: Path):
    model = tiny_model(TOKENIZER)
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "one"}, {"prompt": "one"}, {"prompt": "a longer one"})
    sampler = AnswerSampler.prepare(SamplingCallback(file=path, max_new_tokens=8, tag="t"), model, TEMPLATE, seed=3)
    rows = sampler.sample(model, step=4)
    torch.rand(3)
    assert sampler.sample(model, step=4, batch_size=1) == rows
    answers = [row["answer"] for row in rows]
    assert answers[0] != answers[1]  # the same prompt in another row
    assert [row["answer"] for row in sampler.sample(model, step=5)] != answers
    assert rows[2] == {
        "step": 4,
        "tag": "t",
        "prompt": [{"role": "user", "content": "a longer one"}],
        "answer": answers[2],
        "tokens": rows[2]["tokens"],
        "truncated": rows[2]["tokens"] == 8,
    }


def test_an_answer_that_ends_is_not_truncated(tmp_path: Path):
    prompt = TEMPLATE.encode_prompt([Message("user", "q")])
    letter = TOKENIZER("a", add_special_tokens=False)["input_ids"][0]
    model = known_model(TOKENIZER, {prompt[-1]: {letter: 1.0}, letter: {END: 1.0}})
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "q"})
    for limit, tokens, truncated in ((1, 1, True), (2, 2, False), (9, 2, False)):
        config = SamplingCallback(file=path, max_new_tokens=limit, temperature=0.0)
        [row] = AnswerSampler.prepare(config, model, TEMPLATE, seed=0).sample(model, step=0)
        assert (row["answer"], row["tokens"], row["truncated"]) == ("a", tokens, truncated)
