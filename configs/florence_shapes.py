"""Florence on the generated world of shapes: pictures in windows, and every caption of the same meaning a positive.

    python -m fmjax.train --config=configs/florence_shapes.py --workdir=runs/florence_shapes
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 600, "batch_size": 64, "log_every": 50, "eval_every": 200, "checkpoint_every": 200},
        "mesh": {"data": -1},
        "model": {
            "name": "florence", "projection_size": 128,
            "vision": {
                "name": "coswin", "num_classes": 0, "embed_size": 64, "depths": (2, 2), "num_heads": (2, 4),
                "window": 6, "patch_size": 4, "init_std": 0.05,
            },
            "text": {
                "name": "text_tower", "num_layers": 4, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4,
                "max_length": 32,
            },
        },
        "objective": {"name": "contrastive", "loss": "softmax", "positives": "labels"},
        "data": {"name": "shapes", "image_size": 48},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "b2": 0.98, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 60, "final_fraction": 0.0},
        },
    })  # fmt: skip
