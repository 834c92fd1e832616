"""Machines for the jobs that wait: the plan, which is pure, and the launchers that carry it out."""
