"""The application: all endpoints on one set of services, and what goes on beside. Not here: listening (`serve`)."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

import tutelage
from tutelage.errors import TutelageError
from tutelage.server.limits import Limits
from tutelage.server.openai import chat, files, fine_tuning, models
from tutelage.server.own import administration, jobs, reports, runs, workers
from tutelage.server.page import mount_page
from tutelage.server.problems import Problem, add_handlers
from tutelage.server.services import Services

logger = logging.getLogger(__name__)
EXPIRE_EVERY_SECONDS = 1.0


def create_app(services: Services) -> FastAPI:
    """The ASGI application of a server. It does not close the services."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.notices.open()
        app.state.upstream = chat.upstream_client()
        expiring = asyncio.create_task(_expire(services))
        try:
            yield
        finally:
            services.notices.close()
            # Not canceled: a thread of it would go on, with what is closed next.
            await expiring
            await app.state.upstream.aclose()

    def closing() -> bool:
        return services.notices.closing

    app = _Application(
        title="Tutelage",
        version=tutelage.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={
            "4XX": {"model": Problem, "description": "What is wrong, and the remedy."},
            "5XX": {"model": Problem, "description": "Not the fault of the request; try again."},
        },
    )
    app.state.services = services
    for module in (jobs, runs, reports, workers, administration, files, fine_tuning, models, chat):
        app.include_router(module.router)
    add_handlers(app)
    mount_page(app)
    app.add_middleware(Limits, max_file_bytes=services.settings.max_file_bytes, closing=closing)
    return app


class _Application(FastAPI):
    """With a document that says that a token may be needed: on loopback it is not."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        token = {"type": "http", "scheme": "bearer", "description": "tutelage token create NAME"}
        document.setdefault("components", {})["securitySchemes"] = {"token": token}
        document["security"] = [{}, {"token": []}]
        return document


async def _expire(services: Services) -> None:
    """Until the server closes, give up runs whose workers are silent, and cancel jobs whose time is over."""
    with services.notices.listening("the end") as told:
        while not services.notices.closing:
            try:
                changed = await run_in_threadpool(services.queue.expire)
            except TutelageError as error:
                logger.warning("leases could not be looked at: %s", error)
                changed = []
            except Exception:  # this loop must outlive everything: without it no lost job is ever tried again
                logger.exception("leases could not be looked at")
                changed = []
            if changed:
                services.notices.tell("pending")
            await told.wait(EXPIRE_EVERY_SECONDS)
