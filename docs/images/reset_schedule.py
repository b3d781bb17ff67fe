"""Plot the learning rate of an extended run, with and without --reset-schedule.

python docs/images/reset_schedule.py
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rebar.optim.schedules import LearningRateConfig, ScheduleSpan, build_schedule

STEPS = 100  # per epoch
CONFIGS = {
    "cyclic": LearningRateConfig(lr=1.7, lr_schedule_type="cyclic"),
    "cosine": LearningRateConfig(lr=1.7, lr_schedule_type="cosine", warmup_epochs=2),
    "onecycle": LearningRateConfig(lr=1.7, lr_schedule_type="onecycle"),
}


def curve(config: LearningRateConfig, span: ScheduleSpan, first_step: int) -> tuple[list[float], list[float]]:
    """Return the epochs and the learning rates from a step to the end of a span."""
    learning_rate = build_schedule(config, span, steps_per_epoch=STEPS, global_batch=4096)
    steps = range(first_step, span.epochs * STEPS)
    return [step / STEPS for step in steps], [learning_rate(step) for step in steps]


figure = Figure(figsize=(9, 3.4), layout="constrained")
FigureCanvasAgg(figure)
for axes, (title, config) in zip(figure.subplots(1, 3, sharey=True), CONFIGS.items(), strict=True):
    end = 16 * STEPS
    first = curve(config, ScheduleSpan(16), 0)
    reset = ScheduleSpan(16).resumed(32, reset=True, step=end, lr=first[1][-1])
    axes.plot(*first, linewidth=2, label="16 epochs")
    axes.plot(*curve(config, ScheduleSpan(32), end), linewidth=2, linestyle=":", label="32 epochs")
    axes.plot(*curve(config, reset, end), linewidth=1.5, label="32 epochs, --reset-schedule")
    axes.set(title=title, xlabel="epoch", ylim=(-0.05, 2.3))
    axes.grid(alpha=0.3)
figure.axes[0].set_ylabel("learning rate")
figure.axes[2].legend(fontsize=8, loc="upper right")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)
