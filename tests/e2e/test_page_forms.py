"""Forms of the page in a real Chromium: a job, tokens, secrets."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.pages import Visitor, text_of
from tests.served import Api, Served, conversation, jsonl, until
from tutelage.jobs.records import Scope

if TYPE_CHECKING:
    from playwright.sync_api import FileChooser

pytest_plugins = ["tests.e2e.page_fixtures"]


ROWS = jsonl([conversation(number) for number in range(3)])


def test_a_first_job_is_made_by_the_page_alone(admin: Api, own_server: Served, visit: Visitor, tmp_path: Path) -> None:
    """From an empty server: the form has all but the file; the job's page has the file to save again."""
    rows = tmp_path / "train.jsonl"
    rows.write_bytes(ROWS)
    page = visit(f"{own_server.url}/jobs")
    page.get_by_role("link", name="New job").click()
    assert page.locator("nav[aria-label='Kinds of jobs'] a[aria-current]").inner_text() == "fine_tuning"
    page.get_by_label("Upload JSON lines").set_input_files(rows)
    page.get_by_role("button", name="Submit").click()
    page.locator("h1 .badge.pending").wait_for()
    job = admin.ok("GET", f"/api/jobs/{text_of(page, 'h1 .id')}")
    assert (job["kind"], job["model"], job["requires_vram_gb"]) == ("fine_tuning", "smollm2", 0)
    (file,) = admin.ok("GET", "/v1/files")["data"]
    assert (file["id"].partition(":")[0], file["filename"], file["bytes"]) == (
        "conversations",
        "train.jsonl",
        len(ROWS),
    )
    assert {name: job["params"][name] for name in ("loss", "epochs", "training_file")} == {
        "loss": "sft",
        "epochs": 1.0,
        "training_file": file["id"],
    }
    with page.expect_download() as saving:
        page.get_by_role("link", name=file["id"]).click()
    assert saving.value.suggested_filename == "train.jsonl"
    assert saving.value.path().read_bytes() == ROWS


def test_a_file_with_bad_rows_says_which_and_keeps_what_was_typed(
    admin: Api, own_server: Served, visit: Visitor, tmp_path: Path
) -> None:
    """The second row ends with the user, the third is no JSON: line numbers. A good file whose job is wrong otherwise
    is kept, and need not be chosen again."""
    rows = tmp_path / "train.jsonl"
    rows.write_bytes(jsonl([conversation(), {"messages": [{"role": "user", "content": "?"}]}]) + b"{\n")
    page = visit(f"{own_server.url}/jobs/new")
    typed = '{"model": "smollm2", "loss": "dft", "epohcs": 7}'
    page.fill("textarea[name=params]", typed)
    page.fill("input[name=allowed_hardware]", "1x A100")
    page.get_by_label("Upload JSON lines").set_input_files(rows)
    page.get_by_role("button", name="Submit").click()
    fault = text_of(page, "#problem")
    assert "train.jsonl:2:" in fault
    assert "train.jsonl:3:" in fault
    assert admin.ok("GET", "/v1/files")["data"] == []
    assert page.input_value("textarea[name=params]") == typed
    assert page.input_value("input[name=allowed_hardware]") == "1x A100"
    rows.write_bytes(ROWS)
    page.get_by_label("Upload JSON lines").set_input_files(rows)
    page.get_by_role("button", name="Submit").click()
    assert "epohcs" in text_of(page, "#problem")
    assert "train.jsonl is here" in text_of(page, "#kept-file")
    assert page.input_value("textarea[name=params]") == typed
    page.fill("textarea[name=params]", typed.replace("epohcs", "epochs"))
    page.get_by_role("button", name="Submit").click()
    page.locator("h1 .badge.pending").wait_for()
    (file,) = admin.ok("GET", "/v1/files")["data"]
    (job,) = admin.ok("GET", "/api/jobs")["data"]
    assert [job["params"][name] for name in ("loss", "epochs", "training_file")] == ["dft", 7, file["id"]]
    assert job["allowed_hardware"] == ["1x A100"]
    visit.expects(400)


def test_a_first_job_without_a_mouse(admin: Api, own_server: Served, visit: Visitor, tmp_path: Path) -> None:
    """Tab and Space alone: the browser's own dialog for files opens by a key. A busy browser may forget within seconds
    that somebody pressed one, and opens nothing: they would press it again."""
    rows = tmp_path / "train.jsonl"
    rows.write_bytes(ROWS)
    page = visit(f"{own_server.url}/jobs/new")

    def focus_on(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"no way to {selector} by the tab key")

    opened: list[FileChooser] = []
    page.on("filechooser", lambda one: opened.append(one))

    def opens() -> bool:
        page.keyboard.press("Space")
        page.wait_for_timeout(1000)
        return bool(opened)

    focus_on("input[type=file]")
    until(opens, "the browser's dialog for files")
    opened[0].set_files(rows)
    focus_on("button:not(.quiet)")
    page.keyboard.press("Space")
    page.locator("h1 .badge.pending").wait_for()
    (job,) = admin.ok("GET", "/api/jobs")["data"]
    (file,) = admin.ok("GET", "/v1/files")["data"]
    assert job["params"]["training_file"] == file["id"]


def test_files_are_uploaded_without_scripts_for_every_kind_that_reads_one(
    admin: Api, own_server: Served, visit: Visitor, tmp_path: Path
) -> None:
    """Prompts for inference, and for a custom job any file, which is mounted under its name."""
    page = visit(f"{own_server.url}/jobs/new", java_script_enabled=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl([{"messages": [{"role": "user", "content": "?"}]}]))
    page.get_by_role("link", name="inference").click()
    page.get_by_label("Upload JSON lines").set_input_files(rows)
    page.get_by_role("button", name="Submit").click()
    job = admin.ok("GET", f"/api/jobs/{text_of(page, 'h1 .id')}")
    (file,) = admin.ok("GET", "/v1/files")["data"]
    assert (job["kind"], job["params"]["input_file_id"]) == ("inference", file["id"])
    assert file["id"].startswith("conversations:")
    script = tmp_path / "count.py"
    script.write_bytes(b"print(3)\n")
    page.goto(f"{own_server.url}/jobs/new?kind=custom")
    page.fill("textarea[name=entrypoint]", "python count.py")
    page.get_by_label("Upload").set_input_files(script)
    page.get_by_role("button", name="Submit").click()
    job = admin.ok("GET", f"/api/jobs/{text_of(page, 'h1 .id')}")
    (file,) = admin.ok("GET", "/v1/files", params={"purpose": "custom_job_file"})["data"]
    assert (job["entrypoint"], job["mounted_files"]) == ("python count.py", {"count.py": file["id"]})
    assert job["id"].startswith("hello-")


def test_an_upload_from_a_page_of_another_site_is_refused_before_it_is_read(own_server: Served) -> None:
    """As every form is: a browser on this machine needs no token."""
    answer = httpx.post(
        f"{own_server.url}/jobs",
        data={"kind": "fine_tuning"},
        files={"file": ("train.jsonl", ROWS)},
        headers={"origin": "http://example.com", "accept": "text/html"},
        trust_env=False,
    )
    assert answer.status_code == 403
    assert "pages of other sites may not do this" in answer.text
    assert own_server.services.files.list(own_server.services.organization) == []


def test_params_longer_than_a_form_with_a_file_holds_are_cloned(admin: Api, own_server: Served, visit: Visitor) -> None:
    """100,000 characters: more than a field beside a file may have."""
    job = admin.submit(params={"number": "x" * 100_000})["id"]
    page = visit(f"{own_server.url}/jobs/{job}/clone")
    page.fill("input[name=prefix]", "other")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/jobs/other-*")
    assert admin.ok("GET", f"/api/jobs/{text_of(page, 'h1 .id')}")["params"]["number"] == "x" * 100_000


def test_the_same_work_is_the_same_job_and_the_page_says_so(admin: Api, own_server: Served, visit: Visitor) -> None:
    """A clone that nobody changed leads to the job that there is."""
    running = admin.running()
    admin.finish(running.run_id)
    page = visit(f"{own_server.url}/jobs/{running.job_id}/clone")
    page.get_by_role("button", name="Submit").click()
    page.locator("h1 .badge.completed").wait_for()
    assert text_of(page, "h1 .id") == running.job_id
    assert "is a job already" in text_of(page, ".note")


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
    visit.expects(400)


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
