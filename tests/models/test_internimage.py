"""InternImage: its published size, what its options do, and a short run that is split and loaded."""

import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.errors import ConfigError
from fmjax.models.internimage import InternImage
from fmjax.training.loop import train
from tests.quick_keys import quick_key

FILE = pathlib.Path(__file__).parents[2] / "configs" / "internimage_digits.py"
SMALL = dict(image_size=8, num_channels=1, num_classes=3, hidden_size=8, depths=(2, 1), groups=(2, 2), mlp_ratio=1)
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))


def made(**options):
    """(module, its variables with every parameter drawn)."""
    module = InternImage(**SMALL | options, stem_strides=(1, 2))

    @jax.jit
    def draw():
        variables = nn.unbox(module.init(quick_key(1), IMAGES))
        leaves, structure = jax.tree.flatten(variables["params"])
        keys = jax.random.split(jax.random.key(2), len(leaves))
        leaves = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
        return variables | {"params": structure.unflatten(leaves)}

    return module, draw()


@pytest.mark.parametrize(
    "options, millions, gigaflops",
    [
        (dict(), 29.9, 5), (dict(hidden_size=80, depths=(4, 4, 21, 4), groups=(5, 10, 20, 40)), 50.1, 8),
        (dict(hidden_size=112, depths=(4, 4, 21, 4), groups=(7, 14, 28, 56)), 97.5, 16),
    ],
    ids=["T", "S", "B"],
)  # fmt: skip
def test_published_sizes(options, millions, gigaflops):
    """Parameters and multiplications of a forward pass over 224x224 pixels as the paper's table 2 has them."""
    if options:
        options |= dict(layer_scale=1.0, post_norm=True)
    module = InternImage(image_size=224, num_channels=3, num_classes=1000, reach=None, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.example()["images"])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(millions, rel=0.003)
    assert module.flops_per_example({}) / 6e9 == pytest.approx(gigaflops, rel=0.06)


def test_windows_change_nothing():
    """The published gathers and our windows: loss and gradients of a network of one stage."""
    found, stage = [], dict(depths=(2,), groups=(2,))
    for reach in (1, None):
        module, variables = made(**stage, post_norm=True, layer_scale=0.5, offset_scale=0.2, reach=reach)
        loss = lambda params: (module.apply(variables | {"params": params}, IMAGES) ** 2).sum()
        found.append(jax.jit(jax.value_and_grad(loss))(variables["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), *found)
    plain = jax.eval_shape(InternImage(**SMALL).init, jax.random.key(0), IMAGES)
    stages = [shapes["params"]["stage_0"] for shapes in (variables, plain)]
    assert ["core_scale" in stage["blocks"] for stage in stages] == [True, False]
    assert ["norm" in stage for stage in stages] == [False, True]


def test_blocks_are_left_out_of_rows_at_random():
    module, variables = made(path_dropout=0.9, reach=None)
    apply = jax.jit(lambda key: module.apply(
        variables, IMAGES, train=True, rngs={"dropout": key}, method="maps"
    ))  # fmt: skip
    one, again, other = (apply(jax.random.key(key))[-1] for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    plain = module.clone(path_dropout=0.0)
    # In evaluation none is left out: both are one program.
    programs = [jax.jit(one.apply).lower(variables, IMAGES) for one in (plain, module)]
    assert programs[0].as_text() == programs[1].as_text()


def test_sizes_that_do_not_fit_are_refused():
    for options, message in (
        (dict(depths=(1, 2), groups=(2,)), "model.depths = .1, 2. and model.groups = .2,.: a number a stage each"),
        (dict(depths=(1,), groups=(3,)), "model.groups = .3,.: 64 channels do not divide into 3 groups"),
        (dict(hidden_size=7), "the stem is two convolutions, the first of half the channels"),
        (dict(reach=0), "reach=0: expected a whole number of at least 1"),
        (dict(path_dropout=1.0), "model.path_dropout=1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            InternImage(**options)


def test_a_run_is_split_and_loaded(tmp_path):
    changed = {
        "model.hidden_size": "16", "model.depths": "(1,)", "model.groups": "(2,)", "model.reach": "1",
        "model.stem_strides": "(1,2)", "train.batch_size": "16", "train.steps": "2", "mesh.data": "4", "mesh.fsdp": "2",
        "train.eval_every": "-1",
    }  # fmt: skip
    raw = configs.load_config_file(str(FILE)) | {"optimizer": {"name": "adamw", "learning_rate": 3e-3}}
    config = configs.resolve(configs.apply_overrides(raw, changed))
    found = train(config, tmp_path / "run", cache_dir=tmp_path, progress=False)
    assert np.isfinite(found["train/loss"])
    model = fmjax.load(tmp_path / "run")
    found = model.classify([np.zeros((8, 8, 1), np.uint8)], top_k=2)
    assert len(found[0]) == 2 and model.embed(images=[np.zeros((8, 8, 1), np.uint8)]).shape == (1, 24)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.state)) == 2 * 24
