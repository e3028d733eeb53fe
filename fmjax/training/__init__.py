"""Training: state, step, loop, optimizer, checkpoints, metrics."""

from fmjax.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {name.lower(): f"fmjax.training.optimizer:{name}" for name in ("AdamW", "Lion", "Adafactor", "Muon", "SGD")},
    contract="fmjax.training.optimizer:OptimizerPlugin",
)
SCHEDULES = Registry(
    "schedule",
    {
        "constant": "fmjax.training.schedule:Constant",
        "linear": "fmjax.training.schedule:Linear",
        "cosine": "fmjax.training.schedule:Cosine",
        "noam": "fmjax.training.schedule:Noam",
        "wsd": "fmjax.training.schedule:WarmupStableDecay",
    },
    contract="fmjax.training.schedule:SchedulePlugin",
)
