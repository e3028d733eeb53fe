"""Attention compiled for TPUs that are not there, where libtpu is installed; tests/planning compiles whole steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.layers.attention import attention
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.parallel.platform import target_platform


@pytest.fixture(scope="module")
def topology():
    """Function from a topology's name to its devices."""
    pytest.importorskip("libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # do not look for a chip on the network
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor keep other processes from compiling
        yield lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def attention_gradient(devices, sizes, t, s, heads, kv_heads, head_dim, **options):
    """The compiled program of a gradient of attention in bfloat16, as text."""
    config = MeshConfig(data=1, **sizes)
    mesh = make_mesh(config, list(devices))
    place = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
        dims, dtype, sharding=NamedSharding(mesh, PartitionSpec("fsdp", "sequence"))
    )
    q, k = place(2, t, heads, head_dim), place(2, s, kv_heads, head_dim)
    ids = tuple(place(2, length, dtype=jnp.int32) for length in (t, s))
    loss = lambda q, k, v, ids: attention(q, k, v, segment_ids=ids, **options).astype(jnp.float32).sum()
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(config.table.items())):
        assert target_platform() == "tpu"
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, ids).compile().as_text()


@pytest.mark.parametrize(
    "name, sizes, shape, options",
    [
        ("v5e:2x2", {"fsdp": 2, "tensor": 2}, (1024, 1024, 4, 2, 64), {}),
        ("v5e:2x2", {"fsdp": 2, "tensor": 2}, (37, 37, 4, 2, 40), {"window": 9, "causal": False}),
        ("v5p:2x2x1", {"sequence": 4}, (1024, 2048, 4, 2, 96), {"causal": False}),
        ("v5p:2x2x1", {"fsdp": 2, "sequence": 2}, (1024, 1024, 4, 2, 128), {"window": 200}),
    ],
    ids=["causal", "odd-banded", "cross-by-queries", "window-by-heads"],
)
def test_attention_compiles_to_the_kernel(topology, name, sizes, shape, options):
    text = attention_gradient(topology(name), sizes, *shape, **options)
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward, and backward for all three gradients


def test_the_platform_is_that_of_the_mesh_else_the_default():
    assert target_platform() == jax.default_backend()
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert target_platform() == "cpu"
        assert jax.jit(lambda x: x if target_platform() == "cpu" else None)(1) == 1
