"""What a request may cost before anybody looks at it: bytes and seconds; and headers that every answer has."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.server.problems import problem

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of everything but uploads of files."""
UPLOAD_PATH = "/v1/files"
OVERHEAD_BYTES = 1024 * 1024
"""Of a multipart form around a file."""
CLOSE = {"Connection": "close"}
"""What still arrives belongs to no request."""
SILENCE_SECONDS = 30.0
"""A body of which nothing arrives for this long is given up."""

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


# HTTPExceptions, since frameworks make a 400 of any other error while a body is read.
class TooLarge(HTTPException):
    """The body has more bytes than are taken."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {limit} bytes, the limit of this server", CLOSE)


class TooSlow(HTTPException):
    """The body stopped arriving."""

    def __init__(self, seconds: float) -> None:
        super().__init__(408, f"nothing of the body arrived for {seconds:g} s; send it again", CLOSE)


class Limits:
    """ASGI middleware. max_file_bytes: of a file that is uploaded. silence_seconds: between two parts of a body."""

    def __init__(self, app: ASGIApp, *, max_file_bytes: int, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.app = app
        self.max_file_bytes = max_file_bytes
        self.silence_seconds = silence_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope["path"] == UPLOAD_PATH
        limit = self.max_file_bytes + OVERHEAD_BYTES if upload else MAX_BODY_BYTES
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = _with_headers(message)
            await send(message)

        if _declared(scope) > limit:
            await _refused(TooLarge(limit))(scope, receive, send_with_headers)
            return
        limited = _Body(receive, limit, self.silence_seconds)
        try:
            await self.app(scope, limited, send_with_headers)
        except (TooLarge, TooSlow) as error:
            if begun:
                raise
            await _refused(error)(scope, receive, send_with_headers)


class _Body:
    """Receives a request and counts."""

    def __init__(self, receive: Receive, limit: int, silence_seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._silence_seconds = silence_seconds
        self._bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # tells of a disconnect, which may take as long as the answer
        try:
            message = await asyncio.wait_for(self._receive(), self._silence_seconds)
        except asyncio.TimeoutError as error:
            raise TooSlow(self._silence_seconds) from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise TooLarge(self._limit)
        return message


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _refused(error: HTTPException) -> JSONResponse:
    return problem(error.status_code, error.detail, headers=dict(error.headers or {}))


def _with_headers(message: Message) -> MutableMapping[str, Any]:
    headers = list(message.get("headers", []))
    there = {name.lower() for name, _ in headers}
    headers += [(name, value) for name, value in HEADERS if name not in there]
    return {**message, "headers": headers}
