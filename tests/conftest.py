"""Settings for every test: no network, few threads, no deadlines on a busy machine."""

import os
from typing import Any

# Before torch and tokenizers are imported; child processes inherit them. Torch itself stays unimported here, so
# that tests of the torch-free layers start fast.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it gives
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # programs with all cores leave them to others while they wait
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

# Axolotl pins its own versions of everything, so these tests need a second environment: `make test-axolotl`.
collect_ignore = [] if "TUTELAGE_AXOLOTL_PYTHON" in os.environ else ["real_axolotl"]

settings.register_profile("tutelage", deadline=None)
settings.load_profile("tutelage")

pytest_plugins = ["tests.databases", "tests.object_stores", "tests.served"]  # fixtures: SQLite, PostgreSQL, S3, servers

_ends: list[str] = []
"""What ended one of the processes of this session before its time: pytest-xdist says so far above its last lines."""


def pytest_internalerror(excrepr: object) -> None:
    _ends.append(str(excrepr))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    output = getattr(node, "workeroutput", {})
    if error is not None or output.get("exitstatus") not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        _ends.append(f"{node.gateway.id} ended: {error or output}")


def pytest_unconfigure() -> None:
    for end in reversed(_ends[:2]):  # what came first at the very end, where a log that is cut still has it
        print("\n".join(["", "ended before its time:", *end.splitlines()[-12:]]))
