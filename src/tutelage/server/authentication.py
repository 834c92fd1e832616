"""Who is asking, and whether they may. Not here: what tokens are (`jobs.access`)."""

from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from tutelage.jobs.access import PREFIX, Principal
from tutelage.jobs.records import Scope
from tutelage.server.services import Services
from tutelage.server.settings import is_loopback

COOKIE = "tutelage_token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def services_of(request: Request) -> Services:
    """What the application works with."""
    found: Services = request.app.state.services
    return found


async def principal_of(request: Request) -> Principal:
    """Who is asking. Raises HTTPException 401 without a valid token, 403 for a page of another site."""
    services = services_of(request)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    secret = (given.strip() or None) if scheme.lower() == "bearer" else None
    if secret is None:
        refuse_other_sites(request)
        secret = request.cookies.get(COOKIE)
    if secret and not (scheme and scheme.lower() != "bearer"):
        principal = await run_in_threadpool(services.access.principal, secret)
        if principal is not None:
            return principal
    # Clients of OpenAI always send some word; one that looks like ours was meant to be a token, and is none any more.
    of_ours = scheme.lower() == "bearer" and (secret or "").startswith(PREFIX)
    if not of_ours and services.settings.open_on_loopback and _comes_from_this_machine(request):
        return Principal(services.organization, frozenset(Scope))
    what = "the token is not valid: it is unknown, expired or revoked" if secret else "a token is needed"
    raise HTTPException(
        401, f"{what}; make one with: tutelage token create NAME", headers={"WWW-Authenticate": "Bearer"}
    )


def _comes_from_this_machine(request: Request) -> bool:
    """From a loopback address, to a name of this machine, through no proxy.

    A web page anywhere could be given a name that leads here; the Host header tells. Behind a proxy everybody comes
    from this machine.
    """
    asked = _parts_of(f"//{request.headers.get('host', '')}")
    host = (asked.hostname if asked is not None else None) or ""
    client = request.client.host if request.client else ""
    return is_loopback(host) and is_loopback(client) and not any(name in request.headers for name in PROXIED)


def refuse_other_sites(request: Request) -> None:
    """A browser sends its cookie, or comes from this machine, whatever page makes it ask."""
    origin = request.headers.get("origin")
    if request.method in SAFE_METHODS or origin is None:
        return
    page = _parts_of(origin)
    if page is None or page.netloc != request.headers.get("host", ""):
        raise HTTPException(403, f"{origin[:100]}: pages of other sites may not do this; use a token")


def _parts_of(url: str) -> SplitResult | None:
    """None for what is no URL: a client may send anything."""
    try:
        parts = urlsplit(url)
        _ = parts.hostname
    except ValueError:
        return None
    return parts


class Needs:
    """A dependency: whoever asks, with this scope. Raises HTTPException 401 and 403."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, principal: Annotated[Principal, Depends(principal_of)]) -> Principal:
        if not principal.may(self.scope):
            raise HTTPException(
                403, f"the token has not the scope '{self.scope.value}'; use one that has, or make one with it"
            )
        return principal


def require_writer(services: Services, principal: Principal, run_id: str) -> None:
    """Only workers, a run itself with its own token, and a script outside any worker may write what a run does.

    Raises HTTPException 403, and NotFoundError.
    """
    if principal.run_id is not None:
        if principal.run_id != run_id:
            raise HTTPException(403, f"{run_id[:80]}: the token is of another run")
    elif not principal.may(Scope.WORKER):
        script = services.listing.run(principal.organization, run_id).worker_id is None
        if not (script and principal.may(Scope.SUBMIT)):
            raise HTTPException(403, f"{run_id}: the token has not the scope 'worker'; use one that has")


AnyPrincipal = Annotated[Principal, Depends(principal_of)]
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Submitter = Annotated[Principal, Depends(Needs(Scope.SUBMIT))]
WorkerPrincipal = Annotated[Principal, Depends(Needs(Scope.WORKER))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]
Parts = Annotated[Services, Depends(services_of)]
Json = dict[str, Any]
