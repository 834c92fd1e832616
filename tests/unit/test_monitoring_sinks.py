"""Sinks that are missing, do not start, fail in the middle, or draw random numbers."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tutelage.errors import ConfigError
from tutelage.events import EventLog, Tag
from tutelage.monitoring import Sinks

Trainer = tuple[TrainingArguments, TrainerState, TrainerControl]


class Receiver(TrainerCallback):
    received: list[dict[str, float]]

    def __init__(self) -> None:
        type(self).received = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        random.random()
        type(self).received.append(logs)


class CutConnection(TrainerCallback):
    def on_log(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")


class NoLogin(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise PermissionError("not logged in")


class NotInstalled(TrainerCallback):
    def __init__(self) -> None:
        raise RuntimeError("StubCallback requires stub to be installed.")


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    arguments: TrainingArguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    return arguments, TrainerState(global_step=3, is_world_process_zero=True), TrainerControl()


def use(monkeypatch: pytest.MonkeyPatch, **sinks: type[TrainerCallback]) -> None:
    for name, callback in sinks.items():
        monkeypatch.setitem(INTEGRATION_TO_CALLBACK, name, callback)


def test_a_missing_package_stops_the_run_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, stub=NotInstalled)
    with pytest.raises(ConfigError, match=r"report_to: stub .*; pip install stub, or take it out of report_to"):
        Sinks(["stub"], EventLog(tmp_path / "events.jsonl"))


def test_a_sink_that_does_not_start_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: Trainer):
    use(monkeypatch, stub=NoLogin)
    sinks = Sinks(["stub"], EventLog(tmp_path / "events.jsonl"))
    with pytest.raises(ConfigError, match=r"report_to: stub did not start \(not logged in\)"):
        sinks.on_train_begin(*trainer)


def test_a_failing_sink_warns_once_and_the_others_receive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
):
    use(monkeypatch, cut=CutConnection, stub=Receiver)
    events = EventLog(tmp_path / "events.jsonl")
    sinks = Sinks(["cut", "stub"], events)
    sinks.on_train_begin(*trainer)
    sinks.on_log(*trainer, logs={"loss": 1.0})
    sinks.send({"monitoring/kl_vs_base": 0.5}, *trainer)
    assert Receiver.received == [{"loss": 1.0}, {"monitoring/kl_vs_base": 0.5}]
    [warning] = events.read(Tag.WARNING)
    assert (warning.step, warning.values["source"]) == (3, "cut")
    assert "ConnectionError: no route to host" in warning.values["message"]


def test_a_sink_is_left_alone_after_three_failures_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
):
    """Fails at 1, 2, not at 3, then at 4, 5, 6: it is tried six times of eight, and warned about once."""
    tries: list[int] = []

    class Unsteady(TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            tries.append(len(tries) + 1)
            if len(tries) != 3:
                raise TimeoutError("no answer\nand a page of advice")

    use(monkeypatch, stub=Unsteady)
    events = EventLog(tmp_path / "events.jsonl")
    sinks = Sinks(["stub"], events)
    sinks.on_train_begin(*trainer)
    for _ in range(8):
        sinks.on_log(*trainer, logs={})
    assert tries == [1, 2, 3, 4, 5, 6]
    [warning] = events.read(Tag.WARNING)
    assert warning.values["message"] == (
        "sink stub failed in on_log (TimeoutError: no answer); training goes on, "
        "and after 3 failures in a row without it"
    )


def test_a_sink_that_draws_random_numbers_leaves_the_run_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
):
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    use(monkeypatch, stub=Receiver)
    sinks = Sinks(["stub"], EventLog(tmp_path / "events.jsonl"))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    sinks.on_train_begin(*trainer)
    sinks.on_log(*trainer, logs={})
    assert draw() == expected
