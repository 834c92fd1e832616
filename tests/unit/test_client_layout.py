"""What a client installs and loads, and that its copies of records are those of the server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.served import Served, served
from tutelage.client import results
from tutelage.jobs import access, event_log, listing


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        (results.Explanation, listing.Explanation),
        (results.WorkerFit, listing.WorkerFit),
        (results.Cost, listing.Cost),
        (results.Series, event_log.Series),
        (results.Token, access.Token),
        (results.NewToken, access.NewToken),
    ],
)
def test_records_that_stand_beside_sql_have_the_same_fields_here(copy: type, original: type) -> None:
    assert [field.name for field in fields(copy)] == [field.name for field in fields(original)]


def test_a_client_needs_neither_torch_nor_a_database() -> None:
    """Nor the openai package, before something is asked of a model; and importing tutelage loads none of it."""
    program = """
import sys, tutelage
assert not {"httpx", "pydantic"} & set(sys.modules), "of import tutelage"
from tutelage import AsyncClient, Client, Jobs, OpenWeights, register
from tutelage.client.worker_api import WorkerApi
OpenWeights(), AsyncClient(), WorkerApi()
assert Client is OpenWeights
print(sorted({"torch", "transformers", "sqlalchemy", "fastapi", "openai"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def installed_with(name: str) -> set[str]:
    """Distributions that come with one of this name without extras."""
    found: set[str] = set()
    left = [name]
    while left:
        one = canonicalize_name(left.pop())
        if one in found:
            continue
        found.add(one)
        try:
            requires = [Requirement(line) for line in distribution(one).requires or []]
        except PackageNotFoundError:
            continue
        left += [need.name for need in requires if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    with served(tmp_path / "server", migrated=migrated_sqlite) as running:
        yield running


@pytest.mark.parametrize("arguments", [["jobs", "ls"], ["cluster", "cluster.yaml", "--dry-run", "--folder", "kept"]])
def test_commands_that_ask_a_server_need_no_extra(arguments: list[str], server: Served, tmp_path: Path) -> None:
    """All that `pip install tutelage` does not bring cannot be imported here."""
    base = installed_with("tutelage")
    others = [
        module
        for module, names in packages_distributions().items()
        if not base & {canonicalize_name(name) for name in names}
    ]
    assert {"torch", "sqlalchemy", "ray"} < set(others)
    (tmp_path / "cluster.yaml").write_text(
        "{name: here, launcher: local, max_workers: 1, hardware: [{name: cpu, secure: 0}]}", encoding="utf-8"
    )
    program = """
import json, os, sys
sys.modules.update(dict.fromkeys(json.loads(os.environ["OTHERS"])))
sys.argv[0] = "tutelage"
from tutelage.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"OTHERS": json.dumps(others), "TUTELAGE_URL": server.url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
