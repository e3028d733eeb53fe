"""A VQGAN on the generated world of shapes: 8x8 codes of 256 a picture of 32x32, and a critic of patches.

    python -m fmjax.train --config=configs/vqgan_shapes.py --workdir=runs/vqgan_shapes

`samples/STEP/` has held-out pictures, each followed by its reconstruction. The critic begins at step 300. With the run
of a model of images normalised as these, --config.objective.perceptual=RUN
--config.objective.perceptual_method=feature_map adds the distance of its features (a `conv_encoder` has that method).
No run has been measured to its end.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 900, "batch_size": 32, "log_every": 50, "eval_every": 300, "sample_every": 300,
            "checkpoint_every": 300,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "criticised", "critic_width": 16, "critic_halvings": 2,
            "autoencoder": {
                "name": "vqgan", "widths": [8, 16, 32], "num_blocks": 1, "code_size": 16, "norm_groups": 4,
            },
        },
        "objective": {
            "name": "vq_autoencoder", "num_codes": 256, "error": "absolute", "adversarial_weight": 0.1,
            "adversarial_start": 300,
        },
        "data": {"name": "shapes", "image_size": 32, "rows": "count"},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "b1": 0.5, "b2": 0.9, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
