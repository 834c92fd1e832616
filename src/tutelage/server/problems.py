"""Errors as JSON, in the form OpenAI's endpoints have: one sentence, a type, a code. Never a traceback."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

import tutelage
from tutelage.errors import (
    ContentGoneError,
    FencedError,
    NotFoundError,
    NotServedError,
    OutputError,
    StorageError,
    TooLargeError,
    TutelageError,
    WorkerStoppedError,
)
from tutelage.jobs.plain_json import cleaned_text

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
)
"""Of every answer."""
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
MAX_MESSAGE = 10_000
CODES = ((FencedError, "fenced"), (WorkerStoppedError, "stopped"), (NotServedError, "model_not_served"))
"""For programs, which read no sentences."""


class Fault(BaseModel):
    """What is wrong. code: for programs. param: the part of the request that it is about."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Problem(BaseModel):
    """Every answer that is none of success."""

    error: Fault


def add_handlers(app: FastAPI) -> None:
    """Let every error leave as JSON."""
    app.add_exception_handler(TutelageError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as it goes out."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": _sendable(message), "type": kind, "code": code, "param": _sendable(param)}}
    return JSONResponse(body, status_code=status, headers=headers)


def _sendable(text: str | None) -> str | None:
    """What a client sent may be repeated in an error, and be what UTF-8 has no place for; and not at any length."""
    return None if text is None else cleaned_text(text)[:MAX_MESSAGE]


def status_of(error: TutelageError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, FencedError | WorkerStoppedError):
        return 409
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, ContentGoneError):
        return 410  # trying again brings nothing back
    return 503 if isinstance(error, StorageError | OutputError) else 400


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TutelageError)
    status = status_of(error)
    message = str(error)
    headers = None
    if status == 503:
        headers = {"Retry-After": "1"}
        logger.error("%s %s: %s", request.method, request.url.path, error)
        # Where things are on this machine is nobody else's business.
        message = "the server cannot read or write what it stores; its log says why; try again, or ask who runs it"
    code = next((code for kind, code in CODES if isinstance(error, kind)), None)
    return problem(status, message, code=code, headers=headers)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    sentence = str(error.detail)
    if error.status_code in (404, 405) and sentence == HTTPStatus(error.status_code).phrase:  # no route, none of ours
        sentence = f"{request.method} {request.url.path[:200]}: {_not_known_here()}"
    if error.status_code == 405 and (methods := _methods(request)):
        headers = (headers or {}) | {"Allow": ", ".join(methods)}
    return problem(error.status_code, sentence, headers=headers)


def _not_known_here() -> str:
    return f"not known to this server, tutelage {tutelage.__version__}; a client of another version? update the older"


def _methods(request: Request) -> list[str]:
    """Those that a route of ours takes on this path; the framework names those of the first route."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    asked = [(method, {**request.scope, "method": method}) for method in METHODS]
    return [method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    wrong = _not_known_here() if first["type"] == "extra_forbidden" else first["msg"]
    message = f"{place or 'the request'}: {wrong}"
    return problem(400, message, param=place or None)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.exception("%s %s", request.method, request.url.path, exc_info=error)
    # This leaves outside of the middleware that adds them to all others.
    headers = {name.decode(): value.decode() for name, value in HEADERS}
    return problem(500, "the server met an error of its own, which is in its log; please report it", headers=headers)
