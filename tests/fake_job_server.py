"""The real server with every way of failing between it and a client, and a worker that only pretends.

`Faults` answers in the application's place; `Cable` is the connection: it loses answers, tears in the middle of one,
falls silent, and can be pulled out. Not here: what is tested.
"""

import contextlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.served import PATIENCE, Served, new_run_id, served
from tutelage.client.openweights import OpenWeights
from tutelage.client.results import ClaimedJob, NewEvent
from tutelage.client.worker_api import WorkerApi
from tutelage.jobs.requirements import Offer
from tutelage.jobs.status import JobStatus

SILENCE = 0


@dataclass
class Faults:
    """answers: of a method and path, the statuses that the next requests get in place of an answer; SILENCE is none at
    all. seen: counts all requests."""

    answers: dict[str, list[int]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def add_to(self, app: Any) -> None:
        app.add_middleware(_FaultsInFront, faults=self)


class _FaultsInFront:
    def __init__(self, app: Any, faults: Faults) -> None:
        self.app = app
        self.faults = faults

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = f"{scope['method']} {scope['path']}"
        self.faults.seen[name] += 1
        waiting = self.faults.answers.get(name)
        if not waiting:
            await self.app(scope, receive, send)
            return
        status = waiting.pop(0)
        if status == SILENCE:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        headers = [(key.encode(), value.encode()) for key, value in self.faults.headers.items()]
        body = b'{"error": {"message": "out of order", "type": "server_error", "code": null, "param": null}}'
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Accident:
    """What happens to one request, the first whose beginning matches. request: a regular expression, such as
    `POST /api/claims `. kind: "cut" before it arrives, "lose" its answer, or "silence": from then on nothing gets
    through in either direction, and no connection ends, for so many `seconds`. after: how many such requests come
    through before."""

    request: str
    kind: str
    after: int = 0
    seconds: float = 0.0
    happened: bool = False


class Cable:
    """Between a client and a server on this machine. lose_answers: of how many answers nothing arrives.

    tear_after: of the next answers, how many bytes arrive before the connection is reset. accidents: those of one
    request happen one after the other, to it and to the tries that follow.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.lose_answers = 0
        self.tear_after: list[int] = []
        self.accidents: list[Accident] = []
        self._meeting = threading.Lock()
        self._passable = threading.Event()
        self._passable.set()
        self.port = 0
        self.plug_in()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plug_in(self) -> None:
        """Take connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener, self.port = listener, listener.getsockname()[1]
        self._start(self._accept, listener)

    def pull_out(self) -> None:
        """Nothing gets through, and new connections are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # A thread that waits in accept would keep the port.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for end in list(self._ends):
            _close(end)

    def close(self) -> None:
        self._passable.set()
        self.pull_out()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _start(self, what: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=what, args=args))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends |= {near, far}
            answers_lost = threading.Event()
            self._start(self._pass_on, near, far, False, answers_lost)
            self._start(self._pass_on, far, near, True, answers_lost)

    def _met(self, content: bytes) -> str | None:
        """What happens to the request that begins so, if anything does."""
        with self._meeting:
            for accident in self.accidents:
                if accident.happened or not re.match(accident.request.encode(), content):
                    continue
                if accident.after > 0:
                    accident.after -= 1
                    return None
                accident.happened = True
                if accident.kind == "silence":
                    self._passable.clear()
                    timer = threading.Timer(accident.seconds, self._passable.set)
                    self._threads.append(timer)
                    timer.start()
                return accident.kind
        return None

    def _pass_on(
        self, source: socket.socket, target: socket.socket, is_answer: bool, answers_lost: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if not is_answer and (met := self._met(content)) is not None:
                    if met == "cut":
                        break
                    if met == "lose":
                        answers_lost.set()
                self._passable.wait()
                if is_answer and answers_lost.is_set():
                    break
                if is_answer and self.lose_answers > 0:
                    self.lose_answers -= 1
                    break
                if is_answer and self.tear_after:
                    allowed = self.tear_after[0]
                    self.tear_after[0] -= len(content)
                    if self.tear_after[0] <= 0:
                        self.tear_after.pop(0)
                        target.sendall(content[:allowed])
                        break
                target.sendall(content)
        _close(source)
        _close(target)
        self._ends -= {source, target}


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass
class JobServer:
    """A server, the cable to it, what goes wrong in front of it."""

    served: Served
    cable: Cable
    faults: Faults
    client: OpenWeights

    @property
    def url(self) -> str:
        """Through the cable."""
        return self.cable.url

    def worker(self, **offer: Any) -> "PretendWorker":
        return PretendWorker(WorkerApi(self.url), offer)


@contextlib.contextmanager
def job_server(home: Path, migrated: Path, **settings: Any) -> Iterator[JobServer]:
    """Serve on loopback without tokens, unless settings say otherwise."""
    faults = Faults()
    with served(home, migrated=migrated, change=faults.add_to, **settings) as running:
        cable = Cable(running.port)
        client = OpenWeights(base_url=cable.url, auth_token=running.token())
        try:
            yield JobServer(running, cable, faults, client)
        finally:
            client.close()
            cable.close()


class ModelServer(ThreadingHTTPServer):
    """Answers chat completions with what it was asked, streams too. refuses: how many it answers with 503 first."""

    def __init__(self, refuses: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _ModelHandler)
        self.refuses = refuses
        self.asked: list[dict[str, Any]] = []


@contextlib.contextmanager
def model_server(refuses: int = 0) -> Iterator[ModelServer]:
    server = ModelServer(refuses)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _ModelHandler(BaseHTTPRequestHandler):
    server: ModelServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        common = {"id": "c", "created": 0, "model": body["model"]}
        text = body["messages"][-1]["content"]
        if self.server.refuses > 0:
            self.server.refuses -= 1
            self._send(503, "application/json", b'{"error": {"message": "loading", "type": "t"}}')
        elif body.get("stream"):
            parts = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in text.split(" ")]
            chunks = [common | {"object": "chat.completion.chunk", "choices": [part]} for part in parts]
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            self._send(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": f"said {text}"}, "finish_reason": "stop"}
            answer = common | {"object": "chat.completion", "choices": [choice]}
            self._send(200, "application/json", json.dumps(answer).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class PretendWorker:
    """Claims jobs and reports what a test tells it to, through the calls that real workers use."""

    def __init__(self, api: WorkerApi, offer: Mapping[str, Any]) -> None:
        self.api = api
        self.worker = api.register("pretend", "1", Offer(**{"ignore_vram": True, **offer}))
        self._numbers = iter(range(10**6))

    def claim(self, wait: float = 0) -> ClaimedJob:
        claimed = self.api.claim(self.worker.id, new_run_id(), wait=wait)
        assert claimed is not None
        return claimed

    def serve(self, port: int) -> ClaimedJob:
        """Claim a deployment, waiting for one, and say that what listens on this port answers for its models."""
        claimed = self.claim(wait=20)
        params = claimed.job.params
        self.api.serving(claimed.run_id, port, dict.fromkeys((params["model"], *params["lora_adapters"]), "upstream"))
        return claimed

    def report(self, run_id: str, *data: Mapping[str, Any]) -> None:
        self.api.append_events(run_id, [NewEvent(f"e{next(self._numbers)}", dict(one)) for one in data])

    def leave(self, run_id: str, folder: Path, name: str, content: bytes) -> str:
        """A file in `uploads/`, reported as workers do; its id."""
        path = folder / Path(name).name
        path.write_bytes(content)
        file_id = self.api.upload(path, "result").id
        self.report(run_id, {"file": file_id, "path": name})
        return file_id

    def complete(self, run_id: str) -> None:
        self.api.finish(run_id, JobStatus.COMPLETED, exit_code=0)
