"""A CLIP trained, its vectors of 1,000 images, and a ViT-S/16 trained, by fmjax and by `transformers`, the same random
weights:

    pip install -e '.[oracle]'
    python experiments/throughput/pairs.py [train] [embed] [vit]

Both towers of the CLIP have 6 layers of width 384. A step is of 32 pairs, images of 112x112 pixels in patches of 16 and
texts of 32 tokens; one of the ViT (12 layers of 384, 6 heads) of 8 images of 224x224 pixels of 1,000 classes.
Contrastive loss or cross-entropy, gradients clipped to norm 1, AdamW, float32, no dropout. PyTorch runs with `sdpa`
attention and fused AdamW, eagerly and with `torch.compile`. The images are uint8 of 150x120 pixels, prepared by each
side's own processor, 64 at a time. Steps of fmjax have a device a core. A process
a side; after a warm-up they take turns. Prints medians of seconds and
of the processor's (of all threads), the median of the turns' ratios, and by how much losses and vectors differ.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from sides import ADAMW  # noqa: E402
from turns import a_device_a_core, measure, serve  # noqa: E402

KINDS = ("train", "embed", "vit")
BATCH, LENGTH, SIZE, PATCH, VOCAB, IMAGES = 32, 32, 112, 16, 8192, 1000
TOWER = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
VIT = TOWER | dict(num_hidden_layers=12, image_size=224, patch_size=16)
VIT_BATCH, CLASSES = 8, 1000


def batch_of(number: int, kind: str) -> dict[str, np.ndarray]:
    """Pixels float32 [B, H, W, 3], and tokens int32 [B, T], whose last is the end, or labels int32 [B]."""
    draw = np.random.default_rng(number)
    if kind == "vit":
        pixels = draw.normal(size=(VIT_BATCH, VIT["image_size"], VIT["image_size"], 3))
        return {"images": pixels.astype(np.float32), "labels": draw.integers(0, CLASSES, VIT_BATCH).astype(np.int32)}
    tokens = draw.integers(0, VOCAB - 1, (BATCH, LENGTH)).astype(np.int32)
    tokens[:, -1] = VOCAB - 1
    return {"images": draw.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32), "tokens": tokens}


def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (IMAGES, 150, 120, 3)).astype(np.uint8))


def make_weights(folder: str, kind: str) -> None:
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(**VIT, num_labels=CLASSES)
        return transformers.ViTForImageClassification(config).save_pretrained(folder)
    text = dict(**TOWER, vocab_size=VOCAB, max_position_embeddings=LENGTH, eos_token_id=VOCAB - 1)
    vision = dict(**TOWER, image_size=SIZE, patch_size=PATCH)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=384)
    transformers.CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)


def fmjax_train(folder: str, kind: str):
    """A function that makes step number N and returns its loss, and the compiled program."""
    a_device_a_core(VIT_BATCH if kind == "vit" else BATCH)
    import jax

    import fmjax
    from fmjax.assemble import build_module
    from fmjax.config import resolve
    from fmjax.interop.loading import model_section
    from fmjax.training.program import make_program

    model = model_section(folder)
    for part in [model] if kind == "vit" else [model["vision"], model["text"]]:
        part["unroll"] = part["num_layers"]
    config = resolve({
        "train": {"steps": 1000, "batch_size": VIT_BATCH if kind == "vit" else BATCH}, "mesh": {"data": -1},
        "objective": {"name": "classification" if kind == "vit" else "contrastive"}, "model": model,
        "data": {"name": "shapes"}, "optimizer": {"name": "adamw", "clip_norm": 1.0, **ADAMW},
    })  # fmt: skip
    rows = batch_of(0, kind)
    rows["loss_weights"] = np.ones(len(rows["images"]), np.float32)
    if "tokens" in rows:
        rows["segment_ids"] = np.ones_like(rows["tokens"])
    example = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in rows.items()}
    program = make_program(config, build_module(config, {}), example, jax.devices())
    state, run_step = [program.init(jax.tree.map(np.asarray, fmjax.load(folder).params))], program.compile_train_step()

    def step(number: int) -> float:
        batch = jax.device_put(rows | batch_of(number, kind), program.batch_sharding)
        state[0], metrics = run_step(state[0], batch, program.key)
        return float(metrics["loss"])

    return step, run_step


def torch_model(folder: str, kind: str):
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.ViTForImageClassification if kind == "vit" else transformers.CLIPModel
    return model.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def torch_train(folder: str, kind: str, compiled: bool):
    import torch

    model = torch_model(folder, kind).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = ADAMW["b1"], ADAMW["b2"]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=betas, eps=ADAMW["eps"], fused=True)
    if kind == "vit":
        loss_of = lambda pixels, labels: model(pixel_values=pixels, labels=labels).loss
    else:
        loss_of = lambda pixels, tokens: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step(number: int) -> float:
        pixels, others = batch_of(number, kind).values()
        loss = loss_of(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(others).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def fmjax_embed(folder: str):
    import fmjax

    model, values = fmjax.load(folder), images()
    return lambda number: model.embed(images=values)[:3].tolist()


def torch_embed(folder: str, compiled: bool):
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model, values = torch_model(folder, "embed").eval(), images()
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def vectors(pixels):
        found = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return found / found.norm(dim=-1, keepdim=True)

    vectors = torch.compile(vectors, dynamic=False) if compiled else vectors

    def embed(number: int):
        found = []
        for start in range(0, len(values), 64):
            pixels = processor(values[start : start + 64], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                found.append(vectors(pixels))
        return torch.cat(found)[:3].tolist()

    return embed


def work(folder: str, kind: str, side: str):
    if kind == "embed":
        return fmjax_embed(folder) if side == "fmjax" else torch_embed(folder, side == "compiled")
    return fmjax_train(folder, kind)[0] if side == "fmjax" else torch_train(folder, kind, side == "compiled")


def main(repeats: int = 5) -> None:
    if sys.argv[1:2] == ["--worker"]:
        return serve(lambda: work(*sys.argv[2:]))
    for kind in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            make_weights(folder, kind)
            measure(__file__, folder, kind, repeats)


if __name__ == "__main__":
    main()
