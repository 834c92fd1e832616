"""What there is, look after look: machines as launcher and server tell of them, and what is learned from them.

Not here: what is done about it.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import datetime

from tutelage.client.results import Worker
from tutelage.cluster.history import History
from tutelage.cluster.launchers.protocol import Found
from tutelage.cluster.machine_tokens import is_machine_id
from tutelage.cluster.records import Group, Hardware, Limits, Machine, Machines, MachineState, Tier

UNKNOWN_GROUP = "of another manager"


class Watch:
    """Over the machines of one cluster.

    limits: of the plan. A line of the catalogue becomes what its machines turn out to be. workers: of machines that
    are there, by name.
    """

    def __init__(self, cluster: str, limits: Limits, history: History, say: Callable[[str], None]) -> None:
        self.limits = limits
        self.workers: dict[str, Worker] = {}
        self._cluster, self._history, self._say = cluster, history, say
        self._since: dict[str, tuple[MachineState, float]] = {}
        self._heard: dict[str, tuple[datetime, float]] = {}
        self._came_up: set[str] = set()
        self._is_first = True

    def look(self, found: Collection[Found], workers: Iterable[Worker], now: float) -> Machines:
        """All machines. found: by the launcher. workers: of the server, those first that were heard from last."""
        # Of workers that have the same name, as after a restart of the machine, the one heard from last.
        for worker in reversed(list(workers)):
            if is_machine_id(worker.name, self._cluster):
                self.workers[worker.name] = worker
        known = [self._machine(one, self.workers.get(one.machine_id), now) for one in found]
        self._history.count(sum(machine.cost_per_hour for machine in known), now)
        ids = {machine.id for machine in known}
        strays = [worker for name, worker in self.workers.items() if name not in ids and _lives(worker)]
        known += [self._stray(worker, now) for worker in strays]
        ids |= {worker.name for worker in strays}
        self._came_up &= ids
        self._heard = {name: heard for name, heard in self._heard.items() if name in ids}
        self.workers = {name: worker for name, worker in self.workers.items() if name in ids}
        self._since = {name: since for name, since in self._since.items() if name in ids}
        self._is_first = False
        return Machines(tuple(known), dict(self._history.failures), self._history.spent)

    def server_was_away(self) -> None:
        """It heard nobody: how long workers have been silent is counted anew."""
        self._heard.clear()

    def _machine(self, found: Found, worker: Worker | None, now: float) -> Machine:
        state, reason = _state(found, worker, ends_by_itself=self.limits.one_job)
        since = found.started_at if state is MachineState.STARTING else self._seen_as(found.machine_id, state, now)
        if found.is_queued:
            since = now
        self._learn_price(found)
        if worker is not None and found.machine_id not in self._came_up:
            self._came_up.add(found.machine_id)
            self._learn(found.tier.hardware, worker)
            if not self._is_first:  # what was up before this manager says nothing of a tier that failed since
                self._history.started(found.tier)
        return Machine(
            found.machine_id,
            found.group,
            found.tier,
            state,
            since,
            self._last_heard(worker, now) if worker is not None else None,
            found.cost_per_hour,
            found.job_id if self.limits.one_job else None,
            reason,
        )

    def _stray(self, worker: Worker, now: float) -> Machine:
        """A worker of this cluster whose machine the launcher does not have: it ends, and counts until it has."""
        group = Group(worker.cloud_type, UNKNOWN_GROUP, ())
        tier = Tier(worker.hardware, worker.cloud_type)
        since = self._seen_as(worker.name, MachineState.LEAVING, now)
        return Machine(worker.name, group, tier, MachineState.LEAVING, since, self._last_heard(worker, now))

    def _seen_as(self, name: str, state: MachineState, now: float) -> float:
        """Since when without a break."""
        before, since = self._since.get(name, (None, now))
        self._since[name] = state, since if before is state else now
        return self._since[name][1]

    def _last_heard(self, worker: Worker, now: float) -> float:
        """When the worker's last word was new here. Not the server's time of it, since the two clocks may differ."""
        known = self._heard.get(worker.name)
        if known is None or known[0] != worker.last_seen_at:
            self._heard[worker.name] = known = (worker.last_seen_at, now)
        return known[1]

    def _learn(self, name: str, worker: Worker) -> None:
        """What a machine turns out to be decides what its line of the catalogue is for. Otherwise jobs would wait
        beside it that it cannot claim, with nobody saying why, or it would be bought again and again."""
        line = next((one for one in self.limits.hardware if one.name == name), None)
        if line is None:
            return
        vram_gb = line.vram_gb if line.ignore_vram else min(line.vram_gb, worker.vram_gb)
        if (worker.hardware, vram_gb) == (line.known_as or name, line.vram_gb):
            return
        self._say(
            f"{worker.name}: is {worker.hardware} with {worker.vram_gb:g} GB of GPU memory, and the catalogue has "
            f"{name} with {line.vram_gb:g} GB; that line is for jobs that fit the machine from now on: mend it"
        )
        self._put_in(line, replace(line, known_as=worker.hardware, vram_gb=vram_gb))

    def _learn_price(self, found: Found) -> None:
        """What a machine costs is what the next one is expected to. Otherwise one that is dearer than the catalogue
        says would be ordered since it fits the budget, stopped since it does not, and ordered again."""
        line = next((one for one in self.limits.hardware if one.name == found.tier.hardware), None)
        if line is None or found.cost_per_hour <= line.prices.get(found.tier.cloud_type, math.inf):
            return
        self._say(
            f"{found.machine_id}: costs ${found.cost_per_hour:,.2f} an hour, and the catalogue has {found.tier} at "
            f"${line.prices[found.tier.cloud_type]:,.2f}; the next one is expected to cost as much: mend it"
        )
        self._put_in(line, replace(line, prices={**line.prices, found.tier.cloud_type: found.cost_per_hour}))

    def _put_in(self, line: Hardware, learned: Hardware) -> None:
        lines = tuple(learned if one is line else one for one in self.limits.hardware)
        self.limits = replace(self.limits, hardware=lines)


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
