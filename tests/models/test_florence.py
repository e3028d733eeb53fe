"""Florence: the published loss, equation by equation, of its own vectors; and its towers may be BriVL's too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import build
from fmjax.models import MODELS
from fmjax.objectives.contrastive import Contrastive
from tests.quick_keys import quick_key
from tests.small_models import applied

VISION = {
    "name": "coswin", "image_size": 8, "num_channels": 3, "num_classes": 0, "embed_size": 8, "depths": (1, 1),
    "num_heads": (2, 2), "window": 2, "patch_size": 2,
}  # fmt: skip
TEXT = {"name": "text_tower", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 9, "max_length": 6}
LABELS = np.array([4, 7, 4, -1, 7, -1])


def made(config):
    module = build(config, MODELS)
    example = {name: jnp.zeros(like.shape, like.dtype) for name, like in module.example().items()}
    return module, nn.unbox(jax.jit(module.init)(quick_key(0), **example)["params"])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "images": rng.normal(size=(6, 8, 8, 3)).astype(np.float32),
        "tokens": rng.integers(1, 9, (6, 6)).astype(np.int32),
        "segment_ids": np.ones((6, 6), np.int32), "labels": LABELS.astype(np.int32),
        "loss_weights": np.ones(6, np.float32),
    }  # fmt: skip


def published(u, v, scale):
    """The sum of both directions over the batch (Yuan et al. 2021, section 2.2)."""
    total = 0.0
    for queries, keys in ((u, v), (v, u)):
        for i, label in enumerate(LABELS):
            positives = [k for k, other in enumerate(LABELS) if k == i or (label >= 0 and label == other)]
            exponentials = jnp.exp(scale * queries[i] @ keys.T)
            total -= sum(jnp.log(exponentials[k] / exponentials.sum()) for k in positives) / len(positives)
    return total


def test_its_loss_is_half_the_published_one_with_its_gradients(batch):
    module, params = made({"name": "florence", "vision": VISION, "text": TEXT, "projection_size": 5})
    objective, inputs = Contrastive(positives="labels"), ("images", "tokens", "segment_ids")

    @jax.jit
    def ours(params):
        total, weight = objective(module.apply, params, batch, jax.random.key(0), False)["loss"]
        return total / weight

    @jax.jit
    def theirs(params):
        out = module.apply({"params": params}, **{name: batch[name] for name in inputs})
        return published(out["image"], out["text"], jnp.exp(params["log_scale"])) / len(LABELS)

    (found, gradients), (expected, by_hand) = (jax.value_and_grad(f)(params) for f in (ours, theirs))
    np.testing.assert_allclose(2 * found, expected, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(2 * a, b, atol=1e-4 * abs(b).max() + 1e-6)
    jax.tree.map(close, gradients, by_hand)


def test_brivl_pools_patches_of_its_image_tower(batch):
    text = {"name": "bert", "masked_lm_head": False, "next_sentence": False, "num_layers": 1, "hidden_size": 16}
    text |= {"num_heads": 2, "vocab_size": 9, "max_length": 6}
    sizes = {"projection_size": 32, "grids": (1, 2), "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    module, params = made({"name": "brivl", "vision": VISION, "text": text, **sizes})
    vectors = applied(module, {"params": params}, batch["images"], method="encode_images")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    features = applied(module, {"params": params}, batch["images"], method=lambda m, x: m.vision.feature_map(x))
    assert features.shape == (6, 2, 2, 16)
