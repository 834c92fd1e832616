"""Machines for the jobs that wait: the plan, which is pure. Not here yet: what carries it out."""
