"""Who gets to see the page, and what pages of other sites can do: signing in, scopes, origins."""

import httpx
import pytest

from tests.e2e.pages import Visitor, text_of
from tests.served import Served
from tutelage.jobs.records import Scope

pytest_plugins = ["tests.e2e.page_fixtures"]


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
    visit.expects(401)


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
    visit.expects(401)


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
    visit.expects(401, 403)


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
