"""Optimizers and schedules against their published formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.errors import ConfigError
from fmjax.models.bert import Bert
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.models.magneto import Magneto, MagnetoEncoder
from fmjax.models.transformer import EncoderDecoder
from fmjax.models.vit import ViT
from fmjax.parallel.sharding import logical_axes, path_name
from fmjax.training import OPTIMIZERS, schedule
from fmjax.training.optimizer import SGD, Adafactor, AdamW, Lion, Muon, decay_mask, muon_dimensions

AXES = {"layers": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}, "table": ("vocab", "embed")}
SIZES = dict(num_layers=2, hidden_size=8, intermediate_size=16, num_heads=2)
TOKENS = (jnp.zeros((1, 4), jnp.int32),)


def params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "layers": {"kernel": jax.random.normal(keys[0], (2, 8, 16)), "bias": jax.random.normal(keys[1], (2, 16))},
        "table": jax.random.normal(keys[2], (10, 8)),
    }


def run(optimizer, steps=3, total=10):
    """Parameters after each of `steps` updates, and the gradients used."""
    transformation = optimizer.make(total, AXES)
    p, state, seen, grads = params(), None, [], []
    state = transformation.init(p)
    for step in range(steps):
        g = params(step + 1)
        updates, state = transformation.update(g, state, p)
        p = jax.tree.map(jnp.add, p, updates)
        seen.append(p)
        grads.append(g)
    return seen, grads


def test_adamw_is_the_papers_with_clipping_and_decay_of_matrices_only():
    seen, grads = run(AdamW(learning_rate=0.1, weight_decay=0.5, clip_norm=2.0, b1=0.8, b2=0.9))
    p = jax.tree.map(np.asarray, params())
    m = v = jax.tree.map(np.zeros_like, p)
    for t, (after, g) in enumerate(zip(seen, grads), 1):
        norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(g)))
        g = jax.tree.map(lambda x: np.asarray(x) * 2.0 / norm, g)
        m = jax.tree.map(lambda m, x: 0.8 * m + 0.2 * x, m, g)
        v = jax.tree.map(lambda v, x: 0.9 * v + 0.1 * x * x, v, g)
        decayed = {"layers": {"kernel": 0.5, "bias": 0.0}, "table": 0.5}
        p = jax.tree.map(
            lambda p, m, v, d: p - 0.1 * ((m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + d * p),
            p,
            m,
            v,
            decayed,
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), after, p)


def test_lion_moves_by_the_sign():
    seen, grads = run(Lion(learning_rate=0.1, clip_norm=0.0), steps=1)
    jax.tree.map(
        lambda after, before, g: np.testing.assert_allclose(after, before - 0.1 * np.sign(g), rtol=1e-5, atol=1e-6),
        seen[0], params(), grads[0],
    )  # fmt: skip


def test_sgd_has_heavy_ball_momentum():
    seen, grads = run(SGD(learning_rate=0.1, momentum=0.5, clip_norm=0.0), steps=2)
    expected = jax.tree.map(lambda p, a, b: p - 0.1 * a - 0.1 * (0.5 * a + b), params(), *grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), seen[1], expected)


def test_muon_orthogonalises_each_layers_matrix_and_leaves_the_rest_to_adamw():
    seen, _ = run(Muon(learning_rate=0.1, clip_norm=0.0, consistent_rms=None, adam_learning_rate=0.05), steps=1)
    update = np.asarray(seen[0]["layers"]["kernel"] - params()["layers"]["kernel"])
    for layer in update:
        # sqrt(max(1, out / in)) * learning rate; Newton-Schulz leaves singular values within about 0.7 .. 1.2
        singular = np.linalg.svd(layer, compute_uv=False) / (0.1 * np.sqrt(16 / 8))
        assert singular.min() > 0.6 and singular.max() < 1.3
    adam = np.asarray(seen[0]["table"] - params()["table"])
    # Adam's first step has the size of its learning rate; Nesterov's look-ahead adds b1 (1 - b1) / (1 - b1^2).
    np.testing.assert_allclose(np.abs(adam), 0.05 * (1 + 0.9 * 0.1 / 0.19), rtol=1e-3)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.table))
def test_every_optimizer_lowers_a_quadratic(name):
    optimizer = OPTIMIZERS.get(name)(learning_rate=0.05, weight_decay=0.001)
    transformation = optimizer.make(100, AXES)
    p = params()
    loss = lambda p: sum((x**2).mean() for x in jax.tree.leaves(p))

    @jax.jit
    def step(p, state):
        updates, state = transformation.update(jax.grad(loss)(p), state, p)
        return jax.tree.map(jnp.add, p, updates), state

    state = transformation.init(p)
    before = loss(p)
    for _ in range(100):
        p, state = step(p, state)
    assert loss(p) < 0.7 * before


STACKED = {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp"), "gate": ("layers",), "small": ("norm",)}
OWN = {"kernel": ("embed", "mlp"), "bias": ("mlp",), "gate": (), "small": ("norm",)}
OPTIONS = {"adafactor": dict(min_dim_size_to_factor=4, momentum=0.9)}


def stacked_params(seed):
    """Of three layers, of very different sizes."""
    size = jnp.array([1e-3, 1.0, 30.0])
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "kernel": jax.random.normal(keys[0], (3, 4, 5)) * size[:, None, None],
        "bias": jax.random.normal(keys[1], (3, 5)) * size[:, None],
        "gate": size,
        "small": jax.random.normal(keys[2], (4,)),
    }


def trained(transformation, p, gradients):
    def step(carry, g):
        updates, state = transformation.update(g, carry[1], carry[0])
        return (jax.tree.map(jnp.add, carry[0], updates), state), None

    return jax.lax.scan(step, (p, transformation.init(p)), gradients)[0]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.table))
def test_a_stack_of_layers_is_trained_as_its_layers_are(name):
    options = dict(learning_rate=0.05, weight_decay=0.1, clip_norm=0.0) | OPTIONS.get(name, {})
    optimizer = OPTIMIZERS.get(name)(**options)
    p, gradients = stacked_params(0), jax.tree.map(lambda *g: jnp.stack(g), *map(stacked_params, (1, 2, 3)))
    found, _ = jax.jit(lambda: trained(optimizer.make(10, STACKED), p, gradients))()
    alone = jax.jit(lambda p, g: trained(optimizer.make(10, OWN), p, g)[0])
    for layer in range(3):
        pick = lambda tree, of: {k: v if k == "small" else of(v) for k, v in tree.items()}
        expected = alone(pick(p, lambda x: x[layer]), pick(gradients, lambda x: x[:, layer]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
            pick(found, lambda x: x[layer]),
            expected,
        )


def test_adafactor_of_a_layer_is_optaxs():
    optimizer = Adafactor(learning_rate=0.05, clip_norm=0.0, **OPTIONS["adafactor"])
    reference = optax.adafactor(0.05, multiply_by_parameter_scale=True, **OPTIONS["adafactor"])
    p, gradients = stacked_params(0), jax.tree.map(lambda *g: jnp.stack(g), *map(stacked_params, (1, 2, 3)))
    found, state = jax.jit(lambda: trained(optimizer.make(10, STACKED), p, gradients))()
    for layer in range(3):
        kernel, steps = ({"kernel": x} for x in (p["kernel"][layer], gradients["kernel"][:, layer]))
        expected, _ = jax.jit(lambda p, g: trained(reference, p, g))(kernel, steps)
        np.testing.assert_allclose(found["kernel"][layer], expected["kernel"], rtol=1e-5)
    # The state of a run from before layers were told apart is taken up: its shapes are the same.
    before = jax.eval_shape(reference.init, {name: p[name] for name in ("kernel", "bias", "small")})[0]
    after = state[0][0]
    for part in ("v_row", "v_col", "v"):
        for name, old in getattr(before, part).items():
            assert getattr(after, part)[name].shape == old.shape, (part, name)


FAMILIES = {
    "bert": (Bert(**SIZES, vocab_size=11, max_length=8), TOKENS),
    "gpt": (GPT(**SIZES, vocab_size=11, max_length=8), TOKENS),
    "llama": (Llama(**SIZES, vocab_size=11, max_length=8), TOKENS),
    "magneto": (Magneto(**SIZES, vocab_size=11, max_length=8), TOKENS),
    "magneto_encoder": (MagnetoEncoder(**SIZES, vocab_size=11, max_length=8), TOKENS),
    "transformer": (EncoderDecoder(**SIZES, vocab_size=11, max_length=8), (TOKENS[0], TOKENS[0])),
    "vit": (ViT(**SIZES, image_size=8, patch_size=4, num_channels=3, num_classes=5), (jnp.zeros((1, 8, 8, 3)),)),
}
BLOCK = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")} | {"mlp/up/kernel", "mlp/down/kernel"}


@pytest.mark.parametrize("name", FAMILIES)
def test_muon_orthogonalises_the_matrices_of_the_blocks_alone(name):
    module, inputs = FAMILIES[name]
    axes = logical_axes(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    flat, _ = jax.tree_util.tree_flatten_with_path(muon_dimensions(axes))
    found = {path_name(path[:-1]) for path, _ in flat}
    block = BLOCK | ({"mlp/gate/kernel"} if name == "llama" else set())
    expected = {f"stack/blocks/{matrix}" for matrix in block}
    if name == "transformer":
        cross = {matrix.replace("attention", "cross_attention") for matrix in BLOCK if "attention" in matrix}
        expected = {f"encoder/blocks/{matrix}" for matrix in block}
        expected |= {f"decoder/blocks/{matrix}" for matrix in block | cross}
    assert found == expected


def test_muon_leaves_what_has_no_names_alone():
    axes = {"embedding": (None, None), "table": ("vocab", "embed"), "patches": (None, "embed")}
    assert list(muon_dimensions(axes | {"up": ("embed", "mlp")}).values())[:3] == [None] * 3
    with pytest.raises(ConfigError, match="muon.*no parameter is a hidden matrix"):
        muon_dimensions(axes)


def test_decay_mask_patterns_must_match():
    mask = decay_mask(AXES, ("table",))
    assert mask == {"layers": {"kernel": True, "bias": False}, "table": False}
    with pytest.raises(ConfigError, match="'tabel' matches no parameter; there are: .*table"):
        decay_mask(AXES, ("tabel",))


def test_noam_is_equation_3():
    noam = schedule.Noam(hidden_size=512, warmup_steps=400).make(2.0, 1000)
    steps = np.arange(1, 1001)
    expected = 2.0 * 512**-0.5 * np.minimum(steps**-0.5, steps * 400**-1.5)
    np.testing.assert_allclose(
        [noam(step - 1) for step in (1, 2, 399, 400, 401, 1000)], expected[[0, 1, 398, 399, 400, 999]], rtol=1e-6
    )
    np.testing.assert_allclose(jax.jit(noam)(jnp.int32(399)), 2.0 / np.sqrt(512 * 400), rtol=1e-6)
    for fields, message in (
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 8, "warmup_steps": 0}, "warmup_steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            schedule.Noam(**fields)
    short = schedule.Noam(hidden_size=512, warmup_steps=4000)  # a run shorter than the warm-up stays in it
    np.testing.assert_allclose(short.make(1.0, 6)(5), 512**-0.5 * 6 * 4000**-1.5, rtol=1e-6)
    assert schedule.shortened(short, 6) is None


@pytest.mark.parametrize("kind", ["Constant", "Linear", "Cosine", "WarmupStableDecay"])
def test_a_warmup_longer_than_the_run_takes_a_tenth_of_it(kind):
    long, tenth = (getattr(schedule, kind)(warmup_steps=n) for n in (300, 4))
    found, expected = long.make(2.0, 40), tenth.make(2.0, 40)
    np.testing.assert_allclose([found(n) for n in (0, 3, 4, 39)], [expected(n) for n in (0, 3, 4, 39)])
    assert "warming up for 4 of its 40 steps" in schedule.shortened(long, 40)
    assert schedule.shortened(tenth, 40) is None


def test_schedules_have_their_published_shapes():
    def values(s, steps=100):
        f = s.make(2.0, steps)
        return np.array([float(f(i)) for i in range(steps + 1)])

    cosine = values(schedule.Cosine(warmup_steps=10, final_fraction=0.1))
    np.testing.assert_allclose(cosine[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    t = np.arange(10, 101)
    np.testing.assert_allclose(cosine[10:], 0.2 + 1.8 * 0.5 * (1 + np.cos(np.pi * (t - 10) / 90)), rtol=1e-5)
    linear = values(schedule.Linear(warmup_steps=0, final_fraction=0.5))
    np.testing.assert_allclose(linear, 2.0 - np.arange(101) / 100, rtol=1e-6)
    wsd = values(schedule.WarmupStableDecay(warmup_steps=10, decay_fraction=0.2))
    np.testing.assert_allclose(wsd[10:81], 2.0, rtol=1e-6)
    np.testing.assert_allclose(wsd[80:], 2.0 * (100 - np.arange(80, 101)) / 20, atol=1e-6)
    constant = values(schedule.Constant(warmup_steps=1))
    np.testing.assert_allclose(constant, 2.0)
