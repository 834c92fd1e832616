"""Puts the page into the application: routes, static files, errors as HTML for browsers. Not here: any page."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

from tutelage.server.page import administration, compare, files, job_form, jobs, runs, sign_in, workers
from tutelage.server.page.problems import add_page_problems

STATIC = Path(__file__).parent / "static"


class _Static(StaticFiles):
    """Asked for again each time and answered by 304: after an upgrade nobody has a page of two versions."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount_page(app: FastAPI) -> None:
    """Serve the page from `/` on. Called once, after the handlers of errors were added."""
    # `job_form` first: `/jobs/new` is no job.
    for module in (job_form, jobs, runs, compare, files, workers, administration, sign_in):
        app.include_router(module.router)
    app.mount("/static", _Static(directory=STATIC), name="static")
    add_page_problems(app)
