"""A cluster in fast motion with the real plan. The simulation itself asserts that no job ends twice, that none for
secure machines runs on a community machine, and that there are never more machines than allowed."""

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.cluster import CATALOGUE, HOUR, Faults, SimulatedJob, Simulation, some_jobs
from tutelage.cluster.records import Action, Hardware, Limits, Machines, MachineState
from tutelage.jobs.requirements import CloudType, Requirement

SECURE = CloudType.SECURE
NO_FAULTS = Faults(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_ten_thousand_jobs_on_a_thousand_machines_that_fail() -> None:
    jobs = some_jobs(10_000)
    result = Simulation(jobs, Limits(CATALOGUE, max_workers=1000), seed=1).run()
    assert set(result.ended) == {job.id for job in jobs}
    ended = Counter(result.ended.values())
    assert ended["completed"] > 9_500
    assert ended["its machines were lost"] < 20
    assert result.most_machines == 1000
    assert set(result.waits) == set(result.ended)
    for what in ("broke", "went silent", "sold out", "failed starts"):  # each fault was there
        assert result.events[what] > 50, what


def test_without_faults_the_cost_is_work_starting_and_idling() -> None:
    """Ten jobs of an hour at once, $1 an hour, machines that take 45 to 420 s to start and are kept idle for 300 s:
    between 10 hours and 10 hours and 10 times (420 + 300 + 2 · 15) s."""
    limits = Limits((Hardware("1x A100", {SECURE: 1.0}, vram_gb=80),), max_workers=100)
    jobs = [SimulatedJob(f"job-{index}", Requirement(requires_vram_gb=24), 0.0, HOUR) for index in range(10)]
    result = Simulation(jobs, limits, NO_FAULTS).run()
    assert result.events["started"] == 10
    assert result.useful_cost == 10.0
    assert 10.0 < result.cost < 10.0 + 10 * 750 / 3600
    assert max(result.waits.values()) <= 15 + 420


def test_groups_that_share_three_machines_all_have_their_turn() -> None:
    """Twelve images, one of which has 200 jobs before all others have theirs: those do not wait for all of the 200."""
    limits = Limits((Hardware("1x A100", {SECURE: 1.0}, vram_gb=80),), max_workers=3)
    flood = [SimulatedJob(f"flood-{index}", Requirement("flood", None, 24.0), 0.0, 600.0) for index in range(200)]
    few = [SimulatedJob(f"few-{index}", Requirement(f"image-{index}", None, 24.0), 60.0, 600.0) for index in range(11)]
    result = Simulation([*flood, *few], limits, NO_FAULTS).run()
    assert len(result.ended) == 211
    # Alone on one machine, each after a start, the eleven take at most 11 · (600 + 420 + 60) s = 3.3 hours.
    assert max(result.waits[job.id] for job in few) < 3.3 * HOUR
    assert max(result.waits[job.id] for job in flood) > 10 * HOUR


def test_a_spending_limit_is_kept_at_every_moment() -> None:
    limits = Limits(CATALOGUE[:4], max_workers=100, max_cost_per_hour=5.0)
    jobs = [job for job in some_jobs(150) if job.requirement.requires_vram_gb <= 80]
    result = Simulation(jobs, limits, Faults(outage=0.0), seed=2).run()
    assert len(result.ended) == len(jobs)
    assert 4.5 < max(per_hour for *_, per_hour in result.series) <= 5.0


def test_when_all_money_is_spent_no_machine_is_left() -> None:
    seen: list[int] = []

    def watch(actions: list[Action], machines: Machines) -> None:
        if machines.spent >= 20.0:
            seen.append(sum(one.state is not MachineState.LEAVING for one in machines.known))

    jobs = [replace(job, takes=1800.0) for job in some_jobs(100) if job.requirement.requires_vram_gb <= 48]
    limits = Limits(CATALOGUE, max_workers=20, max_cost=20.0)
    simulation = Simulation(jobs, limits, NO_FAULTS, give_up=24 * HOUR, watch=watch)
    with pytest.raises(AssertionError, match="jobs wait for ever"):
        simulation.run()
    assert len(seen) > 10
    assert seen[1] == 0  # all were told at the first plan after it
    most_left = 20 * max(one.prices[SECURE] for one in CATALOGUE[:3]) * 0.5  # each may end its half hour
    assert simulation.spent < 20.0 + most_left
