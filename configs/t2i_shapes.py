"""Pictures of the generated world of shapes, drawn from captions: latent diffusion, told in words.

    python -m fmjax.train --config=configs/vae_shapes.py --workdir=runs/vae_shapes
    python -m fmjax.train --config=configs/t2i_shapes.py:runs/vae_shapes --workdir=runs/t2i_shapes
    python -m fmjax.generate --model=runs/t2i_shapes --prompt='two red circles' --num_samples=8 --guidance=3 \\
        --output=grid.png

The first stage, a run of vae_shapes, is named after the colon; without one the pixels themselves are denoised. The
denoiser is a U-Net that attends to the text, or behind `joint+` a Transformer in which both attend to each other:

    python -m fmjax.train --config=configs/t2i_shapes.py:joint+runs/vae_shapes --workdir=runs/t2i_joint

Behind `@` are rows whose latents are encoded once and kept:

    python -m fmjax.commands.keep --config=configs/t2i_shapes.py:runs/vae_shapes --output=runs/latents
    python -m fmjax.train --config=configs/t2i_shapes.py:runs/vae_shapes@runs/latents --workdir=runs/t2i_kept

The text's encoder trains with the denoiser. In its place the frozen text tower of a run of configs/clip_shapes.py can
tell it, with that run's tokenizer:

    python -m fmjax.train --config=configs/t2i_shapes.py:runs/vae_shapes --workdir=runs/t2i_clip \\
        --config.model.text=none --config.objective.text=runs/clip_shapes --config.data.tokenizer=runs/clip_shapes

What it says may be kept too:

    python -m fmjax.commands.keep --config=configs/t2i_shapes.py:runs/vae_shapes --output=runs/kept \\
        --config.model.text=none --config.objective.text=runs/clip_shapes --config.data.tokenizer=runs/clip_shapes
    python -m fmjax.train --config=configs/t2i_shapes.py:runs/vae_shapes@runs/kept --workdir=runs/t2i_states \\
        --config.model.text=none --config.objective.text=runs/clip_shapes --config.objective.condition=states

Measured is `joint` on kept latents (experiments/captions_drawn; half a core of an Intel Xeon, 2026-11-29, JAX 0.10.2):
these 2,200 steps, 17 minutes, are far too few for the whole world, of whose captions with colours and shapes never seen
together 5% are true of what is drawn. 2,600 steps more of single things alone,

    python -m fmjax.train --config=configs/t2i_shapes.py:joint+runs/vae_shapes --workdir=runs/t2i_one \\
        --config.train.init_from=runs/t2i_joint --config.data.kinds="('one',)" --config.train.steps=2600

18 minutes, make it 41% of such captions of theirs, 59% of those with pairs that were seen; other captions are never
true. The U-Net was not trained to an end: its step of 32 rows took 0.85 s.
"""

from ml_collections import ConfigDict

UNET = {"name": "unet", "num_classes": 0, "num_blocks": 1, "norm_groups": 8, "mid": "cross", "memory_size": 128}
JOINT = {"name": "mmdit", "num_layers": 3, "hidden_size": 128, "num_heads": 4, "memory_size": 128, "vector_size": 128}


def get_config(first_stage: str = ""):
    is_joint = first_stage.split("+")[0] == "joint"
    first_stage = first_stage.removeprefix("joint").removeprefix("+") if is_joint else first_stage
    first_stage, _, kept = first_stage.partition("@")
    if is_joint:
        denoiser = JOINT | {"patch_size": 1 if first_stage else 4}
    elif first_stage:  # latents of 8x8
        levels = {"widths": (64, 128), "attention": ("cross", "cross"), "num_heads": (4, 4), "num_layers": (1, 1)}
        denoiser = UNET | levels
    else:  # pixels, 32x32, of which the small levels attend
        levels = {"widths": (24, 48, 96, 128), "num_heads": (4, 4, 4, 4), "num_layers": (1, 1, 1, 1)}
        denoiser = UNET | levels | {"attention": ("none", "none", "cross", "cross")}
    latents = {"first_stage": None, "latent_shape": None}
    if first_stage:
        denoiser |= {"image_size": 8, "num_channels": 4}
        latents = {"first_stage": first_stage, "latent_shape": (8, 8, 4)}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 2200, "batch_size": 16, "log_every": 50, "eval_every": 1100, "sample_every": 0 if kept else 1100,
            "checkpoint_every": 550, "ema_decay": 0.995,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "text_to_image", "denoiser": denoiser,
            "text": {
                "name": "text_tower", "num_layers": 2, "hidden_size": 128, "num_heads": 4, "max_length": 32,
                "causal": False,
            },
        },
        "objective": {
            "name": "latent_diffusion", "input_name": "latents" if kept else "images", **latents,
            "process": {"name": "flow"}, "target": {"name": "velocity"},
            "times": {"name": "logit_normal"}, "stratified": True, "label_dropout": 0.1,
            "sample_prompts": (
                "a large red square in the centre", "three green triangles", "a small blue circle above a yellow cross",
                "two purple rings",
            ),
            "sample_copies": 4,
        },
        "data": {"name": "kept", "source": kept} if kept else {"name": "shapes", "image_size": 32},
        "optimizer": {
            "name": "adamw", "learning_rate": 1.5e-3, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 100, "final_fraction": 0.0},
        },
    })  # fmt: skip
