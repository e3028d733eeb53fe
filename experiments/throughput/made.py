"""Denoisers trained and images made by fmjax and by `diffusers`, the same random weights:

    pip install -e '.[oracle]'
    python experiments/throughput/made.py [dit] [unet] [ddim] [dit_pipeline] [--turns 5] [--sides fmjax eager]

dit: a training step of a DiT-S/8 (12 layers of width 384, 6 heads, patches of 8x8 pixels, 10 classes) on 8 images of
128x128 pixels; unet: one of DDPM's U-Net for CIFAR-10 (35.7M parameters) on 8 images of 32x32. Noise and times are
drawn in the step; squared error of the noise, gradients clipped to norm 1, AdamW, float32, no dropout. ddim: 16 images
of that U-Net, 20 steps of DDIM, by `DDIMPipeline` and by `Model.generate`; dit_pipeline: 16 of a DiT-S/2 on latents of
16x16 with a small autoencoder, guidance 4, by `DiTPipeline`. PyTorch runs eagerly and with `torch.compile`. A process
a side; after a warm-up they take turns. Prints medians of seconds and of the processor's (of all threads), the median
of the turns' ratios, and by how much the losses of the first step, with fmjax's noise, and images of 0 to 255 differ.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import unittest.mock

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from sides import ADAMW  # noqa: E402
from turns import SIDES, a_device_a_core, measure, serve  # noqa: E402

KINDS = ("dit", "unet", "ddim", "dit_pipeline")
DIT = dict(
    num_layers=12, num_attention_heads=6, attention_head_dim=64, patch_size=8, sample_size=128, in_channels=3,
    num_embeds_ada_norm=10, norm_eps=1e-6,
)  # fmt: skip
LATENT_DIT = DIT | dict(patch_size=2, sample_size=16, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
UNET = dict(
    sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
VAE = dict(
    sample_size=64, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=16, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
)  # fmt: skip
BATCH, IMAGES, STEPS, GUIDANCE = 8, 16, 20, 4.0
CLASSES = list(range(IMAGES))


def batch_of(number: int, kind: str) -> dict[str, np.ndarray]:
    """Images float32 [B, H, W, 3] from -1 to 1, and for the DiT labels int32 [B]."""
    draw = np.random.default_rng(number)
    side = (DIT if kind == "dit" else UNET)["sample_size"]
    images = draw.uniform(-1, 1, size=(BATCH, side, side, 3)).astype(np.float32)
    labels = draw.integers(0, DIT["num_embeds_ada_norm"], BATCH).astype(np.int32)
    return {"images": images} | ({"labels": labels} if kind == "dit" else {})


def make_weights(folder: str, kind: str) -> None:
    import diffusers
    import torch

    torch.manual_seed(0)
    if kind in ("unet", "ddim"):
        model = diffusers.UNet2DModel(**UNET)
        scheduler = diffusers.DDIMScheduler(clip_sample=True, timestep_spacing="leading")
        pipeline = diffusers.DDIMPipeline(model, scheduler)
    else:
        model = diffusers.DiTTransformer2DModel(**(DIT if kind == "dit" else LATENT_DIT))
        first = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first)  # as in all published weights
        scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        pipeline = diffusers.DiTPipeline(model, diffusers.AutoencoderKL(**VAE), scheduler)
    (model if kind in ("dit", "unet") else pipeline).save_pretrained(folder)


def fmjax_train(folder: str, kind: str):
    a_device_a_core(BATCH if kind == "dit" else 1)  # for a U-Net it has not been measured
    import jax

    import fmjax
    from fmjax.assemble import build_module
    from fmjax.config import resolve
    from fmjax.interop.loading import model_section
    from fmjax.objectives.base import per_row
    from fmjax.training.program import make_program
    from fmjax.training.step import with_keys

    model = model_section(folder)
    if kind == "dit":
        model["unroll"] = model["num_layers"]
    config = resolve({
        "train": {"steps": 1000, "batch_size": BATCH}, "mesh": {"data": -1}, "model": model,
        "objective": {"name": "diffusion", "label_dropout": 0.0}, "data": {"name": "shapes"},
        "optimizer": {"name": "adamw", "clip_norm": 1.0, **ADAMW},
    })  # fmt: skip
    rows = batch_of(0, kind) | {"loss_weights": np.ones(BATCH, np.float32)}
    example = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in rows.items()}
    program = make_program(config, build_module(config, {}), example, jax.devices())
    keys = with_keys(rows, jax.random.fold_in(program.key, 0))["keys"]
    u, noise, _ = per_row(program.objective._draw, keys, rows["images"])
    times = program.objective.times.quantile(program.objective.process, u)
    np.savez(f"{folder}/drawn.npz", noise=noise, steps=np.rint(1000 * np.asarray(times)).astype(np.int64))
    state, run_step = [program.init(jax.tree.map(np.asarray, fmjax.load(folder).params))], program.compile_train_step()

    def step(number: int) -> float:
        batch = jax.device_put(rows | batch_of(number, kind), program.batch_sharding)
        state[0], metrics = run_step(state[0], batch, program.key)
        return float(metrics["loss"])

    return step


def as_trained(model):
    """A DiT as published weights are computed: see `fmjax.interop.dit`."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return model


def torch_threads():
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def torch_train(folder: str, kind: str, compiled: bool):
    import diffusers
    import torch

    torch_threads()
    if kind == "dit":
        model = as_trained(diffusers.DiTTransformer2DModel.from_pretrained(folder)).train()
    else:
        model = diffusers.UNet2DModel.from_pretrained(folder).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = ADAMW["b1"], ADAMW["b2"]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=betas, eps=ADAMW["eps"], fused=True)
    scheduler = diffusers.DDPMScheduler()
    forward = torch.compile(model) if compiled else model
    channels_first = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

    def step(number: int) -> float:
        batch = batch_of(number, kind)
        images = channels_first(batch.pop("images"))
        named = {"class_labels": torch.from_numpy(one).long() for one in batch.values()}
        if number == 0:
            drawn = np.load(f"{folder}/drawn.npz")
            noise, steps = channels_first(drawn["noise"]), torch.from_numpy(drawn["steps"])
        else:
            noise, steps = torch.randn_like(images), torch.randint(0, 1000, (BATCH,))
        noisy = scheduler.add_noise(images, noise, steps)
        loss = torch.nn.functional.mse_loss(forward(noisy, timestep=steps, **named).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def seen(images) -> list:
    """What of images, 0 to 255, is compared."""
    return np.asarray(images, np.float32)[:, ::4, ::4].tolist()


def fmjax_make(folder: str, kind: str):
    import jax

    import fmjax

    model = fmjax.load(folder)
    prompts = CLASSES if kind == "dit_pipeline" else [None]
    options = dict(steps=STEPS, sampler="ddim")
    if kind == "dit_pipeline":
        options |= dict(guidance=GUIDANCE, spacing="trailing")
    else:
        options |= dict(num_samples=IMAGES, clip=1.0, spacing="leading")
    side, channels = model.module.image_size, model.module.num_channels

    def draw(number: int, job):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(number), job[0] + 1), job[1])
        return jax.random.normal(jax.random.fold_in(key, 0), (side, side, channels))

    def make(number: int):
        return seen(model.generate(prompts, seed=number, **options))

    # The first call's noise, as `fmjax.inference.denoising_program` draws it, for the other side.
    jobs = np.array([(label, 0) if kind == "dit_pipeline" else (-1, label) for label in CLASSES], np.int32)
    np.save(f"{folder}/noise.npy", jax.vmap(lambda job: draw(0, job))(jobs))
    return make


def torch_make(folder: str, kind: str, compiled: bool):
    import diffusers
    import torch

    torch_threads()
    pipeline = getattr(diffusers, "DiTPipeline" if kind == "dit_pipeline" else "DDIMPipeline").from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if kind == "dit_pipeline":
        as_trained(pipeline.transformer)
    if compiled:
        for name in ("transformer", "unet"):
            if hasattr(pipeline, name):
                getattr(pipeline, name).compile()
        if kind == "dit_pipeline":
            pipeline.vae.decoder.compile()
    noise = torch.from_numpy(np.ascontiguousarray(np.load(f"{folder}/noise.npy").transpose(0, 3, 1, 2)))
    module = sys.modules[type(pipeline).__module__]

    def make(number: int):
        arguments = dict(num_inference_steps=STEPS, output_type="np")
        if kind == "dit_pipeline":
            arguments |= dict(class_labels=CLASSES, guidance_scale=GUIDANCE)
        else:
            arguments |= dict(batch_size=IMAGES)
        draw = module.randn_tensor if number else lambda *_, **__: noise
        with unittest.mock.patch.object(module, "randn_tensor", draw):
            made = pipeline(generator=torch.Generator().manual_seed(number), **arguments)
        return seen(np.rint(255 * made.images))

    return make


def work(folder: str, kind: str, side: str):
    if kind in ("dit", "unet"):
        return fmjax_train(folder, kind) if side == "fmjax" else torch_train(folder, kind, side == "compiled")
    return fmjax_make(folder, kind) if side == "fmjax" else torch_make(folder, kind, side == "compiled")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sides", nargs="*", default=SIDES)
    parser.add_argument("--worker", nargs=3)
    options = parser.parse_args()
    if options.worker:
        return serve(lambda: work(*options.worker))
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            make_weights(folder, kind)
            measure(__file__, folder, kind, options.turns, options.sides)


if __name__ == "__main__":
    main()
