"""The decoder protocol, for every decoder family: packing, padding, cached decoding, sharding, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from small_models import stirred

from fmjax.errors import ConfigError, InputError
from fmjax.layers.position import Llama3Scaling
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.gemma import Gemma3
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.models.magneto import Magneto
from fmjax.models.qwen import Qwen3
from fmjax.objectives.causal_lm import CausalLM
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=32)
MODELS = {
    "gpt": GPT(**SIZES),
    "gpt1": GPT(**SIZES, placement="post"),
    "gpt3": GPT(**SIZES, window=5, layer_pattern=("global", "local")),
    "llama": Llama(**SIZES, num_kv_heads=2, rope_scaling=Llama3Scaling(original_max_length=8), qkv_bias=True),
    "mistral": Llama(**SIZES, num_kv_heads=1, window=5, tie_embeddings=True),
    "qwen3": Qwen3(**SIZES, num_kv_heads=2, head_dim=10),
    "gemma3": Gemma3(
        **SIZES | dict(num_layers=5), num_kv_heads=2, head_dim=6, window=5, layer_pattern=("local", "global")
    ),
    "magneto": Magneto(**SIZES),
}
# One of each kind of stack, for what does not depend on the family's details.
STACKS = ("gpt", "mistral", "gemma3")


@functools.cache
def made(name):
    module = MODELS[name]
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), tokens))["params"]
    # Biases and scales away from 0 and 1, and weights large enough that attention is not uniform.
    return module, stirred(params)


@pytest.fixture(params=MODELS)
def model(request):
    return made(request.param)


@pytest.fixture(params=STACKS)
def stack(request):
    return made(request.param)


@functools.partial(jax.jit, static_argnames="module")
def cached_step(module, params, tokens, segment_ids, cache):
    return module.apply({"params": params}, tokens, segment_ids, cache=cache)


def random_tokens(*shape):
    return jax.random.randint(jax.random.key(1), shape, 0, SIZES["vocab_size"])


def test_packed_rows_equal_separate_documents(model):
    module, params = model
    tokens = random_tokens(1, 15)
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))
    # Both in a row; each by itself; and, without ids, as if they were one.
    second = jnp.pad(tokens[:, 6:13], ((0, 0), (0, 8)))
    rows = jnp.concatenate([tokens, tokens, second, tokens])
    segment_ids = jnp.array([[1] * 6 + [2] * 7 + [0] * 2, [1] * 6 + [0] * 9, [1] * 7 + [0] * 8, [1] * 15])
    packed_positions, one = [*range(6), *range(7), 0, 0], [*range(15)]
    packed, first, second, mixed = found = apply(rows, segment_ids, jnp.array([packed_positions, one, one, one]))
    np.testing.assert_allclose(packed[:6], first[:6], atol=1e-5)
    np.testing.assert_allclose(packed[6:13], second[:7], atol=1e-5)
    derived = apply(rows, segment_ids, None)[0]  # positions follow from the segments
    np.testing.assert_allclose(packed[:13], derived[:13], atol=1e-5)
    assert np.isfinite(found).all()
    assert abs(mixed[6:13] - packed[6:13]).max() > 1e-2


def test_cached_decoding_equals_the_full_forward_pass(model):
    """Prompts of 3 and 9 tokens packed into one row, then one token at a time, each row at its own position."""
    module, params = model
    lengths, total = np.array([3, 9]), 14
    tokens = np.asarray(random_tokens(2, total))
    full = jax.jit(lambda t: module.apply({"params": params}, t))(tokens)
    decoder, unstacked = module.unrolled(params)
    # Row 1's prompt goes to row 0 of the cache and row 0's to row 2; row 1 of the cache stays empty.
    packed = np.concatenate([tokens[1, :9], tokens[0, :3], [39, 39]])[None]
    ids = np.array([[1] * 9 + [2] * 3 + [0] * 2])
    positions = np.array([[*range(9), *range(3), 7, 7]])
    slots = np.array([[0] * 9 + [2] * 3 + [1] * 2])
    prefill = jax.jit(
        lambda cache: decoder.apply({"params": unstacked}, packed, ids, positions, cache=cache, slots=slots)
    )
    stale = jax.tree.map(lambda x: x + 9, decoder.init_cache(3, total))  # of sequences that were here before
    logits, cache = prefill(stale)
    np.testing.assert_allclose(logits[0, :9], full[1, :9], atol=2e-5)
    np.testing.assert_allclose(logits[0, 9:12], full[0, :3], atol=2e-5)
    np.testing.assert_array_equal(cache["lengths"], [9, 9, 3])
    cache["lengths"] = cache["lengths"].at[1].set(0)
    for offset in range(total - 9):
        at = lengths + offset
        token = np.array([tokens[1, at[1]], 39, tokens[0, at[0]]])[:, None]
        logits, cache = cached_step(decoder, unstacked, token, np.array([[1], [0], [1]]), cache)
        np.testing.assert_allclose(logits[0, 0], full[1, at[1]], atol=2e-5)
        np.testing.assert_allclose(logits[2, 0], full[0, at[0]], atol=2e-5)
    np.testing.assert_array_equal(cache["lengths"], [14, 0, 8])
    slots = [entry["value"].shape[2] for entry in decoder.init_cache(2, total)["layers"]]
    assert slots == [total if window is None else window for window in module.transformer.windows]


def test_decoding_traces_a_block_once_a_kind_of_layer(stack):
    module, params = stack
    decoder, unstacked = module.unrolled(params)
    cache = decoder.init_cache(1, 8)
    apply = functools.partial(decoder.apply, {"params": unstacked}, cache=cache)
    program = jax.make_jaxpr(apply)(random_tokens(1, 1))
    blocks = [step.params["jaxpr"] for step in program.eqns if step.params.get("name") == "_decoding_block"]
    assert len(blocks) == module.num_layers
    assert len(set(map(id, blocks))) == len(module.transformer.pattern)


def test_cache_takes_further_chunks_of_a_prompt(stack):
    """Rows of 7 and 4 tokens, then of 5 and 7: each chunk attends what its row holds, and padding nothing."""
    module, params = stack
    tokens = np.asarray(random_tokens(2, 12))
    full = jax.jit(lambda t: module.apply({"params": params}, t))(tokens)
    decoder, unstacked = module.unrolled(params)
    cache, starts = decoder.init_cache(2, 14), np.zeros(2, int)
    for sizes in (np.array([7, 4]), np.array([5, 7])):
        index = np.arange(7)[None]
        chunk = tokens[np.arange(2)[:, None], np.minimum(starts[:, None] + index, 11)]
        logits, cache = cached_step(decoder, unstacked, chunk, (index < sizes[:, None]).astype(np.int32), cache)
        for row, size in enumerate(sizes):
            found = logits[row, :size]
            np.testing.assert_allclose(found, full[row, starts[row] : starts[row] + size], atol=2e-5)
        starts = starts + sizes


def test_a_finished_row_is_left_alone_by_padding(stack):
    """A batch goes on while one of its rows has ended: padding is neither written nor attended."""
    module, params = stack[0].unrolled(stack[1])
    tokens = random_tokens(1, 6)
    _, cache = cached_step(module, params, tokens, jnp.ones((1, 6), jnp.int32), module.init_cache(1, 8))
    _, after = cached_step(module, params, tokens, jnp.zeros((1, 6), jnp.int32), cache)
    assert cache["lengths"][0] == 6
    jax.tree.map(np.testing.assert_array_equal, cache, after)


def test_layers_unrolled_are_the_same_function(stack):
    module, params = stack
    tokens = random_tokens(2, 8)
    decoder, unstacked = module.unrolled(params)
    assert "blocks_1" in unstacked["stack"] and jax.tree.structure(unstacked) == jax.tree.structure(
        nn.unbox(jax.eval_shape(decoder.init, jax.random.key(0), tokens))["params"]
    )
    plain, found = (
        jax.jit(lambda m=m, p=p: m.apply({"params": p}, tokens))() for m, p in (stack, (decoder, unstacked))
    )
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_remat_changes_nothing_but_memory(stack):
    module, params = stack
    tokens = random_tokens(2, 8)

    def gradient(module):
        return jax.jit(jax.grad(lambda p: jnp.mean(module.apply({"params": p}, tokens) ** 2)))(params)

    plain = gradient(module)
    found = gradient(module.clone(remat="save_named:attention_heads,mlp_hidden"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, plain)


def test_remat_saves_memory_however_many_layers_are_unrolled():
    def temporaries(**fields):
        c = dict(num_layers=4, hidden_size=32, intermediate_size=128, num_heads=2, num_kv_heads=2, head_dim=16)
        module, x = Transformer(TransformerConfig(**c | fields)), jax.ShapeDtypeStruct((8, 32, 32), jnp.float32)
        params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
        gradient = jax.jit(jax.grad(lambda p, x: (module.apply(p, x)[0] ** 2).sum()))
        return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    plain = temporaries(remat="none", unroll=4)
    assert temporaries(remat="full", unroll=4) < 0.75 * plain
    assert temporaries(remat="full", unroll=3) < 0.75 * plain


def test_unrolled_and_bfloat16_follow_the_plain_model(stack):
    module, params = stack
    tokens = random_tokens(2, 8)
    plain, unrolled, half = (
        jax.jit(lambda module=m: module.apply({"params": params}, tokens))()
        for m in (module, module.clone(unroll=2), module.clone(dtype="bfloat16"))
    )
    np.testing.assert_allclose(unrolled, plain, atol=1e-5)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, plain, atol=0.05 * abs(plain).max())
    assert abs(half - plain).max() > 1e-5


def test_eight_devices_give_the_loss_and_gradients_of_one(stack):
    module, params = stack
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


def test_dropout_needs_training_and_its_key(stack):
    module, params = stack
    tokens = random_tokens(2, 8)
    module = module.clone(dropout=0.5, remat="full")
    plain = jax.jit(lambda: module.apply({"params": params}, tokens))()
    drop = jax.jit(lambda key: module.apply({"params": params}, tokens, train=True, rngs={"dropout": key}))
    first, again, other = (drop(jax.random.key(n)) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-3 and abs(first - plain).max() > 1e-3


def test_initialisation_is_as_published():
    def deviations(module):
        params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32)))["params"]
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
    params, std = deviations(Magneto(**sizes))
    gain = np.sqrt(np.log(2 * 8))
    for half, name, expected in (
        ("attention", "query", 1.0), ("attention", "key", 1.0), ("attention", "value", gain),
        ("attention", "out", gain),
    ):  # fmt: skip
        assert std(*blocks, half, name, "kernel") == pytest.approx(expected * np.sqrt(2 / 128), rel=0.03)
    for name in ("up", "down"):
        assert std(*blocks, "mlp", name, "kernel") == pytest.approx(gain * np.sqrt(2 / 320), rel=0.03)


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
        (dict(layer_pattern=("local",)), "window=None"),
        (dict(layer_pattern=("globl",), window=3), "did you mean 'global'"),
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
        Llama(**(SIZES | dict(vocab_size=None))).init(quick_key(0), jnp.zeros((1, 4), jnp.int32))
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32)))
    with pytest.raises(ConfigError, match="scan_layers"):
        module.apply(params, jnp.zeros((1, 4), jnp.int32), cache=module.init_cache(1, 4))
    with pytest.raises(InputError, match="2 rows of tokens for a cache of 1"):
        module.apply(params, jnp.zeros((2, 4), jnp.int32), cache=module.init_cache(1, 4))
    # Outside the vocabulary there is no embedding: not a number, rather than a wrong one.
    apply = jax.jit(module.apply)
    assert np.isnan(apply(params, jnp.array([[SIZES["vocab_size"]]]))).all()
    assert np.isnan(apply(params, jnp.array([[-1]]))).all()
