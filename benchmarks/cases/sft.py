"""SFT and DFT steps on four rows of 16 to 512 tokens: packed, free of padding, and TRL's."""

import random
from pathlib import Path
from typing import Any

from benchmarks.distillation import part_limits
from benchmarks.limits import Decoder, Predictions, Rates
from benchmarks.measure import answer
from benchmarks.settings import PARTS, RANK
from benchmarks.table import Row, Samples, Target

TITLE = "SFT and DFT step: SmolLM2-135M, 4 rows of 16 to 512 tokens, LoRA"
SIDES = ("ours", "trl", "ours_free", "trl_fast", "ours_dft", "trl_fast_dft")
"""`ours`: packed, the default; `ours_free`: padding-free batches. `trl`: TRL's default, which pads and recomputes
activations; `trl_fast`: without the second, and with the denormal numbers of its backward pass flushed to zero."""
ONCE = SIDES[2:]
BATCH, SHORTEST, LONGEST = 4, 16, 512
SEED = 82
"""Draws 90, 409, 266 and 274. Of four uniform lengths the mean is 264 and the longest 413 on average: so padding is as
large as it usually is. With TRL's usual eight rows it would be larger."""
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""No system turn: rows are to be as short as 16 tokens, and to begin with nothing that they share."""
FRAME = 11
"""Tokens of the two turns' marks."""
TEXTS = Path(__file__).resolve().parents[2] / "docs"


def conversations(tokenizer: Any) -> list[dict[str, Any]]:
    """Pieces of this project's docs, a fifth as the question; with the marks, 16 to 512 tokens, uniform by seed."""
    text = "\n".join((TEXTS / name).read_text(encoding="utf-8") for name in ("data.md", "evaluation.md", "jobs.md"))
    ids = tokenizer(text)["input_ids"]
    draw, at, found = random.Random(SEED), 0, []
    for _ in range(BATCH):
        length = draw.randint(SHORTEST, LONGEST) - FRAME
        piece = ids[at : at + length]
        at += length
        question = max(1, length // 5)
        turns = zip(("user", "assistant"), (piece[:question], piece[question:]), strict=True)
        found.append({"messages": [{"role": role, "content": tokenizer.decode(part)} for role, part in turns]})
    return found


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of steps and their parts, after one to warm up. Each step has all rows, on every side."""
    import torch

    from benchmarks.steps import our_config, our_trainer, plain_model, plain_tokenizer, run
    from tutelage.models import resolve_model
    from tutelage.training.inputs import prepare_inputs

    if side.startswith("trl_fast"):
        torch.set_flush_denormal(True)  # before the threads begin, which take it over
    # What takes turns gets its samples in rounds.
    source, steps = resolve_model("smollm2"), 3 if side in ("ours_free", "ours_dft") else 2
    tokenizer = plain_tokenizer(source)
    options: dict[str, Any] = {
        "loss": "dft" if side.endswith("_dft") else "sft",
        "chat_template": CHAT,
        "packing": False,
        "per_device_train_batch_size": BATCH,
    }
    if side.startswith("ours"):
        # One pack holds all rows.
        options |= {"packing": not side.endswith("_free"), "max_seq_length": BATCH * LONGEST}
        trainer = our_trainer(our_config(conversations(tokenizer), steps, **options))
        items = list(trainer.train_dataset)
        rows = items if side.endswith("_free") else [row for pack in items for row in pack]
        return run(trainer) | _work(trainer, rows)
    rows = list(prepare_inputs(our_config(conversations(tokenizer), steps, **options)).train_items)
    return run(_trls(side, plain_model(source), tokenizer, rows, steps))


def _trls(side: str, model: Any, tokenizer: Any, rows: list[Any], steps: int) -> Any:
    """TRL's trainer on the very same ids and labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from benchmarks.steps import lora, trl_arguments

    arguments = SFTConfig(
        **trl_arguments(steps) | {"per_device_train_batch_size": BATCH},
        loss_type="dft" if side.endswith("_dft") else "nll",
        dataset_kwargs={"skip_prepare_dataset": True},
        **({"gradient_checkpointing": False} if side.startswith("trl_fast") else {}),
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora(),
    )


def _work(trainer: Any, rows: list[Any]) -> dict[str, list[float]]:
    predictions = Predictions.of_labels([(row.input_ids, row.labels) for row in rows])
    training = Decoder.of(trainer.model.config).training(predictions, rank=RANK)
    trained = float(sum(row.num_trained for row in rows))
    return training | {"tokens": [float(sum(len(row.input_ids) for row in rows))], "trained": [trained]}


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Milliseconds per trained token, each way against TRL's; parts of the default; memory."""
    found: list[Row] = []
    ours = samples.get("ours", {})
    trained = next((side["trained"][0] for side in samples.values() if "trained" in side), 1.0)

    def row(name: str, our: str, peer: str, peer_name: str, part: str = "step", target: Target | None = None) -> Row:
        mine, others = samples.get(our, {}), samples.get(peer, {})
        limit = part_limits(mine, rates).get(part) if mine else None
        times = [[1000 * seconds / trained for seconds in side.get(part, ())] for side in (mine, others)]
        return Row(name, "ms/token", times[0], times[1], peer_name, limit and 1000 * limit / trained, target)

    default, fast, bound = "TRL, default", "TRL, as fast as it gets", Target(0.7)
    found.append(row("SFT, packed (default)", "ours", "trl", default, target=bound))
    found += [
        row(f"– {part}", "ours", "trl", default, part)
        for part in (*PARTS, "other")
        if part in ours or part in samples.get("trl", {})
    ]
    found += [
        row("SFT, packed (default)", "ours", "trl_fast", fast),
        row("SFT, padding-free", "ours_free", "trl", default, target=bound),
        row("SFT, padding-free", "ours_free", "trl_fast", fast),
        row("DFT, packed (default)", "ours_dft", "trl_fast_dft", fast, target=bound),
    ]
    for peer, name in (("trl", default), ("trl_fast", fast)):
        peaks = [samples.get(side, {}).get("peak_mib", ()) for side in ("ours", peer)]
        found.append(Row("SFT, packed: peak memory", "MiB", peaks[0], peaks[1], name))
    return found


if __name__ == "__main__":
    answer(measure)
