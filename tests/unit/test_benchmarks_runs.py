"""Runs of the bench with made-up workers: rounds, failures, what is written and kept. Then the workers themselves."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as runner
from benchmarks import sizes, workers
from benchmarks.workers import SideFailedError

RATES = {"gemm_gflops": 300.0, "bandwidth_gb": 30.0}
STARTUP = {
    "tutelage --help": [0.2],
    "import tutelage": [0.02],
    "python alone": [0.01],
    "heavy packages of tutelage --help": [0.0],
    "heavy packages of import tutelage": [1.0],
}


def make_up(monkeypatch: pytest.MonkeyPatch, side: Callable[[str], dict[str, list[float]]]) -> list[str]:
    """Workers that start no process: the machine's rates, and for each side what `side` says. The sides asked."""
    asked: list[str] = []

    def made_up(module: str, *arguments: str, timeout: float | None = None) -> Any:
        if module == "benchmarks.measure":
            return RATES
        asked.append(arguments[1])
        return side(arguments[1])

    monkeypatch.setattr(workers, "worker", made_up)
    monkeypatch.setattr(runner, "worker", made_up)
    return asked


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_writes_rows_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 s against 0.01 s of Python alone. The case is measured once, whatever the rounds."""
    make_up(monkeypatch, lambda side: STARTUP)
    assert runner.bench(["startup"], 2, tmp_path) == 0
    rows = read(tmp_path / "latest.json")["rows"]
    assert [(one["name"], one["ours"], one["met"]) for one in rows] == [
        ("tutelage --help", 0.2, True),
        ("tutelage --help: torch, transformers, numpy loaded", 0.0, True),
        ("import tutelage", 0.02, True),
        ("import tutelage: torch, transformers, numpy loaded", 1.0, False),
    ]
    assert rows[0]["ratio"] == pytest.approx(20)
    case = read(tmp_path / "samples.json")["cases"]["startup"]
    assert (case["samples"]["ours"]["tutelage --help"], case["failures"]) == ([0.2], {})
    assert {one["date"] for one in rows} == {case["date"]}


def test_a_run_goes_on_after_a_side_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL fails in the first of two rounds: it is left alone in the second, ours is not, and the exit code is 1."""

    def side(name: str) -> dict[str, list[float]]:
        if name == "trl":
            raise SideFailedError("RuntimeError: no")
        return {"step": [2.0], "peak_mib": [10.0 * len(asked)]}

    asked = make_up(monkeypatch, side)
    assert runner.bench(["sdft"], 2, tmp_path) == 1
    assert asked == ["ours", "trl", "trl_topk", "products", "ours"]
    assert read(tmp_path / "samples.json")["cases"]["sdft"]["failures"] == {"trl": "RuntimeError: no"}
    rows = read(tmp_path / "latest.json")["rows"]
    assert [(one["name"], one["ours"], one["ratio"], one["met"]) for one in rows] == [
        ("step", 2.0, None, False),
        ("sampled and trained", 256.0, None, None),  # 8 · 64 tokens in 2 s
        ("peak memory above the model", 30.0, None, None),  # of 10 and 50
        ("step", 2.0, 1.0, None),
        ("step", 2.0, 1.0, None),
    ]


def test_a_later_round_is_left_out_where_it_would_not_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side takes 4 minutes, the budget is 25: four sides in round one, ours and TRL's again until minute 24; a
    third round would end at 32."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def side(name: str) -> dict[str, list[float]]:
        clock.now += 4 * 60
        return {"step": [2.0]}

    monkeypatch.setattr(workers, "time", clock)
    monkeypatch.setattr(runner, "BUDGET", 25.0)
    asked = make_up(monkeypatch, side)
    assert runner.bench(["sdft"], 3, tmp_path) == 0
    assert asked == ["ours", "trl", "trl_topk", "products", "ours", "trl"]
    assert read(tmp_path / "latest.json")["machine"]["minutes"] == pytest.approx(24)


def test_ctrl_c_keeps_the_cases_that_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second side of the second case: the first case is written, of the second nothing is."""

    def side(name: str) -> dict[str, list[float]]:
        if name == "trl":
            raise KeyboardInterrupt
        return STARTUP

    make_up(monkeypatch, side)
    assert runner.bench(["startup", "sdft"], 1, tmp_path) == 130
    assert list(read(tmp_path / "samples.json")["cases"]) == ["startup"]
    assert [one["case"] for one in read(tmp_path / "latest.json")["rows"]] == ["startup"] * 4


def test_a_crash_loses_no_case_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def side(name: str) -> dict[str, list[float]]:
        if name == "trl":
            raise MemoryError
        return STARTUP

    make_up(monkeypatch, side)
    with pytest.raises(MemoryError):
        runner.bench(["startup", "sdft"], 1, tmp_path)
    assert read(tmp_path / "samples.json")["cases"]["startup"]["samples"]["ours"]["python alone"] == [0.01]
    assert [one["case"] for one in read(tmp_path / "latest.json")["rows"]] == ["startup"] * 4


def test_an_update_replaces_its_cases_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of startup and sdft the first is measured again: 0.3 s. sdft keeps its place behind, its rows and samples."""
    values = {
        "ours": STARTUP | {"step": [2.0]},
        "trl": {"step": [4.0]},
        "trl_topk": {"step": [8.0]},
        "products": {"step": [1.0]},
    }
    make_up(monkeypatch, lambda side: values[side])
    assert runner.bench(["startup", "sdft"], 1, tmp_path) == 0
    before = read(tmp_path / "latest.json")["rows"]
    values["ours"] |= {"tutelage --help": [0.3], "step": [9.0]}
    assert runner.bench(["startup"], 1, tmp_path, update=True) == 0
    after = read(tmp_path / "latest.json")["rows"]
    assert [one["name"] for one in after] == [one["name"] for one in before]
    assert after[0]["ours"] == 0.3
    assert [one for one in after if one["case"] == "sdft"] == [one for one in before if one["case"] == "sdft"]
    assert read(tmp_path / "samples.json")["cases"]["sdft"]["samples"]["ours"]["step"] == [2.0]


def test_the_rates_have_to_be_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(module: str, *arguments: str) -> Any:
        raise SideFailedError("exit code 1, having said nothing")

    monkeypatch.setattr(runner, "worker", fails)
    monkeypatch.setattr(runner.signal, "signal", lambda *arguments: None)
    assert runner.main(["--only", "startup"]) == 1
    expected = "the machine's rates cannot be measured: exit code 1, having said nothing\n"
    assert capsys.readouterr().err == expected


def test_no_docs_without_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "RESULTS", runner.ROOT / "no such folder")
    assert runner.main(["--write-docs"]) == 1
    expected = "no such folder/latest.json is not there; 'make bench' measures and writes it\n"
    assert capsys.readouterr().err == expected


def test_a_case_that_is_unknown_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--only", "startup,sdtf"]) == 1
    assert capsys.readouterr().err.startswith("--only: no case 'sdtf'; there are startup, sdft, ")


def test_sizes_measure_a_point_of_two_axes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tokens for 8 prompts are on both axes: 12 points on each side, 11 of them measured. TRL fails at 262,144."""
    drawn: list[Any] = []

    def made_up(module: str, *arguments: str, timeout: float | None = None) -> Any:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        asked.append(given)
        if given["--side"] == "trl" and given["--vocabulary"] == "262144":
            raise SideFailedError("out of memory")
        return {"step": [float(given["--prompts"])], "peak_mib": [5.0]}

    asked: list[dict[str, str]] = []
    monkeypatch.setattr(workers, "worker", made_up)
    monkeypatch.setattr("benchmarks.figures.draw_sizes", drawn.extend)
    assert sizes.measure_all(tmp_path) == 1
    assert len(asked) == 22
    points = read(tmp_path / "sizes.json")["points"]
    assert drawn == points
    assert len(points) == 23
    found = {(one["axis"], one["size"]): one["seconds"] for one in points if one["side"] == "ours"}
    assert (found["new_tokens", 64], found["prompts", 8], found["prompts", 16]) == ([8.0], [8.0], [16.0])


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of a text, which `python -m` finds; its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    def make(text: str) -> str:
        (tmp_path / "made_up_worker.py").write_text(text, encoding="utf-8")
        return "made_up_worker"

    return make


def test_a_worker_says_its_samples_in_the_last_object_that_it_prints(module: Callable[[str], str]) -> None:
    text = "import sys; print('{\"s\": [1]}'); print('{\"s\": [2.5, 3]}'); print('[bye]'); print(7)"
    assert workers.samples_of(module(text), "--side", "ours") == {"s": [2.5, 3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise KeyError('nobody')", "exit code 1; last it said:.*KeyError: 'nobody'$"),
        ("import os; os._exit(3)", "^exit code 3, having said nothing$"),
        ("import os; os.kill(os.getpid(), 9)", "^ended by signal 9, having said nothing$"),
        ("print('a'); print('done'); print()", "^printed no JSON object; last it said:\n  a\n  done$"),
        ("pass", "^printed no JSON object, having said nothing$"),
        ("print('{}')", "^measured nothing$"),
        ("print('{\"s\": []}')", r"^'s' is \[\], which is no list of finite numbers$"),
        ("print('{\"s\": [NaN]}')", r"^'s' is \[nan\], which is no list of finite numbers$"),
        ("print('{\"s\": 3}')", "^'s' is 3, which is no list of finite numbers$"),
    ],
)
def test_a_worker_without_samples_fails_with_its_last_words(
    module: Callable[[str], str], text: str, message: str
) -> None:
    with pytest.raises(SideFailedError, match=f"(?s){message}"):
        workers.samples_of(module(text))


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
sleeper = "import time; print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
"""Neither it nor its child ends when it is interrupted."""


def pid_said(error: SideFailedError) -> int:
    return int(str(error).splitlines()[-1])


def is_running(pid: int) -> bool:
    """A process that has ended but that nobody has waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    until = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < until:
        os.sched_yield()
    return not is_running(pid)


def test_a_worker_that_does_not_end_is_killed_with_its_children(
    module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.1)
    with pytest.raises(SideFailedError, match=r"^no end after 5 s; last it said:\n") as raised:
        workers.worker(module(STUBBORN), timeout=5)
    assert ends(pid_said(raised.value))


@pytest.fixture
def interruptible() -> Generator[None, None, None]:
    """Tests may run where ctrl-C is ignored, as in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_lets_a_worker_tidy_up(module: Callable[[str], str], tmp_path: Path) -> None:
    """The worker is in a session of its own, which ctrl-C does not reach: it is passed on, and `finally` runs."""
    begun, tidied = tmp_path / "begun", tmp_path / "tidied"
    text = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    pathlib.Path({str(begun)!r}).touch()
    time.sleep(600)
finally:
    pathlib.Path({str(tidied)!r}).touch()
"""

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < until:
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        workers.worker(module(text))
    thread.join()
    assert tidied.exists()
