"""The endpoints under /api, row by row as the workers, the client and the page use them."""

import secrets
import time
from datetime import datetime, timezone
from typing import Any

import pytest

import tutelage
from tests.served import CUSTOM, Api, Served, conversation, jsonl, new_run_id, problem_of, until
from tutelage.jobs.records import Scope

JOB = {
    "id",
    "kind",
    "status",
    "model",
    "params",
    "mounted_files",
    "image",
    "entrypoint",
    "requires_vram_gb",
    "allowed_hardware",
    "cloud_type",
    "organization_id",
    "run_id",
    "worker_id",
    "attempts",
    "max_attempts",
    "reason",
    "outputs",
    "submitted_by",
    "timeout",
    "created_at",
    "updated_at",
    "started_at",
    "finished_at",
}


def moment(text: str) -> datetime:
    """Contract: times are ISO 8601 in UTC."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_me(closed_server: Served, team: Api) -> None:
    me = team.ok("GET", "/api/me")
    assert me["scopes"] == ["read", "submit", "worker", "admin"]
    assert me["version"] == tutelage.__version__
    assert me["run_id"] is None
    assert me["organization"]["name"].startswith("org ")
    organization = me["organization"]["id"]
    reader = closed_server.api(closed_server.token(Scope.READ, organization=organization))
    assert reader.ok("GET", "/api/me") == me | {"scopes": ["read"]}
    # admin is all of them
    admin = closed_server.api(closed_server.token(Scope.ADMIN, organization=organization))
    assert admin.ok("GET", "/api/me") == me


def test_a_job_from_submission_to_its_end(team: Api) -> None:
    file = team.upload(b"a script", "custom_job_file")["id"]
    before = datetime.now(timezone.utc)
    body = CUSTOM | {
        "params": {"n": 1},
        "prefix": "mine",
        "mounted_files": {"./a//script.py": file},
        "image": "an/image",
        "entrypoint": "python a/script.py",
        "requires_vram_gb": 12,
        "allowed_hardware": ["1x L40"],
        "cloud_type": "ALL",
        "timeout": "2100-01-01T00:00:00Z",
    }
    job = team.ok("POST", "/api/jobs", body)
    assert job.keys() == JOB
    assert job["id"].startswith("mine-")
    assert job["mounted_files"] == {"a/script.py": file}
    expected = {"kind": "custom", "status": "pending", "image": "an/image", "entrypoint": "python a/script.py"}
    expected |= {"requires_vram_gb": 12, "allowed_hardware": ["1x L40"], "cloud_type": "ALL", "attempts": 0}
    assert job.items() >= (expected | {"max_attempts": 3, "run_id": None, "outputs": None}).items()
    assert job["timeout"] == "2100-01-01T00:00:00Z"
    assert before <= moment(job["created_at"]) <= datetime.now(timezone.utc)
    assert job["submitted_by"] is not None
    assert team.ok("GET", f"/api/jobs/{job['id']}") == job
    assert team.ok("PATCH", f"/api/jobs/{job['id']}", {"timeout": None})["timeout"] is None
    worker = team.worker(hardware="1 l40", gpus=1, vram_gb=48, images=["an/image"], ignore_vram=False)
    running = team.running(job, worker)
    now = team.ok("GET", f"/api/jobs/{job['id']}")
    assert (
        now.items() >= {"status": "in_progress", "run_id": running.run_id, "worker_id": worker, "attempts": 1}.items()
    )
    assert team.report(running.run_id, {"loss": 2, "note": "first"}, {"loss": 1, "note": None}) == 2
    done = team.finish(running.run_id, exit_code=0)
    assert done.items() >= {"status": "completed", "outputs": {"loss": 1, "note": "first"}, "run_id": None}.items()
    assert moment(done["started_at"]) <= moment(done["finished_at"])
    run = team.ok("GET", f"/api/runs/{running.run_id}")
    assert (
        run.items()
        >= {"status": "completed", "exit_code": 0, "attempt": 1, "latest": {"loss": 1, "note": "first"}}.items()
    )
    # Submitting it again is the same job; restarting is another run.
    assert team.ok("POST", "/api/jobs", body)["id"] == job["id"]
    assert team.ok("POST", f"/api/jobs/{job['id']}/restart")["status"] == "pending"
    assert team.ok("POST", f"/api/jobs/{job['id']}/restart")["status"] == "pending"
    assert team.ok("POST", f"/api/jobs/{job['id']}/cancel")["status"] == "canceled"
    assert team.ok("POST", f"/api/jobs/{job['id']}/cancel")["status"] == "canceled"
    assert team.ok("POST", "/api/jobs", body)["status"] == "pending"


def test_lists_of_jobs(team: Api) -> None:
    ids = [team.submit(number)["id"] for number in range(25)]
    file = team.upload(jsonl([conversation()]), "fine-tune")["id"]
    inference = team.ok("POST", "/api/jobs", {"kind": "inference", "params": {"model": "a/b", "input_file_id": file}})
    newest = [inference["id"], *ids[::-1]]
    page = team.ok("GET", "/api/jobs")
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (newest, False)
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = team.ok("GET", "/api/jobs", params={"limit": 10} | after)
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": seen[-1]}
    assert seen == newest
    team.ok("POST", f"/api/jobs/{ids[3]}/cancel")

    def found(**query: Any) -> list[str]:
        return [job["id"] for job in team.ok("GET", "/api/jobs", params=query)["data"]]

    assert found(status="canceled") == [ids[3]]
    assert found(kind="inference") == [inference["id"]]
    assert found(kind="none") == []
    assert found(search="a/B") == [inference["id"]]
    assert found(search=ids[7][7:]) == [ids[7]]
    for query in ({"status": "done"}, {"limit": 0}, {"limit": 1001}):
        team.refused(400, "GET", "/api/jobs", params=query)
    team.refused(404, "GET", "/api/jobs", params={"after": "custom-000000000000"})


def test_jobs_are_found_by_what_their_params_hold(team: Api) -> None:
    """Containment: nested values, lists by items; 1 is not true, and equal numbers are equal."""
    first = team.submit(params={"a": {"b": [1, 2, {"c": "x"}], "d": None}, "e": 1})["id"]
    second = team.submit(params={"a": {"b": [2]}, "e": True})["id"]

    def found(params: Any) -> list[str]:
        return [job["id"] for job in team.ok("POST", "/api/jobs/find", {"params": params})["data"]]

    assert found({"a": {"b": [2]}}) == [second, first]
    assert found({"a": {"b": [{"c": "x"}]}}) == [first]
    assert found({"e": 1}) == [first]
    assert found({"e": 1.0}) == [first]
    assert found({"e": True}) == [second]
    assert found({"a": {"d": None}}) == [first]
    assert found({"a": {}}) == [second, first]
    assert found({"a": {"b": 2}}) == []
    assert found({}) == [second, first]
    assert team.ok("POST", "/api/jobs/find", {"params": {}, "limit": 1})["has_more"] is True


def test_why_a_job_waits(team: Api) -> None:
    job = team.submit(requires_vram_gb=80, allowed_hardware=["2x H100"])
    nobody = team.ok("GET", f"/api/jobs/{job['id']}/explain")
    assert nobody.keys() == {"job_id", "status", "summary", "ahead", "workers"}
    assert "no worker is connected" in nobody["summary"]
    small = team.worker("small", hardware="1x A10", vram_gb=24, ignore_vram=False)
    explained = team.ok("GET", f"/api/jobs/{job['id']}/explain")
    assert explained["workers"][0]["worker_id"] == small
    assert explained["workers"][0]["fits"] is False
    assert len(explained["workers"][0]["reasons"]) == 2
    assert "80 GB" in explained["summary"]
    large = team.worker("large", hardware="2x H100", gpus=2, vram_gb=160, ignore_vram=False)
    running = team.running(job, large)
    assert running.run_id in team.ok("GET", f"/api/jobs/{job['id']}/explain")["summary"]


def test_runs(team: Api) -> None:
    worker = team.worker()
    job = team.submit()
    ids: list[str] = []
    for status in ("failed", "pending", "canceled"):
        ids.append(team.running(job, worker).run_id)
        team.finish(ids[-1], status, exit_code=3, reason=f"because {status}")
        if status != "pending":
            team.ok("POST", f"/api/jobs/{job['id']}/restart")

    def found(**query: Any) -> list[str]:
        return [run["id"] for run in team.ok("GET", "/api/runs", params=query)["data"]]

    assert found() == found(job_id=job["id"]) == found(worker_id=worker) == ids  # newest last
    assert found(status="failed") == ids[:1]
    assert found(job_id="custom-000000000000") == []
    assert team.ok("GET", "/api/runs", params={"limit": 2})["has_more"] is True
    assert found(limit=2) == ids[1:]
    assert team.ok("GET", f"/api/runs/{ids[0]}")["reason"] == "because failed"
    team.refused(400, "POST", f"/api/runs/{ids[0]}/finish", {"status": "in_progress"})
    team.refused(400, "POST", f"/api/runs/{ids[0]}/finish", {"status": "completed", "exit_code": 2**40})


def test_a_script_ends_its_own_run(closed_server: Served, team: Api) -> None:
    """It has no worker: whoever may submit begins it, reports for it and ends it."""
    organization = team.ok("GET", "/api/me")["organization"]["id"]
    script = closed_server.api(closed_server.token(Scope.SUBMIT, Scope.READ, organization=organization))
    run = script.ok("POST", "/api/runs", {"script": "python train.py"})
    job = script.ok("GET", f"/api/jobs/{run['job_id']}")
    assert job["id"].startswith("sjob-")
    assert job.items() >= {"kind": "script", "status": "in_progress", "entrypoint": "python train.py"}.items()
    assert script.report(run["id"], {"loss": 1}) == 1
    assert script.print(run["id"], 0, b"hello") == 5
    assert script.finish(run["id"], exit_code=0)["outputs"] == {"loss": 1}
    another = script.ok("POST", "/api/runs", {"script": "python train.py"})
    assert another["job_id"] != run["job_id"]
    # But not what a worker runs.
    running = team.running()
    script.refused(403, "POST", f"/api/runs/{running.run_id}/finish", {"status": "completed"})


def test_repeating_is_harmless(team: Api) -> None:
    """Contract: all of the POSTs are idempotent. An answer may be lost, so everything is asked twice."""
    job, worker, run_id = team.submit(), team.worker(), new_run_id()
    other = team.submit()
    first, second = team.claim(worker, run_id).json(), team.claim(worker, run_id).json()
    assert first["job"]["id"] == second["job"]["id"] == job["id"]
    assert (first["attempt"], second["attempt"]) == (1, 1)
    assert team.ok("GET", f"/api/jobs/{other['id']}")["status"] == "pending"
    events = [{"id": f"e{number}", "data": {"number": number}} for number in range(3)]
    assert team.ok("POST", "/api/events", {"run_id": run_id, "events": events}) == {"added": 3}
    assert team.ok("POST", "/api/events", {"run_id": run_id, "events": events}) == {"added": 0}
    more = [*events[1:], {"id": "e3", "data": {"number": 3}}, {"id": "e3", "data": {"number": 3}}]
    assert team.ok("POST", "/api/events", {"run_id": run_id, "events": more}) == {"added": 1}
    assert team.ok("POST", "/api/events", {"run_id": run_id, "events": []}) == {"added": 0}
    assert [team.print(run_id, 0, b"hello ") for _ in range(2)] == [6, 6]
    assert team.print(run_id, 3, b"lo world") == 11  # overlapping
    assert team.print(run_id, 99, b"too far") == 11  # a gap: nothing is taken, and where to go on is said
    assert team.print(run_id, 2**61, b"") == 11
    assert team("GET", f"/api/logs/{run_id}").text == "hello world"
    numbers = [event["data"]["number"] for event in team.ok("GET", "/api/events", params={"run_id": run_id})["data"]]
    assert numbers == [0, 1, 2, 3]
    for _ in range(2):
        assert team.ok("POST", f"/api/runs/{run_id}/heartbeat")["cancel"] is False
        assert team.ok("PUT", f"/api/runs/{run_id}/serving", {"port": 1, "models": {"a": "b"}})["id"] == run_id
    for _ in range(2):
        assert team.finish(run_id, "completed", exit_code=0)["status"] == "completed"
    # What is over is over.
    assert team.refused(409, "POST", f"/api/runs/{run_id}/finish", {"status": "failed"})["code"] == "fenced"
    assert team.refused(409, "POST", f"/api/runs/{run_id}/heartbeat")["code"] == "fenced"
    assert team.claim(worker, run_id).status_code == 409
    late = team.refused(409, "POST", f"/api/logs/{run_id}", params={"start": 11}, content=b"late")
    assert late["code"] == "fenced"
    assert (
        team.refused(409, "PUT", f"/api/runs/{run_id}/serving", {"port": 1, "models": {"a": "b"}})["code"] == "fenced"
    )
    for _ in range(2):
        assert team.ok("POST", f"/api/workers/{worker}/stop", {"reason": "done"})["reason"] == "done"
    refused = team.claim(worker)
    assert (refused.status_code, problem_of(refused)["code"]) == (409, "stopped")


def test_events(team: Api) -> None:
    job = team.submit()
    worker = team.worker()
    first = team.running(job, worker)
    file = team.upload(b"a result", "result")["id"]
    team.report(first.run_id, {"a": 1, "tag": "train"}, {"b": None, "c": [1, {"d": "é"}]}, file=file)
    team.finish(first.run_id, "pending")
    second = team.running(job, worker)
    team.report(second.run_id, {"a": 2})
    page = team.ok("GET", "/api/events", params={"job_id": job["id"]})
    assert [event["data"] for event in page["data"]] == [
        {"a": 1, "tag": "train"},
        {"b": None, "c": [1, {"d": "é"}]},
        {"a": 2},
    ]
    assert page["data"][0].keys() == {"id", "run_id", "created_at", "data", "file"}
    assert [event["file"] for event in page["data"]] == [file, file, None]
    ids = [event["id"] for event in page["data"]]
    assert ids == sorted(ids)
    after = team.ok("GET", "/api/events", params={"run_id": first.run_id, "after": ids[0]})
    assert [event["id"] for event in after["data"]] == [ids[1]]
    short = team.ok("GET", "/api/events", params={"job_id": job["id"], "limit": 2})
    assert ([event["id"] for event in short["data"]], short["has_more"]) == (ids[:2], True)
    assert team.ok("GET", "/api/events/latest", params={"run_id": first.run_id}) == {
        "a": 1,
        "tag": "train",
        "c": [1, {"d": "é"}],
    }
    assert team.ok("GET", "/api/events/latest", params={"job_id": job["id"]})["a"] == 2
    many = [{"id": str(number), "data": {}} for number in range(1001)]
    team.refused(400, "POST", "/api/events", {"run_id": second.run_id, "events": many})
    assert team.ok("POST", "/api/events", {"run_id": second.run_id, "events": many[:1000]}) == {"added": 1000}
    large = [{"id": "large", "data": {"text": "x" * 300_000}}]
    assert (
        "log a file" in team.refused(400, "POST", "/api/events", {"run_id": second.run_id, "events": large})["message"]
    )
    # All of a request or nothing of it.
    half = [{"id": "fine", "data": {}}, *large]
    team.refused(400, "POST", "/api/events", {"run_id": second.run_id, "events": half})
    assert team.ok("POST", "/api/events", {"run_id": second.run_id, "events": half[:1]}) == {"added": 1}


def test_series(team: Api) -> None:
    running = team.running()
    team.report(running.run_id, *({"tag": "train", "step": step, "loss": step / 2} for step in range(1, 101)))
    team.report(running.run_id, {"tag": "eval", "step": 100, "score": 0.5, "name": "x", "flag": True})
    series = team.ok("GET", f"/api/runs/{running.run_id}/series", params={"points": 10})["data"]
    by_name = {(one["tag"], one["field"]): one for one in series}
    assert by_name.keys() == {("train", "loss"), ("eval", "score")}
    loss = by_name["train", "loss"]
    assert loss["steps"][-1] == 100
    assert len(loss["steps"]) == 10
    assert loss["values"] == [step / 2 for step in loss["steps"]]


def test_logs_from_any_place(team: Api) -> None:
    running = team.running()
    path = f"/api/logs/{running.run_id}"
    assert team("GET", path).content == b""
    team.print(running.run_id, 0, b"0123456789")
    for start, expected, end in [(0, b"0123456789", 10), (4, b"456789", 10), (-3, b"789", 10), (10, b"", 10)]:
        answer = team("GET", path, params={"start": start})
        assert (answer.content, answer.headers["Tutelage-Log-End"]) == (expected, str(end))
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert team("GET", path, params={"start": 99}).headers["Tutelage-Log-End"] == "10"
    assert team("GET", path, params={"start": -99}).content == b"0123456789"
    team.refused(400, "GET", path, params={"start": "x"})


def test_workers(team: Api) -> None:
    worker = team.ok(
        "POST",
        "/api/workers",
        {
            "name": "gpu-1",
            "version": "1.2",
            "hardware": "8 a100",
            "gpus": 8,
            "vram_gb": 640.0,
            "cloud_type": "community",
            "images": ["x"],
            "cached_models": ["m"],
            "cost_per_hour": 12.5,
        },
    )
    assert (
        worker.items()
        >= {
            "name": "gpu-1",
            "hardware": "8x A100",
            "cloud_type": "COMMUNITY",
            "status": "active",
            "cost_per_hour": 12.5,
            "images": ["x"],
        }.items()
    )
    changed = team.ok("PATCH", f"/api/workers/{worker['id']}", {"cached_models": ["m", "n"], "disk_free_gb": 7.5})
    assert (changed["cached_models"], changed["disk_free_gb"]) == (["m", "n"], 7.5)
    stopped = team.ok("POST", f"/api/workers/{worker['id']}/stop", {"reason": "five failures in a row"})
    assert stopped["reason"] == "five failures in a row"
    assert stopped["stopped_at"] is not None
    assert [one["id"] for one in team.ok("GET", "/api/workers")["data"]] == [worker["id"]]
    for wrong in ({"cloud_type": "ALL"}, {"hardware": "0x A100"}, {"gpus": -1}, {"vram_gb": -1}, {"images": "x"}):
        team.refused(400, "POST", "/api/workers", {"name": "x", "version": "1"} | wrong)


def test_costs(team: Api) -> None:
    dear, cheap = team.worker("dear", cost_per_hour=3600.0), team.worker("cheap")
    first = team.running(worker_id=cheap)
    team.finish(first.run_id)
    second = team.running(worker_id=dear)
    team.finish(second.run_id)
    costs = team.ok("GET", "/api/costs")["data"]
    assert [cost["job_id"] for cost in costs] == [second.job_id, first.job_id]
    assert costs[0].keys() == {"job_id", "kind", "runs", "hours", "dollars"}
    assert costs[0]["dollars"] == pytest.approx(costs[0]["hours"] * 3600)
    assert costs[1]["dollars"] == 0
    page = team.ok("GET", "/api/costs", params={"limit": 1, "offset": 1})
    assert ([cost["job_id"] for cost in page["data"]], page["has_more"]) == ([first.job_id], False)


def test_secrets_go_to_the_claiming_worker_alone(closed_server: Served, team: Api) -> None:
    """Section 7: given to jobs as environment, masked in events and reasons, in no other answer, in no log."""
    value = "hf_" + secrets.token_hex(12)
    running_before = team.running()
    team.report(running_before.run_id, {"before": "nothing to hide yet"})  # what is masked is remembered a while
    assert team.ok("PUT", "/api/secrets/HF_TOKEN", {"value": value}) == {"data": ["HF_TOKEN"], "has_more": False}
    assert team.ok("GET", "/api/secrets")["data"] == ["HF_TOKEN"]
    running = team.running()
    assert running.answer["environment"] == {"HF_TOKEN": value}
    run_id = running.run_id
    team.report(run_id, {"text": f"token={value}!", value: [value, {"deep": f"{value}{value}"}], "tag": value})
    events = team.ok("GET", "/api/events", params={"run_id": run_id})["data"]
    assert events[0]["data"] == {"text": "token=***!", "***": ["***", {"deep": "******"}], "tag": "***"}
    done = team.finish(run_id, "failed", exit_code=1, reason=f"401 for {value}")
    assert done["reason"] == "401 for ***"
    team.ok("POST", f"/api/workers/{running.worker_id}/stop", {"reason": f"could not log in with {value}"})
    for path in [
        "/api/jobs",
        f"/api/jobs/{running.job_id}",
        f"/api/jobs/{running.job_id}/explain",
        "/api/runs",
        "/api/workers",
        "/api/secrets",
        "/api/tokens",
        f"/api/events?job_id={running.job_id}",
        f"/api/events/latest?job_id={running.job_id}",
        f"/api/runs/{run_id}/series",
        "/v1/models",
        "/openapi.json",
    ]:
        assert value not in team("GET", path).text, path
    assert value not in closed_server.logged()
    assert team.token is not None
    assert team.token not in closed_server.logged()
    # A job that runs still has the old value after it was changed.
    team.ok("PUT", "/api/secrets/HF_TOKEN", {"value": "another value"})
    team.report(running_before.run_id, {"text": f"{value}, another value"})
    latest = team.ok("GET", "/api/events/latest", params={"run_id": running_before.run_id})
    assert latest["text"] == "***, ***"
    assert team.ok("DELETE", "/api/secrets/HF_TOKEN")["data"] == []
    team.refused(404, "DELETE", "/api/secrets/HF_TOKEN")
    again = team.running()
    assert again.answer["environment"] == {}
    for name in ("1A", "A-B", "A B", "É", "A=B", "A%2FB"):
        assert team("PUT", f"/api/secrets/{name}", {"value": "123456"}).status_code in (400, 404)
    for wrong in ("a\0b", "x" * 100_001):
        team.refused(400, "PUT", "/api/secrets/A", {"value": wrong})


def test_times_are_utc_and_whole(team: Api) -> None:
    """Every time in an answer ends in Z and can be read back."""
    running = team.running()
    team.report(running.run_id, {"a": 1})
    team.finish(running.run_id)
    for path in ("/api/jobs", "/api/runs", "/api/workers", "/api/tokens", f"/api/events?run_id={running.run_id}"):
        for one in team.ok("GET", path)["data"]:
            for name, value in one.items():
                if name.endswith("_at") and value is not None:
                    assert abs(moment(value).timestamp() - time.time()) < 3600, (path, name, value)


def test_a_job_whose_time_is_over_is_canceled(team: Api) -> None:
    running = team.running()
    past = datetime.fromtimestamp(time.time() - 1, timezone.utc).isoformat()
    team.ok("PATCH", f"/api/jobs/{running.job_id}", {"timeout": past})
    job = until(
        lambda: next((j for j in [team.ok("GET", f"/api/jobs/{running.job_id}")] if j["status"] == "canceled"), None),
        "the cancel",
    )
    assert job is not None
    assert "timeout" in job["reason"]
    assert team.ok("POST", f"/api/runs/{running.run_id}/heartbeat")["cancel"] is True
