"""DiT-XL/2 at 256x256 (Peebles & Xie 2023), 675M parameters, by the paper's recipe: DDPM with learned variances on
latents 32x32x4 of ImageNet, a batch of 256, AdamW at 1e-4, a moving average of 0.9999, labels dropped in one of ten.

    python -m fmjax.train --config=configs/dit_xl2_256.py:/data/latents --workdir=runs/dit_xl2
    python -m fmjax.plan --config=configs/dit_xl2_256.py --topology=v5e:4x4

The latents are kept: behind the colon is a folder as `fmjax.data.kept` reads it, whose train/latents.npy and
train/labels.npy `python -m fmjax.commands.keep --dtype=float16` writes, with a codecs.json; 0.18215 is the scale of
Stable Diffusion's autoencoder, which made the paper's. To draw images of a run, call its command again with
`--config.objective.first_stage=` that autoencoder and `--config.objective.latent_shape=32,32,4`, which are noted.

Planned for v5e:4x4 (2026-11-29, JAX 0.10.2, libtpu 0.0.42.1): 7 of 16 GiB a chip, 99.4% of the compiled FLOPs
useful, a step of at least 0.07 s, limited by the links of fsdp; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config(source: str = "latents"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 7_000_000, "batch_size": 256, "log_every": 100, "eval_every": 0, "checkpoint_every": 10_000,
            "keep_every": 100_000, "ema_decay": 0.9999,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "dit", "num_layers": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": 2,
            "num_classes": 1000, "image_size": 32, "num_channels": 4, "out_channels": 8, "dtype": "bfloat16",
        },
        "objective": {
            "name": "latent_diffusion", "input_name": "latents", "condition": "label", "latent_scale": 0.18215,
            "process": {"name": "ddpm", "num_steps": 1000}, "target": {"name": "eps"}, "learned_variance": True,
            "label_dropout": 0.1,
        },
        "data": {"name": "kept", "source": source, "arrays": ("latents:float16[32x32x4]", "labels:int32[]")},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0},
    })  # fmt: skip
