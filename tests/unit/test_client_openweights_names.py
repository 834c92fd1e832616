"""Names of OpenWeights 0.14 that its documentation does not show and scripts use all the same.

Against a real server; whole scripts are in `test_client_openweights_scripts.py`.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_job_server import JobServer, job_server
from tests.served import conversation, jsonl
from tutelage.client import OpenWeights
from tutelage.errors import FencedError


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


def test_arguments_by_place_are_those_of_openweights() -> None:
    """Of the client and of deployments, in the order of its signatures."""
    with pytest.warns(UserWarning, match="supabase_url and supabase_key"):
        client = OpenWeights("https://other.example", "key", "ow_mine", "org-1", True)
    assert (client.auth_token, client.http.address) == ("ow_mine", "http://127.0.0.1:8000")
    assert client.chat is client.async_chat
    client.close()
    deploy = ["self", "model", "lora_adapters", "max_lora_rank", "max_model_len", "requires_vram_gb", "max_num_seqs"]
    assert list(inspect.signature(type(client.api).deploy).parameters)[:7] == deploy
    several = ["self", "models", "max_model_len", "requires_vram_gb", "max_num_seqs", "base_model_override"]
    assert list(inspect.signature(type(client.api).multi_deploy).parameters)[:6] == several


def test_a_script_may_end_its_own_run(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUTELAGE_RUN_ID", "OPENWEIGHTS_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    run = server.client.run
    run.log({"loss": 1.5})
    run.update()
    assert run.refresh().status == "in_progress"
    run.update(status="completed")
    job = server.client.jobs.retrieve(run.job_id)
    assert (run.status, job.status, job.outputs) == ("completed", "completed", {"loss": 1.5})
    run.update(status="completed")
    with pytest.raises(FencedError):
        run.update(status="failed")


def test_options_stand_where_openweights_has_them(server: JobServer, tmp_path: Path) -> None:
    """Those of deployments beside `validated_params`, those of log-probabilities as `params` in `params`."""
    (tmp_path / "rows.jsonl").write_bytes(jsonl([conversation()]))
    api = server.client.api.create(model="org/model-1b", max_num_seqs=7)
    assert (api.params["model"], api["params"]["max_num_seqs"]) == ("org/model-1b", 7)
    assert api.params["validated_params"]["max_num_seqs"] == 7
    scored = server.client.logprob.create(model="org/model-1b", dataset=tmp_path / "rows.jsonl")
    assert scored.params["params"]["dataset"] == scored.params["validated_params"]["dataset"]
    assert scored.params["params"]["dataset"].startswith("conversations:file-")


def test_a_script_that_is_told_its_job_gets_the_one_it_is(server: JobServer) -> None:
    """OpenWeights' own kinds do so: the id of `compute_id` goes into the command, which asks for the job of that id.

    Here the command is part of the id, so that none can hold its own; the job knows it when it runs.
    """
    params = {"validated_params": {"a": 1}, "mounted_files": {}}
    job_id = server.client.jobs.compute_id(params)
    data = {"id": job_id, "type": "custom", "script": f"python main.py {job_id}", "params": params}
    job = server.client.jobs.get_or_create_or_reset(data)
    assert job.script == "python main.py $TUTELAGE_JOB_ID"
    assert server.client.jobs.get_or_create_or_reset({**data, "id": job.id}).script == f"python main.py {job_id}"
    own = {"type": "custom", "id": "main", "script": "python main.py", "params": params}
    assert server.client.jobs.get_or_create_or_reset(own).script == "python main.py"
