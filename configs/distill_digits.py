"""A ViT of two layers learns from one of six: its classes, its hidden states and its maps of attention.

    python -m fmjax.train --config=configs/vit_digits.py --workdir=runs/vit6 --config.model.num_layers=6
    python -m fmjax.train --config=configs/distill_digits.py:runs/vit6 --workdir=runs/distill_digits

The teacher is named after the colon. The student begins with every third of its layers; each layer is to give what the
teacher's third, and sixth, gives. What each of the three is worth: experiments/distilled.
"""

from ml_collections import ConfigDict


def get_config(teacher="runs/vit6"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300, "batch_size": 64, "init_from": teacher, "init_layers": "every", "log_every": 10,
            "checkpoint_every": 100,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "vit", "num_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 2, "init_std": 0.1,
        },
        "objective": {
            "name": "classification_distillation", "teacher": teacher, "weight": 0.9, "temperature": 2.0,
            "matches": {
                "hidden": {"of": "residual", "layers": "every", "loss": "cosine", "weight": 1.0},
                "maps": {"of": "attention_probabilities", "layers": "every", "loss": "mse", "weight": 1.0},
            },
        },
        "data": {"name": "digits", "max_shift": 1},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05,
            "schedule": {"name": "cosine", "warmup_steps": 20, "final_fraction": 0.0},
        },
    })  # fmt: skip
