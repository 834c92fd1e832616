"""What the sinks' own packages read back from a run's files: metric name to step to value."""

import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Values = dict[str, dict[int, float]]


def read_tensorboard(run: Path) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def read_wandb(run: Path) -> Values:
    """wandb reads offline files in its compiled part only; its Python package has the format of a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    rows: list[dict[str, Any]] = []
    for content in _leveldb_records(path.read_bytes(), start=7):
        record = Record.FromString(content)
        if record.HasField("history"):
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return _by_step(rows)


def _leveldb_records(content: bytes, start: int) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB, pieces of `checksum, length, kind`, kinds 1 and 4 end a record."""
    position, record = start, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_mlflow(run: Path) -> Values:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'tutelage'")
    [own] = client.search_runs([experiment.experiment_id])
    assert (own.info.run_name, own.info.status) == (run.name, "FINISHED")
    assert own.data.params["run_name"] == run.name
    values = {name: client.get_metric_history(own.info.run_id, name) for name in own.data.metrics}
    client._tracking_client.store.engine.dispose()
    return {name: {metric.step: metric.value for metric in history} for name, history in values.items()}


def read_trackio(run: Path) -> Values:
    """In a process of its own, since trackio reads TRACKIO_DIR when it is imported."""
    code = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage; "
        "[run] = trackio.Api().runs('tutelage'); "
        "print(json.dumps(SQLiteStorage.get_logs('tutelage', run.name)))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(run / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return _by_step(json.loads(done.stdout))


def _by_step(rows: list[dict[str, Any]]) -> Values:
    values: Values = defaultdict(dict)
    for row in rows:
        for name, value in row.items():
            if name.startswith("train/") and name != "train/global_step":
                values[name][int(row["train/global_step"])] = value
    return values


READERS: dict[str, Callable[[Path], Values]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}
