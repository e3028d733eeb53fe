"""MoCo on the 8x8 digits that scikit-learn ships: no label trains the encoder.

    python -m fmjax.train --config=configs/moco_digits.py --workdir=runs/moco_digits

Two CPU cores, busy with other work too: 196 seconds, 75 of processor time. 92.3% of the held-out images have the label
that most of their five nearest among the queue's 1,024 training images have (`eval/neighbours`); their own key is the
nearest of 1,025 for 13.2% (`eval/accuracy`) (2026-11-28).
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 1000, "batch_size": 64, "log_every": 50, "eval_every": 250, "checkpoint_every": 250},
        "mesh": {"data": -1},
        "model": {"name": "conv_encoder", "hidden_size": 64, "num_blocks": 1, "num_halvings": 1, "projection_size": 64},
        "objective": {"name": "moco", "queue_size": 1024, "momentum": 0.99, "temperature": 0.1},
        "data": {"name": "digits", "max_shift": 0},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
