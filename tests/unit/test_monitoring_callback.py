"""When the monitor measures, what it writes where, and what it does with failures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, TrainerControl, TrainerState, TrainingArguments

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError
from tutelage.events import EventLog, Tag
from tutelage.files import JsonLinesFile
from tutelage.monitoring import Monitor

TEMPLATE = ChatTemplate(tiny_tokenizer())
KL = {"kl_vs_base", "kl_base_vs_model", "kl_vs_base_own", "kl_base_vs_model_own"}


class Loop:
    """The calls a trainer makes, on a model whose only training is `step`."""

    def __init__(self, folder: Path, options: dict[str, Any], max_steps: int = 5, rank_zero: bool = True) -> None:
        for name, texts in {"prompts": ["hi", "what is it?"], "a": ["Good evening."], "b": ["hey", "yo"]}.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "four"}]
        (folder / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        self.model: LlamaForCausalLM = tiny_model(tiny_tokenizer())
        self.events = EventLog(folder / "events.jsonl")
        self.samples = JsonLinesFile(folder / "samples.jsonl")
        config = TrainingConfig(model="m", training_file=folder / "rows.jsonl", monitoring_max_new_tokens=2, **options)
        self.monitor = Monitor(config, TEMPLATE, self.events, self.samples)
        self.args: TrainingArguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
        self.control = TrainerControl()
        self.state = TrainerState(max_steps=max_steps, is_world_process_zero=rank_zero)

    def call(self, event: str, **kwargs: Any) -> None:
        getattr(self.monitor, event)(self.args, self.state, self.control, model=self.model, **kwargs)

    def step(self, loss: float | None = None) -> None:
        """One optimizer step; with a loss, one that the trainer logs."""
        self.call("on_step_begin")
        with torch.no_grad():
            self.model.model.norm.weight += 0.1
        self.state.global_step += 1
        self.control.should_log = loss is not None
        self.call("on_step_end")
        if loss is not None:
            self.call("on_log", logs={"loss": loss, "grad_norm": 2 * loss, "learning_rate": 1.0})

    def run(self) -> None:
        self.monitor.setup(self.model)
        self.call("on_train_begin")
        for _ in range(self.state.max_steps):
            self.step()
        self.call("on_train_end")


def test_step_0_every_n_steps_and_the_last_step_are_measured(tmp_path: Path):
    loop = Loop(
        tmp_path,
        {
            "monitoring_eval_steps": 2,
            "monitoring_prompts": tmp_path / "prompts.jsonl",
            "monitoring_directions": {
                "formal": {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"},
                "casual": {"a": tmp_path / "b.jsonl", "b": tmp_path / "a.jsonl"},
            },
            "logp_callback_datasets": {"task": tmp_path / "rows.jsonl"},
            "eval_every_n_steps": 3,
            "sampling_callbacks": [{"file": tmp_path / "prompts.jsonl", "every_n_steps": 4, "max_new_tokens": 2}],
        },
    )
    loop.run()
    monitoring = loop.events.read(Tag.MONITORING)
    assert [event.step for event in monitoring] == [0, 2, 4, 5]
    names = KL | {"weight_diff_norm", "delta_w_norm", "cos_sim/formal", "cos_sim/casual"}
    assert all(set(event.values) == names for event in monitoring)
    cosines = [(event.values["cos_sim/formal"], event.values["cos_sim/casual"]) for event in monitoring]
    assert all(formal == pytest.approx(-casual) != 0.0 for formal, casual in cosines)
    # 32 norm weights, each 0.1 further a step: 0.1 · step · √32
    drifts = [event.values["weight_diff_norm"] for event in monitoring]
    assert drifts == pytest.approx([0.0, 1.131371, 2.262742, 2.828427], rel=1e-5)
    assert monitoring[0].values["kl_vs_base"] == 0.0
    assert 0.0 < monitoring[1].values["kl_vs_base"] < monitoring[3].values["kl_vs_base"]

    assert [event.step for event in loop.events.read(Tag.LOGPROB)] == [0, 3, 5]
    assert all(set(event.values) == {"logp/task", "logp_per_answer/task"} for event in loop.events.read(Tag.LOGPROB))
    assert [row["step"] for row in loop.samples.rows()] == [0, 0, 4, 4, 5, 5]
    assert loop.events.read(Tag.WARNING) == []


def test_loss_and_gradient_norm_of_the_step_are_in_its_event_where_they_are_logged(tmp_path: Path):
    loop = Loop(tmp_path, {"monitoring_eval_steps": 1, "monitoring_prompts": tmp_path / "prompts.jsonl"})
    loop.monitor.setup(loop.model)
    loop.call("on_train_begin")
    loop.step(loss=7.0)
    loop.step()
    loop.step(loss=5.0)
    values = [event.values for event in loop.events.read(Tag.MONITORING)]
    assert [value.get("loss") for value in values] == [None, 7.0, None, 5.0]
    assert [value.get("grad_norm") for value in values] == [None, 14.0, None, 10.0]
    assert not any("learning_rate" in value for value in values)


def test_an_event_is_not_lost_where_the_announced_log_does_not_come(tmp_path: Path):
    loop = Loop(tmp_path, {"monitoring_eval_steps": 1, "monitoring_prompts": tmp_path / "prompts.jsonl"})
    loop.monitor.setup(loop.model)
    loop.state.global_step = 1
    loop.control.should_log = True
    loop.call("on_step_end")
    assert loop.events.read(Tag.MONITORING) == []
    loop.call("on_train_end")
    assert [event.step for event in loop.events.read(Tag.MONITORING)] == [1]


def test_a_failing_measurement_warns_once_and_the_others_go_on(tmp_path: Path):
    (tmp_path / "samples.jsonl").mkdir()  # cannot be appended to
    loop = Loop(
        tmp_path,
        {
            "monitoring_eval_steps": 1,
            "monitoring_prompts": tmp_path / "prompts.jsonl",
            "sampling_callbacks": [{"file": tmp_path / "prompts.jsonl", "every_n_steps": 1, "max_new_tokens": 1}],
        },
        max_steps=2,
    )
    loop.run()
    [warning] = loop.events.read(Tag.WARNING)
    assert warning.step == 0
    assert warning.values["source"] == "sampling_callbacks[0]"
    assert "samples.jsonl: cannot append" in warning.values["message"]
    assert [event.step for event in loop.events.read(Tag.MONITORING)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"monitoring_eval_steps": 1, "monitoring_prompts": "gone.jsonl"}, DataError, "gone.jsonl: no such file"),
        ({"logp_callback_datasets": {"x": "empty.jsonl"}}, DataError, "empty.jsonl: the file has no rows"),
        ({"sampling_callbacks": [{"file": "empty.jsonl"}]}, DataError, "empty.jsonl: the file has no prompts"),
        (
            {"monitoring_eval_steps": 1, "monitoring_directions": {"d": {"a": "a.jsonl", "b": "b.jsonl", "layer": 9}}},
            ConfigError,
            r"monitoring_directions\.d\.layer: 9",
        ),
    ],
)
def test_a_failing_setup_stops_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    loop = Loop(tmp_path, options)
    with pytest.raises(error, match=message):
        loop.monitor.setup(loop.model)


def test_every_token_of_the_data_sets_on_request(tmp_path: Path):
    options = {"logp_callback_datasets": {"task": tmp_path / "rows.jsonl"}, "logp_per_token": True}
    loop = Loop(tmp_path, options, max_steps=1)
    loop.run()
    rows = list(loop.samples.rows())
    assert [row["step"] for row in rows] == [0, 1]
    assert "".join(rows[0]["tokens"]) == "four<|im_end|>"
    first = loop.events.read(Tag.LOGPROB)[0].values
    assert sum(rows[0]["log_probs"]) == pytest.approx(first["logp_per_answer/task"], abs=1e-4)


def test_other_ranks_set_up_but_write_nothing(tmp_path: Path):
    loop = Loop(tmp_path, {"monitoring_eval_steps": 1}, rank_zero=False)
    loop.run()
    assert not (tmp_path / "events.jsonl").exists()


def test_a_continued_run_is_measured_against_the_weights_before_training(tmp_path: Path):
    """`setup` sees θ_0, then the checkpoint of step 3 is loaded; the step that was measured is not measured again."""
    loop = Loop(tmp_path, {"monitoring_eval_steps": 1, "monitoring_prompts": tmp_path / "prompts.jsonl"}, max_steps=4)
    loop.monitor.setup(loop.model)
    with torch.no_grad():
        loop.model.model.norm.weight += 0.3
    loop.state.global_step = 3
    loop.call("on_train_begin")
    loop.step()
    [event] = loop.events.read(Tag.MONITORING)
    assert event.step == 4
    assert event.values["weight_diff_norm"] == pytest.approx(0.4 * 32**0.5, rel=1e-5)
