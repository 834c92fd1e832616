"""What a job asks and what a worker has; in which order a worker takes what fits it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import ConfigError
from tutelage.jobs.choosing import Candidate, in_order_of_preference
from tutelage.jobs.requirements import CloudType, Offer, Requirement, cloud_type_of, hardware_of, misfits

GPU = Offer("2x A100", 2, 160.0, CloudType.SECURE, ("img",))


@pytest.mark.parametrize(
    ("requirement", "offer", "reasons"),
    [
        (Requirement("img", ("1x H100", "2x A100"), 160), GPU, []),
        (Requirement("other"), GPU, ["it needs the image other, the worker has img"]),
        (Requirement("other"), Offer(images=()), ["it needs the image other, the worker has none"]),
        (Requirement("other"), Offer(images=None), []),
        (Requirement(None), Offer(images=()), []),
        (Requirement(allowed_hardware=("1x H100",)), GPU, ["it needs 1x H100, the worker has 2x A100"]),
        (Requirement(allowed_hardware=()), GPU, ["it needs no hardware at all, the worker has 2x A100"]),
        (Requirement(requires_vram_gb=160.5), GPU, ["it needs 160.5 GB of GPU memory, the worker has 160 GB"]),
        (Requirement(requires_vram_gb=24), Offer(), ["it needs 24 GB of GPU memory, the worker has 0 GB"]),
        (Requirement(requires_vram_gb=24), Offer(ignore_vram=True), []),
    ],
)
def test_each_condition_that_fails_is_a_sentence(requirement: Requirement, offer: Offer, reasons: list[str]) -> None:
    assert misfits(requirement, offer) == reasons


@pytest.mark.parametrize("wanted", CloudType)
@pytest.mark.parametrize("machine", [CloudType.SECURE, CloudType.COMMUNITY])
def test_clouds(wanted: CloudType, machine: CloudType) -> None:
    """Section 8: ALL may run on either; otherwise the same one, so a SECURE job never on a COMMUNITY machine."""
    reasons = misfits(Requirement(cloud_type=wanted), Offer(cloud_type=machine))
    if wanted in (CloudType.ALL, machine):
        assert reasons == []
    else:
        assert reasons == [f"it needs a {wanted.value} machine, the worker is {machine.value}"]


def test_clouds_by_name() -> None:
    assert cloud_type_of("secure") is CloudType.SECURE
    assert cloud_type_of("All") is CloudType.ALL
    with pytest.raises(ConfigError, match=r"cloud_type: 'ALL' is none.*; one of SECURE, COMMUNITY"):
        cloud_type_of("ALL", of_worker=True)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2x A100", "2x A100"),
        ("2 A100", "2x A100"),
        ("2X  a100", "2x A100"),
        ("2 x A100", "2x A100"),
        ("2xA100", "2x A100"),
        ("A100", "1x A100"),
        (" 8x RTX 4090 ", "8x RTX 4090"),
        ("RTX 4090", "1x RTX 4090"),
        ("CPU", "cpu"),
    ],
)
def test_hardware_however_it_is_written(written: str, meant: str) -> None:
    assert hardware_of(written) == meant
    assert hardware_of(meant) == meant


def test_equal_conditions_have_one_id() -> None:
    """Whole numbers or floats, hardware in whatever order; and they come back as they were."""
    one = Requirement("img", ("2x A100", "1x H100"), 24, CloudType.ALL)
    other = Requirement("img", ("1x H100", "2x A100"), 24.0, CloudType.ALL)
    assert one.id == other.id
    assert Requirement.from_json(one.as_json()).id == one.id
    others = [Requirement(), Requirement(""), Requirement(allowed_hardware=()), Requirement(requires_vram_gb=24.5)]
    assert len({one.id, *(requirement.id for requirement in others)}) == 5
    offer = Offer("1x A100", 1, 80.0, CloudType.COMMUNITY, ("a", "b"), ("m",), ignore_vram=True)
    assert Offer.from_json(offer.as_json()) == offer


CANDIDATES = st.lists(st.tuples(st.sampled_from([None, "x", "y"]), st.integers(0, 5)), max_size=12)


@given(CANDIDATES, st.integers(0, 4), st.sets(st.sampled_from(["x", "y"])))
def test_the_order_of_preference(rows: list[tuple[str | None, int]], max_skip: int, cached: set[str]) -> None:
    """The same jobs; first those passed over often enough, then those it has, then the rest, oldest first in each."""
    jobs = [Candidate(str(number), model, skipped) for number, (model, skipped) in enumerate(rows)]
    ordered = in_order_of_preference(jobs, Offer(cached_models=tuple(cached)), max_skip)

    def group(job: Candidate) -> int:
        return 0 if job.skipped >= max_skip else 1 if job.model in cached else 2

    assert ordered == sorted(jobs, key=lambda job: (group(job), int(job.id)))


@given(
    st.lists(st.sampled_from([None, "x", "y"]), min_size=1, max_size=30),
    st.lists(st.sampled_from([(), ("x",), ("y",)]), min_size=30, max_size=30),
    st.integers(0, 4),
)
def test_nobody_is_passed_over_more_often_than_that(
    models: list[str | None], workers: list[tuple[str, ...]], max_skip: int
) -> None:
    """Claims one after the other; whoever is older than the chosen one was passed over."""
    waiting = [Candidate(str(number), model, 0) for number, model in enumerate(models)]
    for cached in workers[: len(models)]:
        chosen = in_order_of_preference(waiting, Offer(cached_models=cached), max_skip)[0]
        at = waiting.index(chosen)
        waiting = [Candidate(job.id, job.model, job.skipped + 1) for job in waiting[:at]] + waiting[at + 1 :]
        assert all(job.skipped <= max_skip for job in waiting)
