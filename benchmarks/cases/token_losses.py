"""DFT and NLL through the head, frozen and trained: value and gradients."""

from typing import Any

from benchmarks.limits import Rates
from benchmarks.measure import PeakMemory, alternating, answer, seconds
from benchmarks.settings import HEAD_POSITIONS, HEAD_WIDTH, VOCABULARY
from benchmarks.table import Row, Samples, Target

TITLE = f"DFT and NLL through the head: N = {HEAD_POSITIONS}, H = {HEAD_WIDTH}, V = {VOCABULARY}"
SIDES = ("ours", "trl")
ONCE = SIDES
"""Ours takes turns with the bare products already."""
WORKS = {
    "DFT, frozen head": ("dft", False),
    "DFT, trained head": ("dft", True),
    "NLL, frozen head": ("nll", False),
    "NLL, trained head": ("nll", True),
}
SAMPLES = 2
"""Of each loss on each side, after a step that is not timed."""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of each, and its peak above weights and hidden states, after a step of the first that warms up. Ours
    takes turns with the bare products."""
    import torch

    torch.manual_seed(0)
    hidden_ND = (5 * torch.randn(HEAD_POSITIONS, HEAD_WIDTH)).requires_grad_()
    weight_VD = 0.02 * torch.randn(VOCABULARY, HEAD_WIDTH)
    targets_N = torch.randint(VOCABULARY, (HEAD_POSITIONS,))
    if side == "ours":
        # Ones, since memory that nothing was written to is slow the first time.
        logits_NV = torch.ones(HEAD_POSITIONS, VOCABULARY)
        gradient_ND, gradient_VD = torch.ones(HEAD_POSITIONS, HEAD_WIDTH), torch.ones(VOCABULARY, HEAD_WIDTH)
    found: dict[str, list[float]] = {}
    for name, (objective, trained) in WORKS.items():

        def step(objective: str = objective) -> None:
            hidden_ND.grad = weight_VD.grad = None
            loss_of(side, objective, hidden_ND, weight_VD, targets_N).backward()

        def products(trained: bool = trained) -> None:
            torch.mm(hidden_ND.detach(), weight_VD.detach().T, out=logits_NV)
            torch.mm(logits_NV, weight_VD.detach(), out=gradient_ND)
            if trained:
                torch.mm(logits_NV.T, hidden_ND.detach(), out=gradient_VD)

        weight_VD.requires_grad_(trained)
        loss_of(side, objective, hidden_ND[:8], weight_VD, targets_N[:8]).backward()  # loads what it needs
        if not found:
            step()
        hidden_ND.grad = weight_VD.grad = None
        memory = PeakMemory()
        found[name] = [seconds(step)]
        found[f"peak_mib {name}"] = [memory.mib()]
        if side == "ours":
            found[f"products {name}"] = [seconds(products)]
            times = alternating({"s": step, "products": products}, SAMPLES - 1)
            found[name] += times["s"]
            found[f"products {name}"] += times["products"]
        else:
            found[name] += [seconds(step) for _ in range(SAMPLES - 1)]
    return found


def loss_of(side: str, objective: str, hidden_ND: Any, weight_VD: Any, targets_N: Any) -> Any:
    """The mean over the positions, as each side computes it; of TRL's kernel nothing but what the loss needs."""
    import torch

    if side == "ours":
        from tutelage.losses import linear_dft_loss, linear_nll_loss

        linear = linear_dft_loss if objective == "dft" else linear_nll_loss
        # Position t predicts label t + 1.
        labels_BT = torch.cat([torch.tensor([-100]), targets_N])[None]
        hidden_BTD = torch.cat([hidden_ND, torch.zeros(1, HEAD_WIDTH)])[None]
        return linear(hidden_BTD, weight_VD, labels_BT)
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    logp_N = ChunkedLogProbFunction.apply(
        hidden_ND, weight_VD, None, targets_N, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
    )[0]
    return -(logp_N * logp_N.exp().detach() if objective == "dft" else logp_N).mean()


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Time against the products and against TRL's fused head."""
    ours, trl = (samples.get(side, {}) for side in SIDES)
    found: list[Row] = []
    for name, (_, trained) in WORKS.items():
        limit = 2.0 * HEAD_POSITIONS * HEAD_WIDTH * VOCABULARY * (3 if trained else 2) / rates.flops
        products, peer = f"its {'three' if trained else 'two'} products", "TRL, chunked_logprob"
        peak = f"peak_mib {name}"
        found += [
            Row(name, "s", ours.get(name, ()), ours.get(f"products {name}", ()), products, limit, Target(1.35)),
            Row(name, "s", ours.get(name, ()), trl.get(name, ()), peer, limit, Target(1.0)),
            Row(f"{name}: peak memory", "MiB", ours.get(peak, ()), trl.get(peak, ()), peer),
        ]
    return found


if __name__ == "__main__":
    answer(measure)
