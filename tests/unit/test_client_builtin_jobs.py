"""The built-in kinds: their options, files of this machine in them, guesses of memory. Against a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_job_server import JobServer, job_server
from tests.served import conversation, jsonl, preference
from tutelage.client.guessing import billions_in, guessed_vram_gb
from tutelage.client.job import Job
from tutelage.config import Direction, SamplingCallback
from tutelage.errors import ConfigError, JobError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[JobServer]:
    """One for all: nothing is claimed here, and what is submitted twice is the same job."""
    with job_server(tmp_path_factory.mktemp("server") / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `a.jsonl`, `b.jsonl`, … that one stands in, each with another conversation."""
    for number, name in enumerate("abcdef"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([conversation(number)]))
    (tmp_path / "preference.jsonl").write_bytes(jsonl([preference()]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of(job: Job) -> dict[str, Any]:
    return job.params["validated_params"]


def content_of(server: JobServer, file_id: str) -> bytes:
    return server.client.files.content(file_id)


def test_files_of_this_machine_are_uploaded_wherever_they_are_named(server: JobServer, rows: Path) -> None:
    """Under OpenWeights' names of options and under ours, as text and as path."""
    given: dict[str, Any] = {
        "logp_callback_datasets": {"held_out": "b.jsonl"},
        "sampling_callbacks": [
            {"dataset": "c.jsonl", "eval_steps": 5, "tag": "theirs"},
            SamplingCallback(file=Path("d.jsonl"), tag="ours"),
        ],
        "monitoring_prompts": rows / "e.jsonl",
        "monitoring_directions": {
            "way": {"a": "a.jsonl", "b": "f.jsonl"},
            "other": Direction(a=Path("b.jsonl"), b=rows / "c.jsonl"),
        },
        "monitoring_eval_steps": 5,
    }
    job = server.client.fine_tuning.create(
        model="smollm2", training_file="a.jsonl", test_file=rows / "b.jsonl", loss="sdft", max_steps=1, **given
    )
    assert job.type == "fine-tuning"
    assert job.requires_vram_gb == 24
    found = options_of(job)
    named = {
        "a": found["training_file"],
        "b": found["test_file"],
        "c": found["sampling_callbacks"][0]["file"],
        "d": found["sampling_callbacks"][1]["file"],
        "e": found["monitoring_prompts"],
        "f": found["monitoring_directions"]["way"]["b"],
    }
    for name, file_id in named.items():
        assert file_id.startswith("conversations:file-")
        assert content_of(server, file_id) == (rows / f"{name}.jsonl").read_bytes()
    assert found["logp_callback_datasets"] == {"held_out": named["b"]}
    assert found["monitoring_directions"]["way"]["a"] == named["a"]
    assert [found["monitoring_directions"]["other"][side] for side in "ab"] == [named["b"], named["c"]]
    assert found["sampling_callbacks"][0]["every_n_steps"] == 5
    # The dicts of the caller are not touched.
    assert given["logp_callback_datasets"] == {"held_out": "b.jsonl"}
    assert given["sampling_callbacks"][0]["dataset"] == "c.jsonl"
    again = server.client.fine_tuning.create(
        model="smollm2", training_file=named["a"], test_file=named["b"], loss="sdft", max_steps=1, **given
    )
    assert again.id == job.id


def test_preferences_are_uploaded_for_objectives_that_learn_from_them(server: JobServer, rows: Path) -> None:
    job = server.client.fine_tuning.create(model="smollm2", training_file="preference.jsonl", loss="dpo")
    assert options_of(job)["training_file"].startswith("preference:file-")


def test_a_reward_of_ones_own_comes_along_with_what_it_imports(server: JobServer, rows: Path) -> None:
    """Not with what else lies there; the function is named as the job's folder has it."""
    folder = rows / "scores"
    (folder / "parts").mkdir(parents=True)
    (folder / "mine.py").write_text(
        "from words import COUNT\nimport parts.deep\n\ndef short(completions, **_):\n    return [1]\n"
    )
    (folder / "words.py").write_text("COUNT = 1\n")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "deep.py").write_text("X = 1\n")
    (folder / "other.py").write_text("")
    job = server.client.fine_tuning.create(
        model="smollm2", training_file="a.jsonl", loss="grpo", grpo_reward_function="scores/mine.py:short"
    )
    assert options_of(job)["grpo_reward_function"] == "rewards/mine.py:short"
    assert sorted(job.mounted_files) == [
        "rewards/mine.py",
        "rewards/parts/__init__.py",
        "rewards/parts/deep.py",
        "rewards/words.py",
    ]
    assert content_of(server, job.mounted_files["rewards/words.py"]) == b"COUNT = 1\n"
    built_in = server.client.fine_tuning.create(
        model="smollm2", training_file="a.jsonl", loss="grpo", grpo_reward_function="exact_match"
    )
    assert built_in.mounted_files == {}
    form = {"type": job.type, "params": job.params}
    assert server.client.jobs.compute_id(form) == server.client.jobs.get_or_create_or_reset(form).id == job.id
    with pytest.raises(ConfigError, match=r"grpo_reward_function: 'scores/none\.py' is not there"):
        server.client.fine_tuning.create(
            model="smollm2", training_file="a.jsonl", loss="grpo", grpo_reward_function="scores/none.py:f"
        )


def test_scripts_go_on_with_the_model_that_a_job_left(server: JobServer, rows: Path) -> None:
    """By `finetuned_model_id`, as OpenWeights' do; and what a job says of its params is that job again."""
    client = server.client
    job = client.fine_tuning.create(model="smollm2", training_file="a.jsonl", seed=77)
    model = job.params["validated_params"]["finetuned_model_id"]
    assert model == job.id
    assert client.inference.create(model=model, input_file_id="a.jsonl").model == job.id
    assert client.fine_tuning.create(**job.params["validated_params"]).id == job.id
    assert client.jobs.get_or_create_or_reset({"type": job.type, "params": job.params}).id == job.id
    named = client.fine_tuning.create(
        model="smollm2", training_file="a.jsonl", finetuned_model_id="me/mine", push_to_hub=True
    )
    assert named.params["validated_params"]["finetuned_model_id"] == "me/mine"


def test_a_template_becomes_its_text(server: JobServer, rows: Path) -> None:
    (rows / "chat.jinja").write_text("{{ messages }}é", encoding="utf-8")
    job = server.client.inference.create(model="smollm2", input_file_id="a.jsonl", chat_template="chat.jinja")
    assert options_of(job)["chat_template"] == "{{ messages }}é"
    with pytest.raises(ConfigError, match=r"chat_template: 'none.jinja' cannot be read"):
        server.client.inference.create(model="smollm2", input_file_id="a.jsonl", chat_template="none.jinja")


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("fine_tuning", {"learning_rat": 1}, "'learning_rat' is not an option; did you mean 'learning_rate'"),
        ("fine_tuning", {"loss": "sdtf"}, "loss: 'sdtf' is not an objective; did you mean 'sdft'"),
        ("fine_tuning", {"loss": "dpo", "beta": 0.0}, "beta: 0 leaves dpo no gradient"),
        ("fine_tuning", {"training_file": "none.jsonl"}, "training_file: 'none.jsonl' is neither a file here nor"),
        ("fine_tuning", {"training_file": "preference:file-000000000000"}, "a file of preference, but sft learns"),
        ("fine_tuning", {"logp_callback_datasets": {"x": "none"}}, r"logp_callback_datasets.x: 'none' is neither"),
        ("fine_tuning", {"sampling_callbacks": [{"file": "none"}]}, r"sampling_callbacks\[0\].file: 'none' is neither"),
        ("fine_tuning", {"cloud_type": "MINE"}, "cloud_type: 'MINE' is none"),
        ("fine_tuning", {"requires_vram_gb": "much"}, "requires_vram_gb: 'much' is no number"),
        ("weighted_sft", {"epochs": 0}, "epochs: 0 does not fit"),
        ("inference", {"temperature": -1}, "temperature: -1 does not fit"),
        ("inference", {"input_file_id": "none"}, "input_file_id: 'none' is neither"),
        ("logprob", {"magic": 1}, "magic"),
        ("multiple_choice", {"batch_size": 0}, "batch_size: 0 does not fit"),
        ("inspect_ai", {"eval_name": None}, "eval_name"),
    ],
)
def test_wrong_options_are_said_before_anything_is_uploaded(
    server: JobServer, rows: Path, kind: str, options: dict[str, Any], sentence: str
) -> None:
    needed = {
        "fine_tuning": {"training_file": "a.jsonl"},
        "weighted_sft": {"training_file": "a.jsonl"},
        "inference": {"input_file_id": "a.jsonl"},
        "logprob": {"dataset": "a.jsonl"},
        "multiple_choice": {"dataset": "a.jsonl"},
        "inspect_ai": {"eval_name": "gsm8k"},
    }[kind]
    before = server.faults.seen.total()
    with pytest.raises((ConfigError, JobError), match=sentence):
        getattr(server.client, kind).create(**{"model": "smollm2", **needed, **options})
    assert server.faults.seen.total() == before


def test_bad_rows_of_a_local_file_are_said_with_their_lines(server: JobServer, rows: Path) -> None:
    (rows / "bad.jsonl").write_bytes(jsonl([conversation(), {"messages": []}]))
    with pytest.raises(JobError, match=r"bad\.jsonl:2: "):
        server.client.fine_tuning.create(model="smollm2", training_file="bad.jsonl")


def test_every_kind_is_submitted_as_openweights_scripts_do(server: JobServer, rows: Path) -> None:
    client = server.client
    file = client.files.upload("a.jsonl", "conversations")["id"]
    (rows / "questions.jsonl").write_bytes(jsonl([{"question": "1+1?", "choices": ["2", "3"], "answer": 0}]))
    scheduling: dict[str, Any] = {"allowed_hardware": ["1x H100"], "docker_image": "image:1", "cloud_type": "ALL"}
    jobs = {
        "infjob": client.inference.create(model="org/model-8b", input_file_id=file, max_tokens=5, **scheduling),
        "lpjob": client.logprob.create(model="org/model-8b", dataset=file, **scheduling),
        "mcjob": client.multiple_choice.create(model="org/model-8b", dataset="questions.jsonl", **scheduling),
        "inspectai": client.inspect_ai.create(model="org/model-8b", eval_name="gsm8k", **scheduling),
        "sftjob": client.weighted_sft.create(model="org/model-8b", training_file=file, loss="sft", **scheduling),
        "apijob": client.api.create(model="org/model-8b", quantization=None, kv_cache_dtype=None, **scheduling),
    }
    for prefix, job in jobs.items():
        assert job.id.startswith(f"{prefix}-")
        assert (job.allowed_hardware, job.docker_image, job.cloud_type) == (["1x H100"], "image:1", "ALL")
        assert job.requires_vram_gb == 0  # who names the hardware knows what fits
        assert job.model == "org/model-8b"
    assert [jobs[prefix].type for prefix in ("infjob", "sftjob", "apijob")] == ["custom", "fine-tuning", "api"]
    assert options_of(jobs["infjob"])["max_tokens"] == 5
    assert options_of(jobs["mcjob"])["dataset"].startswith("multiple_choice:file-")


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("unsloth/Qwen3-4B", 4),
        ("unsloth/llama-3-8b-Instruct", 8),
        ("org/Qwen2.5-0.5B-Instruct", 0.5),
        ("HuggingFaceTB/SmolLM2-135M", 0.135),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("mistralai/Mistral-Small-24B-Base", 24),
        ("mistralai/Mistral-Small-Instruct", 22),
        ("org-70b/gpt2", 8),
        ("smollm2", 0.135),
        ("org/v2beta", 8),
    ],
)
def test_billions_of_parameters_are_read_off_the_name(model: str, billions: float) -> None:
    """8 where the name says nothing; what the owner is called says nothing."""
    assert billions_in(model) == pytest.approx(billions)


def test_memory_is_two_bytes_a_parameter_and_some() -> None:
    assert guessed_vram_gb("org/model-8b", 15) == 31
    assert guessed_vram_gb("org/model-8b-bnb-4bit", 15) == 19
    assert guessed_vram_gb("org/model-8b-8bit", 15) == 23
    assert guessed_vram_gb("org/model-0.5b", 5) == 6
    assert guessed_vram_gb("org/model-8b", 15, bytes_per_parameter=16) == 143


def test_memory_is_guessed_where_it_is_asked_for(server: JobServer, rows: Path) -> None:
    """2 · 4 + 15, for inference of a result by the model it was trained from; 16 · 4 + 15 where all is trained."""
    create = server.client.fine_tuning.create
    base = {"model": "org/model-4b", "training_file": "a.jsonl"}
    first = create(requires_vram_gb="guess", **base)
    assert first.requires_vram_gb == 23
    assert create(requires_vram_gb="guess", is_peft=False, **base).requires_vram_gb == 79
    second = create(model=f"{first.id}:step-5", training_file="a.jsonl", requires_vram_gb="guess")
    assert second.requires_vram_gb == 23
    inference = server.client.inference
    assert inference.create(model=second.id, input_file_id="a.jsonl").requires_vram_gb == 23
    assert inference.create(model=second.id, input_file_id="a.jsonl", requires_vram_gb=5).requires_vram_gb == 5
    assert server.client.api.create(model="org/model-4b").requires_vram_gb == 13
