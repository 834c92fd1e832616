"""YAML files, `--set` and paths. What the options mean: test_config_options.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.config import TrainingConfig, load_config, parse_overrides
from tutelage.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config with a model and a training file, and the given lines, into `configs/`."""

    def write(lines: str) -> Path:
        path = tmp_path / "configs" / "run.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"model: smollm2\ntraining_file: rows.jsonl\n{lines}\n", encoding="utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4", '"1e-4"'])
def test_numbers_in_yaml(write: Write, text: str) -> None:
    """YAML 1.1 reads `1e-4` as text."""
    assert load_config(write(f"learning_rate: {text}")).learning_rate == 1e-4


def test_numbers_in_overrides(write: Write) -> None:
    assert load_config(write(""), ["learning_rate=5e-5"]).learning_rate == 5e-5


@pytest.mark.parametrize("lines", ['job_id_suffix: "3e7"', "job_id_suffix: '1e-4'"])
def test_quoted_text_stays_text(write: Write, lines: str) -> None:
    """The first characters of a commit may look like a number."""
    assert load_config(write(lines)).job_id_suffix == lines.partition(": ")[2].strip("\"'")


def test_text_that_only_begins_like_a_number_stays_text(write: Write) -> None:
    assert (
        load_config(write("job_id_suffix: 1e4c9b\nfinetuned_model_id: .e")).flat().items()
        >= {
            "job_id_suffix": "1e4c9b",
            "finetuned_model_id": ".e",
        }.items()
    )


def test_no_is_a_word(write: Write) -> None:
    """YAML 1.1 reads an unquoted `no` as false, and `no` is a value of this option."""
    assert load_config(write("test_file_eval_strategy: no")).test_file_eval_strategy == "no"
    assert load_config(write(""), ["test_file_eval_strategy=no"]).test_file_eval_strategy == "no"


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["max_steps=5", "loss=dft"], {"max_steps": 5, "loss": "dft"}),
        (["packing=false", "output_dir=null"], {"packing": False, "output_dir": None}),
        (["target_modules=[q_proj, v_proj]"], {"target_modules": ["q_proj", "v_proj"]}),
        (["meta={team: a, note: 'b=c'}"], {"meta": {"team": "a", "note": "b=c"}}),
        (["chat_template='{{ a = b }}'"], {"chat_template": "{{ a = b }}"}),
        ([" seed = 7 "], {"seed": 7}),
        (["seed=1", "seed=2"], {"seed": 2}),
        (["job_id_suffix="], {"job_id_suffix": None}),
        ([], {}),
    ],
)
def test_overrides(overrides: list[str], options: dict[str, object]) -> None:
    assert parse_overrides(overrides) == options


@pytest.mark.parametrize("override", ["max_steps", "=5", " =5", ""])
def test_override_without_key_or_value(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([override])
    assert str(caught.value) == f"--set {override}: write key=value, for example --set max_steps=50"


def test_override_that_is_no_yaml() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["meta={a: [}"])
    assert str(caught.value) == "--set meta={a: [}: the value is not valid YAML; put it in quotes"


def test_overrides_win(write: Write) -> None:
    assert load_config(write("max_steps: 5\nr: 4"), ["max_steps=9"]).flat().items() >= {"max_steps": 9, "r": 4}.items()


def test_unknown_override_names_the_nearest(write: Write) -> None:
    assert "'max_step' is not an option; did you mean 'max_steps'?" in refusal(write(""), "max_step=3")


def test_input_files_are_beside_the_config(write: Write) -> None:
    path = write(
        "test_file: held/out.jsonl\n"
        "monitoring_eval_steps: 5\n"
        "monitoring_prompts: prompts.jsonl\n"
        "logp_callback_datasets: {facts: facts.jsonl}\n"
        "sampling_callbacks: [{file: ask.jsonl, every_n_steps: 3}]\n"
        "monitoring_directions: {formal: {a: a.jsonl, b: b.jsonl, layer: 2}}"
    )
    config, folder = load_config(path), path.parent
    assert config.training_file == folder / "rows.jsonl"
    assert config.test_file == folder / "held/out.jsonl"
    assert config.monitoring_prompts == folder / "prompts.jsonl"
    assert config.logp_callback_datasets == {"facts": folder / "facts.jsonl"}
    assert [(callback.file, callback.every_n_steps) for callback in config.sampling_callbacks] == [
        (folder / "ask.jsonl", 3)
    ]
    formal = config.monitoring_directions["formal"]
    assert (formal.a, formal.b, formal.layer) == (folder / "a.jsonl", folder / "b.jsonl", 2)


def test_absolute_and_home_paths_stay(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    absolute = tmp_path / "elsewhere.jsonl"
    config = load_config(write(f"test_file: {absolute}\nmonitoring_eval_steps: 5\nmonitoring_prompts: ~/prompts.jsonl"))
    assert config.test_file == absolute
    assert config.monitoring_prompts == tmp_path / "home" / "prompts.jsonl"


def test_paths_in_overrides_and_output_dir_are_relative_to_where_you_are(write: Write) -> None:
    config = load_config(write("output_dir: runs/one"), ["training_file=other.jsonl"])
    assert config.training_file == Path("other.jsonl")
    assert config.output_dir == Path("runs/one")


def test_nested_paths_in_overrides_are_relative_to_where_you_are(write: Write) -> None:
    config = load_config(write(""), ["logp_callback_datasets={facts: facts.jsonl}"])
    assert config.logp_callback_datasets == {"facts": Path("facts.jsonl")}


def test_a_model_folder_beside_the_config_is_meant(write: Write) -> None:
    path = write("")
    assert load_config(path).model == "smollm2"
    (path.parent / "smollm2").mkdir()
    assert load_config(path).model == str(path.parent / "smollm2")


def test_a_chat_template_file_beside_the_config_is_meant(write: Write) -> None:
    path = write("chat_template: plain.jinja")
    (path.parent / "plain.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert load_config(path).chat_template == str(path.parent / "plain.jinja")


def test_errors_name_the_file(write: Write) -> None:
    path = write("lerning_rate: 1")
    assert refusal(path) == f"{path}: 'lerning_rate' is not an option; did you mean 'learning_rate'?"


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refusal(path) == f"{path}: no such config file; check the path"


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: cannot read the config (")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: é".encode("latin-1"))
    assert refusal(path) == f"{path}: byte 7 is not UTF-8; save the file as UTF-8"


def test_broken_yaml_names_the_line(write: Write) -> None:
    path = write("meta: {a: 1\nloss: sft")
    message = refusal(path)
    assert message.startswith(f"{path}:")
    assert message.removeprefix(f"{path}:")[0].isdigit()


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just words", "str"), ("3", "int")])
def test_a_file_without_options(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert refusal(path) == f"{path}: holds {kind}, not options; write lines such as 'loss: sdft'"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.touch()
    assert refusal(path).startswith(f"{path}: ")


def test_a_key_written_twice_is_refused(write: Write) -> None:
    """YAML would take the last one silently; the user cannot know which one trains."""
    message = refusal(write("r: 8\nseed: 1\nr: 16"))
    assert "'r'" in message
    assert ":5:" in message


def test_the_same_run_from_yaml_and_python(write: Write) -> None:
    path = write("loss: sdft\nsdft_ema_alpha: 5e-2\nmax_steps: 3")
    same = TrainingConfig(
        model="smollm2", training_file=path.parent / "rows.jsonl", loss="sdft", sdft_ema_alpha=0.05, max_steps=3
    )
    assert load_config(path).flat() == same.flat()
