"""A small masked autoencoder on Fashion-MNIST, and the classifier that its encoder begins: see README.md.

`--config=experiments/mae_labels/fashion.py:mae --config.data.source=FOLDER`, and `:vit` for the classifier.
"""

from ml_collections import ConfigDict

ENCODER = {
    "name": "vit", "num_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 4,
    "positions": "sincos", "init_std": 0.1,
}  # fmt: skip
MODELS = {
    "mae": {
        "name": "mae", "num_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
        "encoder": {**ENCODER, "num_classes": 0},
    },
    "vit": ENCODER,
}  # fmt: skip
OBJECTIVES = {"mae": {"name": "mae"}, "vit": {"name": "classification", "label_smoothing": 0.1}}


def get_config(model="mae"):
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 1000, "batch_size": 64, "log_every": 50, "eval_every": 1000, "checkpoint_every": 200},
        "mesh": {"data": -1},
        "model": MODELS[model],
        "objective": OBJECTIVES[model],
        "data": {"name": "images", "source": "", "image_size": 28, "channels": 1, "max_shift": 2},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.05,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
