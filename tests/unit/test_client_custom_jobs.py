"""Custom jobs, mounts, commands, ids: what `Jobs` makes of a class and of OpenWeights' dicts. Against a real server."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.fake_job_server import JobServer, job_server
from tests.served import conversation, jsonl
from tutelage.client import Jobs, OpenWeights, register
from tutelage.errors import ConfigError, JobError

ZEROS = "0" * 12


class CountParams(BaseModel):
    to: int
    words: list[str] = ["one"]


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture
def counting(tmp_path: Path) -> type[Jobs]:
    """A custom job as OpenWeights' documentation has them."""
    (tmp_path / "script.py").write_text("print(1)")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "deep" / "b.txt").write_text("b")
    (folder / "__pycache__" / "c.pyc").write_text("c")

    @register("counting")
    class Counting(Jobs):
        mount = {str(tmp_path / "script.py"): "script.py", str(folder) + "/": "folder/"}  # noqa: RUF012 - as there
        params = CountParams
        requires_vram_gb = 8

        def get_entrypoint(self, validated_params: CountParams) -> str:
            return f"python script.py {validated_params.to}"

    return Counting


def test_a_custom_job_is_what_it_mounts_runs_and_was_given(server: JobServer, counting: type[Jobs]) -> None:
    client = server.client
    job = client.counting.create(to=3, cloud_type="all", allowed_hardware=["2 a100"], docker_image="image:1")
    assert job.id.startswith("counting-")
    assert (job.type, job["status"], job.script, job.docker_image) == (
        "custom",
        "pending",
        "python script.py 3",
        "image:1",
    )
    assert (job.requires_vram_gb, job.allowed_hardware, job.cloud_type) == (8, ["2x A100"], "ALL")
    assert job.params["cloud_type"] == "ALL"
    assert job.params["validated_params"]["to"] == 3
    assert job.params["validated_params"]["words"] == ["one"]
    mounted = job.params["mounted_files"]
    assert sorted(mounted) == ["folder/a.txt", "folder/deep/b.txt", "script.py"]
    assert client.files.content(mounted["folder/deep/b.txt"]) == b"b"
    assert client.counting.create(to=3, docker_image="image:1").id == job.id
    assert client.counting.create(to=4, docker_image="image:1").id != job.id
    assert client.counting.create(to=3).id != job.id  # another image is another job


def test_registered_jobs_are_on_clients_made_before_and_after(server: JobServer, counting: type[Jobs]) -> None:
    later = OpenWeights(base_url=server.url)
    assert type(later.counting) is type(server.client.counting) is counting
    for name in ("jobs", "files", "no name", "_private", "run"):
        with pytest.raises(ConfigError, match=f"register: '{name}' cannot be"):
            register(name)
    with pytest.raises(AttributeError, match=r"no 'never_registered'.*imported first"):
        _ = later.never_registered


def test_scheduling_options_may_be_params_of_the_job_too(server: JobServer) -> None:
    class Vram(BaseModel):
        requires_vram_gb: int = 60

    @register("needy")
    class Needy(Jobs):
        params = Vram
        requires_vram_gb = None

        def get_entrypoint(self, validated_params: Vram) -> str:
            return f"echo {validated_params.requires_vram_gb}"

    job = server.client.needy.create(requires_vram_gb=7)
    assert (job.requires_vram_gb, job.script) == (7, "echo 7")
    assert server.client.needy.create().requires_vram_gb == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "to is missing; add it to create"),
        ({"to": "many"}, "to: 'many' does not fit"),
        ({"to": 1, "cloud_type": "PRIVATE"}, "cloud_type: 'PRIVATE' is none"),
        ({"to": 1, "allowed_hardware": ["0x A100"]}, "allowed_hardware: '0x A100' is no number"),
        ({"to": 1, "requires_vram_gb": -1}, "requires_vram_gb: -1 is none"),
    ],
)
def test_wrong_options_are_said_before_anything_is_uploaded(
    server: JobServer, counting: type[Jobs], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ConfigError, JobError), match=sentence):
        server.client.counting.create(**options)
    assert server.faults.seen == {}


@pytest.mark.parametrize("target", ["../out", "/etc/passwd", "~/x", "a\\b"])
def test_mounts_stay_in_the_folder_of_the_job(server: JobServer, tmp_path: Path, target: str) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(JobError, match="mount target"):
        server.client.exec("true", mount={str(tmp_path / "x"): target})
    with pytest.raises(ConfigError, match=r"mount: '.*nowhere' is not there"):
        server.client.exec("true", mount={str(tmp_path / "nowhere"): "x"})
    assert server.faults.seen["POST /v1/files"] == 0


def test_a_file_mounted_on_a_folder_keeps_its_name(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    for target, expected in ((".", "x.txt"), ("in/", "in/x.txt"), ("./y.txt", "y.txt")):
        assert list(server.client.exec("ls", mount={str(tmp_path / "x.txt"): target}).mounted_files) == [expected]


def test_exec_runs_a_command(server: JobServer) -> None:
    job = server.client.exec(["echo", "two words", "$HOME"], cloud_type="COMMUNITY", requires_vram_gb=2)
    assert job.id.startswith("execjob-")
    assert (job.kind, job.script) == ("custom", "echo 'two words' '$HOME'")
    assert (job.cloud_type, job.requires_vram_gb) == ("COMMUNITY", 2)
    assert server.client.exec("echo 'two words' '$HOME'").id == job.id
    with pytest.raises(JobError, match="entrypoint: a custom job has none"):
        server.client.exec("")


def test_ids_can_be_told_beforehand(server: JobServer, counting: type[Jobs], tmp_path: Path) -> None:
    """What the server makes of it, for a custom job and for training, with a suffix too."""
    client = server.client
    job = client.counting.create(to=3)
    data = {
        "type": "custom",
        "docker_image": None,
        "script": job.script,
        "params": {
            "validated_params": {"to": 3, "words": ["one"]},
            "mounted_files": job.params["mounted_files"],
        },
    }
    assert client.counting.compute_id(data) == job.id
    assert client.counting.get_or_create_or_reset(data).id == job.id
    assert client.counting.compute_id(data, docker_image="image:1") != job.id
    without_script = client.counting.compute_id(data["params"])
    assert without_script.startswith("counting-")
    assert without_script != job.id
    file = client.files.create(io.BytesIO(jsonl([conversation()])), "conversations")
    options = {"model": "smollm2", "training_file": file.id, "loss": "dft", "job_id_suffix": "mine"}
    training = client.fine_tuning.create(**options)
    assert training.id.endswith("-mine")
    for form in ({"type": "fine-tuning", "params": {"validated_params": options}}, {"validated_params": options}):
        assert client.fine_tuning.compute_id({"type": "fine-tuning", **form}) == training.id


def test_the_dict_of_openweights_is_submitted(server: JobServer) -> None:
    data = {
        "id": f"mycount-{ZEROS}",
        "type": "custom",
        "docker_image": "image:1",
        "requires_vram_gb": 12,
        "script": "echo 1",
        "allowed_hardware": ["A100"],
        "params": {"validated_params": {"a": 1}, "mounted_files": {}, "cloud_type": "ALL"},
    }
    job = server.client.jobs.get_or_create_or_reset(data)
    assert job.id.startswith("mycount-")
    assert job.params == {
        "validated_params": {"a": 1, "job_id_suffix": None, "meta": {}},
        "mounted_files": {},
        "cloud_type": "ALL",
    }
    assert (job.allowed_hardware, job.requires_vram_gb, job.docker_image) == (["1x A100"], 12, "image:1")
    job.cancel()
    assert server.client.jobs.get_or_create_or_reset(data).status == "pending"
    with pytest.raises(JobError, match="type: 'magic' is none"):
        server.client.jobs.get_or_create_or_reset({"type": "magic"})
