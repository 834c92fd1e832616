"""Draw mean reward, its deviation, and KL to base over the steps of a run: `python plot.py RUN picture.png`."""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from tutelage import Run
from tutelage.events import Tag
from tutelage.experiments.figure_style import OBJECTIVE_COLOURS


def draw(run: Run, picture: Path) -> None:
    trained, monitored = run.events(Tag.TRAIN), run.events(Tag.MONITORING)
    steps = [event.step for event in trained]
    rewards = [event.values["reward"] for event in trained]
    deviations = [event.values["reward_std"] for event in trained]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colour = OBJECTIVE_COLOURS["grpo"]
    left.plot(steps, rewards, color=colour, linewidth=1.8)
    low = [mean - spread for mean, spread in zip(rewards, deviations, strict=True)]
    high = [mean + spread for mean, spread in zip(rewards, deviations, strict=True)]
    left.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    left.set(title="Reward of the rollouts", xlabel="optimizer step", ylabel="traits, 0 to 2 (band: ± deviation)")
    right.plot(
        [event.step for event in monitored],
        [event.values["kl_vs_base"] for event in monitored],
        color=colour,
        marker="P",
        linewidth=1.8,
    )
    right.set(title="KL to base, everyday prompts", xlabel="optimizer step", ylabel="nats per token")
    for axes in (left, right):
        axes.grid(visible=True, color="#dfe3e8", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Run.open(sys.argv[1]), Path(sys.argv[2]))
