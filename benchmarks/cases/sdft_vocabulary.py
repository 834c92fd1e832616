"""One sdft step where the vocabulary is all: two layers of the width of Qwen2-0.5B, 151,936 tokens, tied, LoRA."""

from benchmarks.distillation import distillation_step, step_rows
from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.table import Row, Samples, Target

TITLE = "SDFT step: two layers, vocabulary 151,936, LoRA, EMA teacher, 8 prompts, 64 new tokens"
SIDES = ("ours", "trl")
ONCE = SIDES


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of a step and its parts, after one to warm up; the peak of both."""
    from benchmarks.steps import large_vocabulary_model

    return distillation_step(side, large_vocabulary_model())


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Memory first: that is what the case is for."""
    ours, peer, name = samples.get("ours", {}), samples.get("trl", {}), "TRL, full logits"
    memory = Row(
        "peak memory above the model",
        "MiB",
        ours.get("peak_mib", ()),
        peer.get("peak_mib", ()),
        name,
        None,
        Target(0.15),
    )
    return [memory, *step_rows("step", samples, "trl", name, rates, parts=True, target=None)]


if __name__ == "__main__":
    answer(measure)
