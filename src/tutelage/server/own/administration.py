"""Who is asking, tokens, secrets of jobs, costs."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

import tutelage
from tutelage.jobs.records import Cost, Scope, Token
from tutelage.server.authentication import Admin, AnyPrincipal, Parts, Reader
from tutelage.server.own.bodies import CreatedToken, Identity, Me, NewTokenBody, Organization, Page, SecretValue

router = APIRouter(prefix="/api", tags=["administration"])
LARGEST = 2**31


@router.get("/me")
def me(parts: Parts, who: AnyPrincipal) -> Me:
    """Whose token this is and what it may be used for."""
    return Me(
        organization=Organization(id=who.organization, name=parts.access.organization_name(who.organization)),
        scopes=[scope for scope in Scope if who.may(scope)],
        version=tutelage.__version__,
        run_id=who.run_id,
    )


@router.get("/tokens")
def list_tokens(parts: Parts, who: Admin) -> Page[Token]:
    """Tokens of people and workers; their secrets are not kept."""
    return Page(data=parts.access.tokens(who.organization))


@router.post("/tokens")
def create_token(body: NewTokenBody, parts: Parts, who: Admin) -> CreatedToken:
    """A new token; its secret is in this answer and nowhere else."""
    expires = body.expires_at.timestamp() if body.expires_at is not None else None
    new = parts.access.create_token(who.organization, body.name, body.scopes, expires_at=expires)
    return CreatedToken(token=new.token, secret=new.secret)


@router.delete("/tokens/{token_id}")
def revoke_token(token_id: Annotated[Identity, Path()], parts: Parts, who: Admin) -> Token:
    """Nobody gets in with it any more."""
    return parts.access.revoke_token(who.organization, token_id)


@router.get("/secrets")
def list_secrets(parts: Parts, who: Admin) -> Page[str]:
    """Names only."""
    return Page(data=parts.access.secret_names(who.organization))


@router.put("/secrets/{name}")
def set_secret(name: Annotated[Identity, Path()], body: SecretValue, parts: Parts, who: Admin) -> Page[str]:
    """Give all jobs from now on an environment variable."""
    parts.access.set_secret(who.organization, name, body.value)
    return Page(data=parts.access.secret_names(who.organization))


@router.delete("/secrets/{name}")
def delete_secret(name: Annotated[Identity, Path()], parts: Parts, who: Admin) -> Page[str]:
    """Jobs that begin from now on do not get it."""
    parts.access.delete_secret(who.organization, name)
    return Page(data=parts.access.secret_names(who.organization))


@router.get("/costs")
def costs(
    parts: Parts,
    who: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
) -> Page[Cost]:
    """What jobs took, the dearest first."""
    found = parts.listing.costs(who.organization, limit=limit + 1, offset=offset)
    return Page(data=found[:limit], has_more=len(found) > limit)
