"""Errors for browsers: a page with the sentence, and a way on. Not here: which errors there are (`server.problems`)."""

import json
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tutelage.errors import TutelageError
from tutelage.jobs.access import Principal
from tutelage.server.authentication import COOKIE, principal_of
from tutelage.server.page.rendering import local, render

OTHERS = ("/api/", "/v1/")
"""What programs ask for: their errors are JSON, whoever asks."""
TITLES = {
    400: "That did not work",
    403: "Not with this token",
    404: "Not found",
    405: "Not possible here",
    413: "Too large",
    503: "The server cannot reach its records",
}

Handler = Callable[[Request, Exception], Awaitable[Response]]


def add_page_problems(app: FastAPI) -> None:
    """Wrap the handlers that are there: what a browser asked for as a page is answered with one."""
    for error in (TutelageError, HTTPException, RequestValidationError, Exception):
        wrapped = _for_browsers(app.exception_handlers[error])  # pyright: ignore[reportArgumentType] - all of ours wait
        app.add_exception_handler(error, wrapped)


def is_for_a_browser(request: Request) -> bool:
    """Whether a person is to read the answer."""
    return not request.url.path.startswith(OTHERS) and "text/html" in request.headers.get("accept", "")


def _for_browsers(handler: Handler) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        answer = await handler(request, error)
        if not is_for_a_browser(request):
            return answer
        sentence = str(json.loads(bytes(answer.body))["error"]["message"])
        if answer.status_code == 401:
            return _sign_in(request, sentence)
        page = render(
            request,
            await _who(request),
            "problem.html",
            status=answer.status_code,
            title=TITLES.get(answer.status_code, "Something went wrong"),
            sentence=sentence,
        )
        page.headers.update({name: value for name, value in answer.headers.items() if name in ("allow", "connection")})
        return page

    return handle


async def _who(request: Request) -> Principal | None:
    """For the head of the page; whatever went wrong may go wrong here again."""
    try:
        return await principal_of(request)
    except (HTTPException, TutelageError):
        return None


def _sign_in(request: Request, sentence: str) -> Response:
    """Ask for a token where one is needed, and go on to what was asked for."""
    had_one = COOKIE in request.cookies
    if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET" and not had_one:
        # The cookie is not sent with links on pages of other sites. It is when this page asks for itself once more.
        return render(request, None, "again.html", status=401)
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    page = render(
        request,
        None,
        "sign_in.html",
        status=401,
        next=local(asked, "/jobs") if request.method == "GET" else "/jobs",
        sentence=sentence if had_one else None,
    )
    if had_one:
        page.delete_cookie(COOKIE, path="/")
    return page
