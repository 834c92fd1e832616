"""The chunked head against the dense losses: values, gradients, statistics, and what it allocates.

Dense logits come from plain torch (`h @ W.T`), gradients through them from autograd.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from tests.recorder import Recorder
from tutelage.errors import ConfigError, ShapeError
from tutelage.losses import (
    Divergence,
    Head,
    IdentityHead,
    dft_loss,
    divergence,
    divergence_objective,
    forward_kl,
    linear_dft_loss,
    linear_divergence,
    linear_nll_loss,
    nll_loss,
    reverse_kl,
    token_objective,
)
from tutelage.losses.known_gradient import attach_gradients

BATCH, POSITIONS, HIDDEN, VOCABULARY = 3, 5, 4, 11
CHUNK_SIZES = [1, 3, 15, 1000, None]
SPECS = [
    Divergence("reverse_kl"),
    Divergence("forward_kl"),
    Divergence("jsd", beta=0.3),
    Divergence("reverse_kl", temperature=1.7),
    Divergence("reverse_kl", estimator="topk", top_k=2),
    Divergence("forward_kl", estimator="topk", top_k=2),
    Divergence("jsd", estimator="topk", top_k=2),
    Divergence(estimator="sampled"),
]
HEADS = [
    {},
    {"bias": True},
    {"softcap": 2.0},
    {"scale": 0.25},
    {"bias": True, "softcap": 1.5, "scale": 3.0},
]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return random(*shape, seed=seed, dtype=dtype).requires_grad_()


def random_tokens(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def plain_logits(hidden, weight, bias=None, softcap=None, scale=1.0):
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def loss_and_gradients(loss, *tensors):
    tensors = [tensor for tensor in tensors if tensor is not None]
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, tensors)]


def head_tensors(bias=False, **options):
    weight = leaf(VOCABULARY, HIDDEN, seed=1)
    return weight, leaf(VOCABULARY, seed=2) if bias else None, options


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize(("linear", "dense"), [(linear_nll_loss, nll_loss), (linear_dft_loss, dft_loss)])
def test_token_loss_equals_dense(linear, dense, chunk_size, head):
    weight, bias, options = head_tensors(**head)
    hidden = leaf(BATCH, POSITIONS, HIDDEN, seed=3)
    labels = random_tokens(BATCH, POSITIONS, seed=4)
    labels[0, :3] = -100
    labels[1] = -100
    chunked = linear(hidden, weight, labels, bias, chunk_size=chunk_size, **options)
    expected = dense(plain_logits(hidden, weight, bias, **options), labels)
    assert_close(
        loss_and_gradients(chunked, hidden, weight, bias),
        loss_and_gradients(expected, hidden, weight, bias),
        atol=1e-12,
        rtol=1e-10,
    )


@pytest.mark.parametrize("head", [HEADS[0], HEADS[-1]], ids=str)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_divergence_equals_dense(spec, chunk_size, head):
    """With a partial mask of weights, and a head of the teacher's own."""
    weight, bias, options = head_tensors(**head)
    teacher_weight, teacher_bias = random(VOCABULARY, HIDDEN, seed=5), None if bias is None else random(11, seed=6)
    hidden, teacher_hidden = leaf(BATCH, POSITIONS, HIDDEN, seed=3), random(BATCH, POSITIONS, HIDDEN, seed=7)
    tokens = random_tokens(BATCH, POSITIONS, seed=8)
    mask = torch.tensor([[1.0, 1, 0, 1, 2], [0, 0, 0, 0, 0], [0.5, 0, 1, 1, 1]])
    chunked = linear_divergence(
        hidden,
        teacher_hidden,
        weight,
        bias,
        spec,
        mask,
        chunk_size=chunk_size,
        teacher_weight=teacher_weight,
        teacher_bias=teacher_bias,
        tokens=tokens,
        **options,
    )
    per_position = divergence(
        plain_logits(hidden, weight, bias, **options),
        plain_logits(teacher_hidden, teacher_weight, teacher_bias, **options),
        spec,
        tokens,
    )
    expected = (per_position * mask).sum() / 8
    assert_close(
        loss_and_gradients(chunked, hidden, weight, bias),
        loss_and_gradients(expected, hidden, weight, bias),
        atol=1e-12,
        rtol=1e-10,
    )


def test_divergence_by_hand():
    """D = 1, W = (ln 3, 0)ᵀ, student h = 0: p = (½, ½); teacher h = −1: q = (¼, ¾). Reverse KL 0.143841.

    ∂/∂h = Wᵀ·(0.274653, −0.274653) = ln 3 · 0.274653 = 0.301737. The second position is masked.
    """
    weight = torch.tensor([[math.log(3.0)], [0.0]], dtype=torch.float64)
    hidden = torch.tensor([[0.0], [5.0]], dtype=torch.float64, requires_grad=True)
    teacher_hidden = torch.tensor([[-1.0], [7.0]], dtype=torch.float64)
    loss = linear_divergence(hidden, teacher_hidden, weight, mask=torch.tensor([True, False]))
    loss.backward()
    assert_close(loss.item(), 0.143841, atol=1e-6, rtol=0)
    assert_close(hidden.grad, torch.tensor([[0.301737], [0.0]], dtype=torch.float64), atol=1e-6, rtol=0)
    half = linear_divergence(hidden, teacher_hidden, weight, mask=torch.tensor([0.5, 0]), num_items=4)
    assert_close(half.item(), 0.143841 / 8, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", SPECS[:-1], ids=str)
def test_divergence_gradcheck(spec):
    """All but the sampled estimator, whose gradient is not the derivative of its value."""
    teacher_hidden, weight = random(4, HIDDEN, seed=9), leaf(6, HIDDEN, seed=10)
    teacher_weight = weight.detach().clone()
    hidden, bias = leaf(4, HIDDEN, seed=11), leaf(6, seed=12)

    def loss(hidden, weight, bias):
        return linear_divergence(
            hidden, teacher_hidden, weight, bias, spec, chunk_size=3, teacher_weight=teacher_weight, softcap=2.0
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_nll_gradcheck():
    hidden, weight, bias = leaf(2, 3, HIDDEN, seed=13), leaf(6, HIDDEN, seed=14), leaf(6, seed=15)
    labels = torch.tensor([[0, 5, 2], [-100, -100, 3]])
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: linear_nll_loss(hidden, weight, labels, bias, None, 2, 2.0, 0.5),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equal_student_and_teacher_give_exactly_zero(spec, dtype):
    hidden = leaf(2, 7, 32, seed=16, dtype=dtype)
    weight, bias = leaf(503, 32, seed=17, dtype=dtype), leaf(503, seed=18, dtype=dtype)
    tokens = random_tokens(2, 7, seed=19)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 2:4] = False
    loss = linear_divergence(hidden, hidden.detach(), weight, bias, spec, mask, chunk_size=5, tokens=tokens)
    loss.backward()
    assert loss.item() == 0.0
    for tensor in (hidden, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("loss", [linear_nll_loss, linear_dft_loss])
def test_tied_embedding_collects_both_gradients(loss):
    """The same weight embeds and predicts: its gradient is the sum of both uses, as autograd has it densely."""
    weight = leaf(VOCABULARY, HIDDEN, seed=20)
    inputs = random_tokens(2, POSITIONS, seed=21)
    dense = nll_loss if loss is linear_nll_loss else dft_loss

    def hidden():
        return torch.tanh(torch.nn.functional.embedding(inputs, weight))

    chunked = loss_and_gradients(loss(hidden(), weight, inputs, chunk_size=3), weight)
    expected = loss_and_gradients(dense(plain_logits(hidden(), weight), inputs), weight)
    head_only = loss_and_gradients(dense(plain_logits(hidden().detach(), weight), inputs), weight)
    assert_close(chunked, expected, atol=1e-12, rtol=1e-10)
    assert (chunked[1] - head_only[1]).abs().max() > 0.01


def test_shared_head_gets_gradient_through_the_student_only():
    """Teacher and student share a trained head, but the teacher is a constant: as with a detached copy."""
    hidden, teacher_hidden = leaf(6, HIDDEN, seed=22), leaf(6, HIDDEN, seed=23)
    weight, bias = leaf(VOCABULARY, HIDDEN, seed=24), leaf(VOCABULARY, seed=25)
    loss = linear_divergence(hidden, teacher_hidden, weight, bias, "forward_kl")
    expected = forward_kl(
        plain_logits(hidden, weight, bias), plain_logits(teacher_hidden, weight.detach(), bias.detach())
    ).mean()
    assert_close(loss_and_gradients(loss, hidden, weight, bias), loss_and_gradients(expected, hidden, weight, bias))
    assert torch.autograd.grad(loss, teacher_hidden, allow_unused=True) == (None,)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_empty_mask_is_zero_not_nan(garbage):
    hidden = torch.full((2, 3, HIDDEN), garbage, requires_grad=True)
    weight, bias = leaf(5, HIDDEN, seed=26, dtype=torch.float32), leaf(5, seed=27, dtype=torch.float32)
    for loss in (
        linear_nll_loss(hidden, weight, torch.full((2, 3), -100), bias),
        linear_dft_loss(hidden, weight, torch.full((2, 3), -100), bias, num_items=0),
        linear_divergence(hidden, hidden, weight, bias, mask=torch.zeros(2, 3, dtype=torch.bool)),
        linear_nll_loss(hidden[:, :1], weight, torch.zeros(2, 1, dtype=torch.long), bias),
    ):
        gradients = torch.autograd.grad(loss, (hidden, weight, bias))
        assert loss.item() == 0.0
        for tensor, gradient in zip((hidden, weight, bias), gradients, strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_weight_zero_keeps_garbage_out(softcap):
    """Positions of weight 0 in the core: NaN hidden states there change neither loss nor any gradient."""
    weight, bias = leaf(VOCABULARY, HIDDEN, seed=28), leaf(VOCABULARY, seed=29)
    clean = leaf(6, HIDDEN, seed=30)
    dirty = clean.detach().clone()
    dirty[[1, 4]] = math.nan
    dirty.requires_grad_()
    targets, weights = random_tokens(6, seed=31), torch.tensor([1.0, 0, 2, 1, 0, 0.5])
    head = Head(weight, bias, softcap)
    measured = token_objective(dirty, head, targets, weights, "dft", chunk_size=4)
    expected = token_objective(clean, head, targets, weights, "dft", chunk_size=4)
    assert_close(
        loss_and_gradients(measured.loss_sum, dirty, weight, bias),
        loss_and_gradients(expected.loss_sum, clean, weight, bias),
    )
    teacher = random(6, HIDDEN, seed=32)
    spec = Divergence("jsd")
    pairs = [
        loss_and_gradients(
            divergence_objective(h, head, teacher, head, targets, weights, spec, 4).loss_sum, h, weight, bias
        )
        for h in (dirty, clean)
    ]
    assert_close(*pairs)
    assert not pairs[0][1][[1, 4]].any()


@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_dense_logits_through_the_identity_head(objective):
    """The fallback for a model whose head is not found: the same sum, gradient and statistics from logits."""
    weight, hidden = random(VOCABULARY, HIDDEN, seed=33), random(6, HIDDEN, seed=34)
    logits = (hidden @ weight.T).requires_grad_()
    targets, weights = random_tokens(6, seed=35), torch.tensor([1.0, 0, 2, 1, 1, 0.5])
    dense = token_objective(logits, IdentityHead(VOCABULARY), targets, weights, objective, chunk_size=4)
    chunked = token_objective(hidden, Head(weight), targets, weights, objective, chunk_size=2)
    assert_close(dense.loss_sum, chunked.loss_sum)
    assert_close(tuple(dense.stats), tuple(chunked.stats))
    logp = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    naive = -(weights * logp * (logp.exp().detach() if objective == "dft" else 1)).sum()
    assert_close(loss_and_gradients(dense.loss_sum, logits), loss_and_gradients(naive, logits))


def test_divergence_through_the_identity_head():
    student, teacher = leaf(6, VOCABULARY, seed=36), random(6, VOCABULARY, seed=37)
    head, weights = IdentityHead(VOCABULARY), torch.tensor([1.0, 0, 2, 1, 1, 0.5])
    tokens = random_tokens(6, seed=38)
    result = divergence_objective(student, head, teacher, head, tokens, weights, Divergence(), chunk_size=4)
    naive = (weights * reverse_kl(student, teacher)).sum()
    assert_close(loss_and_gradients(result.loss_sum, student), loss_and_gradients(naive, student))


def test_token_statistics_by_hand():
    """p = (¼, ¾): target 0 has nll ln 4, probability ¼ and is not the argmax; target 1 ln 4/3, ¾, correct.

    Under dft too, and for a position of weight 0.
    """
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).log()
    stats = token_objective(logits, IdentityHead(2), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), "dft").stats
    assert_close(stats.nll, torch.tensor([1.386294, 0.287682]), atol=1e-6, rtol=0)
    assert_close(stats.probability, torch.tensor([0.25, 0.75]))
    assert stats.correct.tolist() == [False, True]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_divergence_statistics_by_hand(spec):
    """p = (½, ½), q = (¼, ¾): both KLs, entropies ln 2 and 0.562335, log ½ and log ¾ of token 1.

    The same whatever divergence, estimator and temperature the loss has, and a token of probability 0 on both
    sides adds nothing.
    """
    student = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    teacher = torch.tensor([[0.25, 0.75, 0.0]]).log()
    head = IdentityHead(3)
    stats = divergence_objective(student, head, teacher, head, torch.tensor([1]), torch.ones(1), spec).stats
    expected = [0.143841, 0.130812, 0.693147, 0.562335, -0.693147, -0.287682]
    assert_close([value.item() for value in stats], expected, atol=1e-6, rtol=0)
    assert not any(value.requires_grad for value in stats)


def test_statistics_line_up_over_chunks():
    hidden, teacher = random(7, HIDDEN, seed=39), random(7, HIDDEN, seed=40)
    head, tokens = Head(random(VOCABULARY, HIDDEN, seed=41)), random_tokens(7, seed=42)
    stats = divergence_objective(hidden, head, teacher, head, tokens, torch.ones(7), Divergence("jsd"), 3).stats
    student_logits, teacher_logits = plain_logits(hidden, head.weight), plain_logits(teacher, head.weight)
    assert_close(stats.reverse_kl, reverse_kl(student_logits, teacher_logits))
    assert_close(stats.forward_kl, forward_kl(student_logits, teacher_logits))
    assert_close(stats.teacher_entropy, torch.distributions.Categorical(logits=teacher_logits).entropy())
    assert_close(stats.student_logp, torch.distributions.Categorical(logits=student_logits).log_prob(tokens))


def test_bfloat16_stays_near_float32():
    """bf16 head and hidden states: loss within 1 %, gradients within 2 % of their norm of the float32 result.

    Logits near 6 are rounded by up to 2⁻⁹ of that, and so are the products of the backward pass.
    """
    inputs = [random(2, 40, 64, seed=43), random(300, 64, seed=44) / 4, random(300, seed=45)]
    labels = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(46))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, bias = (tensor.bfloat16().to(dtype).requires_grad_() for tensor in inputs)
        loss = linear_nll_loss(hidden, weight, labels, bias, chunk_size=16)
        assert loss.dtype == torch.float32
        results.append(loss_and_gradients(loss, hidden, weight, bias))
    for exact, rounded in zip(results[0][1:], results[1][1:], strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() < 0.02 * exact.norm()
    assert_close(results[1][0], results[0][0], rtol=0.01, atol=0)


def test_bfloat16_gradients_are_summed_in_float32():
    """512 chunks that each add p − 1 = −½ · 2⁻⁸ to a bias and weight gradient sum to −1 exactly.

    A bf16 sum stalls at −½: its neighbours there are 2⁻⁸ apart, and a step of 2⁻⁹ rounds back.
    """
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    targets, weights = torch.zeros(512, dtype=torch.long), torch.full((512,), 2.0**-8)
    token_objective(hidden, Head(weight, bias), targets, weights, chunk_size=1).loss_sum.backward()
    assert weight.grad.flatten().tolist() == [-1.0, 1.0]
    assert bias.grad.tolist() == [-1.0, 1.0]


def test_autocast_keeps_logits_and_loss_in_float32():
    hidden, weight = leaf(2, 20, 32, seed=47, dtype=torch.float32), leaf(100, 32, seed=48, dtype=torch.float32)
    labels = torch.randint(100, (2, 20), generator=torch.Generator().manual_seed(49))
    exact = loss_and_gradients(linear_nll_loss(hidden, weight, labels), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_nll_loss(hidden, weight, labels)
        assert Head(weight).logits(hidden[0]).dtype == torch.float32
    rounded = loss_and_gradients(loss, hidden, weight)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * a.norm()


def test_no_tensor_of_all_logits():
    """V = 150 000, 64 positions, chunks of 8: nothing larger than a chunk's logits of student and teacher."""
    vocabulary, positions, chunk_size = 150_000, 64, 8
    weight = random(vocabulary, 2, seed=50, dtype=torch.float32)
    hidden, teacher = leaf(positions, 2, seed=51, dtype=torch.float32), random(positions, 2, seed=52).float()
    with Recorder() as chunked:
        loss = linear_divergence(hidden, teacher, weight, chunk_size=chunk_size)
        measured = loss_and_gradients(loss, hidden)
    with Recorder() as dense:
        loss = reverse_kl(plain_logits(hidden, weight), plain_logits(teacher, weight)).mean()
        in_one_piece = loss_and_gradients(loss, hidden)
    assert chunked.largest == 2 * chunk_size * vocabulary
    assert dense.largest >= positions * vocabulary
    # How a processor adds up 150,000 products in float32 decides the fifth digit, of both ways alike.
    exact = hidden.detach().double().requires_grad_()
    loss = reverse_kl(plain_logits(exact, weight.double()), plain_logits(teacher.double(), weight.double())).mean()
    value, gradient = loss_and_gradients(loss, exact)
    for found in (measured, in_one_piece):
        assert_close(found[0].double(), value, rtol=1e-4, atol=0)
        assert_close(found[1].double(), gradient, rtol=0, atol=5e-4 * gradient.abs().max().item())


def test_default_chunk_is_bounded_for_a_large_vocabulary():
    """By rows 2²⁴ logits: 111 rows at V = 150 000, so 113 positions take two chunks; no tensor has more than 2²⁴.

    A soft-cap of 1e9 leaves logits of 0 as they are, and goes by rows. Without it, no tensor has half of that.
    """
    weight, labels = torch.zeros(150_000, 1), torch.zeros(1, 114, dtype=torch.long)
    with Recorder() as recorder, torch.no_grad():
        loss = linear_nll_loss(torch.zeros(1, 114, 1), weight, labels, softcap=1e9)
    assert recorder.products == 2
    assert recorder.largest <= 2**24
    assert_close(loss.item(), math.log(150_000), rtol=1e-5, atol=0)
    with Recorder() as recorder, torch.no_grad():
        loss = linear_nll_loss(torch.zeros(1, 114, 1), weight, labels)
    assert recorder.largest <= 2**23
    assert_close(loss.item(), math.log(150_000), rtol=1e-5, atol=0)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_products_with_the_head_are_only_those_needed(softcap):
    """In full products, N·V·D multiplications: one for logits, one for the hidden gradient, one for the weight's.

    The teacher adds one for its logits. Backward adds none: nothing is recomputed, by blocks or, with a soft-cap,
    by rows.
    """
    hidden, targets, weights = random(6, HIDDEN, seed=53), random_tokens(6, seed=54), torch.ones(6)
    weight = random(VOCABULARY, HIDDEN, seed=55)

    def products(hidden_trains, weight_trains, teacher=False):
        h, w = hidden.clone().requires_grad_(hidden_trains), weight.clone().requires_grad_(weight_trains)
        head = Head(w, softcap=softcap)
        with Recorder() as recorder:
            if teacher:
                result = divergence_objective(h, head, h.detach() + 1, head, targets, weights, Divergence(), 2)
            else:
                result = token_objective(h, head, targets, weights, chunk_size=2)
            if result.loss_sum.requires_grad:
                result.loss_sum.backward()
        return recorder.multiplications / (6 * VOCABULARY * HIDDEN)

    assert products(False, False) == 1
    assert products(True, False) == 2
    assert products(False, True) == 2
    assert products(True, True) == 3
    assert products(True, False, teacher=True) == 3
    with torch.no_grad():
        assert products(True, True) == 1


def test_backward_twice_gives_the_same_gradient():
    hidden, weight = leaf(6, HIDDEN, seed=56), leaf(VOCABULARY, HIDDEN, seed=57)
    loss = linear_nll_loss(hidden[None], weight, random_tokens(1, 6, seed=58))
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (hidden, weight))
    assert_close([2 * gradient for gradient in first], list(second), atol=0, rtol=0)
    assert first[1].abs().max() > 0.01


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_known_gradient_is_given_away_unless_the_graph_is_retained(factor):
    """(1, 2, 3) · factor in the memory that was handed over; with a retained graph three passes add up to thrice it."""
    parameter, expected = torch.zeros(3, requires_grad=True), factor * torch.tensor([1.0, 2.0, 3.0])
    gradient = torch.tensor([1.0, 2.0, 3.0])
    address = gradient.data_ptr()
    loss = factor * attach_gradients(torch.tensor(7.0), [(parameter, gradient)])
    del gradient
    loss.backward()
    assert torch.equal(parameter.grad, expected)
    assert parameter.grad.data_ptr() == address
    parameter.grad = None
    loss = factor * attach_gradients(torch.tensor(7.0), [(parameter, torch.tensor([1.0, 2.0, 3.0]))])
    for retained in (True, True, False):
        loss.backward(retain_graph=retained)
    assert torch.equal(parameter.grad, 3 * expected)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_weight_gradient_does_not_depend_on_what_memory_held(softcap, monkeypatch):
    """Fresh memory full of NaN: as dense, by blocks and by rows, and zeros where there are no positions."""
    hidden, weight = leaf(2, 6, HIDDEN, seed=59), leaf(VOCABULARY, HIDDEN, seed=60)
    labels = random_tokens(2, 6, seed=61)
    expected = loss_and_gradients(nll_loss(plain_logits(hidden, weight, softcap=softcap), labels), hidden, weight)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(math.nan))
    measured = loss_and_gradients(
        linear_nll_loss(hidden, weight, labels, chunk_size=3, softcap=softcap), hidden, weight
    )
    assert_close(measured, expected)
    nothing = linear_nll_loss(hidden, weight, torch.full((2, 6), -100), softcap=softcap)
    assert torch.equal(torch.autograd.grad(nothing, weight)[0], torch.zeros(VOCABULARY, HIDDEN, dtype=torch.float64))


def test_errors_name_value_and_remedy():
    hidden, weight, labels = torch.zeros(1, 2, 4), torch.zeros(5, 4), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"hidden has shape \[1, 3\], expected \[1, 4\] to go with its head"):
        linear_nll_loss(hidden[..., :3], weight, labels)
    with pytest.raises(ShapeError, match="targets holds token id 5, but the logits have entries 0 to 4"):
        linear_nll_loss(hidden, weight, labels + 5)
    with pytest.raises(ShapeError, match=r"the head's bias has shape \[4\], expected \[5\]"):
        linear_nll_loss(hidden, weight, labels, torch.zeros(4))
    with pytest.raises(ShapeError, match=r"the head's weight has shape \[4\], expected \[vocabulary, hidden\]"):
        linear_nll_loss(hidden, weight[0], labels)
    with pytest.raises(ShapeError, match=r"mask has shape \[1, 1\], expected \[1, 2\]"):
        linear_divergence(hidden, hidden, weight, mask=torch.ones(1, 1))
    with pytest.raises(ShapeError, match=r"teacher_hidden has positions \[1, 1\], student_hidden \[1, 2\]"):
        linear_divergence(hidden, hidden[:, :1], weight)
    with pytest.raises(ShapeError, match="the student's head has 5 logits, the teacher's 6; a divergence needs one"):
        linear_divergence(hidden, hidden, weight, teacher_weight=torch.zeros(6, 4))
    with pytest.raises(ShapeError, match=r"hidden has shape \[1, 2, 4\], expected \[positions, size\]; flatten"):
        token_objective(hidden, Head(weight), labels, labels)
    with pytest.raises(ConfigError, match="chunk_size=0 holds no position; pass 1 or more"):
        linear_nll_loss(hidden, weight, labels, chunk_size=0)
    with pytest.raises(ConfigError, match=r"softcap must be positive, got 0.0; pass None"):
        linear_nll_loss(hidden, weight, labels, softcap=0.0)
    with pytest.raises(ConfigError, match="needs the sampled tokens; pass tokens="):
        linear_divergence(hidden, hidden, weight, kind=Divergence(estimator="sampled"))
    with pytest.raises(ConfigError, match=r"'dtf' is not one of nll, dft; did you mean 'dft'\?"):
        token_objective(hidden[0], Head(weight), labels[0], labels[0], "dtf")
