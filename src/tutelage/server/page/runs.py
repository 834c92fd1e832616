"""One run: what it prints and reports as it comes, beside other runs; samples, checkpoints, files.

Not here: the streams that the page listens to (`/api/logs`, `/api/events/stream`).
"""

import csv
import io
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from tutelage.jobs.access import Principal
from tutelage.jobs.records import Run
from tutelage.server.authentication import Json, Parts, Reader
from tutelage.server.page.formats import cell, shown_log
from tutelage.server.page.jobs import IN_PLOTS, MAX_FILES, objective
from tutelage.server.page.records import PageRecords, ReportedFile
from tutelage.server.page.rendering import HEADERS, render
from tutelage.server.page.samples import Sample, read_samples
from tutelage.server.page.telling_apart import names_of
from tutelage.server.services import Services
from tutelage.server.store_work import with_store

router = APIRouter(include_in_schema=False)

POINTS = 400
"""About as many events of each tag as a plot has pixels."""
MAX_OVERLAYS = 8
MAX_CHOICES = 60
LOG_TAIL_BYTES = 48 * 1024
"""What the page itself holds of a log."""
MAX_WARNINGS = 20
MAX_SAMPLES = 200
RunId = Annotated[str, Path(max_length=200)]
Overlays = Annotated[list[str], Query(default_factory=list, alias="with", max_length=50)]


@router.get("/runs/{run_id}")
async def show_run(
    request: Request,
    run_id: RunId,
    parts: Parts,
    who: Reader,
    overlays: Overlays,
    samples: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """What a run prints, reports and leaves."""
    polls = request.headers.get("hx-request") == "true"
    files = await run_in_threadpool(_files_of, parts, who, run_id)
    sampled, chosen = _sampled(files, samples)
    rows: list[Sample] = []
    if chosen is not None and not polls:
        rows = await with_store(parts, lambda: read_samples(parts, who.organization, chosen.file_id))
    shown = {"files": sampled, "chosen": chosen, "rows": rows}
    return await run_in_threadpool(_shown, request, parts, who, run_id, files, [] if polls else overlays, shown, polls)


def _files_of(parts: Services, who: Principal, run_id: str) -> list[ReportedFile]:
    """Raises NotFoundError."""
    parts.listing.run(who.organization, run_id)
    return PageRecords(parts.database).files_of(who.organization, [run_id])


def _shown(
    request: Request,
    parts: Services,
    who: Principal,
    run_id: str,
    files: list[ReportedFile],
    overlays: list[str],
    samples: Json,
    polls: bool,
) -> Response:
    run = parts.listing.run(who.organization, run_id)
    job = parts.listing.job(who.organization, run.job_id)
    records = PageRecords(parts.database)
    state: Json = {
        "run": run,
        "job": job,
        "worker": records.worker_names(who.organization, [run.worker_id]).get(run.worker_id or ""),
        "warnings": records.tagged(run_id, "warning", limit=MAX_WARNINGS),
        "objective": objective,
        "latest": sorted(run.latest.items()),
        "checkpoints": _checkpoints(records, run, files),
        "files": sorted((file for file in files if file.purpose not in IN_PLOTS), key=lambda file: file.path)[
            :MAX_FILES
        ],
    }
    if polls:
        return render(request, who, "run_poll.html", partial=True, **state)
    beside = [other for other in dict.fromkeys(overlays) if other not in ("", run_id)][:MAX_OVERLAYS]
    drawn = records.runs(who.organization, ids=[run_id, *beside])
    choices = [one for one in records.runs(who.organization, kind=job.kind, limit=MAX_CHOICES) if one not in drawn]
    return render(
        request,
        who,
        "run.html",
        partial=False,
        drawn=drawn,
        # What may be drawn beside this run is called by how it differs from it.
        names=names_of(drawn) | {one.id: names_of([drawn[0], one])[one.id] for one in choices},
        choices=choices,
        room=MAX_OVERLAYS - len(beside),
        log=_log_tail(parts, who, run),
        samples=samples,
        **state,
    )


@router.get("/runs/{run_id}/plots")
def plots(run_id: RunId, parts: Parts, who: Reader) -> Response:
    """Every number a run reported, thinned to what a plot can show; and where its stream of events goes on."""
    run = parts.listing.run(who.organization, run_id)
    after = 0 if run.status.is_final else PageRecords(parts.database).newest_event(run_id)
    found = parts.events.series(who.organization, run_id, points=POINTS)
    series = [
        {"tag": one.tag, "field": one.field, "steps": one.steps, "values": [_rounded(value) for value in one.values]}
        for one in found
    ]
    return JSONResponse({"after": after, "live": not run.status.is_final, "series": series}, headers=dict(HEADERS))


@router.get("/runs/{run_id}/metrics.csv")
def metrics_file(run_id: RunId, parts: Parts, who: Reader) -> StreamingResponse:
    """Every number a run reported, a line each, for programs and spreadsheets."""
    run = parts.listing.run(who.organization, run_id)
    headers = {"Content-Disposition": f'attachment; filename="{run.id}.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(
        _metric_lines(parts, who.organization, run.id), media_type="text/csv; charset=utf-8", headers=headers
    )


def _metric_lines(parts: Services, organization: str, run_id: str) -> Iterator[str]:
    yield "step,tag,field,value,time\r\n"
    after = 0
    while found := parts.events.of_run(organization, run_id, after=after):
        lines = io.StringIO()
        writer = csv.writer(lines)
        for event in found:
            step, tag = event.data.get("step"), event.data.get("tag")
            for field, value in event.data.items():
                if field != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    place = (step if isinstance(step, int) else "", cell(tag) if isinstance(tag, str) else "")
                    writer.writerow((*place, cell(field), value, event.created_at.isoformat()))
        yield lines.getvalue()
        after = found[-1].id


@router.get("/runs/{run_id}/log.txt")
def whole_log(run_id: RunId, parts: Parts, who: Reader) -> StreamingResponse:
    """All of a log that is kept, as it was printed."""
    parts.listing.run(who.organization, run_id)
    headers = {"Content-Disposition": "inline", "Cache-Control": "no-store"}
    return StreamingResponse(
        _log_parts(parts, who.organization, run_id), media_type="text/plain; charset=utf-8", headers=headers
    )


def _log_parts(parts: Services, organization: str, run_id: str) -> Iterator[bytes]:
    start = 0
    while True:
        found = parts.logs.read(organization, run_id, start)
        if not found.content:
            return
        yield found.content
        start = found.end


def _rounded(value: float) -> float:
    """Six digits: more than a pixel shows, and half the bytes."""
    return float(f"{value:.6g}")


def _log_tail(parts: Services, who: Principal, run: Run) -> Json:
    """The end of a log as text, from the beginning of a line on; where it begins and what is in front of it."""
    found = parts.logs.read(who.organization, run.id, -LOG_TAIL_BYTES)
    content, start = found.content, found.start
    if start > 0:
        # The first line, and perhaps its first character, is cut.
        cut = content.find(b"\n") + 1
        content, start = content[cut:], start + cut
    return {"text": shown_log(content.decode("utf-8", errors="replace")), "start": start}


def _checkpoints(records: PageRecords, run: Run, files: list[ReportedFile]) -> list[Json]:
    """By step: what other jobs call a checkpoint as a model, and how many files it has; the newest first."""
    found: dict[int, Json] = {}
    for data in records.tagged(run.id, "checkpoint"):
        step = data.get("step")
        if isinstance(step, int):
            one = found.setdefault(step, {"step": step, "model": None, "files": 0})
            one["model"] = one["model"] or data.get("checkpoint")
    for step, one in found.items():
        one["files"] = sum(file.path.startswith(f"checkpoint-{step}/") for file in files)
    return [found[step] for step in sorted(found, reverse=True)]


def _sampled(files: list[ReportedFile], wanted: str) -> tuple[list[ReportedFile], ReportedFile | None]:
    """Files of samples, and the newest or the wanted one of them."""
    sampled = [file for file in files if file.purpose == "samples"][:MAX_SAMPLES]
    sampled += [file for file in files if file.path == "samples.jsonl" and file.purpose != "samples"]
    chosen = next((file for file in sampled if file.file_id == wanted), sampled[0] if sampled else None)
    return sampled, chosen
