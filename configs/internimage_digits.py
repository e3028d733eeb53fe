"""A small InternImage, of deformable convolutions, classifies the 8x8 digits that scikit-learn ships.

    python -m fmjax.train --config=configs/internimage_digits.py --workdir=runs/internimage_digits

Two CPU cores, busy with other work too: 109 seconds of processor time, half of it compilation; test accuracy
(`eval/accuracy`) 98.1% (2026-11-29).
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 400, "batch_size": 64, "log_every": 50, "eval_every": 200, "checkpoint_every": 200},
        "mesh": {"data": -1},
        "model": {
            "name": "internimage", "hidden_size": 32, "depths": (1, 1), "groups": (2, 4), "stem_strides": (1, 1),
            "mlp_ratio": 2, "path_dropout": 0.0,
        },
        "objective": {"name": "classification", "label_smoothing": 0.1},
        "data": {"name": "digits", "max_shift": 1},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.05,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
