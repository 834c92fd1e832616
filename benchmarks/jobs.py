"""How fast the queue, the API and the page are: claims with 10,000 pending jobs, events, log latency, pages.

A case of `python -m benchmarks`, whose sides are parts of it: where Chromium is missing, only its rows fail.
Everything is real: SQLite in a file, PostgreSQL as the tests start it, `tutelage serve` with its worker, Chromium.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.queues import PENDING, OurQueue, Procrastinate, postgresql, vacuum
from benchmarks.table import Row, Samples

TITLE = "Queue, API and page: 10,000 jobs"
SIDES = ("ours", "procrastinate", "events", "latency", "pages")
"""`ours` and `procrastinate`: claims, each on a PostgreSQL of its own. The others have no peer."""
ONCE = SIDES
"""They have rounds of their own."""
ROUNDS = 3
EVENTS_AT_ONCE = 100
START = 60.0
"""Seconds in which a server must have answered."""

Found = dict[str, list[float]]
"""Samples by `<what>|<unit>`."""
CLAIMS_SQLITE = "claim and end, 10,000 pending, SQLite|1/s"
CLAIMS_POSTGRESQL = "claim and end, 10,000 pending, PostgreSQL|1/s"
EVENTS = {
    EVENTS_AT_ONCE: f"events taken in over HTTP, {EVENTS_AT_ONCE} a request, SQLite|1/s",
    1: "events taken in over HTTP, 1 a request, SQLite|1/s",
}
DELAYS = {"median": "{place}, median|ms", "most": "{place}, 95 of 100 within|ms"}
PLACES = ("from print to a client that follows", "from print to the page in Chromium")
PAGES = {
    "page of jobs, 10,000 jobs|ms": "/jobs",
    "page of jobs, a search over 10,000|ms": "/jobs?search=9999",
    "API, 100 of 10,000 jobs|ms": "/api/jobs",
    "page of a run with 100,000 events|ms": "/runs/{run}",
    "curves of a run with 100,000 events|ms": "/api/runs/{run}/series",
}
NAMES = {
    "ours": (CLAIMS_SQLITE, CLAIMS_POSTGRESQL),
    "events": tuple(EVENTS.values()),
    "latency": tuple(form.format(place=place) for place in PLACES for form in DELAYS.values()),
    "pages": tuple(PAGES),
}
"""What each side measures, which are its rows."""


class ServerFailedError(RuntimeError):
    """`tutelage serve` has ended, or does not answer; the text has its last words."""


def our_claims(rounds: int) -> Found:
    """Claims and ends a second by one worker, on SQLite and on PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        ours = OurQueue(f"sqlite:///{folder}/bench.db")
        found = {CLAIMS_SQLITE: [ours.round() for _ in range(rounds)]}
        ours.database.close()
    with postgresql() as new:
        address = new("ours")
        ours = OurQueue(address)
        vacuum(address)
        found[CLAIMS_POSTGRESQL] = [ours.round() for _ in range(rounds)]
        ours.database.close()
    return found


def procrastinate_claims(rounds: int) -> Found:
    """The same with procrastinate, which has PostgreSQL alone."""
    with postgresql() as new:
        address = new("peer")
        peer = Procrastinate(address)
        vacuum(address)
        found = {CLAIMS_POSTGRESQL: [peer.round() for _ in range(rounds)]}
        peer.close()
    return found


@contextmanager
def served(*options: str, pending: bool = False) -> Generator[tuple[str, Path], None, None]:
    """A real server in a process of its own: its address and its home. pending: 10,000 jobs wait there, put into its
    database before it starts. Raises ServerFailedError."""
    with tempfile.TemporaryDirectory() as folder:
        home, said = Path(folder, "home"), Path(folder, "said")
        if pending:
            home.mkdir()
            OurQueue(f"sqlite:///{home}/tutelage.db").database.close()
        command = [sys.executable, "-m", "tutelage", "serve", "--home", str(home), "--port", "0", *options]
        with said.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        try:
            yield answering(process, said), home
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answering(process: "subprocess.Popen[bytes]", said: Path, seconds: float = START) -> str:
    """The address of a server, once it answers. said: what it prints. Raises ServerFailedError."""
    until = time.monotonic() + seconds
    while True:
        text = said.read_text(encoding="utf-8", errors="replace")
        if (code := process.poll()) is not None:
            raise ServerFailedError(f"tutelage serve ended with exit code {code}: {last_words(text)}")
        if address := re.search(r"http://\S+", text):
            with suppress(httpx.HTTPError):
                if httpx.get(f"{address[0]}/api/me").is_success:
                    return address[0]
        if time.monotonic() > until:
            raise ServerFailedError(f"tutelage serve does not answer after {seconds:g} s: {last_words(text)}")
        time.sleep(0.05)


def last_words(text: str) -> str:
    """The last three lines, or that there are none."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:]) or "it said nothing"


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
    return {EVENTS[EVENTS_AT_ONCE]: many, EVENTS[1]: single}


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
    for place, delays in zip(PLACES, (streamed, shown), strict=True):
        ordered = sorted(delays)
        found[DELAYS["median"].format(place=place)] = [statistics.median(ordered)]
        found[DELAYS["most"].format(place=place)] = [ordered[int(0.95 * (len(ordered) - 1))]]
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
    with served("--no-worker", pending=True) as (url, _), httpx.Client(base_url=url, timeout=120) as client:
        jobs = client.get("/api/jobs", params={"limit": 1}).raise_for_status().json()["data"]
        assert jobs[0]["params"] == {"number": PENDING}, f"the server does not show the newest job, but {jobs}"
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

        return {name: timed(path.format(run=run["id"])) for name, path in PAGES.items()}


def measure(side: str) -> Found:
    """One part, in rounds."""
    if side == "latency":
        return latency()
    parts = {"ours": our_claims, "procrastinate": procrastinate_claims, "events": events, "pages": pages}
    return parts[side](ROUNDS)


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """One row a name."""
    peers, rows = samples.get("procrastinate", {}), []
    for side, names in NAMES.items():
        for name in names:
            what, unit = name.split("|")
            peer_name = "procrastinate" if name == CLAIMS_POSTGRESQL else ""
            ours = samples.get(side, {}).get(name, ())
            rows.append(Row(what, unit, ours, peers.get(name, ()), peer_name))
    return rows


if __name__ == "__main__":
    answer(measure)
