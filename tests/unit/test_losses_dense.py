"""The dense losses: numbers derived by hand, autograd in float64 as the naive reference, masks, limits, errors.

Estimators other than the full sum are in test_losses_estimators.py, the chunked head in test_losses_chunked.py.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tutelage.errors import ConfigError, ShapeError
from tutelage.losses import Divergence, dft_loss, divergence, forward_kl, jsd, nll_loss, reverse_kl

HALF = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
QUARTER = torch.tensor([0.25, 0.75], dtype=torch.float64).log()

FULL_SPECS = [
    Divergence("reverse_kl"),
    Divergence("forward_kl"),
    Divergence("jsd", beta=0.5),
    Divergence("jsd", beta=0.1),
    Divergence("jsd", beta=0.9),
]


def random_logits(*shape: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(loss, student_logits):
    """Values of a loss per position, and the gradient of their sum weighted by 1, 2, 3, …"""
    student_logits = student_logits.clone().requires_grad_()
    value = loss(student_logits)
    weights = torch.arange(1, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    (gradient,) = torch.autograd.grad((value * weights).sum(), student_logits)
    return value.detach(), gradient


def naive_divergence(student_logits, teacher_logits, spec):
    """The definitions, word for word, for autograd to differentiate."""
    p = torch.softmax(student_logits / spec.temperature, -1)
    q = torch.softmax(teacher_logits / spec.temperature, -1)
    if spec.kind == "reverse_kl":
        return (p * (p / q).log()).sum(-1)
    if spec.kind == "forward_kl":
        return (q * (q / p).log()).sum(-1)
    m = spec.beta * q + (1 - spec.beta) * p
    return spec.beta * (q * (q / m).log()).sum(-1) + (1 - spec.beta) * (p * (p / m).log()).sum(-1)


def naive_token_loss(logits, labels, objective):
    total, count = 0.0, 0
    for row, row_labels in zip(logits, labels, strict=True):
        for position in range(len(row_labels) - 1):
            if row_labels[position + 1] == -100:
                continue
            logp = torch.log_softmax(row[position], -1)[row_labels[position + 1]]
            total = total + (-logp if objective == "nll" else -logp.exp().detach() * logp)
            count += 1
    return total / count


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (reverse_kl, 0.143841, [0.274653, -0.274653]),
        (forward_kl, 0.130812, [0.25, -0.25]),
        (jsd, 0.033822, [0.063853, -0.063853]),
    ],
)
def test_two_tokens_by_hand(loss, value, gradient):
    """p = (½, ½), q = (¼, ¾).

    reverse: ½ ln 2 + ½ ln ⅔ = ½ ln 4/3 = 0.143841; gradient ½(ln 2 − 0.143841) = ¼ ln 3 = 0.274653.
    forward: ¼ ln ½ + ¾ ln 3/2 = 0.130812; gradient p − q = (¼, −¼).
    jsd(½): m = (⅜, ⅝): ½(¼ ln ⅔ + ¾ ln 6/5) + ½(½ ln 4/3 + ½ ln ⅘) = ½·0.035374 + ½·0.032269 = 0.033822;
    gradient ½·½(ln 4/3 − 0.032269) = ⅛ ln 5/3 = 0.063853.
    """
    measured_value, measured_gradient = value_and_gradient(lambda logits: loss(logits, QUARTER), HALF)
    assert_close(measured_value.item(), value, atol=1e-6, rtol=0)
    assert_close(measured_gradient, torch.tensor(gradient, dtype=torch.float64), atol=1e-6, rtol=0)


def test_jsd_weights_teacher_by_beta():
    """β = ¼: m = ¼q + ¾p = (7/16, 9/16); ¼(¼ ln 4/7 + ¾ ln 4/3) + ¾(½ ln 8/7 + ½ ln 8/9) = 0.024870."""
    by_hand = 0.25 * (0.25 * math.log(4 / 7) + 0.75 * math.log(4 / 3)) + 0.75 * 0.5 * math.log(64 / 63)
    assert_close(by_hand, 0.024870, atol=1e-6, rtol=0)
    assert_close(jsd(HALF, QUARTER, beta=0.25).item(), by_hand, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [(nll_loss, 1.386294, [-0.75, 0.75]), (dft_loss, 0.346574, [-0.1875, 0.1875])],
)
def test_token_losses_by_hand(loss, value, gradient):
    """p = (¼, ¾), target 0. nll: ln 4; gradient p − (1, 0). dft: ¼ ln 4, gradient ¼(p − (1, 0)).

    Were the probability not detached, dft's gradient would be (ln ¼ + 1)·¼·(−¾, ¾) = (+0.0724, −0.0724).
    """
    logits_BTV = torch.stack([QUARTER, QUARTER])[None]
    measured_value, measured_gradient = value_and_gradient(
        lambda logits: loss(logits, torch.tensor([[1, 0]])), logits_BTV
    )
    assert_close(measured_value.item(), value, atol=1e-6, rtol=0)
    assert_close(measured_gradient[0, 0], torch.tensor(gradient, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(measured_gradient[0, 1], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("spec", FULL_SPECS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_divergence_equals_naive_autograd(spec, temperature):
    spec = Divergence(spec.kind, beta=spec.beta, temperature=temperature)
    student, teacher = random_logits(3, 5, 11, seed=1), random_logits(3, 5, 11, seed=2)
    measured = value_and_gradient(lambda logits: divergence(logits, teacher, spec), student)
    expected = value_and_gradient(lambda logits: naive_divergence(logits, teacher, spec), student)
    assert_close(measured, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("spec", FULL_SPECS, ids=str)
def test_divergence_gradcheck(spec):
    student, teacher = random_logits(2, 4, seed=3).requires_grad_(), random_logits(2, 4, seed=4)
    assert torch.autograd.gradcheck(lambda logits: divergence(logits, teacher, spec), (student,))


def test_loss_temperature_by_hand():
    """Logits (ln 4, 0) against (0, 0) at temperature 2: p = (⅔, ⅓), q = (½, ½).

    reverse KL = ⅔ ln 4/3 + ⅓ ln ⅔ = 0.056633; gradient ½·⅔(ln 4/3 − 0.056633) = (1/9) ln 2 = 0.077016.
    """
    student = torch.tensor([math.log(4), 0.0], dtype=torch.float64)
    spec = Divergence("reverse_kl", temperature=2.0)
    value, gradient = value_and_gradient(
        lambda logits: divergence(logits, torch.zeros(2, dtype=torch.float64), spec), student
    )
    assert_close(value.item(), 0.056633, atol=1e-6, rtol=0)
    assert_close(gradient, torch.tensor([0.077016, -0.077016], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [nll_loss, dft_loss])
def test_token_losses_equal_naive_autograd(loss):
    logits_BTV = random_logits(3, 6, 9, seed=5)
    labels_BT = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(6))
    labels_BT[0, :3] = -100
    labels_BT[2] = -100
    objective = "nll" if loss is nll_loss else "dft"
    measured = value_and_gradient(lambda logits: loss(logits, labels_BT), logits_BTV)
    expected = value_and_gradient(lambda logits: naive_token_loss(logits, labels_BT, objective), logits_BTV)
    assert_close(measured, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("spec", FULL_SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_student_and_teacher_give_exactly_zero(spec, dtype):
    logits = random_logits(7, 1003, seed=7, spread=20.0).to(dtype)
    value, gradient = value_and_gradient(lambda student: divergence(student, logits, spec), logits)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert value_and_gradient(lambda student: divergence(student, logits.flip(-1), spec), logits)[1].any()


@pytest.mark.parametrize("loss", [reverse_kl, forward_kl, jsd])
def test_teacher_is_a_constant(loss):
    student = random_logits(2, 5, seed=8).requires_grad_()
    teacher = random_logits(2, 5, seed=9).requires_grad_()
    loss(student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0.01
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [reverse_kl, forward_kl, jsd])
def test_token_excluded_on_both_sides_counts_nothing(loss):
    """A third token with logit -inf, as a padded vocabulary has: the numbers of the two others, gradient 0."""
    inf = torch.tensor([-math.inf], dtype=torch.float64)
    value, gradient = value_and_gradient(lambda logits: loss(logits, torch.cat([QUARTER, inf])), torch.cat([HALF, inf]))
    two_value, two_gradient = value_and_gradient(lambda logits: loss(logits, QUARTER), HALF)
    assert_close(value, two_value)
    assert_close(gradient, torch.cat([two_gradient, torch.zeros(1, dtype=torch.float64)]))


def test_token_excluded_on_one_side():
    """q = (0, 1), p = (½, ½): reverse ∞, forward ln 2, jsd(½) with m = (¼, ¾): ½ ln 4/3 + ¼ ln 2 + ¼ ln ⅔.

    And the other way round, p = (0, 1): reverse ln 2, forward ∞, jsd the same.
    """
    certain = torch.tensor([-math.inf, 0.0], dtype=torch.float64)
    jsd_value = 0.5 * math.log(4 / 3) + 0.25 * math.log(2) + 0.25 * math.log(2 / 3)
    assert reverse_kl(HALF, certain).item() == math.inf
    assert_close(forward_kl(HALF, certain).item(), math.log(2))
    assert_close(jsd(HALF, certain).item(), jsd_value)
    assert_close(reverse_kl(certain, HALF).item(), math.log(2))
    assert forward_kl(certain, HALF).item() == math.inf
    assert_close(jsd(certain, HALF).item(), jsd_value)
    for loss in (forward_kl, jsd):
        assert value_and_gradient(lambda logits, loss=loss: loss(logits, certain), HALF)[1].isfinite().all()
    for loss in (reverse_kl, jsd):
        _, gradient = value_and_gradient(lambda logits, loss=loss: loss(logits, HALF), certain)
        assert torch.equal(gradient, torch.zeros(2, dtype=torch.float64))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 30.0), beta=st.floats(0.05, 0.95))
def test_properties_of_divergences(seed, spread, beta):
    """≥ 0; a constant added to the logits changes nothing; gradients of a row sum to 0; JSD ≤ H(β).

    Swapping the sides and β ↔ 1−β leaves the JSD as it is; reverse and forward swap.
    """
    student, teacher = random_logits(4, 6, seed=seed, spread=spread), random_logits(4, 6, seed=seed + 1, spread=spread)
    for spec in (Divergence("reverse_kl"), Divergence("forward_kl"), Divergence("jsd", beta=beta)):
        value, gradient = value_and_gradient(lambda logits, spec=spec: divergence(logits, teacher, spec), student)
        assert (value > -1e-12).all()
        assert_close(divergence(student + 7.0, teacher - 3.0, spec), value, atol=1e-10, rtol=1e-8)
        assert_close(gradient.sum(-1), torch.zeros_like(value), atol=1e-9, rtol=0)
    mixture = jsd(student, teacher, beta)
    assert (mixture <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12).all()
    assert_close(mixture, jsd(teacher, student, 1 - beta), atol=1e-10, rtol=1e-8)
    assert_close(reverse_kl(student, teacher), forward_kl(teacher, student), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("loss", [nll_loss, dft_loss])
def test_nothing_valid_is_zero_not_nan(loss):
    logits_BTV = torch.full((2, 3, 5), math.nan, requires_grad=True)
    value = loss(logits_BTV, torch.full((2, 3), -100))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits_BTV.grad, torch.zeros(2, 3, 5))
    assert loss(logits_BTV, torch.full((2, 3), -100), num_items=0).item() == 0.0
    assert loss(logits_BTV, torch.full((2, 3), -100), num_items=torch.tensor(0)).item() == 0.0


@pytest.mark.parametrize("loss", [nll_loss, dft_loss])
def test_masked_positions_may_hold_anything(loss):
    logits_BTV = random_logits(1, 4, 5, seed=10)
    labels_BT = torch.tensor([[-100, 3, -100, 2]])
    clean_value, clean_gradient = value_and_gradient(lambda logits: loss(logits, labels_BT), logits_BTV)
    logits_BTV[0, 1] = math.nan
    logits_BTV[0, 3] = math.inf
    value, gradient = value_and_gradient(lambda logits: loss(logits, labels_BT), logits_BTV)
    assert_close(value, clean_value, atol=0, rtol=0)
    assert_close(gradient, clean_gradient, atol=0, rtol=0)
    assert not gradient[0, 1].any()


@pytest.mark.parametrize("loss", [nll_loss, dft_loss])
@pytest.mark.parametrize("num_items", [7, 7.0, torch.tensor(7)])
def test_num_items_makes_the_batch_split_irrelevant(loss, num_items):
    """Two micro-batches of 4 and 3 tokens, each divided by 7, sum to the mean over all 7."""
    logits_BTV = random_logits(2, 5, 6, seed=11)
    labels_BT = torch.tensor([[0, 1, 2, 3, 4], [5, -100, 0, 1, 2]])
    whole = loss(logits_BTV, labels_BT)
    parts = [loss(logits_BTV[i : i + 1], labels_BT[i : i + 1], num_items) for i in range(2)]
    assert_close(parts[0] + parts[1], whole)
    assert abs(parts[0].item() - loss(logits_BTV[:1], labels_BT[:1]).item()) > 0.01


def test_dft_of_an_impossible_target_is_zero():
    """−p log p → 0 for p → 0, and its gradient p(softmax − onehot) too."""
    logits_BTV = torch.tensor([[[-math.inf, 0.0], [0.0, 0.0]]], requires_grad=True)
    value = dft_loss(logits_BTV, torch.tensor([[0, 0]]))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits_BTV.grad, torch.zeros(1, 2, 2))


def test_bfloat16_is_computed_in_float32():
    """Equal to the float32 result of the same rounded logits; only the returned gradient is rounded (2⁻⁸)."""
    student, teacher = (random_logits(5, 50, seed=seed).bfloat16() for seed in (12, 13))
    value, gradient = value_and_gradient(lambda logits: jsd(logits, teacher), student)
    exact_value, exact_gradient = value_and_gradient(lambda logits: jsd(logits, teacher.float()), student.float())
    assert gradient.dtype == torch.bfloat16
    assert_close(value, exact_value, atol=0, rtol=0)
    assert_close(gradient.float(), exact_gradient, atol=0, rtol=2**-8)


def test_errors_name_value_and_remedy():
    logits_BTV, labels_BT = torch.zeros(1, 2, 5), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"labels holds token id 5, but the logits have entries 0 to 4; use"):
        nll_loss(logits_BTV, labels_BT + 5)
    with pytest.raises(ShapeError, match=r"labels holds token id -1,"):
        dft_loss(logits_BTV, labels_BT - 1)
    with pytest.raises(ShapeError, match=r"labels has shape \[1, 1\], expected \[1, 2\] to go with logits"):
        nll_loss(logits_BTV, labels_BT[:, :1])
    with pytest.raises(ShapeError, match=r"logits has shape \[2, 5\], expected three axes"):
        nll_loss(logits_BTV[0], labels_BT)
    with pytest.raises(ShapeError, match=r"teacher_logits has shape \[1, 2, 4\], expected \[1, 2, 5\]"):
        reverse_kl(logits_BTV, logits_BTV[..., :4])
    for beta in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=f"0 < beta < 1, got beta={beta}; .*'forward_kl' or 'reverse_kl'"):
            jsd(logits_BTV, logits_BTV, beta)
    with pytest.raises(ConfigError, match=r"'reverse' is not one of .*; did you mean 'reverse_kl'\?"):
        Divergence("reverse")
    with pytest.raises(ConfigError, match=r"'top_k' is not one of full, topk, sampled; did you mean 'topk'\?"):
        Divergence(estimator="top_k")
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match=f"positive and finite, got {temperature}"):
            Divergence(temperature=temperature)
