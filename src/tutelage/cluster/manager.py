"""The loop that keeps machines matched to the queue: look, plan, act. Not here: how both looks become one (`watch.py`),
the plan, and how machines start.

Everything it needs to know is at the launcher and at the server, so a manager that was killed is followed by one that
finds its machines. Where either of the two does not answer, nothing is done.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tutelage.client.errors import ServerError
from tutelage.client.openweights import OpenWeights
from tutelage.client.results import Worker
from tutelage.cluster.history import load_history
from tutelage.cluster.launchers.protocol import Found, Launcher, LauncherError, NoCapacityError, Order
from tutelage.cluster.machine_tokens import MachineTokens, new_machine_id
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
from tutelage.cluster.watch import Watch
from tutelage.errors import NotFoundError, OutputError
from tutelage.files import make_folder
from tutelage.jobs.requirements import Requirement

GIVING_BACK_SECONDS = 30.0
"""How long a worker may take to end its job and give it back."""
MOST_WORKERS_LISTED = 5000
ASKED_TIMES = 3
"""How often a tier is asked for one round after the other while the launcher says that it is busy. Then it rests as one
that is sold out does: what is refused may be this order alone, and others wait behind it."""


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
        self._path = folder / "history.json"
        self.history = load_history(self._path)
        self._watch = Watch(settings.name, settings.limits(one_job=launcher.one_job), self.history, say)
        self._tokens = MachineTokens(client, settings.name, settings.start_seconds)
        self._said: dict[Group, str] = {}
        self._stopped: set[str] = set()
        self._unanswered: Counter[Tier] = Counter()
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
            self._watch.server_was_away()
            raise
        actions = plan(pending, machines, self._watch.limits, now)
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

    def _there(self, found: Collection[Found], now: float) -> Machines:
        there = self._watch.look(found, self.client.workers.list(MOST_WORKERS_LISTED), now)
        self._stopped &= {machine.id for machine in there.known}
        return there

    def _pending(self) -> list[PendingJob]:
        demand = self.client.workers.demand()
        requirements = {key: Requirement.from_json(conditions) for key, conditions in demand.requirements.items()}
        return [PendingJob(job.id, requirements[job.requirement], job.queued_at) for job in demand.jobs]

    # --- what is done ---------------------------------------------------------------------------------------------

    def _end_strays(self, names: Iterable[str]) -> None:
        for name in names:
            if self._watch.workers[name].stopped_at is None:
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
            del self._unanswered[start.tier]
            return True
        except LauncherError as error:
            # Whether it began is not known: if it did, the next round finds it, and its token is needed.
            self._say(f"{machine_id}: {start.tier} could not be asked for: {error}")
            self._unanswered[start.tier] += 1
            if self._unanswered[start.tier] >= ASKED_TIMES:
                self.history.failed(start.tier, now)
            return False
        del self._unanswered[start.tier]
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
        worker = self._watch.workers.get(machine_id)
        if worker is None:
            return None
        with suppress(NotFoundError):
            self._watch.workers[machine_id] = worker = self.client.workers.stop(worker.id, f"the cluster: {reason}")
        return worker


def describe(action: Action) -> str:
    """An action in words, for a plan that is only shown."""
    if isinstance(action, Start):
        return f"start {action.tier} at ${action.cost_per_hour:,.2f} an hour for {action.job_id}"
    if isinstance(action, Stop):
        return f"stop {action.machine_id}: {action.reason}"
    if isinstance(action, Drain):
        return f"drain {action.machine_id}: {action.reason}"
    return f"hold {action.jobs} for {action.group}: {action.reason}"
