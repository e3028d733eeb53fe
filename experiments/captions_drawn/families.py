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
    "MaskGIT": Family(
        ("vqgan_shapes", "maskgit_shapes"), "maskgit_shapes", lambda _: {"guidance": 2.0}, "vqgan_shapes"
    ),
    "DALL-E 1": Family(("vqgan_shapes", "dalle1_prior"), "dalle1_prior", lambda _: {}, "vqgan_shapes"),
    "DALL-E 2": Family(
        ("clip_shapes", "dalle2_prior", "dalle2_decoder"), "dalle2_decoder",
        lambda runs: {"prior": str(runs / "dalle2_prior"), "steps": 20, "prior_steps": 20, "guidance": 2.0},
    ),
}  # fmt: skip

CONFIGS = {
    "vae_shapes": "vae_shapes.py",
    "t2i_joint": "t2i_shapes.py:joint+{runs}/vae_shapes@{runs}/latents",
    "t2i_one": "t2i_shapes.py:joint+{runs}/vae_shapes",
    "vqgan_shapes": "vqgan_shapes.py",
    "dalle1_prior": "dalle1_shapes.py:prior+{runs}/vqgan_shapes",
    "maskgit_shapes": "maskgit_shapes.py:{runs}/vqgan_shapes",
    "clip_shapes": "clip_shapes.py",
    "dalle2_prior": "dalle2_shapes.py:prior+{runs}/clip_shapes",
    "dalle2_decoder": "dalle2_shapes.py:decoder+{runs}/clip_shapes",
}
CHANGES = {
    "t2i_one": {
        "train__init_from": "{runs}/t2i_joint", "data__kinds": "('one',)", "train__steps": 2600, "train__eval_every": 0,
        "train__sample_every": 0, "train__checkpoint_every": 650,
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
