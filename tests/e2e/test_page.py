"""The page in a real Chromium, on a real server: what people see, click and type.

Not here: formats and tables of it (`tests/unit/test_server_page.py`), who may ask (`test_server_access.py`).
"""

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.served import Api, Running, Served, until
from tutelage.jobs.records import Scope
from tutelage.server.page.formats import shown_log

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

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
ATTACK = '"><img src=x onerror="window.attacked=1"><script>window.attacked=1</script>{{7*7}}\'`'


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Debian's browser, started once."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.fail("the tests of the page drive a real browser, and there is none; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


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

    def close(self) -> None:
        for close in self._closers:
            close()


@pytest.fixture
def visit(chromium: "Browser") -> Iterator[Visitor]:
    """`visit(url)` opens a page in a browser of its own. What a console complains of fails the test."""
    visitor = Visitor(chromium)
    yield visitor
    visitor.close()
    assert not visitor.complaints


@pytest.fixture
def admin(own_server: Served) -> Api:
    """A client of this test's own server, which needs no token."""
    return own_server.api()


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


def furnished(server: Served, payload: str = "") -> Everything:
    """Jobs of every status, runs with events, logs, samples, checkpoints and files. payload: in every text there is."""
    api = server.api()
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


@pytest.fixture(scope="module")
def everything(open_server: Served) -> Everything:
    """To be looked at only."""
    return furnished(open_server)


def test_every_page_opens_and_nothing_on_it_is_blocked(everything: Everything, visit: Visitor) -> None:
    """`visit` fails where the console of the browser complains: of a script, of the content security policy."""
    page = visit()
    for path in everything.paths():
        answer = page.goto(everything.server.url + path)
        assert answer is not None
        assert answer.status == 200, path
        assert page.locator("main h1").count() == 1, path
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
    page.goto(f"{everything.server.url}/runs/{everything.done[0].run_id}")
    page.locator(".plot[data-field=loss] canvas").wait_for()
    # What monitoring repeats of the training's own numbers is not drawn twice: one line, so the newest value alone.
    assert text_of(page, ".plot[data-field=loss] .readout") == "0.1667"


def test_no_page_is_wider_than_a_phone(everything: Everything, visit: Visitor) -> None:
    """360 pixels: wide tables scroll in boxes of their own."""
    page = visit(viewport=NARROW)
    for path in everything.paths():
        page.goto(everything.server.url + path)
        if "/runs/" in path or "run=" in path:
            page.locator(".plot[data-field=loss] canvas").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, path


def test_dark_where_the_system_is(everything: Everything, visit: Visitor) -> None:
    """The colours of `page.css`: paper #ffffff and ink #1a1f25, or #14171b and #e2e6ea; plots follow at once."""
    url = f"{everything.server.url}/runs/{everything.done[0].run_id}"
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    page = visit(url, color_scheme="light")
    assert page.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(26, 31, 37)"]
    page.locator(".plot[data-field=loss] canvas").wait_for()
    drawn = "document.querySelector('.plot[data-field=loss] canvas').toDataURL()"
    light = page.evaluate(drawn)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colours) == ["rgb(20, 23, 27)", "rgb(226, 230, 234)"]
    true_on(page, f"before => {drawn} !== before", arg=light)


def test_texts_have_contrast(everything: Everything, visit: Visitor) -> None:
    """At least 4.5 to 1, as WCAG AA asks of small text, computed by its formula from what the browser shows."""
    page = visit()
    for path in everything.paths():
        page.goto(everything.server.url + path)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            faint = page.evaluate(_CONTRASTS)
            assert not faint, (scheme, path)


_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("svg, .skip")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return bad;
}"""


def test_jobs_are_filtered_searched_canceled_restarted_and_cloned_by_mouse(
    admin: Api, own_server: Served, visit: Visitor
) -> None:
    """Without a page being loaded anew, but for the clone, which is a form."""
    worker = admin.worker()
    running = admin.running(admin.submit("needle"), worker)
    waiting = [admin.submit(number, prefix="sweep")["id"] for number in range(3)]
    page = visit(f"{own_server.url}/jobs")
    page.evaluate("window.same = true")
    assert page.locator("#jobs tbody tr").count() == 4
    assert " ".join(text_of(page, ".tabs").split()) == "all 4 pending 3 in progress 1 completed 0 failed 0 canceled 0"

    page.fill("input[name=search]", "needle")
    true_on(page, "document.querySelectorAll('#jobs tbody tr').length === 1")
    assert page.locator("#jobs tbody th a").inner_text() == running.job_id
    assert "search=needle" in page.url
    page.fill("input[name=search]", "no such job")
    page.get_by_text("No job is like that").wait_for()
    page.fill("input[name=search]", "")
    true_on(page, "document.querySelectorAll('#jobs tbody tr').length === 4")
    page.select_option("select[name=kind]", "inference")
    page.get_by_text("No job is like that").wait_for()
    page.select_option("select[name=kind]", "custom")
    true_on(page, "document.querySelectorAll('#jobs tbody tr').length === 4")

    row = page.locator(f"#row-{waiting[0]}")
    row.get_by_role("button", name="Cancel").click()
    row.locator(".badge.canceled").wait_for()
    row.get_by_role("button", name="Restart").click()
    row.locator(".badge.pending").wait_for()
    # What runs is asked about first.
    row = page.locator(f"#row-{running.job_id}")
    row.get_by_role("button", name="Cancel", exact=False).first.click()
    row.get_by_role("button", name="Leave it").click()
    assert admin.ok("GET", f"/api/jobs/{running.job_id}")["status"] == "in_progress"
    row.get_by_role("button", name="Cancel", exact=False).first.click()
    row.get_by_role("button", name="Cancel the job").click()
    row.locator(".badge.canceled").wait_for()
    assert page.evaluate("window.same")
    page.get_by_role("link", name="canceled").click()
    page.wait_for_url("**/jobs?status=canceled*")
    assert page.locator("#jobs tbody tr").count() == 1

    page.get_by_role("link", name=f"Clone {running.job_id}").click()
    assert json.loads(page.input_value("textarea[name=params]"))["number"] == "needle"
    assert page.input_value("textarea[name=entrypoint]") == "true"
    page.fill("textarea[name=params]", '{"number": "another", }')
    page.get_by_role("button", name="Submit").click()
    assert "params: no JSON" in text_of(page, ".note.bad")
    page.fill("textarea[name=params]", '{"number": "another"}')
    page.get_by_role("button", name="Submit").click()
    page.locator("h1 .badge.pending").wait_for()
    job = admin.ok("GET", f"/api/jobs/{text_of(page, 'h1 .id')}")
    assert job["params"]["number"] == "another"
    assert job["id"].startswith("custom-")
    visitor_complaints_of_bad_forms(visit)


def visitor_complaints_of_bad_forms(visit: Visitor) -> None:
    """A form that comes back with status 400 is one line in the console."""
    visit.complaints = [one for one in visit.complaints if "status of 400" not in one]


def test_the_same_by_keyboard_alone(admin: Api, own_server: Served, visit: Visitor) -> None:
    """Tab, Enter, Space and letters; where the focus is can be seen, and polling does not take it away."""
    running = admin.running(admin.submit("mine"))
    admin.submit("other")
    page = visit(f"{own_server.url}/jobs")
    keyboard = page.keyboard

    def focus_on(name: str) -> None:
        for _ in range(80):
            keyboard.press("Tab")
            label = page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")
            if label == name:
                return
        pytest.fail(f"no way to '{name}' by the tab key")

    keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    focus_on("Cancel " + running.job_id)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # The list is asked for again meanwhile, as it is every few seconds.
    page.evaluate("htmx.trigger('#jobs', 'every', {}, false)")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.activeElement.id") == f"ask-{running.job_id}"
    keyboard.press("Enter")
    page.locator("[popover]:popover-open").wait_for()
    keyboard.press("Escape")
    assert page.locator("[popover]:popover-open").count() == 0
    keyboard.press("Enter")
    page.locator("[popover]:popover-open").wait_for()
    keyboard.press("Enter")
    page.locator(f"#row-{running.job_id} .badge.canceled").wait_for()
    focus_on("Restart " + running.job_id)
    keyboard.press("Space")
    page.locator(f"#row-{running.job_id} .badge.pending").wait_for()
    page.focus("input[name=search]")
    keyboard.type("other")
    true_on(page, "document.querySelectorAll('#jobs tbody tr').length === 1")
    other = page.locator("#jobs tbody th a").inner_text()
    focus_on("Clone " + other)
    keyboard.press("Enter")
    page.locator("textarea[name=params]").focus()
    keyboard.press("Control+A")
    keyboard.type('{"number": "typed"}')
    focus_on("Submit")
    keyboard.press("Enter")
    page.locator("h1 .badge.pending").wait_for()
    assert admin.ok("POST", "/api/jobs/find", {"params": {"number": "typed"}})["data"][0]["id"] == text_of(
        page, "h1 .id"
    )


def test_what_was_asked_before_a_search_does_not_undo_it(admin: Api, own_server: Served, visit: Visitor) -> None:
    """The list is being asked for again when somebody types; that answer comes last, and is left aside."""
    for name in ("needle", "hay", "straw"):
        admin.submit(name)
    page = visit(f"{own_server.url}/jobs")
    late: list[Route] = []
    page.route(f"{own_server.url}/jobs", lambda route: late.append(route))
    page.evaluate("htmx.trigger('#jobs', 'every', {}, false)")
    until(lambda: page.evaluate("1") and late, "the list being asked for again")
    page.fill("input[name=search]", "needle")
    true_on(page, "document.querySelectorAll('#jobs tbody tr').length === 1")
    late[0].continue_()
    page.wait_for_load_state("networkidle")
    assert page.locator("#jobs tbody tr").count() == 1
    # And what is asked for from now on is what was searched for.
    page.unroute(f"{own_server.url}/jobs")
    with page.expect_response("**/jobs?*search=needle*"):
        page.evaluate("htmx.trigger('#jobs', 'every', {}, false)")


def test_without_scripts_forms_and_links_do_the_same(admin: Api, own_server: Served, visit: Visitor) -> None:
    """Everything but what is live."""
    running = admin.running(admin.submit("mine"))
    admin.report(running.run_id, *training_rows(3))
    admin.print(running.run_id, 0, b" 10%\r100%\ndone\n")
    other = admin.submit("other")["id"]
    page = visit(f"{own_server.url}/jobs", java_script_enabled=False)
    page.fill("input[name=search]", "other")
    page.get_by_role("button", name="Search").click()
    assert page.locator("#jobs tbody tr").count() == 1
    page.get_by_role("button", name=f"Cancel {other}").click()
    assert page.locator(f"#row-{other} .badge.canceled").count() == 1
    assert "search=other" in page.url
    page.get_by_role("button", name=f"Restart {other}").click()
    assert page.locator(f"#row-{other} .badge.pending").count() == 1
    page.goto(f"{own_server.url}/runs/{running.run_id}")
    assert text_of(page, "#log-text") == "100%\ndone\n"
    assert "0.6667" in text_of(page, "main")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    assert "its process is being stopped" in text_of(page, "#live")
    page.get_by_role("link", name=running.job_id).first.click()
    assert page.locator("h1 .badge.canceled").count() == 1
    page.get_by_role("link", name="Clone").click()
    page.fill("textarea[name=params]", '{"number": "plain"}')
    page.get_by_role("button", name="Submit").click()
    assert page.locator("h1 .badge.pending").count() == 1


def test_the_same_work_is_the_same_job_and_the_page_says_so(admin: Api, own_server: Served, visit: Visitor) -> None:
    """A clone that nobody changed leads to the job that there is."""
    running = admin.running()
    admin.finish(running.run_id)
    page = visit(f"{own_server.url}/jobs/{running.job_id}/clone")
    page.get_by_role("button", name="Submit").click()
    page.locator("h1 .badge.completed").wait_for()
    assert text_of(page, "h1 .id") == running.job_id
    assert "is a job already" in text_of(page, ".note")


def test_log_and_plots_grow_while_a_run_reports(admin: Api, own_server: Served, visit: Visitor) -> None:
    """What comes while the page is open is on it without a reload, and the end is too."""
    running = trained(admin, 1, admin.worker(), training_rows(5))
    end = admin.print(running.run_id, 0, "erste Zeile ü\n 10%\r".encode())
    page = visit(f"{own_server.url}/runs/{running.run_id}")
    true_on(page, "document.getElementById('log-text').textContent === 'erste Zeile ü\\n 10%'")
    readout = ".plot[data-field=kl_vs_base] .readout"
    true_on(page, f"document.querySelector('{readout}')?.textContent.trim() === '0.05'")
    # A character may come in two parts, and a line be written over by what comes later.
    late = "100%\nzweite <b>Zeile</b> ü".encode()
    end = admin.print(running.run_id, end, late[:-1])
    end = admin.print(running.run_id, end, late[-1:])
    expected = "erste Zeile ü\n100%\nzweite <b>Zeile</b> ü"
    true_on(page, "text => document.getElementById('log-text').textContent === text", arg=expected)
    before = page.evaluate("document.querySelector('.plot[data-field=kl_vs_base] canvas').toDataURL()")
    admin.report(running.run_id, {"tag": "monitoring", "step": 6, "kl_vs_base": 0.75, "brand_new": 4})
    true_on(page, f"document.querySelector('{readout}').textContent.trim() === '0.75'")
    assert page.evaluate("document.querySelector('.plot[data-field=kl_vs_base] canvas').toDataURL()") != before
    page.locator(".plot[data-field=brand_new]").wait_for(state="attached")
    assert page.locator("h1 .badge").inner_text() == "in progress"
    # The rest of the page follows every few seconds.
    page.evaluate("htmx.trigger('#live', 'every', {}, false)")
    page.locator("#found tr", has=page.get_by_role("rowheader", name="brand_new")).wait_for()
    admin.finish(running.run_id, "failed", exit_code=3, reason="the process ended with exit code 3")
    page.locator("h1 .badge.failed").wait_for()
    assert "the process ended with exit code 3" in text_of(page, "#live")


def test_tabs_that_nobody_looks_at_keep_no_connection(admin: Api, own_server: Served, visit: Visitor) -> None:
    """A browser has six to a server; a page of a run has two, gives them back when hidden, and misses nothing."""
    running = trained(admin, 1, admin.worker(), training_rows(5))
    end = admin.print(running.run_id, 0, b"one\n")
    page = visit()
    page.add_init_script(
        """window.opened = new Set();
        window.EventSource = class extends EventSource {
          constructor(url) { super(url); window.opened.add(this); }
          close() { super.close(); window.opened.delete(this); }
        };
        Object.defineProperty(document, "hidden", { get: () => window.away === true });"""
    )
    page.goto(f"{own_server.url}/runs/{running.run_id}")
    true_on(page, "window.opened.size === 2")
    true_on(page, "document.getElementById('log-text').textContent === 'one\\n'")
    page.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    assert page.evaluate("window.opened.size") == 0
    admin.print(running.run_id, end, b"two\n")
    admin.report(running.run_id, {"tag": "monitoring", "step": 6, "kl_vs_base": 0.75})
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    true_on(page, "document.getElementById('log-text').textContent === 'one\\ntwo\\n'")
    readout = ".plot[data-field=kl_vs_base] .readout"
    true_on(page, f"document.querySelector('{readout}')?.textContent.trim() === '0.75'")


def test_the_log_in_the_browser_is_what_the_server_would_show(everything: Everything, visit: Visitor) -> None:
    """Two programs for one rule: random pieces of what terminals get, cut at random places."""
    page = visit(f"{everything.server.url}/runs/{everything.done[0].run_id}")
    pieces = ["\n", "\r", "\r\n", "\x1b[31m", "\x1b[0m", "\x1b]0;t\x07", "step", " 10%", "ü🎈", "<b>", "x" * 50]
    source = random.Random(5)
    for _ in range(40):
        printed = "".join(source.choice(pieces) for _ in range(source.randrange(1, 40)))
        parts = [part for part in re.split("(?<=.)", printed) if part] if source.random() < 0.5 else [printed]
        shown = page.evaluate(
            """async (parts) => {
                const { LogText } = await import("/static/log.js");
                const pre = document.createElement("pre");
                const log = new LogText(pre, document.createElement("p"));
                parts.forEach((part) => log.append(part));
                return pre.textContent;
            }""",
            parts,
        )
        assert shown == shown_log(printed), (printed, parts)


def test_a_long_log_stays_small_on_the_page(admin: Api, own_server: Served, visit: Visitor) -> None:
    """3 MB are printed while the page is open: the newest of it is there, the rest is behind a link."""
    running = admin.running()
    page = visit(f"{own_server.url}/runs/{running.run_id}")
    page.locator("#follow-label").wait_for()
    content = "".join(f"line {number}\n" for number in range(260_000)).encode()
    end = 0
    for start in range(0, len(content), 1_000_000):
        end = admin.print(running.run_id, end, content[start : start + 1_000_000])
    true_on(page, "document.getElementById('log-text').textContent.endsWith('line 259999\\n')")
    assert page.evaluate("document.getElementById('log-text').textContent.length") < 450_000
    assert page.locator("#log-cut").is_visible()
    # Followed to its end, until somebody scrolls up to read.
    true_on(page, "(box => box.scrollHeight - box.scrollTop - box.clientHeight < 30)(document.getElementById('log'))")
    page.evaluate("document.getElementById('log').scrollBy(0, -4000)")
    true_on(page, "!document.getElementById('follow').checked")
    reading = page.evaluate(_LINE_AT_THE_TOP)
    assert re.fullmatch(r"line 259\d\d\d", reading)
    admin.print(running.run_id, end, b"and one more\n")
    true_on(page, "document.getElementById('log-text').textContent.endsWith('and one more\\n')")
    assert page.evaluate(_LINE_AT_THE_TOP) == reading
    whole = httpx.get(f"{own_server.url}/runs/{running.run_id}/log.txt", trust_env=False)
    assert whole.content == content + b"and one more\n"
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"


_LINE_AT_THE_TOP = """() => {
  const box = document.getElementById("log").getBoundingClientRect();
  const { startContainer, startOffset } = document.caretRangeFromPoint(box.left + 30, box.top + 15);
  const begin = startContainer.data.lastIndexOf("\\n", startOffset - 1) + 1;
  return startContainer.data.slice(begin, startContainer.data.indexOf("\\n", begin));
}"""


def test_other_runs_are_drawn_beside_a_run(everything: Everything, visit: Visitor) -> None:
    """Chosen from a list, in the address, taken away again. The newest losses are 2/12 and 2/12 + 0.5."""
    first, second = everything.done
    page = visit(f"{everything.server.url}/runs/{first.run_id}")
    readout = ".plot[data-field=loss] .readout"
    page.locator(".plot[data-field=loss] canvas").wait_for()
    page.select_option("#overlay-choice", second.run_id)
    page.get_by_role("button", name="Draw").click()
    true_on(page, f"document.querySelector('{readout}').innerText.split(/\\s+/).join(' ').trim() === '0.1667 0.6667'")
    assert f"with={second.run_id}" in page.url
    page.reload()
    true_on(page, f"document.querySelector('{readout}')?.innerText.split(/\\s+/).join(' ').trim() === '0.1667 0.6667'")
    assert page.locator("#legend li").count() == 2
    assert "sft learning_rate=2 number=2" in page.locator("#legend li").nth(1).inner_text()
    page.get_by_role("button", name="Take sft").click()
    true_on(page, f"document.querySelector('{readout}').innerText.trim() === '0.1667'")
    assert "with=" not in page.url
    # Under the cursor: the value there.
    box = page.locator(".plot[data-field=loss] .u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
    true_on(page, f"document.querySelector('{readout}').innerText.trim() === 'step 1 2'")
    page.fill("#plot-filter", "grad")
    assert page.locator(".plot:visible").count() == 1


def test_runs_are_compared(own_server: Served, admin: Api, visit: Visitor) -> None:
    """Ticked in the list; a column for each, results of jobs that asked their models among the rows, and both measures
    as points: 0.9 right and KL 0.05 against 0.6 right and KL 0.55."""
    worker = admin.worker()
    jobs: list[str] = []
    for number, tilt in ((1, 0.0), (2, 0.5)):
        run = trained(admin, 1, worker, training_rows(5, tilt), loss=["sdft", "sft"][number - 1])
        admin.finish(run.run_id)
        jobs.append(run.job_id)
    rows = admin.upload(b'{"question": "?"}\n', "mc_eval", "task.jsonl")["id"]
    for job, accuracy in zip(jobs, (0.9, 0.6), strict=True):
        asked = admin.submit(
            kind="multiple_choice", entrypoint=None, params={"model": job, "dataset": rows}, requires_vram_gb=0
        )
        run = admin.running(asked, worker)
        admin.report(run.run_id, {"accuracy": accuracy})
        admin.finish(run.run_id)
    page = visit(f"{own_server.url}/jobs")
    for job in jobs:
        page.check(f"#pick-{job}")
    # What was ticked stays ticked while the list is asked for again.
    page.evaluate("htmx.trigger('#jobs', 'every', {}, false)")
    page.wait_for_load_state("networkidle")
    assert [page.is_checked(f"#pick-{job}") for job in jobs] == [True, True]
    page.get_by_role("button", name="Compare the chosen").click()
    page.locator(".plot[data-field=kl_vs_base] canvas").wait_for()
    order = [page.locator("#legend li").nth(index).get_attribute("data-name") for index in range(2)]
    assert sorted(filter(None, order)) == ["sdft", "sft"]
    kl = {"sdft": "0.05", "sft": "0.55"}
    right = {"sdft": "0.9", "sft": "0.6"}
    readout = page.locator(".plot[data-field=kl_vs_base] .readout").inner_text().split()
    assert readout == [kl[str(name)] for name in order]
    row = page.locator("tr", has=page.get_by_role("rowheader", name="accuracy (multiple_choice of task.jsonl)"))
    assert row.locator("td").all_inner_texts() == [right[str(name)] for name in order]
    assert page.locator("svg .dot").count() == 2
    places = {
        name: (float(dot.get_attribute("cx") or 0), float(dot.get_attribute("cy") or 0))
        for name, dot in zip(order, page.locator("svg .dot").all(), strict=True)
    }
    # Less forgotten is further left, more learned is further up.
    assert places["sdft"][0] < places["sft"][0]
    assert places["sdft"][1] < places["sft"][1]
    page.select_option("select[name=x]", "loss")
    page.get_by_role("button", name="Draw").click()
    assert "loss (less is better)" in page.locator("svg").text_content()


def test_why_a_job_waits(everything: Everything, visit: Visitor) -> None:
    """It asks for 160 GB on two H100 of the community; the one worker has 80 GB on one A100 and is secure."""
    page = visit(f"{everything.server.url}/jobs/{everything.pending}")
    row = page.locator("#why tbody tr")
    assert row.count() == 1
    assert row.locator("li").all_inner_texts() == [
        "it needs 2x H100, the worker has 1x A100",
        "it needs 160 GB of GPU memory, the worker has 80 GB",
        "it needs a COMMUNITY machine, the worker is SECURE",
    ]
    assert "no worker fits" in text_of(page, "#why .why")


def test_texts_of_users_are_texts_wherever_they_stand(own_server: Served, visit: Visitor) -> None:
    """HTML, a script, an attribute's end and a template in every name, param, log, sample, event, file, reason and
    token: shown as they are, and nothing of it runs."""
    shown = furnished(own_server, ATTACK)
    page = visit()
    for path in [*shown.paths(), f"/jobs?search={httpx.QueryParams({'s': ATTACK})['s']}"]:
        page.goto(own_server.url + path)
        if "/runs/" in path or "run=" in path:
            page.locator(".plot[data-field=loss] canvas").wait_for()
            if page.locator("#more-plots").is_visible():
                page.locator("#more-plots summary").click()
        assert page.evaluate("window.attacked") is None, path
        assert page.locator("img").count() == 0, path
        assert page.locator("body script").count() == 0, path
        assert "49" not in re.findall(r"sft\S*", page.content()), path
    page.goto(f"{own_server.url}/runs/{shown.done[0].run_id}")
    content = text_of(page, "main")
    for text in ("everyday", "Chile?", "+56", "a sink failed", "weights", "step-5", "text"):
        assert text + ATTACK in content, text
    assert text_of(page, "#log-text") == f"step 1\n{ATTACK}\nstep 2\n"
    page.goto(f"{own_server.url}/runs/{shown.live.run_id}")
    true_on(page, "text => document.getElementById('log-text').textContent === text", arg=f"step 1\n{ATTACK}\nstep 2\n")
    page.goto(f"{own_server.url}/jobs?search=%3Cscript%3Ewindow.attacked%3D1%3C/script%3E")
    assert page.input_value("input[name=search]") == "<script>window.attacked=1</script>"
    assert page.evaluate("window.attacked") is None


def test_files_are_saved_and_never_opened(everything: Everything, visit: Visitor) -> None:
    """A file of HTML could run as this site; it comes as an attachment, under its own name."""
    api = everything.server.api()
    run = everything.done[0]
    page = visit(f"{everything.server.url}/jobs/{run.job_id}")
    with page.expect_download() as saving:
        page.get_by_role("link", name="checkpoint-5/weights.bin").click()
    assert saving.value.suggested_filename == "weights.bin"
    assert saving.value.path().read_bytes() == b"1"
    page_of_html = api.upload(b"<script>1</script>", "result", "../a b;ü.html")["id"]
    answer = api("GET", f"/files/{page_of_html}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b%3B%C3%BC.html"


def test_signing_in_with_a_token(closed_server: Served, visit: Visitor) -> None:
    """A page asks for a token and goes on to what was asked for; the cookie is for this site and no script."""
    page = visit(f"{closed_server.url}/workers?x=1")
    assert text_of(page, "h1") == "Sign in"
    page.fill("input[name=token]", "tut-wrong")
    page.get_by_role("button", name="Sign in").click()
    assert "not valid" in text_of(page, "#problem")
    page.fill("input[name=token]", closed_server.token())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/workers?x=1")
    assert text_of(page, "h1") == "Workers"
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"], cookie["secure"], cookie["path"]) == (
        "tutelage_token",
        True,
        "Strict",
        False,
        "/",
    )
    assert page.evaluate("document.cookie") == ""
    # From a page of another site the cookie is not sent; the page asks for itself once more, and it is.
    page.route(
        "http://localhost:9/",
        lambda route: route.fulfill(body=f'<a href="{closed_server.url}/costs">go</a>', content_type="text/html"),
    )
    page.goto("http://localhost:9/")
    page.get_by_role("link", name="go").click()
    page.get_by_role("heading", name="Costs").wait_for()
    page.get_by_role("button", name="Sign out").click()
    assert text_of(page, "h1") == "Sign in"
    assert page.context.cookies() == []
    visit.complaints = [one for one in visit.complaints if "status of 401" not in one]


def test_a_cookie_is_secure_where_the_page_came_by_https(closed_server: Served) -> None:
    """Behind a proxy that ends TLS the origin of the form tells."""
    host = closed_server.url.removeprefix("http://")
    token = closed_server.token()
    # The proxy is on another port of the same name to the browser; what it is asked for has its name.
    answer = httpx.post(
        f"{closed_server.url}/sign-in",
        data={"token": token},
        headers={"origin": f"https://{host}", "accept": "text/html"},
        trust_env=False,
    )
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "; secure" in cookie
    assert "; httponly" in cookie
    assert "samesite=strict" in cookie


def test_a_token_that_is_revoked_is_asked_for_again(closed_server: Served, visit: Visitor) -> None:
    """The dead cookie is taken away."""
    created = closed_server.services.access.create_token(closed_server.services.organization, "short", [Scope.READ])
    page = visit(f"{closed_server.url}/jobs")
    page.fill("input[name=token]", created.secret)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs").wait_for()
    closed_server.services.access.revoke_token(closed_server.services.organization, created.token.id)
    page.reload()
    assert text_of(page, "h1") == "Sign in"
    assert "revoked" in text_of(page, "#problem")
    assert page.context.cookies() == []
    visit.complaints = [one for one in visit.complaints if "status of 401" not in one]


def test_too_small_a_scope_is_a_page_that_says_so(closed_server: Served, visit: Visitor) -> None:
    """Who may only read sees no buttons, and what they ask for by hand is refused with the name of the scope."""
    admin = closed_server.api(closed_server.token())
    job = admin.submit()["id"]
    page = visit(f"{closed_server.url}/jobs")
    page.fill("input[name=token]", closed_server.token(Scope.READ))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs").wait_for()
    assert page.locator("nav[aria-label=Pages] a").all_inner_texts() == ["Jobs", "Compare", "Workers", "Costs"]
    assert page.get_by_role("button", name="Cancel").count() == 0
    for path, scope in (
        ("/tokens", "admin"),
        ("/secrets", "admin"),
        ("/jobs/new", "submit"),
        (f"/jobs/{job}/clone", "submit"),
    ):
        answer = page.goto(closed_server.url + path)
        assert answer is not None
        assert answer.status == 403
        assert (
            text_of(page, "#problem") == f"the token has not the scope '{scope}'; use one that has, or make one with it"
        )
    page.goto(f"{closed_server.url}/jobs")
    status = page.evaluate(
        "path => fetch(path, {method: 'POST', headers: {accept: 'text/html'}}).then(answer => answer.status)",
        f"/jobs/{job}/cancel",
    )
    assert status == 403
    assert admin.ok("GET", f"/api/jobs/{job}")["status"] == "pending"
    # A token that may not even read.
    page.context.clear_cookies()
    page.goto(f"{closed_server.url}/jobs")
    page.fill("input[name=token]", closed_server.token(Scope.WORKER))
    page.get_by_role("button", name="Sign in").click()
    assert "'read'" in text_of(page, "#problem")
    visit.complaints = [one for one in visit.complaints if not re.search("status of 40[13]", one)]


@pytest.mark.parametrize("path", ["/jobs/x/cancel", "/tokens", "/secrets", "/jobs", "/sign-in", "/sign-out"])
def test_forms_of_other_sites_change_nothing(own_server: Served, path: str) -> None:
    """A browser on this machine needs no token, so any page it opens could have a form that leads here."""
    for origin in ("http://example.com", "null", "http://127.0.0.1:1"):
        answer = httpx.post(
            own_server.url + path,
            data={"name": "x"},
            headers={"origin": origin, "accept": "text/html"},
            trust_env=False,
        )
        assert answer.status_code == 403, origin
        assert "pages of other sites may not do this" in answer.text
    assert own_server.services.access.tokens(own_server.services.organization) == []


def test_tokens_are_shown_once_and_revoked(own_server: Served, visit: Visitor) -> None:
    """The secret works until it is revoked, and is on the page that made it alone."""
    page = visit(f"{own_server.url}/tokens")
    page.fill("input[name=name]", "laptop")
    page.check("input[value=worker]")
    page.uncheck("input[value=submit]")
    page.fill("input[name=days]", "7")
    page.get_by_role("button", name="Make a token").click()
    secret = text_of(page, "#new-secret")
    principal = own_server.services.access.principal(secret)
    assert principal is not None
    assert principal.scopes == {Scope.READ, Scope.WORKER}
    (token,) = own_server.services.access.tokens(own_server.services.organization)
    assert token.expires_at is not None
    assert abs(token.expires_at.timestamp() - time.time() - 7 * 86400) < 60
    page.goto(f"{own_server.url}/tokens")
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke", exact=True).click()
    page.get_by_role("button", name="Revoke it").click()
    page.locator(".badge.revoked").wait_for()
    assert own_server.services.access.principal(secret) is None
    page.fill("input[name=name]", "no scope")
    page.uncheck("input[value=read]")
    page.uncheck("input[value=submit]")
    page.get_by_role("button", name="Make a token").click()
    assert "give it a scope" in text_of(page, "#problem")
    visitor_complaints_of_bad_forms(visit)


def test_secrets_are_set_and_deleted_by_name(own_server: Served, visit: Visitor) -> None:
    """Their values are on no page."""
    page = visit(f"{own_server.url}/secrets")
    page.fill("input[name=name]", "HF_TOKEN")
    page.fill("input[name=value]", "hf_very_secret")
    page.get_by_role("button", name="Set").click()
    page.get_by_role("rowheader", name="HF_TOKEN").wait_for()
    assert "hf_very_secret" not in page.content()
    services = own_server.services
    assert services.access.environment(services.organization) == {"HF_TOKEN": "hf_very_secret"}
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_text("None.").wait_for()
    assert services.access.environment(services.organization) == {}


def test_an_empty_server_says_how_to_begin(own_server: Served, visit: Visitor) -> None:
    """With the address of this very server; the command of the page works as it stands."""
    page = visit(f"{own_server.url}/")
    assert text_of(page, "h2") == "No job yet"
    assert f'base_url="{own_server.url}/v1"' in text_of(page, ".first")
    command = page.locator(".first pre").last.inner_text()
    body = re.search(r"-d '(.*)'", command)
    assert body is not None
    answer = httpx.post(
        f"{own_server.url}/api/jobs", content=body[1], headers={"content-type": "application/json"}, trust_env=False
    )
    assert answer.json()["id"].startswith("hello-")


def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(own_server: Served, visit: Visitor) -> None:
    """By what they accept."""
    page = visit(f"{own_server.url}/jobs/ftjob-000000000000")
    assert "there is no such job" in text_of(page, "#problem")
    for path in ("/nothing", "/runs/x", "/jobs?status=odd", "/jobs?after=x", "/static/nothing.js"):
        page.goto(own_server.url + path)
        assert page.locator("#problem").count() == 1, path
    assert httpx.get(f"{own_server.url}/jobs/x", trust_env=False).json()["error"]["type"] == "not_found_error"
    answer = httpx.get(f"{own_server.url}/api/jobs/x", headers={"accept": "text/html"}, trust_env=False)
    assert answer.json()["error"]["type"] == "not_found_error"
    visit.complaints = [one for one in visit.complaints if not re.search("status of 40[04]", one)]


def test_ten_thousand_jobs_and_a_hundred_thousand_events_stay_quick(
    own_server: Served, admin: Api, visit: Visitor
) -> None:
    """Pages of fifty with a cursor through all jobs. A page is below 150 kB; the best of five within 50 ms (measured:
    12 ms; a search 33 ms), the curves of 100,000 events within a second (measured: 0.2 s)."""
    from sqlalchemy import insert, select

    from tutelage.jobs.tables import events, jobs

    services = own_server.services
    training = admin.upload(
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', "conversations"
    )
    running = admin.running(
        admin.submit(
            kind="fine_tuning",
            entrypoint=None,
            params={"model": "smollm2", "training_file": training["id"], "loss": "sdft"},
        )
    )
    with services.database.writing() as connection:
        row = dict(connection.execute(select(jobs)).one()._mapping)
        row |= {"status": "completed", "run_id": None}
        others = [
            {**row, "id": f"ftjob-{number:012x}", "created_at": row["created_at"] - number}
            for number in range(1, 10_000)
        ]
        connection.execute(insert(jobs), others)
        event = {"run_id": running.run_id, "created_at": time.time(), "tag": "train"}
        steps = [
            {
                **event,
                "client_id": str(step),
                "step": step,
                "data": {"tag": "train", "step": step, "loss": 1 / (step + 1)},
            }
            for step in range(100_000)
        ]
        connection.execute(insert(events), steps)

    def best_of_five(path: str) -> tuple[float, int]:
        seconds: list[float] = []
        for _ in range(5):
            begin = time.perf_counter()
            answer = admin("GET", path, headers={"accept": "text/html"})
            seconds.append(time.perf_counter() - begin)
            assert answer.status_code == 200
        return min(seconds), len(answer.content)

    for path, limit in (
        ("/jobs", 0.05),
        ("/jobs?status=completed", 0.05),
        ("/jobs?kind=fine_tuning", 0.05),
        # All params of all jobs are read.
        ("/jobs?search=0000002a", 0.25),
        ("/jobs?search=nothing-like-it", 0.25),
    ):
        seconds, size = best_of_five(path)
        assert seconds < limit, path
        assert size < 150_000, path
    seconds, size = best_of_five(f"/runs/{running.run_id}/plots")
    assert seconds < 1
    assert size < 150_000

    page = visit(f"{own_server.url}/jobs")
    assert page.locator(".tabs a").first.inner_text().split() == ["all", "10000"]
    seen = set(page.locator("#jobs tbody th a").all_inner_texts())
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**/jobs?after=*")
    assert page.locator("#jobs tbody tr").count() == 50
    assert not seen & set(page.locator("#jobs tbody th a").all_inner_texts())
    page.goto(f"{own_server.url}/jobs?after=ftjob-{9990:012x}")
    assert page.locator("#jobs tbody tr").count() == 9
    assert page.get_by_role("link", name="Older").count() == 0

    page.goto(f"{own_server.url}/runs/{running.run_id}")
    page.locator(".plot[data-field=loss] canvas").wait_for()
    true_on(page, "document.querySelector('.plot[data-field=loss] .readout').textContent.trim() === '1e-5'")
