"""Choices scored with their prompt computed once are the choices scored one by one."""

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.models import choices, response_log_probs
from tutelage.models.choices import PromptChoices, choice_log_probs

QUESTIONS: list[PromptChoices] = [
    ([5, 6, 7, 8], [[10, 11, 12, 2], [10, 11, 13, 14, 2], [10, 11, 2]]),  # begin alike
    ([9] * 20, [[30, 31, 2], [40, 2]]),  # begin differently
    ([3], [[50], [51], [50, 52]]),  # single tokens, one the beginning of another
    ([4, 4], [[60, 61, 62, 63], [60, 61, 62, 63]]),  # the same twice
]


def plain(model: Any) -> list[list[list[float]]]:
    return [[response_log_probs(model, [(p, choice)], 2)[0].tolist() for choice in cs] for p, cs in QUESTIONS]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equal_to_one_by_one(batch_size: int, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_tokenizer())
    model.set_attn_implementation(attention)
    expected = plain(model)
    forwards: list[int] = []
    monkeypatch.setattr(choices, "_shared", lambda *args: forwards.append(1) or real(*args))
    found = choice_log_probs(model, QUESTIONS, 2, batch_size)
    assert len(forwards) == 1 + -(-len(QUESTIONS) // batch_size)  # the check, and every batch: no way around it
    for scores, rows in zip(found, expected, strict=True):
        for score, row in zip(scores, rows, strict=True):
            assert score.tolist() == pytest.approx(row, abs=2e-5)


real = choices._shared


def test_a_model_that_knows_no_masks_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows shifted by a nat stand for a layer through which one choice sees another."""
    model = tiny_model(tiny_tokenizer())
    monkeypatch.setattr(choices, "_shared", lambda *args: [[score + 1.0 for score in row] for row in real(*args)])
    found = choice_log_probs(model, QUESTIONS, 2)
    assert [[score.tolist() for score in row] for row in found] == [
        [pytest.approx(score, abs=2e-5) for score in row] for row in plain(model)
    ]


def test_training_mode_comes_back() -> None:
    model = tiny_model(tiny_tokenizer()).train()
    choice_log_probs(model, QUESTIONS, 2)
    assert model.training
    assert torch.is_grad_enabled()
