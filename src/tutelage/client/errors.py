"""What can go wrong between a client and its server, and the sentence a server's refusal becomes."""

from typing import Any

import httpx

from tutelage.errors import DataError, FencedError, JobError, NotFoundError, TutelageError, WorkerStoppedError

MAX_SENTENCE = 2000
BY_CODE: dict[Any, type[JobError]] = {"fenced": FencedError, "stopped": WorkerStoppedError}


class ServerError(TutelageError):
    """The server met an error of its own, or what answers is no Tutelage server."""

    exit_code = 3


class ConnectionFailed(ServerError):
    """Nothing answers at the server's address, or it stopped answering."""


class AccessError(TutelageError):
    """No token, an invalid one, or one with too small a scope."""


class JobFailed(JobError):
    """A job did not end well: it failed or was canceled. `raise_for_status` raises it."""

    exit_code = 1


def refusal(response: httpx.Response, address: str) -> TutelageError:
    """The error that an answer other than success means. The response has been read.

    address: of the server, as it may be shown.
    """
    error = _error_of(response)
    if error is None:
        return ServerError(
            f"{address}: answers {response.status_code} {response.reason_phrase} to {response.request.method} "
            f"{response.request.url.path}, not as a Tutelage server does; check base_url and TUTELAGE_URL"
        )
    sentence = str(error.get("message") or "the server gave no reason")[:MAX_SENTENCE]
    if kind := BY_CODE.get(error.get("code")):
        return kind(sentence)
    if response.status_code >= 500 or response.status_code in (408, 429):  # slow, too much to do: not what was asked
        return ServerError(f"{address}: {sentence}")
    kinds = {401: AccessError, 403: AccessError, 404: NotFoundError, 413: DataError}
    return kinds.get(response.status_code, JobError)(sentence)


def no_answer(error: Exception, address: str) -> ConnectionFailed:
    """The error that a lost or refused connection means."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        why = str(error) or "no connection in time"
        return ConnectionFailed(
            f"{address}: no server answers there ({why}); start one with: tutelage serve, or set TUTELAGE_URL"
        )
    why = str(error) or type(error).__name__
    return ConnectionFailed(
        f"{address}: the server stopped answering ({why}); look whether `tutelage serve` still runs there"
    )


def _error_of(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None
