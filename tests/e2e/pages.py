"""What tests of the page do in a browser: tabs whose complaints fail a test, a server where each page has something
to show. Not here: the fixtures (`page_fixtures.py`), what is tested.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.served import Api, Running, Served, until
from tutelage.server.authentication import COOKIE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page


ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


PATIENCE = 15_000.0
"""Milliseconds after which a browser that waits fails its test."""


WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@dataclass
class Visitor:
    """Opens tabs of one person. complaints: what their consoles said, blocked scripts and styles among it."""

    browser: "Browser"
    complaints: list[str] = field(default_factory=list)
    _closers: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self, url: str = "", **options: Any) -> "Page":
        context = self.browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
        context.set_default_timeout(PATIENCE)
        self._closers.append(context.close)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if url:
            page.goto(url)
        return page

    def _heard(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location}")

    def expects(self, *statuses: int) -> None:
        """Answers with these statuses are what the test asked for; each is one line in the console."""
        told = re.compile(f"status of ({'|'.join(map(str, statuses))})")
        self.complaints = [one for one in self.complaints if not told.search(one)]

    def close(self) -> None:
        for close in self._closers:
            close()


@dataclass(frozen=True)
class Stored:
    """A server on one of the databases; its token, where it needs one, as clients and browsers send it."""

    server: Served
    token: str | None

    @property
    def api(self) -> Api:
        return self.server.api(self.token)

    @property
    def cookies(self) -> dict[str, Any]:
        """Of a context of the browser."""
        if self.token is None:
            return {}
        where = {"domain": "127.0.0.1", "path": "/", "expires": -1, "httpOnly": True, "secure": False}
        cookie = {"name": COOKIE, "value": self.token, "sameSite": "Strict", **where}
        return {"storage_state": {"cookies": [cookie], "origins": []}}


def training_rows(steps: int, tilt: float = 0.0) -> list[dict[str, Any]]:
    """Events as a training run reports them."""
    rows: list[dict[str, Any]] = [{"tag": "start", "step": 0, "from_step": 0}]
    for step in range(1, steps + 1):
        rows.append({"tag": "train", "step": step, "loss": 2 / step + tilt, "grad_norm": 1.0, "epoch": step / 10})
        rows.append({"tag": "monitoring", "step": step, "loss": 2 / step, "kl_vs_base": 0.01 * step + tilt})
    return rows


def trained(api: Api, number: Any, worker_id: str, rows: list[dict[str, Any]], **params: Any) -> Running:
    """A job in progress that has reported these rows."""
    running = api.running(api.submit(number, params={"number": number, **params}), worker_id)
    api.report(running.run_id, *rows)
    return running


def true_on(page: "Page", expression: str, arg: Any = None) -> None:
    """Wait for it. `page.wait_for_function` would need `eval`, which the page forbids."""
    until(lambda: page.evaluate(expression, arg), expression)


def text_of(page: "Page", selector: str) -> str:
    return page.locator(selector).inner_text()


@dataclass
class Everything:
    """A server where each page has something to show."""

    server: Served
    live: Running
    done: list[Running]
    pending: str
    failed: str

    def paths(self) -> list[str]:
        compared = "&".join(f"run={one.run_id}" for one in self.done)
        return [
            "/jobs",
            "/jobs?status=completed",
            f"/jobs/{self.pending}",
            f"/jobs/{self.failed}",
            f"/jobs/{self.done[0].job_id}",
            f"/jobs/{self.done[0].job_id}/clone",
            "/jobs/new",
            f"/runs/{self.live.run_id}",
            f"/runs/{self.done[0].run_id}?with={self.done[1].run_id}",
            "/compare",
            f"/compare?{compared}",
            "/workers",
            "/costs",
            "/tokens",
            "/secrets",
            "/sign-in",
        ]


def furnished(server: Served, payload: str = "", token: str | None = None) -> Everything:
    """Jobs of every status, runs with events, logs, samples, checkpoints and files. payload: in every text there is."""
    api = server.api(token)
    worker = api.worker(
        f"gpu-1{payload}",
        hardware="1x A100",
        gpus=1,
        vram_gb=80,
        ignore_vram=False,
        cached_models=["smollm2" + payload],
        cost_per_hour=1.5,
    )
    done: list[Running] = []
    for number, tilt in ((1, 0.0), (2, 0.5)):
        run = trained(api, number, worker, training_rows(12, tilt), loss=f"sft{payload}", learning_rate=number)
        answers = {
            "messages": [{"role": "user" + payload, "content": "Chile?" + payload}],
            "completion": "+56" + payload,
        }
        samples = api.upload(json.dumps(answers).encode(), "samples", f"samples{payload}.jsonl")["id"]
        api.report(run.run_id, {"type": "samples", "step": 5, "tag": f"everyday{payload}"}, file=samples)
        kept = api.upload(f"{number}".encode(), "result", f"weights{payload}.bin")["id"]
        api.report(run.run_id, {"file": kept, "path": f"checkpoint-5/weights{payload}.bin"}, file=kept)
        api.report(
            run.run_id,
            {"tag": "checkpoint", "step": 5, "checkpoint": f"{run.job_id}:step-5{payload}"},
            {"tag": "warning", "step": 3, "message": f"a sink failed{payload}"},
            {f"field{payload}": f"text{payload}", f"number{payload}": 3.5, "nested": {"a" + payload: [payload]}},
        )
        api.print(run.run_id, 0, f"step 1\n{payload}\nstep 2\n".encode())
        api.finish(run.run_id, "completed", exit_code=0)
        done.append(run)
    failed = api.running(api.submit(f"failing{payload}"), worker)
    api.finish(failed.run_id, "failed", exit_code=1, reason=f"the process ended with exit code 1{payload}")
    live = trained(api, f"live{payload}", worker, training_rows(10), loss=f"sdft{payload}")
    api.print(live.run_id, 0, f"step 1\n{payload}\nstep 2\n".encode())
    pending = api.submit(
        f"big{payload}",
        requires_vram_gb=160,
        allowed_hardware=["2x H100" + payload.replace(" ", "")],
        cloud_type="COMMUNITY",
    )["id"]
    api.ok("POST", "/api/tokens", {"name": f"ci{payload}", "scopes": ["read"]})
    api.ok("PUT", "/api/secrets/HF_TOKEN", {"value": "hf_0123456789"})
    return Everything(server, live, done, pending, failed.job_id)
