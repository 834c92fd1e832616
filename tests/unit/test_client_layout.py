"""What a client installs and loads, and that its copies of records are those of the server."""

import subprocess
import sys
from dataclasses import fields

import pytest

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
