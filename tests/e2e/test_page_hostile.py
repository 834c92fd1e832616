"""Texts and files of users that mean harm, in a real Chromium."""

import re

import httpx

from tests.e2e.pages import Everything, Visitor, furnished, text_of, true_on
from tests.served import Served

pytest_plugins = ["tests.e2e.page_fixtures"]


ATTACK = '"><img src=x onerror="window.attacked=1"><script>window.attacked=1</script>{{7*7}}\'`'


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
