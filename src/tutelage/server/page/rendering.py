"""Templates to answers: the engine, its filters, and what every page knows. Not here: what is on a page.

Everything is escaped by the engine, whatever it holds; nothing of a user's goes into a script.
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

import tutelage
from tutelage.jobs.access import Principal
from tutelage.jobs.identity import FILE_ID
from tutelage.jobs.records import Scope
from tutelage.server.authentication import COOKIE
from tutelage.server.page import formats

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Vary": "Cookie, HX-Request",
    # With `no-referrer`, which everything else has, browsers would not say where a form comes from, and it is refused.
    "Referrer-Policy": "same-origin",
}
PAGES: tuple[tuple[str, str, Scope], ...] = (
    ("/jobs", "Jobs", Scope.READ),
    ("/compare", "Compare", Scope.READ),
    ("/workers", "Workers", Scope.READ),
    ("/costs", "Costs", Scope.READ),
    ("/tokens", "Tokens", Scope.ADMIN),
    ("/secrets", "Secrets", Scope.ADMIN),
)
"""What the head of every page leads to."""
PARTS_OF = {"/runs": "/jobs"}

ENVIRONMENT = Environment(
    loader=PackageLoader("tutelage.server.page", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(
    absolute=formats.absolute,
    dollars=formats.dollars,
    duration=formats.duration,
    number=formats.number,
    part=formats.part,
    pretty=formats.pretty,
    size=formats.size,
)
ENVIRONMENT.tests["file_id"] = lambda value: isinstance(value, str) and FILE_ID.fullmatch(value) is not None


def render(request: Request, who: Principal | None, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page. who: None where nobody is signed in."""
    now = datetime.now(timezone.utc)
    first = "/" + request.url.path.lstrip("/").partition("/")[0]
    links = [(path, title) for path, title, scope in PAGES if who is not None and who.may(scope)]
    content = ENVIRONMENT.get_template(template).render(
        who=who,
        can_submit=who is not None and who.may(Scope.SUBMIT),
        links=links,
        here=PARTS_OF.get(first, first),
        signed_in=COOKIE in request.cookies,
        version=tutelage.__version__,
        now=now,
        ago=lambda moment: formats.ago(moment, now),
        **values,
    )
    return HTMLResponse(content, status_code=status, headers=dict(HEADERS))


def see(path: str) -> RedirectResponse:
    """Go and look there: the answer to a form."""
    return RedirectResponse(path, status_code=303, headers=dict(HEADERS))


def local(path: str | None, otherwise: str) -> str:
    """A path of this server that a form or link named, or the other one where it may lead elsewhere."""
    if path is None or not path.startswith("/") or path.startswith("//") or len(path) > 2000:
        return otherwise
    return path if path.isascii() and path.isprintable() and "\\" not in path else otherwise
