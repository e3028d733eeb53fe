"""A run of fewer layers begins with some of a deeper model's."""

import jax
import numpy as np
import pytest

from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.interop.initial import initial_params
from fmjax.interop.loading import placed
from fmjax.models import MODELS
from tests.small_models import random_model

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_heads": 2}
LLAMA = {"name": "llama", "vocab_size": 11, "max_length": 8, "num_kv_heads": 1, **SIZES}


def begun(folder, section, layers):
    module = build(section, MODELS)
    shapes, shardings = placed(module, None)
    fresh = lambda: jax.tree.map(lambda x: np.full(x.shape, 7.0, x.dtype), shapes)
    return initial_params(str(folder), module, shapes, shardings, fresh, (), layers)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of six layers, and its folder."""
    folder = tmp_path_factory.mktemp("deep") / "deep"
    model = random_model(LLAMA | {"num_layers": 6})
    model.save(folder)
    return model, folder


@pytest.mark.parametrize("layers, kept", [("every", (2, 5)), ("spread", (0, 5)), ((4, 1), (4, 1))])
def test_layers_are_those_that_are_named_and_the_rest_is_all_there(saved, layers, kept):
    model, folder = saved
    found = begun(folder, LLAMA | {"num_layers": 2}, layers)
    deep = model.params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.array(kept)]), found["stack"]["blocks"],
                 deep["stack"]["blocks"])  # fmt: skip
    for name in ("token_embedding", "head"):
        jax.tree.map(np.testing.assert_array_equal, found[name], deep[name])


def test_a_projected_student_begins_with_them_beside_matrices_of_its_own(saved):
    model, folder = saved
    section = {"name": "projected", "width": 3, "student": LLAMA | {"num_layers": 3}, "names": ("hidden",)}
    found = begun(folder, section, "every")
    kernel = found["student"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, model.params["stack"]["blocks"]["mlp"]["up"]["kernel"][1::2])
    assert found["projections_hidden"]["kernel"].shape == (8, 3) and (found["projections_hidden"]["kernel"] == 7).all()


def test_what_does_not_fit_is_refused(saved):
    _, folder = saved
    refused = lambda layers, **fields: begun(folder, LLAMA | {"num_layers": 2} | fields, layers)
    with pytest.raises(ConfigError, match="train.init_layers = 'last' gives layer 0 none to begin with"):
        refused("last")
    with pytest.raises(ConfigError, match=r"train.init_layers = \(0, 6\): the teacher has no layer 6"):
        refused((0, 6))
    with pytest.raises(ConfigError, match="model.intermediate_size: 8 there, 16 in this run"):
        refused("every", intermediate_size=16)
    with pytest.raises(ConfigError, match="model.num_layers: 6 there, 2 in this run"):
        refused("")


def test_layers_of_another_kind_do_not_take_a_place(tmp_path):
    """Of windows by turns, and in each of two towers."""
    section = LLAMA | {"window": 4, "layer_pattern": ("local", "global")}
    random_model(section | {"num_layers": 4}).save(tmp_path / "deep")
    fewer = section | {"num_layers": 2}
    with pytest.raises(ConfigError, match="puts layer 1 in the place of layer 0, and they are of other kinds"):
        begun(tmp_path / "deep", fewer, "every")
    begun(tmp_path / "deep", fewer, (2, 1))


def test_each_tower_begins_with_layers_of_its_own(tmp_path):
    towers = lambda vision, text: {
        "name": "clip", "projection_size": 4,
        "vision": {"name": "vit", "num_classes": 0, "num_layers": vision, "image_size": 4, "num_channels": 1,
                   "patch_size": 2, **SIZES},
        "text": {"name": "text_tower", "num_layers": text, "vocab_size": 11, "max_length": 4, "hidden_size": 8,
                 "num_heads": 2},
    }  # fmt: skip
    model = random_model(towers(4, 2))
    model.save(tmp_path / "deep")
    found = begun(tmp_path / "deep", towers(2, 1), "every")
    for name, kept in (("vision", [1, 3]), ("text", [1])):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.array(kept)]), found[name]["stack"]["blocks"],
                     model.params[name]["stack"]["blocks"])  # fmt: skip
