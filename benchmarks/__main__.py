"""This project beside its peers, on this machine: `python -m benchmarks`, or `make bench`.

    python -m benchmarks --only sdft,rollouts --rounds 1     # some cases; nothing is written
    python -m benchmarks --full                              # a million rows of data
    python -m benchmarks --sizes                             # time and memory over size: half an hour, plots
    python -m benchmarks --write-docs                        # the table of latest.json into docs/performance.md

Every side of a case is measured in a process of its own, one after another, in rounds: ours, peer, ours, peer.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.limits import Rates
from benchmarks.table import Row, show, with_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ROUNDS = 2
TIMEOUT = 600
"""Seconds after which a side has failed."""
CASES = {
    "startup": "benchmarks.cases.startup",
    "sdft": "benchmarks.cases.sdft",
    "sdft_vocabulary": "benchmarks.cases.sdft_vocabulary",
    "rollouts": "benchmarks.cases.rollouts",
    "sft": "benchmarks.cases.sft",
    "divergence": "benchmarks.cases.divergence",
    "token_losses": "benchmarks.cases.token_losses",
    "grpo": "benchmarks.cases.grpo",
    "data": "benchmarks.cases.data",
    "jobs": "benchmarks.jobs",
}

CaseSamples = dict[str, dict[str, list[float]]]


class SideFailedError(RuntimeError):
    """A worker ended without samples; the text is the last line of what it said."""


def worker(module: str, *arguments: str) -> Any:
    """What a module prints as its last line, as JSON. Raises SideFailedError."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder, "stderr")
        try:
            with errors.open("wb") as stderr:
                result = subprocess.run(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=ROOT,
                    env=environment,
                    timeout=TIMEOUT,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise SideFailedError(f"no end after {TIMEOUT} s") from error
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if result.returncode:
        raise SideFailedError(said[-1] if said else f"exit code {result.returncode}")
    return json.loads(result.stdout.decode().splitlines()[-1])


def measured(name: str, rounds: int, progress: "Progress") -> tuple[CaseSamples, dict[str, str]]:
    """The samples of all sides of a case, in rounds, and the failures by side. A side that has failed is left alone."""
    case = importlib.import_module(CASES[name])
    samples: CaseSamples = {}
    failures: dict[str, str] = {}
    for number in range(rounds):
        for side in case.SIDES:
            if side in failures or (number and side in case.ONCE):
                continue
            progress.say(f"{name}, round {number + 1}: {side}")
            try:
                found = worker(CASES[name], "--side", side)
            except SideFailedError as error:
                failures[side] = str(error)
                samples.pop(side, None)
                progress.say(f"{name}: {side} failed: {error}")
                continue
            for measure, values in found.items():
                samples.setdefault(side, {}).setdefault(measure, []).extend(values)
    return samples, failures


class Progress:
    """Lines with the time since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self._began) / 60

    def say(self, what: str) -> None:
        """One line, at once."""
        print(f"{int(self.minutes):3d}:{int(60 * self.minutes) % 60:02d}  {what}", flush=True)


def machine(start: dict[str, float], end: dict[str, float], minutes: float) -> dict[str, Any]:
    """What this is measured on, and what it can do."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")]
    return {
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "processor": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[0].split()[1]) / 2**20, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "gemm_gflops": {"start": start["gemm_gflops"], "end": end["gemm_gflops"]},
        "bandwidth_gb": {"start": start["bandwidth_gb"], "end": end["bandwidth_gb"]},
        "minutes": minutes,
    }


def rates(start: dict[str, float], end: dict[str, float]) -> Rates:
    """The better of both measurements: a limit is what the machine can do at its best."""
    return Rates(
        flops=1e9 * max(start["gemm_gflops"], end["gemm_gflops"]),
        bytes=1e9 * max(start["bandwidth_gb"], end["bandwidth_gb"]),
    )


def rows_of(name: str, samples: CaseSamples, at: Rates) -> list[dict[str, Any]]:
    """The rows of a case as JSON."""
    case = importlib.import_module(CASES[name])
    found: Sequence[Row] = case.rows(samples, at)
    return [{"case": name, "title": case.TITLE, **row.as_json()} for row in found]


def bench(names: Sequence[str], rounds: int, output: Path | None) -> int:
    """Measure, print, write; the exit code."""
    progress = Progress()
    progress.say("the machine's rates")
    start = worker("benchmarks.measure")
    samples: dict[str, CaseSamples] = {}
    failures: dict[str, str] = {}
    for name in names:
        samples[name], failed = measured(name, rounds, progress)
        failures |= {f"{name}: {side}": text for side, text in failed.items()}
    progress.say("the machine's rates again")
    end = worker("benchmarks.measure")
    content = {
        "machine": machine(start, end, progress.minutes),
        "rows": [row for name in names for row in rows_of(name, samples[name], rates(start, end))],
    }
    console = Console(width=190)
    for name in names:
        console.print(f"\n[bold]{importlib.import_module(CASES[name]).TITLE}[/bold]")
        show([row for row in content["rows"] if row["case"] == name], console)
    console.print(f"\n{json.dumps(content['machine'], indent=1)}", highlight=False)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "latest.json", content)
        write(output / "samples.json", samples | {"failures": failures})
    for where, text in failures.items():
        console.print(f"failed: {where}: {text}", style="red", markup=False, highlight=False)
    return 1 if failures else 0


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"cases, with commas between: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--full", action="store_true", help="a million rows in the case 'data'")
    parser.add_argument(
        "--output", type=Path, help="folder for latest.json and samples.json; unset, benchmarks/results"
    )
    parser.add_argument("--sizes", action="store_true", help="time and memory over size, and the plots of it")
    parser.add_argument(
        "--write-docs", action="store_true", help="the table into docs/performance.md; measures nothing"
    )
    options = parser.parse_args()
    if options.write_docs:
        content = json.loads((RESULTS / "latest.json").read_text(encoding="utf-8"))
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")
        return 0
    if options.sizes:
        from benchmarks.sizes import measure_all

        return measure_all(options.output or RESULTS)
    names = options.only.split(",") if options.only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"--only: no case '{unknown[0]}'; there are {', '.join(CASES)}")
    if options.full:
        os.environ["BENCH_ROWS"] = "1000000"
    return bench(names, options.rounds, options.output or (None if options.only else RESULTS))


if __name__ == "__main__":
    sys.exit(main())
