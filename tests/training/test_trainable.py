"""Layers that stay: `train.frozen_layers` cuts what is stacked, with all that is told of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from fmjax.errors import ConfigError
from fmjax.layers.quantized import Quantization
from fmjax.training.trainable import Trainable

TREE = {
    "embedding": np.ones((5, 2), np.float32),
    "stack": {"blocks": {"up": np.arange(6, dtype=np.float32).reshape(3, 2), "codes": np.ones((3, 2), np.int8)}},
    "tower": {"blocks_0": {"up": np.ones(2, np.float32)}, "blocks_2": {"up": np.ones(2, np.float32)}},
}


def test_the_first_layers_of_a_stack_stay_with_all_that_is_told_of_them():
    trainable = Trainable((), TREE, frozen_layers=2)
    trained, rest = trainable.split(TREE)
    np.testing.assert_array_equal(trained["stack"]["blocks"]["up"], [[4, 5]])
    np.testing.assert_array_equal(rest["stack"]["blocks"]["up"], [[0, 1], [2, 3]])
    assert trained["embedding"] is TREE["embedding"] and trained["stack"]["blocks"]["codes"] is None
    assert trained["tower"]["blocks_0"]["up"] is None and rest["tower"]["blocks_2"]["up"] is None
    jax.tree.map(np.testing.assert_array_equal, trainable.merge(trained, rest), TREE)
    place = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), TREE)
    assert trainable.split(shapes)[0]["stack"]["blocks"]["up"].shape == (1, 2)
    axes = {**jax.tree.map(lambda x: ("layers", "mlp"), TREE)}
    assert trainable.split(axes)[0]["stack"]["blocks"]["up"] == ("layers", "mlp")
    gradient = jax.grad(lambda t: jnp.sum(trainable.merge(t, rest)["stack"]["blocks"]["up"] ** 2))(trained)
    np.testing.assert_array_equal(gradient["stack"]["blocks"]["up"], [[8, 10]])


def test_patterns_choose_among_the_layers_that_are_left():
    trained, _ = Trainable(("up$",), TREE, frozen_layers=1).split(TREE)
    assert trained["embedding"] is None and trained["stack"]["blocks"]["up"].shape == (2, 2)
    with pytest.raises(ConfigError, match="frozen_layers = 3 leaves none of the 3 layers of 'stack/blocks/"):
        Trainable((), TREE, frozen_layers=3)
    with pytest.raises(ConfigError, match="frozen_layers = 1, but no stack of layers trains"):
        Trainable(("embedding",), TREE, frozen_layers=1)


def test_no_part_of_a_quantized_weight_trains():
    tree = {"kernel": Quantization("nf4", 2).quantize(jnp.ones((4, 2))), "bias": jnp.ones(2)}
    trained, rest = Trainable((), tree).split(tree)
    assert trained["bias"] is tree["bias"] and jax.tree.leaves(trained["kernel"]) == []
    with pytest.raises(ConfigError, match="'scales' matches no parameter that can train"):
        Trainable(("scales",), tree)
