"""Where a model's parameters lie while it is compressed and after that, on a mesh."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fmjax.adapt.packed import Packed
from fmjax.interop.loading import placed
from fmjax.layers.quantized import QTensor, quantization_of
from fmjax.layers.weights import is_weight
from fmjax.parallel.placement import Placement, put_whole
from fmjax.parallel.sharding import path_name


def on_host(block: Any, placement: Placement | None) -> Any:
    """A block that is done, in NumPy's arrays, so that devices hold none whole but the one that is computed; without a
    mesh as it is."""
    if placement is None:
        return block
    return jax.device_get(jax.tree.map(lambda x: put_whole(x, placement), block))


def as_the_model(module: nn.Module, params: Any, placement: Placement | None) -> Any:
    """The parameters of a module, NumPy's arrays too, each split as the module says, codes and scales as the kernel
    they stand for; without a mesh as they are."""
    if placement is None:
        return params
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    packed = {path_name(path): quantization_of(x) for path, x in leaves if isinstance(x, QTensor)}
    with nn.logical_axis_rules(()):  # by those of inference mere shapes would be constrained
        shardings = placed(module, placement, Packed(packed) if packed else None)[1]
    is_packed = lambda x: isinstance(x, QTensor)
    places = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(shardings, is_leaf=is_packed)}

    def put(name, leaf):
        # What adaptation added, beside kernels or by names that the module has not, stays where it lies.
        if name not in places or is_weight(leaf) and not is_packed(leaf):
            return jax.tree.map(lambda x: put_whole(x, placement) if isinstance(x, np.ndarray) else x, leaf)
        return jax.device_put(leaf, places[name])

    return structure.unflatten([put(path_name(path), leaf) for path, leaf in leaves])
