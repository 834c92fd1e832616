"""Reverse KL through a frozen head: value, and gradient to the student's hidden states."""

from typing import Any

from benchmarks.limits import Rates
from benchmarks.measure import PeakMemory, alternating, answer
from benchmarks.settings import HEAD_POSITIONS, HEAD_WIDTH, VOCABULARY
from benchmarks.table import Row, Samples, Target

TITLE = f"Reverse KL, frozen head: N = {HEAD_POSITIONS}, H = {HEAD_WIDTH}, V = {VOCABULARY}"
SIDES = ("ours", "dense", "trl")
ONCE = SIDES
"""Ours takes turns with the bare products already."""
SAMPLES = 2
"""Of each side, after the step whose peak is measured, which is not timed."""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds, and peak memory above weights and hidden states. Ours takes turns with the bare products."""
    import torch

    torch.manual_seed(0)
    # Logits with a deviation of 3, as those of trained models.
    student_ND = (5 * torch.randn(HEAD_POSITIONS, HEAD_WIDTH)).requires_grad_()
    teacher_ND = student_ND.detach() + torch.randn(HEAD_POSITIONS, HEAD_WIDTH)
    weight_VD = 0.02 * torch.randn(VOCABULARY, HEAD_WIDTH)

    def step() -> None:
        student_ND.grad = None
        loss_of(side, student_ND, teacher_ND, weight_VD).backward()

    # What is loaded at the first use is no part of the need.
    loss_of(side, student_ND[:8], teacher_ND[:8], weight_VD).backward()
    memory = PeakMemory()
    step()
    peak = memory.mib()
    works = {"s": step}
    if side == "ours":
        # Ones, since memory that nothing was written to is slow the first time.
        logits_NV, gradient_ND = torch.ones(HEAD_POSITIONS, VOCABULARY), torch.ones(HEAD_POSITIONS, HEAD_WIDTH)
        hidden_ND = student_ND.detach()

        def products() -> None:
            torch.mm(hidden_ND, weight_VD.T, out=logits_NV)
            torch.mm(teacher_ND, weight_VD.T, out=logits_NV)
            torch.mm(logits_NV, weight_VD, out=gradient_ND)

        works = {"products": products, "s": step}
    return alternating(works, SAMPLES) | {"peak_mib": [peak]}


def loss_of(side: str, student_ND: Any, teacher_ND: Any, weight_VD: Any) -> Any:
    """The mean over the positions, as each side computes it."""
    import torch
    from torch.nn.functional import kl_div, linear, log_softmax

    if side == "ours":
        from tutelage.losses import linear_divergence

        return linear_divergence(student_ND, teacher_ND, weight_VD)
    if side == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        return ChunkedDivergenceFunction.apply(student_ND, weight_VD, None, teacher_ND, weight_VD, None, 1.0)[0].mean()
    with torch.no_grad():
        teacher_logp_NV = log_softmax(linear(teacher_ND, weight_VD), -1)
    student_logp_NV = log_softmax(linear(student_ND, weight_VD), -1)
    return kl_div(teacher_logp_NV, student_logp_NV, reduction="none", log_target=True).sum(-1).mean()


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Time against the products, dense PyTorch and TRL; memory likewise."""
    ours, dense, trl = (samples.get(side, {}) for side in SIDES)
    limit = 2.0 * HEAD_POSITIONS * HEAD_WIDTH * VOCABULARY * 3 / rates.flops
    gradient = 4 * HEAD_POSITIONS * HEAD_WIDTH / 2**20
    times, peaks = ours.get("s", ()), ours.get("peak_mib", ())
    return [
        Row("value and gradient", "s", times, ours.get("products", ()), "its three products", limit, Target(1.35)),
        Row("value and gradient", "s", times, dense.get("s", ()), "dense PyTorch", limit),
        Row("value and gradient", "s", times, trl.get("s", ()), "TRL, chunked_divergence", limit),
        Row("peak memory", "MiB", peaks, dense.get("peak_mib", ()), "dense PyTorch", gradient, Target(0.05)),
        Row("peak memory", "MiB", peaks, trl.get("peak_mib", ()), "TRL, chunked_divergence", gradient),
    ]


if __name__ == "__main__":
    answer(measure)
