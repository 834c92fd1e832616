"""grpo, dpo and orpo: TRL's trainers with this project's rows, events and checkpoints; grpo with its rollouts, rewards
and log-probabilities.

The one place that imports TRL. Where a method of TRL's is replaced, its docstring says by what and why.
"""
