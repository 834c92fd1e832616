"""The real packages behind `report_to`, without a network: what they hold, where, and how they fail."""

import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from tests.e2e.command_line import Terminal, config_file
from tests.e2e.sink_readers import READERS, Values
from tests.small_runs import assert_same_bits, run_small, trained_weights
from tutelage import Run
from tutelage.events import Tag

# mlflow 3.17 uses a loading strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:sqlalchemy.exc.SADeprecationWarning")

STEPS = 3
MEASURED: dict[str, Any] = {"max_steps": STEPS, "monitoring_eval_steps": 1, "monitoring_max_new_tokens": 2}
HERE = [name for name in READERS if importlib.util.find_spec(name) is not None]
PLACES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow.db", "trackio": "trackio"}
needs_trackio = pytest.mark.skipif("trackio" not in HERE, reason="it has an environment of its own: make test-older")
each_sink = pytest.mark.parametrize(
    "sink", [pytest.param(name, marks=needs_trackio if name == "trackio" else ()) for name in READERS]
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder and home, which stay empty, and none of the developer's own settings."""
    prefixes = tuple(f"{name.upper()}_" for name in READERS)
    for name in [name for name in os.environ if name.startswith((*prefixes, "XDG_"))]:
        monkeypatch.delenv(name)
    places = [tmp_path / "here", tmp_path / "home"]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[0])
    monkeypatch.setenv("HOME", str(places[1]))
    yield
    assert [path for place in places for path in place.rglob("*")] == []


@pytest.fixture(scope="module")
def without_sinks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained_weights(run_small(tmp_path_factory.mktemp("plain"), "run", **MEASURED))


def sent(run: Run, prefix: str) -> Values:
    """What the events say, under the names a sink has for it."""
    values: Values = {}
    for tag, within in ((Tag.TRAIN, ""), (Tag.MONITORING, "monitoring/")):
        for event in run.events(tag):
            for name, value in event.values.items():
                values.setdefault(f"{prefix}{within}{name}", {})[event.step] = value
    return values


def assert_holds(sink: str, run: Run) -> None:
    expected = sent(run, "" if sink == "mlflow" else "train/")
    prefix = "" if sink == "mlflow" else "train/"
    assert set(expected[f"{prefix}nll"]) == {1, 2, 3}
    assert set(expected[f"{prefix}monitoring/kl_vs_base"]) == {0, 1, 2, 3}
    found = READERS[sink](run.path)
    for name, values in expected.items():
        assert found.get(name) == pytest.approx(values, rel=1e-6), name  # tensorboard holds float32


def left_open(folder: Path) -> tuple[set[str], list[psutil.Process], list[str]]:
    own = psutil.Process()
    files = [file.path for file in own.open_files() if Path(file.path).is_relative_to(folder)]
    return {thread.name for thread in threading.enumerate()}, own.children(recursive=True), files


@each_sink
def test_a_sink_holds_what_the_events_hold_and_leaves_nothing_open(
    tmp_path: Path, sink: str, without_sinks: dict[str, Tensor]
) -> None:
    environment, before = dict(os.environ), left_open(tmp_path)
    run = run_small(tmp_path, "run", report_to=[sink], **MEASURED)
    assert dict(os.environ) == environment
    assert left_open(tmp_path) == before
    assert [name for name, place in PLACES.items() if (run.path / place).exists()] == [sink]
    assert run.events(Tag.WARNING) == []
    assert_holds(sink, run)
    assert_same_bits(trained_weights(run), without_sinks)


def test_all_sinks_at_once(tmp_path: Path, without_sinks: dict[str, Tensor]) -> None:
    """All that are installed; the run is the second one of the process for each, and holds its own values only."""
    run = run_small(tmp_path, "together", report_to=HERE, **MEASURED)
    assert run.events(Tag.WARNING) == []
    for sink in HERE:
        assert_holds(sink, run)
    assert_same_bits(trained_weights(run), without_sinks)


VARIABLES = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR", "trackio": "TRACKIO_DIR"}


@pytest.mark.parametrize(
    "sink", [pytest.param(name, marks=needs_trackio if name == "trackio" else ()) for name in VARIABLES]
)
def test_the_users_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str) -> None:
    chosen = tmp_path / "chosen"
    # wandb adds a folder of its own name, which the other two need for the readers.
    monkeypatch.setenv(VARIABLES[sink], str(chosen if sink == "wandb" else chosen / sink))
    run = run_small(tmp_path, "run", report_to=[sink], **MEASURED)
    assert READERS[sink](chosen)["train/loss"] == pytest.approx(sent(run, "train/")["train/loss"], rel=1e-6)
    assert not list((run.path / sink).glob("*run-*" if sink == "wandb" else "*"))


def test_mlflow_uses_the_users_store_and_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path / 'own.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "capitals")
    for name in ("one", "two"):
        run_small(tmp_path, name, report_to=["mlflow"], max_steps=1)
        assert not (tmp_path / name / "mlflow.db").exists()
    client = MlflowClient(address)
    [experiment] = client.search_experiments(filter_string="name = 'capitals'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["one", "two"]
    client._tracking_client.store.engine.dispose()


def test_wandb_without_an_account_says_that_it_is_offline(tmp_path: Path) -> None:
    run = run_small(tmp_path, "run", report_to=["wandb"], max_steps=1)
    log = (run.path / "log.txt").read_text()
    assert f"wandb: no API key, so offline; send it later with `wandb sync {run.path}/wandb/offline-run-*`" in log


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


REFUSALS = {
    "tensorboard": {"TENSORBOARD_LOGGING_DIR": "/proc/nowhere"},
    "wandb": {"WANDB_DIR": "/proc/nowhere"},
    "wandb without a server": {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:{port}",
        "WANDB_INIT_TIMEOUT": "1",
        "WANDB_QUIET": "true",  # else it looks for the server once more, to greet the user by name
    },
    "mlflow": {"MLFLOW_TRACKING_URI": "sqlite:////proc/nowhere/mlflow.db"},
    "mlflow without a server": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:{port}"},
    "trackio": {"TRACKIO_DIR": "/proc/nowhere"},
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_trackio if case == "trackio" else ()) for case in REFUSALS]
)
def test_a_sink_that_cannot_start_stops_the_run_in_one_sentence(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, case: str
) -> None:
    sink = case.partition(" ")[0]
    for name, value in REFUSALS[case].items():
        monkeypatch.setenv(name, value.format(port=closed_port))
    environment, start = dict(os.environ), time.monotonic()
    done = terminal("train", config_file(tmp_path, report_to=[sink]))
    assert time.monotonic() - start < 30
    assert (done.code, done.out) == (2, "")
    assert f"error: report_to: {sink} did not start (" in done.err
    assert done.err.endswith("); mend its settings, or take it out of report_to\n")
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
    assert dict(os.environ) == environment


@pytest.fixture
def mlflow_server() -> Iterator[tuple[str, list[str]]]:
    """A server that answers the requests which start a run and the first values, and is gone after them."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            seen.append(self.path)
            info = '{"run_id": "r1", "run_uuid": "r1", "experiment_id": "0", "status": "RUNNING", "artifact_uri": "a"}'
            content = f'{{"run": {{"info": {info}, "data": {{}}}}}}'.encode() if "/runs/" in self.path else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
            if "log-batch" in self.path and sum("log-batch" in path for path in seen) == 3:
                server.socket.close()  # nobody listens from here on

        def log_message(self, format: str, *args: Any) -> None:
            """It would print."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_mlflow_server_that_dies_is_warned_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_server: tuple[str, list[str]], without_sinks: Any
) -> None:
    address, seen = mlflow_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    start = time.monotonic()
    run = run_small(tmp_path, "run", report_to=["mlflow"], **MEASURED)
    assert time.monotonic() - start < 40
    assert any("runs/create" in path for path in seen)
    assert sum("log-batch" in path for path in seen) == 3
    [warning] = run.events(Tag.WARNING)
    assert warning.values["source"] == "mlflow"
    assert "training goes on" in warning.values["message"]
    assert_same_bits(trained_weights(run), without_sinks)


@pytest.mark.parametrize("sink", READERS)
def test_a_missing_package_is_one_sentence(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    monkeypatch.setitem(sys.modules, sink, None)  # as if it were not installed
    remedy = f"pip install {sink}, or take it out of report_to"
    done = terminal("train", config_file(tmp_path, report_to=[sink]))
    assert (done.code, done.out) == (2, "")
    assert (
        done.err.splitlines()[-1] == f"error: report_to: {sink} cannot be used (its package is not installed); {remedy}"
    )
