"""A token for each machine, with which its worker comes in; none outlives its machine."""

import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta, timezone

from tutelage.client.openweights import OpenWeights
from tutelage.client.results import Token
from tutelage.errors import NotFoundError

TOKEN_DAYS = 30
"""A machine works no longer: then its token has expired."""
SCOPES = ("worker", "read")


def new_machine_id(cluster: str) -> str:
    """What a machine, its worker and its token are called."""
    return f"{cluster}-{secrets.token_hex(5)}"


def is_machine_id(name: str, cluster: str) -> bool:
    """Whether `new_machine_id` makes such names: people's tokens, and other clusters', may begin with the same word."""
    return re.fullmatch(rf"{re.escape(cluster)}-[0-9a-f]{{10}}", name) is not None


class MachineTokens:
    """Of the machines of one cluster, which are called after it, and so are their tokens.

    start_seconds: how long a machine may be asked for before the launcher knows it.
    """

    def __init__(self, client: OpenWeights, cluster: str, start_seconds: float) -> None:
        self._client = client
        self._cluster = cluster
        self._start_seconds = start_seconds
        self._known: dict[str, Token] | None = None
        self._had_a_machine: set[str] = set()

    def create(self, machine_id: str) -> str:
        """The secret of a new one."""
        expires = datetime.now(timezone.utc) + timedelta(days=TOKEN_DAYS)
        new = self._client.tokens.create(machine_id, SCOPES, expires)
        self._tokens()[machine_id] = new.token
        return new.secret

    def revoke(self, machine_id: str) -> None:
        """Let nobody in with it; of one that has none, nothing."""
        token = self._tokens().get(machine_id)
        if token is not None:
            with suppress(NotFoundError):
                self._client.tokens.revoke(token.id)
            del self._tokens()[machine_id]  # not before: a call that failed is made again

    def revoke_all_but(self, machine_ids: Collection[str]) -> None:
        """Of machines that are not among these."""
        for name in self._tokens().keys() - set(machine_ids):
            self.revoke(name)

    def revoke_those_of_nobody(self, machine_ids: Collection[str], now: float) -> None:
        """Of machines that are gone, whose workers have given their jobs back by now. Of those that were never there
        not at once: the launcher may know a machine only some time after it was asked for."""
        self._had_a_machine |= self._tokens().keys() & set(machine_ids)
        for name, token in list(self._tokens().items()):
            age = now - token.created_at.timestamp()
            if name not in machine_ids and (name in self._had_a_machine or age > self._start_seconds):
                self._had_a_machine.discard(name)
                self.revoke(name)

    def _tokens(self) -> dict[str, Token]:
        """By machine: those of a manager before, and its own."""
        if self._known is None:
            self._known = {
                token.name: token
                for token in self._client.tokens.list()
                if token.revoked_at is None
                and set(token.scopes) == set(SCOPES)
                and is_machine_id(token.name, self._cluster)
            }
        return self._known
