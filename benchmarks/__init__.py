"""What this project is measured by: `python -m benchmarks`. docs/performance.md says how, and what came of it."""
