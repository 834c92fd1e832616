"""The loop that keeps machines matched to the queue: look, plan, act. Not here: the plan, and how machines start.

Everything it needs to know is at the launcher and at the server, so a manager that was killed is followed by one that
finds its machines. Where either of the two does not answer, nothing is done.
"""

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from tutelage.client.errors import ServerError
from tutelage.client.openweights import OpenWeights
from tutelage.client.results import Worker
from tutelage.cluster.history import load_history
from tutelage.cluster.launchers.protocol import Found, Launcher, LauncherError, NoCapacityError, Order
from tutelage.cluster.machine_tokens import MachineTokens, is_machine_id, new_machine_id
from tutelage.cluster.plan import plan
from tutelage.cluster.records import (
    Action,
    Drain,
    Group,
    Machine,
    Machines,
    MachineState,
    PendingJob,
    Start,
    Stop,
    Tier,
)
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import NotFoundError, OutputError
from tutelage.files import make_folder
from tutelage.jobs.requirements import Requirement

GIVING_BACK_SECONDS = 30.0
"""How long a worker may take to end its job and give it back."""
MOST_WORKERS_LISTED = 5000
UNKNOWN_GROUP = "of another manager"


@dataclass(frozen=True)
class Round:
    """What was seen and decided in one round."""

    pending: int
    machines: Machines
    actions: list[Action]


class Manager:
    """Machines for the jobs of one server. folder: of what it remembers. say: gets what people are told, a sentence
    at a time. client: its token has the scope `admin`, since machines get tokens of their own."""

    def __init__(
        self,
        settings: ClusterSettings,
        launcher: Launcher,
        client: OpenWeights,
        folder: Path,
        *,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.launcher, self.client = settings, launcher, client
        self._say, self._clock = say, clock
        self._limits = settings.limits(one_job=launcher.one_job)
        self._path = folder / "history.json"
        self.history = load_history(self._path)
        self._since: dict[tuple[str, MachineState], float] = {}
        self._workers: dict[str, Worker] = {}
        self._tokens = MachineTokens(client, settings.name, self._limits.start_seconds)
        self._said: dict[Group, str] = {}
        self._came_up: set[str] | None = None
        self._heard: dict[str, tuple[datetime, float]] = {}
        self._stopped: set[str] = set()
        self._forgets = False

    @cached_property
    def _url(self) -> str:
        return self.settings.url or str(self.client.http.url)

    def run(self, wait: Callable[[float], bool]) -> None:
        """Round after round, until `wait` of some seconds says that it is to end. Machines stay."""
        away = False
        while True:
            try:
                self.round()
                if away:
                    self._say("both answer again")
                away = False
            except (LauncherError, ServerError) as error:
                if not away:
                    self._say(f"{error}; nothing is started or stopped until it answers")
                away = True
            if wait(self.settings.round_seconds):
                return

    def round(self, *, act: bool = True) -> Round:
        """Look, plan and, if `act`, do it. Raises LauncherError and ServerError where nothing could be seen."""
        found, now = self.launcher.found(), self._clock()
        try:
            pending, machines = self._looked(found, now)
        except ServerError:
            self._heard.clear()  # while the server is away it hears nobody
            raise
        actions = plan(pending, machines, self._limits, now)
        if act:
            there = {machine.id: machine for machine in machines.known}
            self._end_strays(there.keys() - {one.machine_id for one in found})
            self._do(actions, there, now)
            self._tokens.revoke_those_of_nobody(there.keys(), now)
            self._remember()
        return Round(len(pending), machines, actions)

    def _looked(self, found: Collection[Found], now: float) -> tuple[list[PendingJob], Machines]:
        # A job may be claimed between the two looks. Where machines take any, it must not seem to wait while its
        # machine is taken: it would get another. Where a machine takes one, that must not seem to start for nothing.
        if self.launcher.one_job:
            pending = self._pending()
            return pending, self._there(found, now)
        machines = self._there(found, now)
        return self._pending(), machines

    def stop_all(self) -> None:
        """Give every machine back at once; jobs that run on them are given back too. Raises LauncherError, also where
        some are left, and ServerError."""
        end = time.monotonic() + GIVING_BACK_SECONDS
        stopped: set[str] = set()
        while True:
            now = self._clock()
            there = self._there(self.launcher.found(), now).known
            stopped |= {machine.id for machine in there}
            for machine in there:
                self._stop(Stop(machine.id, "all are stopped"), replace(machine, state=MachineState.LEAVING), now)
            if not there or time.monotonic() > end:
                break
            time.sleep(GIVING_BACK_SECONDS / 100)
        self._remember()
        left = {found.machine_id for found in self.launcher.found()}
        self._tokens.revoke_all_but(left)
        if left:
            raise LauncherError(
                f"{', '.join(sorted(left))}: still there; call it again, or look at the launcher's page"
            )
        self._say(f"{len(stopped)} machine{'s are' if len(stopped) != 1 else ' is'} stopped")

    def _remember(self) -> None:
        try:
            make_folder(self._path.parent, "--folder")
            self.history.save(self._path)
        except OutputError as error:
            if not self._forgets:
                self._say(f"{error}; until then spending and failed starts are known to this manager alone")
            self._forgets = True
        else:
            self._forgets = False

    # --- what there is --------------------------------------------------------------------------------------------

    def _pending(self) -> list[PendingJob]:
        demand = self.client.workers.demand()
        requirements = {key: Requirement.from_json(conditions) for key, conditions in demand.requirements.items()}
        return [PendingJob(job.id, requirements[job.requirement], job.queued_at) for job in demand.jobs]

    def _there(self, found: Collection[Found], now: float) -> Machines:
        # Of workers that have the same name, as after a restart of the machine, the one heard from last.
        for worker in reversed(self.client.workers.list(MOST_WORKERS_LISTED)):
            if is_machine_id(worker.name, self.settings.name):
                self._workers[worker.name] = worker
        if self._came_up is None:  # what was up before this manager says nothing of a tier that failed since
            self._came_up = set(self._workers)
        known = [self._machine(one, self._workers.get(one.machine_id), now) for one in found]
        ids = {machine.id for machine in known}
        self.history.count(sum(machine.cost_per_hour for machine in known), now)
        strays = [worker for name, worker in self._workers.items() if name not in ids and _lives(worker)]
        known += [self._stray(worker, now) for worker in strays]
        ids = {machine.id for machine in known}
        self._came_up &= ids
        self._stopped &= ids
        self._heard = {name: heard for name, heard in self._heard.items() if name in ids}
        self._workers = {name: worker for name, worker in self._workers.items() if name in ids}
        self._since = {key: since for key, since in self._since.items() if key[0] in ids}
        return Machines(tuple(known), dict(self.history.failures), self.history.spent)

    def _machine(self, found: Found, worker: Worker | None, now: float) -> Machine:
        state, reason = _state(found, worker, ends_by_itself=self.launcher.one_job)
        since = (
            found.started_at
            if state is MachineState.STARTING
            else self._since.setdefault((found.machine_id, state), now)
        )
        if found.is_queued:
            since = now
        if worker is not None:
            self._learn(found.tier.hardware, worker)
            if self._came_up is not None and found.machine_id not in self._came_up:
                self._came_up.add(found.machine_id)
                self.history.started(found.tier)
        return Machine(
            found.machine_id,
            found.group,
            found.tier,
            state,
            since,
            self._last_heard(worker, now) if worker is not None else None,
            found.cost_per_hour,
            found.job_id if self.launcher.one_job else None,
            reason,
        )

    def _stray(self, worker: Worker, now: float) -> Machine:
        """A worker of this cluster whose machine the launcher does not have: it ends, and counts until it has."""
        group = Group(worker.cloud_type, UNKNOWN_GROUP, ())
        tier = Tier(worker.hardware, worker.cloud_type)
        since = self._since.setdefault((worker.name, MachineState.LEAVING), now)
        return Machine(worker.name, group, tier, MachineState.LEAVING, since, self._last_heard(worker, now))

    def _last_heard(self, worker: Worker, now: float) -> float:
        """When this manager first saw the server's time of the worker's last word: the two clocks may differ, and a
        server that was away heard nobody."""
        known = self._heard.get(worker.name)
        if known is None or known[0] != worker.last_seen_at:
            self._heard[worker.name] = known = (worker.last_seen_at, now)
        return known[1]

    def _learn(self, name: str, worker: Worker) -> None:
        """What a machine turns out to be decides what its line of the catalogue is for. Otherwise jobs would wait
        beside it that it cannot claim, with nobody saying why, or it would be bought again and again."""
        line = next((one for one in self._limits.hardware if one.name == name), None)
        if line is None:
            return
        vram_gb = line.vram_gb if line.ignore_vram else min(line.vram_gb, worker.vram_gb)
        if (worker.hardware, vram_gb) == (line.known_as or name, line.vram_gb):
            return
        self._say(
            f"{worker.name}: is {worker.hardware} with {worker.vram_gb:g} GB of GPU memory, and the catalogue has "
            f"{name} with {line.vram_gb:g} GB; it is for jobs that fit the machine from now on: mend the catalogue"
        )
        learned = replace(line, known_as=worker.hardware, vram_gb=vram_gb)
        lines = tuple(learned if one is line else one for one in self._limits.hardware)
        self._limits = replace(self._limits, hardware=lines)

    # --- what is done ---------------------------------------------------------------------------------------------

    def _end_strays(self, names: Iterable[str]) -> None:
        for name in names:
            if self._workers[name].stopped_at is None:
                self._say(f"{name}: the launcher knows no such machine; its worker claims nothing more")
                self._stop_worker(name, "its machine is not known any more")

    def _do(self, actions: Iterable[Action], machines: Mapping[str, Machine], now: float) -> None:
        may_start = True
        held: dict[Group, str] = {}
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action, machines[action.machine_id], now)
            elif isinstance(action, Drain):
                self._say(f"{action.machine_id}: leaves after its job: {action.reason}")
                self._stop_worker(action.machine_id, action.reason)
            elif isinstance(action, Start):
                if may_start and not self.history.just_failed(action.tier, now):
                    may_start = self._start(action, now)
            else:
                held[action.group] = action.reason
                if self._said.get(action.group) != action.reason:
                    self._say(f"{action.jobs} job{'s' * (action.jobs != 1)} for {action.group} wait: {action.reason}")
        self._said = held

    def _start(self, start: Start, now: float) -> bool:
        """Whether the launcher takes more."""
        machine_id = new_machine_id(self.settings.name)
        order = Order(
            machine_id,
            start,
            self._url,
            self._tokens.create(machine_id),
            run_id=f"run-{secrets.token_hex(16)}" if self.launcher.one_job else None,
            ignore_vram=self.settings.entry(start.tier.hardware).ignore_vram,
        )
        try:
            self.launcher.start(order)
        except NoCapacityError as error:
            self._say(f"{start.tier} cannot be had: {error}")
            self.history.failed(start.tier, now)
            self._tokens.revoke(machine_id)
            return True
        except LauncherError as error:
            # Whether it began is not known: if it did, the next round finds it, and its token is needed.
            self._say(f"{machine_id}: {start.tier} could not be asked for: {error}")
            return False
        self._say(f"{machine_id}: starts, {start.tier} at ${start.cost_per_hour:,.2f} an hour, for {start.job_id}")
        return True

    def _stop(self, stop: Stop, machine: Machine, now: float) -> None:
        is_first = stop.machine_id not in self._stopped
        if is_first:
            self._say(f"{stop.machine_id}: ends: {stop.reason}")
            self._stopped.add(stop.machine_id)
        worker = self._stop_worker(stop.machine_id, stop.reason)
        if machine.state is MachineState.IDLE and worker is not None and worker.run_id is not None:
            self._say(f"{stop.machine_id}: has got a job meanwhile and leaves after it")
            return
        if stop.failed_start and is_first:
            self.history.failed(machine.tier, now)
        try:
            self.launcher.stop(stop.machine_id)
        except LauncherError as error:
            self._say(f"{stop.machine_id}: could not be stopped, which is tried again: {error}")

    def _stop_worker(self, machine_id: str, reason: str) -> Worker | None:
        """Let the machine's worker claim nothing more; as it is after that."""
        worker = self._workers.get(machine_id)
        if worker is None:
            return None
        with suppress(NotFoundError):
            self._workers[machine_id] = worker = self.client.workers.stop(worker.id, f"the cluster: {reason}")
        return worker


def _lives(worker: Worker) -> bool:
    return worker.stopped_at is None or worker.run_id is not None


def _state(found: Found, worker: Worker | None, *, ends_by_itself: bool) -> tuple[MachineState, str | None]:
    """By what launcher and server say; and why, where it is lost. ends_by_itself: the machine, after its worker."""
    if found.ended is not None:
        return MachineState.LOST, found.ended
    if worker is None:
        return MachineState.STARTING, None
    if not _lives(worker) and not ends_by_itself:
        return MachineState.LOST, f"its worker has ended ({worker.reason or 'without a word'})"
    if worker.stopped_at is not None:
        return MachineState.LEAVING, None
    return (MachineState.BUSY if worker.run_id is not None else MachineState.IDLE), None


def describe(action: Action) -> str:
    """An action in words, for a plan that is only shown."""
    if isinstance(action, Start):
        return f"start {action.tier} at ${action.cost_per_hour:,.2f} an hour for {action.job_id}"
    if isinstance(action, Stop):
        return f"stop {action.machine_id}: {action.reason}"
    if isinstance(action, Drain):
        return f"drain {action.machine_id}: {action.reason}"
    return f"hold {action.jobs} for {action.group}: {action.reason}"
