"""InternImage, a ViT or a ResNet-8 of about 11 million multiplications an image, on files of CIFAR-10: see README.md.

`--config=experiments/internimage/cifar.py:vit --config.data.source=FOLDER`
"""

from ml_collections import ConfigDict

MODELS = {
    "internimage": {
        "name": "internimage", "hidden_size": 32, "depths": (1, 2), "groups": (2, 4), "stem_strides": (2, 1),
        "mlp_ratio": 3, "path_dropout": 0.1,
    },
    "vit": {
        "name": "vit", "num_layers": 3, "hidden_size": 64, "intermediate_size": 240, "num_heads": 4, "patch_size": 4,
        "init_std": 0.05,
    },
    "resnet": {
        "name": "resnet", "depths": (1, 1, 1), "widths": (16, 32, 64), "stem_size": 16, "stem": "cifar",
        "block": "basic", "shortcut": "padded",
    },
}  # fmt: skip


def get_config(model="internimage"):
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 250, "batch_size": 64, "log_every": 50, "eval_every": 50, "checkpoint_every": 50},
        "mesh": {"data": -1},
        "model": MODELS[model],
        "objective": {"name": "classification", "label_smoothing": 0.1},
        "data": {"name": "images", "source": "", "image_size": 32, "channels": 3, "max_shift": 4},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
