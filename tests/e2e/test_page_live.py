"""What a run prints and reports while somebody looks, in a real Chromium; runs beside each other."""

import csv
import random
import re
from datetime import datetime

import httpx
import pytest

from tests.e2e.pages import Everything, Visitor, text_of, trained, training_rows, true_on
from tests.served import Api, Served
from tutelage.server.page.formats import shown_log

pytest_plugins = ["tests.e2e.page_fixtures"]


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


def test_numbers_that_do_not_change_have_axes_around_them(admin: Api, own_server: Served, visit: Visitor) -> None:
    """One point at step 4, value 0.5: a step to each side, a tenth of the value up and down; then a second point at
    step 6, value 0.7, and axes go from the one to the other."""
    running = admin.running()
    admin.report(running.run_id, {"tag": "train", "step": 4, "loss": 0.5})
    page = visit()
    page.add_init_script(
        """Object.defineProperty(window, "uPlot", {
          get: () => window.kept,
          set: (real) => {
            window.kept = new Proxy(real, { construct: (_, given) => (window.plot = new real(...given)) });
          },
        });"""
    )
    page.goto(f"{own_server.url}/runs/{running.run_id}")
    axes = "['x', 'y'].map((name) => window.plot.scales[name]).flatMap(({ min, max }) => [min, max])"
    true_on(page, f"window.plot && {axes}.every((value) => value !== null)")
    assert page.evaluate(axes) == pytest.approx([3, 5, 0.45, 0.55])
    admin.report(running.run_id, {"tag": "train", "step": 6, "loss": 0.7})
    true_on(page, f"{axes}[0] === 4 && {axes}[1] === 6")
    low, high = page.evaluate(axes)[2:]
    assert 0.4 < low <= 0.5
    assert 0.7 <= high < 0.8


def test_numbers_are_saved_as_a_table(everything: Everything, visit: Visitor) -> None:
    """All of them, none thinned out: the losses are 2 / step, one field was reported without a step."""
    page = visit(f"{everything.server.url}/runs/{everything.done[0].run_id}")
    with page.expect_download() as saving:
        page.get_by_role("link", name="CSV").click()
    assert saving.value.suggested_filename == f"{everything.done[0].run_id}.csv"
    rows = list(csv.DictReader(saving.value.path().read_text(encoding="utf-8").splitlines()))
    told = [(row["step"], float(row["value"])) for row in rows if (row["tag"], row["field"]) == ("train", "loss")]
    assert told == [(str(step), pytest.approx(2 / step)) for step in range(1, 13)]
    assert [row["value"] for row in rows if row["field"] == "number"] == ["3.5"]
    assert all(datetime.fromisoformat(row["time"]).tzinfo is not None for row in rows)


def test_ids_are_copied_by_a_button(everything: Everything, visit: Visitor) -> None:
    """Also on a page that was asked for again meanwhile; none is there where browsers have no clipboard."""
    job = everything.live.job_id
    page = visit(f"{everything.server.url}/jobs/{job}", permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("htmx.trigger('#live', 'every', {}, false)")
    page.wait_for_load_state("networkidle")
    page.get_by_role("button", name=f"Copy {job}").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == job
    page = visit(f"{everything.server.url}/jobs/{job}", java_script_enabled=False)
    assert page.get_by_role("button", name=f"Copy {job}").count() == 0


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
