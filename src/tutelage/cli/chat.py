"""`tutelage chat`: a question to a model that a job serves. Not here: serving one."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.connection import connect
from tutelage.cli.output import Json, print_json, print_part
from tutelage.errors import ConfigError, JobError, NotServedError, nearest

if TYPE_CHECKING:
    from tutelage.client import Client


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What a job of --kind api serves.")],
    message: Annotated[
        str | None, typer.Argument(metavar="MESSAGE", help="The question; unset, it is read from standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer; unset, the server's.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is the likeliest answer.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a model that is served, and print its answer as it comes.

    Serve one with: tutelage jobs submit --kind api --set model=MODEL
    """
    from tutelage.client.errors import ServerError

    text = message if message is not None else sys.stdin.read()
    if not text.strip():
        raise ConfigError("no message; write: tutelage chat MODEL 'Hello', or pass it on standard input")
    messages = [{"role": "system", "content": system}] if system is not None else []
    asked: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": text}]}
    asked |= {} if max_tokens is None else {"max_tokens": max_tokens}
    asked |= {} if temperature is None else {"temperature": temperature}
    with connect() as client:
        _require_served(client, model)
        completions = client.openai.sync.chat.completions
        from openai import APIError  # that it may be missing has been said

        try:
            if as_json:
                print_json(completions.create(**asked).model_dump(mode="json"))
                return
            with completions.create(**asked, stream=True) as parts:
                for part in parts:
                    if part.choices:
                        print_part(part.choices[0].delta.content or "")
            print()
        except APIError as error:
            refused = getattr(error, "status_code", 503) < 500
            raise (JobError if refused else ServerError)(f"{model}: {error.message}") from error


def _require_served(client: "Client", model: str) -> None:
    """Raises NotServedError; and what the client raises where there is no server."""
    page = client.http.request("GET", "/v1/models")
    served = [item["id"] for item in page["data"] if item.get("deployed_by")]
    if model not in served:
        raise NotServedError(
            f"{model[:200]}: no job serves it now{nearest(model, served)}; serve it with: "
            f"tutelage jobs submit --kind api --set model={model[:200]}"
        )
