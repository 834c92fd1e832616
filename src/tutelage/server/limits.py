"""What a request may cost before anybody looks at it: bytes and seconds; and headers that every answer has."""

import asyncio
import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.server.problems import HEADERS, problem

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of everything but uploads of files."""
UPLOAD_PATH = "/v1/files"
FORM_PATH = "/jobs"
"""The page's form for a new job, which may bring a file."""
OVERHEAD_BYTES = 1024 * 1024
"""Of a multipart form around a file."""
SLICE_SECONDS = 0.25
DRAINED_BYTES = 8 * 1024 * 1024
DRAINED_SECONDS = 2.0
CLOSE = {"Connection": "close"}
"""What still arrives belongs to no request."""
SILENCE_SECONDS = 30.0
"""A body of which nothing arrives for this long is given up."""


# HTTPExceptions, since frameworks make a 400 of any other error while a body is read.
class TooLarge(HTTPException):
    """The body has more bytes than are taken."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {limit} bytes, the limit of this server", CLOSE)


class TooSlow(HTTPException):
    """The body stopped arriving."""

    def __init__(self, seconds: float) -> None:
        super().__init__(408, f"nothing of the body arrived for {seconds:g} s; send it again", CLOSE)


class Stopping(HTTPException):
    """The server is about to stop."""

    def __init__(self) -> None:
        super().__init__(503, "the server is about to stop; send it again in a moment", {**CLOSE, "Retry-After": "1"})


class Limits:
    """ASGI middleware. max_file_bytes: of a file that is uploaded. closing: whether the server is about to stop.
    silence_seconds: between two parts of a body."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_file_bytes: int,
        closing: Callable[[], bool] = lambda: False,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.app = app
        self.max_file_bytes = max_file_bytes
        self.closing = closing
        self.silence_seconds = silence_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope["path"] == UPLOAD_PATH or (scope["path"] == FORM_PATH and _is_multipart(scope))
        limit = self.max_file_bytes + OVERHEAD_BYTES if upload else MAX_BODY_BYTES
        limited = _Body(receive, limit, self.silence_seconds, self.closing)
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = _with_headers(message)
                if message["status"] >= 400 and not limited.complete:
                    # Somebody is still sending what nobody wants: the connection ends here.
                    if message["status"] not in (408, 503):  # who is silent sends no more, and who stops has no time
                        await limited.drain()
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        if _declared(scope) > limit:
            await _refused(TooLarge(limit))(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, limited, send_with_headers)
        except (TooLarge, TooSlow, Stopping) as error:
            if begun:
                raise
            await _refused(error)(scope, receive, send_with_headers)


def _is_multipart(scope: Scope) -> bool:
    """Parts are written to disk as they come; any other body is held in memory."""
    return any(name == b"content-type" and value.startswith(b"multipart/") for name, value in scope["headers"])


class _Body:
    """Receives a request and counts."""

    def __init__(self, receive: Receive, limit: int, silence_seconds: float, closing: Callable[[], bool]) -> None:
        self._receive = receive
        self._closing = closing
        self._limit = limit
        self._silence_seconds = silence_seconds
        self._bytes = 0
        self.complete = False

    async def __call__(self) -> Message:
        if self.complete:
            return await self._receive()  # tells of a disconnect, which may take as long as the answer
        message = await self._next()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise TooLarge(self._limit)
        return message

    async def _next(self) -> Message:
        """The next message, waited for in slices: a server that is about to stop waits for no body."""
        until = asyncio.get_running_loop().time() + self._silence_seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            if self._closing():
                raise Stopping
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(self._receive(), min(left, SLICE_SECONDS))
        raise TooSlow(self._silence_seconds)

    async def drain(self) -> None:
        """Read on a little: who is nearly done finds the answer then, and not a connection that was cut."""
        left, until = DRAINED_BYTES, asyncio.get_running_loop().time() + DRAINED_SECONDS
        with contextlib.suppress(asyncio.TimeoutError, TooLarge):
            while not self.complete and left > 0:
                message = await asyncio.wait_for(self._receive(), until - asyncio.get_running_loop().time())
                self.complete = message["type"] != "http.request" or not message.get("more_body", False)
                left -= len(message.get("body", b""))


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
