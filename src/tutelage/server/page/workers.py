"""Workers, and what jobs cost. Not here: starting and stopping workers."""

from datetime import datetime, timezone
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from tutelage.jobs.records import Worker
from tutelage.jobs.registry import SILENT_AFTER_SECONDS
from tutelage.server.authentication import Parts, Reader
from tutelage.server.page.records import PageRecords
from tutelage.server.page.rendering import render

router = APIRouter(include_in_schema=False)
SHOWN = 100


@router.get("/workers")
def list_workers(request: Request, parts: Parts, who: Reader) -> Response:
    """Workers, those last heard from first."""
    found = parts.registry.list(who.organization, limit=SHOWN)
    running = PageRecords(parts.database).runs(
        who.organization, ids=[worker.run_id for worker in found if worker.run_id is not None]
    )
    now = datetime.now(timezone.utc)
    return render(
        request,
        who,
        "workers.html",
        workers=found,
        states={worker.id: state_of(worker, now) for worker in found},
        running={run.id: run for run in running},
        per_hour=sum(worker.cost_per_hour for worker in found if state_of(worker, now) == "active"),
        limit=SHOWN,
    )


@router.get("/costs")
def costs(request: Request, parts: Parts, who: Reader, offset: Annotated[int, Query(ge=0, le=2**31)] = 0) -> Response:
    """What jobs took, the dearest first."""
    found = parts.listing.costs(who.organization, limit=SHOWN + 1, offset=offset)
    return render(
        request,
        who,
        "costs.html",
        costs=found[:SHOWN],
        offset=offset,
        further=offset + SHOWN if len(found) > SHOWN else None,
        before=max(0, offset - SHOWN) if offset else None,
    )


def state_of(worker: Worker, now: datetime) -> str:
    """`stopped`, `silent` for one that should have been heard from, `active`."""
    if worker.stopped_at is not None:
        return "stopped"
    return "silent" if (now - worker.last_seen_at).total_seconds() > SILENT_AFTER_SECONDS else "active"
