"""The families of `run.py`: what each consists of, how its parts are made, and how it draws."""

import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping

import runs

DONE = "made.txt"
LATENTS = "latents"  # no run: kept by fmjax.commands.keep


@dataclasses.dataclass(frozen=True)
class Family:
    """Attributes:
    stages: what it consists of, by folder, in the order of making.
    model: the one of them that draws.
    options: of drawing, from the folder of the runs.
    first_stage: the one that encodes pictures, of which reconstructions are looked at.
    kinds: of scenes that it is asked for; None is all.
    """

    stages: tuple[str, ...]
    model: str
    options: Callable[[pathlib.Path], Mapping]
    first_stage: str | None = None
    kinds: tuple[str, ...] | None = None


FAMILIES = {
    "latent diffusion": Family(
        ("vae_shapes", LATENTS, "t2i_joint"), "t2i_joint",
        lambda _: {"sampler": "dpmpp_2m", "steps": 20, "guidance": 3.0}, "vae_shapes",
    ),
    "latent diffusion of single things": Family(
        ("vae_shapes", LATENTS, "t2i_joint", "t2i_one"), "t2i_one",
        lambda _: {"sampler": "dpmpp_2m", "steps": 20, "guidance": 3.0}, "vae_shapes", ("one",),
    ),
    "MaskGIT of single things": Family(
        ("vqgan_one", "maskgit_one"), "maskgit_one", lambda _: {"guidance": 2.0, "temperature": 0.3}, "vqgan_one",
        ("one",),
    ),
    "DALL-E 1 of single things": Family(
        ("vqgan_one", "dalle1_one"), "dalle1_one", lambda _: {"temperature": 0}, "vqgan_one", ("one",)
    ),
    "DALL-E 2 of single things": Family(
        ("clip_one", "dalle2_prior_one", "dalle2_decoder_one"), "dalle2_decoder_one",
        lambda runs: {"prior": str(runs / "dalle2_prior_one"), "steps": 20, "prior_steps": 20, "guidance": 2.0},
        kinds=("one",),
    ),
}  # fmt: skip

CONFIGS = {
    "vae_shapes": "vae_shapes.py",
    "t2i_joint": "t2i_shapes.py:joint+{runs}/vae_shapes@{runs}/latents",
    "t2i_one": "t2i_shapes.py:joint+{runs}/vae_shapes",
    "vqgan_one": "vqgan_shapes.py",
    "dalle1_one": "dalle1_shapes.py:prior+{runs}/vqgan_one",
    "maskgit_one": "maskgit_shapes.py:{runs}/vqgan_one",
    "clip_one": "clip_shapes.py",
    "dalle2_prior_one": "dalle2_shapes.py:prior+{runs}/clip_one",
    "dalle2_decoder_one": "dalle2_shapes.py:decoder+{runs}/clip_one",
}
ONE = {"data__kinds": "('one',)", "train__sample_every": 0}
TOLD = ONE | {
    "data__tokenizer": "train:420", "data__sequence_length": 24, "train__batch_size": 32, "train__eval_every": 600,
    "train__checkpoint_every": 600, "train__ema_decay": 0.995,
}  # fmt: skip
"""A tokenizer that is trained on captions of single things alone, of no more than 360 pieces, needs more tokens."""
CHANGES = {
    "t2i_one": ONE | {
        "train__init_from": "{runs}/t2i_joint", "train__steps": 2600, "train__eval_every": 0,
        "train__checkpoint_every": 650,
    },
    "vqgan_one": ONE,
    "maskgit_one": TOLD | {"train__steps": 1800},
    "dalle1_one": TOLD | {"train__steps": 1800},
    "clip_one": TOLD | {
        "model__text__max_length": 24, "model__vision__positions": "sincos", "train__batch_size": 64,
        "train__eval_every": 200, "train__ema_decay": 0.0,
    },
    "dalle2_prior_one": TOLD | {"model__max_length": 24, "data__tokenizer": "{runs}/clip_one", "train__steps": 1200},
    "dalle2_decoder_one": TOLD | {
        "data__tokenizer": "{runs}/clip_one", "train__batch_size": 16, "train__steps": 4200, "train__eval_every": 1400,
        "train__checkpoint_every": 1400,
    },
}  # fmt: skip


def make(stage: str, folder: pathlib.Path) -> None:
    """Trains a run of this name under the folder, or keeps the latents, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if stage != LATENTS:
        changes = {key: str(value).format(runs=folder) for key, value in CHANGES.get(stage, {}).items()}
        runs.train(CONFIGS[stage].format(runs=folder), folder / stage, **changes)
    elif not (folder / stage).exists():
        config = f"{runs.ROOT}/configs/t2i_shapes.py:{folder}/vae_shapes"
        command = ["fmjax.commands.keep", f"--config={config}", f"--output={folder / stage}"]
        subprocess.run([sys.executable, "-m", *command], cwd=runs.ROOT, check=True)
