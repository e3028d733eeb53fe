"""Layer-wise decay: each layer's share by BEiT's formula, whether layers are stacked or side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.assemble import param_spec
from fmjax.errors import ConfigError
from fmjax.models.vit import ViT
from fmjax.training.layer_decay import layer_scales
from fmjax.training.optimizer import SGD

SIZES = dict(
    num_layers=3, hidden_size=8, intermediate_size=8, num_heads=2, num_classes=2, patch_size=4, image_size=8,
    num_channels=1,
)  # fmt: skip


def layer_of(name: str) -> int:
    """BEiT's `get_num_layer_for_vit` in our names, of 3 layers."""
    if name.startswith(("class_token", "position_embedding", "patch_embedding")):
        return 0
    if name.startswith("stack/blocks_"):
        return int(name[len("stack/blocks_")]) + 1
    return 4


def updates(module, decay, **options):
    """What SGD at rate 1 makes of gradients of one, by name."""
    shapes, axes = param_spec(module, module.example())
    optimizer = SGD(learning_rate=1.0, momentum=0.0, clip_norm=0.0, layer_decay=decay, **options).make(10, axes)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    made, _ = jax.jit(optimizer.update)(ones, optimizer.init(ones), ones)
    flat, _ = jax.tree_util.tree_flatten_with_path(made)
    return {"/".join(key.key for key in path): -np.asarray(leaf) for path, leaf in flat}


def test_each_parameter_has_its_layers_share():
    found = updates(ViT(**SIZES, scan_layers=False), 0.75)
    assert {layer_of(name) for name in found} == {0, 1, 2, 3, 4} and len(found) > 50
    for name, update in found.items():
        np.testing.assert_allclose(update, 0.75 ** (4 - layer_of(name)), rtol=1e-6, err_msg=name)
    stacked = updates(ViT(**SIZES), 0.75)
    for name, update in stacked.items():
        apart = [found[name.replace("blocks/", f"blocks_{i}/")] for i in range(3)] if "blocks/" in name else found[name]
        np.testing.assert_array_equal(update, apart, err_msg=name)


def test_weight_decay_is_scaled_too_and_no_decay_is_none():
    decayed = updates(ViT(**SIZES), 0.5, weight_decay=1.0)["stack/blocks/mlp/up/kernel"]
    np.testing.assert_allclose(decayed[:, 0, 0], [2 * 0.5**3, 2 * 0.5**2, 2 * 0.5])
    assert all((update == 1).all() for update in updates(ViT(**SIZES), 1.0).values())


def test_two_stacks_are_counted_each_by_itself():
    shapes = {
        "vision/stack/blocks/w": (4, 2, 2), "text/stack/blocks/w": (2, 3), "vision/patch_embedding/kernel": (2, 2),
        "text/token_embedding/embedding": (5, 2), "projection/kernel": (2, 2),
    }  # fmt: skip
    found = layer_scales(shapes, 0.5, ("embedding",))
    assert found["vision/patch_embedding/kernel"] == 0.5**5 and found["text/token_embedding/embedding"] == 0.5**3
    assert found["text/stack/blocks/w"].ravel().tolist() == [0.25, 0.5] and found["projection/kernel"] == 1
    assert found["vision/stack/blocks/w"].shape == (4, 1, 1)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="optimizer.layer_decay = 0.5, but no stack of layers trains"):
        layer_scales({"head/kernel": (2, 2)}, 0.5, ())
    with pytest.raises(
        ConfigError, match="optimizer.layer_inputs: 'embbeding' is found in no parameter .* head/kernel"
    ):
        layer_scales({"head/kernel": (2, 2), "stack/blocks/w": (2, 2)}, 0.5, ("embbeding",))
    with pytest.raises(ConfigError, match="optimizer.layer_decay = 0.0 must be above 0"):
        SGD(learning_rate=1.0, layer_decay=0.0)
    with pytest.raises(ConfigError, match="optimizer.layer_inputs: '\\(' is not a regular expression"):
        SGD(learning_rate=1.0, layer_inputs=("(",))
