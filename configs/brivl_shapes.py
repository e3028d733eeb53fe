"""BriVL on the world of shapes: two towers learn which caption belongs to which picture from two queues of others.

    python -m fmjax.train --config=configs/brivl_shapes.py --workdir=runs/brivl_shapes
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 1500, "batch_size": 64, "log_every": 50, "eval_every": 500, "checkpoint_every": 500},
        "mesh": {"data": -1},
        "model": {
            "name": "brivl", "projection_size": 64, "grids": (1, 4), "num_layers": 4, "num_heads": 4,
            "intermediate_size": 128, "dropout": 0.0,
            "vision": {
                "name": "conv_encoder", "hidden_size": 32, "num_blocks": 1, "num_halvings": 2, "projection_size": 0,
            },
            "text": {
                "name": "roberta", "num_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
                "max_length": 32, "masked_lm_head": False, "dropout": 0.0, "attention_dropout": 0.0,
            },
        },
        "objective": {"name": "brivl", "queue_size": 1024, "momentum": 0.99},
        "data": {"name": "shapes", "image_size": 32, "sequence_length": 32},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01,
            "schedule": {"name": "cosine", "warmup_steps": 100, "final_fraction": 0.0},
        },
    })  # fmt: skip
