"""The chunked cross-entropy against the plain one, and that it never holds all logits."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from fmjax.errors import ConfigError
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.cross_entropy import CPU_POSITIONS, cross_entropy, default_chunk_size
from fmjax.parallel.logical import mesh_axes
from fmjax.parallel.mesh import DEFAULT_RULES, MeshConfig, make_mesh

B, T, D, V = 3, 13, 8, 40


def arrays(kind, rows=B, length=T, vocab_size=V):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (rows, length, D))
    head = {"kernel": jax.random.normal(keys[1], (D, vocab_size))}
    if kind == "tied":
        head = {"embedding": head["kernel"].T}
    if kind == "bias":
        head["bias"] = jax.random.normal(keys[2], (vocab_size,))
    targets = jax.random.randint(keys[3], (rows, length), 0, vocab_size)
    weights = jax.random.uniform(keys[4], (rows, length)).at[:, -3:].set(0.0)
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights, z_loss):
    matrix = head["embedding"].T if "embedding" in head else head["kernel"]
    logits = jnp.einsum("btd,dv->btv", hidden, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = logits + head.get("bias", 0.0)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    entropy = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    return jnp.sum((entropy + z_loss * log_z**2) * weights), jnp.sum(correct * weights)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["untied", "tied", "bias"])
@pytest.mark.parametrize("chunk_size", [5, 100])
def test_values_and_gradients_are_the_unchunked_ones(kind, z_loss, chunk_size):
    hidden, head, targets, weights = arrays(kind)
    options = dict(z_loss=z_loss, chunk_size=chunk_size, count_correct=True)

    def chunked(hidden, head):
        sums = cross_entropy(hidden, head, targets, weights, **options)
        return 3.0 * sums["loss"], sums

    (_, sums), found = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
    (loss, correct), expected = jax.value_and_grad(
        lambda h, w: (lambda loss, right: (3.0 * loss, right))(*plain(h, w, targets, weights, z_loss)),
        argnums=(0, 1),
        has_aux=True,
    )(hidden, head)
    np.testing.assert_allclose(3.0 * sums["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(sums["cross_entropy"] + sums["z_loss"], sums["loss"], rtol=1e-6)
    assert sums["correct"] == pytest.approx(float(correct))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, expected)
    # Without a gradient the forward pass alone must give the same sums.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(chunked)(hidden, head)[1], sums)


@pytest.mark.parametrize("kind, z_loss, chunk_size", [("tied", 0.0, 5), ("bias", 0.1, 100), ("untied", 0.1, 5)])
def test_label_smoothing_is_that_of_optax(kind, z_loss, chunk_size):
    hidden, head, targets, weights = arrays(kind)
    smoothing = 0.3

    def chunked(hidden, head):
        options = dict(z_loss=z_loss, label_smoothing=smoothing, chunk_size=chunk_size)
        sums = cross_entropy(hidden, head, targets, weights, **options)
        return 3.0 * sums["loss"], sums

    def expected(hidden, head):
        matrix = head["embedding"].T if "embedding" in head else head["kernel"]
        logits = hidden @ matrix + head.get("bias", 0.0)
        aim = optax.smooth_labels(jax.nn.one_hot(targets, V), smoothing)
        losses = optax.softmax_cross_entropy(logits, aim) + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
        return 3.0 * jnp.sum(losses * weights)

    (loss, sums), found = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
    value, gradient = jax.value_and_grad(expected, argnums=(0, 1))(hidden, head)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, gradient)
    np.testing.assert_allclose(sums["cross_entropy"], plain(hidden, head, targets, weights, 0.0)[0], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(chunked)(hidden, head)[0], loss, rtol=1e-6)  # without a gradient


def test_bfloat16_hidden_states_with_a_float32_head():
    hidden, head, targets, weights = arrays("tied")
    hidden = hidden.astype(jnp.bfloat16)

    def chunked(hidden, head):
        return cross_entropy(hidden, head, targets, weights, chunk_size=4)["loss"]

    found, (d_hidden, d_head) = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, head)
    expected, (e_hidden, e_head) = jax.value_and_grad(
        lambda h, w: plain(h, w, targets, weights, 0.0)[0], argnums=(0, 1)
    )(hidden, head)
    assert d_hidden.dtype == jnp.bfloat16 and d_head["embedding"].dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(d_head["embedding"], e_head["embedding"], atol=0.05)
    np.testing.assert_allclose(d_hidden.astype(np.float32), e_hidden.astype(np.float32), atol=0.05)


def test_large_logits_stay_finite():
    hidden, head, targets, weights = arrays("untied")
    loss, grad = jax.value_and_grad(lambda h: cross_entropy(h * 1e4, head, targets, weights)["loss"])(hidden)
    assert np.isfinite(loss) and np.isfinite(grad).all()


def shapes_of(jaxpr):
    """Every array that occurs in a jaxpr, the bodies of its loops and calls included."""
    for equation in jaxpr.eqns:
        for variable in [*equation.invars, *equation.outvars]:
            yield getattr(variable.aval, "shape", ())
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner)


def test_no_array_of_all_logits_occurs():
    hidden, head, targets, weights = arrays("tied")

    def largest(chunk_size, function):
        def loss(hidden, head):
            return cross_entropy(hidden, head, targets, weights, z_loss=0.1, chunk_size=chunk_size)["loss"]

        jaxpr = jax.make_jaxpr(function(loss))(hidden, head).jaxpr
        return max(np.prod(shape) for shape in shapes_of(jaxpr) if V in shape)

    for function in (lambda f: f, lambda f: jax.value_and_grad(f, argnums=(0, 1))):
        assert largest(T, function) == B * T * V  # the test sees it where it is
        assert largest(3, function) == max(B * 3 * V, D * V)


@pytest.mark.parametrize(
    "rows, length, size", [(16, 256, 32), (64, 256, 8), (1, 2048, 512), (6, 100, 50), (1000, 7, 1)]
)
def test_on_a_cpu_a_chunk_has_about_as_many_positions_for_any_batch(monkeypatch, rows, length, size):
    assert default_chunk_size(rows, length) == size
    assert rows * size <= max(rows, CPU_POSITIONS)
    monkeypatch.setattr("fmjax.objectives.cross_entropy.target_platform", lambda: "tpu")
    assert default_chunk_size(rows, length) == 128


def test_the_default_chunk_is_the_one_that_is_used():
    hidden = jnp.zeros((256, 4, D))
    loss = lambda hidden: cross_entropy(hidden, arrays("tied")[1], jnp.zeros((256, 4), int), jnp.ones((256, 4)))["loss"]
    shapes = set(shapes_of(jax.make_jaxpr(loss)(hidden).jaxpr))
    assert (256, 2, V) in shapes and (256, 4, V) not in shapes


def on_mesh(function, **sizes):
    """A function compiled with the head and the hidden states in their shards over eight devices."""
    config = MeshConfig(data=1, **sizes)
    mesh = make_mesh(config, jax.devices()[: np.prod(list(sizes.values()))])
    place = lambda x, *axes: NamedSharding(mesh, jax.P(*mesh_axes(mesh, axes, config.table)))
    names = {"kernel": ("embed", "vocab"), "embedding": ("vocab", "embed"), "bias": ("vocab",)}

    def run(hidden, head):
        hidden = jax.device_put(hidden, place(hidden, "batch", "length", None))
        head = {name: jax.device_put(x, place(x, *names[name])) for name, x in head.items()}
        with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(config.table.items())):
            compiled = jax.jit(function).lower(hidden, head).compile()
            return jax.device_get(compiled(hidden, head)), compiled.as_text()

    return run


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("bias", {"fsdp": 2, "tensor": 2, "sequence": 2}),
        ("tied", {"fsdp": 2, "tensor": 4}),
        ("untied", {"sequence": 8}),
    ],
    ids=["fsdp2-tensor2-sequence2", "fsdp2-tensor4", "sequence8"],
)
def test_over_a_mesh_it_is_the_same_and_no_device_holds_more_than_its_share(kind, sizes):
    hidden, head, targets, weights = arrays(kind, rows=4, length=48, vocab_size=56)
    chunk_size, shares = 3, {axis: sizes.get(axis, 1) for axis in ("fsdp", "tensor", "sequence")}

    def loss_and_gradients(hidden, head, cross_entropy=cross_entropy):
        def loss(hidden, head):
            options = dict(z_loss=0.1, label_smoothing=0.2, chunk_size=chunk_size, count_correct=True)
            sums = cross_entropy(hidden, head, targets, weights, **options)
            return sums["loss"], sums

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)

    found, text = on_mesh(loss_and_gradients, **sizes)(hidden, head)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    jax.tree.map(close, found, jax.jit(loss_and_gradients)(hidden, head))

    # Arrays that have the vocabulary, or a device's part of it, as an axis.
    part, logits = 56 // shares["tensor"], (4 // shares["fsdp"]) * chunk_size * (56 // shares["tensor"])
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"[fsu]\d+\[([\d,]+)\]", text)]
    assert (4 // shares["fsdp"], chunk_size, part) in shapes
    assert max(np.prod(shape) for shape in shapes if 56 in shape or part in shape) <= max(logits, D * part)
    if shares["tensor"] > 1:
        assert not any(56 in shape for shape in shapes)


def test_rows_and_positions_that_do_not_divide_over_a_mesh():
    hidden, head, targets, weights = arrays("tied")

    def loss(hidden, head):
        return cross_entropy(hidden, head, targets, weights, chunk_size=3)["loss"]

    run = jax.value_and_grad(loss, argnums=(0, 1))
    with jax.set_mesh(make_mesh(MeshConfig(data=2, sequence=4))), nn.logical_axis_rules(tuple(DEFAULT_RULES.items())):
        found = jax.device_get(jax.jit(run)(hidden, head))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, run(hidden, head))


def test_objective_sums_and_names():
    hidden, head, targets, weights = arrays("tied")

    def apply_fn(variables, tokens, segment_ids, train, rngs, method):
        assert method == "features" and (rngs is None) == (not train)
        return variables["params"], head

    batch = dict(tokens=targets, segment_ids=targets, targets=targets, loss_weights=weights, other=1)
    trained = CausalLM(z_loss=0.1, chunk_size=4)(apply_fn, hidden, batch, jax.random.key(0), True)
    evaluated = CausalLM(z_loss=0.1, chunk_size=4)(apply_fn, hidden, batch, None, False)
    assert set(trained) == {"loss", "cross_entropy", "z_loss"} and set(evaluated) == {"loss", "accuracy"}
    for value, weight in [*trained.values(), *evaluated.values()]:
        assert value.shape == weight.shape == () and value.dtype == weight.dtype == jnp.float32
        np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)
    expected, correct = plain(hidden, head, targets, weights, 0.0)
    np.testing.assert_allclose(evaluated["loss"][0], expected, rtol=1e-5)  # no z-loss in evaluation
    np.testing.assert_allclose(trained["cross_entropy"][0], expected, rtol=1e-5)
    assert trained["loss"][0] > expected
    assert evaluated["accuracy"][0] == pytest.approx(float(correct))


def test_bad_fields_are_refused():
    with pytest.raises(ConfigError, match="chunk_size"):
        CausalLM(chunk_size=0)
    with pytest.raises(ConfigError, match="z_loss"):
        CausalLM(z_loss=-1.0)
