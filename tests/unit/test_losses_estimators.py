"""Top-k with a tail bucket and the sampled estimator: what they estimate, exactly, and where they could go wrong."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tutelage.errors import ConfigError, ShapeError
from tutelage.losses import (
    Divergence,
    divergence,
    forward_kl,
    jsd,
    reverse_kl,
    sampled_divergence,
    topk_divergence,
)

KINDS = ["reverse_kl", "forward_kl", "jsd"]


def random_logits(*shape: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(loss, student_logits):
    student_logits = student_logits.clone().requires_grad_()
    value = loss(student_logits)
    (gradient,) = torch.autograd.grad(value.sum(), student_logits)
    return value.detach(), gradient


def full(kind, student, teacher, beta=0.5):
    return divergence(student, teacher, Divergence(kind, beta=beta))


def naive_topk(student_logits_V, teacher_logits_V, k, kind, beta):
    """One row: sum the tail of both distributions into one more entry, then the definition."""
    p, q = torch.softmax(student_logits_V, -1), torch.softmax(teacher_logits_V, -1)
    support = sorted(set(p.topk(k).indices.tolist()) | set(q.topk(k).indices.tolist()))
    tail = [i for i in range(len(p)) if i not in support]
    p, q = (torch.cat([x[support], x[tail].sum()[None]]) if tail else x for x in (p, q))
    if kind == "reverse_kl":
        return (p * (p / q).log()).sum()
    if kind == "forward_kl":
        return (q * (q / p).log()).sum()
    m = beta * q + (1 - beta) * p
    return beta * (q * (q / m).log()).sum() + (1 - beta) * (p * (p / m).log()).sum()


def test_topk_by_hand():
    """p = (½, ¼, ¼), q = (¾, 1/16, 3/16), k = 1: the support is {0}, the tails weigh ½ and ¼.

    reverse KL((½, ½) ‖ (¾, ¼)) = ½ ln ⅔ + ½ ln 2 = 0.143841; gradient of entry 0: ½(ln ⅔ − 0.143841) = −¼ ln 3,
    and the tail shares +¼ ln 3 by student probability, ⅛ ln 3 = 0.137327 each.
    """
    student = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64).log()
    teacher = torch.tensor([3 / 4, 1 / 16, 3 / 16], dtype=torch.float64).log()
    value, gradient = value_and_gradient(lambda logits: topk_divergence(logits, teacher, 1), student)
    assert_close(value.item(), 0.143841, atol=1e-6, rtol=0)
    expected = torch.tensor([-0.274653, 0.137327, 0.137327], dtype=torch.float64)
    assert_close(gradient, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_topk_equals_naive_autograd(kind, k):
    student, teacher = random_logits(6, 9, seed=1), random_logits(6, 9, seed=2)
    measured = value_and_gradient(lambda logits: topk_divergence(logits, teacher, k, kind, beta=0.3), student)
    expected = value_and_gradient(
        lambda logits: torch.stack([naive_topk(*rows, k, kind, 0.3) for rows in zip(logits, teacher, strict=True)]),
        student,
    )
    assert_close(measured, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_topk_gradcheck(kind):
    student, teacher = random_logits(3, 6, seed=3).requires_grad_(), random_logits(3, 6, seed=4)
    assert torch.autograd.gradcheck(lambda logits: topk_divergence(logits, teacher, 2, kind), (student,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [12, 100])
def test_topk_of_the_whole_vocabulary_is_full(kind, k):
    student, teacher = random_logits(4, 12, seed=5), random_logits(4, 12, seed=6)
    measured = value_and_gradient(lambda logits: topk_divergence(logits, teacher, k, kind), student)
    expected = value_and_gradient(lambda logits: full(kind, logits, teacher), student)
    assert_close(measured, expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_topk_sees_teacher_mass_outside_the_students_topk(kind):
    """Student certain of 0, teacher of 3, k = 1. A support of the student's top-k alone would be {0}: no gradient.

    With the union {0, 3} the gradient lowers the student's token and raises the teacher's.
    """
    student = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    value, gradient = value_and_gradient(lambda logits: topk_divergence(logits, student.flip(0), 1, kind), student)
    assert value > 0.1
    assert gradient[0] > 0.01
    assert gradient[3] < -0.01
    assert_close(value, full(kind, student, student.flip(0)))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.1, 20.0), beta=st.floats(0.05, 0.95))
def test_topk_is_a_lower_bound_that_grows_with_k(seed, spread, beta):
    """Lumping entries together never increases an f-divergence, and a larger support is a finer partition."""
    student, teacher = random_logits(3, 8, seed=seed, spread=spread), random_logits(3, 8, seed=seed + 1, spread=spread)
    for kind in KINDS:
        bounds = [topk_divergence(student, teacher, k, kind, beta) for k in range(1, 9)]
        for coarse, fine in itertools.pairwise(bounds):
            assert (coarse <= fine + 1e-10).all()
        assert_close(bounds[-1], full(kind, student, teacher, beta))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, 500])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_topk_of_equals_is_exactly_zero(kind, k, dtype):
    logits = random_logits(7, 1003, seed=7, spread=20.0).to(dtype)
    value, gradient = value_and_gradient(lambda student: topk_divergence(student, logits, k, kind), logits)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_topk_with_a_tail_of_no_mass(kind):
    """Entries 2 and 3 have logit -inf on both sides: the tail weighs nothing, value and gradient are the others'."""
    inf = torch.full((2,), -math.inf, dtype=torch.float64)
    student, teacher = torch.tensor([0.3, -0.4]).double(), torch.tensor([1.0, 0.2]).double()
    measured = value_and_gradient(
        lambda logits: topk_divergence(logits, torch.cat([teacher, inf]), 2, kind), torch.cat([student, inf])
    )
    value, gradient = value_and_gradient(lambda logits: full(kind, logits, teacher), student)
    assert_close(measured, (value, torch.cat([gradient, torch.zeros(2).double()])))


def test_sampled_by_hand():
    """p = (½, ½), q = (¼, ¾), y = 0: value ln 2; gradient ln 2·((1, 0) − p) = ln 2·(½, −½)."""
    student, teacher = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.75]).double().log()
    value, gradient = value_and_gradient(lambda logits: sampled_divergence(logits, teacher, torch.tensor(0)), student)
    assert_close(value.item(), 0.693147, atol=1e-6, rtol=0)
    assert_close(gradient, torch.tensor([0.346574, -0.346574]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_expected_sampled_estimator_is_the_reverse_kl(temperature):
    """Vocabulary of 3, every token enumerated: Σ_y p_y·(value, gradient)(y) = reverse KL and its gradient.

    With a loss temperature too, if y is drawn at that temperature.
    """
    student, teacher = random_logits(3, seed=8, spread=1.5), random_logits(3, seed=9, spread=1.5)
    sampled = Divergence(estimator="sampled", temperature=temperature)
    p = torch.softmax(student / temperature, -1)
    expected_value, expected_gradient = torch.zeros(()).double(), torch.zeros(3).double()
    for y in range(3):
        value, gradient = value_and_gradient(
            lambda logits, y=y: divergence(logits, teacher, sampled, torch.tensor(y)), student
        )
        expected_value += p[y] * value
        expected_gradient += p[y] * gradient
    value, gradient = value_and_gradient(
        lambda logits: divergence(logits, teacher, Divergence(temperature=temperature)), student
    )
    assert_close(expected_value, value, atol=1e-12, rtol=0)
    assert_close(expected_gradient, gradient, atol=1e-12, rtol=0)
    assert gradient.abs().max() > 0.01


def test_sampled_equals_naive_score_function():
    """sg(log p_y − log q_y)·∇log p_y by autograd."""
    student, teacher = random_logits(4, 5, 7, seed=10), random_logits(4, 5, 7, seed=11)
    tokens = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(12))

    def token_logp(logits):
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]

    value, gradient = value_and_gradient(lambda logits: sampled_divergence(logits, teacher, tokens), student)
    _, naive = value_and_gradient(
        lambda logits: (token_logp(logits) - token_logp(teacher)).detach() * token_logp(logits), student
    )
    assert_close(value, token_logp(student) - token_logp(teacher))
    assert_close(gradient, naive, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sampled_of_equals_is_exactly_zero(dtype):
    logits = random_logits(50, 301, seed=13, spread=20.0).to(dtype)
    value, gradient = value_and_gradient(lambda student: sampled_divergence(student, logits, torch.arange(50)), logits)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_named_functions_are_the_specs():
    """`reverse_kl`, `forward_kl` and `jsd` of distinct inputs: three distinct numbers, each its own spec's."""
    student, teacher = random_logits(3, 5, seed=14), random_logits(3, 5, seed=15)
    named = [reverse_kl(student, teacher), forward_kl(student, teacher), jsd(student, teacher)]
    for kind, value in zip(KINDS, named, strict=True):
        assert_close(value, full(kind, student, teacher), atol=0, rtol=0)
    assert (named[0] - named[1]).abs().min() > 1e-3
    assert (named[0] - named[2]).abs().min() > 1e-3


def test_errors_name_value_and_remedy():
    logits = torch.zeros(2, 5)
    with pytest.raises(ConfigError, match="k >= 1, got k=0; choose"):
        topk_divergence(logits, logits, 0)
    with pytest.raises(ConfigError, match="estimates the reverse KL only, got kind 'forward_kl'; use"):
        Divergence("forward_kl", estimator="sampled")
    with pytest.raises(ConfigError, match="needs the sampled tokens; pass them"):
        divergence(logits, logits, Divergence(estimator="sampled"))
    with pytest.raises(ShapeError, match="tokens holds token id 5, but the logits have entries 0 to 4"):
        sampled_divergence(logits, logits, torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match=r"tokens has shape \[1\], expected \[2\]"):
        sampled_divergence(logits, logits, torch.tensor([0]))
