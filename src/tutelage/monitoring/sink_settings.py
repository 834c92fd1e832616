"""Each sink's package: the settings a run gives it, how its own run opens, and how it closes without a trace.

Not here: what is sent. All files go into the run folder, unless an environment variable of the user's says where.
"""

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, MLflowCallback
from transformers.trainer_callback import TrainerCallback

from tutelage.errors import ConfigError

logger = logging.getLogger(__name__)

PROJECT = "tutelage"
"""The project, or experiment, that runs are filed under where the user names none."""
MLFLOW_RETRIES = 2
MLFLOW_TIMEOUT_SECONDS = 10
"""Its own are 7 retries of 120 s each: a server that went away would hold up training for minutes at every step."""
WANDB_INIT_TIMEOUT_SECONDS = 30
"""How long wandb may look for its server before the run is refused; its own is 90."""

DEFAULTS: Mapping[str, Callable[[Path], dict[str, str]]] = {
    "tensorboard": lambda run: {"TENSORBOARD_LOGGING_DIR": str(run / "tensorboard")},
    "wandb": lambda run: {
        "WANDB_DIR": str(run),  # it makes a folder `wandb` there
        "WANDB_DATA_DIR": str(run / "wandb"),
        "WANDB_CACHE_DIR": str(run / "wandb"),
        "WANDB_ARTIFACT_DIR": str(run / "wandb"),
        "WANDB_PROJECT": PROJECT,
        "WANDB_NAME": run.name,
        "WANDB_CONSOLE": "off",  # `log.txt` has it, and nobody else's output is to be caught
        "WANDB_INIT_TIMEOUT": str(WANDB_INIT_TIMEOUT_SECONDS),
    },
    "mlflow": lambda run: {
        "MLFLOW_TRACKING_URI": _mlflow_database(run),  # its store of plain files is about to be removed
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(MLFLOW_RETRIES),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(MLFLOW_TIMEOUT_SECONDS),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # it would write to the home folder, and to the network
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    },
    "trackio": lambda run: {"TRACKIO_DIR": str(run / "trackio")},
}
"""Environment variables a run sets where the user has not."""

FOLDERS = {
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "wandb": "WANDB_DIR",
    "trackio": "TRACKIO_DIR",
}
"""Where a sink writes. Two of them would go on without a word, elsewhere or nowhere, if they could not."""


def require_package(sink: str) -> None:
    """Raises ConfigError where the sink's package is missing."""
    if sink in DEFAULTS and importlib.util.find_spec(sink) is None:
        raise ConfigError(
            f"report_to: {sink} cannot be used (its package is not installed); pip install {sink}, or take it out of "
            "report_to"
        )


@contextlib.contextmanager
def settings_of(sink: str, run: Path) -> Iterator[None]:
    """The sink's environment variables for this run; afterwards they are as they were, also those it set itself."""
    prefix = f"{sink.upper()}_"
    before = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    defaults = DEFAULTS[sink](run.absolute()) if sink in DEFAULTS else {}
    os.environ.update({name: value for name, value in defaults.items() if name not in before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(prefix)]:
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def opened(sink: str, run: Path) -> Iterator[None]:
    """The sink's own run, from its first value to its last. Raises whatever the package does, and OSError."""
    with settings_of(sink, run), contextlib.ExitStack() as stack:
        if sink in FOLDERS:
            _require_writable(Path(os.environ[FOLDERS[sink]]).expanduser())
        if sink in _OWN_RUNS:
            stack.enter_context(_OWN_RUNS[sink](run.absolute()))
        yield


@contextlib.contextmanager
def printed_to_log(sink: str) -> Iterator[None]:
    """What is printed in the block goes to `log.txt`: standard output is the caller's."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in Text.from_ansi(printed.getvalue()).plain.splitlines():
            if line.strip():
                logger.info("%s: %s", sink, line.strip())


def _require_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".tutelage-{os.getpid()}"
    probe.touch()
    probe.unlink()


# --- wandb ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _wandb_run(run: Path) -> Iterator[None]:
    import wandb

    if wandb.run is not None:  # the caller's own: it gets the values, and stays open
        yield
        return
    try:
        # With a key in sight `login` would ask the server, as `init` does anyhow. It never asks the user here.
        decided = os.environ.keys() & {"WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"}
        if not decided and not wandb.login(prompt=False, verify=False):
            os.environ["WANDB_MODE"] = "offline"
            os.environ.setdefault("WANDB_QUIET", "true")
            wandb.teardown()  # it has read its settings already
            logger.info(
                "wandb: no API key, so offline; send it later with `wandb sync %s`",
                Path(os.environ["WANDB_DIR"]) / "wandb" / "offline-run-*",
            )
        wandb.init()
        try:
            yield
        except BaseException:
            wandb.finish(exit_code=1)
            raise
        wandb.finish()
    finally:
        wandb.teardown()  # its process ends, and the next run reads its settings anew


# --- mlflow -----------------------------------------------------------------------------------------------------


class ImmediateMlflow(MLflowCallback):
    """`transformers`' callback for mlflow, which would log from a thread, where a failure is seen by nobody."""

    @property
    def _async_log(self) -> bool:
        return False

    @_async_log.setter
    def _async_log(self, wanted: bool) -> None:
        """`setup` sets it by the version of mlflow."""


def _mlflow_database(run: Path) -> str:
    return f"sqlite:///{run / 'mlflow.db'}"


@contextlib.contextmanager
def _mlflow_run(run: Path) -> Iterator[None]:
    import mlflow

    if mlflow.active_run() is not None:  # the caller's own: it gets the values, and stays open
        yield
        return
    database = mlflow.get_tracking_uri().partition("sqlite:///")[2]
    if database:  # mlflow would try for two minutes to open one that it cannot write
        _require_writable(Path(database).parent)
    client = mlflow.MlflowClient()
    try:
        mlflow.start_run(experiment_id=_mlflow_experiment(client, run), run_name=run.name)
        try:
            yield
        except BaseException:
            mlflow.end_run("FAILED")
            raise
        mlflow.end_run()
    finally:
        engine = getattr(client._tracking_client.store, "engine", None)
        if engine is not None:  # a database, which would stay open
            engine.dispose()


def _mlflow_experiment(client: Any, run: Path) -> str | None:
    """The user's experiment, made where it does not exist; in a database of the run's own one named PROJECT."""
    own = client.tracking_uri == _mlflow_database(run)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or (PROJECT if own else None)
    if name is None:
        return None
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    return client.create_experiment(name, artifact_location=(run / "mlartifacts").as_uri() if own else None)


# --- trackio ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _trackio_run(run: Path) -> Iterator[None]:
    """trackio reads TRACKIO_DIR once, when it is imported, into a constant of each module: they are set for the run."""
    import trackio  # pyright: ignore[reportMissingImports] - not in every environment

    folder = Path(os.environ["TRACKIO_DIR"]).expanduser()
    places = {"TRACKIO_DIR": folder, "MEDIA_DIR": folder / "media", "ARTIFACTS_DIR": folder / "artifacts"}
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "trackio"]
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name in places.keys() & vars(module).keys():
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, places[name])
        try:
            yield
        finally:
            if trackio.context_vars.current_run.get() is not None:  # it stopped in the middle
                trackio.finish()
            trackio.sqlite_storage._close_all_persistent_connections()


_OWN_RUNS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "wandb": _wandb_run,
    "mlflow": _mlflow_run,
    "trackio": _trackio_run,
}


def new_callback(sink: str) -> TrainerCallback:
    """`transformers`' callback for the sink. Raises ImportError or RuntimeError where its package is missing."""
    return ImmediateMlflow() if sink == "mlflow" else INTEGRATION_TO_CALLBACK[sink]()
