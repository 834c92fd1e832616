"""`experiment.yaml`: what becomes of it, and what is wrong with it in one sentence, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from tests.small_experiments import TASK, written
from tutelage.errors import TutelageError
from tutelage.experiments import Experiment, load_experiment
from tutelage.experiments.identity import chain_identities


def loaded(folder: Path, **changes: Any) -> Experiment:
    return load_experiment(written(folder, **changes))


def test_base_run_seed_and_monitor_become_a_config(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, monitor={"every": 3, "own_answers": False})
    assert {name: list(seeds) for name, seeds in experiment.runs.items()} == {"sft": [4, 5], "dft": [4, 5]}
    (config,) = experiment.runs["dft"][5]
    assert (config.loss, config.seed, config.learning_rate, config.max_steps) == ("dft", 5, 1e-3, 1)
    assert (config.monitoring_eval_steps, config.monitoring_own_answers) == (3, False)
    assert config.training_file == tmp_path / "rows.jsonl"
    assert experiment.seeds == (4, 5)
    assert [evaluation.name for evaluation in experiment.evaluations] == ["test"]
    assert len(experiment.drift_prompts) == 16


def test_a_run_may_switch_off_what_is_monitored_and_one_may_have_a_rhythm_of_its_own(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n', encoding="utf-8")
    monitor = {"every": 5, "prompts": "prompts.jsonl"}
    runs = {"on": {"loss": "dft"}, "off": {"loss": "sft", "monitoring_eval_steps": None}}
    chains = loaded(tmp_path, monitor=monitor, runs=runs).runs
    on, off = (next(iter(chains[name].values()))[0] for name in ("on", "off"))
    assert (on.monitoring_eval_steps, on.monitoring_prompts) == (5, prompts)
    assert (off.monitoring_eval_steps, off.monitoring_prompts) == (None, None)
    runs = {"on": {"loss": "dft", "monitoring_eval_steps": 3}, "off": {"loss": "sft"}}
    chains = loaded(tmp_path, monitor={"own_answers": False}, runs=runs).runs
    on, off = (next(iter(chains[name].values()))[0] for name in ("on", "off"))
    assert (on.monitoring_eval_steps, on.monitoring_own_answers) == (3, False)
    assert off.monitoring_eval_steps is None


def test_stages_are_links_of_a_chain(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, stages={"one": {}, "two": {"max_steps": 3, "learning_rate": 1e-5}})
    assert experiment.stages == ("one", "two")
    assert [config.max_steps for config in experiment.runs["sft"][4]] == [1, 3]
    assert [config.learning_rate for config in experiment.runs["dft"][4]] == [1e-3, 1e-3]  # a run's own option wins


def test_without_seeds_it_is_the_seed_of_the_base(tmp_path: Path) -> None:
    assert loaded(tmp_path, seeds=None).seeds == (3407,)


def test_evaluating_on_the_way_saves_checkpoints_as_often(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, evaluate={"every": 2})
    assert experiment.evaluate_every == 2
    assert experiment.evaluations == ()
    assert experiment.runs["sft"][4][0].save_steps == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "'sedes' is not an option; did you mean 'seeds'?"),
        ({"name": "a b"}, "name: 'a b' does not fit"),
        ({"runs": {}}, "runs: none is given; name at least one"),
        ({"runs": {"base": {}}}, "'base' is the name of the model before training"),
        ({"runs": {"a": {}, "b": {}}}, "'a' and 'b' differ in nothing; change an option of one"),
        ({"runs": {"a": {"los": "sft"}}}, "runs.a: 'los' is not an option; did you mean 'loss'?"),
        ({"runs": {"a": {"seed": 1}}}, "runs.a: 'seed' stands in 'seeds', for all runs; move it there"),
        ({"runs": {"a": {"output_dir": "x"}}}, "runs.a: 'output_dir' is set by the comparison; leave it out"),
        ({"runs": {"a": {"model": "other"}, "b": {}}}, "they start from different models or templates"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names one twice; name each once"),
        ({"seeds": [-1]}, "seeds.0: -1 does not fit"),
        ({"monitor": {"evrey": 1}}, "monitor: 'evrey' is not known; did you mean 'every'?"),
        ({"evaluate": {"every": 0}}, "evaluate.every: 0 does not fit; give a number of steps, 1 or more"),
        ({"evaluate": {"tsak": []}}, "'tsak' is no group of evaluations; did you mean 'task'?"),
        ({"evaluate": {"task": [{"kind": "generate", "file": "no.jsonl", "scorer": "exact_match"}]}}, "no such file"),
        (
            {"evaluate": {"task": [{"kind": "generate", "file": "test.jsonl", "scorer": "no.module:score"}]}},
            "no.module",
        ),
        (
            {"base": {"seed": "abc", "model": "m", "training_file": "rows.jsonl"}, "seeds": None},
            "base: seed: 'abc' does not",
        ),
        ({"stages": {"one": {"seed": 9}}}, "stages.one: 'seed' stands in 'seeds', for all runs; move it there"),
        ({"evaluate": {"task": [{**TASK, "name": "kl_vs_base"}]}}, "'kl_vs_base' is the name of the drift"),
        (
            {"evaluate": {"every": 1}, "runs": {"a": {"save_total_limit": 1}}},
            "runs.a: save_total_limit throws away checkpoints that evaluate.every needs",
        ),
        ({"monitor": {"own_answers": False}}, "monitor: nothing is measured without 'every'; give a number of steps"),
        ({"monitor": {"every": 0}}, "monitor.every: 0 does not fit; give a number of steps, 1 or more"),
        (
            {"base": {"monitoring_eval_steps": 1}, "monitor": {"every": 2}},
            "monitor.every and base.monitoring_eval_steps are the same option; leave one out",
        ),
        (
            {"monitor": {"every": 2, "directions": {"formal": {"a": "a.jsonl"}}}},
            "monitoring_directions.formal.b is missing; add it",
        ),
        ({"evaluate": {"every": True}}, "evaluate.every: True does not fit"),
        (
            {"evaluate": {"every": 2}, "runs": {"a": {"save_steps": 100}}},
            "runs.a: evaluate.every sets save_steps, to 2; leave save_steps out",
        ),
        ({"seeds": []}, "seeds: [] does not fit; give a list, such as [1, 2, 3], or leave it out"),
        ({"seeds": 3}, "seeds: 3 does not fit; give a list, such as [1, 2, 3]"),
        ({"seeds": [True, 2]}, "seeds.0: True does not fit"),
        ({"name": ".."}, "name: '..' does not fit"),
        ({"run_on": "moon"}, "run_on: 'moon' does not fit"),
        ({"requires_vram_gb": 0}, "requires_vram_gb: is for workers of a server; set run_on: server, or leave it out"),
        ({"run_on": "server", "requires_vram_gb": -1}, "requires_vram_gb"),
        ({"run_on": "server", "cloud_type": "SECRET"}, "cloud_type: 'SECRET' is none; did you mean 'SECURE'"),
        ({"run_on": "server", "allowed_hardware": ["0x A100"]}, "allowed_hardware: '0x A100' is no number and name"),
        ({"drift": {"prompts": "none.jsonl"}}, "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TutelageError) as caught:
        loaded(tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_who_may_train_on_a_server_is_read_in_any_spelling(tmp_path: Path) -> None:
    """Not a part of what a run is: the same run on other machines is used again."""
    anywhere = loaded(tmp_path, run_on="server")
    given = {"requires_vram_gb": "guess", "allowed_hardware": ["2 a100"], "cloud_type": "all"}
    chosen = loaded(tmp_path, run_on="server", **given)
    assert anywhere.scheduling.given() == {}
    assert chosen.scheduling.given() == {
        "requires_vram_gb": "guess",
        "allowed_hardware": ["2x A100"],
        "cloud_type": "ALL",
    }
    assert chosen.runs == anywhere.runs


def test_a_template_and_a_reward_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    template, reward = tmp_path / "chat.jinja", tmp_path / "own.py"
    written_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    reward.write_text("def score(**columns): return [0.0]\n", encoding="utf-8")
    template.write_text(written_template, encoding="utf-8")
    options = {"chat_template": "chat.jinja", "grpo_reward_function": "own.py:score"}

    def identity(loss: str) -> str:
        experiment = loaded(tmp_path, runs={"a": {"loss": loss, **options}})
        return chain_identities(experiment.runs["a"][4])[-1]

    before = {loss: identity(loss) for loss in ("sft", "grpo")}
    reward.write_text("from beside import VALUE\ndef score(**columns): return [VALUE]\n", encoding="utf-8")
    assert identity("sft") == before["sft"]
    assert identity("grpo") != before["grpo"]
    without = identity("grpo")
    (tmp_path / "beside.py").write_text("VALUE = 1.0\n", encoding="utf-8")
    assert identity("grpo") != without
    template.write_text(written_template + " ", encoding="utf-8")
    assert identity("sft") != before["sft"]
