"""grpo, dpo and orpo: TRL's trainers with this project's rows, rollouts, rewards, events and checkpoints.

The one place that imports TRL. Where a method of TRL's is replaced, its docstring says by what and why.
"""
