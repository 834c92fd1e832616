"""The plan: what it starts, drains and stops, by hand; and its promises for whatever there is."""

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import CATALOGUE, some_jobs
from tutelage.cluster.plan import group_of, plan
from tutelage.cluster.records import (
    Action,
    Drain,
    Failures,
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
from tutelage.jobs.requirements import CloudType, Offer, Requirement, misfits

SECURE, COMMUNITY, ALL = CloudType.SECURE, CloudType.COMMUNITY, CloudType.ALL
STARTING, IDLE, BUSY, LEAVING, LOST = MachineState
NOW = 1_000_000.0
SMALL = Hardware("1x A40", {SECURE: 0.4, COMMUNITY: 0.3}, vram_gb=48)
LARGE = Hardware("1x A100", {SECURE: 2.0, COMMUNITY: 1.0}, vram_gb=80)
LIMITS = Limits((SMALL, LARGE), max_workers=4)
NEEDS = Requirement(requires_vram_gb=24)
OTHER = Requirement(image="other", requires_vram_gb=24)
GROUP, OTHER_GROUP = group_of(NEEDS, LIMITS), group_of(OTHER, LIMITS)
numbers = count()
One = TypeVar("One")


def jobs(number: int, requirement: Requirement = NEEDS, *, age: float = 60.0) -> list[PendingJob]:
    """The first is the oldest, each one a second older than the next."""
    return [PendingJob(f"job-{next(numbers):06}", requirement, NOW - age + index) for index in range(number)]


def machine(
    state: MachineState, group: Group = GROUP, *, age: float = 10.0, tier: Tier | None = None, cost: float = 0.3
) -> Machine:
    """A worker that is there was heard from one second ago."""
    seen = None if state is STARTING else NOW - 1
    chosen = tier or Tier("1x A40", SECURE)
    return Machine(f"m-{next(numbers):06}", group, chosen, state, NOW - age, seen, cost)


def planned(pending: list[PendingJob], *there: Machine, limits: Limits = LIMITS, **learned: Any) -> list[Action]:
    return plan(pending, replace(Machines(there), **learned), limits, NOW)


def only(kind: type[One], actions: list[Action]) -> list[One]:
    return [action for action in actions if isinstance(action, kind)]


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        (NEEDS, (SECURE, None, ("1x A40", "1x A100"))),
        (replace(NEEDS, requires_vram_gb=60), (SECURE, None, ("1x A100",))),
        (replace(NEEDS, requires_vram_gb=100), (SECURE, None, ())),
        (replace(NEEDS, allowed_hardware=("1x A100", "1x H100")), (SECURE, None, ("1x A100",))),
        (replace(NEEDS, image="trainer", cloud_type=ALL), (ALL, "trainer", ("1x A40", "1x A100"))),
    ],
)
def test_jobs_are_grouped_by_cloud_type_image_and_hardware(requirement: Requirement, expected: tuple[object]) -> None:
    assert group_of(requirement, LIMITS) == expected


def test_memory_that_differs_is_one_group_if_the_same_hardware_has_it() -> None:
    actions = planned(jobs(1) + jobs(1, replace(NEEDS, requires_vram_gb=40)))
    assert [action.group for action in only(Start, actions)] == [GROUP, GROUP]


def test_workers_that_ignore_memory_take_all() -> None:
    cpu = Hardware("cpu", {SECURE: 0.0}, ignore_vram=True)
    assert group_of(replace(NEEDS, requires_vram_gb=100), Limits((cpu,), 1)).hardware == ("cpu",)


# --- starts -----------------------------------------------------------------------------------------------------------


def test_a_machine_for_each_job_the_cheapest_first() -> None:
    waiting = jobs(2)
    assert planned(waiting) == [Start(GROUP, Tier("1x A40", SECURE), 0.4, job.id) for job in waiting]


def test_all_is_the_cheaper_of_both_and_community_never_secure() -> None:
    for cloud_type, chosen, price in ((ALL, COMMUNITY, 0.3), (COMMUNITY, COMMUNITY, 0.3), (SECURE, SECURE, 0.4)):
        (start,) = planned(jobs(1, replace(NEEDS, cloud_type=cloud_type)))
        assert isinstance(start, Start)
        assert (start.tier, start.cost_per_hour) == (Tier("1x A40", chosen), price)


def test_machines_that_start_or_have_nothing_to_do_are_for_the_oldest_jobs() -> None:
    waiting = jobs(4)
    actions = planned(waiting, machine(STARTING), machine(IDLE))
    assert [start.job_id for start in only(Start, actions)] == [job.id for job in waiting[2:]]


def test_busy_and_leaving_machines_are_for_nobody() -> None:
    assert len(only(Start, planned(jobs(1), machine(BUSY), machine(LEAVING)))) == 1


def test_machines_of_another_group_are_not_counted() -> None:
    assert len(only(Start, planned(jobs(1), machine(IDLE, OTHER_GROUP)))) == 1


def test_max_workers_counts_all_there_are() -> None:
    """Of four, one starts, one leaves and one is lost: a fourth may start, and the other job is told why it waits."""
    actions = planned(jobs(3), machine(STARTING), machine(LEAVING), replace(machine(LOST), reason="gone"))
    assert len(only(Start, actions)) == 1
    assert only(Hold, actions) == [Hold(GROUP, 1, "all machines that max_workers allows, 4, are taken")]


def test_the_group_with_the_fewest_machines_comes_first() -> None:
    """Four places: three for the group that has none though its jobs are younger, then it is even."""
    actions = planned(jobs(9, age=600) + jobs(9, OTHER), machine(BUSY))
    assert Counter(start.group for start in only(Start, actions)) == {GROUP: 1, OTHER_GROUP: 2}


def test_max_per_group() -> None:
    actions = planned(jobs(3), limits=replace(LIMITS, max_per_group=2))
    assert len(only(Start, actions)) == 2
    assert only(Hold, actions) == [Hold(GROUP, 1, "the group has the 2 machines that max_per_group allows")]


def test_most_of_a_hardware_over_all_groups() -> None:
    limits = replace(LIMITS, hardware=(replace(SMALL, most=1), LARGE))
    actions = planned(jobs(2), machine(BUSY, OTHER_GROUP), limits=limits)
    assert [start.tier for start in only(Start, actions)] == [Tier("1x A100", SECURE)] * 2


def test_one_machine_a_job_where_a_machine_takes_only_its_own() -> None:
    """The starting machine is for the second job, whatever is older; the other one's job has gone."""
    waiting = jobs(2)
    there = replace(machine(STARTING), job_id=waiting[1].id), replace(machine(STARTING), job_id="job-canceled")
    actions = planned(waiting, *there, limits=replace(LIMITS, one_job=True))
    assert [start.job_id for start in only(Start, actions)] == [waiting[0].id]
    assert only(Stop, actions) == [Stop(there[1].id, "job-canceled does not wait for it any more")]


# --- money ------------------------------------------------------------------------------------------------------------


def test_max_cost_per_hour() -> None:
    """0.4 are spent on the one there is; 1.0 allow one more for 0.4, and the third would be 0.2 too much."""
    actions = planned(jobs(3), machine(BUSY, cost=0.4), limits=replace(LIMITS, max_cost_per_hour=1.0))
    assert len(only(Start, actions)) == 1
    (hold,) = only(Hold, actions)
    assert isinstance(hold, Hold)
    assert hold.reason.startswith("1x A40 SECURE at $0.40 an hour would cost more than is left of max_cost_per_hour")


def test_when_the_money_is_spent_everything_comes_to_its_end() -> None:
    busy, idle, starting = machine(BUSY), machine(IDLE), machine(STARTING)
    reason = "$10.00 of max_cost $10.00 are spent"
    actions = planned(jobs(1), busy, idle, starting, limits=replace(LIMITS, max_cost=10.0), spent=10.0)
    assert actions == [Stop(idle.id, reason), Stop(starting.id, reason), Drain(busy.id, reason), Hold(GROUP, 1, reason)]


def test_limits_that_were_lowered_give_machines_back() -> None:
    busy, idle, starting = machine(BUSY), machine(IDLE), machine(STARTING)
    actions = planned(jobs(2), busy, idle, starting, limits=replace(LIMITS, max_workers=1))
    assert [(type(action), action.machine_id) for action in actions[:2]] == [
        (Stop, idle.id),
        (Stop, starting.id),
    ]
    assert not only(Start, actions)
    assert not only(Drain, actions)
    cheaper = planned([], machine(BUSY, cost=3.0), machine(BUSY, cost=1.0), limits=replace(LIMITS, max_cost_per_hour=2))
    assert len(only(Drain, cheaper)) == 1


# --- starts that failed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed", "ago", "chosen"),
    [(1, 29, "1x A100"), (1, 30, "1x A40"), (2, 59, "1x A100"), (2, 60, "1x A40"), (99, 1799, "1x A100")],
)
def test_a_tier_rests_longer_each_time_it_fails(failed: int, ago: float, chosen: str) -> None:
    """The ladder: 30, 60, 120, 300, 900, 1800 s; what is next in price is started meanwhile."""
    actions = planned(jobs(1), failures={Tier("1x A40", SECURE): Failures(failed, NOW - ago)})
    assert [start.tier.hardware for start in only(Start, actions)] == [chosen]


def test_after_the_rest_one_machine_shows_whether_it_goes_again() -> None:
    limits = replace(LIMITS, hardware=(SMALL,))
    failures = {Tier("1x A40", SECURE): Failures(1, NOW - 31)}
    actions = planned(jobs(3), limits=limits, failures=failures)
    assert len(only(Start, actions)) == 1
    assert only(Hold, actions) == [
        Hold(actions[0].group, 2, "1x A40 SECURE failed to start once, one machine is tried first")
    ]
    assert not only(Start, planned(jobs(3), machine(STARTING), limits=limits, failures=failures))


def test_what_rests_on_community_machines_is_still_had_on_secure_ones() -> None:
    failures = {Tier("1x A40", COMMUNITY): Failures(1, NOW)}
    (start,) = planned(jobs(1, replace(NEEDS, cloud_type=ALL)), failures=failures)
    assert isinstance(start, Start)
    assert start.tier == Tier("1x A40", SECURE)


def test_nothing_in_the_catalogue() -> None:
    (hold,) = planned(jobs(2, replace(NEEDS, requires_vram_gb=999)))
    assert isinstance(hold, Hold)
    assert (hold.jobs, hold.reason) == (
        2,
        "nothing in the catalogue is what they need, or has a price for their cloud type",
    )


# --- machines that are no good, or not needed -------------------------------------------------------------------------


def test_faults() -> None:
    slow = machine(STARTING, age=901)
    silent = replace(machine(BUSY), last_seen=NOW - 121)
    lost = replace(machine(LOST), reason="the pod has exited")
    never_seen = replace(machine(LOST), reason="no such node", last_seen=None)
    good = [machine(STARTING, age=899), replace(machine(BUSY), last_seen=NOW - 119)]
    assert planned([], slow, silent, lost, never_seen, *good, limits=replace(LIMITS, max_workers=9)) == [
        Stop(slow.id, "it has not started within 900 s", failed_start=True),
        Stop(silent.id, "it was not heard from for 121 s"),
        Stop(lost.id, "the pod has exited"),
        Stop(never_seen.id, "no such node", failed_start=True),
    ]


def test_one_that_is_replaced_has_no_place_until_it_is_gone() -> None:
    silent = replace(machine(BUSY), last_seen=NOW - 121)
    limits = replace(LIMITS, max_workers=1)
    assert not only(Start, planned(jobs(1), silent, limits=limits))
    assert len(only(Start, planned(jobs(1), limits=limits))) == 1


def test_a_clock_that_was_set_back_stops_nothing() -> None:
    assert planned([], replace(machine(BUSY), last_seen=NOW + 9999, since=NOW + 9999)) == []


def test_idle_machines_stop_unless_their_group_has_jobs() -> None:
    idle = machine(IDLE, age=300)
    assert planned([], idle) == [Stop(idle.id, "it was idle for 300 s")]
    assert planned(jobs(1), idle) == []
    assert planned([], machine(IDLE, age=299)) == []


# --- no group starves -------------------------------------------------------------------------------------------------


def test_a_group_without_machines_gets_one_of_the_group_that_has_most() -> None:
    third = group_of(Requirement(image="third"), LIMITS)
    there = machine(BUSY), machine(BUSY), machine(BUSY), machine(BUSY, third)
    actions = planned(jobs(5, age=600) + jobs(1, OTHER), *there)
    (drain,) = only(Drain, actions)
    assert isinstance(drain, Drain)
    assert drain.machine_id in {one.id for one in there[:3]}
    # Once it leaves, no further one is asked for.
    left = [replace(one, state=LEAVING) if one.id == drain.machine_id else one for one in there]
    assert not only(Drain, planned(jobs(5, age=600) + jobs(1, OTHER), *left))


def test_idle_machines_are_given_up_before_busy_ones() -> None:
    idle = machine(IDLE)
    there = machine(BUSY), machine(BUSY), idle, machine(BUSY)
    actions = planned(jobs(1, OTHER), *there)
    assert [action.machine_id for action in only(Stop, actions)] == [idle.id]


def test_with_one_machine_each_the_oldest_job_decides() -> None:
    """One place, two groups: it goes to the other group when that has the oldest job, and not before."""
    limits = replace(LIMITS, max_workers=1)
    there = machine(BUSY)
    assert not only(Drain, planned(jobs(1, age=600) + jobs(1, OTHER, age=60), there, limits=limits))
    assert len(only(Drain, planned(jobs(1, age=60) + jobs(1, OTHER, age=600), there, limits=limits))) == 1


def test_room_is_made_for_what_is_lacking() -> None:
    """One A100 is allowed and taken by the other group: giving back A40s would not help."""
    limits = Limits((replace(LARGE, most=1), SMALL), max_workers=9)
    needs = Requirement(requires_vram_gb=80)
    other = Requirement(image="other", requires_vram_gb=80)
    holder = machine(BUSY, group_of(other, limits), tier=Tier("1x A100", SECURE))
    others = [machine(BUSY, group_of(OTHER, limits)) for _ in range(3)]
    actions = planned(jobs(1, needs, age=600) + jobs(1, other), holder, *others, limits=limits)
    assert [action.machine_id for action in only(Drain, actions)] == [holder.id]


def test_several_cheap_machines_make_room_for_an_expensive_one() -> None:
    """2.0 of 2.0 are spent by five machines at 0.4; a SECURE A100 for 2.0 needs all five."""
    limits = replace(LIMITS, max_workers=9, max_cost_per_hour=2.0)
    there = [machine(BUSY, cost=0.4) for _ in range(5)]
    needs = Requirement(requires_vram_gb=80)
    actions = planned(jobs(1, needs, age=600) + jobs(1), *there, limits=limits)
    assert {action.machine_id for action in only(Drain, actions)} == {one.id for one in there}


# --- promises ---------------------------------------------------------------------------------------------------------

requirements = st.builds(
    Requirement,
    image=st.sampled_from([None, "a", "b"]),
    allowed_hardware=st.sampled_from([None, ("1x A100",), ("1x A40", "1x A100"), ("1x H100",)]),
    requires_vram_gb=st.sampled_from([0.0, 24.0, 60.0, 999.0]),
    cloud_type=st.sampled_from(CloudType),
)
limits = st.builds(
    Limits,
    hardware=st.sampled_from(
        [(SMALL, LARGE), (LARGE,), (replace(LARGE, most=2), replace(SMALL, prices={SECURE: 0.4}))]
    ),
    max_workers=st.integers(0, 6),
    max_per_group=st.sampled_from([None, 1, 3]),
    max_cost_per_hour=st.sampled_from([None, 0.0, 1.0, 4.0]),
    max_cost=st.sampled_from([None, None, 50.0]),
    one_job=st.booleans(),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[PendingJob], Machines, Limits]:
    """Whatever may be: jobs, machines of all ages and states, also of groups and tiers that the limits have no more."""
    bounds = draw(limits)
    waiting = [
        PendingJob(f"job-{index}", draw(requirements), NOW - draw(st.floats(-100, 1e5)))
        for index in range(draw(st.integers(0, 12)))
    ]
    there: list[Machine] = []
    for index in range(draw(st.integers(0, 8))):
        state = draw(st.sampled_from(MachineState))
        age = draw(st.sampled_from([0.0, 10.0, 500.0, 5000.0]))
        hardware = draw(st.sampled_from(["1x A40", "1x A100", "1x OLD"]))
        job = draw(st.sampled_from([None, "gone", *waiting]))
        needs = job.requirement if isinstance(job, PendingJob) else draw(requirements)
        there.append(
            Machine(
                f"m-{index}",
                group_of(needs, bounds),
                Tier(hardware, draw(st.sampled_from([SECURE, COMMUNITY]))),
                state,
                NOW - age,
                None if state is STARTING else NOW - draw(st.sampled_from([0.0, 100.0, 200.0])),
                draw(st.sampled_from([0.0, 0.4, 2.0])),
                job_id=job.id if isinstance(job, PendingJob) else job,
            )
        )
    tiers = [Tier(name, tier) for name in ("1x A40", "1x A100") for tier in (SECURE, COMMUNITY)]
    failures = draw(st.dictionaries(st.sampled_from(tiers), st.builds(Failures, st.integers(1, 9), st.just(NOW - 50))))
    return waiting, Machines(tuple(there), failures, draw(st.sampled_from([0.0, 49.0, 51.0]))), bounds


@given(situations())
def test_promises(situation: tuple[list[PendingJob], Machines, Limits]) -> None:
    waiting, machines, bounds = situation
    actions = plan(waiting, machines, bounds, NOW)
    starts = [action for action in actions if isinstance(action, Start)]
    gone = [action.machine_id for action in actions if isinstance(action, Stop | Drain)]
    known = {one.id: one for one in machines.known}
    by_id = {job.id: job for job in waiting}

    # Never over a limit; those on their way out count.
    if starts:
        assert len(known) + len(starts) <= bounds.max_workers
        if bounds.max_cost_per_hour is not None:
            per_hour = sum(one.cost_per_hour for one in machines.known) + sum(start.cost_per_hour for start in starts)
            assert per_hour <= bounds.max_cost_per_hour + 1e-9
        if bounds.max_cost is not None:
            assert machines.spent < bounds.max_cost
    used = Counter(one.tier.hardware for one in machines.known) + Counter(start.tier.hardware for start in starts)
    for one in bounds.hardware:
        if any(start.tier.hardware == one.name for start in starts):
            assert one.most is None or used[one.name] <= one.most

    # What is started can run the job it is started for, and nothing rests that is started.
    catalogue = {one.name: one for one in bounds.hardware}
    for start in starts:
        job, one = by_id[start.job_id], catalogue[start.tier.hardware]
        images = None if start.group.image is None else (start.group.image,)
        offer = Offer(one.name, 1, one.vram_gb, start.tier.cloud_type, images, ignore_vram=one.ignore_vram)
        assert not misfits(job.requirement, offer)
        assert start.cost_per_hour == one.prices[start.tier.cloud_type]
        failed = machines.failures.get(start.tier)
        if failed is not None:
            assert NOW - failed.last_at >= bounds.ladder[min(failed.times, len(bounds.ladder)) - 1]
    assert len({start.job_id for start in starts}) == len(starts)

    # No machine is told two things, none that nobody knows, and none with a job is stopped that answers.
    assert len(set(gone)) == len(gone)
    assert set(gone) <= set(known)
    for action in actions:
        if isinstance(action, Stop) and known[action.machine_id].state in (BUSY, LEAVING):
            seen = known[action.machine_id].last_seen
            assert seen is not None
            assert NOW - seen > bounds.silent_seconds
        if isinstance(action, Drain):
            assert known[action.machine_id].state is BUSY

    # Every job has a machine on its way or a reason; or had one, which a group without any gets.
    grouped = Counter(group_of(job.requirement, bounds) for job in waiting)
    coming = Counter(start.group for start in starts)
    held = {action.group: action.jobs for action in actions if isinstance(action, Hold)}
    passed_on = {
        action.machine_id
        for action in actions
        if isinstance(action, Stop | Drain) and "has no machine" in action.reason
    }
    for group, number in grouped.items():
        there = [
            one
            for one in machines.known
            if one.group == group and one.state is not LEAVING and (one.id not in gone or one.id in passed_on)
        ]
        assert number <= coming[group] + held.get(group, 0) + len(there)

    # It is the same whatever order things come in, and it changes nothing.
    chance = random.Random(0)
    shuffled = chance.sample(waiting, len(waiting))
    assert plan(shuffled, machines, bounds, NOW) == actions


@given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=8), st.integers(0, 2**32))
def test_no_group_starves(max_workers: int, sizes: list[int], seed: int) -> None:
    """Groups whose queues never end share a few machines, each of which ends a job a round: whatever the others have,
    a group's oldest job is claimed before every other group has had as many as there were jobs older than it."""
    chance = random.Random(seed)
    needs = [Requirement(image=str(index)) for index in range(len(sizes))]
    bounds = Limits((Hardware("cpu", {SECURE: 0.0}, ignore_vram=True),), max_workers)
    groups = [group_of(one, bounds) for one in needs]
    queue = [
        PendingJob(f"{group}-{index}", needs[group], 0.0) for group, size in enumerate(sizes) for index in range(size)
    ]
    there: dict[str, Machine] = {}
    claimed: Counter[Group] = Counter()
    longest = 0.0
    for now in range(1, 40 + 12 * len(sizes) * max(sizes)):
        # Each machine's job ends, or goes on, by chance; whoever leaves is gone with it.
        for one in list(there.values()):
            if one.state in (BUSY, LEAVING) and chance.random() < 0.5:
                continue
            if one.state is LEAVING:
                del there[one.id]
                continue
            own = [job for job in queue if group_of(job.requirement, bounds) == one.group]
            if not own:
                there[one.id] = replace(one, state=IDLE, last_seen=float(now))
                continue
            job = min(own, key=lambda job: (job.waiting_since, job.id))
            longest = max(longest, now - job.waiting_since)
            queue.remove(job)
            claimed[one.group] += 1
            queue.append(PendingJob(f"{job.id}+", job.requirement, float(now)))  # it never ends
            there[one.id] = replace(one, state=BUSY, last_seen=float(now))
        there = {key: replace(one, last_seen=float(now)) for key, one in there.items()}
        for action in plan(queue, Machines(tuple(there.values())), bounds, float(now)):
            if isinstance(action, Drain):
                there[action.machine_id] = replace(there[action.machine_id], state=LEAVING)
            elif isinstance(action, Stop):
                del there[action.machine_id]
            elif isinstance(action, Start):
                name = f"m-{now}-{action.job_id}"
                there[name] = Machine(name, action.group, action.tier, STARTING, float(now), float(now))
        assert len(there) <= max_workers
    assert set(claimed) == set(groups)
    oldest = min(job.waiting_since for job in queue)
    assert oldest > 0, "a job of the beginning still waits"


# --- speed ------------------------------------------------------------------------------------------------------------


def test_a_plan_for_ten_thousand_jobs_takes_less_than_a_tenth_of_a_second() -> None:
    """With a thousand machines there and a thousand to start; the fastest of five, in time of the
    processor, as the machine may be busy."""
    bounds = Limits(CATALOGUE, max_workers=2000)
    waiting = [PendingJob(job.id, job.requirement, job.arrives) for job in some_jobs(10_000)]
    groups = [group_of(job.requirement, bounds) for job in waiting[:1000]]
    there = Machines(tuple(machine(BUSY, group) for group in groups))
    took: list[float] = []
    for _ in range(5):
        began = time.process_time()
        actions = plan(waiting, there, bounds, NOW)
        took.append(time.process_time() - began)
        assert len(only(Start, actions)) > 900
    assert min(took) < 0.1
