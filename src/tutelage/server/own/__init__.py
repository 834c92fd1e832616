"""Our own endpoints, under /api: jobs, runs, events, logs, workers, claims, tokens, secrets, costs."""
