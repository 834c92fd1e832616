"""Which machines to start, drain and stop, as a pure function of what there is.

Each group of jobs gets machines of its own, the groups with the fewest first, the one that waits longest among equals.
A group that has none and finds no room gets one of the others': of the group that has most, or, where each has but
one, of a group whose oldest job is younger. So every group's oldest job becomes the oldest of all at some time, and
then the next machine that is free is for it: no group starves. Not here: how machines are started and stopped.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tutelage.cluster.records import (
    Action,
    Drain,
    Group,
    Hardware,
    Hold,
    Limits,
    Machine,
    Machines,
    MachineState,
    PendingJob,
    Start,
    Stop,
    Tier,
)
from tutelage.jobs.requirements import CloudType, Requirement

TIERS_OF = {
    CloudType.SECURE: (CloudType.SECURE,),
    CloudType.COMMUNITY: (CloudType.COMMUNITY,),
    CloudType.ALL: (CloudType.SECURE, CloudType.COMMUNITY),
}
"""On whose machines jobs of a cloud type may run."""
MOST_GIVEN_ROOM = 16
"""Groups that get machines of others in one plan, those that wait longest; the others have their turn later."""


def plan(pending: Iterable[PendingJob], machines: Machines, limits: Limits, now: float) -> list[Action]:
    """What is to be done now, in this order: stops, drains, starts, and why other jobs wait.

    pending: the jobs that nobody has claimed, in any order. now: seconds since the epoch, as in all times. Machines
    that are to stop count until the launcher no longer has them: never are there more than `limits.max_workers`.
    """
    return _Plan(_by_group(pending, limits), machines, limits, now).actions()


def group_of(requirement: Requirement, limits: Limits) -> Group:
    """The group of jobs with these conditions. Its hardware is empty where the catalogue has nothing for them."""
    return Group(
        requirement.cloud_type,
        requirement.image,
        tuple(one.name for one in limits.hardware if _fits(requirement, one)),
    )


def _fits(requirement: Requirement, hardware: Hardware) -> bool:
    allowed, prices = requirement.allowed_hardware, hardware.prices
    return (
        (allowed is None or (hardware.known_as or hardware.name) in allowed)
        and (hardware.ignore_vram or requirement.requires_vram_gb <= hardware.vram_gb)
        and any(one in prices for one in TIERS_OF[requirement.cloud_type])
    )


def _by_group(pending: Iterable[PendingJob], limits: Limits) -> dict[Group, list[PendingJob]]:
    """Oldest first, groups and jobs."""
    of_requirement: dict[Requirement, list[PendingJob]] = {}
    for job in pending:
        of_requirement.setdefault(job.requirement, []).append(job)
    found: dict[Group, list[PendingJob]] = {}
    for requirement, jobs in of_requirement.items():
        found.setdefault(group_of(requirement, limits), []).extend(jobs)
    for jobs in found.values():
        jobs.sort(key=_age)
    return dict(sorted(found.items(), key=lambda item: _age(item[1][0])))


def _age(job: PendingJob) -> tuple[float, str]:
    return job.waiting_since, job.id


@dataclass(frozen=True)
class _Blocked:
    """Why a group gets no machine now. releases: whether it could have one if this machine were given back."""

    reason: str
    releases: Callable[[Machine], bool] | None = None
    lacks_per_hour: float = 0.0
    """US dollars an hour that have to be given back."""


class _Plan:
    def __init__(self, waiting: dict[Group, list[PendingJob]], machines: Machines, limits: Limits, now: float) -> None:
        self._waiting, self._machines, self._limits, self._now = waiting, machines, limits, now
        self._stops: list[Stop] = []
        self._drains: list[Drain] = []
        self._starts: list[Start] = []
        self._holds: list[Hold] = []
        known = machines.known
        self._room = limits.max_workers - len(known)
        self._per_hour = sum(machine.cost_per_hour for machine in known)
        self._of_hardware = Counter(machine.tier.hardware for machine in known)
        self._starting = Counter(machine.tier for machine in known if machine.state is MachineState.STARTING)
        self._catalogue = {one.name: one for one in limits.hardware}
        self._kept: dict[str, Machine] = {}
        self._leaving: list[Machine] = []
        self._own: Counter[Group] = Counter()
        self._failed: set[Tier] = set()

    def actions(self) -> list[Action]:
        for machine in self._machines.known:
            if not self._is_faulty(machine):
                self._keep(machine)
        if self._is_spent():
            return [*self._stops, *self._drains, *self._holds]
        self._stop_unneeded()
        self._give_back_surplus()
        blocked = self._start_for_groups()
        without = [group for group in blocked if not self._own[group]]
        for group in heapq.nsmallest(MOST_GIVEN_ROOM, without, key=self._oldest):
            self._make_room(group, blocked[group])
        return [*self._stops, *self._drains, *self._starts, *self._holds]

    # --- machines there are ---------------------------------------------------------------------------------------

    def _is_faulty(self, machine: Machine) -> bool:
        """Whether it is stopped for a fault of its own."""
        now, limits = self._now, self._limits
        never_came_up = machine.last_seen is None
        if machine.state is MachineState.LOST:
            reason = machine.reason or "it is gone"
        elif machine.state is MachineState.STARTING and now - machine.since > limits.start_seconds:
            reason = f"it has not started within {limits.start_seconds:g} s"
        elif machine.last_seen is not None and now - machine.last_seen > limits.silent_seconds:
            reason = f"it was not heard from for {now - machine.last_seen:.0f} s"
        else:
            return False
        self._stops.append(Stop(machine.id, reason, failed_start=never_came_up))
        if never_came_up:
            self._failed.add(machine.tier)
        self._leaving.append(machine)
        return True

    def _keep(self, machine: Machine) -> None:
        if machine.state is MachineState.LEAVING:
            self._leaving.append(machine)
        else:
            self._kept[machine.id] = machine
            self._own[machine.group] += 1

    def _give_back(self, machine: Machine, reason: str) -> None:
        """Stop it, or, where it has a job, let it end with that."""
        del self._kept[machine.id]
        self._own[machine.group] -= 1
        self._leaving.append(machine)
        if machine.state is MachineState.BUSY:
            self._drains.append(Drain(machine.id, reason))
        else:
            self._stops.append(Stop(machine.id, reason))

    def _is_spent(self) -> bool:
        """Whether there is no money left; then everything comes to its end."""
        most, spent = self._limits.max_cost, self._machines.spent
        if most is None or spent < most:
            return False
        reason = f"${spent:,.2f} of max_cost ${most:,.2f} are spent"
        for machine in list(self._kept.values()):
            self._give_back(machine, reason)
        self._holds += [Hold(group, len(jobs), reason) for group, jobs in self._waiting.items()]
        return True

    def _stop_unneeded(self) -> None:
        waiting = {job.id for jobs in self._waiting.values() for job in jobs} if self._limits.one_job else set[str]()
        for machine in list(self._kept.values()):
            idle_for = self._now - machine.since
            if machine.state is MachineState.IDLE and idle_for >= self._limits.idle_seconds:
                if not self._waiting.get(machine.group):
                    self._give_back(machine, f"it was idle for {idle_for:.0f} s")
            elif machine.state is MachineState.STARTING and machine.job_id and machine.job_id not in waiting:
                self._give_back(machine, f"{machine.job_id} does not wait for it any more")

    def _give_back_surplus(self) -> None:
        """Where the limits are lower than they were, or machines were found that nobody knew."""
        max_workers, most = self._limits.max_workers, self._limits.max_cost_per_hour
        per_hour = sum(one.cost_per_hour for one in self._kept.values())
        if len(self._kept) <= max_workers and (most is None or per_hour <= most):
            return
        for machine in self._victims(lambda machine: True):
            if len(self._kept) > max_workers:
                self._give_back(machine, f"there are more machines than max_workers, {max_workers}")
            elif most is not None and per_hour > most and machine.cost_per_hour:
                self._give_back(machine, f"all machines cost more than max_cost_per_hour, ${most:,.2f}")
            else:
                continue
            per_hour -= machine.cost_per_hour

    def _victims(self, may_be: Callable[[Machine], bool]) -> list[Machine]:
        """Those that are missed least first: idle, then starting, then busy; of the group that has most."""
        order = (MachineState.IDLE, MachineState.STARTING, MachineState.BUSY)
        found = [machine for machine in self._kept.values() if may_be(machine)]
        return sorted(found, key=lambda one: (order.index(one.state), -self._own[one.group], -one.since, one.id))

    # --- machines for jobs ----------------------------------------------------------------------------------------

    def _oldest(self, group: Group) -> float:
        """Since when its oldest job has waited."""
        jobs = self._waiting.get(group)
        return jobs[0].waiting_since if jobs else float("inf")

    def _uncovered(self) -> dict[Group, list[PendingJob]]:
        """Jobs that no machine is free for or on its way to."""
        free = [one for one in self._kept.values() if one.state in (MachineState.STARTING, MachineState.IDLE)]
        if self._limits.one_job:
            taken = {machine.job_id for machine in self._kept.values()}
            left = {group: [job for job in jobs if job.id not in taken] for group, jobs in self._waiting.items()}
        else:
            covered = Counter(machine.group for machine in free)
            left = {group: jobs[covered[group] :] for group, jobs in self._waiting.items()}
        return {group: jobs for group, jobs in left.items() if jobs}

    def _start_for_groups(self) -> dict[Group, _Blocked]:
        """One machine at a time for the group that has fewest; what stops groups that have jobs left."""
        uncovered = self._uncovered()
        next_of = dict.fromkeys(uncovered, 0)
        groups = list(uncovered)
        queue = [(self._own[group], number) for number, group in enumerate(groups)]
        heapq.heapify(queue)
        blocked: dict[Group, _Blocked] = {}
        while queue:
            _, number = heapq.heappop(queue)
            group = groups[number]
            found = self._choose(group)
            if isinstance(found, _Blocked):
                blocked[group] = found
                self._holds.append(Hold(group, len(uncovered[group]) - next_of[group], found.reason))
                continue
            job = uncovered[group][next_of[group]]
            self._start(group, found, job)
            next_of[group] += 1
            if next_of[group] < len(uncovered[group]):
                heapq.heappush(queue, (self._own[group], number))
        return blocked

    def _start(self, group: Group, tier: Tier, job: PendingJob) -> None:
        cost = self._catalogue[tier.hardware].prices[tier.cloud_type]
        self._starts.append(Start(group, tier, cost, job.id))
        self._room -= 1
        self._per_hour += cost
        self._of_hardware[tier.hardware] += 1
        self._starting[tier] += 1
        self._own[group] += 1

    def _choose(self, group: Group) -> Tier | _Blocked:
        """The cheapest tier that can be had, or why there is none."""
        limits = self._limits
        if not group.hardware:
            return _Blocked("nothing in the catalogue is what they need, or has a price for their cloud type")
        if limits.max_per_group is not None and self._own[group] >= limits.max_per_group:
            return _Blocked(f"the group has the {limits.max_per_group} machines that max_per_group allows")
        if self._room <= 0:
            reason = f"all machines that max_workers allows, {limits.max_workers}, are taken"
            return _Blocked(reason, lambda machine: True)
        reasons: list[_Blocked] = []
        for price, tier in self._tiers(group):
            why = self._why_not(tier, price)
            if why is None:
                return tier
            reasons.append(why)
        release = next((one for one in reasons if one.releases is not None), reasons[0])
        return _Blocked("; ".join(one.reason for one in reasons), release.releases, release.lacks_per_hour)

    def _tiers(self, group: Group) -> Sequence[tuple[float, Tier]]:
        """Cheapest first; at one price in the order of the catalogue."""
        found = [
            (self._catalogue[name].prices[cloud_type], Tier(name, cloud_type))
            for name in group.hardware
            for cloud_type in TIERS_OF[group.cloud_type]
            if cloud_type in self._catalogue[name].prices
        ]
        return sorted(found, key=lambda one: one[0])

    def _why_not(self, tier: Tier, price: float) -> _Blocked | None:
        limits, hardware = self._limits, self._catalogue[tier.hardware]
        if hardware.most is not None and self._of_hardware[tier.hardware] >= hardware.most:
            return _Blocked(
                f"all {hardware.most} {tier.hardware} are taken", lambda machine: machine.tier.hardware == tier.hardware
            )
        if tier in self._failed:
            return _Blocked(f"{tier} has just failed to start and rests")
        failures = self._machines.failures.get(tier)
        if failures is not None:
            rests = limits.ladder[min(failures.times, len(limits.ladder)) - 1]
            left = failures.last_at + rests - self._now
            if left > 0:
                return _Blocked(f"{tier} failed to start {_times(failures.times)}, again in {left:.0f} s")
            if self._starting[tier]:  # one shows whether it goes again
                return _Blocked(f"{tier} failed to start {_times(failures.times)}, one machine is tried first")
        most = limits.max_cost_per_hour
        if most is not None and self._per_hour + price > most:
            reason = f"{tier} at ${price:,.2f} an hour would cost more than is left of max_cost_per_hour ${most:,.2f}"
            if price > most:
                return _Blocked(reason)
            return _Blocked(reason, lambda machine: machine.cost_per_hour > 0, self._per_hour + price - most)
        return None

    def _make_room(self, group: Group, blocked: _Blocked) -> None:
        """A machine of another group for one that has none, unless one that releases as much leaves already."""
        if blocked.releases is None:
            return
        lacks = blocked.lacks_per_hour
        leaving = [machine for machine in self._leaving if blocked.releases(machine)]
        victims = iter(self._victims(lambda machine: self._may_take(machine, group, blocked)))
        while True:
            machine = leaving.pop() if leaving else next(victims, None)
            if machine is None:
                return
            if machine.id in self._kept:
                if self._own[machine.group] > 1 or self._is_younger(machine.group, group):
                    self._give_back(machine, f"{group} has no machine, and its jobs wait")
                else:
                    continue
            self._leaving.remove(machine)  # it is for this group
            lacks -= machine.cost_per_hour
            if lacks <= 0:
                return

    def _may_take(self, machine: Machine, group: Group, blocked: _Blocked) -> bool:
        takes = blocked.releases is not None and blocked.releases(machine) and machine.group != group
        return takes and (self._own[machine.group] > 1 or self._is_younger(machine.group, group))

    def _is_younger(self, one: Group, other: Group) -> bool:
        return self._oldest(one) > self._oldest(other)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
