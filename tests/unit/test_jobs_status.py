"""The table of a job's life, and the names OpenAI's endpoints have for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tutelage.errors import JobError
from tutelage.jobs.status import OPENAI_STATUS, TRANSITIONS, JobStatus, require_transition

STATUSES = st.sampled_from(JobStatus)


def test_the_table_is_the_specification() -> None:
    """Forward, and back to pending when it is submitted again or its worker is lost."""
    steps = {(before.value, after.value) for before, afters in TRANSITIONS.items() for after in afters}
    assert steps == {
        ("pending", "in_progress"),
        ("pending", "canceled"),
        ("in_progress", "pending"),
        ("in_progress", "completed"),
        ("in_progress", "failed"),
        ("in_progress", "canceled"),
        ("completed", "pending"),
        ("failed", "pending"),
        ("canceled", "pending"),
    }
    assert set(TRANSITIONS) == set(OPENAI_STATUS) == set(JobStatus)


@given(before=STATUSES, after=STATUSES)
def test_every_other_step_is_an_error_that_names_what_is_allowed(before: JobStatus, after: JobStatus) -> None:
    if after in TRANSITIONS[before]:
        require_transition("job-1", before, after)
        return
    with pytest.raises(JobError) as caught:
        require_transition("job-1", before, after)
    text = str(caught.value)
    assert text.startswith(f"job-1: a job that is {before.value} cannot become {after.value}; it may become ")
    assert all(allowed.value in text.rpartition("may become")[2] for allowed in TRANSITIONS[before])


class Life(RuleBasedStateMachine):
    """Whatever is tried in whatever order, a job that ended was in progress or canceled before it began."""

    def __init__(self) -> None:
        super().__init__()
        self.history = [JobStatus.PENDING]

    @rule(after=STATUSES)
    def step(self, after: JobStatus) -> None:
        try:
            require_transition("j", self.history[-1], after)
        except JobError:
            return
        self.history.append(after)

    @invariant()
    def nothing_is_skipped(self) -> None:
        for before, after in zip(self.history, self.history[1:], strict=False):
            if after in (JobStatus.COMPLETED, JobStatus.FAILED):
                assert before is JobStatus.IN_PROGRESS
            if before.is_final:
                assert after is JobStatus.PENDING


test_a_life = Life.TestCase
