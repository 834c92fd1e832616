"""`tutelage files`, `token` and `env` against a server, and the first token of one that does not run."""

import getpass
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.databases import KEY as DATABASE_KEY
from tests.e2e.command_line import ENVIRONMENT, Finished, Terminal
from tests.served import Api, Served, conversation, jsonl, served
from tutelage.client import http
from tutelage.jobs.records import Scope

MEGABYTE = 1024 * 1024
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----"


@pytest.fixture
def team(open_server: Served, monkeypatch: pytest.MonkeyPatch) -> Api:
    """An administrator of an organisation of this test alone, as whom commands are called."""
    api = open_server.of_another_organization()
    assert api.token is not None
    monkeypatch.setenv("TUTELAGE_URL", open_server.url)
    monkeypatch.setenv("TUTELAGE_API_KEY", api.token)
    return api


@pytest.fixture
def shell(terminal: Terminal, team: Api) -> Terminal:
    return terminal


def answer(done: Finished) -> Any:
    assert (done.code, done.err) == (0, ""), done
    return json.loads(done.out)


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Standard input from a pipe or a file."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def secrets_of_jobs(server: Served, api: Api) -> dict[str, str]:
    """What a job of that organisation gets as its environment."""
    organization = api.ok("GET", "/api/me")["organization"]["id"]
    return server.services.access.environment(organization)


def test_a_file_up_and_down(shell: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([conversation(1)]))
    assert shell("files", "ls").out == "no files; upload one with: tutelage files upload PATH\n"
    uploaded = shell("files", "upload", path)
    file = uploaded.out.strip()
    assert (uploaded.code, uploaded.out) == (0, f"{file}\n")
    assert file.startswith("conversations:file-")
    again = answer(shell("files", "upload", path, "--json"))
    assert (again["id"], again["bytes"], again["filename"]) == (file, len(path.read_bytes()), "rows.jsonl")
    kept = answer(shell("files", "upload", path, "--purpose", "notes", "--json"))
    assert [one["id"] for one in answer(shell("files", "ls", "--json"))] == [kept["id"], file]
    assert [one["id"] for one in answer(shell("files", "ls", "--purpose", "notes", "--json"))] == [kept["id"]]
    assert len(answer(shell("files", "ls", "--limit", 1, "--json"))) == 1
    assert shell("files", "ls", "--purpose", "other").out == "no files of other\n"
    table = [line.split()[:3] for line in shell("files", "ls").out.splitlines()]
    assert table == [
        ["file", "name", "bytes"],
        *([one, "rows.jsonl", str(len(path.read_bytes()))] for one in (kept["id"], file)),
    ]

    assert shell("files", "get", file).out == path.read_text()
    there = tmp_path / "new" / "copy.jsonl"
    assert shell("files", "get", file, "--output", there).out == f"{there}\n"
    assert there.read_bytes() == path.read_bytes()
    got = answer(shell("files", "get", file, "--output", tmp_path / "two.jsonl", "--json"))
    assert got == {"id": file, "path": str(tmp_path / "two.jsonl"), "bytes": len(path.read_bytes())}
    beside = shell("files", "get", file, "--json")
    assert (beside.code, beside.out) == (2, "")
    assert beside.err == "error: --json: the file itself would go to standard output; say where to with --output\n"

    assert shell("files", "rm", file).out == f"{file}: deleted\n"
    assert answer(shell("files", "rm", kept["id"], "--json")) == {"id": kept["id"], "deleted": True}
    for name in ("get", "rm"):
        gone = shell("files", name, file)
        assert (gone.code, gone.out) == (2, "")
        assert gone.err.startswith(f"error: {file}: ")


def test_rows_that_are_none_are_refused_with_their_lines(shell: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([conversation(1)]) + b"nothing\n")
    done = shell("files", "upload", path)
    assert (done.code, done.out) == (2, "")
    assert "rows.jsonl:2" in done.err
    missing = shell("files", "upload", tmp_path / "none.jsonl")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.startswith(f"error: {tmp_path / 'none.jsonl'}: ")


def test_a_large_file_is_never_in_memory(team: Api, open_server: Served, tmp_path: Path) -> None:
    """The command may have 24 MB more than it has when it begins, and the file has 64."""
    content = hashlib.sha256(b"large").digest() * (2 * MEGABYTE)
    file = team.upload(content, "weights", "model.bin")["id"]
    script = (
        "import sys, tracemalloc, tutelage.cli, tutelage.client.openweights; tracemalloc.start(1)\n"
        "try: tutelage.cli.main()\n"
        "finally: print(tracemalloc.get_traced_memory()[1], file=sys.stderr)"
    )
    environment = ENVIRONMENT | {"TUTELAGE_URL": open_server.url, "TUTELAGE_API_KEY": str(team.token)}
    command = [sys.executable, "-c", script, "files", "get", file]
    with (tmp_path / "copy").open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment, check=True)
    assert (tmp_path / "copy").read_bytes() == content
    assert int(done.stderr) < 24 * MEGABYTE


def test_a_token_is_made_used_and_revoked(shell: Terminal, open_server: Served) -> None:
    made = shell("token", "create", "ci", "--scope", "read", "--expires", "12h")
    assert (made.code, made.err) == (0, "set it as TUTELAGE_API_KEY; it is not shown again\n")
    secret = made.out.strip()
    theirs = open_server.api(secret)
    assert theirs.ok("GET", "/api/me")["scopes"] == ["read"]
    other = answer(shell("token", "create", "laptop", "--json"))
    assert open_server.api(other["secret"]).ok("GET", "/api/me")["scopes"] == ["read", "submit"]

    found = answer(shell("token", "ls", "--json"))
    assert {one["name"] for one in found} >= {"ci", "laptop"}
    mine = next(one for one in found if one["name"] == "ci")
    assert mine["expires_at"] is not None
    assert secret not in shell("token", "ls", "--json").out + shell("token", "ls").out

    assert shell("token", "revoke", mine["id"]).out == f"{mine['id']}: revoked\n"
    assert theirs("GET", "/api/me").status_code == 401
    revoked = answer(shell("token", "revoke", other["id"], "--json"))
    assert revoked["id"] == other["id"]
    assert revoked["revoked_at"] is not None
    rows = [line for line in shell("token", "ls").out.splitlines() if line.startswith((mine["id"], other["id"]))]
    assert [row.split()[-1] for row in rows] == ["revoked", "revoked"]


@pytest.mark.parametrize("age", ["0d", "d", "12", "1y", "-3d", "²d"])
def test_an_expiry_that_is_none(shell: Terminal, age: str) -> None:
    done = shell("token", "create", "ci", f"--expires={age}")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: --expires {age}: write a number of hours, days or weeks, such as 12h, 30d or 4w\n"


def test_a_scope_that_is_none_and_one_that_is_too_small(
    shell: Terminal, open_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = shell("token", "create", "ci", "--scope", "submitx")
    assert (wrong.code, wrong.out) == (2, "")
    names = "read, submit, worker, admin"
    assert wrong.err == f"error: --scope submitx: is none; did you mean 'submit'?; one of {names}\n"
    monkeypatch.setenv("TUTELAGE_API_KEY", open_server.token(Scope.READ))
    small = shell("token", "ls")
    assert (small.code, small.out) == (2, "")
    assert "admin" in small.err


def test_the_first_token_of_a_home_whose_key_is_in_the_environment(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing but the records is written there: the folder is made for them."""
    home = tmp_path / "new" / "home"
    monkeypatch.setenv("TUTELAGE_SECRET_KEY", DATABASE_KEY.decode())
    made = terminal("token", "create", "admin", "--scope", "admin", "--home", str(home))
    assert (made.code, made.out.startswith("tut-")) == (0, True), made
    assert [path.name for path in home.iterdir()] == ["tutelage.db"]


def test_the_first_token_of_a_server_that_does_not_run(terminal: Terminal, tmp_path: Path) -> None:
    """As docs/jobs.md says: it lets in whoever has it once the server binds to more than this machine."""
    home = tmp_path / "home"
    made = terminal("token", "create", "admin", "--scope", "admin", "--home", home)
    assert (made.code, made.err) == (0, "set it as TUTELAGE_API_KEY; it is not shown again\n")
    another = answer(terminal("token", "create", "guest", "--home", home, "--organization", "guests", "--json"))
    with served(home, require_tokens=True) as server:
        me = server.api(made.out.strip()).ok("GET", "/api/me")
        assert me["organization"]["name"] == "default"
        assert me["scopes"] == ["read", "submit", "worker", "admin"]  # an administrator may do everything
        guest = server.api(another["secret"]).ok("GET", "/api/me")
        assert (guest["organization"]["name"], guest["scopes"]) == ("guests", ["read", "submit"])
        assert httpx.get(f"{server.url}/api/me", trust_env=False).status_code == 401


def test_a_secret_by_argument_by_pipe_and_typed(
    shell: Terminal, team: Api, open_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("env", "set", "PLAIN", "as it is").out == "PLAIN: set\n"
    typed(monkeypatch, f"{KEY}\n".encode())
    assert shell("env", "set", "KEY").out == "KEY: set\n"
    assert secrets_of_jobs(open_server, team) == {"PLAIN": "as it is", "KEY": KEY}  # with all of its lines
    typed(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: asked.append(prompt) or "unseen")
    assert shell("env", "set", "TYPED").out == "TYPED: set\n"
    assert asked == ["TYPED: "]
    assert secrets_of_jobs(open_server, team) == {"PLAIN": "as it is", "KEY": KEY, "TYPED": "unseen"}
    assert answer(shell("env", "set", "PLAIN", "again", "--json")) == {"set": ["PLAIN"]}

    assert answer(shell("env", "ls", "--json")) == ["KEY", "PLAIN", "TYPED"]
    assert [line.strip() for line in shell("env", "ls").out.splitlines()] == ["secret", "KEY", "PLAIN", "TYPED"]
    assert shell("env", "rm", "PLAIN").out == "PLAIN: deleted\n"
    assert answer(shell("env", "rm", "TYPED", "--json")) == {"name": "TYPED", "deleted": True}
    assert secrets_of_jobs(open_server, team) == {"KEY": KEY}
    assert shell("env", "rm", "PLAIN").code == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n", "NAME: the value is empty; give it, or write: tutelage env set NAME < file"),
        (b"ab\xff", "NAME: byte 2 of standard input is not UTF-8; give a text"),
    ],
)
def test_a_value_that_is_none(shell: Terminal, monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str) -> None:
    typed(monkeypatch, content)
    done = shell("env", "set", "NAME")
    assert (done.code, done.out, done.err) == (2, "", f"error: {sentence}\n")
    assert answer(shell("env", "ls", "--json")) == []


def test_secrets_of_a_file(shell: Terminal, team: Api, open_server: Served, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nONE=1=1\n\nexport TWO='two words'\nTHREE = \"3\"\n")
    assert shell("env", "import", path).out == "ONE: set\nTWO: set\nTHREE: set\n"
    assert secrets_of_jobs(open_server, team) == {"ONE": "1=1", "TWO": "two words", "THREE": "3"}
    assert answer(shell("env", "import", path, "--json")) == {"set": ["ONE", "TWO", "THREE"]}
    path.write_text("FOUR=4\nno line of it\n")
    done = shell("env", "import", path)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {path}:2: no line such as NAME=value; mend it or put # before it\n"
    assert "FOUR" not in secrets_of_jobs(open_server, team)
    assert shell("env", "import", tmp_path / "none").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "ls"),
        ("jobs", "cancel", "job-1"),
        ("jobs", "logs", "-f", "job-1"),
        ("exec", "--", "true"),
        ("chat", "model", "Hello"),
        ("files", "ls"),
        ("token", "ls"),
        ("env", "ls"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_no_server(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    """The time in which a server that was never reached may appear is set to nothing."""
    monkeypatch.setattr(http, "FIRST_CONTACT_SECONDS", 0.0)
    monkeypatch.setenv("TUTELAGE_URL", "http://127.0.0.1:9")
    done = terminal(*arguments)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: http://127.0.0.1:9: no server answers there ")
    assert done.err.endswith("; start one with: tutelage serve, or set TUTELAGE_URL\n")
