"""Attention compiled for TPUs that are not there, where libtpu is installed; tests/planning compiles whole steps."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.layers.attention import attention
from fmjax.layers.embed import Embedding
from fmjax.parallel.logical import constrain
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


def test_what_an_embedding_sends_is_in_the_dtype_of_the_activations(topology):
    """The table's columns are gathered in bfloat16; its gradient is summed in float32."""
    config = MeshConfig(data=1, fsdp=2, tensor=2)
    mesh, module = make_mesh(config, list(topology("v5e:2x2"))), Embedding(512, 256, dtype="bfloat16")
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    table = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=place("tensor", "fsdp"))
    index = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=place("fsdp"))

    def loss(table, index):
        rows = module.apply({"params": {"embedding": table}}, index)
        return jnp.sum(constrain(rows, ("batch", "length", "act_embed")).astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(config.table.items())):
        text = jax.jit(jax.grad(loss), out_shardings=table.sharding).lower(table, index).compile().as_text()
    sent = re.findall(r"= \(?(\w+)\[([\d,]+)\].* (all-gather|all-reduce|reduce-scatter)(?:-start)?\(", text)
    assert ("bf16", "256,256", "all-gather") in sent and not any(
        dtype == "f32" and kind == "all-gather" for dtype, _, kind in sent
    )
    assert any(dtype == "f32" and kind != "all-gather" for dtype, _, kind in sent)


def test_the_platform_is_that_of_the_mesh_else_the_default():
    assert target_platform() == jax.default_backend()
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert target_platform() == "cpu"
        assert jax.jit(lambda x: x if target_platform() == "cpu" else None)(1) == 1
