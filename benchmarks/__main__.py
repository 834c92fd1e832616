"""This project beside its peers, on this machine: `python -m benchmarks`, or `make bench`.

    python -m benchmarks --only sdft,rollouts --rounds 1     # some cases; nothing is written
    python -m benchmarks --only sdft --update                # one case again; the others stay as they were measured
    python -m benchmarks --full                              # a million rows of data
    python -m benchmarks --sizes                             # time and memory over size: 20 minutes, plots
    python -m benchmarks --write-docs                        # the table of latest.json into docs/performance.md

Every side of a case is measured in a process of its own, one after another: ours, peer. Then comes the next round, in
which what targets of time compare is measured again.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.limits import Rates
from benchmarks.table import Row, Samples, show, with_table
from benchmarks.workers import ROOT, Progress, SideFailedError, samples_of, worker, write

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ROUNDS = 3
"""At most: those after the first are measured as long as there is time."""
BUDGET = 18.0
"""Minutes in which everything is to be measured; the table is promised in 20."""
FULL_TIMEOUT = 3600.0
"""Seconds for a side with `--full`."""
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

Case = dict[str, Any]
"""What samples.json has of a case: date, minutes in all and of each side once, samples and failures by side."""


def empty_case() -> Case:
    """Nothing measured yet."""
    return {
        "date": datetime.date.today().isoformat(),
        "minutes": 0.0,
        "side_minutes": {},
        "samples": {},
        "failures": {},
    }


def measure_round(name: str, number: int, case: Case, progress: Progress) -> None:
    """Add the samples of one round. A side that has failed is left alone; from the second round on, so is a whole case
    that would not end in `BUDGET` minutes if it takes as long as in its first."""
    module, began = importlib.import_module(CASES[name]), progress.minutes
    sides = [side for side in module.SIDES if side not in case["failures"] and not (number and side in module.ONCE)]
    if number and began + sum(case["side_minutes"].get(side, 0.0) for side in sides) > BUDGET:
        return
    timeout = FULL_TIMEOUT if "BENCH_ROWS" in os.environ else None
    for side in sides:
        progress.say(f"{name}, round {number + 1}: {side}")
        side_began = progress.minutes
        try:
            found = samples_of(CASES[name], "--side", side, timeout=timeout)
        except SideFailedError as error:
            case["failures"][side] = str(error)
            case["samples"].pop(side, None)
            progress.say(f"{name}: {side} failed: {error}")
            continue
        case["side_minutes"].setdefault(side, progress.minutes - side_began)
        for measure, values in found.items():
            case["samples"].setdefault(side, {}).setdefault(measure, []).extend(values)
    case["minutes"] += progress.minutes - began


def machine(start: Mapping[str, float], end: Mapping[str, float], minutes: float) -> dict[str, Any]:
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


def best(start: Mapping[str, float], end: Mapping[str, float]) -> Rates:
    """The better of both measurements: a limit is what the machine can do at its best."""
    return Rates(
        flops=1e9 * max(start["gemm_gflops"], end["gemm_gflops"]),
        bytes=1e9 * max(start["bandwidth_gb"], end["bandwidth_gb"]),
    )


def rows_of(name: str, samples: Samples, rates: Rates) -> list[dict[str, Any]]:
    """The rows of a case as JSON."""
    case = importlib.import_module(CASES[name])
    found: Sequence[Row] = case.rows(samples, rates)
    return [{"case": name, "title": case.TITLE, **row.as_json()} for row in found]


class Results:
    """samples.json and latest.json in a folder, or in memory alone: whole cases, replaced when they are measured."""

    def __init__(self, folder: Path | None, *, keep: bool) -> None:
        self._folder = folder
        self.cases: dict[str, Case] = {}
        self.rows: list[dict[str, Any]] = []
        if keep and folder and (folder / "samples.json").exists() and (folder / "latest.json").exists():
            samples, latest = (
                json.loads((folder / name).read_text(encoding="utf-8")) for name in ("samples.json", "latest.json")
            )
            self.cases = {name: case for name, case in samples["cases"].items() if name in CASES}
            self.rows = [row for row in latest["rows"] if row["case"] in self.cases]

    def replace(
        self, cases: Mapping[str, Case], start: Mapping[str, float], end: Mapping[str, float], minutes: float
    ) -> None:
        """Put these cases, which took so long together, in place of what was known of them, and write everything."""
        self.cases |= cases
        for name, case in cases.items():
            found = rows_of(name, case["samples"], best(start, end))
            self.rows = [row for row in self.rows if row["case"] != name]
            self.rows += [row | {"date": case["date"]} for row in found]
        self.rows.sort(key=lambda row: list(CASES).index(row["case"]))
        minutes += sum(case["minutes"] for name, case in self.cases.items() if name not in cases)
        self.content = {"machine": machine(start, end, minutes), "rows": self.rows}
        if self._folder:
            write(self._folder / "samples.json", {"cases": self.cases})
            write(self._folder / "latest.json", self.content)


def bench(names: Sequence[str], rounds: int, output: Path | None, *, update: bool = False) -> int:
    """Measure, print, write after each case; the exit code. update: cases that are not measured now stay."""
    progress, interrupted = Progress(), False
    results = Results(output, keep=update)
    progress.say("the machine's rates")
    start = end = worker("benchmarks.measure")
    done: dict[str, Case] = {}
    try:
        for number in range(rounds):
            for name in names:
                case = done.get(name) or empty_case()
                measure_round(name, number, case, progress)
                done[name] = case
                results.replace(done, start, end, progress.minutes)
        progress.say("the machine's rates again")
        end = worker("benchmarks.measure")
    except KeyboardInterrupt:
        interrupted = True
    except SideFailedError as error:
        progress.say(f"the machine's rates at the end are unknown, those of the start stand for them: {error}")
    if done:
        results.replace(done, start, end, progress.minutes)
        report(results.content, done)
    progress.say("interrupted" if interrupted else "done")
    if interrupted:
        return 130
    return 1 if any(case["failures"] for case in done.values()) else 0


def report(content: Mapping[str, Any], cases: Mapping[str, Case]) -> None:
    """The tables of these cases, the machine, the failures."""
    console = Console(width=190)
    for name, case in cases.items():
        title = importlib.import_module(CASES[name]).TITLE
        console.print(f"\n[bold]{title}[/bold]; {case['minutes']:.1f} minutes", highlight=False)
        show([row for row in content["rows"] if row["case"] == name], console)
    console.print(f"\n{json.dumps(content['machine'], indent=1)}", highlight=False)
    for name, case in cases.items():
        for side, text in case["failures"].items():
            console.print(f"failed: {name}: {side}: {text}", style="red", markup=False, highlight=False)


def write_docs() -> int:
    """The table of latest.json into the page; the exit code."""
    latest = RESULTS / "latest.json"
    if not latest.exists():
        print(f"{latest.relative_to(ROOT)} is not there; 'make bench' measures and writes it", file=sys.stderr)
        return 1
    content = json.loads(latest.read_text(encoding="utf-8"))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")
    return 0


def until_interrupted(work: Callable[[], int]) -> int:
    """The exit code of this work, or that of ctrl-C, or 1 where the machine's rates cannot be measured."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except SideFailedError as error:
        print(f"the machine's rates cannot be measured: {error}", file=sys.stderr)
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"cases, with commas between: {', '.join(CASES)}")
    parser.add_argument("--update", action="store_true", help="keep the other cases that were measured, and write all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--full", action="store_true", help="a million rows in the case 'data'")
    parser.add_argument(
        "--output", type=Path, help="folder for latest.json and samples.json; unset, benchmarks/results"
    )
    parser.add_argument("--sizes", action="store_true", help="time and memory over size, and the plots of it")
    parser.add_argument(
        "--write-docs", action="store_true", help="the table into docs/performance.md; measures nothing"
    )
    options = parser.parse_args(arguments)
    if options.write_docs:
        return write_docs()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: no worker is left behind
    if options.sizes:
        from benchmarks.sizes import measure_all

        return until_interrupted(lambda: measure_all(options.output or RESULTS))
    names = [name.strip() for name in options.only.split(",")] if options.only is not None else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        print(f"--only: no case '{unknown[0]}'; there are {', '.join(CASES)}", file=sys.stderr)
        return 1
    if options.full:
        os.environ["BENCH_ROWS"] = "1000000"
    output = options.output or (RESULTS if options.update or options.only is None else None)
    return until_interrupted(lambda: bench(names, options.rounds, output, update=options.update))


if __name__ == "__main__":
    sys.exit(main())
