"""Towers of images and texts: where a text is pooled, what padding may change, initialisation, and refusals."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.assemble import build_module, completed
from fmjax.config import build, resolve
from fmjax.errors import ConfigError
from fmjax.models import MODELS
from fmjax.models.text_tower import TextTower
from fmjax.models.vit import ViT
from tests.quick_keys import quick_key
from tests.small_models import applied

SIZES = dict(num_layers=2, hidden_size=16, num_heads=2)
VISION = {"name": "vit", **SIZES, "intermediate_size": 32, "patch_size": 4, "num_classes": 0}
TEXT = {"name": "text_tower", **SIZES, "max_length": 8}
TOKENS = jnp.array([[3, 9, 4, 2, 0, 0], [5, 2, 0, 0, 0, 0], [1, 7, 2, 3, 9, 6]])
SEGMENTS = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


def made(module, **inputs):
    return module, nn.unbox(jax.jit(module.init)(quick_key(0), **inputs)["params"])


def tower(**fields):
    return made(TextTower(**SIZES, vocab_size=12, max_length=8, **fields), tokens=TOKENS)


def outputs(module, params, tokens, segment_ids):
    """The last layer's output, [B, T, D], and the vectors."""
    vectors, state = applied(module, {"params": params}, tokens, segment_ids, mutable="reads")
    return state["reads"]["stack"]["final"], vectors


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        (dict(), [3, 1, 5]),
        (dict(pooling="first_eos", eos_id=2), [3, 1, 2]),
        (dict(pooling="first_eos", eos_id=11), [3, 1, 5]),  # in no text
        (dict(pooling="largest_id"), [1, 0, 4]),
    ],
)
def test_a_text_is_pooled_at_its_token(fields, places):
    module, params = tower(**fields)
    states, vectors = outputs(module, params, TOKENS, SEGMENTS)
    np.testing.assert_array_equal(vectors, states[np.arange(3), places])
    alone = applied(module, {"params": params}, TOKENS[1:2, :2])
    np.testing.assert_allclose(vectors[1], alone[0], atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing_unless_it_is_read(causal):
    module, params = tower(causal=causal)
    other = jnp.where(SEGMENTS > 0, TOKENS, 7)
    read = lambda module, tokens, ids: applied(module, {"params": params}, tokens, ids)
    np.testing.assert_array_equal(read(module, TOKENS, SEGMENTS), read(module, other, SEGMENTS))
    reading = module.clone(pad_id=7)
    whole = jnp.pad(other, ((0, 0), (0, 2)), constant_values=7)
    expected = read(module, whole, None)
    np.testing.assert_allclose(read(reading, TOKENS, SEGMENTS), expected, atol=1e-6)
    np.testing.assert_allclose(read(reading, TOKENS[1:2, :2], None), expected[1:2], atol=1e-6)


def test_a_text_tower_is_drawn_as_the_paper_says():
    width, depth = 256, 3
    _, params = made(
        TextTower(num_layers=depth, hidden_size=width, num_heads=4, vocab_size=300, max_length=99), tokens=TOKENS
    )
    std = lambda leaf: float(jnp.std(leaf))
    block = params["stack"]["blocks"]
    assert std(params["token_embedding"]["embedding"]) == pytest.approx(0.02, rel=0.03)
    assert std(params["position_embedding"]["embedding"]) == pytest.approx(0.01, rel=0.03)
    for name in ("query", "key", "value"):
        assert std(block["attention"][name]["kernel"]) == pytest.approx(width**-0.5, rel=0.03)
    for leaf in (block["attention"]["out"], block["mlp"]["down"]):
        assert std(leaf["kernel"]) == pytest.approx((width * 2 * depth) ** -0.5, rel=0.03)
    assert std(block["mlp"]["up"]["kernel"]) == pytest.approx((2 * width) ** -0.5, rel=0.03)


@pytest.mark.parametrize(
    ("pooling", "use_class_token"), [("class", True), ("mean", True), ("mean", False), ("attention", False)]
)
def test_an_image_is_pooled_as_it_says(pooling, use_class_token):
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    fields = dict(num_classes=0, patch_size=4, intermediate_size=32, num_channels=3, image_size=8, init_std=0.3)
    vit, params = made(ViT(**SIZES, **fields, pooling=pooling, use_class_token=use_class_token), images=images)
    states, vectors = (applied(vit, {"params": params}, images, method=name) for name in ("hidden", "pooled"))
    patches = states[:, int(use_class_token) :]
    assert patches.shape == (3, 4, 16)
    if pooling == "attention":
        expected = attention_pooled(params["attention_pooling"], np.asarray(patches, np.float64), heads=2)
    else:
        expected = states[:, 0] if pooling == "class" else patches.mean(1)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    _, reads = applied(vit, {"params": params}, images, method="hidden", mutable="reads")
    embedded = reads["reads"]["embedded"]
    first = images[:, :4, :4].reshape(3, -1) @ params["patch_embedding"]["kernel"]
    row = params["position_embedding"]["embedding"][int(use_class_token)]
    np.testing.assert_allclose(embedded[:, int(use_class_token)], first + row, atol=1e-5)


def attention_pooled(params, x, heads):
    """What `AttentionPooling` is, in numpy, one image and one head after the other."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    product = lambda x, p: x @ p["kernel"] + p["bias"]
    attention, width = params["attention"], x.shape[-1] // heads
    found = []
    for image in x:
        q = product(params["probe"], attention["query"])
        k, v = product(image, attention["key"]), product(image, attention["value"])
        parts = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            logits = k[:, at] @ q[at] / math.sqrt(width)
            shares = np.exp(logits - logits.max())
            parts.append(shares / shares.sum() @ v[:, at])
        y = product(np.concatenate(parts), attention["out"])
        z = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * params["mlp_norm"]["scale"] + params["mlp_norm"]["bias"]
        z = product(z, params["mlp"]["up"])
        z = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        found.append(y + product(z, params["mlp"]["down"]))
    return np.stack(found)


def test_data_fill_in_the_towers():
    config = {"model": {"name": "clip", "vision": VISION, "text": TEXT, "projection_size": 8}}
    known = {"image_size": 8, "num_channels": 3, "vocab_size": 12}
    rest = {"train": {"steps": 1, "batch_size": 8}, "objective": {"name": "classification"}}
    rest |= {"data": {"name": "digits"}, "optimizer": {"name": "adamw", "learning_rate": 1e-3}}
    resolved = resolve(config | rest)
    module = build_module(resolved, known)
    assert {name: getattr(module, name) for name in known} == known and module.max_length == 8
    section = completed(resolved, module)["model"].to_dict()
    assert section["vision"]["image_size"] == 8 and section["text"]["vocab_size"] == 12
    assert build(section, MODELS) == module
    params = made(module, **{n: jnp.zeros(s.shape, s.dtype) for n, s in module.example().items()})[1]
    out = applied(module, {"params": params}, jnp.ones((2, 8, 8, 3)), TOKENS, SEGMENTS)
    assert out["image"].shape == (2, 8) and out["text"].shape == (3, 8)
    np.testing.assert_allclose(jnp.linalg.norm(out["image"], axis=1), 1, atol=1e-6)
    assert float(out["scale"]) == pytest.approx(1 / 0.07) and float(out["bias"]) == 0
    each = applied(module, {"params": params}, TOKENS, SEGMENTS, method="encode_texts")
    np.testing.assert_allclose(each, out["text"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": VISION | {"num_classes": 3}}, "model.vision.num_classes = 3"),
        ({"text": {"name": "gpt", **SIZES}}, "model.text = GPT has no method `pooled"),
        ({"text": TEXT | {"eos_id": 3}}, "eos_id=3 do not fit"),
        ({"text": TEXT | {"pooling": "end"}}, "pooling='end' is not known"),
        ({"vision": VISION | {"use_class_token": False}}, "needs model.vision.use_class_token=True"),
    ],
)
def test_towers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "siglip", "vision": VISION, "text": TEXT, **change}, MODELS)


def test_a_text_too_long_is_refused():
    module, params = tower()
    with pytest.raises(ConfigError, match="9 tokens do not fit into max_length = 8"):
        module.apply({"params": params}, jnp.ones((1, 9), jnp.int32))
