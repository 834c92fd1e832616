"""A day of a cluster in seconds: thousands of jobs, machines that fail in every way, and the plan that copes.

    python -m benchmarks.cluster                    # 10,000 jobs on 1,000 machines; and the picture
    python -m benchmarks.cluster --jobs 500 --machines 40

What is simulated are launcher, workers and queue; the plan is the real one. Every promise is checked at every plan.
"""

import argparse
import heapq
import itertools
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from tutelage.cluster.history import History
from tutelage.cluster.plan import plan
from tutelage.cluster.records import (
    Action,
    Drain,
    Hardware,
    Limits,
    Machine,
    Machines,
    MachineState,
    PendingJob,
    Start,
    Stop,
    Tier,
)
from tutelage.jobs.requirements import CloudType, Offer, Requirement, misfits

SECURE, COMMUNITY, ALL = CloudType.SECURE, CloudType.COMMUNITY, CloudType.ALL
HOUR = 3600.0
CATALOGUE = (
    Hardware("1x RTX 4090", {SECURE: 0.69, COMMUNITY: 0.34}, vram_gb=24),
    Hardware("1x A40", {SECURE: 0.40}, vram_gb=48),
    Hardware("1x A100", {SECURE: 1.89, COMMUNITY: 1.19}, vram_gb=80),
    Hardware("1x H100", {SECURE: 2.99, COMMUNITY: 2.39}, vram_gb=80),
    Hardware("2x A100", {SECURE: 3.78, COMMUNITY: 2.38}, vram_gb=160),
    Hardware("8x H100", {SECURE: 23.92}, vram_gb=640, most=8),
)
"""Prices of the order of those in 2026; what is cheap where changes by the week."""
SCARCE = CATALOGUE[-1]


@dataclass(frozen=True)
class Faults:
    """What goes wrong, as probabilities; per_hour ones in any hour of a machine.

    sold_out: a start is refused. never_starts: a machine is there and its worker never is. lost_per_hour: a machine
    goes silent. ended_per_hour: a machine ends, and the launcher says so. job_fails: by itself. outage: every tier is
    sold out altogether for these hours, one after the other.
    """

    sold_out: float = 0.05
    never_starts: float = 0.03
    lost_per_hour: float = 0.05
    ended_per_hour: float = 0.05
    job_fails: float = 0.03
    outage: float = 0.5


@dataclass(frozen=True)
class SimulatedJob:
    """arrives, takes: seconds."""

    id: str
    requirement: Requirement
    arrives: float
    takes: float


@dataclass
class Result:
    """How it went. waits: seconds from arrival to first claim. series: time, pending, machines, US dollars an hour."""

    ended: dict[str, str] = field(default_factory=dict[str, str])
    waits: dict[str, float] = field(default_factory=dict[str, float])
    attempts: Counter[str] = field(default_factory=Counter[str])
    events: Counter[str] = field(default_factory=Counter[str])
    series: list[tuple[float, int, int, float]] = field(default_factory=list[tuple[float, int, int, float]])
    cost: float = 0.0
    useful_cost: float = 0.0
    most_machines: int = 0
    plan_seconds: list[float] = field(default_factory=list[float])
    end: float = 0.0


@dataclass
class _Simulated:
    """A machine as it really is: the plan sees what its launcher and its worker tell."""

    known: Machine
    offer: Offer
    doing: SimulatedJob | None = None
    began: float = 0.0
    dead: bool = False
    drained: bool = False


def some_jobs(count: int, seed: int = 0, *, hours: float = 8.0, images: int = 3) -> list[SimulatedJob]:
    """Jobs as teams submit them: many small ones, few large ones, half of the time in bursts."""
    chance = random.Random(seed)
    kinds = [
        # share, memory, hardware, shortest and longest time in seconds
        (0.45, 24.0, None, (240, 1800)),
        (0.25, 48.0, None, (600, 3600)),
        (0.15, 80.0, None, (1200, 7200)),
        (0.08, 0.0, ("1x H100",), (1200, 5400)),
        (0.05, 140.0, ("2x A100", "8x H100"), (1800, 7200)),
        (0.02, 600.0, None, (1800, 7200)),
    ]
    bursts = [chance.uniform(0, hours * HOUR) for _ in range(8)]
    jobs: list[SimulatedJob] = []
    for number in range(count):
        _, vram, hardware, (shortest, longest) = chance.choices(kinds, [kind[0] for kind in kinds])[0]
        cloud_type = chance.choices([SECURE, ALL, COMMUNITY], [0.5, 0.35, 0.15])[0]
        if vram >= 600 and cloud_type is COMMUNITY:
            cloud_type = SECURE  # nobody rents such a machine out
        image = f"image-{chance.randrange(images)}" if images > 1 else None
        arrives = chance.choice(bursts) + chance.uniform(0, 300) if number % 2 else chance.uniform(0, hours * HOUR)
        takes = min(longest, shortest * chance.lognormvariate(0.5, 0.6))
        jobs.append(SimulatedJob(f"job-{number}", Requirement(image, hardware, vram, cloud_type), arrives, takes))
    return jobs


class Simulation:
    """One run. round_seconds: between two plans. lease_seconds: after which the job of a silent machine waits again."""

    def __init__(
        self,
        jobs: Iterable[SimulatedJob],
        limits: Limits,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        round_seconds: float = 15.0,
        lease_seconds: float = 30.0,
        max_attempts: int = 3,
        give_up: float = 30 * 24 * HOUR,
        watch: Callable[[list[Action], Machines], None] = lambda actions, machines: None,
    ) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.limits, self.faults = limits, faults or Faults()
        self.result = Result()
        self.now = 0.0
        self._chance = random.Random(seed)
        self._round_seconds, self._lease_seconds = round_seconds, lease_seconds
        self._max_attempts, self._give_up, self._watch = max_attempts, give_up, watch
        self._machines: dict[str, _Simulated] = {}
        self._history = History()
        self.spent = 0.0
        self._pending: dict[Requirement, deque[SimulatedJob]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._fits: dict[tuple[Requirement, Offer], bool] = {}
        tiers = [Tier(one.name, cloud_type) for one in limits.hardware for cloud_type in one.prices]
        self._outages = {
            tier: ((0.5 + index) * HOUR, (0.5 + index + self.faults.outage) * HOUR) for index, tier in enumerate(tiers)
        }

    def run(self) -> Result:
        """Until every job has ended. Raises AssertionError where a promise is broken."""
        for job in self.jobs.values():
            self._at(job.arrives, lambda job=job: self._wait(job))
        last_plan = 0.0
        while len(self.result.ended) < len(self.jobs) or self._machines:
            assert self.now < self._give_up, f"{len(self.jobs) - len(self.result.ended)} jobs wait for ever"
            last_plan += self._round_seconds
            while self._events and self._events[0][0] <= last_plan:
                self.now, _, event = heapq.heappop(self._events)
                event()
            self._advance_cost(last_plan)
            self.now = last_plan
            self._plan()
        self.result.end = self.now
        self.result.cost = self.spent
        return self.result

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), event))

    def _advance_cost(self, until: float) -> None:
        per_hour = sum(machine.known.cost_per_hour for machine in self._machines.values())
        self.spent += per_hour * self._round_seconds / HOUR
        self.result.series.append((until, sum(map(len, self._pending.values())), len(self._machines), per_hour))

    # --- queue and workers ----------------------------------------------------------------------------------------

    def _wait(self, job: SimulatedJob, *, again: bool = False) -> None:
        waiting = self._pending.setdefault(job.requirement, deque())
        if again:  # it keeps its place
            waiting.appendleft(job)
        else:
            waiting.append(job)
        for machine in list(self._machines.values()):
            if machine.known.state is MachineState.IDLE and not machine.dead and self._fit(job.requirement, machine):
                self._claim(machine)
                return

    def _fit(self, requirement: Requirement, machine: _Simulated) -> bool:
        key = (requirement, machine.offer)
        if key not in self._fits:
            self._fits[key] = not misfits(requirement, machine.offer)
        return self._fits[key]

    def _claim(self, machine: _Simulated) -> None:
        """The oldest job that fits, as the queue's own predicate has it."""
        if machine.drained:
            self._ends(machine, "its worker has ended")
            return
        fitting = [jobs for requirement, jobs in self._pending.items() if jobs and self._fit(requirement, machine)]
        if not fitting:
            self._become(machine, MachineState.IDLE)
            return
        job = min(fitting, key=lambda jobs: (jobs[0].arrives, jobs[0].id)).popleft()
        self.result.attempts[job.id] += 1
        self.result.waits.setdefault(job.id, self.now - job.arrives)
        tier = machine.known.tier
        assert job.requirement.cloud_type in (ALL, tier.cloud_type), f"{job.requirement} ran on {tier}"
        machine.doing, machine.began = job, self.now
        self._become(machine, MachineState.BUSY)
        self._at(self.now + job.takes, lambda: self._done(machine, job))

    def _become(self, machine: _Simulated, state: MachineState) -> None:
        if machine.drained and state is MachineState.BUSY:
            state = MachineState.LEAVING
        machine.known = replace(machine.known, state=state, since=self.now, last_seen=self.now)

    def _done(self, machine: _Simulated, job: SimulatedJob) -> None:
        if machine.doing is not job:
            return
        machine.doing = None
        failed = self._chance.random() < self.faults.job_fails
        self._end(job, "failed by itself" if failed else "completed")
        self.result.useful_cost += machine.known.cost_per_hour * job.takes / HOUR
        self._claim(machine)

    def _end(self, job: SimulatedJob, how: str) -> None:
        assert job.id not in self.result.ended, f"{job.id} ended twice"
        self.result.ended[job.id] = how

    def _give_up_job(self, machine: _Simulated) -> None:
        job, machine.doing = machine.doing, None
        if job is None:
            return
        if self.result.attempts[job.id] >= self._max_attempts:
            self._end(job, "its machines were lost")
        else:
            self._wait(job, again=True)

    # --- launcher -------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        for machine in self._machines.values():
            if machine.known.last_seen is not None and not machine.dead:
                machine.known = replace(machine.known, last_seen=self.now)
        pending = [PendingJob(job.id, job.requirement, job.arrives) for jobs in self._pending.values() for job in jobs]
        known = Machines(tuple(one.known for one in self._machines.values()), dict(self._history.failures), self.spent)
        began = time.perf_counter()
        actions = plan(pending, known, self.limits, self.now)
        self.result.plan_seconds.append(time.perf_counter() - began)
        self._watch(actions, known)
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action)
            elif isinstance(action, Drain):
                machine = self._machines[action.machine_id]
                machine.drained = True
                self._become(machine, MachineState.LEAVING)
                self.result.events["drained"] += 1
            elif isinstance(action, Start) and not self._history.just_failed(action.tier, self.now):
                self._start(action)
        assert len(self._machines) <= self.limits.max_workers
        self.result.most_machines = max(self.result.most_machines, len(self._machines))

    def _stop(self, stop: Stop) -> None:
        machine = self._machines.pop(stop.machine_id)
        self.result.events["failed starts" if stop.failed_start else "stopped"] += 1
        if stop.failed_start:
            self._history.failed(machine.known.tier, self.now)
        if machine.doing is not None:
            self._at(self.now, lambda: self._give_up_job(machine))
        machine.dead = True

    def _start(self, start: Start) -> None:
        begins, ends = self._outages[start.tier]
        if begins <= self.now < ends or self._chance.random() < self.faults.sold_out:
            self.result.events["sold out"] += 1
            self._history.failed(start.tier, self.now)
            return
        hardware = next(one for one in self.limits.hardware if one.name == start.tier.hardware)
        number = next(self._number)
        images = None if start.group.image is None else (start.group.image,)
        offer = Offer(start.tier.hardware, 1, hardware.vram_gb, start.tier.cloud_type, images)
        known = Machine(
            f"machine-{number}",
            start.group,
            start.tier,
            MachineState.STARTING,
            self.now,
            cost_per_hour=start.cost_per_hour,
        )
        machine = self._machines[known.id] = _Simulated(known, offer)
        self.result.events["started"] += 1
        if self._chance.random() >= self.faults.never_starts:
            self._at(self.now + self._chance.uniform(45, 420), lambda: self._up(machine))

    def _up(self, machine: _Simulated) -> None:
        if machine.dead:
            return
        self._history.started(machine.known.tier)
        faults = self.faults
        for per_hour, lost in ((faults.lost_per_hour, self._goes_silent), (faults.ended_per_hour, self._breaks)):
            if per_hour:
                after = self._chance.expovariate(per_hour) * HOUR
                self._at(self.now + after, lambda lost=lost: None if machine.dead else lost(machine))
        self._claim(machine)

    def _goes_silent(self, machine: _Simulated) -> None:
        machine.dead = True
        self.result.events["went silent"] += 1
        self._at(self.now + self._lease_seconds, lambda: self._give_up_job(machine))

    def _breaks(self, machine: _Simulated) -> None:
        self.result.events["broke"] += 1
        self._at(self.now + self._lease_seconds, lambda: self._give_up_job(machine))
        self._ends(machine, "it was lost")

    def _ends(self, machine: _Simulated, reason: str) -> None:
        machine.dead = True
        machine.known = replace(machine.known, state=MachineState.LOST, since=self.now, reason=reason)


def main() -> None:
    """Simulate, print the figures, draw the picture of the usual size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--machines", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs = some_jobs(options.jobs, options.seed)
    limits = Limits(CATALOGUE, max_workers=options.machines)
    simulation = Simulation(jobs, limits, seed=options.seed)
    result = simulation.run()
    print(summary(result))
    if (options.jobs, options.machines, options.seed) == (10_000, 1_000, 0):
        from benchmarks.cluster_figures import draw

        draw(result, simulation.jobs, SCARCE)


def summary(result: Result) -> str:
    """The figures, one a line."""
    waits = sorted(result.waits.values())

    def minutes(share: float) -> float:
        return waits[min(len(waits) - 1, int(share * len(waits)))] / 60

    rows = [
        ("jobs", ", ".join(f"{count:,} {how}" for how, count in Counter(result.ended.values()).most_common())),
        ("hours", f"{result.end / HOUR:.1f}"),
        ("most machines at once", f"{result.most_machines:,}"),
        ("machines", ", ".join(f"{count:,} {what}" for what, count in sorted(result.events.items()))),
        (
            "waited, minutes",
            f"median {minutes(0.5):.1f}, 95 of 100 within {minutes(0.95):.1f}, longest {minutes(1):.1f}",
        ),
        ("cost", f"${result.cost:,.0f}, of which ${result.useful_cost:,.0f} for work that was kept"),
        (
            "a plan, ms",
            f"median {1e3 * statistics.median(result.plan_seconds):.1f}, longest {1e3 * max(result.plan_seconds):.1f}",
        ),
    ]
    return "\n".join(f"{name:24}{value}" for name, value in rows)


if __name__ == "__main__":
    main()
