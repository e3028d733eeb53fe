"""BriVL on the world of shapes: two towers learn which caption belongs to which picture from two queues of others.

    python -m fmjax.train --config=configs/brivl_shapes.py --workdir=runs/brivl_shapes

A core of an AMD EPYC, shared with much other work: 8 minutes, 0.34 to 1.3 seconds a step (2026-11-29, JAX 0.10.2).
Beside 256 captions of the queue its own is the nearest for 40% of held-out pictures, and its own picture for 37% of
captions (`eval/heldout/image_to_text`, `text_to_image`; by chance 0.4%), 43% and 48% with combinations of colour and
shape that were held out, 0.5% and 17% in words that were: pictures stay nearer to captions in words they know
(`--config.data.eval_examples=192`). The queue is of four batches, since in a longer one keys are told by their age
(experiments/shape_pairs). Each head has 2 of the paper's 4 layers.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 600, "batch_size": 64, "log_every": 50, "eval_every": 200, "checkpoint_every": 200},
        "mesh": {"data": -1},
        "model": {
            "name": "brivl", "projection_size": 64, "grids": (1, 4), "num_layers": 2, "num_heads": 4,
            "intermediate_size": 128, "dropout": 0.0,
            "vision": {
                "name": "coswin", "num_classes": 0, "embed_size": 32, "depths": (1, 1), "num_heads": (2, 4),
                "window": 4, "patch_size": 4, "init_std": 0.05,
            },
            "text": {
                "name": "roberta", "num_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
                "max_length": 28, "masked_lm_head": False, "dropout": 0.0, "attention_dropout": 0.0,
            },
        },
        "objective": {"name": "brivl", "queue_size": 256, "momentum": 0.99},
        "data": {
            "name": "shapes", "image_size": 32, "kinds": ("one", "many"), "says_place": False, "sequence_length": 28,
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 5e-4, "b2": 0.98, "weight_decay": 0.01, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
