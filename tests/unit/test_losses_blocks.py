"""The chunked head by blocks of the vocabulary, with blocks so small that there are many of them.

The reference is dense: plain logits, autograd in float64. Which tests of the chunked head hold for any way it takes
are in test_losses_chunked.py.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from tutelage.losses import (
    Divergence,
    Head,
    IdentityHead,
    chunked,
    dft_loss,
    divergence,
    divergence_objective,
    linear_dft_loss,
    linear_divergence,
    linear_nll_loss,
    nll_loss,
    reverse_kl,
    token_objective,
    vocabulary_blocks,
)
from tutelage.losses.vocabulary_blocks import Block, BlockedChunk, Workspace

VOCABULARY, HIDDEN, POSITIONS = 203, 7, 13
SPECS = [Divergence("reverse_kl"), Divergence("forward_kl"), Divergence("jsd", beta=0.3)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Tiles 16 entries wide: a vocabulary of 203 is several blocks, the last one uneven."""
    monkeypatch.setattr(vocabulary_blocks, "MIN_TILE_WIDTH", 16)
    monkeypatch.setattr(vocabulary_blocks, "TILE_ELEMENTS", 16)


@pytest.fixture
def verdicts(monkeypatch):
    """Whether each chunk could be concluded by blocks, as it comes."""
    seen = []
    go_through = vocabulary_blocks.go_through

    def recording(chunks, blocks):
        for chunk, concluded in go_through(chunks, blocks):
            seen.append(concluded)
            yield chunk, concluded

    monkeypatch.setattr(chunked, "go_through", recording)
    return seen


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(*shape: int, seed: int) -> torch.Tensor:
    return random(*shape, seed=seed).requires_grad_()


def tokens_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(loss, *tensors):
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, [tensor for tensor in tensors if tensor.requires_grad])]


@pytest.mark.parametrize("trained", ["hidden", "head", "both"])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 100, None])
@pytest.mark.parametrize(("linear", "dense"), [(linear_nll_loss, nll_loss), (linear_dft_loss, dft_loss)])
def test_token_losses_equal_dense(linear, dense, chunk_size, trained, verdicts):
    hidden, weight, bias = (
        leaf(2, POSITIONS, HIDDEN, seed=2),
        leaf(VOCABULARY, HIDDEN, seed=3),
        leaf(VOCABULARY, seed=4),
    )
    hidden.requires_grad_(trained != "head")
    weight.requires_grad_(trained != "hidden")
    bias.requires_grad_(trained != "hidden")
    labels = tokens_of(2, POSITIONS)
    labels[0, :4] = -100
    measured = linear(hidden, weight, labels, bias, chunk_size=chunk_size, scale=0.7)
    expected = dense(0.7 * (hidden @ weight.T + bias), labels)
    tensors = hidden, weight, bias
    assert_close(
        value_and_gradients(measured, *tensors), value_and_gradients(expected, *tensors), atol=1e-12, rtol=1e-10
    )
    assert verdicts
    assert all(verdicts)


@pytest.mark.parametrize("own_teacher", [False, True])
@pytest.mark.parametrize("trained", ["hidden", "both"])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 100])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_divergences_equal_dense(spec, chunk_size, trained, own_teacher, verdicts):
    """Value, gradients to hidden, weight and bias, with weights, scale and a temperature."""
    spec = Divergence(spec.kind, beta=spec.beta, temperature=1.3)
    hidden, teacher = leaf(POSITIONS, HIDDEN, seed=5), random(POSITIONS, 5 if own_teacher else HIDDEN, seed=6)
    weight, bias = leaf(VOCABULARY, HIDDEN, seed=7), leaf(VOCABULARY, seed=8)
    weight.requires_grad_(trained == "both")
    bias.requires_grad_(trained == "both")
    own = (random(VOCABULARY, 5, seed=9), random(VOCABULARY, seed=10)) if own_teacher else (weight, bias)
    mask = torch.arange(POSITIONS) % 4 * 0.5
    options = {"teacher_weight": own[0], "teacher_bias": own[1]} if own_teacher else {}
    measured = linear_divergence(hidden, teacher, weight, bias, spec, mask, 1, chunk_size, scale=0.6, **options)
    student_logits = 0.6 * (hidden @ weight.T + bias)
    teacher_logits = 0.6 * (teacher @ own[0].detach().T + own[1].detach())
    expected = (divergence(student_logits, teacher_logits, spec) * mask).sum()
    tensors = hidden, weight, bias
    assert_close(
        value_and_gradients(measured, *tensors), value_and_gradients(expected, *tensors), atol=1e-11, rtol=1e-9
    )
    assert verdicts
    assert all(verdicts)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_statistics_equal_those_of_categorical_distributions(spec, verdicts):
    """Both KLs, both entropies, both log-probabilities of the tokens; and the loss and gradient beside them."""
    hidden, teacher, weight = (
        leaf(POSITIONS, HIDDEN, seed=11),
        random(POSITIONS, HIDDEN, seed=12),
        random(203, 7, seed=13),
    )
    tokens, ones, head = tokens_of(POSITIONS), torch.ones(POSITIONS), Head(weight)
    result = divergence_objective(hidden, head, teacher, head, tokens, ones, spec, 4)
    p = torch.distributions.Categorical(logits=hidden.detach() @ weight.T)
    q = torch.distributions.Categorical(logits=teacher @ weight.T)
    expected = [
        torch.distributions.kl_divergence(p, q),
        torch.distributions.kl_divergence(q, p),
        p.entropy(),
        q.entropy(),
        p.log_prob(tokens),
        q.log_prob(tokens),
    ]
    assert_close(list(result.stats), expected, atol=1e-12, rtol=1e-10)
    dense = divergence(hidden @ weight.T, teacher @ weight.T, spec).sum()
    assert_close(value_and_gradients(result.loss_sum, hidden), value_and_gradients(dense, hidden))
    assert verdicts
    assert all(verdicts)


def test_token_statistics_of_many_blocks(verdicts):
    hidden, weight, targets = (
        random(POSITIONS, HIDDEN, seed=14),
        random(VOCABULARY, HIDDEN, seed=15),
        tokens_of(POSITIONS),
    )
    logp = (hidden @ weight.T).log_softmax(-1)
    targets[:5] = logp[:5].argmax(-1)
    ones = torch.ones(POSITIONS)
    stats = token_objective(hidden, Head(weight), targets, ones, chunk_size=5, with_entropy=True).stats
    assert_close(stats.entropy, -(logp.exp() * logp).sum(-1), atol=1e-12, rtol=1e-10)
    expected = logp.gather(-1, targets[:, None])[:, 0]
    assert_close(stats.nll, -expected, atol=1e-12, rtol=1e-10)
    assert_close(stats.probability, expected.exp(), atol=1e-12, rtol=1e-10)
    assert stats.correct.tolist() == (logp.argmax(-1) == targets).tolist()
    assert sum(stats.correct.tolist()) >= 5
    assert verdicts
    assert all(verdicts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, 300.0, 1e4])
def test_a_later_block_with_far_larger_logits(far, dtype, verdicts):
    """One hidden unit; entry 150 of the vocabulary has logit `far`, the others 0 or 1: p is 1 there, and its nll 0.

    The reference of the exponentials rises with it: nothing goes by rows. Target 3 has logit 1.
    """
    weight = torch.zeros(VOCABULARY, 1, dtype=dtype)
    weight[1::2], weight[150] = 1.0, far
    hidden = torch.ones(2, 1, dtype=dtype, requires_grad=True)
    result = token_objective(hidden, Head(weight), torch.tensor([150, 3]), torch.ones(2), chunk_size=2)
    assert_close(result.stats.nll, torch.tensor([0.0, far - 1.0], dtype=dtype), atol=1e-9, rtol=1e-6)
    result.loss_sum.backward()
    assert_close(hidden.grad, torch.tensor([[0.0], [far - 1.0]], dtype=dtype), atol=1e-6, rtol=1e-6)
    assert verdicts == [True]
    kl = linear_divergence(hidden, hidden.detach() * 0.999, weight)
    dense = reverse_kl(hidden.double() @ weight.double().T, hidden.detach().double() * 0.999 @ weight.double().T).mean()
    assert_close(kl.double(), dense, atol=1e-5 + far * torch.finfo(dtype).eps, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("path", ["blocks", "rows", "dense"])
def test_of_equal_logits_the_first_is_the_prediction(path, threads, monkeypatch, verdicts):
    """Logits by hand, as argmax has them: entries 20, 22, 36, 100 and 202 have logit 1, the others 0 (tiles of 16).

    Only 20 is right. In the next row all are 0 but entry 40: only 40 is right. In the last all are 0: only 0 is.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits = torch.zeros(3, VOCABULARY)
    logits[0, [20, 22, 36, 100, 202]] = logits[1, 40] = 1.0
    cases = [(0, 20), (0, 22), (0, 36), (0, 100), (0, 202), (0, 5), (1, 40), (1, 0), (1, 202), (2, 0), (2, 1), (2, 202)]
    rows, targets = map(torch.tensor, zip(*cases, strict=True))
    head = Head(logits.T.contiguous(), softcap=1e9 if path == "rows" else None)
    hidden = torch.nn.functional.one_hot(rows, 3).float()
    if path == "dense":
        hidden, head = logits[rows], IdentityHead(VOCABULARY)
    stats = token_objective(hidden, head, targets, torch.ones(len(cases)), chunk_size=8).stats
    assert [case for case, correct in zip(cases, stats.correct.tolist(), strict=True) if correct] == [
        (0, 20),
        (1, 40),
        (2, 0),
    ]
    assert verdicts == ([True, True] if path == "blocks" else [])


@pytest.mark.parametrize("trained", ["hidden", "both"])
@pytest.mark.parametrize("objective", ["nll", "dft"])
@pytest.mark.parametrize("gap", [20.0, 60.0, 90.0, 94.0, 200.0])
def test_a_certain_target_far_above_the_first_block(gap, objective, trained, verdicts):
    """float32 against float64 by the formula: target 150 has logit `gap`, the others random ones near 0.

    The gradient to the others is (1 − p) times their softmax, to five digits. The position has weight 1e6: what is
    left of it at a gap of 94 is a number in float32, though exp(gap) is none.
    """
    others = random(1, VOCABULARY, seed=30).float().double()
    others[0, 150] = -math.inf
    weight = others.T.float()
    weight[150] = gap
    weight.requires_grad_(trained == "both")
    hidden = torch.ones(1, 1, requires_grad=True)
    result = token_objective(hidden, Head(weight), torch.tensor([150]), torch.tensor([1e6]), objective)
    result.loss_sum.backward()
    odds = (others.logsumexp(-1) - gap).exp()
    certain = 1 / (1 + odds)
    scale = 1e6 * (certain if objective == "dft" else 1.0)
    share = others.softmax(-1) * odds * certain * scale
    assert_close(result.loss_sum.double(), (scale * odds.log1p()).sum(), rtol=2e-5, atol=1e-37)
    logits = weight.detach().double().T
    expected = (share * logits).sum() - gap * share.sum()
    assert_close(hidden.grad.double().squeeze(), expected, rtol=2e-5, atol=1e-37)
    if trained == "both":
        share[0, 150] = -share.sum()
        assert_close(weight.grad.double()[:, 0], share[0], rtol=2e-5, atol=1e-37)
    assert verdicts == [True]


@pytest.mark.parametrize("trained", ["hidden", "both"])
@pytest.mark.parametrize("spec", ["nll", "dft", *SPECS, Divergence("reverse_kl", temperature=3.0)], ids=str)
def test_references_rise_block_by_block(spec, trained, verdicts):
    """Logits that grow by 1.5 an entry, 24 a tile: each row's largest is in the last block, 300 above the first.

    Against dense logits, in float64, with targets and tokens among the last entries; statistics too.
    """
    hidden, teacher = leaf(POSITIONS, HIDDEN, seed=31), random(POSITIONS, HIDDEN, seed=32)
    weight = leaf(VOCABULARY, HIDDEN, seed=33)
    bias = (1.5 * torch.arange(VOCABULARY, dtype=torch.float64)).requires_grad_(trained == "both")
    weight.requires_grad_(trained == "both")
    tokens, ones = VOCABULARY - 1 - tokens_of(POSITIONS) % 7, torch.ones(POSITIONS, dtype=torch.float64)
    head, logits = Head(weight, bias), hidden @ weight.T + bias
    logp = logits.detach().log_softmax(-1)
    token_logp = logp.gather(-1, tokens[:, None])[:, 0]
    if isinstance(spec, Divergence):
        result = divergence_objective(hidden, head, teacher, head, tokens, ones, spec, 5)
        teacher_logits = (teacher @ weight.T + bias).detach()
        dense = divergence(logits, teacher_logits, spec).sum()
        p, q = (torch.distributions.Categorical(logits=side) for side in (logits.detach(), teacher_logits))
        kls = torch.distributions.kl_divergence(p, q), torch.distributions.kl_divergence(q, p)
        expected = [*kls, p.entropy(), q.entropy(), token_logp, q.log_prob(tokens)]
    else:
        result = token_objective(hidden, head, tokens, ones, spec, 5, with_entropy=True)
        labels = torch.cat([tokens[:1], tokens])[None]
        shifted = torch.cat([logits, logits[:1]])[None]
        dense = (nll_loss if spec == "nll" else dft_loss)(shifted, labels, 1)
        entropy = torch.distributions.Categorical(logits=logits.detach()).entropy()
        expected = [-token_logp, token_logp.exp(), logp.argmax(-1) == tokens, entropy]
    assert_close(list(result.stats), expected, atol=1e-9, rtol=1e-9)
    measured = value_and_gradients(result.loss_sum, hidden, weight, bias)
    assert_close(measured, value_and_gradients(dense, hidden, weight, bias), atol=1e-9, rtol=1e-9)
    assert verdicts == [True, True, True]


def test_only_the_processor_goes_by_blocks():
    assert vocabulary_blocks.can_go_by_blocks(Head(torch.empty(5, 2)))
    assert not vocabulary_blocks.can_go_by_blocks(Head(torch.empty(5, 2, device="meta")))


@pytest.mark.parametrize("threads", [2, 64])
@pytest.mark.parametrize(("work", "most"), [("token", 2**26), ("divergence", 2.5 * 2**26)], ids=["token", "divergence"])
def test_tiles_do_not_grow_with_threads(work, most, threads, monkeypatch):
    """N = 1024: no tile above 64 MiB, and with the spare ones no more than 160 MiB."""
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    vocabulary, rows = 70_000, 1024
    like = torch.empty(0)
    sides, spare = (1, 0) if work == "token" else (2, 3)
    tiles = Workspace.for_tiles(like, vocabulary, sides * rows, keeps=False, spare_rows=spare * rows)
    assert 4 * (tiles.memory.numel() + tiles.spare.numel()) <= most


@pytest.mark.parametrize(("work", "rows", "size"), [("token", 1024, 512), ("divergence", 512, 1024)])
def test_sums_of_gradients_do_not_grow_with_threads(work, rows, size, monkeypatch):
    """32 threads, blocks of 32 · 512 entries: 64 MiB, the most there is. A sum is 2 MiB; one for each would be 64."""
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    seen = []
    begin = BlockedChunk.__init__

    def noted(chunk, *arguments):
        begin(chunk, *arguments)
        seen.append((chunk.workspace.blocks[0].pieces, chunk._gradient_pnD.nbytes))

    monkeypatch.setattr(BlockedChunk, "__init__", noted)
    hidden, weight = torch.zeros(rows, size, requires_grad=True), torch.zeros(32 * 512, size)
    if work == "token":
        token_objective(hidden, Head(weight), torch.zeros(rows, dtype=torch.long), torch.ones(rows))
    else:
        linear_divergence(hidden, torch.ones(rows, size), weight)
    assert seen == [(32, 2**21)]


def test_one_sum_for_all_threads_equals_one_for_each(monkeypatch, verdicts):
    """Three threads, float64: the gradient to the hidden states as dense, with room for one sum only."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(vocabulary_blocks, "MAX_SUM_BYTES", 8 * POSITIONS * HIDDEN)
    hidden, teacher = leaf(POSITIONS, HIDDEN, seed=37), random(POSITIONS, HIDDEN, seed=38)
    weight = random(VOCABULARY, HIDDEN, seed=39)
    measured = linear_divergence(hidden, teacher, weight)
    dense = reverse_kl(hidden @ weight.T, teacher @ weight.T).mean()
    assert_close(value_and_gradients(measured, hidden), value_and_gradients(dense, hidden), atol=1e-12, rtol=1e-10)
    assert verdicts == [True]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_statistics_are_those_of_temperature_1(spec, temperature, verdicts):
    """A loss at another temperature goes by blocks with its statistics, which are those of the rows."""
    spec = Divergence(spec.kind, beta=spec.beta, temperature=temperature)
    hidden, teacher = leaf(POSITIONS, HIDDEN, seed=34), random(POSITIONS, HIDDEN, seed=35)
    weight, tokens, ones = random(VOCABULARY, HIDDEN, seed=36), tokens_of(POSITIONS), torch.ones(POSITIONS)
    by_blocks, by_rows = (
        divergence_objective(hidden, head, teacher, head, tokens, ones, spec, 8)
        for head in (Head(weight), Head(weight, softcap=1e9))
    )
    assert_close(list(by_blocks.stats), list(by_rows.stats), atol=1e-12, rtol=1e-10)
    assert_close(
        value_and_gradients(by_blocks.loss_sum, hidden),
        value_and_gradients(by_rows.loss_sum, hidden),
        rtol=1e-9,
        atol=0,
    )
    assert verdicts == [True, True]


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_impossible_tokens_add_nothing(spec, temperature, verdicts):
    """Biases of −∞ on the same entries for student and teacher: as if the vocabulary ended before them, in loss,
    gradient and statistics. Nothing goes by rows."""
    spec = Divergence(spec.kind, beta=spec.beta, temperature=temperature)
    hidden, teacher, weight = (
        leaf(POSITIONS, HIDDEN, seed=16),
        random(POSITIONS, HIDDEN, seed=17),
        random(203, 7, seed=18),
    )
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[100:] = -math.inf
    tokens, ones = tokens_of(POSITIONS) % 100, torch.ones(POSITIONS)
    rest = Head(weight[:100])
    expected = divergence_objective(hidden, rest, teacher, rest, tokens, ones, spec)
    gradients = value_and_gradients(expected.loss_sum, hidden)
    head = Head(weight, bias)
    for own in (head, Head(weight.clone(), bias.clone())):
        measured = divergence_objective(hidden, head, teacher, own, tokens, ones, spec)
        assert_close(list(measured.stats), list(expected.stats), atol=1e-12, rtol=1e-10)
        assert_close(value_and_gradients(measured.loss_sum, hidden), gradients)
    assert verdicts == [True, True, True]


def test_an_impossible_token_that_was_drawn_is_said(verdicts):
    """Its log-probability is −∞ on both sides, by rows; the divergence is that of the rest."""
    hidden, teacher, weight = leaf(1, HIDDEN, seed=16), random(1, HIDDEN, seed=17), random(VOCABULARY, HIDDEN, seed=18)
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[100:] = -math.inf
    head, tokens = Head(weight, bias), torch.tensor([150])
    result = divergence_objective(hidden, head, teacher, head, tokens, torch.ones(1), Divergence("reverse_kl"))
    assert [result.stats.student_logp.item(), result.stats.teacher_logp.item()] == [-math.inf, -math.inf]
    assert_close(result.loss_sum, reverse_kl(hidden @ weight[:100].T, teacher @ weight[:100].T).sum())
    assert verdicts == [False]


def test_what_only_the_teacher_cannot_say_is_infinitely_far(verdicts):
    """The student has a probability there: the reverse KL is ∞, as dense, whichever way it goes."""
    hidden, weight = leaf(1, HIDDEN, seed=16), random(VOCABULARY, HIDDEN, seed=18)
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[100:] = -math.inf
    measured = linear_divergence(hidden, hidden.detach(), weight, teacher_weight=weight.clone(), teacher_bias=bias)
    assert measured.item() == math.inf
    assert verdicts == [False]


def test_a_chunk_that_is_not_finite_spoils_no_other(verdicts):
    """Position 5 holds NaN and has weight 0: its chunk of 4 goes by rows, the others by blocks."""
    clean, weight, bias = leaf(12, HIDDEN, seed=19), leaf(VOCABULARY, HIDDEN, seed=20), leaf(VOCABULARY, seed=21)
    dirty = clean.detach().clone()
    dirty[5] = math.nan
    dirty.requires_grad_()
    weights = torch.ones(12)
    weights[5] = 0.0
    targets = tokens_of(12)
    pairs = [
        value_and_gradients(
            token_objective(h, Head(weight, bias), targets, weights, "dft", 4).loss_sum, h, weight, bias
        )
        for h in (dirty, clean)
    ]
    assert_close(*pairs)
    assert verdicts == [True, False, True, True, True, True]


def test_a_nearly_certain_target_keeps_its_digits():
    """Logits (20, 0) in float32: nll = log1p(e⁻²⁰) = 2.0611536e-9, its gradient to h is −20·2.0611536e-9.

    As log p it would be 0: 1 + 2e-9 is 1 in float32.
    """
    weight = torch.tensor([[20.0], [0.0]])
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = token_objective(hidden, Head(weight), torch.tensor([0]), torch.ones(1)).loss_sum
    loss.backward()
    assert_close(loss.item(), 2.0611536e-9, rtol=1e-5, atol=0)
    assert_close(hidden.grad.item(), -20 * 2.0611536e-9, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_float32_where_student_and_teacher_are_close(spec, monkeypatch):
    """V = 49 152, hidden states 1 % apart, KL near 1e-4: float32 within 0.2 % of it, and 0.01 % of the gradient."""
    monkeypatch.undo()
    vocabulary, size = 49_152, 64
    weight = 0.2 * random(vocabulary, size, seed=22)
    student = random(24, size, seed=23)
    teacher = student + 0.01 * random(24, size, seed=24)
    exact, rounded = [
        value_and_gradients(linear_divergence(h, teacher.to(dtype), weight.to(dtype), kind=spec), h)
        for dtype in (torch.float64, torch.float32)
        for h in [student.to(dtype).requires_grad_()]
    ]
    assert 1e-5 < exact[0] < 1e-3
    assert_close(rounded[0].double(), exact[0], rtol=2e-3, atol=0)
    assert (rounded[1].double() - exact[1]).norm() < 1e-4 * exact[1].norm()


def test_blocks_cover_the_vocabulary_once(monkeypatch):
    """203 entries for tiles of 4 rows, three threads: blocks of 3·16 entries, the last of 11 in one piece."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    blocks = vocabulary_blocks.vocabulary_blocks(203, 4, torch.empty(0))
    assert blocks == [Block(0, 48, 3), Block(48, 96, 3), Block(96, 144, 3), Block(144, 192, 3), Block(192, 203, 1)]
    assert torch.cat([block.entries(torch.arange(203)).flatten() for block in blocks]).tolist() == list(range(203))


def test_the_entropy_of_a_certain_target_and_of_impossible_tokens(verdicts):
    """A target 2000 above all others has entropy 0. Tokens with logit −∞ leave that of the others, ln 3 of three equal
    ones. Both go by blocks."""
    bias = torch.full((VOCABULARY,), -math.inf, dtype=torch.float64)
    bias[[3, 90, 200]] = 1.5
    certain = torch.zeros(VOCABULARY, dtype=torch.float64)
    certain[90] = 2000.0
    hidden, weight = torch.zeros(2, HIDDEN, dtype=torch.float64), random(VOCABULARY, HIDDEN, seed=1)
    for logits, expected in ((bias, math.log(3)), (certain, 0.0)):
        head = Head(weight, logits)
        result = token_objective(hidden, head, torch.tensor([90, 90]), torch.ones(2), with_entropy=True)
        assert_close(result.stats.entropy, torch.full((2,), expected, dtype=torch.float64))
    assert verdicts == [True, True]
