"""ViT-B/16 (Dosovitskiy et al. 2021), 86.6M parameters, by the paper's recipe for ImageNet (its tables 1 and 3), with
crops and flips. Without an argument it reads the generated world of shapes; behind a colon, images with classes:

    python -m fmjax.train --config=configs/vit_b16.py:tfds:imagenet2012 --workdir=runs/vit_b16
    python -m fmjax.train --config=configs/vit_b16.py:/data/photos --workdir=runs/photos
    python -m fmjax.plan --config=configs/vit_b16.py --topology=v5e:4x4

4,096 images a step, 93,800 steps: 300 epochs of ImageNet. The parameters fit one chip whole, so the mesh only
replicates; the batch is computed in parts that fit 16 chips of TPU v5e. Fine-tune published weights with
`train.init_from` (fmjax/models/README.md).

Planned for v5e:4x4 (2026-11-29, JAX 0.10.2, libtpu 0.0.42.1): 14 of 16 GiB a chip, 96.4% of the compiled FLOPs
useful, a step of at least 0.25 s, limited by memory; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config(source: str = ""):
    shapes = {"name": "shapes", "image_size": 224, "rows": "combination", "kinds": ("one", "many")}
    images = {
        "name": "images", "source": source, "image_size": 224,
        "augmentation": {"name": "standard", "min_area": 0.08, "flip": 0.5},
    }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 93_800, "batch_size": 4096, "accumulate_steps": 2, "log_every": 20, "eval_every": 1000,
            "checkpoint_every": 1000, "keep_every": 20_000,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "vit", "num_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12,
            "patch_size": 16, "num_classes": None if source else 1000, "dropout": 0.1, "attention_dropout": 0.0,
            "dtype": "bfloat16",
        },
        "objective": {"name": "classification"},
        "data": images if source else shapes,
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "b2": 0.999, "weight_decay": 0.3, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 10_000, "final_fraction": 0.0},
        },
    })  # fmt: skip
