"""Chat completions: handed on to the run that serves the model, answers as they come. Not here: serving (`worker`)."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, JsonValue
from starlette.concurrency import run_in_threadpool

from tutelage.errors import NotServedError
from tutelage.jobs.listing import Serving
from tutelage.jobs.plain_json import cleaned
from tutelage.server.authentication import Parts, Reader
from tutelage.server.disconnects import while_connected
from tutelage.server.own.bodies import Identity
from tutelage.server.problems import problem
from tutelage.server.services import Services

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/chat", tags=["chat (OpenAI)"])

EVENT_STREAM = "text/event-stream"
KINDS = ("application/json", EVENT_STREAM)
STREAMED: dict[str, Any] = {"application/json": {}, EVENT_STREAM: {}}
CLIENT_LEFT = 499
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 1800.0
"""A model on a CPU may think for a while before its first token."""


class NewChatCompletion(BaseModel):
    """OpenAI's body; what is in it is for the server of the model."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: Identity
    messages: list[dict[str, JsonValue]]


@router.post("/completions", response_model=None, responses={200: {"content": STREAMED}})
async def create(body: NewChatCompletion, request: Request, parts: Parts, who: Reader) -> Response:
    """An answer of a deployed model; with `stream`, as it is made."""
    content = cleaned(body.model_dump(), "the request")
    serving = await run_in_threadpool(_serving, parts, who.organization, body.model)
    upstream = f"http://{_host(serving.address)}:{serving.port}/v1/chat/completions"
    content["model"] = serving.models[body.model]
    client: httpx.AsyncClient = request.app.state.upstream
    try:
        answer = await while_connected(
            request, client.send(client.build_request("POST", upstream, json=content), stream=True)
        )
    except httpx.HTTPError as error:
        logger.warning("%s: %s", serving.job_id, error)
        return problem(502, f"{body.model}: job {serving.job_id} serves it but does not answer; look at its log")
    if answer is None:
        return Response(status_code=CLIENT_LEFT)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS or answer.is_redirect:
        # What a job's server says is not to be a page of this one.
        await answer.aclose()
        what = f"answered {answer.status_code} {kind[:80] or 'without a type'}, not JSON"
        return problem(502, f"{body.model}: job {serving.job_id} {what}; look at its log")
    return StreamingResponse(_handed_on(answer, serving.job_id, kind), status_code=answer.status_code, media_type=kind)


def upstream_client() -> httpx.AsyncClient:
    """The connections to servers of models. No proxy: they are this project's own machines."""
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    return httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False)


async def _handed_on(answer: httpx.Response, job_id: str, kind: str) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    except httpx.HTTPError as error:
        logger.warning("%s: broke off: %s", job_id, error)
        if kind == EVENT_STREAM:  # half of one is no valid JSON anyway
            yield b'data: {"error": {"message": "the model broke off", "type": "server_error"}}\n\n'
    finally:
        await answer.aclose()


def _serving(parts: Services, organization: str, model: str) -> Serving:
    found = [serving for serving in parts.listing.serving(organization) if model in serving.models]
    if not found:
        raise NotServedError(f"{model}: no running job serves it; deploy it first: client.api.deploy('{model}').up()")
    return found[-1]


def _host(address: str | None) -> str:
    """As a part of a URL."""
    host = address or "127.0.0.1"
    return f"[{host}]" if ":" in host else host
