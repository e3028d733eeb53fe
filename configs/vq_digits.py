"""A VQ-VAE of the 8x8 digits that scikit-learn ships: 16 codes of 64 an image, a codebook of moving averages.

    python -m fmjax.train --config=configs/vq_digits.py --workdir=runs/vq_digits

Two CPU cores, busy with other work too: 99 seconds, 54 of processor time. Held-out images: squared error 0.0175 a pixel
of [-1, 1] (`eval/reconstruction`; 0.299 for the mean image), perplexity of the 64 codes 52.9 (2026-11-28).
`samples/STEP/all.png` has images, each followed by its reconstruction.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1500, "batch_size": 64, "log_every": 50, "eval_every": 500, "sample_every": 500,
            "checkpoint_every": 500,
        },
        "mesh": {"data": -1},
        "model": {"name": "conv_autoencoder", "hidden_size": 64, "inner_size": 32, "num_halvings": 1, "code_size": 16},
        "objective": {"name": "vq_autoencoder", "num_codes": 64, "decay": 0.99},
        "data": {"name": "digits", "max_shift": 1},
        "optimizer": {
            "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0,
            "schedule": {"name": "cosine", "warmup_steps": 50, "final_fraction": 0.0},
        },
    })  # fmt: skip
