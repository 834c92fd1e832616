"""A worker of the bench that fails; `test_benchmarks` runs it."""

raise KeyError("nobody")
