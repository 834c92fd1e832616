"""Multiple choice and generation on a model whose distribution is known, and on a random one in batches."""

import json
import random
from pathlib import Path

import pytest
import torch

from tests.known_model import known_model
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import DataError
from tutelage.evaluation import (
    ChoiceQuestion,
    Question,
    evaluate_generation,
    evaluate_multiple_choice,
    exact_match,
    write_items,
)

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
ASKED = (Message("user", "q"),)
START = TEMPLATE.encode_prompt(ASKED)[-1]
A, B, C = (TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "abc")

KNOWN = known_model(
    TOKENIZER,
    {
        START: {A: 0.7, B: 0.25, C: 0.05},
        A: {END: 0.2, A: 0.8},
        B: {END: 0.8, B: 0.2},
        C: {END: 0.9, C: 0.1},
    },
)
"""p(a) = 0.14, p(b) = 0.2, p(c) = 0.045, p(bb) = 0.25 · 0.2 · 0.8 = 0.04, each with its end of turn."""


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def test_log_probs_of_choices_by_hand():
    questions = [ChoiceQuestion(ASKED, ("a", "b"), 1, "f:1"), ChoiceQuestion(ASKED, ("bb", "c", "a"), 0, "f:2")]
    result = evaluate_multiple_choice(KNOWN, TEMPLATE, questions)
    # ln 0.14, ln 0.2; ln 0.04, ln 0.045, ln 0.14
    assert result.items[0].log_probs == pytest.approx([-1.966113, -1.609438], abs=1e-4)
    assert result.items[1].log_probs == pytest.approx([-3.218876, -3.101093, -1.966113], abs=1e-4)
    assert [item.chosen for item in result.items] == [1, 2]
    assert result.accuracy == 0.5
    assert result.mean_log_prob == pytest.approx((-1.609438 - 3.218876) / 2, abs=1e-4)


def test_the_mean_per_token_does_not_favour_the_short_choice():
    """(ln 0.04)/3 = −1.07 against (ln 0.045)/2 = −1.55, where the sums are −3.22 and −3.10."""
    question = ChoiceQuestion(ASKED, ("bb", "c"), 0)
    by_sum = evaluate_multiple_choice(KNOWN, TEMPLATE, [question])
    by_mean = evaluate_multiple_choice(KNOWN, TEMPLATE, [question], length="mean")
    assert (by_sum.accuracy, by_mean.accuracy) == (0.0, 1.0)
    assert by_mean.items[0].log_probs == pytest.approx([-1.072959, -1.550546], abs=1e-4)


def test_batches_do_not_change_log_probs():
    model = tiny_model(TOKENIZER)
    questions = [
        ChoiceQuestion(asked("w " * length), ("Paris", "a much longer choice than that", "no"), 0)
        for length in (1, 30, 7)
    ]
    results = [evaluate_multiple_choice(model, TEMPLATE, questions, batch_size=size) for size in (1, 2, 9)]
    for question, *items in zip(questions, *(result.items for result in results), strict=True):
        for index, choice in enumerate(question.choices):
            prompt = TEMPLATE.encode_prompt(question.prompt)
            answer = [*TOKENIZER(choice, add_special_tokens=False)["input_ids"], END]
            with torch.no_grad():
                logp_TV = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            alone = sum(float(logp_TV[len(prompt) - 1 + step, token]) for step, token in enumerate(answer))
            assert [item.log_probs[index] for item in items] == pytest.approx([alone] * 3, rel=1e-5)


def test_greedy_answers_and_their_scores():
    """From b: p(end) = 0.8, so a greedy answer from b is 'b'. The model prefers a (0.7) and then never ends."""
    ends = known_model(TOKENIZER, {START: {B: 0.6, A: 0.4}, B: {END: 0.8, B: 0.2}})
    questions = [Question(ASKED, "b", "f:1"), Question(ASKED, "c", "f:2"), Question(asked("other"), "b", "f:3")]
    result = evaluate_generation(ends, TEMPLATE, questions, exact_match, max_new_tokens=4)
    assert [(item.answer, item.score, item.truncated) for item in result.items] == [
        ("b", 1.0, False),
        ("b", 0.0, False),
        ("b", 1.0, False),
    ]
    assert result.score == pytest.approx(2 / 3)
    endless = evaluate_generation(KNOWN, TEMPLATE, questions[:1], exact_match, max_new_tokens=4)
    assert (endless.items[0].answer, endless.truncated) == ("aaaa", 1.0)


def test_greedy_answers_are_those_of_one_prompt_alone_for_every_batch_size():
    model = tiny_model(TOKENIZER)
    questions = [Question(asked("w " * length), "t") for length in (1, 25, 4, 9)]
    expected = []
    for question in questions:
        ids = TEMPLATE.encode_prompt(question.prompt)
        answer: list[int] = []
        while len(answer) < 6 and END not in answer:
            with torch.no_grad():
                answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
        expected.append(TOKENIZER.decode([token for token in answer if token != END]).strip())
    assert len(set(expected)) > 1
    for batch_size in (1, 3, 32):
        result = evaluate_generation(model, TEMPLATE, questions, exact_match, max_new_tokens=6, batch_size=batch_size)
        assert [item.answer for item in result.items] == expected


def test_sampled_answers_have_the_model_s_frequencies_and_depend_on_the_seed_alone():
    """p(a) = 0.7 of 200 first tokens: 140 ± 3 · √(200 · 0.7 · 0.3) = 140 ± 19.4."""
    questions = [Question(ASKED, "a")] * 200

    def answers(seed: int, batch_size: int) -> list[str]:
        result = evaluate_generation(
            KNOWN, TEMPLATE, questions, exact_match, max_new_tokens=1, temperature=1.0, seed=seed, batch_size=batch_size
        )
        return [item.answer for item in result.items]

    first = answers(seed=1, batch_size=200)
    assert 120 < first.count("a") < 160
    assert answers(seed=1, batch_size=77) == first
    assert answers(seed=2, batch_size=200) != first


def test_evaluating_leaves_the_model_and_the_random_states_alone():
    model = tiny_model(TOKENIZER).train()
    before = random.getstate(), torch.get_rng_state()
    evaluate_multiple_choice(model, TEMPLATE, [ChoiceQuestion(ASKED, ("a", "b"), 0)])
    evaluate_generation(model, TEMPLATE, [Question(ASKED, "a")], exact_match, max_new_tokens=2, temperature=1.0)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_evaluated():
    with pytest.raises(DataError, match="multiple_choice has no questions"):
        evaluate_multiple_choice(KNOWN, TEMPLATE, [])
    with pytest.raises(DataError, match="generate has no questions"):
        evaluate_generation(KNOWN, TEMPLATE, [], exact_match)
    with pytest.raises(DataError, match=r"f:9: \d+ tokens, but the model has 256 positions"):
        evaluate_multiple_choice(KNOWN, TEMPLATE, [ChoiceQuestion(ASKED, ("a", "b" * 300), 0, "f:9")])
    with pytest.raises(DataError, match=r"f:9: \d+ tokens"):
        evaluate_generation(KNOWN, TEMPLATE, [Question(asked("b" * 300), "a", "f:9")], exact_match)


def test_rows_of_result_files(tmp_path: Path):
    choice = evaluate_multiple_choice(KNOWN, TEMPLATE, [ChoiceQuestion(ASKED, ("a", "b"), 1, "f:1")])
    write_items(tmp_path / "choice.jsonl", choice.items)
    row = json.loads((tmp_path / "choice.jsonl").read_text())
    assert row.pop("log_probs") == pytest.approx([-1.966113, -1.609438], abs=1e-4)
    prompt = [{"role": "user", "content": "q"}]
    assert row == {
        "prompt": prompt,
        "choices": ["a", "b"],
        "right": 1,
        "place": "f:1",
        "answer": "b",
        "score": 1.0,
    }
    answers = evaluate_generation(KNOWN, TEMPLATE, [Question(ASKED, "a", "f:1")], exact_match, max_new_tokens=1)
    write_items(tmp_path / "answers.jsonl", answers.items)
    assert json.loads((tmp_path / "answers.jsonl").read_text()) == {
        "prompt": prompt,
        "answer": "a",
        "target": "a",
        "score": 1.0,
        "truncated": True,
        "place": "f:1",
    }
