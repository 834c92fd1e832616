"""Very many jobs and events, and the page still answers at once; what it asks its records for, on both databases."""

import re
import time

from tests.e2e.pages import Stored, Visitor, furnished, text_of, true_on
from tests.served import Running, conversation, jsonl

pytest_plugins = ["tests.e2e.page_fixtures"]

JOBS, EVENTS = 10_000, 100_000


def many(stored: Stored) -> Running:
    """The newest of very many jobs, whose run has reported very many events."""
    from sqlalchemy import insert, select

    from tutelage.jobs.tables import events, jobs

    training = stored.api.upload(jsonl([conversation()]), "conversations")
    params = {"model": "smollm2", "training_file": training["id"], "loss": "sdft"}
    running = stored.api.running(stored.api.submit(kind="fine_tuning", entrypoint=None, params=params))
    with stored.server.services.database.writing() as connection:
        row = dict(connection.execute(select(jobs)).one()._mapping)
        row |= {"status": "completed", "run_id": None}
        others = [
            {**row, "id": f"ftjob-{number:012x}", "created_at": row["created_at"] - number} for number in range(1, JOBS)
        ]
        connection.execute(insert(jobs), others)
        event = {"run_id": running.run_id, "created_at": time.time(), "tag": "train"}
        steps = [
            {
                **event,
                "client_id": str(step),
                "step": step,
                "data": {"tag": "train", "step": step, "loss": 1 / (step + 1)},
            }
            for step in range(EVENTS)
        ]
        connection.execute(insert(events), steps)
    return running


def test_ten_thousand_jobs_and_a_hundred_thousand_events_stay_quick(stored: Stored, visit: Visitor) -> None:
    """Pages of fifty with a cursor through all jobs. A page is below 150 kB; the best of twenty, as two other tests
    run beside this one, within 50 ms (measured alone: 12 ms; a search 33 ms), the curves of 100,000 events within a
    second (measured: 0.2 s). A server in another process is asked four to six times for a page: three times as long."""
    times = 1 if stored.token is None else 3
    running, api, url = many(stored), stored.api, stored.server.url

    def best_of_twenty(path: str) -> tuple[float, int]:
        seconds: list[float] = []
        for _ in range(20):
            begin = time.perf_counter()
            answer = api("GET", path, headers={"accept": "text/html"})
            seconds.append(time.perf_counter() - begin)
            assert answer.status_code == 200
        return min(seconds), len(answer.content)

    for path, limit in (
        ("/jobs", 0.05),
        ("/jobs?status=completed", 0.05),
        ("/jobs?kind=fine_tuning", 0.05),
        # All params of all jobs are read.
        ("/jobs?search=0000002a", 0.25),
        ("/jobs?search=nothing-like-it", 0.25),
    ):
        seconds, size = best_of_twenty(path)
        assert seconds < limit * times, path
        assert size < 150_000, path
    seconds, size = best_of_twenty(f"/runs/{running.run_id}/plots")
    assert seconds < 1 * times
    assert size < 150_000

    page = visit(f"{url}/jobs", **stored.cookies)
    assert page.locator(".tabs a").first.inner_text().split() == ["all", "10000"]
    seen = set(page.locator("#jobs tbody th a").all_inner_texts())
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**/jobs?after=*")
    assert page.locator("#jobs tbody tr").count() == 50
    assert not seen & set(page.locator("#jobs tbody th a").all_inner_texts())
    page.goto(f"{url}/jobs?after=ftjob-{9990:012x}")
    assert page.locator("#jobs tbody tr").count() == 9
    assert page.get_by_role("link", name="Older").count() == 0

    page.goto(f"{url}/runs/{running.run_id}")
    page.locator(".plot[data-field=loss] canvas").wait_for()
    true_on(page, "document.querySelector('.plot[data-field=loss] .readout').textContent.trim() === '1e-5'")


def test_lists_searches_runs_and_comparisons_on_both_databases(stored: Stored, visit: Visitor) -> None:
    """The same records, the same pages: numbers are those of `furnished`."""
    shown = furnished(stored.server, token=stored.token)
    first, second = shown.done
    page = visit(**stored.cookies)
    for path in shown.paths():
        answer = page.goto(stored.server.url + path)
        assert answer is not None
        assert answer.status == 200, path
    page.goto(f"{stored.server.url}/jobs?search=LEARNING_RATE")  # names of params are searched too
    assert page.locator("#jobs tbody th a").all_inner_texts() == [second.job_id, first.job_id]
    page.goto(f"{stored.server.url}/jobs?search=SDFT")
    assert page.locator("#jobs tbody th a").all_inner_texts() == [shown.live.job_id]
    assert " ".join(text_of(page, ".tabs").split()) == "all 5 pending 1 in progress 1 completed 2 failed 1 canceled 0"
    page.goto(f"{stored.server.url}/runs/{first.run_id}")
    page.locator(".plot[data-field=loss] canvas").wait_for()
    assert text_of(page, ".plot[data-field=loss] .readout") == "0.1667"
    assert "Chile?" in text_of(page, ".sample")
    assert f"{first.job_id}:step-5" in text_of(page, "#found")
    page.goto(f"{stored.server.url}/compare?job={first.job_id}&job={second.job_id}")
    row = page.locator("tr", has=page.get_by_role("rowheader", name=re.compile("^kl_vs_base$")))
    assert row.locator("td").all_inner_texts() == ["0.12", "0.62"]
    page.goto(f"{stored.server.url}/runs/{shown.live.run_id}")
    page.locator("#follow-label").wait_for()
    stored.api.print(shown.live.run_id, len("step 1\n\nstep 2\n"), b"from another database\n")
    true_on(page, "document.getElementById('log-text').textContent.endsWith('from another database\\n')")
