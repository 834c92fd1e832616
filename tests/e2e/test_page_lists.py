"""The list of jobs and what can be done there, in a real Chromium: by mouse, by keyboard, without scripts."""

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.pages import Everything, Visitor, text_of, training_rows, true_on
from tests.served import Api, Served, until

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytest_plugins = ["tests.e2e.page_fixtures"]


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
    visit.expects(400)


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
