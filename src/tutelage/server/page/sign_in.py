"""Signing in with a token, which becomes a cookie that no script can read; and out. Not here: what tokens are."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tutelage.server.authentication import COOKIE, Parts, refuse_other_sites
from tutelage.server.page.rendering import local, render, see

router = APIRouter(include_in_schema=False)
KEEP_SECONDS = 30 * 24 * 3600


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Where a token is asked for."""
    return render(request, None, "sign_in.html", next="/jobs", sentence=None)


@router.post("/sign-in")
async def sign_in(
    request: Request,
    parts: Parts,
    token: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/jobs",
) -> Response:
    """Keep a valid token as a cookie."""
    refuse_other_sites(request)
    token, onward = token.strip(), local(next, "/jobs")
    principal = await run_in_threadpool(parts.access.principal, token) if token else None
    if principal is None:
        sentence = "the token is not valid: it is unknown, expired or revoked" if token else "paste a token first"
        return render(request, None, "sign_in.html", status=401, next=onward, sentence=sentence)
    answer = see(onward)
    # Behind a proxy that ends TLS only the browser knows that the page came by https.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(COOKIE, token, max_age=KEEP_SECONDS, path="/", secure=secure, httponly=True, samesite="strict")
    return answer


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """Forget the cookie."""
    refuse_other_sites(request)
    answer = see("/sign-in")
    answer.delete_cookie(COOKIE, path="/")
    return answer
