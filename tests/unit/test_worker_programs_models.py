"""References to models of jobs: which files they mean, the cache they go into, what cannot be found.

The server is a stand-in that holds runs, events and files; no model is loaded.
"""

import json
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import ModelError, NotFoundError, OutputError
from tutelage.jobs.kinds import KINDS
from tutelage.jobs.records import Event, Run
from tutelage.jobs.status import JobStatus
from tutelage.worker.models import BASE, CONTENTS, MODEL_FIELDS, ModelCache, ModelReference, resolve_models

NOW = datetime(2025, 1, 1, tzinfo=timezone.utc)
JOB, OTHER = "ftjob-0123456789ab", "sftjob-ba9876543210-mine"


class Server:
    """Runs of jobs and what they left, path to content."""

    def __init__(self) -> None:
        self.run_list: dict[str, list[Run]] = {}
        self.event_list: dict[str, list[Event]] = {}
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.chosen: dict[str, str] = {}

    def add(self, job_id: str, status: JobStatus, left: Mapping[str, str]) -> None:
        runs = self.run_list.setdefault(job_id, [])
        run_id = f"{job_id}-run-{len(runs) + 1}"
        runs.append(Run(run_id, job_id, "worker", len(runs) + 1, status, None, 0, NOW, NOW, 0, {}))
        events = [Event(1, run_id, NOW, {"loss": 1.0, "file": None})]
        for path, content in left.items():
            file_id = f"result:file-{hash((path, content)) & 0xFFFFFFFFFFFF:012x}"
            self.files[file_id] = content.encode()
            events.append(Event(len(events) + 1, run_id, NOW, {"file": file_id, "path": path}))
        self.event_list[run_id] = events

    def runs(self, job_id: str) -> list[Run]:
        if job_id not in self.run_list:
            raise NotFoundError(f"{job_id}: there is no such job")
        return self.run_list[job_id]

    def events(self, *, run_id: str) -> list[Event]:
        return self.event_list[run_id]

    def trained_as(self, name: str) -> str | None:
        return self.chosen.get(name)

    def download(self, file_id: str, path: Path) -> None:
        self.downloads.append(file_id)
        path.write_bytes(self.files[file_id])


class Canceled(Exception):
    """Raised by a check in place of the worker's own."""


MODEL = {"model/config.json": "{}", "model/model.safetensors": "weights", "samples.jsonl": "no part of a model"}


@pytest.fixture
def server() -> Server:
    server = Server()
    server.add(JOB, JobStatus.FAILED, {"checkpoint-10/config.json": "ten", "checkpoint-20/config.json": "old twenty"})
    server.add(JOB, JobStatus.COMPLETED, MODEL | {"checkpoint-20/config.json": "twenty", "checkpoint-20/deep/a": "a"})
    return server


def content(folder: str | Path) -> dict[str, str]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != CONTENTS)
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def test_every_kind_that_asks_or_trains_a_model_has_its_fields_in_the_table() -> None:
    assert set(MODEL_FIELDS) == set(KINDS) - {"custom"}


def test_references_become_folders_and_other_names_stay(server: Server, tmp_path: Path) -> None:
    server.add(OTHER, JobStatus.COMPLETED, {"adapter/adapter_model.safetensors": "lora"})
    params = {"model": "org/base", "lora_adapters": [JOB, OTHER, f"{JOB}:step-10", "org/lora"], "max_loras": 3}
    resolved = resolve_models(server, params, tmp_path, MODEL_FIELDS["api"])
    folders = [tmp_path / "models" / name for name in (JOB, OTHER, f"{JOB}-step-10")]
    assert resolved == params | {"lora_adapters": [*map(str, folders), "org/lora"]}
    assert [content(folder) for folder in folders] == [
        {"config.json": "{}", "model.safetensors": "weights"},
        {"adapter_model.safetensors": "lora"},
        {"config.json": "ten"},
    ]
    assert params["lora_adapters"][0] == JOB


def test_a_model_may_be_named_as_was_chosen_for_it(server: Server, tmp_path: Path) -> None:
    """`finetuned_model_id`, as scripts for OpenWeights do; what answers under a name and no job left stays a name."""
    server.chosen = {"me/mine": JOB, "gpt": "gpt"}
    (folder, adapter) = (str(tmp_path / "models" / JOB), "org/other")
    params = {"model": "me/mine", "lora_adapters": ["gpt", adapter]}
    resolved = resolve_models(server, params, tmp_path, MODEL_FIELDS["api"])
    assert resolved == {"model": folder, "lora_adapters": ["gpt", adapter]}
    assert content(folder) == {"config.json": "{}", "model.safetensors": "weights"}


def test_a_checkpoint_is_of_the_newest_run_that_has_it(server: Server, tmp_path: Path) -> None:
    cache = ModelCache(server, tmp_path)
    assert content(cache.resolve(f"{JOB}:step-20")) == {"config.json": "twenty", "deep/a": "a"}
    assert content(cache.resolve(f"{JOB}:step-10")) == {"config.json": "ten"}
    assert cache.cached() == [f"{JOB}:step-10", f"{JOB}:step-20"]


def test_a_folder_becomes_absolute_and_what_is_none_stays(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = ModelCache(server, tmp_path / "cache")
    assert cache.resolve("mine") == str(tmp_path / "mine")
    assert [cache.resolve(name) for name in ("smollm2", "org/model", "x" * 5000)] == [
        "smollm2",
        "org/model",
        "x" * 5000,
    ]


def test_a_model_is_downloaded_once_and_again_when_its_job_made_another(server: Server, tmp_path: Path) -> None:
    cache = ModelCache(server, tmp_path)
    first = cache.fetch(ModelReference(JOB))
    assert len(server.downloads) == 2
    assert ModelCache(server, tmp_path).fetch(ModelReference(JOB)) == first
    assert len(server.downloads) == 2
    server.add(JOB, JobStatus.COMPLETED, {"model/config.json": "new", "model/model.safetensors": "weights"})
    cache.fetch(ModelReference(JOB))
    assert content(first) == {"config.json": "new", "model.safetensors": "weights"}


def test_a_download_that_breaks_off_leaves_nothing_that_looks_complete(server: Server, tmp_path: Path) -> None:
    def broken(file_id: str, path: Path) -> None:
        if server.downloads:
            raise OSError(28, "No space left on device")
        server.downloads.append(file_id)
        path.write_bytes(b"{}")

    whole, server.download = server.download, broken  # type: ignore[method-assign]
    cache = ModelCache(server, tmp_path)
    with pytest.raises(OutputError, match=r"No space left on device.*remove cached models"):
        cache.fetch(ModelReference(JOB))
    assert [path.name for path in tmp_path.iterdir()] == [f".{JOB}.lock"]
    server.download = whole  # type: ignore[method-assign]
    assert content(cache.fetch(ModelReference(JOB))) == {"config.json": "{}", "model.safetensors": "weights"}


def test_workers_that_want_a_model_at_once_download_it_once(server: Server, tmp_path: Path) -> None:
    together = threading.Barrier(4)
    found: list[Path] = []

    def fetch() -> None:
        together.wait(10)
        found.append(ModelCache(server, tmp_path).fetch(ModelReference(JOB)))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert len(server.downloads) == 2


def test_an_adapter_finds_the_base_that_its_job_names(server: Server, tmp_path: Path) -> None:
    """On a model of a job: that job's folder. On an adapter it went on from: the base of that one."""

    def adapter(base: str) -> dict[str, str]:
        return {"adapter/adapter_config.json": json.dumps({BASE: base, "r": 4})}

    names = {base: f"ftjob-{number:012x}" for number, base in enumerate(("on model", "on hub", "on adapter"))}
    for name, base in zip(names.values(), (JOB, "org/base", names["on model"]), strict=True):
        server.add(name, JobStatus.COMPLETED, adapter(base))
    cache = ModelCache(server, tmp_path)
    bases = {
        what: json.loads((Path(cache.resolve(name)) / "adapter_config.json").read_text())[BASE]
        for what, name in names.items()
    }
    assert bases == {"on model": str(tmp_path / JOB), "on hub": "org/base", "on adapter": str(tmp_path / JOB)}


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("ftjob-aaaaaaaaaaaa", "there is no job ftjob-aaaaaaaaaaaa that ran"),
        (f"{JOB}:step-15", "no checkpoint of that step; did you mean 'step-10'.*it has step-10, step-20"),
        ("ftjob-cccccccccccc", "the job is in_progress, and its model is there when it is completed"),
        ("ftjob-dddddddddddd", "the job is completed and left no model"),
        ("ftjob-dddddddddddd:step-1", "it has none; train it with a smaller save_steps"),
        ("ftjob-eeeeeeeeeeee", "leads out of the job's folder"),
        ("ftjob-ffffffffffff", "names itself as its base"),
    ],
)
def test_what_cannot_be_found_is_said_in_a_sentence(
    server: Server, tmp_path: Path, reference: str, sentence: str
) -> None:
    server.add("ftjob-cccccccccccc", JobStatus.IN_PROGRESS, {})
    server.add("ftjob-dddddddddddd", JobStatus.COMPLETED, {"results.json": "{}"})
    server.add("ftjob-eeeeeeeeeeee", JobStatus.COMPLETED, {"model/../../../escaped": "!"})
    itself = json.dumps({BASE: "ftjob-ffffffffffff"})
    server.add("ftjob-ffffffffffff", JobStatus.COMPLETED, {"adapter/adapter_config.json": itself})
    with pytest.raises(ModelError, match=sentence):
        ModelCache(server, tmp_path / "a" / "b").resolve(reference)
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["gpt2", "org/ftjob-0123456789ab", "ftjob-0123", "ftjob-0123456789ab:step-", "ftjob"])
def test_a_name_of_another_form_is_no_reference(name: str) -> None:
    parsed: Any = ModelReference.parsed(name)
    assert parsed is None


@pytest.mark.parametrize("name", ["~no-such-user/model", "x" * 5000, "org/model"])
def test_a_name_that_is_no_path_here_stays(server: Server, tmp_path: Path, name: str) -> None:
    """In the home of a user who is not there; longer than a path can be."""
    assert resolve_models(server, {"model": name}, tmp_path, ("model",)) == {"model": name}


def test_a_canceled_job_fetches_no_more_of_a_model(server: Server, tmp_path: Path) -> None:
    """The check ends it behind the first of two files, and nothing unfinished stays."""

    def check() -> None:
        if server.downloads:
            raise Canceled

    with pytest.raises(Canceled):
        resolve_models(server, {"model": JOB}, tmp_path, ("model",), check)
    assert len(server.downloads) == 1
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
