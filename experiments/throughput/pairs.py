"""A CLIP trained, and its vectors of 1,000 images, by fmjax and by `transformers`, the same random weights:

    pip install -e '.[oracle]'
    python experiments/throughput/pairs.py

Both towers have 6 layers of width 384. A step is of 32 pairs, images of 112x112 pixels in patches of 16 and texts of
32 tokens: contrastive loss, gradients clipped to norm 1, AdamW, float32, no dropout. PyTorch runs with `sdpa`
attention and fused AdamW, eagerly and with `torch.compile`. The images are uint8 of 150x120 pixels, prepared by each
side's own processor, 64 at a time. A process a side; after a warm-up they take turns. Prints medians of seconds and
of the processor's (of all threads), the median of the turns' ratios, and by how much losses and vectors differ.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from sides import ADAMW  # noqa: E402

SIDES = {"train": ("fmjax", "eager", "compiled"), "embed": ("fmjax", "eager", "compiled")}
BATCH, LENGTH, SIZE, PATCH, VOCAB, IMAGES = 32, 32, 112, 16, 8192, 1000
TOWER = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)


def batch_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float32 [B, H, W, 3] and tokens int32 [B, T], whose last is the end."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(0, VOCAB - 1, (BATCH, LENGTH)).astype(np.int32)
    tokens[:, -1] = VOCAB - 1
    return draw.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32), tokens


def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (IMAGES, 150, 120, 3)).astype(np.uint8))


def make_weights(folder: str) -> None:
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    text = dict(**TOWER, vocab_size=VOCAB, max_position_embeddings=LENGTH, eos_token_id=VOCAB - 1)
    vision = dict(**TOWER, image_size=SIZE, patch_size=PATCH)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=384)
    transformers.CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)


def fmjax_train(folder: str):
    from fmjax import cpu

    cpu.set_up_training()  # as `fmjax.train` does
    import jax

    import fmjax
    from fmjax.assemble import build_module
    from fmjax.config import resolve
    from fmjax.interop.loading import model_section
    from fmjax.training.program import make_program

    model = model_section(folder)
    for tower in ("vision", "text"):
        model[tower]["unroll"] = TOWER["num_hidden_layers"]
    config = resolve({
        "train": {"steps": 1000, "batch_size": BATCH}, "mesh": {"data": 1}, "model": model,
        "objective": {"name": "contrastive"}, "data": {"name": "shapes"},
        "optimizer": {"name": "adamw", "clip_norm": 1.0, **ADAMW},
    })  # fmt: skip
    pixels, tokens = batch_of(0)
    rows = {"images": pixels, "tokens": tokens, "segment_ids": np.ones_like(tokens)}
    rows["loss_weights"] = np.ones(BATCH, np.float32)
    example = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in rows.items()}
    program = make_program(config, build_module(config, {}), example, jax.devices()[:1])
    state, run_step = [program.init(fmjax.load(folder).params)], program.compile_train_step()

    def step(number: int) -> float:
        pixels, tokens = batch_of(number)
        batch = jax.device_put(rows | {"images": pixels, "tokens": tokens}, program.batch_sharding)
        state[0], metrics = run_step(state[0], batch, program.key)
        return float(metrics["loss"])

    return step


def torch_model(folder: str):
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def torch_train(folder: str, compiled: bool):
    import torch

    model = torch_model(folder).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = ADAMW["b1"], ADAMW["b2"]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["learning_rate"], betas=betas, eps=ADAMW["eps"], fused=True)
    loss_of = lambda pixels, tokens: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step(number: int) -> float:
        pixels, tokens = batch_of(number)
        loss = loss_of(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(tokens).long())
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

    model, values, processor = torch_model(folder).eval(), images(), CLIPImageProcessorPil.from_pretrained(folder)

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


def work(folder: str, kind: str, side: str) -> None:
    """A worker: a number in, a line of JSON out."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if side == "fmjax":
        do = {"train": fmjax_train, "embed": fmjax_embed}[kind](folder)
    else:
        do = {"train": torch_train, "embed": torch_embed}[kind](folder, side == "compiled")
    for line in sys.stdin:
        seconds, processor = time.perf_counter(), time.process_time()
        answer = do(int(line))
        found = time.perf_counter() - seconds, time.process_time() - processor, answer
        print(json.dumps(found), file=out, flush=True)


def measure(folder: str, kind: str, repeats: int) -> None:
    root = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    start = lambda side: subprocess.Popen(
        [sys.executable, __file__, folder, kind, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": root},
    )  # fmt: skip
    workers = {side: start(side) for side in SIDES[kind]}

    def ask(side, number):
        workers[side].stdin.write(f"{number}\n")
        workers[side].stdin.flush()
        return json.loads(workers[side].stdout.readline())

    first = {side: ask(side, 0)[2] for side in workers}
    for side in workers:
        ask(side, 1)
    turns = [{side: ask(side, number) for side in workers} for number in range(2, 2 + repeats)]
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    best = min((side for side in workers if side != "fmjax"), key=lambda s: statistics.median(t[s][0] for t in turns))
    for side in workers:
        seconds, processor = (statistics.median(turn[side][i] for turn in turns) for i in (0, 1))
        differ = np.abs(np.asarray(first[side]) - np.asarray(first["fmjax"])).max()
        print(f"{kind} {side}: {seconds:.2f} s, {processor:.2f} s of processors; differs by {differ:.0e}")
    ratios = [statistics.median(turn[best][i] / turn["fmjax"][i] for turn in turns) for i in (0, 1)]
    print(f"{kind}: {ratios[0]:.2f} times PyTorch's speed ({best}), {ratios[1]:.2f} by the processor's seconds")


def main(repeats: int = 5) -> None:
    if sys.argv[1:]:
        return work(*sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        make_weights(folder)
        for kind in SIDES:
            measure(folder, kind, repeats)


if __name__ == "__main__":
    main()
