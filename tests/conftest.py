"""Settings for every test: no network, few threads, no deadlines on a busy machine."""

import gc
import os
import sys
from collections.abc import Generator
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

_LINES_OF_AN_END = 12
_ends: list[str] = []
"""What ended one of the processes of this session before its time: pytest-xdist says so far above its last lines."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What all tests import stays until the end, nearly a million objects: each training run of a test, which collects
    garbage as Accelerate does, would look through them again for longer than it trains."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports go to the first process of the session, whose connection takes no lone surrogates: one in a log that a
    test captured would end the session. `str` makes plain text of its subclasses, which it does not take either."""
    return _plain((yield))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str(value.encode("utf-8", "backslashreplace"), "utf-8")
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return type(value)(_plain(one) for one in value) if isinstance(value, list | tuple) else value


@pytest.hookimpl(tryfirst=True)
def pytest_internalerror(excrepr: object) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "between tests")
    _ends.append(f"{test}\n{excrepr}")
    if "PYTEST_XDIST_WORKER" in os.environ:  # its own word may not arrive at the first process
        print("\n".join(["", "ended before its time:", *_last_lines(_ends[-1])]), file=sys.__stderr__)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    output = getattr(node, "workeroutput", {})
    if error is not None or output.get("exitstatus") not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        _ends.append(f"{node.gateway.id} ended: {error or output}")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for end in reversed(_ends[:2]):  # what came first at the very end, where a log that is cut still has it
            print("\n".join(["", "ended before its time:", *_last_lines(end)]))


def _last_lines(end: str) -> list[str]:
    first, *lines = end.encode("utf-8", "backslashreplace").decode().splitlines()
    return [first, *lines[-_LINES_OF_AN_END:]]
