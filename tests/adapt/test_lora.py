"""Low-rank adapters against numpy, against the merged kernels, and as what a run trains."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import config as configs
from fmjax.adapt.lora import LoRA
from fmjax.assemble import build_module, param_spec
from fmjax.errors import ConfigError
from fmjax.layers.dense import dense
from fmjax.layers.weights import DoRAWeight, LoRAWeight, ScaledWeight, bare, merged
from fmjax.models.llama import Llama
from fmjax.parallel.sharding import to_global
from fmjax.planning.plan import plan_program
from fmjax.training.program import make_program
from tests.quick_keys import quick_key
from tests.small_models import applied

SIZES = {
    "num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "vocab_size": 64, "max_length": 32,
}  # fmt: skip


@pytest.mark.parametrize("transpose", [False, True])
def test_dense_with_adapters_and_its_gradients(transpose):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 4))
    base = rng.normal(size=(4, 6) if transpose else (6, 4))
    a, b, scale = rng.normal(size=(base.shape[0], 2)), rng.normal(size=(2, base.shape[1])), 0.5
    weight = LoRAWeight(*(jnp.asarray(part, jnp.float32) for part in (base, a, b)), scale)
    out, back = jax.vjp(lambda x, w: dense(x, w, transpose=transpose), jnp.asarray(x, jnp.float32), weight)
    kernel = base + scale * a @ b
    np.testing.assert_allclose(out, x @ (kernel.T if transpose else kernel), atol=1e-5)
    d_x, d_weight = back(jnp.asarray(g, jnp.float32))
    d_kernel = np.einsum("abi,abj->ij", x, g)
    d_kernel = d_kernel.T if transpose else d_kernel
    np.testing.assert_allclose(d_x, g @ (kernel if transpose else kernel.T), atol=1e-5)
    np.testing.assert_allclose(d_weight.base, d_kernel, atol=1e-5)
    np.testing.assert_allclose(d_weight.a, scale * d_kernel @ b.T, atol=1e-5)
    np.testing.assert_allclose(d_weight.b, scale * a.T @ d_kernel, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dense_with_adapters_is_that_of_peft(name):
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / f"{name}.npz") as stored:
        oracle = dict(stored)
    trained = [key for key in ("a", "b", "magnitude") if key in oracle]
    parts = [oracle[key] for key in ("base", *trained)]
    scale = LoRA(rank=2, alpha=3, rslora=name == "dora").scale
    weight = (LoRAWeight if name == "lora" else DoRAWeight)(*parts, scale)
    out, back = jax.vjp(lambda w: dense(oracle["x"], w), weight)
    np.testing.assert_allclose(out, oracle["out"], atol=1e-5)
    (found,) = back(oracle["gradient"])
    for key in trained:
        np.testing.assert_allclose(getattr(found, key), oracle[f"d_{key}"], atol=1e-5)
    np.testing.assert_allclose(merged(weight), oracle["merged"], atol=1e-6)
    # A tied head takes its table so.
    np.testing.assert_allclose(dense(out, weight, transpose=True), out @ oracle["merged"].T, atol=1e-5)


def test_dense_with_adapters_computes_in_the_dtype_asked_for_and_keeps_float32_gradients():
    weight = LoRAWeight(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.full((1, 2), 0.1), 2.0)
    out = dense(jnp.ones((4096, 3)), weight, dtype="bfloat16")
    assert out.dtype == jnp.bfloat16
    assert dense(jnp.ones((1, 3)), weight, dtype="bfloat16", out_dtype=jnp.float32).dtype == jnp.float32
    loss = lambda w: jnp.sum(dense(jnp.ones((4096, 3)), w, dtype="bfloat16").astype(jnp.float32) * 0.01)
    grads = jax.grad(loss)(weight)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(grads.b, 2.0 * 3 * 40.96, rtol=5e-3)


@pytest.mark.parametrize("transpose", [False, True])
def test_factors_of_columns_are_not_rounded_to_bfloat16(transpose):
    rng = np.random.default_rng(0)
    x, base = (jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for _ in range(2))
    product = lambda weight: dense(x, weight, dtype="bfloat16", transpose=transpose)
    out, back = jax.vjp(lambda c: product(ScaledWeight(base, c)), jnp.full(64, 1.001))
    plain, scaled = (np.asarray(y, np.float64) for y in (product(base), out))
    assert out.dtype == jnp.bfloat16
    assert np.abs(scaled).sum() / np.abs(plain).sum() == pytest.approx(1.001, abs=3e-4)
    (found,) = back(jnp.ones_like(out))
    x, base = np.asarray(x, np.float64), np.asarray(base, np.float64)
    expected = (x * base.sum(0)).sum(0) if transpose else (x @ base).sum(0)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_a_column_of_zeros_stays_one_and_learns():
    weight = DoRAWeight(jnp.zeros((3, 2)), jnp.ones((3, 1)), jnp.zeros((1, 2)), jnp.zeros(2), 2.0)
    out, back = jax.vjp(lambda w: dense(jnp.ones((4, 3)), w), weight)
    (found,) = back(jnp.ones((4, 2)))
    assert not np.any(out) and not np.any(merged(weight))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    np.testing.assert_allclose(found.b, 2.0 * 3 * 4)


def test_convolutions_are_no_dense_kernels():
    key = jax.random.key(0)
    boxed = lambda *names: nn.LogicallyPartitioned(jnp.zeros((32,) * len(names)), names)
    params = {
        "blocks": {
            "up": {"kernel": boxed("layers", "embed", "mlp")}, "conv": {"kernel": boxed(None, None, "embed", "mlp")},
        },
        "line": {"kernel": boxed(None, "embed", "mlp")},
    }  # fmt: skip
    for pattern, name in (("blocks/.*kernel$", "blocks/conv/kernel"), ("line/kernel$", "line/kernel")):
        with pytest.raises(ConfigError, match=f"base_patterns: .* matches '{name}', which is the kernel of a convol"):
            LoRA(patterns=("up/",), base="int8", base_block=32, base_patterns=(pattern,)).attach(params, key)
    found = LoRA(patterns=("up/",)).attach(params, key)
    assert isinstance(found["blocks"]["up"]["kernel"], LoRAWeight)


def logits(module, params, tokens):
    return applied(module, {"params": params}, tokens)


def test_a_module_begins_as_it_is_and_ends_as_its_merged_kernels():
    module, tokens = Llama(**SIZES), np.random.default_rng(0).integers(0, 64, (2, 8)).astype(np.int32)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), tokens)["params"])
    adapted = LoRA(rank=4, patterns=("kernel$",)).attach(params, jax.random.key(1))
    np.testing.assert_array_equal(logits(module, adapted, tokens), logits(module, params, tokens))
    jax.tree.map(np.testing.assert_array_equal, bare(adapted), params)
    query = adapted["stack"]["blocks"]["attention"]["query"]["kernel"]
    assert query.a.shape == (2, 32, 4) and query.b.shape == (2, 4, 32) and query.scale == 4.0
    assert not np.array_equal(query.a[0], query.a[1])
    assert np.std(query.a) == pytest.approx(32**-0.5, rel=0.2)
    trained = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if "'kernel'].b" in jax.tree_util.keystr(path) else x, adapted
    )
    expected = logits(module, merged(trained), tokens)
    assert np.max(np.abs(expected - logits(module, params, tokens))) > 0.1
    np.testing.assert_allclose(logits(module, trained, tokens), expected, atol=1e-4)
    unrolled, parts = module.unrolled(trained)
    np.testing.assert_allclose(logits(unrolled, parts, tokens), expected, atol=1e-4)


def test_adapters_carry_the_names_of_their_kernels_axes():
    module = Llama(**SIZES)
    weights = LoRA(patterns=("value/kernel$", "down/kernel$"), dora=True, base="nf4", base_block=32)
    _, axes = param_spec(module, module.example(), weights)
    value, down = (axes["stack"]["blocks"][a][b]["kernel"] for a, b in (("attention", "value"), ("mlp", "down")))
    assert value.magnitude == ("layers", "kv_heads")
    assert value.base.codes == ("layers", "embed", "kv_heads")
    assert value.base.scales.codes == ("layers", "embed?", "kv_heads")  # split where there are as many blocks
    assert (value.base.scales.second, value.base.scales.mean) == (("layers", None), ("layers",))
    assert (value.a, value.b) == (("layers", "embed", "rank"), ("layers", "rank", "kv_heads"))
    assert (down.a, down.b) == (("layers", "mlp", "rank"), ("layers", "rank", "embed"))
    assert axes["stack"]["blocks"]["attention"]["query"]["kernel"].codes == ("layers", "embed", "heads")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patterns": ("querry/kernel",)}, "'querry/kernel' matches no parameter; kernels are: .*query/kernel"),
        ({"patterns": ("embedding",)}, "'embedding' matches 'token_embedding/embedding', which is no kernel"),
        ({"patterns": ("head$",)}, "'head.' matches 'head', which is no kernel"),
        ({"rank": 32}, "weights.rank = 32 is not below both sides of 'stack/blocks/attention/query/kernel'"),
        ({"patterns": ("(",)}, "not a regular expression"),
        ({"patterns": ()}, "weights.patterns is empty"),
        ({"alpha": 0.0}, "weights.alpha = 0.0 must be positive"),
        ({"base": "nf8"}, "weights.base='nf8' is not known; did you mean 'nf4'"),
        ({"base": "nf4"}, r"base_block = 64: '.*': a kernel \[32, \d+\] cannot be cut into blocks of 64"),
        ({"base": "nf4", "base_patterns": ("norm",)}, "base_patterns: 'norm' matches '.*', which is no kernel"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(fields, message):
    module = Llama(**SIZES)
    with pytest.raises(ConfigError, match=message):
        param_spec(module, module.example(), LoRA(**fields))


def program_for(mesh, devices, adapted=True, **train):
    config = {
        "train": {"steps": 3, "batch_size": 8, "ema_decay": 0.9} | train,
        "mesh": mesh,
        "model": {"name": "llama", **SIZES},
        "objective": {"name": "causal_lm"},
        "data": {"sequence_length": 32, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
    }
    if adapted:
        config["weights"] = {"name": "lora", "rank": 4} | (adapted if isinstance(adapted, dict) else {})
    config = configs.resolve(config)
    return make_program(config, build_module(config, {}), {k: v[0] for k, v in batch(0).items()}, devices)


def batch(step):
    tokens = np.random.default_rng(step).integers(0, 64, (8, 33)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": np.ones((8, 32), np.float32)}


def train(mesh, devices, **options):
    program = program_for(mesh, devices, **options)
    state, step = program.init(), program.compile_train_step()
    for number in range(3):
        rows = to_global(batch(number), list(range(8)), program.batch_spec)
        state, metrics = step(state, rows, program.key)
    return float(metrics["loss"]), state


def test_adapters_alone_train_and_so_they_do_in_parts():
    """On a mesh `test_beside_a_base_of_few_bits_adapters_train_alone_on_any_split`."""
    program = program_for({"data": 1}, jax.devices()[:1])
    begun = jax.device_get(program.init().params)
    loss, alone = train({"data": 1}, jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, bare(jax.device_get(alone.params)), bare(begun))
    value = alone.params["stack"]["blocks"]["attention"]["value"]["kernel"]
    assert np.min(np.abs(value.b)) > 0 and alone.ema["stack"]["blocks"]["attention"]["value"]["kernel"].base is None
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4)
    found, state = train({"data": 1}, jax.devices()[:1], accumulate_steps=4)
    assert found == pytest.approx(loss, rel=1e-5)
    jax.tree.map(close, jax.device_get((state.params, state.ema)), jax.device_get((alone.params, alone.ema)))


def test_the_optimizer_holds_two_moments_of_the_adapters_alone():
    adapters = 2 * 2 * (32 * 4 + 4 * 32)  # two layers, queries and values
    program = program_for({"data": 1}, jax.devices()[:1])
    state = program.init()
    held = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert 0 <= held - 2 * 4 * adapters <= 16  # beside the counts
    assert sum(x.nbytes for x in jax.tree.leaves(state.ema)) == 4 * adapters
    example = {k: v[0] for k, v in batch(0).items()}
    every = program_for({"data": 1}, jax.devices()[:1], adapted=False)
    plan, whole = (plan_program(one, example, "cpu") for one in (program, every))
    assert plan.optimizer_bytes == held < 0.2 * whole.optimizer_bytes
    assert plan.parameter_bytes == sum(x.nbytes for x in jax.tree.leaves((state.params, state.ema)))


FEW_BITS = {"base": "nf4", "base_block": 16, "dora": True}


def test_beside_a_base_of_few_bits_adapters_train_alone_on_any_split():
    begun = jax.device_get(program_for({"data": 1}, jax.devices()[:1], adapted=FEW_BITS).init().params)
    loss, alone = train({"data": 1}, jax.devices()[:1], adapted=FEW_BITS)
    found, state = train({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices(), adapted=FEW_BITS)
    assert found == pytest.approx(loss, rel=1e-5)
    ended = jax.device_get((alone.params, state.params))
    for before, one, split in zip(*map(jax.tree.leaves, (begun, *ended)), strict=True):
        np.testing.assert_allclose(split, one, atol=2e-4)
        if not np.issubdtype(one.dtype, np.floating):
            np.testing.assert_array_equal(one, before)
    value = alone.params["stack"]["blocks"]["attention"]["value"]["kernel"]
    assert np.max(np.abs(value.magnitude - begun["stack"]["blocks"]["attention"]["value"]["kernel"].magnitude)) > 1e-3
    adapters = 2 * 2 * (32 * 4 + 4 * 32 + 32)
    held = sum(x.nbytes for x in jax.tree.leaves(alone.opt_state))
    assert 0 <= held - 2 * 4 * adapters <= 16
