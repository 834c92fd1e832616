"""RunPod on this machine: its GraphQL with pods in memory, each of which runs its start command as a real process.

The schema is what `runpod` and the launcher send, read and checked by graphql-core. Not here: what is tested.
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from graphql import FieldNode, GraphQLResolveInfo, OperationDefinitionNode, build_schema, graphql_sync, parse

from tests.served import PATIENCE, until

KEY = "rpa-key-of-the-manager"
GPU = "NVIDIA GeForce RTX 4090"
SOLD_OUT = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
CREATIONS = ("podFindAndDeployOnDemand", "podRentInterruptable", "deployCpuPod")
GRACE = 5.0
"""Seconds between SIGTERM to the first process of a pod and SIGKILL to all of them."""
_INPUT = """
    name: String, imageName: String, cloudType: CloudTypeEnum, startSsh: Boolean, supportPublicIp: Boolean,
    gpuTypeId: String, gpuCount: Int, volumeInGb: Int, minVcpuCount: Int, minMemoryInGb: Int, instanceId: String,
    allowedCudaVersions: [String], dataCenterId: String, dockerArgs: String, containerDiskInGb: Int,
    volumeMountPath: String, env: [Variable!], templateId: String, networkVolumeId: String
"""
_SCHEMA = build_schema(f"""
enum CloudTypeEnum {{ ALL COMMUNITY SECURE }}
scalar Void
input Variable {{ key: String!, value: String! }}
input OnDemand {{ {_INPUT} }}
input Spot {{ bidPerGpu: Float!, {_INPUT} }}
input Which {{ podId: String! }}
input Gpu {{ id: String! }}
input Price {{ gpuCount: Int! }}
type Machine {{ gpuDisplayName: String, podHostId: String }}
type Port {{ ip: String, isIpPublic: Boolean, privatePort: Int, publicPort: Int, type: String }}
type Runtime {{ ports: [Port] }}
type Pod {{
    id: ID!, containerDiskInGb: Int, costPerHr: Float, desiredStatus: String, dockerArgs: String, dockerId: String,
    env: [String], gpuCount: Int, imageName: String, lastStatusChange: String, machineId: String, memoryInGb: Float,
    name: String, podType: String, port: Int, ports: String, uptimeSeconds: Int, vcpuCount: Float, volumeInGb: Float,
    volumeMountPath: String, runtime: Runtime, machine: Machine
}}
type LowestPrice {{ minimumBidPrice: Float, uninterruptablePrice: Float }}
type GpuType {{
    maxGpuCount: Int, id: String, displayName: String, manufacturer: String, memoryInGb: Int, cudaCores: Int,
    secureCloud: Boolean, communityCloud: Boolean, securePrice: Float, communityPrice: Float, oneMonthPrice: Float,
    threeMonthPrice: Float, oneWeekPrice: Float, communitySpotPrice: Float, secureSpotPrice: Float,
    lowestPrice(input: Price): LowestPrice
}}
type User {{ pods: [Pod] }}
type Query {{ myself: User, gpuTypes(input: Gpu): [GpuType] }}
type Mutation {{
    podFindAndDeployOnDemand(input: OnDemand): Pod
    podRentInterruptable(input: Spot): Pod
    deployCpuPod(input: OnDemand): Pod
    podTerminate(input: Which): Void
}}
""")
_RUNPODCTL = f"""#!{sys.executable}
import json, os, sys, urllib.request
assert sys.argv[1:] == ["remove", "pod", os.environ["RUNPOD_POD_ID"]], sys.argv
query = 'mutation {{ podTerminate(input: {{ podId: "%s" }}) }}' % sys.argv[3]
headers = {{"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "User-Agent": "runpodctl"}}
url = os.environ["RUNPOD_API_BASE_URL"] + "/graphql"
urllib.request.urlopen(urllib.request.Request(url, json.dumps({{"query": query}}).encode(), headers), timeout=20)
"""


@dataclass
class Fault:
    """status, body: of the answer in place of the right one. hangs: it never comes. loses: it is done, and the
    connection ends before the answer."""

    status: int = 200
    body: str = ""
    hangs: bool = False
    loses: bool = False


def refusal(message: str) -> Fault:
    """As GraphQL says it."""
    return Fault(body=json.dumps({"errors": [{"message": message}], "data": None}))


@dataclass
class Pod:
    """given: the input of its creation. kind: the mutation that made it. listed: whether RunPod shows it yet."""

    id: str
    given: dict[str, Any]
    kind: str
    folder: Path
    key: str = field(default_factory=lambda: f"rpa-pod-{secrets.token_hex(8)}")
    status: str = "RUNNING"
    cost: float = 0.5
    listed: bool = True
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def env(self) -> dict[str, str]:
        return {one["key"]: one["value"] for one in self.given["env"]}

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def kill(self) -> None:
        """All its processes at once."""
        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                there = psutil.Process(self.process.pid).children(recursive=True)
                self.process.kill()  # before the others: it would remove the pod when its worker ends
                for one in there:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(there, 10)
            self.process.wait(PATIENCE)


class RunPodServer:
    """slow: pods get no process. listing: new pods are listed at once. runs: whether pods have processes at all.

    faults: for the next calls of an operation. calls: name of each operation and its query. removed: ids of pods that
    were terminated, and by whom. environment: of each pod's host.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.created: list[Pod] = []
        self.slow, self.listing, self.runs = False, True, True
        self.faults: dict[str, list[Fault]] = {}
        self.calls: list[tuple[str, str]] = []
        self.removed: list[tuple[str, str]] = []
        self.environment: dict[str, str] = {}
        self._released = threading.Event()
        self._ending: list[threading.Thread] = []
        self._lock = threading.Lock()
        (folder / "bin").mkdir()
        (folder / "bin" / "runpodctl").write_text(_RUNPODCTL)
        (folder / "bin" / "runpodctl").chmod(0o755)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def fail(self, operation: str, *faults: Fault) -> None:
        """The next calls of this operation."""
        self.faults.setdefault(operation, []).extend(faults)

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)

    def lose(self, pod: Pod, status: str | None = None) -> None:
        """Its host is gone, or it was outbid, which leaves it with a status."""
        if status is None:
            del self.pods[pod.id]
        else:
            pod.status = status
        pod.kill()

    def answer(self, query: str, key: str, agent: str) -> str:
        """The JSON that a query is answered with."""
        acting = {"key": key, "agent": agent}
        result = graphql_sync(_SCHEMA, query, _Root(self), context_value=acting)
        if result.errors:
            return json.dumps({"errors": [{"message": str(error.message)} for error in result.errors], "data": None})
        return json.dumps({"data": result.data})

    def create(self, kind: str, given: dict[str, Any]) -> Pod:
        pod = Pod(secrets.token_hex(7), given, kind, self.folder / secrets.token_hex(4), listed=self.listing)
        pod.folder.mkdir()
        with self._lock:
            self.pods[pod.id] = pod
            self.created.append(pod)
        if self.runs and not self.slow:
            self.begin(pod)
        return pod

    def begin(self, pod: Pod) -> None:
        """Run its start command, as a container would."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(pod.folder),
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_API_KEY": pod.key,
            "RUNPOD_API_BASE_URL": self.url,
            **self.environment,
            **pod.env,
        }
        with (pod.folder / "output.txt").open("wb") as output:
            pod.process = subprocess.Popen(
                shlex.split(pod.given["dockerArgs"]),
                cwd=pod.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def terminate(self, pod_id: str, agent: str) -> None:
        with self._lock:
            pod = self.pods.pop(pod_id, None)
        if pod is None:
            raise ValueError("pod not found to terminate")
        self.removed.append((pod_id, agent))
        thread = threading.Thread(target=_end, args=(pod,), daemon=True)
        self._ending.append(thread)
        thread.start()

    def close(self) -> None:
        self._released.set()
        for pod in self.created:
            pod.kill()
        for thread in self._ending:
            thread.join(PATIENCE)
        self._http.shutdown()
        self._http.server_close()

    def hang(self) -> None:
        self._released.wait(PATIENCE)


class _Root:
    """Resolvers."""

    def __init__(self, server: RunPodServer) -> None:
        self._server = server
        for kind in CREATIONS:
            setattr(self, kind, self._creation(kind))

    def _creation(self, kind: str) -> Callable[..., Mapping[str, Any]]:
        return lambda info, input: _shown(self._server.create(kind, input))

    def myself(self, info: GraphQLResolveInfo) -> Mapping[str, Any]:
        return {"pods": [_shown(pod) for pod in list(self._server.pods.values()) if pod.listed]}

    def gpuTypes(self, info: GraphQLResolveInfo, input: Mapping[str, Any]) -> list[Mapping[str, Any]]:  # noqa: N802
        return [{"id": GPU, "displayName": "RTX 4090", "memoryInGb": 24}] if input["id"] == GPU else []

    def podTerminate(self, info: GraphQLResolveInfo, input: Mapping[str, Any]) -> None:  # noqa: N802
        pod = self._server.pods.get(input["podId"])
        if info.context["key"] != KEY and (pod is None or info.context["key"] != pod.key):
            raise ValueError("this key may not terminate this pod")
        self._server.terminate(input["podId"], info.context["agent"])


def _shown(pod: Pod) -> Mapping[str, Any]:
    shown = {name: value for name, value in pod.given.items() if name not in ("env", "cloudType")}
    return shown | {
        "id": pod.id,
        "costPerHr": pod.cost,
        "desiredStatus": pod.status,
        "env": [f"{name}={value}" for name, value in pod.env.items()],
        "machineId": "host",
        "machine": {"gpuDisplayName": "RTX 4090", "podHostId": pod.id},
    }


def _end(pod: Pod) -> None:
    if pod.process is not None:
        pod.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            pod.process.wait(GRACE)
        pod.kill()


def _handler(server: RunPodServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
            operation = _operation(query)
            server.calls.append((operation, query))
            faults = server.faults.get(operation)
            fault = faults.pop(0) if faults else None
            key = self.headers["Authorization"].removeprefix("Bearer ")
            if key != KEY and key not in [pod.key for pod in server.pods.values()]:
                self._answer(401, "")
            elif fault is None:
                self._answer(200, server.answer(query, key, self.headers["User-Agent"]))
            elif fault.hangs:
                server.hang()
            elif fault.loses:
                server.answer(query, key, self.headers["User-Agent"])
                self.close_connection = True
            else:
                self._answer(fault.status, fault.body)

        def _answer(self, status: int, body: str) -> None:
            content = body.encode()
            with suppress(OSError):  # a pod that removes itself may be gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    return Handler


def _operation(query: str) -> str:
    definition = parse(query).definitions[0]
    assert isinstance(definition, OperationDefinitionNode)
    first = definition.selection_set.selections[0]
    assert isinstance(first, FieldNode)
    return first.name.value


@contextmanager
def runpod_server(folder: Path) -> Iterator[RunPodServer]:
    """On a free port, for as long as this lasts; no process of a pod is left."""
    folder.mkdir()
    server = RunPodServer(folder)
    try:
        yield server
    finally:
        server.close()


def worker_of(server: RunPodServer, number: int = 0) -> Pod:
    """The pod that was created as this one, when its process is there."""
    until(lambda: len(server.created) > number and server.created[number].process, f"pod {number}")
    return server.created[number]
