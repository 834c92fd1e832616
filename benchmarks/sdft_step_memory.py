"""Peak memory of one sdft step at a vocabulary of 150,000: the chunked head against dense logits.

    python benchmarks/sdft_step_memory.py

Each variant is a process of its own, so that its peak resident memory is its own. What is reported is the peak
minus what was resident before the step: model, tokenizer and libraries are in both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

VOCABULARY = 150_000
ROWS, PROMPT, TEACHER_PROMPT, RESPONSE = 4, 64, 128, 192


def resident_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(variant: str) -> dict[str, float]:
    """One step of forward and backward for student and teacher on given rollouts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tutelage.losses import Divergence, divergence_objective, reverse_kl
    from tutelage.models import head_forward, padded
    from tutelage.models.scoring import predicting_places

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.requires_grad_(False)  # the head is frozen, as with LoRA
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    responses = [tokens(RESPONSE) for _ in range(ROWS)]
    student = [(tokens(PROMPT), response) for response in responses]
    teacher = [(tokens(TEACHER_PROMPT), response) for response in responses]
    student_rows, teacher_rows = (
        padded([[*prompt, *response] for prompt, response in side]) for side in (student, teacher)
    )
    student_place_N, teacher_place_N = (
        predicting_places(student_rows, student),
        predicting_places(teacher_rows, teacher),
    )
    head_forward(model, {"input_ids": torch.tensor([[1, 2]])}, lambda hidden, head: hidden)
    before = resident_mib()
    started = time.perf_counter()
    if variant == "dense":
        with torch.no_grad():
            teacher_logits_NV = model(**teacher_rows.inputs, use_cache=False).logits.flatten(0, 1)[teacher_place_N]
        student_logits_NV = model(**student_rows.inputs, use_cache=False).logits.flatten(0, 1)[student_place_N]
        loss = reverse_kl(student_logits_NV, teacher_logits_NV).mean()
    else:
        with torch.no_grad():
            teacher_hidden_ND = head_forward(
                model, teacher_rows.inputs, lambda hidden, head: hidden.flatten(0, 1)[teacher_place_N]
            )
        tokens_N = torch.tensor([token for response in responses for token in response])
        result = head_forward(
            model,
            student_rows.inputs,
            lambda hidden, head: divergence_objective(
                hidden.flatten(0, 1)[student_place_N],
                head,
                teacher_hidden_ND,
                head,
                tokens_N,
                torch.ones(len(tokens_N)),
                Divergence(),
            ),
        )
        loss = result.loss_sum / len(tokens_N)
    loss.backward()
    return {
        "mib": resident_mib() - before,
        "seconds": time.perf_counter() - started,
        "loss": float(loss.detach()),
    }


def main() -> None:
    """Both variants, a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["dense", "chunked"])
    variant = parser.parse_args().variant
    if variant:
        print(json.dumps(measure(variant)))
        return
    table = Table("head", "peak above the model, MiB", "seconds", "loss")
    for name in ("dense", "chunked"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(Path(__file__).resolve()), "--variant", name]
            result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        values = json.loads(result.stdout.splitlines()[-1])
        table.add_row(name, f"{values['mib']:.0f}", f"{values['seconds']:.1f}", f"{values['loss']:.6f}")
    Console().print(f"{ROWS} rows, {RESPONSE} response tokens each, vocabulary {VOCABULARY}, float32, frozen head")
    Console().print(table)


if __name__ == "__main__":
    main()
