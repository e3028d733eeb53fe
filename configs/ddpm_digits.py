"""A small U-Net learns to draw the 8x8 digits that scikit-learn ships, by DDPM: noise in 1,000 steps, and what it was.

    python -m fmjax.train --config=configs/ddpm_digits.py --workdir=runs/ddpm_digits
    python -m fmjax.generate --model=runs/ddpm_digits --output=grid.png --sampler=dpmpp_2m --steps=20 --num_samples=8

`--config.objective.process.betas=cosine`, `--config.objective.target=v` and the like are other members of the same
algebra (fmjax/diffusion).
No run has been measured to its end.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1200, "batch_size": 64, "log_every": 50, "eval_every": 600, "sample_every": 600,
            "checkpoint_every": 400, "ema_decay": 0.995,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "unet", "widths": (32, 64), "num_blocks": 1, "attention": ("none", "self"), "norm_groups": 8,
        },
        "objective": {
            "name": "diffusion", "process": {"name": "ddpm", "num_steps": 1000}, "target": {"name": "eps"},
            "weighting": {"name": "min_snr"}, "stratified": True, "label_dropout": 0.1,
        },
        "data": {"name": "digits", "max_shift": 0},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0,
            "schedule": {"name": "cosine", "warmup_steps": 100},
        },
    })  # fmt: skip
