"""Swin and CoSwin: embeddings against CvT's, windows by brute force, sizes, FLOPs, stochastic depth and refusals."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.layers.window_attention import WindowAttention, WindowConfig, from_windows, to_windows
from fmjax.models import MODELS
from fmjax.models.swin import ConvEmbedding, CoSwin, Swin
from fmjax.planning import counts, hlo
from tests.quick_keys import quick_key

SMALL = dict(image_size=16, num_channels=3, embed_size=8, depths=(2, 2), num_heads=(2, 4), window=4, patch_size=2)


@pytest.mark.parametrize("name, size, stride", [("stem", 7, 4), ("shrink", 3, 2)])
def test_convolutional_embeddings_are_cvts(name, size, stride):
    """make_swin_fixtures.py wrote the fixture."""
    with np.load(pathlib.Path(__file__).parents[1] / "oracles" / "cvt_embedding.npz") as stored:
        fixture = {key.removeprefix(f"{name}/"): stored[key] for key in stored if key.startswith(name)}
    last = lambda x: x.transpose(0, 2, 3, 1)

    def convert(kind):
        kernel, bias = (fixture[f"{kind}/projection.{part}"] for part in ("weight", "bias"))
        scale, shift = (fixture[f"{kind}/normalization.{part}"] for part in ("weight", "bias"))
        return {
            "convolution": {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias},
            "norm": {"scale": scale, "bias": shift},
        }

    out = last(fixture["out"])
    layer = ConvEmbedding(out.shape[-1], size, stride, (None, None))
    assert out.shape[1] == 16 // stride

    def product(params):
        found = layer.apply({"params": params}, jnp.asarray(last(fixture["x"])))
        return (found * last(fixture["target"])).sum(), found

    gradients, found = jax.jit(jax.grad(product, has_aux=True))(convert("weight"))
    np.testing.assert_allclose(found, out, atol=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * abs(b).max() + 1e-5)
    jax.tree.map(close, gradients, convert("gradient"))


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_by_brute_force(shift):
    """Each place attends to those of its window in the map that is moved, without what comes from the other edge."""
    config = WindowConfig(2, side=8, window=4, hidden_size=6, intermediate_size=6, num_heads=2)
    layer, x = WindowAttention(config), jax.random.normal(jax.random.key(0), (1, 64, 6))
    params = nn.unbox(jax.jit(layer.init)(quick_key(1), x, shift)["params"])
    params = jax.tree.map(lambda p: p + 0.5 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    found = jax.jit(lambda x, shift: layer.apply({"params": params}, x, shift))(x, jnp.int32(shift))
    weights = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    product = lambda name: np.asarray(x[0], np.float64) @ weights[name]["kernel"] + weights[name]["bias"]
    q, k, v = (product(name).reshape(64, 2, 3) for name in ("query", "key", "value"))
    # The windows that a place is in: 0 to 3 without a shift; with one those of width 2 at the edges are apart.
    window = lambda at: (at + shift) // 4 if shift else at // 4
    expected = np.zeros((64, 2, 3))
    for i in range(64):
        near = [j for j in range(64) if all(window(a) == window(b) for a, b in zip(divmod(i, 8), divmod(j, 8)))]
        for head in range(2):
            logits = []
            for j in near:
                down, right = (a - b + 3 for a, b in zip(divmod(i, 8), divmod(j, 8)))
                logits.append(q[i, head] @ k[j, head] / 3**0.5 + weights["place_bias"][down * 7 + right, head])
            shares = np.exp(logits) / np.exp(logits).sum()
            expected[i, head] = shares @ v[near, head]
    expected = expected.reshape(64, 6) @ weights["out"]["kernel"] + weights["out"]["bias"]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_windows_there_and_back():
    x = np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    windows = to_windows(x, 2)
    assert windows.shape == (2, 9, 4, 3)
    np.testing.assert_array_equal(windows[0, 1], x[0, :2, 2:4].reshape(4, 3))
    np.testing.assert_array_equal(from_windows(windows, 6), x)


@pytest.mark.parametrize(
    "options, count",
    [
        (dict(), 28_288_354),
        (dict(depths=(2, 2, 18, 2)), 49_606_258),
        (dict(depths=(2, 2, 18, 2), embed_size=128, num_heads=(4, 8, 16, 32)), 87_768_224),
    ],
    ids=["tiny", "small", "base"],
)
def test_published_sizes(options, count):
    """As timm counts the parameters of Swin-T, -S and -B."""
    module = Swin(image_size=224, num_channels=3, num_classes=1000, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.example()["images"])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.parametrize("model", [Swin, CoSwin])
def test_the_formula_of_flops_is_the_compilers_count(model):
    """Of one window a stage, and one block: the compiler counts what a mask leaves out, and a scan's body once."""
    module = model(**SMALL | dict(image_size=8, depths=(1, 1), embed_size=32), num_classes=5)
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    loss = lambda params: jnp.mean(module.apply({"params": params}, images) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    found = counts.count(hlo.parse(compiled.as_text()), {}).flops
    assert found == pytest.approx(module.flops_per_example({}), rel=0.05)


def test_stochastic_depth_leaves_rows_out_in_training_alone():
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    module = CoSwin(**SMALL, num_classes=0, drop_path=0.6)
    np.testing.assert_allclose([c.drops for c in module.stages], [(0.0, 0.2), (0.4, 0.6)])
    params = jax.jit(module.init)(quick_key(0), images)["params"]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def call(module, train, key=0):
        return module.apply({"params": params}, images, train=train, rngs={"dropout": jax.random.key(key)})

    still = call(module, False)
    np.testing.assert_array_equal(still, call(module.clone(drop_path=0.0), True))
    moving = np.stack([call(module, True, key) for key in range(64)])
    assert (abs(moving[0] - still) > 1e-4).any(axis=1).any()
    # What is kept is scaled up, so that the mean of what the last block adds stays; later norms bend it a little.
    assert abs(moving.mean(0) - still).mean() < 0.5 * abs(moving - still).mean()
    rematerialised = module.clone(remat="full")
    np.testing.assert_allclose(call(rematerialised, True), moving[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 3}, "model.window = 3 does not divide a map of 8x8 places .* have 8, 4.; choose one that does"),
        ({"image_size": 18}, "images of 18x18 pixels do not divide by 4"),
        ({"num_heads": (2,)}, "model.depths = .2, 2. and model.num_heads = .2,.: a number a stage each"),
        ({"num_heads": (3, 4)}, "hidden_size=8 is not a multiple of num_heads=3"),
        ({"kernel_size": 1}, "model.kernel_size = 1 leaves pixels out at a stride of 2"),
        ({"embeddings": "pixels"}, "model.embeddings='pixels' is not known"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"activation": "swiglu"}, "activation='swiglu' is not known"),
        ({"depths": (2, 0)}, "depth=0"),
    ],
)
def test_models_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "coswin", **SMALL, **change}, MODELS)
