"""A Diffusion Transformer of the 8x8 digits, distilled into one that draws in one step or two (Song et al. 2023).

    python -m fmjax.train --config=configs/dit_digits.py --workdir=runs/dit_digits
    python -m fmjax.train --config=configs/consistency_digits.py:runs/dit_digits --workdir=runs/consistency_digits
    python -m fmjax.generate --model=runs/consistency_digits --output=grid.png --steps=2

The teacher is named after the colon; the run begins with its parameters, and learns what it says with a guidance of
1.5. Flow matching goes to data without noise, so that the velocity is a consistency model's output as it is. No run has
been measured to its end.
"""

from ml_collections import ConfigDict


def get_config(teacher="runs/dit_digits"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1200, "batch_size": 64, "log_every": 50, "eval_every": 600, "sample_every": 600,
            "checkpoint_every": 400, "ema_decay": 0.995, "init_from": teacher,
        },
        "mesh": {"data": -1},
        "model": {"name": "dit", "num_layers": 4, "hidden_size": 96, "num_heads": 4, "patch_size": 2},
        "objective": {
            "name": "consistency", "process": "flow", "target": "velocity", "teacher": teacher,
            "teacher_target": "velocity", "guidance": 1.5, "num_intervals": 18,
        },
        "data": {"name": "digits", "max_shift": 0},
        "optimizer": {
            "name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.0,
            "schedule": {"name": "cosine", "warmup_steps": 100},
        },
    })  # fmt: skip
