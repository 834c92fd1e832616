"""What may be submitted: each kind's options, OpenWeights' names for them, and every refusal with its sentence."""

import dataclasses
import re
from typing import Any

import pytest

from tutelage.errors import ConfigError, JobError, TutelageError
from tutelage.jobs.identity import job_id
from tutelage.jobs.kinds import KINDS, JobRequest, checked, files_of
from tutelage.jobs.plain_json import cleaned
from tutelage.jobs.requirements import CloudType, Requirement

FILE = "conversations:file-0123456789ab"
PAIRS = "preference:file-0123456789ab"
TRAINING: dict[str, Any] = {"model": "org/model", "training_file": FILE, "loss": "sft"}
CUSTOM = JobRequest("custom", {}, entrypoint="true")


def training(**options: Any) -> dict[str, Any]:
    return dict(checked(JobRequest("fine_tuning", {**TRAINING, **options})).params)


def test_prefixes_and_memory_are_those_of_the_specification() -> None:
    assert {name: kind.prefix for name, kind in KINDS.items() if name not in ("inspect_ai", "custom")} == {
        "fine_tuning": "ftjob",
        "weighted_sft": "sftjob",
        "inference": "infjob",
        "logprob": "lpjob",
        "multiple_choice": "mcjob",
        "api": "apijob",
    }
    submission = checked(JobRequest("fine_tuning", TRAINING))
    assert submission.requirement == Requirement(requires_vram_gb=24, cloud_type=CloudType.SECURE)
    assert (submission.prefix, submission.model, submission.entrypoint) == ("ftjob", "org/model", None)
    custom = checked(dataclasses.replace(CUSTOM, prefix="mytask", requires_vram_gb=None))
    assert (custom.prefix, custom.requirement.requires_vram_gb, custom.entrypoint) == ("mytask", 0, "true")


def test_scheduling_is_no_part_of_what_a_job_is() -> None:
    """Other conditions leave params and files alone; hardware is written one way."""
    plain = checked(JobRequest("fine_tuning", TRAINING))
    conditions = JobRequest(
        "fine_tuning",
        TRAINING,
        requires_vram_gb=80,
        allowed_hardware=["2x a100", "1 H100", "h100", "2X  A100"],
        cloud_type="all",
    )
    other = checked(conditions)
    assert other.requirement == Requirement(None, ("1x H100", "2x A100"), 80, CloudType.ALL)
    assert dataclasses.replace(other, requirement=plain.requirement) == plain


def test_one_and_one_point_zero_are_the_same_job() -> None:
    """JSON has one kind of number."""
    whole, point = (
        job_id("ftjob", kind="k", params=training(**options), mounted_files={}, image="", organization="o")
        for options in (
            {"epochs": 1, "lora_alpha": 16, "warmup_steps": 5.0, "meta": {"a": 2}},
            {"epochs": 1.0, "lora_alpha": 16.0, "warmup_steps": 5, "meta": {"a": 2.0}},
        )
    )
    assert whole == point


# Every option of OpenWeights 0.14's fine-tuning and weighted SFT jobs, and what it is here.
OPENWEIGHTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"test_file": FILE}, {"test_file": FILE}),
    ({"test_file": None}, {"test_file": None}),
    ({"chat_template": "default"}, {"chat_template": "default"}),
    ({"finetuned_model_id": "me/it"}, {"finetuned_model_id": "me/it"}),
    ({"model_naming_extra_parameters": {"a": "b"}}, {"model_naming_extra_parameters": {"a": "b"}}),
    ({"model_naming_extra_parameters": None}, {"model_naming_extra_parameters": {}}),
    ({"job_id_suffix": "mine"}, {"job_id_suffix": "mine"}),
    ({"ft_id_suffix": "mine"}, {"job_id_suffix": "mine"}),
    ({"max_seq_length": 512}, {"max_seq_length": 512}),
    ({"load_in_4bit": True}, {"load_in_4bit": True}),
    ({"is_peft": True, "target_modules": ["q_proj"]}, {"is_peft": True, "target_modules": ["q_proj"]}),
    ({"target_modules": None}, {"target_modules": training()["target_modules"]}),
    ({"lora_bias": "all"}, {"lora_bias": "all"}),
    ({"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}, {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}),
    ({"use_rslora": False, "merge_before_push": False}, {"use_rslora": False, "merge_before_push": False}),
    ({"push_to_private": False}, {"push_to_private": False}),
    ({"epochs": 3, "max_steps": None}, {"epochs": 3, "max_steps": None}),
    ({"max_steps": 10}, {"max_steps": 10}),
    ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 4}),
    ({"gradient_accumulation_steps": 2, "warmup_steps": 0}, {"gradient_accumulation_steps": 2, "warmup_steps": 0}),
    ({"learning_rate": 1e-5}, {"learning_rate": 1e-5}),
    ({"learning_rate": "1e-5"}, {"learning_rate": 1e-5}),
    ({"logging_steps": 2, "eval_every_n_steps": "log"}, {"logging_steps": 2, "eval_every_n_steps": 2}),
    ({"eval_every_n_steps": 7}, {"eval_every_n_steps": 7}),
    ({"optim": "adamw"}, {"optim": "adamw_torch"}),
    ({"optim": "adam"}, {"optim": "adamw_torch"}),
    ({"optim": "adamw_8bit"}, {"optim": "adamw_8bit"}),
    ({"optim": "sgd", "weight_decay": 0.0}, {"optim": "sgd", "weight_decay": 0.0}),
    ({"lr_scheduler_type": "cosine", "seed": 1}, {"lr_scheduler_type": "cosine", "seed": 1}),
    ({"beta": 0.2, "save_steps": 10}, {"beta": 0.2, "save_steps": 10}),
    ({"output_dir": "./tmp"}, {}),
    ({"train_on_responses_only": False, "packing": False}, {"train_on_responses_only": False, "packing": False}),
    ({"logp_callback_datasets": {"a": FILE}}, {"logp_callback_datasets": {"a": FILE}}),
    ({"sampling_callbacks": None}, {"sampling_callbacks": []}),
    ({"eval_batch_size": 2, "test_file_eval_strategy": "steps"}, {"test_file_eval_strategy": "steps"}),
    ({"test_file_eval_steps": 5}, {"test_file_eval_steps": 5}),
    ({"test_file_eval_steps": None}, {"test_file_eval_steps": training()["test_file_eval_steps"]}),
    ({"meta": {"note": [1]}}, {"meta": {"note": [1]}}),
    ({"meta": None}, {"meta": {}}),
]


@pytest.mark.parametrize("kind", ["fine_tuning", "weighted_sft"])
def test_options_of_openweights_keep_their_meaning(kind: str) -> None:
    for theirs, ours in OPENWEIGHTS:
        params = checked(JobRequest(kind, {**TRAINING, **theirs})).params
        assert {name: params[name] for name in ours} == ours, theirs
        assert "output_dir" not in params


def test_weighted_sft_measures_whenever_it_logs() -> None:
    """The default of `eval_every_n_steps` is `log` there, of fine-tuning jobs 5000."""
    options = {**TRAINING, "logp_callback_datasets": {"a": FILE}, "logging_steps": 4}
    assert checked(JobRequest("weighted_sft", options)).params["eval_every_n_steps"] == 4
    assert checked(JobRequest("fine_tuning", options)).params["eval_every_n_steps"] == 5000


def test_a_sampling_callback_of_openweights_keeps_its_meaning() -> None:
    """With its names come its defaults: every 10 steps, greedy, 600 tokens. Under our names ours hold."""
    theirs = {"dataset": FILE, "eval_steps": "log", "batch_size": 4, "tag": "t", "temperature": 0.5, "max_tokens": 9}
    ours = {"file": FILE, "every_n_steps": 3, "tag": "t", "temperature": 0.5, "max_new_tokens": 9}
    assert training(sampling_callbacks=[theirs], logging_steps=3)["sampling_callbacks"] == [ours]
    assert training(sampling_callbacks=[{"dataset": FILE}])["sampling_callbacks"] == [
        {"file": FILE, "every_n_steps": 10, "tag": "samples", "temperature": 0, "max_new_tokens": 600}
    ]
    (own,) = training(sampling_callbacks=[{"file": FILE}])["sampling_callbacks"]
    assert (own["every_n_steps"], own["max_new_tokens"], own["temperature"]) == (100, 128, 1.0)


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        (
            "inference",
            {"model": "m", "input_file_id": FILE},
            {
                "max_tokens": 600,
                "temperature": 1.0,
                "top_p": 1.0,
                "stop": [],
                "prefill": "",
                "min_tokens": 1,
                "max_model_len": 8196,
                "logprobs": None,
                "n_completions_per_prompt": 1,
                "quantization": None,
                "load_format": None,
                "use_batch": True,
                "chat_template": "default",
                "job_id_suffix": None,
            },
        ),
        ("logprob", {"model": "m", "dataset": FILE}, {"batch_size": 8, "chat_template": "default"}),
        (
            "api",
            {"model": "m", "quantization": None, "kv_cache_dtype": None},
            {"lora_adapters": [], "max_lora_rank": 16, "max_loras": -1, "max_model_len": 2048, "max_num_seqs": 16},
        ),
    ],
)
def test_defaults_of_other_kinds_are_those_of_openweights(
    kind: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = checked(JobRequest(kind, params)).params
    assert {name: found[name] for name in expected} == expected


REFUSED: list[tuple[JobRequest, str]] = [
    (JobRequest("fine_tunning", {}), "kind: 'fine_tunning' is none; did you mean 'fine_tuning'?; one of fine_tuning, "),
    (JobRequest("fine_tuning", {**TRAINING, "lern_rate": 1}), "'lern_rate' is not an option"),
    (JobRequest("fine_tuning", {**TRAINING, "training_file": "a.jsonl"}), "training_file: 'a.jsonl' is not the id of"),
    (JobRequest("fine_tuning", {**TRAINING, "training_file": f"{FILE}\n"}), "training_file: '"),
    (JobRequest("fine_tuning", {**TRAINING, "test_file": "/etc/passwd"}), "test_file: '/etc/passwd' is not the id"),
    (
        JobRequest("fine_tuning", {**TRAINING, "logp_callback_datasets": {"a": "b"}}),
        "logp_callback_datasets.a: 'b' is not the id of an uploaded file; upload it first: ",
    ),
    (
        JobRequest("fine_tuning", {**TRAINING, "sampling_callbacks": [{"dataset": "x"}]}),
        "sampling_callbacks[0].file: 'x' is not the id of an uploaded file",
    ),
    (
        JobRequest("fine_tuning", {**TRAINING, "sampling_callbacks": [{"dataset": FILE, "file": FILE}]}),
        "sampling_callbacks: 'dataset' and 'file' are the same option; leave out one",
    ),
    (
        JobRequest("fine_tuning", {**TRAINING, "sampling_callbacks": [{"file": FILE, "colour": 1}]}),
        "sampling_callbacks: 'colour' is not an option of a callback",
    ),
    (
        JobRequest("fine_tuning", {**TRAINING, "loss": "dpo"}),
        f"training_file: '{FILE}' is a file of conversations, but dpo learns from preference; upload the other file",
    ),
    (JobRequest("fine_tuning", {**TRAINING, "training_file": PAIRS}), "is a file of preference, but sft learns from"),
    (JobRequest("fine_tuning", {**TRAINING, "job_id_suffix": "../x"}), "job_id_suffix: '../x' is none; use up to 64"),
    (JobRequest("fine_tuning", {**TRAINING, "job_id_suffix": "x\n"}), "job_id_suffix: '"),
    (JobRequest("fine_tuning", {**TRAINING, "meta": {"a": {"b": object()}}}), "params: object has no form in JSON"),  # type: ignore[dict-item]
    (JobRequest("fine_tuning", TRAINING, entrypoint="x"), "entrypoint: fine_tuning jobs have their own; leave it out"),
    (JobRequest("inference", {"model": "m"}), "input_file_id"),
    (JobRequest("inference", {"model": "m", "input_file_id": "x"}), "input_file_id: 'x' is not the id of an uploaded"),
    (JobRequest("inference", {"model": "m", "input_file_id": FILE, "top_p": 0}), "top_p"),
    (JobRequest("inference", {"model": "m", "input_file_id": FILE, "temprature": 1}), "temprature"),
    (JobRequest("logprob", {"model": "m", "dataset": "x"}), "dataset: 'x' is not the id of an uploaded file"),
    (JobRequest("custom", {}), "entrypoint: a custom job has none; give the shell command that it runs"),
    (dataclasses.replace(CUSTOM, entrypoint=" \n"), "entrypoint: a custom job has none"),
    (dataclasses.replace(CUSTOM, entrypoint="a\0b"), "entrypoint: longer than 100000 characters, or with a NUL in it"),
    (dataclasses.replace(CUSTOM, entrypoint="a" * 100_001), "entrypoint: longer than 100000 characters"),
    (dataclasses.replace(CUSTOM, prefix="My-Task"), "prefix: 'My-Task' is none; use up to 64 lower-case letters"),
    (dataclasses.replace(CUSTOM, prefix="task\n"), "prefix: '"),
    (dataclasses.replace(CUSTOM, prefix="ftjob"), "prefix: 'ftjob' is that of fine_tuning jobs; call the class"),
    (dataclasses.replace(CUSTOM, requires_vram_gb=-1), "requires_vram_gb: -1 is none; give gigabytes of GPU memory"),
    (dataclasses.replace(CUSTOM, requires_vram_gb=float("nan")), "requires_vram_gb: nan is none"),
    (dataclasses.replace(CUSTOM, cloud_type="SECUR"), "cloud_type: 'SECUR' is none; did you mean 'SECURE'?; one of"),
    (dataclasses.replace(CUSTOM, allowed_hardware=["0x A100"]), "allowed_hardware: '0x A100' is no number and name of"),
    (dataclasses.replace(CUSTOM, allowed_hardware=[""]), "allowed_hardware: '' is no number and name of GPUs"),
    (
        dataclasses.replace(CUSTOM, mounted_files={"../a": FILE}),
        "mount target '../a': it leads out of the job's folder",
    ),
    (dataclasses.replace(CUSTOM, mounted_files={"a": "b"}), "mounted_files: 'b' is not the id of a file; upload it"),
]


@pytest.mark.parametrize(("request_", "sentence"), REFUSED, ids=lambda value: re.sub(r"\W+", "-", str(value))[:40])
def test_refusals_say_value_place_and_remedy(request_: JobRequest, sentence: str) -> None:
    with pytest.raises(TutelageError) as caught:
        checked(request_)
    assert isinstance(caught.value, ConfigError | JobError)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize("field", ["image", "entrypoint", "allowed_hardware", "mounted_files", "params"])
def test_what_no_database_can_hold_is_refused_or_cleaned(field: str, text: str) -> None:
    """Every text of a submission comes from outside; it has to be storable and hashable, or an error of its sender."""
    values: dict[str, Any] = {
        "allowed_hardware": [text],
        "mounted_files": {text: FILE},
        "params": {text: {"deep": [text]}},
    }
    try:
        submission = checked(dataclasses.replace(CUSTOM, **{field: values.get(field, text)}))
    except (ConfigError, JobError):
        return
    stored = [submission.requirement.as_json(), submission.params, submission.mounted_files, submission.entrypoint]
    assert cleaned(stored, "submission") == stored


def test_an_image_that_is_no_text_is_none() -> None:
    """Both have the same identity, so they must have the same conditions: an empty name is no image."""
    assert checked(dataclasses.replace(CUSTOM, image="")).requirement.image is None


def test_files_of_a_job_are_all_that_it_names() -> None:
    deep = checked(
        JobRequest(
            "custom",
            {"a": [{"b": "result:file-aaaaaaaaaaaa"}], "c": "result:file-xyz"},
            entrypoint="true",
            mounted_files={"x/y": "custom_job_file:file-bbbbbbbbbbbb"},
        )
    )
    assert files_of(deep) == {"result:file-aaaaaaaaaaaa", "custom_job_file:file-bbbbbbbbbbbb"}
    assert files_of(checked(JobRequest("fine_tuning", {**TRAINING, "logp_callback_datasets": {"a": PAIRS}}))) == {
        FILE,
        PAIRS,
    }
