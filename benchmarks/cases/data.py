"""Reading, checking, rendering and tokenising many rows, against the tokenizer alone on rendered texts."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.distillation import ROWS
from benchmarks.limits import Rates
from benchmarks.measure import MIB, AnonymousPeak, answer, seconds
from benchmarks.table import Row, Samples, Target

NUMBER = int(os.environ.get("BENCH_ROWS", "40000"))
TITLE = f"Data: {NUMBER:,} rows read, checked, rendered and tokenised"
BYTES_PER_ROW = 100
"""How much memory each further row may cost that no file backs."""
SIDES = ("ours", "tokenizer", "ours_quarter", "wrapped")
ONCE = SIDES
AT_ONCE = 1000


def conversations(number: int) -> Iterator[list[dict[str, Any]]]:
    """The tool calls again and again, each time with another number in question and answer: no text comes twice."""
    known = [json.loads(line)["messages"] for line in ROWS.read_text(encoding="utf-8").splitlines()]
    for index in range(number):
        yield [{**turn, "content": f"{turn['content']}\nNumber {index}."} for turn in known[index % len(known)]]


def measure(side: str) -> dict[str, list[float]]:
    """Rows a second; for ours the peak memory that no file backs."""
    from transformers import AutoTokenizer

    from tutelage.models import resolve_model

    number = NUMBER // 4 if side == "ours_quarter" else NUMBER
    source = resolve_model("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if side.startswith("ours"):
        return _ours(number)
    rust = tokenizer.backend_tokenizer

    def tokenise(texts: list[str]) -> Any:
        if side == "wrapped":
            return tokenizer(texts, add_special_tokens=False)
        return [encoding.ids for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]

    total = 0.0
    chats: list[list[dict[str, Any]]] = []
    tokenise(["to start its threads"] * AT_ONCE)
    for index, chat in enumerate(conversations(number), start=1):
        chats.append(chat)
        if len(chats) == AT_ONCE or index == number:
            texts = tokenizer.apply_chat_template(chats, tokenize=False)
            total += seconds(lambda texts=texts: tokenise(texts))
            chats.clear()
    return {"rows/s": [number / total]}


def _ours(number: int) -> dict[str, list[float]]:
    """By the way that `tutelage train` takes, up to where the model would be loaded."""
    from tutelage.config import TrainingConfig
    from tutelage.training.inputs import prepare_inputs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        with file.open("w", encoding="utf-8") as lines:
            for chat in conversations(number):
                lines.write(json.dumps({"messages": chat}) + "\n")
        config = TrainingConfig(model="smollm2", training_file=file, output_dir=Path(folder, "run"))
        memory = AnonymousPeak()
        taken = seconds(lambda: prepare_inputs(config))
        return {"rows/s": [number / taken], "peak_mib": [memory.mib()]}


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """The rates, and what each further row costs in memory, from a quarter of them to all."""
    ours, tokenizer, quarter, wrapped = (samples.get(side, {}) for side in SIDES)
    larger, smaller = ours.get("peak_mib", ()), quarter.get("peak_mib", ())
    more = NUMBER - NUMBER // 4
    growth = [MIB * (larger[0] - smaller[0]) / more] if larger and smaller else []
    return [
        Row(
            "read, check, render, tokenise",
            "rows/s",
            ours.get("rows/s", ()),
            tokenizer.get("rows/s", ()),
            f"the tokenizer in Rust, {AT_ONCE:,} texts at once",
            target=Target(0.9, at_least=True),
        ),
        Row(
            "the same",
            "rows/s",
            ours.get("rows/s", ()),
            wrapped.get("rows/s", ()),
            f"the tokenizer as transformers calls it, {AT_ONCE:,} texts at once",
        ),
        Row("peak memory", "MiB", larger, smaller, f"ours, {NUMBER // 4:,} rows"),
        Row(
            "memory of each further row",
            "bytes",
            growth,
            target=Target(BYTES_PER_ROW, "ours"),
        ),
    ]


if __name__ == "__main__":
    answer(measure)
