"""Tokens and names of secrets: making, revoking, setting, deleting. Not here: what they are (`jobs.access`)."""

from datetime import datetime, timezone
from time import time
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import Response

from tutelage.errors import JobError
from tutelage.jobs.access import NewToken, scopes_of
from tutelage.jobs.records import Scope, Token
from tutelage.server.authentication import Admin, Parts
from tutelage.server.page.rendering import render, see

router = APIRouter(include_in_schema=False)
DAY = 24 * 3600.0
MAX_DAYS = 3650


@router.get("/tokens")
def list_tokens(request: Request, parts: Parts, who: Admin) -> Response:
    """Tokens of people and workers."""
    return _tokens(request, parts, who, None)


@router.post("/tokens")
def create_token(
    request: Request,
    parts: Parts,
    who: Admin,
    scopes: Annotated[list[str], Form(default_factory=list, max_length=10)],
    name: Annotated[str, Form(max_length=200)] = "",
    days: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """A new token. Its secret is on this page and nowhere else, which is why no redirect follows."""
    if not name.strip():
        raise JobError("name: a token needs one, so that you know later which to revoke")
    new = parts.access.create_token(
        who.organization,
        name.strip(),
        scopes_of(scopes),
        expires_at=time() + _days(days) * DAY if days.strip() else None,
    )
    return _tokens(request, parts, who, new)


@router.post("/tokens/{token_id}/revoke")
def revoke_token(token_id: Annotated[str, Path(max_length=200)], parts: Parts, who: Admin) -> Response:
    """Nobody gets in with it any more."""
    parts.access.revoke_token(who.organization, token_id)
    return see("/tokens")


@router.get("/secrets")
def list_secrets(request: Request, parts: Parts, who: Admin) -> Response:
    """Names only."""
    return render(request, who, "secrets.html", names=parts.access.secret_names(who.organization))


@router.post("/secrets")
def set_secret(
    parts: Parts,
    who: Admin,
    name: Annotated[str, Form(max_length=200)] = "",
    value: Annotated[str, Form(max_length=100_000)] = "",
) -> Response:
    """Jobs that begin from now on have it in their environment."""
    if not value:
        raise JobError(f"{name[:80]}: its value is empty; paste one, or delete the secret")
    parts.access.set_secret(who.organization, name.strip(), value)
    return see("/secrets")


@router.post("/secrets/delete")
def delete_secret(parts: Parts, who: Admin, name: Annotated[str, Form(max_length=200)] = "") -> Response:
    """Jobs that begin from now on do not get it."""
    parts.access.delete_secret(who.organization, name)
    return see("/secrets")


def _tokens(request: Request, parts: Parts, who: Admin, new: NewToken | None) -> Response:
    now = datetime.now(timezone.utc)
    found = parts.access.tokens(who.organization)
    return render(
        request,
        who,
        "tokens.html",
        tokens=found,
        states={token.id: _state(token, now) for token in found},
        scopes=[scope.value for scope in Scope],
        new=new,
        own=who.token_id,
    )


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "valid"


def _days(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_DAYS:
        raise JobError(f"days: '{text[:20]}' is no number of days from 1 to {MAX_DAYS}; leave it empty for no expiry")
    return int(text)
