"""SigLIP 2 on the generated world of shapes: a picture and a caption in one space; the caption, or where things are,
written; and, from 80% of the run on, a slow teacher's view of the whole picture told from parts of it.

    python -m fmjax.train --config=configs/siglip2_shapes.py --workdir=runs/siglip2_shapes

One core of an AMD EPYC without AVX-512, beside other work (JAX 0.10.2, 2026-11-29): 1.2 to 1.6 seconds a step before
self-distillation comes in. Of a run with --config.train.steps=300 the first 200 steps brought a token of what is
written from 2.8 (step 50) to 1.7 nats, and the caption that fits best was right for 28% of a training batch's 64
pictures (by chance 1.6%). No run has been measured to its end, nor beside `configs/siglip_shapes.py`.
"""

from ml_collections import ConfigDict


def get_config():
    tower = {
        "num_layers": 4, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "activation": "gelu_tanh",
        "norm_eps": 1e-6,
    }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 600, "batch_size": 64, "log_every": 50, "eval_every": 300, "checkpoint_every": 200},
        "mesh": {"data": -1},
        "model": {
            "name": "siglip2",
            "vision": {
                "name": "vit", **tower, "patch_size": 8, "num_classes": 0, "use_class_token": False,
                "pooling": "attention", "use_mask_token": True, "init_std": 0.05,
            },
            "text": {"name": "text_tower", **tower, "max_length": 24, "causal": False, "projection_size": 128},
            "decoder": {"name": "captioner", **tower, "num_layers": 2, "max_length": 28, "init_std": 0.05},
            "num_prototypes": 512, "head_size": 256, "bottleneck_size": 64,
        },
        "objective": {"name": "siglip2", "positives": "labels", "num_local": 4, "local_size": 24, "momentum": 0.99},
        "data": {
            "name": "shapes", "image_size": 48, "sequence_length": 24, "written_length": 28, "tokenizer": "train:480",
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 60, "final_fraction": 0.0},
        },
    })  # fmt: skip
