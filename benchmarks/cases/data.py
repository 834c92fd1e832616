"""Reading, checking, rendering and tokenising many rows, against the tokenizer alone on rendered texts.

The rows are those of the tool calls again and again. A tenth of their longer words is replaced by made-up words, names
and numbers that are drawn with a long tail, as in real texts: the more rows, the more words that none before had.
Of the 1.8 million words of 40,000 rows 1.9 % are distinct, of those of 80,000 rows 1.6 %.
"""

import json
import os
import random
import re
import tempfile
from collections.abc import Iterator
from functools import cache
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
SIDES = ("ours", "tokenizer", "ours_twice", "wrapped")
ONCE = SIDES
AT_ONCE = 1000


REPLACED, EXPONENT = 0.1, 1.3
"""The share of words of four letters or more, and that of Zipf's law: rank r is drawn about r^-1.3 times as often as
the first."""
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstv" for vowel in "aeiou"]


def conversations(number: int) -> Iterator[list[dict[str, Any]]]:
    """The same for every side. Question and answer end with another number each time: no text comes twice."""
    known = [json.loads(line)["messages"] for line in ROWS.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(0)

    def replaced(found: re.Match[str]) -> str:
        if chance.random() >= REPLACED:
            return found[0]
        return made_up_word(min(int((1.0 - chance.random()) ** (-1.0 / (EXPONENT - 1.0))), 10**12))

    replace = re.compile("[A-Za-z]{4,}").sub
    for index in range(number):
        turns = known[index % len(known)]
        yield [{**turn, "content": f"{replace(replaced, turn['content'])}\nNumber {index}."} for turn in turns]


@cache
def made_up_word(rank: int) -> str:
    """Syllables, more of them the rarer it is; of eight one is a number, one an identifier, one a name."""
    syllables, left = "", rank
    while left:
        left, syllable = divmod(left, len(SYLLABLES))
        syllables += SYLLABLES[syllable]
    kinds = [str(rank), f"{syllables}_{SYLLABLES[rank % 69]}", syllables.capitalize()]
    return dict(enumerate(kinds)).get(rank % 8, syllables)


def measure(side: str) -> dict[str, list[float]]:
    """Rows a second; for ours the peak memory that no file backs."""
    from transformers import AutoTokenizer

    from tutelage.models import resolve_model

    number = 2 * NUMBER if side == "ours_twice" else NUMBER
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
    """By the way that `tutelage train` takes, up to where the model would be loaded, with as many processes as `NUMBER`
    rows have: each takes memory of its own, which is not that of a row."""
    from tutelage.config import TrainingConfig
    from tutelage.data import part_workers
    from tutelage.training.inputs import prepare_inputs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        with file.open("w", encoding="utf-8") as lines:
            for count, chat in enumerate(conversations(number), start=1):
                lines.write(json.dumps({"messages": chat}) + "\n")
                if count == NUMBER:
                    lines.flush()
                    processes = part_workers.MAX_PROCESSES = part_workers.num_processes(file)
        config = TrainingConfig(model="smollm2", training_file=file, output_dir=Path(folder, "run"))
        memory = AnonymousPeak()
        taken = seconds(lambda: prepare_inputs(config))
        peak = memory.mib()
        if memory.processes != processes:
            raise RuntimeError(f"{memory.processes} processes prepared {number} rows; {processes} do {NUMBER}")
        return {"rows/s": [number / taken], "peak_mib": [peak]}


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """The rates, and what each further row costs in memory, of all processes, from these rows to twice as many."""
    ours, tokenizer, twice, wrapped = (samples.get(side, {}) for side in SIDES)
    peaks, more = ours.get("peak_mib", ()), twice.get("peak_mib", ())
    growth = [MIB * (more[0] - peaks[0]) / NUMBER] if peaks and more else []
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
        Row("peak memory", "MiB", peaks, more, f"ours, {2 * NUMBER:,} rows"),
        Row(
            "memory of each further row",
            "bytes",
            growth,
            target=Target(BYTES_PER_ROW, "ours"),
        ),
    ]


if __name__ == "__main__":
    answer(measure)
