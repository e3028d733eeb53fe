"""The evaluation loss over sets that are no multiple of the batch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.errors import ConfigError
from fmjax.parallel.mesh import MeshConfig, make_mesh
from fmjax.training.evaluation import evaluate_loss


def program(seen):
    """Of an objective that averages `x` over the rows that count, in batches of eight on eight devices."""
    mesh = make_mesh(MeshConfig(data=8))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def eval_step(params, batch, key, carry, models):
        seen.append(jax.device_get(batch))
        return {"loss": ((batch["x"] * batch["loss_weights"]).sum(), batch["loss_weights"].sum())}

    spec = {name: jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding) for name in ("x", "loss_weights")}
    return types.SimpleNamespace(
        batch_sharding=sharding, mesh=mesh, batch_spec=spec, key_for=lambda *_: None, eval_step=eval_step,
        objective=object(), models=None,
    )  # fmt: skip


def test_the_rows_that_fill_up_the_last_batch_are_marked_by_weights_of_zero():
    rows = [{"x": np.float32(i), "loss_weights": np.float32(1)} for i in range(11)]
    seen = []
    assert evaluate_loss(program(seen), None, {"heldout": rows}, 8) == {"eval/loss": 5.0}
    assert [batch["loss_weights"].tolist() for batch in seen] == [[1] * 8, [1] * 3 + [0] * 5]
    assert seen[1]["x"].tolist() == [8, 9, 10, 0, 0, 0, 0, 0]


def test_rows_that_cannot_be_marked_are_refused():
    rows = [{"x": np.float32(i)} for i in range(11)]
    with pytest.raises(
        ConfigError, match="'heldout' has 11 examples, not a multiple .* no 'loss_weights' that would mark"
    ):
        evaluate_loss(program([]), None, {"heldout": rows}, 8)
