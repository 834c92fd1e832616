"""Starts the runs that the selected tests name, two at a time, and gives each test those it asks for.

`make test-axolotl` builds Axolotl's environment, whose Python is in TUTELAGE_AXOLOTL_PYTHON.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.real_axolotl.configs import ROWS, SPECS
from tests.real_axolotl.runs import ROOT, Axolotl, AxolotlRun
from tests.small_runs import run_small, write_rows
from tests.tiny import tiny_tokenizer
from tutelage.models import resolve_model


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "runs(*names): the runs of tests/real_axolotl/configs.py that a test looks at")


def named_runs(item: pytest.Item) -> list[str]:
    return [name for marker in item.iter_markers("runs") for name in marker.args]


@pytest.fixture(scope="session")
def axolotl_python() -> Path:
    return Path(os.environ["TUTELAGE_AXOLOTL_PYTHON"]).absolute()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This distribution, built."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("tutelage-*.whl"))


@pytest.fixture(scope="session")
def distributions(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built wheel, installed into a folder; and the plugin's folder, copied alone."""
    installed, alone = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(command, check=True)
    shutil.copytree(ROOT / "src/axolotl_dft_plugin", alone / "axolotl_dft_plugin")
    return {"installed": installed, "folder": alone}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    untied, large = folder / "untied", folder / "large"
    tokenizer = tiny_tokenizer()
    sizes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, hidden_size=32, **sizes)).save_pretrained(untied)
    config = LlamaConfig(vocab_size=150_000, hidden_size=64, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(large)
    for path in (untied, large):
        tokenizer.save_pretrained(path)
    first = run_small(folder, "first", loss="sft", max_steps=1)
    return {
        "tiny": Path(first.config.model),
        "adapter": first.model_path,
        "tiny with a head of its own": untied,
        "large vocabulary": large,
        "smollm2": Path(resolve_model("smollm2")),
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = write_rows(folder / "rows.jsonl", ROWS)
    pairs = folder / "pairs.jsonl"
    lines = [
        {
            "messages": [{"role": "user", "content": question}],
            "chosen": {"role": "assistant", "content": answer},
            "rejected": {"role": "assistant", "content": "No."},
        }
        for question, answer in ROWS
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{q} {a}"}) + "\n" for q, a in ROWS), encoding="utf-8")
    three = write_rows(folder / "three.jsonl", [*ROWS[:2], ROWS[3]])
    return {
        "rows": rows,
        "rows and evaluation": rows,
        "rows without the third": three,
        "three rows and evaluation": three,
        "pairs": pairs,
        "texts": texts,
    }


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest,
    axolotl_python: Path,
    distributions: dict[str, Path],
    models: dict[str, Path],
    data: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["Runs"]:
    """The runs that the selected tests name; asking for one waits for its end."""
    axolotl = Axolotl(axolotl_python, distributions, models, tmp_path_factory.mktemp("runs"))
    names = list(dict.fromkeys(name for item in request.session.items for name in named_runs(item)))
    with ThreadPoolExecutor(max_workers=2) as pool:
        futures = {name: pool.submit(axolotl.run, name, SPECS[name], data[SPECS[name].data]) for name in names}
        yield Runs(futures)
        pool.shutdown(cancel_futures=True)


class Runs(Mapping[str, AxolotlRun]):
    """By name."""

    def __init__(self, futures: dict[str, Future[AxolotlRun]]) -> None:
        self._futures = futures

    def __getitem__(self, name: str) -> AxolotlRun:
        return self._futures[name].result()

    def __iter__(self) -> Iterator[str]:
        return iter(self._futures)

    def __len__(self) -> int:
        return len(self._futures)
