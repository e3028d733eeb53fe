"""Stable Diffusion 3 medium's Transformer (Esser et al. 2024), 2.03B parameters: rectified flow on latents of images of
1024x1024, told by 154 tokens of a text in joint attention.

    python -m fmjax.train --config=configs/mmdit_2b.py:/data/encoded --workdir=runs/mmdit_2b
    python -m fmjax.plan --config=configs/mmdit_2b.py --topology=v5p:4x4x4

Latents and the states of texts are kept, as the paper did (its appendix E): behind the colon is a folder as
`fmjax.data.kept` reads it, with latents.npy of an autoencoder of 16 channels, and memory.npy and vector.npy of CLIP's
and T5's encoders. `python -m fmjax.commands.keep --dtype=float16` writes latents, and the states of one frozen encoder;
of several, as here, they have to be joined by hand. Times are those of the paper's best, logit-normal, and dropped
texts are zeros.

Planned for v5p:4x4x4 (2026-11-29, JAX 0.10.2, libtpu 0.0.42.1): 36 of 96 GiB a chip, 87.4% of the compiled FLOPs
useful, a step of at least 1.01 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict

ARRAYS = ("latents:float16[128x128x16]", "memory:float16[154x4096]", "vector:float16[2048]")


def get_config(source: str = "encoded"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 500_000, "batch_size": 1024, "accumulate_steps": 2, "log_every": 20, "eval_every": 0,
            "checkpoint_every": 5000, "keep_every": 50_000, "ema_decay": 0.9999,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "mmdit", "num_layers": 24, "hidden_size": 1536, "num_heads": 24, "patch_size": 2,
            "memory_size": 4096, "vector_size": 2048, "image_size": 128, "num_channels": 16, "position_grid": 192,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_up",
        },
        "objective": {
            "name": "latent_diffusion", "input_name": "latents", "condition": "states", "latent_scale": 1.5305,
            "latent_shift": 0.0609, "process": {"name": "flow"}, "target": {"name": "velocity"},
            "times": {"name": "logit_normal"}, "label_dropout": 0.1,
        },
        "data": {"name": "kept", "source": source, "arrays": ARRAYS},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "clip_norm": 1.0},
    })  # fmt: skip
