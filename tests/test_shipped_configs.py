"""Every shipped config resolves; the large ones are traced: shapes, shardings and parameter counts, without arrays."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from fmjax import config as configs
from fmjax.training.setup import build_module, make_program

FOLDER = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
def test_every_shipped_config_resolves_and_documents_itself(name):
    file = FOLDER / f"{name}.py"
    configs.resolve(configs.load_config_file(str(file)))
    assert f"--config=configs/{name}.py" in file.read_text()


@pytest.mark.parametrize(
    "name, parameters, mesh",
    [
        # 124,439,808 published, and 47 rows of padding in the vocabulary
        ("gpt2_124m", 124_439_808 + 47 * 768, {"data": 8}),
        ("llama2_7b", 6_738_415_616, {"data": 1, "fsdp": 4, "tensor": 2}),
    ],
)
def test_large_models_have_their_published_size_and_trace_with_their_shardings(name, parameters, mesh):
    raw = configs.load_config_file(str(FOLDER / f"{name}.py"))
    config = configs.resolve(raw | {"mesh": mesh})
    length = config.data.sequence_length
    ints, floats = jax.ShapeDtypeStruct((length,), jnp.int32), jax.ShapeDtypeStruct((length,), jnp.float32)
    example = {"tokens": ints, "targets": ints, "segment_ids": ints, "positions": ints, "loss_weights": floats}
    program = make_program(config, build_module(config, {}), example)
    leaves = jax.tree.leaves(program.spec.shapes.params)
    assert sum(leaf.size for leaf in leaves) == parameters
    if name == "llama2_7b":
        shard = sum(jnp.prod(jnp.array(s.sharding.shard_shape(s.shape))) * 4 for s in leaves)
        assert shard < 4 * parameters / 8 * 1.001
    with jax.set_mesh(program.mesh):
        out, metrics = jax.eval_shape(program.train_step, program.spec.shapes, program.batch_spec, program.key)
    assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(lambda x: x.shape, program.spec.shapes)
    assert metrics["loss"].shape == ()
