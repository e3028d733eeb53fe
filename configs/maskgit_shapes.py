"""MaskGIT (Chang et al. 2022) draws pictures of the generated world of shapes from captions: 64 codes of 256 a picture.

    python -m fmjax.train --config=configs/vqgan_shapes.py --workdir=runs/vqgan_shapes
    python -m fmjax.train --config=configs/maskgit_shapes.py:runs/vqgan_shapes --workdir=runs/maskgit_shapes
    python -m fmjax.generate --model=runs/maskgit_shapes --output=grid.png --num_samples=8 --guidance=2 \\
        --prompt='two red circles' --prompt='a small blue square at the top left'

The first stage, named after the colon, encodes the pictures in the step and decodes those that are made, so it stays
where it is; of another number of codes, set model.num_codes and model.num_places. `samples/STEP/` has pictures of four
captions, the last of a colour and a shape that are never trained on together.

Measured is a shorter run of single things alone (experiments/captions_drawn, a core of an AMD EPYC with AVX-512,
2026-11-30, JAX 0.10.2),

    python -m fmjax.train --config=configs/maskgit_shapes.py:runs/vqgan_one --workdir=runs/maskgit_one \\
        --config.data.kinds="('one',)" --config.data.tokenizer=train:420 --config.data.sequence_length=24 \\
        --config.train.batch_size=32 --config.train.steps=1800 --config.train.ema_decay=0.995

9.5 minutes: with --guidance=2 and --temperature=0.3 36% of captions with colours and shapes never seen together are
then true of what is drawn, 40.5% of other ones; wrong captions never are.
"""

from ml_collections import ConfigDict


def get_config(first_stage="runs/vqgan_shapes"):
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 3000, "batch_size": 64, "log_every": 50, "eval_every": 1000, "sample_every": 1000,
            "checkpoint_every": 500, "ema_decay": 0.999,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "maskgit", "num_layers": 4, "hidden_size": 128, "num_heads": 4, "num_codes": 256, "num_places": 64,
            "dropout": 0.0,
        },
        "objective": {
            "name": "masked_codes", "first_stage": first_stage,
            "process": {"name": "masked", "schedule": "cosine"}, "label_dropout": 0.1,
            "sample_prompts": [
                "two red triangles", "a large blue square at the top left", "a green circle above a purple diamond",
                "a red circle in the centre",
            ],
        },
        "data": {"name": "shapes", "image_size": 32},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "b2": 0.96, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 100},
        },
    })  # fmt: skip
