"""The sides of the comparison: each trains or evaluates the same weights on the same tokens.

AdamW with the same hyperparameters, gradients clipped to norm 1, no dropout, mean cross-entropy of the next token.
"""

import contextlib
import os
import pathlib
import sys
import time

import numpy as np
from shapes import SHAPES, Shape

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
ADAMW = dict(learning_rate=3e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)


def tokens_of(shape: Shape, number: int) -> np.ndarray:
    """Step `number`'s tokens, int32 [B, T + 1]: random, which costs a model what text does."""
    draw = np.random.default_rng(number)
    return draw.integers(0, shape.fields["vocab_size"], (shape.batch, shape.length + 1), np.int32)


def train_config(shape: Shape, folder: str, **train) -> dict:
    """The config of a training run of the weights in a published folder, of the Python standard library."""
    from fmjax.interop.loading import model_section

    return {
        "seed": 0,
        "train": {"steps": 1000, "batch_size": shape.batch, "init_from": folder, **train},
        "mesh": {"data": 1},
        "model": model_section(folder) | {"dtype": shape.dtype, "remat": shape.remat, "unroll": shape.unroll},
        "objective": {"name": "causal_lm", "chunk_size": shape.chunk_size},
        "data": {"source": "builtin", "sequence_length": shape.length, "tokenizer": "train:4096"},
        "optimizer": {"name": "adamw", "clip_norm": 1.0, **ADAMW},
    }


class Fmjax:
    """`step(number)` starts one step, `wait()` returns its loss when all are done."""

    def __init__(self, shape: Shape, work: str, folder: str):
        from fmjax import cpu

        cpu.set_up_training()  # as `fmjax.train` does
        import jax

        import fmjax
        from fmjax.assemble import build_module
        from fmjax.config import resolve
        from fmjax.training.program import make_program

        config = resolve(train_config(shape, folder))
        row = jax.ShapeDtypeStruct((shape.length,), np.int32)
        example = {"tokens": row, "targets": row, "loss_weights": jax.ShapeDtypeStruct(row.shape, np.float32)}
        self.program = program = make_program(config, build_module(config, {}), example, jax.devices()[:1])
        self.shape, self.work, self.last = shape, work, None
        self.device = jax.devices()[0].device_kind
        self.state = program.init(fmjax.load(folder).params)
        start = time.perf_counter()
        if work == "train":
            self.run_step = program.compile_train_step()
        else:
            self.run_step = program.eval_step.lower(self.state.params, program.batch_spec, program.key).compile()
        self.compile_seconds = time.perf_counter() - start

    def step(self, number: int):
        import jax

        tokens = tokens_of(self.shape, number)
        weights = np.ones((self.shape.batch, self.shape.length), np.float32)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": weights}
        batch = jax.device_put(batch, self.program.batch_sharding)
        if self.work == "train":
            self.state, metrics = self.run_step(self.state, batch, self.program.key)
            self.last = metrics["loss"]
        else:
            total, weight = self.run_step(self.state.params, batch, self.program.key)["loss"]
            self.last = total / weight

    def wait(self) -> float:
        return float(self.last)

    def temp_bytes(self) -> int:
        """Of the compiled step: what it keeps besides arguments and results."""
        return self.run_step.memory_analysis().temp_size_in_bytes

    def flops(self) -> float:
        """Of a training step's model (`fmjax.layers.flops`)."""
        shapes = {name: spec.shape[1:] for name, spec in self.program.batch_spec.items()}
        return self.shape.batch * self.program.module.flops_per_example(shapes)

    def peak_flops(self) -> float | None:
        """Of the device per second, where it is known."""
        import jax

        from fmjax.training.hardware import peak_flops

        return peak_flops(jax.devices()[0])

    def peak_device_bytes(self) -> int | None:
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class PyTorch:
    """As `Fmjax`, by `transformers`' model, eagerly or with `torch.compile`."""

    def __init__(self, shape: Shape, work: str, folder: str, compiled: bool):
        import torch
        import torch.nn.functional as F
        import transformers

        self.cuda = torch.cuda.is_available()
        torch.manual_seed(0)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("high" if self.cuda else "highest")
        self.device = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.place = "cuda" if self.cuda else "cpu"
        # sdpa: PyTorch's fused attention, FlashAttention's kernels on a GPU.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", use_cache=False
        )
        self.model = model.to(self.place).train(work == "train")
        if work == "train" and shape.remat != "none":
            self.model.gradient_checkpointing_enable(dict(use_reentrant=False))
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [dict(params=matrices, weight_decay=ADAMW["weight_decay"]), dict(params=others, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(
            groups, lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]), eps=ADAMW["eps"], fused=True
        )

        def loss(tokens):
            logits = self.model(input_ids=tokens[:, :-1]).logits
            return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

        self.loss = torch.compile(loss) if compiled else loss
        self.shape, self.work, self.last = shape, work, None
        self.context = contextlib.nullcontext
        if shape.dtype == "bfloat16":
            self.context = lambda: torch.autocast(self.place, torch.bfloat16)
        self.compile_seconds = None

    def step(self, number: int):
        import torch

        tokens = torch.from_numpy(tokens_of(self.shape, number).astype(np.int64)).to(self.place, non_blocking=True)
        if self.work == "train":
            with self.context():
                loss = self.loss(tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode(), self.context():
                loss = self.loss(tokens)
        self.last = loss.detach()

    def wait(self) -> float:
        return self.last.item()

    def peak_device_bytes(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated() if self.cuda else None


SIDES = {
    "fmjax": Fmjax,
    "PyTorch": lambda *args: PyTorch(*args, compiled=False),
    "PyTorch, compiled": lambda *args: PyTorch(*args, compiled=True),
}


def make_weights(name: str, folder: pathlib.Path) -> None:
    """A published folder of random weights of a shape."""
    import torch
    import transformers

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, shape.kind)(**shape.fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
