"""A custom job as people write it for OpenWeights 0.14, on a real worker: class, mounts, parameters, what it reports.

The same scripts against a worker that pretends: `tests/unit/test_client_openweights_scripts.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.served import PATIENCE, Served, own_server
from tests.workers import working
from tutelage.client.openweights import OpenWeights

__all__ = ["own_server"]

SUBMITTING = """
import json
from pydantic import BaseModel, Field
from tutelage import Jobs, OpenWeights, register

ow = OpenWeights()

class AddParams(BaseModel):
    a: float = Field(..., description="first")
    b: float = Field(..., description="second")

@register("addition")
class AdditionJob(Jobs):
    mount = {"add.py": "add.py", "lib/": "lib/"}
    params = AddParams
    requires_vram_gb = 0

    def get_entrypoint(self, validated_params: AddParams) -> str:
        return f"python add.py '{json.dumps(validated_params.model_dump())}'"

job = ow.addition.create(a=5, b=7)
assert job.wait(), job.runs[-1].logs()
job.download("artifacts")
run = job.runs[-1]
print(json.dumps({
    "job": job.id,
    "run": run.id,
    "status": job.status,
    "outputs": job.outputs,
    "events": [event["data"] for event in run.events],
    "files": [event["file"] for event in run.events],
    "log": ow.files.content(run.log_file).decode(),
}))
"""
ADDING = """
import json, sys
from pathlib import Path
from tutelage import OpenWeights
from lib.adding import add

params = json.loads(sys.argv[1])
client = OpenWeights()
client.run.log({"text": "computing"})
result = add(params["a"], params["b"])
Path("rows.jsonl").write_text(json.dumps(params) + "\\n")
with open("rows.jsonl", "rb") as rows:
    client.run.log({"result": result, "kind": "sum"}, file=rows)
Path("uploads/answer.txt").write_text(str(result))
print(client.run.id, len(client.run.events))
"""


def test_a_custom_job_from_its_class_to_its_files(own_server: Served, tmp_path: Path) -> None:
    """5 + 7: in the outputs, in an event with a file, in a file that is left in uploads/, in the log."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "add.py").write_text(ADDING, encoding="utf-8")
    (tmp_path / "lib/adding.py").write_text("def add(a, b):\n    return a + b\n", encoding="utf-8")
    with working(own_server.url, tmp_path / "worker"):
        submitting = subprocess.run(
            [sys.executable, "-W", "error", "-c", SUBMITTING],
            cwd=tmp_path,
            env={**os.environ, "TUTELAGE_URL": own_server.url},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (submitting.returncode, submitting.stderr) == (0, "")
    found = json.loads(submitting.stdout)
    logged, left = found["files"][1], found["files"][2]
    assert found["status"] == "completed"
    assert found["events"] == [
        {"text": "computing"},
        {"result": 12.0, "kind": "sum"},
        {"file": left, "path": "answer.txt"},
    ]
    assert found["outputs"] == {"text": "computing", "result": 12.0, "kind": "sum", "file": left, "path": "answer.txt"}
    assert found["log"] == f"{found['run']} 2\n"
    client = OpenWeights(base_url=own_server.url)
    assert client.files.content(logged) == b'{"a": 5.0, "b": 7.0}\n'
    client.close()
    written = {path.name: path.read_text() for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    assert written["answer.txt"] == "12.0"
