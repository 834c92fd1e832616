"""Costs, workers, demand, tokens, secrets: what somebody who looks after a server asks for."""

from collections.abc import Sequence
from datetime import datetime

from tutelage.client.http import Transport, path_of
from tutelage.client.results import Cost, NewToken, Token, Worker, decoded, decoded_list
from tutelage.jobs.records import Demand


class Costs:
    """What jobs took."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def report(self, limit: int = 100, offset: int = 0) -> list[Cost]:
        """Jobs with their hours and dollars, the dearest first."""
        page = self._transport.request("GET", "/api/costs", params={"limit": limit, "offset": offset})
        return decoded_list(Cost, page)


class Workers:
    """The workers of the organisation."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, limit: int = 100) -> list[Worker]:
        """Those last heard from first."""
        return decoded_list(Worker, self._transport.request("GET", "/api/workers", params={"limit": limit}))

    def demand(self, limit: int = 10_000) -> Demand:
        """The oldest jobs that nobody has claimed, and what they need."""
        return decoded(Demand, self._transport.request("GET", "/api/demand", params={"limit": limit}))

    def stop(self, worker_id: str, reason: str = "asked to stop") -> Worker:
        """Let a worker claim nothing more. A job that it runs goes on to its end; then the worker ends and says why.

        It does not register again, and `tutelage serve` starts no other in its place. Raises NotFoundError.
        """
        path = path_of("api", "workers", worker_id, "stop")
        return decoded(Worker, self._transport.request("POST", path, json={"reason": reason}))


class Tokens:
    """Tokens of people and workers. All calls need the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, name: str, scopes: Sequence[str] = ("read", "submit"), expires_at: datetime | None = None
    ) -> NewToken:
        """A new token, whose secret is in this answer and nowhere else. scopes: of read, submit, worker, admin.

        Raises JobError for a scope that is none, and an expiry that has passed.
        """
        expires = expires_at.astimezone().isoformat() if expires_at is not None else None
        body = {"name": name, "scopes": list(scopes), "expires_at": expires}
        return decoded(NewToken, self._transport.request("POST", "/api/tokens", json=body, once=True))

    def list(self) -> list[Token]:
        """Newest first, without their secrets."""
        return decoded_list(Token, self._transport.request("GET", "/api/tokens"))

    def revoke(self, token_id: str) -> Token:
        """From now on nobody gets in with it. Raises NotFoundError."""
        return decoded(Token, self._transport.request("DELETE", path_of("api", "tokens", token_id)))


class Secrets:
    """Environment variables that all jobs get. All calls need the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def set(self, name: str, value: str) -> None:
        """Jobs that begin from now on get it. Raises JobError for a name that is none of a variable."""
        self._transport.request("PUT", path_of("api", "secrets", name), json={"value": value})

    def list(self) -> list[str]:
        """Names; nobody can read a value again."""
        return decoded_list(str, self._transport.request("GET", "/api/secrets"))

    def delete(self, name: str) -> None:
        """Raises NotFoundError."""
        self._transport.request("DELETE", path_of("api", "secrets", name))
