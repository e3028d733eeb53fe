"""The sharding table: what it gives, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from fmjax.errors import ConfigError
from fmjax.parallel.logical import constrain, mesh_axes
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.parallel.sharding import batch_sharding, check_batch, like_params, local_rows, param_shardings


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def shardings(shapes, axes, **sizes):
    config = MeshConfig(**({"data": 1, "fsdp": 4, "tensor": 2} | sizes))
    return param_shardings(shapes, axes, make_mesh(config), config.table, config.replicate)


def test_logical_axes_become_mesh_axes():
    found = shardings(
        {"up": shape(3, 8, 4), "norm": shape(3, 8)}, {"up": ("layers", "embed", "mlp"), "norm": ("layers", "norm")}
    )
    assert found["up"].spec == P(None, "fsdp", "tensor")
    assert found["norm"].spec == P(None, None)


def test_activations_go_by_the_rules_in_context():
    mesh, x = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), jnp.ones((4, 4))
    rules = [("batch", ("data", "fsdp")), ("heads", "tensor"), ("heads", "fsdp"), ("embed", ("fsdp", "sequence"))]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        assert mesh_axes(mesh, ("batch", "heads", "other", None, "embed")) == [("fsdp",), ("tensor",), (), (), ()]
        assert jax.jit(lambda: constrain(x, ("batch", "heads")))().sharding.spec == P("fsdp", "tensor")
    with nn.logical_axis_rules(rules):
        assert constrain(x, ("batch", "heads")) is x
    with jax.set_mesh(mesh):
        assert constrain(x, ("batch", "heads")) is x


def test_a_mesh_axis_is_used_once_a_parameter():
    assert shardings({"w": shape(8, 8)}, {"w": ("embed", "embed")})["w"].spec == P("fsdp", None)


def test_the_config_extends_the_table():
    found = shardings({"w": shape(8, 8)}, {"w": ("experts", "mlp")}, rules={"experts": ("fsdp",)})
    assert found["w"].spec == P("fsdp", "tensor")


def test_further_axes_are_named_in_the_config_alone():
    """Experts and pipeline stages need no change of the mesh or of the table."""
    rules = {"experts": ("expert",), "layers": ("stage",), "batch": ("data", "fsdp", "expert")}
    shapes = {"up": shape(4, 2, 8, 8), "w": shape(4, 8)}
    axes = {"up": ("layers", "experts", "embed", "mlp"), "w": ("layers", "norm")}
    sizes = {"expert": 2, "stage": 2}
    found = shardings(shapes, axes, fsdp=2, tensor=1, extra=sizes, rules=rules)
    assert found["up"].spec == P("stage", "expert", "fsdp", None) and found["w"].spec == P("stage", None)
    assert found["up"].shard_shape((4, 2, 8, 8)) == (2, 1, 4, 8)
    assert dict(found["up"].mesh.shape) == {"data": 1, "expert": 2, "stage": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    one = shardings(shapes, axes, extra={"expert": 1, "stage": 1}, rules=rules)
    assert one["up"].spec == P(None, None, "fsdp", "tensor")
    with pytest.raises(ConfigError, match="mesh.extra names the axis 'fsdp'"):
        MeshConfig(extra={"fsdp": 2})
    with pytest.raises(ConfigError, match="mesh.expert = 0"):
        MeshConfig(extra={"expert": 0})
    with pytest.raises(ConfigError, match="mesh axis 'expert'; known: data, fsdp, tensor, sequence"):
        MeshConfig(rules=rules)


def test_a_split_length_splits_the_parameters_too():
    found = shardings({"w": shape(8, 8)}, {"w": ("embed", "mlp")}, fsdp=2, tensor=1, sequence=4)
    assert found["w"].shard_shape((8, 8)) == (1, 8)


def test_an_axis_with_a_question_mark_is_split_where_it_divides():
    shapes, axes = {"a": shape(3, 9), "b": shape(4, 9)}, {"a": ("embed?", None), "b": ("embed?", None)}
    found = shardings(shapes, axes, data=4, fsdp=2, tensor=1)
    assert found["a"].spec == P(None, None) and found["b"].spec == P("fsdp", None)
    with pytest.raises(ConfigError, match="logical axis 'embeb'"):
        shardings({"a": shape(3)}, {"a": ("embeb?",)})


@pytest.mark.parametrize(
    "shapes, axes, message",
    [
        (
            {"a": {"w": shape(8, 8)}},
            {"a": {"w": ("embeb", "mlp")}},
            "parameter 'a/w': logical axis 'embeb'.*did you mean 'embed'",
        ),
        ({"w": shape(6, 8)}, {"w": ("embed", "mlp")}, "parameter 'w'.*dimension 0 .* size 6.*'fsdp' .4 devices"),
        ({"w": shape(2048, 1024)}, {"w": (None, None)}, "parameter 'w' .* would be whole on each of 8 devices"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(shapes, axes, message):
    with pytest.raises(ConfigError, match=message):
        shardings(shapes, axes)


def test_a_large_parameter_may_be_whole_when_told_so():
    assert shardings({"w": shape(2048, 1024)}, {"w": (None, None)}, replicate=("^w$",))["w"].spec == P(None, None)
    assert shardings({"w": shape(2048, 1024)}, {"w": (None, None)}, data=8, fsdp=1, tensor=1)["w"].spec == P(None, None)


def test_mesh_sizes_must_fit_the_devices():
    assert dict(make_mesh(MeshConfig(data=-1, tensor=4)).shape) == {"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1}
    with pytest.raises(ConfigError, match="needs 3 devices, there are 8"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ConfigError, match="not divisible by the fixed sizes' product 3"):
        make_mesh(MeshConfig(data=-1, tensor=3))
    with pytest.raises(ConfigError, match="only one mesh axis may be -1"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(ConfigError, match="names the mesh axis 'tensr'"):
        MeshConfig(rules={"embed": ("tensr",)})


def test_a_batch_must_divide_over_its_shards():
    config = MeshConfig(data=2, fsdp=4)
    mesh = make_mesh(config)
    with pytest.raises(ConfigError, match="train.batch_size = 12 does not divide over the mesh's 8 batch shards"):
        check_batch(12, mesh, config.table, "train.batch_size")
    assert local_rows(16, batch_sharding(mesh, config.table)) == list(range(16))
    with pytest.raises(ConfigError, match="no logical axis 'batch', only: embed"):
        batch_sharding(mesh, {"embed": ("fsdp",)})


@pytest.mark.parametrize("manual", [{"data"}, {"data", "fsdp"}])
def test_a_constraint_inside_shard_map_leaves_out_the_axes_mapped_over(manual):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jnp.arange(64.0).reshape(8, 8)

    def part(x):
        with nn.logical_axis_rules([("batch", ("data", "fsdp")), ("embed", None)]):
            return 2 * constrain(x, ("batch", "embed"))

    specs = dict(in_specs=P("data"), out_specs=P("data"))
    assert (jax.jit(jax.shard_map(part, mesh=mesh, axis_names=manual, **specs))(x) == 2 * x).all()


@pytest.mark.parametrize(
    "optimizer", [optax.adamw(1e-3), optax.adafactor(1e-3, min_dim_size_to_factor=4), optax.lion(1e-3)]
)
def test_optimizer_state_is_sharded_like_the_parameters(optimizer):
    shapes, axes = (
        {"a": {"w": shape(3, 8, 4), "b": shape(3, 4)}},
        {"a": {"w": ("layers", "embed", "mlp"), "b": ("layers", "mlp")}},
    )
    params = shardings(shapes, axes)
    whole = jax.sharding.NamedSharding(params["a"]["w"].mesh, P())
    state = jax.eval_shape(optimizer.init, shapes)
    found = like_params(state, shapes, params, whole)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        expected = {
            (3, 8, 4): P(None, "fsdp", "tensor"),
            (3, 4): P(None, "tensor"),
            (3, 8): P(None, "fsdp"),
            (8, 4): P("fsdp", "tensor"),
        }
        assert sharding.spec == expected.get(leaf.shape, P())
