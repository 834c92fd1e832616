"""Log-probabilities through the chunked head against log-softmax of dense logits, and autograd through it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.errors import ShapeError
from tutelage.losses import Head, IdentityHead, token_log_probs

POSITIONS, HIDDEN, VOCABULARY = 13, 5, 37


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (POSITIONS,), generator=torch.Generator().manual_seed(1))


def clipped(log_prob_N: Tensor) -> Tensor:
    """A loss that is no weighted sum of them, and gives some of them no gradient."""
    ratio_N = (log_prob_N + 4.0).exp()
    return torch.min(ratio_N * random(POSITIONS, seed=9), ratio_N.clamp(0.8, 1.2) * random(POSITIONS, seed=9)).sum()


def dense(hidden_ND: Tensor, head: Head, temperature: float) -> Tensor:
    return (head.logits(hidden_ND) / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("trained", ["hidden", "head", "both"])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "scale": 0.5}])
@pytest.mark.parametrize("chunk_size", [4, None])
def test_equals_dense(chunk_size: int | None, options: dict[str, Any], trained: str, temperature: float) -> None:
    hidden_ND = random(POSITIONS, HIDDEN, seed=2).requires_grad_(trained != "head")
    weight_VD = random(VOCABULARY, HIDDEN, seed=3).requires_grad_(trained != "hidden")
    bias_V = random(VOCABULARY, seed=4).requires_grad_(trained != "hidden")
    head = Head(weight_VD, bias_V, **options)
    leaves = [leaf for leaf in (hidden_ND, weight_VD, bias_V) if leaf.requires_grad]
    found = token_log_probs(
        hidden_ND, head, tokens(), temperature=temperature, with_entropy=True, chunk_size=chunk_size
    )
    expected_NV = dense(hidden_ND, head, temperature)
    expected_N = expected_NV.gather(-1, tokens()[:, None])[:, 0]
    assert_close(found.log_prob, expected_N)
    assert_close(found.entropy, -(expected_NV.exp() * expected_NV).sum(-1).detach())
    assert not found.entropy.requires_grad
    gradients, expected = (torch.autograd.grad(clipped(side), leaves) for side in (found.log_prob, expected_N))
    assert min(float(gradient.abs().max()) for gradient in expected) > 1e-3
    assert_close(gradients, expected)


def test_by_hand() -> None:
    """Logits ln 3 and 0: p = 3/4, and d log p / dh = (1 − p) · w. At temperature ½ it is 9/10 and 2 (1 − p) · w."""
    log_3 = math.log(3)
    hidden_ND = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    head = Head(torch.tensor([[log_3], [0.0]], dtype=torch.float64))
    for temperature, p in ((1.0, 0.75), (0.5, 0.9)):
        found = token_log_probs(hidden_ND, head, torch.tensor([0]), temperature=temperature, with_entropy=True)
        assert found.log_prob.item() == pytest.approx(math.log(p), rel=1e-12)
        assert found.entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-12)
        (gradient,) = torch.autograd.grad(found.log_prob.sum(), hidden_ND)
        assert gradient.item() == pytest.approx((1 - p) * log_3 / temperature, rel=1e-12)


def test_of_dense_logits() -> None:
    logits_NV = random(POSITIONS, VOCABULARY, seed=5).requires_grad_()
    found = token_log_probs(logits_NV, IdentityHead(VOCABULARY), tokens(), temperature=0.6, with_entropy=True)
    expected_NV = (logits_NV / 0.6).log_softmax(-1)
    expected_N = expected_NV.gather(-1, tokens()[:, None])[:, 0]
    assert_close(found.log_prob, expected_N)
    assert_close(found.entropy, -(expected_NV.exp() * expected_NV).sum(-1).detach())
    gradients, expected = (torch.autograd.grad(clipped(side), logits_NV) for side in (found.log_prob, expected_N))
    assert_close(gradients, expected)


@pytest.mark.parametrize("trained", [True, False])
def test_without_gradients(trained: bool) -> None:
    hidden_ND = random(POSITIONS, HIDDEN, seed=2).requires_grad_()
    head = Head(random(VOCABULARY, HIDDEN, seed=3).requires_grad_(trained))
    with torch.no_grad():
        found = token_log_probs(hidden_ND, head, tokens())
    assert not found.log_prob.requires_grad
    assert found.entropy.shape == (0,)
    assert_close(found.log_prob, dense(hidden_ND, head, 1.0).gather(-1, tokens()[:, None])[:, 0].detach())


def test_a_trained_head_under_autocast_is_differentiated_as_it_was_computed() -> None:
    """The products are in bfloat16 both ways: 2⁻⁸ is what a product may be off."""
    hidden_ND = random(POSITIONS, HIDDEN, seed=2).float()
    weight_VD = random(VOCABULARY, HIDDEN, seed=3).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_N = token_log_probs(hidden_ND, Head(weight_VD), tokens()).log_prob
        expected_N = dense(hidden_ND, Head(weight_VD), 1.0).gather(-1, tokens()[:, None])[:, 0]
    assert found_N.dtype == torch.float32
    assert_close(found_N, expected_N, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(found_N.sum(), weight_VD)
    (expected,) = torch.autograd.grad(expected_N.sum(), weight_VD)
    assert_close(gradient, expected, rtol=2**-6, atol=2**-7)


def test_a_token_without_a_logit_is_refused() -> None:
    with pytest.raises(ShapeError, match="token id 37"):
        token_log_probs(random(1, HIDDEN, seed=2), Head(random(VOCABULARY, HIDDEN, seed=3)), torch.tensor([37]))
