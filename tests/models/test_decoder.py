"""The decoder protocol, for every decoder family: packing, padding, cached decoding, sharding, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from fmjax.errors import ConfigError, InputError
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.objectives.causal_lm import CausalLM

SIZES = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=32)
MODELS = {
    "gpt": GPT(**SIZES),
    "llama": Llama(**SIZES, num_kv_heads=2),
    "window": Llama(**SIZES, num_kv_heads=1, window=5, tie_embeddings=True),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    module = MODELS[request.param]
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens))["params"]
    # Biases and scales away from 0 and 1, and weights large enough that attention is not uniform.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    params = tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
    return module, params


def random_tokens(*shape):
    return jax.random.randint(jax.random.key(1), shape, 0, SIZES["vocab_size"])


def test_packed_rows_equal_separate_documents(model):
    module, params = model
    tokens = random_tokens(1, 15)
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
    segment_ids = jnp.array([[1] * 6 + [2] * 7 + [0] * 2])
    positions = jnp.array([[*range(6), *range(7), 0, 0]])
    packed = apply(tokens, segment_ids, positions)
    np.testing.assert_allclose(packed[:, :6], apply(tokens[:, :6]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 6:13], apply(tokens[:, 6:13]), atol=1e-5)
    derived = apply(tokens, segment_ids, None)  # positions follow from the segments
    np.testing.assert_allclose(packed[:, :13], derived[:, :13], atol=1e-5)
    assert np.isfinite(packed).all()
    assert abs(apply(tokens)[:, 6:13] - packed[:, 6:13]).max() > 1e-2  # without ids the documents do mix


def test_cached_decoding_equals_the_full_forward_pass(model):
    """Prompts of 3 and 9 tokens, padded on the right, then one token at a time, each row at its own position."""
    module, params = model
    lengths, total = np.array([3, 9]), 14
    tokens = random_tokens(2, total)
    full = jax.jit(lambda t: module.apply({"params": params}, t))(tokens)
    step = jax.jit(
        lambda tokens, ids, positions, cache: module.apply({"params": params}, tokens, ids, positions, cache=cache)
    )
    index = np.arange(9)[None]
    real = index < lengths[:, None]
    cache = module.init_cache(2, total)
    # Padding carries tokens and positions of its own: none of it may matter.
    logits, cache = step(jnp.where(real, tokens[:, :9], 39), real.astype(np.int32), np.where(real, index, 0), cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=2e-5)
    for offset in range(total - 9):
        at = lengths + offset
        token = tokens[np.arange(2), at][:, None]
        logits, cache = step(token, np.ones((2, 1), np.int32), at[:, None], cache)
        np.testing.assert_allclose(logits[:, 0], full[np.arange(2), at], atol=2e-5)
    slots = module.init_cache(2, total)["positions"].shape[-1]
    assert slots == (5 if getattr(module, "window", None) else total)


def test_cache_takes_further_chunks_of_a_prompt(model):
    module, params = model
    tokens = random_tokens(1, 14)
    full = jax.jit(lambda t: module.apply({"params": params}, t))(tokens)
    step = jax.jit(lambda t, p, cache: module.apply({"params": params}, t, positions=p, cache=cache))
    cache = module.init_cache(1, 14)
    found = []
    for start, end in ((0, 7), (7, 14)):
        logits, cache = step(tokens[:, start:end], jnp.arange(start, end)[None], cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), full, atol=2e-5)


def test_a_finished_row_is_left_alone_by_padding(model):
    """A batch goes on while one of its rows has ended: padding is neither written nor attended."""
    module, params = model
    tokens = random_tokens(1, 6)
    positions = jnp.arange(6)[None]
    step = jax.jit(lambda t, ids, p, cache: module.apply({"params": params}, t, ids, p, cache=cache)[1])
    cache = step(tokens, jnp.ones((1, 6), jnp.int32), positions, module.init_cache(1, 8))
    after = step(tokens, jnp.zeros((1, 6), jnp.int32), positions, cache)
    assert (cache["positions"] >= 0).any()
    jax.tree.map(np.testing.assert_array_equal, cache, after)


@pytest.mark.parametrize("remat", ["full", "dots", "save_named:attention_heads,mlp_hidden"])
def test_remat_changes_nothing_but_memory(model, remat):
    module, params = model
    tokens = random_tokens(2, 8)

    def gradient(module):
        return jax.jit(jax.grad(lambda p: jnp.mean(module.apply({"params": p}, tokens) ** 2)))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient(module), gradient(module.clone(remat=remat))
    )


def test_unrolled_and_bfloat16_follow_the_plain_model(model):
    module, params = model
    tokens = random_tokens(2, 8)
    plain, unrolled, half = (
        jax.jit(lambda module=m: module.apply({"params": params}, tokens))()
        for m in (module, module.clone(unroll=2), module.clone(dtype="bfloat16"))
    )
    np.testing.assert_allclose(unrolled, plain, atol=1e-5)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, plain, atol=0.05 * abs(plain).max())
    assert abs(half - plain).max() > 1e-5


def test_eight_devices_give_the_loss_and_gradients_of_one(model):
    module, params = model
    tokens = random_tokens(8, 13)
    segment_ids = jnp.where(jnp.arange(13) < 5, 1, 2)[None].repeat(8, 0)
    batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_weights=jnp.ones((8, 12)))
    batch |= dict(segment_ids=segment_ids[:, :-1])
    rules = [("batch", ("data", "fsdp")), ("embed", "fsdp"), ("mlp", "tensor"), ("act_mlp", "tensor")]
    rules += [("vocab", "tensor"), ("act_vocab", "tensor"), ("heads", "tensor"), ("act_heads", "tensor")]
    objective = CausalLM(chunk_size=4, z_loss=1e-3)

    def loss(params):
        with nn.logical_axis_rules(rules):
            return objective(module.apply, params, batch, None, True)["loss"][0]

    expected = jax.jit(jax.value_and_grad(loss))(params)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    boxed = jax.eval_shape(module.init, jax.random.key(0), tokens[:1])["params"]
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, shardings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_dropout_needs_training_and_its_key(model):
    module, params = model
    tokens = random_tokens(2, 8)
    module = module.clone(dropout=0.5, remat="full")
    plain = jax.jit(lambda: module.apply({"params": params}, tokens))()
    drop = jax.jit(lambda key: module.apply({"params": params}, tokens, train=True, rngs={"dropout": key}))
    first, again, other = (drop(jax.random.key(n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-3 and abs(first - plain).max() > 1e-3


def test_initialisation_is_as_published():
    def deviations(module):
        params = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
        return params, lambda *path: float(np.std(functools.reduce(dict.__getitem__, path, params)))

    sizes = dict(num_layers=8, hidden_size=64, intermediate_size=256, num_heads=2, vocab_size=512, max_length=128)
    params, std = deviations(GPT(**sizes))
    blocks = ("stack", "blocks")
    assert std("token_embedding", "embedding") == pytest.approx(0.02, rel=0.05)
    assert std("position_embedding", "embedding") == pytest.approx(0.01, rel=0.05)
    assert std(*blocks, "attention", "query", "kernel") == pytest.approx(0.02, rel=0.05)
    assert std(*blocks, "attention", "out", "kernel") == pytest.approx(0.02 / 4, rel=0.05)  # 1 / sqrt(2 * 8)
    assert std(*blocks, "mlp", "down", "kernel") == pytest.approx(0.02 / 4, rel=0.05)
    assert std(*blocks, "mlp", "up", "bias") == 0
    params, std = deviations(Llama(**sizes))
    assert std("head") == pytest.approx(0.02, rel=0.05)
    assert std(*blocks, "mlp", "down", "kernel") == pytest.approx(0.02, rel=0.05)
    assert "bias" not in params["stack"]["blocks"]["mlp"]["down"]


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_size=30), "num_heads=4"),
        (dict(num_kv_heads=3), "num_kv_heads=3"),
        (dict(remat="ful"), "'full'"),
        (dict(remat="save_named:mlp_hiden"), "mlp_hidden"),
        (dict(dtype="bfloat"), "bfloat16"),
        (dict(attention="flash"), "splash"),
        (dict(num_layers=0), "num_layers=0"),
        (dict(window=0), "window=0"),
        (dict(head_dim=7), "even"),
        (dict(dropout=1.0), "dropout"),
    ],
)
def test_bad_fields_are_refused_when_the_module_is_made(fields, message):
    with pytest.raises(ConfigError, match=message):
        Llama(**(SIZES | fields))


def test_bad_use_is_refused():
    module = MODELS["llama"]
    with pytest.raises(ConfigError, match="vocab_size"):
        Llama(**(SIZES | dict(vocab_size=None))).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    with pytest.raises(InputError, match="positions"):
        module.apply(params, jnp.zeros((1, 4), jnp.int32), cache=module.init_cache(1, 4))
    # Outside the vocabulary there is no embedding: not a number, rather than a wrong one.
    apply = jax.jit(module.apply)
    assert np.isnan(apply(params, jnp.array([[SIZES["vocab_size"]]]))).all()
    assert np.isnan(apply(params, jnp.array([[-1]]))).all()
