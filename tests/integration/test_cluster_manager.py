"""The manager between a real server and machines that only this test knows. Not here: the plan, real launchers."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.served import Api, Served, served
from tutelage.client import OpenWeights
from tutelage.client.errors import ServerError
from tutelage.cluster import manager
from tutelage.cluster.launchers.protocol import Found, LauncherError, NoCapacityError, Order
from tutelage.cluster.manager import Manager, Round
from tutelage.cluster.records import Hold, Start
from tutelage.cluster.settings import ClusterSettings
from tutelage.jobs.records import Scope


@dataclass
class Machinery:
    """A launcher whose machines are rows here. fails: what a call of this name raises, such as "start"
    or, of one hardware alone, "start 1x A40"."""

    one_job: bool = False
    orders: list[Order] = field(default_factory=list)
    there: dict[str, Found] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    starts_all_the_same: bool = False
    clock: Callable[[], float] = time.time

    def found(self) -> list[Found]:
        self._may_fail("found")
        return list(self.there.values())

    def start(self, order: Order) -> None:
        if not self.starts_all_the_same:
            self._may_fail("start")
        start = order.start
        self._may_fail(f"start {start.tier.hardware}")
        self.orders.append(order)
        self.there[order.machine_id] = Found(
            order.machine_id, start.group, start.tier, start.cost_per_hour, self.clock(), start.job_id
        )
        self._may_fail("start")

    def stop(self, machine_id: str) -> None:
        self._may_fail("stop")
        self.there.pop(machine_id, None)

    def close(self) -> None:
        pass

    def change(self, machine_id: str, **changes: Any) -> None:
        self.there[machine_id] = replace(self.there[machine_id], **changes)

    def _may_fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]


@dataclass
class Managed:
    """A manager of an organisation that has nothing yet. later: seconds that its clock is ahead."""

    server: Served
    folder: Path
    changes: dict[str, Any]
    later: float = 0.0

    def __post_init__(self) -> None:
        self.api: Api = self.server.of_another_organization()
        self.machinery = Machinery(one_job=self.changes.pop("one_job", False), clock=self.clock)
        self.said: list[str] = []
        assert self.api.token is not None
        self.client = OpenWeights(base_url=self.server.url, auth_token=self.api.token)
        self.renew()

    def clock(self) -> float:
        return time.time() + self.later

    def renew(self) -> None:
        """As if the manager had been killed, and another one started."""
        values: dict[str, Any] = {
            "name": "test",
            "launcher": "machinery",
            "max_workers": 3,
            "hardware": [{"name": "1x A40", "vram_gb": 48, "secure": 0.4, "community": 0.3}],
        }
        settings = ClusterSettings.model_validate(values | self.changes)
        self.manager = Manager(
            settings, self.machinery, self.client, self.folder, say=self.said.append, clock=self.clock
        )

    def round(self, **options: Any) -> Round:
        return self.manager.round(**options)

    def comes_up(self, machine_id: str, **changes: Any) -> tuple[str, Api]:
        """The worker of a machine registers with the token it was given; its id, and how it talks."""
        order = next(order for order in self.machinery.orders if order.machine_id == machine_id)
        api = self.server.api(order.token)
        offer = {"hardware": "1x A40", "gpus": 1, "vram_gb": 48, "cloud_type": order.start.tier.cloud_type.value}
        return api.worker(machine_id, **offer | changes), api

    def only_machine(self) -> str:
        (machine_id,) = self.machinery.there
        return machine_id

    def with_a_worker(self) -> tuple[str, str, Api]:
        """A machine that was started for a new job and has come up; see `comes_up`."""
        self.api.submit()
        self.round()
        machine = self.only_machine()
        return machine, *self.comes_up(machine)

    def is_stopped(self, worker: str) -> bool:
        found = self.api.ok("GET", "/api/workers")["data"]
        return next(one["stopped_at"] for one in found if one["id"] == worker) is not None

    def tokens(self) -> set[str]:
        """Names of machines that may come in."""
        return {one.name for one in self.client.tokens.list() if one.revoked_at is None and one.name != "test"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server"), migrated=migrated_sqlite) as running:
        yield running


@pytest.fixture
def managed(server: Served, tmp_path: Path) -> Callable[..., Managed]:
    return lambda **changes: Managed(server, tmp_path, changes)


def test_a_job_gets_a_machine_whose_worker_can_claim_it(managed: Callable[..., Managed]) -> None:
    one = managed()
    job = one.api.submit()
    one.round()
    (order,) = one.machinery.orders
    assert (order.start.job_id, order.url, order.run_id) == (job["id"], one.server.url, None)
    assert one.said == [f"{order.machine_id}: starts, 1x A40 SECURE at $0.40 an hour, for {job['id']}"]
    assert one.tokens() == {order.machine_id}
    one.round()
    assert len(one.machinery.orders) == 1
    worker, api = one.comes_up(order.machine_id)
    assert api.claim(worker).json()["job"]["id"] == job["id"]


def test_where_a_machine_takes_one_job_its_run_is_known_before(managed: Callable[..., Managed]) -> None:
    one = managed(one_job=True)
    jobs = [one.api.submit()["id"] for _ in range(2)]
    one.round()
    orders = one.machinery.orders
    assert [order.start.job_id for order in orders] == jobs
    assert all(order.run_id and order.run_id.startswith("run-") for order in orders)
    worker, api = one.comes_up(orders[1].machine_id)
    claim = {"worker_id": worker, "run_id": orders[1].run_id, "wait": 0, "job_id": jobs[1]}
    assert api.ok("POST", "/api/claims", claim)["job"]["id"] == jobs[1]
    one.round()
    assert len(orders) == 2


@pytest.mark.parametrize("one_job", [False, True])
def test_a_job_that_is_claimed_while_the_manager_looks_gets_no_second_machine(
    managed: Callable[..., Managed], one_job: bool
) -> None:
    """Between its two looks, whichever comes first."""
    one = managed(one_job=one_job)
    job = one.api.submit()
    one.round()
    machine = one.only_machine()
    registered = None if one_job else one.comes_up(machine)
    workers = one.client.workers
    looks: list[str] = []

    def looking(name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        def look_then_claim(*arguments: Any) -> Any:
            seen = look(*arguments)
            looks.append(name)
            if len(looks) == 1:
                worker, api = registered or one.comes_up(machine)
                assert api.claim(worker, one.machinery.orders[0].run_id).json()["job"]["id"] == job["id"]
            return seen

        return look_then_claim

    for name in ("list", "demand"):
        setattr(workers, name, looking(name, getattr(workers, name)))
    assert one.round().actions == []
    assert sorted(looks) == ["demand", "list"]
    assert one.only_machine() == machine


def test_a_job_that_was_canceled_needs_its_machine_no_more(managed: Callable[..., Managed]) -> None:
    one = managed(one_job=True)
    job = one.api.submit()
    one.round()
    one.api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    one.round()
    assert one.machinery.there == {}
    one.round()
    assert one.tokens() == set()
    assert one.said[-1].endswith(f"ends: {job['id']} does not wait for it any more")


def test_what_is_sold_out_rests_and_is_tried_again(managed: Callable[..., Managed]) -> None:
    """The first rung of the ladder is 30 s. A manager that comes after knows it."""
    one = managed()
    one.api.submit()
    one.machinery.fails["start"] = NoCapacityError("nothing left in this region")
    one.round()
    assert one.said == ["1x A40 SECURE cannot be had: nothing left in this region"]
    assert one.tokens() == set()
    del one.machinery.fails["start"]
    one.renew()
    seen = one.round()
    assert [type(action) for action in seen.actions] == [Hold]
    assert "1x A40 SECURE failed to start once, again in" in one.said[-1]
    one.later = 31
    assert [type(action) for action in one.round().actions] == [Start]


def test_the_same_reason_is_said_once(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.api.submit(allowed_hardware=["8x H100"])
    one.round()
    one.round()
    why = "nothing in the catalogue is what they need, or has a price for their cloud type"
    assert one.said == [f"1 job for SECURE no hardware wait: {why}"]


def test_an_order_whose_answer_was_lost_is_found_and_not_made_again(managed: Callable[..., Managed]) -> None:
    one = managed(max_workers=2)
    one.api.submit()
    one.machinery.fails["start"] = LauncherError("the connection was cut")
    one.machinery.starts_all_the_same = True
    one.round()
    del one.machinery.fails["start"]
    one.round()
    (order,) = one.machinery.orders
    worker, api = one.comes_up(order.machine_id)
    assert api.claim(worker).status_code == 200


def test_an_order_that_failed_stops_those_after_it_until_the_next_round(managed: Callable[..., Managed]) -> None:
    one = managed()
    for _ in range(3):
        one.api.submit()
    one.machinery.fails["start"] = LauncherError("too many requests")
    one.round()
    assert len(one.said) == 1
    assert "1x A40 SECURE could not be asked for: too many requests" in one.said[0]
    del one.machinery.fails["start"]
    one.round()
    assert len(one.machinery.there) == 3


def test_an_order_that_fails_again_and_again_lets_others_come_first(managed: Callable[..., Managed]) -> None:
    """The launcher says that it is busy, and it is this one order that it does not like."""
    one = managed(hardware=[{"name": "1x A40", "secure": 0.4}, {"name": "2x A100", "secure": 4}])
    one.machinery.fails["start 2x A100"] = LauncherError("something went wrong; try again later")
    for hardware in ("2x A100", "1x A40"):
        one.api.submit(allowed_hardware=[hardware], requires_vram_gb=0)
    for _ in range(manager.ASKED_TIMES):
        one.round()
    assert one.machinery.there == {}
    one.round()
    assert [found.tier.hardware for found in one.machinery.there.values()] == ["1x A40"]
    assert "2x A100 SECURE failed to start once, again in" in one.said[-1] + one.said[-2]


def test_tokens_of_machines_that_never_were_are_revoked(managed: Callable[..., Managed]) -> None:
    """After the time that a machine may take to start, 900 s."""
    one = managed()
    job = one.api.submit()
    one.machinery.fails["start"] = LauncherError("the connection was cut")
    one.round()
    assert len(one.tokens()) == 1
    one.api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    one.later = 899
    one.round()
    assert len(one.tokens()) == 1
    one.later = 902
    one.round()
    assert one.tokens() == set()


def test_a_machine_that_does_not_come_up_is_replaced_by_one_that_tries_first(managed: Callable[..., Managed]) -> None:
    one = managed(ladder=[60], start_seconds=100)
    one.api.submit()
    one.round()
    first = one.only_machine()
    one.later = 101
    one.round()
    assert one.machinery.there == {}
    assert f"{first}: ends: it has not started within 100 s" in one.said
    one.later = 162
    one.round()
    assert one.only_machine() != first


def test_an_order_in_the_launchers_queue_may_take_as_long_as_it_takes(managed: Callable[..., Managed]) -> None:
    one = managed(start_seconds=100)
    one.api.submit()
    one.round()
    machine = one.only_machine()
    one.machinery.change(machine, is_queued=True)
    one.later = 10_000
    one.round()
    assert one.only_machine() == machine
    one.machinery.change(machine, is_queued=False, started_at=one.clock())
    one.later = 10_099
    one.round()
    assert one.only_machine() == machine
    one.later = 10_101
    one.round()
    assert one.machinery.there == {}


def test_a_machine_that_ends_by_itself_is_cleaned_up(managed: Callable[..., Managed]) -> None:
    one = managed(ladder=[1000])
    one.api.submit()
    one.round()
    first = one.only_machine()
    one.comes_up(first)
    one.round()
    one.machinery.change(first, ended="the machine was taken back")
    one.round()
    assert f"{first}: ends: the machine was taken back" in one.said
    second = one.only_machine()
    assert second != first
    one.round()
    assert one.tokens() == {second}


def test_a_silent_worker_is_replaced(managed: Callable[..., Managed]) -> None:
    one = managed(silent_seconds=60)
    first, worker, api = one.with_a_worker()
    assert api.claim(worker).status_code == 200
    one.round()
    one.later = 61
    one.round()
    assert first not in one.machinery.there
    assert any(text.startswith(f"{first}: ends: it was not heard from for 61 s") for text in one.said)


def test_an_idle_machine_is_given_back(managed: Callable[..., Managed]) -> None:
    one = managed(idle_seconds=50, silent_seconds=1000)
    job = one.api.submit()
    one.round()
    machine = one.only_machine()
    worker, api = one.comes_up(machine)
    one.api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    one.round()
    one.later = 49
    one.round()
    assert one.only_machine() == machine
    one.later = 51
    one.round()
    assert one.machinery.there == {}
    one.round()
    assert api.refused(401, "POST", "/api/claims", {"worker_id": worker, "run_id": "run-" + "0" * 32, "wait": 0})


def test_each_time_that_a_machine_is_idle_counts_alone(managed: Callable[..., Managed]) -> None:
    one = managed(idle_seconds=50, silent_seconds=10_000)
    machine, worker, api = one.with_a_worker()
    one.round()
    claim = api.claim(worker).json()
    one.later = 40
    one.round()
    api.finish(claim["run_id"])
    for later, is_there in ((2000, True), (2049, True), (2051, False)):
        one.later = later
        one.round()
        assert (machine in one.machinery.there) == is_there, later
    assert f"{machine}: ends: it was idle for 51 s" in one.said
    assert one.api.ok("GET", f"/api/jobs/{claim['job']['id']}")["status"] == "completed"


def test_a_machine_that_is_dearer_than_its_line_is_not_ordered_again_and_again(
    managed: Callable[..., Managed], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = managed(max_cost_per_hour=0.40)
    start = one.machinery.start

    def starts_dearer(order: Order) -> None:
        start(order)
        one.machinery.change(order.machine_id, cost_per_hour=0.44)

    monkeypatch.setattr(one.machinery, "start", starts_dearer)
    one.api.submit()
    for _ in range(5):
        one.round()
    assert (len(one.machinery.orders), one.machinery.there) == (1, {})
    said = "costs $0.44 an hour, and the catalogue has 1x A40 SECURE at $0.40"
    assert len([text for text in one.said if said in text]) == 1
    assert "1x A40 SECURE at $0.44 an hour would cost more than is left of max_cost_per_hour $0.40" in one.said[-1]


def test_an_idle_machine_that_got_a_job_meanwhile_leaves_after_it(managed: Callable[..., Managed]) -> None:
    """Between what the manager saw and what it did."""
    one = managed(idle_seconds=50, silent_seconds=1000)
    job = one.api.submit()
    one.round()
    machine = one.only_machine()
    worker, api = one.comes_up(machine)
    one.api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    one.round()
    one.later = 51
    stop = one.client.workers.stop

    def claimed_first(worker_id: str, reason: str = "") -> Any:
        one.api.submit()
        assert api.claim(worker).status_code == 200
        return stop(worker_id, reason)

    one.client.workers.stop = claimed_first  # type: ignore[method-assign] - the moment in between
    one.round()
    assert one.only_machine() == machine
    assert one.said[-1] == f"{machine}: has got a job meanwhile and leaves after it"
    assert one.tokens() == {machine}


def test_workers_whose_machine_the_launcher_has_lost_count_until_they_end(managed: Callable[..., Managed]) -> None:
    one = managed(max_workers=1)
    machine, worker, api = one.with_a_worker()
    assert api.claim(worker).status_code == 200
    one.machinery.there.clear()
    one.api.submit()
    seen = one.round()
    assert [known.id for known in seen.machines.known] == [machine]
    assert one.machinery.there == {}
    assert f"{machine}: the launcher knows no such machine; its worker claims nothing more" in one.said
    assert one.is_stopped(worker)
    assert one.round().machines.known != ()  # it has its job still
    assert sum("knows no such machine" in text for text in one.said) == 1
    run = one.api.ok("GET", "/api/runs", params={"worker_id": worker})["data"][0]
    api.finish(run["id"])
    one.round()
    assert len(one.machinery.there) == 1


def test_a_stop_that_fails_is_tried_again_and_said_once(managed: Callable[..., Managed]) -> None:
    one = managed(start_seconds=100)
    one.api.submit()
    one.round()
    machine = one.only_machine()
    one.machinery.fails["stop"] = LauncherError("too many requests")
    one.later = 101
    one.round()
    one.round()
    assert one.machinery.there.keys() == {machine}
    assert one.tokens() == {machine}
    del one.machinery.fails["stop"]
    one.round()
    assert one.machinery.there == {}
    one.round()
    assert one.tokens() == set()
    assert sum(f"{machine}: ends:" in text for text in one.said) == 1
    assert [failed.times for failed in one.manager.history.failures.values()] == [1]


def test_a_manager_after_another_goes_on_with_its_machines(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.api.submit()
    one.round()
    machine = one.only_machine()
    one.renew()
    one.round()
    assert one.only_machine() == machine
    one.comes_up(machine)
    one.manager.stop_all()
    assert one.machinery.there == {}
    assert one.tokens() == set()
    assert one.said[-1] == "1 machine is stopped"


def test_machines_that_cannot_be_given_back_are_named(managed: Callable[..., Managed], monkeypatch: Any) -> None:
    monkeypatch.setattr(manager, "GIVING_BACK_SECONDS", 0.1)
    one = managed()
    one.api.submit()
    one.round()
    machine = one.only_machine()
    one.machinery.fails["stop"] = LauncherError("too many requests")
    with pytest.raises(LauncherError, match=f"{machine}: still there; call it again, or look at the launcher's page"):
        one.manager.stop_all()
    assert one.tokens() == {machine}


def test_a_worker_gives_its_job_back_before_its_token_is_revoked(managed: Callable[..., Managed]) -> None:
    one = managed(max_cost=1, start_seconds=100_000)
    machine, worker, api = one.with_a_worker()
    run = api.claim(worker).json()["run_id"]
    one.machinery.change(machine, ended="taken back")
    one.round()
    assert machine not in one.machinery.there
    one.round()
    assert api.finish(run, "pending", reason="stopped")["status"] == "pending"
    one.round()
    assert machine not in one.tokens()


def test_money_is_counted_over_managers_and_ends_everything(managed: Callable[..., Managed]) -> None:
    """0.40 an hour: after two hours $0.80 of $0.70 are spent. The worker that is busy does its job first."""
    one = managed(max_cost=0.7, start_seconds=100_000, silent_seconds=100_000)
    jobs = [one.api.submit() for _ in range(2)]
    one.round()
    first, second = one.machinery.there
    worker, api = one.comes_up(first)
    assert api.claim(worker).status_code == 200
    one.later = 3600
    one.renew()
    assert one.round().machines.spent == pytest.approx(0.8, rel=1e-3)
    assert second not in one.machinery.there
    assert one.machinery.there.keys() == {first}
    assert "of max_cost $0.70 are spent" in one.said[-1]
    assert len(jobs) == 2


def test_a_dry_run_changes_nothing(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.api.submit()
    seen = one.round(act=False)
    assert [type(action) for action in seen.actions] == [Start]
    assert (one.machinery.orders, one.said, one.tokens()) == ([], [], set())
    assert list(one.folder.iterdir()) == []


def test_where_launcher_or_server_is_away_nothing_is_done(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.api.submit()
    one.machinery.fails["found"] = LauncherError("the cloud does not answer")
    rounds = iter(range(4))

    def wait(seconds: float) -> bool:
        number = next(rounds)
        if number == 1:
            del one.machinery.fails["found"]
        return number == 3

    one.manager.run(wait)
    assert one.said[:2] == [
        "the cloud does not answer; nothing is started or stopped until it answers",
        one.said[1],
    ]
    assert [text for text in one.said if "answer again" in text] == ["both answer again"]
    assert len(one.machinery.orders) == 1


def test_a_server_that_is_away(tmp_path: Path, migrated_sqlite: Path) -> None:
    with served(tmp_path / "server", migrated=migrated_sqlite) as running:
        one = Managed(running, tmp_path / "kept", {})
        one.api.submit()
        one.round()
        port = running.port
    one.client = OpenWeights(base_url=f"http://127.0.0.1:{port}", auth_token="tut-none")
    one.renew()
    one.manager.run(lambda seconds: True)
    assert one.said[-1].endswith("nothing is started or stopped until it answers")
    assert len(one.machinery.there) == 1


def test_history_that_cannot_be_read_is_said_with_its_place(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.round()
    path = one.folder / "history.json"
    assert json.loads(path.read_text(encoding="utf-8")).keys() == {"spent", "counted_until", "failures"}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(
        Exception, match=r"history\.json: cannot be read .* mend it, or delete it: spending is counted anew"
    ):
        one.renew()


def test_scopes_of_the_managers_token(server: Served, tmp_path: Path) -> None:
    """It needs the right to make tokens for machines."""
    one = Managed(server, tmp_path, {})
    one.api.submit()
    weak = server.token(Scope.READ, Scope.SUBMIT)
    one.client = OpenWeights(base_url=server.url, auth_token=weak)
    one.renew()
    one.round(act=False)
    assert one.said == []


def test_many_that_are_sold_out_at_once_are_one_failure(managed: Callable[..., Managed]) -> None:
    """The others are not asked for, and the tier rests as after one."""
    one = managed()
    for _ in range(3):
        one.api.submit()
    one.machinery.fails["start"] = NoCapacityError("nothing left")
    one.round()
    assert one.said == ["1x A40 SECURE cannot be had: nothing left"]
    del one.machinery.fails["start"]
    one.later = 31
    one.round()
    assert len(one.machinery.there) == 1  # that tries first


def test_what_cannot_be_written_down_stops_nothing(managed: Callable[..., Managed]) -> None:
    one = managed()
    (one.folder / "history.json").mkdir()
    (one.folder / "history.json" / "in the way").touch()
    one.api.submit()
    one.round()
    one.round()
    assert len(one.machinery.there) == 1
    (complaint,) = [text for text in one.said if "cannot be written" in text]
    assert complaint.endswith("until then spending and failed starts are known to this manager alone")


def test_a_machine_with_less_memory_than_its_line_is_for_jobs_that_fit_it(managed: Callable[..., Managed]) -> None:
    """Its job would wait beside it for ever, or it would be bought again and again."""
    one = managed(idle_seconds=50, silent_seconds=1000)
    large = one.api.submit(requires_vram_gb=48)
    one.round()
    machine = one.only_machine()
    worker, api = one.comes_up(machine, vram_gb=47, ignore_vram=False)
    assert api.claim(worker).status_code == 204
    (hold,) = one.round().actions
    assert isinstance(hold, Hold)
    assert hold.reason == "nothing in the catalogue is what they need, or has a price for their cloud type"
    said = f"{machine}: is 1x A40 with 47 GB of GPU memory, and the catalogue has 1x A40 with 48 GB"
    assert [text.partition(";")[0] for text in one.said if "the catalogue has" in text] == [said]
    small = one.api.submit(requires_vram_gb=40)
    assert api.claim(worker).json()["job"]["id"] == small["id"]
    one.api.ok("POST", f"/api/jobs/{small['id']}/cancel")
    api.finish(one.api.ok("GET", "/api/runs", params={"job_id": small["id"]})["data"][0]["id"])
    one.round()
    one.later = 51
    one.round()
    one.round()
    assert one.machinery.there == {}
    assert len(one.machinery.orders) == 1
    assert one.api.ok("GET", f"/api/jobs/{large['id']}")["status"] == "pending"


def test_jobs_are_held_to_what_workers_call_their_hardware(managed: Callable[..., Managed]) -> None:
    one = managed()
    job = one.api.submit(allowed_hardware=["1x A40"])
    one.round()
    worker, api = one.comes_up(one.only_machine(), hardware="1x A40-48Q")
    assert [type(action) for action in one.round().actions] == [Hold]
    one.api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    job = one.api.submit(allowed_hardware=["1x A40-48Q"])
    assert one.round().actions == []
    assert api.claim(worker).json()["job"]["id"] == job["id"]


def test_names_that_only_begin_like_a_machines_are_left_alone(managed: Callable[..., Managed]) -> None:
    """People's tokens, those of a cluster with a longer name, and a worker that is called after its host."""
    one = managed()
    others = {"test-manager", "test-eu-0123456789", "test-0123456789"}
    for name in others - {"test-0123456789"}:
        one.client.tokens.create(name, ["worker", "read"])
    one.client.tokens.create("test-0123456789", ["admin"])
    worker = one.api.worker("test-host")
    one.later = 1000
    assert one.round().machines.known == ()
    one.manager.stop_all()
    assert one.tokens() == others
    assert not one.is_stopped(worker)


def test_a_token_that_could_not_be_revoked_is_revoked_later(
    managed: Callable[..., Managed], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = managed()
    one.api.submit()
    one.machinery.fails["start"] = NoCapacityError("nothing left")

    def away(token_id: str) -> Any:
        raise ServerError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(one.client.tokens, "revoke", away)
        with pytest.raises(ServerError):
            one.round()
    one.later = 1000
    one.round(act=False)
    one.manager.stop_all()
    assert one.tokens() == set()


def test_a_server_that_was_away_heard_nobody(managed: Callable[..., Managed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machines are well. Those that stay silent are replaced after the usual time, counted from its return."""
    one = managed(silent_seconds=120)
    machine, worker, api = one.with_a_worker()
    assert api.claim(worker).status_code == 200
    one.round()
    one.later = 500

    def away(*_: Any) -> Any:
        raise ServerError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(one.client.workers, "list", away)
        with pytest.raises(ServerError):
            one.round()
    one.round()
    assert one.only_machine() == machine
    one.later = 619
    one.round()
    assert one.only_machine() == machine
    one.later = 621
    one.round()
    assert machine not in one.machinery.there


def test_a_manager_whose_clock_is_ahead_stops_nobody(managed: Callable[..., Managed]) -> None:
    one = managed(silent_seconds=120, start_seconds=100_000)
    one.later = 3600
    machine, _, _ = one.with_a_worker()
    one.round()
    one.renew()
    one.round()
    assert one.only_machine() == machine


def test_what_was_spent_before_all_are_stopped_is_kept(managed: Callable[..., Managed]) -> None:
    """The manager was killed on Friday, and on Monday somebody stops all: 60 hours at $0.40."""
    one = managed(start_seconds=1_000_000)
    one.api.submit()
    one.round()
    one.later = 60 * 3600
    one.renew()
    one.manager.stop_all()
    one.renew()
    assert one.manager.history.spent == pytest.approx(24, rel=1e-3)


def test_a_machine_that_was_up_before_says_nothing_of_what_failed_since(managed: Callable[..., Managed]) -> None:
    one = managed()
    one.with_a_worker()
    one.round()
    one.api.submit()
    one.api.submit()
    one.machinery.fails["start"] = NoCapacityError("nothing left")
    one.round()
    del one.machinery.fails["start"]
    one.renew()
    assert [type(action) for action in one.round().actions] == [Hold]
    assert len(one.machinery.orders) == 1


def test_hardware_that_is_refused_keeps_no_other_from_starting(managed: Callable[..., Managed]) -> None:
    lines = [{"name": "1x A40", "secure": 0.4}, {"name": "2x A100", "secure": 4}]
    one = managed(hardware=lines)
    one.machinery.fails["start 2x A100"] = NoCapacityError("the network volume is in another data center")
    for hardware in ("2x A100", "1x A40", "1x A40"):
        one.api.submit(allowed_hardware=[hardware], requires_vram_gb=0)
    one.round()
    assert len(one.machinery.there) == 2
    assert one.tokens() == one.machinery.there.keys()
