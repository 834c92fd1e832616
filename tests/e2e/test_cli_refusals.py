"""Bad input, as a user meets it: exit code 2, one message with value, place and remedy, and nothing left behind."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from tests.e2e.command_line import Finished, Terminal, config_file, files_below, in_a_process
from tests.small_runs import save_tiny_model, write_rows

OVERLONG = "x" * 300  # longer than a file name may be: the operating system refuses even to look for it


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid config, a valid data file and a model; the tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("world")
    config_file(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Trainer, *args: Any, **kwargs: Any) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setitem(sys.modules, "wandb", None)  # a sink that is not installed


def assert_refused(done: Finished, *fragments: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert done.err.endswith("\n")
    for fragment in fragments:
        assert fragment in done.err


def turns(*messages: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]}) + "\n"


GOOD_ROW = turns(("user", "a"), ("assistant", "b"))

BAD_DATA: dict[str, tuple[bytes | str, tuple[str, ...]]] = {
    "invalid UTF-8": (
        GOOD_ROW.encode() + b'{"messages": "\xff"}\n',
        ("bad.jsonl:2: byte 15 of the line (0xff) is not UTF-8", "save the file as UTF-8"),
    ),
    "broken JSON": (
        GOOD_ROW * 2 + "{broken\n",
        ("bad.jsonl:3: not valid JSON at column 2", "write one JSON object a line"),
    ),
    "empty file": ("", ("bad.jsonl: the file has no rows", "write one JSON object a line")),
    "blank lines only": ("\n\n", ("bad.jsonl: the file has no rows",)),
    "unknown role": (
        GOOD_ROW + turns(("user", "a"), ("robot", "b")),
        ("bad.jsonl:2: messages[1] has the unknown role 'robot'", "use one of system, user, assistant, tool"),
    ),
    "no assistant turn": (
        turns(("user", "a")),
        ("bad.jsonl:1: the last message is from 'user'", "end the row with the assistant turn"),
    ),
    "empty answer": (
        turns(("user", "a"), ("assistant", " ")),
        ("bad.jsonl:1: the assistant turn (message 2 of 2) is empty", "write the answer or remove the row"),
    ),
    "preference file": (
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        ("bad.jsonl:1:", "purpose 'preference'", "purpose 'conversations'", "set loss to dpo or orpo"),
    ),
    "25 bad rows": (
        turns(("user", "a")) * 25 + GOOD_ROW,
        ("25 of 26 rows cannot be used", "bad.jsonl:20: the last message", "and 5 more rows"),
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(terminal: Terminal, tmp_path: Path, world: Path, case: str) -> None:
    content, fragments = BAD_DATA[case]
    data = tmp_path / "bad.jsonl"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = files_below(world)
    for key in ("training_file", "test_file"):
        assert_refused(terminal("train", world / "run.yaml", "--set", f"{key}={data}"), *fragments)
    assert files_below(world) == before


BAD_OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "missing data file": (["training_file=nowhere.jsonl"], ("nowhere.jsonl: no such file", "check the path")),
    "unknown key": (["learning_rat=1"], ("run.yaml: 'learning_rat' is not", "did you mean 'learning_rate'?")),
    "unknown key of an objective": (["sdft_ema_alpa=1"], ("did you mean 'sdft_ema_alpha'?",)),
    "--set without =": (["max_steps"], ("--set max_steps: write key=value, for example --set max_steps=50",)),
    "--set without a key": (["=5"], ("--set =5: write key=value",)),
    "a value that does not fit": (["max_steps=-3"], ("run.yaml: max_steps: -3 does not fit", "greater than or equal")),
    "unknown objective": (["loss=sdtf"], ("loss: 'sdtf' is not an objective", "did you mean 'sdft'?")),
    "template without placeholders": (
        ["loss=sdft", "sdft_demo_template=Answer well."],
        ("sdft_demo_template: 'Answer well.'", "lacks {question} and {demonstration}"),
    ),
    "rows too long": (
        ["max_seq_length=60"],  # one of the eight: 12.5 %
        ("1 of 8 rows (12.5 %) refused", "set max_seq_length to 61", "rows.jsonl:5: needs 61 tokens"),
    ),
    "all rows too long for the teacher": (
        ["loss=sdft", "max_seq_length=64", "sdft_max_new_tokens=40"],
        ("8 of 8 rows (100 %) refused", "max_seq_length 64", "rows.jsonl:8: needs"),
    ),
    "model path that is none": (["model=/nowhere/model"], ("/nowhere/model: no such model folder", "check the path")),
    "relative model path that is none": (["model=./nowhere"], ("./nowhere: no such model folder",)),
    "Hub id, offline": (["model=nobody/nothing"], ("model 'nobody/nothing'", "is there a network")),
    "not even a Hub id": (["model=no such model!"], ("model 'no such model!'", "is it spelled right")),
    "overlong model": ([f"model={OVERLONG}"], (f"model '{OVERLONG}'", "File name too long", "check the path")),
    "GGUF that is none": (["model=nowhere.gguf"], ("nowhere.gguf: no such GGUF file", "check the path")),
    "overlong output folder": ([f"output_dir={OVERLONG}"], ("File name too long", "choose another output_dir")),
    "output under /proc": (["output_dir=/proc/run"], ("/proc/run: cannot be written", "choose another output_dir")),
    "4 bit without a GPU": (["load_in_4bit=true"], ("load_in_4bit: true needs a GPU", "set load_in_4bit: false")),
    "unknown optimizer": (["optim=adamw_troch"], ("optim: 'adamw_troch'", "did you mean 'adamw_torch'?")),
    "optimizer of a missing package": (
        ["optim=adamw_8bit"],
        ("optim: 'adamw_8bit' cannot be used here", "install `bitsandbytes`", "set optim: adamw_torch"),
    ),
    "unknown schedule": (["lr_scheduler_type=cosin"], ("lr_scheduler_type: 'cosin'", "did you mean 'cosine'?")),
    "schedule with settings of its own": (
        ["lr_scheduler_type=cosine_with_min_lr"],
        ("lr_scheduler_type: 'cosine_with_min_lr' needs settings", "use linear, cosine"),
    ),
    "schedule that needs evaluation": (["lr_scheduler_type=reduce_lr_on_plateau"], ("requires an eval strategy",)),
    "sink that is not installed": (["report_to=[wandb]"], ("report_to: wandb cannot be used", "pip install wandb")),
    "target modules of another model": (
        ["target_modules=[query]"],
        ("target_modules: 'query' is not in LlamaForCausalLM", "down_proj, gate_proj, k_proj"),
    ),
    "target modules of which one is mistyped": (
        ["target_modules=[q_prj, v_proj]"],
        ("target_modules: 'q_prj' is not in LlamaForCausalLM; did you mean 'q_proj'?",),
    ),
    "missing log-prob file": (["logp_callback_datasets={capitals: nowhere.jsonl}"], ("nowhere.jsonl: no such file",)),
    "missing monitoring prompts": (
        ["monitoring_prompts=nowhere.jsonl", "monitoring_eval_steps=1"],
        ("nowhere.jsonl: no such file",),
    ),
    "missing chat template": (["chat_template=nowhere.jinja"], ("chat_template 'nowhere.jinja'", "nor a readable")),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(terminal: Terminal, world: Path, case: str) -> None:
    overrides, fragments = BAD_OPTIONS[case]
    before = files_below(world)
    settings = [text for override in overrides for text in ("--set", override)]
    assert_refused(terminal("train", world / "run.yaml", *settings), *fragments)
    assert_refused(terminal("train", world / "run.yaml", *settings, "--dry-run"), *fragments)
    assert files_below(world) == before


def test_the_folder_of_a_new_run(terminal: Terminal, world: Path) -> None:
    before = files_below(world)
    for place, reason in {
        "rows.jsonl/run": "Not a directory",
        "rows.jsonl": "this is a file",
        "tiny": "the folder is not empty; choose another output_dir, or continue that run with --resume",
    }.items():
        done = terminal("train", world / "run.yaml", "--set", f"output_dir={world / place}")
        assert_refused(done, f"{world / place}: ", reason, "choose another output_dir")
    assert files_below(world) == before


def test_an_empty_output_folder_stays_and_stays_empty(terminal: Terminal, world: Path, tmp_path: Path) -> None:
    """A folder the user made, perhaps a mount, is not removed with what a failed start wrote into it."""
    (tmp_path / "own").mkdir()
    settings = ["--set", f"output_dir={tmp_path / 'own'}", "--set", "report_to=[wandb]"]
    assert_refused(terminal("train", world / "run.yaml", *settings), "report_to: wandb")
    assert files_below(tmp_path) == {"own": None}


def test_a_folder_of_somebody_else(terminal: Terminal, tmp_path: Path) -> None:
    config = config_file(tmp_path)
    run = tmp_path / "closed" / "inner" / "run"
    with closed_folder(tmp_path / "closed"):
        done = terminal("train", config, "--set", f"output_dir={run}")
    assert_refused(done, f"{run}: cannot be written (Permission denied); choose another output_dir")
    assert not run.parent.exists()


@contextmanager
def closed_folder(folder: Path) -> Iterator[None]:
    """A folder this process may not look into; root becomes an ordinary user for that."""
    is_root = os.geteuid() == 0
    above = [parent for parent in folder.parents if parent.is_relative_to(Path(tempfile.gettempdir()))][:-1]
    modes = [parent.stat().st_mode for parent in above]
    folder.mkdir(mode=0o000)
    for parent in above:
        parent.chmod(0o755)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for parent, mode in zip(above, modes, strict=True):
            parent.chmod(mode)
        folder.chmod(0o700)


# --- the config file and the arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (None, "config.yaml: no such config file; check the path"),
        ("", "config.yaml: holds NoneType, not options"),
        ("loss: sft\n  broken: [\n", "config.yaml:2: "),
        (b"loss: \xff", "config.yaml: byte 6 is not UTF-8"),
        ("loss: sft\n", "model is missing; add it to the config or pass --set model=…"),
    ],
)
def test_a_bad_config_file(terminal: Terminal, tmp_path: Path, text: bytes | str | None, fragment: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(terminal("train", path), fragment)


def test_resume_of_what_is_no_run(terminal: Terminal, world: Path, tmp_path: Path) -> None:
    before = files_below(world)
    for folder in (world / "nowhere", world, world / "rows.jsonl"):
        assert_refused(terminal("train", "--resume", folder), f"{folder}: not a run (no readable run.json)")
    for content, fragment in {
        "[]": "its run.json holds no config); pass the run's own folder",
        "{": "no readable run.json",
        '{"config": {"sdft_alpha": 1}}': "'sdft_alpha' is not an option",
    }.items():
        (tmp_path / "run.json").write_text(content)
        assert_refused(terminal("train", "--resume", tmp_path), str(tmp_path), fragment)
    assert files_below(world) == before


@pytest.mark.parametrize("more", [["run.yaml"], ["--set", "max_steps=5"], ["--dry-run"]])
def test_resume_takes_no_other_config(terminal: Terminal, tmp_path: Path, more: list[str]) -> None:
    assert_refused(terminal("train", *more, "--resume", tmp_path), "--resume continues a run with its own config")


def test_train_needs_a_config(terminal: Terminal) -> None:
    assert_refused(terminal("train"), "no config given; write: tutelage train config.yaml")


# --- model folders that cannot be used --------------------------------------------------------------------------


def _truncate_weights(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(5000)


def _unknown_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "martian"}))


def _no_tokenizer(model: Path) -> None:
    for file in model.glob("token*"):
        file.unlink()


def _adapter(model: Path, **config: str) -> None:
    """A folder with the tokenizer of a model and the config of an adapter, but none of its weights."""
    for name in ("config.json", "model.safetensors"):
        (model / name).unlink()
    (model / "adapter_config.json").write_text(json.dumps(config))


BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda model: (model / "config.json").unlink(), "holds no config.json; point 'model' at"),
    "broken config": (lambda model: (model / "config.json").write_text("{") and None, "check that the download"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "holds no model that transformers can read"),
    "torn weights": (_truncate_weights, "holds no model that transformers can read; check that the download"),
    "unknown architecture": (_unknown_architecture, "holds no model that transformers can read"),
    "no tokenizer": (_no_tokenizer, "holds no tokenizer that transformers can read"),
    "no chat template": (lambda model: (model / "chat_template.jinja").unlink(), "set chat_template to a .jinja file"),
    "adapter without a base": (_adapter, "adapter_config.json: names no base model; add base_model_name_or_path"),
    "adapter of a base that is gone": (
        lambda model: _adapter(model, base_model_name_or_path="/nowhere/base"),
        "/nowhere/base: no such model folder",
    ),
    "adapter without weights": (
        lambda model: _adapter(model, base_model_name_or_path=str(model.parent / "whole"), peft_type="LORA"),
        "the adapter has no adapter_model.safetensors; check that its download is complete",
    ),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:peft")  # PEFT says that the config lacks fields, which it does
@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model_folder(terminal: Terminal, world: Path, tmp_path: Path, case: str) -> None:
    spoil, fragment = BAD_MODELS[case]
    whole = save_tiny_model(tmp_path / "whole")
    spoil(Path(shutil.copytree(whole, tmp_path / "model")))
    before = files_below(world)
    done = terminal("train", world / "run.yaml", "--set", f"model={tmp_path / 'model'}")
    assert done.code == 2
    message = done.err[done.err.index("error: ") :]
    assert_refused(Finished(done.code, done.out, message), str(tmp_path) if "nowhere" not in fragment else "", fragment)
    assert files_below(world) == before


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(200)])
def test_a_gguf_file_that_is_none(
    terminal: Terminal, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    done = terminal("train", world / "run.yaml", "--set", f"model={tmp_path / 'model.gguf'}")
    assert_refused(done, f"{tmp_path / 'model.gguf'}: not a GGUF model that transformers can read")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# --- the real thing ---------------------------------------------------------------------------------------------


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The same through a real process: nothing but the message on the terminal, from the first import on."""
    config = config_file(tmp_path)
    before = files_below(tmp_path)
    assert_refused(in_a_process("train", config, "--set", "model=nobody/nothing"), "model 'nobody/nothing'")
    assert_refused(in_a_process("train", tmp_path / "nowhere.yaml"), "nowhere.yaml: no such config file")
    assert files_below(tmp_path) == before


def test_a_corrected_config_runs_in_the_same_folder(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that failed leaves nothing in the way of the next one."""
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = config_file(tmp_path, report_to=["wandb"])
    assert_refused(terminal("train", config), "report_to: wandb")
    write_rows(tmp_path / "rows.jsonl")
    done = terminal("train", config, "--set", "report_to=[]")
    assert (done.code, done.out) == (0, f"model: {tmp_path / 'run' / 'adapter'}\n")
