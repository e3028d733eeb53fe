"""Eight simulated devices, split in any way, train as one device does."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import config as configs
from fmjax.assemble import build_module
from fmjax.parallel.sharding import to_global
from fmjax.training.program import make_program

MODELS = {
    "llama": {"name": "llama", "num_heads": 8, "num_kv_heads": 4},
    "gpt": {"name": "gpt", "num_heads": 4, "dropout": 0.0},
}


OPTIMIZERS = {
    "adamw": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
    "adafactor": {"name": "adafactor", "learning_rate": 1e-2, "min_dim_size_to_factor": 8, "momentum": 0.9},
    "muon": {"name": "muon", "learning_rate": 1e-2, "weight_decay": 0.1},
}


def config_for(model, mesh, optimizer="adamw", **train):
    size = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 64, "max_length": 32}
    return configs.resolve({
        "train": {"steps": 3, "batch_size": 8} | train,
        "mesh": mesh,
        "model": MODELS[model] | size,
        "objective": {"name": "causal_lm", "z_loss": 1e-3},
        "data": {"sequence_length": 32, "tokenizer": "bytes"},
        "optimizer": OPTIMIZERS[optimizer],
    })  # fmt: skip


def batch(step):
    """Packed rows of two documents and some padding."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (8, 33)).astype(np.int32)
    segments = np.repeat([[1] * 13 + [2] * 16 + [0] * 3], 8, axis=0).astype(np.int32)
    positions = np.repeat([[*range(13), *range(16), 0, 0, 0]], 8, axis=0).astype(np.int32)
    weights = (segments > 0) * rng.integers(0, 2, (8, 32))
    return {
        "tokens": tokens[:, :-1] * (segments > 0), "targets": tokens[:, 1:],
        "segment_ids": segments, "positions": positions,
        "loss_weights": weights.astype(np.float32),
    }  # fmt: skip


def run(model, mesh, devices, **train):
    """Losses of three steps, and the final parameters on the host."""
    config = config_for(model, mesh, **train)
    example = {k: v[0] for k, v in batch(0).items()}
    program = make_program(config, build_module(config, {}), example, devices)
    state, losses = program.init(), []
    step = program.compile_train_step()
    for number in range(3):
        rows = to_global(batch(number), list(range(8)), program.batch_spec)
        state, metrics = step(state, rows, program.key)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), state


@functools.cache
def one_device(model):
    return run(model, {"data": 1}, jax.devices()[:1])


@pytest.mark.parametrize(
    "model, mesh",
    [
        ("llama", {"data": 1, "fsdp": 8}),
        ("llama", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("gpt", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("llama", {"data": 1, "sequence": 8}),
        ("llama", {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2, "extra": {"expert": 1, "stage": 1}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}{v}" for k, v in value.items()),
)
def test_any_split_trains_as_one_device(model, mesh):
    losses, params, _ = one_device(model)
    found, found_params, state = run(model, mesh, jax.devices())
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found_params, params)
    if mesh.get("data", 1) == 1:
        whole = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        assert on_one < 0.16 * whole  # an eighth, and the few small norms that are whole everywhere


def test_accumulation_over_a_mesh_is_the_whole_batch():
    losses, params, _ = one_device("llama")
    found, found_params, _ = run("llama", {"data": 2, "tensor": 2}, jax.devices()[:4], accumulate_steps=2)
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found_params, params)


class TwoLayers(nn.Module):
    """The least that has matrices with logical axes: it compiles in a second."""

    @nn.compact
    def __call__(self, x):
        def kernel(name, shape, axes):
            return self.param(name, nn.with_logical_partitioning(nn.initializers.normal(0.3), axes), shape)

        hidden = jnp.tanh(x @ kernel("up", (16, 32), ("embed", "mlp")))
        return hidden @ kernel("down", (32, 16), ("mlp", "embed"))


@dataclasses.dataclass(frozen=True)
class Denoising:
    def inputs(self, batch):
        return {"x": batch["x"]}

    def __call__(self, apply_fn, params, batch, key, train):
        return {"loss": (((apply_fn({"params": params}, batch["x"]) - batch["y"]) ** 2).sum(), jnp.float32(8))}


def train_two_layers(optimizer, mesh, devices):
    config = config_for("llama", mesh, optimizer, ema_decay=0.9)
    config = configs.resolve(config.to_dict() | {"objective": {"name": f"{__name__}:Denoising"}})
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(8, 16)).astype(np.float32) for name in "xy"}
    program = make_program(config, TwoLayers(), {k: v[0] for k, v in rows.items()}, devices)
    state, step = program.init(), program.compile_train_step()
    for _ in range(3):
        state, metrics = step(state, to_global(rows, list(range(8)), program.batch_spec), program.key)
    return float(metrics["loss"]), state


@pytest.mark.parametrize("optimizer, split", [("adafactor", ("v_row", "v_col", "ema")), ("muon", ("mu",))])
def test_optimizers_split_their_state_and_average_as_one_device(optimizer, split):
    loss, alone = train_two_layers(optimizer, {"data": 1}, jax.devices()[:1])
    found, state = train_two_layers(optimizer, {"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
    assert found == pytest.approx(loss, rel=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(close, jax.device_get((state.params, state.ema)), jax.device_get((alone.params, alone.ema)))
    for average, parameter in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params)):
        assert average.sharding == parameter.sharding and not average.sharding.is_fully_replicated
    leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    for name in split:
        mine = [x for path, x in leaves if f".{name}[" in jax.tree_util.keystr(path)]
        assert len(mine) == 2 and not any(x.sharding.is_fully_replicated for x in mine), name
